"""Transactions as the caller, and what the server asks PostgreSQL on its own behalf."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

import asyncpg

from tensorage.embedded.database import Caller, Database
from tensorage.embedded.storage.caller import SERVICE
from tensorage.embedded.storage.errors import (
    CONNECTION_ERRORS,
    StorageError,
    from_postgres,
    no_such_bucket,
    unavailable,
)

if TYPE_CHECKING:
    from tensorage.embedded.database import Connection

log = logging.getLogger(__name__)

_SETTINGS: Final = {"search_path": '"storage", "public", "extensions"'}


@dataclass(frozen=True)
class Bucket:
    """What decides about uploads to a bucket and downloads from it."""

    id: str
    public: bool
    file_size_limit: int | None
    allowed_mime_types: Sequence[str] | None


@asynccontextmanager
async def transaction(
    database: Database,
    caller: Caller,
    *,
    read_only: bool = False,
    refusals: Mapping[str, Callable[[], StorageError]] | None = None,
) -> AsyncIterator[Connection]:
    """One transaction as `caller`; whatever PostgreSQL refuses is raised as Storage says it.

    Parameters
    ----------
    refusals
        What errors of PostgreSQL mean in this transaction, by SQLSTATE, where it is not what they usually do.
    """
    try:
        async with database.transaction(caller, read_only=read_only, settings=_SETTINGS) as connection:
            yield connection
    except CONNECTION_ERRORS as error:
        if isinstance(error, ValueError):
            raise  # a parameter of the wrong type is a fault of ours, not of the connection
        log.warning("PostgreSQL was lost: %s: %s", type(error).__name__, error)
        raise unavailable() from error
    except asyncpg.PostgresError as error:
        refusal = (refusals or {}).get(error.sqlstate or "")
        raise (refusal() if refusal else from_postgres(error)) from error


async def become(connection: Connection, caller: Caller) -> None:
    """Go on in this transaction as `caller`."""
    await connection.execute(
        "select set_config('role', $1, true), set_config('request.jwt.claims', $2, true)",
        caller.role,
        caller.claims_json,
    )


async def find_bucket(connection: Connection, bucket_id: str) -> Bucket:
    """Look up a bucket, in a transaction of the server's own.

    Raises
    ------
    StorageError
        There is none.
    """
    row = await connection.fetchrow(
        "select id, public, file_size_limit, allowed_mime_types from storage.buckets where id = $1", bucket_id
    )
    if row is None:
        raise no_such_bucket()
    return Bucket(row["id"], bool(row["public"]), row["file_size_limit"], row["allowed_mime_types"])


async def known_versions(database: Database, versions: Sequence[str]) -> set[str]:
    """Those of `versions` that are some object's."""
    async with transaction(database, SERVICE, read_only=True) as connection:
        rows: list[Any] = await connection.fetch(
            "select version from storage.objects where version = any($1::text[])", versions
        )
    return {row["version"] for row in rows}


def owner_of(caller: Caller) -> tuple[UUID | None, str | None]:
    """Values of ``owner`` and ``owner_id`` of what `caller` makes."""
    subject = caller.claims.get("sub")
    if not isinstance(subject, str) or not subject or "\0" in subject:
        return None, None
    try:
        return UUID(subject), subject
    except ValueError:
        return None, subject
