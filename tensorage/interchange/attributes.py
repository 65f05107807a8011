"""Attributes of files as JSON, and attributes of arrays as files keep them. No I/O.

Numbers and text have a place on both sides. Everything else is named in a warning, once for each file.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tensorage.errors import InvalidInputError
from tensorage.model.values import as_attrs
from tensorage.warnings import warn

__all__ = ["Left", "file_attrs", "plain_attrs"]

#: Most names that a warning lists.
_MAX_NAMES = 8

#: Most bytes of an attribute in HDF5, less some room for its name and shape.
_MAX_ATTRIBUTE_BYTES = 60_000


@dataclass
class Left:
    """Collects the names of things that are left out, for one warning.

    Parameters
    ----------
    asked
        Beginning of the warning, such as ``importing 'weather.h5'``.
    """

    asked: str
    names: list[str] = field(default_factory=list)

    def add(self, name: str, reason: str) -> None:
        """Note that something is left out."""
        self.names.append(f"{name} ({reason})")

    def tell(self) -> None:
        """Give the warning, if there is anything to tell."""
        if self.names:
            more = len(self.names) - _MAX_NAMES
            rest = f" and {more} more" if more > 0 else ""
            warn(
                f"{self.asked}: left out, as there is no place for it: {'; '.join(self.names[:_MAX_NAMES])}{rest}"
            )
            # Told once: a later call tells what has come since.
            self.names.clear()


def plain_attrs(where: str, attrs: Iterable[tuple[str, Any]], left: Left) -> dict[str, Any]:
    """Convert attributes of a file to JSON. Note those for which JSON has no form.

    Parameters
    ----------
    where
        Name of the array or group that has them, for the warning.
    """
    plain: dict[str, Any] = {}
    for name, value in attrs:
        try:
            plain.update(as_attrs({name: _as_json(value)}))
        except InvalidInputError as error:
            left.add(f"attribute {name!r} of {where}", str(error))
    return plain


def file_attrs(where: str, attrs: Mapping[str, Any], left: Left) -> dict[str, Any]:
    """Return the attributes that HDF5 and NetCDF have a place for: numbers, text, and lists of either.

    All others are noted.
    """
    kept: dict[str, Any] = {}
    for name, value in attrs.items():
        reason = _reason_against(value)
        if reason is None and name and "/" not in name:
            kept[name] = value
        else:
            left.add(f"attribute {name!r} of {where}", reason or "such a name")
    return kept


def _as_json(value: Any) -> Any:
    if isinstance(value, bytes):
        return _text(value)
    if isinstance(value, np.generic | np.ndarray):
        if value.dtype.kind in "biufUOT":
            # The items of an array of objects are texts, or are refused one by one.
            return _each(value.tolist())
        if value.dtype.kind == "S":
            return _each(value.tolist())
        raise InvalidInputError(f"dtype {value.dtype}")
    if not isinstance(value, str | bool | int | float | list | tuple | dict | None):
        raise InvalidInputError(f"a value of type {type(value).__name__}")
    return value


def _each(value: Any) -> Any:
    if isinstance(value, list):
        return [_each(item) for item in value]
    return _as_json(value)


def _text(value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        raise InvalidInputError("bytes that are no UTF-8") from error


def _reason_against(value: Any) -> str | None:
    """Say why a file has no place for a value; None if it has."""
    items = value if isinstance(value, list) else [value]
    kinds = {
        str if isinstance(item, str) else bool if isinstance(item, bool) else type(item) for item in items
    }
    if not (kinds <= {int, float} or kinds in ({str}, {bool})):
        return "neither numbers nor text"
    if any(isinstance(item, int) and not -(2**63) <= item < 2**63 for item in items):
        return "a number of more than 64 bits"
    if any(isinstance(item, float) and not math.isfinite(item) for item in items):
        return "no finite number"
    if len(json.dumps(value, ensure_ascii=False).encode()) > _MAX_ATTRIBUTE_BYTES:
        return f"more than {_MAX_ATTRIBUTE_BYTES} bytes"
    return None
