"""Batches for loops: each sample once an epoch, in an order that can be repeated, fetched ahead, stopped cleanly."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from loops import assert_goes_on, numbered, numbers, prefetchers
from project import Project, User
from proxy import Exchange, Proxy

import tensorage
from tensorage import ChangedError, InvalidInputError, KeyNotFoundError, TensorStore
from tensorage.backend.wire.line import MAX_OBJECTS
from tensorage.types import Engine

SAMPLES = 101


@pytest.fixture
def x(store: TensorStore) -> tensorage.Tensor:
    return store.write("x", numbered(SAMPLES), chunks=_chunks(store))


@pytest.fixture
def y(store: TensorStore) -> tensorage.Tensor:
    return store.write("y", np.arange(SAMPLES, dtype="i8") * 10)


def _chunks(store: TensorStore) -> list[int] | None:
    return [16, 2, 3] if store.engine == "storage" else None


class TestAnEpoch:
    @pytest.mark.parametrize("prefetch", [0, 1, 4, 100])
    def test_in_order(self, x: tensorage.Tensor, prefetch: int) -> None:
        batches = list(x.batches(16, prefetch=prefetch))
        assert [len(batch) for batch in batches] == [16] * 6 + [5]
        assert np.concatenate(batches).tolist() == x[...].tolist()
        assert batches[0].dtype == x.dtype
        assert all(batch.flags.writeable for batch in batches)

    def test_shuffled(self, x: tensorage.Tensor, y: tensorage.Tensor) -> None:
        loop = tensorage.batches(x, y, batch_size=16, shuffle=True, seed=3)
        orders = []
        for _ in range(3):
            order = []
            for xb, yb in loop:
                assert (yb == np.array(numbers(xb)) * 10).all()
                order += numbers(xb)
            assert sorted(order) == list(range(SAMPLES))
            orders.append(order)
        assert orders[0] != orders[1] != orders[2]
        again = tensorage.batches(x, batch_size=16, shuffle=True, seed=3)
        assert [[number for batch in again for number in numbers(batch)] for _ in range(3)] == orders
        other = tensorage.batches(x, batch_size=16, shuffle=True, seed=4)
        assert [number for batch in other for number in numbers(batch)] != orders[0]

    def test_the_order_does_not_depend_on_the_batches(self, x: tensorage.Tensor) -> None:
        orders = [
            [
                number
                for batch in x.batches(size, shuffle=True, seed=0, prefetch=prefetch)
                for number in numbers(batch)
            ]
            for size, prefetch in [(9, 4), (17, 0), (64, 2), (1000, 1)]
        ]
        assert orders == [orders[0]] * 4

    def test_without_a_seed_there_is_one_by_chance(self, x: tensorage.Tensor) -> None:
        first, second = x.batches(64, shuffle=True), x.batches(64, shuffle=True)
        assert first.seed != second.seed
        assert first.state()["seed"] == first.seed
        assert x.batches(64).seed is None

    def test_drop_last(self, x: tensorage.Tensor) -> None:
        loop = x.batches(16, drop_last=True, shuffle=True, seed=0)
        batches = list(loop)
        assert len(loop) == len(batches) == 6
        assert {len(batch) for batch in batches} == {16}
        assert len({number for batch in batches for number in numbers(batch)}) == 96

    def test_arrays_in_memory_go_along(self, x: tensorage.Tensor) -> None:
        labels = np.arange(SAMPLES)
        for xb, lb in tensorage.batches(x, labels, batch_size=16, shuffle=True, seed=0):
            assert numbers(xb) == lb.tolist()
            lb[...] = -1
        assert labels.tolist() == list(range(SAMPLES))

    def test_what_was_zipped(self, x: tensorage.Tensor, y: tensorage.Tensor) -> None:
        samples = tensorage.zip(x, y)
        for xb, yb in samples.batches(50):
            assert (yb == np.array(numbers(xb)) * 10).all()
        (alone,) = next(iter(tensorage.batches(tensorage.zip(x), batch_size=2)))
        assert numbers(alone) == [0, 1]

    def test_an_array_without_samples(self, store: TensorStore) -> None:
        store["none"] = np.empty((0, 3))
        loop = store.open("none").batches(16, shuffle=True)
        assert len(loop) == 0
        assert list(loop) == []
        assert loop.state()["epoch"] == 1 or loop.state()["batch"] == 0


class TestGoingOn:
    @settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(
        size=st.integers(1, 40), taken=st.integers(0, 120), shuffle=st.booleans(), drop_last=st.booleans(),
        prefetch=st.integers(0, 5),
    )  # fmt: skip
    def test_where_a_loop_was_left(
        self, size: int, taken: int, shuffle: bool, drop_last: bool, prefetch: int
    ) -> None:
        """Two epochs in one go, and cut in two somewhere: the same batches."""
        y = np.arange(57)

        def make(**more: Any) -> tensorage.training.batches.Batches:
            return tensorage.batches(
                y, batch_size=size, shuffle=shuffle, seed=5, drop_last=drop_last, prefetch=prefetch, **more
            )

        assert_goes_on(make, taken)

    def test_the_seed_is_kept_with_the_state(self) -> None:
        y = np.arange(30)
        loop = tensorage.batches(y, batch_size=4, shuffle=True)
        first = next(iter(loop)).tolist()
        rest = tensorage.batches(y, batch_size=4, shuffle=True, start_at=loop.state())
        assert rest.seed == loop.seed
        assert sorted(first + [number for batch in rest for number in batch.tolist()]) == list(range(30))

    def test_a_loop_that_was_left_is_followed_by_the_next_epoch(self) -> None:
        loop = tensorage.batches(np.arange(30), batch_size=4, shuffle=True, seed=0)
        next(iter(loop))
        assert (loop.epoch, loop.state()["epoch"], loop.state()["batch"]) == (0, 0, 1)
        second = [number for batch in loop for number in batch.tolist()]
        assert sorted(second) == list(range(30))
        assert (loop.epoch, loop.state()["epoch"], loop.state()["batch"]) == (1, 2, 0)
        assert "epoch=2" in repr(loop)

    @pytest.mark.parametrize(
        "change",
        [{"length": 31}, {"batch_size": 5}, {"seed": 1}, {"shuffle": False}, {"drop_last": True}, {"batch": 99},
         {"batch": -1}, {"epoch": -1}, {"epoch": 1.5}, {"batch": None}, {"format": 2}],
    )  # fmt: skip
    def test_not_from_the_state_of_others(self, change: dict[str, Any]) -> None:
        loop = tensorage.batches(np.arange(30), batch_size=4, shuffle=True, seed=0)
        state = {**loop.state(), **change}
        with pytest.raises(InvalidInputError, match="start_at"):
            tensorage.batches(np.arange(30), batch_size=4, shuffle=True, seed=0, start_at=state)

    @pytest.mark.parametrize("state", [{}, [], 3, "state", {"format": 1}])
    def test_nor_from_none(self, state: Any) -> None:
        with pytest.raises(InvalidInputError, match="start_at"):
            tensorage.batches(np.arange(30), batch_size=4, shuffle=True, start_at=state)


class TestBadInput:
    @pytest.mark.parametrize("size", [0, -1, 1.5, "4", None])
    def test_batch_sizes(self, size: Any) -> None:
        with pytest.raises(InvalidInputError, match="batch_size"):
            tensorage.batches(np.arange(3), batch_size=size)

    @pytest.mark.parametrize(
        "more", [{"prefetch": -1}, {"prefetch": "x"}, {"shuffle": True, "seed": -3}, {"seed": 0.5}]
    )
    def test_other_numbers(self, more: dict[str, Any]) -> None:
        with pytest.raises(InvalidInputError, match=r"prefetch|seed"):
            tensorage.batches(np.arange(3), batch_size=1, **more)

    def test_sources(self) -> None:
        with pytest.raises(InvalidInputError, match="at least one"):
            tensorage.batches(batch_size=1)
        with pytest.raises(InvalidInputError, match="from a list"):
            tensorage.batches([1, 2, 3], batch_size=1)  # type: ignore[arg-type]
        with pytest.raises(InvalidInputError, match="no axes"):
            tensorage.batches(np.array(3.0), batch_size=1)

    def test_different_lengths(self, x: tensorage.Tensor) -> None:
        with pytest.raises(InvalidInputError, match=r"'x' has 101, an array of shape \(3,\) has 3"):
            tensorage.batches(x, np.arange(3), batch_size=1)
        with pytest.raises(InvalidInputError, match="same number of samples"):
            tensorage.zip(x, np.arange(3))


class TestTheEnd:
    def test_a_break_ends_the_fetching(self, x: tensorage.Tensor) -> None:
        for _ in x.batches(4, prefetch=8):
            assert prefetchers()
            break
        assert not prefetchers()

    def test_an_error_in_the_loop_does_too(self, x: tensorage.Tensor) -> None:
        loop = x.batches(4)
        with pytest.raises(ZeroDivisionError):  # noqa: PT012 - the loop is what is tested
            for _ in loop:
                _ = 1 / 0
        assert loop.state()["batch"] == 1
        del loop
        assert not [thread for thread in prefetchers() if thread.is_alive()]

    def test_the_end_of_the_epoch_does_too(self, x: tensorage.Tensor) -> None:
        list(x.batches(4))
        assert not prefetchers()

    def test_nothing_begins_before_the_loop_does(self, x: tensorage.Tensor) -> None:
        iter(x.batches(4))
        assert not prefetchers()

    def test_two_loops_at_once(self, x: tensorage.Tensor) -> None:
        first, second = x.batches(40), x.batches(40)
        for a, b in zip(first, second, strict=True):
            assert numbers(a) == numbers(b)


class TestChanges:
    def test_an_array_that_was_another_one_for_a_moment(
        self, store: TensorStore, x: tensorage.Tensor, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Another thread opens the array again once it is back, before the samples that were read are checked."""
        store["other"] = -numbered(SAMPLES)
        read = type(x.arrays).read

        def swap() -> None:
            for key, new_key in (("x", "third"), ("other", "x"), ("third", "other")):
                store.rename(key, new_key)

        def read_and_swap_back(arrays: Any, dataset: Any, selection: Any, **how: Any) -> Any:
            samples = read(arrays, dataset, selection, **how)
            swap()
            x.refresh()
            return samples

        loop = iter(tensorage.batches(x, batch_size=10, prefetch=0))
        next(loop)
        # The version that was opened is gone, so that the next batch looks at the key.
        store["x", 0] = 5
        swap()
        monkeypatch.setattr(type(x.arrays), "read", read_and_swap_back)
        with pytest.raises(ChangedError, match="replaced"):
            next(loop)

    def test_an_array_that_was_replaced(self, store: TensorStore, x: tensorage.Tensor) -> None:
        store.allow_overwrite = True
        loop = x.batches(4, shuffle=True, seed=0, prefetch=2)
        with pytest.raises(ChangedError, match="replaced"):  # noqa: PT012
            for number, _ in enumerate(loop):
                if number == 3:
                    store["x"] = np.zeros((SAMPLES, 2, 3), "f4")
        assert not prefetchers()
        assert 4 <= loop.state()["batch"] <= 7
        with pytest.raises(ChangedError, match="replaced"):
            list(loop)

    @pytest.mark.parametrize("prefetch", [0, 2])
    def test_by_a_shorter_one(self, store: TensorStore, x: tensorage.Tensor, prefetch: int) -> None:
        store.allow_overwrite = True
        loop = iter(x.batches(4, shuffle=True, seed=0, prefetch=prefetch))
        next(loop)
        store["x"] = np.zeros((3, 2, 3), "f4")
        with pytest.raises(ChangedError, match="replaced"):
            list(loop)

    def test_an_array_that_was_deleted(self, store: TensorStore, x: tensorage.Tensor) -> None:
        loop = iter(x.batches(4, prefetch=1))
        next(loop)
        del store["x"]
        with pytest.raises(KeyNotFoundError):
            list(loop)
        assert not prefetchers()

    def test_rows_that_were_appended_wait_for_another_loop(
        self, store: TensorStore, x: tensorage.Tensor
    ) -> None:
        loop = x.batches(16, shuffle=True, seed=0)
        batches = iter(loop)
        order = numbers(next(batches))
        store.append("x", np.full((7, 2, 3), -1, "f4"))
        x.refresh()
        for batch in batches:
            order += numbers(batch)
        assert sorted(order) == list(range(SAMPLES))
        assert sum(len(batch) for batch in store.open("x").batches(16)) == SAMPLES + 7


class TestRequests:
    @pytest.fixture
    def proxy(self, project: Project) -> Iterator[Proxy]:
        proxy = Proxy(project.url)
        yield proxy
        proxy.close()

    def test_one_for_each_array_and_batch(
        self,
        project: Project,
        user: User,
        proxy: Proxy,
        x: tensorage.Tensor,
        y: tensorage.Tensor,
        engine: Engine,
    ) -> None:
        if engine == "storage":
            return  # Its requests follow from its chunks: see tests/engine/test_storage_requests.py.
        session = Project(proxy.url, project.key).session(user)
        store = session()
        loop = tensorage.batches(store.open("x"), store.open("y"), batch_size=16, shuffle=True, seed=0)
        with proxy.counted() as exchanges:
            list(loop)
        assert sorted(exchange.function for exchange in exchanges) == ["read"] * 14
        session.logout()

    def test_no_more_at_once_than_the_backend_has_room_for(
        self, project: Project, user: User, x: tensorage.Tensor, engine: Engine
    ) -> None:
        """The bounds hold however many loops there are: that of REST, and that of downloads."""
        lock, under_way = threading.Lock(), (set[int](), set[int]())
        at_once: tuple[list[int], list[int]] = ([0], [0])

        def note(exchange: Exchange) -> bool:
            with lock:
                kind = int(exchange.is_download)
                if exchange.is_answered:
                    under_way[kind].discard(id(exchange))
                else:
                    under_way[kind].add(id(exchange))
                at_once[kind].append(len(under_way[kind]))
            # Others come meanwhile.
            time.sleep(0.01)
            return False

        proxy = Proxy(project.url, breaks=note)
        session = Project(proxy.url, project.key).session(user)
        loops = [session().open("x").batches(8, prefetch=50) for _ in range(4)]
        with ThreadPoolExecutor(len(loops)) as pool:
            list(pool.map(list, loops))
        session.logout()
        proxy.close()
        assert max(at_once[0]) <= 8
        assert max(at_once[1]) <= MAX_OBJECTS
        assert max(at_once[0] + at_once[1]) > 4
