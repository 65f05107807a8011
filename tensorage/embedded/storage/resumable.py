"""Requests that store an object in several pieces: TUS 1.0.0, as in Supabase Storage.

Only the caller who began an upload can continue, see and end it. The policies are asked when the upload begins, and
again when its object is stored, before the last bytes are acknowledged.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from tensorage.embedded.database import Caller
from tensorage.embedded.storage import tus
from tensorage.embedded.storage.answers import Metadata, js_time
from tensorage.embedded.storage.blobs import new_version
from tensorage.embedded.storage.caller import identify
from tensorage.embedded.storage.errors import StorageError, from_os, too_large, tus_refusal
from tensorage.embedded.storage.names import check_mime_type, check_object_name
from tensorage.embedded.storage.object_rows import NewObject, ObjectWriter
from tensorage.embedded.storage.params import check_storable
from tensorage.embedded.storage.resumable_files import ResumableFiles, ResumableUpload, UploadDeclaration
from tensorage.embedded.storage.upload_bodies import OCTETS, Sink, check_user_metadata
from tensorage.embedded.storage.upload_locks import UploadLock, UploadLocks
from tensorage.embedded.storage.version_files import VersionFiles
from tensorage.embedded.tokens import Tokens

log = logging.getLogger(__name__)

#: Seconds for which an upload can be continued, as on hosted Supabase.
_LIFETIME_S: Final = 24 * 3600
#: Seconds between two searches for expired uploads.
_CLEANUP_INTERVAL_S: Final = 3600

_PATH: Final = "/upload/resumable"

_Handler = Callable[["ResumableRoutes", Request, Caller], Awaitable[Response]]


def _answer_in_plain_text(handler: _Handler) -> Callable[[ResumableRoutes, Request], Awaitable[Response]]:
    """Wrap a handler, so that errors are answered as in TUS: with their true status, in plain text."""

    @functools.wraps(handler)
    async def answer(self: ResumableRoutes, request: Request) -> Response:
        # Outside the try: refusals of tokens are answered in JSON, as in Supabase Storage.
        caller = identify(request.headers, self.tokens)
        try:
            tus.check_version(request.headers)
            return await handler(self, request, caller)
        except StorageError as error:
            refusal = error
        except OSError as error:
            log.exception("%s %s", request.method, request.url.path)
            refusal = from_os(error)
        return PlainTextResponse(refusal.message, refusal.status, {"Tus-Resumable": tus.VERSION})

    return answer


class ResumableRoutes:
    """Routes of uploads that survive a broken connection and a restart of the server."""

    def __init__(
        self, writer: ObjectWriter, tokens: Tokens, version_files: VersionFiles, files: ResumableFiles
    ) -> None:
        self.tokens = tokens
        self._writer = writer
        self._version_files = version_files
        self._files = files
        self._locks = UploadLocks()
        self._next_cleanup = 0.0

    @property
    def routes(self) -> list[Route]:
        routes = [Route(_PATH + end, self._create, methods=["POST"]) for end in ("", "/")]
        one = _PATH + "/{upload}"
        return [
            *(
                Route(path, self._tell_capabilities, methods=["OPTIONS"])
                for path in (_PATH, _PATH + "/", one)
            ),
            *routes,
            Route(one, self._tell_progress, methods=["HEAD"]),
            Route(one, self._continue, methods=["PATCH"]),
            Route(one, self._end, methods=["DELETE"]),
        ]

    async def start(self) -> None:
        """Make the folder, and delete expired uploads."""
        await asyncio.to_thread(self._files.prepare)
        await self._delete_expired()

    # -- Requests ---------------------------------------------------------------------------------------

    async def _tell_capabilities(self, _request: Request) -> Response:
        return Response(status_code=204, headers=tus.CAPABILITIES)

    @_answer_in_plain_text
    async def _create(self, request: Request, caller: Caller) -> Response:
        declaration = await self._declare(request, caller)
        await self._delete_expired()
        upload = await asyncio.to_thread(self._files.create, declaration)
        try:
            if tus.has_content(request.headers) and declaration.size:
                async with self._locks.hold(declaration.id) as lock:
                    upload = await self._receive(request, caller, upload, lock)
            elif not declaration.size:
                upload = await self._store(request, caller, upload)
        except BaseException:
            # No client knows the upload yet: nobody could continue it.
            await asyncio.to_thread(self._files.remove, declaration.id)
            raise
        base = f"{request.url.scheme}://{request.url.netloc}{request.scope.get('root_path', '')}"
        headers = tus.make_progress_headers(upload) | {"Location": f"{base}{_PATH}/{declaration.id}"}
        return Response(status_code=201, headers=headers)

    @_answer_in_plain_text
    async def _tell_progress(self, request: Request, caller: Caller) -> Response:
        async with self._lock_upload(request, caller) as (_, upload):
            pass
        headers = tus.make_progress_headers(upload) | {
            "Cache-Control": "no-store",
            "Upload-Length": str(upload.declaration.size),
            "Upload-Metadata": upload.declaration.sent_metadata,
        }
        return Response(headers=headers)

    @_answer_in_plain_text
    async def _continue(self, request: Request, caller: Caller) -> Response:
        tus.check_media_type(request.headers)
        offset = tus.read_upload_offset(request.headers)
        async with self._lock_upload(request, caller) as (lock, found):
            if offset != found.offset:
                raise tus_refusal(409, f"The upload continues at {found.offset}, not at {offset}")
            if int(request.headers.get("content-length", "0")) > found.missing_nbytes:
                raise too_large("There are more bytes than the upload was said to have")
            upload = found if found.is_finished else await self._receive(request, caller, found, lock)
        return Response(status_code=204, headers=tus.make_progress_headers(upload))

    @_answer_in_plain_text
    async def _end(self, request: Request, caller: Caller) -> Response:
        async with self._lock_upload(request, caller) as (_, upload):
            if upload.is_finished:
                raise tus_refusal(400, "The upload is finished: remove the object")
            await asyncio.to_thread(self._files.remove, upload.declaration.id)
        return Response(status_code=204, headers={"Tus-Resumable": tus.VERSION})

    # -- Steps of requests ------------------------------------------------------------------------------

    async def _declare(self, request: Request, caller: Caller) -> UploadDeclaration:
        """Return the declaration of an upload that a request begins. Refuse it if its object would be refused."""
        size, pairs = tus.read_upload_length(request.headers), tus.read_upload_metadata(request.headers)
        bucket_id = check_storable(tus.read_metadata_text(pairs, "bucketName"), "metadata/bucketName")
        name = check_object_name(tus.read_metadata_text(pairs, "objectName"))
        content_type = tus.read_metadata_text(pairs, "contentType") or OCTETS
        user_metadata = check_user_metadata(pairs["metadata"]) if pairs.get("metadata") else "{}"
        bucket = await self._writer.check(caller, bucket_id, name, upsert=_is_upsert(request), size=size)
        if bucket.file_size_limit and size > bucket.file_size_limit:
            raise too_large()
        return UploadDeclaration(
            id=new_version(),
            role=caller.role,
            subject=_read_subject(caller),
            bucket_id=bucket_id,
            name=name,
            size=size,
            content_type=check_mime_type(content_type, bucket.allowed_mime_types),
            cache_control=tus.make_cache_control(tus.read_metadata_text(pairs, "cacheControl")),
            user_metadata=user_metadata,
            sent_metadata=request.headers["upload-metadata"],
            expires_at=time.time() + _LIFETIME_S,
        )

    @asynccontextmanager
    async def _lock_upload(
        self, request: Request, caller: Caller
    ) -> AsyncIterator[tuple[UploadLock, ResumableUpload]]:
        """Lock the upload of a request, and give it with its lock."""
        upload_id = request.path_params["upload"]
        # Checked before the lock: other users must not make the upload's own user wait.
        await self._find(upload_id, caller)
        async with self._locks.hold(upload_id) as lock:
            yield lock, await self._settle(await self._find(upload_id, caller))

    async def _find(self, upload_id: str, caller: Caller) -> ResumableUpload:
        """Return an upload of the caller's. Refuse other and expired ones."""
        upload = await asyncio.to_thread(self._files.find, upload_id)
        if upload is None or not upload.declaration.belongs_to(caller.role, _read_subject(caller)):
            raise tus_refusal(404, "There is no such upload")
        if upload.declaration.expires_at < time.time():
            raise tus_refusal(410, "The upload has expired")
        return upload

    async def _settle(self, upload: ResumableUpload) -> ResumableUpload:
        """Return an upload, as finished if its object was stored although PostgreSQL or the server was lost."""
        upload_id = upload.declaration.id
        if (
            not upload.is_finished
            and await asyncio.to_thread(self._version_files.blobs.has, upload_id)
            and await self._version_files.settle(upload_id)
        ):
            return await asyncio.to_thread(self._files.finish, upload)
        return upload

    async def _receive(
        self, request: Request, caller: Caller, upload: ResumableUpload, lock: UploadLock
    ) -> ResumableUpload:
        """Append the body of a request, or the part that arrives. Store the object after the last byte."""
        sink = Sink(self._files.continue_content(upload), upload.missing_nbytes)
        try:
            interruption = await lock.receive(_pour(request, sink))
            nbytes = await sink.finish()
        except BaseException:
            await sink.discard()
            raise
        if nbytes == upload.missing_nbytes:
            return await self._store(request, caller, upload)
        # Bytes that arrived before an interruption count: the client continues after them.
        upload = await asyncio.to_thread(self._files.advance, upload, upload.offset + nbytes)
        if interruption is not None:
            raise interruption
        return upload

    async def _store(self, request: Request, caller: Caller, upload: ResumableUpload) -> ResumableUpload:
        """Store the object of an upload with all its content. If it is refused, the last piece does not count."""
        upload_id = upload.declaration.id
        await asyncio.to_thread(
            self._version_files.blobs.adopt, self._files.content_path(upload_id), upload_id
        )
        await self._writer.store(caller, _make_object(upload.declaration), upsert=_is_upsert(request))
        return await asyncio.to_thread(self._files.finish, upload)

    async def _delete_expired(self) -> None:
        if time.monotonic() < self._next_cleanup:
            return
        self._next_cleanup = time.monotonic() + _CLEANUP_INTERVAL_S
        await asyncio.to_thread(self._files.delete_expired, time.time())


async def _pour(request: Request, sink: Sink[int]) -> None:
    async for piece in request.stream():
        await sink.add(piece)


def _is_upsert(request: Request) -> bool:
    # Every request of an upload carries the header, as in Supabase Storage.
    return request.headers.get("x-upsert") == "true"


def _read_subject(caller: Caller) -> Any:
    return caller.claims.get("sub")


def _make_object(declaration: UploadDeclaration) -> NewObject:
    metadata = Metadata(
        # Content that arrives in pieces has no digest. The version identifies it as well.
        etag=f'"{declaration.id}"',
        size=declaration.size,
        mimetype=declaration.content_type,
        cache_control=declaration.cache_control,
        last_modified=js_time(datetime.now(UTC)),
    )
    return NewObject(
        declaration.bucket_id, declaration.name, declaration.id, metadata.to_json(), declaration.user_metadata
    )
