"""One request at a time for each resumable upload; whoever comes later has the newer word of the client."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any, Final

from starlette.requests import ClientDisconnect

from tensorage.embedded.storage.errors import upload_taken_over

#: How long a request that receives may go on when another one waits. A client whose connection broke, and whose
#: old request nobody told of it, is back after this.
_PATIENCE_S: Final = 2.0


class Turn:
    """The right to go on with an upload, as long as nobody asks for it for too long."""

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.users = 0
        self._receiving: asyncio.Task[None] | None = None

    async def receive(self, receiving: Coroutine[Any, Any, None]) -> Exception | None:
        """Receive a body: to its end, or until what is returned came between. What came is good in both cases."""
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
        """Stop receiving."""
        if self._receiving is not None:
            self._receiving.cancel()


class Turns:
    """The turns of all uploads that somebody is at."""

    def __init__(self) -> None:
        self._turns: dict[str, Turn] = {}

    @asynccontextmanager
    async def turn(self, upload_id: str) -> AsyncIterator[Turn]:
        """Wait until it is our turn: a while for who was first, then not for the rest of what it receives."""
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
