"""Requests and answers on the wire: from and to ASGI."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import Any, Final

from tensorage.embedded.inflight import Share
from tensorage.embedded.rest.answers import Answer
from tensorage.embedded.rest.errors import ApiError, invalid_body
from tensorage.embedded.rest.headers import (
    JSON,
    Format,
    Preferences,
    RowRange,
    content_type,
    negotiate,
    parse_prefer,
    parse_range,
)
from tensorage.embedded.rest.payload import (
    MAX_BODY_BYTES,
    MAX_PARSED_HERE_BYTES,
    MAX_TEXT_BYTES,
    JsonLook,
    JsonPayload,
    Receive,
    checked_json,
    decoded_json,
    parse_json,
    read_body,
)
from tensorage.embedded.rest.routines import WHOLE_BODY_TYPES, Arguments
from tensorage.embedded.rest.tables import Mutation
from tensorage.embedded.rest.terms import Query

Scope = MutableMapping[str, Any]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

#: Function that lets PostgreSQL summarize JSON.
Look = Callable[[str], Awaitable[JsonLook]]

#: The exposed schema, the search path of functions, and the most rows of an answer: as on hosted Supabase.
SCHEMA: Final = "public"
_SEARCH_PATH: Final = '"public", "extensions"'
MAX_ROWS: Final = 1000

METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
MUTATIONS: Final[dict[str, Mutation]] = {"POST": "POST", "PUT": "PUT", "PATCH": "PATCH", "DELETE": "DELETE"}

#: Headers that PostgreSQL does not get: it may log the text of a failing statement.
_SECRET_HEADERS: Final = frozenset({"authorization", "apikey", "cookie"})


@dataclass(frozen=True)
class Request:
    """A request whose body has not been received yet."""

    method: str
    path: str
    query_string: str
    headers: Mapping[str, str]
    receive: Receive = field(repr=False)
    share: Share = field(repr=False)

    @property
    def is_read(self) -> bool:
        return self.method in ("GET", "HEAD")

    @property
    def preferences(self) -> Preferences:
        return parse_prefer(self.headers.get("prefer", ""))

    @property
    def content_type(self) -> str:
        return content_type(self.headers.get("content-type", ""))

    def format(self, *, own: str | None = None, rows: bool = True) -> Format:
        return negotiate(self.headers.get("accept", ""), own=own, rows=rows)

    def rows(self, query: Query) -> RowRange:
        """Return the rows that the query string asks for and, in a read, the header ``Range``."""
        asked = parse_range(self.headers.get("range", "")) if self.is_read else RowRange()
        return asked.narrowed(query.offset, query.limit).capped(MAX_ROWS)

    async def body(self, max_nbytes: int = MAX_TEXT_BYTES) -> bytes:
        declared = self.headers.get("content-length")
        nbytes = None if declared is None else int(declared)
        return await read_body(self.receive, nbytes, self.share, max_nbytes=max_nbytes)

    @property
    def settings(self) -> dict[str, str]:
        """Settings of the request's transaction. Functions read them with ``current_setting``."""
        told = {name: value for name, value in self.headers.items() if name not in _SECRET_HEADERS}
        return {
            "search_path": _SEARCH_PATH,
            "request.method": self.method,
            "request.path": self.path,
            "request.headers": json.dumps(told),
        }


def read_request(scope: Scope, receive: Receive, share: Share) -> Request:
    headers: dict[str, str] = {}
    for raw_name, raw_value in scope["headers"]:
        name, value = raw_name.decode("latin-1").lower(), raw_value.decode("latin-1")
        # A header that comes twice means the same as one with both values (RFC 9110, section 5.3).
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    path = scope["path"].removeprefix(scope.get("root_path", "")) or "/"
    query_string = scope["query_string"].decode("utf-8", "replace")
    return Request(scope["method"], path, query_string, headers, receive, share)


async def _json(body: bytes, look: Look, *, any_shape: bool = False, any_keys: bool = False) -> JsonPayload:
    if len(body) <= MAX_PARSED_HERE_BYTES:
        return parse_json(body, any_shape=any_shape, any_keys=any_keys)
    text = decoded_json(body)
    return checked_json(text, await look(text), any_shape=any_shape, any_keys=any_keys)


async def table_payload(request: Request, query: Query, look: Look) -> JsonPayload:
    if request.content_type != JSON:
        raise invalid_body(f"Content-Type not acceptable: {request.content_type}")
    # With the parameter `columns`, only the keys that it names count. The others may differ.
    return await _json(await request.body(), look, any_keys=query.columns is not None)


async def call_arguments(request: Request, query: Query, look: Look) -> tuple[Arguments, str | bytes]:
    """Return the names of a call's arguments, and the body for PostgreSQL."""
    if request.is_read:
        return Arguments(tuple(sorted({name for name, _ in query.arguments}))), ""
    media_type = request.content_type
    if media_type not in WHOLE_BODY_TYPES:
        raise invalid_body(f"Content-Type not acceptable: {media_type}")
    if media_type == "application/octet-stream":
        return Arguments((), media_type, named=False), await request.body(MAX_BODY_BYTES)
    body = await request.body()
    if media_type != JSON:
        return Arguments((), media_type, named=False), _text(body)
    payload = await _json(body or b"{}", look, any_shape=True)
    names = payload.keys if query.columns is None else tuple(sorted(set(query.columns)))
    return Arguments(names, JSON, payload.shape == "array", payload.shape != "other"), payload.text


def _text(body: bytes) -> str:
    try:
        return body.decode()
    except UnicodeDecodeError as error:
        raise invalid_body("The body is not UTF-8") from error


def named_schema(request: Request) -> str | None:
    """Return the schema that a request names, or None. Refuse any schema but the exposed one."""
    profile = request.headers.get("content-profile" if request.method in MUTATIONS else "accept-profile")
    if profile not in (None, SCHEMA):
        hint = f"Only the following schemas are exposed: {SCHEMA}"
        raise ApiError(406, "PGRST106", f"Invalid schema: {profile}", hint=hint)
    return profile


async def send_answer(send: Send, answer: Answer, *, head: bool) -> None:
    headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in answer.headers.items()]
    if not head and answer.status != 204:
        headers.append((b"content-length", b"%d" % len(answer.body)))
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    await send({"type": "http.response.body", "body": b"" if head or answer.status == 204 else answer.body})
