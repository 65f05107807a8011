"""Kinds of a project's API keys, told by their looks, and the service key as a login."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from tensorage.errors import AuthenticationError

__all__ = ["Key", "KeyKind", "ServiceKey", "claims_of", "read_key"]

#: Kinds of keys. The two legacy kinds are JWTs that name a role.
KeyKind = Literal["publishable", "secret", "legacy anon", "legacy service", "other"]

_BY_PREFIX: dict[str, KeyKind] = {"sb_publishable_": "publishable", "sb_secret_": "secret"}
_BY_ROLE: dict[str, KeyKind] = {"anon": "legacy anon", "service_role": "legacy service"}


@dataclass(frozen=True)
class Key:
    """A key by its looks. Only the project itself can tell whether the key is good.

    Parameters
    ----------
    project
        Reference of the hosted project that a legacy key names.
    expires_at
        End of a legacy key, in seconds since 1970.
    """

    kind: KeyKind
    project: str | None = None
    expires_at: float | None = None

    @property
    def passes_policies(self) -> bool:
        """True if it is a key for administrators, whom no policy holds back."""
        return self.kind in {"secret", "legacy service"}


def read_key(key: str) -> Key:
    """Tell the kind of a key.

    Examples
    --------
    >>> read_key("sb_publishable_1234").kind
    'publishable'
    """
    for prefix, kind in _BY_PREFIX.items():
        if key.startswith(prefix):
            return Key(kind)
    claims = claims_of(key)
    kind = _BY_ROLE.get(str(claims.get("role")), "other")
    project, end = claims.get("ref"), claims.get("exp")
    return Key(
        kind,
        project if isinstance(project, str) else None,
        float(end) if isinstance(end, int | float) and not isinstance(end, bool) else None,
    )


def claims_of(token: str) -> Mapping[str, Any]:
    """Return the claims of a JWT, unchecked; none if it is no JWT."""
    parts = token.split(".")
    if len(parts) != 3:
        return {}
    try:
        claims = json.loads(base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)))
    except ValueError:
        return {}
    return claims if isinstance(claims, dict) else {}


@dataclass(frozen=True)
class ServiceKey:
    """The service key as a login: see `tensorage.backend.wire.http.Login`."""

    key: str = field(repr=False)

    def headers(self) -> Mapping[str, str]:
        """Return the headers of a request."""
        # A key of the new kind may stand in "Authorization" if it stands in "apikey", too.
        return {"apikey": self.key, "Authorization": f"Bearer {self.key}"}

    def renew(self, refused: str) -> None:  # noqa: ARG002 - the interface of logins
        """Raise: a key that is refused has no successor."""
        raise AuthenticationError(
            "the project refuses the service key: take the secret key of this project from its dashboard (Project "
            "Settings, API Keys)"
        )
