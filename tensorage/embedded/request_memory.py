"""Limit on the memory that all requests together hold."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

#: Most bytes of bodies and answers, as sent. A body is copied about three times on its way to PostgreSQL.
MAX_HELD_BYTES: Final = 256 * 1024 * 1024

#: Seconds for which a request waits for memory, and for which one that exceeds the limit makes others wait.
MAX_WAIT_S: Final = 10.0


class BusyError(Exception):
    """Other requests hold all the memory, and release none."""


class RequestMemory:
    """Memory for the bytes of all requests.

    Bytes count when they arrive, not when a header announces them: an announcement costs nothing. At the limit requests
    wait, and one of them at a time may exceed it. That one ends and releases its bytes, so that no two half-received
    bodies wait for each other for ever. Memory holds at most the limit and one more body.
    """

    def __init__(self, nbytes: int = MAX_HELD_BYTES, max_wait_s: float = MAX_WAIT_S) -> None:
        self._nbytes = nbytes
        self._max_wait_s = max_wait_s
        self._used = 0
        # Held by the only request that may exceed the limit.
        self._turn = asyncio.Lock()

    @contextmanager
    def lend(self) -> Iterator[HeldMemory]:
        """Lend memory to a request until the end of the block."""
        held = HeldMemory(self)
        try:
            yield held
        finally:
            held.release()

    @property
    def used_nbytes(self) -> int:
        return self._used


class HeldMemory:
    """Memory that one request holds."""

    def __init__(self, memory: RequestMemory) -> None:
        self._memory = memory
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
        memory = self._memory
        # All others wait for the request that exceeds the limit: it may do so only for a while.
        if self._turn_ends is not None and asyncio.get_running_loop().time() > self._turn_ends:
            raise BusyError
        if self._turn_ends is None and memory._used + nbytes > memory._nbytes:
            await self._wait(nbytes)
        self.hold(nbytes)

    async def _wait(self, nbytes: int) -> None:
        memory = self._memory
        try:
            async with asyncio.timeout(memory._max_wait_s):
                await memory._turn.acquire()
        except TimeoutError as error:
            raise BusyError from error
        if memory._used + nbytes > memory._nbytes:
            self._turn_ends = asyncio.get_running_loop().time() + memory._max_wait_s
        else:
            # Memory became free during the wait. Another request may exceed the limit.
            memory._turn.release()

    def hold(self, nbytes: int) -> None:
        """Hold bytes that are in memory already, even beyond the limit."""
        self._held += nbytes
        self._memory._used += nbytes

    def release(self) -> None:
        """Release all bytes of this request."""
        self._memory._used -= self._held
        self._held = 0
        if self._turn_ends is not None:
            self._turn_ends = None
            self._memory._turn.release()
