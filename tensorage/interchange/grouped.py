"""Stored arrays on their way into a file, with the groups and labels that the file has for them."""

from __future__ import annotations

import functools
import math
import posixpath
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from tensorage.errors import InvalidInputError
from tensorage.model.coords import Coord

__all__ = ["GroupedArrays", "Outgoing", "array_of_labels"]

#: Bytes of rows that are read and written at once.
BLOCK_BYTES = 32 * 1024 * 1024

#: Attribute of NetCDF's conventions that names the coordinates of an array beside those of its axes.
COORDINATES_ATTRIBUTE = "coordinates"


@dataclass(frozen=True)
class Outgoing:
    """One array on its way into a file.

    Parameters
    ----------
    name
        Name in the file. Groups are parts between slashes.
    key
        Key of the stored array that it comes from, for messages.
    read
        Returns a region of the elements.
    mean_bytes
        Bytes of an element, about, if elements have any length.
    """

    name: str
    key: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    read: Callable[[Any], npt.NDArray[Any]]
    attrs: Mapping[str, Any] = field(default_factory=dict)
    dims: tuple[str, ...] | None = None
    coords: Sequence[Coord] = ()
    mean_bytes: int = 0

    @property
    def group(self) -> str:
        return posixpath.dirname(self.name)

    def blocks(self) -> Iterator[tuple[int, npt.NDArray[Any]]]:
        """Yield all rows, in blocks of about 32 MiB, each with the number of its first row."""
        if not self.shape:
            yield 0, np.asarray(self.read(()))
            return
        row_bytes = math.prod(self.shape[1:]) * max(self.dtype.itemsize, self.mean_bytes)
        rows = max(BLOCK_BYTES // max(row_bytes, 1), 1)
        # Arrays without elements have no blocks, however many rows they have.
        for first in range(0, self.shape[0] if row_bytes else 0, rows):
            yield first, np.asarray(self.read(slice(first, min(first + rows, self.shape[0]))))


@dataclass(frozen=True)
class GroupedArrays:
    """Arrays of a file, those of labels included, and attributes of its groups by name. The root's name is empty."""

    arrays: Sequence[Outgoing]
    groups: Mapping[str, Mapping[str, Any]]

    @classmethod
    def of(cls, arrays: Sequence[Outgoing], groups: Mapping[str, Mapping[str, Any]]) -> GroupedArrays:
        """Add an array for each coordinate that is kept with other arrays.

        Raises
        ------
        InvalidInputError
            If arrays of one group have different coordinates of one name.
        """
        made = {item.name: item for item in arrays}
        own = set(made)
        described = []
        for item in arrays:
            beside = []
            for coord in item.coords:
                name = posixpath.join(item.group, coord.name)
                if name != item.name:
                    labels = array_of_labels(name, item.key, coord)
                    # A stored array of that name stands for the labels, if it has the same elements.
                    _check_same(made.setdefault(name, labels), labels, is_stored=name in own)
                if coord.dims != (coord.name,):
                    beside.append(coord.name)
            described.append(_with_coordinates(item, beside))
        labels_alone = [item for name, item in made.items() if name not in own]
        return cls([*described, *labels_alone], groups)

    def scales(self) -> list[str]:
        """Return the names of the arrays that label an axis of others."""
        return sorted({scale for item in self.arrays for scale in self.scales_of(item).values()})

    def scales_of(self, item: Outgoing) -> dict[int, str]:
        """Return the names of the arrays that label the axes of an array."""
        found = {}
        for axis, (dim, length) in enumerate(zip(item.dims or (), item.shape, strict=False)):
            name = posixpath.join(item.group, dim)
            scale = self._by_name.get(name)
            if name != item.name and scale is not None and (scale.dims, scale.shape) == ((dim,), (length,)):
                found[axis] = name
        return found

    @functools.cached_property
    def _by_name(self) -> dict[str, Outgoing]:
        return {item.name: item for item in self.arrays}


def array_of_labels(name: str, key: str, coord: Coord) -> Outgoing:
    """Return labels as an array that is written beside those that they label."""
    values = coord.values
    if values.dtype.kind in "OT":
        # Labels are text, and files have text of one length.
        values = values.astype(str)
    return Outgoing(
        name, key, values.shape, values.dtype, lambda region: values[region], coord.attrs, coord.dims
    )


def _check_same(one: Outgoing, other: Outgoing, *, is_stored: bool) -> None:
    same = (one.dims, one.shape) == (other.dims, other.shape)
    if same:
        left, right = np.asarray(one.read(...)), np.asarray(other.read(...))
        has_nan = left.dtype.kind in "fcmM" and right.dtype.kind == left.dtype.kind
        same = bool(np.array_equal(left, right, equal_nan=has_nan))
    if not same:
        whose = "the stored array of that name" if is_stored else f"that of {one.key!r}"
        raise InvalidInputError(
            f"exporting {other.key!r}: its coordinate {posixpath.basename(other.name)!r} is not {whose}, and a group "
            "of a file has one of a name. Export them apart"
        )


def _with_coordinates(item: Outgoing, names: Sequence[str]) -> Outgoing:
    """Name coordinates beside those of the axes in an attribute, as NetCDF's conventions have it."""
    if not names or COORDINATES_ATTRIBUTE in item.attrs:
        return item
    attrs = {**item.attrs, COORDINATES_ATTRIBUTE: " ".join(names)}
    return Outgoing(item.name, item.key, item.shape, item.dtype, item.read, attrs, item.dims, item.coords)
