"""The storage engine: arrays as Zarr v3 objects in Supabase Storage.

An array is cut into chunks of about 1 MiB, and these are put into shards of about 8 MiB; one shard is one object.
The catalogue says which objects an array consists of, and where in them its chunks are.

Modules
-------
engine      what the engine can do
reading     selections, by ranges of objects
writing     new shards, in parallel
changing    appends, assignments, and arrays that are filled piece by piece
copying     arrays again, by the server
entries     what the catalogue says of shards
bucket      objects in and out of Storage
codec       shards in and out of bytes
chains      the codecs of a chunk at work, by numcodecs or by zarr
compressors the common ones, one by one
layout      which object holds which elements (pure)
extents     how large chunks and shards are (pure)
metadata    what the metadata of a Zarr v3 array say (pure)
zarr_store  a stored array as a store of zarr
zarr_keys   what such a store may be asked for (pure)
importing   arrays of Zarr that somebody else wrote
intact      whether an encoded chunk is whole (pure)
"""
