"""Requests for arrays of Storage: few, for the chunks that are touched, and nothing is ever listed."""

from __future__ import annotations

import contextlib
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import pytest
import workers
from project import Project, User
from proxy import Exchange, Proxy

from benchmarks.network import Line
from tensorage import KeyNotFoundError, Tensor, TensorStore
from tensorage.backend.wire.http import Connection, OwnPool
from tensorage.backend.wire.line import MAX_OBJECTS, PARALLEL, LineEstimate, LineMeter
from tensorage.backend.zarr.codec import EncodedShard, ShardCodec
from tensorage.backend.zarr.zarr_engine import codec_of

Array = np.ndarray[Any, Any]
Shape = tuple[int, ...]

#: Noise, so that chunks are as large as their elements: 30 of them, six to an object.
SAMPLES, CHUNK, SHARD = (3000, 32, 32), (100, 32, 32), (600, 32, 32)

CHUNK_BYTES = 100 * 32 * 32

#: The most bytes that zstd adds to a chunk of noise.
FRAME_BYTES = 64


@pytest.fixture(scope="module")
def through(project: Project, proxy: Proxy) -> Iterator[TensorStore]:
    """A store whose requests pass the proxy."""
    with workers.store_of(Project(proxy.url, project.key), project.register(), engine="storage") as store:
        # The project's version has been asked for.
        assert store.keys() == []
        yield store


@pytest.fixture(autouse=True)
def _line_as_guessed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever this machine measures, few bytes are as good as a request."""
    monkeypatch.setattr(LineMeter, "estimate", lambda _meter: LineEstimate())


@pytest.fixture(scope="module")
def samples(through: TensorStore) -> tuple[Array, Tensor]:
    array = np.random.default_rng(0).integers(0, 256, SAMPLES, "u1")
    return array, stored(through, "samples", array, CHUNK, SHARD)


def same_user(store: TensorStore) -> User:
    session = store.backend
    assert session.email is not None
    assert session.password is not None
    return User(session.email, session.password, session.user_id)


def stored(store: TensorStore, key: str, array: Array, chunks: Any, shards: Any) -> Tensor:
    store.arrays.write(key, array, engine="storage", chunks=chunks, shards=shards, overwrite=True)
    return store.open(key)


@contextlib.contextmanager
def counted(proxy: Proxy, store: TensorStore) -> Iterator[list[Exchange]]:
    """Count the requests of a block, and those that the session makes behind its caller's back."""
    store.backend.transfer.finish(30)
    with proxy.counted(with_sweeping=True) as exchanges:
        yield exchanges
        store.backend.transfer.finish(30)


def kinds(exchanges: list[Exchange]) -> list[str]:
    """Kinds of the requests, in order."""
    return [exchange.kind for exchange in exchanges]


def assert_looks_once(exchanges: list[Exchange], fetched: int) -> None:
    """A read looks at the catalogue once, and fetches so many ranges, some of them perhaps before the look has come."""
    assert sorted(kinds(exchanges)) == ["download"] * fetched + ["shards"]


def downloads(exchanges: list[Exchange]) -> list[Exchange]:
    return [exchange for exchange in exchanges if exchange.is_download]


def bytes_up(exchanges: list[Exchange]) -> int:
    return sum(exchange.sent_bytes for exchange in exchanges if exchange.is_upload)


def touched(index: Any) -> list[int]:
    """Numbers of the chunks of the samples that an index expression touches."""
    rows = np.broadcast_to(np.arange(SAMPLES[0])[:, None, None], SAMPLES)[index]
    return np.unique(rows // CHUNK[0]).tolist()


def ranges_of(chunks: list[int]) -> int:
    """Number of ranges that have these chunks: those that follow one another in an object are one."""
    first_of = groupby(enumerate(chunks), lambda item: (item[1] - item[0], item[1] // (SHARD[0] // CHUNK[0])))
    return sum(1 for _ in first_of)


_RANDOM = np.random.default_rng(1)

SELECTIONS: dict[str, Any] = {
    "all": np.s_[...],
    "reversed": np.s_[::-1],
    "one row": np.s_[1234],
    "an element": np.s_[7, 8, 9],
    "rows of a chunk": np.s_[110:190],
    "rows of two objects": np.s_[590:610],
    "steps within chunks": np.s_[::7],
    "steps over chunks": np.s_[5::450],
    "a column": np.s_[:, 3, 5],
    "columns backwards": np.s_[::-30, ::-1, [0, 5, 0]],
    "few rows by a mask": np.s_[np.isin(np.arange(3000), [3, 4, 700, 2999])],
    "many elements by a mask": np.s_[_RANDOM.random(SAMPLES) < 0.001],
    "points": np.s_[[5, 2999, 5, 1500], [1, 31, 1, 3], [9, 8, 9, 7]],
    "rows again and again": np.s_[[17, 17, 2017, 17, 18]],
    "64 of all": np.s_[_RANDOM.integers(0, 3000, 64)],
    "64 of a chunk": np.s_[_RANDOM.integers(200, 300, 64)],
    "64 of an object": np.s_[_RANDOM.integers(600, 1200, 64)],
}


@pytest.mark.parametrize("index", SELECTIONS.values(), ids=SELECTIONS)
def test_the_chunks_that_are_touched_travel(samples: tuple[Array, Tensor], proxy: Proxy, index: Any) -> None:
    array, handle = samples
    with proxy.counted() as exchanges:
        result = handle[index]
    np.testing.assert_array_equal(result, array[index], strict=True)
    chunks = touched(index)
    # The catalogue says where they are, once; nothing is listed, and no object is asked whether it is there.
    assert_looks_once(exchanges, ranges_of(chunks))
    received = sum(exchange.received_bytes for exchange in downloads(exchanges))
    assert len(chunks) * CHUNK_BYTES <= received <= len(chunks) * (CHUNK_BYTES + FRAME_BYTES)
    assert sum(each.received_bytes for each in exchanges if each.kind == "shards") < 1024 * 5


def test_a_random_batch_is_at_most_a_request_a_sample(samples: tuple[Array, Tensor], proxy: Proxy) -> None:
    array, handle = samples
    random = np.random.default_rng(2)
    for count in (1, 5, 64, 1000):
        for batch in (random.integers(0, 3000, count), random.permutation(3000)[:count]):
            with proxy.counted() as exchanges:
                result = handle[batch]
            np.testing.assert_array_equal(result, array[batch], strict=True)
            # Samples that share a chunk, or whose chunks are neighbours, share a request.
            assert_looks_once(exchanges, ranges_of(touched(batch)))
            assert len(downloads(exchanges)) <= min(count, 15)
            assert all(each.sent_bytes < 200 for each in exchanges), "shards are named, not samples"
    with proxy.counted() as exchanges:
        samples_of_batch = handle.__getitems__([5, 2500, 5])
    assert [sample.tobytes() for sample in samples_of_batch] == [array[i].tobytes() for i in (5, 2500, 5)]
    assert_looks_once(exchanges, 2)


@dataclass(frozen=True)
class Samples:
    """An array of noise, whose rows have so many bytes, and the most that 64 of them move."""

    row: Shape
    dtype: str
    rows: int
    most_bytes: int

    def array(self) -> Array:
        shape = (self.rows, *self.row)
        return np.random.default_rng(0).integers(0, 256, (*shape, np.dtype(self.dtype).itemsize), "u1").view(
            self.dtype
        ).reshape(shape)  # fmt: skip


#: Rows of 3 kB, of 100 bytes, of 10 kB, of 100 kB, and of 1 MB.
LAYOUTS = {
    "3 kB": Samples((28, 28), "<u4", 20_000, 4_000_000),
    "100 bytes": Samples((100,), "u1", 400_000, 4_000_000),
    "10 kB": Samples((50, 50), "<i4", 4_000, 4_000_000),
    "100 kB": Samples((100, 1000), "u1", 400, 64 * 125_000),
    "1 MB": Samples((1000, 500), "<u2", 40, 40 * 1_010_000),
}


def assert_same(found: Array, expected: Array) -> None:
    """Compare arrays of millions of integers: numpy's own assertion takes up to fifty times as long for them."""
    assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
    assert (found == expected).all()


@pytest.mark.parametrize("line", [LineEstimate(), LineEstimate(1e-4, 1e12), LineEstimate(1.0, 1e5)], ids=repr)
@pytest.mark.parametrize("kind", LAYOUTS.values(), ids=LAYOUTS)
def test_64_rows_of_the_default_layout(
    through: TensorStore, proxy: Proxy, kind: Samples, line: LineEstimate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LineMeter, "estimate", lambda _meter: line)
    through.allow_overwrite = True
    array = kind.array()
    through["kind"] = array
    handle = through.open("kind")
    batch = np.random.default_rng(1).choice(len(array), min(64, len(array)), replace=False)
    with counted(proxy, through) as exchanges:
        result = handle[batch]
    assert_same(result, array[batch])
    assert len(exchanges) <= 1 + len(batch)
    assert sum(exchange.received_bytes for exchange in exchanges) <= kind.most_bytes
    # A column touches all chunks: each object is one request, and each of its bytes travels once at most.
    with counted(proxy, through) as exchanges:
        column = handle[..., 5]
    assert_same(column, array[..., 5])
    objects = -(-array.nbytes // (7 * 1024 * 1024))
    assert len(exchanges) <= 1 + objects
    assert sum(exchange.received_bytes for exchange in exchanges) <= 1.02 * array.nbytes
    with counted(proxy, through) as exchanges:
        assert_same(handle[...], array)
    assert len(exchanges) <= 1 + objects
    del through["kind"]


def test_what_compresses_well_is_in_larger_chunks(through: TensorStore, proxy: Proxy) -> None:
    """Chunks are small for what has to travel: an array that is compressed to a hundredth stays so."""
    through.allow_overwrite = True
    array = np.repeat(np.arange(2_000), 784).astype("<i4").reshape(2_000, 28, 28)
    with counted(proxy, through) as exchanges:
        through["easy"] = array
    small = bytes_up(exchanges)
    with counted(proxy, through) as exchanges:
        through.arrays.write("easy", array, engine="storage", chunks=(334, 28, 28), overwrite=True)
    assert small <= 1.1 * bytes_up(exchanges)
    # Zeros say nothing of what will be there: there may be anything one day.
    through["nothing"] = np.zeros((2_000, 28, 28), "<i4")
    assert codec_of(through.arrays.open("nothing")).layout.chunks == (7, 28, 28)


def test_large_chunks_are_warned_of_once_and_a_copy_has_small_ones(
    through: TensorStore, proxy: Proxy
) -> None:
    through.allow_overwrite = True
    array = np.random.default_rng(0).integers(0, 256, (8_000, 1000), "u1")
    handle = stored(through, "large", array, (1000, 1000), (8000, 1000))
    rows = np.random.default_rng(1).choice(8_000, 16, replace=False).tolist()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # Whole chunks, a column and few rows are as well read so as otherwise.
        for index in (np.s_[...], np.s_[:, 5], np.s_[rows[:7]], np.s_[5:2_000]):
            handle[index]
    said = (
        r"reading 16 scattered rows of 'large' moved \d\.\d MB.* chunks of \(1000, 1000\) .* rows of 1000 bytes.*"
        r"store\.copy\('large', new_key, chunks=\(24, 1000\)\)"
    )
    with pytest.warns(UserWarning, match=said) as warned:
        np.testing.assert_array_equal(handle[rows], array[rows])
    assert warned[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        handle[rows]
        through.open("large")[rows]
        copy = through.copy("large", "small", chunks=(24, 1000))
        with counted(proxy, through) as exchanges:
            np.testing.assert_array_equal(copy[rows], array[rows])
    assert sum(exchange.received_bytes for exchange in exchanges) < 16 * 50_000
    # If warnings are errors, each read raises one, and nothing else goes wrong.
    other = stored(through, "other", array, (1000, 1000), (8000, 1000))
    for _ in range(2):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with pytest.raises(UserWarning, match="scattered"):
                other[rows]


def test_many_small_ranges_are_under_way_at_once(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """There are no more of them than the line is worth, and never more than the bound."""
    array = np.random.default_rng(0).integers(0, 256, (3000, 1024), "u1")
    for line, least, most in [
        (LineEstimate(0.03, 1e8), PARALLEL + 1, MAX_OBJECTS),
        (LineEstimate(10.0, 1e9), PARALLEL + 1, MAX_OBJECTS),
        (LineEstimate(0.001, 1e9), 2, PARALLEL),
    ]:
        monkeypatch.setattr(LineMeter, "estimate", lambda _meter, line=line: line)
        far = Line(project.url, round_trip_s=0.02)
        with (
            contextlib.closing(far),
            workers.store_of(Project(far.url, project.key), project.register(), engine="storage") as store,
        ):
            handle = stored(store, "x", array, (10, 1024), (3000, 1024))
            handle[:1]
            far.counts()
            np.testing.assert_array_equal(handle[::100], array[::100])
            assert least <= far.counts().peak_requests <= most


def test_what_touches_nothing_asks_for_nothing(samples: tuple[Array, Tensor], proxy: Proxy) -> None:
    _, handle = samples
    with proxy.counted() as exchanges:
        for empty in (np.s_[5:5], np.s_[[]], np.s_[np.zeros(3000, bool)], np.s_[:, 3:3]):
            assert handle[empty].size == 0
        for wrong in (3000, np.s_[0, 0, 0, 0], [3000], "a", np.ones(5, bool)):
            with pytest.raises(IndexError):
                handle[wrong]
        handle[5:5] = 1
    assert exchanges == []


def test_chunks_with_little_between_them_are_one_request(through: TensorStore, proxy: Proxy) -> None:
    array = np.random.default_rng(3).integers(0, 256, (400, 100), "u1")
    handle = stored(through, "x", array, (1, 100), (200, 100))
    for index, most in [(np.s_[::2], 2), (np.s_[[0, 150, 3]], 1), (np.s_[_RANDOM.integers(0, 400, 64)], 2)]:
        with counted(proxy, through) as exchanges:
            np.testing.assert_array_equal(handle[index], array[index])
        assert_looks_once(exchanges, most)
        assert sum(exchange.received_bytes for exchange in exchanges) < array.nbytes + 400 * 64


def test_chunks_of_the_fill_value_do_not_travel(through: TensorStore, proxy: Proxy) -> None:
    array = np.zeros(SAMPLES, "u1")
    with counted(proxy, through) as exchanges:
        handle = stored(through, "zeros", array, CHUNK, SHARD)
    assert kinds(exchanges) == ["begin", "commit", "open"]
    with counted(proxy, through) as exchanges:
        assert not handle[...].any()
    assert kinds(exchanges) == ["shards"]
    handle[650] = array[650] = 7
    with counted(proxy, through) as exchanges:
        np.testing.assert_array_equal(handle[...], array)
    assert_looks_once(exchanges, 1)


def test_a_read_by_key_needs_no_look_at_what_is_known(
    samples: tuple[Array, Tensor], through: TensorStore, proxy: Proxy
) -> None:
    array, _ = samples
    with counted(proxy, through) as exchanges:
        np.testing.assert_array_equal(through["samples", 700:703], array[700:703])
    assert_looks_once(exchanges, 1)


def test_what_somebody_shares_is_read_by_as_few(
    samples: tuple[Array, Tensor], through: TensorStore, project: Project, proxy: Proxy
) -> None:
    array, _ = samples
    others = Project(proxy.url, project.key)
    with workers.sharing(through), workers.store_of(others, project.register()) as other:
        through.share("samples")
        handle = other.open("samples", owner=through.backend.email)
        with counted(proxy, through) as exchanges:
            np.testing.assert_array_equal(handle[590:610], array[590:610])
    assert_looks_once(exchanges, 2)


def test_a_catalogue_of_many_shards_is_asked_in_pages(
    through: TensorStore, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    array = np.arange(1, 41, dtype="i2")
    handle = stored(through, "x", array, (1,), (1,))
    monkeypatch.setattr("tensorage.backend.zarr.shard_records.MAX_NUMBERS", 16)
    with counted(proxy, through) as exchanges:
        np.testing.assert_array_equal(handle[...], array)
    assert sorted(kinds(exchanges)) == ["download"] * 40 + ["shards"] * 3
    with counted(proxy, through) as exchanges:
        handle[1:] = array[1:] = -array[1:]
    assert kinds(exchanges).count("shards") == 3
    np.testing.assert_array_equal(handle[...], array)


#: Requests that delete the leftovers of a change.
SWEEPING = ["sweep_objects", "remove objects", "sweep_objects"]


def test_requests_of_a_write(through: TensorStore, proxy: Proxy) -> None:
    array = np.random.default_rng(4).integers(0, 256, (80, 50), "u1")
    through.allow_overwrite = True
    for write, uploads, puts in [
        (lambda: through.__setitem__("new", array), 1, 0),
        (
            lambda: through.arrays.write("cut", array, engine="storage", chunks=(10, 50), shards=(10, 50)),
            8,
            0,
        ),
        # The catalogue is told of 64 shards at once, and of the last ones with the commit.
        (
            lambda: through.arrays.write("fine", array, engine="storage", chunks=(1, 50), shards=(1, 50)),
            80,
            1,
        ),
    ]:
        with counted(proxy, through) as exchanges:
            write()
        done = kinds(exchanges)
        assert (done[0], done[-1]) == ("begin", "commit")
        assert sorted(done[1:-1]) == ["put_shards"] * puts + ["upload"] * uploads
        # Each object has an index, of 16 bytes for each chunk that a shard has room for: 341 of them by default.
        index_bytes = 16 * 341 if uploads == 1 else 16
        assert (
            array.nbytes <= bytes_up(exchanges) <= array.nbytes + uploads * (FRAME_BYTES + 200 + index_bytes)
        )
    with counted(proxy, through) as exchanges:
        through["new"] = array[1:]
    assert kinds(exchanges) == ["begin", "upload", "commit", *SWEEPING]
    with counted(proxy, through) as exchanges:
        del through["cut"]
    assert kinds(exchanges) == ["remove", *SWEEPING]


def test_an_append_writes_the_last_shards_only(through: TensorStore, proxy: Proxy) -> None:
    array = np.random.default_rng(5).integers(0, 256, (100, 1000), "u1")
    handle = stored(through, "x", array[:40], (5, 1000), (20, 1000))
    row = FRAME_BYTES + 1000
    for rows, expected, most_bytes in [
        # Few rows behind a whole shard need no object, and nothing is read.
        (3, ["append_tails"], 0),
        (4, ["append_tails"], 0),
        # Nor is anything read of a shard that is known, and has no object yet.
        (20, ["begin_append", "upload", "upload", "commit", "sweep_objects"], 27 * row),
        (2, ["shards", "append_tails", "download"], 0),
        # A shard that has an object and is full is read whole.
        (11, ["begin_append", "download", "upload", "commit", *SWEEPING], 20 * row),
        (0, ["begin_append", "commit"], 0),
    ]:
        at = len(handle)
        with counted(proxy, through) as exchanges:
            handle.append(array[at : at + rows])
        assert sorted(kinds(exchanges)) == sorted(expected)
        assert bytes_up(exchanges) <= most_bytes + 200
        np.testing.assert_array_equal(handle[...], array[: at + rows])


ASSIGNMENTS: list[tuple[str, Callable[[Array], Any], int, int]] = [
    ("one row", lambda array: np.s_[7], 1, 1),
    ("rows of two shards", lambda array: np.s_[18:22], 2, 2),
    ("a whole shard", lambda array: np.s_[20:40], 0, 1),
    ("a shard and a half", lambda array: np.s_[20:50], 1, 2),
    ("everything", lambda array: np.s_[...], 0, 5),
    ("here and there", lambda array: np.s_[[3, 99, 4], [1, 2, 3]], 2, 2),
    ("a mask", lambda array: np.s_[array == array[50, 50]], 5, 5),
]


@pytest.mark.parametrize(
    ("index_of", "read", "written"), [row[1:] for row in ASSIGNMENTS], ids=[row[0] for row in ASSIGNMENTS]
)
def test_an_assignment_moves_the_shards_that_it_touches(
    through: TensorStore, proxy: Proxy, index_of: Callable[[Array], Any], read: int, written: int
) -> None:
    array = np.random.default_rng(6).integers(0, 256, (100, 1000), "u1")
    handle = stored(through, "x", array, (5, 1000), (20, 1000))
    index, shard_bytes = index_of(array), 20 * (1000 + FRAME_BYTES)
    value = np.random.default_rng(7).integers(0, 256, array[index].shape, "u1")
    with counted(proxy, through) as exchanges:
        handle[index] = value
    array[index] = value
    done = kinds(exchanges)
    # Nothing has to be known of a shard all of which is assigned to.
    assert sorted(done) == sorted(
        ["begin_assign", "shards", *["download"] * read, *["upload"] * written, "commit", *SWEEPING]
    )
    assert bytes_up(exchanges) <= written * shard_bytes
    assert sum(exchange.received_bytes for exchange in downloads(exchanges)) <= read * shard_bytes
    np.testing.assert_array_equal(handle[...], array)


def test_what_is_about_the_catalogue_leaves_the_objects_alone(
    samples: tuple[Array, Tensor], through: TensorStore, proxy: Proxy
) -> None:
    _, handle = samples
    for operation, function in [
        (lambda: "samples" in through, "open"),
        (lambda: through.open("samples"), "open"),
        (lambda: len(through), "count"),
        (through.keys, "list"),
        (lambda: handle.attrs.update(a=1), "annotate"),
        (lambda: setattr(handle, "dims", ("n", "y", "x")), "annotate"),
        (lambda: through.rename("samples", "renamed"), "rename"),
        (lambda: through.rename("renamed", "samples"), "rename"),
    ]:
        with counted(proxy, through) as exchanges:
            operation()
        assert kinds(exchanges) == [function]


def looks(exchanges: list[Exchange]) -> list[Exchange]:
    return [exchange for exchange in exchanges if exchange.kind == "shards"]


def test_records_are_fetched_once(through: TensorStore, proxy: Proxy) -> None:
    array = np.random.default_rng(3).integers(0, 256, (400, 100), "u1")
    handle = stored(through, "records", array, (10, 100), (100, 100))
    rows = np.arange(5, 300, 20)
    np.testing.assert_array_equal(handle[rows], array[rows])
    with counted(proxy, through) as exchanges:
        np.testing.assert_array_equal(handle[rows + 1], array[rows + 1])
    assert_looks_once(exchanges, 3)
    # Nothing but that it is as it was. The fourth shard is not known yet.
    assert looks(exchanges)[0].received_bytes == 0
    with counted(proxy, through) as exchanges:
        np.testing.assert_array_equal(handle[[7, 350]], array[[7, 350]])
    assert kinds(exchanges)[0] == "shards"
    assert b'"numbers":[3]' in looks(exchanges)[0].beginning


def test_a_batch_of_small_ranges_takes_no_threads(
    through: TensorStore, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    array = np.random.default_rng(3).integers(0, 256, (100, 50_000), "u1")
    handle = stored(through, "batch", array, (1, 50_000), (10, 50_000))
    rows = np.arange(0, 100, 2)
    np.testing.assert_array_equal(handle[rows], array[rows])
    # Open the connections that are ever used at once: threads have opened fewer, the quicker the answers came.
    http = through.backend.transfer.http
    pool, opened = http.straight_pool()[0], list[Connection]()
    assert isinstance(pool, OwnPool)
    while len(opened) < http.max_downloads:
        pool.open_one()
        opened += pool.take_open(1)
    pool.give_back(opened)
    with monkeypatch.context() as patched:
        patched.setattr("tensorage.backend.transfer.ThreadPoolExecutor", None)
        with counted(proxy, through) as exchanges:
            np.testing.assert_array_equal(handle[rows + 1], array[rows + 1])
    assert_looks_once(exchanges, len(rows))


@pytest.mark.parametrize("change", ["assign", "overwrite", "shorter"])
def test_what_is_remembered_of_shards_is_checked(
    through: TensorStore, project: Project, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    # Objects that were replaced stay, as if their writer had died: nothing but the look tells of them.
    monkeypatch.setattr("tensorage.backend.staging.sweep_some_objects", lambda _transfer, _before: [])
    array = np.random.default_rng(3).integers(0, 256, (400, 100), "u1")
    handle = stored(through, "changed", array, (10, 100), (100, 100))
    rows = np.arange(5, 400, 20)
    np.testing.assert_array_equal(handle[rows], array[rows])
    with workers.store_of(project, same_user(through), engine="storage") as other:
        if change == "assign":
            other["changed", 100:200] = array[100:200] = 7
        elif change == "overwrite":
            array = array[::-1].copy()
            stored(other, "changed", array, (10, 100), (100, 100))
        else:
            other.open("changed").resize(50)
            other.open("changed").resize(400)
            array[50:] = 0
    np.testing.assert_array_equal(handle[rows], array[rows])


def test_an_object_that_an_append_replaced_is_asked_for_once(
    through: TensorStore, project: Project, proxy: Proxy
) -> None:
    array = np.random.default_rng(3).integers(0, 256, (450, 100), "u1")
    handle = stored(through, "appended", array, (10, 100), (100, 100))
    np.testing.assert_array_equal(handle[[3, 440]], array[[3, 440]])
    with workers.store_of(project, same_user(through), engine="storage") as other:
        # More than a tail takes, so that there is another object.
        other.append("appended", np.zeros((4000, 100), "u1"))
    assert len(handle) == 450
    with counted(proxy, through) as exchanges:
        np.testing.assert_array_equal(handle[[3, 440]], array[[3, 440]])
    assert len(downloads(exchanges)) == 3
    with counted(proxy, through) as exchanges:
        np.testing.assert_array_equal(handle[[4, 441]], array[[4, 441]])
    assert_looks_once(exchanges, 2)


def test_what_is_remembered_of_shards_ends_with_a_share(
    through: TensorStore, project: Project, proxy: Proxy
) -> None:
    array = np.random.default_rng(3).integers(0, 256, (400, 100), "u1")
    stored(through, "lent", array, (10, 100), (100, 100))
    with workers.store_of(Project(proxy.url, project.key), project.register()) as other:
        through.share("lent", other.backend.email)
        handle = other.open("lent", owner=through.backend.email)
        np.testing.assert_array_equal(handle[[3, 340]], array[[3, 340]])
        through.unshare("lent")
        with pytest.raises(KeyNotFoundError):
            handle[[3, 340]]


def test_no_more_shards_are_encoded_at_once_than_there_are_cores(
    through: TensorStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If many were at once, none would be ready for the line for a long time."""
    monkeypatch.setattr("tensorage.backend.zarr.writing.count_cores", lambda: 1)
    under_way, most, lock, encode = 0, 0, threading.Lock(), ShardCodec.encode

    def watched(codec: ShardCodec, elements: Array) -> EncodedShard:
        nonlocal under_way, most
        with lock:
            under_way += 1
            most = max(most, under_way)
        time.sleep(0.01)
        encoded = encode(codec, elements)
        with lock:
            under_way -= 1
        return encoded

    monkeypatch.setattr(ShardCodec, "encode", watched)
    array = np.random.default_rng(8).integers(0, 256, (40, 100), "u1")
    handle = stored(through, "encoded", array, (5, 100), (5, 100))
    np.testing.assert_array_equal(handle[...], array)
    assert most == 1
