"""The auth part of the Supabase SDK under whichever of its two names is installed.

The package was called ``gotrue`` until supabase 2.18.0 and is called ``supabase_auth`` since. This is
the only module that knows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

import httpx
from supabase.lib.client_options import SyncClientOptions

import supabase

if TYPE_CHECKING:
    from supabase_auth.errors import AuthApiError, AuthError, AuthRetryableError, AuthUnknownError
    from supabase_auth.types import AuthResponse, Session, User
else:
    try:
        from supabase_auth.errors import AuthApiError, AuthError, AuthRetryableError, AuthUnknownError
        from supabase_auth.types import AuthResponse, Session, User
    except ModuleNotFoundError as missing:
        if missing.name != "supabase_auth":
            raise
        from gotrue.errors import AuthApiError, AuthError, AuthRetryableError, AuthUnknownError
        from gotrue.types import AuthResponse, Session, User

__all__ = [
    "AuthApiError",
    "AuthError",
    "AuthResponse",
    "AuthRetryableError",
    "AuthUnknownError",
    "Session",
    "SessionClient",
    "User",
    "make_client",
]

#: Requests of the SDK, sign-ins and what the user asks of the client: seconds between two pieces of an answer.
TIMEOUT_S = 60.0
CONNECT_TIMEOUT_S = 5.0


class SessionClient(supabase.Client):
    """A `supabase.Client` that can also be called: ``session.client()`` is ``session.client``."""

    def __call__(self) -> Self:
        return self


def make_client(url: str, key: str) -> tuple[SessionClient, httpx.Client]:
    """A client of one project, and the HTTP client that its parts share.

    Tokens are neither refreshed in the background, by a thread that nobody asked for, nor kept on disk: the
    session renews its login when it is used.
    """
    # A redirection would carry passwords and the key to wherever it says.
    http = httpx.Client(
        http2=False, timeout=httpx.Timeout(TIMEOUT_S, connect=CONNECT_TIMEOUT_S), follow_redirects=False
    )
    options = SyncClientOptions(auto_refresh_token=False, persist_session=False, httpx_client=http)
    return SessionClient(url, key, options), http
