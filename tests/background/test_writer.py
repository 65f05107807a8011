"""A background writer in a loop: order, copies, and room, with both engines."""

from __future__ import annotations

import copy
import pickle
import threading
from collections.abc import Callable

import numpy as np
import pytest
from gate import Gate, wait_until_in
from project import Project, User

import tensorage
from tensorage import BackendSession, TensorStore
from tensorage.background.writer import BackgroundWriter
from tensorage.types import Engine


@pytest.fixture
def store(session: BackendSession, engine: Engine) -> TensorStore:
    return TensorStore(session, quiet=True, engine=engine, allow_overwrite=True)


def test_what_a_loop_gives_is_there_when_the_block_has_ended(store: TensorStore) -> None:
    weights = np.zeros((3, 4), "f4")
    with store.background() as bg:
        bg["loss"] = np.empty((0,), "f8")
        for step in range(5):
            weights += 1
            bg[f"weights/{step}"] = weights
            bg.append("loss", [step / 2])
        bg["weights/0", 1, ::2] = [7, 8]
        bg.write("named", weights, attrs={"step": np.int64(4)}, dims=("in", "out"), is_shared=True)
        del bg["weights/3"]
    assert store["loss"].tolist() == [0, 0.5, 1, 1.5, 2]
    assert store.keys("weights/") == [f"weights/{step}" for step in (0, 1, 2, 4)]
    assert store["weights/0"].tolist() == [[1] * 4, [7, 1, 8, 1], [1] * 4]
    named = store.open("named")
    np.testing.assert_array_equal(named, np.full((3, 4), 5))
    assert (dict(named.attrs), named.dims, named.engine) == ({"step": 4}, ("in", "out"), store.engine)
    assert named.dataset.is_shared
    store.unshare("named")


def test_the_settings_of_a_write(session: BackendSession) -> None:
    array = np.arange(64.0).reshape(8, 8)
    with TensorStore(session, quiet=True, chunk_size=4).background() as bg:
        bg["rows"] = array
        bg.write("objects", array, engine="storage", chunks=(2, 8), shards=(4, 8))
    store = session()
    assert (store.rows.engine, store.rows.dataset.block_size) == ("database", 4)
    assert store.objects.engine == "storage"
    for key in ("rows", "objects"):
        np.testing.assert_array_equal(store[key], array)


def test_the_last_one_of_many_overwrites_wins(store: TensorStore) -> None:
    with store.background() as bg:
        for number in range(20):
            bg["x"] = np.full(10, number)
            bg[f"other/{number % 3}"] = number
    assert store["x"].tolist() == [19] * 10
    assert [int(store[f"other/{n}"]) for n in range(3)] == [18, 19, 17]


def test_operations_of_a_key_are_done_in_order(session: BackendSession, engine: Engine) -> None:
    with TensorStore(session, quiet=True, engine=engine).background() as bg:
        for is_last in (False, True):
            # Each of them would fail, or do something else, before the one ahead of it.
            bg["x"] = [0]
            for number in range(1, 6):
                bg.append("x", [number])
            bg["x", 5] = 50
            bg.append("x", [6])
            bg["x", -1] = 60
            if not is_last:
                del bg["x"]
    assert session()["x"].tolist() == [0, 1, 2, 3, 4, 50, 60]


def test_what_changes_afterwards_is_not_what_is_written(gated: TensorStore, gate: Gate) -> None:
    gated["base"] = np.zeros((4, 4), "i2")
    gated["rows"] = np.zeros((0, 4), "f8")
    fortran, strided = np.asfortranarray(np.arange(12).reshape(3, 4)), np.arange(20)[::2]
    rows, raw, nested = np.ones((1, 4)), bytearray(b"\1\2"), [[1, 2], [3, 4]]
    index, value, attrs, dims = np.array([0, 2]), np.array([5, 6], "i2"), {"a": [1]}, ["x"]
    expected = fortran.copy(), strided.copy()
    with gated.background(max_in_flight=20) as bg:
        gate.close()
        bg["fortran"], bg["strided"], bg["raw"], bg["nested"] = fortran, strided, memoryview(raw), nested
        bg.append("rows", rows)
        bg["base", index, 1] = value
        bg.write("attrs", np.ones(1), attrs=attrs, dims=dims)
        for array in (fortran, strided, rows, value):
            array[...] = -1
        index[:], raw[0], nested[0][0], attrs["a"][0], dims[0] = 3, 9, -1, 2, "y"
        gate.open()
    assert gated["raw"].tolist() == [1, 2]
    assert gated["nested"].tolist() == [[1, 2], [3, 4]]
    assert gated["rows"].tolist() == [[1] * 4]
    assert gated["base"][:, 1].tolist() == [5, 0, 6, 0]
    assert (dict(gated.open("attrs").attrs), gated.open("attrs").dims) == ({"a": [1]}, ("x",))
    for key, array in zip(("fortran", "strided"), expected, strict=True):
        np.testing.assert_array_equal(gated[key], array)


def test_appended_lists_are_as_good_as_their_values(store: TensorStore) -> None:
    store["x"] = np.zeros(1, "f4")
    with store.background() as bg:
        bg.append("x", [1, 2])
        bg.append("x", np.array([3], "f2"))
    assert store["x"].tolist() == [0, 1, 2, 3]
    bg = store.background()
    bg.append("x", np.array([1.5]))
    with pytest.raises(tensorage.DTypeError):
        bg.close()


def test_a_call_returns_while_its_array_is_on_its_way(gated: TensorStore, gate: Gate) -> None:
    with gated.background() as bg:
        gate.close()
        for key in "abc":
            bg[key] = np.zeros(1024, "u1")
            gate.wait_for(1)
        # Three keys are on their way at once, and a second operation of a key is not.
        bg.append("a", np.zeros(1024, "u1"))
        assert "4 operations and 4 KiB in flight" in repr(bg)
        gate.open()
        bg.flush()
        assert "0 operations" in repr(bg)
        assert gated.keys() == ["a", "b", "c"]
    assert "closed" in repr(bg)


@pytest.mark.parametrize("limits", [{"max_in_flight": 2}, {"max_bytes": 2 * 800}], ids=str)
def test_no_more_is_in_flight_than_may_be(limits: dict[str, int], gated: TensorStore, gate: Gate) -> None:
    most = 0
    with gated.background(**limits) as bg:

        def watch() -> None:
            nonlocal most
            most = max(most, len(bg.workers.operations))

        gate.watches = watch
        gate.close()
        bg["a"], bg["b"] = np.zeros(100), np.zeros(100)
        gate.wait_for(2)
        loop = threading.Thread(target=bg.__setitem__, args=["c", np.zeros(100)])
        loop.start()
        wait_until_in(loop, "take")
        # Meanwhile, what is smaller does not overtake it.
        behind = threading.Thread(target=bg.__setitem__, args=["d", np.zeros(1)])
        behind.start()
        gate.open()
        loop.join()
        behind.join()
        for number in range(20):
            bg[f"more/{number}"] = np.full(100, number)
    assert most == 2
    assert len(gated) == 24


def test_an_array_that_is_larger_than_the_room_is_written_alone(store: TensorStore) -> None:
    with store.background(max_bytes=1000) as bg:
        bg["small"] = np.zeros(10)
        bg["large"] = np.arange(1_000_000.0)
        bg["small too"] = np.zeros(10)
    np.testing.assert_array_equal(store["large"], np.arange(1_000_000.0))


def test_arrays_of_many_requests(store: TensorStore) -> None:
    arrays = {f"large/{n}": np.random.default_rng(n).random((24, 1024, 128)) for n in range(3)}
    with store.background() as bg:
        for key, array in arrays.items():
            bg[key] = array
            bg.append(key, array[:12])
    for key, array in arrays.items():
        np.testing.assert_array_equal(store[key], np.concatenate([array, array[:12]]))


def test_many_threads_use_one_writer(store: TensorStore) -> None:
    store["all"] = np.zeros((0, 2), "i8")
    with store.background(max_in_flight=3) as bg:

        def loop(number: int) -> None:
            bg[f"own/{number}"] = np.zeros(0, "i8")
            for step in range(5):
                bg.append("all", [[number, step]])
                bg.append(f"own/{number}", [step])
            bg.flush()

        threads = [threading.Thread(target=loop, args=[n]) for n in range(5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    rows = store["all"].tolist()
    assert sorted(rows) == [[n, step] for n in range(5) for step in range(5)]
    for number in range(5):
        assert [step for n, step in rows if n == number] == list(range(5))
        assert store[f"own/{number}"].tolist() == list(range(5))


MISTAKES: list[tuple[Callable[[BackgroundWriter], object], type[Exception]]] = [
    (lambda bg: bg.__setitem__("", 1), tensorage.InvalidInputError),
    (lambda bg: bg.__setitem__(5, 1), tensorage.InvalidInputError),
    (lambda bg: bg.__setitem__((), 1), tensorage.InvalidInputError),
    (lambda bg: bg.__setitem__(("a\0", 0), 1), tensorage.InvalidInputError),
    (lambda bg: bg.__setitem__("x", [[1], [1, 2]]), tensorage.InvalidInputError),
    (lambda bg: bg.__setitem__("x", np.ma.masked_array([1], [True])), tensorage.InvalidInputError),
    (lambda bg: bg.__setitem__("x", ["text", None]), tensorage.DTypeError),
    (lambda bg: bg.__setitem__(("x", 0), np.array(["text"], object)), tensorage.DTypeError),
    (lambda bg: bg.append("x", [None]), tensorage.DTypeError),
    (lambda bg: bg.append("", [1]), tensorage.InvalidInputError),
    (lambda bg: bg.write("x", [1], dims=("a", "b")), tensorage.InvalidInputError),
    (lambda bg: bg.write("x", [1], attrs={"a": object()}), tensorage.InvalidInputError),
    (lambda bg: bg.write("x", [1], engine="tape"), tensorage.InvalidInputError),
    (lambda bg: bg.write("x", (block for block in [[1]])), tensorage.DTypeError),
    (lambda bg: bg.__delitem__(("x", 0)), tensorage.InvalidInputError),
]


def test_what_can_be_seen_at_once_is_raised_at_once(session: BackendSession) -> None:
    with session().background() as bg:
        for give, error in MISTAKES:
            with pytest.raises(error):
                give(bg)
        assert "0 operations" in repr(bg)


def test_limits_that_make_no_sense(session: BackendSession) -> None:
    for name, value in (("max_in_flight", 0), ("max_in_flight", -1), ("max_bytes", 0), ("max_bytes", 1.5)):
        with pytest.raises(tensorage.InvalidInputError, match=name):
            session().background(**{name: value})  # type: ignore[arg-type]


def test_it_cannot_be_pickled_or_copied(session: BackendSession) -> None:
    with session().background() as bg:
        for attempt in (pickle.dumps, copy.copy, copy.deepcopy):
            with pytest.raises(TypeError, match=r"make one in each process, with store\.background"):
                attempt(bg)


def test_it_holds_the_login_until_it_is_closed(project: Project, user: User) -> None:
    session = project.session(user)
    with TensorStore(session).background() as bg:
        bg["x"] = [1]
        assert session.login.session is not None
    assert session.login.session is None
    assert session()["x"].tolist() == [1]
