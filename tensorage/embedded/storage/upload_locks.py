"""Locks of resumable uploads: one request at a time.

The newest request wins: its client has given up the others.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any, Final

from starlette.requests import ClientDisconnect

from tensorage.embedded.storage.errors import upload_taken_over

#: Seconds for which a request may go on receiving while another one waits. A client whose connection broke continues
#: after this time: the server may not have noticed that the old request is dead.
_MAX_WAIT_S: Final = 2.0


class UploadLock:
    """Lock of one upload. Another request that has waited for too long interrupts the holder's receiving."""

    def __init__(self) -> None:
        self.mutex = asyncio.Lock()
        self.users = 0
        self._receiving: asyncio.Task[None] | None = None

    async def receive(self, receiving: Coroutine[Any, Any, None]) -> Exception | None:
        """Receive a body to its end, or until an interruption, which is returned. Bytes that arrived are good."""
        task = self._receiving = asyncio.create_task(receiving)
        try:
            await asyncio.wait([task])
        finally:
            self._receiving = None
            # Has an effect only if this request is cancelled: the task must not outlive it.
            task.cancel()
        if task.cancelled():
            return upload_taken_over()
        error = task.exception()
        if error is not None and not isinstance(error, ClientDisconnect):
            raise error
        return error

    def interrupt(self) -> None:
        """Interrupt the request that is receiving, if one is."""
        if self._receiving is not None:
            self._receiving.cancel()


class UploadLocks:
    """The locks of all uploads that have requests."""

    def __init__(self) -> None:
        self._locks: dict[str, UploadLock] = {}

    @asynccontextmanager
    async def hold(self, upload_id: str) -> AsyncIterator[UploadLock]:
        """Hold the lock of an upload. A request that holds it and still receives is interrupted after a while."""
        lock = self._locks.setdefault(upload_id, UploadLock())
        lock.users += 1
        try:
            await _acquire(lock)
            try:
                yield lock
            finally:
                lock.mutex.release()
        finally:
            lock.users -= 1
            if not lock.users:
                del self._locks[upload_id]


async def _acquire(lock: UploadLock) -> None:
    while True:
        try:
            async with asyncio.timeout(_MAX_WAIT_S):
                await lock.mutex.acquire()
                return
        except TimeoutError:
            lock.interrupt()
