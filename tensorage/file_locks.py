"""Locks of files, by which processes of one machine take turns. A lock ends with the process that holds it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["hold_lock"]

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.0005, 0.05


@contextmanager
def hold_lock(path: Path, timeout_s: float, stuck: Callable[[], Exception]) -> Iterator[int]:
    """Lock a file for a block, and yield its descriptor. The file is made if there is none.

    Parameters
    ----------
    timeout_s
        Longest wait in seconds. A process that holds the lock for longer is stopped, and others would wait for ever.
    stuck
        Returns the error to raise then.
    """
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        _acquire(fd, timeout_s, stuck)
        try:
            yield fd
        finally:
            # Closing does not unlock if another thread forks meanwhile: the child has the open file, too.
            _flock(fd, is_locked=False)
    finally:
        os.close(fd)


def _acquire(fd: int, timeout_s: float, stuck: Callable[[], Exception]) -> None:
    until, pause_s = time.monotonic() + timeout_s, _FIRST_PAUSE_S
    while True:
        try:
            _flock(fd, is_locked=True)
        except BlockingIOError as error:
            if time.monotonic() > until:
                raise stuck() from error
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
        else:
            return


def _flock(fd: int, *, is_locked: bool) -> None:
    # Windows has other locks. Callers refuse that system before they get here.
    import fcntl

    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB if is_locked else fcntl.LOCK_UN)
