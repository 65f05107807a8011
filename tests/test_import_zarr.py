"""Arrays that zarr wrote, taken in: what comes out again, to us and to zarr, and which bytes were taken over."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import numpy.typing as npt
import psycopg
import pytest
import xarray
import zarr
from elements import array_of
from hypothesis import given
from numcodecs import Blosc, Zstd
from project import Project, User
from proxy import Exchange, Proxy
from zarr.abc.codec import BytesBytesCodec
from zarr.buffer.cpu import Buffer
from zarr.registry import register_codec
from zarr.storage import LocalStore, MemoryStore, ZipStore

from tensorage import (
    BackendSession,
    ChangedError,
    CorruptTensorError,
    DTypeError,
    InvalidInputError,
    KeyExistsError,
    Tensor,
    TensorStore,
)
from tensorage.backend.transfer import Work
from tensorage.backend.zarr.bucket import Bucket
from tensorage.backend.zarr.codec import CorruptChunkError, choose_layout
from tensorage.backend.zarr.codec_pipeline import check_encoded_chunk, crc32c
from tensorage.backend.zarr.importing import blocks_of, layout_of
from tensorage.backend.zarr.shard_records import fetch_records
from tensorage.backend.zarr.zarr_engine import codec_of

Array = npt.NDArray[Any]
Database = psycopg.Connection[tuple[Any, ...]]

LITTLE = {"name": "bytes", "configuration": {"endian": "little"}}
BIG = {"name": "bytes", "configuration": {"endian": "big"}}
ZSTD = {"name": "zstd", "configuration": {"level": 0, "checksum": False}}
CRC32C = {"name": "crc32c"}
GZIP = {"name": "gzip", "configuration": {"level": 5}}
BLOSC = {
    "name": "blosc",
    "configuration": {"cname": "lz4", "clevel": 5, "shuffle": "shuffle", "typesize": 4, "blocksize": 0},
}
TRANSPOSE = {"name": "transpose", "configuration": {"order": [1, 0]}}

#: zarr says of some dtypes that other libraries might not know them.
UNSTABLE = pytest.mark.filterwarnings("ignore:The data type .* does not have a Zarr V3 specification")


@pytest.fixture
def store(session: BackendSession) -> TensorStore:
    """Return a store without an engine of its own: each test says which engine an array is for."""
    return session()


def numbers(shape: tuple[int, ...] = (11, 7), dtype: str = "<f4") -> Array:
    return np.arange(1, np.prod(shape, dtype=int) + 1).astype(dtype).reshape(shape)


def sharding(*codecs: Any, **configuration: Any) -> list[Any]:
    """Shards of chunks of (2, 3) elements."""
    inner = {
        "chunk_shape": [2, 3],
        "codecs": list(codecs),
        "index_codecs": [LITTLE, CRC32C],
        "index_location": "end",
    }
    return [{"name": "sharding_indexed", "configuration": {**inner, **configuration}}]


def written(
    array: Array, codecs: list[Any], *, chunks: tuple[int, ...] = (4, 6), where: Any = None, **options: Any
) -> zarr.Array[Any]:
    """An array of Zarr v3, as zarr writes it."""
    source = zarr.create(
        array.shape,
        dtype=array.dtype,
        chunks=chunks,
        codecs=codecs,
        zarr_format=3,
        store=MemoryStore({}) if where is None else where,
        **options,
    )
    source[...] = array
    return source


def assert_same(array: Any, expected: Array) -> None:
    array = np.asarray(array)
    assert (array.shape, array.dtype) == (expected.shape, expected.dtype)
    assert array.tobytes() == expected.tobytes()


def assert_stored(store: TensorStore, tensor: Tensor, expected: Array) -> None:
    """The imported array is read, by us and by zarr."""
    little = expected.astype(expected.dtype.newbyteorder("<"))
    assert tensor.engine == "storage"
    assert_same(store[tensor.key], little)
    assert_same(zarr.open_array(store.zarr_store(tensor.key))[...], little)


def objects_of(store: TensorStore, key: str) -> dict[str, bytes]:
    """The objects of a stored array, by their keys of Zarr."""
    dataset = store.arrays.open(key)
    transfer, layout = store.backend.transfer, codec_of(dataset).layout
    records = fetch_records(Work.reading(transfer, dataset), layout, range(layout.shard_count))
    objects = {}
    for number, record in records.items():
        if record.name:
            content = bytearray(record.nbytes)
            Bucket(transfer).get_into(dataset, record, 0, memoryview(content))
            objects[layout.key_of(number)] = bytes(content)
    return objects


def objects_of_source(array: zarr.Array[Any], prefix: str = "") -> dict[str, bytes]:
    """The objects of an array of a MemoryStore, by the keys they would have by default."""
    store = array.store
    assert isinstance(store, MemoryStore)
    return {
        key.removeprefix(prefix): buffer.to_bytes()
        for key, buffer in store._store_dict.items()
        if key.startswith(prefix + "c") and key != "zarr.json"
    }


@contextlib.contextmanager
def nothing_stored(store: TensorStore, database: Database) -> Iterator[None]:
    """The block leaves neither an array nor what was staged for one."""
    yield
    assert list(store) == []
    # The session sweeps behind the caller's back.
    store.backend.transfer.finish(30)
    user_id = store.backend.user_id
    left = database.execute("select state, key from public.datasets where user_id = %s", [user_id]).fetchall()
    assert left == []
    assert database.execute("select name from storage.objects where name ~ %s", [user_id]).fetchall() == []


# --- taken over as they are ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "codecs",
    [
        [LITTLE],
        [LITTLE, ZSTD],
        [LITTLE, ZSTD, CRC32C],
        [LITTLE, GZIP],
        [LITTLE, BLOSC],
        [BIG, ZSTD],
        [TRANSPOSE, LITTLE, ZSTD],
    ],
    ids=lambda codecs: "-".join(codec["name"] for codec in codecs),
)
@pytest.mark.parametrize(
    "index",
    [{}, {"index_location": "start"}, {"index_codecs": [BIG]}, None],
    ids=["end", "start", "big, without checksum", "unsharded"],
)
def test_objects_are_taken_over_as_they_are(
    store: TensorStore, codecs: list[Any], index: dict[str, Any] | None
) -> None:
    array = numbers()
    source = written(array, codecs if index is None else sharding(*codecs, **index))
    tensor = store.import_zarr("a", source)
    assert_stored(store, tensor, array)
    assert objects_of(store, "a") == objects_of_source(source)
    assert len(objects_of(store, "a")) == 6


def test_zarr_s_own_defaults_are_taken_over(store: TensorStore) -> None:
    array = numbers((100, 20))
    source = zarr.create_array(MemoryStore({}), data=array, chunks=(10, 20), shards=(40, 20))
    assert_stored(store, store.import_zarr("a", source), array)
    assert objects_of(store, "a") == objects_of_source(source)
    unsharded = zarr.create_array(MemoryStore({}), data=array)
    assert_stored(store, store.import_zarr("b", unsharded), array)
    assert objects_of(store, "b") == objects_of_source(unsharded)


@UNSTABLE
@pytest.mark.parametrize(
    "dtype", ["?", "i1", "u2", "<i4", "<u8", "<f2", "<f4", "<f8", "<c8", "<c16", "<M8[s]", "<m8[25us]"]
)
def test_every_dtype_is_taken_over(store: TensorStore, dtype: str) -> None:
    array = numbers(dtype=dtype)
    as_bytes = {"name": "bytes"} if array.dtype.itemsize == 1 else LITTLE
    source = written(array, sharding(as_bytes, ZSTD))
    assert_stored(store, store.import_zarr("a", source), array)
    assert objects_of(store, "a") == objects_of_source(source)


@pytest.mark.parametrize("codecs", [[LITTLE, ZSTD], sharding(LITTLE, ZSTD)], ids=["unsharded", "sharded"])
@pytest.mark.parametrize("fill_value", [np.nan, -0.0, 5, np.inf])
def test_fill_values_stand_for_what_is_missing(
    store: TensorStore, fill_value: float, codecs: list[Any]
) -> None:
    array = np.full((11, 7), fill_value, "<f4")
    array[0, 0] = 3
    source = written(array, codecs, fill_value=fill_value)
    assert len(objects_of_source(source)) == 1
    tensor = store.import_zarr("a", source)
    assert_stored(store, tensor, array)
    assert objects_of(store, "a") == objects_of_source(source)
    assert zarr.open_array(store.zarr_store("a")).fill_value.tobytes() == np.float32(fill_value).tobytes()


def test_objects_that_are_missing_are_fill_values(store: TensorStore) -> None:
    array = numbers()
    source = written(array, sharding(LITTLE, ZSTD), fill_value=-1)
    assert isinstance(source.store, MemoryStore)
    del source.store._store_dict["c/1/0"]
    array[4:8, :6] = -1
    assert_stored(store, store.import_zarr("a", source), array)
    # Elements that are written over them are there.
    store["a", 5, 2] = array[5, 2] = 7
    store.append("a", array[:3])
    assert_same(store["a"], np.concatenate([array, array[:3]]))


@pytest.mark.parametrize(
    ("encoding", "first"),
    [
        ({"name": "default", "separator": "/"}, "c/0/0"),
        ({"name": "default", "separator": "."}, "c.0.0"),
        ({"name": "v2", "separator": "."}, "0.0"),
        ({"name": "v2", "separator": "/"}, "0/0"),
    ],
    ids=str,
)
@pytest.mark.parametrize("path", ["", "deep/within"])
def test_names_of_objects_may_be_others(
    store: TensorStore, tmp_path: Path, encoding: dict[str, str], first: str, path: str
) -> None:
    array = numbers()
    source = written(
        array, sharding(LITTLE, ZSTD), where=LocalStore(tmp_path), path=path, chunk_key_encoding=encoding
    )
    assert_stored(store, store.import_zarr("a", source), array)
    objects = objects_of(store, "a")
    assert sorted(objects) == [f"c/{row}/{column}" for row in range(3) for column in range(2)]
    assert objects["c/0/0"] == (tmp_path / path / first).read_bytes()


@pytest.mark.parametrize("codecs", [[LITTLE, ZSTD], sharding(LITTLE, ZSTD)], ids=["unsharded", "sharded"])
@pytest.mark.parametrize("shape", [(0, 7), (11, 0), (1, 1), (12, 12)])
def test_any_shape_is_taken_over(store: TensorStore, shape: tuple[int, ...], codecs: list[Any]) -> None:
    array = numbers(shape)
    assert_stored(store, store.import_zarr("a", written(array, codecs)), array)


def test_an_array_without_dimensions_is_taken_over(store: TensorStore) -> None:
    array = np.array(7, "<i4")
    source = written(array, [LITTLE, ZSTD], chunks=())
    assert_stored(store, store.import_zarr("a", source), array)
    assert objects_of(store, "a") == objects_of_source(source)


@pytest.mark.filterwarnings("ignore:Combining a .sharding_indexed. codec disables partial reads")
def test_whole_shards_around_the_codecs_are_taken_over(store: TensorStore) -> None:
    # No chunk of them can be had on its own.
    array = numbers((8, 12))
    source = written(array, [*sharding(LITTLE, ZSTD), CRC32C])
    assert_stored(store, store.import_zarr("a", source), array)
    assert objects_of(store, "a") == objects_of_source(source)


@dataclass(frozen=True)
class OneWay(BytesBytesCodec):
    """A codec that encodes, by adding a byte in front, and cannot decode."""

    is_fixed_size = True

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> OneWay:
        return cls()

    def to_dict(self) -> dict[str, Any]:
        return {"name": "tests.one_way", "configuration": {}}

    def compute_encoded_size(self, input_byte_length: int, chunk_spec: Any) -> int:
        return input_byte_length + 1

    async def _encode_single(self, chunk_bytes: Any, chunk_spec: Any) -> Any:
        return chunk_spec.prototype.buffer.from_bytes(b"x" + chunk_bytes.to_bytes())

    async def _decode_single(self, chunk_bytes: Any, chunk_spec: Any) -> Any:
        raise ArithmeticError("nobody may decode this")


@pytest.mark.parametrize("is_sharded", [True, False])
def test_nothing_is_decoded(store: TensorStore, is_sharded: bool) -> None:
    register_codec("tests.one_way", OneWay)
    codecs = [LITTLE, {"name": "tests.one_way", "configuration": {}}]
    source = written(numbers((12, 12)), sharding(*codecs) if is_sharded else codecs)
    with pytest.raises(ArithmeticError):
        source[...]
    store.import_zarr("a", source)
    assert objects_of(store, "a") == objects_of_source(source)
    with pytest.raises(CorruptTensorError, match="nobody may decode this"):
        store["a"]


def test_what_was_taken_over_can_be_changed(store: TensorStore) -> None:
    array = numbers()
    tensor = store.import_zarr("a", written(array, sharding(LITTLE, GZIP, index_location="start")))
    tensor[3:9, 2] = array[3:9, 2] = -1
    tensor.append(array)
    assert_stored(store, tensor, np.concatenate([array, array]))


def test_objects_that_an_array_has_beyond_its_end_are_left(store: TensorStore) -> None:
    array = numbers((12, 6))
    source = written(array, [LITTLE, ZSTD])
    beyond = dict(objects_of_source(source))
    source.resize((5, 6))
    assert isinstance(source.store, MemoryStore)
    source.store._store_dict["c/2/0"] = Buffer.from_bytes(beyond["c/2/0"])
    tensor = store.import_zarr("a", source)
    assert_stored(store, tensor, array[:5])
    assert sorted(objects_of(store, "a")) == ["c/0/0", "c/1/0"]
    # Rows of the last chunk that were cut off do not come back.
    tensor.append(np.zeros((1, 6), "<f4"))
    assert_stored(store, tensor, np.concatenate([array[:5], np.zeros((1, 6), "<f4")]))


# --- where it comes from ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind", ["array", "str", "path", "store", "store of zip", "store path", "dict", "url"]
)
def test_a_source_is_what_zarr_opens(store: TensorStore, tmp_path: Path, kind: str) -> None:
    array = numbers()
    folder = tmp_path / "source.zarr"
    opened = written(array, sharding(LITTLE, ZSTD), where=LocalStore(folder))
    sources: dict[str, Any] = {
        "array": opened,
        "str": str(folder),
        "path": folder,
        "store": LocalStore(folder),
        "store path": opened.store_path,
        "url": f"file://{folder}",
    }
    if kind == "dict":
        sources["dict"] = {
            str(path.relative_to(folder)): Buffer.from_bytes(path.read_bytes())
            for path in folder.rglob("*")
            if path.is_file()
        }
    elif kind == "store of zip":
        with ZipStore(tmp_path / "source.zip", mode="w") as zipped:
            written(array, sharding(LITTLE, ZSTD), where=zipped)
        sources["store of zip"] = ZipStore(tmp_path / "source.zip", mode="r")
    assert_stored(store, store.import_zarr("a", sources[kind]), array)
    if kind == "store of zip":
        sources[kind].close()


def test_an_array_of_a_group_is_taken_in(store: TensorStore) -> None:
    group = zarr.create_group(MemoryStore({}))
    array = numbers()
    group.create_array("deep/t", data=array, chunks=(4, 6))
    assert_stored(store, store.import_zarr("a", group["deep/t"]), array)


def test_what_xarray_wrote_is_taken_in(store: TensorStore, tmp_path: Path) -> None:
    array = numbers()
    dataset = xarray.Dataset({"t": (("time", "x"), array, {"units": "K"})})
    for zarr_format in (2, 3):
        folder = tmp_path / f"{zarr_format}.zarr"
        dataset.to_zarr(folder, zarr_format=zarr_format, consolidated=False)  # type: ignore[call-overload]
        tensor = store.import_zarr(f"v{zarr_format}", folder / "t")
        assert tensor.dims == ("time", "x")
        assert tensor.attrs["units"] == "K"
        assert "_ARRAY_DIMENSIONS" not in tensor.attrs
        assert_stored(store, tensor, array)
        again = xarray.open_zarr(store.zarr_store(f"v{zarr_format}", as_group="t"))["t"]
        xarray.testing.assert_equal(again, dataset["t"])


def test_an_array_of_ours_is_taken_in(store: TensorStore) -> None:
    array = numbers()
    store.write("a", array, engine="storage", chunks=(2, 3), shards=(4, 6), attrs={"a": 1}, dims=("x", "y"))
    tensor = store.import_zarr("b", store.zarr_store("a"))
    assert_stored(store, tensor, array)
    assert (dict(tensor.attrs), tensor.dims) == ({"a": 1}, ("x", "y"))
    assert objects_of(store, "b") == objects_of(store, "a")
    source = store.zarr_store("a")
    store["a", 0] = 5
    with pytest.raises(ChangedError):
        store.import_zarr("c", source)
    assert "c" not in store


def test_attributes_and_names_of_dimensions_come_along(store: TensorStore) -> None:
    attrs = {"units": "K", "valid": [1, 2.5, None], "of": {"place": "Zürich"}}
    source = written(numbers(), [LITTLE, ZSTD], dimension_names=["time", "x"], attributes=attrs)
    tensor = store.import_zarr("a", source)
    assert (dict(tensor.attrs), tensor.dims) == (attrs, ("time", "x"))
    opened = zarr.open_array(store.zarr_store("a"))
    assert opened.attrs.asdict() == attrs
    assert opened.metadata.dimension_names == ("time", "x")


@pytest.mark.parametrize(
    ("names", "dims"),
    [(None, None), ([None, None], None), ([None, "x"], ("dim_0", "x")), (["x", "x"], ("x", "x"))],
)
def test_dimensions_may_have_no_names(store: TensorStore, names: Any, dims: tuple[str, ...] | None) -> None:
    tensor = store.import_zarr("a", written(numbers(), [LITTLE, ZSTD], dimension_names=names))
    assert tensor.dims == dims


def test_attributes_that_are_no_names_of_dimensions_stay(store: TensorStore) -> None:
    attrs = {"_ARRAY_DIMENSIONS": ["x"]}
    tensor = store.import_zarr("a", written(numbers(), [LITTLE, ZSTD], attributes=attrs))
    assert (dict(tensor.attrs), tensor.dims) == (attrs, None)


def test_what_is_said_takes_the_place_of_what_the_source_says(store: TensorStore) -> None:
    source = written(numbers(), [LITTLE, ZSTD], dimension_names=["t", "x"], attributes={"bad": float("nan")})
    with pytest.raises(InvalidInputError, match=r"importing 'a': the attributes .* Give attrs="):
        store.import_zarr("a", source)
    dataset = store.arrays.import_zarr("a", source, attrs={"good": 1}, dims=("u", "v"), is_shared=True)
    assert (dataset.attrs, dataset.dims, dataset.is_shared) == ({"good": 1}, ("u", "v"), True)
    store.unshare("a")


def test_keys_that_are_taken_are_refused(store: TensorStore) -> None:
    source = written(numbers(), [LITTLE, ZSTD])
    store["a"] = numbers((2,))
    with pytest.raises(KeyExistsError):
        store.import_zarr("a", source)
    assert_same(store["a"], numbers((2,)))
    overwriting = TensorStore(store.backend, quiet=True, allow_overwrite=True)
    assert_stored(store, overwriting.import_zarr("a", source), numbers())


# --- encoded anew -------------------------------------------------------------------------------------


def written_v2(array: Array, **options: Any) -> zarr.Array[Any]:
    """An array of Zarr v2, as zarr writes it."""
    options = {"chunks": (20, 30), "store": MemoryStore({}), **options}
    source = zarr.create_array(
        name=options.pop("name", None), shape=array.shape, dtype=array.dtype, zarr_format=2, **options
    )
    source[...] = array
    return source


@pytest.mark.parametrize("dtype", ["?", "i1", "<i4", ">i4", ">f8", "<f2", ">c8", "<M8[s]", ">m8[25us]"])
def test_zarr_v2_is_encoded_anew(store: TensorStore, dtype: str) -> None:
    array = numbers((45, 70), dtype)
    source = written_v2(array)
    assert layout_of(source) is None
    assert_stored(store, store.import_zarr("a", source), array)


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("separator", [".", "/"])
def test_zarr_v2_of_any_order_and_separator(store: TensorStore, order: Any, separator: Any) -> None:
    array = numbers((45, 70))
    encoding = {"name": "v2", "separator": separator}
    source = written_v2(array, order=order, chunk_key_encoding=encoding)
    assert_stored(store, store.import_zarr("a", source), array)


def test_chunks_stay_what_they_were(store: TensorStore) -> None:
    def layout(own: tuple[int, ...], **how: Any) -> Any:
        key = f"{own} {how}"
        store.import_zarr(key, written_v2(numbers((45, 70)), chunks=own), **how)
        assert_same(store[key], numbers((45, 70)))
        return codec_of(store.arrays.open(key)).layout

    assert layout((20, 30)).chunks == (20, 30)
    # Smaller than is sensible.
    assert layout((2, 3)).chunks[1] == 70
    assert layout((20, 30), chunks=(5, 5)).chunks == (5, 5)
    assert layout((20, 30), shards=(10, 70)).shards == (10, 70)
    assert layout((20, 30), codecs=[LITTLE, GZIP]).codecs[1]["name"] == "gzip"


@pytest.mark.parametrize("fill_value", [np.nan, -0.0, 5, None])
def test_fill_values_of_zarr_v2_stay(store: TensorStore, fill_value: float | None) -> None:
    array = np.full((90, 70), 0 if fill_value is None else fill_value, "<f4")
    array[0, 0] = 3
    source = written_v2(array, fill_value=fill_value)
    tensor = store.import_zarr("a", source, shards=False, chunks=(20, 30))
    assert_stored(store, tensor, array)
    assert len(objects_of(store, "a")) == 1


@pytest.mark.parametrize("dtype", ["<M8[s]", "<m8[s]"])
@pytest.mark.parametrize("is_time", [True, False])
def test_fill_values_of_times_stay(store: TensorStore, dtype: str, is_time: bool) -> None:
    fill_value = np.array(86400 if is_time else "NaT", dtype)[()]
    array = np.full((45, 70), fill_value, dtype)
    array[0, 0] = np.array(5, dtype)
    assert_stored(store, store.import_zarr("a", written_v2(array, fill_value=fill_value)), array)


def test_dimensions_of_zarr_v2_are_among_its_attributes(store: TensorStore) -> None:
    attrs = {"_ARRAY_DIMENSIONS": ["time", "x"], "units": "K"}
    tensor = store.import_zarr("a", written_v2(numbers((45, 70)), attributes=attrs))
    assert (tensor.dims, dict(tensor.attrs)) == (("time", "x"), {"units": "K"})


@pytest.mark.parametrize("shape", [(), (0, 3), (7,)])
def test_zarr_v2_of_any_shape(store: TensorStore, shape: tuple[int, ...]) -> None:
    array = numbers(shape)
    source = written_v2(array, chunks=tuple(max(extent, 1) for extent in shape))
    assert_stored(store, store.import_zarr("a", source), array)


def test_other_codecs_are_encoded_anew_if_asked_for(store: TensorStore) -> None:
    array = numbers()
    source = written(array, sharding(LITTLE, GZIP))
    tensor = store.import_zarr("a", source, codecs=[LITTLE, ZSTD], chunks=(4, 6), shards=False)
    assert_stored(store, tensor, array)
    assert objects_of(store, "a") == objects_of_source(written(array, [LITTLE, ZSTD]))


def test_an_array_goes_to_the_database_too(store: TensorStore) -> None:
    for key, array in {"a": numbers((45, 70), ">f8"), "b": np.array(7, "<i4"), "c": numbers((0, 3))}.items():
        source = written_v2(array, chunks=tuple(max(extent, 1) for extent in array.shape))
        tensor = store.import_zarr(key, source, engine="database")
        assert tensor.engine == "database"
        assert_same(store[key], array.astype(array.dtype.newbyteorder("<")))


def test_blocks_are_rows_of_whole_chunks() -> None:
    array = numbers((300, 20_000))
    source = written(array, sharding(LITTLE, chunk_shape=[7, 1000]), chunks=(14, 20_000))
    blocks = list(blocks_of(source))
    assert [block.shape[0] for block in blocks] == [98, 98, 98, 6]
    assert_same(np.concatenate(blocks), array)
    assert list(blocks_of(written(numbers((0, 3)), [LITTLE]))) == []


# --- what is refused ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("codecs", "damage"),
    [
        (sharding(LITTLE, ZSTD), "changed"),
        (sharding(LITTLE, ZSTD), "cut"),
        (sharding(LITTLE, ZSTD), "empty"),
        (sharding(LITTLE, ZSTD, index_location="start"), "cut"),
        ([LITTLE], "cut"),
        ([LITTLE, CRC32C], "cut"),
        ([LITTLE, CRC32C], "changed"),
        ([LITTLE, ZSTD, CRC32C], "changed"),
        ([LITTLE, ZSTD], "empty"),
        ([LITTLE, ZSTD], "cut"),
        ([LITTLE, BLOSC], "cut"),
        ([LITTLE, GZIP], "empty"),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(codec["name"] for codec in value),
)
def test_a_damaged_object_is_refused(
    store: TensorStore, database: Database, tmp_path: Path, codecs: list[Any], damage: str
) -> None:
    source = written(numbers(), codecs, where=LocalStore(tmp_path), path="deep")
    place = tmp_path / "deep/c/1/1"
    content = bytearray(place.read_bytes())
    content[-6] ^= 1
    place.write_bytes({"changed": bytes(content), "cut": content[:-1], "empty": b""}[damage])
    said = r"deep/c/1/1' is damaged: .*Nothing was stored"
    with nothing_stored(store, database), pytest.raises(CorruptTensorError, match=said):
        store.import_zarr("a", source)


def skippable_frame(content: bytes) -> bytes:
    return bytes.fromhex("502a4d18") + len(content).to_bytes(4, "little") + content


def zstd(content: Any, checksum: bool = False) -> bytes:
    return bytes(Zstd(level=1, checksum=checksum).encode(content))


NOISE = np.random.default_rng(0).bytes(300_000)


@pytest.mark.parametrize(
    ("codec", "data"),
    [
        (ZSTD, zstd(b"x" * 100)),
        (ZSTD, zstd(bytes(1_000_000))),
        (ZSTD, zstd(NOISE)),
        (ZSTD, zstd(NOISE, checksum=True)),
        (ZSTD, zstd(np.arange(100_000, dtype="<i4"), checksum=True)),
        (ZSTD, zstd(b"")),
        (ZSTD, skippable_frame(b"by somebody") + zstd(NOISE) + skippable_frame(b"") + zstd(b"abc")),
        # Its content's size is not said, and its one block is not compressed.
        (ZSTD, bytes.fromhex("28b52ffd0058190000616263")),
        (BLOSC, bytes(Blosc(cname="lz4", shuffle=Blosc.SHUFFLE).encode(np.arange(1000, dtype="<i4")))),
        (BLOSC, bytes(Blosc(cname="zstd").encode(NOISE))),
        (CRC32C, NOISE + crc32c(NOISE)),
        (CRC32C, crc32c(b"")),
        (GZIP, b"anything"),
    ],
)  # fmt: skip
def test_what_is_whole_is_known_by_its_bytes(codec: Any, data: bytes) -> None:
    layout = choose_layout((100,), np.dtype("<i4"), shards=False, codecs=[LITTLE, ZSTD])
    layout = replace(layout, codecs=(LITTLE, codec))
    check_encoded_chunk(memoryview(data), layout)
    if codec is GZIP:
        return
    ends = {
        at for at in range(1, len(data)) if data.startswith((b"\x28\xb5\x2f\xfd", b"\x50\x2a\x4d\x18"), at)
    }
    for length in {*range(0, len(data), max(len(data) // 50, 1)), *range(len(data) - 10, len(data))} - ends:
        if length >= 0:
            with pytest.raises(CorruptChunkError):
                check_encoded_chunk(memoryview(data[:length]), layout)
    with pytest.raises(CorruptChunkError):
        check_encoded_chunk(memoryview(data + b"x"), layout)


@given(st.binary(max_size=60))
def test_any_bytes_are_whole_or_not(data: bytes) -> None:
    layout = choose_layout((100,), np.dtype("<i4"), shards=False, codecs=[LITTLE, ZSTD])
    for content in (data, zstd(b"abc") + data, zstd(b"abc")[:4] + data):
        with contextlib.suppress(CorruptChunkError):
            check_encoded_chunk(memoryview(content), layout)


def test_a_damaged_object_of_zarr_v2_is_refused(
    store: TensorStore, database: Database, tmp_path: Path
) -> None:
    source = written_v2(numbers((45, 70)), store=LocalStore(tmp_path))
    place = tmp_path / "2.1"
    place.write_bytes(place.read_bytes()[:-3])
    said = r"elements \[40:45, 30:60\] of '.*' cannot be read .*Nothing was stored"
    with nothing_stored(store, database), pytest.raises(CorruptTensorError, match=said):
        store.import_zarr("a", source, chunks=(20, 30), shards=False)


def test_an_object_that_cannot_be_read_is_refused(
    store: TensorStore, database: Database, tmp_path: Path
) -> None:
    source = written(numbers(), sharding(LITTLE, ZSTD), where=LocalStore(tmp_path))
    place = tmp_path / "c/1/1"
    place.unlink()
    place.symlink_to(place)
    said = r"c/1/1' cannot be read \(OSError: .*Nothing was stored"
    with nothing_stored(store, database), pytest.raises(InvalidInputError, match=said):
        store.import_zarr("a", source)


@pytest.mark.parametrize("source", ["nothing.zarr", 5, {"a": b"b"}, None, "folder", "file"])
def test_what_is_no_zarr_is_refused(store: TensorStore, tmp_path: Path, source: Any) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_bytes(b"x")
    given = tmp_path / source if isinstance(source, str) else source
    with pytest.raises(InvalidInputError, match="is no array of Zarr that can be opened"):
        store.import_zarr("a", given)
    assert list(store) == []


def test_a_group_is_refused(store: TensorStore, tmp_path: Path) -> None:
    group = zarr.create_group(LocalStore(tmp_path))
    with pytest.raises(InvalidInputError, match=r"is a group of Zarr: .*it has none"):
        store.import_zarr("a", group)
    for name in ("t", "u"):
        group.create_array(name, shape=(3,), dtype="f4")
    with pytest.raises(InvalidInputError, match=r"is a group of Zarr: .*it has '[tu]', '[tu]'"):
        store.import_zarr("a", tmp_path)


@UNSTABLE
@pytest.mark.parametrize("dtype", [np.dtypes.StringDType(), "O"], ids=["text", "objects"])  # type: ignore[attr-defined, unused-ignore]
@pytest.mark.parametrize("zarr_format", [2, 3])
def test_dtypes_that_cannot_be_stored_are_refused(store: TensorStore, dtype: Any, zarr_format: Any) -> None:
    text = zarr.dtype.VariableLengthUTF8() if dtype != "O" else zarr.dtype.VariableLengthBytes()
    source = zarr.create_array(MemoryStore({}), shape=(3,), dtype=text, zarr_format=zarr_format)
    with pytest.raises(DTypeError):
        store.import_zarr("a", source)
    assert list(store) == []


@UNSTABLE
@pytest.mark.parametrize("engine", ["storage", "database"])
@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize(
    "dtype", ["<U5", "S3", "V8", [("x", "<f4"), ("y", "<U2"), ("z", [("a", "<i2")])]], ids=str
)
def test_text_and_records_are_taken_in(store: TensorStore, dtype: Any, zarr_format: Any, engine: Any) -> None:
    array = array_of(np.dtype(dtype), (45, 7))
    source = zarr.create_array(
        MemoryStore({}), shape=array.shape, chunks=(10, 7), dtype=array.dtype, zarr_format=zarr_format
    )
    source[...] = array
    taken = store.import_zarr("a", source, engine=engine)
    assert (layout_of(source) is None) == (zarr_format == 2)
    assert_same(taken[...], array)
    taken[3] = array[0]
    assert_same(taken[3:5], np.stack([array[0], array[4]]))


# --- at work ------------------------------------------------------------------------------------------


class Watched(MemoryStore):
    """A store that counts how many objects of its have been read."""

    def __init__(self, objects: Any) -> None:
        super().__init__(objects, read_only=True)
        self.read = 0

    async def get(self, key: str, prototype: Any = None, byte_range: Any = None) -> Any:
        self.read += key.startswith("c/")
        return await super().get(key, prototype, byte_range)


def test_no_more_is_in_memory_than_is_under_way(project: Project, user: User) -> None:
    array = np.random.default_rng(0).random((32, 64, 1024), "<f4")
    objects: Any = {}
    written(array, [LITTLE], chunks=(1, 64, 1024), where=MemoryStore(objects))
    watched = Watched(objects)
    ahead = []

    def notice(exchange: Exchange) -> bool:
        if (
            exchange.method == "POST"
            and "/object/tensors/" in exchange.target
            and exchange.received_bytes == 0
        ):
            ahead.append(watched.read - answered(proxy.exchanges))
        return False

    def answered(exchanges: list[Exchange]) -> int:
        return sum(1 for e in exchanges if "/object/tensors/" in e.target and e.received_bytes)

    proxy = Proxy(project.url, notice)
    session = Project(proxy.url, project.key).session(user)
    try:
        store = session()
        store.import_zarr("a", watched)
        assert watched.read == answered(proxy.exchanges) == 32
        assert 1 <= max(ahead) <= session.transfer.parallel + 1
        assert_same(store["a", 17], array[17])
    finally:
        session.logout()
        proxy.close()


def test_zarr_is_loaded_when_it_is_needed() -> None:
    script = "import sys, tensorage.backend.zarr.zarr_engine; print('zarr' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False"]
