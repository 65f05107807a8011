"""Cuts of arrays into runs for requests. An array may be in memory, or come in parts. No I/O."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tensorage.backend.wire.header import bytes_of
from tensorage.dtypes import storable_dtype
from tensorage.types import Dataset

__all__ = ["EncodedRun", "cut_array", "cut_flats"]


@dataclass(frozen=True, slots=True)
class EncodedRun:
    """Run of an array, with its elements as they travel.

    Parameters
    ----------
    index
        Position of the first element in the flat array.
    count
        Number of elements.
    elements
        Bytes of the elements: C order, little-endian.
    """

    index: int
    count: int
    elements: memoryview


def cut_array(array: npt.NDArray[Any], block_size: int, max_bytes: int) -> Iterator[EncodedRun]:
    """Cut an array into runs of whole blocks, none over `max_bytes` unless a single block is.

    The last runs of many are shorter, an eighth of what is left each, down to a quarter of `max_bytes`. Requests at
    once end at about the same time, and the database stores the last ones while the line is idle: the less, the sooner
    all is done.

    An array that is in C order and little-endian is not copied. Any other array is copied run by run.

    Parameters
    ----------
    array
        Array of at least one element, of a storable dtype in any byte order.
    block_size
        Elements per block, from `tensorage.model.declaration.fit_block_size`.
    """
    wanted = storable_dtype(array.dtype)
    row = array.size // array.shape[0] if array.ndim else 1
    per_run = max(max_bytes // (block_size * wanted.itemsize), 1) * block_size
    if row > block_size:
        # Blocks begin anew at each row, so no run may reach into the next row.
        for number in range(array.shape[0]):
            flat = np.ascontiguousarray(array[number], dtype=wanted).reshape(-1)
            for first in range(0, row, per_run):
                part = flat[first : first + per_run]
                yield EncodedRun(number * row + first, part.size, bytes_of(part))
        return
    rows = np.atleast_1d(array)
    rows_per_block = max(block_size // row, 1)
    longest = max(per_run // row, 1)
    shortest = longest // 4 if rows.shape[0] > 4 * longest else longest
    first = 0
    while first < rows.shape[0]:
        wanted_rows = max((rows.shape[0] - first) // 8, shortest) // rows_per_block * rows_per_block
        behind = first + min(max(wanted_rows, rows_per_block), longest)
        part = np.ascontiguousarray(rows[first:behind], dtype=wanted).reshape(-1)
        yield EncodedRun(first * row, part.size, bytes_of(part))
        first = behind


def cut_flats(flats: Iterable[npt.NDArray[Any]], dataset: Dataset, max_bytes: int) -> Iterator[EncodedRun]:
    """Cut an array that comes in one-dimensional parts, and never exists whole, into runs.

    Each run has memory of its own, so that the maker of the parts may use the memory of a part again.

    Parameters
    ----------
    flats
        Parts of the dataset's dtype, which together hold all of its elements.
    """
    if not dataset.size:
        # An iterable that gives too many elements raises here, too.
        for _ in flats:
            pass
        return
    row = dataset.size // dataset.shape[0] if dataset.shape else 1
    per_run = max(max_bytes // (dataset.block_size * dataset.dtype.itemsize), 1) * dataset.block_size
    ends = _run_ends(dataset.size, row, per_run, cut_rows=row > dataset.block_size)
    begin, end = 0, next(ends)
    run = np.empty(end - begin, dataset.dtype)
    filled = 0
    for flat in flats:
        taken = 0
        while taken < flat.size:
            part = flat[taken : taken + run.size - filled]
            run[filled : filled + part.size] = part
            taken, filled = taken + part.size, filled + part.size
            if filled == run.size:
                yield EncodedRun(begin, filled, bytes_of(run))
                begin, end = end, next(ends, end)
                run, filled = np.empty(end - begin, dataset.dtype), 0


def _run_ends(size: int, row: int, per_run: int, *, cut_rows: bool) -> Iterator[int]:
    """Yield the end of each run. If rows are cut, no run reaches from one row into the next."""
    if not cut_rows:
        yield from range(per_run, size, per_run)
        yield size
        return
    for first in range(0, size, row):
        yield from range(first + per_run, first + row, per_run)
        yield first + row
