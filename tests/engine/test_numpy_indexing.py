"""A stored array gives for any index what numpy's gives for it; and little more than that travels."""

from __future__ import annotations

from collections.abc import Iterator
from math import ceil
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import workers
from hypothesis import HealthCheck, given, settings
from project import Project
from proxy import Exchange, Proxy
from selections import distinct, selections

import tensorage
from tensorage import Tensor, TensorStore

Array = np.ndarray[Any, Any]

_RANDOM = np.random.default_rng(0)

#: Shapes and block sizes: one block and many, rows over a block, no elements, no axes.
ARRAYS = [
    ((), "f8", None), ((0,), "i4", None), ((9,), ">i2", 4), ((40,), "D", 7), ((5, 6), "?", None), ((7, 11), "f4", 11),
    ((4, 25), "u8", 10), ((3, 0, 2), "f2", None), ((6, 3, 5), "M8[s]", 30), ((2, 3, 40), "i1", 50),
    ((9, 2, 3, 4), "c8", 1), ((3, 4, 2, 3, 2), "u2", 48), ((1, 1, 1, 1), "f8", None), ((100, 6), "i4", 64),
]  # fmt: skip


def arrays() -> Iterator[tuple[str, Array, int | None]]:
    for number, (shape, dtype, chunk_size) in enumerate(ARRAYS):
        yield f"array_{number}", _RANDOM.integers(0, 120, shape).astype(dtype), chunk_size


def test_any_index_gives_what_numpy_gives(store: TensorStore) -> None:
    stored: list[tuple[str, Array, Tensor]] = []
    for key, array, chunk_size in arrays():
        store.chunk_size = chunk_size
        store[key] = array
        stored.append((key, array.astype(array.dtype.newbyteorder("<")), store.open(key)))

    @settings(
        # Each chunk of an object is decoded on its own, and some of these have a single element.
        max_examples=600 if store.engine == "database" else 150,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.data(), st.sampled_from(stored), st.sampled_from(["handle", "store", "attribute"]))
    def compare(data: st.DataObject, one: tuple[str, Array, Tensor], way: str) -> None:
        key, array, handle = one
        _, index = data.draw(selections(st.just(array.shape)), label="index")

        def read() -> Any:
            if way == "handle":
                return handle[index]
            if way == "attribute":
                return getattr(store, key)[index]
            return store[(key, *index) if isinstance(index, tuple) and index else (key, index)]

        try:
            expected = array[index]
        except (IndexError, TypeError, ValueError, OverflowError) as error:
            with pytest.raises(type(error)):
                read()
            return
        result = read()
        assert type(result) is type(expected)
        np.testing.assert_array_equal(result, expected, strict=True)

    compare()


def test_none_is_an_axis_not_the_lack_of_an_index(store: TensorStore) -> None:
    store.allow_overwrite = True
    expected = np.arange(3)
    store["x"] = expected
    np.testing.assert_array_equal(store["x", None], expected[None], strict=True)
    np.testing.assert_array_equal(store["x", None, 1:], expected[None, 1:], strict=True)
    np.testing.assert_array_equal(store[("x",)], expected, strict=True)
    np.testing.assert_array_equal(store["x", (1,)], expected[(1,)], strict=True)
    store["x", None] = 7
    np.testing.assert_array_equal(store["x"], [7, 7, 7])


def test_a_read_into_out_gives_what_numpy_gives(store: TensorStore) -> None:
    array = np.arange(600, dtype="i4").reshape(30, 4, 5)
    store.chunk_size = 37
    store["x"] = array
    handle = store.open("x")
    for index in (
        np.s_[...],
        np.s_[::-1, 2],
        np.s_[[3, 1, 3], :, 1],
        np.s_[array % 7 == 0],
        np.s_[4, 2, 1, ...],
    ):
        expected = array[index]
        for out in (
            np.empty_like(expected),
            np.empty((2, *expected.shape), "i4")[0, ...],
            np.zeros_like(expected, order="F"),
        ):
            assert handle.read(index, out=out) is out
            np.testing.assert_array_equal(out, expected, strict=True)


SAMPLES = (6000, 28, 28)
#: Number of each element of the samples.
POSITIONS = np.arange(6000 * 28 * 28).reshape(SAMPLES)
MASK = np.random.default_rng(1).random(6000) < 0.1

#: Selections, and the most requests that each may take.
SELECTIONS = [
    ("a sample", np.s_[77], 1), ("a row", np.s_[77, 5], 1), ("an element", np.s_[77, 5, 3], 1),
    ("64 samples", np.s_[np.random.default_rng(2).integers(0, 6000, 64)], 1),
    ("1024 samples", np.s_[np.random.default_rng(3).integers(0, 6000, 1024)], 1),
    ("last axis", np.s_[..., ::4], 2), ("last axis of some", np.s_[:500, :, ::-4], 1), ("a pixel", np.s_[:, 4, 4], 1),
    ("every other pixel", np.s_[:, ::2, ::2], 2), ("a column", np.s_[..., 0], 1),
    ("a middle", np.s_[:, 10:18, 10:18], 1),
    ("every tenth sample", np.s_[::10], 1), ("a mask", np.s_[MASK], 1), ("pixels of a mask", np.s_[MASK, 3:5, 7], 1),
    ("corners", np.s_[:, [0, 0, -1, -1], [0, -1, 0, -1]], 1), ("diagonal", np.s_[3, range(28), range(28)], 1),
    ("pixels here and there", np.s_[[5, 5999, 3000], [1, 27, 3], [9, 8, 7]], 1), ("the ends", np.s_[::5999], 1),
    ("backwards", np.s_[2000:1000:-1, ::-1], 1), ("some rows of samples", np.s_[[9, 4000, 9], 20:25], 1),
]  # fmt: skip


@pytest.fixture(scope="module")
def samples(project: Project, proxy: Proxy) -> Iterator[tuple[Array, Tensor]]:
    """An array of many blocks, and a handle on it by way of the proxy."""
    with workers.store_of(Project(proxy.url, project.key), project.register()) as store:
        array = POSITIONS.astype("f4")
        store["samples"] = array
        yield array, store.open("samples")


def assert_little_travels(array: Array, handle: Tensor, index: Any, exchanges: list[Exchange]) -> None:
    """Check that at most twice the selected bytes travel, and 64 KiB for each block that they touch."""
    positions = distinct(POSITIONS[index])
    blocks = len(distinct(positions // handle.dataset.block_size))
    received = sum(exchange.received_bytes for exchange in exchanges)
    selected = positions.size * array.itemsize
    assert selected <= received <= 2 * selected + 64 * 1024 * blocks


@pytest.mark.parametrize(
    ("index", "most"), [row[1:] for row in SELECTIONS], ids=[row[0] for row in SELECTIONS]
)
def test_little_travels(samples: tuple[Array, Tensor], proxy: Proxy, index: Any, most: int) -> None:
    array, handle = samples
    with proxy.counted() as exchanges:
        result = handle[index]
    np.testing.assert_array_equal(result, array[index], strict=True)
    assert {exchange.function for exchange in exchanges} <= {"read", "read_run", "read_spans"}
    assert 1 <= len(exchanges) <= most
    assert_little_travels(array, handle, index, exchanges)


def test_any_shuffled_batch_is_one_request(samples: tuple[Array, Tensor], proxy: Proxy) -> None:
    array, handle = samples
    random = np.random.default_rng(5)
    for count in (1, 2, 63, 1024):
        for batch in (
            random.integers(0, 6000, count),
            random.permutation(6000)[:count],
            random.integers(90, 99, count),
        ):
            with proxy.counted() as exchanges:
                result = handle[batch]
            np.testing.assert_array_equal(result, array[batch], strict=True)
            assert len(exchanges) == 1
            # Repeated ones come once, and each is named by a number of a few digits.
            assert_little_travels(array, handle, batch, exchanges)
            assert exchanges[0].sent_bytes < 200 + 10 * count


def test_whatever_is_selected_little_travels(samples: tuple[Array, Tensor], proxy: Proxy) -> None:
    array, handle = samples

    @settings(
        max_examples=60,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(selections(st.just((24, 28, 28)), wrong=False), st.integers(0, 5976))
    def compare(selection: tuple[Any, Any], first: int) -> None:
        # Indices of a part, moved to somewhere in all of it.
        _, index = selection
        try:
            expected = array[first : first + 24][index]
        except IndexError:
            return
        positions = POSITIONS[first : first + 24][index]
        whole = np.unravel_index(positions, array.shape)
        with proxy.counted() as exchanges:
            result = handle[whole]
        np.testing.assert_array_equal(result, np.asarray(expected), strict=True)
        if positions.size:
            assert_little_travels(array, handle, whole, exchanges)
            assert len(exchanges) == 1

    compare()


def test_a_large_selection_is_of_few_requests(samples: tuple[Array, Tensor], proxy: Proxy) -> None:
    array, handle = samples
    for index in (np.s_[...], np.s_[::-1], np.s_[100:], np.s_[np.random.default_rng(6).permutation(6000)]):
        with proxy.counted() as exchanges:
            result = handle[index]
        np.testing.assert_array_equal(result, array[index], strict=True)
        assert len(exchanges) <= ceil(array.nbytes / (7 * 1024 * 1024))
        assert sum(exchange.received_bytes for exchange in exchanges) == result.nbytes


def test_errors_of_an_index_ask_for_nothing(samples: tuple[Array, Tensor], proxy: Proxy) -> None:
    _, handle = samples
    with proxy.counted() as exchanges:
        for index in (6000, np.s_[0, 0, 0, 0], [6000], "a", np.ones(5, bool), np.s_[[0, 1], [0, 1, 2]], 1.5):
            with pytest.raises(IndexError):
                handle[index]
        assert handle[5:5].shape == (0, 28, 28)
        assert handle[[]].shape == (0, 28, 28)
    assert exchanges == []


def test_requests_of_small_operations(project: Project, proxy: Proxy) -> None:
    with workers.store_of(Project(proxy.url, project.key), project.register()) as store:
        assert "x" not in store
        for operation, functions in [
            (lambda: store.__setitem__("x", np.arange(5)), ["store"]),
            (lambda: store["x"], ["read_many"]),
            (lambda: store["x", 3], ["read"]),
            (lambda: "x" in store, ["open"]),
            (lambda: "y" in store, ["open"]),
            (lambda: store.open("x"), ["open"]),
            (lambda: store.get("y"), ["read_many"]),
            (lambda: len(store), ["count"]),
            (store.keys, ["list"]),
            (lambda: store.rename("x", "z"), ["rename"]),
            (lambda: store.__delitem__("z"), ["remove"]),
        ]:
            with proxy.counted() as exchanges:
                operation()
            assert [exchange.function for exchange in exchanges] == functions
        with pytest.raises(tensorage.KeyNotFoundError):
            store["z"]
