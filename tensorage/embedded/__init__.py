"""The embedded backend: a Supabase-compatible server on this machine.

A real PostgreSQL behind an ASGI server. The server speaks the part of Supabase's wire protocol that this package's
client needs: Auth (GoTrue), REST (PostgREST) and Storage.

This package is a *server*. The client imports from it only to start it, and the server never imports the client.

Modules
-------
folder          the data folder: its files, its secrets, its locks
postgres        the PostgreSQL cluster of a data folder: made, started, watched and stopped
segments        the shared memory of a killed cluster, removed
memory          settings of the C library's allocator for large messages
migrate         the SQL of a cluster: hosted Supabase's roles and schemas, then ``supabase/migrations``
server          the process that owns a data folder and serves HTTP (``python -m tensorage.embedded``)
control         starts, joins, stops and resets that process, from any other process
lifetime        ends the server together with another process
database        connections to PostgreSQL, and transactions in the caller's role
tokens          JSON Web Tokens, signed and verified
connections     limits on each client's connection
request_memory  a limit on the memory of all REST requests together
access          refuses other hosts, and requests without the project's key
gateway         the routes of the server
auth            the Auth API
rest            the REST API
storage         the Storage API: rows in PostgreSQL, bytes in files
"""
