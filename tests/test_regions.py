"""Regions of consecutive elements, next to numpy, and grids of regions near other grids."""

from __future__ import annotations

import math

import hypothesis.strategies as st
import numpy as np
from hypothesis import example, given

from tensorage.indexing.regions import AxisLengths, consecutive_regions, join_chunks, join_rows

SHAPES = st.lists(st.integers(0, 7), max_size=4).map(tuple)


@given(SHAPES, st.integers(1, 100))
@example((1, 1000, 1000), 300)
@example((), 1)
def test_regions_are_the_array_in_order(shape: tuple[int, ...], max_elements: int) -> None:
    array = np.arange(math.prod(shape)).reshape(shape)
    parts = [array[region] for region in consecutive_regions(shape, max_elements)]
    assert all(0 < part.size <= max_elements for part in parts)
    assert np.array_equal(
        np.concatenate([np.empty(0, int), *(part.reshape(-1) for part in parts)]), array.reshape(-1)
    )


def test_regions_are_as_large_as_they_may_be() -> None:
    assert [region[0] for region in consecutive_regions((10, 4, 5), 70)] == [
        slice(0, 3),
        slice(3, 6),
        slice(6, 9),
        slice(9, 10),
    ]
    assert len(list(consecutive_regions((1, 1000, 1000), 2**18))) == 4


#: Extents of regions along each axis.
sizes_of_axes = st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=6).map(tuple), max_size=4).map(
    tuple
)


@given(sizes_of_axes, st.integers(1, 50), st.integers(1, 100))
def test_regions_of_rows_are_of_consecutive_elements(sizes: AxisLengths, least: int, most: int) -> None:
    grid = join_rows(sizes, min(least, most), most)
    shape = [sum(axis) for axis in sizes]
    assert [sum(axis) for axis in grid] == shape
    if shape and math.prod(shape):
        assert math.prod(max(axis) for axis in grid) <= most
        cut = next((axis for axis in range(len(shape)) if max(grid[axis]) > 1), len(shape) - 1)
        assert all(len(axis) == 1 for axis in grid[cut + 1 :])


@given(sizes_of_axes.filter(len), st.data(), st.integers(1, 200))
def test_regions_of_units_begin_where_units_do(sizes: AxisLengths, data: st.DataObject, most: int) -> None:
    unit = data.draw(st.tuples(*(st.integers(1, 5) for _ in sizes)))
    grid = join_chunks(sizes, unit, most)
    assert [sum(axis) for axis in grid] == [sum(axis) for axis in sizes]
    assert all(size % step == 0 for axis, step in zip(grid, unit, strict=True) for size in axis[:-1])
    assert math.prod(max(axis) for axis in grid) <= max(most, math.prod(unit))
