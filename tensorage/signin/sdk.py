"""The Supabase SDK, as a session uses it. Import this when a session first needs the SDK: loading it is slow.

The auth part of the SDK was called ``gotrue`` until supabase 2.18.0 and is called ``supabase_auth`` since. No other
module has to know.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

import httpx
from supabase.lib.client_options import SyncClientOptions

import supabase
from tensorage.backend.wire.http import tls_context

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
    "ask_for_session",
    "make_client",
]

#: Longest wait of the SDK's requests for the next bytes of an answer, in seconds.
TIMEOUT_S = 60.0
CONNECT_TIMEOUT_S = 5.0


class SessionClient(supabase.Client):
    """A `supabase.Client` that can also be called: ``session.client()`` is ``session.client``."""

    def __call__(self) -> Self:
        return self


def make_client(url: str, key: str) -> tuple[SessionClient, httpx.Client]:
    """Make a client of one project, and the HTTP client that its parts share.

    No thread refreshes tokens in the background, and no token is kept on disk: the session renews its login when it is
    used.
    """
    # A redirection would carry passwords and the key to any server that it names.
    http = httpx.Client(
        verify=tls_context(url),
        http2=False,
        timeout=httpx.Timeout(TIMEOUT_S, connect=CONNECT_TIMEOUT_S),
        follow_redirects=False,
    )
    options = SyncClientOptions(auto_refresh_token=False, persist_session=False, httpx_client=http)
    return SessionClient(url, key, options), http


def ask_for_session(client: supabase.Client, access_token: str, refresh_token: str | None) -> AuthResponse:
    """Ask the Auth server whose tokens these are. An access token that has expired is renewed.

    Parameters
    ----------
    refresh_token
        None if there is none: the session of the answer has an empty one then.
    """
    if refresh_token is not None:
        return client.auth.set_session(access_token, refresh_token)
    found = client.auth.get_user(access_token)
    if found is None:
        return AuthResponse()
    session = Session(
        access_token=access_token,
        refresh_token="",
        expires_in=0,
        token_type="bearer",  # noqa: S106 - a kind of tokens
        user=found.user,
    )
    return AuthResponse(user=found.user, session=session)
