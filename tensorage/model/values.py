"""Conversion and checks of the arrays, keys and attributes that users hand in. No I/O."""

from __future__ import annotations

import json
import reprlib
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from tensorage.errors import DTypeError, IncompleteTensorError, InvalidInputError
from tensorage.types import COORDS_ATTRIBUTE, Dataset

__all__ = [
    "MAX_KEY_BYTES",
    "as_array",
    "as_assigned",
    "as_attrs",
    "as_dims",
    "cast_to",
    "check_key",
    "check_owner",
    "check_prefix",
    "check_rows",
    "flat_blocks",
    "split_key",
]

#: Most bytes of a key in UTF-8.
MAX_KEY_BYTES = 1024


def check_key(key: str) -> None:
    """Refuse a value that cannot be a key."""
    if not isinstance(key, str):
        raise InvalidInputError(f"a key is a string, not {reprlib.repr(key)}")
    try:
        length = len(key.encode())
    except UnicodeEncodeError as error:
        raise InvalidInputError(
            f"the key {key!r} holds a lone surrogate, which no text has: {error}"
        ) from error
    if not 1 <= length <= MAX_KEY_BYTES:
        raise InvalidInputError(
            f"a key has 1 to {MAX_KEY_BYTES} bytes of UTF-8, this one {length}: {key[:40]!r}"
        )
    if "\0" in key:
        raise InvalidInputError(f"a key holds no NUL character, as {key!r} does")


def check_prefix(prefix: str) -> None:
    """Refuse a value that cannot begin a key. The database would take 3 for "3", and delete what begins with it."""
    if not isinstance(prefix, str):
        raise InvalidInputError(f"a prefix of keys is a string, not {reprlib.repr(prefix)}")


def check_owner(owner: object) -> None:
    """Refuse a value that names no account, neither by address nor by id."""
    if not isinstance(owner, str) or not (_is_address(owner) or _is_id(owner)):
        raise InvalidInputError(
            f"{owner!r} names no owner: give the e-mail address or the id of the account, as store.shared_with_me() "
            "shows them"
        )


def _is_address(text: str) -> bool:
    name, _, domain = text.rpartition("@")
    return bool(name and domain) and not any(letter.isspace() for letter in text)


def _is_id(text: str) -> bool:
    try:
        uuid.UUID(text)
    except ValueError:
        return False
    return True


def as_array(data: npt.ArrayLike) -> npt.NDArray[Any]:
    """Convert data to an array, and refuse data that an array cannot hold."""
    # Numpy would drop the mask without a word.
    if isinstance(data, np.ma.MaskedArray):
        raise InvalidInputError(
            "a masked array has no elements where it is masked: store data.filled(...) and, if needed, data.mask"
        )
    if isinstance(data, Iterator) and not hasattr(data, "__array__"):
        # numpy would take the iterator itself for a single object.
        raise DTypeError(
            "an iterator does not tell its shape: store its blocks of rows with store.write(key, blocks, shape=..., "
            "dtype=...), or np.stack(list(...)) of them"
        )
    try:
        return np.asarray(data)
    except ValueError as error:
        raise InvalidInputError(f"this is no array: {error}") from error


def cast_to(data: npt.ArrayLike, dataset: Dataset) -> npt.NDArray[Any]:
    """Cast data to the dtype of a dataset. Arrays have to fit it without loss. Of a list, only the values have to."""
    if not isinstance(data, np.ndarray | np.generic):
        return as_assigned(data, dataset)
    array = as_array(data)
    # An empty array has a dtype by accident, and no value to lose.
    if array.size and not np.can_cast(array.dtype, dataset.dtype, "safe"):
        raise DTypeError(
            f"{array.dtype} does not fit {dataset.key!r} of dtype {dataset.dtype} without loss: "
            f"convert it yourself, with .astype({dataset.dtype.name!r})"
        )
    return array.astype(dataset.dtype, copy=False)


def as_assigned(value: npt.ArrayLike, dataset: Dataset) -> npt.NDArray[Any]:
    """Cast a value to the dtype of the dataset that it is assigned to.

    Within a kind, values are cast as numpy casts them (float64 to float32, say). To another kind, and to integers,
    values are cast only if they stay equal: numpy would cut them off.
    """
    array = as_array(value)
    rule: Literal["safe", "same_kind"] = "safe" if dataset.dtype.kind in "iu" else "same_kind"
    if not array.size or np.can_cast(array.dtype, dataset.dtype, rule):
        return array.astype(dataset.dtype, copy=False)
    if array.dtype.kind in "biuf" and dataset.dtype.kind in "biufc":
        with np.errstate(invalid="ignore"):
            cast = array.astype(dataset.dtype)
        if np.array_equal(cast, array):
            return cast
    raise DTypeError(
        f"values of dtype {array.dtype} do not fit {dataset.key!r} of dtype {dataset.dtype}: convert them yourself, "
        f"with .astype({dataset.dtype.name!r}); nothing has changed"
    )


def check_rows(rows: npt.NDArray[Any], target: Dataset) -> None:
    """Refuse rows whose shape differs from that of the array beyond the first axis."""
    if target.ndim == 0 or rows.ndim != target.ndim or rows.shape[1:] != target.shape[1:]:
        raise InvalidInputError(
            f"rows of shape {rows.shape} do not fit {target.key!r} of shape {target.shape}: "
            "all but the first axis have to be the same"
        )


def flat_blocks(blocks: Iterable[npt.ArrayLike], dataset: Dataset) -> Iterator[npt.NDArray[Any]]:
    """Yield the elements of each block in one dimension, checked against the declared shape."""
    came = 0
    for block in blocks:
        rows = cast_to(block, dataset)
        if rows.ndim != dataset.ndim or rows.shape[1:] != dataset.shape[1:]:
            raise InvalidInputError(
                f"a block of shape {rows.shape} does not fit {dataset.key!r} of the declared shape {dataset.shape}: "
                "all but the first axis have to be the same"
            )
        came += rows.shape[0]
        # Blocks may go on without end, so stop once there are too many rows.
        if came > dataset.shape[0]:
            break
        yield np.ascontiguousarray(rows).reshape(-1)
    if came != dataset.shape[0]:
        more = "at least " if came > dataset.shape[0] else ""
        raise IncompleteTensorError(
            f"the blocks of {dataset.key!r} are {more}{came} rows, of shape {(came, *dataset.shape[1:])} together, and "
            f"the declared shape is {dataset.shape}: nothing was stored"
        )


def as_attrs(attrs: Mapping[str, Any]) -> dict[str, Any]:
    """Convert attributes to JSON's types: numpy's numbers and arrays become Python's."""
    if not isinstance(attrs, Mapping):
        raise InvalidInputError(
            f'attributes are a mapping of names to values, such as {{"units": "K"}}, not {reprlib.repr(attrs)}'
        )
    for name in attrs:
        if not isinstance(name, str):
            raise InvalidInputError(f"the name of an attribute is a string, not {name!r}")
        if name == COORDS_ATTRIBUTE:
            raise InvalidInputError(
                f"the name {name!r} is reserved: coordinates are kept under it, and tensor.coords changes them"
            )
    try:
        # A round trip through JSON makes a copy that later changes of the user's objects do not reach.
        plain: dict[str, Any] = json.loads(json.dumps(dict(attrs), default=_to_json_type, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise InvalidInputError(f"the attributes cannot be written as JSON: {error}") from error
    # JSON writes a backslash of the text as two. With these removed, only a NUL character is left as \u0000.
    if "\\u0000" in json.dumps(plain).replace("\\\\", ""):
        raise InvalidInputError("the attributes hold a NUL character, which PostgreSQL cannot store")
    return plain


def as_dims(dims: Sequence[str] | None, ndim: int) -> list[str] | None:
    """Check the names of the axes: one for each."""
    if dims is None:
        return None
    if isinstance(dims, str) or not all(isinstance(name, str) for name in dims):
        raise InvalidInputError(f"dims are the names of the axes, such as ('time', 'x'), not {dims!r}")
    if len(dims) != ndim:
        raise InvalidInputError(f"{len(dims)} dims name {ndim} axes: give one name for each axis")
    return list(dims)


def _to_json_type(value: object) -> Any:
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    raise TypeError(f"{value!r} is no text, number, truth value, None, list or dict")


def split_key(key: str | tuple[Any, ...]) -> tuple[str, Any]:
    """Return the key of ``store[key]`` or ``store[key, i, j, ...]``, and the selection: None if there is none."""
    if isinstance(key, tuple):
        if not key:
            raise InvalidInputError("a key is a string: store['key'] or store['key', 10:20]")
        # store["k", a] is array[a], store["k", a, b] is array[a, b]. Of one None, the tuple: no selection is None too.
        name, *items = key
        if not items:
            return name, None
        return name, items[0] if len(items) == 1 and items[0] is not None else tuple(items)
    return key, None
