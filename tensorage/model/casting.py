"""Casts of values to the dtype of a stored array. A cast that would change a value is refused. No I/O.

* An array has to fit by its dtype, as numpy's "safe" casts do. Values that are assigned, and those of lists, have to
  fit by themselves: within a kind they are cast as numpy casts them (float64 to float32, say), and to another kind, or
  to integers, only if they stay equal.
* Text and bytes fit if none of them is cut off. They become no numbers, and numbers become no text.
* Records fit if their fields have the same names in the same order, and each field fits by the rules above. numpy
  would go by the order alone, and exchange fields without a word.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from tensorage.dtypes import is_number, is_small_float
from tensorage.errors import DTypeError, IncompleteTensorError, InvalidInputError
from tensorage.model.values import as_array, is_array
from tensorage.types import Dataset
from tensorage.wording import one_line

__all__ = ["as_assigned", "as_element", "cast_to", "flat_blocks"]

#: Rule for the dtype of an array, or for values.
_Rule = Literal["dtype", "values"]


def cast_to(data: npt.ArrayLike, dataset: Dataset) -> npt.NDArray[Any]:
    """Cast data to the dtype of a dataset. Arrays have to fit it without loss; only the values of a list have to."""
    if not is_array(data):
        return as_assigned(data, dataset)
    array = as_array(data)
    cast = _fit(array, dataset.dtype, "dtype")
    if cast is None:
        raise DTypeError(
            f"{array.dtype} does not fit {dataset.key!r} of dtype {dataset.dtype} without loss"
            f"{_why(array, dataset.dtype)}: convert it yourself, {_how(dataset.dtype)}"
        )
    return cast


def as_assigned(value: npt.ArrayLike, dataset: Dataset) -> npt.NDArray[Any]:
    """Cast a value to the dtype of the dataset that it is assigned to.

    Tuples become records.
    """
    return _cast_values(value, dataset.key, dataset.dtype)


def as_element(value: npt.ArrayLike, key: str, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """Cast a single value to the dtype of an array, as an array without dimensions. The number 0 fits any dtype.

    Raises
    ------
    InvalidInputError, DTypeError
        If it is not one element of the dtype.
    """
    if isinstance(value, int) and not isinstance(value, bool) and value == 0:
        return np.zeros((), dtype)
    element = _cast_values(value, key, dtype)
    if element.shape:
        raise InvalidInputError(
            f"creating {key!r}: the fill value is one element of dtype {dtype}, and not an array of shape "
            f"{element.shape}"
        )
    return element


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


def _cast_values(value: npt.ArrayLike, key: str, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    is_plain = isinstance(value, list | tuple | int | float | complex | str | bytes) and not is_array(value)
    array = _as_objects(value, key, dtype) if is_plain and dtype.names is not None else as_array(value)
    cast = _fit(array, dtype, "values")
    if cast is None:
        raise DTypeError(
            f"values of dtype {array.dtype} do not fit {key!r} of dtype {dtype}{_why(array, dtype)}: convert them "
            f"yourself, {_how(dtype)}; nothing has changed"
        )
    return cast


def _fit(array: npt.NDArray[Any], dtype: np.dtype[Any], rule: _Rule) -> npt.NDArray[Any] | None:
    """Cast an array, or return None if it does not fit."""
    # An empty array has a dtype by accident, and no value to lose.
    if array.dtype == dtype or not array.size:
        return array.astype(dtype, copy=False)
    if array.dtype.kind == "O" and rule == "values":
        # Leaves of `_as_objects`, whose own dtype shows only now.
        array = np.array(array.tolist())
    if dtype.names is not None or array.dtype.names is not None:
        return _fit_records(array, dtype, rule)
    return _fit_numbers(array, dtype, rule) if is_number(dtype) else _fit_bytes(array, dtype)


def _fit_numbers(array: npt.NDArray[Any], dtype: np.dtype[Any], rule: _Rule) -> npt.NDArray[Any] | None:
    if rule == "values" and (is_small_float(dtype) or is_small_float(array.dtype)):
        return _fit_small_floats(array, dtype)
    casting: Literal["safe", "same_kind"] = "safe" if rule == "dtype" or dtype.kind in "iu" else "same_kind"
    if np.can_cast(array.dtype, dtype, casting):
        return array.astype(dtype, copy=False)
    if rule == "values" and array.dtype.kind in "biuf" and dtype.kind in "biufc":
        return _cast_if_equal(array, dtype)
    return None


def _cast_if_equal(array: npt.NDArray[Any], dtype: np.dtype[Any]) -> npt.NDArray[Any] | None:
    with np.errstate(invalid="ignore", over="ignore"):
        cast = array.astype(dtype)
    return cast if np.array_equal(cast, array) else None


def _fit_small_floats(array: npt.NDArray[Any], dtype: np.dtype[Any]) -> npt.NDArray[Any] | None:
    """Cast values to or from a small float. numpy calls any number one of the kind of these, integers as well."""
    if not (is_number(array.dtype) and array.dtype.kind not in "cmM" and dtype.kind not in "mM"):
        return None
    # Every small float is a float32, and numpy compares no two kinds of small floats.
    wide = array.astype(np.float32) if is_small_float(array.dtype) else array
    if not is_small_float(dtype):
        return _cast_if_equal(wide, dtype) if dtype.kind in "biu" else wide.astype(dtype)
    cast = wide.astype(dtype)
    return cast if wide.dtype.kind == "f" or np.array_equal(cast.astype(np.float64), wide) else None


def _fit_bytes(array: npt.NDArray[Any], dtype: np.dtype[Any]) -> npt.NDArray[Any] | None:
    if array.dtype.kind != dtype.kind or is_number(array.dtype):
        return None
    if array.dtype.itemsize <= dtype.itemsize:
        return array.astype(dtype)
    if dtype.kind == "V":
        return None
    cast = array.astype(dtype)
    return cast if np.array_equal(cast, array) else None


def _fit_records(array: npt.NDArray[Any], dtype: np.dtype[Any], rule: _Rule) -> npt.NDArray[Any] | None:
    if array.dtype.names != dtype.names:
        return None
    cast = np.empty(array.shape, dtype)
    for name in dtype.names or ():
        values = array[name]
        fitting = _fit(values, dtype[name].base, rule) if values.shape == cast[name].shape else None
        if fitting is None:
            return None
        cast[name] = fitting
    return cast


def _as_objects(value: npt.ArrayLike, key: str, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """Make records of tuples, each of whose fields holds the value as it was given."""
    try:
        return np.array(value, _of_objects(dtype))
    except (TypeError, ValueError) as error:
        raise DTypeError(
            f"these values make no records for {key!r} of dtype {dtype}: {one_line(str(error))}. Give tuples, one "
            "for each record, or an array of that dtype; nothing has changed"
        ) from error


def _of_objects(dtype: np.dtype[Any]) -> np.dtype[Any]:
    if dtype.subdtype is not None:
        base, shape = dtype.subdtype
        return np.dtype((_of_objects(base), shape))
    if dtype.names is None:
        return np.dtype(object)
    return np.dtype([(name, _of_objects(dtype[name])) for name in dtype.names])


def _why(array: npt.NDArray[Any], dtype: np.dtype[Any]) -> str:
    """Return the reason, as a part of the message, where the two dtypes do not tell it."""
    if dtype.names is not None and array.dtype.names is not None and array.dtype.names != dtype.names:
        return ", whose fields have other names or another order"
    if dtype.kind in "US" and array.dtype.kind == dtype.kind:
        longest = int(np.strings.str_len(array).max())
        room = dtype.itemsize // (4 if dtype.kind == "U" else 1)
        return f", which would cut off texts of {longest} characters after {room}"
    return ""


def _how(dtype: np.dtype[Any]) -> str:
    if is_number(dtype):
        return f"with .astype({dtype.name!r})"
    return "with .astype(handle.dtype)" if dtype.names else f"with .astype({dtype.str!r})"
