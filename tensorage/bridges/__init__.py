"""Stored arrays in other libraries, which are loaded when they are asked for.

Modules
-------
dask        lazy arrays, computed and stored block by block by its workers
"""
