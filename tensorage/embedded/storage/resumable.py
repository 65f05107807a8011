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
from tensorage.embedded.storage.blobs import new_version
from tensorage.embedded.storage.caller import identify
from tensorage.embedded.storage.custody import Custody
from tensorage.embedded.storage.errors import StorageError, from_os, too_large, tus_refusal
from tensorage.embedded.storage.intake import OCTETS, Sink, user_metadata_json
from tensorage.embedded.storage.names import checked_mime_type, checked_object_name
from tensorage.embedded.storage.params import storable
from tensorage.embedded.storage.partial import Declared, Partial, Partials
from tensorage.embedded.storage.placement import NewObject
from tensorage.embedded.storage.records import Metadata, js_time
from tensorage.embedded.storage.storing import Storing
from tensorage.embedded.storage.turns import Turn, Turns
from tensorage.embedded.tokens import Tokens

log = logging.getLogger(__name__)

#: Seconds for which an upload can be continued, as on hosted Supabase.
_LIFETIME_S: Final = 24 * 3600
_SWEEP_INTERVAL_S: Final = 3600

_PATH: Final = "/upload/resumable"

_Handler = Callable[["ResumableRoutes", Request, Caller], Awaitable[Response]]


def _in_plain_text(handler: _Handler) -> Callable[[ResumableRoutes, Request], Awaitable[Response]]:
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

    def __init__(self, storing: Storing, tokens: Tokens, custody: Custody, partials: Partials) -> None:
        self.tokens = tokens
        self._storing = storing
        self._custody = custody
        self._partials = partials
        self._turns = Turns()
        self._next_sweep = 0.0

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
        await asyncio.to_thread(self._partials.prepare)
        await self._sweep()

    # -- Requests ---------------------------------------------------------------------------------------

    async def _tell_capabilities(self, _request: Request) -> Response:
        return Response(status_code=204, headers=tus.CAPABILITIES)

    @_in_plain_text
    async def _create(self, request: Request, caller: Caller) -> Response:
        declared = await self._declare(request, caller)
        await self._sweep()
        partial = await asyncio.to_thread(self._partials.create, declared)
        try:
            if tus.has_content(request.headers) and declared.size:
                async with self._turns.turn(declared.id) as turn:
                    partial = await self._receive(request, caller, partial, turn)
            elif not declared.size:
                partial = await self._store(request, caller, partial)
        except BaseException:
            # No client knows the upload yet: nobody could continue it.
            await asyncio.to_thread(self._partials.remove, declared.id)
            raise
        base = f"{request.url.scheme}://{request.url.netloc}{request.scope.get('root_path', '')}"
        headers = tus.progress_headers(partial) | {"Location": f"{base}{_PATH}/{declared.id}"}
        return Response(status_code=201, headers=headers)

    @_in_plain_text
    async def _tell_progress(self, request: Request, caller: Caller) -> Response:
        async with self._turn_at(request, caller) as (_, partial):
            pass
        headers = tus.progress_headers(partial) | {
            "Cache-Control": "no-store",
            "Upload-Length": str(partial.declared.size),
            "Upload-Metadata": partial.declared.sent_metadata,
        }
        return Response(headers=headers)

    @_in_plain_text
    async def _continue(self, request: Request, caller: Caller) -> Response:
        tus.check_media_type(request.headers)
        offset = tus.upload_offset(request.headers)
        async with self._turn_at(request, caller) as (turn, found):
            if offset != found.offset:
                raise tus_refusal(409, f"The upload continues at {found.offset}, not at {offset}")
            if int(request.headers.get("content-length", "0")) > found.missing_nbytes:
                raise too_large("There are more bytes than the upload was said to have")
            partial = found if found.is_finished else await self._receive(request, caller, found, turn)
        return Response(status_code=204, headers=tus.progress_headers(partial))

    @_in_plain_text
    async def _end(self, request: Request, caller: Caller) -> Response:
        async with self._turn_at(request, caller) as (_, partial):
            if partial.is_finished:
                raise tus_refusal(400, "The upload is finished: remove the object")
            await asyncio.to_thread(self._partials.remove, partial.declared.id)
        return Response(status_code=204, headers={"Tus-Resumable": tus.VERSION})

    # -- Steps of requests ------------------------------------------------------------------------------

    async def _declare(self, request: Request, caller: Caller) -> Declared:
        """Return the declaration of an upload that a request begins. Refuse it if its object would be refused."""
        size, pairs = tus.upload_length(request.headers), tus.upload_metadata(request.headers)
        bucket_id = storable(tus.metadata_text(pairs, "bucketName"), "metadata/bucketName")
        name = checked_object_name(tus.metadata_text(pairs, "objectName"))
        content_type = tus.metadata_text(pairs, "contentType") or OCTETS
        user_metadata = user_metadata_json(pairs["metadata"]) if pairs.get("metadata") else "{}"
        bucket = await self._storing.check(caller, bucket_id, name, upsert=_is_upsert(request), size=size)
        if bucket.file_size_limit and size > bucket.file_size_limit:
            raise too_large()
        return Declared(
            id=new_version(),
            role=caller.role,
            subject=_subject(caller),
            bucket_id=bucket_id,
            name=name,
            size=size,
            content_type=checked_mime_type(content_type, bucket.allowed_mime_types),
            cache_control=tus.cache_control(tus.metadata_text(pairs, "cacheControl")),
            user_metadata=user_metadata,
            sent_metadata=request.headers["upload-metadata"],
            expires_at=time.time() + _LIFETIME_S,
        )

    @asynccontextmanager
    async def _turn_at(self, request: Request, caller: Caller) -> AsyncIterator[tuple[Turn, Partial]]:
        """Lock the upload of a request, and give it with its lock."""
        upload_id = request.path_params["upload"]
        # Checked before the lock: other users must not make the upload's own user wait.
        await self._find(upload_id, caller)
        async with self._turns.turn(upload_id) as turn:
            yield turn, await self._settled(await self._find(upload_id, caller))

    async def _find(self, upload_id: str, caller: Caller) -> Partial:
        """Return an upload of the caller's. Refuse other and expired ones."""
        partial = await asyncio.to_thread(self._partials.find, upload_id)
        if partial is None or not partial.declared.is_of(caller.role, _subject(caller)):
            raise tus_refusal(404, "There is no such upload")
        if partial.declared.expires_at < time.time():
            raise tus_refusal(410, "The upload has expired")
        return partial

    async def _settled(self, partial: Partial) -> Partial:
        """Return an upload, as finished if its object was stored although PostgreSQL or the server was lost."""
        upload_id = partial.declared.id
        if (
            not partial.is_finished
            and await asyncio.to_thread(self._custody.blobs.has, upload_id)
            and await self._custody.settle(upload_id)
        ):
            return await asyncio.to_thread(self._partials.finish, partial)
        return partial

    async def _receive(self, request: Request, caller: Caller, partial: Partial, turn: Turn) -> Partial:
        """Append the body of a request, or the part that arrives. Store the object after the last byte."""
        sink = Sink(self._partials.part(partial), partial.missing_nbytes)
        try:
            interruption = await turn.receive(_pour(request, sink))
            nbytes = await sink.finish()
        except BaseException:
            await sink.discard()
            raise
        if nbytes == partial.missing_nbytes:
            return await self._store(request, caller, partial)
        # Bytes that arrived before an interruption count: the client continues after them.
        partial = await asyncio.to_thread(self._partials.advance, partial, partial.offset + nbytes)
        if interruption is not None:
            raise interruption
        return partial

    async def _store(self, request: Request, caller: Caller, partial: Partial) -> Partial:
        """Store the object of an upload with all its content. If it is refused, the last piece does not count."""
        upload_id = partial.declared.id
        await asyncio.to_thread(self._custody.blobs.adopt, self._partials.content(upload_id), upload_id)
        await self._storing.store(caller, _new_object(partial.declared), upsert=_is_upsert(request))
        return await asyncio.to_thread(self._partials.finish, partial)

    async def _sweep(self) -> None:
        if time.monotonic() < self._next_sweep:
            return
        self._next_sweep = time.monotonic() + _SWEEP_INTERVAL_S
        await asyncio.to_thread(self._partials.sweep, time.time())


async def _pour(request: Request, sink: Sink[int]) -> None:
    async for piece in request.stream():
        await sink.add(piece)


def _is_upsert(request: Request) -> bool:
    # Every request of an upload carries the header, as in Supabase Storage.
    return request.headers.get("x-upsert") == "true"


def _subject(caller: Caller) -> Any:
    return caller.claims.get("sub")


def _new_object(declared: Declared) -> NewObject:
    metadata = Metadata(
        # Content that arrives in pieces has no digest. The version identifies it as well.
        etag=f'"{declared.id}"',
        size=declared.size,
        mimetype=declared.content_type,
        cache_control=declared.cache_control,
        last_modified=js_time(datetime.now(UTC)),
    )
    return NewObject(
        declared.bucket_id, declared.name, declared.id, metadata.to_json(), declared.user_metadata
    )
