"""numpy's files: ``.npy`` holds one array, and ``.npz`` several by name. Neither has attributes or dims."""

from __future__ import annotations

import zipfile
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from tensorage.dtypes import has_small_float
from tensorage.errors import DTypeError, InvalidInputError
from tensorage.interchange.attributes import Left
from tensorage.interchange.entries import Entry
from tensorage.interchange.grouped import Outgoing
from tensorage.wording import quote

__all__ = ["entries_of_npy", "entries_of_npz", "write_npy", "write_npy_to", "write_npz"]


#: Begin of an archive, which a .npz is.
_ZIP = b"PK\x03\x04"


def entries_of_npy(path: Path, left: Left, skipped: Collection[str]) -> Iterator[Entry]:
    """Yield the array of a file, named after the file. Its elements are read when they are asked for."""
    del left, skipped
    try:
        # Not read through: the array may be larger than memory.
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except ValueError:
        # numpy maps neither arrays without elements nor those of objects, and says more when it reads them.
        array = _load_unmapped(path)
    if not isinstance(array, np.ndarray):
        array.close()
        raise InvalidInputError(
            f"importing {quote(str(path))}: it is no .npy file, but a .npz file of several arrays"
        )
    yield Entry(path.stem, array)


def _load_unmapped(path: Path) -> Any:
    with path.open("rb") as file:
        # numpy takes any other file for a pickle, and tells how to load it all the same.
        if not file.read(6).startswith((np.lib.format.MAGIC_PREFIX, _ZIP)):
            raise ValueError("it does not begin as a .npy does")
    return np.load(path, allow_pickle=False)


def entries_of_npz(path: Path, left: Left, skipped: Collection[str]) -> Iterator[Entry]:
    """Yield the arrays of a file. Each is read whole when it is asked for."""
    del left
    # Opened here: numpy leaves a file open that is no archive.
    with path.open("rb") as file:
        arrays = np.load(file, allow_pickle=False)
        if isinstance(arrays, np.ndarray):
            raise InvalidInputError(
                f"importing {quote(str(path))}: it is no .npz file, but a .npy file of one array"
            )
        for name in arrays.files:
            if name not in skipped:
                if not name:
                    raise InvalidInputError(
                        f"importing {quote(str(path))}: it has an array without a name. skip=[''] leaves it out"
                    )
                found = arrays[name]
                if not isinstance(found, np.ndarray):
                    raise InvalidInputError(f"importing {quote(str(path))}: its member {name!r} is no array")
                yield Entry(name, found)


def write_npy(path: Path, item: Outgoing, left: Left) -> None:
    """Write one array as a new file."""
    _note_labels(item, left)
    with path.open("wb") as file:
        write_npy_to(file, item)


def write_npz(path: Path, items: Sequence[Outgoing], left: Left) -> None:
    """Write arrays as a new file."""
    with zipfile.ZipFile(path, "x", zipfile.ZIP_STORED) as archive:
        for item in items:
            _note_labels(item, left)
            # The size is not known beforehand to the archive, which would have room for 2 GiB otherwise.
            with archive.open(f"{item.name}.npy", "w", force_zip64=True) as file:
                write_npy_to(file, item)


def write_npy_to(file: IO[bytes], item: Outgoing) -> None:
    """Write one array to a file or a pipe, block by block."""
    dtype = item.dtype
    if has_small_float(dtype):
        raise DTypeError(
            f"exporting {item.key!r}: numpy's files have no place for dtype {dtype}. Store a copy as float32, and "
            "export that"
        )
    head: dict[str, Any] = {
        "descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": item.shape,
    }  # fmt: skip
    try:
        np.lib.format.write_array_header_2_0(file, head)
    except UnicodeEncodeError as error:
        raise DTypeError(
            f"exporting {item.key!r}: numpy's files have no place for the names of its fields, {dtype.names}"
        ) from error
    for _, rows in item.blocks():
        file.write(np.ascontiguousarray(rows, dtype).tobytes())


def _note_labels(item: Outgoing, left: Left) -> None:
    kinds = {"attributes": item.attrs, "dims": item.dims, "coordinates": item.coords}
    found = [name for name, value in kinds.items() if value]
    if found:
        left.add(f"{', '.join(found)} of {item.key!r}", "numpy's files have none")
