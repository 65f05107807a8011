"""Grids of tiles, against numpy."""

from __future__ import annotations

import math
from itertools import chain, pairwise
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis.extra import numpy as hnp
from selections import selections

from tensorage.cache.file_format import PAGE_BYTES, RECORD, FileFormat
from tensorage.indexing.chunks import plan_chunks
from tensorage.indexing.tiles import TILE_BYTES, TileGrid, find_number_runs, row_tiles
from tensorage.types import Dataset

SHAPES = st.one_of(
    hnp.array_shapes(min_dims=0, max_dims=4, max_side=6), hnp.array_shapes(max_dims=2, max_side=40)
)

settings.register_profile("tiles", deadline=None, derandomize=True, database=None)


@st.composite
def grids(draw: st.DrawFn) -> TileGrid:
    shape = draw(SHAPES)
    return TileGrid(shape, tuple(draw(st.integers(1, extent + 2)) for extent in shape))


def tiles_of(grid: TileGrid) -> np.ndarray[Any, Any]:
    """The number of the tile that each element of the array is in."""
    tiles = np.full(grid.shape, -1)
    for number in range(grid.count):
        assert (tiles[grid.region(number)] == -1).all()
        tiles[grid.region(number)] = number
    return tiles


@settings(settings.get_profile("tiles"))
@given(grids())
def test_tiles_follow_each_other_in_a_file(grid: TileGrid) -> None:
    numbers = np.arange(grid.count)
    starts, lengths = grid.starts(numbers), grid.lengths(numbers)
    assert starts.tolist() == [0, *np.cumsum(lengths)[:-1]]
    assert lengths.sum() == grid.size
    assert lengths.tolist() == [math.prod(grid.shape_in_file(number)) for number in range(grid.count)]
    assert all(grid.number_of(grid.coords_of(number)) == number for number in range(grid.count))
    assert (tiles_of(grid) >= 0).all()


@settings(settings.get_profile("tiles"))
@given(grids())
def test_a_file_of_a_flat_grid_is_the_array(grid: TileGrid) -> None:
    order = np.arange(math.prod(grid.shape)).reshape(grid.shape)
    are_consecutive = True
    for number in range(grid.count):
        inside = order[grid.region(number)].reshape(-1)
        are_consecutive &= inside[-1] - inside[0] == len(inside) - 1
        if grid.is_flat:
            start = int(grid.starts(np.array([number]))[0])
            assert inside.tolist() == list(range(start, start + len(inside)))
    if grid.is_flat:
        assert are_consecutive


@settings(settings.get_profile("tiles"), max_examples=400)
@given(st.data(), grids())
def test_a_selection_needs_the_tiles_of_its_elements(data: st.DataObject, grid: TileGrid) -> None:
    _, selection = data.draw(selections(st.just(grid.shape), wrong=False))
    tiles = tiles_of(grid)
    try:
        expected = np.unique(tiles[selection])
    except (IndexError, ValueError):
        return
    numbers = grid.numbers(plan_chunks(grid.shape, selection, grid.chunks))
    assert numbers.tolist() == expected.tolist()


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        ((), "f8"), ((5,), "u1"), ((10**7,), "f4"), ((60000, 28, 28), "f4"), ((100, 224, 224, 3), "u1"),
        ((2, 3, 10**6), "f8"), ((3, 1, 1), "f8"), ((1, 1, 5000, 7), "c16"), ((50, 1, 1025), "f4"),
    ],
)  # fmt: skip
def test_tiles_of_rows_are_consecutive_and_small(shape: tuple[int, ...], dtype: str) -> None:
    grid = row_tiles(shape, np.dtype(dtype))
    assert grid.is_flat
    assert grid.full * np.dtype(dtype).itemsize <= TILE_BYTES
    # None of them is much smaller than it has to be, and a small row is in one.
    row = math.prod(shape[1:]) * np.dtype(dtype).itemsize
    assert grid.rows == (0 if row > TILE_BYTES or not shape else min(TILE_BYTES // row, shape[0]))


def test_tiles_of_very_large_arrays_are_larger() -> None:
    grid = row_tiles((10**9, 1024), np.dtype("f4"))
    assert grid.full * 4 == 64 * 1024


@settings(settings.get_profile("tiles"))
@given(st.sets(st.integers(0, 30), min_size=1).map(sorted))
def test_runs_are_what_follows_each_other(numbers: list[int]) -> None:
    runs = find_number_runs(np.array(numbers))
    joined = [
        list(range(numbers[first], numbers[last] + 1))
        for first, last in zip(runs.first, runs.last, strict=True)
    ]
    assert list(chain.from_iterable(joined)) == numbers
    assert all(before[-1] + 1 < after[0] for before, after in pairwise(joined))


@settings(settings.get_profile("tiles"))
@given(st.data(), st.sampled_from([(40, 300), (7, 1500), (3, 40, 200)]), st.booleans())
def test_growth_is_the_pages_that_are_touched(
    data: st.DataObject, shape: tuple[int, ...], is_flat: bool
) -> None:
    grid = row_tiles(shape, np.dtype("f8")) if is_flat else TileGrid(shape, (2,) * len(shape))
    dataset = Dataset(1, "key", shape, np.dtype("f8"), 1000)
    layout = FileFormat("https://example.com", dataset, grid)
    numbers = np.array(sorted(data.draw(st.sets(st.integers(0, grid.count - 1), min_size=1, max_size=50))))
    pages = set()
    for start, length in zip(grid.starts(numbers), grid.lengths(numbers), strict=True):
        begin = layout.elements_at + start * 8
        pages |= set(range(begin // PAGE_BYTES, (begin + length * 8 - 1) // PAGE_BYTES + 1))
    pages |= {(layout.index_at + number * RECORD.itemsize) // PAGE_BYTES for number in numbers.tolist()}
    assert layout.max_growth(numbers) == PAGE_BYTES * len(pages)


def test_every_version_has_a_file_of_its_own() -> None:
    from dataclasses import replace
    from datetime import UTC, datetime

    one = Dataset(1, "key", (4, 4), np.dtype("f8"), 16, user_id="me", created_at=datetime.now(UTC))
    grid = row_tiles(one.shape, one.dtype)
    others = [
        replace(one, id=2), replace(one, version=2), replace(one, key="other"), replace(one, user_id="you"),
        replace(one, created_at=datetime(2026, 1, 1, tzinfo=UTC)), replace(one, dtype=np.dtype("i8")),
    ]  # fmt: skip
    layouts = [FileFormat("https://example.com", dataset, grid) for dataset in [one, *others]]
    layouts.append(FileFormat("https://example.org", one, grid))
    layouts.append(FileFormat("https://example.com", one, TileGrid(one.shape, (2, 2))))
    assert len({layout.name for layout in layouts}) == len(layouts)
    # Versions of one array can be told from other arrays.
    arrays = [layout.name.partition("-")[0] for layout in layouts]
    assert [array == arrays[0] for array in arrays] == [
        True, True, True, False, False, True, True, False, True,
    ]  # fmt: skip
