"""The catalogue's entry of an array, and the dtypes that can be stored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from tensorage.errors import DTypeError

__all__ = ["COORDS_ATTRIBUTE", "Dataset", "Engine", "EngineChoice", "storable_dtype"]

#: Name of the attribute that holds coordinates: see `tensorage.model.coords`. No attribute of a user has this name.
COORDS_ATTRIBUTE = "tensorage.coords"

#: Engine that keeps an array: as blocks in the database, or as objects in Supabase Storage.
Engine = Literal["database", "storage"]

#: Choice of the engine for a new array. "auto" takes the better one.
EngineChoice = Literal["database", "storage", "auto"]

#: Kinds of ``numpy.dtype.kind`` whose elements have a fixed number of plain bytes.
_STORABLE_KINDS = frozenset("biufcmM")


@dataclass(frozen=True, slots=True)
class Dataset:
    """The catalogue's entry of one array.

    Parameters
    ----------
    id
        The entry's number in its project. An array that is overwritten gets another one.
    key
        The name under which its owner stored it.
    shape
        Shape in elements, slowest axis first. ``()`` is a scalar.
    dtype
        Dtype, always little-endian.
    block_size
        Elements of the largest stored block.
    version
        Number that grows with every change, and never repeats under one key.
    owner
        E-mail address of the user who stored the array.
    coords
        Labels of the axes, as the catalogue keeps them: `tensorage.model.coords` decodes them.
    zarr
        Metadata of Zarr v3 of an array of Storage, as JSON, without its shape, attributes and dims.
    """

    id: int
    key: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    block_size: int
    engine: Engine = "database"
    is_shared: bool = False
    state: Literal["staged", "committed"] = "committed"
    version: int = 1
    owner: str | None = None
    user_id: str | None = None
    attrs: Mapping[str, Any] = field(default_factory=dict)
    dims: tuple[str, ...] | None = None
    created_at: datetime | None = None
    updated_at: datetime | None = None
    zarr: str | None = None
    coords: Mapping[str, Any] | None = None

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of elements."""
        product = 1
        for extent in self.shape:
            product *= extent
        return product

    @property
    def nbytes(self) -> int:
        """Bytes of the elements, as stored."""
        return self.size * self.dtype.itemsize

    @property
    def type(self) -> str:
        """Name of the dtype, such as ``float32``."""
        return self.dtype.name

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Dataset:
        """Read the entry that a function of the database answers with."""
        # The catalogue keeps coordinates among the attributes. Users see them apart.
        attrs = dict(row["attrs"])
        coords = attrs.pop(COORDS_ATTRIBUTE, None)
        return cls(
            id=row["id"],
            key=row["key"],
            shape=tuple(row["shape"]),
            dtype=np.dtype(row["dtype"]),
            block_size=row["chunk"],
            engine=row["engine"],
            is_shared=row["is_shared"],
            state=row["state"],
            version=row["version"],
            owner=row["owner"],
            user_id=row["user_id"],
            attrs=attrs,
            dims=None if row["dims"] is None else tuple(row["dims"]),
            created_at=datetime.fromisoformat(row["created_at"]),
            updated_at=datetime.fromisoformat(row["updated_at"]),
            zarr=row["zarr"],
            coords=coords,
        )


def storable_dtype(dtype: npt.DTypeLike) -> np.dtype[Any]:
    """Return the little-endian form of a dtype, if its arrays can be stored.

    Raises
    ------
    DTypeError
        For objects, strings, structured and other dtypes whose elements are not plain numbers.
    """
    try:
        wanted = np.dtype(dtype)
    except TypeError as error:
        raise DTypeError(f"{dtype!r} is no numpy dtype: give one such as 'float32'") from error
    if wanted.kind not in _STORABLE_KINDS or wanted.itemsize == 0:
        raise DTypeError(
            f"arrays of dtype {wanted} cannot be stored: only booleans, integers, floating-point and complex "
            "numbers, datetime64 and timedelta64 can. Convert it first, for example with .astype('float64')"
            + (", or store each field on its own." if wanted.names else ".")
        )
    return wanted.newbyteorder("<")
