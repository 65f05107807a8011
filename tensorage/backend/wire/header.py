"""Format of requests that carry elements: a header of 40 bytes, JSON, and the elements. No I/O.

The header is big-endian. Its counterpart in the SQL is ``tensorage.parse``::

    0  4  magic "TNSR"           8  8  dataset id         24  4  block_size: elements per block
    4  2  format version        16  8  index of the       28  4  bytes of JSON that follow
    6  2  reserved (0)                 first element      32  8  elements that follow
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy.typing as npt

__all__ = [
    "FIRST_RELEASED_SCHEMA",
    "FORMAT_VERSION",
    "SCHEMA_VERSION",
    "Header",
    "as_json",
    "bytes_of",
    "header",
]

#: Version of the binary header.
FORMAT_VERSION = 1

#: Version of the schema that ``tensorage_version()`` of the project has to answer.
SCHEMA_VERSION = 7

#: Projects with an earlier schema cannot be migrated: only checkouts of before the first release made them.
FIRST_RELEASED_SCHEMA = 7

#: Layout of the binary header, as the table above shows it.
_HEADER = struct.Struct(">4sHHqqIIq")


def header(
    *, count: int, block_size: int, data_id: int = 0, index: int = 0, meta: Mapping[str, Any] | None = None
) -> bytes:
    """Make the header and the JSON of a request that carries `count` elements, in blocks of at most `block_size`."""
    encoded = b"" if meta is None else as_json(meta)
    return _HEADER.pack(b"TNSR", FORMAT_VERSION, 0, data_id, index, block_size, len(encoded), count) + encoded


@dataclass(frozen=True, slots=True)
class Header:
    """The parts of a request's beginning that tell what it is about.

    Parameters
    ----------
    data_id
        Id of the dataset, 0 if the JSON names an array by its key.
    meta
        The JSON of the request.
    """

    data_id: int
    meta: Mapping[str, Any]

    @classmethod
    def parse(cls, made: bytes | memoryview) -> Header:
        """Read what `header` has made."""
        data_id = _HEADER.unpack_from(made)[3]
        meta = bytes(made[_HEADER.size :])
        return cls(data_id, json.loads(meta) if meta else {})


def as_json(value: Any) -> bytes:
    """Encode a value as JSON that comes back unchanged from a ``jsonb`` column.

    Such a column keeps numbers as ``numeric``, which has no exponents: the float ``1e+16`` would come back as an
    integer. With a decimal place it stays a float.
    """
    encoded = json.dumps(value, separators=(",", ":"), allow_nan=False)
    if "e+" in encoded:
        encoded = _TEXT_OR_EXPONENT.sub(_without_exponent, encoded)
    return encoded.encode()


#: A text of JSON, which stays as it is, or a number with a positive exponent.
_TEXT_OR_EXPONENT = re.compile(r'"(?:[^"\\]|\\.)*"|-?\d+(?:\.\d+)?e\+\d+')


def _without_exponent(found: re.Match[str]) -> str:
    token = found[0]
    return token if token.startswith('"') else f"{Decimal(token):f}.0"


def bytes_of(flat: npt.NDArray[Any]) -> memoryview:
    """Return the memory of a one-dimensional array, without a copy."""
    # Through uint8: datetime64 and longdouble have no buffer format of their own.
    # Named by text: the command line lists arrays without numpy, which takes as long to load as all the rest.
    return flat.view("u1").data
