"""Requests by which the doctor looks at a project. Nothing is judged here, and nothing is changed in the project."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from tensorage.backend.wire.http import CONNECT_TIMEOUT_S, new_pool
from tensorage.backend.wire.storage_requests import BUCKET
from tensorage.config import ENVIRONMENT, Configuration, check_url, require
from tensorage.doctor.answers import Answer, Inside, Reply, Sight, Silence
from tensorage.errors import AuthenticationError, BackendUnavailableError
from tensorage.session import BackendSession
from tensorage.signin.kept import KeptLogin, find_login
from tensorage.signin.keys import ServiceKey, read_key

if TYPE_CHECKING:
    import urllib3

__all__ = ["look_at"]

#: Longest wait for the next bytes of an answer.
READ_TIMEOUT_S = 15.0

#: Largest answer that is read. The description of a large API is the longest.
MAX_ANSWER_BYTES = 16 * 1024 * 1024

#: Tables that REST shows.
_TABLES = ("datasets", "tensors", "shards")


def look_at(configuration: Configuration) -> Sight:
    """Ask a project for all that the doctor judges.

    Parameters
    ----------
    configuration
        Project to look at. Its user logs in if e-mail and password are there, or if a login is kept. The service key is
        used if there is one.

    Raises
    ------
    ConfigurationError
        If no URL is known, or it is none of a project.
    """
    url = check_url(require("backend_url", configuration.backend_url, configuration.held_back).rstrip("/"))
    with _Asker(url) as asker:
        return _Look(asker, configuration).take()


class _Look:
    """One look at a project."""

    def __init__(self, asker: _Asker, configuration: Configuration) -> None:
        self._asker = asker
        self._configuration = configuration
        key, service_key = configuration.backend_key, configuration.service_key
        self._key = {"apikey": key} if key else {}
        self._service_key = ServiceKey(service_key).headers() if service_key else None
        self._sight = Sight(
            asker.url, read_key(key) if key else None, read_key(service_key) if service_key else None
        )

    def take(self) -> Sight:
        first = self._asker.get("/auth/v1/settings", self._key)
        self._sight = replace(self._sight, settings=first)
        if isinstance(first, Silence):
            # Nobody answers: each further request would take its time-out, too.
            return self._sight
        if first.status not in {401, 403}:
            self._look_as_anybody()
            self._look_as_user()
        else:
            self._sight = replace(self._sight, no_login="the key of the project is missing, or refused")
        if self._service_key is not None:
            self._look_inside("the service key", self._service_key)
            rest = self._asker.get("/rest/v1/", self._service_key)
            self._sight = replace(self._sight, rest=(*self._sight.rest, rest))
        return self._sight

    def _look_as_anybody(self) -> None:
        get = self._asker.get
        self._sight = replace(
            self._sight,
            health=get("/auth/v1/health", self._key),
            rest=(get("/rest/v1/", self._key),),
            version_to_anybody=self._asker.call("tensorage_version", self._key),
            # No row: the right to the table is all that is asked for.
            tables_to_anybody={table: get(f"/rest/v1/{table}?limit=0", self._key) for table in _TABLES},
            storage=get("/storage/v1/status", self._key),
        )

    def _look_as_user(self) -> None:
        try:
            kept = self._find_kept()
            if kept is None and (reason := self._why_no_login()):
                self._sight = replace(self._sight, no_login=reason)
                return
            with _log_in(self._configuration, kept) as session:
                token, user_id = session.token, session.user_id
                headers = {**self._key, "Authorization": f"Bearer {token}"}
                # The smallest request to Storage that needs the user's token and the policies.
                body = {"prefix": f"{user_id}/", "limit": 1}
                listing = self._asker.ask("POST", f"/storage/v1/object/list/{BUCKET}", headers, body)
                self._sight = replace(self._sight, listing=listing)
                self._look_inside("the user", headers)
        except AuthenticationError as error:
            self._sight = replace(self._sight, login_error=str(error))
        except BackendUnavailableError as error:
            self._sight = replace(self._sight, login_outage=str(error))

    def _find_kept(self) -> KeptLogin | None:
        """Return the login that `tensorage login` keeps, if it is the one that a session would use."""
        configuration = self._configuration
        if not configuration.backend_key or configuration.password:
            return None
        return find_login(self._asker.url, configuration.email)

    def _why_no_login(self) -> str | None:
        configuration = self._configuration
        missing = [name for name in ("email", "password") if not getattr(configuration, name)]
        if not missing:
            return None
        reasons = [configuration.held_back[name] for name in missing if name in configuration.held_back]
        variables = " and ".join(ENVIRONMENT[name] for name in missing)
        return ". ".join(reasons) or f"no login is configured: set {variables}, or run `tensorage login` once"

    def _look_inside(self, caller: str, headers: Mapping[str, str]) -> None:
        answer = self._asker.call("tensorage_doctor", headers)
        version = None
        if isinstance(answer, Reply) and not answer.is_good:
            # Tells a project with other migrations from one that has none.
            version = self._asker.call("tensorage_version", headers)
        self._sight = replace(self._sight, inside=(*self._sight.inside, Inside(caller, answer, version)))


@contextlib.contextmanager
def _log_in(configuration: Configuration, kept: KeptLogin | None) -> Iterator[BackendSession]:
    """Log in for the time of the block, or work with a kept login. An outage is not waited out."""
    session = BackendSession(
        configuration.email,
        configuration.password,
        configuration.backend_url,
        configuration.backend_key,
        patience_s=0,
    )
    if kept is not None:
        session.login.borrow(kept)
    else:
        # By `hold` alone, a connection would be opened ahead for requests of the session, which makes none. A server
        # that answers one connection after the other would wait for such a request, and not answer the login.
        session.login.log_in()
    session.hold()
    try:
        yield session
    finally:
        session.release()


class _Asker:
    """Requests to one project, each made once."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._pool: urllib3.PoolManager | None = None

    def __enter__(self) -> _Asker:
        import urllib3

        self._pool = new_pool(self.url, 1, urllib3.Timeout(connect=CONNECT_TIMEOUT_S, read=READ_TIMEOUT_S))
        return self

    def __exit__(self, *_: object) -> None:
        assert self._pool is not None
        self._pool.clear()

    def get(self, path: str, headers: Mapping[str, str]) -> Answer:
        return self.ask("GET", path, headers)

    def call(self, function: str, headers: Mapping[str, str]) -> Answer:
        return self.ask("POST", f"/rest/v1/rpc/{function}", headers, {})

    def ask(self, method: str, path: str, headers: Mapping[str, str], body: Any = None) -> Answer:
        import urllib3

        assert self._pool is not None
        sent = {"Accept": "application/json", **headers}
        if body is not None:
            sent["Content-Type"] = "application/json"
        began = time.time()
        try:
            response = self._pool.request(
                method,
                self.url + path,
                body=None if body is None else json.dumps(body),
                headers=sent,
                # Each answer is judged as it comes: a second try, or a redirect, would hide what users meet.
                retries=False,
                redirect=False,
                preload_content=False,
            )
            came = time.time()
            content = response.read(MAX_ANSWER_BYTES)
            if len(content) == MAX_ANSWER_BYTES:
                # The rest must not be taken for the next answer.
                response.close()
            response.release_conn()
        except (urllib3.exceptions.HTTPError, OSError) as error:
            return Silence(str(getattr(error, "reason", None) or error))
        named = {name.lower(): value for name, value in response.headers.items()}
        return Reply(response.status, named, _read(content), began, came)


def _read(content: bytes) -> Any:
    try:
        return json.loads(content)
    except ValueError:
        return content[:1000].decode("utf-8", "replace")
