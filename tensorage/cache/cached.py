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

#: Bytes of tiles that are fetched at once. A larger tile is fetched alone.
BATCH_BYTES = 64 * 1024 * 1024

#: Tiles that were fetched and are not on the disk, by their numbers.
Loose = dict[int, npt.NDArray[Any]]


class _Look(NamedTuple):
    """The catalogue's last answer, and the time until which it is believed."""

    dataset: Dataset
    changes: int
    until: float


class CachedReader:
    """Reads an array through files on the local disk, which keep elements once they were read.

    Elements that are not on the disk are fetched by whole tiles: rows, 4 KiB of large rows, or chunks of Storage.
    `tensorage.Tensor.cached` makes readers.

    A reader is safe to use from many threads and in forked processes, and can be sent to other processes.

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
        """Open the cache file of an array before the first read, so that it is not deleted to make room for others."""
        if array.dataset.size:
            self._file_of(array.arrays, array.dataset)

    def read(self, array: OpenArray, selection: Selection, out: npt.NDArray[Any] | None) -> Any:
        """Return ``array[selection]``, as `tensorage.Tensor.read` does, with elements from the disk if they are there.

        Raises
        ------
        KeyNotFoundError
            If the array has been deleted, or is no longer shared with this user.
        CacheError
            If fetched elements cannot be written to the disk.
        """
        return array.on_latest(lambda now: self._read(array.arrays, now, selection, out), self._look(array))

    def epoch_cost(self, array: OpenArray) -> int:
        """Return the bytes of tiles that are not on the disk, and that reading every row once would fetch.

        Bytes are counted as in `tensorage.Tensor.epoch_cost`. Once everything is on the disk, the cost is 0. Tiles that
        `max_bytes` has no room for are fetched anew in each epoch, and counted each time. Each missing chunk of Storage
        is counted once, although shuffled batches may fetch it several times.
        """
        return array.on_latest(lambda now: self._missing_bytes(array.arrays, now), self._look(array))

    # Versions -----------------------------------------------------------------------------------------

    def _look(self, array: OpenArray) -> Dataset:
        """Return the entry of an array, which is fetched again after a while, or once this session has written."""
        looked, changes = self._looked, array.arrays.changes
        if (
            looked is not None
            # A write through the handle gives it another entry.
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
        """Open the cache file for a version, which may hold an older one. Return None if there is no room."""
        held, file = self.held or (None, None)
        if (
            held is not None
            and (held is dataset or _identity_of(held) == _identity_of(dataset))
            and file is not None
        ):
            return file
        # The old file is closed first, so that it can be deleted.
        self.held = held = file = None
        url = arrays.project.backend_url or ""
        file = self._folder.open(
            FileFormat(url, dataset, arrays.tiles(dataset)), partial(_is_unchanged, arrays)
        )
        self.held = (dataset, file)
        return file

    # Elements -----------------------------------------------------------------------------------------

    def _read(self, arrays: Arrays, now: Dataset, selection: Selection, out: npt.NDArray[Any] | None) -> Any:
        # An array with elements of any length may have replaced the one that was cached.
        file = self._file_of(arrays, now) if now.size and now.ragged is None else None
        if file is None:
            return arrays.read(now, selection, out=out)
        # A list is converted once, since several steps below look at the selection.
        if isinstance(selection, list):
            selection = _as_indices(selection)
        if file.view is not None and file.has(selection):
            return _index_map(file.view, selection, out)
        plan = plan_chunks(now.shape, selection, file.grid.chunks)
        if out is not None:
            check_out(plan.shape, now.dtype, out)
        missing = self._folder.find_missing(file, file.grid.numbers(plan))
        loose = self._fetch_missing(arrays, file, missing) if missing.size else {}
        if loose is None:
            return arrays.read(file.dataset, selection, out=out)
        if file.view is not None and not loose:
            return _index_map(file.view, selection, out)
        return _gather(file, loose, plan, out)

    def _fetch_missing(self, arrays: Arrays, file: CacheFile, missing: Positions) -> Loose | None:
        """Fetch tiles into the cache file, and return those that it has no room for; None if they are too many."""
        lengths = file.grid.lengths(missing) * file.dataset.dtype.itemsize
        total = int(lengths.sum())
        is_large = total > BATCH_BYTES
        # Tiles that find no room are held in memory, which only a small read can afford.
        if is_large and not self._folder.has_room(file, missing):
            return None
        loose: Loose = {}
        with progress(total, file.dataset.key, quiet=arrays.quiet) as advance:
            for numbers in _group_batches(missing, lengths):
                elements = arrays.read_tiles(file.dataset, numbers, advance)
                kept = self._folder.keep(file, numbers, elements)
                if kept < len(numbers):
                    if is_large:
                        return None
                    loose.update(_split_tiles(file, numbers, elements, kept))
        return loose

    def _missing_bytes(self, arrays: Arrays, now: Dataset) -> int:
        if not now.size:
            return 0
        file = None if now.ragged is not None else self._file_of(arrays, now)
        if file is None:
            return arrays.moved_bytes(now)
        absent = file.find_absent()
        return arrays.moved_bytes(file.dataset, absent) if absent.size else 0


def _is_unchanged(arrays: Arrays, older: Dataset) -> bool:
    """Tell whether the elements of an older version are unchanged, since the backend reads no others."""
    try:
        arrays.check_unchanged(older)
    except ChangedError:
        return False
    return True


def _identity_of(dataset: Dataset) -> tuple[Any, ...]:
    """Return values that identify one version's stored elements within a project."""
    return dataset.id, dataset.version, dataset.created_at, dataset.user_id, dataset.key, dataset.shape


def _as_indices(selection: list[Any]) -> Selection:
    """Convert a list of indices to an array, which is checked once. Return any other list as it is."""
    try:
        indices = np.asarray(selection)
    except ValueError:
        return selection
    return indices if indices.dtype.kind == "i" and indices.ndim == 1 else selection


def _group_batches(numbers: Positions, nbytes: npt.NDArray[np.int64]) -> Iterator[Positions]:
    """Group tiles to batches of about `BATCH_BYTES`."""
    ends = np.cumsum(nbytes)
    begin = 0
    while begin < len(numbers):
        done = int(ends[begin - 1]) if begin else 0
        end = max(int(np.searchsorted(ends, done + BATCH_BYTES, side="right")), begin + 1)
        yield numbers[begin:end]
        begin = end


def _split_tiles(
    file: CacheFile, numbers: Positions, elements: npt.NDArray[Any], first: int
) -> Iterator[tuple[int, npt.NDArray[Any]]]:
    """Yield tiles with their numbers, from position `first` on, out of the elements of all tiles."""
    ends = np.cumsum(file.grid.lengths(numbers)).tolist()
    for position in range(first, len(numbers)):
        number = int(numbers[position])
        begin = ends[position - 1] if position else 0
        yield number, elements[begin : ends[position]].reshape(file.grid.shape_in_file(number))


def _index_map(view: npt.NDArray[Any], selection: Selection, out: npt.NDArray[Any] | None) -> Any:
    """Return a selection of a memory map, as numpy would, in memory of its own."""
    result: Any = view[selection]
    if out is not None:
        check_out(result.shape, view.dtype, out)
        out[...] = result
        return out
    # A view would keep the file mapped for as long as the result lives.
    if isinstance(result, np.ndarray) and result.base is not None:
        return result.copy()
    return result


def _gather(file: CacheFile, loose: Loose, plan: ChunkPlan, out: npt.NDArray[Any] | None) -> Any:
    """Return a selection, as numpy would, from tiles on the disk and loose ones."""
    result = Result(plan, file.dataset.dtype, out, file.dataset.key)
    if plan.size:
        buffer = result.buffer.reshape(plan.buffer_shape)
        for projection in plan.projections():
            number = file.grid.number_of(projection.coords)
            projection.take(loose[number] if number in loose else file.tile(number), buffer)
    return result.take()
