"""Small objects that decompress to 32 MiB, by every codec, and what decoding each of them takes.

Run as a program: prints the error of each of `BOMBS`, and how many bytes of memory the decoding took.
"""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import resource
import sys
import warnings
import zlib
from collections.abc import Callable
from typing import Any

import google_crc32c
import numpy as np
from numcodecs.zstd import Zstd

from tensorage.backend.zarr.codec import ShardCodec
from tensorage.backend.zarr.compressors import CorruptChunkError
from tensorage.backend.zarr.layout import Layout

#: Bytes that each of the bombs decompresses to, or says that it does.
NBYTES = 32 * 1024 * 1024

BYTES = {"name": "bytes"}
ZSTD = {"name": "zstd", "configuration": {"level": 1, "checksum": False}}
GZIP = {"name": "gzip", "configuration": {"level": 1}}
CRC32C = {"name": "crc32c"}
BLOSC = {
    "name": "blosc",
    "configuration": {"cname": "lz4", "clevel": 5, "shuffle": "noshuffle", "typesize": 1, "blocksize": 0},
}


def numcodecs(name: str, **configuration: Any) -> dict[str, Any]:
    return {"name": f"numcodecs.{name}", "configuration": configuration}


def zstd() -> bytes:
    """A frame that does not say its size, of blocks that are one byte again and again."""
    block_bytes = 128 * 1024
    blocks = NBYTES // block_bytes
    return b"\x28\xb5\x2f\xfd\x00\x58" + b"".join(
        (block_bytes << 3 | 1 << 1 | (number == blocks - 1)).to_bytes(3, "little") + b"x"
        for number in range(blocks)
    )


def compressed(one: Any) -> bytes:
    """Zeros by an object of Python's own that compresses a stream."""
    part = bytes(1024 * 1024)
    return b"".join(one.compress(part) for _ in range(NBYTES // len(part))) + bytes(one.flush())


def gz() -> bytes:
    return compressed(zlib.compressobj(9, zlib.DEFLATED, 31))


def small_first() -> bytes:
    return bytes(Zstd(level=1).encode(b"0123456789")) + zstd()


def with_crc32c(data: bytes) -> bytes:
    return data + int(google_crc32c.value(data)).to_bytes(4, "little")


def nested() -> dict[str, Any]:
    configuration = {
        "chunk_shape": [5],
        "codecs": [BYTES, GZIP],
        "index_codecs": [{"name": "bytes", "configuration": {"endian": "little"}}],
        "index_location": "end",
    }
    return {"name": "sharding_indexed", "configuration": configuration}


def nested_shard() -> bytes:
    data = gz()
    return data + np.array([[0, len(data)], [0, len(data)]], "<u8").tobytes()


def blosc() -> bytes:
    head = bytes([2, 1, 0x13, 1]) + NBYTES.to_bytes(4, "little") * 2 + (100).to_bytes(4, "little")
    return head + bytes(84)


def raw_lzma() -> bytes:
    return compressed(lzma.LZMACompressor(lzma.FORMAT_RAW, filters=[{"id": lzma.FILTER_LZMA2}]))


def large_dictionary() -> bytes:
    """A stream of LZMA that asks for a dictionary of 2 GiB."""
    return bytes([0x5D]) + (2**31).to_bytes(4, "little") + (2**64 - 1).to_bytes(8, "little") + bytes(32)


#: The codecs of a chunk of ten bytes, and an object.
BOMBS: dict[str, tuple[list[Any], Callable[[], bytes]]] = {
    "zstd": ([BYTES, ZSTD], zstd),
    "zstd, a small frame first": ([BYTES, ZSTD], small_first),
    "zstd and a checksum": ([BYTES, ZSTD, CRC32C], lambda: with_crc32c(zstd())),
    "gzip": ([BYTES, GZIP], gz),
    "gzip, a small member first": ([BYTES, GZIP], lambda: gzip.compress(b"0123456789") + gz()),
    "gzip and a checksum": ([BYTES, GZIP, CRC32C], lambda: with_crc32c(gz())),
    "gzip behind elements that change": (
        [numcodecs("delta", dtype="|u1", astype="|u1"), BYTES, GZIP],
        gz,
    ),
    "gzip in gzip": ([BYTES, GZIP, GZIP], lambda: gzip.compress(gz())),
    "zstd of gzip": ([BYTES, GZIP, ZSTD], zstd),
    "gzip of zstd": ([BYTES, ZSTD, GZIP], gz),
    "shards within the chunk": ([nested()], nested_shard),
    "gzip of shards within the chunk": ([nested(), GZIP], gz),
    "blosc": ([BYTES, BLOSC], blosc),
    "blosc of numcodecs": ([BYTES, numcodecs("blosc", cname="lz4")], blosc),
    "zstd of numcodecs": ([BYTES, numcodecs("zstd", level=1)], zstd),
    "gzip of numcodecs": ([BYTES, numcodecs("gzip", level=1)], gz),
    "zlib": ([BYTES, numcodecs("zlib", level=1)], lambda: compressed(zlib.compressobj(9))),
    "bz2": ([BYTES, numcodecs("bz2", level=1)], lambda: compressed(bz2.BZ2Compressor(9))),
    "lzma": ([BYTES, numcodecs("lzma", preset=1)], lambda: compressed(lzma.LZMACompressor(preset=1))),
    "lzma without a header": (
        [BYTES, numcodecs("lzma", format=lzma.FORMAT_RAW, filters=[{"id": lzma.FILTER_LZMA2}])],
        raw_lzma,
    ),
    "lzma with a large dictionary": (
        [BYTES, numcodecs("lzma", format=lzma.FORMAT_ALONE, preset=1)],
        large_dictionary,
    ),
    "lz4": ([BYTES, numcodecs("lz4")], lambda: NBYTES.to_bytes(4, "little") + bytes(100)),
    "an index by gzip": ([BYTES], gz),
}


def peak_bytes() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def codec_of(name: str) -> ShardCodec:
    layout = Layout.choose((10,), np.dtype("u1"), chunks=(10,), shards=False)
    codecs: list[Any] = BOMBS[name][0]
    if name.startswith("an index"):
        sharding = {
            "chunk_shape": [10],
            "codecs": codecs,
            "index_codecs": [BYTES, GZIP],
            "index_location": "end",
        }
        codecs = [{"name": "sharding_indexed", "configuration": sharding}]
    return ShardCodec(Layout.parse({**layout.metadata(), "codecs": codecs}, (10,), layout.dtype))


def decode(name: str) -> dict[str, Any]:
    data, codec = BOMBS[name][1](), codec_of(name)
    # The codecs need modules and tables at first.
    codec.encode(np.arange(10, dtype="u1"))
    before = peak_bytes()
    try:
        codec.decode_index(data) if name.startswith("an index") else codec.decode(data)
    except CorruptChunkError as error:
        said = str(error)
    else:
        raise AssertionError(f"{len(data)} bytes were decoded")
    return {"error": said, "object_bytes": len(data), "taken_bytes": peak_bytes() - before}


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    print(json.dumps({name: decode(name) for name in BOMBS}))
