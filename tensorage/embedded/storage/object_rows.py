"""Rows of objects, each with the version of its content: written as the caller, so that the policies decide."""

from __future__ import annotations

import json
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from tensorage.embedded.database import Caller, Database
from tensorage.embedded.storage.blobs import new_version
from tensorage.embedded.storage.caller import SERVICE
from tensorage.embedded.storage.database import Bucket, become, find_bucket, owner_of, transaction
from tensorage.embedded.storage.errors import UNIQUE, key_already_exists
from tensorage.embedded.storage.version_files import VersionFiles

if TYPE_CHECKING:
    from tensorage.embedded.database import Connection

_INSERT: Final = (
    "insert into storage.objects (id, bucket_id, name, owner, owner_id, version, metadata, user_metadata) "
    "values ($1, $2, $3, $4, $5, $6, $7, $8)"
)
_OR_UPDATE: Final = f"""{_INSERT}
    on conflict (bucket_id, name) do update set
        owner = excluded.owner, owner_id = excluded.owner_id, version = excluded.version,
        metadata = excluded.metadata, user_metadata = excluded.user_metadata
    returning id, """
#: From PostgreSQL 18 on, `old` is the row that was replaced, even if other requests write at the same time.
_UPSERT: Final = _OR_UPDATE + "old.version as replaced"
#: Before 18, the replaced version is looked up first, under a lock that lets no other request write the object.
_UPSERT_BEFORE_18: Final = _OR_UPDATE + "$9::text as replaced"
_LOOK_UP: Final = "select version from storage.objects where bucket_id = $1 and name = $2"
_TAKE_TURNS: Final = "select pg_advisory_xact_lock(hashtextextended($1, 0))"

#: A second object of the same name has its own refusal, unless the request may replace the first.
_REFUSALS: Final = {UNIQUE: key_already_exists}


@dataclass(frozen=True)
class NewObject:
    """An object that is to be stored.

    Parameters
    ----------
    metadata, user_metadata
        JSON objects, as text. A row that was made by plain SQL, and its copies, may have no metadata.
    """

    bucket_id: str
    name: str
    version: str
    metadata: str | None
    user_metadata: str


@dataclass(frozen=True)
class StoredObject:
    """An object that was stored.

    Parameters
    ----------
    replaced
        Version that had the object's name before, or None.
    """

    id: str
    replaced: str | None = None


async def write_row(connection: Connection, caller: Caller, new: NewObject, *, upsert: bool) -> StoredObject:
    """Write the row of an object.

    Parameters
    ----------
    upsert
        True if the row may replace another one of the same name.
    """
    values = (
        uuid.uuid4(),
        new.bucket_id,
        new.name,
        *owner_of(caller),
        new.version,
        new.metadata,
        new.user_metadata,
    )
    if not upsert:
        # Without RETURNING, which a caller who may insert but not select could not use.
        await connection.execute(_INSERT, *values)
        return StoredObject(str(values[0]))
    if connection.get_server_version().major >= 18:
        row = await connection.fetchrow(_UPSERT, *values)
    else:
        await connection.execute(_TAKE_TURNS, f"{new.bucket_id}/{new.name}")
        replaced = await connection.fetchval(_LOOK_UP, new.bucket_id, new.name)
        row = await connection.fetchrow(_UPSERT_BEFORE_18, *values, replaced)
    assert row is not None, "an upsert returns its row, or fails"
    return StoredObject(str(row["id"]), row["replaced"])


async def try_row(
    connection: Connection, caller: Caller, bucket_id: str, name: str, *, upsert: bool, size: int | None
) -> None:
    """Write a row and roll it back: the policies then refuse an upload before its bytes are received."""
    await connection.execute("savepoint trial")
    metadata = "{}" if size is None else json.dumps({"size": size})
    await write_row(
        connection, caller, NewObject(bucket_id, name, new_version(), metadata, "{}"), upsert=upsert
    )
    # Rolled back although it was allowed: the row may only be there once its content is.
    await connection.execute("rollback to savepoint trial")


class ObjectWriter:
    """Writer of objects' rows, for all ways to upload: the policies decide before and after the content comes."""

    def __init__(self, database: Database, version_files: VersionFiles) -> None:
        self._database = database
        self._version_files = version_files

    async def check(
        self, caller: Caller, bucket_id: str, name: str, *, upsert: bool, size: int | None = None
    ) -> Bucket:
        """Refuse an object before its content is received, if its row would be refused. Return its bucket.

        Parameters
        ----------
        size
            Bytes of the object, if known: triggers may refuse an object as too large.
        """
        async with transaction(self._database, SERVICE, refusals=_REFUSALS) as connection:
            bucket = await find_bucket(connection, bucket_id)
            await become(connection, caller)
            await try_row(connection, caller, bucket_id, name, upsert=upsert, size=size)
        return bucket

    async def store(self, caller: Caller, new: NewObject, *, upsert: bool) -> StoredObject:
        """Write the row of an object with a marked file. If the row is refused, the file is deleted."""
        async with (
            self._version_files.keep_if_committed(new.version),
            transaction(self._database, caller, refusals=_REFUSALS) as connection,
        ):
            stored = await write_row(connection, caller, new, upsert=upsert)
            replaced = await self._version_files.mark_replaced(stored.replaced)
        await self._version_files.delete_files(replaced)
        return stored
