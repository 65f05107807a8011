"""The database engine: arrays as rows, over PostgREST.

An array is cut into blocks of about 1 MiB; one block is a row of ``tensors``. A small array is written by
one request. A larger one is staged: declared, filled with blocks in parallel, and made visible by a
commit, in one transaction. A selection is read by as few requests as its bytes allow.

Modules
-------
engine      what the engine can do
writing     arrays into the database, in one request or staged
assigning   assignment to parts of stored arrays
blocks      elements between memory and the rows of one dataset
pieces      arrays cut into pieces for requests (pure)
"""
