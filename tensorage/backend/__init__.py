"""Engines: how arrays are kept in a Supabase project, and the byte mover they share.

Modules
-------
base        what every engine can do
database    arrays as rows, over PostgREST
blocks      elements between memory and the rows of one dataset
storage     objects of Supabase Storage
transfer    requests: connections, parallelism, retries
progress    the bar
arrays      what users hand in, as arrays and keys that can be stored (pure)
protocol    the binary header of requests (pure)
faults      the backend's errors as ours (pure)
"""
