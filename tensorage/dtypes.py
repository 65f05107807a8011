"""Dtypes of stored arrays: which there are, and the one form in which they are written down. No I/O.

The *form* of a dtype is a text. It stands in the catalogue, in requests and in cache files, and is the same for equal
dtypes:

* numpy's ``dtype.str``, little-endian, for numbers, times, and text or bytes of one length: ``<f4``, ``<M8[ns]``,
  ``<U5``, ``|S3``, ``|V8``;
* the name in ``ml_dtypes`` for the small floats of that package, whose ``dtype.str`` does not tell them apart:
  ``bfloat16``, ``float8_e4m3fn``;
* JSON for records, the same lists as numpy's ``dtype.descr``: ``[["t","<M8[ns]"],["xyz","<f4",[3]]]``.

Records are packed: fields follow each other without padding (docs/decisions/0027).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from tensorage.errors import DTypeError
from tensorage.wording import quote

__all__ = [
    "MAX_ITEMSIZE",
    "SMALL_FLOATS",
    "dtype_of",
    "form_of",
    "has_byte_order",
    "has_small_float",
    "is_number",
    "is_small_float",
    "storable_dtype",
]

#: Kinds of ``numpy.dtype.kind`` for numbers, truth values, times and time spans.
_NUMBERS = frozenset("biufcmM")

#: Kinds for text, bytes and raw bytes of one length.
_FIXED_LENGTHS = frozenset("USV")

#: Floats of the package ``ml_dtypes`` that take whole bytes.
SMALL_FLOATS = frozenset(
    {
        "bfloat16",
        "float8_e3m4",
        "float8_e4m3",
        "float8_e4m3b11fnuz",
        "float8_e4m3fn",
        "float8_e4m3fnuz",
        "float8_e5m2",
        "float8_e5m2fnuz",
        "float8_e8m0fnu",
    }
)

#: Most bytes of one element. It has to fit a request many times, and a longer one is an axis in disguise.
MAX_ITEMSIZE = 1024 * 1024

#: Most bytes of a form in UTF-8, and most records within each other, as the database checks them.
_MAX_FORM_BYTES = 65536
_MAX_DEPTH = 16

#: Value of ``numpy.dtype.isbuiltin`` for dtypes that another package has registered.
_REGISTERED = 2


def storable_dtype(dtype: npt.DTypeLike) -> np.dtype[Any]:
    """Return the stored form of a dtype: little-endian, and packed if it is one of records.

    >>> storable_dtype(np.dtype([("flag", "?"), ("x", ">f8")], align=True))
    dtype([('flag', '?'), ('x', '<f8')])

    Raises
    ------
    DTypeError
        If no array of the dtype can be stored: of objects, of text of any length, of records whose fields overlap or
        have titles, or of elements without bytes.
    """
    try:
        wanted = np.dtype(dtype)
    except TypeError as error:
        raise DTypeError(f"{quote(dtype)} is no numpy dtype: give one such as 'float32'") from error
    if wanted.subdtype is not None:
        base, shape = wanted.subdtype
        raise DTypeError(
            f"arrays of dtype {wanted} cannot be stored: declare dtype {base}, and put {shape} behind the shape"
        )
    stored = _as_stored(wanted, "", 0)
    if stored.itemsize > MAX_ITEMSIZE:
        raise DTypeError(
            f"arrays of dtype {_as_text(wanted)} cannot be stored: an element takes {stored.itemsize} bytes, and "
            f"{MAX_ITEMSIZE} is the most. Store long elements as an axis of shorter ones, for example with .view()"
        )
    if len(form_of(stored).encode()) > _MAX_FORM_BYTES:
        raise DTypeError(
            f"arrays of dtype {_as_text(wanted)} cannot be stored: the names and dtypes of the fields take more than "
            f"{_MAX_FORM_BYTES} bytes. Store groups of fields under keys of their own"
        )
    return stored


def form_of(dtype: np.dtype[Any]) -> str:
    """Return the form of a dtype that `storable_dtype` has returned.

    >>> form_of(np.dtype("<f4")), form_of(np.dtype([("t", "<M8[s]"), ("xyz", "<f4", (3,))]))
    ('<f4', '[["t","<M8[s]"],["xyz","<f4",[3]]]')
    """
    if dtype.names is not None:
        return json.dumps(_fields(dtype), separators=(",", ":"), ensure_ascii=False)
    return dtype.name if is_small_float(dtype) else dtype.str


# Each answer of the catalogue has a form, mostly one of a few.
@lru_cache(maxsize=256)
def dtype_of(form: str) -> np.dtype[Any]:
    """Return the dtype of a form.

    Raises
    ------
    DTypeError
        If the form is none that this version of tensorage knows, or needs a package that is not installed.
    """
    try:
        dtype = _dtype_of(json.loads(form)) if form.startswith("[") else _dtype_of(form)
        is_known = form_of(storable_dtype(dtype)) == form
    except (TypeError, ValueError, RecursionError, DTypeError) as error:
        if isinstance(error, _MissingPackageError):
            raise
        raise DTypeError(f"the dtype {form[:80]!r} of a stored array is unknown: {error}") from error
    if not is_known:
        raise DTypeError(f"the dtype {form[:80]!r} of a stored array is none that is written so")
    return dtype


def is_number(dtype: np.dtype[Any]) -> bool:
    """Tell whether elements are numbers, truth values, times or time spans, and no text, bytes or records."""
    return dtype.kind in _NUMBERS or is_small_float(dtype)


def is_small_float(dtype: np.dtype[Any]) -> bool:
    """Tell whether a dtype is a float of ``ml_dtypes`` that can be stored."""
    # numpy's own dtypes have other names, so nothing of `ml_dtypes` is needed to tell.
    return dtype.isbuiltin == _REGISTERED and dtype.name in SMALL_FLOATS


def has_small_float(dtype: np.dtype[Any]) -> bool:
    """Tell whether elements are small floats, or records with such a field."""
    if dtype.names is None:
        return is_small_float(dtype)
    return any(has_small_float(dtype[name].base) for name in dtype.names)


def has_byte_order(dtype: np.dtype[Any]) -> bool:
    """Tell whether Zarr gives elements of a dtype a byte order: numbers and text of several bytes have one."""
    if dtype.kind == "U":
        return True
    return is_number(dtype) and dtype.itemsize > 1


class _MissingPackageError(DTypeError):
    """The dtype is one of a package that is not installed."""


def _as_stored(dtype: np.dtype[Any], place: str, depth: int) -> np.dtype[Any]:
    """Return the stored form of a dtype.

    Parameters
    ----------
    place
        Path of the field that has the dtype, empty for the array itself.
    depth
        Records round the field.
    """
    if dtype.names is not None:
        return _pack(dtype, place, depth)
    if is_small_float(dtype):
        return dtype
    if dtype.isbuiltin != _REGISTERED and dtype.kind in _NUMBERS | _FIXED_LENGTHS and dtype.itemsize:
        return dtype.newbyteorder("<")
    raise DTypeError(f"{_subject(dtype, place)} cannot be stored: {_advice(dtype)}")


def _pack(dtype: np.dtype[Any], place: str, depth: int) -> np.dtype[Any]:
    """Return a dtype of records with little-endian fields, one right behind the other."""
    names, fields = dtype.names or (), cast("Mapping[str, tuple[Any, ...]]", dtype.fields or {})
    if not names:
        raise DTypeError(f"{_subject(dtype, place)} cannot be stored: the records have no fields")
    if depth == _MAX_DEPTH:
        raise DTypeError(
            f"{_subject(dtype, place)} cannot be stored: it is the {depth + 1}th record within another, and "
            f"{_MAX_DEPTH} is the most"
        )
    packed: list[tuple[Any, ...]] = []
    end = 0
    for name in names:
        field, offset, *title = fields[name]
        path = f"{place}.{name}" if place else name
        _check_name(name, path)
        if title:
            raise DTypeError(
                f"the field {path!r} has the title {title[0]!r}, and titles cannot be stored: leave it out of the "
                "dtype, or keep it as an attribute"
            )
        if offset < end:
            raise DTypeError(
                f"the field {path!r} begins at byte {offset}, within the {end} bytes of the fields before it: fields "
                "that overlap or are out of order cannot be stored. Name them in the order of their offsets, each "
                "byte once, or store array[['a', 'b']] of fields that do not overlap"
            )
        end = offset + field.itemsize
        base, shape = (field, ()) if field.subdtype is None else field.subdtype
        if not math.prod(shape):
            raise DTypeError(f"the field {path!r} of shape {shape} has no elements: leave it out")
        inner = _as_stored(base, path, depth + 1)
        packed.append((name, inner, shape) if shape else (name, inner))
    return np.dtype(packed)


def _check_name(name: str, path: str) -> None:
    if "\0" in name:
        raise DTypeError(f"the name of the field {path!r} holds a NUL character: rename it")
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise DTypeError(
            f"the name of the field {path!r} holds a lone surrogate, which no text has: rename it"
        ) from error


def _subject(dtype: np.dtype[Any], place: str) -> str:
    return (
        f"the field {place!r} of dtype {_as_text(dtype)}" if place else f"arrays of dtype {_as_text(dtype)}"
    )


def _as_text(dtype: np.dtype[Any]) -> str:
    text = str(dtype)
    return text if len(text) <= 100 else f"{text[:97]}..."


def _advice(dtype: np.dtype[Any]) -> str:
    if dtype.kind == "O":
        return (
            "objects have no bytes of one length. An array of objects is stored if all of them are str; if they are "
            "numbers, .astype('float64') converts them; samples of any length are stored by store.write_ragged(key, "
            "samples)"
        )
    if dtype.kind == "T":
        return (
            "texts of any length are stored as a whole array, store[key] = array, or from an iterable by "
            "store.write_ragged(key, texts). Elsewhere, np.array(data.tolist(), dtype=str) gives them one length"
        )
    if dtype.kind in _FIXED_LENGTHS and not dtype.itemsize:
        return f"its elements have no bytes. Give them a length, such as {dtype.kind + '8'!r}"
    if dtype.isbuiltin == _REGISTERED and dtype.itemsize == 1 and "int" in dtype.name:
        return "convert it, for example with .astype('int8')"
    return "convert it, for example with .astype('float32')"


def _fields(dtype: np.dtype[Any]) -> list[list[Any]]:
    described: list[list[Any]] = []
    for name in dtype.names or ():
        field = dtype[name]
        base, shape = (field, ()) if field.subdtype is None else field.subdtype
        inner = form_of(base) if base.names is None else _fields(base)
        described.append([name, inner, list(shape)] if shape else [name, inner])
    return described


def _dtype_of(form: Any) -> np.dtype[Any]:
    if isinstance(form, list):
        return np.dtype([(name, _dtype_of(inner), *map(tuple, shape)) for name, inner, *shape in form])
    if form not in SMALL_FLOATS:
        return np.dtype(str(form))
    try:
        import ml_dtypes
    except ModuleNotFoundError as error:
        raise _MissingPackageError(
            f"an array of dtype {form} needs the package 'ml_dtypes', which is not installed: pip install ml_dtypes"
        ) from error
    dtype: np.dtype[Any] = np.dtype(getattr(ml_dtypes, form))
    return dtype
