"""One version of an array on the disk: tiles go into its file once, and are read from a map of it.

**Writing.** All processes write the same bytes of a version to the same place, so tiles need no lock. The elements of
a tile are written before its record: if a process is killed in between, the tile counts as missing. Nothing is written
through a map, where a full disk is a signal that ends the process, not an error. Nothing is read through a map either
before it was written: on a disk in memory, even that takes room.

**Trust.** The kernel may crash as well, and lose some of the pages that were written last. A record therefore has a
checksum, and a mark that names the run of the kernel in which it was written. A record of this run is trusted. A tile
with a record of any other run is verified when a process first needs the tile: if the checksum is wrong, the tile is
fetched again, and if it is right, the record gets the mark of this run.
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

#: File in which Linux tells one run of the kernel from another.
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")

#: Mark of a record on a system that does not tell one run of the kernel from another. It is never trusted.
_UNKNOWN_RUN = 1


class OpenFile:
    """Open file of a cache. No process deletes it while it is in use.

    The lock that marks it as used belongs to the open file, so a forked child holds it too.
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
        """Mark the file as used, so that nobody deletes it. Call this with the folder locked."""
        fcntl.flock(self.fd, fcntl.LOCK_SH | fcntl.LOCK_NB)

    def is_used(self) -> bool:
        """Tell whether anybody else uses the file. Call this with the folder locked."""
        try:
            fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False

    def touch(self) -> None:
        """Note in the file's times that it was used now."""
        os.utime(self.fd)

    def identity(self) -> dict[str, Any] | None:
        """Read from the header which version of which array this is."""
        return identity_of(os.pread(self.fd, PAGE_BYTES, 0))


class CacheFile:
    """Tiles of one version of an array that are on the disk. Safe to use from many threads, and in a forked child.

    Parameters
    ----------
    file
        Open file, in use, and as long as its format says.

    Attributes
    ----------
    view
        The array itself, mapped and read-only, if the grid is flat; None if not. Only elements of tiles that are ready
        may be read through it.
    """

    def __init__(self, file_format: FileFormat, file: OpenFile) -> None:
        self.format = file_format
        self.file = file
        self.dataset = file_format.dataset
        self.grid = file_format.grid
        # Python closes a map once nothing refers to it, so the map needs no `close`.
        mapped = mmap.mmap(file.fd, file_format.nbytes, access=mmap.ACCESS_READ)
        dtype, grid = self.dataset.dtype, self.grid
        self._elements: npt.NDArray[Any] = np.ndarray((grid.size,), dtype, mapped, file_format.elements_at)
        self.view = self._elements.reshape(grid.shape) if grid.is_flat else None
        self._ready: npt.NDArray[np.bool_] = self._read_records(0, grid.count)["mark"] == this_run()
        if this_run() == _UNKNOWN_RUN:
            self._ready[:] = False
        #: True if the tiles of each row, or of each few rows, are ready.
        self._by_row = self._ready.reshape(
            (*grid.shape[:1], -1) if grid.is_flat and not grid.rows else (-1, 1)
        )
        self.is_complete = bool(self._ready.all())

    def has(self, selection: Any) -> bool:
        """Tell whether all tiles that a selection needs are ready, if that is quickly told: of rows of axis 0.

        A training loop asks for rows only, and a plan of the selection takes longer than copying a batch.
        """
        # Rows of a padded file are not consecutive, and an array without axes has none.
        if self.is_complete or not self.grid.shape or not self.grid.is_flat:
            return self.is_complete
        each, count = self.grid.rows or 1, self.grid.shape[0]
        at: Any = None
        if isinstance(selection, slice):
            rows = range(*selection.indices(count))
            low, high = (min(rows[0], rows[-1]), max(rows[0], rows[-1]) + 1) if rows else (0, 0)
            at = slice(low // each, -(-high // each))
        # A bool is an int to Python, and a mask to numpy.
        elif isinstance(selection, int | np.integer) and not isinstance(selection, bool):
            row = int(selection) + (count if selection < 0 else 0)
            at = row // each if 0 <= row < count else None
        elif isinstance(selection, np.ndarray) and selection.ndim == 1 and selection.dtype.kind == "i":
            is_within = not selection.size or 0 <= int(selection.min()) <= int(selection.max()) < count
            at = (selection if each == 1 else selection // each) if is_within else None
        return at is not None and bool(self._by_row[at].all())

    def find_missing(self, numbers: Positions) -> Positions:
        """Return the tiles, of some, that are missing or damaged. All others are ready afterwards.

        Parameters
        ----------
        numbers
            Numbers of the tiles, ascending, each once.
        """
        unknown = numbers[~self._ready[numbers]]
        if not unknown.size:
            return unknown
        records = self._records_of(unknown)
        is_ready = (records["mark"] == this_run()) & (this_run() != _UNKNOWN_RUN)
        to_check = np.flatnonzero(~is_ready & (records["mark"] != 0))
        if to_check.size:
            is_ready[to_check] = self._verify(unknown[to_check], records["crc"][to_check])
        self._mark_ready(unknown[is_ready])
        missing: Positions = unknown[~is_ready]
        return missing

    def find_absent(self) -> Positions:
        """Return all tiles that are missing, without verifying the others."""
        return np.flatnonzero(~self._ready & (self._read_records(0, self.grid.count)["mark"] == 0))

    def write(self, numbers: Positions, elements: npt.NDArray[Any]) -> None:
        """Write tiles to the disk.

        Parameters
        ----------
        numbers
            Numbers of the tiles, ascending, each once.
        elements
            Elements of the tiles, one after the other, in one axis.
        """
        if not numbers.size:
            return
        runs = find_number_runs(numbers)
        itemsize = self.dataset.dtype.itemsize
        starts, lengths = self.grid.starts(numbers) * itemsize, self.grid.lengths(numbers) * itemsize
        ends = np.cumsum(lengths)
        # Numpy lends no buffer of its date and time types, so view the elements as bytes.
        content = elements.view(np.uint8).data
        bounds = zip((ends - lengths).tolist(), ends.tolist(), strict=True)
        records = np.empty(len(numbers), RECORD)
        records["crc"] = [zlib.crc32(content[begin:end]) for begin, end in bounds]
        records["mark"] = this_run()
        first, last = runs.first.tolist(), runs.last.tolist()
        for one, other in zip(first, last, strict=True):
            at = self.format.elements_at + int(starts[one])
            _write_all(self.file.fd, content[int(ends[one] - lengths[one]) : int(ends[other])], at)
        self._write_records(numbers, records)
        self._mark_ready(numbers)

    def tile(self, number: int) -> npt.NDArray[Any]:
        """Return a tile that is ready, as a view of the map."""
        start = int(self.grid.starts(np.array([number]))[0])
        shape = self.grid.shape_in_file(number)
        size = int(np.prod(shape, dtype=np.int64))
        return self._elements[start : start + size].reshape(shape)

    def _verify(self, numbers: Positions, crcs: npt.NDArray[np.uint32]) -> npt.NDArray[np.bool_]:
        """Compare tiles with the checksums of their records. Mark the records of the good tiles with this run.

        Returns
        -------
        numpy.ndarray
            For each tile, whether it is good.
        """
        itemsize = self.dataset.dtype.itemsize
        begins = self.format.elements_at + self.grid.starts(numbers) * itemsize
        lengths = self.grid.lengths(numbers) * itemsize
        found = [
            # Read the file, not the map: a page that the disk cannot read is an error here, and ends the process there.
            zlib.crc32(os.pread(self.file.fd, length, begin))
            for begin, length in zip(begins.tolist(), lengths.tolist(), strict=True)
        ]
        are_good: npt.NDArray[np.bool_] = crcs == np.array(found, np.uint32)
        if are_good.any() and this_run() != _UNKNOWN_RUN:
            good = numbers[are_good]
            records = np.empty(len(good), RECORD)
            records["crc"], records["mark"] = crcs[are_good], this_run()
            self._write_records(good, records)
        return are_good

    def _records_of(self, numbers: Positions) -> npt.NDArray[Any]:
        """Read the records of one tile or more from the index."""
        first, count = int(numbers[0]), int(numbers[-1] - numbers[0]) + 1
        runs = find_number_runs(numbers)
        # One long read is cheaper than many short ones, up to about a page for each.
        if count * RECORD.itemsize <= len(runs) * PAGE_BYTES:
            return self._read_records(first, count)[numbers - first]
        bounds = zip(numbers[runs.first].tolist(), numbers[runs.last].tolist(), strict=True)
        # Join bytes: numpy takes long to join arrays of records.
        return np.frombuffer(
            b"".join(self._read_index(one, other - one + 1) for one, other in bounds), RECORD
        )

    def _read_records(self, first: int, count: int) -> npt.NDArray[Any]:
        return np.frombuffer(self._read_index(first, count), RECORD)

    def _read_index(self, first: int, count: int) -> bytes:
        return os.pread(self.file.fd, count * RECORD.itemsize, self.format.index_at + first * RECORD.itemsize)

    def _write_records(self, numbers: Positions, records: npt.NDArray[Any]) -> None:
        runs = find_number_runs(numbers)
        content = records.view(np.uint8).data
        for one, other in zip(runs.first.tolist(), runs.last.tolist(), strict=True):
            run_content = content[one * RECORD.itemsize : (other + 1) * RECORD.itemsize]
            _write_all(self.file.fd, run_content, self.format.index_at + int(numbers[one]) * RECORD.itemsize)

    def _mark_ready(self, numbers: Positions) -> None:
        # No lock is needed, since a ready tile stays ready. A forked child might find a lock held for ever.
        if numbers.size:
            self._ready[numbers] = True
            if self._ready.all():
                self.is_complete = True


def _write_all(fd: int, content: memoryview, at: int) -> None:
    """Write all of the content, or raise. If the disk fills up, a part of it may have been written."""
    while content:
        written = os.pwrite(fd, content, at)
        content, at = content[written:], at + written


@cache
def this_run() -> int:
    """Return the mark of this run of the kernel."""
    try:
        # 0 means that a tile is missing, and 1 that the run is unknown.
        return zlib.crc32(BOOT_ID.read_bytes()) or 2
    except OSError:
        return _UNKNOWN_RUN
