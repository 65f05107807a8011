"""Stored arrays as arrays of other libraries, which are loaded when they are needed.

Modules
-------
dask            lazy arrays, computed and stored block by block by workers
labelled        elements and labels of arrays of xarray that are stored
xarray          lazy arrays with the labels that were stored
xarray_dataset  several of them as one Dataset
"""
