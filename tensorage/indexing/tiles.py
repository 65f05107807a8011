"""An array cut into tiles, which are kept and fetched as a whole, and the tiles that a selection needs. No I/O.

Tiles are the cells of a grid, numbered in C order. A file has one tile after the other, in one of two ways:

- *flat*: if each tile is consecutive elements of the array, all tiles together are the array in C order, and numpy can
  map the file as the array itself.
- *padded*: otherwise each tile has the room of a full one, also where the array ends within it.
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

#: Bytes of a tile of rows, about: the cost of a random row beside its own bytes, and a page of memory.
TILE_BYTES = 4096

#: Tiles are larger if there would be more of them than `MANY_TILES`, since each tile takes memory of every reader.
#: They are never larger than `LARGEST_TILE_BYTES`.
MANY_TILES = 64 * 1024 * 1024
LARGEST_TILE_BYTES = 64 * 1024


@dataclass(frozen=True)
class TileGrid:
    """An array cut into tiles.

    Parameters
    ----------
    shape
        Shape of the array.
    chunks
        Shape of a tile. It is cut to the array's shape where it is larger.

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
        # A tile of length 1 along an empty axis keeps divisions defined. The grid has no tiles then.
        cut = (max(min(chunk, extent), 1) for chunk, extent in zip(self.chunks, self.shape, strict=True))
        object.__setattr__(self, "chunks", tuple(cut))

    @cached_property
    def grid_shape(self) -> tuple[int, ...]:
        """Number of tiles along each axis."""
        return tuple(-(-extent // chunk) for extent, chunk in zip(self.shape, self.chunks, strict=True))

    @cached_property
    def count(self) -> int:
        """Number of all tiles."""
        return math.prod(self.grid_shape)

    @cached_property
    def full(self) -> int:
        """Elements of a tile within which the array does not end."""
        return math.prod(self.chunks)

    @cached_property
    def is_flat(self) -> bool:
        """True if each tile is consecutive elements: one axis is cut, and every axis before it into single indices."""
        axis = self._cut_axis
        return self.chunks[axis + 1 :] == self.shape[axis + 1 :]

    @cached_property
    def size(self) -> int:
        """Elements of all tiles in a file, padding included."""
        return math.prod(self.shape) if self.is_flat else self.count * self.full

    @cached_property
    def rows(self) -> int:
        """Whole rows of axis 0 in a tile; 0 if a tile has no whole row."""
        return self.chunks[0] if self.shape and self.chunks[1:] == self.shape[1:] else 0

    @cached_property
    def _cut_axis(self) -> int:
        """The first axis along which a tile has more than one index, or the last axis; 0 without axes."""
        longer = (axis for axis, chunk in enumerate(self.chunks) if chunk > 1)
        return next(longer, max(len(self.chunks) - 1, 0))

    def starts(self, numbers: Positions) -> Positions:
        """Return the positions at which tiles begin among the elements of a file."""
        if not self.is_flat or not self.shape:
            return numbers * self.full
        axis = self._cut_axis
        inner = math.prod(self.shape[axis + 1 :])
        outer, coord = np.divmod(numbers, self.grid_shape[axis])
        starts: Positions = (outer * self.shape[axis] + coord * self.chunks[axis]) * inner
        return starts

    def lengths(self, numbers: Positions) -> Positions:
        """Return the number of elements that tiles have in a file."""
        # Only tiles at the end of the cut axis are shorter, and only in a flat file.
        lengths = np.full(len(numbers), self.full, np.int64)
        if self.is_flat and self.shape:
            axis = self._cut_axis
            coord = numbers % self.grid_shape[axis]
            kept = np.minimum(self.chunks[axis], self.shape[axis] - coord * self.chunks[axis])
            lengths[:] = kept * math.prod(self.shape[axis + 1 :])
        return lengths

    def number_of(self, coords: Sequence[int]) -> int:
        """Return the number of the tile at a position of the grid."""
        number = 0
        for coord, extent in zip(coords, self.grid_shape, strict=True):
            number = number * extent + coord
        return number

    def coords_of(self, number: int) -> tuple[int, ...]:
        """Return the position of a tile in the grid."""
        coords = []
        for extent in reversed(self.grid_shape):
            number, coord = divmod(number, extent)
            coords.append(coord)
        return tuple(reversed(coords))

    def region(self, number: int) -> tuple[slice, ...]:
        """Return the region of the array that a tile holds."""
        return tuple(
            slice(coord * chunk, min((coord + 1) * chunk, extent))
            for coord, chunk, extent in zip(self.coords_of(number), self.chunks, self.shape, strict=True)
        )

    def shape_in_file(self, number: int) -> tuple[int, ...]:
        """Return the shape that a tile has in a file."""
        if not self.is_flat:
            return self.chunks
        return tuple(axis.stop - axis.start for axis in self.region(number))

    def numbers(self, plan: ChunkPlan) -> Positions:
        """Return the numbers of the tiles that a selection needs, ascending.

        Parameters
        ----------
        plan
            Plan that `tensorage.indexing.chunks.plan_chunks` makes of the selection, for the `chunks` of this grid.
        """
        if plan.whole is None:
            return np.empty(0, np.int64)
        points: Positions | None = None
        lines: list[Positions] = []
        # The number of a tile is a sum over the axes, so each axis is looked at on its own.
        stride = self.count
        for item, chunk, extent in zip(plan.whole.chunk_selection, self.chunks, self.grid_shape, strict=True):
            stride //= extent
            if isinstance(item, np.ndarray):
                along = item // chunk * stride
                points = along if points is None else points + along
            else:
                assert isinstance(item, slice)
                lines.append(_touched_coords(item, chunk) * stride)
        # Points of one tile share its number. The tiles of lines are distinct already.
        numbers = np.zeros(1, np.int64) if points is None else _distinct(points)
        for line in lines:
            numbers = (numbers[:, None] + line).reshape(-1)
        # Lines alone come in order, outermost first.
        return numbers if points is None or not lines else np.sort(numbers)


def _distinct(numbers: Positions) -> Positions:
    """Like np.unique, which takes thirty times as long for a million points."""
    numbers = np.sort(numbers, axis=None)
    is_new = np.ones(numbers.size, bool)
    np.not_equal(numbers[1:], numbers[:-1], out=is_new[1:])
    return numbers[is_new]


@dataclass(frozen=True, slots=True)
class NumberRuns:
    """Series of consecutive numbers among ascending ones.

    Parameters
    ----------
    first, last
        Places of the first and of the last number of each series among the numbers given.
    """

    first: Positions
    last: Positions

    def __len__(self) -> int:
        return len(self.first)


def find_number_runs(numbers: Positions) -> NumberRuns:
    """Find the series of consecutive numbers among ascending ones.

    Parameters
    ----------
    numbers
        One number or more, ascending, each once.

    Examples
    --------
    >>> find_number_runs(np.array([3, 4, 5, 9]))
    NumberRuns(first=array([0, 3]), last=array([2, 3]))
    """
    breaks = np.flatnonzero(np.diff(numbers) != 1)
    return NumberRuns(np.concatenate(([0], breaks + 1)), np.append(breaks, len(numbers) - 1))


def row_tiles(shape: Sequence[int], dtype: np.dtype[Any]) -> TileGrid:
    """Cut an array, any elements of which can be fetched, into tiles of few consecutive elements.

    A tile is as many whole rows as have room in `TILE_BYTES`, or a part of a row if no row has. Neither a random row
    nor a column then takes much over-read.

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
        # Once an axis is cut, the axes before it are cut into single indices.
        is_cut = bool(chunks) and chunks[-1] < shape[len(shape) - len(chunks)]
        chunks.append(1 if is_cut else max(min(room // inner, extent), 1))
        inner *= max(extent, 1)
    return TileGrid(tuple(shape), tuple(reversed(chunks)))


def _touched_coords(item: slice, chunk: int) -> npt.NDArray[np.int64]:
    """Return the coordinates of the tiles that a slice touches along one axis."""
    # With steps of at most a tile, no tile in between is skipped.
    if item.step <= chunk:
        return np.arange(item.start // chunk, (item.stop - 1) // chunk + 1, dtype=np.int64)
    return np.arange(item.start, item.stop, item.step, dtype=np.int64) // chunk
