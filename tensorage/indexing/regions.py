"""An array cut into regions: of consecutive elements, of whole chunks, or near the regions of another cut. No I/O."""

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
    "join_chunks",
    "join_rows",
]

#: A grid of regions: along each axis, the lengths of one region after the other.
AxisLengths = tuple[tuple[int, ...], ...]


def consecutive_regions(shape: Sequence[int], max_elements: int) -> Iterator[tuple[slice, ...]]:
    """Cut an array into regions of consecutive elements in C order. Each region begins where the one before ends.

    Parameters
    ----------
    max_elements
        Most elements of a region, at least 1.

    Yields
    ------
    tuple of slice
        One slice for each axis, without open ends.

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
    # The axis to cut is the first one behind which everything fits a region.
    cut = next(axis for axis in range(len(shape)) if math.prod(shape[axis + 1 :]) <= max_elements)
    step = max_elements // math.prod(shape[cut + 1 :])
    whole = tuple(slice(0, extent) for extent in shape[cut + 1 :])
    for outer in product(*map(range, shape[:cut])):
        before = tuple(slice(index, index + 1) for index in outer)
        for first in range(0, shape[cut], step):
            yield (*before, slice(first, min(first + step, shape[cut])), *whole)


def grow_shape(shape: Sequence[int], chunks: Sequence[int], room: int) -> tuple[int, ...]:
    """Return the shape of a region of at most `room` whole chunks that are neighbours in C order.

    From the last axis on, the region has as many whole axes as there is room for. The axis before them is cut evenly.
    Along each axis before that one the region is one chunk long. Nothing depends on the extent of axis 0.

    >>> grow_shape((60000, 28, 28), (334, 28, 28), 8)
    (2672, 28, 28)
    >>> grow_shape((10, 3, 1000, 1000), (1, 1, 250, 1000), 8)
    (1, 2, 1000, 1000)
    """
    lengths = list(chunks)
    # Axis 0 is left out: the shape must stay the same when rows are appended.
    for axis in range(len(shape) - 1, 0, -1):
        chunk_count = max(-(-shape[axis] // chunks[axis]), 1)
        part = divide_evenly(chunk_count, room)
        lengths[axis] *= part
        if part < chunk_count:
            return tuple(lengths)
        room //= part
    return (lengths[0] * max(room, 1), *lengths[1:]) if lengths else ()


def divide_evenly(extent: int, room: int) -> int:
    """Return the length of a part, if an extent is cut into the fewest equal parts that are at most `room` long.

    >>> divide_evenly(10, 4)
    4
    >>> divide_evenly(9, 4)
    3
    """
    part_count = -(-extent // max(room, 1))
    return -(-extent // part_count)


def cut_axes(shape: Sequence[int], region_shape: Sequence[int]) -> AxisLengths:
    """Cut an array into a grid of regions of one shape. The last regions may be smaller.

    >>> cut_axes((5, 4), (2, 4))
    ((2, 2, 1), (4,))
    """
    return tuple(
        # An empty axis is one region of no length, as dask has it.
        tuple(min(step, extent - first) for first in range(0, extent, step)) or (0,)
        for extent, step in zip(shape, region_shape, strict=True)
    )


def join_rows(sizes: AxisLengths, least: int, most: int) -> AxisLengths:
    """Make a grid near another one, each region of which is consecutive elements in C order.

    Parameters
    ----------
    sizes
        The other grid.
    least, most
        Elements of a region. A region of fewer than `least` is joined with its neighbour, unless both together
        have more than `most`.

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
        _join_lengths(sizes[cut], -(-least // behind), max(most // behind, 1)),
        *((extent,) for extent in shape[cut + 1 :]),
    )


def join_chunks(sizes: AxisLengths, chunks: Sequence[int], most: int) -> AxisLengths:
    """Make a grid near another one, each region of which is whole chunks.

    Parameters
    ----------
    chunks
        Shape of a chunk.
    most
        Most elements of a region, unless a single chunk has more.

    Examples
    --------
    >>> join_chunks(((7, 7), (10,)), (3, 5), 1000)
    ((6, 6, 2), (10,))
    """
    # Inner axes come first, so that the elements of a region are near each other in C order.
    room = max(most // max(math.prod(chunks), 1), 1)
    lengths = list(chunks)
    for axis in range(len(chunks) - 1, -1, -1):
        part = min(max(max(sizes[axis]) // chunks[axis], 1), room)
        lengths[axis] *= part
        room //= part
    return cut_axes([sum(axis) for axis in sizes], lengths)


def _join_lengths(sizes: Sequence[int], least: int, most: int) -> tuple[int, ...]:
    """Join neighbouring lengths along one axis that are below `least`, and cut evenly those above `most`."""
    joined: list[int] = []
    length = 0
    for size in (*sizes, 0):
        # The 0 behind the last length flushes the rest.
        if length and (length >= least or length + size > most or not size):
            count = -(-length // most)
            joined += [length // count + (part < length % count) for part in range(count)]
            length = 0
        length += size
    return tuple(joined) or (0,)
