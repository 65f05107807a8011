"""The REST API: PostgREST's protocol over the schema ``public``.

It never interprets what PostgreSQL can: bodies are parsed and answers are made by PostgreSQL, in one
transaction as the caller's role, so that row-level security, constraints, defaults and error codes are
PostgreSQL's own.

Modules, each using only those above it
---------------------------------------
errors          what is answered when something fails
terms           what a query string can say
scanner, query  the query string, parsed
headers         Prefer, Range, Accept
payload         request bodies
introspection   the queries that read the schema cache
catalogue       the schema cache
sql             identifiers, filters, orderings as SQL
tables          requests for tables and views
routines        which function a call means
calls           calls of functions
answers         results to HTTP answers
request         requests and answers on the wire
caller          tokens to roles
schema_cache    the schema cache, kept up to date
api             the ASGI application
"""

from tensorage.embedded.rest.api import RestApi

__all__ = ["RestApi"]
