"""An array cut into pieces that are kept or fetched as a whole: which of them a selection needs. No I/O.

Pieces are the cells of a grid, numbered in C order. In a file they stand one after the other, and there are two ways
for that:

- *flat*: where each piece is consecutive elements of the array, all pieces together are the array in C order, and a
  file of them is one that numpy can map as the array itself.
- *boxed*: otherwise each piece has the room of a full one, also where the array ends within it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from tensorage.indexing.chunks import ChunkPlan
from tensorage.indexing.selection import Positions

__all__ = ["NumberRuns", "TileGrid", "find_number_runs", "row_tiles"]

#: A piece of rows is about so large: what a random row costs beside its own bytes, and a page of memory.
TILE_BYTES = 4096

#: It is larger where there would be more pieces than `MANY_TILES`, each of which takes memory of every reader, and
#: never larger than `LARGEST_TILE_BYTES`.
MANY_TILES = 64 * 1024 * 1024
LARGEST_TILE_BYTES = 64 * 1024


@dataclass(frozen=True)
class TileGrid:
    """An array cut into pieces.

    Parameters
    ----------
    shape
        Of the array.
    chunks
        Shape of a piece. It is cut to the array's where it is larger.

    Examples
    --------
    >>> grid = TileGrid((60000, 28, 28), (1, 28, 28))
    >>> grid.count, grid.is_flat
    (60000, True)
    >>> from tensorage.indexing.chunks import plan_chunks
    >>> grid.numbers(plan_chunks(grid.shape, np.s_[[7, 3, 7], 14], grid.chunks))
    array([3, 7])
    """

    shape: tuple[int, ...]
    chunks: tuple[int, ...]

    def __post_init__(self) -> None:
        cut = (max(min(chunk, extent), 1) for chunk, extent in zip(self.chunks, self.shape, strict=True))
        object.__setattr__(self, "chunks", tuple(cut))

    @cached_property
    def extents(self) -> tuple[int, ...]:
        """Pieces along each axis."""
        return tuple(-(-extent // chunk) for extent, chunk in zip(self.shape, self.chunks, strict=True))

    @cached_property
    def count(self) -> int:
        """All pieces."""
        return math.prod(self.extents)

    @cached_property
    def full(self) -> int:
        """Elements of a piece within which the array does not end."""
        return math.prod(self.chunks)

    @cached_property
    def is_flat(self) -> bool:
        """Whether each piece is consecutive elements: one axis is cut, and all before it into single indices."""
        axis = self._cut_axis
        return self.chunks[axis + 1 :] == self.shape[axis + 1 :]

    @cached_property
    def size(self) -> int:
        """Elements of all pieces, as they stand in a file."""
        return math.prod(self.shape) if self.is_flat else self.count * self.full

    @cached_property
    def rows(self) -> int:
        """Whole rows of axis 0 in a piece; 0 where a piece has no whole row."""
        return self.chunks[0] if self.shape and self.chunks[1:] == self.shape[1:] else 0

    @cached_property
    def _cut_axis(self) -> int:
        """The first axis along which a piece has more than one index, or the last axis; 0 without axes."""
        longer = (axis for axis, chunk in enumerate(self.chunks) if chunk > 1)
        return next(longer, max(len(self.chunks) - 1, 0))

    def starts(self, numbers: Positions) -> Positions:
        """Where pieces begin among the elements of a file."""
        if not self.is_flat or not self.shape:
            return numbers * self.full
        axis = self._cut_axis
        inner = math.prod(self.shape[axis + 1 :])
        outer, coord = np.divmod(numbers, self.extents[axis])
        starts: Positions = (outer * self.shape[axis] + coord * self.chunks[axis]) * inner
        return starts

    def lengths(self, numbers: Positions) -> Positions:
        """Elements that pieces have in a file."""
        lengths = np.full(len(numbers), self.full, np.int64)
        if self.is_flat and self.shape:
            axis = self._cut_axis
            coord = numbers % self.extents[axis]
            kept = np.minimum(self.chunks[axis], self.shape[axis] - coord * self.chunks[axis])
            lengths[:] = kept * math.prod(self.shape[axis + 1 :])
        return lengths

    def number_of(self, coords: Sequence[int]) -> int:
        """Number of the piece at a position of the grid."""
        number = 0
        for coord, extent in zip(coords, self.extents, strict=True):
            number = number * extent + coord
        return number

    def coords_of(self, number: int) -> tuple[int, ...]:
        """Position of a piece in the grid."""
        coords = []
        for extent in reversed(self.extents):
            number, coord = divmod(number, extent)
            coords.append(coord)
        return tuple(reversed(coords))

    def region(self, number: int) -> tuple[slice, ...]:
        """Elements of the array that a piece holds."""
        return tuple(
            slice(coord * chunk, min((coord + 1) * chunk, extent))
            for coord, chunk, extent in zip(self.coords_of(number), self.chunks, self.shape, strict=True)
        )

    def shape_in_file(self, number: int) -> tuple[int, ...]:
        """Shape of a piece as it stands in a file."""
        if not self.is_flat:
            return self.chunks
        return tuple(axis.stop - axis.start for axis in self.region(number))

    def numbers(self, reading: ChunkPlan) -> Positions:
        """The pieces that a selection needs, ascending.

        Parameters
        ----------
        reading
            Of this grid: what `tensorage.indexing.chunks.plan_chunks` makes of the selection.
        """
        if reading.whole is None:
            return np.empty(0, np.int64)
        points: Positions | None = None
        lines: list[Positions] = []
        stride = self.count
        for item, chunk, extent in zip(reading.whole.chunk_selection, self.chunks, self.extents, strict=True):
            stride //= extent
            if isinstance(item, np.ndarray):
                along = item // chunk * stride
                points = along if points is None else points + along
            else:
                assert isinstance(item, slice)
                lines.append(_touched(item, chunk) * stride)
        numbers = np.zeros(1, np.int64) if points is None else np.unique(points)
        for line in lines:
            numbers = (numbers[:, None] + line).reshape(-1)
        # Lines alone come in order, outermost first.
        return numbers if points is None or not lines else np.sort(numbers)


@dataclass(frozen=True, slots=True)
class NumberRuns:
    """Pieces that follow each other, taken together.

    Parameters
    ----------
    first, last
        Which of the pieces that were given are the first and the last one of each run.
    """

    first: Positions
    last: Positions

    def __len__(self) -> int:
        return len(self.first)


def find_number_runs(numbers: Positions) -> NumberRuns:
    """Runs of consecutive numbers, of which there is at least one.

    Parameters
    ----------
    numbers
        Ascending, each once.

    Examples
    --------
    >>> find_number_runs(np.array([3, 4, 5, 9]))
    Runs(first=array([0, 3]), last=array([2, 3]))
    """
    breaks = np.flatnonzero(np.diff(numbers) != 1)
    return NumberRuns(np.concatenate(([0], breaks + 1)), np.append(breaks, len(numbers) - 1))


def row_tiles(shape: Sequence[int], dtype: np.dtype[Any]) -> TileGrid:
    """Pieces of an array of which any elements can be had: few consecutive ones each.

    As many whole rows as have room in `TILE_BYTES`, or else parts of a row, so that neither a random row nor a column
    needs much beside it.

    Examples
    --------
    >>> row_tiles((1000, 10), np.dtype("f4")).chunks
    (102, 10)
    >>> row_tiles((100, 224, 224, 3), np.dtype("u1")).chunks
    (1, 6, 224, 3)
    """
    itemsize = dtype.itemsize
    nbytes = math.prod(shape) * itemsize
    room = TILE_BYTES
    while nbytes > room * MANY_TILES and room < LARGEST_TILE_BYTES:
        room *= 2
    inner = itemsize
    chunks: list[int] = []
    for extent in reversed(shape):
        # Once an axis is cut, those before it are cut into single indices.
        is_cut = bool(chunks) and chunks[-1] < shape[len(shape) - len(chunks)]
        chunks.append(1 if is_cut else max(min(room // inner, extent), 1))
        inner *= max(extent, 1)
    return TileGrid(tuple(shape), tuple(reversed(chunks)))


def _touched(item: slice, chunk: int) -> npt.NDArray[np.int64]:
    """Along one axis: coordinates of the pieces that a slice touches."""
    if item.step <= chunk:
        return np.arange(item.start // chunk, (item.stop - 1) // chunk + 1, dtype=np.int64)
    return np.arange(item.start, item.stop, item.step, dtype=np.int64) // chunk
