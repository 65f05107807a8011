"""Connections to the embedded PostgreSQL, and transactions as the calling user's role."""

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
    """Who asks: a database role and the claims of the token that named it.

    Parameters
    ----------
    role
        ``anon``, ``authenticated``, ``service_role``, or what the token says: PostgreSQL decides
        whether the authenticator may become it.
    claims
        The token's claims, ``{"role": "anon"}`` where there is no token.
    """

    role: str
    claims: Mapping[str, Any] = field(default_factory=dict)

    @property
    def claims_json(self) -> str:
        return json.dumps({"role": self.role, **self.claims}, separators=(",", ":"))


#: Too many connections; shutting down, crashed, starting.
_OUTAGE_SQLSTATES = frozenset({"53300", "57P01", "57P02", "57P03"})


class UnreachableError(ConnectionError):
    """PostgreSQL takes no connection: it is down, or between its end and its restart."""


class Database:
    """A pool of connections to one cluster, logged in as one role.

    The REST and Storage APIs share one pool of the ``authenticator`` role, which has no rights but to
    become the caller's role. The Auth API has another, of ``supabase_auth_admin``.
    """

    def __init__(self, dsn: str, *, max_size: int = 10) -> None:
        self._dsn = dsn
        self._max_size = max_size
        self._pool: asyncpg.Pool[asyncpg.Record] | None = None

    async def open(self) -> None:
        self._pool = await asyncpg.create_pool(
            self._dsn, min_size=1, max_size=self._max_size, command_timeout=None, reset=_leave_as_it_is
        )

    async def close(self) -> None:
        if self._pool is not None:
            self._pool.terminate()
            self._pool = None

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection]:
        """A connection as the pool's own role, outside any transaction.

        Raises
        ------
        UnreachableError
            There is none to be had, and nothing has been done.
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
        """One transaction in which the connection is `caller`: committed at the end, or rolled back.

        Parameters
        ----------
        read_only
            PostgreSQL itself then refuses every write (SQLSTATE 25006), as PostgREST's GETs do.
        settings
            More `set_config` values for this transaction only, such as ``request.method``.
        """
        values = {"role": caller.role, "request.jwt.claims": caller.claims_json, **(settings or {})}
        calls = ", ".join(f"set_config({_literal(k)}, {_literal(v)}, true)" for k, v in values.items())
        mode = "read only" if read_only else "read write"
        async with self.connection() as connection:
            try:
                # One round trip for both: a small call is made of little else.
                await connection.execute(f"begin {mode}; select {calls}")
                yield connection
                await connection.execute("commit")
            except BaseException:
                # Also on cancellation: the connection must not go back to the pool in a transaction.
                if not connection.is_closed():
                    await connection.execute("rollback")
                raise


def is_outage(error: BaseException) -> bool:
    """Whether an error of a connection says that PostgreSQL is away or went away, and not that it refused."""
    if isinstance(error, asyncpg.PostgresError):
        sqlstate = error.sqlstate or ""
        return sqlstate.startswith("08") or sqlstate in _OUTAGE_SQLSTATES
    # A parameter of the wrong type is an InterfaceError, too, and a fault of ours.
    return isinstance(
        error, OSError | asyncpg.InterfaceError | asyncpg.InternalClientError
    ) and not isinstance(error, ValueError)


async def _leave_as_it_is(_connection: asyncpg.Connection[asyncpg.Record]) -> None:
    """Every setting we make is local to its transaction, so that there is nothing to reset."""


def _literal(text: str) -> str:
    """SQL string literal (``standard_conforming_strings`` is on in every supported PostgreSQL)."""
    if "\0" in text:
        raise ValueError("a NUL character cannot be part of a setting")
    return "'" + text.replace("'", "''") + "'"
