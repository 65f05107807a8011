"""Transactions as the caller or as the server, and queries that several requests need."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
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
from tensorage.embedded.storage.names import is_object_name

if TYPE_CHECKING:
    from tensorage.embedded.database import Connection

log = logging.getLogger(__name__)

#: On hosted Supabase, too, policies and triggers of an application find their functions here.
_SETTINGS: Final = {"search_path": '"storage", "public", "extensions"'}


@dataclass(frozen=True)
class Bucket:
    """A bucket's limits for uploads, and whether everybody may read it."""

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
    operation: str = "",
    refusals: Mapping[str, Callable[[], StorageError]] | None = None,
) -> AsyncIterator[Connection]:
    """Open a transaction as a caller. Errors of PostgreSQL are raised in Storage's words.

    Parameters
    ----------
    operation
        Supabase Storage's name of the operation, for policies that ask for it.
    refusals
        Refusals by SQLSTATE, for errors of PostgreSQL that mean something special in this transaction.
    """
    settings = {**_SETTINGS, "storage.operation": operation}
    with _translate_errors(refusals):
        async with database.transaction(caller, read_only=read_only, settings=settings) as connection:
            yield connection


@contextmanager
def _translate_errors(refusals: Mapping[str, Callable[[], StorageError]] | None = None) -> Iterator[None]:
    try:
        yield
    except CONNECTION_ERRORS as error:
        if isinstance(error, ValueError):
            raise  # asyncpg's error for a parameter of the wrong type: a bug of ours, not an outage
        log.warning("PostgreSQL was lost: %s: %s", type(error).__name__, error)
        raise unavailable() from error
    except asyncpg.PostgresError as error:
        refusal = (refusals or {}).get(error.sqlstate or "")
        raise (refusal() if refusal else from_postgres(error)) from error


async def find_object(
    database: Database, caller: Caller, bucket_id: str, name: str, *, operation: str = ""
) -> asyncpg.Record | None:
    """Return the row of an object if the caller may see it, by a transaction of its own that is a single statement."""
    # An object with an invalid name cannot exist: no query is needed.
    if not is_object_name(name):
        return None
    with _translate_errors():
        async with database.connection() as connection:
            return await connection.fetchrow(
                "select * from embedded.find_object($1, $2, $3, $4, $5, $6)",
                *(caller.role, caller.claims_json, _SETTINGS["search_path"], operation, bucket_id, name),
            )


async def become(connection: Connection, caller: Caller) -> None:
    """Continue a transaction as another caller."""
    await connection.execute(
        "select set_config('role', $1, true), set_config('request.jwt.claims', $2, true)",
        caller.role,
        caller.claims_json,
    )


async def find_bucket(connection: Connection, bucket_id: str) -> Bucket:
    """Return a bucket. The transaction has to be the server's own, since policies may hide the bucket.

    Raises
    ------
    StorageError
        The bucket does not exist.
    """
    row = await connection.fetchrow(
        "select id, public, file_size_limit, allowed_mime_types from storage.buckets where id = $1", bucket_id
    )
    if row is None:
        raise no_such_bucket()
    return Bucket(row["id"], bool(row["public"]), row["file_size_limit"], row["allowed_mime_types"])


async def find_known_versions(database: Database, versions: Sequence[str]) -> set[str]:
    """Return those of some versions that a row of an object has."""
    async with transaction(database, SERVICE, read_only=True) as connection:
        rows: list[Any] = await connection.fetch(
            "select version from storage.objects where version = any($1::text[])", versions
        )
    return {row["version"] for row in rows}


def owner_of(caller: Caller) -> tuple[UUID | None, str | None]:
    """Return the columns ``owner`` and ``owner_id`` of a row that a caller makes."""
    subject = caller.claims.get("sub")
    if not isinstance(subject, str) or not subject or "\0" in subject:
        return None, None
    try:
        return UUID(subject), subject
    except ValueError:
        return None, subject
