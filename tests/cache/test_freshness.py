"""A cache never gives elements that are not there any more, and asks the network no more than it has to."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cache_folder
import cache_workers
import numpy as np
import pytest
import workers
from processes import PROCESSES
from project import Project, User
from proxy import Exchange, Proxy

import tensorage
from tensorage import BackendSession, KeyNotFoundError, TensorStore

#: Seconds that no test lasts.
_LONG_S = 1000.0


def moved(exchanges: list[Exchange]) -> int:
    """Bytes of elements."""
    return sum(one.received_bytes for one in exchanges if one.is_download or one.kind.startswith("read"))


def kinds(exchanges: list[Exchange]) -> Counter[str]:
    return Counter(exchange.kind for exchange in exchanges)


def test_a_shuffled_batch_of_rows_is_one_request_and_the_second_epoch_none(
    proxy: Proxy, project: Project, user: User, folder: Path
) -> None:
    array = cache_workers.array()
    with workers.store_of(Project(proxy.url, project.key), user) as store:
        store["x"] = array
        cached = store.open("x").cached(folder, check_every_s=_LONG_S)
        order = np.random.default_rng(0).permutation(len(array))
        with proxy.counted() as first:
            for batch in np.split(order, 12):
                np.testing.assert_array_equal(cached[batch], array[batch])
        with proxy.counted() as second:
            for batch in np.split(order, 10):
                np.testing.assert_array_equal(cached[batch], array[batch])
    # A look at the catalogue, and a request for each batch; and not one byte more than the array's.
    assert kinds(first)["open"] == 1
    assert len(first) == 13
    assert moved(first) == array.nbytes
    assert not second


def test_each_chunk_is_fetched_once(watched: TensorStore, proxy: Proxy, folder: Path) -> None:
    array = cache_workers.array()
    chunks = (50, 28, 28) if watched.engine == "storage" else None
    handle = watched.write("x", array, chunks=chunks)
    cost = handle.epoch_cost()
    cached = handle.cached(folder, check_every_s=_LONG_S)
    assert cached.epoch_cost() == cost
    with proxy.counted() as first:
        cache_workers.assert_same(cached, array, 1)
    assert moved(first) == cost
    if watched.engine == "storage":
        assert cost < array.nbytes
    else:
        assert cost == array.nbytes
    assert cached.epoch_cost() == 0
    assert handle.epoch_cost() == cost
    with proxy.counted() as second:
        cache_workers.assert_same(cached, array, 2)
    assert not second


def test_the_catalogue_is_asked_once_an_interval(watched: TensorStore, proxy: Proxy, folder: Path) -> None:
    watched["x"] = np.arange(10)
    handle = watched.open("x")
    with proxy.counted() as exchanges:
        always = handle.cached(folder, check_every_s=0)
        for _ in range(3):
            _ = always[:]
    assert exchanges[-1].kind == "open"
    assert kinds(exchanges)["open"] == 3
    seldom = handle.cached(folder, check_every_s=0.3)
    _ = seldom[:]
    with proxy.counted() as exchanges:
        until = time.monotonic() + 0.2
        while time.monotonic() < until:
            _ = seldom[:]
    assert len(exchanges) <= 1
    time.sleep(0.3)
    with proxy.counted() as exchanges:
        _ = seldom[:], seldom[:]
    assert kinds(exchanges) == {"open": 1}


CHANGES: list[Callable[[TensorStore, np.ndarray[Any, Any]], np.ndarray[Any, Any]]] = []


def change(make: Callable[[TensorStore, np.ndarray[Any, Any]], np.ndarray[Any, Any]]) -> Any:
    CHANGES.append(make)
    return make


@change
def overwrite(store: TensorStore, array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    store["x"] = -array
    return -array


@change
def overwrite_by_another_shape(store: TensorStore, array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    store["x"] = array[::2].astype("f4")
    return array[::2].astype("f4")


@change
def assign(store: TensorStore, array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    store["x", 1:20] = 5
    array = array.copy()
    array[1:20] = 5
    return array


@change
def append(store: TensorStore, array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    store.append("x", array[:3])
    return np.concatenate([array, array[:3]])


@change
def resize(store: TensorStore, array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    store.open("x").resize(20)
    return array[:20]


@change
def delete_and_store(store: TensorStore, array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    del store["x"]
    store["x"] = array + 1
    return array + 1


@change
def rename_another(store: TensorStore, array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    store["y"] = array + 2
    store.rename("y", "x", overwrite=True)
    return array + 2


@pytest.mark.parametrize("make", CHANGES)
def test_own_changes_are_seen_at_once(
    store: TensorStore,
    folder: Path,
    make: Callable[[TensorStore, np.ndarray[Any, Any]], np.ndarray[Any, Any]],
) -> None:
    array = np.arange(90.0).reshape(30, 3)
    store["x"] = array
    cached = store.open("x").cached(folder, check_every_s=_LONG_S)
    np.testing.assert_array_equal(cached[...], array)
    expected = make(store, array)
    np.testing.assert_array_equal(cached[...], expected, strict=True)
    np.testing.assert_array_equal(cached[[5, 2]], expected[[5, 2]])
    # The cache file of a replaced array is deleted along with it.
    assert len(cache_folder.cache_files(folder)) == 1 or make in (
        append,
        resize,
        overwrite_by_another_shape,
        delete_and_store,
    )


@pytest.mark.parametrize("make", CHANGES)
def test_changes_by_others_are_seen_at_the_next_look(
    store: TensorStore,
    folder: Path,
    project: Project,
    user: User,
    make: Callable[[TensorStore, np.ndarray[Any, Any]], np.ndarray[Any, Any]],
) -> None:
    array = np.arange(90.0).reshape(30, 3)
    store["x"] = array
    cached = store.open("x").cached(folder, check_every_s=0)
    np.testing.assert_array_equal(cached[...], array)
    with workers.store_of(project, user, engine=store.engine, allow_overwrite=True) as other:
        expected = make(other, array)
    np.testing.assert_array_equal(cached[...], expected, strict=True)


def test_what_is_missing_is_never_taken_of_another_version(
    store: TensorStore, folder: Path, project: Project, user: User
) -> None:
    array = np.arange(9000.0).reshape(30, 300)
    store["x"] = array
    cached = store.open("x").cached(folder, check_every_s=_LONG_S)
    np.testing.assert_array_equal(cached[:10], array[:10])
    with workers.store_of(project, user, engine=store.engine, allow_overwrite=True) as other:
        other["x"] = -array
    if store.engine == "database":
        # The catalogue was not asked, so that what is there is given; but the backend was, for what is not.
        np.testing.assert_array_equal(cached[:10], array[:10])
        np.testing.assert_array_equal(cached[5:15], -array[5:15])
    # Then, everything is new.
    cached.refresh()
    np.testing.assert_array_equal(cached[:10], -array[:10])


def test_a_deleted_array_is_gone(store: TensorStore, folder: Path, project: Project, user: User) -> None:
    store["x"] = np.arange(10)
    mine = store.open("x").cached(folder, check_every_s=_LONG_S)
    others = store.open("x").cached(folder, check_every_s=0)
    _ = mine[...], others[...]
    with workers.store_of(project, user) as other:
        del other["x"]
    with pytest.raises(KeyNotFoundError):
        others[3]
    with pytest.raises(KeyNotFoundError):
        others[3]
    store["y"] = [1]
    with pytest.raises(KeyNotFoundError):
        mine[3]


def test_an_array_that_is_shared_no_longer_is_gone(
    store: TensorStore, folder: Path, project: Project
) -> None:
    array = np.arange(10)
    store["shared"] = array
    store.share("shared")
    with workers.store_of(project, project.register()) as sharee:
        cached = sharee.open("shared", owner=store.backend.email).cached(folder, check_every_s=0)
        np.testing.assert_array_equal(cached[...], array)
        store.unshare("shared")
        with pytest.raises(KeyNotFoundError):
            cached[...]


def test_attributes_are_no_elements(watched: TensorStore, proxy: Proxy, folder: Path) -> None:
    array = cache_workers.array()
    watched["x"] = array
    cached = watched.open("x").cached(folder, check_every_s=_LONG_S)
    _ = cached[...]
    cached.attrs["epoch"] = 1
    cached.dims = ("sample", "y", "x")
    with proxy.counted() as exchanges:
        np.testing.assert_array_equal(cached[::2], array[::2])
    assert moved(exchanges) <= array.itemsize
    anew = watched.open("x").cached(folder, check_every_s=_LONG_S)
    assert anew.epoch_cost() == 0
    np.testing.assert_array_equal(anew[...], array)
    assert len(cache_folder.cache_files(folder)) == 1
    # Once elements have changed too, the older version is of no use.
    watched["x", 0] = 3
    array[0] = 3
    np.testing.assert_array_equal(anew[...], array)


def test_batches_while_another_process_overwrites(
    rows: TensorStore, folder: Path, project: Project, user: User
) -> None:
    rows["large"] = np.zeros(workers.LARGE, "u1")
    cached = rows.open("large").cached(folder, check_every_s=0)
    arguments = (project, user, "large", range(1, 6), "database")
    process = PROCESSES.Process(target=workers.overwrite, args=arguments)
    process.start()
    seen: list[int] = []
    while not seen or seen[-1] != 5:
        values = np.unique(cached[:, ::100])
        assert len(values) == 1, f"a mix of {values}"
        seen.append(int(values[0]))
    process.join()
    assert process.exitcode == 0
    assert seen == sorted(seen)


def test_own_writes_are_seen_whoever_else_reads(rows: TensorStore, folder: Path) -> None:
    rows["x"] = np.zeros(4, "i8")
    cached = rows.open("x").cached(folder, check_every_s=0.001)
    ends = threading.Event()
    errors: list[BaseException] = []

    def read() -> None:
        try:
            while not ends.is_set():
                _ = cached[...]
        except BaseException as error:  # noqa: BLE001 - the test's thread raises it
            errors.append(error)

    threads = [threading.Thread(target=read) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for value in range(1, 40):
            rows["x"] = np.full(4, value)
            assert cached[...].tolist() == [value] * 4
    finally:
        ends.set()
        for thread in threads:
            thread.join()
    assert not errors


def test_epoch_cost_of_what_has_no_elements(store: TensorStore, folder: Path) -> None:
    store["none"] = np.empty((0, 3))
    assert store.open("none").epoch_cost() == 0
    cached = store.open("none").cached(folder)
    assert cached.epoch_cost() == 0
    assert cached[...].shape == (0, 3)


def test_a_constant_array_of_storage_costs_nothing(session: BackendSession) -> None:
    store = TensorStore(session, quiet=True, engine="storage")
    store["zeros"] = np.zeros((100, 100))
    assert store.open("zeros").epoch_cost() == 0
    assert tensorage.Tensor.epoch_cost.__doc__ is not None
