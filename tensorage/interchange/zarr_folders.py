"""Zarr: the arrays of a folder, of versions 2 and 3, and arrays written as a folder of version 3."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from tensorage.dtypes import is_number, storable_dtype
from tensorage.errors import DTypeError, missing_package
from tensorage.interchange.attributes import Left, plain_attrs
from tensorage.interchange.entries import MAX_LABELS_BYTES, Entry
from tensorage.interchange.grouped import GroupedArrays, Outgoing
from tensorage.interchange.marks import Mark
from tensorage.model.coords import Coord, encode_coords
from tensorage.wording import one_line

if TYPE_CHECKING:
    import zarr

__all__ = ["entries_of_zarr", "entry_of_zarr", "write_zarr"]


def entries_of_zarr(path: Path, left: Left, skipped: Collection[str]) -> Iterator[Entry]:
    """Yield the arrays of a folder, and the marks of its groups.

    Parameters
    ----------
    skipped
        Names of arrays and groups to leave out.

    Raises
    ------
    InvalidInputError, DTypeError
        If something has no place in a store.
    """
    zarr = _zarr()
    found = zarr.open(path, mode="r")
    if isinstance(found, zarr.Group):
        yield from _walk(found, "", left, skipped)
    else:
        yield entry_of_zarr(found, path.stem, left)


def entry_of_zarr(
    array: zarr.Array[Any], name: str, left: Left, beside: Mapping[str, Any] | None = None
) -> Entry:
    """Return an array with its attributes and dims.

    Parameters
    ----------
    beside
        Arrays of the same group, which may have the labels of its axes.
    """
    from tensorage.backend.zarr.importing import attributes_of

    attrs, dims = attributes_of(array)
    plain = plain_attrs(repr(name), attrs.items(), left)
    return Entry(name, array, plain, dims, _coords(array, dims, beside or {}, left), is_zarr=True)


def _walk(group: zarr.Group, prefix: str, left: Left, skipped: Collection[str]) -> Iterator[Entry]:
    zarr = _zarr()
    # Sorted, since folders have no order of their own.
    members = dict(sorted(group.members()))
    attrs = plain_attrs(f"the group {'/' + prefix!r}", group.attrs.asdict().items(), left)
    if attrs or (prefix and not members):
        yield Mark(attrs).entry(prefix.rstrip("/"))
    arrays = {part: cast("Any", found) for part, found in members.items() if isinstance(found, zarr.Array)}
    for part, found in members.items():
        name = prefix + part
        if name in skipped:
            continue
        if isinstance(found, zarr.Group):
            yield from _walk(found, f"{name}/", left, skipped)
        else:
            yield entry_of_zarr(arrays[part], name, left, arrays)


def _coords(
    array: zarr.Array[Any], dims: Sequence[str] | None, beside: Mapping[str, Any], left: Left
) -> dict[str, Any] | None:
    """Encode the small arrays that have the name of an axis as its labels."""
    from tensorage.backend.zarr.importing import attributes_of

    if dims is None or len(set(dims)) < len(dims):
        return None
    coords = []
    for dim, length in zip(dims, array.shape, strict=True):
        labels = beside.get(dim)
        # An array without dimensions' names may have such a name by chance.
        if labels is None or labels.name == array.name or labels.shape != (length,):
            continue
        attrs, own_dims = attributes_of(labels)
        is_label = is_number(labels.dtype) or labels.dtype.kind == "U"
        if own_dims == (dim,) and is_label and labels.nbytes <= MAX_LABELS_BYTES:
            values = np.asarray(labels[...]).astype(storable_dtype(labels.dtype))
            plain = plain_attrs(repr(dim), attrs.items(), Left(left.asked))
            coords.append(Coord(dim, (dim,), values, plain, is_index=True))
    return encode_coords(coords) if coords else None


# Writing ----------------------------------------------------------------------------------------------


def write_zarr(path: Path, group: GroupedArrays, left: Left) -> None:
    """Write arrays and groups as a new folder of Zarr v3."""
    del left
    zarr = _zarr()
    root = zarr.open_group(path, mode="w", zarr_format=3)
    for name, attrs in group.groups.items():
        place = root.require_group(name) if name else root
        place.attrs.update(dict(attrs))
    for item in group.arrays:
        parent = item.group
        if parent:
            root.require_group(parent)
        _write_array(root, item)


def _write_array(root: zarr.Group, item: Outgoing) -> None:
    try:
        made = root.create_array(
            item.name,
            shape=item.shape,
            dtype=item.dtype,
            dimension_names=item.dims,
            attributes=dict(item.attrs),
        )
    except (ValueError, TypeError) as error:
        raise DTypeError(
            f"exporting {item.key!r}: zarr has no place for dtype {item.dtype} or its name ({one_line(str(error))})"
        ) from error
    # Arrays within records are raw bytes for zarr.
    if made.dtype != item.dtype:
        raise DTypeError(
            f"exporting {item.key!r}: zarr has no place for dtype {item.dtype}, which would become {made.dtype}"
        )
    for first, rows in item.blocks():
        if item.shape:
            made[first : first + rows.shape[0]] = rows
        else:
            made[...] = rows


def _zarr() -> Any:
    try:
        import zarr
    except ModuleNotFoundError as error:
        raise missing_package("folders of Zarr", error, "storage") from error
    return zarr
