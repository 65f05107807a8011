"""Elements of each object of the storage engine, and zarr's reading of the metadata. No backend."""

from __future__ import annotations

import doctest
import json
import math
import subprocess
import sys
from itertools import product
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import zarr
from hypothesis import example, given, settings
from zarr.buffer.cpu import Buffer
from zarr.codecs import BloscCodec, BytesCodec, GzipCodec, ZstdCodec
from zarr.storage import MemoryStore

from tensorage import DTypeError, InvalidInputError
from tensorage.backend.zarr import chunk_shapes, layout
from tensorage.backend.zarr.chunk_shapes import (
    CHUNK_BYTES,
    MAX_CHUNKS_PER_SHARD,
    SAMPLE_BYTES,
    SHARD_BYTES,
    choose_chunk_bytes,
)
from tensorage.backend.zarr.codec import choose_layout
from tensorage.backend.zarr.layout import Layout
from tensorage.model import zarr_metadata

Shape = tuple[int, ...]

F4 = np.dtype("<f4")

#: The time of an example says nothing here.
UNTIMED = settings(deadline=None)

#: Shapes of arrays from a few bytes to petabytes.
LARGE_SHAPES = st.lists(
    st.one_of(st.integers(0, 5), st.integers(1, 3000), st.integers(1, 10**7)), min_size=1, max_size=5
).map(tuple)

LITTLE = {"name": "bytes", "configuration": {"endian": "little"}}


@st.composite
def layouts(draw: st.DrawFn) -> Layout:
    """Layouts of few elements, in shards of any shape."""
    chunks = draw(st.lists(st.integers(1, 4), min_size=0, max_size=3))
    shards = [chunk * draw(st.integers(1, 3)) for chunk in chunks]
    shape = [draw(st.integers(0, 3 * shard)) for shard in shards]
    return Layout.choose(shape, F4, chunks=chunks, shards=draw(st.sampled_from([shards, False])))


def opened(document: dict[str, Any]) -> zarr.Array[Any]:
    """Open metadata with zarr."""
    return zarr.open_array(
        MemoryStore({"zarr.json": Buffer.from_bytes(json.dumps(document).encode())}), mode="r"
    )


@pytest.mark.parametrize("module", [chunk_shapes, layout, zarr_metadata])
def test_examples_of_docstrings(module: Any) -> None:
    assert doctest.testmod(module).failed == 0


# --- shapes of chunks and shards ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "dtype", "chunks", "shards"),
    [
        # Rows that make 24 KiB.
        ((60000, 28, 28), "<f4", (7, 28, 28), (2674, 28, 28)),
        ((10**12, 1000), "<f4", (6, 1000), (2094, 1000)),
        ((10**9, 25), "<f4", (245, 25), (83790, 25)),
        ((5,), "|u1", (24 * 2**10,), (341 * 24 * 2**10,)),
        # A row of 150 KB, and one of 1 MiB.
        ((10**6, 224, 224, 3), "|u1", (1, 224, 224, 3), (55, 224, 224, 3)),
        ((10**6, 2**18), "<f4", (1, 2**18), (8, 2**18)),
        # A row of 4 MB: quarters of it, and two rows of them are a shard.
        ((10, 3, 1000, 1000), "<f4", (1, 1, 250, 1000), (1, 2, 1000, 1000)),
        # A row of 32 MB: 31 parts of it, the last one a little smaller.
        ((100, 2000, 2000), "<f8", (1, 65, 2000), (1, 520, 2000)),
        # One byte too long for a chunk: two halves.
        ((7, 2**20 + 1), "|u1", (1, 2**19 + 1), (7, 2**20 + 2)),
        ((0, 3), "<i2", (4096, 3), (1396736, 3)),
        ((3, 0), "<i2", (12288, 1), (4190208, 1)),
        ((), "<f8", (), ()),
    ],
)
def test_default_extents(shape: Shape, dtype: str, chunks: Shape, shards: Shape) -> None:
    chosen = Layout.choose(shape, np.dtype(dtype))
    assert (chosen.chunks, chosen.shards, chosen.is_sharded) == (chunks, shards, len(shape) > 0)


@UNTIMED
@given(LARGE_SHAPES, st.sampled_from([1, 2, 4, 8, 16]), st.floats(1 / 32, 1))
@example((1, 2**20 // 16, 3), 16, 1.0)
def test_default_extents_are_near_the_sizes_meant(shape: Shape, itemsize: int, encoded_ratio: float) -> None:
    dtype = np.dtype({1: "u1", 2: "<i2", 4: "<f4", 8: "<f8", 16: "<c16"}[itemsize])
    chosen = Layout.choose(shape, dtype, encoded_ratio=encoded_ratio)
    chunk_bytes = math.prod(chosen.chunks) * itemsize
    shard_bytes = math.prod(chosen.shards) * itemsize
    row_bytes = math.prod(shape[1:]) * itemsize
    meant = choose_chunk_bytes(shape, itemsize, encoded_ratio)
    # The bytes are those meant for encoded rows, or a row, or a part of one.
    assert min(SAMPLE_BYTES, CHUNK_BYTES) <= meant <= CHUNK_BYTES
    assert meant in (int(SAMPLE_BYTES / encoded_ratio), row_bytes, CHUNK_BYTES)
    assert chunk_bytes <= meant
    assert shard_bytes <= SHARD_BYTES
    # Even parts are more than half of what would fit, and what would fit more than half of the size.
    assert chunk_bytes > meant // 4
    assert shard_bytes > SHARD_BYTES // 4
    assert all(chunk <= max(extent, 1) for chunk, extent in zip(chosen.chunks[1:], shape[1:], strict=True))
    # Shards are whole chunks, and chunks are whole rows unless a row has several.
    assert all(shard % chunk == 0 for shard, chunk in zip(chosen.shards, chosen.chunks, strict=True))
    assert chosen.chunks[0] == 1 or all(
        chunk >= extent for chunk, extent in zip(chosen.chunks[1:], shape[1:], strict=True)
    )
    assert chosen.chunk_count_per_shard <= MAX_CHUNKS_PER_SHARD


@UNTIMED
@given(LARGE_SHAPES, st.integers(1, 10**6), st.booleans())
def test_pages_are_chunks_that_follow_each_other_in_memory(
    shape: Shape, rows: int, side_by_side: bool
) -> None:
    chunks = (rows, *(max(extent // (2 if side_by_side else 1), 1) for extent in shape[1:]))
    if math.prod(chunks) * 4 > 2**27:
        return
    chosen = Layout.choose(shape, F4, chunks=chunks)
    assert chosen.pages[1:] == chosen.chunks[1:]
    count, rest = divmod(chosen.pages[0], chosen.chunks[0])
    assert rest == 0
    if math.prod(chosen.chunks_per_shard[1:]) > 1:
        assert count == 1
    else:
        assert count == 1 or count * math.prod(chosen.chunks) * 4 <= CHUNK_BYTES
        assert count <= chosen.chunks_per_shard[0]


@UNTIMED
@given(LARGE_SHAPES, st.integers(0, 10**9))
def test_extents_do_not_depend_on_the_number_of_rows(shape: Shape, rows: int) -> None:
    one, other = (Layout.choose((first, *shape[1:]), F4) for first in (shape[0], rows))
    assert (one.chunks, one.shards) == (other.chunks, other.shards)


@UNTIMED
@given(LARGE_SHAPES)
def test_chunks_and_shards_are_near_each_other_in_memory(shape: Shape) -> None:
    chosen = Layout.choose(shape, F4)
    for parts in (chosen.chunks, chosen.shards):
        axis = next((axis for axis, part in enumerate(parts) if part > 1), len(parts))
        # Whole along all axes behind the first that it has more than one row of.
        whole = zip(parts[axis + 1 :], shape[axis + 1 :], strict=True)
        assert all(part >= extent for part, extent in whole)


@pytest.mark.parametrize(
    ("given_chunks", "given_shards", "chunks", "shards"),
    [
        ((10, 28, 28), None, (10, 28, 28), (2670, 28, 28)),
        # Cut along all axes: whole rows of chunks first.
        ((1000, 7, 7), None, (1000, 7, 7), (2000, 28, 28)),
        ((5000, 28, 28), None, (5000, 28, 28), (5000, 28, 28)),
        (None, (1000, 28, 28), (5, 28, 28), (1000, 28, 28)),
        (None, (100, 14, 30), (10, 14, 30), (100, 14, 30)),
        (None, (1000, 29, 28), (5, 29, 28), (1000, 29, 28)),
        ((10, 28, 28), (100, 28, 28), (10, 28, 28), (100, 28, 28)),
        ((10, 28, 28), False, (10, 28, 28), (10, 28, 28)),
        (None, False, (334, 28, 28), (334, 28, 28)),
        (np.array([10, 28, 28]), [np.int64(20), 28, 28], (10, 28, 28), (20, 28, 28)),
        ((100000, 64, 1), None, (100000, 64, 1), (100000, 64, 1)),
    ],
)
def test_given_extents(given_chunks: Any, given_shards: Any, chunks: Shape, shards: Shape) -> None:
    chosen = Layout.choose((60000, 28, 28), F4, chunks=given_chunks, shards=given_shards)
    assert (chosen.chunks, chosen.shards, chosen.is_sharded) == (chunks, shards, given_shards is not False)


def test_tiny_chunks_do_not_make_a_huge_index() -> None:
    chosen = Layout.choose((10**9,), F4, chunks=(2,))
    assert chosen.chunks_per_shard == (MAX_CHUNKS_PER_SHARD,)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"chunks": (10, 28)}, r"chunks=\(10, 28\) has 2 extents, and the shape \(60000, 28, 28\) has 3"),
        ({"shards": (10,)}, r"shards=\(10,\) has 1 extents"),
        ({"chunks": (0, 28, 28)}, r"chunks=\(0, 28, 28\) .* at least 1"),
        ({"chunks": (10, -1, 28)}, r"at least 1"),
        ({"chunks": (1.5, 28, 28)}, r"no sequence of whole numbers"),
        ({"chunks": 100}, r"chunks=100 is no sequence"),
        ({"shards": True}, r"shards=True is no sequence"),
        (
            {"chunks": (10, 28, 28), "shards": (15, 28, 28)},
            r"shards=\(15, 28, 28\) .* chunks of \(10, 28, 28\)",
        ),
        ({"chunks": (10, 28, 28), "shards": (10, 14, 28)}, r"multiple"),
        ({"chunks": (10**6, 28, 28)}, r"3136000000 bytes each, and 2147483631 is the most"),
        (
            {"chunks": (1, 1, 1), "shards": (1000, 28, 28)},
            r"784000 chunks of \(1, 1, 1\) .* 65536 are the most",
        ),
    ],
)
def test_extents_that_do_not_fit_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidInputError, match=said):
        choose_layout((60000, 28, 28), F4, **options)


# --- which shard holds what ---------------------------------------------------------------------------


@UNTIMED
@given(layouts())
def test_shards_hold_each_element_once(chosen: Layout) -> None:
    holders = np.full(chosen.shape, -1)
    for number in range(chosen.shard_count):
        coords = chosen.coords_of(number)
        assert chosen.number_of(coords) == number
        assert coords == np.unravel_index(number, chosen.grid)
        region = chosen.region(number)
        assert (holders[region] == -1).all()
        assert holders[region].size
        holders[region] = number
    assert (holders >= 0).all()


@UNTIMED
@given(layouts(), st.integers(0, 12), st.integers(0, 12))
def test_shards_of_rows(chosen: Layout, row_low: int, row_high: int) -> None:
    def rows_of(number: int) -> range:
        row = chosen.coords_of(number)[0]
        return range(row * chosen.shards[0], (row + 1) * chosen.shards[0])

    touched = [
        number
        for number in range(chosen.shard_count)
        if not chosen.shape or set(rows_of(number)) & set(range(row_low, row_high))
    ]
    within = [number for number in chosen.shards_of(row_low, row_high) if number < chosen.shard_count]
    assert within == touched


def place_of(chosen: Layout, chunk_coords: tuple[int, ...]) -> tuple[int, int]:
    """The shard that holds a chunk, and the chunk's position in the shard's index."""
    parts = [divmod(coord, count) for coord, count in zip(chunk_coords, chosen.chunks_per_shard, strict=True)]
    shard_coords, inner_coords = [part[0] for part in parts], [part[1] for part in parts]
    return chosen.number_of(shard_coords), chosen.position_of(inner_coords)


@UNTIMED
@given(layouts())
def test_chunks_have_a_place_each(chosen: Layout) -> None:
    counts = [-(-extent // chunk) for extent, chunk in zip(chosen.shape, chosen.chunks, strict=True)]
    places = {place_of(chosen, coords) for coords in product(*map(range, counts))}
    assert len(places) == math.prod(counts)
    for coords in product(*map(range, counts)):
        number, position = place_of(chosen, coords)
        inner = np.unravel_index(position, chosen.chunks_per_shard)
        first = [
            part.start + index * chunk
            for part, index, chunk in zip(chosen.region(number), inner, chosen.chunks, strict=True)
        ]
        assert first == [coord * chunk for coord, chunk in zip(coords, chosen.chunks, strict=True)]


@UNTIMED
@given(layouts(), st.integers(0, 20))
def test_growing_renumbers_nothing(chosen: Layout, rows: int) -> None:
    if not chosen.shape:
        with pytest.raises(InvalidInputError, match="no rows"):
            chosen.with_rows(rows)
        return
    grown = chosen.with_rows(rows)
    assert grown.shape == (chosen.shape[0] + rows, *chosen.shape[1:])
    for number in range(chosen.shard_count):
        assert grown.coords_of(number) == chosen.coords_of(number)
        assert grown.key_of(number) == chosen.key_of(number)


def test_names_of_objects_are_those_of_zarr() -> None:
    chosen = Layout.choose((30, 4, 50), F4, chunks=(2, 2, 5), shards=(4, 2, 10))
    array = opened(chosen.document({}, None))
    keys = [chosen.key_of(number) for number in range(chosen.shard_count)]
    assert keys[:6] == ["c/0/0/0", "c/0/0/1", "c/0/0/2", "c/0/0/3", "c/0/0/4", "c/0/1/0"]
    assert keys == [array.metadata.encode_chunk_key(coords) for coords in product(*map(range, chosen.grid))]
    assert Layout.choose((), F4).key_of(0) == opened(
        Layout.choose((), F4).document({}, None)
    ).metadata.encode_chunk_key(())


# --- metadata -----------------------------------------------------------------------------------------


@UNTIMED
@given(layouts())
def test_metadata_come_back_from_json(chosen: Layout) -> None:
    kept = json.loads(json.dumps(chosen.metadata()))
    assert Layout.parse(kept, chosen.shape, chosen.dtype) == chosen
    assert not {"shape", "attributes", "dimension_names"} & kept.keys()


def test_zarr_reads_the_document() -> None:
    chosen = Layout.choose((10, 6), F4, chunks=(2, 3), shards=(4, 6))
    array = opened(chosen.document({"units": "K", "nested": {"a": [1, None]}}, ["time", "place"]))
    assert (array.shape, array.dtype, array.chunks, array.shards) == ((10, 6), F4, (2, 3), (4, 6))
    assert dict(array.attrs) == {"units": "K", "nested": {"a": [1, None]}}
    assert array.metadata.dimension_names == ("time", "place")
    assert opened(chosen.document({}, None)).metadata.dimension_names is None


@pytest.mark.parametrize("options", [{}, {"shards": (4, 6)}, {"shards": (4, 6), "chunk_key_encoding": "v2"}])
@pytest.mark.parametrize("fill_value", [0, 7, -0.0, np.nan, np.inf])
def test_metadata_of_zarr_are_read(options: dict[str, Any], fill_value: float) -> None:
    if options.get("chunk_key_encoding"):
        options = {**options, "chunk_key_encoding": {"name": "v2", "separator": "."}}
    array = zarr.create_array({}, shape=(10, 6), dtype="f4", chunks=(2, 3), fill_value=fill_value, **options)
    document = json.loads(json.dumps(array.metadata.to_dict()))
    parsed = Layout.parse(document, array.shape, F4)
    assert (parsed.shape, parsed.chunks, parsed.shards) == ((10, 6), (2, 3), options.get("shards", (2, 3)))
    again = opened(parsed.document({}, None))
    assert np.array(again.fill_value).tobytes() == np.array(array.fill_value).tobytes()
    assert again.metadata.codecs == array.metadata.codecs
    assert parsed.key_of(0) == "c/0/0"


@pytest.mark.parametrize("index_location", ["start", "end"])
def test_where_the_index_is_comes_back(index_location: str) -> None:
    shards = {"shape": (4, 6), "index_location": index_location}
    array = zarr.create_array({}, shape=(10, 6), dtype="f4", chunks=(2, 3), shards=shards)
    parsed = Layout.parse(array.metadata.to_dict(), array.shape, F4)
    assert parsed.index_location == index_location
    assert opened(parsed.document({}, None)).metadata.codecs == array.metadata.codecs


def test_a_shard_with_a_codec_behind_it_is_one_chunk() -> None:
    inner = {"chunk_shape": [2, 3], "codecs": [LITTLE], "index_codecs": [LITTLE], "index_location": "end"}
    codecs = [{"name": "sharding_indexed", "configuration": inner}, {"name": "crc32c"}]
    kept = {**Layout.choose((10, 6), F4).metadata(), "codecs": codecs}
    kept["chunk_grid"] = {"name": "regular", "configuration": {"chunk_shape": [4, 6]}}
    parsed = Layout.parse(kept, (10, 6), F4)
    assert (parsed.is_sharded, parsed.chunks, parsed.shards) == (False, (4, 6), (4, 6))
    assert parsed.metadata() == kept


def broken(**changes: Any) -> dict[str, Any]:
    """Metadata of an array of shape (10, 6), of float32, with something else in them."""
    kept: dict[str, Any] = Layout.choose((10, 6), F4, chunks=(2, 3), shards=(4, 6)).metadata()
    return {**kept, **changes}


@pytest.mark.parametrize(
    ("kept", "said"),
    [
        (broken(zarr_format=2), "zarr_format 2; readable is 3 only"),
        (broken(node_type="group"), "node_type 'group'"),
        (broken(data_type="float64"), "data_type 'float64'; readable is 'float32' only"),
        (broken(chunk_grid={"name": "rectilinear", "configuration": {}}), "chunk_grid 'rectilinear'"),
        (
            broken(chunk_grid=zarr_metadata.regular_grid((4, 5))),
            r"\(4, 5\) do not hold whole chunks of \(2, 3\)",
        ),
        (broken(chunk_grid=zarr_metadata.regular_grid((4,))), "has 1 extents"),
        (broken(storage_transformers=[{"name": "x"}]), "storage_transformers"),
        (broken(codecs=3), "no metadata of a Zarr v3 array"),
        (broken(codecs=[{"name": "sharding_indexed"}]), "no metadata of a Zarr v3 array .*'chunk_shape'"),
        (broken(chunk_grid=None), "no metadata of a Zarr v3 array"),
        ({}, "no metadata of a Zarr v3 array .*'zarr_format'"),
    ],
)
def test_other_metadata_are_refused(kept: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidInputError, match=said):
        Layout.parse(kept, (10, 6), F4)


def test_an_index_in_the_middle_is_refused() -> None:
    kept = broken()
    kept["codecs"][0]["configuration"]["index_location"] = "middle"
    with pytest.raises(InvalidInputError, match="not at 'middle'"):
        Layout.parse(kept, (10, 6), F4)


@pytest.mark.skipif(np.dtype(np.longdouble).itemsize == 8, reason="long double is float64 on this platform")
@pytest.mark.parametrize("dtype", [np.longdouble, np.clongdouble])
def test_a_dtype_that_zarr_lacks_is_refused(dtype: Any) -> None:
    with pytest.raises(DTypeError, match="engine='database'"):
        Layout.choose((3,), np.dtype(dtype))


# --- codecs -------------------------------------------------------------------------------------------


def test_codecs_as_json_and_as_objects_are_the_same() -> None:
    gzip = {"name": "gzip", "configuration": {"level": 3}}
    by_json = choose_layout((10,), F4, codecs=[LITTLE, gzip])
    by_objects = choose_layout((10,), F4, codecs=[BytesCodec(), GzipCodec(level=3)])
    assert by_json == by_objects
    assert by_json.codecs == (LITTLE, gzip)


def test_what_codecs_leave_open_is_chosen_for_the_dtype() -> None:
    chosen = choose_layout((10,), np.dtype("<f8"), codecs=[BytesCodec(), BloscCodec(shuffle="shuffle")])
    assert chosen.codecs[1]["configuration"]["typesize"] == 8
    assert choose_layout((10,), F4, codecs=[BytesCodec(), ZstdCodec()]).codecs[1]["name"] == "zstd"


@pytest.mark.parametrize(
    "codecs",
    [
        [{"name": "rot13"}],
        [{"name": "numcodecs.rot13", "configuration": {}}],
        [],
        [{"name": "gzip", "configuration": {"level": 3}}],
        [LITTLE, LITTLE],
        [LITTLE, {"name": "zstd", "configuration": {"level": 40, "checksum": True}}],
        [LITTLE, {"name": "zstd", "configuration": {"speed": 1}}],
        [LITTLE, object()],
        [{"name": "bytes", "configuration": {"endian": {1, 2}}}],
        [{"name": "transpose", "configuration": {"order": [0, 1]}}, LITTLE],
        [{"name": "sharding_indexed", "configuration": {"chunk_shape": [3], "codecs": [LITTLE]}}],
        "zstd",
        5,
    ],
    # Names without addresses: each process of a run has to find the same ones.
    ids=lambda codecs: repr(codecs).partition(" at 0x")[0],
)
def test_codecs_that_zarr_cannot_use_are_refused(codecs: Any) -> None:
    with pytest.raises(InvalidInputError, match=r"codecs=.*do not do for chunks of") as raised:
        choose_layout((10,), F4, chunks=(5,), codecs=codecs)
    assert repr(codecs) in str(raised.value)


@pytest.mark.filterwarnings("ignore:Numcodecs codecs are not in the Zarr version 3 specification")
@pytest.mark.parametrize(
    "codec",
    [
        {"name": "numcodecs.packbits", "configuration": {}},
        {"name": "numcodecs.delta", "configuration": {"dtype": "nonsense"}},
    ],
    ids=repr,
)
def test_codecs_that_fail_only_at_work_are_refused(codec: dict[str, Any]) -> None:
    with pytest.raises(InvalidInputError, match=r"codecs=.*do not do for chunks of"):
        choose_layout((10,), F4, codecs=[codec, LITTLE])


def test_layouts_need_no_zarr() -> None:
    script = (
        "import sys, numpy as np\n"
        "from tensorage.backend.zarr.layout import Layout\n"
        "chosen = Layout.choose((3, 4), np.dtype('<f4'))\n"
        "assert Layout.parse(chosen.metadata(), chosen.shape, chosen.dtype) == chosen\n"
        "print(*{'zarr', 'numcodecs', 'google_crc32c'} & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
