"""Appends of a few rows to arrays of Storage: they stay in the catalogue until they are worth an object.

There they are chunks in tails, or loose, as they came.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import workers
from project import Project, User
from proxy import Proxy

from tensorage import CorruptTensorError, DTypeError, InvalidInputError, TensorStore
from tensorage.backend.entries import RecordMemory
from tensorage.backend.zarr import shard_records, tails
from tensorage.backend.zarr.shard_records import ShardRecord
from tensorage.backend.zarr.tails import MOST_TAIL_BYTES
from tensorage.backend.zarr.zarr_engine import codec_of
from tensorage.transactions.recorder import Recorder

zarr = pytest.importorskip("zarr")

Array = np.ndarray[Any, Any]

#: Noise, of rows of 3 kB.
ROWS = np.random.default_rng(0).random((3000, 784)).astype("f4")


@pytest.fixture
def store(project: Project, user: User) -> Iterator[TensorStore]:
    with workers.store_of(project, user, engine="storage") as store:
        yield store


@pytest.fixture
def away(proxy: Proxy, project: Project, user: User) -> Iterator[TensorStore]:
    """Another session of the same user, whose requests pass the proxy."""
    with workers.store_of(Project(proxy.url, project.key), user, engine="storage") as store:
        yield store


def records_of(store: TensorStore, key: str) -> dict[int, ShardRecord]:
    handle = store.open(key)
    codec = codec_of(handle.dataset)
    numbers = range(codec.layout.shard_count)
    work = tails.Work.reading(store.arrays.project.transfer, handle.dataset)
    return shard_records.fetch_records(work, codec.layout, numbers)


def tail_bytes(store: TensorStore, key: str) -> int:
    """The bytes of all tails of an array, loose rows included."""
    return sum(len(one.tail) for one in records_of(store, key).values())


def test_rows_one_by_one_move_little(store: TensorStore, away: TensorStore, proxy: Proxy) -> None:
    """Each would fetch and send the last object otherwise, of up to 8 MiB."""
    store["x"] = ROWS[:1000]
    rows = 120
    with proxy.counted() as exchanges:
        for i in range(1000, 1000 + rows):
            away.append("x", ROWS[i : i + 1])
    np.testing.assert_array_equal(store["x"][...], ROWS[: 1000 + rows])
    objects = sum(exchange.is_upload for exchange in exchanges)
    assert 1 <= objects <= 2
    # A look at the array, a request for each row, and the few that make the tails an object.
    assert len(exchanges) <= 2 + rows + 9 * objects
    moved = sum(exchange.sent_bytes + exchange.received_bytes for exchange in exchanges)
    # A row, its chunk in base64, the index of the shard, and a share of the objects.
    assert moved <= rows * 2**17


def test_a_reader_has_the_last_rows_by_one_request(
    store: TensorStore, away: TensorStore, proxy: Proxy
) -> None:
    store["x"] = ROWS[:1000]
    away.open("x")
    store.append("x", ROWS[1000:1003])
    np.testing.assert_array_equal(away["x", -1], ROWS[1002])
    with proxy.counted() as exchanges:
        np.testing.assert_array_equal(away["x", -3:], ROWS[1000:1003])
    assert [exchange.kind for exchange in exchanges] == ["shards"]


SHAPES: dict[str, tuple[Any, Any, Any]] = {
    "rows": ((40, 6), (5, 6), (20, 6)),
    "one row a chunk": ((7, 6), (1, 6), (8, 6)),
    "chunks side by side": ((9, 6), (2, 2), (6, 4)),
    "three axes": ((5, 3, 4), (2, 3, 1), (4, 3, 2)),
    "one axis": ((13,), (4,), (16,)),
    "no rows": ((0, 4), (3, 4), (9, 4)),
}


@pytest.mark.parametrize("dtype", ["i2", "U3"])
@pytest.mark.parametrize(("shape", "chunks", "shards"), SHAPES.values(), ids=SHAPES)
def test_an_array_that_grows_is_that_of_numpy(
    store: TensorStore, dtype: str, shape: Any, chunks: Any, shards: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By appends of any length, of which some make objects, some stay, and some are nothing but fill values."""
    monkeypatch.setattr(tails, "MOST_TAIL_BYTES", 1500)
    rng = np.random.default_rng(len(dtype) + len(shape))
    expected = rng.integers(0, 200, shape).astype(dtype)
    handle = store.write("x", expected, chunks=chunks, shards=shards) or store.open("x")
    other = store.open("x")
    for step in range(12):
        count = int(rng.choice([1, 1, 1, 2, 3, 7, 23, 0]))
        rows = rng.integers(0, 200, (count, *shape[1:])).astype(dtype)
        if step % 5 == 3:
            rows[...] = np.zeros((), dtype)
        if step % 4 == 2:
            append_loose(store, "x", rows)
        else:
            (handle if step % 3 else store.open("x")).append(rows)
        expected = np.concatenate([expected, rows])
        np.testing.assert_array_equal(store["x"][...], expected)
        if step % 6 == 4:
            row = int(rng.integers(len(expected)))
            store["x", row] = store["x", row - 1]
            expected[row] = expected[row - 1]
        handle = store.open("x")
        np.testing.assert_array_equal(handle[-3:], expected[-3:])
    assert tail_bytes(store, "x") <= 1500
    other.refresh()
    np.testing.assert_array_equal(other[...], expected)


def append_loose(store: TensorStore, key: str, rows: Any) -> None:
    """Append as whoever meets others."""
    with store.transaction() as tx:
        tx.append(key, rows)


@pytest.fixture(params=["in chunks", "loose", "both"])
def grown(store: TensorStore, request: pytest.FixtureRequest) -> Array:
    """The elements of an array under "x", whose last rows are in a tail, or loose."""
    store.write("x", ROWS[:100, :50], chunks=(4, 50), shards=(40, 50))
    append = {"in chunks": TensorStore.append, "loose": append_loose, "both": TensorStore.append}[
        request.param
    ]
    for i in range(100, 107):
        append(store, "x", ROWS[i : i + 1, :50])
        if request.param == "both" and i == 103:
            append = append_loose
    is_in = [(one.stored is not None, bool(one.as_stored.tail)) for one in records_of(store, "x").values()][
        -1
    ]
    assert is_in == {"in chunks": (False, True), "loose": (True, False), "both": (True, True)}[request.param]
    assert 0 < tail_bytes(store, "x") <= MOST_TAIL_BYTES
    return ROWS[:107, :50].copy()


in_chunks = pytest.mark.parametrize("grown", ["in chunks"], indirect=True)


def test_all_ways_to_read_see_the_tail(store: TensorStore, grown: Array) -> None:
    handle = store.open("x")
    np.testing.assert_array_equal(np.stack(list(handle)), grown)
    np.testing.assert_array_equal(handle[[106, 3, 101, 106], 7], grown[[106, 3, 101, 106], 7])
    np.testing.assert_array_equal(handle[::-1, 10:20:3], grown[::-1, 10:20:3])
    np.testing.assert_array_equal(store.read_many(["x"])["x"], grown)
    seen = list(handle.batches(16, shuffle="shards", seed=1))
    np.testing.assert_array_equal(np.sort(np.concatenate(seen), axis=0), np.sort(grown, axis=0))
    np.testing.assert_array_equal(handle.to_dask().compute(), grown)


def test_a_store_of_zarr_has_the_tail_in_its_objects(store: TensorStore, grown: Array) -> None:
    opened = zarr.open_array(store.zarr_store("x"), mode="r")
    np.testing.assert_array_equal(opened[...], grown)
    np.testing.assert_array_equal(opened[99:106, 3], grown[99:106, 3])
    whole = store.zarr_store("x")
    copied = zarr.storage.MemoryStore()
    for key in ["zarr.json", *(f"c/{number}/0" for number in range(3))]:
        _copy(whole, copied, key)
    np.testing.assert_array_equal(zarr.open_array(copied, mode="r")[...], grown)


def _copy(source: Any, target: Any, key: str) -> None:
    """Copy an object of a store whole, as `cp` would."""
    import asyncio

    async def copy() -> None:
        data = await source.get(key, zarr.core.buffer.default_buffer_prototype())
        assert len(data) == await source.getsize(key)
        await target.set(key, data)

    asyncio.run(copy())


def test_a_zarr_array_that_was_opened_does_not_mix_versions(store: TensorStore, grown: Array) -> None:
    """Its reader has the index of a shard, and must not get chunks of what came later."""
    opened = zarr.open_array(store.zarr_store("x"), mode="r")
    np.testing.assert_array_equal(opened[100:], grown[100:])
    store.append("x", grown[:1])
    fresh = store.zarr_store("x")
    np.testing.assert_array_equal(zarr.open_array(fresh, mode="r")[107], grown[0])


@pytest.mark.parametrize("options", [{}, {"chunks": (8, 50)}, {"engine": "database"}], ids=str)
def test_a_copy_has_the_tail(store: TensorStore, grown: Array, options: Any) -> None:
    store.copy("x", "y", **options)
    np.testing.assert_array_equal(store["y"][...], grown)
    store.append("y", grown[:2])
    np.testing.assert_array_equal(store["y"][...], np.concatenate([grown, grown[:2]]))
    np.testing.assert_array_equal(store["x"][...], grown)


def test_rows_of_the_tail_are_assigned_to(store: TensorStore, grown: Array) -> None:
    store["x", 103] = 7
    grown[103] = 7
    np.testing.assert_array_equal(store["x"][...], grown)
    assert tail_bytes(store, "x") == 0
    store.append("x", grown[:1])
    store["x", 90:] = store["x", 0]
    np.testing.assert_array_equal(store["x", 90:], np.repeat(grown[:1], 18, axis=0))


def test_rows_that_were_cut_off_do_not_come_back(store: TensorStore, grown: Array) -> None:
    handle = store.open("x")
    for rows in (105, 101, 100, 98):
        handle.resize(rows)
        handle.append(grown[:1])
        expected = np.concatenate([grown[:rows], grown[:1]])
        np.testing.assert_array_equal(handle[...], expected)
        handle.resize(rows + 3)
        np.testing.assert_array_equal(handle[rows + 1 :], np.zeros((2, 50)))
        handle.append(grown[:2])
        np.testing.assert_array_equal(handle[rows + 3 :], grown[:2])
        handle.resize(rows)
    np.testing.assert_array_equal(store["x"][...], grown[:98])


def test_an_array_with_a_fill_value_grows_by_tails(store: TensorStore) -> None:
    handle = store.create("x", (10, 6), "i4", fill_value=-1, chunks=(2, 6), shards=(16, 6))
    handle.append(np.arange(6, dtype="i4").reshape(1, 6))
    expected = np.full((11, 6), -1)
    expected[10] = np.arange(6)
    np.testing.assert_array_equal(store["x"][...], expected)
    handle.resize(15)
    handle.append(np.full((1, 6), 9, "i4"))
    np.testing.assert_array_equal(store["x"][...], np.concatenate([expected, np.full((4, 6), -1), [[9] * 6]]))


def test_samples_of_any_length_grow_by_tails(store: TensorStore, away: TensorStore, proxy: Proxy) -> None:
    texts = [f"sample {i} " * (i % 7) for i in range(200)]
    store["x"] = texts[:150]
    away.open("x")
    with proxy.counted() as exchanges:
        for text in texts[150:]:
            away.append("x", [text])
    assert list(store["x"][...]) == texts
    assert not any(exchange.is_upload for exchange in exchanges)


def test_a_transaction_appends_by_tails(store: TensorStore, grown: Array) -> None:
    store["y"] = grown
    with store.transaction() as tx:
        tx.append("x", grown[:2])
        tx.append("y", grown[:1])
        tx["z"] = grown
    np.testing.assert_array_equal(store["x"][107:], grown[:2])
    np.testing.assert_array_equal(store["y"][107:], grown[:1])


def test_many_transactions_make_chunks_and_objects(
    store: TensorStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loose rows are few: those that find no room for theirs make chunks of all, and objects of many chunks."""
    monkeypatch.setattr(tails, "MOST_TAIL_BYTES", 300_000)
    store.write("x", ROWS[:3], chunks=(8, 784), shards=(256, 784))
    seen = set[tuple[bool, bool, bool]]()
    for i in range(3, 300):
        append_loose(store, "x", ROWS[i : i + 1])
        last = records_of(store, "x")[i // 256].as_stored
        seen.add((bool(last.name), bool(last.tail), bool(last.loose)))
        assert len(last.loose) <= tails.MOST_LOOSE_BYTES
    np.testing.assert_array_equal(store["x"][...], ROWS[:300])
    assert {(True, False, True), (True, True, True), (True, False, False), (False, False, True)} <= seen


# Others meanwhile --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "chunks", "shards"),
    [((5, 784), (8, 784), (32, 784)), ((3, 784), (2, 392), (40, 392)), ((0, 784), (64, 784), (256, 784))],
    ids=["rows", "side by side", "long"],
)
def test_transactions_and_appends_at_once_lose_no_row(
    store: TensorStore,
    away: TensorStore,
    shape: Any,
    chunks: Any,
    shards: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Ends of chunks and of shards, and too many loose rows, are met by all of them at once."""
    refused, refuse = list[str](), Recorder.refuse_loose
    monkeypatch.setattr(Recorder, "refuse_loose", lambda self, key: refused.append(key) or refuse(self, key))
    store.write("x", np.zeros(shape, "f4"), chunks=chunks, shards=shards)
    barrier = threading.Barrier(12)

    def add(writer: int) -> None:
        own = (store, away)[writer % 2]
        for i in range(7):
            row = np.full((1, 784), 7 * writer + i + 1, "f4")
            if i == 0:
                barrier.wait()
            if writer % 4:
                append_loose(own, "x", row)
            else:
                own.append("x", row)

    with ThreadPoolExecutor(12) as pool:
        list(pool.map(add, range(12)))
    found = store["x"][shape[0] :]
    assert sorted(found[:, 0].tolist()) == list(range(1, 85))
    assert (found == found[:, :1]).all()
    for writer in range(12):
        # The rows of one writer are in its order.
        own = found[(found[:, 0] - 1) // 7 == writer, 0]
        assert own.tolist() == sorted(own)
    assert refused


def test_whoever_meets_others_begins_nothing_anew(
    store: TensorStore, away: TensorStore, proxy: Proxy
) -> None:
    """A row that is refused behind those of others is sent once more, as it is, and the next ones are sent so."""
    store.write("x", ROWS[:4], chunks=(4, 784), shards=(400, 784))
    away.append("x", ROWS[4:5])
    append_loose(store, "x", ROWS[5:9])
    with proxy.counted() as exchanges:
        away.append("x", ROWS[9:10])
        away.append("x", ROWS[10:11])
    assert [exchange.kind for exchange in exchanges] == ["append_tails", "append", "append"]
    np.testing.assert_array_equal(store["x"][...], ROWS[:11])


def test_an_array_that_takes_no_loose_rows_is_met_as_before(
    store: TensorStore, away: TensorStore, proxy: Proxy
) -> None:
    """Its end is remembered again, and rows are not sent in vain for ever."""
    texts = [f"sample {i}" for i in range(8)]
    store.write_ragged("texts", texts[:4])
    store.write("wide", ROWS[:4], chunks=(4, 392), shards=(400, 392))
    store.write("single", ROWS[:4], chunks=(4, 784), shards=False)
    for key, rows, expected in (
        ("texts", texts, ["append_tails"]),
        ("wide", ROWS, ["append_tails"]),
        ("single", ROWS, ["begin_append", "upload", "commit"]),
    ):
        away.append(key, rows[4:5])
        store.append(key, rows[5:6])
        away.append(key, rows[6:7])
        with proxy.counted() as exchanges:
            away.append(key, rows[7:8])
        kinds = [exchange.kind for exchange in exchanges]
        assert [kind for kind in kinds if kind in ("append", *expected)] == expected, key
        np.testing.assert_array_equal(store[key, :], rows[:8])


def test_a_transaction_knows_nothing_of_the_end(store: TensorStore, away: TensorStore, proxy: Proxy) -> None:
    """It looks at the array once, for its dtype. One that takes an array for one of the database does not."""
    store.write("x", ROWS[:4], chunks=(4, 784), shards=(400, 784))
    away.open("x")
    for own, expected in ((away, ["open", "transact"]), (replace(away, engine="database"), ["transact"])):
        with proxy.counted() as exchanges:
            append_loose(own, "x", ROWS[:1])
        assert [exchange.kind for exchange in exchanges] == expected


@pytest.mark.parametrize("rows", [3, 4])
def test_a_transaction_appends_to_one_array_more_than_once(
    store: TensorStore, away: TensorStore, proxy: Proxy, rows: int
) -> None:
    """The first one makes room for loose rows, if there is none."""
    store.write("x", ROWS[:rows], chunks=(4, 784), shards=(400, 784))
    away.open("x")
    with proxy.counted() as exchanges, replace(away, engine="database").transaction() as tx:
        for i in range(rows, rows + 4):
            tx.append("x", ROWS[i : i + 1])
    np.testing.assert_array_equal(store["x"][...], ROWS[: rows + 4])
    assert [exchange.kind for exchange in exchanges].count("transact") == (2 if rows == 3 else 1)


@pytest.mark.parametrize(
    "lengths", [[1, 1, 1], [3, 9, 1], [200, 1, 1], [1, 200, 1], [200, 300], [100, 1, 200, 1]], ids=str
)
def test_appends_of_a_transaction_that_fill_shards_are_one(store: TensorStore, lengths: list[int]) -> None:
    """Loose rows fill no shard, and chunks of a second append would not know the rows of the first one."""
    store.write("x", ROWS[:7], chunks=(4, 784), shards=(8, 784))
    ends = np.cumsum([7, *lengths])
    with store.transaction() as tx:
        tx["before"] = [1]
        for low, high in itertools.pairwise(ends):
            tx.append("x", ROWS[low:high])
            tx[f"to {high}"] = [1]
        del tx["before"]
    np.testing.assert_array_equal(store["x"][...], ROWS[: ends[-1]])
    assert store.keys() == sorted(["x", *(f"to {high}" for high in ends[1:])])


@pytest.mark.parametrize("values", [[1], [[1, 2]], [[0.5]]], ids=str)
def test_a_transaction_is_told_of_rows_that_do_not_fit(store: TensorStore, values: Any) -> None:
    store["x"] = np.zeros((4, 3), "i4")
    for own in (store, replace(store, engine="database")):
        with pytest.raises((InvalidInputError, DTypeError)):
            append_loose(own, "x", values)
    assert store["x"].shape == (4, 3)


def test_rows_are_cast_to_the_dtype_of_the_array(store: TensorStore) -> None:
    store.write("x", np.zeros((4, 3), ">i2"), chunks=(2, 3))
    for own in (store, replace(store, engine="database")):
        append_loose(own, "x", np.full((1, 3), 25, "i1"))
    assert store["x", 4:].tolist() == [[25] * 3] * 2


def test_writers_at_once_lose_no_row(store: TensorStore, away: TensorStore) -> None:
    """Each reads what others have added, and adds its own."""
    store.write("x", np.zeros((0, 2), "i4"), chunks=(4, 2), shards=(40, 2))

    def add(writer: int) -> None:
        own = (store, away)[writer % 2]
        for i in range(15):
            own.append("x", np.array([[writer, i]], "i4"))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(add, range(4)))
    found = store["x"][...]
    assert sorted(map(tuple, found.tolist())) == [(writer, i) for writer in range(4) for i in range(15)]
    for writer in range(4):
        # The rows of one writer are in its order.
        assert found[found[:, 0] == writer, 1].tolist() == list(range(15))


def test_what_is_remembered_is_no_longer_so(store: TensorStore, away: TensorStore, grown: Array) -> None:
    """An array that is replaced, renamed or changed since the last append is looked at again."""
    away.append("x", grown[:1])
    store["x", 105] = -1
    away.append("x", grown[1:2])
    expected = np.concatenate([grown, grown[:2]])
    expected[105] = -1
    np.testing.assert_array_equal(store["x"][...], expected)
    store.rename("x", "old")
    store["x"] = grown[:3]
    away.append("x", grown[3:4])
    np.testing.assert_array_equal(store["x"][...], grown[:4])
    np.testing.assert_array_equal(store["old"][...], expected)
    del store["x"]
    store["x"] = np.arange(4)
    away.append("x", [4])
    np.testing.assert_array_equal(store["x"][...], np.arange(5))
    store.arrays.write("x", np.arange(3), engine="database", overwrite=True)
    away.append("x", [3])
    np.testing.assert_array_equal(store["x"][...], np.arange(4))


def test_a_handle_from_before_an_append_goes_on(store: TensorStore, grown: Array) -> None:
    handle, late = store.open("x"), store.open("x")
    handle.append(grown[:1])
    # Its rows are those that it was opened with, and an assignment keeps those behind them.
    np.testing.assert_array_equal(late[...], grown)
    late[106] = 1
    grown[106] = 1
    late.append(grown[1:2])
    np.testing.assert_array_equal(store["x"][...], np.concatenate([grown, grown[:2]]))


# Damage --------------------------------------------------------------------------------------------------


@in_chunks
def test_a_damaged_tail_is_named(store: TensorStore, grown: Array, database: Any) -> None:
    handle = store.open("x")
    changed = database.execute(
        "update public.shards set tail = set_byte(tail, 20, get_byte(tail, 20) # 255) "
        "where data_id = %s and tail is not null",
        [handle.dataset.id],
    )
    assert changed.rowcount == 1
    with pytest.raises(CorruptTensorError, match="its chunk"):
        handle[100:]
    np.testing.assert_array_equal(handle[:80], grown[:80])


@in_chunks
def test_a_tail_that_is_too_short_is_named(store: TensorStore, grown: Array, database: Any) -> None:
    handle = store.open("x")
    database.execute(
        "update public.shards set tail = substr(tail, 1, 10) where data_id = %s and tail is not null",
        [handle.dataset.id],
    )
    with pytest.raises(CorruptTensorError, match="outside of their object"):
        handle[100:]
    with pytest.raises(CorruptTensorError, match="outside of their object"):
        handle.append(grown[:1])


def test_objects_without_room_for_tails_have_none(
    store: TensorStore, database: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.write("x", ROWS[:10, :5], shards=False, chunks=(4, 5))
    handle = store.open("x")
    handle.append(ROWS[10:11, :5])
    np.testing.assert_array_equal(handle[...], ROWS[:11, :5])
    assert tail_bytes(store, "x") == 0
    database.execute("update public.shards set tail = 'x' where data_id = %s", [handle.dataset.id])
    # Another session, which remembers nothing of the array.
    monkeypatch.setattr(store.backend.transfer, "records", RecordMemory())
    with pytest.raises(CorruptTensorError, match="have none"):
        handle[...]


def test_a_fingerprint_tells_contents_apart() -> None:
    fingerprints = {
        ShardRecord(0, name, 5, index, tail, loose, loose_at).fingerprint
        for name in ("", "a/1/c/0", "a/2/c/0")
        for index in (b"", b"i", b"it")
        for tail in (b"t", b"ta", b"x")
        for loose, loose_at in ((b"", 0), (b"l", 4), (b"l", 8), (b"lo", 4))
    }
    assert len(fingerprints) == 3 * 3 * 3 * 4


@pytest.mark.parametrize(
    "damage",
    ["loose = loose || 'x'", "loose_at = 21", "loose_at = 36", "loose = loose || loose || loose || loose"],
)
@pytest.mark.parametrize("grown", ["loose"], indirect=True)
def test_damaged_loose_rows_are_named(store: TensorStore, grown: Array, database: Any, damage: str) -> None:
    handle = store.open("x")
    changed = database.execute(
        f"update public.shards set {damage} where data_id = %s and loose is not null", [handle.dataset.id]
    )
    assert changed.rowcount == 1
    with pytest.raises(CorruptTensorError, match="the rows that the catalogue has of"):
        handle[100:]
    with pytest.raises(CorruptTensorError, match="the rows that the catalogue has of"):
        handle.append(grown[:1])
    np.testing.assert_array_equal(handle[:80], grown[:80])
