"""The project and the user of a command: found as a session finds them, and logged in without the SDK.

The SDK takes longer to load than most commands take. A command logs in by a request of its own, and ends that login
when it is done.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import click

from tensorage.backend.wire.faults import Fault, check_version
from tensorage.backend.wire.http import Http, Request
from tensorage.backend.wire.patience import PATIENCE_S, Patience
from tensorage.config import ENVIRONMENT, Configuration, check_url, configure
from tensorage.errors import (
    AuthenticationError,
    BackendUnavailableError,
    ConfigurationError,
    InvalidInputError,
    PermissionDeniedError,
)

if TYPE_CHECKING:
    from tensorage.backend.transfer import Transfer
    from tensorage.store import TensorStore

__all__ = ["Choice", "Connection", "connect"]

#: A token that expires within this many seconds is renewed before it is used.
RENEW_BEFORE_S = 60

NO_PROJECT = (
    "no backend_url is configured: give --url and --key, or --local for the embedded backend, or set "
    f"{ENVIRONMENT['backend_url']} and {ENVIRONMENT['backend_key']} in the environment or in a .env file. "
    "`tensorage link URL KEY` remembers a project"
)


@dataclass(frozen=True)
class Choice:
    """Options that name a project.

    Parameters
    ----------
    is_local
        The embedded backend of `data_dir`, in place of a URL.
    profile
        Name of a project that was remembered.
    """

    url: str | None = None
    key: str | None = None
    is_local: bool = False
    data_dir: str | None = None
    profile: str | None = None

    def check(self) -> None:
        """Refuse options that contradict each other."""
        if self.is_local and (self.url is not None or self.key is not None):
            raise click.UsageError("--local has the URL and the key of its own: leave --url and --key out")
        if self.data_dir is not None and not self.is_local:
            raise click.UsageError("--data-dir is of the embedded backend: give --local, too")

    def configuration(self) -> Configuration:
        """Return the settings of the project and the user, all of which are known.

        Raises
        ------
        ConfigurationError
            If one of them is not.
        """
        if self.is_local:
            return self._of_local()
        found = configure(profile=self.profile, backend_url=self.url, backend_key=self.key)
        if found.backend_url is None:
            raise ConfigurationError(NO_PROJECT)
        for name, option in (("backend_key", ", or give --key"), ("email", ""), ("password", "")):
            if getattr(found, name) is None:
                remedy = f"set {ENVIRONMENT[name]} in the environment or in a .env file{option}"
                raise ConfigurationError(found.held_back.get(name, f"no {name} is configured: {remedy}"))
        return found

    def _of_local(self) -> Configuration:
        from tensorage.errors import missing_package

        try:
            from tensorage.embedded import control
        except ModuleNotFoundError as error:
            raise missing_package("commands with --local", error, "local") from error
        running = control.start(self.data_dir)
        return Configuration(running.api_url, running.anon_key, running.email, running.password)


@dataclass
class _Key:
    """Headers of requests before anybody is logged in."""

    key: str = field(repr=False)

    def headers(self) -> dict[str, str]:
        return {"apikey": self.key}

    def renew(self, refused: str) -> None:
        del refused


class Login:
    """The login of a user, from the first request that needs it on. Safe to use from many threads.

    Parameters
    ----------
    may_register
        Register the user if there is none: the embedded backend has one of its own, who may never have been there.
    """

    def __init__(self, settings: Configuration, *, may_register: bool = False) -> None:
        assert settings.backend_url is not None
        assert settings.backend_key is not None
        self.url = check_url(settings.backend_url).rstrip("/")
        self._settings = settings
        self._may_register = may_register
        self._key: str = settings.backend_key
        self._lock = threading.RLock()
        self._http = Http(self.url, _Key(self._key), patience=Patience(0.0, self.url))
        self._answer: dict[str, Any] | None = None
        self._renew_at = 0.0

    @property
    def email(self) -> str:
        return str(self._settings.email)

    @property
    def user(self) -> dict[str, Any]:
        """The account, as Auth describes it."""
        with self._lock:
            user: dict[str, Any] = self._logged_in()["user"]
            return user

    def headers(self) -> dict[str, str]:
        with self._lock:
            token = self._logged_in()["access_token"]
        return {"apikey": self._key, "Authorization": f"Bearer {token}"}

    def renew(self, refused: str) -> None:
        with self._lock:
            if self._answer is not None and refused == f"Bearer {self._answer['access_token']}":
                self._refresh()

    def end(self) -> None:
        """End the login, if there is one. Does not raise, and takes no longer than two seconds."""
        from tensorage.signin.state import last_logout

        with self._lock:
            answer, self._answer = self._answer, None
        if answer is not None:
            last_logout(self.url, self._key, answer["access_token"])
        self._http.close()

    def _logged_in(self) -> dict[str, Any]:
        if self._answer is None:
            self._accept(self._log_in())
        elif time.time() > self._renew_at:
            self._refresh()
        assert self._answer is not None
        return self._answer

    def _log_in(self) -> dict[str, Any]:
        words = {"email": self.email, "password": self._settings.password}
        try:
            return self._ask("token?grant_type=password", words, f"logging in as {self.email}")
        except AuthenticationError:
            if not self._may_register:
                raise
            return self._ask("signup", words, f"registering {self.email}")

    def _refresh(self) -> None:
        assert self._answer is not None
        words = {"refresh_token": self._answer["refresh_token"]}
        self._accept(self._ask("token?grant_type=refresh_token", words, "refreshing the login"))

    def _accept(self, answer: dict[str, Any]) -> None:
        self._answer = answer
        self._renew_at = time.time() + float(answer.get("expires_in", 3600)) - RENEW_BEFORE_S

    def _ask(self, path: str, words: Mapping[str, Any], asked: str) -> dict[str, Any]:
        faults: list[Fault] = []

        def note(status: int, body: bytes, retry_after: str | None) -> Fault:
            faults.append(Fault.parse(status, body, retry_after))
            return faults[-1]

        request = Request(
            "POST", f"/auth/v1/{path}", {"Content-Type": "application/json"}, [json.dumps(words).encode()],
            read_fault=note,
        )  # fmt: skip
        try:
            answer = json.loads(self._http.ask(request, asked).body)
        except (InvalidInputError, AuthenticationError, PermissionDeniedError) as error:
            said = faults[-1].message.rstrip(".")
            raise AuthenticationError(
                f"{asked}: {said}. Check the e-mail, the password and the key"
            ) from error
        except ValueError as error:
            raise _no_project(asked, self.url) from error
        if not isinstance(answer, dict) or not {"access_token", "refresh_token", "user"} <= answer.keys():
            raise _no_project(asked, self.url)
        return answer


def _no_project(asked: str, url: str) -> BackendUnavailableError:
    return BackendUnavailableError(
        f"{asked}: {url} does not answer as a Supabase project does. Check the URL"
    )


class Connection:
    """Requests to one project as one user, and the stores of this user.

    It is the backend of the stores.

    Parameters
    ----------
    login
        Login of the user.
    """

    def __init__(self, login: Login) -> None:
        self.login = login
        self.email: str | None = login.email
        self.backend_url: str | None = login.url
        self._http = Http(login.url, login, patience=Patience(0.0, login.url))
        self._is_checked = False

    def call(self, function: str, arguments: Mapping[str, Any], asked: str) -> Any:
        """Call a function of the project with JSON arguments, and return its JSON answer, without loading numpy."""
        if not self._is_checked:
            check_version(self._post("tensorage_version", {}, "checking the project"))
            self._is_checked = True
        return self._post(function, arguments, asked)

    def _post(self, function: str, arguments: Mapping[str, Any], asked: str) -> Any:
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        body = [json.dumps(arguments).encode()]
        answer = self._http.ask(Request("POST", f"/rest/v1/rpc/{function}", headers, body), asked)
        try:
            return json.loads(answer.body)
        except ValueError as error:
            raise _no_project(asked, self.login.url) from error

    @property
    def user_id(self) -> str:
        return str(self.login.user["id"])

    @cached_property
    def transfer(self) -> Transfer:
        from tensorage.backend.transfer import Transfer

        # The login has worked before the first array is moved: an outage from then on is waited for.
        return Transfer(
            self.login.url, self.login, patience=Patience(PATIENCE_S, self.login.url, has_worked=True)
        )

    def store(self, owner: str | None = None, *, quiet: bool = True, **options: Any) -> TensorStore:
        """Return the store of this user, or of what somebody else shares."""
        from tensorage.store import TensorStore

        self.login.headers()
        return TensorStore(self, quiet=quiet, owner=owner, **options)

    @property
    def is_logged_in(self) -> bool:
        """True once the command's login is made."""
        return True

    def hold(self) -> None:
        """Do nothing: the login lasts as long as the command."""

    def release(self) -> None:
        """Do nothing: the login lasts as long as the command."""

    def close(self) -> None:
        """Finish what nobody waits for, close the connections, and end the login."""
        transfer = self.__dict__.get("transfer")
        if transfer is not None:
            transfer.finish(1.0)
            transfer.close()
        self._http.close()
        self.login.end()


@contextlib.contextmanager
def connect(choice: Choice) -> Iterator[Connection]:
    """Open a connection for the time of a command."""
    connection = Connection(Login(choice.configuration(), may_register=choice.is_local))
    try:
        yield connection
    finally:
        connection.close()
