"""Declarations of arrays that are to be stored, and their checks. No I/O."""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypedDict

import numpy as np
import numpy.typing as npt

from tensorage.dtypes import form_of, storable_dtype
from tensorage.errors import InvalidInputError
from tensorage.indexing.regions import divide_evenly
from tensorage.indexing.runs import MAX_REQUEST_BYTES
from tensorage.model.coords import check_room
from tensorage.model.values import MAX_EXTENT, as_attrs, as_dims, check_key
from tensorage.ragged import Ragged
from tensorage.types import COORDS_ATTRIBUTE
from tensorage.wording import quote

__all__ = [
    "BLOCK_BYTES",
    "MAX_BLOCK_ELEMENTS",
    "ArrayOptions",
    "Declaration",
    "declare",
    "declare_ragged",
    "fit_block_size",
]

#: Bytes of one stored block, unless `chunk_size` is given.
BLOCK_BYTES = 1024 * 1024

#: Most elements of a block, where they have any length. The table of their ends is small next to a page then.
MAX_BLOCK_ELEMENTS = 8192

#: Most axes of an array of numpy.
MAX_AXES = 64


class ArrayOptions(TypedDict, total=False):
    """Options of a new array, beside its key, shape and dtype.

    Parameters
    ----------
    chunk_size
        Elements per stored block of the database, by default about 1 MiB of them, or per chunk of Storage.
    chunks, shards, codecs
        For Storage: shape of a chunk, which is compressed and read as one; shape of an object; and codecs of a
        chunk, as the JSON of Zarr's metadata or as zarr's own objects.
    attrs
        Attributes, of JSON's types.
    dims
        Names of the axes.
    coords
        Labels of the axes, as `tensorage.model.coords` encodes them.
    overwrite
        Let the new array replace one under the same key.
    """

    chunk_size: int | None
    chunks: Sequence[int] | None
    shards: Sequence[int] | Literal[False] | None
    codecs: Sequence[Any] | None
    attrs: Mapping[str, Any] | None
    dims: Sequence[str] | None
    coords: Mapping[str, Any] | None
    overwrite: bool


@dataclass(frozen=True)
class Declaration:
    """Declaration of a new array: everything that is said of it before its elements come.

    Parameters
    ----------
    dtype
        Dtype, little-endian.
    block_size
        Elements of the largest block, if the array is kept as blocks.
    is_shared
        Let every signed-in user of the project read the array.
    ragged
        Type of the elements, if they have any length.
    """

    key: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    block_size: int
    is_shared: bool
    options: ArrayOptions
    ragged: Ragged | None = None

    @property
    def meta(self) -> dict[str, Any]:
        """Entry for the catalogue, with the members that both engines send."""
        attrs = as_attrs(self.options.get("attrs") or {})
        coords = self.options.get("coords")
        # Coordinates share the room of the attributes, so both are checked together before anything is sent.
        if coords is not None:
            check_room(self.key, attrs, coords)
            attrs[COORDS_ATTRIBUTE] = coords
        return {
            "key": self.key,
            "shape": self.shape,
            "dtype": form_of(self.dtype) if self.ragged is None else self.ragged.form,
            "chunk": self.block_size,
            "is_shared": self.is_shared,
            "attrs": attrs,
            "dims": as_dims(self.options.get("dims"), len(self.shape)),
            "overwrite": self.options.get("overwrite", False),
        }


def declare(
    key: str, shape: Sequence[int], dtype: npt.DTypeLike, is_shared: bool, options: ArrayOptions
) -> Declaration:
    """Check the shape, dtype and options of a new array, and declare it.

    Raises
    ------
    InvalidInputError, DTypeError
    """
    check_key(key)
    shape = _as_shape(shape)
    stored = storable_dtype(dtype)
    chunk_size = options.get("chunk_size")
    # A block has to fit one request, whatever the user asks for.
    if chunk_size is None:
        chunk_size = BLOCK_BYTES // stored.itemsize
    elif not 1 <= chunk_size <= MAX_REQUEST_BYTES // stored.itemsize:
        raise InvalidInputError(
            f"chunk_size={chunk_size} elements: a block of {stored} holds 1 to "
            f"{MAX_REQUEST_BYTES // stored.itemsize} of them ({MAX_REQUEST_BYTES} bytes)"
        )
    return Declaration(key, shape, stored, fit_block_size(shape, chunk_size), is_shared, options)


def _as_shape(shape: Sequence[int]) -> tuple[int, ...]:
    # Bytes are a sequence of whole numbers, too.
    given: Any = None if isinstance(shape, bytes | bytearray | memoryview) else shape
    try:
        extents = tuple(operator.index(extent) for extent in given)
    except TypeError as error:
        raise InvalidInputError(
            f"the shape {quote(shape)} is none: give a whole number for each axis, such as (1000, 3)"
        ) from error
    if len(extents) > MAX_AXES:
        raise InvalidInputError(
            f"the shape {quote(extents)} has {len(extents)} axes, and numpy has {MAX_AXES} at most"
        )
    if any(extent < 0 for extent in extents):
        raise InvalidInputError(f"the shape {quote(extents)} has a negative extent")
    if any(extent > MAX_EXTENT for extent in extents):
        raise InvalidInputError(f"the shape {quote(extents)} has an extent of more than {MAX_EXTENT}")
    return extents


def declare_ragged(
    key: str, shape: tuple[int, ...], ragged: Ragged, is_shared: bool, options: ArrayOptions
) -> Declaration:
    """Declare an array whose elements have any length.

    Parameters
    ----------
    shape
        Shape as far as it is known: a first extent of 0 may become another one before the commit.

    Raises
    ------
    InvalidInputError
        If an option does not fit.
    """
    check_key(key)
    chunk_size = options.get("chunk_size")
    if chunk_size is not None and chunk_size < 1:
        raise InvalidInputError(f"chunk_size={chunk_size} elements: a block holds at least one")
    block_size = min(chunk_size or MAX_BLOCK_ELEMENTS, MAX_BLOCK_ELEMENTS)
    return Declaration(key, shape, ragged.dtype, block_size, is_shared, options, ragged)


def fit_block_size(shape: tuple[int, ...], most: int) -> int:
    """Choose a block size of at most `most` elements: whole rows of axis 0, or an even part of a row that is larger.

    >>> fit_block_size((60000, 28, 28), 262144)
    261856
    >>> fit_block_size((10, 1000), 400)
    334
    """
    # Blocks that begin with a row are appended to, and a read of whole rows cuts none of them.
    row = math.prod(shape[1:])
    if not shape or row == 0:
        return most
    return most // row * row if row <= most else divide_evenly(row, most)
