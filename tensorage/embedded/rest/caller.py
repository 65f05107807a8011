"""Tokens to roles: the :class:`~tensorage.embedded.database.Caller` of a bearer token or an API key."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

import jwt

from tensorage.embedded.database import Caller
from tensorage.embedded.rest.errors import ApiError, invalid_token
from tensorage.embedded.tokens import Tokens

#: Role of requests without a token.
ANONYMOUS: Final = "anon"
_NOBODY: Final = Caller(ANONYMOUS)


def identify(headers: Mapping[str, str], tokens: Tokens) -> Caller:
    """Return the caller who sent a request with these headers (names in lower case).

    Raises
    ------
    ApiError
        ``PGRST301`` for a token that is not ours, ``PGRST303`` for one that has expired or is not good yet.
    """
    scheme, space, token = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and (space or not token):
        return _make_caller(_verify(token.strip(), tokens))
    if scheme or "apikey" not in headers:
        return _NOBODY
    try:
        return _make_caller(tokens.verify(headers["apikey"]))
    except jwt.InvalidTokenError:
        # The newer API keys of hosted Supabase are no tokens, and mean the anonymous role.
        return _NOBODY


def _make_caller(claims: Mapping[str, Any]) -> Caller:
    role = claims.get("role", ANONYMOUS)
    # The role becomes a setting of PostgreSQL, which cannot hold a NUL.
    if not isinstance(role, str) or not role or "\0" in role:
        raise invalid_token("PGRST303", "The JWT 'role' claim must be the name of a role")
    return Caller(role, claims)


def _verify(token: str, tokens: Tokens) -> Mapping[str, Any]:
    if not token:
        raise invalid_token("PGRST301", "Empty JWT is sent in Authorization header")
    parts = token.count(".") + 1
    if parts != 3:
        raise invalid_token("PGRST301", f"Expected 3 parts in JWT; got {parts}")
    try:
        return tokens.verify(token)
    except jwt.InvalidTokenError as error:
        raise _refusal(token, error) from error


def _refusal(token: str, error: jwt.InvalidTokenError) -> ApiError:
    match error:
        case jwt.ExpiredSignatureError():
            return invalid_token("PGRST303", "JWT expired")
        case jwt.ImmatureSignatureError():
            return invalid_token("PGRST303", "JWT not yet valid")
        case jwt.InvalidSignatureError():
            details = "None of the keys was able to decode the JWT"
            return invalid_token("PGRST301", "No suitable key or wrong key type", details)
        case jwt.InvalidAlgorithmError():
            return invalid_token(
                "PGRST301", "Wrong or unsupported encoding algorithm", _explain_algorithm(token)
            )
        case jwt.DecodeError():
            return invalid_token("PGRST301", "JWT cryptographic operation failed")
        case _:
            return invalid_token("PGRST303", "JWT claims validation failed", str(error))


def _explain_algorithm(token: str) -> str:
    algorithm = jwt.get_unverified_header(token).get("alg")
    if algorithm == "none":
        return "JWT is unsecured but expected 'alg' was not 'none'"
    return f"JWT is signed with {json.dumps(algorithm)}, expected was HS256"
