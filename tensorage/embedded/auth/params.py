"""Request bodies: read within a limit, parsed, and checked before anything else is done with them."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Any, NoReturn

from starlette.requests import Request

from tensorage.embedded.auth.answers import AuthError

#: A user's metadata, the largest part of any body, is part of every token, and heads of requests have a bound too.
MAX_BODY_BYTES = 1 << 16

#: What the types of JSON are called in a message to those who sent the wrong one.
_JSON_NAMES = {bool: "boolean", int: "number", float: "number", str: "string", list: "array", dict: "object"}

#: A user's metadata as it stands in their tokens, which come in the heads of requests: larger, no token would be taken.
MAX_METADATA_BYTES = 1 << 15

_EMAIL_MAX_LENGTH = 255
# The addresses which HTML's <input type=email> takes, as GoTrue does: no quoted local parts, no comments.
_LABEL = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_EMAIL = re.compile(rf"[a-z0-9.!#$%&'*+/=?^_`{{|}}~-]+@{_LABEL}(?:\.{_LABEL})*", re.IGNORECASE | re.ASCII)

# PostgreSQL stores no NUL in text or jsonb. An even number of backslashes before it escape one another.
_ESCAPED_NUL = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")


@dataclass(frozen=True)
class Params:
    """The fields of a body that is a JSON object; as in GoTrue, null is the same as not given."""

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
            _bad_json(f"cannot take the {sent} in {name} for a value of type {_JSON_NAMES[kind]}")
        return value


async def read_params(request: Request) -> Params:
    """Parse the body of `request`.

    Raises
    ------
    AuthError
        413 for a body over `MAX_BODY_BYTES`, which is not read to its end; 400 for what is no JSON object.
    """
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > MAX_BODY_BYTES:
            message = f"Request body too large (max {MAX_BODY_BYTES} bytes)"
            raise AuthError(413, "request_entity_too_large", message)
    return parse_params(bytes(body))


def parse_params(body: bytes) -> Params:
    """Parse a body, refusing what JSON lets through and PostgreSQL cannot store."""
    try:
        text = body.decode("utf-8")
        value = json.loads(text)
        # Writing it again finds lone surrogates, infinities and NaN, wherever they are.
        json.dumps(value, allow_nan=False, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        _bad_json(f"{error.msg} at character {error.pos}")
    except (ValueError, RecursionError) as error:
        # Their own words may quote the body, which may hold a password.
        _bad_json(type(error).__name__)
    if _ESCAPED_NUL.search(text):
        _bad_json("the character U+0000 cannot be stored")
    if value is not None and not isinstance(value, dict):
        _bad_json(f"cannot take {_JSON_NAMES[type(value)]} for a value of type object")
    return Params(value or {})


def checked_email(email: str) -> str:
    """`email` in lower case, if it is an address."""
    if len(email) > _EMAIL_MAX_LENGTH:
        raise AuthError(400, "validation_failed", "An email address is too long")
    if not _EMAIL.fullmatch(email):
        raise AuthError(400, "validation_failed", "Unable to validate email address: invalid format")
    return email.lower()


def checked_metadata(metadata: dict[str, Any]) -> dict[str, Any]:
    """`metadata`, if the tokens of a user who has it are of use."""
    nbytes = len(json.dumps(metadata))
    if nbytes > MAX_METADATA_BYTES:
        message = f"The user's metadata would have {nbytes} bytes: it may have {MAX_METADATA_BYTES} at most"
        raise AuthError(400, "validation_failed", message)
    return metadata


def _bad_json(reason: str) -> NoReturn:
    raise AuthError(400, "bad_json", f"Could not parse request body as JSON: {reason}") from None
