"""Encoding of shards to objects, and decoding of their chunks.

`ShardCodec` encodes the elements of a shard to the object that is stored, and decodes its chunks. Objects are exactly
those of Zarr v3: one encoded chunk if the array is not sharded, and otherwise encoded chunks, wherever they lie, and
an index of them.

The index has two forms. In the object it is *encoded*, with a checksum. In the catalogue it is plain, so that a reader
needs to fetch nothing but chunks. A plain index is, for each chunk in C order, either

* its length, as little-endian uint16 or uint32, 0 if the chunk is *empty*: the chunks lie one after another from the
  object's first byte on, or from behind the encoded index if that comes first, or
* its offset in the object and its length, as little-endian uint64, both 2**64 - 1 if the chunk is empty.

Its number of bytes tells which of them it is. A chunk is empty if all its elements are the fill value. All
chunks of a shard without an object are empty. An empty chunk is never stored, and emptiness is told bit by bit: a
chunk of -0.0 is stored, one of 0.0 is not. A chunk that was stored and is lost or damaged is therefore never taken for
an empty one.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from itertools import product
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt

from tensorage.backend.zarr.codec_pipeline import CodecPipeline, PlainPipeline, ZarrPipeline, fill_value_of
from tensorage.backend.zarr.compressors import CorruptChunkError
from tensorage.backend.zarr.layout import Layout
from tensorage.backend.zarr.ranges import EMPTY
from tensorage.dtypes import storable_dtype
from tensorage.errors import InvalidInputError
from tensorage.indexing.selection import Positions
from tensorage.model.memory import new_array
from tensorage.model.zarr_metadata import (
    SHARDING,
    Codec,
    array_metadata,
    configuration_of,
    default_codecs,
    default_fill_value,
    has_any_length,
    name_of,
    zarr_dtype,
)

__all__ = [
    "EMPTY",
    "SAMPLED_BYTES",
    "CorruptChunkError",
    "EncodedShard",
    "ShardCodec",
    "choose_layout",
    "parse_index",
    "pipeline_of",
    "plain_index",
    "sample_of",
]

#: Contiguous memory.
Bytes = bytes | bytearray | memoryview

#: Dtype of an index with offsets and lengths.
INDEX_DTYPE = np.dtype("<u8")

#: Bytes of one chunk's offset and length in such an index.
RANGE_BYTES = 2 * INDEX_DTYPE.itemsize

#: Dtypes of a plain index that has lengths alone.
LENGTH_DTYPES = (np.dtype("<u2"), np.dtype("<u4"))

#: The longest chunk that each of them names.
_LONGEST = {dtype: int(np.iinfo(dtype).max) for dtype in LENGTH_DTYPES}

#: Elements that show how far an array can be compressed.
SAMPLED_BYTES = 1024 * 1024

#: Number of places of an array that a sample is taken from.
_SAMPLED_PLACES = 4

#: Samples of at least this many bytes are encoded in that many parts.
_PARTED_BYTES = 64 * 1024

#: Most bytes of a chunk that is encoded together with others. Joining what comes out copies it.
_SMALL_CHUNK_BYTES = 256 * 1024


@dataclass(frozen=True, slots=True)
class EncodedShard:
    """The object of a shard, and the shard's index for the catalogue.

    Parameters
    ----------
    parts
        Bytes of the object, one part after the other. There are none, and no object, if all elements are the fill
        value. Parts may be memory of the elements that were encoded, which must not change before the parts are sent.
    nbytes
        Bytes of the object, 0 if there is none.
    index
        Plain index, as the catalogue has it, which is empty if the array is not sharded.
    """

    parts: list[bytes | memoryview]
    nbytes: int
    index: bytes


class ShardCodec:
    """Encoder and decoder of the shards of one array. Safe to use from many threads at once.

    Parameters
    ----------
    layout
        Layout of the array. The shape of the array doesn't matter: a codec serves the array however much it grows.

    Raises
    ------
    InvalidInputError
        If zarr doesn't know the codecs.
    """

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self._pipeline, self.fill_value = self._open_pipeline()

    def _open_pipeline(self) -> tuple[CodecPipeline, npt.NDArray[Any]]:
        """Return the pipeline of a chunk, and the fill value as an array without dimensions."""
        layout = self.layout
        # A chunk on its own is an array whose objects are single chunks: that is what pipelines are made for.
        of_chunk = array_metadata(layout.dtype, layout.chunks, layout.codecs, layout.fill_value)
        return pipeline_of(of_chunk, layout.dtype), fill_value_of(of_chunk, layout.dtype)

    def with_rows(self, rows: int) -> Self:
        """Return the codec of the array with more rows of axis 0: see `Layout.with_rows`."""
        return type(self)(self.layout.with_rows(rows))

    def encode(self, elements: npt.NDArray[Any]) -> EncodedShard:
        """Encode a shard to its object.

        Parameters
        ----------
        elements
            Elements that the shard holds of the array: the region `layout.region`, in any byte order and with any
            strides.
        """
        self._check_elements(elements)
        if not self.layout.is_sharded:
            chunk = self._pad(elements)
            whole = [] if self._is_empty(chunk) else self._pipeline.encode(chunk)
            return EncodedShard(whole, sum(map(len, whole)), b"")
        index = self._empty_index()
        parts = self._encode_chunks(elements, index)
        return self._add_index(parts, sum(map(len, parts)), index)

    def encode_apart(self, elements: npt.NDArray[Any]) -> tuple[bytes, bytes]:
        """Encode a shard to its chunks, one after the other, and its plain index, both empty if all chunks are."""
        self._check_elements(elements)
        index = self._empty_index()
        data = b"".join(self._encode_chunks(elements, index))
        return data, plain_index(index) if data else b""

    def encode_rows(self, elements: npt.NDArray[Any]) -> tuple[bytes, npt.NDArray[np.uint64]]:
        """Encode some rows of a shard, from the first row of a chunk on, without an index.

        Returns
        -------
        bytes
            The chunks, one after the other.
        numpy.ndarray
            Offset in these bytes and length of each chunk: an array of shape (rows of chunks, chunks in each, 2).
        """
        self._check_elements(elements)
        index = self._empty_index()
        data = b"".join(self._encode_chunks(elements, index))
        rows = -(-elements.shape[0] // self.layout.chunks[0])
        return data, index[:rows].reshape(rows, math.prod(self.layout.chunks_per_shard[1:]), 2)

    def put_rows(
        self, index: bytes, nbytes: int, at: int, elements: npt.NDArray[Any], offset: int
    ) -> tuple[bytes, bytes]:
        """Put elements into a shard from row `at` of its chunks on, with nothing behind them.

        Parameters
        ----------
        index, nbytes
            Plain index of the shard, and the bytes that it tells the chunks of.
        offset
            Byte that the chunks of the elements will begin at.

        Returns
        -------
        tuple
            The new plain index, and these chunks.

        Raises
        ------
        CorruptChunkError
            If the index does not fit the shard.
        """
        ranges = self.ranges(index, nbytes).reshape(self.layout.chunks_per_shard[0], -1, 2).copy()
        # An array that became shorter may have chunks behind its end.
        ranges[at:] = EMPTY
        data, added = self.encode_rows(elements)
        added[:, :, 0] += np.where(added[:, :, 0] == EMPTY, 0, offset).astype(INDEX_DTYPE)
        ranges[at : at + len(added)] = added
        return plain_index(ranges), data

    def _encode_chunks(
        self, elements: npt.NDArray[Any], index: npt.NDArray[np.uint64]
    ) -> list[bytes | memoryview]:
        """Encode the chunks of the first rows of a shard, and enter them in the index."""
        rows = self._rows_encoded_together(elements)
        parts = self._encode_together(elements[:rows], index) if rows else []
        nbytes = sum(map(len, parts))
        for coords, chunk in self._split_chunks(elements[rows:] if rows else elements):
            if self._is_empty(chunk):
                continue
            encoded = self._pipeline.encode(chunk)
            length = sum(map(len, encoded))
            index[(coords[0] + rows // self.layout.chunks[0], *coords[1:]) if rows else coords] = (
                nbytes,
                length,
            )
            parts += encoded
            nbytes += length
        return parts

    def decode(self, data: Bytes, out: npt.NDArray[Any] | None = None) -> npt.NDArray[Any]:
        """Decode one chunk, in its full shape.

        Parameters
        ----------
        data
            Bytes of the object at one of its `ranges`.
        out
            Array for the elements: C-contiguous, of the full shape and the layout's dtype. By default a new
            array.

        Raises
        ------
        CorruptChunkError
            If the bytes are no encoded chunk, or not a whole one. The content of `out` is then of no use.
        """
        dtype = self.layout.memory_dtype
        if out is None:
            out = new_array(self.layout.chunks, dtype, "decoding a chunk")
        elif out.shape != self.layout.chunks or out.dtype != dtype or not out.flags.carray:
            raise ValueError(
                f"out has to be a writable C-contiguous array of {self.layout.chunks} {dtype}, not of "
                f"{out.shape} {out.dtype}"
            )
        self._pipeline.decode(memoryview(data).cast("B"), out)
        return out

    def decode_together(
        self, data: npt.NDArray[np.uint8], starts: Positions, ends: Positions, out: npt.NDArray[Any]
    ) -> bool:
        """Decode chunks at once that lie one behind the other in memory: see `PlainPipeline.decode_together`.

        Parameters
        ----------
        out
            C-contiguous array for the elements, of shape (chunks, *shape of a chunk) and the layout's dtype.
        """
        if not isinstance(self._pipeline, PlainPipeline) or not len(starts):
            return False
        return self._pipeline.decode_together(data, starts, ends, _octets(out).reshape(len(starts), -1))

    def decode_object(self, blob: Bytes, out: npt.NDArray[Any]) -> None:
        """Decode a whole object.

        Parameters
        ----------
        out
            Array for the elements: of a shard's full shape, in the layout's dtype.

        Raises
        ------
        CorruptChunkError
            If the index or a chunk is damaged. The content of `out` is then of no use.
        """
        data = memoryview(blob).cast("B")
        ranges = self.ranges(self.index_of(data), len(data)).tolist()
        # One chunk's memory serves for all chunks of the shard.
        chunk = None
        for coords, (offset, length) in zip(np.ndindex(*self.layout.chunks_per_shard), ranges, strict=True):
            where = tuple(
                slice(coord * size, (coord + 1) * size)
                for coord, size in zip(coords, self.layout.chunks, strict=True)
            )
            if offset == EMPTY:
                out[where] = self.fill_value
            else:
                chunk = self.decode(data[offset : offset + length], chunk)
                out[where] = chunk

    @cached_property
    def encoded_room(self) -> int:
        """Most bytes of an encoded chunk. A longer one is refused before it is decoded."""
        return self._pipeline.encoded_room(math.prod(self.layout.chunks) * self.layout.dtype.itemsize)

    def ranges(self, index: bytes, nbytes: int) -> npt.NDArray[np.uint64]:
        """Return the offset and length of each chunk of a shard, in C order, from the plain index.

        Parameters
        ----------
        nbytes
            Bytes of the shard's object, 0 if it has none.

        Returns
        -------
        numpy.ndarray
            Array of shape (chunks of a shard, 2). Both numbers of an empty chunk are `EMPTY`. All other chunks lie
            within the object.

        Raises
        ------
        CorruptChunkError
            If the index does not fit such an object, or a chunk is longer than `encoded_room`.
        """
        count = self.layout.chunk_count_per_shard
        # A shard without an object has no index in the catalogue either.
        if nbytes == 0 and not index:
            return self._empty_index().reshape(count, 2)
        if not self.layout.is_sharded and not index:
            self._check_length(nbytes)
            return np.array([[0, nbytes]], INDEX_DTYPE)
        ranges = self._parse_index(index)
        stored = ranges[ranges[:, 0] != EMPTY]
        # The sum of offset and length may overflow, so it is not made.
        if np.any(stored[:, 1] > nbytes) or np.any(stored[:, 0] > nbytes - stored[:, 1]):
            raise CorruptChunkError(f"an index names chunks outside of their object of {nbytes} bytes")
        # Without this bound, the owner of an array could make its readers fetch any number of bytes.
        if len(stored):
            self._check_length(int(stored[:, 1].max()))
        return ranges

    def index_of(self, blob: Bytes) -> bytes:
        """Return the plain index of a whole object.

        Raises
        ------
        CorruptChunkError
            If the object has no index, or a damaged one.
        """
        data = memoryview(blob).cast("B")
        if not self.layout.is_sharded:
            if not data:
                # In the catalogue, 0 bytes mean that a shard has no object.
                raise CorruptChunkError("there are no bytes")
            return b""
        if len(data) < self.index_nbytes:
            raise CorruptChunkError(f"{len(data)} bytes have no room for an index of {self.index_nbytes}")
        is_first = self.layout.index_location == "start"
        index = self.decode_index(data[: self.index_nbytes] if is_first else data[-self.index_nbytes :])
        # Raises if the index names bytes outside of the object.
        self.ranges(index, len(data))
        return index

    def decode_index(self, data: Bytes) -> bytes:
        """Decode an index from the `index_nbytes` bytes that it takes at the beginning or end of the object.

        Raises
        ------
        CorruptChunkError
        """
        ranges = self._empty_index()
        self._index_pipeline.decode(memoryview(data).cast("B"), ranges)
        return plain_index(ranges, self._first_chunk_at)

    def encode_index(self, index: bytes) -> bytes:
        """Encode a plain index for the object.

        Raises
        ------
        CorruptChunkError
            If the index has another number of chunks than a shard.
        """
        ranges = self._parse_index(index)
        return b"".join(self._index_pipeline.encode(ranges.reshape(self._empty_index().shape)))

    def _parse_index(self, index: bytes) -> npt.NDArray[np.uint64]:
        count = self.layout.chunk_count_per_shard if self.layout.is_sharded else 0
        return parse_index(index, count, self._first_chunk_at)

    @property
    def _first_chunk_at(self) -> int:
        """Byte of the object that the chunks begin at."""
        return self.index_nbytes if self.layout.index_location == "start" else 0

    def _check_length(self, nbytes: int) -> None:
        """Refuse a chunk that is longer than its elements can become."""
        if nbytes > self.encoded_room:
            raise CorruptChunkError(
                f"a chunk of {nbytes} bytes is longer than the {self.encoded_room} that {self.layout.chunks} elements "
                f"of {self.layout.dtype} take at most"
            )

    @cached_property
    def index_nbytes(self) -> int:
        """Bytes of an encoded index, which are the same for all shards; 0 if the array is not sharded."""
        if not self.layout.is_sharded:
            return 0
        return sum(map(len, self._index_pipeline.encode(self._empty_index())))

    @cached_property
    def _index_pipeline(self) -> CodecPipeline:
        shape = self._empty_index().shape
        return pipeline_of(array_metadata(INDEX_DTYPE, shape, self.layout.index_codecs, EMPTY), INDEX_DTYPE)

    def _empty_index(self) -> npt.NDArray[np.uint64]:
        """Make the index of a shard whose chunks are all empty."""
        return np.full((*self.layout.chunks_per_shard, 2), EMPTY, INDEX_DTYPE)

    @cached_property
    def _blank(self) -> npt.NDArray[Any]:
        """An empty chunk."""
        return np.full(self.layout.chunks, self.fill_value, self.layout.memory_dtype)

    def _add_index(
        self, parts: list[bytes | memoryview], nbytes: int, index: npt.NDArray[np.uint64]
    ) -> EncodedShard:
        """Put the index before or behind chunks that lie one after the other from offset 0 on."""
        if not parts:
            return EncodedShard([], 0, plain_index(index))
        if self.layout.index_location == "start":
            # Chunks begin behind an index that comes first. The offset of an empty chunk is no offset.
            index[..., 0] += np.where(index[..., 0] == EMPTY, 0, self.index_nbytes).astype(INDEX_DTYPE)
            parts = [*self._index_pipeline.encode(index), *parts]
        else:
            parts = [*parts, *self._index_pipeline.encode(index)]
        return EncodedShard(parts, nbytes + self.index_nbytes, plain_index(index, self._first_chunk_at))

    def _split_chunks(self, elements: npt.NDArray[Any]) -> Iterator[tuple[tuple[int, ...], npt.NDArray[Any]]]:
        """Yield the chunks that hold elements of the array: their coords in the shard, and their elements."""
        chunks = self.layout.chunks
        counts = [-(-size // chunk) for size, chunk in zip(elements.shape, chunks, strict=True)]
        for coords in product(*map(range, counts)):
            where = tuple(
                slice(coord * chunk, (coord + 1) * chunk) for coord, chunk in zip(coords, chunks, strict=True)
            )
            yield coords, self._pad(elements[where])

    def _rows_encoded_together(self, elements: npt.NDArray[Any]) -> int:
        """Count the rows of the small chunks of whole rows, which follow each other from the first row on."""
        chunks = self.layout.chunks
        is_plain = isinstance(self._pipeline, PlainPipeline) and len(chunks) > 0
        is_plain = is_plain and math.prod(self.layout.chunks_per_shard[1:]) == 1
        if not is_plain or elements.shape[1:] != chunks[1:] or self._blank.nbytes > _SMALL_CHUNK_BYTES:
            return 0
        whole: int = elements.shape[0] // chunks[0] * chunks[0]
        return whole

    def _encode_together(
        self, elements: npt.NDArray[Any], index: npt.NDArray[np.uint64]
    ) -> list[bytes | memoryview]:
        """Encode small chunks of whole rows, and enter them in the index, with little work of Python for each."""
        assert isinstance(self._pipeline, PlainPipeline)
        whole = np.ascontiguousarray(elements, self.layout.memory_dtype)
        chunks = _octets(whole).reshape(-1, self._blank.nbytes)
        stored = ~self._are_empty(chunks)
        parts, nbytes = self._pipeline.encode_together(chunks if stored.all() else chunks[stored])
        lengths = np.array(nbytes, INDEX_DTYPE)
        entries = index.reshape(-1, 2)[: len(chunks)]
        entries[stored, 0] = np.cumsum(lengths, dtype=INDEX_DTYPE) - lengths
        entries[stored, 1] = lengths
        # Each part is sent on its own.
        return [b"".join(parts)] if parts else []

    def _are_empty(self, chunks: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
        """Tell of each of many chunks, rows of bytes, whether it is empty."""
        blank = _words(self._blank)
        words = chunks.view(blank.dtype)
        step = max(len(blank) // 64, 1)
        are_empty: npt.NDArray[np.bool_] = (words[:, ::step] == blank[::step]).all(axis=1)
        for number in np.flatnonzero(are_empty).tolist():
            are_empty[number] = np.array_equal(words[number], blank)
        return are_empty

    def _pad(self, elements: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Pad elements to a chunk of the full shape, little-endian and C-contiguous. Such a chunk is not copied."""
        if elements.shape == self.layout.chunks:
            return np.ascontiguousarray(elements, self.layout.memory_dtype).reshape(self.layout.chunks)
        chunk = self._blank.copy()
        chunk[tuple(map(slice, elements.shape))] = elements
        return chunk

    def _is_empty(self, chunk: npt.NDArray[Any]) -> bool:
        """Tell whether all bytes of a chunk are those of the fill value."""
        words, blank = _words(chunk), _words(self._blank)
        # Comparing a few words first settles most cases.
        step = max(len(words) // 64, 1)
        return np.array_equal(words[::step], blank[::step]) and np.array_equal(words, blank)

    def _check_elements(self, elements: npt.NDArray[Any]) -> None:
        is_within = elements.ndim == len(self.layout.shards) and all(
            size <= shard for size, shard in zip(elements.shape, self.layout.shards, strict=True)
        )
        if not is_within or storable_dtype(elements.dtype) != self.layout.dtype:
            raise ValueError(
                f"a shard holds at most {self.layout.shards} elements of {self.layout.dtype}, not "
                f"{elements.shape} of {elements.dtype}"
            )


def choose_layout(
    shape: Sequence[int],
    dtype: np.dtype[Any],
    *,
    chunks: Sequence[int] | None = None,
    shards: Sequence[int] | Literal[False] | None = None,
    codecs: Sequence[Any] | None = None,
    chunk_size: int | None = None,
    sample: npt.NDArray[Any] | None = None,
) -> Layout:
    """Choose the layout of a new array, codecs included.

    Parameters
    ----------
    dtype, chunks, shards, chunk_size
        Parameters of `Layout.choose`.
    codecs
        All codecs of a chunk, as JSON or as objects of ``zarr.codecs``. By default bytes, and zstd with a checksum.
        Damage may go unnoticed if no codec makes a checksum. ``crc32c`` can follow any.
    sample
        Elements of the array, see `sample_of`, that tell how far it can be compressed: the chunks of an array that is
        compressed to little are larger.

    Raises
    ------
    InvalidInputError
        If the shapes don't fit the array or each other, or zarr can't use the codecs.
    DTypeError
        If Zarr has no such dtype.
    """
    layout = Layout.choose(
        shape,
        dtype,
        chunks=chunks,
        shards=shards,
        chunk_size=chunk_size,
        encoded_ratio=1.0 if sample is None or codecs is not None else encoded_ratio(sample, dtype),
    )
    # Only codecs that somebody gave take zarr, which is slow to load: few arrays need it.
    return (
        layout if codecs is None else replace(layout, codecs=_normalize_codecs(codecs, layout.chunks, dtype))
    )


def sample_of(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return rows from all over an array, at most `SAMPLED_BYTES` of them unless one row has more."""
    row_bytes = max(math.prod(array.shape[1:]) * array.itemsize, 1)
    count = max(SAMPLED_BYTES // row_bytes, 1)
    if array.ndim == 0 or array.shape[0] <= count:
        return array
    # Neighbours are taken, which is what compresses.
    each = -(-count // _SAMPLED_PLACES)
    firsts = np.linspace(0, array.shape[0] - each, _SAMPLED_PLACES).astype(np.int64)
    return np.concatenate([array[first : first + each] for first in firsts.tolist()])


def encoded_ratio(sample: npt.NDArray[Any], dtype: np.dtype[Any]) -> float:
    """Return the bytes of encoded elements for each byte of elements, by the codecs that are the default.

    Parts that are nothing but the fill value are left out: elements may come there later.
    """
    if sample.nbytes == 0 or has_any_length(dtype):
        return 1.0
    octets = _octets(np.ascontiguousarray(sample, dtype))
    parts = [octets] if octets.size < _PARTED_BYTES else np.array_split(octets, _SAMPLED_PLACES)
    pieces = [piece for piece in parts if piece.any()]
    pipeline = _default_pipeline(dtype)
    if pipeline is None or not pieces:
        return 1.0
    _, nbytes = pipeline.encode_together(pieces)
    return min(sum(nbytes) / sum(map(len, pieces)), 1.0)


@lru_cache(maxsize=64)
def _default_pipeline(dtype: np.dtype[Any]) -> PlainPipeline | None:
    """Return the pipeline by the codecs that are the default. Pipelines have no state."""
    return PlainPipeline.parse(default_codecs(dtype), dtype)


def pipeline_of(metadata: Mapping[str, Any], dtype: np.dtype[Any]) -> CodecPipeline:
    """Make the codec pipeline of an array each of whose objects is a chunk.

    Parameters
    ----------
    metadata
        Metadata of Zarr v3, as the catalogue keeps them.

    Raises
    ------
    InvalidInputError
        If zarr doesn't know the codecs.
    """
    return PlainPipeline.parse(metadata["codecs"], dtype) or ZarrPipeline(metadata, dtype, _find_inner_shards)


def parse_index(index: bytes, count: int, first_at: int = 0) -> npt.NDArray[np.uint64]:
    """Return the offset and length of each chunk, in C order, of a plain index.

    Parameters
    ----------
    count
        Chunks of the shard.
    first_at
        Byte of the object that chunks begin at, where the index has nothing but lengths.

    Returns
    -------
    numpy.ndarray
        Array of shape (chunks, 2). Both numbers of an empty chunk are `EMPTY`.

    Raises
    ------
    CorruptChunkError
        If it is no index of so many chunks.
    """
    for dtype in LENGTH_DTYPES:
        if count and len(index) == count * dtype.itemsize:
            return _ranges_of(np.frombuffer(index, dtype).astype(INDEX_DTYPE), first_at)
    if len(index) != count * RANGE_BYTES:
        raise CorruptChunkError(f"{len(index)} bytes are no index of {count} chunks")
    ranges = np.frombuffer(index, INDEX_DTYPE).reshape(-1, 2)
    is_empty = ranges == EMPTY
    if np.any(is_empty[:, 0] != is_empty[:, 1]) or np.any(ranges[:, 1] == 0):
        raise CorruptChunkError("an index names a chunk that is neither empty nor has bytes")
    return ranges


def plain_index(ranges: npt.NDArray[np.uint64], first_at: int = 0) -> bytes:
    """Return the plain index of a shard in its shortest form.

    Parameters
    ----------
    ranges
        Offset and length of each chunk, in C order.
    first_at
        Byte of the object that chunks begin at.
    """
    ranges = ranges.reshape(-1, 2)
    is_stored = ranges[:, 1] != EMPTY
    stored = ranges[is_stored]
    ends = first_at + np.cumsum(stored[:, 1], dtype=INDEX_DTYPE)
    # Whatever is neither empty nor a chunk with bytes stays as it is, for readers to refuse.
    follow_each_other = (
        np.array_equal(stored[:, 0], ends - stored[:, 1])
        and bool(stored[:, 1].all())
        and np.array_equal(ranges[:, 0] != EMPTY, is_stored)
    )
    longest = int(stored[:, 1].max(initial=0))
    for dtype in LENGTH_DTYPES:
        if follow_each_other and longest <= _LONGEST[dtype]:
            lengths = np.zeros(len(ranges), dtype)
            lengths[is_stored] = stored[:, 1]
            return lengths.tobytes()
    return ranges.tobytes()


def _words(elements: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return the bits of elements: -0.0 equals 0.0 as a value, and NaN does not equal itself."""
    return _octets(elements).view(np.uint64 if elements.nbytes % 8 == 0 else np.uint8)


def _octets(elements: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """Return the memory of a C-contiguous array."""
    # numpy refuses to see words in elements of another number of bytes, but not in bytes.
    return elements.reshape(-1).view(np.uint8)


def _ranges_of(lengths: npt.NDArray[np.uint64], first_at: int) -> npt.NDArray[np.uint64]:
    """Return the ranges of chunks that lie one after another, of which those without bytes are empty."""
    ends = first_at + np.cumsum(lengths, dtype=INDEX_DTYPE)
    ranges = np.stack((ends - lengths, lengths), axis=1)
    ranges[lengths == 0] = EMPTY
    return ranges


@dataclass(frozen=True)
class _InnerShards:
    """Shards within a chunk: their codec, and the order of axes of the transposes before it."""

    codec: ShardCodec
    #: For each axis of the chunk, the axis of the shards that it becomes.
    axes: tuple[int, ...]

    def decode(self, payload: memoryview, out: npt.NDArray[Any]) -> None:
        whole = np.empty(self.codec.layout.shards, self.codec.layout.dtype)
        self.codec.decode_object(payload, whole)
        out[...] = whole.transpose(self.axes)

    @property
    def encoded_room(self) -> int:
        layout = self.codec.layout
        return self.codec.index_nbytes + layout.chunk_count_per_shard * self.codec.encoded_room


def _find_inner_shards(
    metadata: Mapping[str, Any], codecs: Sequence[Codec], shape: tuple[int, ...], dtype: np.dtype[Any]
) -> _InnerShards | None:
    """Make the codec of the shards within a chunk, if its codecs say that there are any.

    Raises
    ------
    InvalidInputError
        If the shards stand behind codecs that make other elements.
    """
    if not codecs or name_of(codecs[-1]) != SHARDING:
        return None
    axes = list(range(len(shape)))
    for codec in codecs[:-1]:
        if name_of(codec) != "transpose":
            raise InvalidInputError(
                f"shards within a chunk behind the codec {name_of(codec)!r} cannot be read; behind 'transpose' they can"
            )
        # Several transposes act one after the other.
        axes = [axes[axis] for axis in configuration_of(codec)["order"]]
    shards = [shape[axis] for axis in axes]
    kept = array_metadata(dtype, shards, [codecs[-1]], metadata["fill_value"])
    return _InnerShards(ShardCodec(Layout.parse(kept, shards, dtype)), tuple(np.argsort(axes).tolist()))


def _normalize_codecs(
    codecs: Iterable[Any], chunks: tuple[int, ...], dtype: np.dtype[Any]
) -> tuple[Codec, ...]:
    """Normalize codecs that a user gave to the form that zarr writes, and try them on a chunk.

    Parameters
    ----------
    codecs
        Codecs as the JSON of Zarr's metadata, or as zarr's own objects.

    Raises
    ------
    InvalidInputError
        If zarr doesn't know the codecs, or they don't fit such chunks.
    """
    import zarr

    chunk = np.zeros(chunks, dtype)
    try:
        given = list(codecs)
        # Zarr fills in what the user left open, such as the element size of a shuffle.
        array = zarr.create(
            chunks,
            chunks=chunks,
            dtype=zarr_dtype(dtype),
            # zarr makes none of its own for records that hold others.
            fill_value=np.zeros((), zarr_dtype(dtype))[()],
            codecs=given,
            zarr_format=3,
            store={},
        )
        written: list[Codec] = json.loads(json.dumps(array.metadata.to_dict()["codecs"], allow_nan=False))
        pipeline = ZarrPipeline(
            array_metadata(dtype, chunks, written, default_fill_value(dtype)), dtype, _find_inner_shards
        )
        # Some codecs check their configuration only when they are used.
        pipeline.decode(memoryview(b"".join(pipeline.encode(chunk))), chunk)
    except Exception as error:
        # Each codec has errors of its own.
        raise InvalidInputError(
            f"codecs={codecs!r} do not do for chunks of {chunks} elements of {dtype}: {error}. Give them as the "
            f"metadata of Zarr have them, such as {list(default_codecs(dtype))}, or as objects of zarr.codecs"
        ) from error
    return tuple(written)
