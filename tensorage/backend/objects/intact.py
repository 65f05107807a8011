"""Whether an encoded chunk is whole, as far as its bytes tell without being decoded. No I/O, and no zarr.

A chunk that somebody else encoded may have been cut off or damaged since. What its last codec wrote says so: a
checksum of all bytes, or how many there are. Not every codec writes such a thing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from tensorage.backend.objects.chains import CRC32C_BYTES, crc32c
from tensorage.backend.objects.compressors import (
    BLOSC_HEADER,
    ZSTD_MAGIC,
    CorruptChunkError,
    content_size_field,
)
from tensorage.backend.objects.layout import Layout
from tensorage.backend.objects.metadata import name_of

__all__ = ["check_intact"]

#: What frames of zstd begin with whose content is not for the decoder, but for the last four bits.
SKIPPABLE_MAGIC = 0x184D2A50

_CUT_OFF = "it ends too early, or is none that its codecs write"


def check_intact(data: memoryview, layout: Layout) -> None:
    """Check the object of an array that is not sharded, which is an encoded chunk.

    Raises
    ------
    CorruptChunkError
        If its bytes are not those that were written. Not every damage shows.
    """
    if not data:
        raise CorruptChunkError("there are no bytes")
    last = name_of(layout.codecs[-1])
    if last == "bytes" and len(layout.codecs) == 1:
        nbytes = math.prod(layout.chunks) * layout.dtype.itemsize
        if len(data) != nbytes:
            raise CorruptChunkError(f"a chunk of {nbytes} bytes has {len(data)}")
    elif last in _CHECKS:
        _CHECKS[last](data)


def _check_crc32c(data: memoryview) -> None:
    payload, checksum = data[:-CRC32C_BYTES], data[-CRC32C_BYTES:]
    if checksum != crc32c(payload):
        raise CorruptChunkError(f"the checksum of {len(payload)} bytes is wrong")


def _check_blosc(data: memoryview) -> None:
    if len(data) < BLOSC_HEADER.size or BLOSC_HEADER.unpack_from(data)[-1] != len(data):
        raise CorruptChunkError(f"of {len(data)} bytes: {_CUT_OFF}")


def _check_zstd(data: memoryview) -> None:
    at = 0
    while at < len(data):
        at = _end_of_frame(data, at)
    if at > len(data):
        raise CorruptChunkError(f"of {len(data)} bytes: {_CUT_OFF}")


def _end_of_frame(data: memoryview, at: int) -> int:
    """Where a frame of zstd ends, by the lengths of its blocks (RFC 8878, section 3.1.1)."""
    magic = data[at : at + 4]
    if int.from_bytes(magic, "little") & ~0xF == SKIPPABLE_MAGIC:
        return at + 8 + _number(data, at + 4, 4)
    if magic != ZSTD_MAGIC:
        raise CorruptChunkError(f"no frame of zstd begins at byte {at} of {len(data)}")
    descriptor = _number(data, at + 4, 1)
    at += sum(content_size_field(descriptor))
    is_last = False
    while not is_last:
        block = _number(data, at, 3)
        is_last = bool(block & 1)
        is_repeated_byte = block >> 1 & 3 == 1
        at += 3 + (1 if is_repeated_byte else block >> 3)
    return at + (4 if descriptor & 4 else 0)


def _number(data: memoryview, at: int, nbytes: int) -> int:
    field = data[at : at + nbytes]
    if len(field) < nbytes:
        raise CorruptChunkError(f"of {len(data)} bytes: {_CUT_OFF}")
    return int.from_bytes(field, "little")


_CHECKS: Mapping[str, Callable[[memoryview], None]] = {
    "crc32c": _check_crc32c,
    "blosc": _check_blosc,
    "zstd": _check_zstd,
}
