"""Samples of stored arrays, for training loops: the first axis is that of the samples.

Modules
-------
order       in which order an epoch takes the samples (pure)
position    how far a loop has come, to be stored and gone on from (pure)
aligned     samples of several arrays, fetched together
batches     a loop's batches, fetched before they are asked for
"""
