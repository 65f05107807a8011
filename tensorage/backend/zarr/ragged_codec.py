"""Shards of elements of any length: text and samples, as Zarr's codecs ``vlen-utf8`` and ``vlen-bytes`` write them.

In memory, elements are arrays of objects, each the `bytes` of one element: text in UTF-8, samples as they are written
down. Their bytes in a chunk are the same for both codecs: the number of elements, and the length of each before it, as
4 bytes, little-endian. The bytes are then compressed, with a checksum.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
from numcodecs.vlen import VLenBytes

from tensorage.backend.zarr.chunk_shapes import (
    CHUNK_BYTES,
    check_chunks,
    check_shards,
    choose_chunks,
    choose_shards,
)
from tensorage.backend.zarr.codec import ShardCodec
from tensorage.backend.zarr.codec_pipeline import CodecPipeline
from tensorage.backend.zarr.compressors import CorruptChunkError, ZstdFrames
from tensorage.backend.zarr.inflate import Inflater, encoded_room, inflater_of
from tensorage.backend.zarr.layout import Layout
from tensorage.errors import InvalidInputError
from tensorage.model.declaration import Declaration
from tensorage.model.ragged import MAX_SAMPLE_BYTES
from tensorage.model.zarr_metadata import (
    configuration_of,
    default_codecs,
    default_fill_value,
    has_any_length,
    name_of,
)
from tensorage.ragged import Ragged

__all__ = ["LENGTH_BYTES", "RaggedCodec", "choose_ragged_layout", "codec_for", "stored_dtype"]

#: Bytes of the length before an element.
LENGTH_BYTES = 4

#: Most bytes of a chunk before it is compressed: of the longest sample, and others beside it.
MAX_CHUNK_BYTES = MAX_SAMPLE_BYTES + 64 * 1024 * 1024

#: Most elements of a chunk, unless its shape is given: each is an object of Python to readers.
_MAX_CHUNK_ELEMENTS = 65536

#: Text and bytes of elements, by the same codec: text is checked when it is decoded to `str`.
_VLEN = VLenBytes()


def stored_dtype(ragged: Ragged) -> np.dtype[Any]:
    """Return the dtype that elements have for Zarr: of text, or of bytes without a length."""
    return ragged.dtype if ragged.kind == "text" else np.dtype("S")


def codec_for(layout: Layout) -> ShardCodec:
    """Return the codec of a layout: of elements of one length, or of any."""
    return RaggedCodec(layout) if has_any_length(layout.dtype) else ShardCodec(layout)


def choose_ragged_layout(new: Declaration, mean_bytes: int) -> Layout:
    """Choose the layout of a new array whose elements have any length.

    Parameters
    ----------
    mean_bytes
        Bytes of an element, about.

    Raises
    ------
    InvalidInputError
        If an option does not fit.
    """
    assert new.ragged is not None
    shape, options, dtype = new.shape, new.options, stored_dtype(new.ragged)
    if options.get("codecs") is not None:
        raise InvalidInputError(
            f"storing {new.key!r}: its elements are {new.ragged}, whose chunks are compressed by zstd: give no codecs. "
            "Nothing is stored"
        )
    chunks, shards, chunk_size = options.get("chunks"), options.get("shards"), options.get("chunk_size")
    size = mean_bytes + LENGTH_BYTES
    if chunks is not None:
        inner = check_chunks(chunks, shape, dtype.itemsize)
    else:
        count = chunk_size or min(CHUNK_BYTES // size, _MAX_CHUNK_ELEMENTS)
        inner = choose_chunks(shape, 1, max(count, 1))
    if shards is None:
        outer = choose_shards(shape, inner, size)
    else:
        outer = check_shards(inner if shards is False else shards, inner, shape)
    is_sharded = shards is not False and len(shape) > 0
    return Layout(shape, dtype, inner, outer, is_sharded, default_codecs(dtype), default_fill_value(dtype))


class RaggedCodec(ShardCodec):
    """Encoder and decoder of shards whose elements have any length: arrays of objects, each of them `bytes`."""

    def _open_pipeline(self) -> tuple[CodecPipeline, npt.NDArray[Any]]:
        return _VlenPipeline(self.layout), np.array(b"", object)

    def _is_empty(self, chunk: npt.NDArray[Any]) -> bool:
        return not chunk.any()

    def _check_elements(self, elements: npt.NDArray[Any]) -> None:
        if elements.dtype != object:
            raise ValueError(f"elements of any length are objects, and not {elements.dtype}")


class _VlenPipeline:
    """Elements one behind the other, each behind its length, compressed by zstd with a checksum.

    Raises
    ------
    InvalidInputError
        If the array has other codecs.
    """

    def __init__(self, layout: Layout) -> None:
        wanted = [name_of(codec) for codec in default_codecs(layout.dtype)]
        names = [name_of(codec) for codec in layout.codecs]
        zstd = ZstdFrames.parse(configuration_of(layout.codecs[-1]))
        inflate = inflater_of(layout.codecs[-1])
        if names != wanted or zstd is None or inflate is None:
            raise InvalidInputError(
                f"elements of any length are read of chunks that have the codecs {wanted}, and not {names}"
            )
        self._zstd: ZstdFrames = zstd
        self._inflate: Inflater = inflate
        self._count = math.prod(layout.chunks)

    def encode(self, chunk: npt.NDArray[Any]) -> list[bytes | memoryview]:
        nbytes = sum(map(len, chunk.flat)) + LENGTH_BYTES * (chunk.size + 1)
        if nbytes > MAX_CHUNK_BYTES:
            raise InvalidInputError(
                f"{chunk.size} elements of {nbytes} bytes are a chunk, and {MAX_CHUNK_BYTES} bytes is the most of one: "
                "store the array anew by a store of a smaller chunk_size. Nothing is stored"
            )
        joined = _VLEN.encode(chunk.reshape(-1))
        return [self._zstd.encode(np.frombuffer(joined, np.uint8))]

    def decode(self, data: memoryview, out: npt.NDArray[Any]) -> None:
        joined = self._inflate(data, MAX_CHUNK_BYTES, False)
        count = int.from_bytes(joined[:LENGTH_BYTES], "little")
        # The number comes first: without this check, it would say how much memory to take.
        if count != self._count or len(joined) < LENGTH_BYTES * (count + 1):
            raise CorruptChunkError(f"a chunk of {self._count} elements says that it has {count}")
        try:
            elements = _VLEN.decode(joined)
        except ValueError as error:
            raise CorruptChunkError(f"its elements do not fit their lengths: {error}") from error
        out[...] = elements.reshape(out.shape)

    def encoded_room(self, nbytes: int) -> int:
        del nbytes
        return encoded_room(MAX_CHUNK_BYTES)
