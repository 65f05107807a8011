"""An array cut into regions: of consecutive elements, of whole units, and near those that somebody else cut. No I/O."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import product

__all__ = [
    "AxisLengths",
    "consecutive_regions",
    "cut_axes",
    "divide_evenly",
    "grow_shape",
    "join_rows",
    "join_units",
]

#: Of a grid of regions: along each axis, the extents of one region after the other.
AxisLengths = tuple[tuple[int, ...], ...]


def consecutive_regions(shape: Sequence[int], max_elements: int) -> Iterator[tuple[slice, ...]]:
    """Cut an array into regions whose elements follow each other in C order, from each region to the next one as well.

    Parameters
    ----------
    max_elements
        Of a region, at least 1.

    Yields
    ------
    tuple of slice
        One for each axis: none has an open end.

    Examples
    --------
    >>> for region in consecutive_regions((2, 3), 2):
    ...     print(region)
    (slice(0, 1, None), slice(0, 2, None))
    (slice(0, 1, None), slice(2, 3, None))
    (slice(1, 2, None), slice(0, 2, None))
    (slice(1, 2, None), slice(2, 3, None))
    >>> list(consecutive_regions((5,), 3))
    [(slice(0, 3, None),), (slice(3, 5, None),)]
    """
    if 0 in shape:
        return
    if not shape:
        yield ()
        return
    cut = next(axis for axis in range(len(shape)) if math.prod(shape[axis + 1 :]) <= max_elements)
    step = max_elements // math.prod(shape[cut + 1 :])
    whole = tuple(slice(0, extent) for extent in shape[cut + 1 :])
    for outer in product(*map(range, shape[:cut])):
        before = tuple(slice(index, index + 1) for index in outer)
        for first in range(0, shape[cut], step):
            yield (*before, slice(first, min(first + step, shape[cut])), *whole)


def grow_shape(shape: Sequence[int], unit: Sequence[int], room: int) -> tuple[int, ...]:
    """Extents of a region of whole units, at most `room` of them, that are neighbours in C order.

    From the last axis on, as many axes as there is room for are whole, the axis before them is cut evenly, and of
    those before it there is one unit. Nothing depends on the extent of axis 0.

    >>> grow_shape((60000, 28, 28), (334, 28, 28), 8)
    (2672, 28, 28)
    >>> grow_shape((10, 3, 1000, 1000), (1, 1, 250, 1000), 8)
    (1, 2, 1000, 1000)
    """
    extents = list(unit)
    for axis in range(len(shape) - 1, 0, -1):
        unit_count = max(-(-shape[axis] // unit[axis]), 1)
        part = divide_evenly(unit_count, room)
        extents[axis] *= part
        if part < unit_count:
            return tuple(extents)
        room //= part
    return (extents[0] * max(room, 1), *extents[1:]) if extents else ()


def divide_evenly(extent: int, room: int) -> int:
    """The extent cut into as few equal parts as leave none larger than `room`.

    >>> divide_evenly(10, 4)
    4
    >>> divide_evenly(9, 4)
    3
    """
    part_count = -(-extent // max(room, 1))
    return -(-extent // part_count)


def cut_axes(shape: Sequence[int], extents: Sequence[int]) -> AxisLengths:
    """The grid of regions of these extents, the last ones being smaller.

    >>> cut_axes((5, 4), (2, 4))
    ((2, 2, 1), (4,))
    """
    return tuple(
        tuple(min(step, extent - first) for first in range(0, extent, step)) or (0,)
        for extent, step in zip(shape, extents, strict=True)
    )


def join_rows(sizes: AxisLengths, least: int, most: int) -> AxisLengths:
    """A grid near another one, each region of which is of consecutive elements in C order.

    Parameters
    ----------
    sizes
        The other one.
    least, most
        Elements of a region: smaller ones are joined with their neighbours, where that makes none that is too large.

    Examples
    --------
    >>> join_rows(((2, 2, 2), (5, 5)), 30, 60)
    ((4, 2), (10,))
    >>> join_rows(((2, 1), (5, 5)), 2, 4)
    ((1, 1, 1), (3, 2, 3, 2))
    """
    if not sizes:
        return ()
    shape = [sum(axis) for axis in sizes]
    cut = next(axis for axis in range(len(shape)) if math.prod(shape[axis + 1 :]) <= most)
    behind = max(math.prod(shape[cut + 1 :]), 1)
    return (
        *((1,) * extent or (0,) for extent in shape[:cut]),
        _join(sizes[cut], -(-least // behind), max(most // behind, 1)),
        *((extent,) for extent in shape[cut + 1 :]),
    )


def join_units(sizes: AxisLengths, unit: Sequence[int], most: int) -> AxisLengths:
    """A grid near another one, each region of which is of whole units.

    Parameters
    ----------
    most
        Elements of a region, unless a single unit has more.

    Examples
    --------
    >>> join_units(((7, 7), (10,)), (3, 5), 1000)
    ((6, 6, 2), (10,))
    """
    room = max(most // max(math.prod(unit), 1), 1)
    extents = list(unit)
    for axis in range(len(unit) - 1, -1, -1):
        part = min(max(max(sizes[axis]) // unit[axis], 1), room)
        extents[axis] *= part
        room //= part
    return cut_axes([sum(axis) for axis in sizes], extents)


def _join(sizes: Sequence[int], least: int, most: int) -> tuple[int, ...]:
    """Extents along one axis, those below `least` joined and those above `most` cut evenly."""
    joined: list[int] = []
    run = 0
    for size in (*sizes, 0):
        # The 0 behind the last one ends what is left.
        if run and (run >= least or run + size > most or not size):
            parts = -(-run // most)
            joined += [run // parts + (part < run % parts) for part in range(parts)]
            run = 0
        run += size
    return tuple(joined) or (0,)
