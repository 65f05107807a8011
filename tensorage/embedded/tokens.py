"""JSON Web Tokens (HS256), made for the users of a data folder and verified on every request."""

from __future__ import annotations

import secrets
import time
import uuid
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import jwt

#: Clocks differ: PostgREST accepts tokens this many seconds past ``exp`` or before ``nbf`` / ``iat``.
CLOCK_SKEW_S = 30

#: How many verified tokens are remembered, so that a busy client's token is not verified every time.
_REMEMBERED = 1024

#: Longest token that is remembered. A usual one has 1,000 characters; what its user writes into it makes it longer.
_MAX_REMEMBERED_LENGTH = 4096


@dataclass
class Tokens:
    """Signs and verifies the tokens of one data folder.

    Parameters
    ----------
    secret
        The HS256 key.
    """

    secret: str = field(repr=False)
    _verified: dict[str, dict[str, Any]] = field(default_factory=dict, repr=False)

    def sign(self, claims: dict[str, Any]) -> str:
        return jwt.encode(claims, self.secret, algorithm="HS256")

    def verify(self, token: str, *, leeway_s: int = CLOCK_SKEW_S) -> dict[str, Any]:
        """Claims of a token whose signature and times are good. They are shared: change nothing in them.

        Parameters
        ----------
        leeway_s
            Seconds by which the token's times may be missed.

        Raises
        ------
        jwt.InvalidTokenError
            Whatever is wrong with it, as PyJWT names it.
        """
        claims = self._verified.get(token)
        # Its signature does not change; its time runs out. (PyJWT takes an `exp` that is text, too.)
        if claims is not None and ("exp" not in claims or int(claims["exp"]) + leeway_s > time.time()):
            return claims
        claims = jwt.decode(
            token,
            self.secret,
            algorithms=["HS256"],
            leeway=leeway_s,
            # Whom a token is for is told by its role, and roles are PostgreSQL's to check.
            options={"verify_aud": False},
        )
        if len(token) <= _MAX_REMEMBERED_LENGTH:
            if len(self._verified) >= _REMEMBERED:
                self._verified.clear()
            self._verified[token] = claims
        return claims

    def access_token(
        self, user: dict[str, Any], session_id: str, lifetime_s: int, *, authenticated_at: datetime
    ) -> tuple[str, int]:
        """Token of a logged-in user, and the second since the epoch at which it expires.

        Parameters
        ----------
        user
            As the Auth API shows one: id, email, phone, role, app_metadata, user_metadata, is_anonymous.
        authenticated_at
            When the user last showed their password; a refreshed token says the same as the one before.
        """
        now = int(time.time())
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
            "amr": [{"method": "password", "timestamp": int(authenticated_at.timestamp())}],
            "iat": now,
            "exp": now + lifetime_s,
            # Two logins within one second are still two tokens.
            "jti": str(uuid.uuid4()),
        }
        return self.sign(claims), now + lifetime_s

    def api_key(self, role: str) -> str:
        """Legacy project key (``anon`` or ``service_role``): a token without a user, for ten years."""
        now = int(time.time())
        return self.sign({"iss": "tensorage", "role": role, "iat": now, "exp": now + 10 * 365 * 86400})


def new_secret() -> str:
    return secrets.token_urlsafe(48)
