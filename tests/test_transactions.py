"""Changes that belong together: transactions, groups, several arrays in one look, and saved state."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import pytest
import workers
from project import Project, User
from proxy import Exchange, Proxy

import tensorage
from tensorage import TensorStore
from tensorage.backend.entries import EntryMemory
from tensorage.transactions.recorder import Recorder
from tensorage.transactions.transaction import Transaction
from tensorage.types import Dataset, Engine

Watched = tuple[TensorStore, list[Exchange]]

#: More than one request takes, with blocks of 1 MiB.
LARGE = np.arange(2_000_000, dtype="f8")

#: Seconds, longer than a request is on its way to the database.
LONG_S = 0.3


@pytest.fixture
def overwriting(session: tensorage.BackendSession, engine: Engine) -> TensorStore:
    return TensorStore(session, quiet=True, engine=engine, allow_overwrite=True)


def change(store: TensorStore, *changes: Callable[[Transaction], object]) -> None:
    """Make changes in one transaction."""
    with store.transaction() as tx:
        for each in changes:
            each(tx)


def put(key: Any, value: Any) -> Callable[[Transaction], object]:
    return lambda tx: tx.__setitem__(key, value)


def delete(key: str) -> Callable[[Transaction], object]:
    return lambda tx: tx.__delitem__(key)


def append(key: str, rows: Any) -> Callable[[Transaction], object]:
    return lambda tx: tx.append(key, rows)


class TestTransaction:
    def test_all_is_seen_at_once(self, store: TensorStore) -> None:
        store.update({"old": [1], "y": np.arange(4, dtype="i2").reshape(2, 2), "w": np.zeros((5, 2))})
        with store.transaction() as tx:
            tx["x"] = np.arange(10.0)
            tx.append("y", np.array([[7, 8]], "i1"))
            tx["w", 3:] = [[1], [2]]
            if store.engine == "database":
                tx["w", 3:] = [[0], [0]]
                tx["w", 3:] = [[1], [2]]
            del tx["old"]
            tx.write("z", [1, 2], attrs={"units": "K"}, dims=("t",))
            assert "x" not in store
            assert "old" in store
        assert store.keys() == ["w", "x", "y", "z"]
        assert store["x"].tolist() == list(range(10))
        assert store["y"].tolist() == [[0, 1], [2, 3], [7, 8]]
        assert store["y"].dtype == "i2"
        assert store["w"].tolist() == [[0, 0]] * 3 + [[1, 1], [2, 2]]
        assert store.open("z").attrs == {"units": "K"}
        assert store.open("z").dims == ("t",)

    def test_large_arrays_come_with_the_rest(self, store: TensorStore) -> None:
        store.update({"w": np.zeros(LARGE.size), "y": [1.0]})
        with store.transaction() as tx:
            tx["x"] = LARGE
            tx["w", ::2] = LARGE[::2]
            tx.append("y", LARGE)
            tx["small"] = 3
            assert store.keys() == ["w", "y"]
        assert np.array_equal(store["x"], LARGE)
        assert np.array_equal(store["w"], np.where(np.arange(LARGE.size) % 2, 0, LARGE))
        assert np.array_equal(store["y", 1:], LARGE)
        assert store["small"] == 3

    def test_an_error_in_the_block_leaves_all_as_it_was(self, store: TensorStore) -> None:
        store["w"] = np.zeros(3)
        before = store.usage()
        with pytest.raises(ZeroDivisionError):
            change(store, put("x", LARGE), put(("w", 0), 1), delete("w"), lambda _: 1 / 0)
        assert store.keys() == ["w"]
        assert store["w"].tolist() == [0, 0, 0]
        assert store.usage().bytes == before.bytes

    @pytest.mark.parametrize(
        ("wrong", "error"),
        [
            (put("w", 1), tensorage.KeyExistsError),
            (delete("missing"), tensorage.KeyNotFoundError),
            (append("missing", [1]), tensorage.KeyNotFoundError),
            (append("w", [[1.0]]), tensorage.InvalidInputError),
            (append("w", [1j]), tensorage.DTypeError),
            (put(("w", 9), 1), IndexError),
            (put(("missing", 0), 1), tensorage.KeyNotFoundError),
            (put("o", [object()]), tensorage.DTypeError),
        ],
        ids=["taken", "delete", "append", "shape", "dtype", "index", "assign", "object"],
    )  # fmt: skip
    def test_what_cannot_be_done_leaves_all_as_it_was(
        self, store: TensorStore, wrong: Callable[[Transaction], object], error: type[Exception]
    ) -> None:
        store["w"] = np.zeros(3)
        with pytest.raises(error):
            change(store, put("x", [1]), append("w", [1.0]), wrong)
        assert store.keys() == ["w"]
        assert store["w"].tolist() == [0, 0, 0]

    def test_of_two_that_change_an_array_the_second_is_told(self, overwriting: TensorStore) -> None:
        store = overwriting
        store.update({"w": np.zeros(3), "x": [0], "z": [0]})

        def be_first(_: Transaction) -> None:
            # Arrays that were not read are compared by time. The last request is on its way for less than this.
            time.sleep(LONG_S)
            change(store, put("w", np.ones(3)), put("x", [9]), put(("z", 0), 9))

        for key, second in (("w", put(("w", 0), 1)), ("x", put("x", [1])), ("z", delete("z"))):
            with pytest.raises(tensorage.ChangedError, match=f"'{key}' was changed"):
                change(store, second, put("y", [2]), be_first)
            assert "y" not in store
        assert (store["w"].tolist(), store["x"], store["z"]) == ([1, 1, 1], [9], [9])

    def test_reads_of_other_threads_are_none_of_a_transaction_s(self) -> None:
        """An answer to another thread may be older than what this one has stored meanwhile: no conflict of it."""
        memory, entry = EntryMemory(), Dataset(1, "x", (3,), np.dtype("f8"), block_size=3)
        with ThreadPoolExecutor(1) as pool:
            pool.submit(memory.remember, None, entry).result()
            assert memory.used_since(None, "x", 0.0) is None
            assert memory.find(None, "x") is not None
            assert memory.used_since(None, "x", 0.0) == entry
            pool.submit(memory.find, None, "x").result()
        assert memory.used_since(None, "x", 0.0) is None

    def test_an_array_that_was_read_and_then_changed_is_a_conflict_however_late_the_end_comes(
        self, project: Project, user: User, overwriting: TensorStore
    ) -> None:
        """The database counts the seconds of the transaction back from the moment at which it has its end."""

        def is_late(head: bytes) -> bytes:
            if b"tensorage_transact" in head:
                time.sleep(1)
            return head

        proxy = Proxy(project.url, changes=is_late)
        with workers.store_of(Project(proxy.url, project.key), user) as near:
            store = replace(near, allow_overwrite=True, engine=overwriting.engine)
            for _ in range(2):  # The second time, the session remembers the array.
                overwriting["x"] = [1]
                store["x"] = [1]

                def read_and_change(tx: Transaction) -> None:
                    read = store["x"]
                    overwriting["x"] = [2]
                    tx["x"] = read + 10

                with pytest.raises(tensorage.ChangedError, match="'x' was changed"):
                    change(store, read_and_change)
                assert store["x"] == [2]
            change(store, lambda tx: tx.__setitem__("x", store["x"] + 10))
            assert store["x"] == [12]
        proxy.close()

    def test_values_of_lists_fit_as_they_do_in_a_store(self, store: TensorStore) -> None:
        store.update({"small": np.zeros(1, "i4"), "narrow": np.zeros((1, 2), "f4")})
        store.write_ragged("samples", [[1], [2, 3]], dtype="i2")
        change(store, append("small", [3]), append("narrow", [(0.5, 1)]), append("samples", [[4, 5], [6, 7]]))
        assert store["small"].tolist() == [0, 3]
        assert store["narrow"].tolist() == [[0, 0], [0.5, 1]]
        assert [sample.tolist() for sample in store["samples"]] == [[1], [2, 3], [4, 5], [6, 7]]
        with pytest.raises(tensorage.DTypeError):
            change(store, append("small", [0.5]), put("y", [1]))
        assert "y" not in store

    def test_reading_is_refused_and_says_where_to(self, store: TensorStore) -> None:
        with (
            pytest.raises(tensorage.InvalidInputError, match="Read from the store"),
            store.transaction() as tx,
        ):
            tx["x", 3]

    def test_attributes_of_a_transaction_are_none_of_arrays(self, store: TensorStore) -> None:
        with pytest.raises(AttributeError, match=r"tx\['x'\] = array"), store.transaction() as tx:
            tx.x = np.ones(3)  # type: ignore[attr-defined]

    def test_an_array_changed_before_is_no_conflict(self, overwriting: TensorStore) -> None:
        for number in range(3):
            overwriting["x"] = [number]
            overwriting.update({"x": [number + 10]})
        assert overwriting["x"] == [12]

    def test_an_array_of_the_database_is_appended_to_as_soon_as_it_is_stored(
        self, store: TensorStore
    ) -> None:
        with store.transaction() as tx:
            tx.write("x", np.zeros(2, "f4"), engine="database")
            tx.write("x large", LARGE, engine="database")
            if store.engine == "database":
                tx.append("x", np.ones(1, "i1"))
                tx.append("x large", [1])
        assert store["x"].tolist() == ([0, 0, 1] if store.engine == "database" else [0, 0])
        assert store["x"].dtype == "f4"
        assert store["x large", LARGE.size :].tolist() == [1] * (store.engine == "database")

    @pytest.mark.parametrize("rows", [1, 40], ids=["as tails", "as objects"])
    def test_an_append_goes_behind_those_of_others(
        self, overwriting: TensorStore, rows: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("tensorage.backend.zarr.tails.MOST_TAIL_BYTES", 100)
        store = overwriting
        own = np.full((rows, 30), 2)
        store["log"] = np.zeros((1, 30), "i8")
        change(
            store, append("log", own), put("x", [1]), lambda _: store.append("log", np.full((3, 30), 1)), put("y", [1])
        )  # fmt: skip
        assert store["log"][:, 7].tolist() == [0, *[1] * 3, *[2] * rows]
        assert store["x"] == 1
        assert store.usage().arrays == len(store)

    def test_an_append_of_fill_values_goes_behind_those_of_others(self, store: TensorStore) -> None:
        """Nothing of them travels."""
        store["log"] = [5]
        change(store, append("log", [0]), lambda _: store.append("log", [6]))
        assert store["log"].tolist() == [5, 6, 0]

    def test_an_append_to_an_array_that_was_taken_for_one_of_the_database(
        self, session: tensorage.BackendSession, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The end of the transaction tells that it is in Storage, and others append right then."""
        store = TensorStore(session, quiet=True, engine="storage")
        store["log"] = [0]
        commit, tries = Recorder.commit, list[float]()

        def commit_late(recorder: Recorder, open_for_s: float) -> None:
            tries.append(open_for_s)
            if len(tries) == 2:
                store.append("log", [1])
            commit(recorder, open_for_s)

        monkeypatch.setattr(Recorder, "commit", commit_late)
        change(replace(store, engine="database"), append("log", [2]))
        assert store["log"].tolist() == [0, 1, 2]
        # The end tells the engine, of the others, and that a chunk has yet to take their row and its own.
        assert len(tries) == 4
        store.clear()

    def test_an_append_goes_to_the_array_that_has_taken_the_place(self, overwriting: TensorStore) -> None:
        store = overwriting
        store["log"] = [0]
        change(store, append("log", [2]), lambda _: store.update({"log": [5, 6]}))
        assert store["log"].tolist() == [5, 6, 2]

    def test_other_conflicts_are_told_beside_an_append(self, overwriting: TensorStore) -> None:
        store = overwriting
        store.update({"log": [0], "w": [1, 2]})
        with pytest.raises(tensorage.ChangedError, match="'w'"):
            change(store, append("log", [2]), put(("w", 0), 3), lambda _: store.update({"w": [7, 8]}))
        with pytest.raises(tensorage.ChangedError, match="'w'"):
            change(
                store, append("log", [2]), put(("w", 0), 3),
                lambda _: store.append("log", [1]), lambda _: store.update({"w": [9, 9]}),
            )  # fmt: skip
        assert (store["log"].tolist(), store["w"].tolist()) == ([0, 1], [9, 9])

    def test_appends_of_several_all_land(self, store: TensorStore) -> None:
        store["log"] = np.zeros(0, "i8")
        with store.transaction() as one, store.transaction() as other:
            one.append("log", [1])
            other.append("log", [2])
            store.append("log", [3])
        assert sorted(store["log"].tolist()) == [1, 2, 3]
        barrier = threading.Barrier(6)

        def write(number: int) -> None:
            with store.transaction() as tx:
                tx.append("log", [number])
                tx[f"x/{number}"] = [number]
                barrier.wait()

        with ThreadPoolExecutor(6) as pool:
            list(pool.map(write, range(4, 10)))
        assert sorted(store["log"].tolist()) == [1, 2, 3, *range(4, 10)]
        assert store.keys() == ["log", *(f"x/{number}" for number in range(4, 10))]

    def test_large_assignments_to_one_array_are_one(self, store: TensorStore) -> None:
        store["w"] = np.zeros(LARGE.size)
        everything = put(("w", slice(None)), LARGE)
        with pytest.raises(tensorage.InvalidInputError, match="make one of both"):
            change(store, everything, everything)
        assert not store["w"].any()

    def test_elements_are_those_of_the_moment(self, store: TensorStore) -> None:
        array = np.zeros(3)
        with store.transaction() as tx:
            tx["x"] = array
            array[:] = 1
        assert store["x"].tolist() == [0, 0, 0]

    def test_a_group_is_one_in_its_transactions_too(self, store: TensorStore) -> None:
        group = store.group("exp")
        group["y"] = np.zeros(2, "i2")
        with group.transaction() as tx:
            tx["x"] = [1]
            tx.append("y", np.ones(1, "i1"))
        assert store.keys() == ["exp/x", "exp/y"]
        assert store["exp/y"].tolist() == [0, 0, 1]

    def test_what_is_stored_cannot_be_opened_before_the_end(self, overwriting: TensorStore) -> None:
        overwriting["x"] = [1]
        with pytest.raises(tensorage.InvalidInputError, match="before the end"):
            change(overwriting, put("x", [2]), put(("x", 0), 3))
        assert overwriting["x"] == [1]

    def test_transactions_that_have_ended_say_so(self, store: TensorStore) -> None:
        tx = store.transaction()
        with pytest.raises(tensorage.ClosedError, match=r"with store\.transaction"):
            tx["x"] = [1]
        with tx:
            pass
        with pytest.raises(tensorage.ClosedError):
            del tx["x"]
        with pytest.raises(tensorage.ClosedError, match="another one"), tx:
            pass

    def test_writers_of_several_arrays_do_not_stop_each_other(self, store: TensorStore) -> None:
        store.write("log", np.zeros(0, "i8"), engine="database")
        store = replace(store, engine="database")
        together = threading.Barrier(10)

        def write(number: int) -> None:
            together.wait(60)
            with store.transaction() as tx:
                tx[f"a/{number}"] = [number]
                tx.append("log", [number])
                tx[f"b/{number}"] = [number]

        with ThreadPoolExecutor(10) as pool:
            list(pool.map(write, range(10)))
        assert sorted(store["log"].tolist()) == list(range(10))
        assert len(store) == 21

    def test_a_sharee_appends_to_several(self, project: Project, store: TensorStore) -> None:
        store.update({"x": [1], "y": [1]})
        reader = project.register()
        with workers.store_of(project, reader) as other:
            assert other.backend.email is not None
            store.share("x", other.backend.email, write=True)
            store.share("y", other.backend.email, write=True)
            theirs = other.shared_by(str(store.backend.email))
            with theirs.transaction() as tx:
                tx.append("x", [2])
                tx["y", 0] = 5
            assert (store["x"].tolist(), store["y"].tolist()) == ([1, 2], [5])
            store.unshare("y")
            with pytest.raises((tensorage.ChangedError, tensorage.KeyNotFoundError)):
                change(theirs, append("x", [3]), append("y", [3]))
            with pytest.raises(tensorage.PermissionDeniedError):
                change(theirs, put("z", [1]))
        assert (store["x"].tolist(), store["y"].tolist()) == ([1, 2], [5])


class TestRequests:
    def test_small_arrays_are_one_request(self, watched: Watched) -> None:
        store, seen = watched
        store.update({"y": [1], "gone": [1]})
        seen.clear()
        with store.transaction() as tx:
            for number in range(175):
                tx[f"x/{number}"] = np.full(100, number)
            tx.append("y", [2])
            del tx["gone"]
        assert [exchange.target for exchange in seen] == ["/rest/v1/rpc/tensorage_transact"]
        assert store["y"].tolist() == [1, 2]
        seen.clear()
        assert store.read_many([f"x/{number}" for number in range(50)])["x/7"].tolist() == [7] * 100
        assert len(seen) == 1
        store.clear()

    def test_a_lost_answer_is_asked_for_again(self, project: Project, user: User) -> None:
        lost: list[Exchange] = []

        def loses(exchange: Exchange) -> bool:
            if exchange.target.endswith("tensorage_transact") and not lost:
                lost.append(exchange)
                return True
            return False

        proxy = Proxy(project.url, loses)
        with workers.store_of(Project(proxy.url, project.key), user) as store:
            store["log"] = [0]
            with store.transaction() as tx:
                tx.append("log", [1])
                tx["x"] = [1]
            assert lost
            assert store["log"].tolist() == [0, 1]
            store.clear()
        proxy.close()

    def test_a_state_is_loaded_by_one(self, watched: Watched) -> None:
        store, seen = watched
        state = {"layers": [{"w": np.full((4, 4), n), "b": np.zeros(4)} for n in range(25)], "step": 3}
        store.save("ckpt/1", state)
        seen.clear()
        loaded = store.load("ckpt/1")
        assert len(seen) == 1
        assert loaded["step"] == 3
        assert loaded["layers"][24]["w"].tolist() == state["layers"][24]["w"].tolist()  # type: ignore[index]
        store.clear()


class TestSmallArraysOfStorage:
    """They go with the request that commits them, as tails of their shards, and are arrays like any other."""

    ARRAYS: ClassVar[dict[str, npt.NDArray[Any]]] = {
        "numbers": np.arange(1250.0),
        "noise": np.random.default_rng(0).integers(0, 256, 12_000, "u1"),
        "fill values": np.zeros((3, 4)),
        "half of them": np.where(np.arange(2000) < 1000, 0, np.arange(2000)).reshape(20, 100),
        "nothing": np.zeros((0, 7), "i2"),
        "big-endian": np.arange(12, dtype=">i4").reshape(3, 4),
        "strided": np.arange(400, dtype="f4").reshape(20, 20)[::2, ::3],
        # An object each: their layout has no index, or they are large.
        "one": np.array(3.5),
        "records": np.array([(1, 2.0)], [("a", "i4"), ("b", "f8")]),
        "large": np.random.default_rng(1).random(20_000),
    }

    @pytest.fixture
    def stored(self, session: tensorage.BackendSession) -> Iterator[TensorStore]:
        store = TensorStore(session, quiet=True, engine="storage", allow_overwrite=True)
        yield store
        store.clear()

    def test_they_are_one_request(self, project: Project, user: User) -> None:
        seen: list[Exchange] = []
        proxy = Proxy(project.url, lambda exchange: bool(seen.append(exchange)))
        with workers.store_of(Project(proxy.url, project.key), user) as by_default:
            store = replace(by_default, engine="storage")
            store.keys()
            seen.clear()
            store.update({f"x/{number}": np.full(1000, number) for number in range(175)})
            assert [exchange.target for exchange in seen] == ["/rest/v1/rpc/tensorage_transact"]
            seen.clear()
            assert store["x/7"].tolist() == [7] * 1000
            assert len(seen) == 1
            store.clear()
        proxy.close()

    def test_they_come_back(self, stored: TensorStore) -> None:
        for _ in range(2):
            with stored.transaction() as tx:
                for key, array in self.ARRAYS.items():
                    tx.write(
                        key, array, attrs={"of": key}, dims=[f"axis {n}" for n in range(array.ndim)] or None
                    )
            for key, array in self.ARRAYS.items():
                found = stored.open(key)
                assert (found.engine, found.dtype, found.attrs) == (
                    "storage", array.dtype.newbyteorder("<"), {"of": key},
                )  # fmt: skip
                np.testing.assert_array_equal(found[...], array)
                np.testing.assert_array_equal(stored.copy(key, "copy")[...], array)

    def test_chunks_and_shards_are_those_asked_for(self, stored: TensorStore) -> None:
        array = np.arange(700, dtype="i4").reshape(70, 10)
        array[:30] = 0
        with stored.transaction() as tx:
            tx.write("x", array, chunks=(5, 4), shards=(20, 8))
        np.testing.assert_array_equal(stored["x"], array)
        np.testing.assert_array_equal(stored["x", 33:61:7, 3], array[33:61:7, 3])
        stored["x", 5] = 1
        stored.append("x", array[-3:])
        array[5] = 1
        np.testing.assert_array_equal(stored["x"], np.concatenate([array, array[-3:]]))

    def test_what_has_no_room_in_the_request_goes_as_objects(
        self, stored: TensorStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("tensorage.transactions.recorder.MAX_REQUEST_BYTES", 25_000)
        noise = self.ARRAYS["noise"]
        stored.update({f"x/{number}": noise + number for number in range(4)})
        for number in range(4):
            np.testing.assert_array_equal(stored[f"x/{number}"], noise + number)

    def test_outside_of_a_transaction_they_are_objects(self, stored: TensorStore, database: Any) -> None:
        stored.update({"x": np.arange(10)})
        stored["y"] = np.arange(10)
        found = database.execute(
            "select d.key, s.name is null, s.tail is null"
            " from public.shards s join public.datasets d on d.id = s.data_id where d.id = any (%s) order by d.key",
            [[stored.open(key).dataset.id for key in "xy"]],
        ).fetchall()
        assert found == [("x", True, False), ("y", False, True)]

    def test_a_key_that_is_taken_leaves_all_as_it_was(self, stored: TensorStore) -> None:
        store = replace(stored, allow_overwrite=False)
        store["y"] = [1]
        with pytest.raises(tensorage.KeyExistsError, match="'y'"):
            store.update({"x": np.arange(10), "y": np.arange(10)})
        assert store.keys() == ["y"]

    def test_rows_are_not_appended_to_one_that_is_just_stored(self, stored: TensorStore) -> None:
        with pytest.raises(tensorage.TensorageError, match="'x'"):
            change(stored, put("x", [1]), append("x", [2]))
        assert "x" not in stored


class TestReadMany:
    def test_arrays_of_every_size_come_back(self, store: TensorStore) -> None:
        arrays = {
            "large": LARGE,
            "empty": np.zeros((0, 3)),
            "scalar": np.array(5),
            "b": np.arange(6).reshape(2, 3),
        }
        store.update(arrays)
        found = store.read_many(["b", "large", "scalar", "empty", "b"])
        assert list(found) == ["b", "large", "scalar", "empty"]
        for key, array in found.items():
            assert np.array_equal(array, arrays[key])
            assert (array.shape, array.dtype) == (arrays[key].shape, arrays[key].dtype)
            array[...] = 0
        assert store.read_many([]) == {}

    def test_more_than_fits_an_answer(self, store: TensorStore) -> None:
        arrays = {f"x/{n}": np.full(400_000, n, "f8") for n in range(7)}
        store.update(arrays)
        found = store.read_many(arrays)
        assert all(np.array_equal(found[key], array) for key, array in arrays.items())

    def test_a_key_that_is_not_there_is_named(self, store: TensorStore) -> None:
        store["x"] = [1]
        with pytest.raises(tensorage.KeyNotFoundError, match="'missing'"):
            store.read_many(["x", "missing"])

    def test_all_are_from_before_or_from_after(self, overwriting: TensorStore) -> None:
        store = overwriting
        keys = ["a", "b", "large"]
        content = np.zeros(1_200_000)
        store.update(dict.fromkeys(keys, content))
        ends = threading.Event()

        def write() -> int:
            number = 0
            while not ends.is_set():
                number += 1
                store.update(dict.fromkeys(keys, content + number))
            return number

        with ThreadPoolExecutor(1) as pool:
            writing = pool.submit(write)
            try:
                for _ in range(4):
                    found = store.read_many(keys)
                    assert {float(n) for array in found.values() for n in np.unique(array)} == {found["a"][0]}
            finally:
                ends.set()
            assert writing.result() > 0


class TestGroup:
    def test_keys_are_relative(self, overwriting: TensorStore) -> None:
        store = overwriting
        store.update({"exp/run1/loss": [1.0], "exp/run10": [2], "other": [3]})
        run = store.group("exp/run1")
        assert run.keys() == list(run) == ["loss"]
        assert len(run) == 1
        assert "loss" in run
        assert "exp/run1/loss" not in run
        assert run["loss", 0] == 1
        assert store.group("exp").group("run1").keys() == ["loss"]
        run["weights/0"] = np.zeros((2, 2))
        run["weights/0", 1] = 1
        run.append("weights/0", [[5, 5]])
        run.group("weights").rename("0", "1")
        run.copy("loss", "copy")
        assert store["exp/run1/weights/1"].tolist() == [[0, 0], [1, 1], [5, 5]]
        assert run.open("copy").key == "exp/run1/copy"
        assert [entry.key for entry in run.catalogue(glob="w*/*")] == ["exp/run1/weights/1"]
        assert run.rename_all("weights/", "w/") == 1
        assert run.keys() == ["copy", "loss", "w/1"]
        assert run.pop("copy").tolist() == [1.0]
        assert run.setdefault("loss", [9.0]).tolist() == [1.0]
        with run.background() as background:
            background["late"] = [1]
            background.append("loss", [2.0])
        assert store["exp/run1/late"] == [1]
        assert run["loss"].tolist() == [1, 2]
        run.clear()
        assert store.keys() == ["exp/run10", "other"]

    def test_shares_and_records_are_those_of_the_group(self, store: TensorStore) -> None:
        store.update({"exp/x": [1], "y": [1]})
        group = store.group("exp/")
        group.share("x", "reader@lab.org")
        store.share("y", "reader@lab.org")
        assert [share.key for share in group.shares()] == ["exp/x"]
        group.unshare("x")
        assert group.shares("x") == []
        assert {record.key for record in group.audit("x")} == {"exp/x"}

    def test_tree(self, store: TensorStore) -> None:
        store.update(
            {"exp/run1/loss": np.zeros(3), "exp/run1/w": np.zeros((2, 2), "f4"), "exp/run1": 1, "z": [1]}
        )
        assert str(store.tree()).splitlines() == [
            "├── exp/",
            "│   └── run1/  () int64",
            "│       ├── loss  (3,) float64",
            "│       └── w  (2, 2) float32",
            "└── z  (1,) int64",
        ]
        assert len(store.tree("exp/")) == 3
        assert repr(store.group("exp/run1").tree()) == "├── loss  (3,) float64\n└── w  (2, 2) float32"
        assert str(store.tree("none")) == ""

    @pytest.mark.parametrize("name", ["", "/", "a\0b", "x" * 2000])
    def test_names_that_are_none(self, store: TensorStore, name: str) -> None:
        with pytest.raises(tensorage.InvalidInputError):
            store.group(name)


class TestState:
    def test_nesting_comes_back(self, overwriting: TensorStore) -> None:
        state = {
            "model": {"layer.weight": np.arange(6, dtype="f4").reshape(2, 3), "layer.bias": np.zeros(3)},
            "optimizer": {
                "state": {0: {"step": np.float32(3)}, 1: {}},
                "param_groups": [{"lr": 1e-3, "betas": (0.9, 0.99)}],
            },
            "text": "ä", "none": None, "flags": [True, False], "big": 2**70, "nan": float("nan"), "zero": -0.0,
            "inf": [float("inf")], 1.5: "named by a number", None: 0, "a/b": np.ones(1), "a": {"b": np.zeros(1)},
        }  # fmt: skip
        overwriting.save("ckpt", state)
        loaded = overwriting.load("ckpt")
        assert repr(loaded) == repr(state)
        assert type(loaded["optimizer"]["state"][0]["step"]) is np.float32
        overwriting.save("ckpt", {"new": [1]})
        assert overwriting.load("ckpt") == {"new": [1]}
        assert overwriting.keys() == ["ckpt"]

    @pytest.mark.parametrize("state", [np.arange(3), 7, [1, "x"], None])
    def test_a_state_may_be_anything(self, store: TensorStore, state: Any) -> None:
        store.save("s", state)
        assert repr(store.load("s")) == repr(state)

    def test_what_is_saved_is_not_replaced_by_accident(self, store: TensorStore) -> None:
        store.save("s", {"x": [1]})
        with pytest.raises(tensorage.KeyExistsError):
            store.save("s", {"y": [1]})
        assert store.load("s") == {"x": [1]}

    def test_what_cannot_be_saved_is_named(self, store: TensorStore) -> None:
        with pytest.raises(tensorage.InvalidInputError, match="'a/1' is a set"):
            store.save("s", {"x": np.zeros(1), "a": [0, {1}]})
        with pytest.raises(tensorage.InvalidInputError, match="name"):
            store.save("s", {(1, 2): 0})
        loop: dict[str, Any] = {"x": np.zeros(1)}
        loop["again"] = [loop]
        with pytest.raises(tensorage.InvalidInputError, match="contains itself"):
            store.save("s", loop)
        with pytest.raises(tensorage.InvalidInputError, match="lone surrogate"):
            store.save("s", {"x": "\ud800"})
        with pytest.raises(tensorage.InvalidInputError, match="room for 1048576"):
            store.save("s", {"x": "é" * 600_000})
        assert store.keys() == []

    def test_what_is_not_there_is_named(self, store: TensorStore) -> None:
        store["plain"] = [1]
        for key in ("plain", "missing"):
            with pytest.raises(tensorage.KeyNotFoundError, match=r"store\.save"):
                store.load(key)
        store.save("s", {"x": np.zeros(1)})
        del store["s/x"]
        with pytest.raises(tensorage.IncompleteTensorError, match="'x'"):
            store.load("s")

    def test_state_of_torch(self, overwriting: TensorStore) -> None:
        torch = pytest.importorskip("torch")
        model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3))
        optimizer = torch.optim.Adam(model.parameters())
        model(torch.zeros(2, 4)).sum().backward()
        optimizer.step()
        half = torch.ones(3, dtype=torch.bfloat16)
        overwriting.save(
            "t", {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "half": half}
        )
        loaded = overwriting.load("t")
        for name, tensor in model.state_dict().items():
            assert torch.equal(loaded["model"][name], tensor)
            assert loaded["model"][name].dtype == tensor.dtype
        assert torch.equal(loaded["half"], half)
        torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3)).load_state_dict(loaded["model"])
        torch.optim.Adam(model.parameters()).load_state_dict(loaded["optimizer"])
