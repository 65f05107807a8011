"""Elements of every dtype: text, bytes, records, times, small floats. One contract for both engines."""

from __future__ import annotations

import json
import warnings
from typing import Any

import dask.array
import hypothesis.strategies as st
import ml_dtypes
import numpy as np
import numpy.typing as npt
import psycopg
import pytest
import xarray
import zarr
from elements import LEAVES, RECORDS, SMALL_FLOATS, any_dtype, array_of, packed
from hypothesis import HealthCheck, given, settings
from project import Project, User
from proxy import Proxy
from selections import Choices, any_selection

from examples import examples
from tensorage import BackendSession, DTypeError, InvalidInputError, TensorStore
from tensorage.dtypes import MAX_ITEMSIZE, dtype_of, form_of, storable_dtype

Array = npt.NDArray[Any]
Sql = psycopg.Connection[tuple[Any, ...]]

TEXTS = np.array(["cat", "", "Füchse", "\N{GRINNING FACE}"])


def assert_same(result: Any, expected: Array) -> None:
    """Compare with numpy's result, as it comes back: little-endian and packed, bit by bit."""
    wanted = expected.astype(packed(expected.dtype))
    assert isinstance(result, np.ndarray)
    assert (result.dtype, result.shape) == (wanted.dtype, wanted.shape)
    assert result.tobytes() == wanted.tobytes()


def every(dtypes: list[np.dtype[Any]]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(
        "dtype", dtypes, ids=lambda dtype: str(dtype).encode("ascii", "replace").decode()
    )


# --- storing and reading ------------------------------------------------------------------------------


@every(LEAVES + RECORDS)
def test_elements_come_back(store: TensorStore, dtype: np.dtype[Any]) -> None:
    for shape in [(), (0,), (5,), (4, 3), (0, 2)]:
        array = array_of(dtype, shape)
        store[f"x{shape}"] = array
        handle = store.open(f"x{shape}")
        found = (handle.dtype, handle.shape, handle.nbytes)
        assert found == (packed(dtype), shape, packed(dtype).itemsize * array.size)
        assert_same(np.asarray(handle[...]), array)
    assert {entry.dtype for entry in store.catalogue()} == {packed(dtype)}


@every(RECORDS + LEAVES)
def test_the_database_has_exactly_the_fields(rows: TensorStore, database: Sql, dtype: np.dtype[Any]) -> None:
    """No byte between fields is stored: it would be whatever the writer's memory held."""
    array = array_of(dtype, (9,))
    rows["x"] = array
    stored_elements = "select string_agg(tensor, '' order by index) from tensors where data_id = d.id"
    [(form, itemsize, nbytes, stored)] = database.execute(
        f"select dtype, itemsize, nbytes, ({stored_elements}) from datasets d where key = 'x' and user_id = %s",
        (rows.backend.user_id,),
    ).fetchall()
    assert (itemsize, nbytes) == (packed(dtype).itemsize, 9 * packed(dtype).itemsize)
    assert stored == array.astype(packed(dtype)).tobytes()
    # numpy alone reads the form of records: it is its own `descr`.
    if dtype.names is None:
        assert form == (dtype.name if dtype in SMALL_FLOATS else dtype.newbyteorder("<").str)
    elif not any(dtype[name] in SMALL_FLOATS for name in dtype.names):
        assert np.dtype(_as_descr(json.loads(form))) == packed(dtype)


def _as_descr(fields: Any) -> Any:
    if isinstance(fields, str):
        return fields
    return [(name, _as_descr(inner), *map(tuple, shape)) for name, inner, *shape in fields]


@pytest.fixture(scope="module")
def kept(login: BackendSession) -> dict[str, TensorStore]:
    return {
        engine: TensorStore(login, quiet=True, engine=engine, allow_overwrite=True, chunk_size=5)  # type: ignore[arg-type]
        for engine in ("database", "storage")
    }


@settings(max_examples=examples(120), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), dtype=any_dtype())
@pytest.mark.parametrize("engine", ["database", "storage"])
def test_any_dtype_is_indexed_as_numpy_does(
    kept: dict[str, TensorStore], engine: str, data: st.DataObject, dtype: np.dtype[Any]
) -> None:
    choices = Choices(data.draw)
    shape = tuple(choices.integer(1, 6) for _ in range(choices.integer(1, 3)))
    array = array_of(dtype, shape)
    kept[engine]["drawn"] = array
    handle = kept[engine].open("drawn")
    for _ in range(3):
        selection = any_selection(choices, shape, wrong=False)
        try:
            expected = array[selection]
        except IndexError:
            with pytest.raises(IndexError):
                handle[selection]
            continue
        found = handle[selection]
        if not isinstance(expected, np.ndarray):
            assert type(found) is type(expected)
        assert_same(np.asarray(found), np.asarray(expected))


@given(any_dtype())
def test_a_dtype_has_one_form(dtype: np.dtype[Any]) -> None:
    stored = storable_dtype(dtype)
    assert stored == packed(dtype)
    assert dtype_of(form_of(stored)) == stored
    assert storable_dtype(stored) == stored


@settings(max_examples=examples(20), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(any_dtype(3), min_size=20, max_size=20))
def test_the_database_counts_the_same_bytes(database: Sql, dtypes: list[np.dtype[Any]]) -> None:
    forms = [form_of(storable_dtype(dtype)) for dtype in dtypes]
    found = database.execute("select tensorage.itemsize(f) from unnest(%s::text[]) f", (forms,)).fetchall()
    assert [size for (size,) in found] == [packed(dtype).itemsize for dtype in dtypes]


def test_the_database_knows_no_other_dtypes(database: Sql) -> None:
    forms = [
        "", "<f3", ">f4", "|O", "O", "|S0", "<U0", "|V", "<U01", "<U9999999", "|S9999999999", "bfloat17", "float8_",
        "float32", "[", "[]", "{}", "1", "null", '["a"]', '[["a"]]', '[["a","<f4",[3],1]]', '[["","<f4"]]',
        '[[1,"<f4"]]',
        '[["a","<f4"],["a","<f4"]]', '[["a","|O"]]', '[["a",[]]]', '[["a","<f4",[]]]', '[["a","<f4",[0]]]',
        '[["a","<f4",[-1]]]', '[["a","<f4",[1.5]]]', '[["a","<f4",["1"]]]', '[["a","<f4",3]]', '[["a",null]]',
        '[["a","[[\\"b\\",\\"<f4\\"]]"]]', '[["a\\u0000","<f4"]]', '[["a","<f8",[1000000]]]',
        '[["a",' * 17 + '"<f4"' + "]]" * 17,
    ]  # fmt: skip
    accepted = "tensorage.itemsize(f) between 1 and 1048576"
    found = database.execute(f"select f from unnest(%s::text[]) f where {accepted}", (forms,)).fetchall()
    assert found == []
    for form in forms:
        with pytest.raises(DTypeError):
            dtype_of(form)
    deep = '[["a",' * 16 + '"<f4"' + "]]" * 16
    assert database.execute("select tensorage.itemsize(%s)", (deep,)).fetchall() == [(4,)]
    assert dtype_of(deep).itemsize == 4


def test_a_dtype_of_a_missing_package(store: TensorStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store["x"] = np.ones(3, ml_dtypes.bfloat16)
    dtype_of.cache_clear()
    monkeypatch.setitem(__import__("sys").modules, "ml_dtypes", None)
    try:
        with pytest.raises(DTypeError, match="pip install ml_dtypes"):
            store.open("x")
        del store["x"]
    finally:
        dtype_of.cache_clear()


def test_large_arrays_of_records_and_text(store: TensorStore) -> None:
    """Several requests, blocks and objects."""
    dtype = np.dtype([("id", ">i8"), ("name", "<U40"), ("xyz", "<f4", (3,))], align=True)
    array = array_of(dtype, (1000,))[np.arange(120_000) % 1000]
    array["id"] = np.arange(len(array))
    store["x"] = array
    handle = store.open("x")
    assert_same(handle[...], array)
    assert_same(handle[[119_999, 3, 60_000]], array[[119_999, 3, 60_000]])
    blocks = (array[first : first + 7000] for first in range(0, len(array), 7000))
    written = store.write("y", blocks, shape=array.shape, dtype=dtype)
    assert_same(written[50_000:50_010], array[50_000:50_010])


# --- Storage as zarr reads it -------------------------------------------------------------------------


@every([*(dtype for dtype in LEAVES if dtype not in SMALL_FLOATS), *RECORDS[:-1]])
def test_zarr_reads_elements(session: BackendSession, dtype: np.dtype[Any]) -> None:
    store = TensorStore(session, quiet=True, engine="storage")
    array = array_of(dtype, (11, 7))
    store.write("x", array, chunks=(2, 3))
    opened = zarr.open_array(store.zarr_store("x"), mode="r")
    found = opened[...]
    assert isinstance(found, np.ndarray)
    assert found.tobytes() == array.astype(packed(dtype)).tobytes()
    if dtype.names is not None:
        assert found.dtype.names == dtype.names
        assert_same(found.view(packed(dtype)), array)
    else:
        assert_same(found, array)
    # zarr's own names.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", zarr.errors.UnstableSpecificationWarning)
        from zarr.core.dtype import get_data_type_from_native_dtype

        wanted = get_data_type_from_native_dtype(packed(dtype)).to_json(zarr_format=3)
    assert json.loads(store.open("x").dataset.zarr or "")["data_type"] == json.loads(json.dumps(wanted))


@every([np.dtype("<U5"), np.dtype("S3"), RECORDS[2]])
@pytest.mark.filterwarnings("ignore:The data type .* does not have a Zarr V3 specification")
def test_codecs_of_zarr(session: BackendSession, dtype: np.dtype[Any]) -> None:
    """zarr itself encodes and decodes these chunks, and knows no arrays within records."""
    store = TensorStore(session, quiet=True, engine="storage")
    array = array_of(dtype, (11, 7))
    transposed = {"name": "transpose", "configuration": {"order": [1, 0]}}
    little = {"name": "bytes", "configuration": {"endian": "little"}}
    gzip = {"name": "gzip", "configuration": {"level": 1}}
    for number, codecs in enumerate(([little, gzip], [transposed, little])):
        store.write(f"x{number}", array, chunks=(2, 3), codecs=codecs)
        assert_same(store[f"x{number}", 3:9], array[3:9])


def test_fill_values_of_text_and_records(session: BackendSession) -> None:
    """Objects that hold nothing but the fill value are not stored, and come back as it."""
    store = TensorStore(session, quiet=True, engine="storage")
    for dtype in (np.dtype("<U5"), np.dtype("S3"), RECORDS[1], np.dtype("V8"), SMALL_FLOATS[0]):
        store["x"] = np.zeros((9, 3), dtype)
        assert store.open("x").dataset.stored_bytes == 0
        assert_same(store["x"], np.zeros((9, 3), dtype))
        store["x", 4] = array_of(dtype, (3,))
        assert_same(store["x", 4:6], np.stack([array_of(dtype, (3,)), np.zeros(3, dtype)]))
        del store["x"]


# --- appending and assigning --------------------------------------------------------------------------


@every(LEAVES + RECORDS)
def test_rows_are_appended_and_assigned(store: TensorStore, dtype: np.dtype[Any]) -> None:
    array, more = array_of(dtype, (4, 3)), array_of(dtype, (5, 3), seed=9)
    store["x"] = array
    store.append("x", more)
    handle = store.open("x")
    handle.append(more)
    expected = np.concatenate([array, more, more]).astype(packed(dtype))
    assert_same(handle[...], expected)
    handle[::5, 1] = more[:3, 0]
    expected[::5, 1] = more[:3, 0]
    handle[2, 2] = more[0, 0]
    expected[2, 2] = more[0, 0]
    assert_same(handle[...], expected)


def test_shorter_texts_fit_and_longer_ones_do_not(store: TensorStore) -> None:
    store["x"] = np.array(["abcde", "f"])
    store.append("x", np.array(["xyz"]))
    # The dtype has room for more, and the texts need none of it.
    store.append("x", np.array(["12345", ""], "<U20"))
    store.append("x", ["a", "b"])
    store["x", 1] = "two"
    expected = np.array(["abcde", "two", "xyz", "12345", "", "a", "b"])
    for rows in (np.array(["short", "too long"]), ["too long"]):
        with pytest.raises(DTypeError, match=r"'x'.*cut off texts of 8 characters after 5"):
            store.append("x", rows)
    with pytest.raises(DTypeError, match=r"cut off texts of 7 characters after 5.*nothing has changed"):
        store["x", 0] = "seven77"
    for wrong in (np.array([b"a"]), np.array([1]), np.array([1.5])):
        with pytest.raises(DTypeError, match="'x'"):
            store.append("x", wrong)
    assert_same(store["x"], expected)


def test_text_and_numbers_do_not_become_each_other(store: TensorStore) -> None:
    store["bytes"], store["numbers"], store["raw"] = np.array([b"ab"]), np.arange(3.0), np.zeros(2, "V4")
    for key, value in (
        ("bytes", "a"),
        ("bytes", 1),
        ("numbers", "1"),
        ("numbers", b"1"),
        ("raw", b"a"),
        ("raw", 0),
    ):
        with pytest.raises(DTypeError, match=key):
            store[key, 0] = value
        with pytest.raises(DTypeError, match=key):
            store.append(key, [value])
    store["raw", 1] = np.void(b"ab\0c")
    assert_same(store["raw"], np.array([b"\0" * 4, b"ab\0c"], "V4"))
    assert_same(store["numbers"], np.arange(3.0))


def test_tuples_are_records(store: TensorStore) -> None:
    dtype = np.dtype([("id", "<i4"), ("x", "<f4", (2,)), ("name", "<U3")])
    array = np.zeros(3, dtype)
    store["x"] = array
    store.append("x", [(7, (0.1, 0.2), "abc"), (8, [1, 2], "d")])
    store["x", 1] = (9, (3, 4), "e")
    store["x", [0, 2]] = [(1, 0, "f"), (2, 0, "g")]
    expected = np.append(array, np.array([(7, (0.1, 0.2), "abc"), (8, (1, 2), "d")], dtype))
    expected[1] = (9, (3, 4), "e")
    expected[[0, 2]] = [(1, 0, "f"), (2, 0, "g")]
    assert_same(store["x"], expected)
    for wrong in (
        (1.5, (0, 0), "a"),
        (2**40, (0, 0), "a"),
        (1, (0, 0), "long"),
        (1, 2),
        ("a", (0, 0), "a"),
        [1, 2],
    ):
        with pytest.raises((DTypeError, InvalidInputError), match="'x'"):
            store["x", 0] = wrong
        with pytest.raises((DTypeError, InvalidInputError), match="'x'"):
            store.append("x", [wrong])
    assert_same(store["x"], expected)


def test_fields_go_by_their_names(store: TensorStore) -> None:
    """numpy goes by the order of the fields, and would exchange these two."""
    store["x"] = np.zeros(2, [("width", "<f4"), ("height", "<f4")])
    other = np.ones(2, [("height", "<f4"), ("width", "<f4")])
    with pytest.raises(DTypeError, match="other names or another order"):
        store.append("x", other)
    with pytest.raises(DTypeError, match=r"other names or another order.*nothing has changed"):
        store["x", 0] = other[0]
    # Fields fit by themselves.
    store.append("x", np.ones(1, [("width", "<f2"), ("height", "?")]))
    with pytest.raises(DTypeError, match="without loss"):
        store.append("x", np.ones(1, [("width", "<f8"), ("height", "<f4")]))
    assert_same(store["x"]["height"], np.array([0, 0, 1], "f4"))


@every(SMALL_FLOATS)
def test_numbers_become_small_floats(store: TensorStore, dtype: np.dtype[Any]) -> None:
    array = np.array([1, -2, 0.5], dtype)
    store["x"] = array
    store["x", 0], store["x", 1], store["x", 2] = 0.3, 4, np.float32(-8)
    array[:] = [0.3, 4, -8]
    store.append("x", [1.5, 2])
    with pytest.raises(DTypeError, match="without loss"):
        store.append("x", np.ones(1, "f4"))
    for wrong in (2**20 + 1, 1j, "a"):
        with pytest.raises(DTypeError, match="'x'"):
            store["x", 0] = wrong
    assert_same(store["x"], np.append(array, np.array([1.5, 2], dtype)))
    store["y"] = np.zeros(2, "f8")
    store.append("y", array)
    assert_same(store["y", 2:], array.astype("f8"))


# --- fields -------------------------------------------------------------------------------------------

EVENTS = np.dtype([("t", "<M8[us]"), ("xyz", "<f4", (3,)), ("name", "<U8"), ("raw", "V900"), ("n", "<i2")])

SELECTIONS: list[Any] = [
    ..., np.s_[3], np.s_[-1, 2], np.s_[2:9, ::-2], np.s_[[7, 3, 7]], np.s_[:, [1, 0]], np.s_[None, 5:6], np.s_[4:4],
    np.arange(30).reshape(10, 3) % 4 == 0,
]  # fmt: skip


@pytest.mark.parametrize(
    "selection",
    SELECTIONS,
    ids=lambda selection: "mask" if isinstance(selection, np.ndarray) else str(selection),
)
def test_fields_are_what_numpy_gives(store: TensorStore, selection: Any) -> None:
    array = array_of(EVENTS, (10, 3))
    store["x"] = array
    handle = store.open("x")
    rest = selection if isinstance(selection, tuple) else (selection,)
    for name in EVENTS.names or ():
        expected, found = array[selection][name], handle[(name, *rest)]
        assert type(found) is type(expected)
        assert_same(np.asarray(found), np.asarray(expected))
        assert_same(handle[name], array[name])
        assert_same(store["x", name], array[name])
        assert_same(np.asarray(store[("x", name, *rest)]), np.asarray(expected))
    for names in (["n"], ["n", "t"], ["t", "xyz", "n"]):
        expected, found = array[selection][names], handle[(names, *rest)]
        assert type(found) is type(expected)
        assert_same(np.asarray(found), np.asarray(expected))
        assert_same(handle[names], array[names])
    out = np.empty((10, 3), "<i2")
    assert handle.read("n", out=out) is out
    assert_same(out, array["n"])


def test_fields_through_a_cache_and_of_scalars(store: TensorStore, tmp_path: Any) -> None:
    array = array_of(EVENTS, (10, 3))
    store["x"], store["one"] = array, array[0, 0]
    cached = store.open("x").cached(tmp_path / "cache")
    for _ in range(2):
        assert_same(cached["t", 2:5], array["t"][2:5])
        assert_same(cached[["n", "t"]], array[["n", "t"]])
    assert store.open("one")["n"] == array[0, 0]["n"]
    assert store["one", "n"] == array[0, 0]["n"]


def test_fields_that_there_are_not(store: TensorStore) -> None:
    array = array_of(EVENTS, (4,))
    store["x"], store["numbers"] = array, np.zeros(3)
    for wrong in ("y", ["t", "y"], ("y", 2)):
        with pytest.raises(InvalidInputError, match=r"no field of name 'y'.*'t', 'xyz', 'name'"):
            store.open("x")[wrong]
    with pytest.raises(InvalidInputError, match="'t' is named twice"):
        store.open("x")[["t", "t"]]
    with pytest.raises(IndexError):
        store.open("x")["t", 4]
    # Arrays without fields refuse names as numpy does.
    for wrong in ("t", ["t"], ("t", 0)):
        with pytest.raises(IndexError):
            store.open("numbers")[wrong]
    with pytest.raises(InvalidInputError, match="out has shape"):
        store.open("x").read("t", out=np.empty(4, "f8"))
    for wrong in ("t", ("t", 2), ["t", "n"]):
        with pytest.raises(InvalidInputError, match=r"records are assigned whole.*Nothing has changed"):
            store.open("x")[wrong] = 0
    assert_same(store["x"], array)


def test_fields_travel_alone(session: BackendSession, proxy: Proxy, project: Project, user: User) -> None:
    """From the database, at most twice the bytes of the fields travel, and 64 KiB for each block."""
    array = array_of(EVENTS, (1000,))[np.arange(20_000) % 1000]
    TensorStore(session, quiet=True)["x"] = array
    away = Project(proxy.url, project.key).session(user)
    handle = TensorStore(away, quiet=True).open("x")
    blocks = -(-handle.nbytes // 2**20)
    for names, selection, requests in (
        ("n", ..., 3),
        (["t", "n"], ..., 3),
        ("xyz", np.s_[::7], 3),
        ("t", np.s_[5:500], 1),
    ):
        with proxy.counted() as asked:
            found = handle[names, selection]
        expected = array[selection][names]
        assert_same(found, expected)
        assert len(asked) <= requests
        assert sum(exchange.received_bytes for exchange in asked) <= 2 * found.nbytes + blocks * 2**16
    away.logout()


# --- tensors, and other arrays ------------------------------------------------------------------------


def test_tensors_of_pytorch_are_taken_as_they_are(store: TensorStore) -> None:
    import torch

    numbers = torch.arange(12, dtype=torch.float32).reshape(3, 4)
    taken: dict[str, tuple[torch.Tensor, Array]] = {
        "plain": (numbers, np.arange(12, dtype="f4").reshape(3, 4)),
        "grad": (numbers.clone().requires_grad_(), np.arange(12, dtype="f4").reshape(3, 4)),
        "transposed": (numbers.T, np.arange(12, dtype="f4").reshape(3, 4).T),
        "parameter": (torch.nn.Parameter(numbers), np.arange(12, dtype="f4").reshape(3, 4)),
        "conj": (torch.tensor([1 + 2j]).conj(), np.array([1 - 2j], "c8")),
        "bfloat16": (
            numbers.bfloat16()[:, ::2],
            np.arange(12).reshape(3, 4)[:, ::2].astype(ml_dtypes.bfloat16),
        ),
        "float8": (
            numbers.to(torch.float8_e4m3fn),
            np.arange(12).reshape(3, 4).astype(ml_dtypes.float8_e4m3fn),
        ),
        "scalar": (torch.tensor(3), np.array(3)),
        "empty": (torch.zeros((0, 2), dtype=torch.bfloat16), np.zeros((0, 2), ml_dtypes.bfloat16)),
    }
    for key, (tensor, expected) in taken.items():
        store[key] = tensor
        assert_same(np.asarray(store[key]), expected)
    store.append("bfloat16", numbers.bfloat16().requires_grad_()[:1, :2])
    store["bfloat16", 0] = numbers.bfloat16().requires_grad_()[2, :2]
    assert store["bfloat16"].astype("f4").tolist() == [[8, 9], [4, 6], [8, 10], [0, 1]]
    # The dtype of a tensor counts, as that of an array does.
    with pytest.raises(DTypeError, match="without loss"):
        store.append("bfloat16", numbers[:1, :2])
    with store.background() as bg:
        bg["later"] = numbers.bfloat16().requires_grad_()
    assert_same(store["later"], np.arange(12).reshape(3, 4).astype(ml_dtypes.bfloat16))


def test_tensors_that_have_no_such_elements(store: TensorStore) -> None:
    import torch

    with pytest.raises(InvalidInputError, match=r"^this is no array: a tensor of layout .*to_dense\(\)"):
        store["x"] = torch.eye(3).to_sparse()
    with pytest.raises(InvalidInputError, match=r"^this is no array: a tensor on the device 'meta'"):
        store["x"] = torch.empty(3, device="meta")
    with pytest.raises(DTypeError, match=r"\.float\(\)"):
        store["x"] = torch.empty(3, dtype=torch.float4_e2m1fn_x2)
    assert len(store) == 0


class _OnlyDlpack:
    """An array of a library that numpy does not know."""

    def __init__(self, array: Array) -> None:
        self._array = array

    def __dlpack__(self, **how: Any) -> Any:
        return self._array.__dlpack__(**how)

    def __dlpack_device__(self) -> Any:
        return self._array.__dlpack_device__()


class _OnlyArray:
    def __array__(self, dtype: Any = None, copy: Any = None) -> Array:
        return np.array([1, 2, 3], dtype or "i2")


def test_anything_that_says_it_is_an_array(store: TensorStore) -> None:
    store["dlpack"], store["array"] = _OnlyDlpack(np.arange(6.0).reshape(2, 3)), _OnlyArray()
    assert_same(store["dlpack"], np.arange(6.0).reshape(2, 3))
    assert_same(store["array"], np.array([1, 2, 3], "i2"))
    store.append("dlpack", _OnlyDlpack(np.ones((1, 3))))
    assert_same(store["dlpack", 2], np.ones(3))


# --- everything else that arrays go through -----------------------------------------------------------


@every([np.dtype("<U5"), RECORDS[2], SMALL_FLOATS[0]])
def test_other_ways_to_store_and_read(store: TensorStore, tmp_path: Any, dtype: np.dtype[Any]) -> None:
    array = array_of(dtype, (20, 3))
    other = "storage" if store.engine == "database" else "database"
    with store.background() as bg:
        bg["x"] = array
        bg.append("x", array)
    twice = np.concatenate([array, array])
    handle = store.open("x")
    assert_same(store.copy("x", "y", engine=other)[...], twice)  # type: ignore[arg-type]
    cached = handle.cached(tmp_path / "cache")
    for _ in range(2):
        assert_same(cached[5:9], twice[5:9])
        assert_same(cached[[7, 3]], twice[[7, 3]])
    assert_same(np.concatenate(list(handle.batches(8))), twice)
    assert_same(np.asarray(handle.to_dask(chunks=(7, 3)).compute()), twice)
    store["z"] = dask.array.from_array(array, chunks=(6, 3))
    assert_same(store["z"], array)
    assert_same(np.asarray(handle.to_xarray()[3:5].values), twice[3:5])
    store["w"] = xarray.DataArray(array, dims=["a", "b"], coords={"a": np.arange(20)})
    assert_same(store["w"], array)
    assert str(handle.dtype) in repr(handle)
    assert "dtype" in handle._repr_html_()


def test_tuples_wait_in_the_background_as_they_were(store: TensorStore) -> None:
    dtype = np.dtype([("id", "<i4"), ("x", "<f4")])
    store["x"] = np.zeros(2, dtype)
    row = [1, 2.5]
    with store.background() as bg:
        bg["x", 0] = tuple(row)
        bg.append("x", [(3, 4)])
    assert_same(store["x"], np.array([(1, 2.5), (0, 0), (3, 4)], dtype))


# --- what cannot be stored ----------------------------------------------------------------------------

OVERLAPPING = np.dtype({"names": ["a", "b"], "formats": ["<i4", "<i4"], "offsets": [0, 2]})
OUT_OF_ORDER = np.dtype({"names": ["a", "b"], "formats": ["<i4", "<i4"], "offsets": [4, 0]})
TITLED = np.dtype([(("the title", "a"), "<f4")])


@pytest.mark.parametrize(
    ("array", "says"),
    [
        (np.array(["a", None], object), "object.*cannot be stored|cannot be stored.*object"),
        (np.zeros(2, [("a", "i4"), ("b", [("c", "O")])]), r"field 'b\.c' of dtype object"),
        (np.zeros(2, TITLED), "field 'a' has the title 'the title'"),
        (np.zeros(2, OVERLAPPING), "field 'b' begins at byte 2.*overlap"),
        (np.zeros(2, OUT_OF_ORDER), "field 'b' begins at byte 0.*out of order"),
        (np.zeros(2, []), "no fields"),
        (np.zeros(2, [("a", [])]), "field 'a'.*no fields"),
        (np.empty(2, np.dtype("V0")), "no bytes"),
        (np.zeros(2, [("a", "S0"), ("b", "i4")]), "field 'a'.*no bytes.*'S8'"),
        (np.zeros(2, [("a", "f4", (2, 0)), ("b", "i4")]), "field 'a' of shape .2, 0. has no elements"),
        (np.zeros(2, [("a\0b", "i4")]), "NUL"),
        (np.zeros(2, [("a\ud800", "i4")]), "surrogate"),
        (np.zeros(1, f"S{MAX_ITEMSIZE + 1}"), f"{MAX_ITEMSIZE} is the most"),
        (np.zeros(1, [(f"f{'x' * 100}{i}", "i4") for i in range(1000)]), "65536 bytes"),
        (np.zeros(2, [("a", ml_dtypes.int4)]), r"field 'a' of dtype int4.*astype\('int8'\)"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_stored(store: TensorStore, array: Array, says: str) -> None:
    with pytest.raises(DTypeError, match=says):
        store["x"] = array
    with pytest.raises(DTypeError, match=says):
        store.write("x", [array], shape=array.shape, dtype=array.dtype)
    with pytest.raises(DTypeError, match=says), store.background() as bg:
        bg["x"] = array
    store["y"] = np.zeros(3)
    with pytest.raises(DTypeError):
        store.append("y", array)
    assert list(store) == ["y"]
    assert_same(store["y"], np.zeros(3))


def test_an_array_within_an_element_is_an_axis(store: TensorStore) -> None:
    with pytest.raises(DTypeError, match=r"declare dtype float32, and put \(3,\) behind the shape"):
        store.write("x", [np.zeros((2, 3), "f4")], shape=(2,), dtype=("f4", (3,)))
    with pytest.raises(DTypeError, match="no numpy dtype"):
        store.write("x", [np.zeros((2, 3), "f4")], shape=(2,), dtype="text")
    assert len(store) == 0


def test_records_too_deep_within_each_other(store: TensorStore) -> None:
    dtype = np.dtype("f4")
    for _ in range(16):
        dtype = np.dtype([("a", dtype)])
    store["x"] = np.zeros(2, dtype)
    assert_same(store["x"], np.zeros(2, dtype))
    with pytest.raises(DTypeError, match="17th record within another, and 16 is the most"):
        store["y"] = np.zeros(2, [("a", dtype)])


def test_text_is_stored_as_it_is(store: TensorStore) -> None:
    store["labels"] = np.array(["cat", "dog"])
    assert store["labels", 1] == "dog"
    store["texts"] = TEXTS
    assert store["texts"].tolist() == TEXTS.tolist()
    store["list"] = ["a", "bcd"]
    assert store.open("list").dtype == np.dtype("<U3")
