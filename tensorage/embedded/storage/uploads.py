"""Requests that store an object's content."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from tensorage.embedded.database import Caller, Database
from tensorage.embedded.storage.answers import json_answer
from tensorage.embedded.storage.caller import SERVICE, identify
from tensorage.embedded.storage.custody import Custody
from tensorage.embedded.storage.database import Bucket, become, find_bucket, transaction
from tensorage.embedded.storage.errors import UNIQUE, key_already_exists
from tensorage.embedded.storage.intake import Upload, receive
from tensorage.embedded.storage.names import checked_object_name
from tensorage.embedded.storage.params import storable
from tensorage.embedded.storage.placement import NewObject, Placed, place, try_to_place
from tensorage.embedded.storage.records import Metadata, js_time
from tensorage.embedded.tokens import Tokens

_REFUSALS: Final = {UNIQUE: key_already_exists}


class UploadRoutes:
    """Objects are stored by whoever the policies let: whole, or not at all."""

    def __init__(self, database: Database, tokens: Tokens, custody: Custody) -> None:
        self._database = database
        self._tokens = tokens
        self._custody = custody

    @property
    def routes(self) -> list[Route]:
        return [Route("/object/{bucket}/{name:path}", self._upload, methods=["POST", "PUT"])]

    async def _upload(self, request: Request) -> Response:
        caller = identify(request.headers, self._tokens)
        bucket_id = storable(request.path_params["bucket"], "params/bucketName")
        name = checked_object_name(request.path_params["name"])
        upsert = request.method == "PUT" or request.headers.get("x-upsert") == "true"
        bucket = await self._check(caller, bucket_id, name, upsert=upsert)
        upload = await receive(request, self._custody.blobs, bucket)
        placed = await self._store(caller, _new_object(bucket_id, name, upload), upsert=upsert)
        return json_answer({"Key": f"{bucket_id}/{name}", "Id": placed.id})

    async def _check(self, caller: Caller, bucket_id: str, name: str, *, upsert: bool) -> Bucket:
        """Refuse what will be refused, before its bytes are received."""
        async with transaction(self._database, SERVICE, refusals=_REFUSALS) as connection:
            bucket = await find_bucket(connection, bucket_id)
            await become(connection, caller)
            await try_to_place(connection, caller, bucket_id, name, upsert=upsert)
        return bucket

    async def _store(self, caller: Caller, new: NewObject, *, upsert: bool) -> Placed:
        async with (
            self._custody.holding(new.version),
            transaction(self._database, caller, refusals=_REFUSALS) as connection,
        ):
            placed = await place(connection, caller, new, upsert=upsert)
            replaced = await self._custody.release(placed.replaced)
        await self._custody.drop(replaced)
        return placed


def _new_object(bucket_id: str, name: str, upload: Upload) -> NewObject:
    metadata = Metadata(
        etag=f'"{upload.blob.md5}"',
        size=upload.blob.size,
        mimetype=upload.content_type,
        cache_control=upload.cache_control,
        last_modified=js_time(datetime.now(UTC)),
    )
    return NewObject(bucket_id, name, upload.blob.version, metadata.to_json(), upload.user_metadata)
