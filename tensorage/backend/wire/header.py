"""Requests that carry elements: a header of 40 bytes, JSON, and the elements. No I/O.

The header is big-endian; its counterpart is ``tensorage.parse`` in the SQL::

    0  4  magic "TNSR"           8  8  dataset id         24  4  block_size: elements per block
    4  2  format version        16  8  index of the       28  4  bytes of JSON that follow
    6  2  reserved (0)                 first element      32  8  elements that follow
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = [
    "FIRST_RELEASED_SCHEMA",
    "FORMAT_VERSION",
    "SCHEMA_VERSION",
    "as_json",
    "block_elements",
    "bytes_of",
    "header",
]

#: Version of the binary header.
FORMAT_VERSION = 1

#: What ``tensorage_version()`` of the project has to answer.
SCHEMA_VERSION = 4

#: Projects with an earlier schema cannot be migrated: only checkouts of before the first release made them.
FIRST_RELEASED_SCHEMA = 4

_HEADER = struct.Struct(">4sHHqqIIq")


def header(
    *, count: int, block_size: int, data_id: int = 0, index: int = 0, meta: Mapping[str, Any] | None = None
) -> bytes:
    """First part of a request that carries `count` elements, stored in blocks of at most `block_size`."""
    encoded = b"" if meta is None else as_json(meta)
    return _HEADER.pack(b"TNSR", FORMAT_VERSION, 0, data_id, index, block_size, len(encoded), count) + encoded


def as_json(value: Any) -> bytes:
    """What a request says, as JSON that comes back from a ``jsonb`` column as it was.

    Such a column keeps numbers as ``numeric``, which has no exponents: ``1e+16`` would come back as an integer,
    and not as the same number. With a decimal place, it stays what it is.
    """
    encoded = json.dumps(value, separators=(",", ":"), allow_nan=False)
    if "e+" in encoded:
        encoded = _TEXT_OR_EXPONENT.sub(_without_exponent, encoded)
    return encoded.encode()


#: In JSON: a text, to be left alone, or a number with a positive exponent.
_TEXT_OR_EXPONENT = re.compile(r'"(?:[^"\\]|\\.)*"|-?\d+(?:\.\d+)?e\+\d+')


def _without_exponent(found: re.Match[str]) -> str:
    token = found[0]
    return token if token.startswith('"') else f"{Decimal(token):f}.0"


def block_elements(shape: tuple[int, ...], chunk_size: int) -> int:
    """Elements per block: whole rows of axis 0 where one fits `chunk_size`, else an even part of a row.

    >>> block_elements((60000, 28, 28), 262144)
    261856
    >>> block_elements((10, 1000), 400)
    334
    """
    row = 1
    for extent in shape[1:]:
        row *= extent
    if not shape or row == 0:
        return chunk_size
    if row <= chunk_size:
        return chunk_size // row * row
    parts = -(-row // chunk_size)
    return -(-row // parts)


def bytes_of(flat: npt.NDArray[Any]) -> memoryview:
    """Memory of a one-dimensional array, not copied."""
    # Through uint8: datetime64 and longdouble have no buffer format of their own.
    return flat.view(np.uint8).data
