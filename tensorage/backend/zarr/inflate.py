"""Bounded decoding of codecs from bytes to bytes. No I/O, and no zarr.

The owner of an array chooses its codecs and writes its objects, and other users who may read it decode them. A hundred
kilobytes can decompress to gigabytes. Each inflater is therefore told how many bytes it may make, and stops there.
"""

from __future__ import annotations

import bz2
import lzma
import zlib
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Protocol

import google_crc32c
import numcodecs
import numcodecs.blosc
import numpy as np

from tensorage.backend.zarr.compressors import (
    CorruptChunkError,
    check_blosc_header,
    frames_content_size,
    inflate_frames,
)
from tensorage.model.zarr_metadata import Codec, configuration_of, name_of

__all__ = ["Inflater", "encoded_room", "inflater_of"]

#: Function that undoes a codec. It takes the payload and the most bytes to make of it, or the exact number of bytes if
#: the third argument is true.
Inflater = Callable[[memoryview, int, bool], memoryview]

#: Most memory that a decompressor of LZMA may take beside its output. The highest preset asks for 65 MiB.
LZMA_BYTES = 128 * 1024 * 1024

_LZ4_HEADER_BYTES = 4

#: Wrappers of deflate, as zlib names them.
_ZLIB, _GZIP = 15, 31


def encoded_room(nbytes: int) -> int:
    """Return the most bytes that a codec makes of `nbytes`: of incompressible ones, with frames and headers around."""
    return nbytes + nbytes // 8 + 1024


def inflater_of(codec: Codec) -> Inflater | None:
    """Return the inflater of a codec; None for a codec that somebody else has registered with zarr."""
    make = _INFLATERS.get(name_of(codec))
    return None if make is None else make(configuration_of(codec))


class _Stream(Protocol):
    """A decompressor of one stream, such as zlib's."""

    @property
    def eof(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: Any, max_length: int, /) -> bytes: ...


def _inflate_streams(
    begin: Callable[[], _Stream], name: str, payload: memoryview, most: int, _exact: bool
) -> memoryview:
    """Decompress streams that stand one behind the other."""
    made = bytearray()
    rest: memoryview | bytes = payload
    while rest:
        stream = begin()
        try:
            # One byte more than there is room for shows that there are more, without making them all.
            made += stream.decompress(rest, most - len(made) + 1)
        except (zlib.error, lzma.LZMAError, OSError, ValueError, EOFError, MemoryError) as error:
            raise CorruptChunkError(f"{name} does not decompress {len(payload)} bytes: {error}") from error
        if len(made) > most:
            raise _too_many_error(name, payload, most)
        if not stream.eof:
            raise CorruptChunkError(f"{name}: {len(payload)} bytes end too early")
        # Zeros may pad a stream.
        rest = stream.unused_data.lstrip(b"\0")
    return memoryview(made)


def _too_many_error(name: str, payload: memoryview, most: int) -> CorruptChunkError:
    return CorruptChunkError(
        f"{len(payload)} bytes of {name} decompress to more than the {most} that the chunk has room for"
    )


def _lzma_inflater(configuration: Mapping[str, Any]) -> Inflater:
    kind, filters = configuration.get("format", lzma.FORMAT_XZ), configuration.get("filters")

    def inflate(payload: memoryview, most: int, exact: bool) -> memoryview:
        for given in filters or ():
            if given.get("dict_size", 0) > LZMA_BYTES:
                raise CorruptChunkError(f"lzma asks for a dictionary of {given['dict_size']} bytes")
        # LZMADecompressor takes no limit for raw streams. The check of the dictionary above bounds their memory.
        limit = None if kind == lzma.FORMAT_RAW else LZMA_BYTES
        begin = partial(lzma.LZMADecompressor, kind, limit, filters)
        return _inflate_streams(begin, "lzma", payload, most, exact)

    return inflate


def _inflate_zstd(payload: memoryview, most: int, exact: bool) -> memoryview:
    nbytes = most if exact else frames_content_size(payload)
    if nbytes is None:
        raise CorruptChunkError(
            f"{len(payload)} bytes of zstd do not say how many they decompress to, and another compressor is to follow"
        )
    if nbytes > most:
        raise _too_many_error("zstd", payload, most)
    out = np.empty(nbytes, np.uint8)
    if nbytes:
        inflate_frames(payload, out)
    return out.data


def _inflate_blosc(payload: memoryview, most: int, _exact: bool) -> memoryview:
    nbytes = check_blosc_header(payload)
    if nbytes > most:
        raise _too_many_error("blosc", payload, most)
    out = np.empty(nbytes, np.uint8)
    try:
        if nbytes:
            numcodecs.blosc.decompress(payload, out)
    except (RuntimeError, ValueError) as error:
        raise CorruptChunkError(f"Blosc does not decompress {len(payload)} bytes: {error}") from error
    return out.data


def _inflate_lz4(payload: memoryview, most: int, _exact: bool) -> memoryview:
    nbytes = int.from_bytes(payload[:_LZ4_HEADER_BYTES], "little")
    if nbytes > most:
        raise _too_many_error("lz4", payload, most)
    return _undo_by_numcodecs({"id": "lz4"}, payload, most, True)


def _check_crc32c(payload: memoryview, _most: int, _exact: bool) -> memoryview:
    content, checksum = payload[:-4], payload[-4:]
    if checksum != int(google_crc32c.value(np.frombuffer(content, np.uint8))).to_bytes(4, "little"):
        raise CorruptChunkError(f"the checksum of {len(content)} bytes is wrong")
    return content


def _undo_by_numcodecs(
    configuration: Mapping[str, Any], payload: memoryview, _most: int, _exact: bool
) -> memoryview:
    """Undo a codec that makes bytes no fewer, such as a checksum or a shuffle, or one whose header has been checked."""
    try:
        content = numcodecs.get_codec(dict(configuration)).decode(payload)
    except Exception as error:
        # The errors of codecs have no common type.
        raise CorruptChunkError(
            f"numcodecs does not decode {len(payload)} bytes by {configuration['id']}: {error}"
        ) from error
    return np.frombuffer(content, np.uint8).data


def _stream_inflater(begin: Callable[[], _Stream], name: str) -> Callable[[Mapping[str, Any]], Inflater]:
    return lambda _: partial(_inflate_streams, begin, name)


def _numcodecs_inflater(name: str) -> Callable[[Mapping[str, Any]], Inflater]:
    return lambda configuration: partial(_undo_by_numcodecs, {"id": name, **configuration})


_INFLATERS: Mapping[str, Callable[[Mapping[str, Any]], Inflater]] = {
    "crc32c": lambda _: _check_crc32c,
    "gzip": _stream_inflater(partial(zlib.decompressobj, _GZIP), "gzip"),
    "numcodecs.gzip": _stream_inflater(partial(zlib.decompressobj, _GZIP), "gzip"),
    "numcodecs.zlib": _stream_inflater(partial(zlib.decompressobj, _ZLIB), "zlib"),
    "numcodecs.bz2": _stream_inflater(bz2.BZ2Decompressor, "bz2"),
    "numcodecs.lzma": _lzma_inflater,
    "numcodecs.lz4": lambda _: _inflate_lz4,
    "zstd": lambda _: _inflate_zstd,
    "numcodecs.zstd": lambda _: _inflate_zstd,
    "blosc": lambda _: _inflate_blosc,
    "numcodecs.blosc": lambda _: _inflate_blosc,
    **{
        f"numcodecs.{name}": _numcodecs_inflater(name)
        for name in ("shuffle", "crc32", "crc32c", "adler32", "fletcher32", "jenkins_lookup3")
    },
}
