"""Shards in and out of bytes.

`ShardCodec` makes of a shard's elements the object that is stored, and gives its chunks back. Objects are exactly
those of Zarr v3: one encoded chunk where the array is not sharded, and otherwise encoded chunks, wherever they lie,
and an index that says where.

The index is kept in two forms. *Encoded*, as it stands in the object, with its checksum. And as the catalogue has
it, so that a reader needs to fetch nothing but chunks: for each chunk in C order its offset in the object and its
length, as little-endian uint64. Both are 2**64 - 1 where a chunk is *empty*, which means that all its elements are
the fill value; so are those of a shard without an object. Chunks that are so are never stored, down to the bit:
one of -0.0 is stored, one of 0.0 is not. What was stored and is lost or damaged is therefore never taken for empty.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from tensorage.backend.zarr.codec_pipeline import CodecPipeline, PlainPipeline, ZarrPipeline, fill_value_of
from tensorage.backend.zarr.compressors import CorruptChunkError
from tensorage.backend.zarr.layout import Layout
from tensorage.errors import InvalidInputError
from tensorage.model.memory import new_array
from tensorage.model.zarr_metadata import (
    SHARDING,
    Codec,
    array_metadata,
    configuration_of,
    default_codecs,
    default_fill_value,
    name_of,
)

__all__ = [
    "EMPTY",
    "CorruptChunkError",
    "EncodedShard",
    "ShardCodec",
    "choose_layout",
    "parse_index",
    "pipeline_of",
]

#: What is in memory in one piece.
Bytes = bytes | bytearray | memoryview

#: Offset and length of an empty chunk.
EMPTY = 2**64 - 1

ENTRY_BYTES = 16

#: Of an index, in both its forms.
INDEX_DTYPE = np.dtype("<u8")


@dataclass(frozen=True, slots=True)
class EncodedShard:
    """The object of a shard, and what the catalogue says of it.

    Parameters
    ----------
    parts
        The object's bytes, one part after the other; none if all elements are the fill value, and there is no
        object to be made. Parts may be memory of the elements that were encoded: those must not change before
        the parts are sent.
    nbytes
        Of the object; 0 if there is none.
    index
        As the catalogue has it: empty where the array is not sharded.
    """

    parts: list[bytes | memoryview]
    nbytes: int
    index: bytes


class ShardCodec:
    """Encodes and decodes the shards of one array, safe to use from many threads at once.

    Parameters
    ----------
    layout
        Of the array. Its extents don't matter: a codec serves the array however much it grows.

    Raises
    ------
    InvalidInputError
        If zarr doesn't know its codecs.
    """

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        of_chunk = array_metadata(layout.dtype, layout.chunks, layout.codecs, layout.fill_value)
        self._chain = pipeline_of(of_chunk, layout.dtype)
        #: What an empty chunk consists of, as an array without dimensions.
        self.fill_value = fill_value_of(of_chunk, layout.dtype)

    def encode(self, elements: npt.NDArray[Any]) -> EncodedShard:
        """The object of a shard.

        Parameters
        ----------
        elements
            All that the shard has of the array: as many as `layout.region` says, from its first on, in any byte
            order and with any strides.
        """
        self._check_elements(elements)
        if not self.layout.is_sharded:
            chunk = self._full(elements)
            parts = [] if self._is_empty(chunk) else self._chain.encode(chunk)
            return EncodedShard(parts, sum(map(len, parts)), b"")
        index = self._no_chunks()
        parts, nbytes = [], 0
        for coords, chunk in self._chunks_within(elements):
            if self._is_empty(chunk):
                continue
            encoded = self._chain.encode(chunk)
            length = sum(map(len, encoded))
            index[coords] = nbytes, length
            parts += encoded
            nbytes += length
        return self._with_index(parts, nbytes, index)

    def decode(self, data: Bytes, out: npt.NDArray[Any] | None = None) -> npt.NDArray[Any]:
        """The elements of one encoded chunk, in the chunk's full shape.

        Parameters
        ----------
        data
            The bytes at one of `ranges`.
        out
            Where they are put: a C-contiguous array of the full shape, in the layout's dtype. By default a new
            one.

        Raises
        ------
        CorruptChunkError
            If these are no encoded chunk, or not a whole one. What is in `out` is then of no use.
        """
        if out is None:
            out = new_array(self.layout.chunks, self.layout.dtype, "decoding a chunk")
        elif out.shape != self.layout.chunks or out.dtype != self.layout.dtype or not out.flags.carray:
            raise ValueError(
                f"out has to be a writable C-contiguous array of {self.layout.chunks} {self.layout.dtype}, not of "
                f"{out.shape} {out.dtype}"
            )
        self._chain.decode(memoryview(data).cast("B"), out)
        return out

    def decode_object(self, blob: Bytes, out: npt.NDArray[Any]) -> None:
        """The elements of a whole object.

        Parameters
        ----------
        out
            Where they are put: of a shard's full shape, in the layout's dtype.

        Raises
        ------
        CorruptChunkError
            If its index or a chunk is damaged. What is in `out` is then of no use.
        """
        data = memoryview(blob).cast("B")
        ranges = self.ranges(self.index_of(data), len(data)).tolist()
        chunk = None
        for coords, (offset, length) in zip(np.ndindex(*self.layout.chunks_per_shard), ranges, strict=True):
            where = tuple(
                slice(coord * extent, (coord + 1) * extent)
                for coord, extent in zip(coords, self.layout.chunks, strict=True)
            )
            if offset == EMPTY:
                out[where] = self.fill_value
            else:
                chunk = self.decode(data[offset : offset + length], chunk)
                out[where] = chunk

    @cached_property
    def encoded_room(self) -> int:
        """Most bytes that a chunk is encoded in. What is longer is not looked at."""
        return self._chain.encoded_room(math.prod(self.layout.chunks) * self.layout.dtype.itemsize)

    def ranges(self, index: bytes, nbytes: int) -> npt.NDArray[np.uint64]:
        """Offset and length of each chunk of a shard, in C order, by what the catalogue says of it.

        Parameters
        ----------
        nbytes
            Of the shard's object, 0 if it has none.

        Returns
        -------
        numpy.ndarray
            Of shape (chunks of a shard, 2). `EMPTY` twice for an empty chunk. All others lie within the object.

        Raises
        ------
        CorruptChunkError
            If the index is none of such an object, or a chunk is longer than its elements can become.
        """
        count = self.layout.chunk_count_per_shard
        if nbytes == 0 and not index:
            return self._no_chunks().reshape(count, 2)
        if not self.layout.is_sharded and not index:
            self._check_length(nbytes)
            return np.array([[0, nbytes]], INDEX_DTYPE)
        entries = parse_index(index)
        if len(entries) != (count if self.layout.is_sharded else 0):
            raise CorruptChunkError(f"an index of {count} chunks has {len(entries)} entries")
        stored = entries[entries[:, 0] != EMPTY]
        # Their sum might be more than such a number holds.
        if np.any(stored[:, 1] > nbytes) or np.any(stored[:, 0] > nbytes - stored[:, 1]):
            raise CorruptChunkError(f"an index names chunks outside of their object of {nbytes} bytes")
        if len(stored):
            self._check_length(int(stored[:, 1].max()))
        return entries

    def index_of(self, blob: Bytes) -> bytes:
        """The index of a whole object, as the catalogue has it.

        Raises
        ------
        CorruptChunkError
            If the object has no intact index.
        """
        data = memoryview(blob).cast("B")
        if not self.layout.is_sharded:
            if not data:
                # The catalogue would have it for a shard without an object.
                raise CorruptChunkError("there are no bytes")
            return b""
        if len(data) < self.index_nbytes:
            raise CorruptChunkError(f"{len(data)} bytes have no room for an index of {self.index_nbytes}")
        is_first = self.layout.index_location == "start"
        index = self.decode_index(data[: self.index_nbytes] if is_first else data[-self.index_nbytes :])
        self.ranges(index, len(data))
        return index

    def decode_index(self, data: Bytes) -> bytes:
        """An index as the catalogue has it, of the `index_nbytes` that it takes at its end of the object.

        Raises
        ------
        CorruptChunkError
        """
        entries = self._no_chunks()
        self._index_chain.decode(memoryview(data).cast("B"), entries)
        return entries.tobytes()

    def encode_index(self, index: bytes) -> bytes:
        """An index as it stands in the object, of one as the catalogue has it.

        Raises
        ------
        CorruptChunkError
            If it is none of so many chunks.
        """
        entries = parse_index(index)
        if len(entries) != self.layout.chunk_count_per_shard:
            raise CorruptChunkError(
                f"an index of {self.layout.chunk_count_per_shard} chunks has {len(entries)} entries"
            )
        return b"".join(self._index_chain.encode(entries.reshape(self._no_chunks().shape)))

    def _check_length(self, nbytes: int) -> None:
        """Refuse a chunk of so many bytes, if its elements never take as many."""
        if nbytes > self.encoded_room:
            raise CorruptChunkError(
                f"a chunk of {nbytes} bytes is longer than the {self.encoded_room} that {self.layout.chunks} elements "
                f"of {self.layout.dtype} take at most"
            )

    @cached_property
    def index_nbytes(self) -> int:
        """Length of an encoded index, which is the same for all shards; 0 where the array is not sharded."""
        if not self.layout.is_sharded:
            return 0
        return sum(map(len, self._index_chain.encode(self._no_chunks())))

    @cached_property
    def _index_chain(self) -> CodecPipeline:
        shape = self._no_chunks().shape
        return pipeline_of(array_metadata(INDEX_DTYPE, shape, self.layout.index_codecs, EMPTY), INDEX_DTYPE)

    def _no_chunks(self) -> npt.NDArray[np.uint64]:
        """The index of a shard all of whose chunks are empty."""
        return np.full((*self.layout.chunks_per_shard, 2), EMPTY, INDEX_DTYPE)

    @cached_property
    def _blank(self) -> npt.NDArray[Any]:
        """An empty chunk."""
        return np.full(self.layout.chunks, self.fill_value, self.layout.dtype)

    def _with_index(
        self, parts: list[bytes | memoryview], nbytes: int, index: npt.NDArray[np.uint64]
    ) -> EncodedShard:
        """The object of these chunks, which lie one after the other from offset 0 on."""
        if not parts:
            return EncodedShard([], 0, index.tobytes())
        if self.layout.index_location == "start":
            index[..., 0] += np.where(index[..., 0] == EMPTY, 0, self.index_nbytes).astype(INDEX_DTYPE)
            parts = [*self._index_chain.encode(index), *parts]
        else:
            parts = [*parts, *self._index_chain.encode(index)]
        return EncodedShard(parts, nbytes + self.index_nbytes, index.tobytes())

    def _chunks_within(
        self, elements: npt.NDArray[Any]
    ) -> Iterator[tuple[tuple[int, ...], npt.NDArray[Any]]]:
        """The chunks that hold elements: their positions in the shard, and what they are encoded from."""
        chunks = self.layout.chunks
        counts = [-(-extent // chunk) for extent, chunk in zip(elements.shape, chunks, strict=True)]
        for coords in product(*map(range, counts)):
            where = tuple(
                slice(coord * chunk, (coord + 1) * chunk) for coord, chunk in zip(coords, chunks, strict=True)
            )
            yield coords, self._full(elements[where])

    def _full(self, elements: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Elements as a chunk of the full shape, little-endian and C-contiguous; copied only if they are not."""
        if elements.shape == self.layout.chunks:
            return np.ascontiguousarray(elements, self.layout.dtype).reshape(self.layout.chunks)
        chunk = self._blank.copy()
        chunk[tuple(map(slice, elements.shape))] = elements
        return chunk

    def _is_empty(self, chunk: npt.NDArray[Any]) -> bool:
        """Whether all bytes of a chunk are those of the fill value."""
        word = np.uint64 if chunk.nbytes % 8 == 0 else np.uint8
        words, blank = chunk.reshape(-1).view(word), self._blank.reshape(-1).view(word)
        # A few of them settle it mostly.
        step = max(len(words) // 64, 1)
        return np.array_equal(words[::step], blank[::step]) and np.array_equal(words, blank)

    def _check_elements(self, elements: npt.NDArray[Any]) -> None:
        is_within = elements.ndim == len(self.layout.shards) and all(
            extent <= shard for extent, shard in zip(elements.shape, self.layout.shards, strict=True)
        )
        if not is_within or elements.dtype.newbyteorder("<") != self.layout.dtype:
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
) -> Layout:
    """Choose the layout of a new array, codecs included.

    Parameters
    ----------
    dtype, chunks, shards, chunk_size
        Parameters of `Layout.choose`.
    codecs
        All codecs of a chunk, as JSON or as objects of ``zarr.codecs``. By default bytes, and zstd with a checksum.
        Where none of them makes a checksum (``crc32c`` can follow any), damage may go unnoticed.

    Raises
    ------
    InvalidInputError
        If the shapes don't fit the array or each other, or zarr can't use the codecs.
    DTypeError
        If Zarr has no such dtype.
    """
    layout = Layout.choose(shape, dtype, chunks=chunks, shards=shards, chunk_size=chunk_size)
    # Only codecs that somebody gave take zarr, which is slow to load: few arrays need it.
    return (
        layout if codecs is None else replace(layout, codecs=_normalize_codecs(codecs, layout.chunks, dtype))
    )


def pipeline_of(metadata: Mapping[str, Any], dtype: np.dtype[Any]) -> CodecPipeline:
    """The way through the codecs of an array each of whose objects is a chunk.

    Parameters
    ----------
    metadata
        As the catalogue keeps them.

    Raises
    ------
    InvalidInputError
        If zarr doesn't know the codecs.
    """
    return PlainPipeline.of(metadata["codecs"], dtype) or ZarrPipeline(metadata, dtype, _find_inner_shards)


def parse_index(index: bytes) -> npt.NDArray[np.uint64]:
    """Offset and length of each chunk, in C order, of an index as the catalogue has it.

    Returns
    -------
    numpy.ndarray
        Of shape (chunks, 2). `EMPTY` twice for an empty chunk.

    Raises
    ------
    CorruptChunkError
    """
    if len(index) % ENTRY_BYTES:
        raise CorruptChunkError(
            f"an index has {ENTRY_BYTES} bytes for each chunk, and {len(index)} are no multiple"
        )
    entries = np.frombuffer(index, INDEX_DTYPE).reshape(-1, 2)
    is_empty = entries == EMPTY
    if np.any(is_empty[:, 0] != is_empty[:, 1]) or np.any(entries[:, 1] == 0):
        raise CorruptChunkError("an index names a chunk that is neither empty nor has bytes")
    return entries


@dataclass(frozen=True)
class _NestedShards:
    """Shards within a chunk: the codec that gives their chunks back, and where the axes went before."""

    codec: ShardCodec
    #: For each axis of the chunk, the one of the shards that it is.
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
) -> _NestedShards | None:
    """The codec of the shards that a chunk consists of, if these are its codecs.

    Raises
    ------
    InvalidInputError
        If they stand behind codecs that make other elements.
    """
    if not codecs or name_of(codecs[-1]) != SHARDING:
        return None
    axes = list(range(len(shape)))
    for codec in codecs[:-1]:
        if name_of(codec) != "transpose":
            raise InvalidInputError(
                f"shards within a chunk behind the codec {name_of(codec)!r} cannot be read; behind 'transpose' they can"
            )
        axes = [axes[axis] for axis in configuration_of(codec)["order"]]
    shards = [shape[axis] for axis in axes]
    kept = array_metadata(dtype, shards, [codecs[-1]], metadata["fill_value"])
    return _NestedShards(ShardCodec(Layout.parse(kept, shards, dtype)), tuple(np.argsort(axes).tolist()))


def _normalize_codecs(
    codecs: Iterable[Any], chunks: tuple[int, ...], dtype: np.dtype[Any]
) -> tuple[Codec, ...]:
    """Codecs as somebody gave them, in the form that zarr writes down, after a chunk went through them and back.

    Parameters
    ----------
    codecs
        As the JSON of Zarr's metadata, or as zarr's own objects.

    Raises
    ------
    InvalidInputError
        If zarr doesn't know them, or they don't do for such chunks.
    """
    import zarr

    chunk = np.zeros(chunks, dtype)
    try:
        given = list(codecs)
        # What they leave open, zarr chooses now, such as the element size of a shuffle.
        array = zarr.create(chunks, chunks=chunks, dtype=dtype, codecs=given, zarr_format=3, store={})
        written: list[Codec] = json.loads(json.dumps(array.metadata.to_dict()["codecs"], allow_nan=False))
        chain = ZarrPipeline(
            array_metadata(dtype, chunks, written, default_fill_value(dtype)), dtype, _find_inner_shards
        )
        # Some codecs look at what they were told no sooner than this.
        chain.decode(memoryview(b"".join(chain.encode(chunk))), chunk)
    except Exception as error:
        # Each codec has errors of its own.
        raise InvalidInputError(
            f"codecs={codecs!r} do not do for chunks of {chunks} elements of {dtype}: {error}. Give them as the "
            f"metadata of Zarr have them, such as {list(default_codecs(dtype))}, or as objects of zarr.codecs"
        ) from error
    return tuple(written)
