"""Stored arrays in other libraries, which are loaded when they are asked for.

Modules
-------
dask            lazy arrays, computed and stored block by block by its workers
labelled        arrays of xarray on their way in: elements and labels
xarray          lazy arrays with the labels that were stored
xarray_engine   what ``xarray.open_dataset(store, engine="tensorage")`` finds
"""
