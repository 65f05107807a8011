"""A cached array gives for any index what numpy's gives for it, whatever is on the disk already."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cache_folder
import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from selections import selections

from tensorage import InvalidInputError, Tensor, TensorStore
from tensorage.indexing import tiles

Array = np.ndarray[Any, Any]

_RANDOM = np.random.default_rng(0)

#: Shapes, and chunks of Storage: one tile and many, rows and parts of rows, no elements, no axes.
ARRAYS = [
    ((), "f8", ()), ((0,), "i4", (1,)), ((9,), ">i2", (4,)), ((40,), "c16", (7,)), ((5, 6), "?", (2, 6)),
    ((7, 11), "f4", (1, 4)), ((4, 25), "u8", (3, 10)), ((3, 0, 2), "f2", (1, 1, 1)), ((6, 3, 5), "M8[s]", (2, 2, 2)),
    ((9, 2, 3, 4), "c8", (9, 1, 3, 2)), ((100, 6), "i4", (10, 6)), ((3, 1, 7), "f4", (1, 1, 3)),
]  # fmt: skip


@pytest.fixture
def _small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make tiles so small that small arrays are made of many."""
    monkeypatch.setattr(tiles, "TILE_BYTES", 32)


def stored(store: TensorStore, number: int) -> tuple[Array, Tensor]:
    shape, dtype, chunks = ARRAYS[number]
    array = _RANDOM.integers(0, 120, shape).astype(dtype)
    tensor = store.write(f"array_{number}", array, chunks=chunks if store.engine == "storage" else None)
    return array.astype(array.dtype.newbyteorder("<")), tensor


@pytest.mark.usefixtures("_small_tiles")
def test_any_index_gives_what_numpy_gives(store: TensorStore, folder: Path) -> None:
    arrays = [stored(store, number) for number in range(len(ARRAYS))]
    ways = [
        # Limits that keep everything, nothing, or a few arrays. From the second example on, more and more is there.
        (array, tensor.cached(folder / str(max_bytes), max_bytes=max_bytes, check_every_s=1000))
        for array, tensor in arrays
        for max_bytes in (None, 0, 120_000)
    ]

    @settings(
        max_examples=250 if store.engine == "database" else 80,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.data(), st.sampled_from(ways))
    def compare(data: st.DataObject, one: tuple[Array, Tensor]) -> None:
        array, handle = one
        _, index = data.draw(selections(st.just(array.shape)), label="index")
        try:
            expected = array[index]
        except (IndexError, TypeError, ValueError, OverflowError) as error:
            with pytest.raises(type(error)):
                handle[index]
            return
        result = handle[index]
        assert type(result) is type(expected)
        np.testing.assert_array_equal(result, expected, strict=True)
        if isinstance(result, np.ndarray):
            # It is the caller's own: what is written to it is nobody else's.
            assert result.flags.writeable
            result[...] = 0
            out = np.empty(expected.shape, expected.dtype)
            assert handle.read(index, out=out) is out
            np.testing.assert_array_equal(out, expected, strict=True)

    compare()


@pytest.mark.parametrize("chunks", [(3, 28, 28), (3, 10, 9)])
def test_what_is_kept_and_what_is_not_make_one_result(
    store: TensorStore, folder: Path, chunks: tuple[int, ...]
) -> None:
    array = _RANDOM.random((200, 28, 28))
    tensor = store.write("half", array, chunks=chunks if store.engine == "storage" else None)
    cached = tensor.cached(folder, max_bytes=700_000)
    for _ in range(2):
        for batch in np.array_split(_RANDOM.permutation(200), 10):
            np.testing.assert_array_equal(cached[batch], array[batch], strict=True)
            for index in (np.s_[batch, ::-3, 4], np.s_[batch[0]], np.s_[batch[0] : 150 : 7, [3, 9, 3]]):
                np.testing.assert_array_equal(cached[index], array[index], strict=True)
    assert 400_000 < cache_folder.taken(folder) <= 700_000
    assert 0 < cached.epoch_cost() < array.nbytes
    np.testing.assert_array_equal(cached[...], array)


def test_the_other_ways_to_read(store: TensorStore, folder: Path) -> None:
    array = _RANDOM.random((30, 4))
    store["x"] = array
    cached = store.open("x").cached(folder)
    for _ in range(2):
        np.testing.assert_array_equal(cached, array)
        np.testing.assert_array_equal(np.stack(cached.__getitems__([3, -1, 3])), array[[3, -1, 3]])
        np.testing.assert_array_equal(list(cached), array)
        assert len(cached) == 30
    np.testing.assert_array_equal(cached.read(out=np.empty((30, 4))), array)
    assert repr(cached).startswith("<CachedTensor 'x', shape (30, 4), float64")
    assert cached.cache.directory == folder
    assert cached.cache.max_bytes is None


@pytest.mark.parametrize("is_there", [False, True])
def test_out_has_to_fit(store: TensorStore, folder: Path, is_there: bool) -> None:
    store["x"] = _RANDOM.random((30, 4))
    cached = store.open("x").cached(folder)
    if is_there:
        _ = cached[...]
    for out in (np.empty((3, 5)), np.empty((3, 4), "f4")):
        for selection in (np.s_[:3], np.s_[[1, 2, 3]]):
            with pytest.raises(InvalidInputError, match="out has shape"):
                cached.read(selection, out=out)


def test_bad_settings(rows: TensorStore, folder: Path) -> None:
    rows["x"] = [1, 2]
    with pytest.raises(InvalidInputError, match="max_bytes"):
        rows.open("x").cached(folder, max_bytes=-1)
    for seconds in (-1, float("nan")):
        with pytest.raises(InvalidInputError, match="check_every_s"):
            rows.open("x").cached(folder, check_every_s=seconds)
    assert not folder.exists()


def test_writes_go_through_the_handle(store: TensorStore, folder: Path) -> None:
    array = np.arange(12.0).reshape(6, 2)
    store["x"] = array
    cached = store.open("x").cached(folder, check_every_s=1000)
    _ = cached[...]
    cached[1:3] = 7
    array[1:3] = 7
    np.testing.assert_array_equal(cached[...], array)
    cached.append(array)
    assert cached.shape == (12, 2)
    np.testing.assert_array_equal(cached[[0, 11]], array[[0, 5]])
    cached.attrs["units"] = "K"
    assert cached.attrs == {"units": "K"}
    np.testing.assert_array_equal(cached[6:], array)
