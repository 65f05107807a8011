"""The embedded backend: a Supabase-compatible server on this machine.

A real PostgreSQL behind an ASGI server that speaks the part of Supabase's wire protocol which a
client of this kind uses: Auth (GoTrue), REST (PostgREST) and Storage.

It is a *server*: the client imports from it only to start it, and it never imports the client.

Modules
-------
folder      the data folder: its files, its secrets, its locks
postgres    the PostgreSQL cluster in it: initdb, start, stop, roles
segments    removes the shared memory of a cluster that was killed
migrate     applies ``supabase/migrations`` as hosted Supabase's ``postgres`` role would
server      the process that owns the cluster and serves HTTP (``python -m tensorage.embedded``)
control     starts, joins, stops and resets that process from any other one
lifetime    ends the server with another process
database    connections and transactions as the calling user's role
tokens      JSON Web Tokens: made and verified
gateway     the routes, and what hosted Supabase's API gateway does in front of them
auth        the Auth API
rest        the REST API (a package: parse, catalogue, SQL, answers)
storage     the Storage API (a package: rows in PostgreSQL, bytes in files)
"""
