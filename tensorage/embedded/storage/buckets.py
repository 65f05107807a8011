"""Requests about buckets."""

from __future__ import annotations

import re
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from tensorage.embedded.database import Caller, Database
from tensorage.embedded.storage.answers import bucket_json, json_answer
from tensorage.embedded.storage.caller import identify
from tensorage.embedded.storage.database import owner_of, transaction
from tensorage.embedded.storage.errors import (
    FOREIGN_KEY,
    UNIQUE,
    bucket_already_exists,
    bucket_not_empty,
    invalid_request,
    no_such_bucket,
)
from tensorage.embedded.storage.names import check_allowed_mime_types, check_bucket_name
from tensorage.embedded.storage.params import Fields, check_storable, read_fields
from tensorage.embedded.storage.version_files import VersionFiles
from tensorage.embedded.tokens import Tokens

_COLUMNS: Final = "id, name, owner, public, file_size_limit, allowed_mime_types, created_at, updated_at"
_SORTS: Final = frozenset({"id", "name", "created_at", "updated_at"})
_UNITS: Final = {"": 1, "b": 1, "kb": 1 << 10, "mb": 1 << 20, "gb": 1 << 30, "tb": 1 << 40}
_SIZE: Final = re.compile(r"(\d{1,12})\s*([kmgt]?b)?", re.IGNORECASE | re.ASCII)


class BucketRoutes:
    """Routes that make, show, change, empty and delete buckets, as far as the policies let the caller."""

    def __init__(self, database: Database, tokens: Tokens, version_files: VersionFiles) -> None:
        self._database = database
        self._tokens = tokens
        self._version_files = version_files

    @property
    def routes(self) -> list[Route]:
        return [
            Route("/bucket", self._list, methods=["GET"]),
            # SDKs use the path with and without a slash at its end.
            Route("/bucket/", self._list, methods=["GET"]),
            Route("/bucket", self._create, methods=["POST"]),
            Route("/bucket/", self._create, methods=["POST"]),
            Route("/bucket/{bucket}", self._get, methods=["GET"]),
            Route("/bucket/{bucket}", self._update, methods=["PUT"]),
            Route("/bucket/{bucket}", self._delete, methods=["DELETE"]),
            Route("/bucket/{bucket}/empty", self._empty, methods=["POST"]),
        ]

    async def _list(self, request: Request) -> Response:
        caller = self._identify(request)
        query = Fields(request.query_params, "querystring")
        column, order = query.text("sortColumn", "id"), query.text("sortOrder", "asc")
        if column not in _SORTS or order not in ("asc", "desc"):
            raise invalid_request("querystring/sortColumn or sortOrder is not allowed")
        # The column and the order come from closed lists. All other values are parameters.
        statement = (
            f"select {_COLUMNS} from storage.buckets where starts_with(lower(name), lower($1)) "  # noqa: S608
            f"order by {column} {order}, id limit $2 offset $3"
        )
        limit, offset = query.integer("limit", 1_000_000, minimum=1), query.integer("offset", 0, minimum=0)
        async with transaction(self._database, caller, read_only=True) as connection:
            rows = await connection.fetch(statement, query.text("search", ""), limit, offset)
        return json_answer([bucket_json(row, with_type=True) for row in rows])

    async def _get(self, request: Request) -> Response:
        async with transaction(self._database, self._identify(request), read_only=True) as connection:
            row = await connection.fetchrow(
                f"select {_COLUMNS} from storage.buckets where id = $1",  # noqa: S608  (a constant)
                _read_bucket_id(request),
            )
        if row is None:
            raise no_such_bucket()
        return json_answer(bucket_json(row))

    async def _create(self, request: Request) -> Response:
        caller = self._identify(request)
        fields = await read_fields(request)
        name = check_bucket_name(fields.text("name"))
        bucket_id = check_bucket_name(fields.text("id", name))
        refusals = {UNIQUE: bucket_already_exists}
        async with transaction(self._database, caller, refusals=refusals) as connection:
            await connection.execute(
                "insert into storage.buckets (id, name, owner, owner_id, public, file_size_limit, "
                "allowed_mime_types) values ($1, $2, $3, $4, $5, $6, $7)",
                bucket_id,
                name,
                *owner_of(caller),
                fields.boolean("public", default=False),
                _read_size_limit(fields),
                _read_mime_types(fields),
            )
        return json_answer({"name": bucket_id})

    async def _update(self, request: Request) -> Response:
        caller = self._identify(request)
        fields = await read_fields(request)
        changes: dict[str, Any] = {}
        if fields.values.get("public") is not None:
            changes["public"] = fields.boolean("public", default=False)
        # Null removes a limit, and a missing field leaves it as it is.
        if "file_size_limit" in fields.values:
            changes["file_size_limit"] = _read_size_limit(fields)
        if "allowed_mime_types" in fields.values:
            changes["allowed_mime_types"] = _read_mime_types(fields)
        assignments = "".join(f", {column} = ${n}" for n, column in enumerate(changes, 2))
        statement = f"update storage.buckets set updated_at = now(){assignments} where id = $1"  # noqa: S608
        async with transaction(self._database, caller) as connection:
            status = await connection.execute(statement, _read_bucket_id(request), *changes.values())
        _check_found(status)
        return json_answer({"message": "Successfully updated"})

    async def _delete(self, request: Request) -> Response:
        caller = self._identify(request)
        # PostgreSQL checks the foreign key against all objects, also those that the caller may not see.
        refusals = {FOREIGN_KEY: bucket_not_empty}
        async with transaction(self._database, caller, refusals=refusals) as connection:
            status = await connection.execute(
                "delete from storage.buckets where id = $1", _read_bucket_id(request)
            )
        _check_found(status)
        return json_answer({"message": "Successfully deleted"})

    async def _empty(self, request: Request) -> Response:
        caller, bucket_id = self._identify(request), _read_bucket_id(request)
        async with transaction(self._database, caller, read_only=True) as connection:
            if not await connection.fetchval("select true from storage.buckets where id = $1", bucket_id):
                raise no_such_bucket()
        await self._version_files.delete_objects(
            caller, "delete from storage.objects where bucket_id = $1 returning version", bucket_id
        )
        # The words are hosted Supabase's. This server has emptied the bucket already.
        return json_answer({"message": "Empty bucket has been queued. Completion may take up to an hour."})

    def _identify(self, request: Request) -> Caller:
        return identify(request.headers, self._tokens)


def _read_bucket_id(request: Request) -> str:
    return check_storable(request.path_params["bucket"], "params/bucketId")


def _check_found(status: str) -> None:
    """Refuse a bucket that was not found: PostgreSQL's status of a command ends with the number of changed rows."""
    if status.endswith(" 0"):
        raise no_such_bucket()


def _read_size_limit(fields: Fields) -> int | None:
    """Return the field ``file_size_limit``, which may be a text such as ``10MB``, in bytes."""
    value = fields.values.get("file_size_limit")
    match = _SIZE.fullmatch(value) if isinstance(value, str) else None
    if match is not None:
        return int(match[1]) * _UNITS[(match[2] or "").lower()]
    return None if value is None else fields.integer("file_size_limit", minimum=0)


def _read_mime_types(fields: Fields) -> list[str] | None:
    if not fields.values.get("allowed_mime_types"):
        return None
    return check_allowed_mime_types(fields.texts("allowed_mime_types", maximum=1000))
