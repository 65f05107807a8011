"""What a session needs around its login: headers for requests, errors, and the end."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

from tensorage.backend.wire.http import new_pool
from tensorage.backend.wire.patience import start_hint
from tensorage.errors import AuthenticationError, BackendUnavailableError

__all__ = ["Ending", "TransferLogin", "auth_errors", "last_logout", "was_refused_unread"]

#: Seconds that a logout may take when the session is dropped or the interpreter ends.
LAST_LOGOUT_TIMEOUT_S = 2.0


#: Statuses of those who have passed nothing on: too many requests, no server, and Cloudflare's two of its own.
_NOT_LET_IN = frozenset({429, 503, 521, 523})


class Connections(Protocol):
    """What holds sockets."""

    def close(self) -> None: ...


@dataclass
class Ending:
    """What is left to do when a session is dropped, or the interpreter ends. Does not keep the session alive.

    Parameters
    ----------
    login
        Arguments of `last_logout`, while somebody is logged in.
    connections
        To be closed.
    """

    login: tuple[str, str, str] | None = field(default=None, repr=False)
    connections: list[Connections] = field(default_factory=list, repr=False)

    def __call__(self) -> None:
        if self.login is not None:
            last_logout(*self.login)
        for connections in self.connections:
            connections.close()


class TokenSource(Protocol):
    """A login, as far as requests need one."""

    def request_headers(self) -> dict[str, str]:
        """Return the headers that say whose a request is."""
        ...

    def renew_unless_done(self, refused: str) -> None:
        """Get a new token in place of a refused one, unless another thread has got one meanwhile."""
        ...


class TransferLogin:
    """The login that requests are made with. Does not keep the login alive."""

    def __init__(self, login: TokenSource) -> None:
        self._login = weakref.ref(login)

    def headers(self) -> dict[str, str]:
        # The request's own patience waits for a backend that is away: no lock of the login is held for so long.
        return self._get().request_headers()

    def renew(self, refused: str) -> None:
        self._get().renew_unless_done(refused.removeprefix("Bearer "))

    def _get(self) -> TokenSource:
        login = self._login()
        if login is None:
            raise AuthenticationError(
                "the session of this array is gone: keep the store, or open the array again"
            )
        return login


@contextlib.contextmanager
def auth_errors(asked: str, url: str | None) -> Iterator[None]:
    """The auth SDK's errors as ours."""
    import httpx

    from tensorage.signin.sdk import AuthApiError, AuthError, AuthRetryableError, AuthUnknownError

    try:
        yield
    except (httpx.HTTPError, AuthRetryableError) as error:
        raise BackendUnavailableError(
            f"{asked}: {url} cannot be reached ({error}). Check the URL, the network and the backend{start_hint(url)}"
        ) from error
    except (AuthUnknownError, ValueError, TypeError, AttributeError) as error:
        # The SDK trips, in one way or another, over what is no answer of an Auth server.
        raise BackendUnavailableError(
            f"{asked}: {url} does not answer as a Supabase project does ({type(error).__name__}). Check the URL"
        ) from error
    except AuthError as error:
        status = error.status if isinstance(error, AuthApiError) else 0
        if status == 429 or status >= 500:
            raise BackendUnavailableError(
                f"{asked}: {url} does not serve now ({error}). Try again later"
            ) from error
        # Auth ends some of its messages with a full stop.
        said = str(error).rstrip(".")
        raise AuthenticationError(f"{asked}: {said}. Check the e-mail, the password and the key") from error


def was_refused_unread(error: BackendUnavailableError) -> bool:
    """Tell whether the Auth server cannot have done what it was asked: nobody was reached, or a gateway refused."""
    import httpx

    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, httpx.ConnectError | httpx.ConnectTimeout | httpx.PoolTimeout):
            return True
        if getattr(cause, "status", None) in _NOT_LET_IN:
            return True
        cause = cause.__cause__
    return False


def last_logout(url: str, key: str, token: str) -> None:
    """End a login when nobody is there to see an error: a session that stays open expires by itself."""
    import urllib3

    headers = {"apikey": key, "Authorization": f"Bearer {token}"}
    # RuntimeError: the interpreter is too far in its end.
    with (
        contextlib.suppress(urllib3.exceptions.HTTPError, OSError, RuntimeError),
        new_pool(url, 1, urllib3.Timeout(total=LAST_LOGOUT_TIMEOUT_S)) as pool,
    ):
        pool.request("POST", f"{url}/auth/v1/logout?scope=local", headers=headers, retries=False)
