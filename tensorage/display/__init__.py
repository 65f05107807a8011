"""Stored things as HTML and pictures, for notebooks: values in, text or pixels out. No I/O.

Every text that somebody else may have written, such as a key, an attribute or an address, is escaped. There is no
script, and nothing that a browser would fetch. Colours are those of Jupyter where it tells them, and fit light
and dark pages.
"""
