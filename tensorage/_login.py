"""What a session needs around its login: headers for requests, errors, and the end."""

from __future__ import annotations

import contextlib
import os
import weakref
from collections.abc import Iterator
from typing import TYPE_CHECKING

from tensorage.config import required
from tensorage.errors import AuthenticationError, BackendUnavailableError

if TYPE_CHECKING:
    from tensorage.session import BackendSession

__all__ = ["TransferLogin", "auth_errors", "last_logout"]

#: Seconds that a logout may take when the session is dropped or the interpreter ends.
LAST_LOGOUT_TIMEOUT_S = 2.0


class TransferLogin:
    """The login that requests are made with. Does not keep the session alive."""

    def __init__(self, session: BackendSession) -> None:
        self._session = weakref.ref(session)

    def headers(self) -> dict[str, str]:
        session = self._get()
        token = session.token
        return {"apikey": required("backend_key", session.backend_key), "Authorization": f"Bearer {token}"}

    def renew(self, refused: str) -> None:
        self._get()._renew_unless_done(refused.removeprefix("Bearer "))

    def _get(self) -> BackendSession:
        session = self._session()
        if session is None:
            raise AuthenticationError(
                "the session of this array is gone: keep the store, or open the array again"
            )
        return session


@contextlib.contextmanager
def auth_errors(asked: str, url: str | None) -> Iterator[None]:
    """The auth SDK's errors as ours."""
    import httpx

    from tensorage._auth_sdk import AuthError, AuthRetryableError

    try:
        yield
    except (httpx.HTTPError, AuthRetryableError) as error:
        raise BackendUnavailableError(
            f"{asked}: {url} cannot be reached ({error}). Check the URL, the network and the backend"
        ) from error
    except AuthError as error:
        raise AuthenticationError(f"{asked}: {error}. Check the e-mail, the password and the key") from error


def last_logout(url: str, key: str, token: str, pid: int) -> None:
    """End a login when nobody is there to see an error: a session that stays open expires by itself."""
    if pid != os.getpid():
        return
    import urllib3

    headers = {"apikey": key, "Authorization": f"Bearer {token}"}
    with (
        contextlib.suppress(urllib3.exceptions.HTTPError, OSError, RuntimeError),
        urllib3.PoolManager(timeout=LAST_LOGOUT_TIMEOUT_S, retries=False) as pool,
    ):
        pool.request("POST", f"{url}/auth/v1/logout?scope=local", headers=headers)
