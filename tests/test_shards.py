"""Shards in and out of bytes, next to zarr itself, which reads what we write and writes what we read. No backend.

A dictionary of objects stands where Storage will: what is tested is that the bytes are right.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import numpy.typing as npt
import pytest
import zarr
from hypothesis import example, given, settings
from numcodecs.zstd import Zstd
from zarr.buffer.cpu import Buffer
from zarr.storage import LocalStore, MemoryStore

from tensorage import InvalidInputError
from tensorage.backend.zarr.codec import (
    EMPTY,
    EncodedShard,
    ShardCodec,
    choose_layout,
    parse_index,
    pipeline_of,
    plain_index,
)
from tensorage.backend.zarr.codec_pipeline import PlainPipeline, ZarrPipeline
from tensorage.backend.zarr.compressors import CorruptChunkError, frame_content_size, joined_room
from tensorage.backend.zarr.layout import Layout
from tensorage.model.zarr_metadata import array_metadata

Array = npt.NDArray[Any]

#: The time of an example says nothing here.
UNTIMED = settings(deadline=None)

#: zarr says so of each codec that is numcodecs' own.
OWN_CODECS = pytest.mark.filterwarnings("ignore:Numcodecs codecs are not in the Zarr version 3 specification")

NUMBERS = ["?", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f2", "f4", "f8", "c8", "c16"]
TIMES = ["M8", "M8[s]", "M8[25us]", "m8", "m8[D]", "m8[10ns]"]
DTYPES = NUMBERS + TIMES

LITTLE = {"name": "bytes", "configuration": {"endian": "little"}}
BIG = {"name": "bytes", "configuration": {"endian": "big"}}
ZSTD = {"name": "zstd", "configuration": {"level": 1, "checksum": True}}
CRC32C = {"name": "crc32c"}
GZIP = {"name": "gzip", "configuration": {"level": 1}}


def blosc(**configuration: Any) -> dict[str, Any]:
    usual = {"cname": "lz4", "clevel": 5, "shuffle": "bitshuffle", "typesize": 4, "blocksize": 0}
    return {"name": "blosc", "configuration": usual | configuration}


BLOSC = blosc()
TRANSPOSE = {"name": "transpose", "configuration": {"order": [1, 0]}}
DELTA = {"name": "numcodecs.delta", "configuration": {"dtype": "<i4"}}


def nested(index_location: str = "end") -> dict[str, Any]:
    """Chunks that are shards in turn."""
    return {
        "name": "sharding_indexed",
        "configuration": {
            "chunk_shape": [2, 3],
            "codecs": [LITTLE, ZSTD],
            "index_codecs": [LITTLE, CRC32C],
            "index_location": index_location,
        },
    }


def elements_of(dtype: str, shape: tuple[int, ...], seed: int = 0) -> Array:
    """Elements of any bytes, so that there are NaN of all kinds, not-a-time and -0.0 among them."""
    stored = np.dtype(dtype).newbyteorder("<")
    count = int(np.prod(shape))
    rng = np.random.default_rng(seed)
    if stored.kind == "b":
        return rng.integers(0, 2, count).astype(stored).reshape(shape)
    array = np.frombuffer(rng.bytes(count * stored.itemsize), stored).copy()
    array[: count // 3] = np.zeros(1, "u1").view("?").astype(stored)[0]
    return array.reshape(shape)


def shards_of(array: Array, codec: ShardCodec) -> Iterator[tuple[int, EncodedShard]]:
    for number in range(codec.layout.shard_count):
        yield number, codec.encode(array[codec.layout.region(number)])


def objects_of(array: Array, layout: Layout) -> dict[str, bytes]:
    """An array as the objects that we make of it."""
    objects = {"zarr.json": json.dumps(layout.document({}, None)).encode()}
    for number, shard in shards_of(array, ShardCodec(layout)):
        blob = b"".join(shard.parts)
        assert len(blob) == shard.nbytes
        if shard.parts:
            objects[layout.key_of(number)] = blob
    return objects


def store_of(objects: Mapping[str, bytes]) -> MemoryStore:
    return MemoryStore({key: Buffer.from_bytes(blob) for key, blob in objects.items()})


def read(objects: Mapping[str, bytes], layout: Layout) -> Array:
    """The array that objects hold, by our codec, chunk by chunk."""
    codec = ShardCodec(layout)
    array = np.full(layout.shape, 1, layout.dtype)
    for number in range(layout.shard_count):
        blob = objects.get(layout.key_of(number), b"")
        index = codec.index_of(blob) if blob else b""
        shard = np.empty(layout.shards, layout.dtype)
        positions = product(*map(range, layout.chunks_per_shard))
        for coords, (offset, nbytes) in zip(positions, codec.ranges(index, len(blob)).tolist(), strict=True):
            where = tuple(
                slice(coord * chunk, (coord + 1) * chunk)
                for coord, chunk in zip(coords, layout.chunks, strict=True)
            )
            if nbytes == EMPTY:
                shard[where] = codec.fill_value
            else:
                shard[where] = codec.decode(memoryview(blob)[offset : offset + nbytes])
        region = layout.region(number)
        array[region] = shard[tuple(slice(part.stop - part.start) for part in region)]
    return array


def written_by_zarr(array: Array, codecs: list[Any], **options: Any) -> tuple[dict[str, bytes], Layout]:
    """An array as the objects that zarr makes of it, and the layout that its metadata tell of.

    Parameters
    ----------
    codecs
        Codecs of an object.
    options
        Options of ``zarr.create``.
    """
    kept: dict[str, Any] = {}
    options = {"chunks": (4, 6), **options}
    stored = zarr.create(
        array.shape, dtype=array.dtype, codecs=codecs, zarr_format=3, store=MemoryStore(kept), **options
    )
    stored[...] = array
    objects = {key: buffer.to_bytes() for key, buffer in kept.items()}
    return objects, Layout.parse(json.loads(objects["zarr.json"]), array.shape, array.dtype)


def sharding(codecs: list[Any], **configuration: Any) -> list[Any]:
    """Shards of chunks of (2, 3) elements."""
    inner = {
        "chunk_shape": [2, 3],
        "codecs": codecs,
        "index_codecs": [LITTLE, CRC32C],
        "index_location": "end",
    }
    return [{"name": "sharding_indexed", "configuration": {**inner, **configuration}}]


def assert_same_bytes(array: Array, expected: Array) -> None:
    assert (array.shape, array.dtype) == (expected.shape, expected.dtype)
    assert array.tobytes() == expected.tobytes()


# --- what we write, zarr reads ------------------------------------------------------------------------


@pytest.mark.parametrize("is_sharded", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
def test_zarr_reads_every_dtype(dtype: str, is_sharded: bool) -> None:
    array = elements_of(dtype, (11, 7))
    layout = Layout.choose(array.shape, array.dtype, chunks=(2, 3), shards=(4, 6) if is_sharded else False)
    objects = objects_of(array, layout)
    assert_same_bytes(zarr.open_array(store_of(objects), mode="r")[...], array)
    assert_same_bytes(read(objects, layout), array)


@pytest.mark.parametrize("shape", [(), (1,), (5,), (0,), (0, 4), (4, 0), (3, 1, 2, 1, 5)])
def test_zarr_reads_arrays_of_default_layout(shape: tuple[int, ...]) -> None:
    array = elements_of("<i4", shape, seed=1)
    layout = Layout.choose(shape, array.dtype)
    objects = objects_of(array, layout)
    assert_same_bytes(np.asarray(zarr.open_array(store_of(objects), mode="r")[...]), array)
    assert_same_bytes(read(objects, layout), array)


@UNTIMED
@given(st.data())
def test_zarr_reads_any_layout(data: st.DataObject) -> None:
    chunks = data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=3))
    shards = [chunk * data.draw(st.integers(1, 3)) for chunk in chunks]
    shape = [data.draw(st.integers(0, 3 * shard)) for shard in shards]
    layout = Layout.choose(shape, np.dtype("<u2"), chunks=chunks, shards=shards)
    array = elements_of("<u2", layout.shape, seed=data.draw(st.integers(0, 5)))
    objects = objects_of(array, layout)
    assert_same_bytes(zarr.open_array(store_of(objects), mode="r")[...], array)
    assert_same_bytes(read(objects, layout), array)


@pytest.mark.parametrize("shards", [(8, 6), False])
def test_zarr_goes_on_where_we_stopped(shards: Any, tmp_path: Path) -> None:
    array = np.arange(20 * 7, dtype="<f8").reshape(20, 7)
    layout = Layout.choose(array.shape, array.dtype, chunks=(2, 3), shards=shards)
    for key, blob in objects_of(array, layout).items():
        (tmp_path / key).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / key).write_bytes(blob)
    stored = zarr.open_array(LocalStore(tmp_path), mode="r+")
    stored[5, 1:4] = array[5, 1:4] = -1.0
    blobs = {
        str(path.relative_to(tmp_path)): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()
    }
    assert_same_bytes(read(blobs, layout), array)


@OWN_CODECS
@pytest.mark.parametrize(
    "codecs",
    [[LITTLE, GZIP], [LITTLE, BLOSC], [BIG, ZSTD], [TRANSPOSE, LITTLE], [DELTA, LITTLE, ZSTD]],
    ids=lambda codecs: "-".join(codec["name"] for codec in codecs),
)
@pytest.mark.parametrize("shards", [(8, 12), False])
def test_zarr_reads_other_codecs(codecs: list[Any], shards: Any) -> None:
    array = elements_of("<i4", (13, 8))
    layout = choose_layout(array.shape, array.dtype, chunks=(4, 6), shards=shards, codecs=codecs)
    objects = objects_of(array, layout)
    assert_same_bytes(zarr.open_array(store_of(objects), mode="r")[...], array)
    assert_same_bytes(read(objects, layout), array)


@pytest.mark.parametrize("index_location", ["start", "end"])
@pytest.mark.parametrize("shards", [(8, 12), False])
def test_chunks_may_be_shards_in_turn(index_location: str, shards: Any) -> None:
    array = elements_of("<i4", (13, 8))
    codecs = [nested(index_location)]
    layout = choose_layout(array.shape, array.dtype, chunks=(4, 6), shards=shards, codecs=codecs)
    objects = objects_of(array, layout)
    assert_same_bytes(read(objects, layout), array)
    if not layout.is_sharded:
        # Not every zarr that we work with reads shards within shards.
        assert_same_bytes(zarr.open_array(store_of(objects), mode="r")[...], array)


# --- what zarr writes, we read ------------------------------------------------------------------------


@OWN_CODECS
@pytest.mark.parametrize(
    "codecs",
    [
        [LITTLE],
        [LITTLE, ZSTD],
        [LITTLE, CRC32C],
        [LITTLE, ZSTD, CRC32C],
        [LITTLE, CRC32C, ZSTD],
        [BIG, ZSTD],
        [LITTLE, GZIP],
        [LITTLE, BLOSC, CRC32C],
        [TRANSPOSE, LITTLE, ZSTD],
        [DELTA, LITTLE, {"name": "numcodecs.zlib", "configuration": {"level": 1}}],
    ],
    ids=lambda codecs: "-".join(codec["name"] for codec in codecs),
)
@pytest.mark.parametrize("write_empty_chunks", [True, False])
@pytest.mark.parametrize("index", [{}, {"index_location": "start"}, None], ids=["end", "start", "unsharded"])
def test_arrays_of_zarr_are_read(
    codecs: list[Any], write_empty_chunks: bool, index: dict[str, Any] | None
) -> None:
    array = elements_of("<i4", (13, 8))
    array[5:, :6] = 7
    objects, layout = written_by_zarr(
        array,
        codecs if index is None else sharding(codecs, **index),
        fill_value=7,
        config={"write_empty_chunks": write_empty_chunks},
    )
    assert layout.is_sharded == (index is not None)
    # The lower left corner is all fill value.
    assert (layout.key_of(layout.shard_count - 2) in objects) == write_empty_chunks
    assert_same_bytes(read(objects, layout), array)
    # The objects are written again, as zarr had them.
    assert_same_bytes(zarr.open_array(store_of(objects_of(array, layout)), mode="r")[...], array)


@pytest.mark.parametrize("dtype", NUMBERS + TIMES[1:])
def test_every_dtype_of_zarr_is_read(dtype: str) -> None:
    # zarr doesn't read what it writes of times without a unit.
    array = elements_of(dtype, (9, 7))
    as_bytes = {"name": "bytes"} if array.dtype.itemsize == 1 else LITTLE
    objects, layout = written_by_zarr(array, sharding([as_bytes, ZSTD]))
    assert_same_bytes(read(objects, layout), array)


@pytest.mark.parametrize(
    ("dtype", "fill_value"),
    [
        ("<f4", np.nan),
        ("<f8", -np.inf),
        ("<f8", -0.0),
        ("<c8", complex(np.nan, -0.0)),
        ("<u8", 2**64 - 1),
        ("?", True),
        ("<M8[s]", np.datetime64("2020-02-02", "s")),
        ("<m8[s]", np.timedelta64("NaT", "s")),
    ],
    ids=repr,
)
def test_fill_values_of_zarr_are_read(dtype: str, fill_value: Any) -> None:
    array = np.full((9, 7), fill_value, dtype)
    array[0, 0] = np.zeros((), "i8").astype(dtype)
    as_bytes = {"name": "bytes"} if array.dtype.itemsize == 1 else LITTLE
    objects, layout = written_by_zarr(array, sharding([as_bytes, ZSTD]), fill_value=fill_value)
    assert len(objects) == 2
    assert_same_bytes(read(objects, layout), array)
    assert sorted(objects_of(array, layout)) == sorted(objects)


def test_fill_values_by_their_bits_are_read() -> None:
    kept = {**Layout.choose((9,), np.dtype("<f4")).metadata(), "fill_value": "0x7fe00201"}
    codec = ShardCodec(Layout.parse(kept, (9,), np.dtype("<f4")))
    assert codec.fill_value.tobytes() == b"\x01\x02\xe0\x7f"
    assert codec.encode(np.full(9, codec.fill_value)).nbytes == 0
    assert codec.encode(np.full(9, np.nan, "<f4")).nbytes > 0


@pytest.mark.parametrize("index_codecs", [[LITTLE], [BIG, CRC32C]], ids=str)
@pytest.mark.parametrize("index_location", ["start", "end"])
def test_other_codecs_of_the_index(index_codecs: list[Any], index_location: str) -> None:
    array = elements_of("<f4", (9, 7))
    codecs = sharding([LITTLE, ZSTD], index_codecs=index_codecs, index_location=index_location)
    objects, layout = written_by_zarr(array, codecs)
    assert_same_bytes(read(objects, layout), array)
    assert_same_bytes(zarr.open_array(store_of(objects_of(array, layout)), mode="r")[...], array)


def test_a_shard_without_dimensions() -> None:
    array = np.array(7, "<f4")
    kept = {**Layout.choose((), array.dtype).metadata(), "codecs": sharding([LITTLE, ZSTD], chunk_shape=[])}
    layout = Layout.parse(kept, (), array.dtype)
    assert layout.is_sharded
    objects = objects_of(array, layout)
    assert_same_bytes(read(objects, layout), array)
    # zarr doesn't write such a shard, and reads it.
    assert_same_bytes(np.asarray(zarr.open_array(store_of(objects), mode="r")[()]), array)


# --- both ways through the codecs ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "codecs",
    [
        [LITTLE],
        [LITTLE, ZSTD],
        [LITTLE, CRC32C],
        [LITTLE, ZSTD, CRC32C],
        [LITTLE, BLOSC],
        [LITTLE, BLOSC, CRC32C],
    ],
    ids=lambda codecs: "-".join(codec["name"] for codec in codecs),
)
@pytest.mark.parametrize("dtype", DTYPES)
def test_both_ways_give_the_same_bytes(codecs: list[Any], dtype: str) -> None:
    chunk = elements_of(dtype, (6, 50))
    of_chunk = array_metadata(chunk.dtype, chunk.shape, codecs, Layout.choose((), chunk.dtype).fill_value)
    plain, by_zarr = PlainPipeline.parse(codecs, chunk.dtype), ZarrPipeline(of_chunk, chunk.dtype)
    assert plain is not None
    assert type(pipeline_of(of_chunk, chunk.dtype)) is PlainPipeline
    encoded = b"".join(plain.encode(chunk))
    assert encoded == b"".join(by_zarr.encode(chunk))
    for chain in (plain, by_zarr):
        out = np.empty_like(chunk)
        chain.decode(memoryview(encoded), out)
        assert_same_bytes(out, chunk)


@pytest.mark.parametrize(
    "codecs",
    [
        [BIG, ZSTD],
        [{"name": "bytes"}, ZSTD],
        [LITTLE, GZIP],
        [LITTLE, ZSTD, ZSTD],
        [LITTLE, CRC32C, ZSTD],
        [TRANSPOSE, LITTLE, ZSTD],
        [LITTLE, {"name": "zstd", "configuration": {"level": 23}}],
        [LITTLE, {"name": "zstd", "configuration": {"level": 1, "checksum": 1}}],
        [LITTLE, blosc(clevel=10)],
        [LITTLE, blosc(clevel=True)],
        [LITTLE, blosc(shuffle="auto")],
        [LITTLE, blosc(cname="rot13")],
        [LITTLE, blosc(typesize=0)],
        [LITTLE, blosc(typesize=256)],
        [LITTLE, blosc(blocksize=-1)],
        [LITTLE, {"name": "blosc"}],
        [],
    ],
    ids=str,
)
def test_the_rest_is_left_to_zarr(codecs: list[Any]) -> None:
    assert PlainPipeline.parse(codecs, np.dtype("<f4")) is None


def test_codecs_may_stand_by_their_names_alone() -> None:
    plain = PlainPipeline.parse(["bytes", "crc32c"], np.dtype("u1"))
    assert plain == PlainPipeline(None, True)


def test_codecs_that_zarr_lacks_are_named() -> None:
    kept = Layout.choose((3, 4), np.dtype("<f4")).metadata()
    kept["codecs"][0]["configuration"]["codecs"] = [LITTLE, {"name": "rot13"}]
    with pytest.raises(InvalidInputError, match="rot13"):
        ShardCodec(Layout.parse(kept, (3, 4), np.dtype("<f4")))


def test_settings_of_zarr_change_nothing() -> None:
    array = elements_of("<i4", (4, 6))
    layout = choose_layout(array.shape, array.dtype, chunks=(4, 6), shards=(8, 6), codecs=[LITTLE, GZIP])
    with zarr.config.set({"array.order": "F", "array.write_empty_chunks": False}):
        codec = ShardCodec(layout)
        shard = codec.encode(array)
        (offset, nbytes), _ = codec.ranges(shard.index, shard.nbytes).tolist()
        assert_same_bytes(codec.decode(b"".join(shard.parts)[offset : offset + nbytes]), array)


@pytest.mark.parametrize("codecs", [None, [LITTLE, GZIP]], ids=["plain", "by zarr"])
def test_many_threads_at_once(codecs: list[Any] | None) -> None:
    layout = choose_layout((64, 50), np.dtype("<i4"), chunks=(2, 50), shards=(8, 50), codecs=codecs)
    codec = ShardCodec(layout)
    arrays = [elements_of("<i4", (8, 50), seed) for seed in range(24)]

    def there_and_back(array: Array) -> Array:
        shard = codec.encode(array)
        blob = b"".join(shard.parts)
        ranges = codec.ranges(shard.index, shard.nbytes).tolist()
        parts = [
            np.zeros(layout.chunks, layout.dtype) if nbytes == EMPTY else codec.decode(blob[at : at + nbytes])
            for at, nbytes in ranges
        ]
        return np.concatenate(parts)

    with ThreadPoolExecutor(8) as pool:
        for array, result in zip(arrays, pool.map(there_and_back, arrays), strict=True):
            assert_same_bytes(result, array)


def test_codecs_of_zarr_work_within_a_running_event_loop() -> None:
    codec = ShardCodec(choose_layout((4, 6), np.dtype("<i4"), shards=False, codecs=[LITTLE, GZIP]))
    array = elements_of("<i4", codec.layout.chunks)

    async def there_and_back() -> Array:
        return codec.decode(b"".join(codec.encode(array).parts))

    assert_same_bytes(asyncio.run(there_and_back()), array)


def test_default_codecs_need_no_zarr() -> None:
    script = (
        "import sys, numpy as np\n"
        "from tensorage.backend.zarr.codec import ShardCodec\n"
        "from tensorage.backend.zarr.layout import Layout\n"
        "codec = ShardCodec(Layout.choose((3, 4), np.dtype('<f4')))\n"
        "shard = codec.encode(np.ones((3, 4), 'f4'))\n"
        "length = codec.ranges(shard.index, shard.nbytes)[0, 1]\n"
        "assert codec.decode(b''.join(shard.parts)[:length])[:3].all()\n"
        "print('zarr' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False"]


# --- what is given and taken --------------------------------------------------------------------------

LAYOUT = Layout.choose((100, 6), np.dtype("<f4"), chunks=(4, 3), shards=(8, 6))


def test_any_strides_and_byte_order_are_encoded() -> None:
    array = elements_of("<f4", (8, 6))
    expected = ShardCodec(LAYOUT).encode(array)
    wide = np.zeros((16, 12), "<f4")
    wide[::2, ::2] = array
    read_only = array.copy()
    read_only.flags.writeable = False
    for given_array in (
        array.astype(">f4"),
        np.asfortranarray(array),
        wide[::2, ::2],
        array[::-1].copy()[::-1],
        read_only,
    ):
        encoded = ShardCodec(LAYOUT).encode(given_array)
        assert (b"".join(encoded.parts), encoded.index) == (b"".join(expected.parts), expected.index)


def test_what_is_behind_the_end_is_fill_value() -> None:
    array = np.ones((5, 4), "<f4")
    layout = Layout.choose((5, 4), array.dtype, chunks=(4, 3), shards=(12, 6))
    codec = ShardCodec(layout)
    shard = codec.encode(array)
    blob, ranges = b"".join(shard.parts), codec.ranges(shard.index, shard.nbytes).tolist()
    # Two of three rows of chunks reach into the array.
    assert [nbytes == EMPTY for _, nbytes in ranges] == [False] * 4 + [True] * 2
    offset, nbytes = ranges[3]
    expected = np.zeros((4, 3), "<f4")
    expected[0, 0] = 1
    assert_same_bytes(codec.decode(blob[offset : offset + nbytes]), expected)


@pytest.mark.parametrize("is_sharded", [True, False])
def test_nothing_but_fill_value_makes_no_object(is_sharded: bool) -> None:
    layout = Layout.choose((100, 6), np.dtype("<f4"), chunks=(4, 3), shards=(8, 6) if is_sharded else False)
    codec = ShardCodec(layout)
    shard = codec.encode(np.zeros(layout.shards, "<f4"))
    assert (shard.parts, shard.nbytes) == ([], 0)
    assert len(shard.index) == (2 * 4 if is_sharded else 0)
    assert (codec.ranges(shard.index, 0) == EMPTY).all()
    assert (codec.ranges(b"", 0) == EMPTY).all()


@pytest.mark.parametrize("codecs", [None, [LITTLE, GZIP]], ids=["plain", "by zarr"])
@pytest.mark.parametrize("shards", [(4, 3), False])
def test_negative_zero_is_stored(codecs: list[Any] | None, shards: Any) -> None:
    layout = choose_layout((4, 3), np.dtype("<f4"), chunks=(4, 3), shards=shards, codecs=codecs)
    array = np.full((4, 3), -0.0, "<f4")
    objects = objects_of(array, layout)
    assert "c/0/0" in objects
    assert_same_bytes(read(objects, layout), array)


@pytest.mark.parametrize("dtype", ["u1", "<i2", "<f4", "<c16"])
@pytest.mark.parametrize("at", [0, 1, 500, 1498, 1499])
def test_one_element_keeps_a_chunk(dtype: str, at: int) -> None:
    layout = Layout.choose((1500,), np.dtype(dtype), chunks=(1500,), shards=(1500,))
    array = np.zeros(1500, dtype)
    array[at] = 1
    assert ShardCodec(layout).encode(array).nbytes
    assert_same_bytes(read(objects_of(array, layout), layout), array)


def test_chunks_are_decoded_into_place() -> None:
    codec = ShardCodec(LAYOUT)
    array = elements_of("<f4", (8, 6))
    shard = codec.encode(array)
    blob = b"".join(shard.parts)
    buffer = np.empty((4, 4, 3), "<f4")
    for position, (offset, nbytes) in enumerate(codec.ranges(shard.index, shard.nbytes).tolist()):
        for data in (blob, bytearray(blob), memoryview(blob)):
            buffer[position] = 1
            if nbytes == EMPTY:
                buffer[position] = codec.fill_value
                continue
            out = codec.decode(data[offset : offset + nbytes], buffer[position])
            assert np.shares_memory(out, buffer)
    assert_same_bytes(buffer.reshape(2, 2, 4, 3).swapaxes(1, 2).reshape(8, 6), array)


@pytest.mark.parametrize(
    "out",
    [
        np.empty((4, 4), "<f4"),
        np.empty((4, 3), "<f8"),
        np.empty((4, 3), ">f4"),
        np.empty((4, 6), "<f4")[:, ::2],
        np.frombuffer(bytes(48), "<f4").reshape(4, 3),
    ],
    ids=["shape", "dtype", "byte order", "strides", "read-only"],
)
def test_out_has_to_fit(out: Array) -> None:
    codec = ShardCodec(LAYOUT)
    with pytest.raises(ValueError, match=r"out has to be a writable C-contiguous array of \(4, 3\) float32"):
        codec.decode(b"".join(codec.encode(np.ones((4, 3), "<f4")).parts), out)


@pytest.mark.parametrize("elements", [np.ones((9, 6), "<f4"), np.ones(8, "<f4"), np.ones((8, 6))], ids=repr)
def test_elements_have_to_fit(elements: Array) -> None:
    with pytest.raises(ValueError, match=r"a shard holds at most \(8, 6\) elements of float32"):
        ShardCodec(LAYOUT).encode(elements)


# --- damage -------------------------------------------------------------------------------------------


def damaged(blob: bytes, at: int, bit: int) -> bytes:
    octets = bytearray(blob)
    octets[at] ^= 1 << bit
    return bytes(octets)


def assert_never_wrong(codec: ShardCodec, data: bytes, expected: Array) -> bool:
    """True if data is refused. Otherwise it has to give what it gave before: some bits mean nothing."""
    try:
        decoded = codec.decode(data)
    except CorruptChunkError:
        return True
    assert_same_bytes(decoded, expected)
    return False


@OWN_CODECS
@pytest.mark.parametrize(
    "codecs",
    [
        None,
        [LITTLE, CRC32C],
        [LITTLE, ZSTD, CRC32C],
        [LITTLE, GZIP],
        [LITTLE, BLOSC, CRC32C],
        [TRANSPOSE, LITTLE, ZSTD],
        [nested()],
        [nested("start")],
    ],
    ids=lambda codecs: "default" if codecs is None else "-".join(codec["name"] for codec in codecs),
)
def test_a_damaged_chunk_is_refused(codecs: list[Any] | None) -> None:
    layout = choose_layout((8, 6), np.dtype("<i4"), chunks=(8, 6), shards=(8, 6), codecs=codecs)
    codec = ShardCodec(layout)
    chunk = np.arange(48, dtype="<i4").reshape(8, 6) // 5
    chunk[5] = elements_of("<i4", (6,), seed=3)
    shard = codec.encode(chunk)
    (_, nbytes), *_ = codec.ranges(shard.index, shard.nbytes).tolist()
    data = b"".join(shard.parts)[:nbytes]
    assert_same_bytes(codec.decode(data), chunk)
    refused = [assert_never_wrong(codec, damaged(data, at, at % 8), chunk) for at in range(nbytes)]
    assert sum(refused) > 0.8 * nbytes
    for length in range(0, nbytes, 1 if codecs is None else 7):
        with pytest.raises(CorruptChunkError):
            codec.decode(data[:length])
    assert_never_wrong(codec, data + b"\0", chunk)
    assert_never_wrong(codec, bytes(nbytes), chunk)


@pytest.mark.parametrize("index_location", ["start", "end"])
def test_a_damaged_index_is_refused(index_location: str) -> None:
    objects, layout = written_by_zarr(
        elements_of("<i4", (4, 6)), sharding([LITTLE, ZSTD], index_location=index_location)
    )
    codec, blob = ShardCodec(layout), objects["c/0/0"]
    assert codec.index_nbytes == 4 * 16 + 4
    first = 0 if index_location == "start" else len(blob) - codec.index_nbytes
    for at in range(first, first + codec.index_nbytes):
        with pytest.raises(CorruptChunkError):
            codec.index_of(damaged(blob, at, at % 8))
    for length in (0, 1, codec.index_nbytes - 1):
        with pytest.raises(CorruptChunkError, match="no room for an index"):
            codec.index_of(blob[:length])
    with pytest.raises(CorruptChunkError):
        codec.index_of(blob[:-1])
    encoded = blob[: codec.index_nbytes] if index_location == "start" else blob[-codec.index_nbytes :]
    assert codec.decode_index(encoded) == codec.index_of(blob)


def index_with(*entries: tuple[int, int]) -> bytes:
    return np.array(entries, "<u8").tobytes()


def lengths_of(*lengths: int, dtype: str = "<u2") -> bytes:
    return np.array(lengths, dtype).tobytes()


@pytest.mark.parametrize(
    ("index", "said"),
    [
        (b"", "0 bytes are no index of 4 chunks"),
        (index_with((0, 5)) + b"0", "17 bytes are no index of 4 chunks"),
        (index_with(*[(0, 5)] * 5), "80 bytes are no index of 4 chunks"),
        (index_with((0, 5), (5, 5), (10, 5), (15, 5))[:-1], "63 bytes are no index of 4 chunks"),
        (lengths_of(5, 5, 0, 91), "outside of their object of 100 bytes"),
        (lengths_of(5, 5, 0, 2**32 - 1, dtype="<u4"), "outside of their object of 100 bytes"),
        (index_with((0, 5), (5, 5), (10, 5), (15, 86)), "outside of their object of 100 bytes"),
        (index_with((0, 5), (5, 5), (10, 5), (101, 5)), "outside"),
        (index_with((0, 5), (5, 5), (10, 5), (2**64 - 4, 5)), "outside"),
        (index_with((0, 5), (5, 5), (10, 5), (4, 2**64 - 2)), "outside"),
        (index_with((0, 5), (5, 5), (10, 5), (EMPTY, 5)), "neither empty nor has bytes"),
        (index_with((0, 5), (5, 5), (10, 5), (5, EMPTY)), "neither empty nor has bytes"),
        (index_with((0, 5), (5, 5), (10, 5), (15, 0)), "neither empty nor has bytes"),
    ],
)
def test_a_wrong_index_is_refused(index: bytes, said: str) -> None:
    with pytest.raises(CorruptChunkError, match=said):
        ShardCodec(LAYOUT).ranges(index, 100)


def test_an_index_names_no_chunks_of_an_object_that_is_not_there() -> None:
    with pytest.raises(CorruptChunkError, match="outside of their object of 0 bytes"):
        ShardCodec(LAYOUT).ranges(index_with((0, 5), (5, 5), (10, 5), (15, 5)), 0)


def test_an_array_without_shards_has_no_index() -> None:
    codec = ShardCodec(Layout.choose((100, 6), np.dtype("<f4"), shards=False))
    assert (codec.index_nbytes, codec.index_of(b"anything")) == (0, b"")
    assert codec.ranges(b"", 100).tolist() == [[0, 100]]
    with pytest.raises(CorruptChunkError, match="64 bytes are no index of 0 chunks"):
        codec.ranges(index_with((0, 5), (5, 5), (10, 5), (15, 5)), 100)


def test_an_index_is_parsed() -> None:
    assert parse_index(b"", 0).shape == (0, 2)
    assert parse_index(index_with((3, 5), (EMPTY, EMPTY)), 2).tolist() == [[3, 5], [EMPTY, EMPTY]]
    assert parse_index(lengths_of(3, 0, 5), 3).tolist() == [[0, 3], [EMPTY, EMPTY], [3, 5]]
    assert parse_index(lengths_of(3, 0, 5, dtype="<u4"), 3, 100)[:, 0].tolist() == [100, EMPTY, 103]


@UNTIMED
@given(st.lists(st.one_of(st.just(0), st.integers(1, 2**33)), min_size=1, max_size=20), st.integers(0, 100))
def test_an_index_comes_back_in_the_shortest_form(lengths: list[int], first_at: int) -> None:
    ends = first_at + np.cumsum(lengths, dtype="<u8")
    ranges = np.stack((ends - np.array(lengths, "<u8"), np.array(lengths, "<u8")), axis=1)
    ranges[np.array(lengths) == 0] = EMPTY
    index = plain_index(ranges, first_at)
    np.testing.assert_array_equal(parse_index(index, len(lengths), first_at), ranges)
    each = 2 if max(lengths) < 2**16 else 4 if max(lengths) < 2**32 else 16
    assert len(index) == each * len(lengths)
    # Chunks that lie apart need their offsets.
    if sum(length > 0 for length in lengths) > 1:
        apart = ranges.copy()
        apart[np.flatnonzero(lengths)[-1], 0] += np.uint64(1)
        assert len(plain_index(apart, first_at)) == 16 * len(lengths)
        np.testing.assert_array_equal(
            parse_index(plain_index(apart, first_at), len(lengths), first_at), apart
        )


# --- chunks that are encoded and decoded together -----------------------------------------------------


def pages_of(layout: Layout, array: Array) -> Array:
    """Decode an object as a reader does: pages of chunks, and chunks one by one where that is refused."""
    codec = ShardCodec(layout)
    shard = codec.encode(array)
    ranges = codec.ranges(shard.index, shard.nbytes).astype(np.int64)
    room = joined_room(len(ranges))
    data = np.frombuffer(bytearray(room) + b"".join(shard.parts), np.uint8)
    out = np.empty((len(ranges), *layout.chunks), layout.dtype)
    starts = ranges[:, 0] + room
    assert codec.decode_together(data, starts, starts + ranges[:, 1], out)
    return out.reshape(-1, *layout.chunks[1:])[: len(array)]


@pytest.mark.parametrize("dtype", ["<f4", "<f8", "<i4", "|u1", "<u2", "|b1", "<c8", "<M8[s]"])
@pytest.mark.parametrize("rows", [2, 7, 64])
def test_small_chunks_are_decoded_together(dtype: str, rows: int) -> None:
    array = np.random.default_rng(0).integers(1, 100, (640, 40)).astype(dtype)
    layout = Layout.choose(array.shape, array.dtype, chunks=(rows, 40), shards=(-(-640 // rows) * rows, 40))
    assert_same_bytes(pages_of(layout, array), array)
    # One by one, and by zarr, it is the same object.
    objects = objects_of(array, layout)
    assert_same_bytes(read(objects, layout), array)
    assert_same_bytes(zarr.open_array(store_of(objects), mode="r")[...], array)


@pytest.mark.parametrize("dtype", ["<f4", "|u1"])
def test_damage_of_chunks_that_are_decoded_together_is_noticed(dtype: str) -> None:
    array = np.random.default_rng(0).integers(1, 100, (64, 40)).astype(dtype)
    codec = ShardCodec(Layout.choose(array.shape, array.dtype, chunks=(4, 40), shards=(64, 40)))
    shard = codec.encode(array)
    ranges = codec.ranges(shard.index, shard.nbytes).astype(np.int64)
    room, blob = joined_room(len(ranges)), b"".join(shard.parts)
    starts, out = ranges[:, 0] + room, np.empty((16, 4, 40), dtype)
    for at in range(int(ranges[-1].sum())):
        data = np.frombuffer(bytearray(room) + damaged(blob, at, at % 8), np.uint8)
        assert not codec.decode_together(data, starts, starts + ranges[:, 1], out), at
    data = np.frombuffer(bytearray(room) + blob, np.uint8)
    # A chunk that is cut off, or one that has none of its bytes.
    for taken in (1, 5, int(ranges[:, 1].min())):
        ends = starts + ranges[:, 1]
        ends[3] -= taken
        assert not codec.decode_together(data, starts, ends, out)


def test_chunks_of_any_kind_among_others_are_stored_together() -> None:
    array = np.random.default_rng(0).random((100, 50), np.float32)
    array[8:12], array[20:40], array[41] = 0, 0, -0.0
    layout = Layout.choose(array.shape, array.dtype, chunks=(4, 50), shards=(100, 50))
    shard = ShardCodec(layout).encode(array[:98])
    assert len(shard.index) == 2 * 25
    lengths = np.frombuffer(shard.index, "<u2")
    assert np.flatnonzero(lengths == 0).tolist() == [2, 5, 6, 7, 8, 9]
    objects = objects_of(array[:98], replace(layout, shape=(98, 50)))
    assert_same_bytes(read(objects, replace(layout, shape=(98, 50))), array[:98])


# --- frames of zstd -----------------------------------------------------------------------------------

CHUNK = np.arange(48, dtype="<i4").reshape(8, 6)
FRAMES = Zstd(level=1, checksum=True)


def codec_of(codecs: list[Any]) -> ShardCodec:
    """Each object is a chunk like `CHUNK`."""
    return ShardCodec(choose_layout((8, 6), CHUNK.dtype, chunks=(8, 6), shards=False, codecs=codecs))


def frame_of_unknown_size(content: bytes) -> bytes:
    """A frame as a streaming compressor makes it: of one raw block, and without the content's size."""
    block = (len(content) << 3 | 1).to_bytes(3, "little")
    return bytes.fromhex("28b52ffd") + b"\x00\x58" + block + content


def skippable_frame(content: bytes) -> bytes:
    return bytes.fromhex("502a4d18") + len(content).to_bytes(4, "little") + content


@pytest.mark.parametrize(
    "data",
    [
        FRAMES.encode(CHUNK),
        FRAMES.encode(CHUNK[:4]) + FRAMES.encode(CHUNK[4:]),
        frame_of_unknown_size(CHUNK.tobytes()),
        FRAMES.encode(CHUNK[:4]) + frame_of_unknown_size(CHUNK[4:].tobytes()),
        skippable_frame(b"by somebody") + FRAMES.encode(CHUNK),
        FRAMES.encode(CHUNK) + skippable_frame(b"by somebody"),
    ],
    ids=["one", "two", "unknown size", "known and unknown", "skippable first", "skippable last"],
)
def test_all_that_zstd_makes_of_a_chunk_is_decoded(data: bytes) -> None:
    assert_same_bytes(codec_of([LITTLE, ZSTD]).decode(data), CHUNK)


@pytest.mark.parametrize(
    "data",
    [
        FRAMES.encode(CHUNK[:4]),
        FRAMES.encode(np.concatenate([CHUNK, CHUNK])),
        FRAMES.encode(CHUNK) + FRAMES.encode(CHUNK),
        FRAMES.encode(CHUNK) + FRAMES.encode(CHUNK[:1]),
        FRAMES.encode(CHUNK) + frame_of_unknown_size(b"12"),
        frame_of_unknown_size(CHUNK.tobytes()[:-1]),
        frame_of_unknown_size(CHUNK.tobytes() + b"x"),
        skippable_frame(b"by somebody"),
        FRAMES.encode(CHUNK) + b"x",
        # It says that it has 2**60 bytes.
        bytes.fromhex("28b52ffd") + b"\xc0\x58" + (2**60).to_bytes(8, "little") + b"\x01\x00\x00",
        FRAMES.encode(CHUNK[:4]) + bytes.fromhex("28b52ffd") + b"\xc0\x58" + (2**60).to_bytes(8, "little"),
        bytes.fromhex("28b52ffd"),
        b"\0" * 48,
        b"",
    ],
)
def test_a_chunk_of_another_size_is_refused(data: bytes) -> None:
    codec = codec_of([LITTLE, ZSTD])
    with pytest.raises(CorruptChunkError):
        codec.decode(data)
    with pytest.raises(CorruptChunkError):
        codec.decode(data, np.ones((8, 6), CHUNK.dtype))


@UNTIMED
@given(st.integers(0, 200_000), st.booleans(), st.integers(-5, 5))
@example(255, False, 1)
@example(256, False, 1)
@example(65535 + 256, True, 1)
@example(65536 + 256, True, 1)
def test_frames_say_their_size(nbytes: int, checksum: bool, level: int) -> None:
    frame = Zstd(level=level, checksum=checksum).encode(np.zeros(nbytes, "u1"))
    assert frame_content_size(memoryview(frame)) == nbytes
    # Nothing is read behind their ends.
    for length in range(min(len(frame), 18)):
        assert frame_content_size(memoryview(frame)[:length]) in (None, nbytes)


def test_other_frames_do_not_say_a_size() -> None:
    for data in (b"", b"1234567890", frame_of_unknown_size(b"abc"), skippable_frame(b"abc")):
        assert frame_content_size(memoryview(data)) is None


@UNTIMED
@given(st.binary(max_size=200))
def test_any_bytes_are_refused(data: bytes) -> None:
    codec = codec_of([LITTLE, ZSTD])
    for content in (data, FRAMES.encode(CHUNK)[:6] + data):
        with pytest.raises(CorruptChunkError):
            codec.decode(content)


# --- buffers of Blosc ---------------------------------------------------------------------------------


@pytest.mark.parametrize("cname", ["lz4", "lz4hc", "blosclz", "zstd", "zlib"])
@pytest.mark.parametrize("shuffle", ["noshuffle", "shuffle", "bitshuffle"])
def test_all_that_blosc_makes_of_a_chunk_is_decoded(cname: str, shuffle: str) -> None:
    written = codec_of([LITTLE, blosc(cname=cname, shuffle=shuffle, clevel=3)])
    (data,) = written.encode(CHUNK).parts
    # A buffer says itself how it was made.
    assert_same_bytes(codec_of([LITTLE, BLOSC]).decode(data), CHUNK)


def test_a_buffer_of_another_size_is_refused() -> None:
    codec = codec_of([LITTLE, BLOSC])
    (whole,) = codec.encode(CHUNK).parts
    other = ShardCodec(
        choose_layout((4, 6), CHUNK.dtype, chunks=(4, 6), shards=False, codecs=[LITTLE, BLOSC])
    )
    (half,) = other.encode(CHUNK[:4]).parts
    for data in (
        b"",
        whole[:15],
        whole[:16],
        whole[:-1],
        bytes(whole) + b"x",
        half,
        bytes(half) + bytes(half),
    ):
        with pytest.raises(CorruptChunkError, match=r"Blosc"):
            codec.decode(data)


@UNTIMED
@given(st.binary(min_size=100, max_size=100))
def test_any_buffers_are_refused_or_of_the_right_size(data: bytes) -> None:
    """Only the checksum behind a buffer finds damage within it: this is about staying within memory."""
    codec = codec_of([LITTLE, BLOSC])
    head = bytes([2, 1, 0x21, 4]) + CHUNK.nbytes.to_bytes(4, "little") * 2 + (116).to_bytes(4, "little")
    for content in (data, head + data):
        with contextlib.suppress(CorruptChunkError):
            assert codec.decode(content).shape == CHUNK.shape


@pytest.mark.parametrize("dtype", [dtype for dtype in DTYPES if np.dtype(dtype).itemsize > 1])
def test_numbers_of_several_bytes_are_shuffled_by_their_own_size(dtype: str) -> None:
    layout = Layout.choose((100,), np.dtype(dtype).newbyteorder("<"))
    *_, blosc_codec, checksum = layout.codecs
    assert isinstance(blosc_codec, dict)
    number = np.dtype(dtype).type(0).real.dtype if dtype[0] == "c" else np.dtype(dtype)
    assert blosc_codec["configuration"]["typesize"] == number.itemsize
    assert blosc_codec["configuration"]["shuffle"] == ("shuffle" if dtype[0] in "fc" else "bitshuffle")
    assert checksum == CRC32C
