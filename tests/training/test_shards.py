"""`shuffle="shards"`: each stored byte once an epoch, samples mixed within a window, memory bounded by it."""

from __future__ import annotations

import gc
import json
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from forks import fork
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from loops import assert_goes_on, numbered, numbers, prefetchers
from proxy import Exchange

import tensorage
from tensorage import ChangedError, InvalidInputError, KeyNotFoundError, TensorStore
from tensorage.training.batches import Batches
from tensorage.types import Engine

SAMPLES = 1000

#: Each slab is one object, or one block.
SLAB, ROW_BYTES = 50, 24

#: Room for a few slabs: of an object, or of a fifth of it in the database, whose blocks may be smaller.
WINDOW_BYTES = 5 * SLAB * ROW_BYTES


@pytest.fixture
def x(store: TensorStore) -> tensorage.Tensor:
    return write_samples(store, "x", SAMPLES)


def write(
    store: TensorStore, key: str, array: npt.NDArray[Any], *, block_size: int, **layout: Any
) -> tensorage.Tensor:
    """Store an array in blocks of some elements, or in objects of some layout."""
    if store.engine == "database":
        return replace(store, chunk_size=block_size).write(key, array)
    return store.write(key, array, **layout)


def write_samples(store: TensorStore, key: str, count: int) -> tensorage.Tensor:
    """Store samples that tell their numbers: see `numbers`."""
    return write(store, key, numbered(count), block_size=SLAB * 6, chunks=[10, 2, 3], shards=[SLAB, 2, 3])


def loop_over(*sources: Any, **how: Any) -> Batches:
    how = {"batch_size": 16, "shuffle": "shards", "seed": 3, "window_bytes": WINDOW_BYTES, **how}
    return tensorage.batches(*sources, **how)


def order_of(loop: Batches) -> list[int]:
    return [number for batch in loop for number in numbers(batch)]


class TestAnEpoch:
    @pytest.mark.parametrize("prefetch", [0, 1, 4, 100])
    def test_each_sample_once(self, x: tensorage.Tensor, prefetch: int) -> None:
        loop = loop_over(x, prefetch=prefetch)
        batches = list(loop)
        assert [len(batch) for batch in batches] == [16] * 62 + [8]
        assert len(loop) == 63
        assert sorted(number for batch in batches for number in numbers(batch)) == list(range(SAMPLES))
        assert batches[0].dtype == x.dtype
        assert all(batch.flags.writeable and batch.flags.owndata for batch in batches)

    def test_the_order_repeats_and_depends_on_no_batches(self, x: tensorage.Tensor) -> None:
        loop = loop_over(x)
        orders = [order_of(loop) for _ in range(2)]
        assert orders[0] != orders[1]
        for size, prefetch in [(9, 0), (64, 2), (5000, 1)]:
            again = loop_over(x, batch_size=size, prefetch=prefetch)
            assert [order_of(again) for _ in range(2)] == orders
        assert order_of(loop_over(x, seed=4)) != orders[0]

    def test_samples_are_mixed(self, x: tensorage.Tensor) -> None:
        order = np.array(order_of(loop_over(x)))
        slabs = order // SLAB
        assert np.mean(slabs[1:] == slabs[:-1]) < 0.4
        # An epoch by objects in order would have them near their places.
        assert abs(np.corrcoef(order, np.arange(SAMPLES))[0, 1]) < 0.9

    def test_drop_last(self, x: tensorage.Tensor) -> None:
        batches = list(loop_over(x, drop_last=True))
        assert [len(batch) for batch in batches] == [16] * 62
        assert len({number for batch in batches for number in numbers(batch)}) == 992

    def test_arrays_of_other_shards_and_in_memory_go_along(
        self, store: TensorStore, x: tensorage.Tensor
    ) -> None:
        tens = np.arange(SAMPLES, dtype="i4") * 10
        y = write(store, "y", tens, block_size=130, chunks=[70], shards=[140])
        labels = np.arange(SAMPLES)
        for more in ({}, {"window_bytes": 2 * WINDOW_BYTES}, {"window_bytes": None}):
            seen = []
            for yb, xb, lb in loop_over(y, x, labels, **more):
                assert (yb == np.array(numbers(xb)) * 10).all()
                assert lb.tolist() == numbers(xb)
                lb[...] = -1
                seen += numbers(xb)
            assert sorted(seen) == list(range(SAMPLES))
        assert labels.tolist() == list(range(SAMPLES))

    @pytest.mark.parametrize("count", [0, 1, SLAB, SLAB + 1])
    def test_few_samples(self, store: TensorStore, count: int) -> None:
        few = write_samples(store, "few", count)
        loop = loop_over(few, window_bytes=None)
        assert sorted(order_of(loop)) == list(range(count))
        assert len(loop) == -(-count // 16)

    def test_samples_without_elements(self, store: TensorStore) -> None:
        store["none"] = np.empty((70, 0, 3), "f4")
        assert [batch.shape for batch in loop_over(store.open("none"), batch_size=64)] == [
            (64, 0, 3),
            (6, 0, 3),
        ]

    def test_rows_larger_than_a_shard(self, store: TensorStore) -> None:
        rows = np.arange(12 * 4000, dtype="i4").reshape(12, 4000)
        wide = write(store, "wide", rows, block_size=1000, chunks=[1, 500], shards=[1, 1000])
        seen = np.concatenate(list(loop_over(wide, batch_size=5, window_bytes=5 * rows[0].nbytes)))
        assert seen[np.argsort(seen[:, 0])].tolist() == rows.tolist()
        assert seen.tolist() != rows.tolist()

    def test_through_a_cache(self, x: tensorage.Tensor, tmp_path: Path) -> None:
        cached = x.cached(tmp_path / "cache")
        assert order_of(loop_over(cached)) == order_of(loop_over(x))
        assert cached.epoch_cost() == 0

    def test_samples_of_any_length(self, store: TensorStore) -> None:
        clips = [np.full(1 + number % 5, number, "i4") for number in range(300)]
        clips_of = store.write_ragged("clips", clips)
        store.write_ragged("texts", [f"text {number}" for number in range(300)])
        texts = store.open("texts")
        seen = []
        for some, words, lengths in loop_over(clips_of, texts, clips_of.lengths(), window_bytes=None):
            assert isinstance(some, list)
            assert [f"text {clip[0]}" for clip in some] == words
            assert lengths.tolist() == list(map(len, some))
            for clip in some:
                assert clip.tolist() == clips[clip[0]].tolist()
            seen += [int(clip[0]) for clip in some]
        assert sorted(seen) == list(range(300))
        padded = np.concatenate(
            [batch[:, 0] for batch in loop_over(clips_of, window_bytes=None, pad_value=-1)]
        )
        assert sorted(padded.tolist()) == list(range(300))

    def test_text(self, store: TensorStore) -> None:
        words = np.array([f"word {number}" for number in range(90)], np.dtypes.StringDType())
        store["words"] = words
        seen = np.concatenate(list(loop_over(store.open("words"), window_bytes=None)))
        assert sorted(seen) == sorted(words)
        assert seen.tolist() != words.tolist()


class TestGoingOn:
    @settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(
        size=st.integers(1, 40),
        taken=st.integers(0, 250),
        drop_last=st.booleans(),
        prefetch=st.integers(0, 5),
    )
    def test_where_a_loop_was_left(self, size: int, taken: int, drop_last: bool, prefetch: int) -> None:
        """Two epochs in one go, and cut in two somewhere: the same batches."""
        y = np.arange(257)

        def make(**more: Any) -> Batches:
            return loop_over(
                y, batch_size=size, drop_last=drop_last, prefetch=prefetch, window_bytes=400, **more
            )

        assert_goes_on(make, taken)

    def test_stored_arrays_too(self, x: tensorage.Tensor) -> None:
        wanted = order_of(loop_over(x))
        loop, seen = loop_over(x), []
        for batch in loop:
            seen += numbers(batch)
            if len(seen) == 30 * 16:
                break
        assert seen + order_of(loop_over(x, start_at=loop.state())) == wanted

    def test_the_seed_is_kept_with_the_state(self, x: tensorage.Tensor) -> None:
        loop = loop_over(x, seed=None)
        next(iter(loop))
        assert loop_over(x, seed=None, start_at=loop.state()).seed == loop.seed is not None

    @pytest.mark.parametrize(
        "change", [{"window_bytes": 2 * WINDOW_BYTES}, {"shuffle": True, "window_bytes": None}]
    )
    def test_not_in_another_order(self, x: tensorage.Tensor, change: dict[str, Any]) -> None:
        state = loop_over(x).state()
        with pytest.raises(InvalidInputError, match="start_at is of batches with"):
            loop_over(x, start_at=state, **change)

    def test_the_state_of_other_loops_is_as_it_was(self) -> None:
        loop = tensorage.batches(np.arange(9), batch_size=2, shuffle=True, seed=0)
        assert loop.state() == {
            "format": 1, "epoch": 0, "batch": 0, "length": 9, "batch_size": 2, "shuffle": True, "seed": 0,
            "drop_last": False,
        }  # fmt: skip
        with pytest.raises(InvalidInputError, match="shuffle=True, and these have shuffle='shards'"):
            loop_over(np.arange(9), batch_size=2, seed=0, window_bytes=None, start_at=loop.state())


class TestBytes:
    """Random bytes, which are stored as they are, in objects and blocks of 256 KiB."""

    ROWS = 4096

    @pytest.fixture
    def images(self, store: TensorStore) -> npt.NDArray[np.uint8]:
        images = np.random.default_rng(0).integers(0, 256, (self.ROWS, 1024), np.uint8)
        images[:, :4] = np.arange(self.ROWS, dtype="<u4")[:, None].view(np.uint8)
        write(store, "images", images, block_size=2**18, chunks=[16, 1024], shards=[256, 1024])
        return images

    @pytest.mark.parametrize("window_bytes", [2**20, 2**21, 2**28])
    def test_each_stored_byte_once(
        self,
        watched: tuple[TensorStore, list[Exchange]],
        images: npt.NDArray[np.uint8],
        engine: Engine,
        window_bytes: int,
    ) -> None:
        store, _ = watched
        opened = store.open("images")
        stored = opened.epoch_cost()
        seen, moved = self.moved(watched, lambda: loop_over(opened, window_bytes=window_bytes))
        assert sorted(seen) == list(range(self.ROWS))
        assert moved <= 1.05 * stored
        exchanges = watched[1]
        kinds = {exchange.kind for exchange in exchanges}
        assert "download" in kinds if engine == "storage" else kinds <= {"read", "read_run"}
        assert len([each for each in exchanges if each.is_download]) <= 16 * 2

    def test_with_labels_in_other_shards(
        self, store: TensorStore, watched: tuple[TensorStore, list[Exchange]], images: npt.NDArray[np.uint8]
    ) -> None:
        labels = np.random.default_rng(1).integers(0, 2**62, self.ROWS)
        labels[:] = labels // self.ROWS * self.ROWS + np.arange(self.ROWS)
        store.write("labels", labels)
        x, y = (watched[0].open(name) for name in ("images", "labels"))
        stored = x.epoch_cost() + y.epoch_cost()
        seen, moved = self.moved(watched, lambda: loop_over(x, y, window_bytes=2**21))
        assert sorted(seen) == list(range(self.ROWS))
        assert moved <= 1.05 * stored

    def test_a_loop_that_resumes_fetches_the_window_and_the_rest(
        self, watched: tuple[TensorStore, list[Exchange]], images: npt.NDArray[np.uint8]
    ) -> None:
        x = watched[0].open("images")
        loop = loop_over(x, window_bytes=2**20)
        state = {**loop.state(), "batch": len(loop) * 3 // 4}
        seen, moved = self.moved(watched, lambda: loop_over(x, window_bytes=2**20, start_at=state))
        assert len(seen) == self.ROWS // 4
        # The last quarter, and slabs of twice the window that have dealt a part.
        assert moved <= x.epoch_cost() // 4 + 1.1 * 2 * 2**20

    def test_a_loop_that_ends_early_fetches_a_little(
        self, store: TensorStore, watched: tuple[TensorStore, list[Exchange]]
    ) -> None:
        slab_bytes = 64 * 1024
        samples = np.random.default_rng(0).integers(0, 256, (self.ROWS, 1024), np.uint8)
        write(store, "many", samples, block_size=slab_bytes, chunks=[16, 1024], shards=[64, 1024])
        x = watched[0].open("many")

        def first() -> list[Any]:
            for batch in loop_over(x, window_bytes=5 * slab_bytes):
                return [batch]
            return []

        _, moved = self.moved(watched, first)
        # 2 slabs of a window that opens, 2 in each of 3 rounds, and 16 that are fetched ahead.
        assert moved <= 1.05 * (2 + 3 * 2 + 16) * slab_bytes

    def test_memory_is_bounded_by_the_window(self, store: TensorStore) -> None:
        """An array of 64 MiB, in a window of 4."""
        rows, row_bytes, window_bytes = 4096, 16 * 1024, 4 * 2**20
        images = np.random.default_rng(0).integers(0, 256, (rows, row_bytes), np.uint8)
        opened = write(store, "large", images, block_size=2**20, chunks=[16, row_bytes])
        checked = images[:, 0].astype(int).sum()
        del images
        gc.collect()
        tracemalloc.start()
        try:
            found = sum(
                int(batch[:, 0].astype(int).sum()) for batch in loop_over(opened, window_bytes=window_bytes)
            )
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert found == checked
        # The window; 16 slabs of a MiB ahead; 8 that are fetched, and their bytes; batches; a round.
        assert peak < window_bytes + (16 + 8 + 8 + 2 + 1) * 2**20

    def moved(
        self, watched: tuple[TensorStore, list[Exchange]], loop: Callable[[], Any]
    ) -> tuple[list[int], int]:
        """Return the numbers of the samples of a loop, and the bytes that came."""
        _, exchanges = watched
        before = {id(exchange) for exchange in exchanges}
        seen: list[int] = []
        for batch in loop():
            first = batch[0] if isinstance(batch, tuple) else batch
            seen += np.ascontiguousarray(first[:, :4]).view("<u4")[:, 0].tolist()
            if isinstance(batch, tuple):
                assert (batch[1] % self.ROWS == np.array(seen[-len(first) :])).all()
        new = {id(exchange): exchange for exchange in exchanges if id(exchange) not in before}
        exchanges[:] = new.values()
        return seen, sum(exchange.received_bytes for exchange in new.values())


class TestBadInput:
    @pytest.mark.parametrize("window_bytes", [0, -1, 1.5, "256 MiB"])
    def test_windows(self, window_bytes: Any) -> None:
        with pytest.raises(InvalidInputError, match="window_bytes"):
            loop_over(np.arange(3), window_bytes=window_bytes)

    def test_a_window_without_shards(self) -> None:
        with pytest.raises(InvalidInputError, match="window_bytes=1024 is for shuffle='shards'"):
            tensorage.batches(np.arange(3), batch_size=1, shuffle=True, window_bytes=1024)

    @pytest.mark.parametrize("shuffle", ["shard", "", "true"])
    def test_other_words(self, shuffle: Any) -> None:
        with pytest.raises(InvalidInputError, match="True, False or 'shards'"):
            loop_over(np.arange(3), shuffle=shuffle)

    def test_a_window_too_small_for_the_shards(self, store: TensorStore) -> None:
        samples = np.zeros((100, 1000), "f4")
        opened = write(store, "large", samples, block_size=50_000, chunks=[50, 1000], shards=[100, 1000])
        with pytest.raises(
            InvalidInputError, match=r"'large' has them stored, 50 together.*window_bytes=500000"
        ):
            loop_over(opened, window_bytes=499_999)
        assert sum(map(len, loop_over(opened, window_bytes=500_000))) == 100


class TestTheEnd:
    def test_a_break_ends_the_fetching(self, x: tensorage.Tensor) -> None:
        for _ in loop_over(x):
            assert prefetchers()
            break
        assert not prefetchers()

    def test_an_error_in_the_loop_does_too(self, x: tensorage.Tensor) -> None:
        loop = loop_over(x)
        with pytest.raises(ZeroDivisionError):  # noqa: PT012 - the loop is what is tested
            for _ in loop:
                _ = 1 / 0
        assert loop.state()["batch"] == 1
        del loop
        assert not [thread for thread in prefetchers() if thread.is_alive()]

    def test_the_end_of_the_epoch_does_too(self, x: tensorage.Tensor) -> None:
        list(loop_over(x))
        assert not prefetchers()

    def test_nothing_begins_before_the_loop_does(self, x: tensorage.Tensor) -> None:
        iter(loop_over(x))
        assert not prefetchers()

    def test_two_loops_at_once(self, x: tensorage.Tensor) -> None:
        for a, b in zip(loop_over(x), loop_over(x), strict=True):
            assert numbers(a) == numbers(b)

    def test_in_a_process_that_is_forked_beside_a_loop(self, x: tensorage.Tensor) -> None:
        loop = loop_over(x)
        wanted = order_of(loop_over(x))
        batches = iter(loop_over(x))
        next(batches)
        assert json.loads(fork(lambda: json.dumps(order_of(loop)))()) == wanted
        list(batches)


class TestChanges:
    @pytest.fixture
    def x(self, store: TensorStore) -> tensorage.Tensor:
        """More samples than are fetched ahead."""
        return write_samples(store, "x", 3 * SAMPLES)

    @pytest.mark.parametrize("prefetch", [0, 2])
    def test_an_array_that_was_replaced(self, store: TensorStore, x: tensorage.Tensor, prefetch: int) -> None:
        store.allow_overwrite = True
        loop = loop_over(x, prefetch=prefetch)
        with pytest.raises(ChangedError, match="replaced"):  # noqa: PT012
            for number, _ in enumerate(loop):
                if number == 3:
                    store["x"] = numbered(3 * SAMPLES)
        assert not prefetchers()
        with pytest.raises(ChangedError, match="replaced"):
            list(loop)

    def test_one_that_was_made_shorter(self, store: TensorStore, x: tensorage.Tensor) -> None:
        loop = iter(loop_over(x, prefetch=1))
        next(loop)
        store.open("x").resize(10)
        with pytest.raises(ChangedError, match="'x' has become shorter"):
            list(loop)

    def test_one_that_was_deleted(self, store: TensorStore, x: tensorage.Tensor) -> None:
        loop = iter(loop_over(x, prefetch=1))
        next(loop)
        del store["x"]
        with pytest.raises(KeyNotFoundError):
            list(loop)
        assert not prefetchers()

    def test_rows_that_were_appended_wait_for_another_loop(
        self, store: TensorStore, x: tensorage.Tensor
    ) -> None:
        loop = loop_over(x)
        batches = iter(loop)
        order = numbers(next(batches))
        store.append("x", np.full((7, 2, 3), -1, "f4"))
        x.refresh()
        for batch in batches:
            order += numbers(batch)
        assert sorted(order) == list(range(3 * SAMPLES))
        assert sum(len(batch) for batch in loop_over(store.open("x"))) == 3 * SAMPLES + 7
