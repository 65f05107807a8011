"""Requests that list, move, copy and remove objects."""

from __future__ import annotations

import asyncio
from typing import Final

import asyncpg
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from tensorage.embedded.database import Caller, Database
from tensorage.embedded.storage.answers import Metadata, entry_json, json_answer, object_json
from tensorage.embedded.storage.caller import SERVICE, identify
from tensorage.embedded.storage.database import become, find_bucket, transaction
from tensorage.embedded.storage.errors import (
    UNIQUE,
    access_denied,
    invalid_request,
    key_already_exists,
    lost_content,
    no_such_key,
    too_large,
)
from tensorage.embedded.storage.names import check_mime_type, check_object_name, is_object_name
from tensorage.embedded.storage.object_rows import NewObject, write_row
from tensorage.embedded.storage.params import Fields, check_storable, read_fields
from tensorage.embedded.storage.version_files import VersionFiles
from tensorage.embedded.tokens import Tokens

_COLUMNS: Final = (
    "id, name, bucket_id, owner, owner_id, version, metadata, user_metadata, "
    "created_at, updated_at, last_accessed_at"
)
_DELETE_MANY: Final = "delete from storage.objects where bucket_id = $1 and name = any($2::text[])"
_ONE: Final = "bucket_id = $1 and name = $2"
#: Supabase Storage's default for listings, and its limit for removals.
_DEFAULT_LIMIT: Final = 100
_MAX_REMOVED_AT_ONCE: Final = 1000

#: Entries of one level of a bucket: objects of that level, and folders for those below. Upper and lower case are equal.
_ENTRIES: Final = """
    with below as (
        select path_tokens[$3] as entry, cardinality(path_tokens) > $3 as is_folder,
               id, updated_at, created_at, last_accessed_at, metadata
        from storage.objects
        where bucket_id = $1 and starts_with(lower(name), lower($2))
    ), entries as (
        select entry as name, id, updated_at, created_at, last_accessed_at, metadata
        from below where not is_folder
        union all
        select min(entry), null, null, null, null, null from below where is_folder group by lower(entry)
    )
    select * from entries"""

#: Order of a listing by the requested column. Folders have only a name, and come first.
_SORTS: Final = {
    "name": "lower(name) {order}, name {order}, id nulls first",
    "updated_at": "id is not null, updated_at {order}, name, id",
    "created_at": "id is not null, created_at {order}, name, id",
    "last_accessed_at": "id is not null, last_accessed_at {order}, name, id",
}


class ObjectRoutes:
    """Routes that list, move, copy and remove objects, as far as the policies let the caller."""

    def __init__(self, database: Database, tokens: Tokens, version_files: VersionFiles) -> None:
        self._database = database
        self._tokens = tokens
        self._version_files = version_files

    @property
    def routes(self) -> list[Route]:
        return [
            Route("/object/list/{bucket}", self._list, methods=["POST"]),
            Route("/object/move", self._move, methods=["POST"]),
            Route("/object/copy", self._copy, methods=["POST"]),
            Route("/object/{bucket}", self._remove_many, methods=["DELETE"]),
            Route("/object/{bucket}/{name:path}", self._remove, methods=["DELETE"]),
        ]

    # -- List -------------------------------------------------------------------------------------------

    async def _list(self, request: Request) -> Response:
        caller = self._identify(request)
        fields = await read_fields(request)
        prefix = fields.text("prefix")
        if prefix and not prefix.endswith("/"):
            prefix += "/"
        values = (
            _read_bucket_id(request),
            prefix + fields.text("search", ""),
            prefix.count("/") + 1,
            fields.integer("limit", _DEFAULT_LIMIT, minimum=1),
            fields.integer("offset", 0, minimum=0),
        )
        statement = f"{_ENTRIES} order by {_choose_order(fields.object('sortBy'))} limit $4 offset $5"
        async with transaction(self._database, caller, read_only=True) as connection:
            rows = await connection.fetch(statement, *values)
        return json_answer([entry_json(row) for row in rows])

    # -- Move and copy ----------------------------------------------------------------------------------

    async def _move(self, request: Request) -> Response:
        caller = self._identify(request)
        source, destination = _read_ends(await read_fields(request))
        if destination[0] != source[0]:
            await self._check_limits(caller, source, destination[0])
        async with transaction(self._database, caller) as connection:
            # Files are named after versions, not after objects: a move changes no file.
            status = await connection.execute(
                f"update storage.objects set bucket_id = $3, name = $4 where {_ONE}",  # noqa: S608  (a constant)
                *source,
                *destination,
            )
        if status.endswith(" 0"):
            raise no_such_key()
        return json_answer({"message": "Successfully moved"})

    async def _copy(self, request: Request) -> Response:
        caller = self._identify(request)
        fields = await read_fields(request)
        source, destination = _read_ends(fields)
        user_metadata = None if fields.boolean("copyMetadata", default=True) else "{}"
        upsert = request.headers.get("x-upsert") == "true"
        if destination[0] != source[0]:
            await self._check_limits(caller, source, destination[0])
        row, version = await self._link(caller, source)
        new = NewObject(*destination, version, row["metadata"], user_metadata or row["user_metadata"] or "{}")
        copy = await self._store_copy(caller, new, upsert=upsert)
        return json_answer({"Key": "/".join(destination), "Id": str(copy["id"]), **object_json(copy)})

    async def _link(self, caller: Caller, source: tuple[str, str]) -> tuple[asyncpg.Record, str]:
        """Return the row of an object that the caller may see, and a new version with the same content."""
        last_version = None
        while True:
            async with transaction(self._database, caller, read_only=True) as connection:
                row = await connection.fetchrow(
                    f"select {_COLUMNS} from storage.objects where {_ONE}",  # noqa: S608  (constants)
                    *source,
                )
            if row is None:
                raise no_such_key()
            try:
                return row, await asyncio.to_thread(self._version_files.blobs.link, row["version"])
            except FileNotFoundError as error:
                # The object was overwritten or removed after its row was read. With an unchanged row, the file is lost.
                if row["version"] == last_version:
                    raise lost_content(*source) from error
                last_version = row["version"]

    async def _store_copy(self, caller: Caller, new: NewObject, *, upsert: bool) -> asyncpg.Record:
        refusals = {UNIQUE: key_already_exists}
        async with (
            self._version_files.keep_if_committed(new.version),
            transaction(self._database, caller, refusals=refusals) as connection,
        ):
            stored = await write_row(connection, caller, new, upsert=upsert)
            replaced = await self._version_files.mark_replaced(stored.replaced)
            # The answer shows the row, even if no policy lets its maker read it.
            await become(connection, SERVICE)
            copy = await connection.fetchrow(
                f"select {_COLUMNS} from storage.objects where id = $1",  # noqa: S608  (a constant)
                stored.id,
            )
        await self._version_files.delete_files(replaced)
        assert copy is not None, "it was written in this transaction"
        return copy

    async def _check_limits(self, caller: Caller, source: tuple[str, str], bucket_id: str) -> None:
        """Refuse to move or copy an object to a bucket whose limits it exceeds."""
        async with transaction(self._database, SERVICE, read_only=True) as connection:
            bucket = await find_bucket(connection, bucket_id)
            await become(connection, caller)
            text = await connection.fetchval(
                f"select metadata from storage.objects where {_ONE}",  # noqa: S608  (a constant)
                *source,
            )
        if text is None:
            raise no_such_key()
        metadata = Metadata.from_json(text)
        check_mime_type(metadata.mimetype, bucket.allowed_mime_types)
        if bucket.file_size_limit and metadata.size > bucket.file_size_limit:
            raise too_large()

    # -- Remove -----------------------------------------------------------------------------------------

    async def _remove_many(self, request: Request) -> Response:
        caller = self._identify(request)
        names = (await read_fields(request)).texts("prefixes", maximum=_MAX_REMOVED_AT_ONCE)
        rows = await self._version_files.delete_objects(
            caller,
            f"{_DELETE_MANY} returning {_COLUMNS}",
            _read_bucket_id(request),
            # Objects with invalid names cannot exist.
            [name for name in names if is_object_name(name)],
            operation="storage.object.delete_many",
        )
        return json_answer([object_json(row) for row in rows])

    async def _remove(self, request: Request) -> Response:
        caller, key = self._identify(request), (_read_bucket_id(request), request.path_params["name"])
        if not is_object_name(key[1]):
            raise no_such_key()
        rows = await self._version_files.delete_objects(
            caller,
            f"delete from storage.objects where {_ONE} returning version",  # noqa: S608  (a constant)
            *key,
            operation="storage.object.delete",
        )
        if not rows:
            # In Supabase Storage, too, a caller who may not remove an object learns that it exists.
            async with transaction(self._database, SERVICE, read_only=True) as connection:
                exists = await connection.fetchval(
                    f"select true from storage.objects where {_ONE}",  # noqa: S608  (a constant)
                    *key,
                )
            raise access_denied("Access denied") if exists else no_such_key()
        return json_answer({"message": "Successfully deleted"})

    def _identify(self, request: Request) -> Caller:
        return identify(request.headers, self._tokens)


def _read_bucket_id(request: Request) -> str:
    return check_storable(request.path_params["bucket"], "params/bucketName")


def _read_ends(fields: Fields) -> tuple[tuple[str, str], tuple[str, str]]:
    """Return the source and the destination of a move or copy, each a bucket and a name."""
    bucket_id, source = fields.text("bucketId"), fields.text("sourceKey")
    destination = check_object_name(fields.text("destinationKey"))
    if not is_object_name(source):
        raise no_such_key()
    return (bucket_id, source), (fields.text("destinationBucket", bucket_id), destination)


def _choose_order(sort: Fields) -> str:
    """Return the SQL that sorts a listing. The request chooses among fixed texts."""
    column, order = sort.text("column", "name"), sort.text("order", "asc")
    if column not in _SORTS:
        raise invalid_request("body/sortBy/column must be equal to one of the allowed values")
    if order not in ("asc", "desc"):
        raise invalid_request("body/sortBy/order must be equal to one of the allowed values")
    return _SORTS[column].format(order=order)
