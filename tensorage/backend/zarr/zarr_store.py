"""A stored array as a store of zarr, for whatever reads Zarr: zarr itself, xarray, dask.

What a reader asks for by its key is answered in one of these ways:

1. ``zarr.json`` is made from the array's entry in the catalogue. Nothing is fetched.
2. The index of a shard is made from what the catalogue says of the shard, which has been asked for with those of
   its neighbours. No object is read for it.
3. Other bytes of ``c/...`` are read from the shard's object, by Range where not all of them are wanted.
4. A shard without an object, and a key that is none of the array's, are not there.

A reader of Zarr takes what is not there for fill values. So nothing else may look like it: an object that is lost
or that this user may not read, and an array that has changed, are raised as errors.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterable
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
from tensorage.backend.zarr.zarr_keys import byte_extent, documents_of, number_at
from tensorage.errors import ChangedError, InvalidInputError
from tensorage.model.memory import new_array
from tensorage.types import Dataset

__all__ = ["CatalogueStore"]

#: The catalogue is asked for a page of neighbouring shards: that part of what it might be asked for, about 64 KiB, ...
_PAGES_PER_REQUEST = 64

#: ... and so many pages are kept.
_MAX_PAGES = 64


class CatalogueStore(Store):
    """One array of Storage as it was opened, for reading.

    Parameters
    ----------
    transfer
        Gives the byte mover: another one after a fork. The store can be pickled if this can.
    dataset
        The array, which is read in this version.
    as_group
        By default the array is the root of the store. With a name, the root is a group, and this is the name of
        the array in it: xarray opens groups, and takes the array for a variable of that name. Its dimensions are
        those of the array, and ``dim_0``, ``dim_1``, ... if they have no names.

    Raises
    ------
    InvalidInputError
        If the array is kept by another engine, or `as_group` can be no name in a group of Zarr.

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
        self._names: dict[int, str] = {}
        self._known: _Shards | None = None

    # Reading --------------------------------------------------------------------------------------------

    async def get(
        self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """The bytes of a key, or a range of them; None if it is not there.

        Raises
        ------
        ChangedError
            If the array is not what it was when it was opened.
        IncompleteTensorError, CorruptTensorError, PermissionDeniedError
            If an object is lost, is not as long as it was, or may not be read.
        InvalidInputError
            If the range begins behind the end.
        """
        await self._ensure_open()
        document = self._documents.get(key)
        if document is not None:
            first, after = byte_extent(byte_range, len(document))
            return prototype.buffer.from_bytes(document[first:after])
        number = self._number_at(key)
        if number is None:
            return None
        data = await asyncio.to_thread(self.shards.read, number, byte_range)
        return None if data is None else prototype.buffer.from_bytes(data)

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        """`get` for several keys and ranges, in their order."""
        return list(await asyncio.gather(*(self.get(key, prototype, wanted) for key, wanted in key_ranges)))

    async def exists(self, key: str) -> bool:
        return key in self._documents or await self._entry_at(key) is not None

    async def getsize(self, key: str) -> int:
        """Bytes of a key, which are not read for that.

        Raises
        ------
        FileNotFoundError
            If it is not there.
        """
        document = self._documents.get(key)
        if document is not None:
            return len(document)
        entry = await self._entry_at(key)
        if entry is None:
            raise FileNotFoundError(key)
        return entry.nbytes

    # Listing --------------------------------------------------------------------------------------------

    async def list(self) -> AsyncIterator[str]:
        """Every key that is there."""
        for key in self._documents:
            yield key
        async for key in self._shard_keys():
            yield key

    async def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        """Every key that begins with `prefix`."""
        async for key in self.list():
            if key.startswith(prefix):
                yield key

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        """What is right below `prefix`: for the root no more is asked of the catalogue than whether it has shards."""
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
                # All shards are below the same name.
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
        """The same store again.

        Raises
        ------
        InvalidInputError
            If it is to be written to.
        """
        if not read_only:
            self._check_writable()
        return type(self)(self._transfer, self.dataset, as_group=self._as_group)

    # What every store has -------------------------------------------------------------------------------

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
        # Without connections and what they brought.
        return partial(type(self), as_group=self._as_group), (self._transfer, self.dataset)

    # Parts ----------------------------------------------------------------------------------------------

    @property
    def shards(self) -> _Shards:
        transfer, known = self._transfer(), self._known
        if known is None or known.transfer is not transfer:
            # At first, and after a fork: neither connections nor locks are shared.
            known = self._known = _Shards(transfer, self.dataset, self.codec, self._names)
        return known

    def _number_at(self, key: str) -> int | None:
        if not key.startswith(self._root):
            return None
        return number_at(self.codec.layout, key.removeprefix(self._root))

    async def _entry_at(self, key: str) -> ShardRecord | None:
        """What the catalogue says of a key, if that is a shard with an object."""
        number = self._number_at(key)
        if number is None:
            return None
        entry = await asyncio.to_thread(self.shards.entry, number)
        return entry if entry.name else None

    async def _shard_keys(self) -> AsyncIterator[str]:
        """Keys of the shards that have objects."""
        for page in range(self.shards.page_count):
            for number in await asyncio.to_thread(self.shards.stored_numbers, page):
                yield self._root + self.codec.layout.key_of(number)


class _Shards:
    """The shards of an array as one process sees them. Safe to use from many threads.

    Parameters
    ----------
    names
        Names of objects that were used, by the shard's number. An append replaces objects of an array that is still
        readable as it was opened; a reader that has the index of one must not get chunks of another.
    """

    def __init__(
        self, transfer: Transfer, dataset: Dataset, codec: ShardCodec, names: dict[int, str]
    ) -> None:
        self.transfer = transfer
        self._reader = Reader(Work.reading(transfer, dataset), codec)
        self._names = names
        self.pages: dict[int, dict[int, ShardRecord]] = {}
        self._lock = threading.Lock()
        # Readers of Zarr ask for more at once than the backend has connections.
        self._room = threading.BoundedSemaphore(transfer.parallel)
        self._page_extent = max(numbers_per_request(codec.layout) // _PAGES_PER_REQUEST, 1)

    @property
    def page_count(self) -> int:
        return -(-self._layout.shard_count // self._page_extent)

    def stored_numbers(self, page: int) -> list[int]:
        """Numbers of the shards of a page that have objects."""
        return [entry.number for entry in self._page(page).values() if entry.name]

    def entry(self, number: int) -> ShardRecord:
        """What the catalogue says of a shard: of the same object whenever it is asked."""
        entry = self._page(number // self._page_extent)[number]
        if self._names.setdefault(number, entry.name) != entry.name:
            raise ChangedError(
                f"{self._reader.dataset.key!r} has changed since it was opened. Open it again."
            )
        return entry

    def read(self, number: int, byte_range: ByteRequest | None) -> bytes | memoryview | None:
        """Bytes of the object of a shard; None if it has none."""
        entry = self.entry(number)
        if not entry.name:
            return None
        if self._is_index(byte_range):
            self._reader.ranges(entry)
            return self._reader.codec.encode_index(entry.index)
        first, after = byte_extent(byte_range, entry.nbytes)
        asked = f"reading {entry.name!r} of {self._reader.dataset.key!r}"
        data = new_array((after - first,), np.dtype(np.uint8), asked).data
        if not data:
            return data
        try:
            with self._room:
                Bucket(self.transfer).get_into(self._reader.dataset, entry, first, data)
        except LostObjectError as error:
            raise self._reader.changed(entry, error) from error
        return data

    @property
    def _layout(self) -> Layout:
        return self._reader.codec.layout

    def _is_index(self, byte_range: ByteRequest | None) -> bool:
        """Whether these are the bytes of the index, and of nothing else."""
        nbytes = self._reader.codec.index_nbytes
        if not nbytes:
            return False
        if self._layout.index_location == "start":
            return byte_range == RangeByteRequest(0, nbytes)
        return byte_range == SuffixByteRequest(nbytes)

    def _page(self, page: int) -> dict[int, ShardRecord]:
        first = page * self._page_extent
        numbers = range(first, min(first + self._page_extent, self._layout.shard_count))
        # Locked also while it is asked for: many that need the same page ask once.
        with self._lock:
            entries = self.pages.pop(page, None)
            if entries is None:
                entries = fetch_records(self._reader.work, self._layout, numbers)
            # In order of their last use.
            self.pages[page] = entries
            if len(self.pages) > _MAX_PAGES:
                del self.pages[next(iter(self.pages))]
        return entries


def _child(key: str, folder: str) -> str:
    return key.removeprefix(folder).partition("/")[0]
