"""The ASGI application: routes, and errors in Storage's JSON."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Match, Route
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
        self._router = Router(
            [Route("/status", _status, methods=["GET"]), *_make_refusing_routes(), *self.routes]
        )

    async def start(self) -> None:
        """Make the folders, and clean up after a killed server."""
        await self._version_files.start()
        await self._resumable.start()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        response = await self._answer(Request(scope, receive, send))
        await response(scope, receive, send)

    async def _answer(self, request: Request) -> Response:
        route = self._router.find(request.scope)
        if route is None:
            return _answer_no_route(request)
        try:
            response: Response = await route.endpoint(request)
        except StorageError as error:
            return _make_error_answer(error)
        except ClientDisconnect:
            # The client hung up while it was sending. Nothing was stored, and nobody reads this answer.
            return Response(status_code=400)
        except OSError as error:
            log.error("%s %s: %s", request.method, _read_path(request.scope), error)  # noqa: TRY400  (a full disk)
            return _make_error_answer(from_os(error))
        except Exception:
            log.exception("%s %s", request.method, _read_path(request.scope))
            return _make_error_answer(
                internal("Unexpected failure, please check the server's log for more information")
            )
        return response


class Router:
    """Finds the first route that matches a request, as Starlette's router does.

    That one tries all routes in turn, which takes a tenth of the time of a small download. Here only those are tried
    that have the request's method and begin with the same words.

    Parameters
    ----------
    routes
        All routes, in the order in which they are tried.
    """

    def __init__(self, routes: Sequence[Route]) -> None:
        self._routes = routes
        # Words with which paths of routes begin. All others are one and the same word to the routes.
        self._words = {word for route in routes for word in _first_words(route.path)}
        self._by_begin: dict[tuple[str, ...], list[Route]] = {}

    def find(self, scope: Scope) -> Route | None:
        """Return the route of a request, with its parameters in the scope; None if there is none."""
        method: str = scope["method"]
        begin = [word if word in self._words else "" for word in _first_words(_read_path(scope))]
        for route in self._list_candidates(method, *begin):
            match, found = route.matches(scope)
            if match is Match.FULL:
                scope.update(found)
                return route
        return None

    def _list_candidates(self, method: str, *begin: str) -> list[Route]:
        candidates = self._by_begin.get((method, *begin))
        if candidates is None:
            candidates = [
                route
                for route in self._routes
                if method in (route.methods or ()) and _can_begin(_first_words(route.path), begin)
            ]
            # Nobody makes this grow: methods that no route has are not remembered, and words are few.
            if candidates:
                self._by_begin[method, *begin] = candidates
        return candidates


def _can_begin(words: Sequence[str], begin: Sequence[str]) -> bool:
    """Tell whether the words of a route, some of them parameters, can be those of a path: one of the two may end."""
    return all(own == word or own.startswith("{") for own, word in zip(words, begin, strict=False))


def _first_words(path: str) -> list[str]:
    return path.split("/", 3)[1:3]


def _make_refusing_routes() -> list[Route]:
    return [
        Route(where + rest, _refuse, methods=_METHODS)
        for where in _NOT_SERVED
        for rest in ("", "/{path:path}")
    ]


async def _refuse(request: Request) -> Response:
    path = _read_path(request.scope)
    what = next(words for where, words in _NOT_SERVED.items() if f"{path}/".startswith(f"{where}/"))
    raise not_implemented(f"The embedded backend does not support {what}")


async def _status(_request: Request) -> Response:
    return Response()


def _read_path(scope: Scope) -> str:
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", ""))


def _answer_no_route(request: Request) -> Response:
    message = f"Route {request.method}:{_read_path(request.scope)} not found"
    return json_answer({"message": message, "error": "Not Found", "statusCode": 404}, 404)


def _make_error_answer(error: StorageError) -> Response:
    return json_answer(error.fields, error.http_status)
