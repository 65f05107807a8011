"""The database engine: arrays as rows, over PostgREST.

An array is cut into blocks of about 1 MiB. One block is a row of the table ``tensors``. A small array is written by one
request. A larger array is staged: it is declared, filled with blocks in parallel, and made visible by a commit in one
transaction. A selection is read by as few requests as its bytes allow.

Modules
-------
block_engine    the operations of the engine
writing         writing of arrays and appends, in one request or staged
assigning       assignment to selections of stored arrays
requests        requests that read, store and patch elements
cutting         cuts of arrays into runs for requests (pure)
"""
