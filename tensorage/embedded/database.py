"""Connections to the embedded PostgreSQL, and transactions in the caller's role."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import asyncpg

from tensorage.embedded.tokens import Claims

if TYPE_CHECKING:
    from asyncpg.pool import PoolConnectionProxy

    Connection = PoolConnectionProxy[asyncpg.Record]


@dataclass(frozen=True)
class Caller:
    """Sender of a request: a database role, and the claims of the token that named the role.

    Parameters
    ----------
    role
        ``anon``, ``authenticated``, ``service_role``, or any other name in a token. PostgreSQL decides whether the
        authenticator may take the role.
    claims
        Claims of the token; empty if the request has none.
    """

    role: str
    claims: Mapping[str, Any] = field(default_factory=dict)

    @property
    def claims_json(self) -> str:
        if isinstance(self.claims, Claims) and self.claims.get("role") == self.role:
            return self.claims.json
        return json.dumps({"role": self.role, **self.claims}, separators=(",", ":"))


#: SQLSTATEs for too many connections, shutting down, crashed, and starting.
_OUTAGE_SQLSTATES = frozenset({"53300", "57P01", "57P02", "57P03"})


class UnreachableError(ConnectionError):
    """PostgreSQL takes no connection: it is down or restarting."""


#: Seconds after which an idle connection goes back to asyncpg's pool, and once more as many until that closes it.
_IDLE_S = 150.0

#: Uses of connections between two that go through asyncpg's pool, which replaces connections after many queries.
_USES_OUTSIDE = 256


class Database:
    """A pool of connections to one cluster, logged in as one role.

    Idle connections are kept here, on top of asyncpg's pool: that one begins a task for each connection that it gets
    back, which takes a third of the time of a small transaction.

    The REST and Storage APIs share a pool of the role ``authenticator``, whose only right is to take the caller's
    role. The Auth API has its own pool, of the role ``supabase_auth_admin``.
    """

    def __init__(self, dsn: str, *, max_size: int = 10) -> None:
        self._dsn = dsn
        self._max_size = max_size
        self._pool: asyncpg.Pool[asyncpg.Record] | None = None
        self._room = asyncio.Semaphore(max_size)
        # Last released, last in the list, with the time on the loop's clock.
        self._idle: list[tuple[Connection, float]] = []
        self._uses = 0
        self._returning: asyncio.Task[None] | None = None

    async def open(self) -> None:
        self._pool = await asyncpg.create_pool(
            self._dsn,
            min_size=1,
            max_size=self._max_size,
            max_inactive_connection_lifetime=_IDLE_S,
            command_timeout=None,
            reset=_keep_settings,
        )
        self._returning = asyncio.create_task(self._return_idle())

    async def close(self) -> None:
        if self._returning is not None:
            self._returning.cancel()
        self.disconnect()
        self._idle.clear()
        self._pool = None

    def disconnect(self) -> None:
        """End all connections at once. Transactions under way fail, and later ones find no connection."""
        if self._pool is not None:
            self._pool.terminate()

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection]:
        """Lend a connection in the pool's own role, outside any transaction.

        Raises
        ------
        UnreachableError
            PostgreSQL takes no connection. Nothing has been done.
        """
        connection = await self._take()
        is_clean = False
        try:
            yield connection
            is_clean = True
        finally:
            await self._give_back(connection, is_clean=is_clean)

    @asynccontextmanager
    async def transaction(
        self, caller: Caller, *, read_only: bool = False, settings: Mapping[str, str] | None = None
    ) -> AsyncIterator[Connection]:
        """Open a transaction in the caller's role, committed at the end, or rolled back after an error.

        Parameters
        ----------
        read_only
            Lets PostgreSQL itself refuse every write (SQLSTATE 25006), as for PostgREST's GETs.
        settings
            More settings for this transaction only, such as ``request.method``.
        """
        values = {"role": caller.role, "request.jwt.claims": caller.claims_json, **(settings or {})}
        calls = ", ".join(
            f"set_config({_quote_literal(k)}, {_quote_literal(v)}, true)" for k, v in values.items()
        )
        mode = "read only" if read_only else "read write"
        connection = await self._take()
        is_clean = False
        try:
            # One round trip for both statements: round trips are most of the time of a small call.
            await connection.execute(f"begin {mode}; select {calls}")
            yield connection
            await connection.execute("commit")
            is_clean = True
        except BaseException:
            # BaseException, since a cancelled request too must not return its connection in an open transaction.
            if not _is_lost(connection):
                await connection.execute("rollback")
            raise
        finally:
            await self._give_back(connection, is_clean=is_clean)

    async def _take(self) -> Connection:
        """Take an idle connection, or a new one; wait for one if all are in use."""
        assert self._pool is not None, "the pool is opened when the server starts"
        await self._room.acquire()
        try:
            while self._idle:
                connection, _ = self._idle.pop()
                if not _is_lost(connection):
                    return connection
                await self._pool.release(connection)
            return await self._pool.acquire()
        except BaseException as error:
            self._room.release()
            if not isinstance(error, Exception) or not is_outage(error):
                raise
            raise UnreachableError(f"PostgreSQL takes no connection: {error}") from error

    async def _give_back(self, connection: Connection, *, is_clean: bool) -> None:
        """Keep a connection for the next request, or leave it to asyncpg's pool after an error."""
        self._uses += 1
        try:
            if (
                is_clean
                and self._uses % _USES_OUTSIDE
                and not _is_lost(connection)
                and not connection.is_in_transaction()
            ):
                self._idle.append((connection, asyncio.get_running_loop().time()))
            elif self._pool is not None:
                await self._pool.release(connection)
        finally:
            self._room.release()

    async def _return_idle(self) -> None:
        """Give connections that nobody needs back to asyncpg's pool, which closes them. Never returns."""
        while True:
            await asyncio.sleep(_IDLE_S / 2)
            long_ago = asyncio.get_running_loop().time() - _IDLE_S
            while self._idle and self._idle[0][1] < long_ago and self._pool is not None:
                await self._pool.release(self._idle.pop(0)[0])


def is_outage(error: BaseException) -> bool:
    """Tell whether an error means that PostgreSQL is away or was lost, rather than that it refused."""
    if isinstance(error, asyncpg.PostgresError):
        sqlstate = error.sqlstate or ""
        return sqlstate.startswith("08") or sqlstate in _OUTAGE_SQLSTATES
    # asyncpg raises an InterfaceError that is a ValueError for a parameter of the wrong type: a bug, not an outage.
    return isinstance(
        error, OSError | asyncpg.InterfaceError | asyncpg.InternalClientError
    ) and not isinstance(error, ValueError)


def _is_lost(connection: Connection) -> bool:
    try:
        return connection.is_closed()
    except asyncpg.InterfaceError:
        # The pool has noticed already, and taken the connection away.
        return True


async def _keep_settings(_connection: asyncpg.Connection[asyncpg.Record]) -> None:
    """Skip the pool's reset of settings, and its round trip: all of ours are local to their transaction."""


def _quote_literal(text: str) -> str:
    """Return `text` as an SQL string literal.

    Backslashes are plain characters: ``standard_conforming_strings`` is on in every supported PostgreSQL.
    """
    if "\0" in text:
        raise ValueError("a NUL character cannot be part of a setting")
    return "'" + text.replace("'", "''") + "'"
