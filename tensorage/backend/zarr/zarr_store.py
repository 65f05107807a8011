"""A stored array as a store of zarr, for all that reads Zarr: zarr itself, xarray, dask.

A request for a key is answered in one of these ways:

1. ``zarr.json`` is made from the array's entry in the catalogue. Nothing is fetched.
2. The index of a shard is made from the shard's record, which is fetched together with its neighbours' records. No
   object is read.
3. Other bytes of ``c/...`` are read from the shard's object, by a range if not all of them are wanted.
4. A shard without an object, and a key that does not belong to the array, are missing.

A reader of Zarr takes a missing object for fill values. Nothing else may look like a missing object: an error is raised
for an object that is lost or that this user may not read, and for an array that has changed.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from zarr.abc.buffer import Buffer, BufferPrototype
from zarr.abc.store import ByteRequest, RangeByteRequest, Store, SuffixByteRequest

from tensorage.backend.transfer import Transfer, Work
from tensorage.backend.zarr.bucket import Bucket, LostObjectError
from tensorage.backend.zarr.codec import ShardCodec
from tensorage.backend.zarr.layout import Layout
from tensorage.backend.zarr.reading import Reader
from tensorage.backend.zarr.shard_records import ShardRecord, fetch_records, numbers_per_request
from tensorage.backend.zarr.zarr_engine import codec_of
from tensorage.backend.zarr.zarr_keys import byte_bounds, documents_of, number_at
from tensorage.errors import ChangedError, InvalidInputError
from tensorage.model.memory import new_array
from tensorage.types import Dataset

__all__ = ["CatalogueStore"]

#: Records of neighbouring shards are fetched as a page of about 64 KiB: so many pages would fill a request.
PAGES_PER_REQUEST = 64

#: Most pages that are kept.
MAX_PAGES = 64


class CatalogueStore(Store):
    """One version of an array of Storage, for reading.

    Parameters
    ----------
    transfer
        Returns the byte mover: another one after a fork. The store can be pickled if `transfer` can.
    dataset
        Entry of the array, in the version that is read.
    as_group
        Name of the array in a group that is the root of the store, as xarray wants it. By default the array itself is
        the root. Dimensions without names are called ``dim_0``, ``dim_1``, ...

    Raises
    ------
    InvalidInputError
        If the array is kept by another engine, or a group of Zarr cannot have the name `as_group`.

    Examples
    --------
    .. code-block:: python

        zarr.open_array(CatalogueStore(transfer, dataset))
        dask.array.from_zarr(CatalogueStore(transfer, dataset))
        xarray.open_zarr(CatalogueStore(transfer, dataset, as_group="temperature"))["temperature"]
    """

    supports_writes = False
    supports_deletes = False
    supports_listing = True

    def __init__(
        self, transfer: Callable[[], Transfer], dataset: Dataset, *, as_group: str | None = None
    ) -> None:
        super().__init__(read_only=True)
        if dataset.engine != "storage":
            raise InvalidInputError(
                f"{dataset.key!r} is kept by engine={dataset.engine!r}, and only arrays of engine='storage' are in "
                f"the Zarr format: store.copy({dataset.key!r}, new_key, engine='storage') makes it one"
            )
        self.dataset = dataset
        self._transfer = transfer
        self._as_group = as_group
        self.codec = codec_of(dataset)
        self._root = "" if as_group is None else f"{as_group}/"
        self._documents = documents_of(dataset, self.codec.layout, as_group)
        self._fingerprints: dict[int, str] = {}
        self._known: _Shards | None = None

    # Reading --------------------------------------------------------------------------------------------

    async def get(
        self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """Return the bytes of a key, or a range of them; None if the key is missing.

        Raises
        ------
        ChangedError
            If the array has changed since it was opened.
        IncompleteTensorError, CorruptTensorError, PermissionDeniedError
            If an object is lost, has another length than was written, or may not be read.
        InvalidInputError
            If the range begins behind the end of the object.
        """
        await self._ensure_open()
        document = self._documents.get(key)
        if document is not None:
            first, after = byte_bounds(byte_range, len(document))
            return prototype.buffer.from_bytes(document[first:after])
        number = self._number_at(key)
        if number is None:
            return None
        data = await asyncio.to_thread(self.shards.read, number, byte_range)
        return None if data is None else prototype.buffer.from_bytes(data)

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        """Return the bytes of several keys and ranges, in their order: see `get`."""
        return list(await asyncio.gather(*(self.get(key, prototype, wanted) for key, wanted in key_ranges)))

    async def exists(self, key: str) -> bool:
        return key in self._documents or await self._record_at(key) is not None

    async def getsize(self, key: str) -> int:
        """Return the number of bytes of a key, without reading them.

        Raises
        ------
        FileNotFoundError
            If the key is missing.
        """
        document = self._documents.get(key)
        if document is not None:
            return len(document)
        record = await self._record_at(key)
        if record is None:
            raise FileNotFoundError(key)
        return record.encoded_nbytes

    # Listing --------------------------------------------------------------------------------------------

    async def list(self) -> AsyncIterator[str]:
        """Yield every key."""
        for key in self._documents:
            yield key
        async for key in self._shard_keys():
            yield key

    async def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        """Yield every key that begins with `prefix`."""
        async for key in self.list():
            if key.startswith(prefix):
                yield key

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        """Yield the names right below `prefix`. For the root, records are fetched until one has an object."""
        folder = f"{prefix.rstrip('/')}/" if prefix.rstrip("/") else ""
        names = {_child(key, folder) for key in self._documents if key.startswith(folder)}
        for name in names:
            yield name
        if not folder.startswith(self._root):
            return
        async for key in self._shard_keys():
            if key.startswith(folder) and _child(key, folder) not in names:
                names.add(_child(key, folder))
                yield _child(key, folder)
            if folder == self._root:
                # All shards are below the same name, so one is enough.
                return

    # Writing: refused -----------------------------------------------------------------------------------

    def _check_writable(self) -> None:
        raise InvalidInputError(
            f"{self.dataset.key!r} as a store of zarr is read-only: write to it by store[{self.dataset.key!r}, ...] = "
            "value, and store another array by store.import_zarr(key, array)"
        )

    async def set(self, key: str, value: Buffer) -> None:  # noqa: ARG002 - as zarr has it
        self._check_writable()

    async def delete(self, key: str) -> None:  # noqa: ARG002
        self._check_writable()

    async def delete_dir(self, prefix: str) -> None:  # noqa: ARG002
        self._check_writable()

    async def clear(self) -> None:
        self._check_writable()

    def with_read_only(self, read_only: bool = False) -> CatalogueStore:
        """Return the same store again.

        Raises
        ------
        InvalidInputError
            If a writable store is asked for.
        """
        if not read_only:
            self._check_writable()
        return type(self)(self._transfer, self.dataset, as_group=self._as_group)

    # Equality and pickling -------------------------------------------------------------------------------

    def __eq__(self, value: object) -> bool:
        return (
            isinstance(value, CatalogueStore)
            and self.dataset == value.dataset
            and self._as_group == value._as_group
        )

    def __hash__(self) -> int:
        return hash((self.dataset.id, self.dataset.version, self._as_group))

    def __str__(self) -> str:
        return f"tensorage://{self.dataset.key}"

    def __repr__(self) -> str:
        return f"<CatalogueStore of {self.dataset.key!r}, version {self.dataset.version}>"

    def __reduce__(self) -> tuple[Any, ...]:
        # Connections and fetched records stay in their process.
        return partial(type(self), as_group=self._as_group), (self._transfer, self.dataset)

    # Shards ---------------------------------------------------------------------------------------------

    @property
    def shards(self) -> _Shards:
        transfer, known = self._transfer(), self._known
        if known is None or known.transfer is not transfer:
            # A forked process gets another transfer, since it may share neither connections nor locks.
            known = self._known = _Shards(transfer, self.dataset, self.codec, self._fingerprints)
        return known

    def _number_at(self, key: str) -> int | None:
        if not key.startswith(self._root):
            return None
        return number_at(self.codec.layout, key.removeprefix(self._root))

    async def _record_at(self, key: str) -> ShardRecord | None:
        """Return the record of the shard at a key, if the shard has an object."""
        number = self._number_at(key)
        if number is None:
            return None
        record = await asyncio.to_thread(self.shards.record, number)
        return None if record.is_empty else record

    async def _shard_keys(self) -> AsyncIterator[str]:
        """Yield the keys of the shards that have objects."""
        for page in range(self.shards.page_count):
            for number in await asyncio.to_thread(self.shards.stored_numbers, page):
                yield self._root + self.codec.layout.key_of(number)


class _Shards:
    """The shards of an array as one process sees them. Safe to use from many threads.

    Parameters
    ----------
    fingerprints
        Fingerprints of the shards that were used, by number. An append replaces shards, although the array stays
        readable as it was opened. A reader that has the index of one object must not get chunks of another.
    """

    def __init__(
        self, transfer: Transfer, dataset: Dataset, codec: ShardCodec, fingerprints: dict[int, str]
    ) -> None:
        self.transfer = transfer
        self._reader = Reader(Work.reading(transfer, dataset), codec)
        self._fingerprints = fingerprints
        self.pages: dict[int, dict[int, ShardRecord]] = {}
        self._lock = threading.Lock()
        # Readers of Zarr ask for more objects at once than the backend has connections.
        self._room = threading.BoundedSemaphore(transfer.parallel)
        self._page_length = max(numbers_per_request(codec.layout) // PAGES_PER_REQUEST, 1)

    @property
    def page_count(self) -> int:
        return -(-self._layout.shard_count // self._page_length)

    def stored_numbers(self, page: int) -> list[int]:
        """Return the numbers of the shards of a page that have objects."""
        return [record.number for record in self._page(page).values() if not record.is_empty]

    def record(self, number: int) -> ShardRecord:
        """Return the record of a shard, which is of the same content each time.

        Behind a tail comes the index, so that an object and its tail read as an object of Zarr.

        Raises
        ------
        ChangedError
            If the shard has another content than before.
        """
        record = self._page(number // self._page_length)[number]
        if self._fingerprints.setdefault(number, record.fingerprint) != record.fingerprint:
            raise ChangedError(
                f"{self._reader.dataset.key!r} has changed since it was opened. Open it again."
            )
        if not record.tail:
            return record
        return replace(record, tail=record.tail + self._reader.codec.encode_index(record.index))

    def read(self, number: int, byte_range: ByteRequest | None) -> bytes | memoryview | None:
        """Return bytes of the object of a shard; None if there is no object."""
        record = self.record(number)
        if record.is_empty:
            return None
        if self._is_index(byte_range):
            self._reader.ranges(record)
            return self._reader.codec.encode_index(record.index)
        first, after = byte_bounds(byte_range, record.encoded_nbytes)
        asked = f"reading {record.name!r} of {self._reader.dataset.key!r}"
        data = new_array((after - first,), np.dtype(np.uint8), asked).data
        if not data:
            return data
        try:
            with self._room:
                Bucket(self.transfer).get_into(self._reader.dataset, record, first, data)
        except LostObjectError as error:
            raise self._reader.changed_error(record, error) from error
        return data

    @property
    def _layout(self) -> Layout:
        return self._reader.codec.layout

    def _is_index(self, byte_range: ByteRequest | None) -> bool:
        """Tell whether a range is exactly that of the index."""
        nbytes = self._reader.codec.index_nbytes
        if not nbytes:
            return False
        if self._layout.index_location == "start":
            return byte_range == RangeByteRequest(0, nbytes)
        return byte_range == SuffixByteRequest(nbytes)

    def _page(self, page: int) -> dict[int, ShardRecord]:
        first = page * self._page_length
        numbers = range(first, min(first + self._page_length, self._layout.shard_count))
        # The lock is held during the request, so that threads which need the same page ask once.
        with self._lock:
            records = self.pages.pop(page, None)
            if records is None:
                records = fetch_records(self._reader.work, self._layout, numbers)
            # Put last: pages are kept in order of their last use.
            self.pages[page] = records
            if len(self.pages) > MAX_PAGES:
                del self.pages[next(iter(self.pages))]
        return records


def _child(key: str, folder: str) -> str:
    return key.removeprefix(folder).partition("/")[0]
