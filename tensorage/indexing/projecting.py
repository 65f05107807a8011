"""Projections of a selection along each axis, cut by a grid of chunks. No I/O.

Each axis is either a *line*, of which a slice is taken, or an axis along which *points* have indices. `project_axes`
walks the chunks that are touched, and yields for each chunk its projection along each axis. The points are sorted by
chunk once, and no loop is over single elements. Projections are made one at a time, also along a line that is a
million chunks long.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import numpy as np

from tensorage.indexing.selection import Positions

__all__ = ["AxisProjection", "AxisSelection", "project_axes"]

#: Indices along one axis, ascending. A slice begins at 0 or later, ends right behind its last element and has a step.
#: An integer stands for an axis of the buffer that points do not need.
AxisSelection: TypeAlias = slice | Positions | int


class AxisProjection(NamedTuple):
    """Indices that a selection takes of one chunk along one axis, and their places in the buffer."""

    coord: int
    in_chunk: AxisSelection
    in_buffer: AxisSelection
    #: Number of indices. A chunk takes as many elements as the product over all axes says.
    size: int


def project_axes(
    selected: Sequence[AxisSelection], in_buffer: Sequence[AxisSelection], chunks: Sequence[int]
) -> Iterator[tuple[AxisProjection, ...]]:
    """Yield the projections of each chunk that is touched, one for each axis, in C order of the grid.

    Parameters
    ----------
    selected
        Selected indices along each axis: a slice, or an array for points.
    in_buffer
        Places of the selected indices along each axis of the buffer. All points are along the first of their axes.
    chunks
        Shape of a chunk.

    Examples
    --------
    >>> for projections in project_axes([slice(3, 12, 2)], [slice(0, 5, 1)], [8]):
    ...     print(projections)
    (AxisProjection(coord=0, in_chunk=slice(3, 8, 2), in_buffer=slice(0, 3, 1), size=3),)
    (AxisProjection(coord=1, in_chunk=slice(1, 4, 2), in_buffer=slice(3, 5, 1), size=2),)
    """
    lines: dict[int, _Line] = {}
    indices: dict[int, Positions] = {}
    for axis, (item, place) in enumerate(zip(selected, in_buffer, strict=True)):
        if isinstance(item, np.ndarray):
            indices[axis] = item
        elif isinstance(item, slice) and isinstance(place, slice):
            lines[axis] = _Line(item, place)
    points = None
    if indices:
        place = in_buffer[min(indices)]
        assert not isinstance(place, int)
        points = _Points.sort(indices, place, chunks)
    groups = range(1) if points is None else points.groups
    for projections, _ in _walk(0, groups, lines, points, chunks):
        yield projections


def _walk(
    axis: int, groups: range, lines: dict[int, _Line], points: _Points | None, chunks: Sequence[int]
) -> Iterator[tuple[tuple[AxisProjection, ...], int]]:
    """Yield the projections of each chunk from one axis on, and the group of points that the chunk has."""
    if axis == len(chunks):
        yield (), groups.start
    elif axis in lines:
        for projection in lines[axis].projections(chunks[axis]):
            for projections, group in _walk(axis + 1, groups, lines, points, chunks):
                yield (projection, *projections), group
    else:
        assert points is not None
        for branch in points.branches(axis, groups):
            for projections, group in _walk(axis + 1, branch, lines, points, chunks):
                yield (points.projection(axis, group), *projections), group


class _Line(NamedTuple):
    """A slice, and its place in the buffer."""

    selected: slice
    in_buffer: slice

    def projections(self, extent: int) -> Iterator[AxisProjection]:
        """Cut the slice by chunks of some extent."""
        step, done = self.selected.step, 0
        count = self.in_buffer.stop - self.in_buffer.start
        while done < count:
            coord, first = divmod(self.selected.start + done * step, extent)
            size = min(-(-(extent - first) // step), count - done)
            in_chunk = slice(first, first + (size - 1) * step + 1, step)
            place = self.in_buffer.start + done
            yield AxisProjection(coord, in_chunk, slice(place, place + size, 1), size)
            done += size


class _AxisPoints(NamedTuple):
    """Indices and chunks of the points along one of their axes."""

    #: Index of each point.
    indices: Positions
    #: Extent of a chunk.
    extent: int
    #: Coordinate of each group's chunk.
    coords: Positions
    #: Groups that are in another chunk than the group before, along this axis or one before it.
    begins: Positions


@dataclass(frozen=True, slots=True)
class _Points:
    """Points, sorted by their chunk. The points of one chunk are a *group*.

    Parameters
    ----------
    axes
        Axes along which the points have indices, ascending.
    in_buffer
        Place of each point along the points' axis of the buffer.
    order
        Permutation that sorts the points. The points of one chunk keep the order in which they are given.
    bounds
        Beginning of each group among the sorted points, and the end of the last one.
    """

    axes: dict[int, _AxisPoints]
    in_buffer: slice | Positions
    order: Positions
    bounds: Positions

    @classmethod
    def sort(
        cls, indices: dict[int, Positions], in_buffer: slice | Positions, chunks: Sequence[int]
    ) -> _Points:
        number: Positions = np.zeros(1, np.int64)
        for axis, index in indices.items():
            coord = index // chunks[axis]
            # There are no more chunks than elements, so this does not overflow.
            number = number * (int(coord.max()) + 1) + coord
        order = number.argsort(kind="stable")
        number = number[order]
        firsts = np.flatnonzero(np.concatenate(([True], number[1:] != number[:-1])))
        axes: dict[int, _AxisPoints] = {}
        is_new = np.arange(len(firsts)) == 0
        for axis, index in indices.items():
            coords = index[order[firsts]] // chunks[axis]
            is_new[1:] |= coords[1:] != coords[:-1]
            axes[axis] = _AxisPoints(index, chunks[axis], coords, np.flatnonzero(is_new))
        return cls(axes, in_buffer, order, np.append(firsts, len(number)))

    @property
    def groups(self) -> range:
        """Numbers of all groups."""
        return range(len(self.bounds) - 1)

    def branches(self, axis: int, groups: range) -> Iterator[range]:
        """Cut groups, which share their chunk along all axes before `axis`, where their chunk along `axis` changes."""
        begins = self.axes[axis].begins
        low, high = np.searchsorted(begins, (groups.start, groups.stop))
        firsts = begins[low:high].tolist()
        for first, after in zip(firsts, [*firsts[1:], groups.stop], strict=True):
            yield range(first, after)

    def projection(self, axis: int, group: int) -> AxisProjection:
        """Return the projection of a group's chunk along one of the axes."""
        first, after = self.bounds[group : group + 2].tolist()
        points = self.order[first:after]
        along = self.axes[axis]
        coord = int(along.coords[group])
        in_chunk = along.indices[points] - coord * along.extent
        if axis != min(self.axes):
            return AxisProjection(coord, in_chunk, 0, 1)
        if len(self.axes) == 1:
            return AxisProjection(coord, _to_slice(in_chunk), self._buffer_places(points), len(points))
        return AxisProjection(coord, in_chunk, self._buffer_places(points), len(points))

    def _buffer_places(self, points: Positions) -> slice | Positions:
        """Return the places in the buffer of some points of one group."""
        place = (
            self.in_buffer[points]
            if isinstance(self.in_buffer, np.ndarray)
            else points + self.in_buffer.start
        )
        # With slices between index arrays, numpy moves the points before all other axes. The index of the chunk has
        # arrays there, so the index of the buffer needs one too.
        is_together = max(self.axes) - min(self.axes) + 1 == len(self.axes)
        return _to_slice(place) if is_together else place


def _to_slice(indices: Positions) -> slice | Positions:
    """Convert ascending indices to a slice, if they follow each other."""
    first, last = int(indices[0]), int(indices[-1])
    return slice(first, last + 1, 1) if last - first == len(indices) - 1 else indices
