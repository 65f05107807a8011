"""Stored arrays as arrays of dask, and arrays of dask stored by the workers that compute them.

A task reads the region that it needs, of the version that was opened. A graph therefore never mixes two versions. For
storing, blocks are cut so that each can be stored on its own. Each worker stores the blocks that it has computed, and
the caller makes all of them visible by one commit.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Unpack, cast

import numpy as np

from tensorage.backend.arrays import Arrays
from tensorage.dtypes import form_of
from tensorage.errors import InvalidInputError, missing_package
from tensorage.indexing.regions import cut_axes
from tensorage.indexing.selection import Selection
from tensorage.model.casting import cast_to
from tensorage.model.declaration import ArrayOptions
from tensorage.model.values import as_array
from tensorage.types import Dataset, EngineChoice
from tensorage.wording import one_line, quote

if TYPE_CHECKING:
    import dask.array

__all__ = ["PinnedArray", "is_dask", "store_dask", "to_dask"]


def is_dask(value: object) -> bool:
    """Tell whether a value is an array of dask. None can be, if nobody has imported dask."""
    # Importing dask takes long, and a value of dask can only exist if somebody has imported it.
    loaded = sys.modules.get("dask.array")
    return loaded is not None and isinstance(value, loaded.Array)


def to_dask(arrays: Arrays, dataset: Dataset, chunks: Any = None) -> dask.array.Array:
    """Return a stored array as an array of dask: see `tensorage.tensor.Tensor.to_dask`."""
    array = _dask_array()
    from dask.base import tokenize

    own = cut_axes(dataset.shape, arrays.shape_to_read(dataset))
    chosen = own
    if chunks is not None and chunks != "auto":
        by_axis = _key_by_axis(chunks, dataset) if isinstance(chunks, Mapping) else chunks
        try:
            chosen = array.core.normalize_chunks(
                by_axis, shape=dataset.shape, dtype=dataset.dtype, previous_chunks=own
            )
        except (ValueError, TypeError, NotImplementedError) as error:
            raise InvalidInputError(
                f"chunks={quote(chunks)} for {dataset.key!r} of shape {dataset.shape}: {one_line(str(error))}"
            ) from error
    pinned = PinnedArray(arrays.quietly(), _without_labels(dataset))
    made: dask.array.Array = array.from_array(
        pinned,
        chunks=chosen,
        name=f"tensorage-{tokenize(pinned, chosen)}",
        # Each task carries the array. A task of its own would make one worker send it to all others.
        inline_array=True,
        meta=np.empty((0,) * dataset.ndim, dataset.dtype),
    )
    return made


def _key_by_axis(chunks: Mapping[Any, Any], dataset: Dataset) -> dict[int, Any]:
    """Return chunks by the numbers of axes. Refuse unknown axes, which dask would ignore."""
    numbers = {name: axis for axis, name in enumerate(dataset.dims or ())}
    found = {numbers.get(name, name): length for name, length in chunks.items()}
    unknown = [name for name in found if name not in range(-dataset.ndim, dataset.ndim)]
    if unknown:
        raise InvalidInputError(
            f"chunks={quote(dict(chunks))} for {dataset.key!r} of shape {dataset.shape} and dims {dataset.dims}: "
            f"there are no axes {unknown}"
        )
    return {axis % dataset.ndim: length for axis, length in found.items()}


def store_dask(
    arrays: Arrays,
    key: str,
    array: dask.array.Array,
    *,
    engine: EngineChoice,
    is_shared: bool = False,
    **options: Unpack[ArrayOptions],
) -> Dataset:
    """Store an array of dask. Workers store the blocks that they compute, and all become visible in one step.

    Raises
    ------
    InvalidInputError
        If the shapes of its blocks are not known.
    """
    if any(math.isnan(length) for length in array.shape):
        raise InvalidInputError(
            f"storing {key!r}: the extents of some blocks of the dask array are not known yet, its shape is "
            f"{array.shape}. Call its compute_chunk_sizes() first"
        )

    def write_all(dataset: Dataset) -> None:
        # Blocks that end within a stored chunk would be written by two workers at the same time.
        cut = cast("Any", array).rechunk(arrays.lengths_to_write(dataset, array.chunks))
        _dask_array().store(cut, _Target(arrays, _without_labels(dataset)), lock=False)

    return arrays.write_with(
        key, write_all, array.shape, array.dtype, engine=engine, is_shared=is_shared, **options
    )


@dataclass(frozen=True)
class PinnedArray:
    """One version of a stored array, with the interface that other libraries read. A `PinnedArray` can be pickled.

    Parameters
    ----------
    arrays
        Arrays of the user who reads.
    dataset
        Entry of the array, in the version that is read.
    """

    arrays: Arrays
    dataset: Dataset

    @property
    def shape(self) -> tuple[int, ...]:
        return self.dataset.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.dataset.dtype

    @property
    def ndim(self) -> int:
        return self.dataset.ndim

    def __getitem__(self, selection: Selection) -> Any:
        """Read ``array[selection]``, as numpy would.

        Raises
        ------
        ChangedError
            If the array has changed since it was opened.
        """
        return self.arrays.read(self.dataset, selection)

    def __dask_tokenize__(self) -> tuple[Any, ...]:
        # The same version has the same token in every process, so that dask finds results again.
        now = self.dataset
        return (
            self.arrays.project.backend_url,
            now.id,
            now.version,
            now.created_at,
            now.shape,
            form_of(now.dtype),
        )


@dataclass(frozen=True)
class _Target:
    """Stores the blocks of one declared array, in whichever process computes them."""

    arrays: Arrays
    dataset: Dataset

    def __setitem__(self, region: tuple[slice, ...], block: Any) -> None:
        # Dask trusts the shapes and dtypes that a graph declares, and a task may break its word.
        elements = cast_to(as_array(block), self.dataset)
        wanted = tuple(axis.stop - axis.start for axis in region)
        if elements.shape != wanted:
            raise InvalidInputError(
                f"storing {self.dataset.key!r}: a block of the dask array has shape {elements.shape} where the array "
                f"said {wanted}. Nothing was stored"
            )
        self.arrays.write_region(self.dataset, region, elements)


def _without_labels(dataset: Dataset) -> Dataset:
    """Return the entry without attributes and labels: every task carries it, and they may be large."""
    return replace(dataset, attrs={}, coords=None)


def _dask_array() -> Any:
    try:
        import dask.array
    except ModuleNotFoundError as error:
        raise missing_package("arrays of dask", error, "dask") from error
    return dask.array
