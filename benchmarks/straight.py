"""The limit: the same blocks straight into the same PostgreSQL, over its binary protocol.

The table has no row-level security. The client is asyncpg, the fastest one of PostgreSQL for Python, with as many
connections as tensorage has requests under way.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import asyncpg
import numpy as np
import numpy.typing as npt

CONNECTIONS = 4

#: Bytes of an image, and of a block of them as tensorage stores it.
IMAGE_BYTES = 28 * 28 * 4
BLOCK_BYTES = 1024 * 1024 // IMAGE_BYTES * IMAGE_BYTES

_PUT = "insert into straight values (1, $1, $2, $3)"
_GET = "select block from straight where id = 1 and index = $1"

#: Runs of $3 bytes at the positions $1, each inside of a block of $2 bytes, one after the other.
_GATHER = """
    select string_agg((select substr(s.block, (p.at % $2)::int + 1, $3) from straight s
                        where s.id = 1 and s.index = p.at / $2 * $2), '')
      from unnest($1::bigint[]) p(at)"""

#: Elements of 4 bytes at the positions $2, $2 + $3, ... of one block. The block is decompressed once, and not for each.
_PICK = """
    select string_agg(substr(b.block, at, 4), '')
      from (select s.block || ''::bytea as block, s.count from straight s where s.id = 1 and s.index = $1 offset 0) b,
           generate_series($2::int + 1, b.count, $3::int) at"""


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
        """Store an array, in an empty table."""
        data = memoryview(array.reshape(-1).view(np.uint8))

        async def put(connection: asyncpg.Connection, at: int) -> None:
            block = data[at : at + BLOCK_BYTES]
            await connection.execute(_PUT, at, len(block), block)

        self._loop.run_until_complete(self._each(put, len(data)))

    def clear(self) -> None:
        # Tensorage deletes rows, too. A truncated table would begin in a new file, which is faster.
        self.execute("delete from straight")

    def execute(self, sql: str, *arguments: object) -> None:
        self._loop.run_until_complete(self._connections[0].execute(sql, *arguments))

    def fetch(self, query: str, *arguments: object) -> Any:
        """Return the value of a query."""
        return self._loop.run_until_complete(self._connections[0].fetchval(query, *arguments))

    def rows(self, query: str, *arguments: object) -> list[asyncpg.Record]:
        rows: list[asyncpg.Record] = self._loop.run_until_complete(
            self._connections[0].fetch(query, *arguments)
        )
        return rows

    def read(self, out: npt.NDArray[np.float32]) -> None:
        """Read the array back into `out`."""
        data = memoryview(out.reshape(-1).view(np.uint8))

        async def get(connection: asyncpg.Connection, at: int) -> None:
            block = await connection.fetchval(_GET, at)
            data[at : at + len(block)] = block

        self._loop.run_until_complete(self._each(get, len(data)))

    def batch(self, indices: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """Return images in any order, which the server gathers in one statement."""
        positions = (indices * IMAGE_BYTES).tolist()
        gathered = self.fetch(_GATHER, positions, BLOCK_BYTES, IMAGE_BYTES)
        return np.frombuffer(gathered, np.float32).reshape(-1, 28, 28)

    def every(self, first: int, step: int, out: npt.NDArray[np.float32]) -> None:
        """Read ``array.reshape(-1)[first::step]`` into `out`. The server picks elements block by block.

        Parameters
        ----------
        step
            Step in elements, which divides the elements of a block.
        """
        data = memoryview(out.reshape(-1).view(np.uint8))

        async def get(connection: asyncpg.Connection, at: int) -> None:
            picked = await connection.fetchval(_PICK, at, 4 * first, 4 * step)
            data[at // step : at // step + len(picked)] = picked

        self._loop.run_until_complete(self._each(get, len(data) * step))

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
        """Do something for every block once, on any free connection."""
        waiting = iter(range(0, nbytes, BLOCK_BYTES))

        async def work(connection: asyncpg.Connection) -> None:
            for at in waiting:
                await do(connection, at)

        await asyncio.gather(*(work(connection) for connection in self._connections))
