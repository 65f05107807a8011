"""Arrays, whole or coming in blocks, cut into pieces for requests. No I/O."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tensorage.backend.wire.header import bytes_of
from tensorage.types import Dataset

__all__ = ["EncodedRun", "cut_array", "cut_flats"]


@dataclass(frozen=True, slots=True)
class EncodedRun:
    """Consecutive elements of an array, as they travel.

    Parameters
    ----------
    index
        Position of the first one in the flat array.
    count
        How many.
    elements
        Their bytes: C order, little-endian.
    """

    index: int
    count: int
    elements: memoryview


def cut_array(array: npt.NDArray[Any], block_size: int, max_bytes: int) -> Iterator[EncodedRun]:
    """Cut an array into pieces of whole blocks, none over `max_bytes` unless a single block is.

    An array that is in C order and little-endian is not copied; of any other, one piece at a time is.

    Parameters
    ----------
    array
        At least one element, of a storable dtype in any byte order.
    block_size
        Elements per block, from `tensorage.model.declaration.fit_block_size`.
    """
    wanted = array.dtype.newbyteorder("<")
    row = array.size // array.shape[0] if array.ndim else 1
    per_piece = max(max_bytes // (block_size * wanted.itemsize), 1) * block_size
    if row > block_size:
        # Blocks begin anew at each row, so that no piece may reach into the next one.
        for number in range(array.shape[0]):
            flat = np.ascontiguousarray(array[number], dtype=wanted).reshape(-1)
            for first in range(0, row, per_piece):
                part = flat[first : first + per_piece]
                yield EncodedRun(number * row + first, part.size, bytes_of(part))
        return
    rows = np.atleast_1d(array)
    rows_per_piece = max(per_piece // row, 1)
    for first in range(0, rows.shape[0], rows_per_piece):
        part = np.ascontiguousarray(rows[first : first + rows_per_piece], dtype=wanted).reshape(-1)
        yield EncodedRun(first * row, part.size, bytes_of(part))


def cut_flats(flats: Iterable[npt.NDArray[Any]], dataset: Dataset, max_bytes: int) -> Iterator[EncodedRun]:
    """The pieces of an array that comes in parts, in one dimension, and never exists whole.

    Each piece has memory of its own, so that whoever makes the parts may use theirs again.

    Parameters
    ----------
    flats
        Of the dataset's dtype, and all of its elements together.
    """
    if not dataset.size:
        # Whether there are none too many is found out all the same.
        for _ in flats:
            pass
        return
    row = dataset.size // dataset.shape[0] if dataset.shape else 1
    per_piece = max(max_bytes // (dataset.block_size * dataset.dtype.itemsize), 1) * dataset.block_size
    ends = _run_ends(dataset.size, row, per_piece, cut_rows=row > dataset.block_size)
    begin, end = 0, next(ends)
    piece = np.empty(end - begin, dataset.dtype)
    filled = 0
    for flat in flats:
        taken = 0
        while taken < flat.size:
            part = flat[taken : taken + piece.size - filled]
            piece[filled : filled + part.size] = part
            taken, filled = taken + part.size, filled + part.size
            if filled == piece.size:
                yield EncodedRun(begin, filled, bytes_of(piece))
                begin, end = end, next(ends, end)
                piece, filled = np.empty(end - begin, dataset.dtype), 0


def _run_ends(size: int, row: int, per_piece: int, *, cut_rows: bool) -> Iterator[int]:
    """Where one piece after the other ends. Those of cut rows do not reach from one row into the next."""
    if not cut_rows:
        yield from range(per_piece, size, per_piece)
        yield size
        return
    for first in range(0, size, row):
        yield from range(first + per_piece, first + row, per_piece)
        yield first + row
