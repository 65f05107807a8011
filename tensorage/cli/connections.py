"""The project and the user of a command: found as a session finds them, and logged in without the SDK.

The SDK takes longer to load than most commands take. A command works with the login that `tensorage login` keeps. If it
finds a password, it logs in by a request of its own, and ends that login when it is done.
"""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import click

from tensorage.backend.wire.faults import check_version
from tensorage.backend.wire.http import Http, Request
from tensorage.backend.wire.patience import PATIENCE_S, Patience
from tensorage.config import ENVIRONMENT, Configuration, check_key, check_url, configure
from tensorage.errors import AuthenticationError, ConfigurationError
from tensorage.signin.auth_requests import AuthServer, SignedIn, no_project
from tensorage.signin.kept_tokens import Tokens

if TYPE_CHECKING:
    from tensorage.backend.transfer import Transfer
    from tensorage.signin.kept import KeptLogin
    from tensorage.store import TensorStore

__all__ = ["Choice", "Connection", "connect"]

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

    def project(self) -> Configuration:
        """Return the settings, of which the URL and the key of the project are known.

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
        _require(found, "backend_key", ", or give --key")
        return found

    def login(self) -> Login:
        """Return the login of the configured user, or the kept one if there is no password.

        Raises
        ------
        ConfigurationError
            If neither is there.
        """
        found = self.project()
        # A password comes first, and is no reason to load what keeps logins.
        if found.password is None:
            from tensorage.signin.kept import find_login

            assert found.backend_url is not None
            kept = find_login(check_url(found.backend_url), found.email)
            if kept is not None:
                return Login(found, kept=kept)
        command = f"tensorage login --profile {self.profile}" if self.profile else "tensorage login"
        take_away = " and take USER_PASSWORD away, which comes before what is kept" if found.password else ""
        for name in ("email", "password"):
            _require(found, name, f", or run `{command}` once{take_away}")
        return Login(found, may_register=self.is_local)

    def _of_local(self) -> Configuration:
        from tensorage.errors import missing_package

        try:
            from tensorage.embedded import control
        except ModuleNotFoundError as error:
            raise missing_package("commands with --local", error, "local") from error
        # Starting one that runs finds it: commands with --local need no `tensorage local start`.
        running = control.start(self.data_dir)
        return Configuration(running.api_url, running.anon_key, running.email, running.password)


def _require(found: Configuration, name: str, otherwise: str) -> None:
    if getattr(found, name) is None:
        remedy = f"set {ENVIRONMENT[name]} in the environment or in a .env file{otherwise}"
        raise ConfigurationError(found.held_back.get(name, f"no {name} is configured: {remedy}"))


class Login:
    """The login of a user, from the first request that needs it on. Safe to use from many threads.

    Parameters
    ----------
    may_register
        Register the user if there is none: the embedded backend has one of its own, who may never have been there.
    kept
        Login that is kept, in place of e-mail and password. It goes on when the command is done.
    """

    def __init__(
        self, settings: Configuration, *, may_register: bool = False, kept: KeptLogin | None = None
    ) -> None:
        assert settings.backend_url is not None
        assert settings.backend_key is not None
        self.url = check_url(settings.backend_url).rstrip("/")
        self.kept = kept
        self._settings = settings
        self._may_register = may_register
        self._key: str = check_key(settings.backend_key)
        self._lock = threading.RLock()
        self._server = AuthServer(self.url, self._key)
        self._answer: SignedIn | None = None
        self._tokens: Tokens | None = None

    @property
    def email(self) -> str | None:
        return self.kept.email if self.kept is not None else self._settings.email

    @property
    def user_id(self) -> str:
        """Id of the account."""
        if self.kept is not None:
            return self.kept.user_id
        with self._lock:
            self._valid_tokens()
            assert self._answer is not None
            return self._answer.user_id

    def ask_for_user(self) -> Mapping[str, Any]:
        """Return the account, as Auth describes it now."""
        with self._lock:
            token = self._valid_tokens().access_token
            if self._answer is not None:
                return self._answer.user
        return self._server.user(token)

    def headers(self) -> dict[str, str]:
        with self._lock:
            token = self._valid_tokens().access_token
        return {"apikey": self._key, "Authorization": f"Bearer {token}"}

    def renew(self, refused: str) -> None:
        with self._lock:
            # Requests of several threads may be refused with one token. The first of them renews it.
            if self._tokens is not None and refused == f"Bearer {self._tokens.access_token}":
                self._tokens = self._renew(self._tokens, refused=self._tokens.access_token)

    def end(self) -> None:
        """End the login, if there is one of this command's own. Does not raise, and takes two seconds at most."""
        from tensorage.signin.state import last_logout

        with self._lock:
            tokens, self._tokens = self._tokens, None
        if tokens is not None and self.kept is None:
            last_logout(self.url, self._key, tokens.access_token)
        self._server.close()

    def _valid_tokens(self) -> Tokens:
        if self._tokens is None:
            self._tokens = self._first()
        elif not self._tokens.is_fresh():
            self._tokens = self._renew(self._tokens)
        return self._tokens

    def _first(self) -> Tokens:
        if self.kept is not None:
            return self.kept.tokens(self._key)
        email, password = str(self._settings.email), str(self._settings.password)
        try:
            self._answer = self._server.log_in(email, password)
        except AuthenticationError:
            if not self._may_register:
                raise
            self._answer = self._server.register(email, password)
        return Tokens.of(self._answer)

    def _renew(self, tokens: Tokens, refused: str | None = None) -> Tokens:
        if self.kept is not None:
            return self.kept.tokens(self._key, refused)
        self._answer = self._server.refresh(tokens.refresh_token)
        return Tokens.of(self._answer)


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
        # A command without elements does not wait for a backend that is away: somebody sits before it.
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
            raise no_project(asked, self.login.url) from error

    @property
    def user_id(self) -> str:
        return self.login.user_id

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

        # Logged in now: `transfer` waits for outages as after a login that has worked.
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
        # By `__dict__`: looking at the cached property would make one.
        transfer = self.__dict__.get("transfer")
        if transfer is not None:
            transfer.finish(1.0)
            transfer.close()
        self._http.close()
        self.login.end()


@contextlib.contextmanager
def connect(choice: Choice) -> Iterator[Connection]:
    """Open a connection for the time of a command."""
    connection = Connection(choice.login())
    try:
        yield connection
    finally:
        connection.close()
