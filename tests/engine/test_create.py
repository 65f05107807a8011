"""Arrays that are there before their elements, filled by anybody, and arrays that become longer or shorter."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import dask.array
import ml_dtypes
import numpy as np
import numpy.typing as npt
import psycopg
import pytest
import workers
from project import Project, User
from proxy import Exchange

from tensorage import (
    BackendSession,
    DTypeError,
    IncompleteTensorError,
    InvalidInputError,
    KeyExistsError,
    KeyNotFoundError,
    PermissionDeniedError,
    QuotaExceededError,
    Tensor,
    TensorStore,
)
from tensorage.types import Engine

Connection = psycopg.Connection[tuple[Any, ...]]


def _small_blocks(store: TensorStore) -> dict[str, Any]:
    """Options that cut 35 elements into a block, or an object."""
    if store.engine == "database":
        store.chunk_size = 35
        return {}
    return {"chunks": (5, 7), "shards": (5, 7)}


# --- creating -----------------------------------------------------------------------------------------


def test_an_array_is_there_before_its_elements(
    watched: tuple[TensorStore, list[Exchange]], engine: Engine
) -> None:
    store, seen = watched
    store.engine = engine
    before = store.usage().bytes
    seen.clear()
    made = store.create(
        "sim", shape=(10**9, 1000), dtype="f4", fill_value=-1, attrs={"units": "K"}, dims=("t", "x")
    )
    assert [exchange.function for exchange in seen] == ["create"]
    assert (made.shape, made.dtype, made.fill_value) == ((10**9, 1000), np.float32, -1)
    assert (made.attrs, made.dims, made.dataset.stored_bytes) == ({"units": "K"}, ("t", "x"), 0)
    handle = store.open("sim")
    assert (handle[10**9 - 1, :3] == -1).all()
    assert (handle[[7, 10**8, 3], 5] == -1).all()
    assert store.usage().bytes - before < 4000
    handle[5 * 10**8] = np.arange(1000)
    np.testing.assert_array_equal(handle[5 * 10**8, 990:], np.arange(990, 1000))
    assert (handle[5 * 10**8 + 1] == -1).all()


def test_regions_are_written_in_any_order(store: TensorStore) -> None:
    options = _small_blocks(store)
    handle = store.create("c", shape=(30, 7), dtype="i4", fill_value=3, **options)
    expected = np.full((30, 7), 3, "i4")
    dice = np.random.default_rng(0)
    for number in range(12):
        low, high = sorted(dice.integers(0, 31, 2))
        values = dice.integers(0, 99, (high - low, 7))
        handle[low:high] = expected[low:high] = values
        handle[:: number + 2, number % 7] = expected[:: number + 2, number % 7] = number
        np.testing.assert_array_equal(store["c"], expected)
        rows = dice.integers(0, 30, 9)
        np.testing.assert_array_equal(store["c", rows], expected[rows])
        np.testing.assert_array_equal(store["c", ::-3, 1:5:2], expected[::-3, 1:5:2])


def test_a_large_region_is_written_whole(store: TensorStore) -> None:
    """More than a request holds: the assignment is staged."""
    handle = store.create("big", shape=(3000, 1000), dtype="f8")
    values = np.random.default_rng(1).random((2001, 1000))
    handle[499:2500] = values
    np.testing.assert_array_equal(handle[499:2500], values)
    assert not handle[:499].any()
    assert not handle[2500:].any()
    stored = store.open("big").dataset.stored_bytes
    assert stored is not None
    handle[1:2900:3, ::7] = 1.5
    np.testing.assert_array_equal(handle[500], values[1])
    assert (handle[1:2900:3, ::7] == 1.5).all()


@pytest.mark.parametrize(
    ("dtype", "fill"),
    [
        ("U5", "ab"),
        ("S3", b"xy"),
        ("M8[s]", np.datetime64("2020-01-01")),
        ("M8[s]", np.datetime64("NaT")),
        ("c16", 1 - 2j),
        ("f4", float("nan")),
        ("f4", float("-inf")),
        ("?", True),
        ("u8", 2**63),
        ([("a", "i4"), ("b", "f8", 2)], (1, (2.0, 3.0))),
        ("V3", np.void(b"abc")),
    ],
)
def test_fill_values_of_all_kinds(store: TensorStore, dtype: Any, fill: Any) -> None:
    expected = np.empty(5, dtype)
    expected[...] = fill
    handle = store.create("x", shape=5, dtype=dtype, fill_value=fill)
    assert store["x"].tobytes() == expected.tobytes()
    assert np.array([handle.fill_value], dtype).tobytes() == expected[:1].tobytes()
    zeros = store.create("zeros", shape=(5,), dtype=dtype)
    assert store["zeros"].tobytes() == bytes(expected.nbytes)
    zeros[2] = fill
    assert store["zeros", 2:3].tobytes() == expected[:1].tobytes()


def test_small_floats_have_fill_values(store: TensorStore) -> None:
    store.create("x", shape=(3,), dtype=ml_dtypes.bfloat16, fill_value=1.5)
    assert store["x"].tolist() == [1.5] * 3


def test_a_key_that_is_taken(store: TensorStore) -> None:
    store["x"] = np.arange(3)
    with pytest.raises(KeyExistsError):
        store.create("x", shape=(5,))
    np.testing.assert_array_equal(store["x"], np.arange(3))
    store.allow_overwrite = True
    store.create("x", shape=(5,))
    np.testing.assert_array_equal(store["x"], np.zeros(5))


@pytest.mark.parametrize(
    ("error", "options"),
    [
        (InvalidInputError, {"shape": (-1,)}),
        (InvalidInputError, {"shape": "3"}),
        (InvalidInputError, {"shape": None}),
        (InvalidInputError, {"shape": (2.5, 3)}),
        (InvalidInputError, {"shape": (2**63, 0)}),
        (InvalidInputError, {"shape": (2**62, 4)}),
        (InvalidInputError, {"shape": (3,), "fill_value": [1, 2]}),
        (DTypeError, {"shape": (3,), "dtype": "i2", "fill_value": 70000}),
        (DTypeError, {"shape": (3,), "dtype": "i2", "fill_value": "x"}),
        (DTypeError, {"shape": (3,), "dtype": object}),
    ],
)
def test_bad_input_makes_nothing(store: TensorStore, error: type[Exception], options: dict[str, Any]) -> None:
    with pytest.raises(error):
        store.create("x", **options)
    assert len(store) == 0


def test_groups_and_sharees(store: TensorStore, project: Project, user: User) -> None:
    somebody = project.register()
    store.group("exp").create("run", shape=(10, 3))
    store.share("exp/run", somebody.email, write=True)
    with workers.store_of(project, somebody) as another:
        theirs = another.shared_by(user.email)
        theirs["exp/run", 4:6] = 1
        assert store["exp/run"].sum() == 6
        with pytest.raises(PermissionDeniedError, match="alone can do this"):
            theirs.open("exp/run").resize(3)
        with pytest.raises(PermissionDeniedError):
            theirs.create("new", shape=(3,))
    assert store["exp/run"].shape == (10, 3)


# --- writers at the same time ---------------------------------------------------------------------------


def test_many_writers_fill_one_array(store: TensorStore) -> None:
    """Regions are parts of blocks and objects, so that writers meet in them, and nobody's elements are lost."""
    options = _small_blocks(store)
    store.create("c", shape=(64, 7), dtype="i4", fill_value=-1, **options)

    def fill(number: int) -> None:
        handle = store.open("c")
        for row in range(number, 64, 8):
            handle[row] = row

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(fill, range(8)))
    np.testing.assert_array_equal(store["c"], np.repeat(np.arange(64), 7).reshape(64, 7))


def test_readers_see_each_assignment_whole(store: TensorStore) -> None:
    options = _small_blocks(store)
    handle = store.create("c", shape=(40, 7), dtype="i4", **options)
    done = threading.Event()

    def read() -> int:
        mixed, mine = 0, store.open("c")
        while not done.is_set():
            mixed += len(np.unique(mine[...])) != 1
        return mixed

    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(read)
        for number in range(1, 9):
            handle[...] = number
        done.set()
        assert reading.result() == 0


def test_dask_fills_an_array(store: TensorStore) -> None:
    handle = store.create("c", shape=(40, 7), dtype="f8", **_small_blocks(store))
    dask.array.store(dask.array.arange(280, chunks=35).reshape(40, 7), handle, lock=False)  # type: ignore[no-untyped-call]
    np.testing.assert_array_equal(store["c"], np.arange(280.0).reshape(40, 7))


# --- longer and shorter ---------------------------------------------------------------------------------


def _resized(array: npt.NDArray[Any], rows: int, fill: int) -> npt.NDArray[Any]:
    wanted = np.full((rows, *array.shape[1:]), fill, array.dtype)
    kept = min(rows, len(array))
    wanted[:kept] = array[:kept]
    return wanted


@pytest.mark.parametrize("is_created", [True, False])
def test_rows_come_and_go(store: TensorStore, is_created: bool) -> None:
    options = _small_blocks(store)
    dice = np.random.default_rng(2)
    expected = np.full((23, 7), 3, "i4") if is_created else dice.integers(0, 99, (23, 7)).astype("i4")
    fill = 3 if is_created else 0
    if is_created:
        store.create("c", shape=(23, 7), dtype="i4", fill_value=3, **options)
    else:
        store.write("c", expected, **options)
    handle = store.open("c")
    for rows in (12, 40, 9, 9, 70, 0, 4, 26):
        handle.resize(rows)
        expected = _resized(expected, rows, fill)
        np.testing.assert_array_equal(store["c"], expected)
        if rows > 8:
            handle[rows - 5 : rows - 1] = expected[rows - 5 : rows - 1] = rows
        added = dice.integers(0, 99, (3, 7)).astype("i4")
        handle.append(added)
        expected = np.concatenate([expected, added])
        np.testing.assert_array_equal(handle[...], expected)
        assert store.open("c").dataset.nbytes == expected.nbytes
    store.compact("c")
    np.testing.assert_array_equal(store["c"], expected)


def test_rows_that_are_cut_off_give_their_room_back(store: TensorStore) -> None:
    before = store.usage().bytes
    store.chunk_size = 1000
    options = {"chunks": (10, 100), "shards": False} if store.engine == "storage" else {}
    store.write("x", np.random.default_rng(0).random((1000, 100)), **options)
    handle = store.open("x")
    handle.resize(10)
    assert handle.dataset.stored_bytes is not None
    assert handle.dataset.stored_bytes <= 8800
    store.backend.transfer.finish(30)
    assert store.usage().bytes - before < 20_000
    handle.resize(0)
    assert handle.dataset.stored_bytes == 0
    assert store["x"].shape == (0, 100)


def test_a_large_append_to_an_array_with_a_fill_value(store: TensorStore) -> None:
    """More than a request holds: the append is staged."""
    handle = store.create("c", shape=(5, 1000), dtype="f8", fill_value=2)
    rows = np.random.default_rng(3).random((1200, 1000))
    handle.append(rows)
    np.testing.assert_array_equal(handle[5:], rows)
    assert (handle[:5] == 2).all()


def test_a_handle_follows_a_resize_by_others(store: TensorStore) -> None:
    store["x"] = np.arange(10)
    mine, theirs = store.open("x"), store.open("x")
    theirs.resize(4)
    np.testing.assert_array_equal(mine[...], np.arange(4))
    theirs.resize(8)
    with pytest.raises(IndexError):
        mine[9] = 1
    mine.resize(6)
    np.testing.assert_array_equal(store["x"], [0, 1, 2, 3, 0, 0])


def test_an_assignment_behind_the_new_end_is_refused(store: TensorStore) -> None:
    mine = store.create("x", shape=(10,), dtype="i4")
    mine[7] = 1
    store.open("x").resize(5)
    with pytest.raises(IndexError):
        mine[7] = 2
    store.open("x").resize(10)
    assert not store["x"].any()


def test_labels_of_rows_go_with_them(store: TensorStore) -> None:
    store.write("x", np.arange(12).reshape(4, 3), dims=("t", "x"))
    handle = store.open("x")
    handle.coords = {"t": [10, 20, 30, 40], "x": ["a", "b", "c"]}
    handle.resize(2)
    handle = store.open("x")
    assert handle.coords["t"].tolist() == [10, 20]
    assert handle.coords["x"].tolist() == ["a", "b", "c"]
    handle.resize(3)
    assert store.open("x").coords["t"].tolist() == [10, 20]


@pytest.mark.parametrize("rows", [-1, True, 2.5, "3", (4, 4), (4,), (4, 3, 1), 2**63])
def test_what_is_no_number_of_rows(store: TensorStore, rows: Any) -> None:
    store["x"] = np.arange(12).reshape(4, 3)
    with pytest.raises(InvalidInputError, match=r"resizing 'x' of shape \(4, 3\)"):
        store.open("x").resize(rows)
    np.testing.assert_array_equal(store["x"], np.arange(12).reshape(4, 3))


def test_a_shape_is_a_number_of_rows(store: TensorStore) -> None:
    store["x"] = np.arange(12).reshape(4, 3)
    store.open("x").resize((2, 3))
    np.testing.assert_array_equal(store["x"], np.arange(6).reshape(2, 3))


def test_an_array_without_axes_has_no_rows(store: TensorStore) -> None:
    store["x"] = 3
    with pytest.raises(InvalidInputError, match="has no axes"):
        store.open("x").resize(2)
    store.create("y", shape=(), fill_value=4)
    assert store["y"] == 4
    store["y", ...] = 5
    assert store["y"] == 5


def test_an_array_that_is_gone_is_not_resized(store: TensorStore) -> None:
    store["x"] = np.arange(3)
    handle = store.open("x")
    del store["x"]
    with pytest.raises(KeyNotFoundError):
        handle.resize(5)


# --- lost, or never written -----------------------------------------------------------------------------


def _lose(handle: Tensor, database: Connection, number: int) -> None:
    """Delete a block or an object of an array behind its back: the first one, or the one after so many others."""
    table, column = ("tensors", "index") if handle.engine == "database" else ("shards", "number")
    database.execute(
        f"delete from public.{table} where data_id = %(id)s and {column} = "
        f"(select {column} from public.{table} where data_id = %(id)s order by {column} limit 1 offset %(number)s)",
        {"id": handle.dataset.id, "number": number},
    )


def test_lost_elements_are_told_from_those_never_written(store: TensorStore, database: Connection) -> None:
    options = _small_blocks(store)
    handle = store.create("c", shape=(30, 7), dtype="i4", fill_value=3, **options)
    handle[5:10] = 1
    handle[20:25] = 2
    _lose(handle, database, 0)
    for selection in (slice(None), slice(5, 10), 7, [0, 9, 29]):
        with pytest.raises(IncompleteTensorError, match="behind its back"):
            store["c", selection]
    assert (store["c", 20:25] == 2).all()
    assert (store["c", 12:20] == 3).all()


def test_nothing_is_assigned_to_a_part_of_what_is_lost(store: TensorStore, database: Connection) -> None:
    handle = store.create("c", shape=(30, 7), dtype="i4", fill_value=3, **_small_blocks(store))
    handle[5:15] = 1
    _lose(handle, database, 0)
    with pytest.raises(IncompleteTensorError, match="behind its back"):
        handle[6, 2:4] = 9
    with pytest.raises(IncompleteTensorError, match="behind its back"):
        store["c", 5:10]


def test_an_array_of_which_parts_are_lost_becomes_no_longer(store: TensorStore, database: Connection) -> None:
    store.write("x", np.arange(210).reshape(30, 7), **_small_blocks(store))
    handle = store.open("x")
    _lose(handle, database, 1)
    with pytest.raises(IncompleteTensorError):
        handle.resize(40)
    assert store.open("x").shape == (30, 7)
    handle.resize(20)
    with pytest.raises(IncompleteTensorError):
        store["x"]


def test_lost_elements_of_an_array_that_became_longer(store: TensorStore, database: Connection) -> None:
    store.write("x", np.arange(210).reshape(30, 7), **_small_blocks(store))
    handle = store.open("x")
    handle.resize(100)
    table = "public.tensors" if store.engine == "database" else "public.shards"
    database.execute(f"delete from {table} where data_id = %s", (handle.dataset.id,))
    with pytest.raises(IncompleteTensorError):
        store["x", 3]
    assert not store["x", 50:].any()


def test_the_quota_counts_what_is_written(
    new_session: BackendSession, database: Connection, engine: Engine
) -> None:
    store = TensorStore(new_session, quiet=True, engine=engine)
    database.execute("insert into tensorage.quotas values (%s, %s)", (new_session.user_id, 3_000_000))
    handle = store.create("c", shape=(10**6, 1000), dtype="u1")
    noise = np.random.default_rng(0).integers(0, 255, (1000, 1000), "u1")
    handle[:1000] = noise
    with pytest.raises(QuotaExceededError):
        handle[500_000:503_000] = np.concatenate([noise, noise, noise])
    assert not handle[500_000:503_000].any()
    np.testing.assert_array_equal(handle[:1000], noise)


# --- elements of any length -----------------------------------------------------------------------------


def test_arrays_of_any_length_are_stored_whole(rows: TensorStore) -> None:
    with pytest.raises(DTypeError):
        rows.create("x", shape=(3,), dtype=np.dtypes.StringDType())
    rows.write_ragged("x", ["a", "bc"])
    with pytest.raises(InvalidInputError, match="resizing 'x'"):
        rows.open("x").resize(1)
    assert rows["x"] == ["a", "bc"]
