"""The ASGI application: routes, and errors in Storage's JSON."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Final

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from tensorage.embedded.database import Database
from tensorage.embedded.storage.answers import json_answer
from tensorage.embedded.storage.blobs import Blobs
from tensorage.embedded.storage.buckets import BucketRoutes
from tensorage.embedded.storage.downloads import DownloadRoutes
from tensorage.embedded.storage.errors import StorageError, from_os, internal, not_implemented
from tensorage.embedded.storage.object_rows import ObjectWriter
from tensorage.embedded.storage.objects import ObjectRoutes
from tensorage.embedded.storage.resumable import ResumableRoutes
from tensorage.embedded.storage.resumable_files import ResumableFiles
from tensorage.embedded.storage.uploads import UploadRoutes
from tensorage.embedded.storage.version_files import VersionFiles
from tensorage.embedded.tokens import Tokens

log = logging.getLogger(__name__)

_METHODS: Final = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]

#: Features of Supabase Storage that this server lacks, by path, with the way out.
_NOT_SERVED: Final = {
    "/upload/resumable/sign": "signed resumable uploads: upload with a user's token",
    "/s3": "the S3 protocol: use the routes below /object",
    "/render/image": "the transformation of images: download the object as it is",
    "/object/upload/sign": "signed upload URLs: upload with a user's token",
    "/object/list-v2": "this kind of listing: use /object/list",
    "/iceberg": "Iceberg catalogues",
    "/vector": "vector buckets",
}


class StorageApi:
    """Supabase Storage's protocol over the schema ``storage``.

    Parameters
    ----------
    database
        Pool of the role ``authenticator``.
    tokens
        Verifies bearer tokens, and signs and verifies URLs.
    path
        Folder of the objects' files. No other server may use it.

    Attributes
    ----------
    routes
        Routes that are served, in the order in which they are tried.
    """

    def __init__(self, database: Database, tokens: Tokens, path: Path) -> None:
        blobs = Blobs(path)
        self._version_files = VersionFiles(blobs, database)
        writer = ObjectWriter(database, self._version_files)
        self._resumable = ResumableRoutes(
            writer, tokens, self._version_files, ResumableFiles(path / "resumable")
        )
        self.routes = [
            *self._resumable.routes,
            *BucketRoutes(database, tokens, self._version_files).routes,
            *ObjectRoutes(database, tokens, self._version_files).routes,
            # Last, since names of objects match nearly every path.
            *DownloadRoutes(database, tokens, blobs).routes,
            *UploadRoutes(writer, tokens, blobs).routes,
        ]
        self._app = Starlette(
            routes=[
                Route("/status", _status, methods=["GET"]),
                *_make_refusing_routes(),
                *self.routes,
            ],
            exception_handlers={
                StorageError: _answer_storage_error,
                HTTPException: _answer_no_route,
                ClientDisconnect: _answer_nobody,
                OSError: _answer_disk_error,
                Exception: _answer_unexpected,
            },
        )
        self._app.router.redirect_slashes = False

    async def start(self) -> None:
        """Make the folders, and clean up after a killed server."""
        await self._version_files.start()
        await self._resumable.start()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._app(scope, receive, send)


def _make_refusing_routes() -> list[Route]:
    return [
        Route(where + rest, _refuse, methods=_METHODS)
        for where in _NOT_SERVED
        for rest in ("", "/{path:path}")
    ]


async def _refuse(request: Request) -> Response:
    path = _read_path(request)
    what = next(words for where, words in _NOT_SERVED.items() if f"{path}/".startswith(f"{where}/"))
    raise not_implemented(f"The embedded backend does not support {what}")


async def _status(_request: Request) -> Response:
    return Response()


def _read_path(request: Request) -> str:
    path: str = request.scope["path"]
    return path.removeprefix(request.scope.get("root_path", ""))


async def _answer_storage_error(_request: Request, error: Exception) -> Response:
    assert isinstance(error, StorageError)
    return _make_error_answer(error)


async def _answer_no_route(request: Request, _error: Exception) -> Response:
    message = f"Route {request.method}:{_read_path(request)} not found"
    return json_answer({"message": message, "error": "Not Found", "statusCode": 404}, 404)


async def _answer_nobody(_request: Request, _error: Exception) -> Response:
    # The client hung up while it was sending or receiving. Nothing was stored, and nobody reads this answer.
    return Response(status_code=400)


async def _answer_disk_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, OSError)
    log.error("%s %s: %s", request.method, _read_path(request), error)
    return _make_error_answer(from_os(error))


async def _answer_unexpected(_request: Request, _error: Exception) -> Response:
    return _make_error_answer(
        internal("Unexpected failure, please check the server's log for more information")
    )


def _make_error_answer(error: StorageError) -> Response:
    return json_answer(error.fields, error.http_status)
