"""Requests that read: content, information about content, and signed URLs."""

from __future__ import annotations

import asyncio
import io
import logging
import os
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from email.utils import format_datetime
from typing import Final
from urllib.parse import quote

import asyncpg
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from tensorage.embedded.database import Caller, Database
from tensorage.embedded.storage.answers import Metadata, info_json, json_answer
from tensorage.embedded.storage.blobs import Blobs
from tensorage.embedded.storage.caller import SERVICE, identify, identify_if_possible, verify_signed_url
from tensorage.embedded.storage.content import ContentResponse, parse_range, read_from_memory, read_piece
from tensorage.embedded.storage.database import find_bucket, find_object, transaction
from tensorage.embedded.storage.errors import (
    invalid_jwt,
    invalid_request,
    invalid_signature,
    lost_content,
    no_such_bucket,
    no_such_key,
)
from tensorage.embedded.storage.names import is_object_name
from tensorage.embedded.storage.params import check_storable, read_fields
from tensorage.embedded.tokens import Tokens

log = logging.getLogger(__name__)

#: Most attempts to read an object that is being overwritten: each overwrite deletes the file of the last row.
_ATTEMPTS: Final = 5
_MAX_SIGNED_AT_ONCE: Final = 500

#: Longest life of a signed URL: ten years, as for the project's own keys. A signed URL stays good whatever happens to
#: the rights to its object. Supabase Storage has no limit.
_MAX_LIFETIME_S: Final = 10 * 365 * 86_400
#: Characters of a name that need no escape in a signed URL.
_URL_SAFE: Final = "/!$&'()*+,;=:@"
_NOT_SIGNED: Final = "Either the object does not exist or you do not have access to it"


class DownloadRoutes:
    """Routes that read objects: by the policies, and for everybody by signed URL or from public buckets."""

    def __init__(self, database: Database, tokens: Tokens, blobs: Blobs) -> None:
        self._database = database
        self._tokens = tokens
        self._blobs = blobs

    @property
    def routes(self) -> list[Route]:
        """The routes. Routes with fixed words come first: a bucket's name could be one of the words."""
        return [
            Route("/object/info/public/{bucket}/{name:path}", self._show_public_info, methods=["GET"]),
            Route(
                "/object/info/authenticated/{bucket}/{name:path}", self._show_private_info, methods=["GET"]
            ),
            Route("/object/info/{bucket}/{name:path}", self._show_info, methods=["GET"]),
            Route("/object/sign/{bucket}/{name:path}", self._download_signed, methods=["GET"]),
            Route("/object/sign/{bucket}/{name:path}", self._sign, methods=["POST"]),
            Route("/object/sign/{bucket}", self._sign_many, methods=["POST"]),
            Route("/object/public/{bucket}/{name:path}", self._download_public, methods=["GET"]),
            Route("/object/authenticated/{bucket}/{name:path}", self._download_private, methods=["GET"]),
            Route("/object/{bucket}/{name:path}", self._download, methods=["GET"]),
        ]

    # -- Content ----------------------------------------------------------------------------------------

    async def _download(self, request: Request) -> Response:
        return await self._deliver(request, identify_if_possible(request.headers, self._tokens))

    async def _download_private(self, request: Request) -> Response:
        return await self._deliver(request, identify(request.headers, self._tokens))

    async def _download_public(self, request: Request) -> Response:
        return await self._deliver(request, None)

    async def _download_signed(self, request: Request) -> Response:
        token = request.query_params.get("token")
        if not token:
            raise invalid_request("querystring must have required property 'token'")
        claims = verify_signed_url(token, self._tokens)
        if "exp" not in claims or not isinstance(claims.get("url"), str):
            # A user's access token, for example, is a good token, but not that of a URL.
            raise invalid_jwt("The token is not that of a signed URL")
        if claims["url"] != "/".join(_read_key(request)):
            raise invalid_signature("The token was signed for another object")
        return await self._deliver(request, SERVICE)

    async def _deliver(self, request: Request, caller: Caller | None) -> Response:
        """Answer with the content of an object. A caller of None can read public buckets."""
        last_version = None
        for _ in range(_ATTEMPTS):
            row = await self._find(request, caller)
            metadata = Metadata.from_json(row["metadata"])
            headers = _make_content_headers(request, row, metadata)
            if request.headers.get("if-none-match") == metadata.etag:
                return Response(status_code=304, headers={**headers, "content-length": "0"})
            span, status = range(metadata.size), 200
            if "range" in request.headers:
                span, status = parse_range(request.headers["range"], metadata.size), 206
                headers["content-range"] = f"bytes {span.start}-{span.stop - 1}/{metadata.size}"
            if request.method == "HEAD":
                headers["content-length"] = str(len(span))
                return Response(status_code=status, headers=headers)
            try:
                file, first = await self._open(row["version"], metadata.size, span)
            except OSError as error:
                if row["version"] == last_version or not isinstance(error, FileNotFoundError):
                    log.exception("the file of %s/%s cannot be read", row["bucket_id"], row["name"])
                    raise lost_content(row["bucket_id"], row["name"]) from error
                # The object was overwritten after its row was read. The new row has another version: read that.
                last_version = row["version"]
                continue
            return ContentResponse(file, first, span, status=status, headers=headers)
        raise lost_content(*_read_key(request))

    async def _open(self, version: str, size: int, span: range) -> tuple[io.FileIO, bytes]:
        """Open a blob and read its first piece: in a thread if the disk has to be waited for."""
        try:
            return self._open_to_read(read_from_memory, version, size, span)
        except BlockingIOError:
            # Opened again by the thread, and closed by it if nobody waits any more.
            return await asyncio.to_thread(self._open_to_read, read_piece, version, size, span)

    def _open_to_read(
        self, read: Callable[[io.FileIO, range], bytes], version: str, size: int, span: range
    ) -> tuple[io.FileIO, bytes]:
        with ExitStack() as opened:
            file = opened.enter_context(self._blobs.open(version))
            if os.fstat(file.fileno()).st_size != size:
                raise OSError(f"the file of version {version} does not have the {size} bytes of its row")
            first = read(file, span)
            opened.pop_all()
            return file, first

    # -- Information ------------------------------------------------------------------------------------

    async def _show_info(self, request: Request) -> Response:
        return await self._answer_info(request, identify_if_possible(request.headers, self._tokens))

    async def _show_private_info(self, request: Request) -> Response:
        return await self._answer_info(request, identify(request.headers, self._tokens))

    async def _show_public_info(self, request: Request) -> Response:
        return await self._answer_info(request, None)

    async def _answer_info(self, request: Request, caller: Caller | None) -> Response:
        row = await self._find(request, caller)
        metadata = Metadata.from_json(row["metadata"])
        headers = {"etag": metadata.etag, "cache-control": metadata.cache_control}
        return json_answer(info_json(row, metadata), headers=_make_sendable(headers))

    async def _find(self, request: Request, caller: Caller | None) -> asyncpg.Record:
        """Return the row of the requested object, or refuse it if the caller may not see it."""
        bucket_id, name = _read_key(request)
        check_storable(bucket_id, "params/bucketName")
        # Tried first as the caller: nearly always the policies show the object, and one query is enough.
        row = None if caller is None else await find_object(self._database, caller, bucket_id, name)
        if row is None:
            async with transaction(self._database, SERVICE, read_only=True) as connection:
                is_public = (await find_bucket(connection, bucket_id)).public
            if is_public:
                row = await find_object(self._database, SERVICE, bucket_id, name)
            elif caller is None:
                raise no_such_bucket()
        return _require_object(row)

    # -- Signed URLs ------------------------------------------------------------------------------------

    async def _sign(self, request: Request) -> Response:
        caller = identify(request.headers, self._tokens)
        lifetime_s = (await read_fields(request)).integer("expiresIn", minimum=1, maximum=_MAX_LIFETIME_S)
        bucket_id, name = _read_key(request)
        check_storable(bucket_id, "params/bucketName")
        _require_object(
            await find_object(self._database, caller, bucket_id, name, operation="storage.object.sign")
        )
        return json_answer({"signedURL": self._sign_url(bucket_id, name, lifetime_s)})

    async def _sign_many(self, request: Request) -> Response:
        caller = identify(request.headers, self._tokens)
        fields = await read_fields(request)
        lifetime_s = fields.integer("expiresIn", minimum=1, maximum=_MAX_LIFETIME_S)
        paths = fields.texts("paths", maximum=_MAX_SIGNED_AT_ONCE)
        bucket_id = check_storable(request.path_params["bucket"], "params/bucketName")
        async with transaction(
            self._database, caller, read_only=True, operation="storage.object.sign_many"
        ) as connection:
            rows = await connection.fetch(
                "select name from storage.objects where bucket_id = $1 and name = any($2::text[])",
                bucket_id,
                [path for path in paths if is_object_name(path)],
            )
        seen = {row["name"] for row in rows}
        return json_answer(
            [
                {
                    "error": None if path in seen else _NOT_SIGNED,
                    "path": path,
                    "signedURL": self._sign_url(bucket_id, path, lifetime_s) if path in seen else None,
                }
                for path in paths
            ]
        )

    def _sign_url(self, bucket_id: str, name: str, lifetime_s: int) -> str:
        now, url = int(time.time()), f"{bucket_id}/{name}"
        token = self._tokens.sign({"url": url, "iat": now, "exp": now + lifetime_s})
        return f"/object/sign/{quote(url, safe=_URL_SAFE)}?token={token}"


def _read_key(request: Request) -> tuple[str, str]:
    return request.path_params["bucket"], request.path_params["name"]


def _require_object(row: asyncpg.Record | None) -> asyncpg.Record:
    if row is None:
        raise no_such_key()
    return row


def _make_content_headers(request: Request, row: asyncpg.Record, metadata: Metadata) -> dict[str, str]:
    headers = {
        "accept-ranges": "bytes",
        "content-type": metadata.mimetype,
        "etag": metadata.etag,
        "x-robots-tag": "none",
        "cache-control": metadata.cache_control,
        "last-modified": format_datetime(row["updated_at"], usegmt=True),
    }
    if request.headers.get("if-none-match", metadata.etag) != metadata.etag:
        headers["cache-control"] += ", stale-while-revalidate=30"
    name = request.query_params.get("download")
    if name is not None:
        headers["content-disposition"] = "attachment"
        if name:
            headers["content-disposition"] += f"; filename*=UTF-8''{quote(name, safe='')}"
    return _make_sendable(headers)


def _make_sendable(headers: Mapping[str, str]) -> dict[str, str]:
    """Return headers with printable values in Latin-1. Metadata in a row may hold any text."""
    return {name: _make_value_sendable(value) for name, value in headers.items()}


def _make_value_sendable(value: str) -> str:
    if value.isascii() and value.isprintable():
        return value
    return (
        "".join(c if c.isprintable() else " " for c in value).encode("latin-1", "replace").decode("latin-1")
    )
