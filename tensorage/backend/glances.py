"""Requests that nobody is to wait for long: of an object that shows itself, and of the completion of keys."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Protocol, TypeVar

from tensorage.backend.wire.patience import Hurry, end_waits_on
from tensorage.errors import BackendUnavailableError, TensorageError
from tensorage.wording import one_line

__all__ = ["GLANCE_S", "FreshKeys", "glance", "problem_of"]

T = TypeVar("T")

logger = logging.getLogger(__name__)

#: Seconds after which a cell is not kept waiting any more.
GLANCE_S = 5.0

#: Seconds for which keys are remembered that completions offer.
FRESH_S = 5.0


def glance(do: Callable[[], T], asked: str) -> T:
    """Return the result of a request that is given up after some seconds, and does not wait for the end of an outage.

    Raises
    ------
    BackendUnavailableError
        If the answer takes longer. The request ends by itself, in a thread that holds nothing up.
    """
    # The hurry has begun: the first failure is the last one.
    hurry = Hurry()
    hurry.begin()
    result: Future[T] = Future()

    def work() -> None:
        try:
            with end_waits_on(hurry):
                found = do()
        except BaseException as error:  # noqa: BLE001 - raised in the thread that waits
            result.set_exception(error)
        else:
            result.set_result(found)

    # A daemon: the interpreter does not wait at its end for an answer that nobody looks at any more.
    threading.Thread(target=work, name="tensorage-glance", daemon=True).start()
    try:
        return result.result(GLANCE_S)
    except TimeoutError as error:
        # The request itself has raised this error, and did answer.
        if result.done():
            raise
        raise BackendUnavailableError(f"{asked}: there was no answer within {GLANCE_S:g} s") from error


def problem_of(error: Exception) -> str:
    """Return an error in a line, for something that is shown in place of what could not be looked at."""
    said = one_line(str(error))
    return said if isinstance(error, TensorageError) else f"{type(error).__name__}: {said}"


class Listing(Protocol):
    """Keys that can be listed, and a count of the session's own changes."""

    @property
    def changes(self) -> int: ...

    def first_keys(self, prefix: str) -> list[str]: ...


class FreshKeys:
    """First keys below a prefix, relative to it, remembered for some seconds. Asking for them never raises.

    Keys that the session has stored itself are seen at once.
    """

    def __init__(self, listing: Listing, prefix: str = "") -> None:
        self._listing = listing
        self._prefix = prefix
        self._kept: tuple[float, int, list[str]] = (-math.inf, -1, [])

    def __call__(self) -> list[str]:
        """Return the keys, or none of them if the project cannot be asked."""
        changes, keys = -1, list[str]()
        try:
            # Read before the keys are: a change meanwhile makes this listing an old one.
            changes = self._listing.changes
            at, before, known = self._kept
            if before == changes and time.monotonic() - at < FRESH_S:
                return known
            found = glance(lambda: self._listing.first_keys(self._prefix), "listing the keys")
            keys = [key[len(self._prefix) :] for key in found]
        except Exception as error:  # noqa: BLE001 - a completion that raises is a traceback between two letters
            logger.debug("no keys to complete: %s", problem_of(error))
        # None are remembered, too: a project that is away is not asked at each letter that is typed.
        self._kept = (time.monotonic(), changes, keys)
        return keys

    def __reduce__(self) -> tuple[Any, ...]:
        # Another process has another clock.
        return FreshKeys, (self._listing, self._prefix)
