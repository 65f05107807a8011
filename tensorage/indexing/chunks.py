"""Plans for selections of an array that is cut into chunks: which chunks to touch, and which elements of each. No I/O.

The question answered here: given the shape of an array, a selection and the shape of a chunk, what does the
selection take of each chunk, and where in the result does that go?

1. `selection` brings the selection into its normal form, the indexer. The selected elements, each of them once, are
   the *buffer*: an array with the axes of the stored one. Along an axis that a slice selects, the buffer has the
   length of the slice. Along an axis that an integer selects, it has length 1. Index arrays and masks are points: all
   of them are along the first of their axes, in C order of the stored array, and their other axes have length 1.
2. The grid cuts the buffer into projections. Along an axis that a slice selects, each chunk takes a slice. Points are
   sorted by chunk, once. No loop is over single elements.
3. `BufferPlan` takes the result out of the buffer, or puts assigned values into it.

A projection can be split by a finer grid in the same way, as a shard into its chunks. The array as a whole is the
projection of a grid of one chunk.
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
from tensorage.indexing.selection import Dim, Positions, Selection, parse

__all__ = ["ChunkPlan", "ChunkProjection", "plan_chunks"]


@dataclass(frozen=True, slots=True)
class ChunkProjection:
    """Elements that a selection takes of one chunk, and their places in the buffer.

    Parameters
    ----------
    coords
        Position of the chunk in the grid.
    chunks
        Shape of every chunk.
    shape
        Shape of the chunk as far as the array extends.
    chunk_selection
        Index of the chunk: one item for each axis.
    buffer_selection
        Index of the buffer: one item for each axis, and the same shape as `chunk_selection` gives.
    size
        Number of elements.
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

    def parts(self, extent: int) -> Positions:
        """Return the numbers of the parts of `extent` indices along the first axis that are touched, ascending.

        Examples
        --------
        >>> (chunk,) = plan_chunks((100, 10), np.s_[[3, 4, 31], 5], (100, 10)).projections()
        >>> chunk.parts(10).tolist()
        [0, 3]
        """
        if not self.chunk_selection:
            return np.zeros(1, np.int64)
        along = self.chunk_selection[0]
        assert not isinstance(along, int)
        if isinstance(along, slice) and along.step <= extent:
            return np.arange(along.start // extent, (along.stop - 1) // extent + 1)
        indices = np.arange(along.start, along.stop, along.step) if isinstance(along, slice) else along
        numbers: Positions = np.unique(indices // extent)
        return numbers

    def take(self, chunk: npt.NDArray[Any], buffer: npt.NDArray[Any]) -> None:
        """Copy the elements from the chunk to the buffer.

        Parameters
        ----------
        chunk
            Array of the full chunk shape.
        buffer
            Array of the shape `ChunkPlan.buffer_shape`.
        """
        buffer[self.buffer_selection] = chunk[self.chunk_selection]

    def put(self, buffer: npt.NDArray[Any], chunk: npt.NDArray[Any]) -> None:
        """Copy the elements from the buffer to the chunk: the reverse of `take`."""
        chunk[self.chunk_selection] = buffer[self.buffer_selection]

    def target(self, buffer: npt.NDArray[Any]) -> npt.NDArray[Any] | None:
        """Return the chunk's place in the buffer, if a chunk can be decoded right there.

        Returns
        -------
        numpy.ndarray or None
            A C-contiguous view of the buffer, of the full chunk shape. None if not every element of a full chunk is
            taken, or if the elements are not one after another in the buffer.
        """
        # At the end of the array, a chunk is larger than the part of it that the array has.
        if self.size != math.prod(self.chunks):
            return None
        # Indexing by an array makes a copy, which is no place in the buffer.
        if any(isinstance(item, np.ndarray) for item in self.buffer_selection):
            return None
        # Without axes, indexing gives a scalar. The ellipsis makes it a view.
        place = buffer[(*self.buffer_selection, ...)]
        return place.reshape(self.chunks) if place.flags.c_contiguous else None

    def split(self, chunks: Sequence[int]) -> Iterator[ChunkProjection]:
        """Split this projection by a finer grid that begins where this chunk does.

        Parameters
        ----------
        chunks
            Shape of a chunk of the finer grid.

        Yields
        ------
        ChunkProjection
            One for each chunk that is touched, in C order of the finer grid. The buffer stays the same.

        Examples
        --------
        >>> (shard,) = plan_chunks((100, 100), np.s_[25, 14:], (20, 100)).projections()
        >>> shard.coords, shard.shape
        ((1, 0), (20, 100))
        >>> [(chunk.coords, chunk.size) for chunk in shard.split((10, 50))]
        [((0, 0), 36), ((0, 1), 50)]
        """
        chunks = tuple(chunks)
        for along_axes in project_axes(self.chunk_selection, self.buffer_selection, chunks):
            coords = tuple(projection.coord for projection in along_axes)
            ends = zip(chunks, coords, self.shape, strict=True)
            yield ChunkProjection(
                coords,
                chunks,
                # The last chunk along an axis may reach behind the end of this one.
                tuple(min(extent, end - coord * extent) for extent, coord, end in ends),
                tuple(projection.in_chunk for projection in along_axes),
                tuple(projection.in_buffer for projection in along_axes),
                math.prod(projection.size for projection in along_axes),
            )


@dataclass(frozen=True, slots=True)
class ChunkPlan(BufferPlan):
    """Projections of a selection, and the way from their buffer to the result.

    Parameters
    ----------
    buffer_shape
        Shape of the buffer that the projections share. It has as many axes as the array, unless it is empty.
    whole
        Projection of the selection on the array as a whole. None if the selection takes nothing.
    chunks
        Shape of a chunk.
    """

    buffer_shape: tuple[int, ...]
    whole: ChunkProjection | None
    chunks: tuple[int, ...]

    @property
    def size(self) -> int:
        """Elements of the buffer: the selected ones, each once."""
        return math.prod(self.buffer_shape)

    def projections(self) -> Iterator[ChunkProjection]:
        """Return the projection of each chunk that is touched, in C order of the grid."""
        return iter(()) if self.whole is None else self.whole.split(self.chunks)


def plan_chunks(shape: Sequence[int], selection: Selection, chunks: Sequence[int]) -> ChunkPlan:
    """Plan what to take of which chunks for ``array[selection]``.

    Parameters
    ----------
    shape
        Shape of the stored array.
    chunks
        Shape of a chunk. The first chunk begins where the array does. The array may end within the last ones.

    Raises
    ------
    IndexError, OverflowError, TypeError, ValueError
        If numpy raises the same for the selection.

    Examples
    --------
    >>> plan = plan_chunks((60000, 28, 28), np.s_[300:400, ::-1], (334, 28, 28))
    >>> plan.buffer_shape, plan.is_whole_buffer
    ((100, 28, 28), False)
    >>> for projection in plan.projections():
    ...     print(projection.coords, projection.size, projection.chunk_selection[0], projection.buffer_selection[0])
    (0, 0, 0) 26656 slice(300, 334, 1) slice(0, 34, 1)
    (1, 0, 0) 51744 slice(0, 66, 1) slice(34, 100, 1)
    """
    shape, chunks = tuple(shape), tuple(chunks)
    indexer = parse(shape, selection)
    if 0 in indexer.shape:
        return ChunkPlan(indexer.shape, empty_view(indexer), False, indexer.shape, None, chunks)
    # An axis without a dim has one index, that of the base.
    selected: list[AxisSelection] = [slice(index, index + 1, 1) for index in _unravel(indexer.base, shape)]
    in_buffer: list[AxisSelection] = [slice(0, 1, 1)] * len(shape)
    buffer_shape, buffer_axes = [1] * len(shape), []
    for dim in indexer.dims:
        items = _split_dim(dim, indexer.base, shape)
        # Points take several axes of the array but only the first of them in the buffer.
        for axis, item in items.items():
            selected[axis], in_buffer[axis] = item, 0
        buffer_axes.append(min(items))
        in_buffer[buffer_axes[-1]], buffer_shape[buffer_axes[-1]] = slice(0, dim.count, 1), dim.count
    whole = ChunkProjection(
        (0,) * len(shape), shape, shape, tuple(selected), tuple(in_buffer), size=math.prod(buffer_shape)
    )
    strides = [math.prod(buffer_shape[axis + 1 :]) for axis in buffer_axes]
    view = view_of_result(
        indexer,
        [dim.count for dim in indexer.dims],
        strides,
        indexer.points.gather if indexer.points is not None else None,
    )
    return ChunkPlan(indexer.shape, view, indexer.is_scalar, tuple(buffer_shape), whole, chunks)


def _split_dim(dim: Dim, base: int, shape: tuple[int, ...]) -> dict[int, AxisSelection]:
    """Express the offsets of a dim along the axes of the array: as a slice of one axis, or as points of one or more."""
    if dim.offsets is None:
        moved = {axis: step for axis, step in enumerate(_unravel(dim.step, shape)) if step}
        axis, step = next(iter(moved.items()))
        first = _unravel(base, shape)[axis]
        stop = first + dim.reach // math.prod(shape[axis + 1 :]) + 1
        # A step that carries into other axes, as that of a diagonal does, is no slice of one axis.
        if len(moved) == 1 and stop <= shape[axis]:
            return {axis: slice(first, stop, step)}
    # Along all other axes each point has the index of the base.
    rest = dim.positions(base)
    items: dict[int, AxisSelection] = {}
    for axis in range(len(shape)):
        stride = math.prod(shape[axis + 1 :])
        index = rest // stride
        if (index != index[0]).any():
            items[axis] = index
        rest = rest - index * stride
        # All points agree from here on, so the remaining axes keep the index of the base.
        if (rest == rest[0]).all():
            break
    return items


def _unravel(position: int, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the indices of the element at a position of the flat array."""
    indices = []
    for extent in reversed(shape):
        position, index = divmod(position, extent)
        indices.append(index)
    return tuple(reversed(indices))
