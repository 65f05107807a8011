"""Arrays and files of a Supabase project: the two engines, and everything that they share.

Modules
-------
arrays      all arrays of one user, in either engine
engine      the interface of an engine
blocks      the database engine: arrays as rows of a table
zarr        the storage engine: arrays as Zarr objects
catalogue   entries of arrays: listing, opening, sharing, renaming, deleting
staging     writes of several requests, committed in one transaction
restarts    restarts on an array that changed on the way
files       files of a user in Storage
transfer    calls of the project's functions, and jobs in parallel
wire        connections, retries, headers of requests, and the backend's errors
base        the interface of both contexts of a session
database    the context whose new arrays are rows of the database
storage     the context whose new arrays are objects of Storage, with files
"""
