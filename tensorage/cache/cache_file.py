"""One version of an array on the disk: pieces go into its file once, and are read from a map of it.

**Who writes when.** All processes write the same bytes of a version to the same place, so pieces need no lock. A
piece's elements are written first and its record after them: a process that is killed in between leaves a piece that is
not there. Nothing is ever written through a map, where a full disk is a signal that ends the process, not an error.
Nor is anything read through one that was not written before: of a disk in memory, even that takes room.

**What is believed.** The kernel may crash, too, and lose some pages of what was written before others. So a record has
a checksum, and a mark that says during which run of the kernel it was written. A record of this run is believed. For
any other, a process looks at the piece the first time that it needs it: one that is not what its record says is
fetched again, and one that is gets the mark of this run.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import weakref
import zlib
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tensorage.cache.file_format import PAGE_BYTES, RECORD, FileFormat, identity_of
from tensorage.indexing.selection import Positions
from tensorage.indexing.tiles import find_number_runs

__all__ = ["CacheFile", "OpenFile"]

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")

#: Marks a record where no run of the kernel can be told from another: it is never believed.
_UNKNOWN_RUN = 1


class OpenFile:
    """A file of a cache, in use for as long as this is.

    The lock that says so is the open file's: a child that was forked has it, too.
    """

    def __init__(self, path: Path, fd: int) -> None:
        self.path = path
        self.fd = fd
        self._close = weakref.finalize(self, os.close, fd)

    @classmethod
    def open(cls, path: Path, flags: int = 0) -> OpenFile:
        return cls(path, os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | flags, 0o600))

    def close(self) -> None:
        self._close()

    def use(self) -> None:
        """Let nobody delete it. Call it with the folder locked."""
        fcntl.flock(self.fd, fcntl.LOCK_SH | fcntl.LOCK_NB)

    def is_used(self) -> bool:
        """Whether anybody else uses it. Call it with the folder locked."""
        try:
            fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False

    def touch(self) -> None:
        """Note that it was used now."""
        os.utime(self.fd)

    def identity(self) -> dict[str, Any] | None:
        """What it says that it is."""
        return identity_of(os.pread(self.fd, PAGE_BYTES, 0))


class CacheFile:
    """The pieces of one version that are on the disk. Safe to use from many threads, and in a forked child.

    Parameters
    ----------
    file
        In use, and as long as the layout says.

    Attributes
    ----------
    view
        The array itself, mapped and read-only, where the grid is flat; None where it is not. Only what is in pieces
        that are ready may be looked at.
    """

    def __init__(self, layout: FileFormat, file: OpenFile) -> None:
        self.layout = layout
        self.file = file
        self.dataset = layout.dataset
        self.grid = layout.grid
        mapped = mmap.mmap(file.fd, layout.nbytes, access=mmap.ACCESS_READ)
        dtype, grid = self.dataset.dtype, self.grid
        self._elements: npt.NDArray[Any] = np.ndarray((grid.size,), dtype, mapped, layout.elements_at)
        self.view = self._elements.reshape(grid.shape) if grid.is_flat else None
        self._ready: npt.NDArray[np.bool_] = self._read_records(0, grid.count)["mark"] == _this_run()
        if _this_run() == _UNKNOWN_RUN:
            self._ready[:] = False
        #: Of each row, or each few rows, whether their pieces are ready.
        self._by_row = self._ready.reshape(
            (*grid.shape[:1], -1) if grid.is_flat and not grid.rows else (-1, 1)
        )
        self.is_complete = bool(self._ready.all())

    def has(self, selection: Any) -> bool:
        """Whether all that a selection needs is ready, as far as that is quickly told: of rows of axis 0.

        A training loop asks for nothing else, and what is done for any selection takes longer than copying a batch.
        """
        if self.is_complete or not self.grid.shape or not self.grid.is_flat:
            return self.is_complete
        each, count = self.grid.rows or 1, self.grid.shape[0]
        at: Any = None
        if isinstance(selection, slice):
            rows = range(*selection.indices(count))
            low, high = (min(rows[0], rows[-1]), max(rows[0], rows[-1]) + 1) if rows else (0, 0)
            at = slice(low // each, -(-high // each))
        elif isinstance(selection, int | np.integer) and not isinstance(selection, bool):
            row = int(selection) + (count if selection < 0 else 0)
            at = row // each if 0 <= row < count else None
        elif isinstance(selection, np.ndarray) and selection.ndim == 1 and selection.dtype.kind == "i":
            is_within = not selection.size or 0 <= int(selection.min()) <= int(selection.max()) < count
            at = (selection if each == 1 else selection // each) if is_within else None
        return at is not None and bool(self._by_row[at].all())

    def missing(self, numbers: Positions) -> Positions:
        """Those of some pieces that are not there, or damaged: all others are ready then.

        Parameters
        ----------
        numbers
            Ascending, each once.
        """
        unknown = numbers[~self._ready[numbers]]
        if not unknown.size:
            return unknown
        records = self._records_of(unknown)
        is_ready = (records["mark"] == _this_run()) & (_this_run() != _UNKNOWN_RUN)
        to_check = np.flatnonzero(~is_ready & (records["mark"] != 0))
        if to_check.size:
            is_ready[to_check] = self._check(unknown[to_check], records["crc"][to_check])
        self._note(unknown[is_ready])
        missing: Positions = unknown[~is_ready]
        return missing

    def absent(self) -> Positions:
        """All pieces that are not there, without a look at those that are."""
        return np.flatnonzero(~self._ready & (self._read_records(0, self.grid.count)["mark"] == 0))

    def write(self, numbers: Positions, elements: npt.NDArray[Any]) -> None:
        """Keep pieces.

        Parameters
        ----------
        numbers
            Ascending, each once.
        elements
            Of one axis: theirs, one after the other.
        """
        if not numbers.size:
            return
        runs = find_number_runs(numbers)
        itemsize = self.dataset.dtype.itemsize
        starts, lengths = self.grid.starts(numbers) * itemsize, self.grid.lengths(numbers) * itemsize
        ends = np.cumsum(lengths)
        # As bytes, because numpy lends no buffer of its date and time types.
        content = elements.view(np.uint8).data
        bounds = zip((ends - lengths).tolist(), ends.tolist(), strict=True)
        records = np.empty(len(numbers), RECORD)
        records["crc"] = [zlib.crc32(content[begin:end]) for begin, end in bounds]
        records["mark"] = _this_run()
        first, last = runs.first.tolist(), runs.last.tolist()
        for one, other in zip(first, last, strict=True):
            at = self.layout.elements_at + int(starts[one])
            _write(self.file.fd, content[int(ends[one] - lengths[one]) : int(ends[other])], at)
        self._write_records(numbers, records)
        self._note(numbers)

    def piece(self, number: int) -> npt.NDArray[Any]:
        """A piece that is there: a view of the map."""
        start = int(self.grid.starts(np.array([number]))[0])
        shape = self.grid.shape_in_file(number)
        size = int(np.prod(shape, dtype=np.int64))
        return self._elements[start : start + size].reshape(shape)

    def _check(self, numbers: Positions, crcs: npt.NDArray[np.uint32]) -> npt.NDArray[np.bool_]:
        """Which of some pieces are what their records say. Those get the mark of this run."""
        itemsize = self.dataset.dtype.itemsize
        begins = self.layout.elements_at + self.grid.starts(numbers) * itemsize
        lengths = self.grid.lengths(numbers) * itemsize
        found = [
            # Not through the map: a page that the disk cannot read is an error here, and the end of the process there.
            zlib.crc32(os.pread(self.file.fd, length, begin))
            for begin, length in zip(begins.tolist(), lengths.tolist(), strict=True)
        ]
        are_good: npt.NDArray[np.bool_] = crcs == np.array(found, np.uint32)
        if are_good.any() and _this_run() != _UNKNOWN_RUN:
            good = numbers[are_good]
            records = np.empty(len(good), RECORD)
            records["crc"], records["mark"] = crcs[are_good], _this_run()
            self._write_records(good, records)
        return are_good

    def _records_of(self, numbers: Positions) -> npt.NDArray[Any]:
        """What the index says of some pieces, of which there is at least one."""
        first, count = int(numbers[0]), int(numbers[-1] - numbers[0]) + 1
        runs = find_number_runs(numbers)
        if count * RECORD.itemsize <= len(runs) * PAGE_BYTES:
            return self._read_records(first, count)[numbers - first]
        bounds = zip(numbers[runs.first].tolist(), numbers[runs.last].tolist(), strict=True)
        # Numpy takes long to join arrays of records.
        return np.frombuffer(
            b"".join(self._read_index(one, other - one + 1) for one, other in bounds), RECORD
        )

    def _read_records(self, first: int, count: int) -> npt.NDArray[Any]:
        return np.frombuffer(self._read_index(first, count), RECORD)

    def _read_index(self, first: int, count: int) -> bytes:
        return os.pread(self.file.fd, count * RECORD.itemsize, self.layout.index_at + first * RECORD.itemsize)

    def _write_records(self, numbers: Positions, records: npt.NDArray[Any]) -> None:
        runs = find_number_runs(numbers)
        content = records.view(np.uint8).data
        for one, other in zip(runs.first.tolist(), runs.last.tolist(), strict=True):
            part = content[one * RECORD.itemsize : (other + 1) * RECORD.itemsize]
            _write(self.file.fd, part, self.layout.index_at + int(numbers[one]) * RECORD.itemsize)

    def _note(self, numbers: Positions) -> None:
        # Without a lock, which a forked child might find held for ever: what is true once stays true.
        if numbers.size:
            self._ready[numbers] = True
            if self._ready.all():
                self.is_complete = True


def _write(fd: int, content: memoryview, at: int) -> None:
    """Write all of it, or raise: of what a full disk has no room for, a part may be written."""
    while content:
        written = os.pwrite(fd, content, at)
        content, at = content[written:], at + written


@cache
def _this_run() -> int:
    """The mark of this run of the kernel."""
    try:
        return zlib.crc32(_BOOT_ID.read_bytes()) or 2
    except OSError:
        return _UNKNOWN_RUN
