"""Files of a user in Supabase Storage, beside the arrays.

Modules
-------
folder      uploads, downloads, listings and deletions in the user's folder
content     content of an upload, read part by part
resumable   resumable uploads, by the protocol TUS
downloads   downloads by ranges
"""
