"""Headers of requests, errors of the auth SDK, and the end of a login."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from tensorage.backend.wire.http import new_pool
from tensorage.backend.wire.patience import start_hint
from tensorage.errors import AuthenticationError, BackendUnavailableError
from tensorage.wording import one_line, sentences

if TYPE_CHECKING:
    from tensorage.signin.sdk import AuthError

__all__ = ["LAST_WORK_S", "Ending", "TransferLogin", "auth_errors", "last_logout", "was_refused_unread"]

#: Seconds that a logout may take when the session is dropped or the interpreter ends.
LAST_LOGOUT_TIMEOUT_S = 2.0

#: Seconds that work which nobody waits for may take before a logout.
LAST_WORK_S = 1.0

#: HTTP statuses that a gateway sends without asking the Auth server: too many requests, no server, and Cloudflare's
#: two.
_NOT_LET_IN = frozenset({429, 503, 521, 523})


#: Advice for codes of the Auth server. These messages say all that there is to say if the advice is empty.
_ADVICE = {
    "weak_password": "Choose a password that this project takes",
    "validation_failed": "",
    "same_password": "",
    "email_address_invalid": "",
    "invalid_credentials": "Check the e-mail and the password, and that they are of this project",
    "user_already_exists": "Log in as this user, or register another address",
    "email_exists": "Log in as this user, or register another address",
    "email_not_confirmed": "Follow the link in the mail that the project has sent to this address",
    "signup_disabled": "Ask the administrator of the project for an account",
    "email_provider_disabled": "Ask the administrator of the project to allow e-mail and password",
    "user_banned": "Ask the administrator of the project",
}


_CHECK = "Check the e-mail, the password and the key"


class Connections(Protocol):
    """An owner of sockets."""

    def close(self) -> None: ...


class Unfinished(Protocol):
    """An owner of work that nobody waits for."""

    def finish(self, within_s: float) -> None: ...


@dataclass
class Ending:
    """Work to do when a session is dropped or the interpreter ends. Does not keep the session alive.

    Parameters
    ----------
    login
        Arguments of `last_logout`, while somebody is logged in.
    connections
        Connections to close.
    unfinished
        Owners of work that may come to its end before.
    """

    login: tuple[str, str, str] | None = field(default=None, repr=False)
    connections: list[Connections] = field(default_factory=list, repr=False)
    unfinished: list[Unfinished] = field(default_factory=list, repr=False)

    def __call__(self) -> None:
        for unfinished in self.unfinished:
            unfinished.finish(LAST_WORK_S)
        if self.login is not None:
            last_logout(*self.login)
        for connections in self.connections:
            connections.close()


class TokenSource(Protocol):
    """The part of a login that requests need."""

    def request_headers(self) -> dict[str, str]:
        """Return the headers that identify the user of a request."""
        ...

    def renew_unless_done(self, refused: str) -> None:
        """Replace a refused token, unless another thread has done so meanwhile."""
        ...


class TransferLogin:
    """Login that requests are sent with. Does not keep the login alive."""

    def __init__(self, login: TokenSource) -> None:
        self._login = weakref.ref(login)

    def headers(self) -> dict[str, str]:
        # The request itself waits for a backend that is away. No lock of the login is held meanwhile.
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
def auth_errors(asked: str, url: str | None, otherwise: str = _CHECK) -> Iterator[None]:
    """Translate errors of the auth SDK to errors of this package.

    Parameters
    ----------
    otherwise
        Advice for a refusal that no other advice is known for.
    """
    import httpx

    from tensorage.signin.sdk import AuthApiError, AuthError, AuthRetryableError, AuthUnknownError

    try:
        yield
    except (httpx.HTTPError, AuthRetryableError) as error:
        if isinstance(error, AuthRetryableError) and error.status:
            raise _not_serving(asked, url, error) from error
        raise BackendUnavailableError(
            f"{asked}: {url} cannot be reached ({one_line(str(error))}). Check the URL, the network and the "
            f"backend{start_hint(url)}"
        ) from error
    except (AuthUnknownError, ValueError, TypeError, AttributeError) as error:
        # The SDK raises any of these over an answer that does not come from an Auth server.
        raise BackendUnavailableError(
            f"{asked}: {url} does not answer as a Supabase project does ({type(error).__name__}). Check the URL"
        ) from error
    except AuthError as error:
        status = error.status if isinstance(error, AuthApiError) else 0
        if status == 429 or status >= 500:
            raise _not_serving(asked, url, error) from error
        raise AuthenticationError(
            sentences(
                f"{asked}: {one_line(str(error))}", _advice(getattr(error, "code", None), status, otherwise)
            )
        ) from error


def _not_serving(asked: str, url: str | None, error: AuthError) -> BackendUnavailableError:
    status = getattr(error, "status", None)
    said = f"HTTP {status}: {one_line(str(error))}" if status else one_line(str(error))
    return BackendUnavailableError(f"{asked}: {url} does not serve now ({said}). Try again later")


def _advice(code: str | None, status: int, otherwise: str) -> str:
    """Return the advice for a refusal of the Auth server."""
    if not code and status in {401, 403}:
        # The gateway looks at the key before the Auth server sees the request.
        return "Check the key of the project"
    return _ADVICE.get(code or "", otherwise)


def was_refused_unread(error: BackendUnavailableError) -> bool:
    """Tell whether the Auth server cannot have seen a request: nobody was reached, or a gateway refused."""
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
    """End a login without raising. A login that stays open expires by itself."""
    import urllib3

    headers = {"apikey": key, "Authorization": f"Bearer {token}"}
    # RuntimeError: the interpreter is ending, and begins no thread any more.
    with (
        contextlib.suppress(urllib3.exceptions.HTTPError, OSError, RuntimeError),
        new_pool(url, 1, urllib3.Timeout(total=LAST_LOGOUT_TIMEOUT_S)) as pool,
    ):
        pool.request("POST", f"{url}/auth/v1/logout?scope=local", headers=headers, retries=False)
