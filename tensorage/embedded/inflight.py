"""Limit on the memory that all requests together hold."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

#: Most bytes of bodies and answers, as sent. A body is copied about three times on its way to PostgreSQL.
MAX_IN_FLIGHT_BYTES: Final = 256 * 1024 * 1024

#: Seconds for which a request waits for memory, and for which one that exceeds the limit makes others wait.
PATIENCE_S: Final = 10.0


class BusyError(Exception):
    """Other requests hold all the memory, and release none."""


class Room:
    """Memory for the bytes of all requests.

    Bytes count when they arrive, not when a header announces them: an announcement costs nothing. At the limit requests
    wait, and one of them at a time may exceed it. That one ends and releases its bytes, so that no two half-received
    bodies wait for each other for ever. Memory holds at most the limit and one more body.
    """

    def __init__(self, nbytes: int = MAX_IN_FLIGHT_BYTES, patience_s: float = PATIENCE_S) -> None:
        self._nbytes = nbytes
        self._patience_s = patience_s
        self._used = 0
        self._turn = asyncio.Lock()

    @contextmanager
    def share(self) -> Iterator[Share]:
        """Lend memory to a request until the end of the block."""
        share = Share(self)
        try:
            yield share
        finally:
            share.release()

    @property
    def used_nbytes(self) -> int:
        return self._used


class Share:
    """Memory that one request holds."""

    def __init__(self, room: Room) -> None:
        self._room = room
        self._held = 0
        # Time on the loop's clock until which this request may exceed the limit; None if it may not.
        self._turn_ends: float | None = None

    async def add(self, nbytes: int) -> None:
        """Hold more bytes, once they are free. With zero bytes, only wait until memory is below the limit.

        Raises
        ------
        BusyError
            No memory became free in time, or this request has exceeded the limit for too long.
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
        """Hold bytes that are in memory already, even beyond the limit."""
        self._held += nbytes
        self._room._used += nbytes

    def release(self) -> None:
        """Release all bytes of this request."""
        self._room._used -= self._held
        self._held = 0
        if self._turn_ends is not None:
            self._turn_ends = None
            self._room._turn.release()
