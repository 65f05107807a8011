"""Connections to the embedded PostgreSQL, and transactions in the caller's role."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import asyncpg

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
        return json.dumps({"role": self.role, **self.claims}, separators=(",", ":"))


#: SQLSTATEs for too many connections, shutting down, crashed, and starting.
_OUTAGE_SQLSTATES = frozenset({"53300", "57P01", "57P02", "57P03"})


class UnreachableError(ConnectionError):
    """PostgreSQL takes no connection: it is down or restarting."""


class Database:
    """A pool of connections to one cluster, logged in as one role.

    The REST and Storage APIs share a pool of the role ``authenticator``, whose only right is to take the caller's
    role. The Auth API has its own pool, of the role ``supabase_auth_admin``.
    """

    def __init__(self, dsn: str, *, max_size: int = 10) -> None:
        self._dsn = dsn
        self._max_size = max_size
        self._pool: asyncpg.Pool[asyncpg.Record] | None = None

    async def open(self) -> None:
        self._pool = await asyncpg.create_pool(
            self._dsn, min_size=1, max_size=self._max_size, command_timeout=None, reset=_keep_settings
        )

    async def close(self) -> None:
        self.disconnect()
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
        assert self._pool is not None, "the pool is opened when the server starts"
        try:
            connection = await self._pool.acquire()
        except Exception as error:
            if not is_outage(error):
                raise
            raise UnreachableError(f"PostgreSQL takes no connection: {error}") from error
        try:
            yield connection
        finally:
            await self._pool.release(connection)

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
        async with self.connection() as connection:
            try:
                # One round trip for both statements: round trips are most of the time of a small call.
                await connection.execute(f"begin {mode}; select {calls}")
                yield connection
                await connection.execute("commit")
            except BaseException:
                # BaseException, since a cancelled request too must not return its connection in an open transaction.
                if not connection.is_closed():
                    await connection.execute("rollback")
                raise


def is_outage(error: BaseException) -> bool:
    """Tell whether an error means that PostgreSQL is away or was lost, rather than that it refused."""
    if isinstance(error, asyncpg.PostgresError):
        sqlstate = error.sqlstate or ""
        return sqlstate.startswith("08") or sqlstate in _OUTAGE_SQLSTATES
    # asyncpg raises an InterfaceError that is a ValueError for a parameter of the wrong type: a bug, not an outage.
    return isinstance(
        error, OSError | asyncpg.InterfaceError | asyncpg.InternalClientError
    ) and not isinstance(error, ValueError)


async def _keep_settings(_connection: asyncpg.Connection[asyncpg.Record]) -> None:
    """Skip the pool's reset of settings, and its round trip: all of ours are local to their transaction."""


def _quote_literal(text: str) -> str:
    """Return `text` as an SQL string literal.

    Backslashes are plain characters: ``standard_conforming_strings`` is on in every supported PostgreSQL.
    """
    if "\0" in text:
        raise ValueError("a NUL character cannot be part of a setting")
    return "'" + text.replace("'", "''") + "'"
