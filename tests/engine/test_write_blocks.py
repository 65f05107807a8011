"""``store.write``: arrays that come as blocks of rows, and never exist whole."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import leftovers
import numpy as np
import psycopg
import pytest
import workers

import tensorage
from tensorage import TensorStore
from tensorage.backend.blocks import block_engine, writing
from tensorage.backend.wire.http import Answer, Attempt, Request
from tensorage.backend.zarr import chunk_shapes
from tensorage.indexing import runs

Sql = psycopg.Connection[tuple[Any, ...]]
Array = np.ndarray[Any, Any]

#: Requests and objects carry an eighth of what they do, and so does this array: it takes three of them.
EXPECTED = np.random.default_rng(0).integers(0, 255, (40, 64, 1024), "u1")

#: Rows of it that one request or object holds.
ROWS = 16


@pytest.fixture
def short(store: TensorStore, monkeypatch: pytest.MonkeyPatch) -> TensorStore:
    """A store whose blocks, chunks, requests and objects have an eighth of the bytes."""
    request_bytes = runs.MAX_REQUEST_BYTES // 8
    for module in (runs, writing, block_engine):
        monkeypatch.setattr(module, "MAX_REQUEST_BYTES", request_bytes)
    monkeypatch.setattr(chunk_shapes, "SHARD_BYTES", chunk_shapes.SHARD_BYTES // 8)
    store.chunk_size = chunk_shapes.CHUNK_BYTES // 8
    return store


def assert_nothing_is_stored(store: TensorStore, database: Sql) -> None:
    # The session sweeps behind the caller's back.
    store.backend.transfer.finish(30)
    assert leftovers.objects_of(database, store.backend.user_id) == []
    for table in ("datasets", "tensors", "shards"):
        row = database.execute(
            f"select count(*) from public.{table} where user_id = %s", [store.backend.user_id]
        ).fetchone()
        assert row == (0,), table


def uneven(array: Array) -> Iterator[Array]:
    """1, 2, 3 ... rows, and now and then none."""
    at, count = 0, 1
    while at < len(array):
        yield array[at : at + count]
        yield array[:0]
        at, count = at + count, count + 1


def reused(array: Array) -> Iterator[Array]:
    """Every block in the same memory, which is overwritten as soon as the next one is asked for."""
    buffer = np.empty((3, *array.shape[1:]), array.dtype)
    for at in range(0, len(array), 3):
        block = buffer[: len(array) - at]
        block[...] = array[at : at + 3]
        yield block
        buffer[...] = 255


@pytest.mark.parametrize(
    "blocks",
    [
        uneven,
        reused,
        lambda array: list(np.array_split(array, 7)),
        lambda array: [array],
        lambda array: array,
        lambda array: ([row] for row in array),
        lambda array: (np.asfortranarray(array[at : at + 8]) for at in range(0, 40, 8)),
    ],
    ids=["uneven", "reused", "list", "one", "array", "lists", "Fortran"],
)
def test_blocks_of_rows(short: TensorStore, blocks: Callable[[Array], Iterable[Any]]) -> None:
    handle = short.write("x", blocks(EXPECTED), shape=EXPECTED.shape, dtype="u1")
    assert (handle.key, handle.shape, handle.dtype) == ("x", EXPECTED.shape, EXPECTED.dtype)
    out = np.empty_like(EXPECTED)
    assert handle.read(out=out) is out
    np.testing.assert_array_equal(out, EXPECTED)


@pytest.mark.parametrize(
    ("shape", "sizes"),
    [((3, 2, 1500, 1100), (1, 2)), ((2, 9 * 1024 * 1024), (1, 1)), ((9 * 1024 * 1024 + 1,), (5, 9 * 1024 * 1024 - 4)),
     ((0,), ()), ((0, 5), (0, 0)), ((4, 0), (1, 3)), ((5,), (0, 5, 0)), ((1,), (1,))],
    ids=str,
)  # fmt: skip
def test_rows_of_any_size(store: TensorStore, shape: tuple[int, ...], sizes: tuple[int, ...]) -> None:
    expected = np.random.default_rng(1).integers(0, 255, shape, "u1")
    blocks = np.split(expected, np.cumsum(sizes)[:-1]) if sizes else []
    store.write("x", iter(blocks), shape=shape, dtype=np.uint8)
    np.testing.assert_array_equal(store["x"], expected, strict=True)


@pytest.mark.parametrize("dtype", ["f4", ">f8", "F", "M8[s]"])
def test_blocks_are_cast_where_nothing_is_lost(store: TensorStore, dtype: str) -> None:
    narrow = {"f4": "f2", ">f8": "i4", "F": "f4", "M8[s]": "M8[m]"}[dtype]
    expected = np.arange(12).reshape(4, 3).astype(narrow)
    store.write("x", [expected[:1], expected[1:].astype(dtype)], shape=(4, 3), dtype=dtype)
    np.testing.assert_array_equal(store["x"], expected.astype(np.dtype(dtype).newbyteorder("<")), strict=True)


def raising(array: Array) -> Iterator[Array]:
    yield array[:30]
    raise ZeroDivisionError("no more")


@pytest.mark.parametrize(
    ("blocks", "error", "says"),
    [
        (lambda a: iter([a[:30]]), tensorage.IncompleteTensorError, r"\(30, 64, 1024\).*\(40, 64, 1024\)"),
        (lambda a: iter([]), tensorage.IncompleteTensorError, r"\(0, 64, 1024\).*\(40, 64, 1024\)"),
        (lambda a: [a, a[:1]], tensorage.IncompleteTensorError, r"\(41, 64, 1024\).*\(40, 64, 1024\)"),
        (
            lambda a: [a[:30], a[:10, :50]],
            tensorage.InvalidInputError,
            r"\(10, 50, 1024\).*\(40, 64, 1024\)",
        ),
        (lambda a: [a[:30], a[30]], tensorage.InvalidInputError, r"\(64, 1024\).*\(40, 64, 1024\)"),
        (lambda a: [a[:30], a[30:].astype("i8")], tensorage.DTypeError, "int64"),
        (lambda a: [a[:30], 5], tensorage.InvalidInputError, r"\(\).*\(40, 64, 1024\)"),
        (lambda a: [a[:30], [[1], [2, 3]]], tensorage.InvalidInputError, "no array"),
        (lambda a: [a[:30], np.ma.masked_array(a[30:])], tensorage.InvalidInputError, "masked"),
        (raising, ZeroDivisionError, "no more"),
    ],
    ids=["too few", "none", "too many", "shape", "axes", "dtype", "scalar", "ragged", "masked", "raises"],
)
def test_blocks_that_do_not_fill_the_array(
    short: TensorStore,
    database: Sql,
    blocks: Callable[[Array], Iterable[Any]],
    error: type[Exception],
    says: str,
) -> None:
    with pytest.raises(error, match=says):
        short.write("x", blocks(EXPECTED), shape=EXPECTED.shape, dtype="u1")
    assert_nothing_is_stored(short, database)


def test_a_failed_write_leaves_the_array_that_is_there(short: TensorStore, database: Sql) -> None:
    short["x"] = np.arange(5)
    for allow_overwrite, error in ((False, tensorage.KeyExistsError), (True, ZeroDivisionError)):
        short.allow_overwrite = allow_overwrite
        with pytest.raises(error):
            short.write("x", raising(EXPECTED), shape=EXPECTED.shape, dtype="u1")
        np.testing.assert_array_equal(short["x"], np.arange(5))
    short.write("x", uneven(EXPECTED), shape=EXPECTED.shape, dtype="u1")
    np.testing.assert_array_equal(short["x"], EXPECTED)
    short.backend.transfer.finish(30)
    query = "select count(*) from public.datasets where user_id = %s"
    assert database.execute(query, [short.backend.user_id]).fetchone() == (1,)
    leftovers.assert_only_arrays_are_kept(database, short.backend.user_id)


def test_a_key_that_is_taken_is_noticed_before_anything_is_produced(store: TensorStore) -> None:
    store["x"] = np.arange(5)
    asked: list[int] = []

    def blocks() -> Iterator[Array]:
        asked.append(1)
        yield EXPECTED

    with pytest.raises(tensorage.KeyExistsError):
        store.write("x", blocks(), shape=EXPECTED.shape, dtype="u1")
    assert not asked


def test_no_more_is_produced_than_is_under_way(short: TensorStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """No block is asked for once as many requests are unanswered as are sent at once."""
    transfer = short.backend.transfer
    answered = threading.Semaphore(0)
    stuck = threading.Semaphore(0)
    ask = transfer.http.ask

    def wait_then_ask(request: Request, asked: str, begun: Attempt | None = None) -> Answer:
        if request.path.startswith(("/rest/v1/rpc/tensorage_put", "/storage/v1/object/tensors/")):
            stuck.release()
            assert answered.acquire(timeout=60)
        return ask(request, asked, begun)

    monkeypatch.setattr(transfer.http, "ask", wait_then_ask)
    produced: list[int] = []

    def blocks() -> Iterator[Array]:
        for row in EXPECTED.repeat(4, axis=0):
            produced.append(len(produced))
            yield row[None]

    shape = (160, 64, 1024)
    writer = threading.Thread(target=lambda: short.write("x", blocks(), shape=shape, dtype="u1"))
    writer.start()
    for _ in range(transfer.parallel):
        assert stuck.acquire(timeout=60)
    produced_when_stuck = len(produced)
    for _ in range(10):
        answered.release()
    writer.join()
    assert transfer.parallel * ROWS <= produced_when_stuck <= (transfer.parallel + 2) * ROWS
    assert len(produced) == 160
    np.testing.assert_array_equal(short["x"], EXPECTED.repeat(4, axis=0))


@pytest.mark.parametrize(
    ("how", "error", "says"),
    [
        ({"shape": (3,)}, tensorage.InvalidInputError, "dtype"),
        ({"dtype": "u1"}, tensorage.InvalidInputError, "shape"),
        ({"shape": (), "dtype": "u1"}, tensorage.InvalidInputError, r"\(\)"),
        ({"shape": (-1, 3), "dtype": "u1"}, tensorage.InvalidInputError, "negative"),
        ({"shape": (3,), "dtype": "O"}, tensorage.DTypeError, "object"),
        (
            {"shape": (3,), "dtype": "u1", "dims": ("a", "b")},
            tensorage.InvalidInputError,
            "2 dims name 1 axes",
        ),
        ({"shape": (3,), "dtype": "u1", "attrs": {"a": {1}}}, tensorage.InvalidInputError, "JSON"),
    ],
)
def test_what_is_declared_has_to_make_sense(
    store: TensorStore, database: Sql, how: dict[str, Any], error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        store.write("x", [np.zeros(3, "u1")], **how)
    assert_nothing_is_stored(store, database)


@pytest.mark.parametrize("as_blocks", [False, True])
def test_an_array_with_all_that_belongs_to_it(store: TensorStore, as_blocks: bool) -> None:
    array = EXPECTED[:2]
    how: dict[str, Any] = {
        "attrs": {"units": "K", "n": np.int8(3)},
        "dims": ("t", "y", "x"),
        "is_shared": True,
    }
    with workers.sharing(store):
        if as_blocks:
            handle = store.write("x", uneven(array), shape=array.shape, dtype="u1", **how)
        else:
            handle = store.write("x", array, **how)
        for now in (handle, store.open("x")):
            assert (dict(now.attrs), now.dims) == ({"units": "K", "n": 3}, ("t", "y", "x"))
            assert now.dataset.is_shared
        np.testing.assert_array_equal(store["x"], array)
