"""Request bodies: read from the connection in one piece, and looked at no further than SQL needs."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from tensorage.embedded.rest.errors import ApiError, invalid_body

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]

#: No value in PostgreSQL can be larger than this.
MAX_BODY_BYTES: Final = 2**30 - 1


class ClientGoneError(Exception):
    """The client went away before its request was complete: there is nothing to do and nobody to answer."""


async def read_body(receive: Receive, declared_nbytes: int | None) -> bytearray:
    """Receive the whole body into one buffer.

    Parameters
    ----------
    declared_nbytes
        ``Content-Length``; None for a chunked body.
    """
    if declared_nbytes is not None and declared_nbytes > MAX_BODY_BYTES:
        raise _too_large()
    body, end = bytearray(declared_nbytes or 0), 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGoneError
        piece = message.get("body", b"")
        # Within the declared length this writes in place, beyond it the buffer grows.
        body[end : end + len(piece)] = piece
        end += len(piece)
        if end > MAX_BODY_BYTES:
            raise _too_large()
        if not message.get("more_body"):
            return body


def _too_large() -> ApiError:
    return ApiError(413, "54000", f"A request body can have at most {MAX_BODY_BYTES} bytes")


@dataclass(frozen=True, slots=True)
class JsonPayload:
    """A JSON body: PostgreSQL parses it again, from `text`, and makes the values.

    Parameters
    ----------
    keys
        Of the object, or of every object of the array; sorted.
    size
        Number of objects, 1 if it is no array.
    """

    text: str
    shape: Literal["object", "array", "other"]
    keys: tuple[str, ...] = ()
    size: int = 1


def parse_json(body: bytearray, *, any_shape: bool = False, any_keys: bool = False) -> JsonPayload:
    """Look at a JSON body's keys.

    Parameters
    ----------
    any_shape
        Whether it may be something else than objects.
    any_keys
        Whether the objects of an array may have different keys.

    Raises
    ------
    ApiError
        ``PGRST102``.
    """
    try:
        text = body.decode()
        # Numbers are PostgreSQL's to read: an int of any length is good enough as a float here.
        value = json.loads(text, parse_int=float)
    except (ValueError, RecursionError) as error:
        raise invalid_body("Empty or invalid json") from error
    if isinstance(value, dict):
        return JsonPayload(text, "object", _keys(value))
    if isinstance(value, list) and all(isinstance(element, dict) for element in value):
        uneven = any(element.keys() != value[0].keys() for element in value)
        if not uneven or any_keys:
            return JsonPayload(text, "array", _keys(value[0]) if value else (), len(value))
    if any_shape:
        return JsonPayload(text, "other")
    if isinstance(value, list):
        raise invalid_body("All object keys must match")
    raise invalid_body("Empty or invalid json")


def _keys(value: dict[str, Any]) -> tuple[str, ...]:
    return tuple(sorted(value))
