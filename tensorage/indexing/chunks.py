"""Numpy selections of an array that is cut into a grid of chunks: which chunks to touch, and where. No I/O.

The question answered here: given the shape of an array, an index expression and the shape of a chunk, what does
the expression take of each chunk, and where in the result does that go?

1. `selection` brings the expression into its normal form. Its elements, each of them once, are the *buffer*: an
   array with the axes of the stored one. A slice is as long there as what it selects, an integer is 1 long. Index
   arrays and masks are points: all of them are along the first of their axes, in C order of the stored array, and
   their other axes are 1 long.
2. The grid cuts the buffer into `ChunkProjection` s. Of an axis that a slice selects, each chunk takes a slice;
   points are sorted by chunk, once. Nothing is done element by element.
3. The result is taken out of the buffer, or assigned values are put into it, as `BufferPlan` does.

A part can be split by a finer grid in the same way: a shard into its chunks. So the array as a whole is a part as
well, that of a grid of one chunk.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tensorage.indexing.buffer import BufferPlan, empty_view, view_of_result
from tensorage.indexing.projecting import AxisSelection, project_axes
from tensorage.indexing.selection import Dim, Selection, parse

__all__ = ["ChunkPlan", "ChunkProjection", "plan_chunks"]


@dataclass(frozen=True, slots=True)
class ChunkProjection:
    """What a selection takes of one chunk.

    Parameters
    ----------
    coords
        Of the chunk, in the grid.
    chunks
        Shape of every chunk.
    shape
        Of the chunk as far as the array extends.
    chunk_selection
        Indexes the chunk.
    buffer_selection
        Indexes the buffer. Both have one item for each axis, and give arrays of one shape.
    size
        Elements taken.
    """

    coords: tuple[int, ...]
    chunks: tuple[int, ...]
    shape: tuple[int, ...]
    chunk_selection: tuple[AxisSelection, ...]
    buffer_selection: tuple[AxisSelection, ...]
    size: int

    @property
    def is_whole(self) -> bool:
        """True if all elements of the chunk that lie within the array are taken."""
        return self.size == math.prod(self.shape)

    def take(self, chunk: npt.NDArray[Any], buffer: npt.NDArray[Any]) -> None:
        """Fill the chunk's place in the buffer.

        Parameters
        ----------
        chunk
            Of the full chunk shape.
        buffer
            Of the shape that the reading says.
        """
        buffer[self.buffer_selection] = chunk[self.chunk_selection]

    def put(self, buffer: npt.NDArray[Any], chunk: npt.NDArray[Any]) -> None:
        """Put into the chunk what the buffer holds for it; the arrays are those of `take`."""
        chunk[self.chunk_selection] = buffer[self.buffer_selection]

    def target(self, buffer: npt.NDArray[Any]) -> npt.NDArray[Any] | None:
        """The chunk's place in the buffer, if a chunk can be decoded right there.

        Returns
        -------
        numpy.ndarray or None
            A C-contiguous view of the buffer, of the full chunk shape. None if less than all of a full chunk is
            taken, or if its elements are not one after another in the buffer.
        """
        if self.size != math.prod(self.chunks):
            return None
        if any(isinstance(item, np.ndarray) for item in self.buffer_selection):
            return None
        # The ellipsis makes it a view where there are no axes.
        place = buffer[(*self.buffer_selection, ...)]
        return place.reshape(self.chunks) if place.flags.c_contiguous else None

    def split(self, chunks: Sequence[int]) -> Iterator[ChunkProjection]:
        """The parts of this part in a finer grid that begins where this chunk does.

        Parameters
        ----------
        chunks
            Shape of a chunk of the finer grid.

        Yields
        ------
        ChunkPart
            In C order of the finer grid, each chunk once that is touched. The buffer is the same.

        Examples
        --------
        >>> (shard,) = plan_chunks((100, 100), np.s_[25, 14:], (20, 100)).parts()
        >>> shard.coords, shard.shape
        ((1, 0), (20, 100))
        >>> [(chunk.coords, chunk.size) for chunk in shard.split((10, 50))]
        [((0, 0), 36), ((0, 1), 50)]
        """
        chunks = tuple(chunks)
        for pieces in project_axes(self.chunk_selection, self.buffer_selection, chunks):
            coords = tuple(piece.coord for piece in pieces)
            ends = zip(chunks, coords, self.shape, strict=True)
            yield ChunkProjection(
                coords,
                chunks,
                tuple(min(extent, end - coord * extent) for extent, coord, end in ends),
                tuple(piece.in_chunk for piece in pieces),
                tuple(piece.in_buffer for piece in pieces),
                math.prod(piece.size for piece in pieces),
            )


@dataclass(frozen=True, slots=True)
class ChunkPlan(BufferPlan):
    """What a selection takes of which chunks, and how to make its result of it.

    Parameters
    ----------
    box_shape
        Of the buffer that parts fill or are filled from. It has as many axes as the array, unless it is empty.
    whole
        What the selection takes of the array. None where it takes nothing.
    chunks
        Shape of a chunk.
    """

    buffer_shape: tuple[int, ...]
    whole: ChunkProjection | None
    chunks: tuple[int, ...]

    @property
    def size(self) -> int:
        """Elements of the buffer: those selected, each once."""
        return math.prod(self.buffer_shape)

    def parts(self) -> Iterator[ChunkProjection]:
        """What is taken of each chunk: in C order of the grid, each chunk once that is touched."""
        return iter(()) if self.whole is None else self.whole.split(self.chunks)


def plan_chunks(shape: Sequence[int], selection: Selection, chunks: Sequence[int]) -> ChunkPlan:
    """Decide what to take of which chunks for ``array[selection]``.

    Parameters
    ----------
    shape
        Of the stored array.
    chunks
        Shape of a chunk. The first begins where the array does; the array may end within the last ones.

    Raises
    ------
    IndexError, OverflowError, TypeError, ValueError
        As numpy does for the expression.

    Examples
    --------
    >>> reading = plan_chunks((60000, 28, 28), np.s_[300:400, ::-1], (334, 28, 28))
    >>> reading.buffer_shape, reading.is_whole_buffer
    ((100, 28, 28), False)
    >>> for part in reading.parts():
    ...     print(part.coords, part.size, part.chunk_selection[0], part.buffer_selection[0])
    (0, 0, 0) 26656 slice(300, 334, 1) slice(0, 34, 1)
    (1, 0, 0) 51744 slice(0, 66, 1) slice(34, 100, 1)
    """
    shape, chunks = tuple(shape), tuple(chunks)
    indexer = parse(shape, selection)
    if 0 in indexer.shape:
        return ChunkPlan(indexer.shape, empty_view(indexer), False, indexer.shape, None, chunks)
    selected: list[AxisSelection] = [slice(index, index + 1, 1) for index in _unravel(indexer.base, shape)]
    in_buffer: list[AxisSelection] = [slice(0, 1, 1)] * len(shape)
    buffer_shape, box_axes = [1] * len(shape), []
    for dim in indexer.dims:
        items = _along_axes(dim, indexer.base, shape)
        for axis, item in items.items():
            selected[axis], in_buffer[axis] = item, 0
        box_axes.append(min(items))
        in_buffer[box_axes[-1]], buffer_shape[box_axes[-1]] = slice(0, dim.count, 1), dim.count
    whole = ChunkProjection(
        (0,) * len(shape), shape, shape, tuple(selected), tuple(in_buffer), size=math.prod(buffer_shape)
    )
    strides = [math.prod(buffer_shape[axis + 1 :]) for axis in box_axes]
    view = view_of_result(
        indexer,
        [dim.count for dim in indexer.dims],
        strides,
        indexer.points.gather if indexer.points is not None else None,
    )
    return ChunkPlan(indexer.shape, view, indexer.is_scalar, tuple(buffer_shape), whole, chunks)


def _along_axes(dim: Dim, base: int, shape: tuple[int, ...]) -> dict[int, AxisSelection]:
    """What the offsets of a dim are along the axes of the array: a slice of one, or points of one or more."""
    if dim.offsets is None:
        moved = {axis: step for axis, step in enumerate(_unravel(dim.step, shape)) if step}
        axis, step = next(iter(moved.items()))
        first = _unravel(base, shape)[axis]
        stop = first + dim.span // math.prod(shape[axis + 1 :]) + 1
        if len(moved) == 1 and stop <= shape[axis]:
            return {axis: slice(first, stop, step)}
    # The base stands for all other axes: there, the same is taken for each point.
    rest = dim.positions(base)
    items: dict[int, AxisSelection] = {}
    for axis in range(len(shape)):
        stride = math.prod(shape[axis + 1 :])
        index = rest // stride
        if (index != index[0]).any():
            items[axis] = index
        rest = rest - index * stride
        if (rest == rest[0]).all():
            break
    return items


def _unravel(position: int, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Indices of the element at a position of the flat array."""
    indices = []
    for extent in reversed(shape):
        position, index = divmod(position, extent)
        indices.append(index)
    return tuple(reversed(indices))
