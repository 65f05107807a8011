"""HDF5: the datasets of a file, and arrays written as datasets.

Axes are named by the labels of HDF5's dimensions, or by the names of their scales. Labels of an axis are a dataset of
their own, which is its *scale*. HDF5 has no text of numpy's kind: such arrays are written as UTF-8, and an attribute
keeps their dtype. Text of any length is HDF5's text of variable length.
"""

from __future__ import annotations

import math
import posixpath
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from tensorage.dtypes import form_of, has_small_float, is_number, storable_dtype
from tensorage.errors import DTypeError, InvalidInputError, TensorageError, missing_package
from tensorage.interchange.attributes import Left, file_attrs, plain_attrs
from tensorage.interchange.entries import MAX_LABELS_BYTES, Entry
from tensorage.interchange.grouped import GroupedArrays, Outgoing
from tensorage.interchange.marks import Mark
from tensorage.model.coords import Coord, encode_coords
from tensorage.ragged import TEXT
from tensorage.wording import one_line

if TYPE_CHECKING:
    import h5py

__all__ = ["entries_of_hdf5", "entry_of_hdf5", "write_hdf5"]

#: Attribute that keeps the dtype of an array that is written in another one.
DTYPE_ATTRIBUTE = "tensorage.dtype"

#: Name of scales that NetCDF writes for dimensions without labels.
_NO_LABELS = "This is a netCDF dimension but not a netCDF variable"

#: Attributes by which HDF5 and NetCDF keep dims, which are read as such.
_OF_DIMS = frozenset(
    {
        "DIMENSION_LIST",
        "REFERENCE_LIST",
        "DIMENSION_LABELS",
        "_Netcdf4Dimid",
        "_Netcdf4Coordinates",
        "_NCProperties",
    }
)
_OF_SCALES = frozenset({"CLASS", "NAME"})


def entries_of_hdf5(path: Path, left: Left, skipped: Collection[str]) -> Iterator[Entry]:
    """Yield the datasets of a file, and the marks of its groups. A source is read before the next one is asked for.

    Parameters
    ----------
    skipped
        Names of datasets and groups to leave out.

    Raises
    ------
    InvalidInputError, DTypeError
        If something in the file has no place in a store.
    """
    h5py = _h5py()
    with h5py.File(path, "r") as file:
        yield from _walk(file, "", left, skipped, set())


def entry_of_hdf5(dataset: h5py.Dataset, name: str, left: Left) -> Entry:
    """Return a dataset with its attributes, dims and labels.

    Raises
    ------
    InvalidInputError, DTypeError
        If it has no place in a store.
    """
    where = repr(dataset.name)
    if dataset.shape is None:
        raise InvalidInputError(
            f"{left.asked}: the dataset {where} is empty in the way of HDF5, without a shape"
        )
    attrs = dict(dataset.attrs.items())
    source = _source(dataset, left.asked, attrs.pop(DTYPE_ATTRIBUTE, None))
    _note_limits(dataset, left)
    dims = _dims(dataset)
    # If a dataset is no scale, CLASS and NAME are ordinary attributes.
    own = _OF_DIMS | _OF_SCALES if dataset.is_scale else _OF_DIMS
    plain = plain_attrs(where, ((n, value) for n, value in attrs.items() if n not in own), left)
    return Entry(name, source, plain, dims, _coords(dataset, dims, left))


def _walk(
    group: h5py.Group, prefix: str, left: Left, skipped: Collection[str], seen: set[tuple[int, int]]
) -> Iterator[Entry]:
    h5py = _h5py()
    attrs = plain_attrs(
        f"the group {group.name!r}",
        ((n, value) for n, value in group.attrs.items() if n not in _OF_DIMS),
        left,
    )
    # A group with members is there by their keys. One without is nowhere, unless it has a mark.
    if attrs or (prefix and not len(group)):
        yield Mark(attrs).entry(prefix.rstrip("/"))
    for part in group:
        name = prefix + part
        if name in skipped:
            continue
        found = _follow(group, part, left.asked, seen)
        if isinstance(found, h5py.Group):
            yield from _walk(found, f"{name}/", left, skipped, seen)
        elif isinstance(found, h5py.Datatype):
            raise InvalidInputError(
                f"{left.asked}: {found.name!r} is a named datatype, which has no place in a store. "
                f"skip=[{name!r}] leaves it out. Nothing was stored"
            )
        elif not _is_bare_dimension(found):
            yield entry_of_hdf5(found, name, left)


def _follow(group: h5py.Group, part: str, asked: str, seen: set[tuple[int, int]]) -> Any:
    """Return a member of a group. Refuse links, of which a store has none."""
    h5py = _h5py()
    link = group.get(part, getlink=True)
    name = posixpath.join(group.name, part)
    kind = "link" if not isinstance(link, h5py.HardLink) else None
    if kind is None:
        found = group[part]
        place = h5py.h5o.get_info(found.id)
        # Two names of one object would become two arrays, and a group within itself would have no end.
        kind = "second name of another object" if (place.fileno, place.addr) in seen else None
        seen.add((place.fileno, place.addr))
        if kind is None:
            return found
    raise InvalidInputError(
        f"{asked}: {name!r} is a {kind}, which has no place in a store. skip=[{name.lstrip('/')!r}] leaves it out. "
        "Nothing was stored"
    )


def _source(dataset: h5py.Dataset, asked: str, form: Any) -> Any:
    """Return the elements of a dataset, of a dtype that can be stored."""
    if _is_text_of_any_length(dataset.dtype):
        return LongText(dataset, asked)
    reason = _reason_against(dataset.dtype)
    if reason is not None:
        raise DTypeError(
            f"{asked}: the dataset {dataset.name!r} holds {reason}, which cannot be stored. "
            f"skip=[{dataset.name.lstrip('/')!r}] leaves it out. Nothing was stored"
        )
    text = _h5py().check_string_dtype(dataset.dtype)
    # Bytes that HDF5 calls UTF-8 become text of numpy. The attribute tells its length in characters, if this package
    # has written it; a character has at least one byte, so that the length in bytes is enough for others.
    if text is not None and text.encoding == "utf-8":
        length = dataset.dtype.itemsize
        known = isinstance(form, str) and form.startswith("<U") and form[2:].isdecimal()
        return Text(dataset, np.dtype(str(form) if known else f"<U{length}"))
    return dataset


class Text:
    """Text of UTF-8 as text of numpy.

    Parameters
    ----------
    dataset
        Dataset of UTF-8 with one length for all.
    dtype
        Dtype of the text.
    """

    def __init__(self, dataset: h5py.Dataset, dtype: np.dtype[Any]) -> None:
        self._dataset = dataset
        self.dtype = dtype
        self.shape: tuple[int, ...] = dataset.shape

    def __getitem__(self, region: Any) -> npt.NDArray[Any]:
        encoded = np.asarray(self._dataset[region])
        decoded = np.char.decode(encoded, "utf-8")
        if decoded.itemsize > self.dtype.itemsize:
            raise ValueError(f"the text of {self._dataset.name!r} is longer than {self.dtype}")
        return decoded.astype(self.dtype)


class LongText:
    """Text of any length.

    Parameters
    ----------
    dataset
        Dataset of text of variable length.
    asked
        Operation in a few words, for messages.
    """

    dtype = TEXT

    def __init__(self, dataset: h5py.Dataset, asked: str) -> None:
        self._dataset = dataset
        self._asked = asked
        self.shape: tuple[int, ...] = dataset.shape

    def __getitem__(self, region: Any) -> npt.NDArray[Any]:
        try:
            # Programs also write UTF-8 as what they call ASCII.
            return np.asarray(self._dataset.asstr("utf-8")[region], TEXT)
        except UnicodeDecodeError as error:
            name = self._dataset.name
            raise InvalidInputError(
                f"{self._asked}: the dataset {name!r} holds text that is no UTF-8 ({error.reason}: "
                f"{error.object[:40]!r}). skip=[{name.lstrip('/')!r}] leaves it out. Nothing was stored"
            ) from error


def _is_text_of_any_length(dtype: np.dtype[Any]) -> bool:
    text = _h5py().check_string_dtype(dtype)
    return text is not None and text.length is None


def _reason_against(dtype: np.dtype[Any]) -> str | None:
    """Say what has no place in a store, in a dtype or the fields of one."""
    h5py = _h5py()
    if dtype.names is not None:
        return next((found for name in dtype.names if (found := _reason_against(dtype[name].base))), None)
    if _is_text_of_any_length(dtype):
        return "text of any length"
    if h5py.check_vlen_dtype(dtype) is not None:
        return "arrays of any length"
    if h5py.check_ref_dtype(dtype) is not None:
        return "references"
    if h5py.check_enum_dtype(dtype) is not None:
        return "an enumeration"
    return None


def _note_limits(dataset: h5py.Dataset, left: Left) -> None:
    # Every stored array grows along its first axis. Other axes cannot, and no array has a largest length.
    for axis, (length, most) in enumerate(zip(dataset.shape, dataset.maxshape or dataset.shape, strict=True)):
        if most != length and not (axis == 0 and most is None):
            size = "unlimited" if most is None else most
            left.add(
                f"the largest length {size} of axis {axis} of {dataset.name!r}", "stored arrays have none"
            )


def _is_bare_dimension(dataset: h5py.Dataset) -> bool:
    """Tell whether a dataset only stands for a dimension of NetCDF, and has no elements of its own."""
    name = dataset.attrs.get("NAME", b"") if dataset.is_scale else b""
    return isinstance(name, bytes) and name.decode("latin-1").startswith(_NO_LABELS)


def _dims(dataset: h5py.Dataset) -> tuple[str, ...] | None:
    if dataset.is_scale and dataset.ndim == 1:
        return (posixpath.basename(dataset.name),)
    names = []
    for dimension in dataset.dims:
        scales = [scale.name for scale in dimension.values() if scale.name]
        names.append(dimension.label or (posixpath.basename(scales[0]) if scales else None))
    if not any(names):
        return None
    return tuple(name or f"dim_{axis}" for axis, name in enumerate(names))


def _coords(dataset: h5py.Dataset, dims: Sequence[str] | None, left: Left) -> dict[str, Any] | None:
    """Encode the small scales of a dataset as labels of its axes."""
    if dims is None or len(set(dims)) < len(dims) or dataset.is_scale:
        return None
    coords = []
    for name, length, dimension in zip(dims, dataset.shape, dataset.dims, strict=True):
        for scale in dimension.values():
            is_named = scale.name is not None and posixpath.basename(scale.name) == name
            if not is_named or scale.shape != (length,) or _is_bare_dimension(scale):
                continue
            is_long_text = _is_text_of_any_length(scale.dtype)
            if (
                _reason_against(scale.dtype) is not None and not is_long_text
            ) or scale.nbytes > 16 * MAX_LABELS_BYTES:
                continue
            # Attributes without a place are told where the scale is an array of its own.
            found = entry_of_hdf5(scale, name, Left(left.asked))
            labels = _labels(found.source)
            if labels is not None:
                coords.append(Coord(name, (name,), labels, found.attrs, is_index=True))
    return encode_coords(coords) if coords else None


def _labels(source: Any) -> npt.NDArray[Any] | None:
    """Return the elements of a small scale as labels. None if they are many, or neither numbers nor text."""
    if source.dtype.kind == "T":
        labels: npt.NDArray[Any] = source[...].astype(object)
        return labels if sum(len(label.encode()) for label in labels) <= MAX_LABELS_BYTES else None
    nbytes = math.prod(source.shape) * source.dtype.itemsize
    if nbytes > MAX_LABELS_BYTES or not (is_number(source.dtype) or source.dtype.kind == "U"):
        return None
    return np.asarray(source[...]).astype(storable_dtype(source.dtype))


# Writing ----------------------------------------------------------------------------------------------


def write_hdf5(path: Path, group: GroupedArrays, left: Left) -> None:
    """Write arrays and groups as a new file.

    Raises
    ------
    DTypeError
        If HDF5 has no place for a dtype.
    """
    h5py = _h5py()
    # Members are listed in the order in which they were written. HDF5 would otherwise sort them by name.
    with h5py.File(path, "w", track_order=True) as file:
        for name, attrs in group.groups.items():
            place = file.require_group(name) if name else file
            place.attrs.update(file_attrs(f"the group {name!r}", attrs, left))
        for item in group.arrays:
            _write_array(file, item, left)
        # Last: a scale is attached by reference, so that both arrays have to be there.
        _attach_scales(file, group)


def _write_array(file: h5py.File, item: Outgoing, left: Left) -> None:
    kept, convert = _written_dtype(item)
    try:
        made = file.create_dataset(item.name, item.shape, kept, maxshape=_maxshape(item))
        _check_dtype(made, kept)
        for first, rows in item.blocks():
            values = convert(rows)
            if item.shape:
                made[first : first + rows.shape[0]] = values
            else:
                made[()] = values
    except TensorageError:
        raise
    except (TypeError, ValueError) as error:
        raise DTypeError(
            f"exporting {item.key!r}: HDF5 has no place for dtype {item.dtype} or its name "
            f"({one_line(str(error))}). Export to .npz"
        ) from error
    made.attrs.update(file_attrs(repr(item.name), item.attrs, left))
    if item.dtype.kind == "U":
        made.attrs[DTYPE_ATTRIBUTE] = form_of(item.dtype)
    for axis, name in enumerate(item.dims or ()):
        made.dims[axis].label = name


def _check_dtype(made: h5py.Dataset, wanted: Any) -> None:
    """Refuse a dataset of another dtype than was asked for, which h5py may choose as the nearest one."""
    if made.dtype != wanted:
        raise TypeError(f"it would become {made.dtype}")


def _maxshape(item: Outgoing) -> tuple[int | None, ...] | None:
    # An array without rows is mostly one that is to grow.
    return (None, *item.shape[1:]) if item.shape and not item.shape[0] and all(item.shape[1:]) else None


def _written_dtype(item: Outgoing) -> tuple[Any, Callable[[npt.NDArray[Any]], Any]]:
    """Return the dtype of HDF5 for the elements, and their conversion."""
    h5py, dtype = _h5py(), item.dtype
    if has_small_float(dtype):
        raise DTypeError(
            f"exporting {item.key!r}: HDF5 has no place for dtype {dtype}. Store a copy as float32, and export that"
        )
    if dtype.kind == "U":
        # A character takes up to four bytes, as many as numpy has for it.
        text = h5py.string_dtype("utf-8", max(dtype.itemsize, 1))
        return text, lambda rows: np.char.encode(rows, "utf-8").astype(text)
    if dtype.kind == "T":
        return h5py.string_dtype(), lambda rows: _without_nul(rows.astype(object), item)
    if dtype.kind in "mM":
        opaque = h5py.opaque_dtype(dtype)
        return opaque, lambda rows: rows.astype(opaque)
    return dtype, lambda rows: rows


def _without_nul(texts: npt.NDArray[Any], item: Outgoing) -> npt.NDArray[Any]:
    if any("\0" in text for text in texts.flat):
        raise InvalidInputError(
            f"exporting {item.key!r}: a text of it holds a NUL character, at which HDF5's text of any length ends. "
            "Leave it out, or store a copy without these"
        )
    return texts


def _attach_scales(file: h5py.File, group: GroupedArrays) -> None:
    """Make arrays that label an axis its scales."""
    for name in group.scales():
        file[name].make_scale(posixpath.basename(name))
    for item in group.arrays:
        for axis, scale in group.scales_of(item).items():
            file[item.name].dims[axis].attach_scale(file[scale])


def _h5py() -> Any:
    try:
        import h5py
    except ModuleNotFoundError as error:
        raise missing_package("files of HDF5", error, "hdf5") from error
    return h5py
