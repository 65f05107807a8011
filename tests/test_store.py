"""Elements come out as they went in, and nothing else does. SQL checks what is stored, round the client."""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import leftovers
import numpy as np
import psycopg
import pytest

import tensorage
from tensorage import BackendSession, TensorStore
from tensorage.indexing import MAX_REQUEST_BYTES

Sql = psycopg.Connection[tuple[Any, ...]]

DTYPES = [
    "?", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f2", "f4", "f8", "g", "F", "D", "G",
    "M8[ns]", "M8[D]", "m8[s]", ">i2", ">i8", ">f4", ">f8", ">c16", ">M8[us]",
]  # fmt: skip
SHAPES: list[tuple[int, ...]] = [
    (),
    (0,),
    (1,),
    (7,),
    (3, 0, 2),
    (0, 5),
    (2, 3, 4),
    (1, 1, 1, 1, 1, 1),
    (5, 1, 0),
]


@pytest.fixture
def limit(session: BackendSession, database: Sql) -> Iterator[Callable[[int], None]]:
    """Sets the quota of the user, which ends with the test."""

    def limit(nbytes: int) -> None:
        database.execute("insert into tensorage.quotas values (%s, %s)", [session.user_id, nbytes])

    yield limit
    database.execute("delete from tensorage.quotas where user_id = %s", [session.user_id])


def random_array(shape: tuple[int, ...], dtype: str, seed: int = 0) -> np.ndarray[Any, Any]:
    """An array of any bytes: NaNs with payloads, infinities, not-a-times and denormals among them."""
    wanted = np.dtype(dtype)
    random = np.random.default_rng(seed)
    if wanted.kind == "b":
        return random.integers(0, 2, shape).astype(wanted)
    if wanted.itemsize > 8 and wanted.char in "gG":
        # The bytes of a long double that x86 does not use have no value to keep.
        return random.normal(size=shape).astype(wanted)
    flat = np.frombuffer(random.bytes(wanted.itemsize * int(np.prod(shape))), wanted)
    return flat.reshape(shape)


def assert_same(result: Any, expected: np.ndarray[Any, Any]) -> None:
    assert isinstance(result, np.ndarray)
    assert result.dtype == expected.dtype.newbyteorder("<")
    assert result.shape == expected.shape
    # Bytes are compared: NaN differs from itself, and -0.0 does not differ from 0.0.
    assert result.tobytes() == expected.astype(expected.dtype.newbyteorder("<")).tobytes()


def stored_bytes(database: Sql, user_id: str, key: str) -> bytes:
    rows = database.execute(
        "select t.tensor from public.tensors t join public.datasets d on d.id = t.data_id "
        "where d.user_id = %s and d.key = %s and d.state = 'committed' order by t.index",
        [user_id, key],
    ).fetchall()
    return b"".join(bytes(row[0]) for row in rows)


def requests_of(session: BackendSession) -> int:
    pool = session.transfer.http.connections()
    return int(pool.connection_from_url(session.transfer.base_url).num_requests)


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_round_trips(store: TensorStore, database: Sql, dtype: str) -> None:
    array = random_array((3, 5), dtype)
    if store.engine == "storage" and dtype in "gG":
        with pytest.raises(tensorage.DTypeError, match=r"the Zarr format.*engine='database'"):
            store["x"] = array
        assert len(store) == 0
        return
    store["x"] = array
    assert_same(store["x"], array)
    if store.engine == "database":
        little = array.astype(array.dtype.newbyteorder("<"))
        assert stored_bytes(database, store.backend.user_id, "x") == little.tobytes()


def test_every_shape_round_trips(store: TensorStore) -> None:
    for shape in SHAPES:
        for dtype in ("f8", "i2"):
            array = random_array(shape, dtype)
            store[f"{shape} {dtype}"] = array
            assert_same(store[f"{shape} {dtype}"], array)
    assert len(store) == 2 * len(SHAPES)


@pytest.mark.parametrize(
    "value",
    [3, 2.5, True, [1, 2], [[1.0], [2.0]], (1, 2), np.float32(4), np.datetime64("2024-01-01"), range(3), []],
)
def test_array_likes_are_stored_as_numpy_sees_them(store: TensorStore, value: Any) -> None:
    store["x"] = value
    assert_same(store["x"], np.asarray(value))


@functools.cache
def several_requests(rows: int = 30) -> np.ndarray[Any, Any]:
    return random_array((rows, 1000, 250), "f4")


@pytest.mark.parametrize(
    "layout",
    [
        lambda a: a,
        np.asfortranarray,
        lambda a: a[::-1, ::2],
        lambda a: a.astype(">f4"),
        lambda a: a.transpose(2, 0, 1),
        lambda a: a.reshape(-1),
        lambda a: a.reshape(3, -1),
    ],
    ids=["C", "Fortran", "strided", "big-endian", "transposed", "flat", "rows over a block"],
)
def test_arrays_of_several_requests_round_trip(
    store: TensorStore, database: Sql, layout: Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]]
) -> None:
    array = layout(several_requests())
    assert array.nbytes > 1.5 * MAX_REQUEST_BYTES
    store["x"] = array
    little = array.astype("<f4")
    if store.engine == "database":
        stored = stored_bytes(database, store.backend.user_id, "x")
        assert hashlib.sha256(stored).digest() == hashlib.sha256(little.tobytes()).digest()
    found = store["x"]
    assert found.shape == little.shape
    # At once: numpy's own assertion takes longer for millions of integers than to store them.
    assert (found.view("u4") == little.view("u4")).all()


def test_a_memmap_is_stored(store: TensorStore, tmp_path: Path) -> None:
    array = np.memmap(tmp_path / "array", "f4", "w+", shape=(20, 1000, 250))
    array[:] = np.random.default_rng(0).random(array.shape, dtype="f4")
    store["x"] = array
    np.testing.assert_array_equal(store["x"], array)


@pytest.mark.parametrize("chunk_size", [1, 7, 100, 1000])
def test_chunk_size_counts_the_elements_of_a_row_of_tensors(
    session: BackendSession, database: Sql, chunk_size: int
) -> None:
    store = TensorStore(session, chunk_size=chunk_size)
    array = random_array((11, 5, 3), "f8")
    store["x"] = array
    counts = [
        row[0]
        for row in database.execute(
            "select t.count from public.tensors t where t.user_id = %s order by index", [session.user_id]
        )
    ]
    assert sum(counts) == array.size
    assert max(counts) <= chunk_size
    if chunk_size >= 15:
        assert all(count % 15 == 0 for count in counts), "blocks hold whole rows of axis 0"
    assert_same(store["x"], array)
    np.testing.assert_array_equal(store["x", 2:9, 1, ::2], array[2:9, 1, ::2])


SELECTIONS = [
    np.s_[0], np.s_[-1], np.s_[3:9], np.s_[..., -1], np.s_[:, 2], np.s_[::-3], np.s_[5, 1:, ::2], np.s_[4, 2, 1],
    np.s_[None, 3], np.s_[..., None, 1:2], np.s_[7:3], np.s_[[3, 1, 1, -1]], np.s_[[[0, 1], [2, 3]], 1:],
    np.s_[np.arange(11) % 2 == 0], np.s_[[]], np.s_[...], np.s_[np.int8(2), np.uint16(1)], np.s_[4, 2, 1, ...],
]  # fmt: skip


@pytest.mark.parametrize("selection", SELECTIONS, ids=str)
def test_selections_are_numpys(store: TensorStore, selection: Any) -> None:
    array = random_array((11, 5, 3), "i4")
    store["x"] = array
    expected = array[selection]
    key = ("x", *selection) if isinstance(selection, tuple) else ("x", selection)
    for result in (store[key], store.open("x")[selection], store.x[selection]):
        assert type(result) is type(expected)
        assert result.dtype == expected.dtype
        np.testing.assert_array_equal(result, expected)
        assert result.shape == expected.shape


@pytest.mark.parametrize("selection", [11, -12, np.s_[0, 5], np.s_[0, 0, 0, 0], [11], [-12], "a", 0.5])
def test_index_errors_are_numpys(store: TensorStore, selection: Any) -> None:
    array = random_array((11, 5, 3), "i4")
    store["x"] = array
    with pytest.raises(IndexError) as expected:
        array[selection]
    with pytest.raises(IndexError) as raised:
        store.open("x")[selection]
    if not isinstance(selection, str | float):
        assert str(raised.value) == str(expected.value)


def test_a_shuffled_batch_is_one_request(rows: TensorStore) -> None:
    array = random_array((20000, 28), "f4")
    rows["x"] = array
    images = rows.open("x")
    for count in (1, 64, 1024):
        batch = np.random.default_rng(count).integers(0, len(array), count)
        before = requests_of(rows.backend)
        result = images[batch]
        assert requests_of(rows.backend) == before + 1
        np.testing.assert_array_equal(result.view("u4"), array[batch].view("u4"))
    samples = images.__getitems__([5, 3, 5])
    assert [s.tobytes() for s in samples] == [array[i].tobytes() for i in (5, 3, 5)]


def test_a_small_array_is_one_request_each_way(rows: TensorStore) -> None:
    rows["warm"] = 1
    before = requests_of(rows.backend)
    rows["x"] = np.arange(10)
    assert requests_of(rows.backend) == before + 1
    assert rows["x"].sum() == 45
    assert requests_of(rows.backend) == before + 2
    rows["x", 3] = 7
    assert requests_of(rows.backend) == before + 3
    assert rows["x", 3:5].sum() == 11
    assert requests_of(rows.backend) == before + 4


def test_read_into_out(store: TensorStore) -> None:
    array = several_requests(20)
    store["x"] = array
    out = np.empty_like(array)
    assert store.open("x").read(..., out=out) is out
    np.testing.assert_array_equal(out.view("u4"), array.view("u4"))
    part = np.zeros((3, 250), "f4", order="F")
    assert store.open("x").read(np.s_[4:7, 9], out=part) is part
    np.testing.assert_array_equal(part.view("u4").T, array[4:7, 9].view("u4").T)
    handle, before = store.open("x"), requests_of(store.backend)
    for wrong in (part, np.zeros((3, 1000, 250), "f8")):
        with pytest.raises(tensorage.InvalidInputError, match="out has shape"):
            handle.read(np.s_[4:7], out=wrong)
    assert requests_of(store.backend) == before, "nothing was read in vain"


def test_the_handle_tells_what_is_stored(store: TensorStore) -> None:
    store["x"] = np.zeros((4, 3), ">f8")
    handle = store.open("x")
    assert (handle.key, handle.shape, handle.dtype, handle.ndim) == ("x", (4, 3), np.dtype("<f8"), 2)
    assert (handle.size, handle.nbytes, len(handle), handle.engine) == (12, 96, 4, store.engine)
    assert (dict(handle.attrs), handle.dims) == ({}, None)
    assert_same(np.asarray(handle), np.zeros((4, 3)))
    assert np.asarray(handle, dtype="f4").dtype == np.float32
    assert "x" in repr(handle)
    assert "96 B" in handle._repr_html_()
    with pytest.raises(ValueError, match="copy=False"):
        np.asarray(handle, copy=False)
    store["scalar"] = 1.0
    with pytest.raises(TypeError, match="unsized"):
        len(store.open("scalar"))


def test_it_is_a_mapping(store: TensorStore) -> None:
    keys = ["b", "a", "dir/c", "ü", "a b%'\"\\"]
    for number, key in enumerate(keys):
        store[key] = number
    assert store.keys() == list(store) == sorted(keys)
    assert len(store) == len(keys)
    assert "a" in store
    assert "c" not in store
    assert 5 not in store
    assert {key: int(value) for key, value in store.items()} == {key: i for i, key in enumerate(keys)}
    assert store.get("none", 7) == 7
    del store["a"]
    assert "a" not in store
    assert int(store.pop("b")) == 0
    assert len(store) == len(keys) - 2
    assert {"ü"} <= set(dir(store))
    with pytest.raises(AttributeError, match="nothing"):
        _ = store.nothing


def test_more_keys_than_one_answer_holds(rows: TensorStore, database: Sql) -> None:
    database.execute(
        "insert into public.datasets (user_id, key, shape, dtype, block_size, state) "
        "select %s, 'k' || i, '{0}', '<f4', 1, 'committed' from generate_series(1, 2345) i",
        [rows.backend.user_id],
    )
    assert rows.keys() == sorted(f"k{i}" for i in range(1, 2346))
    assert len(rows) == 2345
    database.execute("delete from public.datasets where user_id = %s", [rows.backend.user_id])


def test_a_taken_key_is_not_overwritten_unless_allowed(store: TensorStore, database: Sql) -> None:
    for array in (np.arange(3), several_requests(20)):
        store["x"] = np.arange(5)
        with pytest.raises(tensorage.KeyExistsError, match="allow_overwrite=True"):
            store["x"] = array
        np.testing.assert_array_equal(store["x"], np.arange(5))
        store.allow_overwrite = True
        store["x"] = array
        assert_same(store["x"], array)
        store.allow_overwrite = False
        del store["x"]
    store.backend.transfer.finish(30)
    left = database.execute(
        "select count(*) from public.datasets where user_id = %s", [store.backend.user_id]
    ).fetchone()
    assert left == (0,), "neither replaced nor refused arrays leave anything behind"
    assert leftovers.objects_of(database, store.backend.user_id) == []


def test_append(store: TensorStore) -> None:
    array = random_array((3, 1000, 250), "f4")
    store["x"] = array
    store.append("x", array[:1])
    handle = store.open("x")
    handle.append(np.concatenate([several_requests(20), array]))
    assert handle.shape == (27, 1000, 250)
    expected = np.concatenate([array, array[:1], several_requests(20), array])
    np.testing.assert_array_equal(store["x"].view("u4"), expected.view("u4"))
    store.append("x", array[:0])
    store["numbers"] = np.zeros(0)
    for number in range(50):
        store.append("numbers", [number])
    np.testing.assert_array_equal(store["numbers"], np.arange(50.0))


@pytest.mark.parametrize(
    ("rows", "error"),
    [
        (np.zeros((2, 4), "f4"), tensorage.InvalidInputError),
        (np.zeros(3, "f4"), tensorage.InvalidInputError),
        (np.zeros((1, 3), "f8"), tensorage.DTypeError),
        (np.zeros((1, 3), "c8"), tensorage.DTypeError),
        (np.float32(1), tensorage.InvalidInputError),
    ],
)
def test_what_cannot_be_appended(store: TensorStore, rows: Any, error: type[Exception]) -> None:
    array = np.ones((2, 3), "f4")
    store["x"] = array
    with pytest.raises(error, match="x"):
        store.append("x", rows)
    assert_same(store["x"], array)


@pytest.mark.parametrize(
    ("value", "error", "says"),
    [
        (np.array([object()]), tensorage.DTypeError, "astype"),
        (np.array(["a", None]), tensorage.DTypeError, "texts"),
        (np.zeros(2, [("a", "i4"), ("b", "O")]), tensorage.DTypeError, "field 'b'"),
        (np.empty(2, "V0"), tensorage.DTypeError, "V8"),
        ([[1], [2, 3]], tensorage.InvalidInputError, "no array"),
        (np.ma.masked_array([1, 2], [True, False]), tensorage.InvalidInputError, "filled"),
        (
            iter([[1, 2], [3, 4]]),
            tensorage.DTypeError,
            r"store\.write\(key, blocks, shape=\.\.\., dtype=",
        ),
        (None, tensorage.DTypeError, "object"),
    ],
)
def test_what_cannot_be_stored(store: TensorStore, value: Any, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        store["x"] = value
    assert len(store) == 0


@pytest.mark.parametrize("key", ["", "k" * 1025, "ü" * 513, "a\0b", "\ud800"])
def test_what_cannot_be_a_key(store: TensorStore, key: str) -> None:
    with pytest.raises(tensorage.InvalidInputError, match="key"):
        store[key] = 1
    assert len(store) == 0
    with pytest.raises(KeyError):
        store[key]
    assert key not in store


def test_an_unknown_key(store: TensorStore) -> None:
    for attempt in (
        lambda: store["missing"],
        lambda: store["missing", 3:],
        lambda: store.open("missing"),
        lambda: store.__delitem__("missing"),
        lambda: store.append("missing", [1]),
        lambda: store.share("missing"),
    ):
        with pytest.raises(tensorage.KeyNotFoundError, match=r"missing.*list\(store\)"):
            attempt()


def test_an_owner_who_has_no_such_array_is_named(store: TensorStore) -> None:
    store["x"] = 1
    with pytest.raises(
        tensorage.KeyNotFoundError,
        match=r"opening .x. of nobody@example\.com: nobody@example\.com shares no array",
    ):
        store.open("x", owner="nobody@example.com")


def test_a_key_that_is_no_text_is_not_repeated_at_length(store: TensorStore) -> None:
    key: Any = bytes(10_000)
    for attempt in (lambda: store[key], lambda: store.__setitem__(key, 1)):
        with pytest.raises(
            (tensorage.InvalidInputError, KeyError), match="a key is a string, not b'"
        ) as caught:
            attempt()
        assert len(str(caught.value)) < 200


def test_bad_arguments_of_a_store(session: BackendSession) -> None:
    with pytest.raises(tensorage.InvalidInputError, match="engine"):
        TensorStore(session, engine="tape")  # type: ignore[arg-type]
    for chunk_size in (0, -1, MAX_REQUEST_BYTES):
        with pytest.raises(tensorage.InvalidInputError, match="chunk_size"):
            TensorStore(session, chunk_size=chunk_size)["x"] = np.zeros(3)
    for way in (lambda: session()[()], lambda: session().__setitem__((), 1)):
        with pytest.raises(tensorage.InvalidInputError, match="key"):
            way()


def test_a_handle_follows_an_array_that_is_overwritten(store: TensorStore) -> None:
    store.allow_overwrite = True
    store["x"] = np.arange(5)
    handle = store.open("x")
    store["x"] = np.ones((2, 2))
    np.testing.assert_array_equal(handle[...], np.ones((2, 2)))
    assert handle.shape == (2, 2)
    del store["x"]
    with pytest.raises(tensorage.KeyNotFoundError):
        handle[...]


def test_blocks_deleted_behind_the_arrays_back_are_noticed(rows: TensorStore, database: Sql) -> None:
    rows["x"] = random_array((1000, 1000), "f8")
    database.execute(
        "delete from public.tensors where user_id = %s and index > 0 and index < 500000",
        [rows.backend.user_id],
    )
    with pytest.raises(tensorage.IncompleteTensorError, match="'x'"):
        rows["x"]
    with pytest.raises(tensorage.IncompleteTensorError):
        rows["x", 400:403]


def test_a_write_that_fails_half_way_leaves_nothing(rows: TensorStore, database: Sql) -> None:
    rows["x"] = np.arange(3)
    rows.allow_overwrite = True
    # A full disk would do so: some blocks are stored, one is not.
    name = f"fail_{rows.backend.user_id.replace('-', '')}"
    database.execute(
        f"create function {name}() returns trigger language plpgsql as "
        "$$ begin raise exception using errcode = '53100', message = 'no space left on device'; end $$; "
        f"create trigger {name} before insert on public.tensors for each row "
        f"when (new.user_id = '{rows.backend.user_id}' and new.index > 3000000) execute function {name}()"
    )
    try:
        with pytest.raises(tensorage.BackendUnavailableError, match="no space left"):
            rows["x"] = several_requests()
    finally:
        database.execute(f"drop trigger {name} on public.tensors; drop function {name}")
    np.testing.assert_array_equal(rows["x"], np.arange(3))
    rows.backend.transfer.finish(30)
    left = database.execute("select count(*) from public.tensors where user_id = %s", [rows.backend.user_id])
    assert left.fetchone() == (1,)


def test_an_array_over_the_quota_is_refused_before_anything_is_sent(
    store: TensorStore, limit: Callable[[int], None]
) -> None:
    limit(1_000_000)
    # 16 TiB, which nobody could send or even hold.
    with pytest.raises(tensorage.QuotaExceededError, match=r"do not fit"):
        store["x"] = np.broadcast_to(np.float64(0), (2**40, 2))
    assert len(store) == 0


def used_bytes(database: Sql, store: TensorStore) -> int:
    """Bytes that count against the user's quota: also answers to the tests before, which are kept for a day."""
    row = database.execute(
        "select bytes::bigint from tensorage.usage where user_id = %s", (store.backend.user_id,)
    ).fetchone()
    assert row is not None
    return int(row[0])


def test_quota(store: TensorStore, limit: Callable[[int], None], database: Sql) -> None:
    store["small"] = np.zeros(10)
    allowed = used_bytes(database, store) + 20_000
    limit(allowed)
    for array in (np.zeros(10_000), several_requests(20)):
        says = rf"(\d+) more bytes do not fit: (\d+) of {allowed} bytes are in use"
        with pytest.raises(tensorage.QuotaExceededError, match=says) as raised:
            store["large"] = array
        found = re.search(says, str(raised.value))
        assert found is not None
        assert int(found[1]) >= array.nbytes
        assert 80 < int(found[2]) < allowed
    with pytest.raises(tensorage.QuotaExceededError):
        # Noise, since rows that are appended to Storage count as they are encoded.
        store.append("small", np.random.default_rng(0).random(10_000))
    assert store.keys() == ["small"]
    assert store["small"].shape == (10,)
    store["fits"] = np.zeros(100)


def test_what_somebody_left_behind_takes_no_room(
    store: TensorStore, limit: Callable[[int], None], database: Sql
) -> None:
    """Given up by a client that died before it had swept, and too much for what one write sweeps."""
    store.chunk_size = 1
    store["x"] = np.ones(900, "u1")
    # Room for its like only once it is gone, and for the answers to both.
    limit(used_bytes(database, store) + 1500)
    database.execute(
        "update datasets set state = 'staged', expires_at = '-infinity' where user_id = %s",
        (store.backend.user_id,),
    )
    store["y"] = np.ones(900, "u1")
    np.testing.assert_array_equal(store["y"], np.ones(900, "u1"))
    with pytest.raises(tensorage.QuotaExceededError):
        store["z"] = np.zeros(101, "u1")
