"""The Supabase SDK's client, as a session uses it. Imported when a session first needs it."""

from __future__ import annotations

from typing import Self

import httpx
from supabase.lib.client_options import SyncClientOptions

import supabase

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
