"""Writes that wait in a local folder until they are sent: nothing is lost, and nothing is done twice.

A *spool* is a folder of *entries*, one for each write, in the order in which they were given. An entry is on the disk
before the call that gave it returns. Any process sends what is there, one at a time: the first that finds nobody
sending.

Modules
-------
values   values and selections as JSON and arrays (pure)
records  changes as JSON and arrays (pure)
entry    the file of one entry
folder   the folder: order, room, locks, and what has happened to entries
sending  sending of entries, and their errors
sync     `tensorage sync`: a look at a spool, and the sending of what is left
"""
