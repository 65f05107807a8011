"""The line to a project, as measured by the requests that pass it, and the decisions that depend on it. No I/O.

Two numbers describe a line: its round trip, and its width in bytes per second. Both are measured by whatever requests
there are, and both are robust against noise: nothing makes an answer come sooner than the line allows, so the shortest
of the last waits is taken for the round trip, and the highest of the last rates for the width.
"""

from __future__ import annotations

import math
import threading
from collections import deque
from dataclasses import dataclass, field

__all__ = ["MAX_OBJECTS", "PARALLEL", "LineEstimate", "LineMeter"]

#: Requests at once. Hosted Supabase has about 10 connections behind REST, for all users together.
PARALLEL = 4

#: Most downloads of objects at once. Their bytes do not come from the database, but it checks each download, for which
#: Storage has connections of its own, not those of REST: each takes one for about 3 ms. On a line of 30 ms, so many at
#: once keep three of them busy.
MAX_OBJECTS = 32

#: Time of this process for one request: no line makes more than so many of them worthwhile.
REQUEST_S = 0.001

#: Bytes of answers in a time without a pause that tell the width of a line. Fewer arrive in one piece.
MIN_RATED_BYTES = 256 * 1024

#: Longest time that is rated as one.
MAX_RATED_S = 1.0

#: Bytes of a small range, for the cost of a request among many.
SMALL_BYTES = 24 * 1024


@dataclass(frozen=True, slots=True)
class LineEstimate:
    """Round trip and width of a line.

    Parameters
    ----------
    round_trip_s
        Seconds from a request to the first byte of its answer.
    bytes_per_s
        Bytes that arrive in a second, by all connections together.
    """

    #: A project in another country, until something is known.
    round_trip_s: float = 0.03
    bytes_per_s: float = 25e6

    def parallel(self, mean_bytes: float) -> int:
        """Choose how many downloads to make at once: as many as fill the line twice, and as this process can begin.

        Twice, since the width may have been measured with too few of them. At least 4, at most 32.

        Parameters
        ----------
        mean_bytes
            Bytes of a download.

        Examples
        --------
        >>> far = LineEstimate(round_trip_s=0.03, bytes_per_s=25e6)
        >>> far.parallel(16 * 1024), far.parallel(8 * 1024 * 1024)
        (30, 4)
        >>> LineEstimate(round_trip_s=0.001, bytes_per_s=5e8).parallel(16 * 1024)
        4
        """
        filling = 2 * self.round_trip_s * self.bytes_per_s / max(mean_bytes, 1)
        begun = self.round_trip_s / REQUEST_S
        return math.ceil(min(max(min(filling, begun), PARALLEL), MAX_OBJECTS))

    def gap_bytes(self) -> int:
        """Return the bytes that take as long to fetch as one more request among many.

        Examples
        --------
        >>> LineEstimate(round_trip_s=0.03, bytes_per_s=25e6).gap_bytes()
        25000
        >>> LineEstimate(round_trip_s=0.001, bytes_per_s=5e8).gap_bytes()
        500000
        """
        request_s = max(self.round_trip_s / self.parallel(SMALL_BYTES), REQUEST_S)
        return int(min(request_s * self.bytes_per_s, 2**31))


@dataclass
class LineMeter:
    """Measures a line by the requests of a process. Safe to use from many threads.

    Attributes
    ----------
    under_way
        Number of requests that have begun and not ended.
    """

    _waits: deque[float] = field(default_factory=lambda: deque(maxlen=64), init=False)
    _rates: deque[float] = field(default_factory=lambda: deque(maxlen=16), init=False)
    under_way: int = field(default=0, init=False)
    _busy_since: float = field(default=0.0, init=False)
    _nbytes: int = field(default=0, init=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False)

    def begin(self, now: float) -> None:
        """Note that a request begins.

        Parameters
        ----------
        now
            Seconds of any clock that only goes forward.
        """
        with self._lock:
            if not self.under_way:
                self._busy_since, self._nbytes = now, 0
            self.under_way += 1

    def end(self, now: float, wait_s: float | None = None, nbytes: int = 0) -> None:
        """Note that a request has ended.

        Parameters
        ----------
        wait_s
            Seconds from its beginning to the first byte of the answer; None if there was no answer.
        nbytes
            Bytes of the answer.
        """
        with self._lock:
            self.under_way -= 1
            self._nbytes += nbytes
            if wait_s is not None:
                self._waits.append(wait_s)
            if not self.under_way or now - self._busy_since > MAX_RATED_S:
                self._rate(now)

    def estimate(self) -> LineEstimate:
        """Return what is known of the line, with guesses for what is not."""
        with self._lock:
            guess = LineEstimate()
            return LineEstimate(
                min(self._waits, default=guess.round_trip_s), max(self._rates, default=guess.bytes_per_s)
            )

    def _rate(self, now: float) -> None:
        took_s = now - self._busy_since
        if self._nbytes >= MIN_RATED_BYTES and took_s > 0:
            # Nothing arrives during the first round trip.
            waited_s = min(min(self._waits, default=0.0), took_s / 2)
            self._rates.append(self._nbytes / (took_s - waited_s))
        self._busy_since, self._nbytes = now, 0
