"""JSON Web Tokens (HS256) of a data folder's users: signed at login, verified on every request."""

from __future__ import annotations

import json
import secrets
import time
import uuid
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from typing import Any

import jwt

#: Seconds past ``exp``, or before ``nbf`` and ``iat``, at which PostgREST still accepts a token: clocks differ.
CLOCK_SKEW_S = 30

#: Most verified tokens to remember. A busy client's token is then verified once, not with every request.
_REMEMBERED = 1024

#: Longest token to remember. Usual ones have 1,000 characters; a user's metadata makes them longer.
_MAX_REMEMBERED_LENGTH = 4096


class Claims(dict[str, Any]):
    """Claims of a verified token, with their JSON. Nobody changes them: a busy client's are written as JSON once."""

    @cached_property
    def json(self) -> str:
        return json.dumps(self, separators=(",", ":"))


@dataclass
class Tokens:
    """Signs and verifies the tokens of one data folder.

    Parameters
    ----------
    secret
        The HS256 key.
    """

    secret: str = field(repr=False)
    _verified_claims: dict[str, Claims] = field(default_factory=dict, repr=False)

    def sign(self, claims: dict[str, Any]) -> str:
        return jwt.encode(claims, self.secret, algorithm="HS256")

    def verify(self, token: str, *, leeway_s: int = CLOCK_SKEW_S) -> Claims:
        """Return the claims of a token with a good signature and good times. Callers must not change them.

        Parameters
        ----------
        leeway_s
            Seconds by which the token may be expired or early.

        Raises
        ------
        jwt.InvalidTokenError
            The token is not good. PyJWT has a subclass for each reason.
        """
        claims = self._verified_claims.get(token)
        # A remembered token can only expire. PyJWT accepts an `exp` that is text, too: hence `int`.
        if claims is not None and ("exp" not in claims or int(claims["exp"]) + leeway_s > time.time()):
            return claims
        claims = Claims(
            jwt.decode(
                token,
                self.secret,
                algorithms=["HS256"],
                leeway=leeway_s,
                # Supabase's servers go by the claim `role`, which PostgreSQL checks, and ignore the audience.
                options={"verify_aud": False},
            )
        )
        if len(token) <= _MAX_REMEMBERED_LENGTH:
            # Starting over is simpler than evicting, and as good: a busy client is back after one verification.
            if len(self._verified_claims) >= _REMEMBERED:
                self._verified_claims.clear()
            self._verified_claims[token] = claims
        return claims

    def make_access_token(
        self, user: dict[str, Any], session_id: str, lifetime_s: int, *, authenticated_at: datetime
    ) -> tuple[str, int]:
        """Return a token of a logged-in user, and the second since the epoch at which it expires.

        Parameters
        ----------
        user
            The user in the Auth API's JSON: id, email, phone, role, app_metadata, user_metadata, is_anonymous.
        authenticated_at
            Time at which the user logged in. Refreshed tokens keep it.
        """
        now = int(time.time())
        method = "anonymous" if user.get("is_anonymous") else "password"
        claims = {
            "sub": str(user["id"]),
            "aud": "authenticated",
            "role": user.get("role") or "authenticated",
            "email": user.get("email") or "",
            "phone": user.get("phone") or "",
            "app_metadata": user.get("app_metadata") or {},
            "user_metadata": user.get("user_metadata") or {},
            "session_id": session_id,
            "is_anonymous": user.get("is_anonymous") or False,
            "aal": "aal1",
            "amr": [{"method": method, "timestamp": int(authenticated_at.timestamp())}],
            "iat": now,
            "exp": now + lifetime_s,
            # Makes two logins within one second two tokens.
            "jti": str(uuid.uuid4()),
        }
        return self.sign(claims), now + lifetime_s

    def make_api_key(self, role: str) -> str:
        """Return a legacy project key (``anon`` or ``service_role``): a token without a user, good for ten years."""
        now = int(time.time())
        return self.sign({"iss": "tensorage", "role": role, "iat": now, "exp": now + 10 * 365 * 86400})


def new_secret() -> str:
    return secrets.token_urlsafe(48)
