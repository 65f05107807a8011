"""Samples of stored arrays, for training loops. Samples lie along the first axis.

Modules
-------
order       order in which an epoch visits the samples (pure)
position    position of a loop, and its stored form (pure)
rows        rows that are asked for one after another, and are read in blocks
samples     reading of samples of several arrays together
batches     batches of a loop, fetched before they are asked for
"""
