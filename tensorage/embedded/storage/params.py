"""JSON bodies and query strings: read within a limit, and checked field by field."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from starlette.requests import Request

from tensorage.embedded.storage.errors import StorageError, invalid_request, too_large

MAX_JSON_BYTES: Final = 1 << 20

#: Most arrays and objects in a body. Arrays and objects take most of the time to parse JSON, in which no other request
#: is served. No request of Storage has ten, and names of objects have no brackets.
_MAX_CONTAINERS: Final = 100

#: Largest value of an integer in PostgreSQL's `bigint`.
_MAX_INTEGER: Final = 2**63 - 1

_TYPES: Final[dict[type, str]] = {str: "string", bool: "boolean", dict: "object"}


@dataclass(frozen=True)
class Fields:
    """Fields of a JSON object in a request. Null means the same as a missing field.

    Parameters
    ----------
    values
        The fields.
    where
        Name of the object in messages.
    """

    values: Mapping[str, Any] = field(repr=False)
    where: str = "body"

    def text(self, name: str, default: str | None = None) -> str:
        """Return the text called `name`, which is required if there is no default."""
        found: str = self._require(name, default, str)
        return check_storable(found, f"{self.where}/{name}")

    def boolean(self, name: str, *, default: bool) -> bool:
        found: bool = self._require(name, default, bool)
        return found

    def object(self, name: str) -> Fields:
        return Fields(self._require(name, {}, dict), f"{self.where}/{name}")

    def integer(
        self, name: str, default: int | None = None, *, minimum: int, maximum: int = _MAX_INTEGER
    ) -> int:
        """Return the integer called `name`, which may be written as text."""
        value = self._get(name, default)
        # Longer texts do not fit a bigint, and take long to parse.
        if isinstance(value, str) and value.removeprefix("-").isdecimal() and len(value) < 20:
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or value > _MAX_INTEGER:
            raise invalid_request(f"{self.where}/{name} must be integer")
        if value < minimum:
            raise invalid_request(f"{self.where}/{name} must be >= {minimum}")
        if value > maximum:
            raise invalid_request(f"{self.where}/{name} must be <= {maximum}")
        return value

    def texts(self, name: str, *, maximum: int) -> list[str]:
        """Return the list called `name`, which has between one and `maximum` texts."""
        value = self._require(name, None, list)
        if not value:
            raise invalid_request(f"{self.where}/{name} must NOT have fewer than 1 items")
        if len(value) > maximum:
            raise invalid_request(f"{self.where}/{name} must NOT have more than {maximum} items")
        for position, entry in enumerate(value):
            if not isinstance(entry, str):
                raise invalid_request(f"{self.where}/{name}/{position} must be string")
        return list(value)

    def _require(self, name: str, default: Any, kind: type) -> Any:
        value = self._get(name, default)
        if not isinstance(value, kind):
            raise invalid_request(f"{self.where}/{name} must be {_TYPES.get(kind, 'array')}")
        return value

    def _get(self, name: str, default: Any) -> Any:
        value = self.values.get(name)
        if value is None and default is None:
            raise invalid_request(f"{self.where} must have required property '{name}'")
        return default if value is None else value


async def read_fields(request: Request, *, required: bool = True) -> Fields:
    """Read and parse the body of a request: a JSON object.

    Parameters
    ----------
    required
        True if an empty body is refused.
    """
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > MAX_JSON_BYTES:
            raise too_large("Request body is too large")
    if body.count(b"[") + body.count(b"{") > _MAX_CONTAINERS:
        raise invalid_request(f"body must NOT have more than {_MAX_CONTAINERS} objects and arrays")
    if not body and not required:
        return Fields({})
    if not body:
        message = "Body cannot be empty when content-type is set to 'application/json'"
        raise invalid_request(message, "FastifyError")
    try:
        value = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise _not_json() from error
    if not isinstance(value, dict):
        raise invalid_request("body must be object")
    return Fields(value)


def check_storable(text: str, where: str) -> str:
    """Return a text. Refuse one that PostgreSQL cannot store."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise invalid_request(f"{where} must be Unicode text") from error
    if "\0" in text:
        raise invalid_request(f"{where} must NOT contain the character U+0000")
    return text


def _not_json() -> StorageError:
    message = "Body is not valid JSON but content-type is set to 'application/json'"
    return invalid_request(message, "FastifyError")
