"""The codecs of a chunk at work: from elements to bytes and back.

`chain_of` gives the way through the codecs that an array names. `PlainChain` does the common ones by numcodecs
itself: elements as they are in memory, compressed by Blosc or zstd or not, with a checksum behind them or not.
`ZarrChain` does whatever zarr knows, by zarr. Both give the same bytes, and both are safe to use from many threads at
once.
"""

from __future__ import annotations

import json
import math
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import google_crc32c
import numpy as np
import numpy.typing as npt

from tensorage.backend.objects.compressors import BloscBuffers, Compressor, CorruptChunkError, ZstdFrames
from tensorage.backend.objects.metadata import (
    Codec,
    array_metadata,
    chunk_key,
    configuration_of,
    default_codecs,
    default_fill_value,
    name_of,
)
from tensorage.errors import InvalidInputError

if TYPE_CHECKING:
    import zarr

__all__ = [
    "CRC32C_BYTES",
    "Chain",
    "PlainChain",
    "ZarrChain",
    "chain_of",
    "checked_codecs",
    "crc32c",
    "fill_value_of",
]

CRC32C_BYTES = 4

#: Codecs that numcodecs is asked for, without zarr.
_COMPRESSORS: Mapping[str, Callable[[Mapping[str, Any]], Compressor | None]] = {
    "blosc": BloscBuffers.of,
    "zstd": ZstdFrames.of,
}


class Chain(Protocol):
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


def chain_of(metadata: Mapping[str, Any], dtype: np.dtype[Any]) -> Chain:
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
    return PlainChain.of(metadata["codecs"], dtype) or ZarrChain(metadata, dtype)


@dataclass(frozen=True)
class PlainChain:
    """Elements in their order in memory, then a compressor or none, then a checksum or none."""

    compressor: Compressor | None
    has_crc32c: bool

    @classmethod
    def of(cls, codecs: Sequence[Codec], dtype: np.dtype[Any]) -> PlainChain | None:
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


class ZarrChain:
    """Any codecs that zarr knows: an array of a single chunk, in memory, that zarr writes and reads.

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
        self._shape, self._dtype, self._codecs = tuple(shape), dtype, metadata["codecs"]
        self._key = chunk_key([0] * len(shape))
        # Each is used by one thread at a time.
        self._idle: deque[_Slot] = deque()

    def encode(self, chunk: npt.NDArray[Any]) -> list[bytes | memoryview]:
        slot = self._take()
        slot.array[...] = chunk
        encoded = slot.objects.pop(self._key)
        self._idle.append(slot)
        return [encoded.as_numpy_array().data]

    def decode(self, data: memoryview, out: npt.NDArray[Any]) -> None:
        from zarr.buffer.cpu import Buffer, NDBuffer

        if not data:
            # Some codecs take this for a chunk that was never written.
            raise CorruptChunkError("there are no bytes")
        slot = self._take()
        slot.objects[self._key] = Buffer.from_bytes(data)
        try:
            slot.array.get_basic_selection(..., out=NDBuffer.from_numpy_array(out))
        except Exception as error:
            raise CorruptChunkError(f"zarr does not decode {len(data)} bytes: {error!r}") from error
        del slot.objects[self._key]
        self._idle.append(slot)

    def _take(self) -> _Slot:
        try:
            return self._idle.pop()
        except IndexError:
            return self._open()

    def _open(self) -> _Slot:
        import zarr
        from zarr.storage import MemoryStore

        objects: dict[str, Any] = {}
        array = zarr.create(
            self._shape,
            chunks=self._shape,
            dtype=self._dtype,
            fill_value=self.fill_value[()],
            codecs=self._codecs,
            zarr_format=3,
            store=MemoryStore(objects),
            # Whether a chunk is written has been decided, and by bytes, not by values.
            config={"write_empty_chunks": True},
        )
        return _Slot(array, objects)


class _Slot(NamedTuple):
    """An array of one chunk, and the objects that it is made of."""

    array: zarr.Array[Any]
    objects: dict[str, Any]


def checked_codecs(codecs: Iterable[Any], chunks: tuple[int, ...], dtype: np.dtype[Any]) -> tuple[Codec, ...]:
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
        chain = ZarrChain(array_metadata(dtype, chunks, written, default_fill_value(dtype)), dtype)
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
    return ZarrChain(metadata, dtype).fill_value


def _is_zero(value: Any) -> bool:
    """Whether a number's bytes are zero, unlike those of -0.0."""
    return isinstance(value, int | float) and value == 0 and math.copysign(1, value) > 0


def _octets(array: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """The memory of a C-contiguous array."""
    return array.reshape(-1).view(np.uint8)


def crc32c(data: bytes | memoryview) -> bytes:
    """What the codec ``crc32c`` puts behind bytes."""
    return int(google_crc32c.value(np.frombuffer(data, np.uint8))).to_bytes(CRC32C_BYTES, "little")
