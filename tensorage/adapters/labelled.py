"""Storing of xarray's arrays, which are taken apart into elements and labels, without importing xarray."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from tensorage.backend.arrays import Arrays
from tensorage.errors import ChangedError, DTypeError, InvalidInputError
from tensorage.model.coords import (
    Coord,
    as_labels,
    check_fit,
    check_name,
    check_room,
    coords_of,
    encode_coords,
    extend_coord,
    move_to_axes,
    replace_coords,
)
from tensorage.model.values import as_dims
from tensorage.types import Dataset

__all__ = [
    "Labels",
    "append_labelled",
    "check_index",
    "coord_of",
    "is_dataset",
    "is_labelled",
    "label_rows",
    "labels_of",
    "unwrap",
]


@dataclass(frozen=True)
class Labels:
    """Name, dims, shape and coordinates of an array of xarray."""

    name: str | None
    dims: tuple[str, ...]
    shape: tuple[int, ...]
    coords: Sequence[Coord]

    def copy(self) -> Labels:
        """Return labels with memory of their own."""
        coords = [replace(coord, values=coord.values.copy()) for coord in self.coords]
        return replace(self, coords=coords)


def is_labelled(value: object) -> bool:
    """Tell whether a value is a DataArray of xarray. None can be, if nobody has imported xarray."""
    return _is_a(value, "DataArray")


def is_dataset(value: object) -> bool:
    """Tell whether a value is a Dataset of xarray."""
    return _is_a(value, "Dataset")


def unwrap(key: str, value: Any, options: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Return the elements of an array to store, and its options, which include the labels of a DataArray.

    Parameters
    ----------
    value
        A DataArray. Any other array is returned as it is.
    options
        Options of the write. If `attrs` or `dims` are None, those of the DataArray are taken.

    Raises
    ------
    InvalidInputError, DTypeError
        If the labels cannot be stored.
    """
    if is_dataset(value):
        raise InvalidInputError(
            f"storing {key!r}: a Dataset of xarray is several arrays, and has no such options: "
            f"store[{key!r}] = dataset stores it as a group"
        )
    if not is_labelled(value):
        return value, dict(options)
    labels = labels_of(key, value)
    coords = encode_coords(labels.coords, name=labels.name)
    dims = options.get("dims")
    if dims is None:
        dims = labels.dims
    else:
        dims = cast("Sequence[str]", as_dims(dims, value.ndim))
        coords["coords"] = move_to_axes(coords["coords"], labels.dims, dims, key)
    attrs = options.get("attrs")
    attrs = dict(value.attrs) if attrs is None else attrs
    return value.data, {**options, "attrs": attrs, "dims": dims, "coords": coords}


def labels_of(key: str, array: Any) -> Labels:
    """Return the labels of a DataArray.

    Raises
    ------
    InvalidInputError, DTypeError
        If a label cannot be stored. The message says what to do.
    """
    if array.name is not None:
        check_name(f"storing {key!r}", array.name)
    dims = tuple(cast("Sequence[str]", as_dims(array.dims, array.ndim)))
    coords = [coord_of(key, array, name) for name in array.coords]
    check_fit(coords, key, dims, array.shape)
    return Labels(array.name, dims, tuple(array.shape), coords)


def append_labelled(
    arrays: Arrays, key: str, rows: npt.ArrayLike, labels: Labels, *, is_begun: bool = False
) -> Dataset:
    """Add rows at the end of the first axis of an array, and their labels at the end of its coordinates.

    The rows are appended first, all at once. The labels follow in a step of their own.

    Parameters
    ----------
    is_begun
        The rows have been appended by the same operation before: their labels may be missing.

    Raises
    ------
    InvalidInputError
        If dims or coordinates differ from the stored ones. Nothing was appended.
    ChangedError
        If others appended meanwhile. The rows are stored, but not their labels.
    """
    # Labels are checked against the stored ones first, so that a mistake leaves the array as it was.
    before = arrays.open(key)
    if is_begun:
        # The database answers as the first time, and appends nothing.
        after = arrays.append(key, rows, known=before)
        return after if _is_labelled_to(after) else label_rows(arrays, after, labels)
    if before.dims != labels.dims:
        raise InvalidInputError(
            f"appending to {key!r}: its dims are {before.dims}, and those of the DataArray {labels.dims}. Nothing was "
            "appended: rename or transpose it, or append its .values"
        )
    made = _extend_coords(before, labels)
    if made is None:
        return arrays.append(key, rows, known=before)
    # Labels that find no room have to be refused before the rows are appended.
    check_room(key, before.attrs, cast("Mapping[str, Any]", replace_coords(before, made)))
    return label_rows(arrays, arrays.append(key, rows, known=before), labels)


def label_rows(arrays: Arrays, after: Dataset, labels: Labels) -> Dataset:
    """Add the labels of the last rows of an array at the end of its coordinates."""
    # Others may have appended, too, so that these rows may lie behind theirs. Coordinates are extended once more, for
    # the array as it was just before these rows.
    first = after.shape[0] - labels.shape[0]
    try:
        made = _extend_coords(replace(after, shape=(first, *after.shape[1:])), labels)
    except InvalidInputError as error:
        raise ChangedError(
            f"appending to {after.key!r}: the rows {first} to {after.shape[0]} were appended, but not their labels, as "
            "the coordinates were changed meanwhile, or rows were appended by others. Set tensor.coords anew"
        ) from error
    return after if made is None else arrays.label(after, replace_coords(after, made))


def _is_labelled_to(after: Dataset) -> bool:
    """Tell whether the coordinates along the first axis reach the end of an array, or go on behind it."""
    first = (after.dims or ())[:1]
    along = [coord for coord in coords_of(after) if set(coord.dims) & set(first)]
    return all(coord.values.shape[coord.dims.index(first[0])] >= after.shape[0] for coord in along)


def _extend_coords(before: Dataset, labels: Labels) -> list[Coord] | None:
    """Extend coordinates by the labels of more rows. Return None if no coordinate runs along the first axis."""
    key, kept, more = before.key, coords_of(before), {coord.name: coord for coord in labels.coords}
    names = {coord.name for coord in kept}
    if names != more.keys():
        raise InvalidInputError(
            f"appending to {key!r}: its coordinates are {sorted(names)}, and those of the DataArray {sorted(more)}. "
            "Nothing was appended: give those that are stored, or append its .values"
        )
    grown = [_extend_along_rows(before, coord, more[coord.name], labels.dims[:1]) for coord in kept]
    return grown if any(set(coord.dims) & set(labels.dims[:1]) for coord in kept) else None


def _extend_along_rows(before: Dataset, coord: Coord, more: Coord, first: tuple[str, ...]) -> Coord:
    if not set(coord.dims) & set(first):
        _check_same(before.key, coord, more)
        return coord
    if coord.dims != more.dims:
        raise InvalidInputError(
            f"appending to {before.key!r}: the coordinate {coord.name!r} runs along {coord.dims}, and that of the "
            f"DataArray along {more.dims}. Nothing was appended"
        )
    axis = coord.dims.index(first[0])
    have = coord.values.shape[axis]
    if have != before.shape[0]:
        raise InvalidInputError(
            f"appending to {before.key!r}: its coordinate {coord.name!r} has {have} labels for {before.shape[0]} rows, "
            "as rows were appended without labels. Nothing was appended: set tensor.coords first"
        )
    others = [length for i, length in enumerate(coord.values.shape) if i != axis]
    if others != [length for i, length in enumerate(more.values.shape) if i != axis]:
        raise InvalidInputError(
            f"appending to {before.key!r}: the coordinate {coord.name!r} has shape {coord.values.shape}, and that of "
            f"the DataArray {more.values.shape}. Nothing was appended"
        )
    return extend_coord(coord, axis, more, before.key)


def _check_same(key: str, coord: Coord, more: Coord) -> None:
    """Refuse rows whose other axes have other labels, such as latitudes in reverse order."""
    if coord.dims != more.dims or not _is_equal(coord.values, more.values):
        raise InvalidInputError(
            f"appending to {key!r}: the coordinate {coord.name!r} of the DataArray is not the stored one. Nothing was "
            "appended: select or sort the DataArray by that, or append its .values"
        )


def _is_equal(left: npt.NDArray[Any], right: npt.NDArray[Any]) -> bool:
    # NaN labels count as equal, which numpy offers only for dtypes that have NaN or NaT.
    has_nan = left.dtype.kind in "fcmM" and right.dtype.kind == left.dtype.kind
    return bool(np.array_equal(left, right, equal_nan=has_nan))


def coord_of(key: str, array: Any, name: Any) -> Coord:
    """Return a coordinate of a DataArray or Dataset.

    Raises
    ------
    InvalidInputError, DTypeError
        If it cannot be stored.
    """
    coord = array.coords[name]
    check_index(key, array, name)
    # Extension types of pandas, such as categories, have dtypes that numpy does not know.
    if not isinstance(coord.dtype, np.dtype):
        raise DTypeError(
            f"storing {key!r}: the coordinate {name!r} is of dtype {coord.dtype}, which is one of pandas: convert it "
            f"to one of numpy, by .assign_coords({name}=...), or leave it out, by .drop_vars({name!r}). Nothing was "
            "stored"
        )
    return Coord(name, tuple(coord.dims), as_labels(name, coord.values), coord.attrs, name in array.xindexes)


def check_index(key: str, array: Any, name: Any) -> None:
    """Refuse a coordinate whose index cannot be made again from its labels.

    Raises
    ------
    InvalidInputError
    """
    # A DataArray came in, so xarray is loaded already.
    from xarray.core.indexes import PandasMultiIndex
    from xarray.indexes import PandasIndex

    index = array.xindexes.get(name)
    if index is None or type(index) is PandasIndex:
        return
    if isinstance(index, PandasMultiIndex):
        raise InvalidInputError(
            f"storing {key!r}: the coordinate {name!r} belongs to a MultiIndex, which cannot be stored: "
            f".reset_index({index.dim!r}) makes plain coordinates of it, .drop_vars({index.dim!r}) leaves it out. "
            "Nothing was stored"
        )
    raise InvalidInputError(
        f"storing {key!r}: the coordinate {name!r} has an index of the type {type(index).__name__}, which cannot be "
        f"stored: .drop_indexes({name!r}) leaves plain labels, .drop_vars({name!r}) none. Nothing was stored"
    )


def _is_a(value: object, name: str) -> bool:
    # While another thread imports xarray, the module may lack the name. No such value can exist then.
    return isinstance(value, getattr(sys.modules.get("xarray"), name, ()))
