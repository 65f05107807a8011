"""Routes of the server, with the checks of hosted Supabase's API gateway in front of them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Mount, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tensorage.embedded.access import ApiKeys, OwnHosts
from tensorage.embedded.auth import AuthApi
from tensorage.embedded.database import Database, is_outage
from tensorage.embedded.rest import RestApi
from tensorage.embedded.storage import StorageApi
from tensorage.embedded.tokens import Tokens


@dataclass(frozen=True)
class Settings:
    """Settings with which the server serves one data folder.

    Parameters
    ----------
    rest_dsn, auth_dsn
        URLs of PostgreSQL for the roles ``authenticator`` and ``supabase_auth_admin``.
    storage_dir
        Folder of Storage's files.
    jwt_secret
        The HS256 key of every token.
    anon_key, service_role_key
        The project's API keys.
    jwt_lifetime_s
        Seconds for which an access token is good (hosted Supabase: 3600).
    allows_anonymous
        True if anybody may make an account without an address. Hosted Supabase asks the owner of the project first.
    """

    rest_dsn: str = field(repr=False)
    auth_dsn: str = field(repr=False)
    storage_dir: Path
    jwt_secret: str = field(repr=False)
    anon_key: str = field(repr=False)
    service_role_key: str = field(repr=False)
    jwt_lifetime_s: int = 3600
    allows_anonymous: bool = True


#: Methods whose answers no cache keeps.
_WITHOUT_CACHES = frozenset({"POST", "PUT", "PATCH", "DELETE"})

#: Methods of requests that need not be a page's. OPTIONS asks for a page.
_SHORT_WAY = _WITHOUT_CACHES | {"GET", "HEAD"}

_VARY = (b"vary", b"Origin")


def build_app(settings: Settings) -> ASGIApp:
    """Return the ASGI application, whose lifespan opens and closes the pools."""
    tokens = Tokens(settings.jwt_secret)
    # Ten connections for requests, and one that listens for changes of the schema.
    rest_database = Database(settings.rest_dsn, max_size=11)
    auth_database = Database(settings.auth_dsn, max_size=4)
    keys = frozenset({settings.anon_key, settings.service_role_key})
    rest = RestApi(rest_database, tokens)
    auth = AuthApi(
        auth_database,
        tokens,
        jwt_lifetime_s=settings.jwt_lifetime_s,
        allows_anonymous=settings.allows_anonymous,
    )

    storage = StorageApi(rest_database, tokens, settings.storage_dir)

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        # The pools open first: the APIs use them at their start.
        await rest_database.open()
        await auth_database.open()
        await rest.start()
        await storage.start()
        try:
            yield
        finally:
            await rest.stop()
            await rest_database.close()
            await auth_database.close()

    async def health(_request: Request) -> JSONResponse:
        # Asked by `control.start`, which waits until PostgreSQL answers, too.
        try:
            async with rest_database.connection() as connection:
                await connection.execute("select 1")
        except Exception as error:
            if not is_outage(error):
                raise
            return JSONResponse({"name": "tensorage", "status": "its database is down"}, 503)
        return JSONResponse({"name": "tensorage", "status": "ok"})

    apis: dict[str, ASGIApp] = {
        "/auth/v1": ApiKeys(auth, keys),
        "/rest/v1": ApiKeys(rest, keys),
        # Without keys: see `ApiKeys`.
        "/storage/v1": storage,
    }
    app = Starlette(
        routes=[
            Route("/health", health),
            *(Mount(path, app=api) for path, api in apis.items()),
        ],
        middleware=[
            Middleware(OwnHosts),
            Middleware(
                # On hosted Supabase, too, pages of any origin may send requests: keys and tokens protect the data.
                CORSMiddleware,
                allow_origins=["*"],
                allow_methods=["*"],
                allow_headers=["*"],
                expose_headers=["Content-Range", "Content-Location", "Proxy-Status", "Preference-Applied"],
            ),
        ],
        lifespan=lifespan,
    )
    return _ShortWay(apis, app)


class _ShortWay:
    """Hands most requests straight to their API, past the layers that only pages of a browser need.

    A request without ``Origin`` comes from no page. Caches may keep the answers to GET and HEAD, and must not give them
    to a page: the answers say so, as on the long way.
    """

    def __init__(self, apis: Mapping[str, ASGIApp], app: ASGIApp) -> None:
        self._apis = [(f"{path}/", OwnHosts(api)) for path, api in apis.items()]
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] in _SHORT_WAY and not scope.get("root_path"):
            path: str = scope["path"]
            for prefix, api in self._apis:
                # Starlette finds no route for a path with a line break.
                if path.startswith(prefix) and "\n" not in path and not _has_origin(scope):
                    mounted = {"app_root_path": "", "root_path": prefix[:-1], "path_params": {}}
                    varying = send if scope["method"] in _WITHOUT_CACHES else _vary_by_origin(send)
                    await api({**scope, **mounted}, receive, varying)
                    return
        await self._app(scope, receive, send)


def _vary_by_origin(send: Send) -> Send:
    async def send_varying(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message.get("headers", ()), _VARY]}
        await send(message)

    return send_varying


def _has_origin(scope: Scope) -> bool:
    return any(name == b"origin" for name, _ in scope["headers"])
