"""Measurements of ``make bench``: rates and latencies next to a limit, in one run on one machine."""
