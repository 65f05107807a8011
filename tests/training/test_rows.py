"""Rows that are asked for one after another: what they are, and how many requests they take."""

from __future__ import annotations

import pickle
import random
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from forks import fork
from project import Project, User
from proxy import Proxy

from tensorage import BackendSession, KeyNotFoundError, Tensor, TensorStore
from tensorage.types import Engine

Array = npt.NDArray[Any]

ROWS = np.random.default_rng(0).random((1000, 300)).astype("f4")

#: More bytes than are read along with a few rows.
LARGE = np.random.default_rng(1).random((4000, 256))


@pytest.fixture
def away(proxy: Proxy, project: Project, user: User, engine: Engine) -> Iterator[TensorStore]:
    """A store whose requests pass the proxy."""
    session = Project(proxy.url, project.key).session(user)
    yield TensorStore(session, quiet=True, engine=engine)
    session.logout()


def opened(away: TensorStore, store: TensorStore, key: str, array: Array) -> Tensor:
    """Store an array, and open it by a session that has read of it before."""
    store[key] = array
    handle = away.open(key)
    handle[:1]
    return away.open(key)


def assert_rows(found: Any, expected: Array) -> None:
    rows = list(found)
    assert [type(row) for row in rows[:3]] == [type(row) for row in expected[:3]]
    np.testing.assert_array_equal(np.array(rows, expected.dtype).reshape(expected.shape), expected)


def _by_torch(name: str) -> Callable[[Tensor], Any]:
    """A loop by a function of PyTorch, which each process of a run loads only where it runs such a test."""

    def loop(handle: Tensor) -> Any:
        import torch

        return getattr(torch, name)(handle).numpy()

    return loop


def _as_sequence(handle: Tensor) -> Any:
    from torch.utils.data import ConcatDataset

    return ConcatDataset([handle])


LOOPS: dict[str, Callable[[Tensor], Any]] = {
    "iteration": list,
    "numbers": lambda handle: [handle[i] for i in range(len(handle))],
    "numbers of numpy": lambda handle: [handle[i] for i in np.arange(len(handle))],
    "a sequence": _as_sequence,
    "as_tensor": _by_torch("as_tensor"),
    "tensor": _by_torch("tensor"),
    "from_dlpack": _by_torch("from_dlpack"),
    "stack": np.stack,
    "array": np.array,
}


@pytest.mark.parametrize("loop", LOOPS)
def test_a_loop_takes_few_requests(away: TensorStore, store: TensorStore, proxy: Proxy, loop: str) -> None:
    handle = opened(away, store, "x", ROWS)
    whole = 1 if store.engine == "database" else 2
    with proxy.counted() as asked:
        found = list(LOOPS[loop](handle))
    np.testing.assert_array_equal(np.array(found), ROWS)
    # Two rows on their own come first, where rows are asked for by their numbers.
    by_number = loop in ("numbers", "numbers of numpy", "a sequence")
    # numpy stacks what it iterates over, which it does twice.
    assert len(asked) <= whole * (3 if by_number else 2 if loop == "stack" else 1) + by_number
    assert sum(exchange.received_bytes for exchange in asked) <= 2 * ROWS.nbytes + 2**16


def test_shuffled_numbers_take_few_requests(away: TensorStore, store: TensorStore, proxy: Proxy) -> None:
    """An epoch of PyTorch's `ConcatDataset`, which knows its parts as sequences of rows."""
    import torch
    from torch.utils.data import ConcatDataset, DataLoader

    handles = [opened(away, store, key, ROWS) for key in "xy"]
    samples = ConcatDataset(handles)
    for _ in range(3):
        with proxy.counted() as asked:
            batches = list(DataLoader(samples, batch_size=64, shuffle=True))
        found = torch.cat(batches).numpy()
        np.testing.assert_array_equal(np.sort(found, axis=0), np.sort(np.concatenate([ROWS, ROWS]), axis=0))
        # Few rows on their own and the whole array, of each; a look whether it has changed, in later epochs.
        assert len(asked) <= 2 * 5 * (1 if store.engine == "database" else 2) + 4
        assert sum(exchange.received_bytes for exchange in asked) <= 2 * 2 * ROWS.nbytes


def test_estimators_read_whole(away: TensorStore, store: TensorStore, proxy: Proxy) -> None:
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    samples, labels = ROWS[:200, :5], (ROWS[:200, 0] > 0.5).astype("i8")
    x, y = opened(away, store, "x", samples), opened(away, store, "y", labels)
    with proxy.counted() as asked:
        scaled = StandardScaler().fit(x)
        fitted = LogisticRegression().fit(x, y)
    np.testing.assert_allclose(scaled.mean_, samples.mean(axis=0), rtol=1e-5)
    np.testing.assert_array_equal(fitted.coef_, LogisticRegression().fit(samples, labels).coef_)
    assert len(asked) <= 3 * (1 if store.engine == "database" else 2)


@pytest.mark.parametrize(
    "array",
    [
        np.arange(2000.0), ROWS[:50, :4].reshape(50, 2, 2), np.arange(7) > 3, np.zeros((0, 3)), np.zeros((5, 0)),
        np.array(["a", "bc", ""]), np.array([(1, 2.0), (3, 4.0)], [("a", "i4"), ("b", "f8")]),
        np.arange(5).astype("M8[s]"),
    ],
    ids=lambda array: f"{array.dtype}{array.shape}",
)  # fmt: skip
def test_rows_are_those_of_numpy(store: TensorStore, array: Array) -> None:
    store["x"] = array
    handle = store.open("x")
    assert_rows(handle, array)
    assert_rows(reversed(handle), array[::-1])
    assert_rows([handle[i] for i in range(len(array))], array)
    assert_rows([handle[-i] for i in range(1, len(array) + 1)], array[::-1])
    for wrong in (len(array), -len(array) - 1, 10**30):
        with pytest.raises(IndexError):
            handle[wrong]
    if len(array) > 2:
        assert handle[True].shape == array[True].shape


def test_rows_are_the_caller_s_own(store: TensorStore) -> None:
    store["x"] = ROWS[:10]
    handle = store.open("x")
    for _ in range(2):
        for number, row in enumerate((*handle, *(handle[i] for i in range(10)))):
            np.testing.assert_array_equal(row, ROWS[number % 10])
            row[...] = 7
    np.testing.assert_array_equal(handle[...], ROWS[:10])


def test_a_scalar_has_no_rows(store: TensorStore) -> None:
    store["x"] = np.float32(1)
    for use in (iter, reversed, len):
        with pytest.raises(TypeError):
            use(store.open("x"))
    with pytest.raises(IndexError):
        store.open("x")[0]


@pytest.mark.parametrize("line", ["as measured", "of dear requests"])
def test_large_arrays_are_read_in_growing_blocks(
    away: TensorStore, store: TensorStore, proxy: Proxy, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if line == "of dear requests":
        # No row that was read in order makes all rows be read once more, however long a request takes.
        monkeypatch.setattr("tensorage.training.rows.LEAST_REQUEST_BYTES", 3 * 2**20)
    array = np.random.default_rng(1).integers(0, 2**32, (5000, 2048), dtype="u4")
    handle = opened(away, store, "x", array)
    assert handle.nbytes > 2**25
    with proxy.counted() as asked:
        for i in range(len(array)):
            np.testing.assert_array_equal(handle[i], array[i])
    assert len(asked) <= 24
    assert sum(exchange.received_bytes for exchange in asked) <= 1.2 * array.nbytes
    with proxy.counted() as asked:
        for row, expected in zip(handle, array, strict=True):
            np.testing.assert_array_equal(row, expected)
    assert len(asked) <= 24
    with proxy.counted() as asked:
        first = next(iter(handle))
    np.testing.assert_array_equal(first, array[0])
    assert sum(exchange.received_bytes for exchange in asked) <= 9 * 2**20


def test_rows_in_any_order_pay_for_all(
    away: TensorStore, store: TensorStore, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An array is read whole once its rows, read alone, have taken a third of the time that this takes."""
    array = LARGE
    # Each row is worth a thirtieth, however long it takes.
    monkeypatch.setattr("tensorage.training.rows.LEAST_REQUEST_BYTES", array.nbytes // 30 + 1)
    monkeypatch.setattr("tensorage.training.rows.FEWEST_PAYING", 1000)
    handle = opened(away, store, "x", array)
    order = np.random.default_rng(2).permutation(len(array))
    with proxy.counted() as asked:
        for i in order[:10]:
            np.testing.assert_array_equal(handle[i], array[i])
    assert sum(exchange.received_bytes for exchange in asked) <= array.nbytes / 2
    with proxy.counted() as asked:
        for i in order[10:]:
            np.testing.assert_array_equal(handle[i], array[i])
    assert len(asked) <= 4
    # Storage compresses a little.
    assert 0.8 * array.nbytes <= sum(exchange.received_bytes for exchange in asked) <= 1.1 * array.nbytes


def test_a_few_rows_are_read_alone(away: TensorStore, store: TensorStore, proxy: Proxy) -> None:
    """A handful of rows from anywhere is no loop."""
    array = LARGE
    store.write(
        "x", array, **({} if store.engine == "database" else {"chunks": (4, 256), "shards": (400, 256)})
    )
    handle = away.open("x")
    with proxy.counted() as asked:
        for i in (5, 3000, 77, 2000):
            np.testing.assert_array_equal(handle[i], array[i])
    assert sum(exchange.received_bytes for exchange in asked) <= 2**16


@pytest.mark.parametrize("engine", ["storage"])
def test_single_rows_of_storage_are_looked_up_once(
    away: TensorStore, store: TensorStore, proxy: Proxy
) -> None:
    store.write("x", LARGE, chunks=(4, 256), shards=(400, 256))
    handle = away.open("x")
    handle[1000:1001]
    with proxy.counted() as asked:
        for i in (5, 3000, 77, 2000):
            np.testing.assert_array_equal(handle[i], LARGE[i])
    # Places of all chunks, 16 bytes each, and a chunk for each row.
    assert len(asked) == 1 + 4
    assert sum(exchange.received_bytes for exchange in asked) <= 16 * 1000 + 2**16


# --- changes ------------------------------------------------------------------------------------------


@pytest.fixture
def chunked(session: BackendSession) -> TensorStore:
    """A store with an array in Storage, of which single rows are read by the places of their chunks."""
    store = TensorStore(session, quiet=True, engine="storage", allow_overwrite=True)
    store.write("x", LARGE, chunks=(4, 256), shards=(400, 256))
    return store


class Clock:
    """A clock that stands still, in place of the module `time`."""

    now = 1000.0

    def monotonic(self) -> float:
        return self.now

    perf_counter = monotonic


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock of rows that are read ahead, however slow the machine is.

    Objects that were replaced are still there, as if their writers had died: nothing but a look tells of them.
    """
    monkeypatch.setattr("tensorage.backend.staging.sweep_some_objects", lambda _transfer, _before: [])
    clock = Clock()
    monkeypatch.setattr("tensorage.training.rows.time", clock)
    return clock


@pytest.mark.usefixtures("clock")
def test_own_changes_are_seen_in_single_rows(chunked: TensorStore) -> None:
    handle = chunked.open("x")
    np.testing.assert_array_equal(handle[5], LARGE[5])
    chunked["x", 3000] = 1
    assert (handle[3000] == 1).all()
    np.testing.assert_array_equal(handle[2000], LARGE[2000])
    chunked.write("x", LARGE + 1, chunks=(4, 256), shards=(400, 256))
    np.testing.assert_array_equal(handle[77], LARGE[77] + 1)


def test_changes_by_others_are_seen_in_single_rows(
    chunked: TensorStore, project: Project, user: User, clock: Clock
) -> None:
    other = project.session(user)()
    handle = chunked.open("x")
    np.testing.assert_array_equal(handle[5], LARGE[5])
    other["x", 4:8] = 1
    # Rows that came along with another one, and one that was asked for before.
    assert (handle[5] == 1).all()
    other["x", 4:8] = 2
    handle[6]
    assert (handle[6] == 2).all()
    # A chunk that was read before, with another one read since.
    handle[3000]
    other["x", 4:8] = 3
    assert (handle[5] == 3).all()
    other["x", 2000] = 3
    clock.now += 1.1
    assert (handle[2000] == 3).all()


def test_single_rows_are_as_old_as_the_look_at_their_places(
    chunked: TensorStore, project: Project, user: User, clock: Clock
) -> None:
    other = project.session(user)()
    handle = chunked.open("x")
    handle[5]
    clock.now += 0.7
    handle[3000]
    other["x", 3001] = 1
    clock.now += 0.4
    assert (handle[3001] == 1).all()


def test_single_rows_of_objects_that_are_gone(chunked: TensorStore, project: Project, user: User) -> None:
    """The places that were looked up may be those of objects that somebody has replaced, and swept, meanwhile."""
    handle = chunked.open("x")
    np.testing.assert_array_equal(handle[5], LARGE[5])
    other = project.session(user)
    store = TensorStore(other, quiet=True, engine="storage", allow_overwrite=True)
    store.write("x", LARGE[:3000] + 1, chunks=(4, 256), shards=(400, 256))
    # Its end deletes the objects that were replaced.
    other.logout()
    np.testing.assert_array_equal(handle[2000], LARGE[2000] + 1)
    with pytest.raises(IndexError):
        handle[3500]


@pytest.mark.usefixtures("clock")
def test_no_row_comes_from_before_a_block(chunked: TensorStore, project: Project, user: User) -> None:
    """Rows that were read together are newer than the places that were looked up before them."""
    handle = chunked.open("x")
    other = project.session(user)()
    for i in (5, *range(1000, 1016), *range(2000, 2016)):
        handle[i]
    other["x", 1010] = 1
    assert (handle[1010] == 1).all()


def test_own_changes_are_seen_at_once(store: TensorStore) -> None:
    store["x"] = np.arange(100)
    handle, other = store.open("x"), store.open("x")
    assert [handle[i] for i in range(10)] == list(range(10))
    other[50:] = -1
    assert handle[60] == -1
    store["x", 70] = -2
    assert (handle[70], handle[71]) == (-2, -1)
    handle[80] = -3
    assert handle[80] == -3
    store.append("x", [7])
    handle.refresh()
    assert (handle[-1], handle[100]) == (7, 7)
    del store["x"]
    with pytest.raises(KeyNotFoundError):
        handle[20]


@pytest.mark.usefixtures("clock")
def test_a_forked_child_sees_its_own_changes(project: Project, user: User, engine: Engine) -> None:
    """Its connections are new, and its first change is not the parent's first one."""
    session = project.session(user)
    store = TensorStore(session, quiet=True, engine=engine)
    store["x"] = np.zeros(100)
    other = project.session(user)
    handle = TensorStore(other, quiet=True).open("x")
    TensorStore(other, quiet=True)["x", 0] = 1
    handle[1], handle[2]

    def change() -> str:
        TensorStore(other, quiet=True)["x", 50] = 2
        return str(handle[50])

    assert fork(change)() == "2.0"
    store.clear()
    other.logout()
    session.logout()


def test_changes_by_others_are_seen(store: TensorStore, project: Project, user: User) -> None:
    other = project.session(user)()
    store["x"] = np.arange(100)
    handle = store.open("x")
    assert [handle[i] for i in range(10)] == list(range(10))
    other["x", 3:] = -1
    # Nobody waits in vain for a row to change.
    assert handle[5] == -1
    assert [handle[i] for i in range(10)] == [0, 1, 2, *[-1] * 7]
    other["x", 50:] = -2
    time.sleep(1.1)
    assert handle[60] == -2
    # Another array under the same key.
    with TensorStore(other.backend, allow_overwrite=True).background() as bg:
        bg["x"] = np.arange(3)
    time.sleep(1.1)
    with pytest.raises(IndexError):
        handle[70]
    assert handle[2] == 2


def test_a_poll_sees_each_change_at_once(store: TensorStore, project: Project, user: User) -> None:
    other = project.session(user)()
    store["x"] = np.zeros(10)
    handle = store.open("x")
    for number in range(5):
        other["x", 0] = number
        assert handle[0] == number
        assert handle[0] == number


def test_rows_do_not_travel_with_a_handle(store: TensorStore) -> None:
    store["x"] = ROWS
    handle = store.open("x")
    assert_rows((handle[i] for i in range(1000)), ROWS)
    assert len(pickle.dumps(handle)) < 20_000
    again: Tensor = pickle.loads(pickle.dumps(handle))
    np.testing.assert_array_equal(again[5], ROWS[5])


def test_threads_share_a_handle(store: TensorStore) -> None:
    from concurrent.futures import ThreadPoolExecutor

    store["x"] = ROWS
    handle = store.open("x")

    def read(seed: int) -> None:
        for i in random.Random(seed).sample(range(1000), 300):
            np.testing.assert_array_equal(handle[i], ROWS[i])

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(read, range(4)))


# --- DLPack -------------------------------------------------------------------------------------------


def test_dlpack(session: BackendSession) -> None:
    store = TensorStore(session, quiet=True)
    store["x"], store["text"] = ROWS[:3], np.array(["a"])
    handle = store.open("x")
    np.testing.assert_array_equal(np.from_dlpack(handle), ROWS[:3])
    with pytest.raises(BufferError, match="copy=False"):
        handle.__dlpack__(copy=False)
    with pytest.raises(BufferError, match="<U1"):
        store.open("text").__dlpack__()
