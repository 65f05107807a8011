"""Entries of the catalogue that a session remembers, so that a read needs no look at the catalogue first."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from tensorage.types import Dataset

__all__ = ["EntryMemory", "Remembered"]

#: Most entries that a session remembers, each of about 1 kB.
MOST_ENTRIES = 1024


class Remembered(NamedTuple):
    """An array as it was when a request last told of it.

    Parameters
    ----------
    entry
        Entry of the array, without its attributes and coordinates.
    records
        Records of all its shards, if it is in Storage and has few.
    """

    entry: Dataset
    records: bytes | None = None


@dataclass
class EntryMemory:
    """Entries of arrays by owner and key, as they were when a request last told of them.

    Nothing here is up to date for sure. A request that leans on an entry names what it knows of the array, and the
    database refuses it if that is not so any more: see ``tensorage.is_as_known`` in the SQL.

    Safe to use from many threads.

    Parameters
    ----------
    most
        Most entries to remember. The longest unused ones are forgotten first.
    """

    most: int = MOST_ENTRIES
    _entries: OrderedDict[tuple[str | None, str], Remembered] = field(default_factory=OrderedDict, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def find(self, owner: str | None, key: str) -> Remembered | None:
        """Return what is remembered of the array under a key."""
        with self._lock:
            found = self._entries.get((owner, key))
            if found is not None:
                self._entries.move_to_end((owner, key))
            return found

    def remember(self, owner: str | None, entry: Dataset, records: bytes | None = None) -> None:
        """Remember an array that is stored, under its key. Records are kept as long as it has the same version."""
        if entry.state != "committed":
            return
        # Elements are read without attributes, which may be large.
        small = replace(entry, attrs={}, coords=None, shares=None)
        with self._lock:
            before = self._entries.get((owner, entry.key))
            is_same = before is not None and (before.entry.id, before.entry.version) == (
                entry.id,
                entry.version,
            )
            if records is None and before is not None and is_same:
                records = before.records
            self._entries[owner, entry.key] = Remembered(small, records)
            self._entries.move_to_end((owner, entry.key))
            while len(self._entries) > self.most:
                self._entries.popitem(last=False)

    def forget(self, owner: str | None, key: str) -> None:
        """Forget the entry of an array, if it is remembered."""
        with self._lock:
            self._entries.pop((owner, key), None)
