"""Access tokens of requests, verified: the user and the session that they name."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import jwt

from tensorage.embedded.auth.answers import AuthError
from tensorage.embedded.tokens import Tokens

_BEARER = re.compile(r"bearer (\S+)", re.IGNORECASE)

# Messages of GoTrue's JWT library, by the exceptions of ours. The first class that fits gives the message.
_REASONS: tuple[tuple[type[jwt.InvalidTokenError], str], ...] = (
    (jwt.ExpiredSignatureError, "token has invalid claims: token is expired"),
    (jwt.ImmatureSignatureError, "token has invalid claims: token is not valid yet"),
    (jwt.InvalidAlgorithmError, "token signature is invalid: signing method is invalid"),
    (jwt.InvalidSignatureError, "token signature is invalid: signature is invalid"),
    (jwt.DecodeError, "token is malformed"),
    (jwt.InvalidTokenError, "token has invalid claims"),
)


@dataclass(frozen=True)
class Bearer:
    """User and session that a verified access token names. Either may have ended since."""

    user_id: UUID
    session_id: UUID


def read_bearer(authorization: str | None, tokens: Tokens) -> Bearer:
    """Return the user and session of an ``Authorization`` header, whose token is verified."""
    match = _BEARER.fullmatch(authorization or "")
    if match is None:
        raise AuthError(401, "no_authorization", "This endpoint requires a valid Bearer token")
    token = match[1]
    try:
        # No clock skew, as in GoTrue: tokens are signed and verified by the same clock.
        claims = tokens.verify(token, leeway_s=0)
    except jwt.InvalidTokenError as error:
        reason = next(words for kind, words in _REASONS if isinstance(error, kind))
        if token.count(".") != 2:
            reason += ": token contains an invalid number of segments"
        message = f"invalid JWT: unable to parse or verify signature, {reason}"
        raise AuthError(403, "bad_jwt", message) from error
    return _read_claims(claims)


def _read_claims(claims: dict[str, Any]) -> Bearer:
    if not claims.get("sub"):
        # An API key, for example, is a good token of no user.
        raise AuthError(403, "bad_jwt", "invalid claim: missing sub claim")
    user_id = _parse_uuid(claims["sub"])
    if user_id is None:
        raise AuthError(400, "bad_jwt", "invalid claim: sub claim must be a UUID")
    if not claims.get("session_id"):
        raise session_not_found()
    session_id = _parse_uuid(claims["session_id"])
    if session_id is None:
        raise AuthError(403, "bad_jwt", "invalid claim: session_id claim must be a UUID")
    return Bearer(user_id, session_id)


def session_not_found() -> AuthError:
    return AuthError(403, "session_not_found", "Session from session_id claim in JWT does not exist")


def _parse_uuid(text: object) -> UUID | None:
    try:
        return UUID(str(text))
    except ValueError:
        return None
