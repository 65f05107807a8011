"""What users hand in, as arrays and keys that can be stored. No I/O."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from tensorage.errors import DTypeError, InvalidInputError
from tensorage.types import Dataset

__all__ = ["MAX_KEY_BYTES", "as_array", "cast_to", "check_key", "is_plain"]

#: Bytes of UTF-8.
MAX_KEY_BYTES = 1024


def check_key(key: str) -> None:
    """Refuse what cannot be a key."""
    if not isinstance(key, str):
        raise InvalidInputError(f"a key is a string, not {key!r}")
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


def as_array(data: npt.ArrayLike) -> npt.NDArray[Any]:
    """The array that data is, if all of it is one."""
    if isinstance(data, np.ma.MaskedArray):
        raise InvalidInputError(
            "a masked array has no elements where it is masked: store data.filled(...) and, if needed, data.mask"
        )
    try:
        return np.asarray(data)
    except ValueError as error:
        raise InvalidInputError(f"this is no array: {error}") from error


def cast_to(data: npt.ArrayLike, dataset: Dataset) -> npt.NDArray[Any]:
    """Data in the dtype of a dataset: lists are read in it, arrays have to fit it without loss."""
    array = as_array(data)
    rule: Literal["safe", "same_kind"] = "safe" if isinstance(data, np.ndarray | np.generic) else "same_kind"
    if array.size and not np.can_cast(array.dtype, dataset.dtype, rule):
        raise DTypeError(
            f"{array.dtype} does not fit {dataset.key!r} of dtype {dataset.dtype} without loss: "
            f"convert it yourself, with .astype({dataset.dtype.name!r})"
        )
    try:
        return np.asarray(data, dtype=dataset.dtype)
    except OverflowError as error:
        raise DTypeError(f"{error}: {dataset.key!r} has dtype {dataset.dtype}") from error


def is_plain(out: npt.NDArray[Any] | None, dataset: Dataset, shape: tuple[int, ...]) -> bool:
    """True if elements of the dataset can be written straight into the memory of `out`."""
    return out is not None and bool(
        out.flags.c_contiguous and out.flags.writeable and out.dtype == dataset.dtype and out.shape == shape
    )
