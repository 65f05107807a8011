"""Datasets of xarray as groups of arrays: one array for each variable, and a mark for all that is none.

Small coordinates are kept with each variable that they label, and in the mark. Larger ones are arrays of their own.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from tensorage.adapters.labelled import check_index, coord_of, labels_of
from tensorage.backend.arrays import Arrays
from tensorage.dtypes import is_number, is_small_float
from tensorage.errors import (
    ChangedError,
    DTypeError,
    IncompleteTensorError,
    KeyNotFoundError,
    missing_package,
)
from tensorage.interchange.entries import MAX_LABELS_BYTES, Entry
from tensorage.interchange.marks import Mark, Parts, is_mark, mark_of
from tensorage.model.coords import Coord, check_name, coords_of, encode_coords
from tensorage.model.values import as_attrs
from tensorage.types import Dataset
from tensorage.warnings import warn
from tensorage.wording import quote, quote_of

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["entries_of_dataset", "group_of", "open_group"]

#: Coordinates of more bytes than these together are arrays of their own, as each large one is.
MAX_ALL_LABELS_BYTES = 512 * 1024

#: Most looks at a group that somebody stores anew each time.
_MAX_LOOKS = 10


class VariableSource:
    """Elements of a variable of xarray, which may still be in a file."""

    def __init__(self, variable: xr.Variable) -> None:
        self._variable = variable
        self.shape: tuple[int, ...] = tuple(variable.shape)
        self.dtype: np.dtype[Any] = variable.dtype

    def __getitem__(self, region: Any) -> npt.NDArray[Any]:
        return np.asarray(self._variable[region].values)


def entries_of_dataset(dataset: xr.Dataset, key: str, *, has_mark: bool = True) -> Iterator[Entry]:
    """Yield the arrays of a Dataset, and its mark as the last one, under an empty name.

    Parameters
    ----------
    key
        Key of the group, for messages.
    has_mark
        True if there is a place for a mark. Without one, coordinates that no variable carries are arrays, too.

    Raises
    ------
    InvalidInputError, DTypeError
        If something of it cannot be stored.
    """
    for name in dataset.variables:
        check_name(f"storing {key!r}", name)
    large = _large_coords(dataset)
    carried: set[Any] = set()
    for name in dataset.data_vars:
        array = dataset[name].drop_vars([coord for coord in large if coord in dataset[name].coords])
        yield _entry(f"{key}/{name}", str(name), array)
        carried.update(array.coords)
    alone = list(large) if has_mark else [name for name in dataset.coords if name not in carried]
    for name in alone:
        check_index(key, dataset, name)
        variable = dataset.variables[name].to_base_variable()
        _check_numpy(f"{key}/{name}", variable.dtype)
        yield Entry(
            str(name), _source(variable), as_attrs(variable.attrs), [str(dim) for dim in variable.dims]
        )
    small = [coord_of(key, dataset, name) for name in dataset.coords if name not in large]
    if has_mark:
        stored = [(str(name), name in dataset.xindexes) for name in large]
        parts = Parts([str(name) for name in dataset.data_vars], stored, encode_coords(small))
        yield Mark(as_attrs(dataset.attrs), parts).entry("")


def _entry(key: str, name: str, array: xr.DataArray) -> Entry:
    _check_numpy(key, array.dtype)
    labels = labels_of(key, array)
    return Entry(
        name,
        _source(array.variable),
        as_attrs(array.attrs),
        labels.dims,
        encode_coords(labels.coords, name=labels.name),
    )


def _source(variable: xr.Variable) -> Any:
    # Blocks of dask are computed by its workers. Everything else is read region by region.
    return VariableSource(variable) if variable.chunks is None else variable.data


def _check_numpy(key: str, dtype: object) -> None:
    if not isinstance(dtype, np.dtype):
        raise DTypeError(
            f"storing {key!r}: it is of dtype {dtype}, which is one of pandas: convert it to one of numpy, by "
            ".astype(...). Nothing was stored"
        )


def _large_coords(dataset: xr.Dataset) -> list[Any]:
    """Return the names of the coordinates that are arrays of their own."""
    large, room = [], MAX_ALL_LABELS_BYTES
    for name, coord in dataset.coords.items():
        dtype = coord.dtype
        # Only labels are text of any length, or may be refused with advice. Text of that kind becomes smaller.
        if not isinstance(dtype, np.dtype) or dtype.kind in "OT":
            continue
        is_label = (is_number(dtype) and not is_small_float(dtype)) or dtype.kind == "U"
        if is_label and coord.nbytes <= min(MAX_LABELS_BYTES, room):
            room -= coord.nbytes
        else:
            large.append(name)
    return large


# Opening ----------------------------------------------------------------------------------------------


def group_of(arrays: Arrays, key: str) -> tuple[Mark | None, dict[str, Dataset]]:
    """Return the mark of a group, if it has one, and the entries of all arrays below it, by the rest of their keys.

    Raises
    ------
    KeyNotFoundError
        If there is neither.
    """
    below = f"{key}/" if key else ""
    for _ in range(_MAX_LOOKS):
        before = _mark_entry(arrays, key)
        found = {entry.key[len(below) :]: entry for entry in arrays.entries(below)}
        # A Dataset is stored with its mark in one step. With the same mark, all entries are of the same Dataset.
        after = _mark_entry(arrays, key)
        if (before and (before.id, before.version)) == (after and (after.id, after.version)):
            break
    else:
        raise ChangedError(f"opening {key!r} as a group: somebody stores it anew all the time")
    if after is None and not found:
        raise KeyNotFoundError(
            f"opening {quote_of(key, arrays.owner)} as a group: no key begins with {quote(below)}"
        )
    return None if after is None else mark_of(after), found


def _mark_entry(arrays: Arrays, key: str) -> Dataset | None:
    found = arrays.find(key)
    return found if found is not None and is_mark(found) else None


def open_group(arrays: Arrays, key: str, dropped: Collection[str] = ()) -> xr.Dataset:
    """Return the arrays of a group as a Dataset of xarray: see `tensorage.TensorStore.open_dataset`."""
    _check_xarray()
    from tensorage.adapters.xarray_dataset import dataset_of

    mark, found = group_of(arrays, key)
    if mark is not None and mark.parts is not None:
        made = _open_parts(arrays, key, mark.parts, found, dropped)
    else:
        # Without a list of variables, they are the arrays of this group, and those of groups within it are not.
        own = {
            name: entry
            for name, entry in found.items()
            if "/" not in name and name not in dropped and not is_mark(entry)
        }
        made = dataset_of(arrays, own, dropped, merge_labels=True)
    return made if mark is None else made.assign_attrs(mark.attrs)


def _open_parts(
    arrays: Arrays, key: str, parts: Parts, found: Mapping[str, Dataset], dropped: Collection[str]
) -> xr.Dataset:
    import xarray as xr

    from tensorage.adapters.xarray import coordinates, variable_of
    from tensorage.adapters.xarray_dataset import check_lengths

    names = [name for name in parts.variables if name not in dropped]
    stored = {name: is_index for name, is_index in parts.stored_coords if name not in dropped}
    missing = [name for name in [*names, *stored] if name not in found]
    if missing:
        raise IncompleteTensorError(
            f"opening {key!r} as a Dataset: its arrays {missing} are missing. They were deleted or renamed after it "
            f"was stored; drop_variables={missing} leaves them out"
        )
    check_lengths({name: found[name] for name in names})
    lengths = {
        dim: length
        for name in names
        for dim, length in zip(found[name].dims or (), found[name].shape, strict=True)
    }
    any_entry = Dataset(0, key, (), np.dtype("u1"), 1, coords=parts.coords)
    small = [coord for coord in coords_of(any_entry) if coord.name not in dropped]
    loaded = {
        name: Coord(name, _dims(found[name]), arrays.read(found[name], ...), found[name].attrs, is_index)
        for name, is_index in stored.items()
        # An index has its labels in memory. Without one, xarray would make one for the name of an axis.
        if is_index or name in _dims(found[name])
    }
    fitting = [coord for coord in [*small, *loaded.values()] if _fits(key, coord, lengths)]
    lazy = {
        name: variable_of(arrays, found[name], _dims(found[name])) for name in stored if name not in loaded
    }
    variables = {name: variable_of(arrays, found[name], _dims(found[name])) for name in names}
    return xr.Dataset({**variables, **lazy}, coordinates(fitting)).set_coords(list(lazy))


def _dims(dataset: Dataset) -> tuple[str, ...]:
    return dataset.dims or ()


def _fits(key: str, coord: Coord, lengths: Mapping[str, int]) -> bool:
    wanted = tuple(
        lengths.get(dim, length) for dim, length in zip(coord.dims, coord.values.shape, strict=True)
    )
    if coord.values.shape == wanted:
        return True
    warn(
        f"the coordinate {coord.name!r} of {key!r} is left out: it has labels of shape {coord.values.shape}, and along "
        f"{coord.dims} the arrays have shape {wanted}, as rows were appended. Store the Dataset anew"
    )
    return False


def _check_xarray() -> None:
    try:
        import xarray as xr
    except ModuleNotFoundError as error:
        raise missing_package("Datasets", error, "xarray") from error
    del xr
