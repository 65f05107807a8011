"""Requests and answers on the wire: from and to ASGI."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import Any, Final

from tensorage.embedded.request_memory import HeldMemory
from tensorage.embedded.rest.answers import Answer
from tensorage.embedded.rest.bodies import (
    MAX_BODY_BYTES,
    MAX_PARSED_HERE_BYTES,
    MAX_TEXT_BYTES,
    JsonBody,
    JsonSummary,
    Receive,
    decode_json,
    make_json_body,
    parse_json,
    read_body,
)
from tensorage.embedded.rest.errors import ApiError, invalid_body
from tensorage.embedded.rest.headers import (
    JSON,
    Format,
    Preferences,
    RowRange,
    negotiate,
    parse_content_type,
    parse_prefer,
    parse_range,
)
from tensorage.embedded.rest.query_model import Query
from tensorage.embedded.rest.routines import WHOLE_BODY_TYPES, Arguments
from tensorage.embedded.rest.tables import Mutation

Scope = MutableMapping[str, Any]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

#: Function that lets PostgreSQL summarize JSON.
Summarize = Callable[[str], Awaitable[JsonSummary]]

#: The exposed schema, the search path of functions, and the most rows of an answer: as on hosted Supabase.
SCHEMA: Final = "public"
_SEARCH_PATH: Final = '"public", "extensions"'
MAX_ROWS: Final = 1000

METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
#: Methods that change a table, each with its literal type.
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
    memory: HeldMemory = field(repr=False)

    @property
    def is_read(self) -> bool:
        return self.method in ("GET", "HEAD")

    @property
    def preferences(self) -> Preferences:
        return parse_prefer(self.headers.get("prefer", ""))

    @property
    def content_type(self) -> str:
        return parse_content_type(self.headers.get("content-type", ""))

    def format(self, *, own: str | None = None, rows: bool = True) -> Format:
        return negotiate(self.headers.get("accept", ""), own=own, rows=rows)

    def rows(self, query: Query) -> RowRange:
        """Return the rows that the query string asks for and, in a read, the header ``Range``."""
        requested = parse_range(self.headers.get("range", "")) if self.is_read else RowRange()
        return requested.narrow(query.offset, query.limit).cap(MAX_ROWS)

    async def body(self, max_nbytes: int = MAX_TEXT_BYTES) -> bytes:
        declared = self.headers.get("content-length")
        nbytes = None if declared is None else int(declared)
        return await read_body(self.receive, nbytes, self.memory, max_nbytes=max_nbytes)

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


def read_request(scope: Scope, receive: Receive, memory: HeldMemory) -> Request:
    headers: dict[str, str] = {}
    for raw_name, raw_value in scope["headers"]:
        name, value = raw_name.decode("latin-1").lower(), raw_value.decode("latin-1")
        # A header that comes twice means the same as one with both values (RFC 9110, section 5.3).
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    # Starlette keeps the prefix of a mounted application in the path.
    path = scope["path"].removeprefix(scope.get("root_path", "")) or "/"
    query_string = scope["query_string"].decode("utf-8", "replace")
    return Request(scope["method"], path, query_string, headers, receive, memory)


async def _read_json(
    body: bytes, summarize: Summarize, *, any_shape: bool = False, any_keys: bool = False
) -> JsonBody:
    if len(body) <= MAX_PARSED_HERE_BYTES:
        return parse_json(body, any_shape=any_shape, any_keys=any_keys)
    text = decode_json(body)
    return make_json_body(text, await summarize(text), any_shape=any_shape, any_keys=any_keys)


async def read_table_body(request: Request, query: Query, summarize: Summarize) -> JsonBody:
    if request.content_type != JSON:
        raise invalid_body(f"Content-Type not acceptable: {request.content_type}")
    # With the parameter `columns`, only the keys that it names count. The others may differ.
    return await _read_json(await request.body(), summarize, any_keys=query.columns is not None)


async def read_call_arguments(
    request: Request, query: Query, summarize: Summarize
) -> tuple[Arguments, str | bytes]:
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
        return Arguments((), media_type, named=False), _decode_text(body)
    parsed = await _read_json(body or b"{}", summarize, any_shape=True)
    names = parsed.keys if query.columns is None else tuple(sorted(set(query.columns)))
    return Arguments(names, JSON, parsed.shape == "array", parsed.shape != "other"), parsed.text


def _decode_text(body: bytes) -> str:
    try:
        return body.decode()
    except UnicodeDecodeError as error:
        raise invalid_body("The body is not UTF-8") from error


def check_schema(request: Request) -> str | None:
    """Return the schema that a request names, or None. Refuse any schema but the exposed one."""
    profile = request.headers.get("content-profile" if request.method in MUTATIONS else "accept-profile")
    if profile not in (None, SCHEMA):
        hint = f"Only the following schemas are exposed: {SCHEMA}"
        raise ApiError(406, "PGRST106", f"Invalid schema: {profile}", hint=hint)
    return profile


async def send_answer(send: Send, answer: Answer, *, head: bool) -> None:
    headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in answer.headers.items()]
    # A 204 must not have a length (RFC 9110, section 8.6).
    if not head and answer.status != 204:
        headers.append((b"content-length", b"%d" % len(answer.body)))
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    await send({"type": "http.response.body", "body": b"" if head or answer.status == 204 else answer.body})
