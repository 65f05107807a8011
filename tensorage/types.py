"""Entries of the catalogue, shares and records of changes, as values."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

import numpy as np

from tensorage.ragged import Ragged, dtype_and_ragged

__all__ = [
    "COORDS_ATTRIBUTE",
    "END_BYTES",
    "AuditRecord",
    "Dataset",
    "Engine",
    "EngineChoice",
    "Share",
    "Usage",
]

#: Name of the attribute that holds coordinates: see `tensorage.model.coords`. No attribute of a user has this name.
COORDS_ATTRIBUTE = "tensorage.coords"

#: Bytes that a block keeps for each element of any length, beside the element's own: the place where it ends.
END_BYTES = 4

#: Engine that keeps an array: as blocks in the database, or as objects in Supabase Storage.
Engine = Literal["database", "storage"]

#: Choice of the engine for a new array. "auto" takes the better one.
EngineChoice = Literal["database", "storage", "auto"]


@dataclass(frozen=True, slots=True, repr=False)
class Share:
    """Permission of an owner for others to use an array, or everything below a prefix.

    Parameters
    ----------
    key
        Key of the array, or a prefix that ends with ``/``.
    owner
        E-mail address of the owner. None if the owner's account has no confirmed address.
    owner_id
        Id of the owner's account, which `tensorage.TensorStore.shared_by` takes, too.
    reader
        E-mail address of the account that may use it. None stands for every signed-in user.
    write
        True if the reader may append and assign, too.
    expires_at
        Time at which the share ends. None for never.
    """

    key: str
    owner: str | None
    owner_id: str
    reader: str | None
    write: bool = False
    expires_at: datetime | None = None
    created_at: datetime | None = None

    def __repr__(self) -> str:
        reader = "everybody" if self.reader is None else self.reader
        rights = "reads and writes" if self.write else "reads"
        end = "" if self.expires_at is None else f" until {_short(self.expires_at)}"
        return f"<Share {self.key!r} of {self.owner or self.owner_id}: {reader} {rights}{end}>"

    def _repr_html_(self) -> str:
        # Only notebooks need it.
        from tensorage.display.tables import share

        return share(self, datetime.now(UTC))

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Share:
        """Read a share that a function of the database answers with."""
        return cls(
            key=row["key"],
            owner=row["owner"],
            owner_id=row["owner_id"],
            reader=row["reader"],
            write=row["write"],
            expires_at=_time_of(row["expires_at"]),
            created_at=_time_of(row["created_at"]),
        )


#: Words before the detail of a record.
_DETAILS = {"shared": "with", "unshared": "with", "renamed": "formerly"}


@dataclass(frozen=True, slots=True)
class Usage:
    """Amounts that a user has stored, and may store.

    Parameters
    ----------
    arrays
        Number of arrays.
    bytes
        Bytes that count against the quota: elements with the overhead of their rows, objects, files, entries of the
        catalogue, and what is reserved for arrays that are being written.
    file_bytes
        The part of `bytes` that files take.
    quota_bytes, quota_arrays
        Most bytes and arrays that the user may store. None for any number.
    """

    arrays: int
    bytes: int
    file_bytes: int
    quota_bytes: int | None = None
    quota_arrays: int | None = None

    def _repr_html_(self) -> str:
        from tensorage.display.tables import usage

        return usage(self)


@dataclass(frozen=True, slots=True, repr=False)
class AuditRecord:
    """Record of something that was done to an array.

    Parameters
    ----------
    at
        Time at which it was done.
    action
        Kind of the action. ``"changed"`` stands for appends, assignments and new attributes. Changes by one user that
        follow each other within a minute are one record.
    key
        Key of the array, or prefix that was shared.
    actor
        E-mail address of the user who did it. None if the owner never shared with that address, and for somebody
        without one.
    actor_id
        Id of that user's account. None for the project itself.
    detail
        Former key of an array that was renamed. Address that was shared with, None for every signed-in user.
    """

    at: datetime
    action: Literal["created", "replaced", "changed", "renamed", "shared", "unshared", "deleted"]
    key: str
    actor: str | None
    actor_id: str | None
    detail: str | None

    def __repr__(self) -> str:
        detail = self.detail
        if detail is None and self.action in {"shared", "unshared"}:
            detail = "everybody"
        if self.action == "renamed":
            detail = repr(detail)
        more = "" if detail is None else f", {_DETAILS.get(self.action, 'detail')} {detail}"
        actor = self.actor or self.actor_id or "the project"
        return f"<AuditRecord {_short(self.at)}: {actor} {self.action} {self.key!r}{more}>"

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> AuditRecord:
        """Read a record that a function of the database answers with."""
        return cls(
            at=datetime.fromisoformat(row["at"]),
            action=row["action"],
            key=row["key"],
            actor=row["actor"],
            actor_id=row["actor_id"],
            detail=row["detail"],
        )


def _short(time: datetime) -> str:
    return time.isoformat(" ", "seconds")


def _time_of(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)


@dataclass(frozen=True, slots=True, repr=False)
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
        Dtype, always little-endian. For elements of any length, that of a sample's elements: `StringDType` for text,
        and ``S`` without a length for bytes.
    block_size
        Elements of the largest stored block.
    version
        Number that grows with every change, and never repeats under one key.
    owner
        E-mail address of the user whose array it is.
    user_id
        Id of the owner's account.
    is_shared
        True if anybody but the owner may use the array.
    stored_bytes
        Bytes of the stored elements: of blocks, or of compressed objects. None while the array is being written.
    fill
        Bytes of the element that stands for those never written. None if the array has all of its elements.
    shares
        Shares that let others use the array, if the entry comes from `tensorage.TensorStore.catalogue` and the array is
        the caller's own.
    coords
        Labels of the axes, as the catalogue keeps them: `tensorage.model.coords` decodes them.
    zarr
        Metadata of Zarr v3 of an array of Storage, as JSON, without its shape, attributes and dims.
    ragged
        Type of the elements, if they have any length: text, and the samples of a ragged array.
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
    stored_bytes: int | None = None
    fill: bytes | None = None
    shares: tuple[Share, ...] | None = None
    ragged: Ragged | None = None

    def __repr__(self) -> str:
        owner = "" if self.owner is None else f" of {self.owner}"
        shared = ", shared" if self.is_shared else ""
        return (
            f"<Dataset {self.key!r}{owner}, shape {self.shape}, {self.ragged or self.dtype}, {self.nbytes} bytes, "
            f"{self.engine}, {self.state}, version {self.version}{shared}>"
        )

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
        """Bytes of the elements. If they have any length, 0 while the array is being written.

        Elements of any length that Storage keeps count as they are stored: compressed.
        """
        if self.ragged is not None and self.engine == "storage":
            return self.stored_bytes or 0
        if self.ragged is not None:
            return max((self.stored_bytes or 0) - END_BYTES * self.size, 0)
        return self.size * self.dtype.itemsize

    @property
    def fill_value(self) -> Any:
        """Element that stands for those never written. None if the array has all of its elements."""
        return None if self.fill is None else np.frombuffer(self.fill, self.dtype)[0]

    @property
    def mean_bytes(self) -> int:
        """Bytes of an element: for elements of any length, the mean with the room of their ends, rounded up."""
        if self.ragged is not None:
            return END_BYTES + -(-self.nbytes // max(self.size, 1))
        return self.dtype.itemsize

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
        shares = row.get("shares")
        dtype, ragged = dtype_and_ragged(row["dtype"])
        return cls(
            id=row["id"],
            key=row["key"],
            shape=tuple(row["shape"]),
            dtype=dtype,
            ragged=ragged,
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
            stored_bytes=row["stored_bytes"],
            fill=None if row["fill"] is None else base64.b64decode(row["fill"]),
            shares=None if shares is None else tuple(map(Share.from_json, shares)),
        )
