"""Reading stored arrays through a cache on the local disk."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from tensorage.backend.arrays import Arrays, OpenArray
from tensorage.backend.wire.progress import progress
from tensorage.cache.cache_file import CacheFile
from tensorage.cache.file_format import FileFormat
from tensorage.cache.folder import Folder
from tensorage.errors import ChangedError, InvalidInputError
from tensorage.indexing.chunks import ChunkPlan, plan_chunks
from tensorage.indexing.selection import Positions, Selection
from tensorage.model.results import Result, check_out
from tensorage.types import Dataset

__all__ = ["BATCH_BYTES", "CachedReader"]

#: Pieces are fetched so many bytes at a time, or one at a time where they are larger.
BATCH_BYTES = 64 * 1024 * 1024

#: Pieces that were fetched and are not on the disk, by their numbers.
Loose = dict[int, npt.NDArray[Any]]


class _Look(NamedTuple):
    """When the catalogue was asked, and what it said."""

    dataset: Dataset
    changes: int
    until: float


class CachedReader:
    """Reads an array through files on the local disk, which keep elements once they were read.

    Elements that are not on the disk are fetched by whole tiles: single rows of small rows, 4 KiB of large ones, and
    chunks of Storage. Made by `tensorage.Tensor.cached`.

    Safe to use from many threads and in forked processes, and to send to others.

    Parameters
    ----------
    directory
        Folder of the cache.
    max_bytes
        The most bytes that the folder may take on the disk. None for no limit.
    check_every_s
        Seconds for which the catalogue's last answer about an array's version is believed.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        max_bytes: int | None = None,
        check_every_s: float = 1.0,
    ) -> None:
        if max_bytes is not None and max_bytes < 0:
            raise InvalidInputError(f"max_bytes is a number of bytes, or None for no limit, not {max_bytes}")
        if not check_every_s >= 0:
            raise InvalidInputError(f"check_every_s is a number of seconds, 0 or more, not {check_every_s}")
        self._folder = Folder(Path(directory).expanduser().absolute(), max_bytes)
        self._check_every_s = check_every_s
        self._forget()
        self._folder.prepare()

    def __getstate__(self) -> dict[str, Any]:
        # Files and maps stay in their process.
        return {name: value for name, value in self.__dict__.items() if name not in ("_looked", "held")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget()

    def _forget(self) -> None:
        self._looked: _Look | None = None
        self.held: tuple[Dataset, CacheFile | None] | None = None

    @property
    def directory(self) -> Path:
        """The folder of the cache."""
        return self._folder.path

    @property
    def max_bytes(self) -> int | None:
        """The most bytes that the folder may take on the disk, if there is a limit."""
        return self._folder.max_bytes

    def use(self, array: OpenArray) -> None:
        """Hold the array's cache file open from now on, also before the first read: it is not deleted for others."""
        if array.dataset.size:
            self._file_of(array.arrays, array.dataset)

    def read(self, array: OpenArray, selection: Selection, out: npt.NDArray[Any] | None) -> Any:
        """Return ``array[selection]``, as `tensorage.Tensor.read` gives it: from the disk, where it is there.

        Raises
        ------
        KeyNotFoundError
            If there is no such array any more, or not for this user.
        CacheError
            If elements that were fetched cannot be written to the disk.
        """
        return array.on_latest(lambda now: self._read(array.arrays, now, selection, out), self._look(array))

    def epoch_cost(self, array: OpenArray) -> int:
        """Return the bytes that reading every row once would fetch now: those of the tiles that are not on the disk.

        Bytes are counted as in `tensorage.Tensor.epoch_cost`. Once everything is on the disk the cost is 0. Tiles that
        `max_bytes` has no room for are fetched in each epoch anew, and go on to be counted. From Storage, that is each
        missing chunk once; shuffled batches may fetch one more than once then.
        """
        return array.on_latest(lambda now: self._missing_bytes(array.arrays, now), self._look(array))

    # Which version ------------------------------------------------------------------------------------

    def _look(self, array: OpenArray) -> Dataset:
        """Return the array's entry in the catalogue: asked for again after a while, and once this session wrote."""
        looked, changes = self._looked, array.arrays.changes
        if (
            looked is not None
            # A write through the handle leaves it with another entry.
            and looked.dataset is array.dataset
            and looked.changes == changes
            and time.monotonic() < looked.until
        ):
            return looked.dataset
        now = array.reopen()
        self._looked = _Look(now, changes, time.monotonic() + self._check_every_s)
        if self.held is not None and self.held[1] is not None:
            self._folder.touch(self.held[1])
        return now

    def _file_of(self, arrays: Arrays, dataset: Dataset) -> CacheFile | None:
        """The entry that has the elements of a version, which may be that of an older one. None if there is no room."""
        held, entry = self.held or (None, None)
        if (
            held is not None
            and (held is dataset or _version(held) == _version(dataset))
            and entry is not None
        ):
            return entry
        # No longer in use, so that what was replaced can be deleted.
        self.held = held = entry = None
        url = arrays.project.backend_url or ""
        entry = self._folder.open(
            FileFormat(url, dataset, arrays.tiles(dataset)), partial(_still_stands, arrays)
        )
        self.held = (dataset, entry)
        return entry

    # Elements -----------------------------------------------------------------------------------------

    def _read(self, arrays: Arrays, now: Dataset, selection: Selection, out: npt.NDArray[Any] | None) -> Any:
        entry = self._file_of(arrays, now) if now.size else None
        if entry is None:
            return arrays.read(now, selection, out=out)
        if isinstance(selection, list):
            selection = _as_indices(selection)
        if entry.view is not None and entry.has(selection):
            return _taken(entry.view, selection, out)
        reading = plan_chunks(now.shape, selection, entry.grid.chunks)
        if out is not None:
            check_out(reading.shape, now.dtype, out)
        missing = self._folder.find_missing(entry, entry.grid.numbers(reading))
        loose = self._fetched(arrays, entry, missing) if missing.size else {}
        if loose is None:
            return arrays.read(entry.dataset, selection, out=out)
        if entry.view is not None and not loose:
            return _taken(entry.view, selection, out)
        return _gathered(entry, loose, reading, out)

    def _fetched(self, arrays: Arrays, entry: CacheFile, missing: Positions) -> Loose | None:
        """Fetch pieces and keep them: those for which there is no room, or None if they are too many to be held."""
        lengths = entry.grid.lengths(missing) * entry.dataset.dtype.itemsize
        total = int(lengths.sum())
        is_large = total > BATCH_BYTES
        if is_large and not self._folder.has_room(entry, missing):
            return None
        loose: Loose = {}
        with progress(total, entry.dataset.key, quiet=arrays.quiet) as advance:
            for numbers in _batches(missing, lengths):
                elements = arrays.read_tiles(entry.dataset, numbers, advance)
                kept = self._folder.keep(entry, numbers, elements)
                if kept < len(numbers):
                    if is_large:
                        return None
                    loose.update(_pieces(entry, numbers, elements, kept))
        return loose

    def _missing_bytes(self, arrays: Arrays, now: Dataset) -> int:
        if not now.size:
            return 0
        entry = self._file_of(arrays, now)
        if entry is None:
            return arrays.moved_bytes(now)
        absent = entry.find_absent()
        return arrays.moved_bytes(entry.dataset, absent) if absent.size else 0


def _still_stands(arrays: Arrays, older: Dataset) -> bool:
    """Tell whether elements of an older version can still be read: the backend gives them only if none has changed."""
    try:
        arrays.check_unchanged(older)
    except ChangedError:
        return False
    return True


def _version(dataset: Dataset) -> tuple[Any, ...]:
    """What is another one when elements or where they are have changed, in one project."""
    return dataset.id, dataset.version, dataset.created_at, dataset.user_id, dataset.key, dataset.shape


def _as_indices(selection: list[Any]) -> Selection:
    """A list of indices as numpy takes it, so that it is looked at once; any other list as it is."""
    try:
        indices = np.asarray(selection)
    except ValueError:
        return selection
    return indices if indices.dtype.kind == "i" and indices.ndim == 1 else selection


def _batches(numbers: Positions, nbytes: npt.NDArray[np.int64]) -> Iterator[Positions]:
    """Pieces in parts of about `BATCH_BYTES`."""
    ends = np.cumsum(nbytes)
    begin = 0
    while begin < len(numbers):
        done = int(ends[begin - 1]) if begin else 0
        end = max(int(np.searchsorted(ends, done + BATCH_BYTES, side="right")), begin + 1)
        yield numbers[begin:end]
        begin = end


def _pieces(
    entry: CacheFile, numbers: Positions, elements: npt.NDArray[Any], first: int
) -> Iterator[tuple[int, npt.NDArray[Any]]]:
    """Pieces from a first one on, each with its number, out of the elements of all of them."""
    ends = np.cumsum(entry.grid.lengths(numbers)).tolist()
    for position in range(first, len(numbers)):
        number = int(numbers[position])
        begin = ends[position - 1] if position else 0
        yield number, elements[begin : ends[position]].reshape(entry.grid.shape_in_file(number))


def _taken(view: npt.NDArray[Any], selection: Selection, out: npt.NDArray[Any] | None) -> Any:
    """What numpy gives for a selection of the map, in memory of its own."""
    result: Any = view[selection]
    if out is not None:
        check_out(result.shape, view.dtype, out)
        out[...] = result
        return out
    if isinstance(result, np.ndarray) and result.base is not None:
        return result.copy()
    return result


def _gathered(entry: CacheFile, loose: Loose, reading: ChunkPlan, out: npt.NDArray[Any] | None) -> Any:
    """What numpy gives for a selection, put together of pieces."""
    result = Result(reading, entry.dataset.dtype, out, entry.dataset.key)
    if reading.size:
        buffer = result.buffer.reshape(reading.buffer_shape)
        for part in reading.projections():
            number = entry.grid.number_of(part.coords)
            part.take(loose[number] if number in loose else entry.tile(number), buffer)
    return result.take()
