"""Whether an encoded chunk is whole, as far as its bytes tell without being decoded. No I/O, and no zarr.

A chunk that somebody else encoded may have been cut off or damaged since. What its last codec wrote says so: a
checksum of all bytes, or how many there are. Not every codec writes such a thing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from tensorage.backend.zarr.codec_pipeline import CRC32C_BYTES, crc32c
from tensorage.backend.zarr.compressors import BLOSC_HEADER, CUT_OFF, CorruptChunkError, end_of_frame
from tensorage.backend.zarr.layout import Layout
from tensorage.model.zarr_metadata import name_of

__all__ = ["check_encoded_chunk"]


def check_encoded_chunk(data: memoryview, layout: Layout) -> None:
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
        raise CorruptChunkError(f"of {len(data)} bytes: {CUT_OFF}")


def _check_zstd(data: memoryview) -> None:
    at = 0
    while at < len(data):
        at = end_of_frame(data, at)
    if at > len(data):
        raise CorruptChunkError(f"of {len(data)} bytes: {CUT_OFF}")


_CHECKS: Mapping[str, Callable[[memoryview], None]] = {
    "crc32c": _check_crc32c,
    "blosc": _check_blosc,
    "zstd": _check_zstd,
}
