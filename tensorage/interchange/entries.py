"""One array on its way into a store: its elements, and all that is kept with them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, cast

import numpy as np
import numpy.typing as npt

from tensorage.backend.arrays import Arrays
from tensorage.model.declaration import ArrayOptions, declare
from tensorage.model.engine_choice import resolve_engine
from tensorage.types import Dataset, EngineChoice

__all__ = ["MAX_LABELS_BYTES", "Entry", "Source", "blocks_of", "read_whole", "take_in"]

#: Arrays of more bytes are read and stored in blocks of rows of about as many bytes.
BLOCK_BYTES = 32 * 1024 * 1024

#: Labels of more bytes are not kept with the arrays that they label, and are arrays of their own alone.
MAX_LABELS_BYTES = 64 * 1024


class Source(Protocol):
    """Elements of an array in a file, of which regions can be read."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> np.dtype[Any]: ...

    def __getitem__(self, region: Any, /) -> Any: ...


@dataclass(frozen=True)
class Entry:
    """One array on its way into a store.

    Parameters
    ----------
    name
        Rest of the key, after the prefix. Groups are parts between slashes.
    source
        Elements: an array of numpy, or anything whose regions can be read.
    dims
        Names of the axes.
    coords
        Labels of the axes, as `tensorage.model.coords` encodes them.
    is_zarr
        True if the source is an array of zarr, whose objects the storage engine may take over as they are.
    """

    name: str
    source: Source
    attrs: Mapping[str, Any] = field(default_factory=dict)
    dims: Sequence[str] | None = None
    coords: Mapping[str, Any] | None = None
    is_zarr: bool = False


def take_in(
    arrays: Arrays, entry: Entry, key: str, *, engine: EngineChoice, is_shared: bool = False, **options: Any
) -> Dataset:
    """Store one array. A large one is read and sent in blocks of rows.

    Parameters
    ----------
    arrays
        Arrays of the store, or of its transaction.
    options
        Options of `tensorage.model.declaration.ArrayOptions`, beside attributes, dims and coordinates.
    """
    source = entry.source
    said = cast("ArrayOptions", {**options, "attrs": entry.attrs, "dims": entry.dims, "coords": entry.coords})
    if entry.is_zarr:
        # Declared for the choice of the engine alone: the import declares the array that is stored.
        new = declare(key, source.shape, source.dtype, is_shared, said)
        kept = resolve_engine(engine, new)
        return arrays.import_zarr(key, source, engine=kept, is_shared=is_shared, **said)
    nbytes = math.prod(source.shape) * source.dtype.itemsize
    # Text of any length is in memory as a whole anyway, in the form in which it is read.
    if not source.shape or nbytes <= BLOCK_BYTES or source.dtype.kind == "T":
        return arrays.write(key, read_whole(source), engine=engine, is_shared=is_shared, **said)
    return arrays.write_blocks(
        key, blocks_of(source), source.shape, source.dtype, engine=engine, is_shared=is_shared, **said
    )


def read_whole(source: Source) -> npt.NDArray[Any]:
    """Read all elements."""
    return np.asarray(source[()] if not source.shape else source[...], source.dtype)


def blocks_of(source: Source) -> Iterator[npt.NDArray[Any]]:
    """Yield all rows, in blocks of about 32 MiB, and of one row at least."""
    row_bytes = math.prod(source.shape[1:]) * source.dtype.itemsize
    rows = max(BLOCK_BYTES // max(row_bytes, 1), 1)
    for first in range(0, source.shape[0], rows):
        yield np.asarray(source[first : min(first + rows, source.shape[0])], source.dtype)
