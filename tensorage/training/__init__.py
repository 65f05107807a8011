"""Samples of stored arrays, for training loops. Samples lie along the first axis.

Modules
-------
order       order in which an epoch visits the samples (pure)
window      order of an epoch that reads neighbouring samples together, and mixes them (pure)
position    position of a loop, and its stored form (pure)
rows        rows that are asked for one after another, and are read in blocks
fetching    reading of the samples of one array of a loop
mixing      batches in the order of a window
samples     reading of samples of several arrays together
batches     batches of a loop, fetched before they are asked for
"""
