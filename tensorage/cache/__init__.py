"""Tiles of arrays on the local disk: a tile that was read once is not fetched again by any process of this machine.

A *folder* has one *cache file* for each version of an array. `cached` reads through the folder, `folder` keeps to its
limit and deletes files, `cache_file` puts tiles into a file and takes them out, and `file_format` says where in a file
each of them is.
"""
