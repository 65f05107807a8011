"""The Storage API: Supabase Storage's protocol over the schema ``storage`` and files of the data folder.

PostgreSQL has the rows of objects, and decides every request by the policies on ``storage.objects`` and
``storage.buckets``, in the caller's role. Only content is kept in files, called blobs. A blob is named after the
version of its object and never changes. Nobody can read it before the row with that version is committed.

Modules, each using only those above it
---------------------------------------
errors            errors in Storage's JSON
names             names of buckets and objects, MIME types
params            JSON bodies and query strings, read and checked
answers           answers in Storage's JSON
caller            tokens to roles
blobs             the files of content
database          transactions as the caller or as the server
version_files     the files kept in step with the rows
object_rows       the rows of objects
multipart         uploads by form, parsed while they arrive
upload_bodies     bodies of uploads, written to files
resumable_files   the files of resumable uploads
upload_locks      one request at a time for each resumable upload
tus               the headers of resumable uploads
content           files as answers, and the header Range
buckets           requests about buckets
objects           requests that list, move, copy and remove objects
uploads           requests that store an object
resumable         requests that store an object in several pieces
downloads         requests that read objects, and signed URLs
api               the ASGI application
"""

from tensorage.embedded.storage.api import StorageApi

__all__ = ["StorageApi"]
