"""Storing of Datasets and of files, each in one transaction, with the settings of a store."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from tensorage.adapters.dask import is_dask, store_dask
from tensorage.backend.arrays import Arrays
from tensorage.dtypes import storable_dtype
from tensorage.errors import InvalidInputError, KeyNotFoundError
from tensorage.interchange.attributes import Left
from tensorage.interchange.datasets import entries_of_dataset, group_of
from tensorage.interchange.entries import Entry, take_in
from tensorage.interchange.reading import entries_of_file, names_to_skip
from tensorage.model.values import check_key
from tensorage.wording import quote

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["Storing"]


@dataclass(frozen=True)
class Storing:
    """Stores entries with the settings of a store.

    Parameters
    ----------
    arrays
        Arrays of the store.
    options
        Options of `tensorage.interchange.entries.take_in` for each array.
    present
        Arrays of the same user as they are now, outside of any transaction.
    begin
        Begins a transaction, and gives arrays whose changes are recorded. None if those of the store are recorded
        already, as part of a transaction that somebody else commits.
    """

    arrays: Arrays
    options: Mapping[str, Any]
    present: Arrays
    begin: Callable[[], AbstractContextManager[Arrays]] | None

    def write_dataset(self, key: str, dataset: xr.Dataset) -> None:
        """Store a Dataset of xarray as a group, in place of one that is there if the options let it.

        Blocks of dask are stored first, by its workers. If the rest fails, those are deleted again.

        Parameters
        ----------
        key
            Whole key of the group.
        """
        check_key(key)
        # All of it is checked before anything is sent.
        entries = {_join(key, entry.name): entry for entry in entries_of_dataset(dataset, key)}
        for below, entry in entries.items():
            check_key(below)
            storable_dtype(entry.source.dtype)
        lazy = {below: entry for below, entry in entries.items() if is_dask(entry.source)}
        # Looked at before anything is stored: later, new arrays could not be told from those that were there.
        replaced, kept = self._before(key) if self.options["overwrite"] else (set(), set())
        made: list[str] = []
        try:
            for below, entry in lazy.items():
                self._store_dask(below, entry)
                made.append(below)
            with self._together() as arrays:
                for below, entry in entries.items():
                    if below not in lazy:
                        take_in(arrays, entry, below, **self.options)
                # Variables of the old Dataset that the new one lacks. Other arrays below the key stay.
                for below in sorted(replaced - entries.keys()):
                    arrays.remove(below)
        except BaseException:
            # Blocks of dask are no part of the transaction. Arrays that they replaced cannot be brought back.
            for below in set(made) - kept:
                self.arrays.remove(below)
            raise

    def import_file(self, path: Path, prefix: str, skip: object) -> list[str]:
        """Store all arrays of a file: see `tensorage.TensorStore.import_file`. Return their whole keys.

        Parameters
        ----------
        prefix
            Beginning of the whole keys.
        """
        root = prefix.rstrip("/") if prefix.endswith("/") else ""
        left, skipped, keys = Left(f"importing {quote(str(path))}"), names_to_skip(skip), list[str]()
        entries = entries_of_file(path, left, skipped, has_root_mark=bool(root))
        # The file is open until the generator is closed, also after an error.
        with contextlib.closing(entries), self._together() as arrays:
            for entry in entries:
                if not entry.name and not root:
                    left.add(
                        "attributes of the file", "give a prefix that ends with '/', which then keeps them"
                    )
                    continue
                key = prefix + entry.name if entry.name else root
                take_in(arrays, entry, key, **self.options)
                keys.append(key)
            left.tell()
        return sorted(keys)

    def _together(self) -> AbstractContextManager[Arrays]:
        return contextlib.nullcontext(self.arrays) if self.begin is None else self.begin()

    def _store_dask(self, key: str, entry: Entry) -> None:
        if self.begin is None:
            raise InvalidInputError(
                f"storing {key!r} in a transaction: blocks of dask are stored by workers, which are no part of it. "
                "Compute the Dataset first, or store it outside of the transaction."
            )
        store_dask(
            self.arrays, key, cast("Any", entry.source), attrs=entry.attrs, dims=entry.dims, coords=entry.coords,
            **self.options,
        )  # fmt: skip

    def _before(self, key: str) -> tuple[set[str], set[str]]:
        """Return the keys of the arrays of a Dataset that is about to be replaced, and all keys below it."""
        try:
            mark, found = group_of(self.present, key)
        except KeyNotFoundError:
            return set(), set()
        kept = {_join(key, name) for name in found}
        if mark is None or mark.parts is None:
            return set(), kept
        names = [*mark.parts.variables, *(name for name, _ in mark.parts.stored_coords)]
        return {_join(key, name) for name in names} & kept, kept


def _join(key: str, name: str) -> str:
    """Return the key of an array of a group. Its mark has an empty name."""
    return f"{key}/{name}" if name else key
