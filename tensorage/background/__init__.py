"""Writing in the background, for a loop that does not wait for it.

Modules
-------
writer      the writer that a loop gives its arrays to
workers     threads that do the operations, and their errors
changes     a change of one array, as it is given and made
operations  operations in order, and the failures of some (pure)
spool       changes that wait in a folder until they are sent
"""
