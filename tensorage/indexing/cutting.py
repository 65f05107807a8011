"""What a selection takes along each axis, cut by a grid of chunks. No I/O.

Each axis is either a *line*, of which a slice is taken, or one along which *points* have indices. `cut` walks the
chunks that are touched, and says for each what it takes along each axis. The points are sorted by chunk once, and
nothing is done element by element: of a line that is a million chunks long, one piece is made at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import numpy as np

from tensorage.indexing.selection import Positions

__all__ = ["AxisSelection", "Piece", "cut"]

#: What is taken along an axis, ascending. A slice begins at 0 or later, ends right behind its last element and has
#: a step; an integer stands for the axes of the box that points do not need.
AxisSelection: TypeAlias = slice | Positions | int


class Piece(NamedTuple):
    """What one chunk takes along one axis."""

    coord: int
    in_chunk: AxisSelection
    in_box: AxisSelection
    #: Elements: what a chunk takes is the product over all axes.
    size: int


def cut(
    selected: Sequence[AxisSelection], in_box: Sequence[AxisSelection], chunks: Sequence[int]
) -> Iterator[tuple[Piece, ...]]:
    """What each chunk takes along each axis: in C order of the grid, each chunk once that is touched.

    Parameters
    ----------
    selected
        Along each axis: a slice, or the indices of the points.
    in_box
        Where that is along each axis of the box. All points are along the first of their axes.
    chunks
        Shape of a chunk.

    Examples
    --------
    >>> for pieces in cut([slice(3, 12, 2)], [slice(0, 5, 1)], [8]):
    ...     print(pieces)
    (Piece(coord=0, in_chunk=slice(3, 8, 2), in_box=slice(0, 3, 1), size=3),)
    (Piece(coord=1, in_chunk=slice(1, 4, 2), in_box=slice(3, 5, 1), size=2),)
    """
    lines: dict[int, _Line] = {}
    indices: dict[int, Positions] = {}
    for axis, (item, place) in enumerate(zip(selected, in_box, strict=True)):
        if isinstance(item, np.ndarray):
            indices[axis] = item
        elif isinstance(item, slice) and isinstance(place, slice):
            lines[axis] = _Line(item, place)
    points = None
    if indices:
        place = in_box[min(indices)]
        assert not isinstance(place, int)
        points = _Points.of(indices, place, chunks)
    groups = range(1) if points is None else points.groups
    for pieces, _ in _walk(0, groups, lines, points, chunks):
        yield pieces


def _walk(
    axis: int, groups: range, lines: dict[int, _Line], points: _Points | None, chunks: Sequence[int]
) -> Iterator[tuple[tuple[Piece, ...], int]]:
    """The pieces from one axis on of each chunk that has some of these groups of points; and which group it has."""
    if axis == len(chunks):
        yield (), groups.start
    elif axis in lines:
        for piece in lines[axis].pieces(chunks[axis]):
            for pieces, group in _walk(axis + 1, groups, lines, points, chunks):
                yield (piece, *pieces), group
    else:
        assert points is not None
        for branch in points.branches(axis, groups):
            for pieces, group in _walk(axis + 1, branch, lines, points, chunks):
                yield (points.piece(axis, group), *pieces), group


class _Line(NamedTuple):
    """A slice, and where it is in the box."""

    selected: slice
    in_box: slice

    def pieces(self, extent: int) -> Iterator[Piece]:
        """The slice, cut by chunks of some extent."""
        step, done = self.selected.step, 0
        count = self.in_box.stop - self.in_box.start
        while done < count:
            coord, first = divmod(self.selected.start + done * step, extent)
            size = min(-(-(extent - first) // step), count - done)
            in_chunk = slice(first, first + (size - 1) * step + 1, step)
            place = self.in_box.start + done
            yield Piece(coord, in_chunk, slice(place, place + size, 1), size)
            done += size


class _AxisPoints(NamedTuple):
    """What the points have along one of their axes."""

    #: Of each point.
    indices: Positions
    #: Of a chunk.
    extent: int
    #: Of each group's chunk.
    coords: Positions
    #: The groups whose chunk differs from that of the group before, along this axis or one before it.
    begins: Positions


@dataclass(frozen=True, slots=True)
class _Points:
    """Points, sorted by the chunk that they are in: those of one chunk are a *group*.

    Parameters
    ----------
    axes
        Along which the points have indices, ascending.
    in_box
        Where each point is along its axis of the box.
    order
        Sorts the points. Those of one chunk stay in the order that they are given in.
    bounds
        Where each group begins among the sorted points, and where the last one ends.
    """

    axes: dict[int, _AxisPoints]
    in_box: slice | Positions
    order: Positions
    bounds: Positions

    @classmethod
    def of(cls, indices: dict[int, Positions], in_box: slice | Positions, chunks: Sequence[int]) -> _Points:
        number: Positions = np.zeros(1, np.int64)
        for axis, index in indices.items():
            coord = index // chunks[axis]
            # There are no more chunks than elements: it does not overflow.
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
        return cls(axes, in_box, order, np.append(firsts, len(number)))

    @property
    def groups(self) -> range:
        """All groups."""
        return range(len(self.bounds) - 1)

    def branches(self, axis: int, groups: range) -> Iterator[range]:
        """Groups that are in the same chunk along the axes before one: cut where the chunk along this one changes."""
        begins = self.axes[axis].begins
        low, high = np.searchsorted(begins, (groups.start, groups.stop))
        firsts = begins[low:high].tolist()
        for first, after in zip(firsts, [*firsts[1:], groups.stop], strict=True):
            yield range(first, after)

    def piece(self, axis: int, group: int) -> Piece:
        """What a group's chunk takes along one of the axes."""
        first, after = self.bounds[group : group + 2].tolist()
        points = self.order[first:after]
        along = self.axes[axis]
        coord = int(along.coords[group])
        in_chunk = along.indices[points] - coord * along.extent
        if axis != min(self.axes):
            return Piece(coord, in_chunk, 0, 1)
        if len(self.axes) == 1:
            return Piece(coord, _as_slice(in_chunk), self._place(points), len(points))
        return Piece(coord, in_chunk, self._place(points), len(points))

    def _place(self, points: Positions) -> slice | Positions:
        """Where some points of one group are in the box."""
        place = self.in_box[points] if isinstance(self.in_box, np.ndarray) else points + self.in_box.start
        # With slices between index arrays, numpy brings the points before all other axes: here as in the chunk.
        is_together = max(self.axes) - min(self.axes) + 1 == len(self.axes)
        return _as_slice(place) if is_together else place


def _as_slice(indices: Positions) -> slice | Positions:
    """Ascending indices as a slice, if they follow each other."""
    first, last = int(indices[0]), int(indices[-1])
    return slice(first, last + 1, 1) if last - first == len(indices) - 1 else indices
