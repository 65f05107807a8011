"""A bound on the bytes that all requests together keep in memory."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

#: Bytes of bodies and answers, as they are on the wire. A body is copied about three times on its way to PostgreSQL.
MAX_IN_FLIGHT_BYTES: Final = 256 * 1024 * 1024

#: Seconds for which a request waits for others to let go, and for which the one whose turn it is makes others wait.
PATIENCE_S: Final = 10.0


class BusyError(Exception):
    """Other requests hold all the memory there is for them, and do not let go."""


class Room:
    """The bytes that requests may hold at once.

    Bytes are taken as they come, not as they are announced, so that an announcement costs nothing. When all are taken,
    requests wait, and one of them at a time goes on beyond the bound. It ends, and lets go: half a body never waits
    for the other half of another one without an end. At most the bound and one more body are in memory.
    """

    def __init__(self, nbytes: int = MAX_IN_FLIGHT_BYTES, patience_s: float = PATIENCE_S) -> None:
        self._nbytes = nbytes
        self._patience_s = patience_s
        self._used = 0
        self._turn = asyncio.Lock()

    @contextmanager
    def share(self) -> Iterator[Share]:
        """Give a request its share, which is given back at the end."""
        share = Share(self)
        try:
            yield share
        finally:
            share.release()

    @property
    def used_nbytes(self) -> int:
        return self._used


class Share:
    """The bytes that one request holds."""

    def __init__(self, room: Room) -> None:
        self._room = room
        self._held = 0
        # End of this request's turn to go beyond the bound, on the loop's clock; None while it is not its turn.
        self._turn_ends: float | None = None

    async def add(self, nbytes: int) -> None:
        """Hold more bytes; of zero, only wait until some are free.

        Raises
        ------
        BusyError
            None became free for a while, or it was this request's turn for too long.
        """
        room = self._room
        if self._turn_ends is not None and asyncio.get_running_loop().time() > self._turn_ends:
            raise BusyError
        if self._turn_ends is None and room._used + nbytes > room._nbytes:
            await self._wait(nbytes)
        self.hold(nbytes)

    async def _wait(self, nbytes: int) -> None:
        room = self._room
        try:
            async with asyncio.timeout(room._patience_s):
                await room._turn.acquire()
        except TimeoutError as error:
            raise BusyError from error
        if room._used + nbytes > room._nbytes:
            self._turn_ends = asyncio.get_running_loop().time() + room._patience_s
        else:
            room._turn.release()

    def hold(self, nbytes: int) -> None:
        """Hold bytes that are there already, whatever the bound."""
        self._held += nbytes
        self._room._used += nbytes

    def release(self) -> None:
        """Let go of everything."""
        self._room._used -= self._held
        self._held = 0
        if self._turn_ends is not None:
            self._turn_ends = None
            self._room._turn.release()
