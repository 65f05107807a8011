"""Metadata documents, keys of shards and ranges of bytes, as a reader of Zarr asks for them. No I/O."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from zarr.abc.store import ByteRequest, OffsetByteRequest, RangeByteRequest, SuffixByteRequest

from tensorage.backend.zarr.layout import Layout
from tensorage.dtypes import form_of
from tensorage.errors import InvalidInputError
from tensorage.types import Dataset

__all__ = ["METADATA_KEY", "byte_bounds", "documents_of", "number_at"]

METADATA_KEY = "zarr.json"

#: Most digits of a number in a key. No grid has so many shards that it needs more.
_MAX_DIGITS = 18


def documents_of(dataset: Dataset, layout: Layout, as_group: str | None) -> dict[str, bytes]:
    """Return the metadata documents of a store, by their keys.

    Raises
    ------
    InvalidInputError
        If `as_group` cannot be a name in a group of Zarr.
    """
    if as_group is None:
        return {METADATA_KEY: _encode(layout.document(_attrs_of(dataset), dataset.dims))}
    if not as_group.strip(".") or "/" in as_group or as_group.startswith("__") or as_group == METADATA_KEY:
        raise InvalidInputError(
            f"{as_group!r} can be no name of an array in a group of Zarr: give one that is not of dots alone, has no "
            f"slash, does not begin with two underscores, and is not {METADATA_KEY!r}"
        )
    # Xarray opens no array of a group whose dimensions have no names.
    dims = dataset.dims or [f"dim_{axis}" for axis in range(dataset.ndim)]
    document = layout.document(_attrs_of(dataset), dims)
    group = {
        "zarr_format": 3,
        "node_type": "group",
        "attributes": {},
        # Zarr writes consolidated metadata in this form. Some readers warn if there are none.
        "consolidated_metadata": {
            "kind": "inline",
            "must_understand": False,
            "metadata": {as_group: document},
        },
    }
    return {METADATA_KEY: _encode(group), f"{as_group}/{METADATA_KEY}": _encode(document)}


def _attrs_of(dataset: Dataset) -> Mapping[str, Any]:
    """Return the attributes, with what the bytes of samples that are arrays stand for: Zarr has no place for it."""
    ragged = dataset.ragged
    if ragged is None or ragged.kind != "arrays":
        return dataset.attrs
    return {"ragged": {"dtype": form_of(ragged.dtype), "shape": list(ragged.shape)}, **dataset.attrs}


def number_at(layout: Layout, key: str) -> int | None:
    """Return the number of the shard whose object has a key, or None.

    The inverse of `Layout.key_of`. Other spellings of a key, such as with leading zeros, are no keys.
    """
    name, *numbers = key.split("/")
    if name != "c" or len(numbers) != len(layout.grid):
        return None
    if not all(text.isascii() and text.isdigit() and len(text) <= _MAX_DIGITS for text in numbers):
        return None
    coords = [int(text) for text in numbers]
    if not all(coord < length for coord, length in zip(coords, layout.grid, strict=True)):
        return None
    number = layout.number_of(coords)
    return number if layout.key_of(number) == key else None


def byte_bounds(byte_range: ByteRequest | None, nbytes: int) -> tuple[int, int]:
    """Return the first byte of a range and the byte behind its last one, of an object of `nbytes` bytes.

    Raises
    ------
    InvalidInputError
        If the range begins behind the end of the object. A range that only ends there is cut.
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


def _encode(document: Mapping[str, Any]) -> bytes:
    return json.dumps(document).encode()
