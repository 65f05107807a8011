"""What a reader of Zarr may ask of a stored array: its metadata documents, keys of shards, ranges of bytes. No I/O."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from zarr.abc.store import ByteRequest, OffsetByteRequest, RangeByteRequest, SuffixByteRequest

from tensorage.backend.zarr.layout import Layout
from tensorage.errors import InvalidInputError
from tensorage.types import Dataset

__all__ = ["METADATA_KEY", "byte_extent", "documents_of", "number_at"]

METADATA_KEY = "zarr.json"

#: Longest number in a key: no grid has more shards.
_MAX_DIGITS = 18


def documents_of(dataset: Dataset, layout: Layout, as_group: str | None) -> dict[str, bytes]:
    """The metadata documents of a store, by their keys.

    Raises
    ------
    InvalidInputError
        If `as_group` can be no name in a group of Zarr.
    """
    if as_group is None:
        return {METADATA_KEY: _encoded(layout.document(dataset.attrs, dataset.dims))}
    if not as_group.strip(".") or "/" in as_group or as_group.startswith("__") or as_group == METADATA_KEY:
        raise InvalidInputError(
            f"{as_group!r} can be no name of an array in a group of Zarr: give one that is not of dots alone, has no "
            f"slash, does not begin with two underscores, and is not {METADATA_KEY!r}"
        )
    dims = dataset.dims or [f"dim_{axis}" for axis in range(dataset.ndim)]
    document = layout.document(dataset.attrs, dims)
    group = {
        "zarr_format": 3,
        "node_type": "group",
        "attributes": {},
        # As zarr writes it, so that readers who look for it here don't warn that there is none.
        "consolidated_metadata": {
            "kind": "inline",
            "must_understand": False,
            "metadata": {as_group: document},
        },
    }
    return {METADATA_KEY: _encoded(group), f"{as_group}/{METADATA_KEY}": _encoded(document)}


def number_at(layout: Layout, key: str) -> int | None:
    """Number of the shard whose object has this key, None if no shard of the array has.

    The inverse of `Layout.key_of`: a key that would be another one if it were made again is none.
    """
    name, *parts = key.split("/")
    if name != "c" or len(parts) != len(layout.grid):
        return None
    if not all(part.isascii() and part.isdigit() and len(part) <= _MAX_DIGITS for part in parts):
        return None
    coords = [int(part) for part in parts]
    if not all(coord < extent for coord, extent in zip(coords, layout.grid, strict=True)):
        return None
    number = layout.number_of(coords)
    return number if layout.key_of(number) == key else None


def byte_extent(byte_range: ByteRequest | None, nbytes: int) -> tuple[int, int]:
    """First byte of a range, and the one behind its last, of so many bytes. It ends with them at the latest.

    Raises
    ------
    InvalidInputError
        If it begins behind them.
    """
    match byte_range:
        case None:
            return 0, nbytes
        case RangeByteRequest(start, end):
            first, after = start, max(start, min(end, nbytes))
        case OffsetByteRequest(offset):
            first, after = offset, nbytes
        case SuffixByteRequest(suffix):
            return max(nbytes - suffix, 0), nbytes
        case _:
            raise InvalidInputError(f"{byte_range!r} is no range of bytes that zarr has")
    if not 0 <= first <= nbytes:
        raise InvalidInputError(f"{byte_range} lies outside of the {nbytes} bytes that there are")
    return first, after


def _encoded(document: Mapping[str, Any]) -> bytes:
    return json.dumps(document).encode()
