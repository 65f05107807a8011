"""A simple store of zarr over the SDK's Storage client, one request at a time: the work of an afternoon."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr
from storage3.exceptions import StorageApiError
from zarr.abc.store import ByteRequest, OffsetByteRequest, RangeByteRequest, Store, SuffixByteRequest
from zarr.core.buffer import Buffer, BufferPrototype, default_buffer_prototype

import tensorage

FOLDER = "naive"


class NaiveStore(Store):
    """Objects of one user, below a folder of files."""

    def __init__(self, session: tensorage.BackendSession) -> None:
        super().__init__(read_only=False)
        self._bucket: Any = session.client.storage.from_("tensors")
        self._folder = f"{session.user_id}/{FOLDER}"
        self._turn = asyncio.Lock()

    def __eq__(self, other: object) -> bool:
        return self is other

    __hash__ = object.__hash__

    async def get(
        self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        try:
            data: bytes = await self._ask(lambda: self._bucket.download(self._name(key)))
        except StorageApiError as error:
            if str(error.status) == "404":
                return None
            raise
        # The SDK's download takes no range.
        return prototype.buffer.from_bytes(data[_span(byte_range, len(data))])

    async def set(self, key: str, value: Buffer) -> None:
        options = {"content-type": "application/octet-stream", "upsert": "true"}
        await self._ask(lambda: self._bucket.upload(self._name(key), value.to_bytes(), options))

    async def delete(self, key: str) -> None:
        await self._ask(lambda: self._bucket.remove([self._name(key)]))

    async def exists(self, key: str) -> bool:
        return await self.get(key, default_buffer_prototype()) is not None

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        return [await self.get(key, prototype, byte_range) for key, byte_range in key_ranges]

    async def list(self) -> AsyncIterator[str]:
        raise NotImplementedError("nothing that is measured lists")
        yield

    async def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        raise NotImplementedError(f"nothing that is measured lists {prefix!r}")
        yield

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        raise NotImplementedError(f"nothing that is measured lists {prefix!r}")
        yield

    @property
    def supports_writes(self) -> bool:
        return True

    @property
    def supports_deletes(self) -> bool:
        return True

    @property
    def supports_listing(self) -> bool:
        return False

    async def _ask(self, request: Callable[[], Any]) -> Any:
        async with self._turn:
            return request()

    def _name(self, key: str) -> str:
        return f"{self._folder}/{key}"


class NaiveZarr:
    """One array in a `NaiveStore`.

    Parameters
    ----------
    document
        Content of the array's ``zarr.json``.
    """

    def __init__(self, session: tensorage.BackendSession, document: dict[str, Any]) -> None:
        self._store = NaiveStore(session)
        self._document = json.dumps(document).encode()

    def write(self, array: npt.NDArray[Any]) -> None:
        prototype = default_buffer_prototype()
        asyncio.run(self._store.set("zarr.json", prototype.buffer.from_bytes(self._document)))
        zarr.open_array(self._store, mode="r+")[...] = array

    def read(self) -> npt.NDArray[Any]:
        return np.asarray(zarr.open_array(self._store, mode="r+")[...])


def _span(byte_range: ByteRequest | None, size: int) -> slice:
    match byte_range:
        case RangeByteRequest(start, end):
            return slice(start, end)
        case OffsetByteRequest(offset):
            return slice(offset, None)
        case SuffixByteRequest(suffix):
            return slice(max(size - suffix, 0), None)
        case _:
            return slice(None)
