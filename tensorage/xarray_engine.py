"""``xarray.open_dataset(store, engine="tensorage")``: arrays of a store as one Dataset of xarray."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar

import xarray as xr
from xarray.backends import BackendEntrypoint

from tensorage.adapters.xarray_dataset import dataset_of
from tensorage.backend.arrays import Arrays
from tensorage.errors import InvalidInputError, KeyNotFoundError
from tensorage.interchange.marks import is_mark
from tensorage.model.coords import name_of
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
        return dataset_of(source, arrays, dropped)

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
    # Keys of a group are relative to it, and arrays are opened by whole keys.
    keys = {key.removeprefix(prefix) or key: given.full_key(key) for key in found}
    wanted = [name for name in keys if name not in dropped]
    # Each entry takes a request, whose time is mostly spent waiting.
    with ThreadPoolExecutor(_OPENED_AT_ONCE) as pool:
        opened = pool.map(given.arrays.open, (keys[name] for name in wanted))
        named = zip(wanted, opened, strict=True)
        # Marks of groups hold attributes, and no elements.
        return given.arrays, {name: entry for name, entry in named if not is_mark(entry)}
