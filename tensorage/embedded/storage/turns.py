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
_PATIENCE_S: Final = 2.0


class Turn:
    """Lock of one upload. Its holder loses it if another request has waited for too long."""

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.users = 0
        self._receiving: asyncio.Task[None] | None = None

    async def receive(self, receiving: Coroutine[Any, Any, None]) -> Exception | None:
        """Receive a body to its end, or until an interruption, which is returned. Bytes that arrived are good."""
        task = self._receiving = asyncio.create_task(receiving)
        try:
            await asyncio.wait([task])
        finally:
            self._receiving = None
            task.cancel()
        if task.cancelled():
            return upload_taken_over()
        error = task.exception()
        if error is not None and not isinstance(error, ClientDisconnect):
            raise error
        return error

    def stop(self) -> None:
        """Interrupt the request that is receiving, if one is."""
        if self._receiving is not None:
            self._receiving.cancel()


class Turns:
    """The locks of all uploads that have requests."""

    def __init__(self) -> None:
        self._turns: dict[str, Turn] = {}

    @asynccontextmanager
    async def turn(self, upload_id: str) -> AsyncIterator[Turn]:
        """Hold the lock of an upload. A request that holds it and still receives is interrupted after a while."""
        turn = self._turns.setdefault(upload_id, Turn())
        turn.users += 1
        try:
            await _acquire(turn)
            try:
                yield turn
            finally:
                turn.lock.release()
        finally:
            turn.users -= 1
            if not turn.users:
                del self._turns[upload_id]


async def _acquire(turn: Turn) -> None:
    while True:
        try:
            async with asyncio.timeout(_PATIENCE_S):
                await turn.lock.acquire()
                return
        except TimeoutError:
            turn.stop()
