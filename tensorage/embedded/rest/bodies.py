"""Request bodies: received whole, and parsed only as far as the SQL needs.

Memory is taken as bytes arrive: a length that a header announces costs nothing. Small JSON is parsed here. Large JSON
is parsed by PostgreSQL, in a process that serves one request, since parsing it here would keep all requests waiting.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from tensorage.embedded.request_memory import HeldMemory
from tensorage.embedded.rest.errors import ApiError, invalid_body

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]

#: Largest binary body. Supabase's own server accepted as much in a test; a value of PostgreSQL has at most 1 GiB.
MAX_BODY_BYTES: Final = 128 * 1024 * 1024

#: Largest body of text, which takes many times its size when it is parsed.
MAX_TEXT_BYTES: Final = 16 * 1024 * 1024

#: Largest JSON that is parsed here. The slowest takes about 15 ms, in which no other request is served.
MAX_PARSED_HERE_BYTES: Final = 64 * 1024


class ClientGoneError(Exception):
    """The client hung up before its request was complete. Nothing is done or answered."""


async def read_body(
    receive: Receive, declared_nbytes: int | None, memory: HeldMemory, *, max_nbytes: int = MAX_BODY_BYTES
) -> bytes:
    """Receive the whole body of a request.

    Parameters
    ----------
    declared_nbytes
        The header ``Content-Length``; None for a chunked body.
    memory
        Memory of the request, which holds the bytes as they arrive.
    max_nbytes
        Largest body. A larger one is refused, before it arrives if its length is announced.
    """
    if declared_nbytes is not None and declared_nbytes > max_nbytes:
        raise _too_large(max_nbytes)
    pieces, nbytes = [], 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGoneError
        piece = message.get("body", b"")
        nbytes += len(piece)
        if nbytes > max_nbytes:
            raise _too_large(max_nbytes)
        await memory.add(len(piece))
        pieces.append(piece)
        if not message.get("more_body"):
            # Joined once: growing one bytes object would copy the body again and again.
            return b"".join(pieces)


def _too_large(max_nbytes: int) -> ApiError:
    hint = "Send less at a time"
    return ApiError(
        413, "54000", f"A request body of this type can have at most {max_nbytes} bytes", hint=hint
    )


@dataclass(frozen=True, slots=True)
class JsonBody:
    """A JSON body. PostgreSQL parses `text` again to make the values.

    Parameters
    ----------
    keys
        Keys of the object, or of every object of the array; sorted.
    size
        Number of objects; 1 for a body that is no array.
    """

    text: str
    shape: Literal["object", "array", "other"]
    keys: tuple[str, ...] = ()
    size: int = 1


def parse_json(body: bytes, *, any_shape: bool = False, any_keys: bool = False) -> JsonBody:
    """Parse a JSON body as far as its keys.

    Parameters
    ----------
    any_shape
        True if the body may be anything else than objects.
    any_keys
        True if the objects of an array may have different keys.

    Raises
    ------
    ApiError
        ``PGRST102`` for a body that is no JSON, or has another shape.
    """
    text = decode_json(body)
    try:
        # PostgreSQL reads the numbers. Here an int becomes a float: parsing a very long int would take long.
        value = json.loads(text, parse_int=float)
    except (ValueError, RecursionError) as error:
        raise invalid_json() from error
    return make_json_body(text, summarize_json(value), any_shape=any_shape, any_keys=any_keys)


def decode_json(body: bytes) -> str:
    try:
        return body.decode()
    except UnicodeDecodeError as error:
        raise invalid_json() from error


def invalid_json() -> ApiError:
    return invalid_body("Empty or invalid json")


@dataclass(frozen=True, slots=True)
class JsonSummary:
    """Summary of a JSON body, from which its statement is chosen.

    Parameters
    ----------
    shape
        "array" for an array of objects, "list" for any other array.
    keys
        Keys of the object, or of the array's first object.
    size
        Number of the array's elements.
    is_even
        True if the array's objects all have the same keys.
    """

    shape: Literal["object", "array", "list", "other"]
    keys: frozenset[str] = frozenset()
    size: int = 1
    is_even: bool = True


def summarize_json(value: Any) -> JsonSummary:
    if isinstance(value, dict):
        return JsonSummary("object", frozenset(value))
    if not isinstance(value, list):
        return JsonSummary("other")
    if not all(isinstance(element, dict) for element in value):
        return JsonSummary("list", size=len(value))
    is_even = all(element.keys() == value[0].keys() for element in value)
    return JsonSummary("array", frozenset(value[0] if value else ()), len(value), is_even)


#: Query that gives the `JsonSummary` of its parameter. A key that an object has twice counts once.
SUMMARY: Final = """
    with body as materialized (select $1::json as value),
    elements as materialized (
      select e.n, e.value, pg_catalog.json_typeof(e.value) = 'object' as is_object
      from body, pg_catalog.json_array_elements(
             case pg_catalog.json_typeof(value) when 'array' then value else '[]' end)
             with ordinality as e(value, n)),
    summary as materialized (
      select count(*) as size, coalesce(bool_and(is_object), true) as are_objects from elements),
    uses as (
      select count(*) as objects
      from (select distinct n, key
            from elements, pg_catalog.json_object_keys(case when is_object then value else '{}' end) as key) u
      group by key)
    select case when pg_catalog.json_typeof(value) = 'object' then 'object'
                when pg_catalog.json_typeof(value) <> 'array' then 'other'
                when are_objects then 'array' else 'list' end as shape,
           size,
           (select coalesce(bool_and(objects = size), true) from uses) as is_even,
           array(select pg_catalog.json_object_keys(
                   case when pg_catalog.json_typeof(value) = 'object' then value
                        when size > 0 and are_objects then value -> 0 else '{}' end)) as keys
    from body, summary
"""


def make_json_body(text: str, summary: JsonSummary, *, any_shape: bool, any_keys: bool) -> JsonBody:
    """Return a body with this summary. Refuse it if it has another shape than `parse_json` allows."""
    keys = tuple(sorted(summary.keys))
    if summary.shape == "object":
        return JsonBody(text, "object", keys)
    if summary.shape == "array" and (summary.is_even or any_keys):
        return JsonBody(text, "array", keys, summary.size)
    if any_shape:
        return JsonBody(text, "other")
    if summary.shape in ("array", "list"):
        raise invalid_body("All object keys must match")
    raise invalid_json()
