"""A look at a spool, and the sending of what is left in it: ``tensorage sync``."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from tensorage.background.changes import Store, Stores
from tensorage.background.spool.entry import EntryFile
from tensorage.background.spool.folder import Failed, Identity, SpoolFolder
from tensorage.background.spool.sending import Sender
from tensorage.background.workers import Workers
from tensorage.errors import InvalidInputError, SpoolDamagedError, SpoolError

__all__ = ["Left", "list_left", "sync"]

#: Seconds for which a process that is sending is waited for, and between two looks.
WAIT_S = 5.0
_PAUSE_S = 0.05


@dataclass(frozen=True)
class Left:
    """An entry that is left in a spool.

    Parameters
    ----------
    what
        The change in words. None if the entry is damaged.
    state
        ``"waiting"``, ``"failed"``, ``"behind"`` a failed one of the same key, or ``"damaged"``.
    age_s
        Seconds since it was given.
    reason
        Why it was not sent.
    """

    number: int
    what: str | None
    key: str | None
    nbytes: int
    age_s: float
    state: str
    reason: str | None = None

    def as_json(self) -> dict[str, Any]:
        """Return the members for JSON."""
        return dict(self.__dict__)


def list_left(path: str | os.PathLike[str]) -> list[Left]:
    """List the entries of a spool, in order. Nothing is sent, and no login is needed.

    Raises
    ------
    SpoolError
        If there is no spool.
    """
    folder = SpoolFolder.join(path)
    refused: dict[tuple[Any, str], int] = {}
    left = (_describe(folder, number, refused) for number in folder.numbers())
    return [one for one in left if one is not None]


def sync(
    path: str | os.PathLike[str],
    store: Store,
    *,
    retry: bool = False,
    drop: Iterable[int] = (),
    skip_damaged: bool = False,
    is_moved: bool = False,
    on_done: Callable[[EntryFile], object] = lambda _entry: None,
) -> list[Left]:
    """Send the entries of a spool, and return those that are left.

    Parameters
    ----------
    store
        Store of the user whose spool it is.
    retry
        Send entries again that were refused.
    drop
        Numbers of entries to delete first.
    skip_damaged
        Move damaged entries aside first.
    is_moved
        The project has another URL than before.
    on_done
        Called for each entry that is done.

    Raises
    ------
    SpoolError
        If it is no spool, or another project's or user's; if another process is sending it; or if an entry is damaged.
    TensorageError
        If the backend is away, or refuses the login.
    """
    folder = SpoolFolder.join(path)
    identity = Identity.of(store.arrays.project)
    if is_moved:
        folder.move_to(identity)
    folder.check(identity)
    with _sending(folder):
        # Nobody sends meanwhile: an entry that is under way must not be dropped, nor sent again beside itself.
        for number in drop:
            _drop(folder, number)
        if retry:
            for number in folder.failed_numbers():
                folder.retry(number)
        if skip_damaged:
            _set_damaged_aside(folder)
    # These keep failures for threads that gave entries, and here is none. The sender has workers of its own.
    workers = Workers(1, 1)
    Sender(folder, Stores(store), workers, on_done).send_all()
    return list_left(path)


@contextmanager
def _sending(folder: SpoolFolder) -> Iterator[None]:
    """Hold the lock of sending for a block, once a process that is about to end has given it up.

    Raises
    ------
    SpoolError
        If another process goes on sending.
    """
    until = time.monotonic() + WAIT_S
    while True:
        with folder.sending() as is_held:
            if is_held:
                yield
                return
        if time.monotonic() > until:
            raise SpoolError(
                f"the spool in {folder.path} is being sent by {folder.sender()}. Nothing was done here: wait for it, "
                "or look at what is left with --dry-run"
            )
        time.sleep(_PAUSE_S)


def _describe(folder: SpoolFolder, number: int, refused: dict[tuple[Any, str], int]) -> Left | None:
    try:
        entry = folder.read(number)
    except SpoolDamagedError as error:
        return Left(number, None, None, 0, 0.0, "damaged", str(error))
    if entry is None:
        return None
    try:
        age_s = max(time.time() - entry.path.stat().st_mtime, 0.0)
    except FileNotFoundError:
        return None
    failed = folder.failure(number)
    state, reason = _state_of(entry, failed, refused)
    return Left(number, str(entry), entry.key, entry.nbytes, round(age_s, 1), state, reason)


def _state_of(
    entry: EntryFile, failed: Failed | None, refused: dict[tuple[Any, str], int]
) -> tuple[str, str | None]:
    # Entries are looked at in order, so that a refused one is known before those behind it.
    lane = entry.header["change"]["settings"]["owner"], entry.key
    if failed is not None:
        refused.setdefault(lane, entry.number)
        return "failed", str(failed)
    if lane in refused:
        return "behind", f"entry {refused[lane]} of the same key failed"
    return "waiting", None


def _drop(folder: SpoolFolder, number: int) -> None:
    if not folder.has(number):
        raise InvalidInputError(
            f"the spool in {folder.path} has no entry {number}: --dry-run lists what is there"
        )
    folder.remove(number)


def _set_damaged_aside(folder: SpoolFolder) -> None:
    """Move all damaged entries aside. Elements are read, since their checksums tell."""
    for number in folder.numbers():
        if folder.is_damaged(number):
            folder.set_aside(number)
