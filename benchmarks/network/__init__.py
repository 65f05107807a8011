"""A network in the room: a proxy on loopback with the round trip, the bandwidth and the counts of a distant project.

It needs nothing but Python's own library, so that tests can use it, too.
"""

from benchmarks.network.apart import Apart
from benchmarks.network.line import Counts, Line

__all__ = ["Apart", "Counts", "Line"]
