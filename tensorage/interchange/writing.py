"""Stored arrays as a file: written under a temporary name, which becomes the file's own at the end."""

from __future__ import annotations

import contextlib
import os
import posixpath
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tensorage.backend.arrays import Arrays
from tensorage.backend.ragged import refuse_ragged
from tensorage.errors import InvalidInputError, KeyNotFoundError
from tensorage.interchange.attributes import Left
from tensorage.interchange.datasets import open_group
from tensorage.interchange.grouped import GroupedArrays, Outgoing, array_of_labels
from tensorage.interchange.hdf5 import write_hdf5
from tensorage.interchange.marks import Mark, is_mark, mark_of
from tensorage.interchange.netcdf import require_xarray, write_netcdf
from tensorage.interchange.numpy_files import write_npy, write_npz
from tensorage.interchange.reading import suffix_of
from tensorage.interchange.zarr_folders import write_zarr
from tensorage.model.coords import coords_of
from tensorage.ragged import TEXT_ARRAY
from tensorage.types import Dataset
from tensorage.wording import quote, quote_of

__all__ = ["export", "export_part", "in_place"]

#: Suffixes of files that have text of any length.
_WITH_LONG_TEXT = frozenset({".h5", ".hdf5"})


def export(arrays: Arrays, key: str, path: Path, *, overwrite: bool) -> None:
    """Write an array, or all arrays of a group, as a file: see `tensorage.TensorStore.export`.

    Parameters
    ----------
    key
        Whole key of an array or of a group. With a ``/`` at its end, or empty, of a group.
    """
    suffix = suffix_of(path, f"exporting {quote(key)} to")
    _check_free(path, key, overwrite=overwrite)
    left = Left(f"exporting {quote(key)} to {quote(str(path))}")
    found = _find_entries(arrays, key)
    for entry in found.values():
        if not (entry.ragged == TEXT_ARRAY and suffix in _WITH_LONG_TEXT):
            refuse_ragged(
                f"exporting to {quote(path.name)}", entry, "Leave it out, or store it anew with one length"
            )
    with in_place(path, lambda: _check_free(path, key, overwrite=overwrite)) as temporary:
        _write(arrays, key, found, path=temporary, suffix=suffix, left=left)
        left.tell()


def export_part(item: Outgoing, path: Path, *, overwrite: bool) -> None:
    """Write one array, or a part of one, as a file of any format but NetCDF, without its coordinates.

    Parameters
    ----------
    item
        Array with its name in the file.

    Raises
    ------
    InvalidInputError
        If the file is there and `overwrite` is false, or the format is unknown.
    DTypeError
        If the format has no place for the dtype.
    """
    suffix = suffix_of(path, f"exporting {item.key!r} to")
    if suffix == ".nc":
        raise InvalidInputError(
            f"exporting a part of {item.key!r}: NetCDF is for whole arrays and groups. Take .h5 or .zarr"
        )
    _check_free(path, item.key, overwrite=overwrite)
    left = Left(f"exporting {item.key!r} to {str(path)!r}")
    with in_place(path, lambda: _check_free(path, item.key, overwrite=overwrite)) as temporary:
        if suffix == ".npy":
            write_npy(temporary, item, left)
        elif suffix == ".npz":
            write_npz(temporary, [item], left)
        else:
            (write_zarr if suffix == ".zarr" else write_hdf5)(temporary, GroupedArrays.of([item], {}), left)
        left.tell()


@contextlib.contextmanager
def in_place(path: Path, check: Callable[[], None]) -> Iterator[Path]:
    """Give a temporary path in the folder of a file, which becomes its own at the end, unless there was an error.

    Parameters
    ----------
    check
        Called before the end. Raises an error if the file must not be written any more.
    """
    # In the same folder: nothing can be renamed to another file system.
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.part")
    try:
        yield temporary
        check()
        _put_in_place(temporary, path)
    finally:
        _remove(temporary)


def _find_entries(arrays: Arrays, key: str) -> dict[str, Dataset]:
    """Find the entries to write, by their names in the file. The name of the group itself is empty."""
    group = key.rstrip("/")
    below = f"{group}/" if group else ""
    found = {entry.key[len(below) :]: entry for entry in arrays.entries(below)}
    own = arrays.find(group) if group else None
    if own is not None and is_mark(own):
        return {"": own, **found}
    if own is None or key.endswith("/"):
        if not found:
            raise KeyNotFoundError(
                f"exporting {quote_of(key, arrays.owner)}: there is neither such an array nor one below {quote(below)}"
            )
        return found
    if found:
        raise InvalidInputError(
            f"exporting {quote(key)}: there is an array of this name, and {len(found)} arrays below it. Export these "
            f"by {quote(below)}, or rename the array to export it alone"
        )
    return {posixpath.basename(key): own}


def _write(
    arrays: Arrays, key: str, found: Mapping[str, Dataset], *, path: Path, suffix: str, left: Left
) -> None:
    items = [_outgoing(arrays, name, entry) for name, entry in found.items() if not is_mark(entry)]
    marks = {name: mark_of(entry) for name, entry in found.items() if is_mark(entry)}
    if suffix == ".npy":
        if len(items) != 1 or marks:
            raise InvalidInputError(
                f"exporting {quote(key)}: a .npy file has one array, and these are {len(found)}. Export to .npz"
            )
        write_npy(path, items[0], left)
    elif suffix == ".npz":
        for name, mark in marks.items():
            kinds = {"attributes": mark.attrs, "coordinates": mark.parts and mark.parts.coords["coords"]}
            lost = " and ".join(kind for kind, value in kinds.items() if value)
            if lost:
                left.add(f"{lost} of the group {name or key!r}", "numpy's files have none")
        write_npz(path, items, left)
    elif suffix == ".nc":
        _write_netcdf(arrays, key, found, marks, path=path, left=left)
    else:
        _check_groups(key, [item.name for item in items])
        labels = list(_labels_of(key, marks, {item.name for item in items}))
        grouped = GroupedArrays.of([*items, *labels], {name: mark.attrs for name, mark in marks.items()})
        (write_zarr if suffix == ".zarr" else write_hdf5)(path, grouped, left)


def _outgoing(arrays: Arrays, name: str, entry: Dataset) -> Outgoing:
    return Outgoing(
        name, entry.key, entry.shape, entry.dtype, partial(_read, arrays, entry), dict(entry.attrs), entry.dims,
        coords_of(entry), entry.mean_bytes if entry.ragged is not None else 0,
    )  # fmt: skip


def _read(arrays: Arrays, entry: Dataset, region: Any) -> npt.NDArray[Any]:
    """Read a region of one version. An array that changes meanwhile raises `ChangedError`."""
    return np.asarray(arrays.read(entry, region), entry.dtype)


def _labels_of(key: str, marks: Mapping[str, Mark], taken: set[str]) -> Iterator[Outgoing]:
    """Yield the coordinates that only the marks of Datasets have."""
    for group, mark in marks.items():
        if mark.parts is None:
            continue
        # Coordinates are decoded from an entry. Any one will do, since they have shapes of their own.
        any_entry = Dataset(0, posixpath.join(key, group), (), np.dtype("u1"), 1, coords=mark.parts.coords)
        for coord in coords_of(any_entry):
            name = posixpath.join(group, coord.name)
            if name not in taken:
                yield array_of_labels(name, any_entry.key, coord)


def _write_netcdf(
    arrays: Arrays,
    key: str,
    found: Mapping[str, Dataset],
    marks: Mapping[str, Mark],
    *,
    path: Path,
    left: Left,
) -> None:
    """Write each group as one Dataset."""
    require_xarray()
    from tensorage.adapters.xarray_dataset import dataset_of

    group = key.rstrip("/")
    # A single array, which `_find_entries` names after the last part of its key.
    if list(found) == [posixpath.basename(key)] and not key.endswith("/"):
        (name, entry) = next(iter(found.items()))
        write_netcdf(path, {"": dataset_of(arrays, {name: entry}, merge_labels=True)}, left)
        return
    groups = dict.fromkeys(
        sorted({"", *marks, *(posixpath.dirname(name) for name in found if name not in marks)})
    )
    made = {}
    for name in groups:
        own = "/".join(filter(None, (group, name)))
        has_arrays = name in marks or any(posixpath.dirname(one) == name for one in found if one not in marks)
        made[name] = open_group(arrays, own) if has_arrays else _empty()
    for name, dataset in made.items():
        slashed = [one for one in dataset.variables if "/" in str(one)]
        if slashed:
            raise InvalidInputError(
                f"exporting {quote(key)}: NetCDF has no place for names with a slash, as {slashed} of the Dataset "
                f"{name or key!r} are. Rename them, or export to .zarr"
            )
    write_netcdf(path, made, left)


def _empty() -> Any:
    import xarray as xr

    return xr.Dataset()


def _check_groups(key: str, names: list[str]) -> None:
    """Refuse an array that has the name of a group, and names that a file cannot have."""
    taken = set(names)
    for name in names:
        parts = name.split("/")
        if not all(parts) or {".", ".."} & set(parts):
            raise InvalidInputError(
                f"exporting {quote(key)}: a file has no place for the name {name!r}, with parts that are empty or "
                "dots. Rename the array, or export to .npz"
            )
        above = next(
            ("/".join(parts[:n]) for n in range(1, len(parts)) if "/".join(parts[:n]) in taken), None
        )
        if above is not None:
            raise InvalidInputError(
                f"exporting {quote(key)}: {above!r} is an array, and there is {name!r} below it. A file has either "
                "an array or a group of a name: rename one, or export to .npz"
            )


def _check_free(path: Path, key: str, *, overwrite: bool) -> None:
    if not path.parent.is_dir():
        raise InvalidInputError(
            f"exporting {quote(key)} to {quote(str(path))}: there is no folder {quote(str(path.parent))}"
        )
    if os.path.lexists(path) and not overwrite:
        raise InvalidInputError(
            f"exporting {quote(key)} to {quote(str(path))}: this is there already, and is left as it was. "
            "overwrite=True replaces it"
        )


def _put_in_place(temporary: Path, path: Path) -> None:
    """Give what was written its own name, in place of what is there."""
    if not path.is_dir() or path.is_symlink():
        temporary.replace(path)
        return
    # A folder cannot be replaced in one step. The old one is kept until the new one is there.
    old = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.old")
    path.rename(old)
    try:
        temporary.rename(path)
    except BaseException:
        old.rename(path)
        raise
    shutil.rmtree(old)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
