"""Coordinates: labels of an array's axes, as the catalogue keeps them. No I/O, and no xarray.

Coordinates are kept among the attributes, under a reserved name. They are therefore stored together with the array, in
one step, and go wherever the array goes. They are JSON, and share the little room that attributes have::

    {"format": 1, "name": "t2m", "coords": [
        {"name": "time", "dims": ["time"], "shape": [372], "dtype": "<M8[ns]", "attrs": {}, "index": true,
         "deltas": 1, "data": "..."}]}

`tensorage.model.labels` describes ``data``. The member ``name`` exists if an array of xarray was stored. It holds the
name of that array, which may be null.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from tensorage.dtypes import is_number, is_small_float, storable_dtype
from tensorage.errors import CorruptTensorError, DTypeError, InvalidInputError, SchemaError
from tensorage.model.labels import MAX_LABELS_BYTES, TEXT_KINDS, decode_labels, encode_labels
from tensorage.model.values import MAX_ATTRS_BYTES, as_array, as_attrs, json_bytes
from tensorage.tracebacks import end_tracebacks_here
from tensorage.types import COORDS_ATTRIBUTE, Dataset
from tensorage.wording import quote

__all__ = [
    "Coord",
    "Coords",
    "as_coords",
    "as_labels",
    "check_fit",
    "check_name",
    "check_room",
    "coords_of",
    "encode_coords",
    "extend_coord",
    "is_named",
    "move_to_axes",
    "name_of",
    "rename_dims",
    "replace_coords",
    "shorten_coords",
]

#: Version of the members that `encode_coords` writes. A reader refuses later versions.
FORMAT = 1


@dataclass(frozen=True, eq=False)
class Coord:
    """Labels along some of an array's axes, or along none.

    Parameters
    ----------
    dims
        Names of the axes.
    values
        Numbers, truth values, times or text; one axis for each of the `dims`.
    is_index
        True if elements are looked up by these labels.
    """

    name: str
    dims: tuple[str, ...]
    values: npt.NDArray[Any]
    attrs: Mapping[str, Any] = field(default_factory=dict)
    is_index: bool = False


@end_tracebacks_here
class Coords(Mapping[str, npt.NDArray[Any]]):
    """Labels of an array's axes, by the name of the coordinate. Read-only. Each is decoded when it is looked up."""

    def __init__(self, dataset: Dataset) -> None:
        self._key = dataset.key
        self._encoded_coords = {encoded["name"]: encoded for encoded in _encoded_coords(dataset)}

    def __getitem__(self, name: str) -> npt.NDArray[Any]:
        return _decode(self._encoded_coords[name], self._key).values

    def decode_all(self) -> list[Coord]:
        """Decode all coordinates, with their dims and attributes."""
        return [_decode(encoded, self._key) for encoded in self._encoded_coords.values()]

    def __iter__(self) -> Iterator[str]:
        return iter(self._encoded_coords)

    def __len__(self) -> int:
        return len(self._encoded_coords)

    def __repr__(self) -> str:
        return f"<Coords {', '.join(map(repr, self._encoded_coords)) or 'none'}>"


def coords_of(dataset: Dataset) -> list[Coord]:
    """Decode the coordinates that are stored with an array.

    Raises
    ------
    CorruptTensorError
        If the coordinates are damaged.
    SchemaError
        If a later version of tensorage has stored them in a format of its own.
    """
    return [_decode(encoded, dataset.key) for encoded in _encoded_coords(dataset)]


def is_named(dataset: Dataset) -> bool:
    """Tell whether an array of xarray was stored, so that its name is known, be it None."""
    kept: object = dataset.coords
    return isinstance(kept, Mapping) and "name" in kept


def name_of(dataset: Dataset) -> str | None:
    """Return the name that an array of xarray had."""
    name = dataset.coords["name"] if dataset.coords is not None and is_named(dataset) else None
    return name if isinstance(name, str) else None


def encode_coords(coords: Iterable[Coord], **more: Any) -> dict[str, Any]:
    """Encode coordinates for the catalogue.

    Parameters
    ----------
    more
        ``name``, if they are those of an array of xarray.

    Raises
    ------
    InvalidInputError
        If a coordinate has more labels, or other attributes, than can be stored.
    """
    return {"format": FORMAT, **more, "coords": [_encode(coord) for coord in coords]}


def replace_coords(dataset: Dataset, coords: Sequence[Coord]) -> dict[str, Any] | None:
    """Encode coordinates that replace those of an array. The array's name, as xarray has it, stays."""
    if is_named(dataset):
        return encode_coords(coords, name=name_of(dataset))
    return encode_coords(coords) if coords else None


def shorten_coords(dataset: Dataset, rows: int) -> dict[str, Any] | None:
    """Encode coordinates without the labels behind the first rows. None if no coordinate has more labels."""
    if not dataset.coords or not dataset.dims:
        return None
    kept = coords_of(dataset)
    cut = [_shorten(coord, dataset.dims[0], rows) for coord in kept]
    is_same = all(old.values.shape == new.values.shape for old, new in zip(kept, cut, strict=True))
    return None if is_same else replace_coords(dataset, cut)


def _shorten(coord: Coord, dim: str, rows: int) -> Coord:
    if dim not in coord.dims:
        return coord
    return replace(coord, values=coord.values[(slice(None),) * coord.dims.index(dim) + (slice(rows),)])


def check_room(key: str, attrs: Mapping[str, Any], coords: Mapping[str, Any]) -> None:
    """Refuse coordinates that do not fit the catalogue beside the attributes.

    Raises
    ------
    InvalidInputError
        The message names the coordinate that takes the most room, and says what to do.
    """
    nbytes = json_bytes({**attrs, COORDS_ATTRIBUTE: coords})
    if nbytes <= MAX_ATTRS_BYTES or not coords["coords"]:
        return
    largest = max(coords["coords"], key=lambda encoded: len(encoded["data"]))
    name = largest["name"]
    raise InvalidInputError(
        f"storing {key!r}: its attributes and coordinates take {nbytes} bytes in the catalogue, which has room for "
        f"{MAX_ATTRS_BYTES}; the coordinate {quote(name)} of shape {tuple(largest['shape'])} takes "
        f"{len(largest['data'])} of them. {_advice(name)}"
    )


def as_coords(coords: Mapping[str, Any], dataset: Dataset) -> list[Coord]:
    """Parse coordinates that a user gave for a stored array.

    Parameters
    ----------
    coords
        Coordinates by name. Each is labels along the axis of that name, or along the axes of the stored coordinate of
        that name; ``(dims, labels)`` or ``(dims, labels, attrs)``; or an object with `dims`, `values` and `attrs`, such
        as a coordinate of xarray. A coordinate whose labels stay the same keeps its attributes, so that
        ``{**tensor.coords, ...}`` adds some.

    Raises
    ------
    InvalidInputError, DTypeError
        If they are no coordinates, or do not fit the array.
    """
    if isinstance(coords, Coords):
        # Coordinates of another array: take their dims and attributes too, which the mapping does not show.
        result = coords.decode_all()
        check_fit(result, dataset.key, dataset.dims, dataset.shape)
        return result
    result = []
    stored = _coords_by_name(dataset)
    for name, given in coords.items():
        attrs: Mapping[str, Any] = {}
        if isinstance(given, tuple):
            if len(given) not in (2, 3):
                raise InvalidInputError(
                    f"the coordinate {quote(name)} is labels, (dims, labels) or (dims, labels, attrs)"
                )
            dims, values, *rest = given
            # A tuple of labels is a likely mistake: its first label would be taken for names of axes.
            if not isinstance(dims, str | list | tuple):
                raise InvalidInputError(
                    f"the coordinate {quote(name)} of (dims, labels): {quote(dims)} names no axes"
                )
            dims = (dims,) if isinstance(dims, str) else tuple(dims)
            attrs = rest[0] if rest else {}
        elif hasattr(given, "dims"):
            dims, values, attrs = tuple(given.dims), given.values, given.attrs
        elif name in stored:
            known = stored[name]
            dims, values = known.dims, given
            attrs = known.attrs if _is_same(known.values, given) else {}
        else:
            dims, values = (name,), given
        labels = as_labels(name, values)
        result.append(Coord(name, dims, labels, attrs, dims == (name,)))
    check_fit(result, dataset.key, dataset.dims, dataset.shape)
    return result


def _is_same(labels: npt.NDArray[Any], given: Any) -> bool:
    found = as_array(given)
    # NaN and not-a-time equal themselves here. `array_equal` takes `equal_nan` for these kinds only.
    has_nan = labels.dtype.kind in "fcmM"
    return found.dtype == labels.dtype and np.array_equal(labels, found, equal_nan=has_nan)


def _coords_by_name(dataset: Dataset) -> dict[str, Coord]:
    try:
        return {coord.name: coord for coord in coords_of(dataset)}
    except CorruptTensorError:
        # The caller is about to replace the coordinates, which is the remedy that the error names.
        return {}


def as_labels(name: object, values: Any) -> npt.NDArray[Any]:
    """Convert the labels of a coordinate to an array that can be stored.

    Raises
    ------
    InvalidInputError, DTypeError
        If the labels are neither numbers, truth values, times nor text.
    """
    labels = as_array(values)
    if labels.dtype.kind not in TEXT_KINDS:
        labels = labels.astype(_number_dtype(name, labels.dtype), copy=False)
    elif not all(isinstance(label, str) for label in labels.flat):
        (found, *_) = (type(label).__name__ for label in labels.flat if not isinstance(label, str))
        raise DTypeError(
            f"the coordinate {quote(name)} holds objects ({found}), and only numbers, truth values, times and text "
            f"can be stored: convert it, as by .assign_coords({name}=...), or leave it out, by "
            f".drop_vars({quote(name)})"
        )
    # Refuse these before they are compressed, which takes long and would not be enough.
    if labels.nbytes > MAX_LABELS_BYTES:
        raise InvalidInputError(
            f"the coordinate {quote(name)} has {labels.nbytes} bytes, and the catalogue has room for "
            f"{MAX_ATTRS_BYTES} once they are compressed. {_advice(name)}"
        )
    return labels


def check_name(asked: str, name: object) -> None:
    """Refuse a name that PostgreSQL cannot store.

    Raises
    ------
    InvalidInputError
    """
    # UTF-8 cannot encode a lone surrogate.
    if not isinstance(name, str) or any(char == "\0" or "\ud800" <= char <= "\udfff" for char in name):
        raise InvalidInputError(f"{asked}: a name is text that PostgreSQL can store, not {quote(name)}")


def check_fit(coords: Sequence[Coord], key: str, dims: Sequence[str] | None, shape: Sequence[int]) -> None:
    """Refuse coordinates that do not fit an array.

    Raises
    ------
    InvalidInputError
    """
    asked = f"coordinates of {key!r}"
    names = tuple(dims or ())
    # Dims may repeat a name, but a coordinate could not say which of these axes it is along.
    if len(set(names)) < len(names) and coords:
        raise InvalidInputError(f"{asked}: they need axes of different names, and the dims are {names}")
    lengths = dict(zip(names, shape, strict=bool(names)))
    for coord in coords:
        check_name(asked, coord.name)
        if not set(coord.dims) <= set(names):
            raise InvalidInputError(
                f"{asked}: {coord.name!r} runs along {coord.dims}, and the array has the dims {dims}"
            )
        if coord.name in names and coord.dims != (coord.name,):
            raise InvalidInputError(
                f"{asked}: {coord.name!r} is the name of an axis, and its labels run along {coord.dims}"
            )
        wanted = tuple(lengths[name] for name in coord.dims)
        if coord.values.shape != wanted:
            raise InvalidInputError(
                f"{asked}: {coord.name!r} along {coord.dims} has shape {coord.values.shape}, and the array {wanted}"
            )


def rename_dims(dataset: Dataset, dims: Sequence[str] | None) -> dict[str, Any] | None:
    """Return the encoded coordinates of an array whose axes get other names: each follows its axes.

    Raises
    ------
    InvalidInputError
        If a coordinate would lose its axes, or take the name of one.
    """
    if dataset.coords is None:
        return None
    encoded_coords = _encoded_coords(dataset)
    bound = [encoded["name"] for encoded in encoded_coords if encoded["dims"]]
    if dims is None and bound:
        raise InvalidInputError(
            f"naming the axes of {dataset.key!r}: the coordinates {bound} run along axes that have names. Remove them "
            "first, by tensor.coords = {}"
        )
    return {
        **dataset.coords,
        "coords": move_to_axes(encoded_coords, dataset.dims or (), dims or (), dataset.key),
    }


def move_to_axes(
    encoded_coords: Iterable[Mapping[str, Any]], dims: Sequence[str], new_dims: Sequence[str], key: str
) -> list[dict[str, Any]]:
    """Rename the axes in encoded coordinates.

    Raises
    ------
    InvalidInputError
        If a coordinate would take the name of an axis that it is not along, or of another coordinate.
    """
    asked = f"naming the axes of {key!r}"
    names = dict(zip(dims, new_dims, strict=False))
    moved = []
    for encoded in encoded_coords:
        along = [names[name] for name in encoded["dims"]]
        name = names.get(encoded["name"], encoded["name"])
        if name in new_dims and along != [name]:
            raise InvalidInputError(
                f"{asked}: {quote(name)} is the name of a coordinate that runs along {along}: give another name"
            )
        moved.append({**encoded, "name": name, "dims": along})
    if len({encoded["name"] for encoded in moved}) < len(moved):
        raise InvalidInputError(f"{asked}: {list(new_dims)} would give two coordinates the same name")
    return moved


def extend_coord(coord: Coord, axis: int, more: Coord, key: str) -> Coord:
    """Return a coordinate with more labels at its end.

    Raises
    ------
    InvalidInputError
        If the labels are of another kind.
    """
    before, labels = coord.values, more.values
    is_text = before.dtype.kind in TEXT_KINDS
    if is_text and labels.dtype.kind in TEXT_KINDS:
        # The stored labels keep their kind of text. Numpy would choose one by itself.
        if before.dtype.kind != labels.dtype.kind:
            labels = labels.astype(object if before.dtype.kind == "O" else str)
    elif is_text or labels.dtype.kind in TEXT_KINDS or not _keeps_values(labels, before.dtype):
        raise InvalidInputError(
            f"appending to {key!r}: labels of dtype {labels.dtype} do not fit the coordinate {coord.name!r} of dtype "
            f"{before.dtype}. Nothing was appended"
        )
    else:
        labels = labels.astype(before.dtype)
    return replace(coord, values=np.concatenate([before, labels], axis=axis))


def _keeps_values(labels: npt.NDArray[Any], dtype: np.dtype[Any]) -> bool:
    """Tell whether labels stay the same in another dtype."""
    if np.can_cast(labels.dtype, dtype, "safe"):
        return True
    if not np.can_cast(labels.dtype, dtype, "same_kind"):
        return False
    # Overflow shows in the comparison. Bytes are compared, since NaN is equal to no value.
    with np.errstate(all="ignore"):
        back = labels.astype(dtype).astype(labels.dtype)
    return back.tobytes() == labels.tobytes()


def _number_dtype(name: object, dtype: np.dtype[Any]) -> np.dtype[Any]:
    # Labels are written down by `dtype.str`, which does not tell the small floats of `ml_dtypes` apart.
    if is_number(dtype) and not is_small_float(dtype):
        return storable_dtype(dtype)
    raise DTypeError(
        f"the coordinate {quote(name)} of dtype {dtype} cannot be stored: convert it, as by "
        f".assign_coords({name}=...), or leave it out, by .drop_vars({quote(name)})"
    )


def _advice(name: object) -> str:
    shown = quote(name)
    return f"Store {shown} under a key of its own, and the array without it: .drop_vars({shown}). Nothing was stored"


def _encoded_coords(dataset: Dataset) -> list[dict[str, Any]]:
    if dataset.coords is None:
        return []
    kept: Any = dataset.coords
    found = kept.get("format") if isinstance(kept, Mapping) else None
    # Only the coordinates are of a later format, so the array itself stays readable.
    if isinstance(found, int) and found > FORMAT:
        raise SchemaError(
            f"the coordinates of {dataset.key!r} are of format {found}, and this version knows {FORMAT}: upgrade "
            "tensorage. The array without them is read as ever"
        )
    encoded_coords = kept.get("coords") if found == FORMAT else None
    if not isinstance(encoded_coords, list) or not all(map(_is_encoded_coord, encoded_coords)):
        raise _corrupt_error(dataset.key)
    return encoded_coords


def _is_encoded_coord(encoded: Any) -> bool:
    return (
        isinstance(encoded, dict)
        and {"name", "dims", "shape", "dtype", "attrs", "index", "deltas", "data"} <= encoded.keys()
        and isinstance(encoded["name"], str)
        and isinstance(encoded["dims"], list)
        and all(isinstance(name, str) for name in encoded["dims"])
        and isinstance(encoded["attrs"], dict)
    )


def _encode(coord: Coord) -> dict[str, Any]:
    try:
        labels = encode_labels(coord.values)
    except InvalidInputError as error:
        raise InvalidInputError(
            f"the coordinate {coord.name!r} has {error}. {_advice(coord.name)}"
        ) from error
    return {
        "name": coord.name, "dims": list(coord.dims), "attrs": as_attrs(coord.attrs), "index": coord.is_index, **labels,
    }  # fmt: skip


def _decode(encoded: Mapping[str, Any], key: str) -> Coord:
    try:
        values = decode_labels(encoded)
    except ValueError as error:
        raise _corrupt_error(key) from error
    # The owner of a shared array can store any JSON, so nothing of it is believed unchecked.
    if values.ndim != len(encoded["dims"]):
        raise _corrupt_error(key)
    return Coord(
        encoded["name"], tuple(encoded["dims"]), values, dict(encoded["attrs"]), bool(encoded["index"])
    )


def _corrupt_error(key: str) -> CorruptTensorError:
    return CorruptTensorError(
        f"the coordinates of {key!r} cannot be read: they are damaged, or none of tensorage. The array without them is "
        "read as ever; tensor.coords = {...} replaces them"
    )
