"""The storage engine: arrays as Zarr v3 objects in Supabase Storage.

An array is cut into chunks of a few rows, or of one, and these are put into shards of about 8 MiB. One shard is one
object.
The catalogue records the object of each shard, and the ranges of the chunks in it.

Modules
-------
zarr_engine     the operations of the engine
reading         reading of selections, by ranges of objects
writing         writing of new shards, in parallel
changing        appends, assignments, and filling of declared arrays
tails           appends of a few rows, which the catalogue keeps
copying         server-side copies of arrays
tiles           chunks as tiles of a cache
shard_records   records of shards in the catalogue
bucket          objects in Storage
ranges          ranges of an object to fetch (pure)
large_chunks    warning about chunks that are large for rows
codec           encoding of shards, and decoding of their chunks
codec_pipeline  codecs of a chunk, run by numcodecs or by zarr
compressors     zstd and Blosc
inflate         bounded decoding of codecs from bytes to bytes
layout          cut of an array into shards and chunks (pure)
chunk_shapes    shapes of chunks and shards (pure)
zarr_store      a stored array as a store of zarr
zarr_keys       keys and documents of such a store (pure)
importing       import of Zarr arrays that somebody else wrote
"""
