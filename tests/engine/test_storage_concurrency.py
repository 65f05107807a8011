"""Several writers and readers of one array of Storage at once: no change is lost, and no reader sees half of one."""

from __future__ import annotations

import itertools
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import leftovers
import numpy as np
import psycopg
import pytest
import workers
from project import Project, User
from proxy import Proxy

import tensorage
from tensorage import BackendSession, TensorStore
from tensorage.model.declaration import ArrayOptions

Sql = psycopg.Connection[tuple[Any, ...]]
Array = np.ndarray[Any, Any]

ARRAY = np.random.default_rng(0).integers(1, 256, (80, 50), "u1")

#: Four shards of four chunks each.
LAYOUT: ArrayOptions = {"chunks": (5, 50), "shards": (20, 50)}


@pytest.fixture
def store(session: BackendSession) -> TensorStore:
    return TensorStore(session, quiet=True, engine="storage", allow_overwrite=True)


def put(store: TensorStore, key: str, array: Array) -> None:
    store.arrays.write(key, array, engine="storage", overwrite=True, **LAYOUT)


def at_once(*jobs: Callable[[], Any]) -> list[Any]:
    """Call all functions in threads of their own, which begin together."""
    barrier = threading.Barrier(len(jobs))

    def do(job: Callable[[], Any]) -> Any:
        barrier.wait()
        return job()

    with ThreadPoolExecutor(len(jobs)) as pool:
        return list(pool.map(do, jobs))


@pytest.mark.parametrize(
    "cuts",
    [range(0, 81, 4), range(0, 81, 20), [0, 3, 19, 21, 44, 45, 79, 80], [0, 60, 80]],
    ids=["many to a shard", "one to a shard", "across", "few"],
)
def test_rows_of_a_declared_array_come_from_everywhere(
    store: TensorStore, session: BackendSession, database: Sql, cuts: Sequence[int]
) -> None:
    pieces = list(itertools.pairwise(cuts))
    with session.storage() as context:
        declared = context.insert_dataset("x", ARRAY.shape, 2, type="u1", **LAYOUT)

    def fill(some: list[tuple[int, int]]) -> None:
        with session.storage() as context:
            for low, high in some:
                assert context.insert_tensor(declared.id, ARRAY[low:high], low)

    at_once(*(lambda number=number: fill(pieces[number::4]) for number in range(4)))
    np.testing.assert_array_equal(store["x"], ARRAY)
    leftovers.assert_only_arrays_are_kept(database, session.user_id)


def test_rows_that_are_sent_twice_are_there_once(
    store: TensorStore, session: BackendSession, database: Sql
) -> None:
    with session.storage() as context:
        declared = context.insert_dataset("x", ARRAY.shape, 2, type="u1", **LAYOUT)
        for low, high in [(0, 30), (0, 30), (20, 45), (25, 80)]:
            context.insert_tensor(declared.id, ARRAY[low:high], low)
    np.testing.assert_array_equal(store["x"], ARRAY)
    # The first of two objects of a whole shard stays as long as the array.
    del store["x"]
    session.transfer.finish(30)
    assert leftovers.objects_of(database, session.user_id) == []


def test_a_declared_array_is_seen_when_it_is_whole(store: TensorStore, session: BackendSession) -> None:
    whole = threading.Event()

    def fill() -> None:
        with session.storage() as context:
            declared = context.insert_dataset("x", ARRAY.shape, 2, type="u1", **LAYOUT)
            for low in range(0, 80, 8):
                context.insert_tensor(declared.id, ARRAY[low : low + 8], low)
        whole.set()

    def look() -> None:
        is_last = False
        while not is_last:
            is_last = whole.is_set()
            try:
                np.testing.assert_array_equal(store["x"], ARRAY)
            except tensorage.KeyNotFoundError:
                assert not is_last

    at_once(fill, look, look)


@pytest.fixture(scope="module")
def through(project: Project, user: User, proxy: Proxy) -> Iterator[TensorStore]:
    with workers.store_of(Project(proxy.url, project.key), user, engine="storage") as store:
        assert store.keys() is not None
        yield store


def test_assignments_to_different_shards_do_not_get_in_each_others_way(
    store: TensorStore, through: TensorStore, proxy: Proxy, database: Sql, user: User
) -> None:
    put(store, "x", ARRAY)

    def assign(shard: int) -> None:
        handle = through.open("x")
        for value in range(1, 6):
            handle[20 * shard + value : 20 * shard + 20] = value

    with proxy.counted() as exchanges:
        at_once(*(lambda shard=shard: assign(shard) for shard in range(4)))
    expected = ARRAY.reshape(4, 20, 50).copy()
    for value in range(1, 6):
        expected[:, value:] = value
    np.testing.assert_array_equal(store["x"], expected.reshape(80, 50))
    done = Counter(exchange.kind for exchange in exchanges)
    # A writer that finds the array changed since it was opened looks again, but none writes anything twice.
    assert (done["upload"], done["commit"]) == (20, 20)
    store["later"] = 1
    leftovers.assert_only_arrays_are_kept(database, user.id)


def test_assignments_to_one_shard_are_all_there(store: TensorStore, database: Sql, user: User) -> None:
    put(store, "x", np.zeros((20, 50), "u1"))

    def assign(rows: range) -> None:
        for row in rows:
            store["x", row] = row + 1

    at_once(*(lambda number=number: assign(range(number, 20, 4)) for number in range(4)))
    np.testing.assert_array_equal(store["x"], np.arange(1, 21, dtype="u1")[:, None].repeat(50, axis=1))
    store["later"] = 1
    leftovers.assert_only_arrays_are_kept(database, user.id)


def test_appends_and_assignments_at_once(store: TensorStore, database: Sql, user: User) -> None:
    put(store, "x", ARRAY[:10])

    def append() -> None:
        for low in range(10, 80, 7):
            store.append("x", ARRAY[low : low + 7])

    def assign() -> None:
        for value in range(1, 9):
            store["x", :5, ::2] = value

    at_once(append, assign)
    expected = ARRAY.copy()
    expected[:5, ::2] = 8
    np.testing.assert_array_equal(store["x"], expected)
    store["later"] = 1
    leftovers.assert_only_arrays_are_kept(database, user.id)


def test_readers_go_on_while_rows_are_appended(store: TensorStore) -> None:
    """The last shard is replaced under them again and again, and its objects are deleted."""
    put(store, "x", ARRAY[:22])
    old, is_done = store.open("x"), threading.Event()

    def append() -> None:
        for row in range(22, 80):
            store.append("x", ARRAY[row : row + 1])
        is_done.set()

    def read_old() -> None:
        while not is_done.is_set():
            np.testing.assert_array_equal(old[...], ARRAY[:22])
            np.testing.assert_array_equal(old[[21, 3]], ARRAY[[21, 3]])

    def read_new() -> None:
        count = 0
        while count < 80:
            now = store["x"]
            assert len(now) >= count
            count = len(now)
            np.testing.assert_array_equal(now, ARRAY[:count])

    at_once(append, read_old, read_new)


@pytest.mark.parametrize("change", ["overwrite", "assign"])
def test_readers_see_one_version(store: TensorStore, change: str) -> None:
    """The array has many objects, each of which is another one in the next version."""
    zeros = np.zeros((16, 30), "i4")
    how: ArrayOptions = {"chunks": (1, 30), "shards": (1, 30), "overwrite": True}
    store.arrays.write("x", zeros + 1, engine="storage", **how)
    last = 12

    def write() -> None:
        for value in range(2, last + 1):
            if change == "overwrite":
                store.arrays.write("x", zeros + value, engine="storage", **how)
            else:
                store["x", ...] = value

    def read(index: Any) -> None:
        handle, seen = store.open("x"), 0
        while seen < last:
            array = handle[index]
            least, most = array.min(), array.max()
            assert least == most, f"a mix of {least} and {most}"
            assert least >= seen
            seen = least

    at_once(write, lambda: read(np.s_[...]), lambda: read(np.s_[::3, 5]))


def test_writers_that_delete_what_others_have_left(store: TensorStore, database: Sql, user: User) -> None:
    """Every writer deletes the leftovers of all the user's arrays, and never anything else."""
    keys = ["a", "b", "c", "d"]

    def write(key: str) -> None:
        for number in range(8):
            array = ARRAY[number : number + 40]
            put(store, key, array)
            np.testing.assert_array_equal(store[key], array)
            store[key, 3] = 7
            if number % 3 == 2:
                del store[key]

    at_once(*(lambda key=key: write(key) for key in keys))
    expected = ARRAY[7:47].copy()
    expected[3] = 7
    for key in keys:
        np.testing.assert_array_equal(store[key], expected)
    store["later"] = 1
    leftovers.assert_only_arrays_are_kept(database, user.id)
