"""Datasets of h5py and arrays of zarr that are assigned to a store. Neither library is loaded here."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

from tensorage.interchange.attributes import Left
from tensorage.interchange.entries import Entry, read_whole
from tensorage.model.coords import move_to_axes
from tensorage.model.values import as_dims

__all__ = ["entry_of_object", "is_object", "take_description", "with_options"]


def entry_of_object(key: str, value: object) -> Entry | None:
    """Return a dataset of h5py or an array of zarr with its attributes and dims. Any other value has None.

    Attributes that cannot be kept are named in a warning.

    Raises
    ------
    InvalidInputError, DTypeError
        If it cannot be stored.
    """
    left = Left(f"storing {key!r}")
    if _is_a(value, "h5py", "Dataset"):
        from tensorage.interchange.hdf5 import entry_of_hdf5

        found = entry_of_hdf5(cast("Any", value), key, left)
    elif _is_a(value, "zarr", "Array"):
        from tensorage.interchange.zarr_folders import entry_of_zarr

        # Its elements are read as any others, so that the array gets the layout of the store.
        found = replace(entry_of_zarr(cast("Any", value), key, left), is_zarr=False)
    else:
        return None
    left.tell()
    return found


def is_object(value: object) -> bool:
    """Tell whether a value is a dataset of h5py or an array of zarr."""
    return _is_a(value, "h5py", "Dataset") or _is_a(value, "zarr", "Array")


def take_description(key: str, value: Any, options: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Return the elements of a dataset of h5py or an array of zarr, and options with its attributes, dims and labels.

    Any other value is returned as it is.

    Parameters
    ----------
    options
        Options of the write. If `attrs` or `dims` are None, those of the value are taken.
    """
    entry = entry_of_object(key, value)
    if entry is None:
        return value, dict(options)
    entry = with_options(entry, options.get("attrs"), options.get("dims"))
    said = {"attrs": entry.attrs, "dims": entry.dims, "coords": entry.coords}
    return read_whole(entry.source), {**options, **said}


def with_options(entry: Entry, attrs: Mapping[str, Any] | None, dims: Any) -> Entry:
    """Put other attributes and names of axes in place of those of an entry. Labels follow their axes."""
    if attrs is not None:
        entry = replace(entry, attrs=attrs)
    if dims is None:
        return entry
    names = as_dims(dims, len(entry.source.shape)) or []
    coords = entry.coords
    if coords is not None:
        coords = {**coords, "coords": move_to_axes(coords["coords"], entry.dims or (), names, entry.name)}
    return replace(entry, dims=names, coords=coords)


def _is_a(value: object, module: str, name: str) -> bool:
    # Look only in `sys.modules`: importing a library is slow, and a value of it implies that it is loaded.
    return isinstance(value, getattr(sys.modules.get(module), name, ()))
