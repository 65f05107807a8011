"""Pieces of arrays on the local disk: what was read once is not fetched again, by any process of this machine.

A *folder* has one file for each version of an array, its *entry*. See `cached` for what reads through it, `folder` for
the limit and for who may delete what, `entry` for how pieces get into a file and out of it, and `layout` for what is
where in one.
"""
