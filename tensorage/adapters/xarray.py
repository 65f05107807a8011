"""Stored arrays as arrays of xarray: labels are loaded at once, elements when they are needed.

Labels and elements belong to the version that was opened. Once the array has changed, reading raises `ChangedError`.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr
from xarray.backends import BackendArray
from xarray.core import indexing
from xarray.indexes import PandasIndex

from tensorage.adapters.dask import PinnedArray
from tensorage.backend.arrays import Arrays
from tensorage.backend.ragged import refuse_ragged
from tensorage.errors import InvalidInputError
from tensorage.model.coords import Coord, coords_of, is_named, name_of
from tensorage.types import Dataset

__all__ = ["StoredArray", "coordinates", "data_array_of", "fitting_coords", "variable_of"]

#: Name of the variable while a DataArray is made. No coordinate has a NUL in its name.
_ARRAY = "\0"


class StoredArray(BackendArray):
    """One version of a stored array, with the interface that xarray reads. A `StoredArray` can be pickled.

    Parameters
    ----------
    pinned
        Array to read.
    """

    __slots__ = ("_pinned", "dtype", "shape")

    def __init__(self, pinned: PinnedArray) -> None:
        self._pinned = pinned
        self.shape = pinned.shape
        self.dtype = pinned.dtype

    def __getitem__(self, key: indexing.ExplicitIndexer) -> npt.NDArray[Any]:
        """Read the elements that xarray asks for, and no others.

        Raises
        ------
        ChangedError
            If the array has changed since it was opened.
        """
        if isinstance(key, indexing.VectorizedIndexer):
            return _read_pointwise(self._pinned, key.tuple)
        return _read_orthogonal(self._pinned, key.tuple)

    def __deepcopy__(self, memo: dict[int, Any]) -> StoredArray:
        # The array never changes, and a copy of the session would be another login.
        return self

    def __dask_tokenize__(self) -> tuple[Any, ...]:
        return self._pinned.__dask_tokenize__()


def data_array_of(arrays: Arrays, dataset: Dataset, data: Any = None) -> xr.DataArray:
    """Return a stored array as a DataArray.

    Parameters
    ----------
    data
        Array that holds the elements, by default the stored one.
    """
    dims = dataset.dims or tuple(f"dim_{axis}" for axis in range(dataset.ndim))
    variable = variable_of(arrays, dataset, dims, data)
    made = xr.Dataset({_ARRAY: variable}, coordinates(fitting_coords(dataset, stacklevel=5)))[_ARRAY]
    made.name = name_of(dataset) if is_named(dataset) else dataset.key
    return made


def variable_of(arrays: Arrays, dataset: Dataset, dims: Sequence[str], data: Any = None) -> xr.Variable:
    """Return a stored array as a Variable, which has dims and attributes, but no coordinates.

    Raises
    ------
    InvalidInputError
        If two axes have the same name.
    """
    refuse_ragged(
        "making an array of xarray of", dataset, "Read it in parts, such as handle[:1000], or by batches()"
    )
    if len(set(dims)) < len(dims):
        raise InvalidInputError(
            f"{dataset.key!r} has the dims {tuple(dims)}, and xarray needs a name of its own for each axis: "
            "set tensor.dims"
        )
    if data is None:
        # Assigning to elements copies them to memory. The stored array is never written to.
        lazy: Any = indexing.LazilyIndexedArray(StoredArray(PinnedArray(arrays.quietly(), dataset)))
        data = indexing.CopyOnWriteArray(lazy)
    lengths = arrays.shape_to_read(dataset)
    encoding = {
        "preferred_chunks": {
            # Xarray warns about chunks that cut preferred ones. An axis that is not cut has no preference.
            dim: length
            for dim, length, whole in zip(dims, lengths, dataset.shape, strict=True)
            if length < whole
        }
    }
    return xr.Variable(dims, data, dict(dataset.attrs), encoding)


def fitting_coords(dataset: Dataset, *, stacklevel: int) -> list[Coord]:
    """Return the coordinates of an array. Leave out those that are shorter than their axis, with a warning.

    Parameters
    ----------
    stacklevel
        Frame that the warning blames, as `warnings.warn` counts from here.
    """
    lengths = dict(zip(dataset.dims or (), dataset.shape, strict=False))
    fitting = []
    for coord in coords_of(dataset):
        wanted = tuple(lengths.get(dim, -1) for dim in coord.dims)
        if coord.values.shape == wanted:
            fitting.append(coord)
            continue
        warnings.warn(
            f"the coordinate {coord.name!r} of {dataset.key!r} is left out: it has labels of shape "
            f"{coord.values.shape}, and along {coord.dims} the array has shape {wanted}, as rows were appended without "
            "labels. Set tensor.coords = {...}, and append a DataArray the next time",
            stacklevel=stacklevel,
        )
    return fitting


def coordinates(coords: Iterable[Coord]) -> xr.Coordinates:
    """Return coordinates of xarray, with indexes for coordinates that had one."""
    variables: dict[Any, xr.Variable] = {}
    indexes: dict[Any, PandasIndex] = {}
    for coord in coords:
        variable = xr.Variable(coord.dims, coord.values, dict(coord.attrs))
        if coord.is_index and variable.ndim == 1:
            index = PandasIndex.from_variables({coord.name: variable}, options={})
            indexes[coord.name] = index
            variables.update(index.create_variables({coord.name: variable}))
        else:
            variables[coord.name] = variable
    return xr.Coordinates(variables, indexes)


def _read_orthogonal(array: PinnedArray, key: Sequence[Any]) -> npt.NDArray[Any]:
    """Read elements by one index for each axis: a number, a slice, or an array that picks along that axis alone."""
    picked = [axis for axis, item in enumerate(key) if isinstance(item, np.ndarray)]
    if not picked:
        return _read(array, tuple(key))
    # Beside an array, numpy takes a number for an array, too, which would change the order of the axes.
    single = tuple(axis for axis, item in enumerate(key) if not isinstance(item, np.ndarray | slice))
    picked = sorted([*picked, *single])
    selection = list(key)
    for place, axis in enumerate(picked):
        lengths = [1] * len(picked)
        lengths[place] = -1
        selection[axis] = np.asarray(key[axis]).reshape(lengths)
    elements = _read(array, tuple(selection))
    if picked != list(range(picked[0], picked[-1] + 1)):
        elements = np.moveaxis(elements, range(len(picked)), picked)
    return np.squeeze(elements, axis=single)


def _read_pointwise(array: PinnedArray, key: Sequence[Any]) -> npt.NDArray[Any]:
    """Read elements by slices, and by arrays that pick together. The axes of the arrays come first."""
    elements = _read(array, tuple(key))
    picked = [axis for axis, item in enumerate(key) if isinstance(item, np.ndarray)]
    if picked != list(range(picked[0], picked[-1] + 1)):
        # With a slice between the arrays, numpy puts their axes first by itself.
        return elements
    count = max(key[axis].ndim for axis in picked)
    return np.moveaxis(elements, range(picked[0], picked[0] + count), range(count))


def _read(array: PinnedArray, selection: tuple[Any, ...]) -> npt.NDArray[Any]:
    return np.asarray(array[selection], array.dtype)
