"""The limit: the same blocks straight into the same PostgreSQL, over its binary protocol.

A plain table without row-level security, and asyncpg, the fastest client of PostgreSQL for Python, with as
many connections as tensorage has requests under way.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import asyncpg
import numpy as np
import numpy.typing as npt

CONNECTIONS = 4

#: Bytes of a block, as tensorage stores them.
BLOCK_BYTES = 784 * 4 * (1024 * 1024 // 4 // 784)


class Straight:
    """A table of blocks in the PostgreSQL at `url`, and connections to it."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._loop = asyncio.new_event_loop()
        self._connections: list[asyncpg.Connection] = []

    def __enter__(self) -> Straight:
        self._loop.run_until_complete(self._open())
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.run_until_complete(self._close())
        self._loop.close()

    def write(self, array: npt.NDArray[np.float32]) -> None:
        """Store an array, in place of the one before."""
        data = memoryview(array.reshape(-1).view(np.uint8))

        async def put(connection: asyncpg.Connection, at: int) -> None:
            block = data[at : at + BLOCK_BYTES]
            await connection.execute("insert into straight values (1, $1, $2, $3)", at, len(block), block)

        self._loop.run_until_complete(self._each(put, len(data)))

    def clear(self) -> None:
        self.execute("truncate straight")

    def execute(self, sql: str) -> None:
        self._loop.run_until_complete(self._connections[0].execute(sql))

    def fetch(self, query: str, *arguments: object) -> object:
        """Value of a query."""
        return self._loop.run_until_complete(self._connections[0].fetchval(query, *arguments))

    def read(self, out: npt.NDArray[np.float32]) -> None:
        """Read the array back into `out`."""
        data = memoryview(out.reshape(-1).view(np.uint8))

        async def get(connection: asyncpg.Connection, at: int) -> None:
            block = await connection.fetchval("select block from straight where id = 1 and index = $1", at)
            data[at : at + len(block)] = block

        self._loop.run_until_complete(self._each(get, len(data)))

    async def _open(self) -> None:
        self._connections = [await asyncpg.connect(self._url) for _ in range(CONNECTIONS)]
        await self._connections[0].execute(
            "create table if not exists straight (id bigint, index bigint, count int, block bytea, "
            "primary key (id, index)); alter table straight alter column block set storage external"
        )

    async def _close(self) -> None:
        await self._connections[0].execute("drop table straight")
        for connection in self._connections:
            await connection.close()

    async def _each(self, do: Callable[[asyncpg.Connection, int], Awaitable[None]], nbytes: int) -> None:
        """Do every block once, on whichever connection is free."""
        waiting = iter(range(0, nbytes, BLOCK_BYTES))

        async def work(connection: asyncpg.Connection) -> None:
            for at in waiting:
                await do(connection, at)

        await asyncio.gather(*(work(connection) for connection in self._connections))
