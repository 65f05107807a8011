"""Restarts of operations on an array that changed on the way."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from tensorage.errors import ChangedError, KeyNotFoundError

__all__ = ["gone_is_changed", "on_latest"]

T = TypeVar("T")
V = TypeVar("V")

#: An operation is restarted at least this many times, and for at least this many seconds, before its error is raised.
#: A number alone would be used up in a moment on a short line, and seconds alone by one try on a slow line.
MIN_RESTARTS = 20
RESTART_FOR_S = 60.0

#: Longest pauses before the first restart and before later ones, in seconds.
FIRST_PAUSE_S = 0.01
LONGEST_PAUSE_S = 1.0


def on_latest(
    use: Callable[[V], T],
    version: V,
    reopen: Callable[[], V],
    *,
    pauses: bool = False,
) -> T:
    """Return the result of `use` on one version of arrays, beginning anew on the next version after a change.

    Parameters
    ----------
    use
        Reads or changes one version, and raises `ChangedError` if an array has another version by now.
    version
        Version to begin with.
    reopen
        Returns the present version.
    pauses
        Wait for a random time before each restart. Without it, writers that change one array at the same time would
        meet again at once.
    """
    restarts, until = 0, time.monotonic() + RESTART_FOR_S
    while True:
        try:
            return use(version)
        except ChangedError:
            restarts += 1
            if restarts > MIN_RESTARTS and time.monotonic() > until:
                raise
        if pauses:
            longest = min(FIRST_PAUSE_S * 2**restarts, LONGEST_PAUSE_S)
            # All of the pause is left to chance: writers that wait for the same time meet again.
            time.sleep(random.uniform(0, longest))  # noqa: S311 - no secret
        version = reopen()


@contextmanager
def gone_is_changed(message: str) -> Iterator[None]:
    """Raise `ChangedError` if the block finds no array. A staged change is deleted together with its array.

    Parameters
    ----------
    message
        Text of the error.
    """
    try:
        yield
    except KeyNotFoundError as error:
        raise ChangedError(message) from error
