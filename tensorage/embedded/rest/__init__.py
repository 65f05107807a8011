"""The REST API: PostgREST's protocol over the schema ``public``.

PostgreSQL parses the bodies and makes the answers, in one transaction in the caller's role. Row-level security,
constraints, defaults and error codes are therefore PostgreSQL's own.

Modules, each using only those above it
---------------------------------------
errors          errors as HTTP answers
query_model     a parsed query string, as records
scanner         a position in a text that is being parsed
query           query strings, parsed
headers         the headers Prefer, Range and Accept, parsed
bodies          request bodies, read and checked
introspection   queries of PostgreSQL's own tables
schema          the tables and functions of the exposed schema
sql             identifiers, filters and orderings as SQL
tables          SQL of requests for tables and views
routines        the function that a call means
calls           SQL of calls of functions
answers         results of statements as HTTP answers
request         requests and answers on the wire
caller          tokens to roles
schema_cache    the exposed schema, loaded again when it changes
api             the ASGI application
"""

from tensorage.embedded.rest.api import RestApi

__all__ = ["RestApi"]
