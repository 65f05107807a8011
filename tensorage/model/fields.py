"""Fields of records in selections: which are asked for, and how to take them out of whole records. No I/O."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from tensorage.errors import InvalidInputError
from tensorage.indexing.selection import Selection
from tensorage.model.results import check_out
from tensorage.wording import quote

__all__ = ["Fields", "split_fields"]


@dataclass(frozen=True)
class Fields:
    """Fields that a selection names.

    Parameters
    ----------
    names
        Names of the fields, in the order in which they are asked for.
    is_one
        True if one field is asked for by its name, and False for a list of names.
    dtype
        Dtype of records of these fields alone.
    offsets, sizes
        First bytes of a record that hold the fields, and numbers of bytes: one each for fields that follow each other.
    """

    names: tuple[str, ...]
    is_one: bool
    dtype: np.dtype[Any]
    offsets: tuple[int, ...]
    sizes: tuple[int, ...]

    @classmethod
    def of(cls, dtype: np.dtype[Any], names: tuple[str, ...], *, is_one: bool) -> Fields:
        """Look up fields of stored records, whose dtype is packed.

        Raises
        ------
        InvalidInputError
            If there is no field of such a name, or one is named twice.
        """
        known = cast("Mapping[str, tuple[Any, ...]]", dtype.fields or {})
        for position, name in enumerate(names):
            if name not in known:
                raise InvalidInputError(
                    f"no field of name {quote(name)}: the fields are {', '.join(map(repr, known))}"
                )
            if name in names[:position]:
                raise InvalidInputError(f"the field {quote(name)} is named twice")
        offsets: list[int] = []
        sizes: list[int] = []
        for name in names:
            offset, size = known[name][1], dtype[name].itemsize
            if offsets and offsets[-1] + sizes[-1] == offset:
                sizes[-1] += size
            else:
                offsets.append(offset)
                sizes.append(size)
        own = np.dtype([(name, dtype[name]) for name in names])
        return cls(names, is_one, own, tuple(offsets), tuple(sizes))

    def take(self, records: Any) -> Any:
        """Return the fields of records: of whole ones, or of such as have no other fields. Nothing else is kept."""
        array = np.asarray(records)
        if array.dtype != self.dtype:
            array = array[list(self.names)].astype(self.dtype)
        taken = array[self.names[0]] if self.is_one else array
        # numpy gives a scalar, and not an array without axes, where every axis is indexed by a number.
        return taken if isinstance(records, np.ndarray) else taken[()]

    def put(self, result: Any, out: npt.NDArray[Any] | None) -> Any:
        """Return the result, in `out` if it is given.

        Raises
        ------
        InvalidInputError
            If `out` has not the shape and dtype of the result.
        """
        if out is None:
            return result
        array = np.asarray(result)
        check_out(array.shape, array.dtype, out)
        out[...] = array
        return out


def split_fields(selection: Any, dtype: np.dtype[Any]) -> tuple[Fields | None, Selection]:
    """Return the fields that a selection names, and the rest of it, which selects records.

    A name, or a list of names, is the whole selection, or the first item of a tuple.

    >>> fields, rest = split_fields(("x", slice(3)), np.dtype([("t", "<f8"), ("x", "<f4")]))
    >>> fields.names, fields.offsets, fields.sizes, rest
    (('x',), (8,), (4,), (slice(None, 3, None),))

    Raises
    ------
    InvalidInputError
        If there is no field of such a name.
    """
    if dtype.names is None:
        return None, selection
    first, rest = (
        (selection[0], selection[1:]) if isinstance(selection, tuple) and selection else (selection, ...)
    )
    if isinstance(first, str):
        return Fields.of(dtype, (first,), is_one=True), rest
    if isinstance(first, list) and first and all(isinstance(name, str) for name in first):
        return Fields.of(dtype, tuple(first), is_one=False), rest
    return None, selection
