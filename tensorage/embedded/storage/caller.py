"""Tokens to roles: the :class:`~tensorage.embedded.database.Caller` of a bearer token."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import jwt

from tensorage.embedded.database import Caller
from tensorage.embedded.storage.errors import StorageError, access_denied, invalid_jwt, invalid_request
from tensorage.embedded.tokens import Tokens

#: The server itself, which reads the limits of buckets without the caller's policies, as Supabase Storage does.
SERVICE: Final = Caller("service_role")

# Messages of Storage's JWT library, by the exceptions of ours. The first class that fits gives the message.
_REASONS: Final[tuple[tuple[type[jwt.InvalidTokenError], str], ...]] = (
    (jwt.ExpiredSignatureError, '"exp" claim timestamp check failed'),
    (jwt.ImmatureSignatureError, '"nbf" claim timestamp check failed'),
    (jwt.InvalidSignatureError, "signature verification failed"),
    (jwt.InvalidAlgorithmError, '"alg" (Algorithm) Header Parameter value not allowed'),
    (jwt.DecodeError, "Invalid Compact JWS"),
    (jwt.InvalidTokenError, "JWT claims validation failed"),
)


def identify(headers: Mapping[str, str], tokens: Tokens) -> Caller:
    """Return the caller who sent a request with these headers.

    Raises
    ------
    StorageError
        The token is missing, is not ours, or has expired.
    """
    if "authorization" not in headers:
        raise invalid_request("headers must have required property 'authorization'")
    scheme, _, token = headers["authorization"].partition(" ")
    if scheme.lower() != "bearer":
        raise access_denied(_REASONS[4][1])
    claims = _verify(token.strip(), tokens, access_denied)
    role = claims.get("role", "anon")
    if not isinstance(role, str) or not role or "\0" in role:
        raise access_denied("The JWT 'role' claim must be the name of a role")
    return Caller(role, claims)


def identify_if_possible(headers: Mapping[str, str], tokens: Tokens) -> Caller | None:
    """Return the caller of a route that needs no token; None without a good token."""
    try:
        return identify(headers, tokens)
    except StorageError:
        return None


def verify_signed_url(token: str, tokens: Tokens) -> Mapping[str, Any]:
    """Return the claims of a signed URL's token."""
    return _verify(token, tokens, invalid_jwt)


def _verify(token: str, tokens: Tokens, refusal: Any) -> Mapping[str, Any]:
    try:
        # Unlike PostgREST, Supabase Storage allows no clock skew.
        return tokens.verify(token, leeway_s=0)
    except jwt.InvalidTokenError as error:
        reason = next(words for kind, words in _REASONS if isinstance(error, kind))
        raised: StorageError = refusal(reason)
        raise raised from error
