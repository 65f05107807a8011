"""Request bodies: read within a limit, parsed and checked."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Any, NoReturn

from starlette.requests import Request

from tensorage.embedded.auth.answers import AuthError

#: Largest request body. Most of a large one is the user's metadata, which has a limit of its own.
MAX_BODY_BYTES = 1 << 16

#: Names of JSON's types in messages.
_JSON_NAMES = {bool: "boolean", int: "number", float: "number", str: "string", list: "array", dict: "object"}

#: Largest metadata of a user. Every token of the user holds it, and a token has to fit the head of a request.
MAX_METADATA_BYTES = 1 << 15

_EMAIL_MAX_LENGTH = 255
# Addresses that HTML's <input type=email> accepts, as in GoTrue: no quoted local parts, no comments.
_LABEL = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_EMAIL = re.compile(rf"[a-z0-9.!#$%&'*+/=?^_`{{|}}~-]+@{_LABEL}(?:\.{_LABEL})*", re.IGNORECASE | re.ASCII)

# PostgreSQL stores no NUL in text or jsonb. An even number of backslashes in front escape each other, not the NUL.
_ESCAPED_NUL = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")


@dataclass(frozen=True)
class Params:
    """Fields of a request body. In GoTrue, too, null means the same as a missing field."""

    fields: dict[str, Any] = field(repr=False)

    def text(self, name: str) -> str | None:
        text: str | None = self._get(name, str)
        return text

    def object(self, name: str) -> dict[str, Any] | None:
        fields: dict[str, Any] | None = self._get(name, dict)
        return fields

    def _get(self, name: str, kind: type) -> Any:
        value = self.fields.get(name)
        if value is not None and not isinstance(value, kind):
            sent = _JSON_NAMES[type(value)]
            _refuse_json(f"cannot take the {sent} in {name} for a value of type {_JSON_NAMES[kind]}")
        return value


async def read_params(request: Request) -> Params:
    """Read and parse the body of a request.

    Raises
    ------
    AuthError
        413 for a body over `MAX_BODY_BYTES`, which is not read to its end; 400 for anything but a JSON object.
    """
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > MAX_BODY_BYTES:
            message = f"Request body too large (max {MAX_BODY_BYTES} bytes)"
            raise AuthError(413, "request_entity_too_large", message)
    return parse_params(bytes(body))


def parse_params(body: bytes) -> Params:
    """Parse a body. Values that are JSON but that PostgreSQL cannot store are refused."""
    try:
        text = body.decode("utf-8")
        value = json.loads(text)
        # Encoding the value again finds lone surrogates, infinities and NaN at any depth.
        json.dumps(value, allow_nan=False, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        _refuse_json(f"{error.msg} at character {error.pos}")
    except (ValueError, RecursionError) as error:
        # The exception's message may quote the body, which may hold a password.
        _refuse_json(type(error).__name__)
    if _ESCAPED_NUL.search(text):
        _refuse_json("the character U+0000 cannot be stored")
    if value is not None and not isinstance(value, dict):
        _refuse_json(f"cannot take {_JSON_NAMES[type(value)]} for a value of type object")
    return Params(value or {})


def normalize_email(email: str) -> str:
    """Return an e-mail address in lower case. Refuse other texts."""
    if len(email) > _EMAIL_MAX_LENGTH:
        raise AuthError(400, "validation_failed", "An email address is too long")
    if not _EMAIL.fullmatch(email):
        raise AuthError(400, "validation_failed", "Unable to validate email address: invalid format")
    return email.lower()


def check_metadata(metadata: dict[str, Any]) -> dict[str, Any]:
    """Return a user's metadata. Refuse it if it is too large for a token."""
    nbytes = len(json.dumps(metadata))
    if nbytes > MAX_METADATA_BYTES:
        message = f"The user's metadata would have {nbytes} bytes: it may have {MAX_METADATA_BYTES} at most"
        raise AuthError(400, "validation_failed", message)
    return metadata


def _refuse_json(reason: str) -> NoReturn:
    raise AuthError(400, "bad_json", f"Could not parse request body as JSON: {reason}") from None
