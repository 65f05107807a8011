"""``xarray.open_dataset(store, engine="tensorage")``: arrays of a store as one Dataset of xarray."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar

import numpy as np
import xarray as xr
from xarray.backends import BackendEntrypoint

from tensorage.adapters.xarray import coordinates, fitting_coords, variable_of
from tensorage.backend.arrays import Arrays
from tensorage.errors import InvalidInputError, KeyNotFoundError
from tensorage.model.coords import Coord, name_of
from tensorage.store import TensorStore
from tensorage.tensor import Tensor
from tensorage.types import Dataset

__all__ = ["TensorageEntrypoint"]

#: Entries of the catalogue that are fetched at the same time.
_OPENED_AT_ONCE = 8


class TensorageEntrypoint(BackendEntrypoint):
    """Engine ``tensorage`` of xarray, which opens stored arrays as one Dataset.

    Examples
    --------
    .. code-block:: python

        xarray.open_dataset(store, engine="tensorage", prefix="era5/")
        xarray.open_dataset(store.open("era5/t2m"), engine="tensorage", chunks={})
    """

    description = "Open arrays of tensorage: a store, or one of its arrays"
    open_dataset_parameters: ClassVar[tuple[str, ...] | None] = (
        "filename_or_obj",
        "drop_variables",
        "prefix",
    )

    def open_dataset(
        self, filename_or_obj: Any, *, drop_variables: str | Iterable[str] | None = None, prefix: str = ""
    ) -> xr.Dataset:
        """Open stored arrays as one Dataset, each in its present version. No elements are read.

        Parameters
        ----------
        filename_or_obj
            A `TensorStore`, or a `Tensor`. Every array of a store whose key begins with `prefix` is named by the rest
            of its key. A single array is named as it was stored, or by its key.
        drop_variables
            Names of arrays and of coordinates to leave out.
        prefix
            Beginning of the keys.

        Raises
        ------
        InvalidInputError
            If the arrays do not fit together, since axes of the same name differ in length, or coordinates of the same
            name differ.
        KeyNotFoundError
            If no key begins with `prefix`.
        """
        dropped = {drop_variables} if isinstance(drop_variables, str) else set(drop_variables or ())
        source, arrays = _arrays_of(filename_or_obj, prefix, dropped)
        coords = _shared_coords(arrays, dropped)
        _check_lengths(arrays)
        _check_names(arrays, coords)
        variables = {
            name: variable_of(source, found, _dims_of(name, found)) for name, found in arrays.items()
        }
        return xr.Dataset(variables, coordinates(coords.values()))

    def guess_can_open(self, filename_or_obj: Any) -> bool:
        """Tell whether an object is a store, or an array of one."""
        return isinstance(filename_or_obj, TensorStore | Tensor)


def _arrays_of(given: Any, prefix: str, dropped: set[str]) -> tuple[Arrays, dict[str, Dataset]]:
    """Find the arrays to open, by their names in the Dataset."""
    if isinstance(given, Tensor):
        name = name_of(given.dataset) or given.key
        return given.arrays, {} if name in dropped else {name: given.dataset}
    if not isinstance(given, TensorStore):
        raise InvalidInputError(
            f"engine='tensorage' opens a TensorStore or a Tensor, not {given!r}: give it store, prefix='...' or "
            "store.open('...')"
        )
    found = given.keys(prefix)
    if not found:
        raise KeyNotFoundError(f"opening arrays as a Dataset: no key of {given!r} begins with {prefix!r}")
    keys = {key.removeprefix(prefix) or key: key for key in found}
    wanted = [name for name in keys if name not in dropped]
    # Each entry takes a request, whose time is mostly spent waiting.
    with ThreadPoolExecutor(_OPENED_AT_ONCE) as pool:
        opened = pool.map(given.arrays.open, (keys[name] for name in wanted))
        return given.arrays, dict(zip(wanted, opened, strict=True))


def _dims_of(name: str, dataset: Dataset) -> tuple[str, ...]:
    # The default name of xarray, dim_0, would make one axis of those of all arrays.
    return dataset.dims or tuple(f"{name}_dim_{axis}" for axis in range(dataset.ndim))


def _shared_coords(arrays: Mapping[str, Dataset], dropped: set[str]) -> dict[str, Coord]:
    coords: dict[str, Coord] = {}
    first: dict[str, str] = {}
    for dataset in arrays.values():
        for coord in fitting_coords(dataset, stacklevel=5):
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


def _check_lengths(arrays: Mapping[str, Dataset]) -> None:
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
