"""Users, sessions and errors in GoTrue's JSON. Pure functions, no I/O."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from starlette.responses import JSONResponse

API_VERSION_HEADER = "X-Supabase-Api-Version"

#: The API version that changed the JSON of errors. Clients ask for it, or a later one, in a header.
_NEW_ERRORS = "2024-01-01"

#: Answers hold tokens and personal data, which no cache may keep (RFC 6749, section 5.1).
_NOT_STORED = {"Cache-Control": "no-store"}


class AuthError(Exception):
    """A refusal of a request, with the answer for its sender.

    Parameters
    ----------
    status
        The HTTP status.
    code
        GoTrue's error code, such as ``invalid_credentials``.
    message
        Text for a person.
    weaknesses
        Reasons why a password is weak.
    """

    def __init__(self, status: int, code: str, message: str, *, weaknesses: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.weaknesses = weaknesses


def json_answer(content: Any, status: int = 200) -> JSONResponse:
    return JSONResponse(content, status, headers=_NOT_STORED)


def error_answer(error: AuthError, asked_version: str | None) -> JSONResponse:
    """Return the answer to an error, in the JSON of the API version that the request asks for."""
    headers = {"X-Sb-Error-Code": error.code, **_NOT_STORED}
    content: dict[str, Any]
    if asked_version and re.fullmatch(r"\d{4}-\d\d-\d\d", asked_version) and asked_version >= _NEW_ERRORS:
        headers[API_VERSION_HEADER] = _NEW_ERRORS
        content = {"code": error.code, "message": error.message}
    else:
        content = {"code": error.status, "error_code": error.code, "msg": error.message}
    if error.weaknesses:
        content["weak_password"] = {"reasons": list(error.weaknesses)}
    return JSONResponse(content, error.status, headers=headers)


def user_json(user: Mapping[str, Any], identities: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the JSON of a user from a row of ``auth.users``."""
    times = ("email_confirmed_at", "confirmed_at", "last_sign_in_at", "created_at", "updated_at")
    return {
        "id": str(user["id"]),
        "aud": user["aud"] or "",
        "role": user["role"] or "",
        "email": user["email"] or "",
        "phone": user["phone"] or "",
        "app_metadata": user["app_metadata"],
        "user_metadata": user["user_metadata"],
        "identities": identities,
        # GoTrue leaves out times that are null.
        **{name: rfc3339(user[name]) for name in times if user[name] is not None},
        "is_anonymous": user["is_anonymous"],
    }


def identity_json(identity: Mapping[str, Any]) -> dict[str, Any]:
    """Return the JSON of an identity from a row of ``auth.identities``. ``id`` is the *provider's* id of the user."""
    times = ("last_sign_in_at", "created_at", "updated_at")
    return {
        "identity_id": str(identity["id"]),
        "id": identity["provider_id"],
        "user_id": str(identity["user_id"]),
        "identity_data": identity["identity_data"],
        "provider": identity["provider"],
        **{name: rfc3339(identity[name]) for name in times if identity[name] is not None},
        "email": identity["email"] or "",
    }


def session_json(
    user: dict[str, Any], access_token: str, refresh_token: str, *, expires_in: int, expires_at: int
) -> dict[str, Any]:
    return {
        "access_token": access_token,
        "token_type": "bearer",
        "expires_in": expires_in,
        "expires_at": expires_at,
        "refresh_token": refresh_token,
        "user": user,
    }


def rfc3339(moment: datetime) -> str:
    """Return a time in UTC with microseconds.

    Examples
    --------
    >>> rfc3339(datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC))
    '2026-01-02T03:04:05.000000Z'
    """
    return moment.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


# All ways to sign up that GoTrue knows. Clients expect each of them in the settings.
_PROVIDERS = (
    *("email", "phone", "anonymous_users"),
    *("apple", "azure", "bitbucket", "discord", "facebook", "figma", "fly", "github", "gitlab", "google"),
    *("kakao", "keycloak", "linkedin", "linkedin_oidc", "notion", "slack", "slack_oidc", "snapchat"),
    *("spotify", "twitch", "twitter", "workos", "zoom"),
)


def settings_json(*, allows_anonymous: bool) -> dict[str, Any]:
    """Return the JSON of ``/settings``: the ways to sign up, here e-mail and password, or without either."""
    offered = {"email", "anonymous_users"} if allows_anonymous else {"email"}
    return {
        "external": {name: name in offered for name in _PROVIDERS},
        "disable_signup": False,
        "mailer_autoconfirm": True,
        "phone_autoconfirm": False,
        "sms_provider": "",
        "saml_enabled": False,
    }
