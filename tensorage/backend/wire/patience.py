"""Limits of the time for which requests are tried again: some moments, or as long as an outage is waited out.

All requests of a login share one `Patience`. The first request that fails begins an outage, and the first that is
answered ends it. All requests that meet the outage give up at the same moment, however many they are. Ctrl-C ends a
wait of the main thread by itself, and a `Hurry` ends the waits of the threads that work for the main thread.
"""

from __future__ import annotations

import logging
import math
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from queue import Empty, SimpleQueue
from typing import Any, TypeVar
from urllib.parse import urlsplit

from tensorage.backend.wire.faults import UNREACHABLE, Fault, error_of
from tensorage.errors import BackendUnavailableError, InvalidInputError
from tensorage.wording import quote, sentences

__all__ = [
    "PATIENCE_S",
    "Hurry",
    "Patience",
    "Tries",
    "check_seconds",
    "current_hurry",
    "end_waits_on",
    "pause_s",
    "start_hint",
]

T = TypeVar("T")

logger = logging.getLogger(__name__)

#: Seconds for which a login that has worked waits for its backend to come back.
PATIENCE_S = 60.0

#: Fewest tries of one request, and seconds before the second try. Each further wait is twice as long.
ATTEMPTS = 5
FIRST_WAIT_S = 0.1
LONGEST_WAIT_S = 5.0

#: Longest wait that a backend's ``Retry-After`` can ask for.
LONGEST_ASKED_WAIT_S = 60.0

#: Seconds after which an outage is logged. Nobody has to know of shorter ones.
TOLD_AFTER_S = 1.0

#: Seconds of one wait. On Windows, Ctrl-C is heard only between two of them.
_SLICE_S = 1.0

#: Hosts at which an embedded backend may listen.
_LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})


class Hurry:
    """Signal that ends the waits of all requests made under it: see `end_waits_on`. Safe to use from many threads."""

    def __init__(self, above: Hurry | None = None) -> None:
        self.is_on: bool = above is not None and above.is_on
        self._lock = threading.Lock()
        # Each wait has a queue. A `threading.Event` is written in Python, and Ctrl-C at the wrong moment leaves its
        # lock held. A lock would not do either: the end of an outage and a hurry may both end one wait.
        self._waiting: set[SimpleQueue[None]] = set()
        self._below: list[Hurry] = []
        if above is not None:
            with above._lock:
                above._below = [hurry for hurry in above._below if not hurry.is_on]
                above._below.append(self)

    def begin(self) -> None:
        """End all waits, and let no other begin."""
        with self._lock:
            self.is_on = True
            waiting, self._waiting = self._waiting, set()
            below, self._below = self._below, []
        for queue in waiting:
            queue.put(None)
        for hurry in below:
            hurry.begin()

    def add(self, waiting: SimpleQueue[None]) -> bool:
        """Register a wait, whose queue gets an item when the hurry begins. False if the hurry has begun."""
        with self._lock:
            if not self.is_on:
                self._waiting.add(waiting)
            return not self.is_on

    def discard(self, waiting: SimpleQueue[None]) -> None:
        with self._lock:
            self._waiting.discard(waiting)


#: Hurry that requests of this thread are made under.
_hurry: ContextVar[Hurry | None] = ContextVar("tensorage_hurry", default=None)


@contextmanager
def end_waits_on(hurry: Hurry) -> Iterator[None]:
    """End the waits of the block's requests when a hurry begins."""
    before = _hurry.set(hurry)
    try:
        yield
    finally:
        _hurry.reset(before)


def current_hurry() -> Hurry | None:
    """Return the hurry that requests of this thread are made under."""
    return _hurry.get()


class Patience:
    """State of an outage, shared by the requests of one login. Safe for many threads; after a fork, make another one.

    Parameters
    ----------
    seconds
        Longest wait for the end of an outage.
    url
        URL of the project, for messages.

    Attributes
    ----------
    has_worked
        True once the login has worked. Before that, an outage fails at once: the URL may be wrong.
    """

    def __init__(self, seconds: float = 0.0, url: str | None = None, *, has_worked: bool = False) -> None:
        self.seconds = check_seconds(seconds)
        self.url = url
        self.has_worked = has_worked
        self._lock = threading.Lock()
        #: Beginning of the present outage by the monotonic clock, None without one, and the last time that it was met.
        self._began: float | None = None
        self._last = 0.0
        self._is_told = False
        #: A queue of each request that waits. An item in it ends the wait.
        self.waiting: set[SimpleQueue[None]] = set()

    @property
    def is_patient(self) -> bool:
        """True if outages are waited out."""
        return self.has_worked and self.seconds > 0

    def tries(self, asked: str, least: int | None = None) -> Tries:
        """Begin to count the tries of one request."""
        return Tries(self, asked, ATTEMPTS if least is None else least)

    def keep_trying(self, do: Callable[[], T], asked: str) -> T:
        """Call a function that needs the backend, again and again if the backend is away, until it is back.

        Raises
        ------
        BackendUnavailableError
            At once if the login has never worked: the URL may be wrong.
        """
        tries = self.tries(asked)
        while True:
            tries.begin()
            try:
                return do()
            except BackendUnavailableError as error:
                self.wait_for_login(error, tries)

    def wait_for_login(self, error: BackendUnavailableError, tries: Tries) -> None:
        """Wait after a failed try to log in or to renew a login, unless no login ever worked."""
        if not self.is_patient:
            raise error
        tries.wait(Fault(UNREACHABLE, "", str(error)))

    def note_outage(self, fault: Fault, since: float) -> float:
        """Note that a request has met an outage, and return when the outage began."""
        now = time.monotonic()
        with self._lock:
            # If nobody met the outage for as long as it would be waited out, it is over, and this is another one.
            if self._began is None or now - self._last > max(self.seconds, 1.0):
                self._began, self._is_told = since, False
            self._last = now
            began = self._began
            is_to_be_told = self.is_patient and not self._is_told and now - began >= TOLD_AFTER_S
            self._is_told = self._is_told or is_to_be_told
        if is_to_be_told and now - began < self.seconds:
            logger.warning(
                "%s does not serve (%s): trying again for up to %g s", self.url or "the backend", fault.said,
                self.seconds,
            )  # fmt: skip
        return began

    def note_answer(self) -> None:
        """Note that the backend serves, and let waiting requests try again."""
        if self._began is None:
            return
        with self._lock:
            began, self._began = self._began, None
            was_told, self._is_told = self._is_told, False
            waiting, self.waiting = self.waiting, set()
        for queue in waiting:
            queue.put(None)
        if was_told and began is not None:
            logger.info("%s serves again, after %.1f s", self.url or "the backend", time.monotonic() - began)

    def wait(self, seconds: float, *, may_be_cut_short: bool) -> bool:
        """Wait for some seconds, or until the outage is over. False if a hurry has begun.

        Parameters
        ----------
        may_be_cut_short
            True if the end of the outage ends the wait. A wait that the backend has asked for takes its time.
        """
        until = time.monotonic() + seconds
        queue: SimpleQueue[None] = SimpleQueue()
        hurry = _hurry.get()
        if hurry is not None and not hurry.add(queue):
            return False
        try:
            with self._lock:
                if may_be_cut_short and self._began is not None:
                    self.waiting.add(queue)
            while (left := until - time.monotonic()) > 0:
                with suppress(Empty):
                    queue.get(timeout=min(left, _SLICE_S))
                    break
        finally:
            with self._lock:
                self.waiting.discard(queue)
            if hurry is not None:
                hurry.discard(queue)
        return hurry is None or not hurry.is_on


class Tries:
    """Count of the tries of one request.

    Parameters
    ----------
    asked
        Wish of the user, for error messages.
    least
        Fewest tries before the request fails.
    """

    def __init__(self, patience: Patience, asked: str, least: int) -> None:
        self._patience = patience
        self._asked = asked
        self._least = least
        self._failed = 0
        self._first_failed: float | None = None
        self._began = time.monotonic()

    def begin(self) -> None:
        """Note that a try begins."""
        if self._failed == 0:
            self._began = time.monotonic()

    def reset(self) -> None:
        """Begin to count anew, after progress."""
        self._failed, self._first_failed = 0, None
        self._began = time.monotonic()
        self._patience.note_answer()

    def wait(self, fault: Fault, attempt: int | None = None) -> None:
        """Wait after a failed try.

        Parameters
        ----------
        attempt
            Number that sets the length of the wait. By default, the number of failed tries.

        Raises
        ------
        TensorageError
            If the request is not to be tried again.
        """
        self._failed += 1
        patience, now = self._patience, time.monotonic()
        if self._first_failed is None:
            self._first_failed = self._began
        until = -math.inf
        if fault.is_outage:
            # Requests to other parts of the backend may be answered, which ends the shared outage again and again. The
            # outage of this request begins no later than its own first failure.
            began = min(patience.note_outage(fault, self._first_failed), self._first_failed)
            if patience.is_patient:
                until = began + patience.seconds
        # A wait that a backend asks for, be it a day, counts against the patience. Each try could take a minute.
        is_asked_for = fault.retry_after_s is not None and until > -math.inf
        if now >= until and (self._failed >= self._least or is_asked_for):
            raise self._final_error(fault, now)
        pause = pause_s(self._failed if attempt is None else attempt, fault)
        if self._failed >= self._least or is_asked_for:
            pause = min(pause, until - now)
        if not patience.wait(pause, may_be_cut_short=fault.retry_after_s is None):
            raise self._final_error(fault, time.monotonic())

    def _final_error(self, fault: Fault, now: float) -> BaseException:
        error = error_of(fault, self._asked)
        if isinstance(error, BackendUnavailableError) and self._first_failed is not None:
            tried = f"Tried {self._failed} times in {now - self._first_failed:.1f} s"
            hint = start_hint(self._patience.url) if fault.is_unreachable else "."
            error.args = (sentences(str(error), f"{tried}{hint}"),)
        return error


def start_hint(url: str | None) -> str:
    """Return the end of a message that a URL cannot be reached: a hint if it may be that of an embedded backend."""
    if url is not None and urlsplit(url).hostname in _LOOPBACK:
        return ". If this is the address of an embedded backend: `tensorage local start` starts it."
    return "."


def pause_s(attempt: int, fault: Fault) -> float:
    """Return the seconds to wait after a failed attempt (1, 2, ...): as the backend asks, or longer and longer.

    The wait is random within a factor of three, so that clients that failed together do not come back together.
    """
    backing_off = min(FIRST_WAIT_S * 2.0 ** min(attempt - 1, 64), LONGEST_WAIT_S) * random.uniform(0.5, 1.5)  # noqa: S311 - no secret
    return max(backing_off, min(fault.retry_after_s or 0.0, LONGEST_ASKED_WAIT_S))


def check_seconds(seconds: Any) -> float:
    """Refuse a value that is no length of time in seconds.

    Raises
    ------
    InvalidInputError
    """
    if (
        isinstance(seconds, bool)
        or not isinstance(seconds, int | float)
        or math.isnan(seconds)
        or seconds < 0
    ):
        raise InvalidInputError(
            f"patience_s={quote(seconds)}: give the seconds for which an outage is waited out, 0 for a few quick tries"
        )
    return float(seconds)
