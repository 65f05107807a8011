"""Stored arrays as one Dataset of xarray: one variable for each array, and the coordinates that they share."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

import numpy as np
import xarray as xr

from tensorage.adapters.xarray import coordinates, fitting_coords, variable_of
from tensorage.backend.arrays import Arrays
from tensorage.errors import InvalidInputError
from tensorage.model.coords import Coord
from tensorage.types import Dataset

__all__ = ["check_lengths", "dataset_of"]


def dataset_of(
    arrays: Arrays, found: Mapping[str, Dataset], dropped: Collection[str] = (), *, merge_labels: bool = False
) -> xr.Dataset:
    """Return stored arrays as one Dataset. No elements are read.

    Parameters
    ----------
    found
        Arrays by the names of their variables.
    dropped
        Names of coordinates to leave out.
    merge_labels
        Take an array for a coordinate that other arrays have as well, if both are the same. Such arrays are read.

    Raises
    ------
    InvalidInputError
        If the arrays do not fit together, since axes of the same name differ in length, or coordinates of the same
        name differ.
    """
    coords = _shared_coords(found, dropped)
    check_lengths(found)
    if merge_labels:
        found = {
            name: dataset
            for name, dataset in found.items()
            if name not in coords or not _is_coord(arrays, name, dataset, coords[name])
        }
    _check_names(found, coords)
    variables = {
        name: variable_of(arrays, dataset, _dims_of(name, dataset)) for name, dataset in found.items()
    }
    return xr.Dataset(variables, coordinates(coords.values()))


def _dims_of(name: str, dataset: Dataset) -> tuple[str, ...]:
    # The default name of xarray, dim_0, would make one axis of those of all arrays.
    return dataset.dims or tuple(f"{name}_dim_{axis}" for axis in range(dataset.ndim))


def _shared_coords(arrays: Mapping[str, Dataset], dropped: Collection[str]) -> dict[str, Coord]:
    coords: dict[str, Coord] = {}
    first: dict[str, str] = {}
    for dataset in arrays.values():
        for coord in fitting_coords(dataset, stacklevel=6):
            if coord.name in dropped:
                continue
            known = coords.setdefault(coord.name, coord)
            if first.setdefault(coord.name, dataset.key) != dataset.key and not _is_same(known, coord):
                raise InvalidInputError(
                    f"opening arrays as a Dataset: the coordinate {coord.name!r} of {first[coord.name]!r} is not that "
                    f"of {dataset.key!r}. Open them apart, or leave it out: drop_variables=[{coord.name!r}]"
                )
    return coords


def _is_same(one: Coord, other: Coord) -> bool:
    """Tell whether two coordinates are the same, attributes included."""
    if (one.dims, one.values.dtype, one.values.shape) != (other.dims, other.values.dtype, other.values.shape):
        return False
    if dict(one.attrs) != dict(other.attrs):
        return False
    # NaN labels count as equal, which numpy offers only for dtypes that have NaN or NaT.
    has_nan = one.values.dtype.kind in "fcmM"
    return bool(np.array_equal(one.values, other.values, equal_nan=has_nan))


def _is_coord(arrays: Arrays, name: str, dataset: Dataset, coord: Coord) -> bool:
    """Tell whether an array has the labels of a coordinate, as files keep both. Its few elements are read."""
    if _dims_of(name, dataset) != coord.dims or dataset.shape != coord.values.shape:
        return False
    # Compare labels only: attributes may have changed since.
    return _is_same(coord, Coord(name, coord.dims, arrays.read(dataset, ...), coord.attrs))


def check_lengths(arrays: Mapping[str, Dataset]) -> None:
    """Refuse arrays whose axes of the same name differ in length.

    Raises
    ------
    InvalidInputError
    """
    known: dict[str, tuple[int, str]] = {}
    for dim, length, key in _axes(arrays):
        before, other = known.setdefault(dim, (length, key))
        if before != length:
            raise InvalidInputError(
                f"opening arrays as a Dataset: the axis {dim!r} has {before} elements in {other!r} and {length} in "
                f"{key!r}. Open them apart, or rename it: store.open({key!r}).dims = ..."
            )


def _axes(arrays: Mapping[str, Dataset]) -> Iterator[tuple[str, int, str]]:
    for name, dataset in arrays.items():
        for dim, length in zip(_dims_of(name, dataset), dataset.shape, strict=True):
            yield dim, length, dataset.key


def _check_names(arrays: Mapping[str, Dataset], coords: Mapping[str, Coord]) -> None:
    """Refuse an array that has the name of a coordinate, or of an axis that the array does not label."""
    axes = {dim: key for dim, _length, key in _axes(arrays)}
    for name, coord in coords.items():
        if name in axes and coord.dims != (name,):
            raise InvalidInputError(
                f"opening arrays as a Dataset: a coordinate along {coord.dims} has the name of an axis of "
                f"{axes[name]!r}, {name!r}. Leave it out: drop_variables=[{name!r}]"
            )
    for name, dataset in arrays.items():
        if name in coords:
            raise InvalidInputError(
                f"opening arrays as a Dataset: {dataset.key!r} would have the name of the coordinate {name!r}. Open it "
                f"on its own, by .to_xarray(), and leave both out here: drop_variables=[{name!r}]"
            )
        if name in axes and _dims_of(name, dataset) != (name,):
            raise InvalidInputError(
                f"opening arrays as a Dataset: {dataset.key!r} would have the name of an axis of {axes[name]!r}, "
                f"{name!r}. Open it on its own, by .to_xarray(), and leave it out here: drop_variables=[{name!r}]"
            )
