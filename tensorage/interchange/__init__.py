"""Taking in what other libraries keep in files and objects, and giving it out again.

Modules
-------
entries         one array on its way into a store
attributes      attributes of files as JSON, and as files keep them
marks           attributes of groups, which an empty array carries
datasets        Datasets of xarray as groups of arrays
objects         datasets of h5py and arrays of zarr that are assigned to a store
storing         Datasets and files, each in one transaction
reading         the formats of files, by suffix, and the arrays of a file
writing         arrays of a store as a file
hdf5, numpy_files, netcdf, zarr_folders
                one format each
"""
