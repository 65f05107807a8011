"""Entries of the catalogue that a session remembers, so that a read needs no look at the catalogue first."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Generic, NamedTuple, Protocol, TypeVar

from tensorage.types import Dataset

__all__ = ["EntryMemory", "RecordMemory", "Remembered"]

#: Most entries that a session remembers, each of about 1 kB.
MOST_ENTRIES = 1024

#: Most arrays of which it remembers the end, each with up to 256 KiB.
MOST_ENDS = 16

#: Most bytes of records of shards that it remembers: those of a thousand shards of small chunks.
MOST_RECORD_BYTES = 8 * 1024 * 1024


class Remembered(NamedTuple):
    """An array as it was when a request last told of it.

    Parameters
    ----------
    entry
        Entry of the array, without its attributes and coordinates.
    records
        Records of all its shards, if it is in Storage and has few.
    used_at
        Time at which a request last leaned on it, or told of it, on the clock of ``time.monotonic``.
    used_by
        Thread that made that request.
    """

    entry: Dataset
    records: bytes | None = None
    used_at: float = 0.0
    used_by: int = 0


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
    _ends: OrderedDict[int, tuple[int, bytes | None]] = field(default_factory=OrderedDict, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def find(self, owner: str | None, key: str) -> Remembered | None:
        """Return what is remembered of the array under a key."""
        with self._lock:
            found = self._entries.get((owner, key))
            if found is not None:
                self._entries[owner, key] = found._replace(
                    used_at=time.monotonic(), used_by=threading.get_ident()
                )
                self._entries.move_to_end((owner, key))
            return found

    def used_since(self, owner: str | None, key: str, since: float) -> Dataset | None:
        """Return the entry of an array if this thread's requests have used or refreshed it since `since`.

        The answer of another thread's request may be older than what this thread has stored meanwhile.
        """
        with self._lock:
            found = self._entries.get((owner, key))
        is_meant = found is not None and found.used_at >= since and found.used_by == threading.get_ident()
        return found.entry if found is not None and is_meant else None

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
                # A request that told of the entry alone does not make the records of the same version wrong.
                records = before.records
            self._entries[owner, entry.key] = Remembered(
                small, records, time.monotonic(), threading.get_ident()
            )
            self._entries.move_to_end((owner, entry.key))
            while len(self._entries) > self.most:
                self._entries.popitem(last=False)

    def remember_end(self, entry: Dataset, records: bytes) -> None:
        """Remember the records of the shards that have the last rows of an array, in the version of an entry."""
        self._keep_end(entry, records)

    def note_others(self, entry: Dataset) -> None:
        """Remember that others append to an array at the same time, in place of the records of its last shards."""
        self._keep_end(entry, None)

    def meets_others(self, entry: Dataset) -> bool:
        """Tell whether `note_others` was told of an array, in whatever version."""
        with self._lock:
            return entry.id in self._ends and self._ends[entry.id][1] is None

    def find_end(self, entry: Dataset) -> bytes | None:
        """Return what `remember_end` was told of this version of an array."""
        with self._lock:
            version, records = self._ends.get(entry.id, (None, None))
            return records if version == entry.version else None

    def forget_end(self, entry: Dataset) -> None:
        """Forget what is remembered of the end of an array."""
        with self._lock:
            self._ends.pop(entry.id, None)

    def _keep_end(self, entry: Dataset, records: bytes | None) -> None:
        with self._lock:
            self._ends[entry.id] = (entry.version, records)
            self._ends.move_to_end(entry.id)
            # Far fewer than entries: each of these takes up to 256 KiB.
            while len(self._ends) > min(MOST_ENDS, self.most):
                self._ends.popitem(last=False)

    def forget(self, owner: str | None, key: str) -> None:
        """Forget the entry of an array, if it is remembered."""
        with self._lock:
            self._entries.pop((owner, key), None)


class Record(Protocol):
    """Record of a shard, by the number of the shard in its array."""

    @property
    def number(self) -> int: ...

    @property
    def kept_bytes(self) -> int: ...


R = TypeVar("R", bound=Record)


@dataclass
class RecordMemory(Generic[R]):
    """Records of shards of arrays in Storage, as the catalogue told them of one version of an array.

    The database has to be asked, as for entries, whether an array still has the elements of that version. If it has,
    the objects and tails that the records name are right, too: objects are never changed. An append may leave a shard
    another object, and delete the one that is known here.

    Safe to use from many threads.

    Parameters
    ----------
    most_bytes
        Most bytes to remember. The longest unused records are forgotten first.
    """

    most_bytes: int = MOST_RECORD_BYTES
    _records: OrderedDict[tuple[int, int, int], R] = field(default_factory=OrderedDict, repr=False)
    _nbytes: int = field(default=0, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def find(self, entry: Dataset, numbers: Iterable[int]) -> dict[int, R]:
        """Return the records that are remembered of some shards of an array, in the version of its entry."""
        found: dict[int, R] = {}
        with self._lock:
            for number in numbers:
                record = self._records.get((entry.id, entry.version, number))
                if record is not None:
                    found[number] = record
                    self._records.move_to_end((entry.id, entry.version, number))
        return found

    def remember(self, entry: Dataset, records: Iterable[R]) -> None:
        """Remember records of an array that is stored, in the version of its entry."""
        if entry.state != "committed":
            return
        with self._lock:
            for record in records:
                place = entry.id, entry.version, record.number
                before = self._records.pop(place, None)
                self._records[place] = record
                self._nbytes += record.kept_bytes - (before.kept_bytes if before is not None else 0)
            while self._nbytes > self.most_bytes:
                _, forgotten = self._records.popitem(last=False)
                self._nbytes -= forgotten.kept_bytes
