"""The Storage API: Supabase Storage's protocol over the schema ``storage`` and files of the data folder.

Which objects there are, and who may do what with them, is PostgreSQL's to say: every request is decided by
the policies on ``storage.objects`` and ``storage.buckets``, as the caller's role. Only bytes are kept in
files. A file is named after its object's version, is never changed, and never seen by anybody before the
row that names it was committed.

Modules, each using only those above it
---------------------------------------
errors      what is answered when something fails
answers     answers in JSON
names       names of buckets and objects, MIME types
ranges      the Range header
params      JSON bodies and query strings
records     rows of ``storage`` as Storage shows them
caller      tokens to roles
blobs       the files
database    transactions as the caller, and what the server asks on its own behalf
placement   rows that give a name to a version
custody     which files stay: what PostgreSQL committed
multipart   form uploads, taken apart while they arrive
intake      bodies to files
partial     the files of resumable uploads
turns       one request at a time for each resumable upload
tus         the protocol of resumable uploads: its headers
delivery    files to answers
storing     objects as the caller
buckets     requests about buckets
objects     requests about objects that leave their content as it is
uploads     requests that store
resumable   requests that store in several pieces
downloads   requests that read, and signed URLs
api         the ASGI application
"""

from tensorage.embedded.storage.api import StorageApi

__all__ = ["StorageApi"]
