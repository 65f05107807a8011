"""First checks of every request: its host is this server, and it has one of the project's keys."""

from __future__ import annotations

import re
from collections.abc import Set
from typing import Final
from urllib.parse import parse_qsl

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

#: Names of this machine, with any port: a tunnel or a proxy may listen on another port than the server.
_OWN_HOST: Final = re.compile(
    r"(127(\.\d{1,3}){3}|\[::1\]|localhost|([a-z0-9-]+\.)+localhost)(:\d{1,5})?", re.ASCII | re.IGNORECASE
)


class OwnHosts:
    """Refuses requests that were meant for another host.

    A web page can let its own name resolve to 127.0.0.1 (DNS rebinding). The browser then lets the page read this
    server's answers as its own. Only the name in ``Host`` gives such a request away. No answer repeats a foreign name.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            hosts = [value for name, value in scope["headers"] if name == b"host"]
            # With two such headers, this check and the browser could each go by another one (RFC 9112, section 3.2).
            if len(hosts) != 1 or _OWN_HOST.fullmatch(hosts[0].decode("latin-1")) is None:
                await _make_host_refusal()(scope, receive, send)
                return
        await self._app(scope, receive, send)


def _make_host_refusal() -> JSONResponse:
    return JSONResponse(
        {
            "message": "The request is for another host",
            "hint": "This server is reached as 127.0.0.1 or localhost: use one of them in the URL.",
        },
        421,
    )


class ApiKeys:
    """Refuses requests without one of the project's keys, as hosted Supabase's gateway does for REST and Auth.

    The gateway asks for no key in front of Storage: public and signed URLs work without one, and the other routes of
    Storage require a token.
    """

    def __init__(self, app: ASGIApp, keys: Set[str]) -> None:
        self._app = app
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refusal = self._check_key(scope) if scope["type"] == "http" else None
        await (refusal or self._app)(scope, receive, send)

    def _check_key(self, scope: Scope) -> JSONResponse | None:
        # Hosted Supabase, too, takes the key from a header or from the URL.
        key = Headers(scope=scope).get("apikey") or _take_parameter(scope, "apikey")
        if not key:
            return JSONResponse(
                {
                    "message": "No API key found in request",
                    "hint": "No `apikey` request header or url param was found.",
                },
                401,
            )
        if key not in self._keys:
            return JSONResponse(
                {
                    "message": "Invalid API key",
                    "hint": "Double check your Supabase `anon` or `service_role` API key.",
                },
                401,
            )
        return None


def _take_parameter(scope: Scope, name: str) -> str | None:
    """Turn a parameter of the URL into the header of the same name. PostgREST would take the parameter for a filter."""
    query: bytes = scope["query_string"]
    # Nearly no request has the parameter: parsing is skipped for the others.
    if name.encode() not in query:
        return None
    kept, taken = [], None
    for pair in query.split(b"&"):
        ((found, value),) = parse_qsl(pair.decode("latin-1"), keep_blank_values=True) or [("", "")]
        if found == name:
            taken = value
        else:
            kept.append(pair)
    if taken is not None:
        scope["query_string"] = b"&".join(kept)
        scope["headers"] = [*scope["headers"], (name.encode(), taken.encode("latin-1", "replace"))]
    return taken
