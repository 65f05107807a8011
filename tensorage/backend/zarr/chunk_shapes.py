"""Shapes of the chunks and shards of an array. No I/O.

A *chunk* is compressed on its own and is the least that is read. A *shard* is an object, of whole chunks. The elements
of both are near each other in C order. From the last axis on, as many axes as fit are whole, and the axis before them
is cut evenly. Along each axis before that one, a chunk is one index long.

A chunk is small enough that a row of axis 0 can be read without much else: whole rows that make about 24 KiB once they
are encoded, or a single row that is larger, or part of a row that is larger than 1 MiB.

Nothing depends on the length of axis 0, since rows can be appended.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence

from tensorage.errors import InvalidInputError
from tensorage.indexing.regions import grow_shape

__all__ = [
    "CHUNK_BYTES",
    "MAX_CHUNKS_PER_SHARD",
    "MAX_CHUNK_BYTES",
    "SAMPLE_BYTES",
    "SHARD_BYTES",
    "check_chunks",
    "check_shape",
    "check_shards",
    "choose_chunk_bytes",
    "choose_chunks",
    "choose_shards",
]

#: Most bytes of a chunk before compression, unless its shape is given.
CHUNK_BYTES = 1024 * 1024

#: Bytes that a chunk of small rows has once it is encoded. It travels for each row of a shuffled batch: 64 of them are
#: 1.6 MB. Each chunk takes some time to encode and to decode, and room in the catalogue, whatever its size.
SAMPLE_BYTES = 24 * 1024

#: Bytes of a shard before compression, unless its shape is given: as many as one request carries.
SHARD_BYTES = 8 * 1024 * 1024

#: Largest buffer of common codecs: Blosc takes so many bytes, its header included.
MAX_CHUNK_BYTES = 2**31 - 1 - 16

#: A reader needs memory for a whole chunk. A chunk that is larger than this has to be half full at least.
ROOMY_CHUNK_BYTES = 256 * 1024 * 1024

#: Most chunks of a shard. The catalogue holds 2 to 16 bytes for each.
MAX_CHUNKS_PER_SHARD = 65536


def choose_chunk_bytes(shape: Sequence[int], itemsize: int, encoded_ratio: float = 1.0) -> int:
    """Choose the bytes of a chunk before compression: 24 KiB once encoded, or one row, and at most 1 MiB.

    Parameters
    ----------
    encoded_ratio
        Bytes of encoded elements for each byte of elements.

    Examples
    --------
    >>> choose_chunk_bytes((60000, 28, 28), 4)
    24576
    >>> choose_chunk_bytes((60000, 28, 28), 4, encoded_ratio=0.25)
    98304
    >>> choose_chunk_bytes((1000, 224, 224, 3), 1)
    150528
    """
    row_bytes = math.prod(shape[1:]) * itemsize
    encoded = SAMPLE_BYTES / min(max(encoded_ratio, SAMPLE_BYTES / CHUNK_BYTES), 1.0)
    return min(max(int(encoded), row_bytes), CHUNK_BYTES)


def choose_chunks(shape: Sequence[int], itemsize: int, chunk_bytes: int) -> tuple[int, ...]:
    """Choose chunks of about `chunk_bytes` bytes, of whole rows of axis 0 if a row fits.

    >>> choose_chunks((60000, 28, 28), 4, 24576)
    (7, 28, 28)
    >>> choose_chunks((10, 3, 1000, 1000), 4, 2**20)
    (1, 1, 250, 1000)
    """
    return grow_shape(shape, (1,) * len(shape), max(chunk_bytes // itemsize, 1))


def choose_shards(shape: Sequence[int], chunks: Sequence[int], itemsize: int) -> tuple[int, ...]:
    """Choose shards of at most 8 MiB, or of one chunk that is larger.

    >>> choose_shards((60000, 28, 28), (7, 28, 28), 4)
    (2674, 28, 28)
    >>> choose_shards((10, 3, 1000, 1000), (1, 1, 250, 1000), 4)
    (1, 2, 1000, 1000)
    """
    room = min(max(SHARD_BYTES // (math.prod(chunks) * itemsize), 1), MAX_CHUNKS_PER_SHARD)
    return grow_shape(shape, chunks, room)


def _fair_chunks(shape: Sequence[int], itemsize: int) -> tuple[int, ...]:
    return choose_chunks(shape, itemsize, choose_chunk_bytes(shape, itemsize))


def check_shape(name: str, given: Sequence[int], shape: Sequence[int]) -> tuple[int, ...]:
    """Check a shape that a user gave: whole numbers from 1 on, one for each axis.

    Raises
    ------
    InvalidInputError
        The message calls the shape `name`.
    """
    try:
        result = tuple(operator.index(length) for length in given)
    except TypeError as error:
        raise InvalidInputError(
            f"{name}={given!r} is no sequence of whole numbers, one for each axis of the shape {tuple(shape)}"
        ) from error
    if len(result) != len(shape):
        raise InvalidInputError(
            f"{name}={result} has {len(result)} extents, and the shape {tuple(shape)} has {len(shape)}"
        )
    if any(length < 1 for length in result):
        raise InvalidInputError(
            f"{name}={result} of an array of shape {tuple(shape)}: each extent has to be at least 1"
        )
    return result


def check_chunks(chunks: Sequence[int], shape: Sequence[int], itemsize: int) -> tuple[int, ...]:
    """Check the shape of a chunk that a user gave.

    Raises
    ------
    InvalidInputError
    """
    result = check_shape("chunks", chunks, shape)
    nbytes = math.prod(result) * itemsize
    if nbytes > MAX_CHUNK_BYTES:
        raise InvalidInputError(
            f"chunks={result} of {itemsize} bytes an element are {nbytes} bytes each, and {MAX_CHUNK_BYTES} is "
            f"the most; {_fair_chunks(shape, itemsize)} would do"
        )
    # The owner pays for storage, but a padded chunk takes the memory of every reader.
    array_nbytes = math.prod(shape) * itemsize
    if nbytes > max(ROOMY_CHUNK_BYTES, 2 * array_nbytes):
        raise InvalidInputError(
            f"chunks={result} of {itemsize} bytes an element are {nbytes} bytes each, for an array of {array_nbytes}: "
            f"its readers have to make room for a whole chunk, and {ROOMY_CHUNK_BYTES} is the most for one that is not "
            f"half full; {_fair_chunks(shape, itemsize)} would do"
        )
    return result


def check_shards(shards: Sequence[int], chunks: Sequence[int], shape: Sequence[int]) -> tuple[int, ...]:
    """Check the shape of a shard that a user gave.

    Raises
    ------
    InvalidInputError
    """
    result = check_shape("shards", shards, shape)
    if any(shard % chunk for shard, chunk in zip(result, chunks, strict=True)):
        raise InvalidInputError(
            f"shards={result} do not hold whole chunks of {tuple(chunks)}: each extent of a shard has to be a "
            "multiple of that of a chunk"
        )
    chunk_count = math.prod(result) // math.prod(chunks)
    if chunk_count > MAX_CHUNKS_PER_SHARD:
        raise InvalidInputError(
            f"shards={result} hold {chunk_count} chunks of {tuple(chunks)} each, and {MAX_CHUNKS_PER_SHARD} are "
            "the most: give larger chunks or smaller shards"
        )
    return result
