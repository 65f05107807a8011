"""Files that are taken in: their formats, by suffix, and the arrays in each."""

from __future__ import annotations

import contextlib
import functools
import os
import zipfile
import zlib
from collections.abc import Callable, Collection, Generator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from tensorage.adapters.dask import is_dask
from tensorage.errors import CorruptTensorError, InvalidInputError, TensorageError
from tensorage.interchange.attributes import Left
from tensorage.interchange.entries import Entry, Source
from tensorage.interchange.hdf5 import entries_of_hdf5
from tensorage.interchange.netcdf import entries_of_netcdf
from tensorage.interchange.numpy_files import entries_of_npy, entries_of_npz
from tensorage.interchange.zarr_folders import entries_of_zarr
from tensorage.wording import one_line, quote

__all__ = ["SUFFIXES", "entries_of_file", "names_to_skip", "suffix_of"]

Reader = Callable[[Path, Left, Collection[str]], Iterator[Entry]]

_READERS: dict[str, Reader] = {
    ".npy": entries_of_npy,
    ".npz": entries_of_npz,
    ".h5": entries_of_hdf5,
    ".hdf5": entries_of_hdf5,
    ".zarr": entries_of_zarr,
}

#: Suffixes of the formats that are known.
SUFFIXES = (*_READERS, ".nc")


def entries_of_file(
    path: Path, left: Left, skipped: Collection[str], *, has_root_mark: bool
) -> Generator[Entry, None, None]:
    """Yield the arrays of a file and the marks of its groups, one after the other.

    Parameters
    ----------
    left
        Collects what has no place in a store.
    skipped
        Names of arrays and groups to leave out.
    has_root_mark
        True if there is a place for the mark of the file itself, under an empty name.

    Raises
    ------
    InvalidInputError
        If there is no such file, its suffix is unknown, or it is none of that format.
    CorruptTensorError
        If elements cannot be read.
    DTypeError
        If an array cannot be stored.
    """
    suffix = suffix_of(path, "importing")
    if not path.exists():
        raise InvalidInputError(f"importing {quote(str(path))}: there is no such file or folder")
    if path.is_dir() != (suffix == ".zarr"):
        kind = "a folder" if path.is_dir() else "a file"
        raise InvalidInputError(
            f"importing {quote(str(path))}: it is {kind}, and {suffix} is a {'folder' if suffix == '.zarr' else 'file'}"
        )
    if suffix == ".nc":
        reader: Reader = functools.partial(entries_of_netcdf, has_root_mark=has_root_mark)
    else:
        reader = _READERS[suffix]
    with _telling_damage(path):
        for entry in reader(path, left, skipped):
            source = entry.source
            # The elements of all others are there, or their readers tell of damage themselves.
            if not (entry.is_zarr or isinstance(source, np.ndarray) or is_dask(source)):
                source = _Guarded(source, path)
            yield replace(entry, source=source)


class _Guarded:
    """Elements in a file, which raise a named error if they cannot be read."""

    def __init__(self, source: Source, path: Path) -> None:
        self._source = source
        self._path = path
        self.shape = source.shape
        self.dtype = source.dtype

    def __getitem__(self, region: Any) -> Any:
        with _telling_damage(self._path):
            return self._source[region]


def suffix_of(path: Path, doing: str) -> str:
    """Return the suffix of a path, in lower case.

    Raises
    ------
    InvalidInputError
        If it is the one of no format.
    """
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise InvalidInputError(
            f"{doing} {quote(str(path))}: the suffix {quote(path.suffix)} is none of {', '.join(SUFFIXES)}. Arrays "
            "of other formats are stored one by one: store[key] = array"
        )
    return suffix


def names_to_skip(skip: object) -> frozenset[str]:
    """Check names of arrays and groups to leave out.

    Raises
    ------
    InvalidInputError
    """
    if (
        isinstance(skip, str)
        or not isinstance(skip, Collection)
        or not all(isinstance(name, str) for name in skip)
    ):
        raise InvalidInputError(
            f"skip is a list of names in the file, such as ['notes', 'old/x'], not {quote(skip)}"
        )
    return frozenset(name.strip("/") for name in skip)


@contextlib.contextmanager
def _telling_damage(path: str | os.PathLike[str]) -> Iterator[None]:
    """Raise a named error if a library cannot read a file.

    Raises
    ------
    CorruptTensorError
    """
    try:
        yield
    except TensorageError:
        raise
    # The errors of these libraries have no common type. Programs' own mistakes, such as AttributeError, pass.
    except (OSError, ValueError, EOFError, RuntimeError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise CorruptTensorError(
            f"importing {quote(str(path))}: it cannot be read ({type(error).__name__}: {one_line(str(error))}). It "
            "is damaged, or of another format than its suffix says. Nothing was stored"
        ) from error
