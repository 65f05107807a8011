"""Codec pipelines: from the elements of a chunk to bytes and back.

`PlainPipeline` runs the common codecs by numcodecs itself: elements as they are in memory, compressed by Blosc or zstd
or not, with a checksum behind them or not. `ZarrPipeline` runs all codecs that zarr knows, by zarr. Both make the same
bytes, and both are safe to use from many threads at once.

`check_encoded_chunk` tells damage without decoding.
"""

from __future__ import annotations

import base64
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

from tensorage.backend.zarr.compressors import (
    BLOSC_HEADER,
    CUT_OFF,
    BloscBuffers,
    Compressor,
    CorruptChunkError,
    ZstdFrames,
    end_of_frame,
)
from tensorage.backend.zarr.inflate import Inflater, encoded_room, inflater_of
from tensorage.backend.zarr.layout import Layout
from tensorage.dtypes import has_byte_order, is_small_float
from tensorage.errors import InvalidInputError
from tensorage.indexing.selection import Positions
from tensorage.model.zarr_metadata import (
    Codec,
    chunk_key,
    configuration_of,
    name_of,
    zarr_dtype,
)

if TYPE_CHECKING:
    import zarr

__all__ = [
    "CRC32C_BYTES",
    "CodecPipeline",
    "InnerShards",
    "PlainPipeline",
    "ZarrPipeline",
    "check_encoded_chunk",
    "crc32c",
    "fill_value_of",
]

#: Bytes of the checksum that the codec ``crc32c`` writes.
CRC32C_BYTES = 4

#: Compressors that run by numcodecs, without zarr.
_COMPRESSORS: Mapping[str, Callable[[Mapping[str, Any]], Compressor | None]] = {
    "blosc": BloscBuffers.parse,
    "zstd": ZstdFrames.parse,
}


class CodecPipeline(Protocol):
    """Codecs of a chunk, one after another."""

    def encode(self, chunk: npt.NDArray[Any]) -> list[bytes | memoryview]:
        """Encode a chunk to bytes, one part after the other. Parts may be the chunk's own memory.

        Parameters
        ----------
        chunk
            Chunk of the full shape, C-contiguous and little-endian.
        """

    def decode(self, data: memoryview, out: npt.NDArray[Any]) -> None:
        """Fill `out` with the elements of an encoded chunk.

        Parameters
        ----------
        data
            Bytes of the encoded chunk.
        out
            Array of the full shape, C-contiguous and little-endian.

        Raises
        ------
        CorruptChunkError
            If the bytes are no encoded chunk. The content of `out` is then of no use.
        """

    def encoded_room(self, nbytes: int) -> int:
        """Return the most bytes that a chunk of `nbytes` bytes of elements is encoded in."""


class InnerShards(Protocol):
    """Shards that a chunk consists of, where a codec of the chunk is itself the sharding codec."""

    @property
    def encoded_room(self) -> int:
        """Most bytes that the shards are encoded in."""

    def decode(self, payload: memoryview, out: npt.NDArray[Any]) -> None:
        """Fill `out` with the elements of encoded shards, as `CodecPipeline.decode` does for a chunk."""


#: Finds the shards within a chunk, by the metadata, the codecs before those between bytes, and the chunk's shape and
#: dtype. None if there are none.
FindInnerShards = Callable[
    [Mapping[str, Any], Sequence[Codec], tuple[int, ...], np.dtype[Any]], InnerShards | None
]


@dataclass(frozen=True)
class PlainPipeline:
    """Elements in memory order, then perhaps a compressor, then perhaps a checksum."""

    compressor: Compressor | None
    has_crc32c: bool

    @classmethod
    def parse(cls, codecs: Sequence[Codec], dtype: np.dtype[Any]) -> PlainPipeline | None:
        """Make the pipeline, if the codecs are of this kind."""
        names = [name_of(codec) for codec in codecs]
        if names[:1] != ["bytes"]:
            return None
        # Elements are little-endian in memory. Zarr leaves the order out for bytes, which have none, and for records.
        endian = configuration_of(codecs[0]).get("endian")
        if endian != "little" and (endian is not None or has_byte_order(dtype)):
            return None
        rest = list(codecs[1:])
        # Any other order or number of codecs is left to zarr.
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

    def encode_together(self, chunks: Iterable[npt.NDArray[np.uint8]]) -> tuple[list[bytes], list[int]]:
        """Encode small chunks with little work of Python for each.

        Parameters
        ----------
        chunks
            Bytes of the elements of each chunk.

        Returns
        -------
        tuple
            Bytes of the encoded chunks in parts, one after the other, and the number of bytes of each chunk.
        """
        encode = bytes if self.compressor is None else self.compressor.encode
        encoded = [encode(chunk) for chunk in chunks]
        if not self.has_crc32c:
            return encoded, [len(payload) for payload in encoded]
        parts = [part for payload in encoded for part in (payload, crc32c(payload))]
        return parts, [len(payload) + CRC32C_BYTES for payload in encoded]

    def decode_together(
        self, data: npt.NDArray[np.uint8], starts: Positions, ends: Positions, out: npt.NDArray[np.uint8]
    ) -> bool:
        """Decode small chunks with little work of Python for each: see `Compressor.decode_together`.

        Parameters
        ----------
        data
            Memory with the encoded chunks. The bytes before the first of them, at least `joined_room`, are written
            over.
        starts, ends
            Place of each encoded chunk in `data`.
        out
            Room for the elements of each chunk, a row each.

        Returns
        -------
        bool
            False if the chunks have to be decoded one by one. The content of `out` is then of no use.
        """
        if self.compressor is None:
            return False
        if self.has_crc32c:
            ends = ends - CRC32C_BYTES
            if int((ends - starts).min()) < 0:
                return False
            stored = data[ends[:, np.newaxis] + np.arange(CRC32C_BYTES)].view("<u4")[:, 0]
            found = [
                google_crc32c.value(data[start:end])
                for start, end in zip(starts.tolist(), ends.tolist(), strict=True)
            ]
            if found != stored.tolist():
                return False
        return self.compressor.decode_together(data, starts, ends - starts, out)

    def encoded_room(self, nbytes: int) -> int:
        return encoded_room(nbytes)


class ZarrPipeline:
    """Any codecs that zarr knows. Zarr writes and reads an array of a single chunk, in memory.

    `tensorage.backend.zarr.inflate` undoes codecs between bytes, each within the bound that the chunk sets. Shards
    within a chunk are decoded by a `ShardCodec` of their own. Zarr decodes the rest, which is no longer than the
    elements. A codec that somebody else has registered with zarr is foreign code, and zarr runs it without a bound.

    Parameters
    ----------
    metadata
        Metadata of Zarr v3, as the catalogue keeps them, of an array each of whose objects is a chunk.

    Raises
    ------
    InvalidInputError
        If zarr cannot read the metadata.
    """

    def __init__(
        self,
        metadata: Mapping[str, Any],
        dtype: np.dtype[Any],
        find_inner_shards: FindInnerShards | None = None,
    ) -> None:
        import zarr
        from zarr.buffer.cpu import Buffer
        from zarr.storage import MemoryStore

        shape = metadata["chunk_grid"]["configuration"]["chunk_shape"]
        document = json.dumps({**metadata, "shape": shape, "attributes": {}}).encode()
        try:
            array = zarr.open_array(MemoryStore({"zarr.json": Buffer.from_bytes(document)}), mode="r")
        except Exception as error:
            # The errors of codecs have no common type.
            raise InvalidInputError(
                f"zarr can make no chunks of {shape} elements of {dtype} with codecs={metadata['codecs']} and "
                f"fill_value={metadata['fill_value']!r}: {error}"
            ) from error
        # zarr has other names for some of the same bytes.
        self._zarr_dtype = zarr_dtype(dtype)
        self.fill_value = np.asarray(array.fill_value, self._zarr_dtype).view(dtype)
        self._shape, self._dtype, self._codecs = tuple(shape), dtype, list(metadata["codecs"])
        self._key = chunk_key([0] * len(shape))
        self._inflaters = _trailing_inflaters(self._codecs)
        self._inner_codecs = self._codecs[: len(self._codecs) - len(self._inflaters)]
        self._inner_shards = (
            None
            if find_inner_shards is None
            else find_inner_shards(metadata, self._inner_codecs, self._shape, dtype)
        )
        # A thread takes a slot for one call, so no slot is used by two threads at a time.
        self._idle: deque[_Slot] = deque()
        # `deque.pop` and `append` are atomic, so the slots need no lock.
        self._idle_inner: deque[_Slot] = self._idle if not self._inflaters else deque()

    def encode(self, chunk: npt.NDArray[Any]) -> list[bytes | memoryview]:
        return [self._encode_by_zarr(chunk, self._idle, self._codecs)]

    def decode(self, data: memoryview, out: npt.NDArray[Any]) -> None:
        from zarr.buffer.cpu import Buffer, NDBuffer

        if not data:
            # Some codecs take empty bytes for a chunk that was never written.
            raise CorruptChunkError("there are no bytes")
        payload = data
        for position in reversed(range(len(self._inflaters))):
            payload = self._inflaters[position](
                payload, self._room(position), self._is_exact and not position
            )
        if self._inner_shards is not None:
            self._inner_shards.decode(payload, out)
            return
        if self._is_exact and len(payload) != self._inner_room:
            raise CorruptChunkError(f"a chunk of {self._inner_room} bytes has {len(payload)}")
        slot = self._take_slot(self._idle_inner, self._inner_codecs)
        # A slot whose chunk zarr fails to decode is not put back: its state is not known.
        slot.objects[self._key] = Buffer.from_bytes(payload)
        try:
            slot.array.get_basic_selection(..., out=NDBuffer.from_numpy_array(out.view(self._zarr_dtype)))
        except Exception as error:
            raise CorruptChunkError(f"zarr does not decode {len(data)} bytes: {error!r}") from error
        del slot.objects[self._key]
        self._idle_inner.append(slot)

    def encoded_room(self, nbytes: int) -> int:
        del nbytes
        return self._room(len(self._inflaters))

    def _room(self, count: int) -> int:
        """Return the most bytes that a chunk has after `count` of the codecs that are undone here have encoded it."""
        nbytes = self._inner_room
        for _ in range(count):
            nbytes = encoded_room(nbytes)
        return nbytes

    @cached_property
    def _is_exact(self) -> bool:
        """True if the elements of every chunk become the same number of bytes."""
        return bool(self._inner_codecs) and name_of(self._inner_codecs[-1]) == "bytes"

    @cached_property
    def _inner_room(self) -> int:
        """Bytes of the elements before codecs between bytes: their number, or the most if it differs between chunks."""
        nbytes: int = math.prod(self._shape) * self._dtype.itemsize
        if self._inner_shards is not None:
            return self._inner_shards.encoded_room
        if not self._is_exact:
            # A codec from arrays to bytes that is not known here: twice the elements is a generous bound.
            return 2 * encoded_room(nbytes)
        if len(self._inner_codecs) == 1:
            return nbytes
        # Codecs between arrays may change the dtype, so encode a chunk and see.
        blank = np.full(self._shape, self.fill_value, self._dtype)
        return len(self._encode_by_zarr(blank, self._idle_inner, self._inner_codecs))

    def _encode_by_zarr(self, chunk: npt.NDArray[Any], idle: deque[_Slot], codecs: list[Codec]) -> memoryview:
        slot = self._take_slot(idle, codecs)
        slot.array[...] = chunk.view(self._zarr_dtype)
        encoded = slot.objects.pop(self._key)
        idle.append(slot)
        return memoryview(encoded.as_numpy_array().data)

    def _take_slot(self, idle: deque[_Slot], codecs: list[Codec]) -> _Slot:
        try:
            return idle.pop()
        except IndexError:
            return self._open_slot(codecs)

    def _open_slot(self, codecs: list[Codec]) -> _Slot:
        import zarr
        from zarr.storage import MemoryStore

        objects: dict[str, Any] = {}
        array = zarr.create(
            self._shape,
            chunks=self._shape,
            dtype=self._zarr_dtype,
            fill_value=self.fill_value.view(self._zarr_dtype)[()],
            codecs=cast("Any", codecs),
            zarr_format=3,
            store=MemoryStore(objects),
            # `ShardCodec` has already decided, by bytes, that the chunk is not empty. Zarr compares values.
            config={"write_empty_chunks": True},
        )
        return _Slot(array, objects)


def _trailing_inflaters(codecs: Sequence[Codec]) -> list[Inflater]:
    """Return inflaters for the last codecs, as many as can be undone within a bound, in the order of encoding."""
    found: deque[Inflater] = deque()
    for codec in reversed(codecs):
        inflater = inflater_of(codec)
        if inflater is None:
            break
        found.appendleft(inflater)
    return list(found)


class _Slot(NamedTuple):
    """An array of one chunk, and the objects of its store."""

    array: zarr.Array[Any]
    objects: dict[str, Any]


def fill_value_of(metadata: Mapping[str, Any], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """Return the fill value, as an array without dimensions."""
    value = metadata["fill_value"]
    if dtype.kind in "USV" and not is_small_float(dtype):
        return _fill_value_of_bytes(value, dtype)
    if dtype.kind in "mM":
        # The common fill values are made here, since loading zarr takes long.
        if value == "NaT":
            return np.array(value, dtype)
    elif is_small_float(dtype):
        # zarr knows no such dtype. Its names of what is no number are those of Python.
        return np.array(float(value)).astype(dtype)
    elif all(map(_is_zero, value if isinstance(value, list) else [value])):
        return np.zeros((), dtype)
    return ZarrPipeline(metadata, dtype).fill_value


def _fill_value_of_bytes(value: Any, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """Return the fill value of text, bytes or records: bytes are base64, or numbers where a program wrote so."""
    try:
        if dtype.kind == "U":
            return np.array(value, dtype) if isinstance(value, str) else np.zeros((), dtype)
        plain = (
            base64.b64decode(value, validate=True)
            if isinstance(value, str)
            else bytes(value or dtype.itemsize)
        )
        return np.frombuffer(plain.ljust(dtype.itemsize, b"\0"), dtype).reshape(())
    except (TypeError, ValueError) as error:
        raise InvalidInputError(f"fill_value={value!r} is none of the dtype {dtype}: {error}") from error


def _is_zero(value: Any) -> bool:
    """Tell whether the bytes of a number are zero, which those of -0.0 are not."""
    return isinstance(value, int | float) and value == 0 and math.copysign(1, value) > 0


def _octets(array: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """Return the memory of a C-contiguous array."""
    return array.reshape(-1).view(np.uint8)


def crc32c(data: bytes | memoryview) -> bytes:
    """Return the checksum that the codec ``crc32c`` puts behind bytes."""
    # Memory that may change has to be seen as an array.
    given = data if isinstance(data, bytes) else np.frombuffer(data, np.uint8)
    return int(google_crc32c.value(given)).to_bytes(CRC32C_BYTES, "little")


def check_encoded_chunk(data: memoryview, layout: Layout) -> None:
    """Check that an encoded chunk is whole, as far as that shows without decoding it.

    A chunk that somebody else encoded may have been cut off or damaged since. Its last codec may have written a
    checksum or a length, but not every codec does.

    Parameters
    ----------
    data
        Object of an array that is not sharded.

    Raises
    ------
    CorruptChunkError
        If the bytes are not those that were written.
    """
    if not data:
        raise CorruptChunkError("there are no bytes")
    last = name_of(layout.codecs[-1])
    # Without a codec behind them, elements have one length.
    if last == "bytes" and len(layout.codecs) == 1:
        nbytes = math.prod(layout.chunks) * layout.dtype.itemsize
        if len(data) != nbytes:
            raise CorruptChunkError(f"a chunk of {nbytes} bytes has {len(data)}")
    elif last in _CHECKS:
        _CHECKS[last](data)


def _check_trailing_crc32c(data: memoryview) -> None:
    payload, checksum = data[:-CRC32C_BYTES], data[-CRC32C_BYTES:]
    if checksum != crc32c(payload):
        raise CorruptChunkError(f"the checksum of {len(payload)} bytes is wrong")


def _check_blosc_length(data: memoryview) -> None:
    if len(data) < BLOSC_HEADER.size or BLOSC_HEADER.unpack_from(data)[-1] != len(data):
        raise CorruptChunkError(f"of {len(data)} bytes: {CUT_OFF}")


def _check_zstd_frames(data: memoryview) -> None:
    at = 0
    while at < len(data):
        at = end_of_frame(data, at)
    if at > len(data):
        raise CorruptChunkError(f"of {len(data)} bytes: {CUT_OFF}")


_CHECKS: Mapping[str, Callable[[memoryview], None]] = {
    "crc32c": _check_trailing_crc32c,
    "blosc": _check_blosc_length,
    "zstd": _check_zstd_frames,
}
