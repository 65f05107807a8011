"""The codecs of a chunk at work: from elements to bytes and back.

`pipeline_of` gives the way through the codecs that an array names. `PlainPipeline` does the common ones by numcodecs
itself: elements as they are in memory, compressed by Blosc or zstd or not, with a checksum behind them or not.
`ZarrPipeline` does whatever zarr knows, by zarr. Both give the same bytes, and both are safe to use from many
threads at once.
"""

from __future__ import annotations

import json
import math
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, cast

import google_crc32c
import numpy as np
import numpy.typing as npt

from tensorage.backend.zarr.compressors import BloscBuffers, Compressor, CorruptChunkError, ZstdFrames
from tensorage.backend.zarr.inflate import Inflater, encoded_room, inflater_of
from tensorage.errors import InvalidInputError
from tensorage.model.zarr_metadata import (
    SHARDING,
    Codec,
    array_metadata,
    chunk_key,
    configuration_of,
    default_codecs,
    default_fill_value,
    name_of,
)

if TYPE_CHECKING:
    import zarr

    from tensorage.backend.zarr.codec import ShardCodec

__all__ = [
    "CRC32C_BYTES",
    "CodecPipeline",
    "PlainPipeline",
    "ZarrPipeline",
    "crc32c",
    "fill_value_of",
    "normalize_codecs",
    "pipeline_of",
]

CRC32C_BYTES = 4

#: Codecs that numcodecs is asked for, without zarr.
_COMPRESSORS: Mapping[str, Callable[[Mapping[str, Any]], Compressor | None]] = {
    "blosc": BloscBuffers.of,
    "zstd": ZstdFrames.of,
}


class CodecPipeline(Protocol):
    """The codecs of a chunk, in their order."""

    def encode(self, chunk: npt.NDArray[Any]) -> list[bytes | memoryview]:
        """The bytes of a chunk, one part after the other. They may be the chunk's own memory.

        Parameters
        ----------
        chunk
            Of the full shape, C-contiguous and little-endian.
        """

    def decode(self, data: memoryview, out: npt.NDArray[Any]) -> None:
        """Fill `out` with the elements of an encoded chunk.

        Parameters
        ----------
        data
            Of bytes.
        out
            Of the full shape, C-contiguous and little-endian.

        Raises
        ------
        CorruptChunkError
            What is in `out` is then of no use.
        """

    def encoded_room(self, nbytes: int) -> int:
        """Most bytes that a chunk of so many bytes of elements is encoded in."""


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
    return PlainPipeline.of(metadata["codecs"], dtype) or ZarrPipeline(metadata, dtype)


@dataclass(frozen=True)
class PlainPipeline:
    """Elements in their order in memory, then a compressor or none, then a checksum or none."""

    compressor: Compressor | None
    has_crc32c: bool

    @classmethod
    def of(cls, codecs: Sequence[Codec], dtype: np.dtype[Any]) -> PlainPipeline | None:
        """The chain, if the codecs are of this kind."""
        names = [name_of(codec) for codec in codecs]
        if names[:1] != ["bytes"]:
            return None
        if dtype.itemsize > 1 and configuration_of(codecs[0]).get("endian") != "little":
            return None
        rest = list(codecs[1:])
        has_crc32c = bool(rest) and name_of(rest[-1]) == "crc32c"
        if has_crc32c:
            del rest[-1]
        if not rest:
            return cls(None, has_crc32c)
        make = _COMPRESSORS.get(name_of(rest[0]))
        compressor = None if make is None or len(rest) > 1 else make(configuration_of(rest[0]))
        return None if compressor is None else cls(compressor, has_crc32c)

    def encode(self, chunk: npt.NDArray[Any]) -> list[bytes | memoryview]:
        elements = _octets(chunk)
        encoded = elements.data if self.compressor is None else self.compressor.encode(elements)
        return [encoded, crc32c(encoded)] if self.has_crc32c else [encoded]

    def decode(self, data: memoryview, out: npt.NDArray[Any]) -> None:
        payload = data
        if self.has_crc32c:
            payload, checksum = data[:-CRC32C_BYTES], data[-CRC32C_BYTES:]
            if checksum != crc32c(payload):
                raise CorruptChunkError(f"the checksum of {len(payload)} bytes is wrong")
        if self.compressor is not None:
            self.compressor.decode(payload, _octets(out))
        elif len(payload) != out.nbytes:
            raise CorruptChunkError(f"a chunk of {out.nbytes} bytes has {len(payload)}")
        else:
            _octets(out)[:] = np.frombuffer(payload, np.uint8)

    def encoded_room(self, nbytes: int) -> int:
        return encoded_room(nbytes)


class ZarrPipeline:
    """Any codecs that zarr knows: an array of a single chunk, in memory, that zarr writes and reads.

    Codecs between bytes are undone by `tensorage.backend.zarr.inflate`, each within the bound that the chunk sets,
    and shards within a chunk by a `ShardCodec` of their own. Zarr decodes what is left, which is no longer than the
    elements. A codec that somebody else has registered with zarr is that one's code, and zarr runs it as it is.

    Parameters
    ----------
    metadata
        As the catalogue keeps them, of an array each of whose objects is a chunk.

    Raises
    ------
    InvalidInputError
        If zarr can make nothing of them.
    """

    def __init__(self, metadata: Mapping[str, Any], dtype: np.dtype[Any]) -> None:
        import zarr
        from zarr.buffer.cpu import Buffer
        from zarr.storage import MemoryStore

        shape = metadata["chunk_grid"]["configuration"]["chunk_shape"]
        document = json.dumps({**metadata, "shape": shape, "attributes": {}}).encode()
        try:
            array = zarr.open_array(MemoryStore({"zarr.json": Buffer.from_bytes(document)}), mode="r")
        except Exception as error:
            # Each codec has errors of its own.
            raise InvalidInputError(
                f"zarr can make no chunks of {shape} elements of {dtype} with codecs={metadata['codecs']} and "
                f"fill_value={metadata['fill_value']!r}: {error}"
            ) from error
        self.fill_value = np.asarray(array.fill_value, dtype)
        self._shape, self._dtype, self._codecs = tuple(shape), dtype, list(metadata["codecs"])
        self._key = chunk_key([0] * len(shape))
        self._inflaters = _trailing_inflaters(self._codecs)
        self._inner_codecs = self._codecs[: len(self._codecs) - len(self._inflaters)]
        self._nested = _nested_shards(metadata, self._inner_codecs, self._shape, dtype)
        # Each is used by one thread at a time.
        self._idle: deque[_Slot] = deque()
        self._idle_inner: deque[_Slot] = self._idle if not self._inflaters else deque()

    def encode(self, chunk: npt.NDArray[Any]) -> list[bytes | memoryview]:
        return [self._encoded(chunk, self._idle, self._codecs)]

    def decode(self, data: memoryview, out: npt.NDArray[Any]) -> None:
        from zarr.buffer.cpu import Buffer, NDBuffer

        if not data:
            # Some codecs take this for a chunk that was never written.
            raise CorruptChunkError("there are no bytes")
        payload = data
        for position in reversed(range(len(self._inflaters))):
            payload = self._inflaters[position](
                payload, self._room(position), self._is_exact and not position
            )
        if self._nested is not None:
            self._nested.decode(payload, out)
            return
        if self._is_exact and len(payload) != self._inner_room:
            raise CorruptChunkError(f"a chunk of {self._inner_room} bytes has {len(payload)}")
        slot = self._take(self._idle_inner, self._inner_codecs)
        slot.objects[self._key] = Buffer.from_bytes(payload)
        try:
            slot.array.get_basic_selection(..., out=NDBuffer.from_numpy_array(out))
        except Exception as error:
            raise CorruptChunkError(f"zarr does not decode {len(data)} bytes: {error!r}") from error
        del slot.objects[self._key]
        self._idle_inner.append(slot)

    def encoded_room(self, nbytes: int) -> int:
        del nbytes
        return self._room(len(self._inflaters))

    def _room(self, count: int) -> int:
        """Most bytes that stand before so many of the codecs that are undone here have been at work."""
        nbytes = self._inner_room
        for _ in range(count):
            nbytes = encoded_room(nbytes)
        return nbytes

    @cached_property
    def _is_exact(self) -> bool:
        """Whether elements become the same number of bytes in every chunk."""
        return bool(self._inner_codecs) and name_of(self._inner_codecs[-1]) == "bytes"

    @cached_property
    def _inner_room(self) -> int:
        """Bytes of the elements, before codecs between bytes: so many, or where that differs, so many at most."""
        nbytes: int = math.prod(self._shape) * self._dtype.itemsize
        if self._nested is not None:
            return self._nested.encoded_room
        if not self._is_exact:
            return 2 * encoded_room(nbytes)
        if len(self._inner_codecs) == 1:
            return nbytes
        # Codecs between arrays may make other elements of them.
        blank = np.full(self._shape, self.fill_value, self._dtype)
        return len(self._encoded(blank, self._idle_inner, self._inner_codecs))

    def _encoded(self, chunk: npt.NDArray[Any], idle: deque[_Slot], codecs: list[Codec]) -> memoryview:
        slot = self._take(idle, codecs)
        slot.array[...] = chunk
        encoded = slot.objects.pop(self._key)
        idle.append(slot)
        return memoryview(encoded.as_numpy_array().data)

    def _take(self, idle: deque[_Slot], codecs: list[Codec]) -> _Slot:
        try:
            return idle.pop()
        except IndexError:
            return self._open(codecs)

    def _open(self, codecs: list[Codec]) -> _Slot:
        import zarr
        from zarr.storage import MemoryStore

        objects: dict[str, Any] = {}
        array = zarr.create(
            self._shape,
            chunks=self._shape,
            dtype=self._dtype,
            fill_value=self.fill_value[()],
            codecs=cast("Any", codecs),
            zarr_format=3,
            store=MemoryStore(objects),
            # Whether a chunk is written has been decided, and by bytes, not by values.
            config={"write_empty_chunks": True},
        )
        return _Slot(array, objects)


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


def _trailing_inflaters(codecs: Sequence[Codec]) -> list[Inflater]:
    """The ways to undo the last codecs, in the order in which they encode: as many as can be undone within a bound."""
    found: deque[Inflater] = deque()
    for codec in reversed(codecs):
        inflater = inflater_of(codec)
        if inflater is None:
            break
        found.appendleft(inflater)
    return list(found)


def _nested_shards(
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
    # They know this module.
    from tensorage.backend.zarr.codec import ShardCodec
    from tensorage.backend.zarr.layout import Layout

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


class _Slot(NamedTuple):
    """An array of one chunk, and the objects that it is made of."""

    array: zarr.Array[Any]
    objects: dict[str, Any]


def normalize_codecs(
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
        chain = ZarrPipeline(array_metadata(dtype, chunks, written, default_fill_value(dtype)), dtype)
        # Some codecs look at what they were told no sooner than this.
        chain.decode(memoryview(b"".join(chain.encode(chunk))), chunk)
    except Exception as error:
        # Each codec has errors of its own.
        raise InvalidInputError(
            f"codecs={codecs!r} do not do for chunks of {chunks} elements of {dtype}: {error}. Give them as the "
            f"metadata of Zarr have them, such as {list(default_codecs(dtype))}, or as objects of zarr.codecs"
        ) from error
    return tuple(written)


def fill_value_of(metadata: Mapping[str, Any], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """The fill value, as an array without dimensions."""
    value = metadata["fill_value"]
    if dtype.kind in "mM":
        if value == "NaT":
            return np.array(value, dtype)
    elif all(map(_is_zero, value if isinstance(value, list) else [value])):
        return np.zeros((), dtype)
    return ZarrPipeline(metadata, dtype).fill_value


def _is_zero(value: Any) -> bool:
    """Whether a number's bytes are zero, unlike those of -0.0."""
    return isinstance(value, int | float) and value == 0 and math.copysign(1, value) > 0


def _octets(array: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """The memory of a C-contiguous array."""
    return array.reshape(-1).view(np.uint8)


def crc32c(data: bytes | memoryview) -> bytes:
    """What the codec ``crc32c`` puts behind bytes."""
    return int(google_crc32c.value(np.frombuffer(data, np.uint8))).to_bytes(CRC32C_BYTES, "little")
