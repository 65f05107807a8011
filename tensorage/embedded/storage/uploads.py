"""Requests that store an object."""

from __future__ import annotations

from datetime import UTC, datetime

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from tensorage.embedded.storage.answers import Metadata, js_time, json_answer
from tensorage.embedded.storage.blobs import Blobs
from tensorage.embedded.storage.caller import identify
from tensorage.embedded.storage.names import check_object_name
from tensorage.embedded.storage.object_rows import NewObject, ObjectWriter
from tensorage.embedded.storage.params import check_storable
from tensorage.embedded.storage.upload_bodies import Upload, receive_upload
from tensorage.embedded.tokens import Tokens


class UploadRoutes:
    """Routes that store objects, whole or not at all, as far as the policies let the caller."""

    def __init__(self, writer: ObjectWriter, tokens: Tokens, blobs: Blobs) -> None:
        self._writer = writer
        self._tokens = tokens
        self._blobs = blobs

    @property
    def routes(self) -> list[Route]:
        return [Route("/object/{bucket}/{name:path}", self._upload, methods=["POST", "PUT"])]

    async def _upload(self, request: Request) -> Response:
        caller = identify(request.headers, self._tokens)
        bucket_id = check_storable(request.path_params["bucket"], "params/bucketName")
        name = check_object_name(request.path_params["name"])
        # In Supabase Storage, too, a PUT may always replace an object.
        upsert = request.method == "PUT" or request.headers.get("x-upsert") == "true"
        # Refusals come before the content is received: a large upload need not be sent for one.
        bucket = await self._writer.check(caller, bucket_id, name, upsert=upsert)
        upload = await receive_upload(request, self._blobs, bucket)
        stored = await self._writer.store(caller, _make_object(bucket_id, name, upload), upsert=upsert)
        return json_answer({"Key": f"{bucket_id}/{name}", "Id": stored.id})


def _make_object(bucket_id: str, name: str, upload: Upload) -> NewObject:
    metadata = Metadata(
        etag=f'"{upload.blob.md5}"',
        size=upload.blob.size,
        mimetype=upload.content_type,
        cache_control=upload.cache_control,
        last_modified=js_time(datetime.now(UTC)),
    )
    return NewObject(bucket_id, name, upload.blob.version, metadata.to_json(), upload.user_metadata)
