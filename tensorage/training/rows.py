"""Rows that are asked for one after another, and are read in blocks.

Loops over an array, and libraries that know it only as a sequence, ask for a row at a time, as
`torch.utils.data.ConcatDataset` does. A request for each row would take hundreds of times as long as reading the array
whole.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from tensorage.backend.arrays import OpenArray
from tensorage.backend.transfer import ChangeCount
from tensorage.errors import ChangedError, KeyNotFoundError
from tensorage.indexing.covering import MAX_OVER_READ_BYTES
from tensorage.indexing.runs import MAX_REQUEST_BYTES
from tensorage.tracebacks import end_tracebacks_here
from tensorage.types import Dataset

__all__ = ["RowsAhead", "iterate_rows"]

#: Bytes of the blocks of an iteration, the first one and all others: one request, and a few at once.
_FIRST_BYTES = MAX_REQUEST_BYTES
_BLOCK_BYTES = 4 * MAX_REQUEST_BYTES

#: Most bytes that are read ahead and kept for rows that are asked for in any order.
_MOST_KEPT_BYTES = 64 * 1024 * 1024

#: Bytes of the first block of rows in order.
_FIRST_AHEAD_BYTES = 1024 * 1024

#: Fewest bytes that a request for a single row is taken to be worth.
LEAST_REQUEST_BYTES = 256 * 1024

#: Parts of an array's bytes, one of which its single rows must be worth before it is read whole.
_PARTS_PAID = 3

#: Fewest single rows that are worth so much, unless each is taken to be worth the least: a handful of rows is no loop.
FEWEST_PAYING = 4

#: Requests for rows before blocks of those behind them are read ahead.
_SINGLES_IN_ORDER = 2

#: Seconds without a row after which the count of single rows begins anew.
_PAUSE_S = 10.0

#: Seconds for which rows that were read ahead are believed to be those of the array.
_BELIEVED_S = 1.0


def iterate_rows(array: OpenArray, *, backwards: bool = False) -> Iterator[Any]:
    """Return an iterator over the rows of an array, read in blocks.

    Each block is of one version, as a read of a slice is.

    Parameters
    ----------
    backwards
        Begin with the last row.
    """
    # No frame of ours is entered for a row, but for one that is copied.
    return itertools.chain.from_iterable(_read_blocks(array, backwards=backwards))


@end_tracebacks_here
def _read_blocks(array: OpenArray, *, backwards: bool) -> Iterator[Iterator[Any]]:
    """Yield iterators over the rows of each block."""
    rows = len(array)
    most, done = _FIRST_BYTES, 0
    while done < rows:
        first, stop = _block_before(array, rows - done, most) if backwards else _block_from(array, done, most)
        count = stop - first
        block = array.read(slice(first, stop))
        given = reversed(block) if backwards else iter(block)
        yield (row.copy() for row in given) if _gives_views(block) else given
        # Somebody may have made the array shorter meanwhile. A list that is iterated over ends then, too.
        if len(block) < count and not backwards:
            return
        most, done = _BLOCK_BYTES, done + count


def _block_from(array: OpenArray, first: int, most_bytes: int) -> tuple[int, int]:
    """Return the first row of a block of about so many bytes, and the one behind its last."""
    rows, unit = _rows_of_block(array, most_bytes)
    # No two blocks fetch the same chunk, where they have room for one.
    aligned = (first + rows) // unit * unit
    return first, min(aligned if aligned > first else first + rows, len(array))


def _block_before(array: OpenArray, stop: int, most_bytes: int) -> tuple[int, int]:
    """Return the first row of a block that ends before the row `stop`, and `stop`."""
    rows, unit = _rows_of_block(array, most_bytes)
    aligned = -(-max(stop - rows, 0) // unit) * unit
    return (aligned if aligned < stop else max(stop - rows, 0)), stop


def _rows_of_block(array: OpenArray, most_bytes: int) -> tuple[int, int]:
    """Return the number of rows that have about so many bytes, and the number of rows of a chunk."""
    row_bytes = max(math.prod(array.shape[1:]) * array.dataset.mean_bytes, 1)
    has_tiles = array.dataset.size and array.dataset.ragged is None
    unit = array.arrays.tiles(array.dataset).chunks[0] if has_tiles else 1
    return max(most_bytes // row_bytes, 1), unit


def _chunk_of(array: OpenArray, row: int) -> slice | None:
    """Return the rows of the chunk that holds a row; None in the database, or if the chunk is of no use.

    A chunk is of no use if it has a single row, or more than may be kept.
    """
    if array.dataset.engine != "storage":
        return None
    rows, unit = _rows_of_block(array, _MOST_KEPT_BYTES)
    first = row // unit * unit
    return slice(first, min(first + unit, len(array))) if 1 < unit <= rows else None


def _worth_bytes(array: OpenArray, took_s: float) -> int:
    """Return the bytes that the line would have moved in the time of a single row, within bounds."""
    moved = int(took_s * array.arrays.line.bytes_per_s)
    # A login or an outage in between says nothing about the rows to come.
    return max(min(moved, array.nbytes // (_PARTS_PAID * FEWEST_PAYING)), LEAST_REQUEST_BYTES)


def _gives_views(rows: npt.NDArray[Any] | list[Any]) -> bool:
    """Tell whether rows are views of a block. Views are copied: a single row would keep the block in memory.

    Elements that are no records, and the samples of a list, are the caller's own already.
    """
    return isinstance(rows, np.ndarray) and (rows.ndim > 1 or rows.dtype.kind == "V")


@dataclass
class _Block:
    """Rows that were read together.

    Parameters
    ----------
    dataset
        Entry of the version that they are of.
    first
        Number of the first row.
    changes
        Count of this session's own changes when the rows were last seen to be those of the array.
    believed_until
        Time until which nobody else's changes are looked for.
    change_count
        Count of this session's own changes.
    """

    dataset: Dataset
    first: int
    rows: npt.NDArray[Any] | list[Any]
    changes: int
    believed_until: float
    change_count: ChangeCount
    given: bytearray = field(init=False)
    count: int = field(init=False)
    are_views: bool = field(init=False)

    def __post_init__(self) -> None:
        self.count = len(self.rows)
        self.are_views = _gives_views(self.rows)
        #: 1 for rows that were given out since then.
        self.given = bytearray(self.count)

    def has(self, row: int, dataset: Dataset) -> bool:
        """Tell whether a row of a version is here."""
        is_same = (self.dataset.id, self.dataset.version) == (dataset.id, dataset.version)
        return is_same and self.first <= row < self.first + self.count

    def believe(self, changes: int) -> None:
        """Begin to believe the rows, just seen to be those of the array after so many changes."""
        self.changes = changes
        self.believed_until = time.monotonic() + _BELIEVED_S
        self.given = bytearray(self.count)

    def give(self, place: int) -> Any:
        """Return a row by its place here, as the caller's own."""
        self.given[place] = 1
        row = self.rows[place]
        return row.copy() if self.are_views else row


@dataclass
class _Places:
    """Places of the chunks of an array in Storage: single rows that are read by them take one request and not two.

    Objects are never changed, so that such rows are those of the moment at which the places were looked up, as are the
    rows of a block.

    Parameters
    ----------
    records
        Records of all shards; None if they are too many.
    changes, believed_until
        The same as in a block.
    """

    dataset: Dataset
    records: bytes | None
    changes: int
    believed_until: float
    #: First row of each chunk, and each row without others in its chunk, that was read by these places.
    read: set[int] = field(default_factory=set, init=False)

    def records_of(self, dataset: Dataset) -> bytes | None:
        """Return the records, if they are those of this entry."""
        return self.records if self.dataset is dataset else None

    def are_for(self, array: OpenArray, first: int) -> bool:
        """Tell whether a chunk, by its first row, may be read by these places without another look at the array."""
        return (
            self.dataset is array.dataset
            and first not in self.read
            and self.changes == array.arrays.changes
            and time.monotonic() < self.believed_until
        )


def _read_row(array: OpenArray, row: int, places: _Places | None) -> Any:
    """Return a row by requests for it alone."""
    if places is None:
        return array.read(row)
    return array.on_latest(lambda now: array.arrays.read(now, row, records=places.records_of(now)))


def _read_block(
    array: OpenArray, wanted: slice, shape: tuple[int, ...], places: _Places | None
) -> _Block | None:
    """Read rows, unless the array has another shape by now."""

    def read(now: Dataset) -> _Block | None:
        # An array of another shape has another last row, or none at this place.
        if now.shape != shape:
            return None
        # A change by another thread meanwhile may be missing in these rows.
        count = array.arrays.change_count
        changes = count.number
        records = None if places is None else places.records_of(now)
        rows = array.arrays.read(now, wanted, records=records)
        if records is None or places is None:
            return _Block(now, wanted.start, rows, changes, time.monotonic() + _BELIEVED_S, count)
        return _Block(now, wanted.start, rows, places.changes, places.believed_until, count)

    return array.on_latest(read)


class RowsAhead:
    """Rows of one handle, each asked for by its number.

    The first few are read one by one, from Storage with the others of their chunk. Rows in order are then read in
    growing blocks. Rows in any order make the whole array be read, if it has at most 64 MiB, once their requests have
    taken a third of the time that this takes: a loop over all rows then takes a third longer than reading them whole,
    and a loop that ends just then four times as long as it had to.

    A row that was asked for before, or after a change by the same session, is given only after a look whether the array
    has changed, and any other at most a second after one. A loop that waits for a row to change therefore sees it.

    Threads that share a handle may read a block twice, and never get a wrong row.
    """

    def __init__(self) -> None:
        self._block: _Block | None = None
        self._places: _Places | None = None
        self._singles = 0
        self._paid_bytes = 0
        self._last = -2
        self._last_at = -math.inf
        self._next_bytes = _FIRST_AHEAD_BYTES

    def __reduce__(self) -> tuple[Any, ...]:
        # Rows are not sent along with a handle: another process reads its own.
        return RowsAhead, ()

    def read(self, array: OpenArray, row: int) -> Any:
        """Return a row of an array.

        Raises
        ------
        IndexError
            If there is no such row, or the array has no axes.
        """
        block = self._block
        # A loop comes here for each row: the usual case looks at as little as it can.
        if (
            block is not None
            and block.dataset is array.dataset
            and 0 <= (place := row - block.first) < block.count
            and not block.given[place]
            and block.changes == block.change_count.number
            and (now := time.monotonic()) < block.believed_until
        ):
            self._last, self._last_at = row, now
            block.given[place] = 1
            found = block.rows[place]
            return found.copy() if block.are_views else found
        rows = array.shape[0] if array.shape else 0
        if not array.size or not -rows <= row < rows:
            return array.read(row)
        return self._read_known(array, row % rows)

    def _read_known(self, array: OpenArray, row: int) -> Any:
        """Return a row that there was when the array was last looked at."""
        block = self._block
        if block is not None and block.has(row, array.dataset) and self._is_believed(array, block, row):
            self._note(row)
            return block.give(row - block.first)
        begun = time.perf_counter()
        # Remember the shape: looking at the array may change it.
        shape = array.shape
        chunk = _chunk_of(array, row)
        wanted = self._choose_rows(array, row, chunk)
        is_single = wanted is None or wanted == chunk
        places = self._find_places(array, row if chunk is None else chunk.start) if is_single else None
        block = None if wanted is None else _read_block(array, wanted, shape, places)
        found = _read_row(array, row, places) if block is None else None
        self._note(row)
        self._singles += 1
        # Blocks of rows in order pay for themselves.
        if is_single or block is None:
            self._paid_bytes += _worth_bytes(array, time.perf_counter() - begun)
        if block is None:
            return found
        if not is_single:
            # Rows that come from this block must not come from an older look later.
            self._places = None
        self._block = block
        return block.give(row - block.first)

    def _find_places(self, array: OpenArray, first: int) -> _Places | None:
        """Return the places of the chunks of an array in Storage, for a chunk that they were not used for yet."""
        if array.dataset.engine != "storage":
            return None
        places = self._places
        if places is None or not places.are_for(array, first):
            changes, until = array.arrays.changes, time.monotonic() + _BELIEVED_S
            places = array.on_latest(lambda now: _Places(now, array.arrays.records(now), changes, until))
            self._places = places
        places.read.add(first)
        return places

    def _note(self, row: int) -> None:
        now = time.monotonic()
        if now - self._last_at > _PAUSE_S:
            self._forget_singles()
        self._last, self._last_at = row, now

    def _forget_singles(self) -> None:
        self._singles = self._paid_bytes = 0

    def _is_believed(self, array: OpenArray, block: _Block, row: int) -> bool:
        """Tell whether a row of a block may be given out, after a look at the array if it is due."""
        if (
            time.monotonic() < block.believed_until
            and block.changes == array.arrays.changes
            and not block.given[row - block.first]
        ):
            return True
        changes = array.arrays.changes
        try:
            array.arrays.check_unchanged(block.dataset)
        except (ChangedError, KeyNotFoundError):
            self._block = self._places = None
            self._forget_singles()
            return False
        block.believe(changes)
        return True

    def _choose_rows(self, array: OpenArray, row: int, chunk: slice | None) -> slice | None:
        """Return the rows that are worth while to be read with a row, None for none."""
        nbytes, rows = array.nbytes, len(array)
        is_recent = time.monotonic() - self._last_at <= _PAUSE_S
        singles = self._singles if is_recent else 0
        # The bound on over-read allows for these bytes even with a few rows.
        if nbytes <= MAX_OVER_READ_BYTES:
            return slice(0, rows) if singles else None
        # With a row of Storage, others came along already.
        is_in_order = row == self._last + 1 and singles >= (_SINGLES_IN_ORDER if chunk is None else 1)
        chunk_bytes = 0 if chunk is None else nbytes // rows * (chunk.stop - chunk.start)
        if is_in_order and nbytes <= self._next_bytes:
            return slice(0, rows)
        if not is_in_order:
            if singles and _PARTS_PAID * self._paid_bytes >= nbytes and nbytes <= _MOST_KEPT_BYTES:
                return slice(0, rows)
            self._next_bytes = _FIRST_AHEAD_BYTES
            # A single row may be all that is ever wanted, for which a handle should not hold much.
            return chunk if singles or chunk_bytes <= 2 * _FIRST_AHEAD_BYTES else None
        first, stop = _block_from(array, row, self._next_bytes)
        self._next_bytes = min(2 * self._next_bytes, MAX_REQUEST_BYTES)
        return slice(first, stop) if stop - first > 1 else None
