"""Logins: who makes them, who shares them, who renews and ends them."""

from __future__ import annotations

import gc
import http.server
import logging
import os
import pickle
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psycopg
import pytest
import servers
import workers
from forks import fork
from processes import PROCESSES
from project import IS_ELSEWHERE, Project, User

import supabase
import tensorage
from tensorage import (
    AuthenticationError,
    BackendSession,
    BackendUnavailableError,
    SchemaError,
    TensorStore,
)
from tensorage.backend.database import DatabaseContext
from tensorage.backend.wire.header import SCHEMA_VERSION
from tensorage.backend.wire.http import tls_context
from tensorage.embedded import control
from tensorage.signin import sdk

Logins = Callable[[], int]


@pytest.fixture
def user(new_user: User) -> User:
    """A user of each test's own: logins are counted."""
    return new_user


@pytest.fixture
def session(new_session: BackendSession) -> BackendSession:
    """A session of the new user."""
    return new_session


@pytest.fixture
def store(session: BackendSession) -> TensorStore:
    """A store of the new user, by itself."""
    return session()


class TestWhoIsLoggedIn:
    def test_a_context_logs_in_and_out(self, project: Project, user: User, logins: Logins) -> None:
        session = project.session(user)
        assert logins() == 0
        with session.database() as db:
            assert logins() == 1
            assert db.list_dataset_keys() == []
            assert session.user_id == user.id
        assert logins() == 0
        with session.database() as db:
            assert db.list_dataset_keys() == []

    def test_nested_contexts_share_a_login(self, project: Project, user: User, logins: Logins) -> None:
        session = project.session(user)
        with session.database() as outer:
            with session.storage(), session.database() as inner:
                assert logins() == 1
                assert inner.list_dataset_keys() == []
            assert logins() == 1
            assert outer.list_dataset_keys() == []
        assert logins() == 0

    def test_concurrent_contexts_share_a_login(self, project: Project, user: User, logins: Logins) -> None:
        session = project.session(user)
        everybody_in = threading.Barrier(8)

        def work(_: int) -> int:
            with session.database() as db:
                everybody_in.wait(30)
                db.list_dataset_keys()
                found = logins_seen()
                everybody_in.wait(30)
                return found

        seen = threading.Lock()

        def logins_seen() -> int:
            with seen:
                return logins()

        with ThreadPoolExecutor(8) as pool:
            assert list(pool.map(work, range(8))) == [1] * 8
        assert logins() == 0

    def test_a_store_holds_a_login(self, project: Project, user: User, logins: Logins) -> None:
        session = project.session(user)
        store = session()
        assert session() is store
        with session.database():
            pass
        assert logins() == 1
        store["x"] = np.arange(3)
        del store
        gc.collect()
        assert logins() == 0

    def test_a_context_logs_out_when_its_body_fails(
        self, project: Project, user: User, logins: Logins
    ) -> None:
        session = project.session(user)
        with pytest.raises(ZeroDivisionError), session.database():
            _ = 1 / 0
        assert logins() == 0

    def test_use_after_logout_logs_in_again(
        self, session: BackendSession, store: TensorStore, logins: Logins
    ) -> None:
        store["x"] = np.arange(3)
        first = session.token
        session.logout()
        session.logout()
        assert logins() == 0
        assert store["x"].tolist() == [0, 1, 2]
        assert logins() == 1
        assert session.token != first

    def test_logout_ends_this_session_only(self, project: Project, user: User, logins: Logins) -> None:
        mine, other = project.session(user), project.session(user)
        mine.login_by_mail()
        other.login_by_mail()
        assert logins() == 2
        mine.logout()
        assert logins() == 1
        other.refresh()
        assert list(other()) == []

    def test_another_login_takes_the_place_of_the_first(
        self, session: BackendSession, project: Project, logins: Logins
    ) -> None:
        session.login_by_mail()
        assert logins() == 1
        other = project.register()
        session.login_by_mail(other.email, other.password)
        assert logins() == 0
        assert session.user_id == other.id

    def test_a_refused_login_changes_nothing(
        self, session: BackendSession, user: User, logins: Logins
    ) -> None:
        before = session.token
        for email, password in [(user.email, "wrong-password"), ("nobody@example.com", "another-guess")]:
            with pytest.raises(AuthenticationError, match="Invalid login credentials") as caught:
                session.login_by_mail(email, password)
            assert isinstance(caught.value.__cause__, sdk.AuthApiError)
            assert password not in str(caught.value)
        assert (session.token, session.email, session.password) == (before, user.email, user.password)
        session.refresh()
        assert session.client.table("datasets").select("*").execute().data == []
        session.logout()
        assert logins() == 0

    def test_register(self, project: Project, user: User) -> None:
        session = BackendSession(None, None, project.url, project.key)
        response = session.register_by_mail("new-" + user.email, "a-good-password")
        assert isinstance(response, sdk.AuthResponse)
        assert response.user is not None
        assert session.user_id == response.user.id
        with pytest.raises(AuthenticationError, match="registered"):
            tensorage.signup("new-" + user.email, "a-good-password", project.url, project.key)
        with pytest.raises(AuthenticationError, match="6 characters"):
            tensorage.signup("other-" + user.email, "abc", project.url, project.key)
        assert session.user_id == response.user.id
        session.logout()

    def test_refresh(self, session: BackendSession, logins: Logins) -> None:
        before = session.token
        response = session.refresh()
        assert isinstance(response, sdk.AuthResponse)
        assert response.session is not None
        assert response.session.access_token == session.token != before
        assert logins() == 1

    def test_refresh_needs_a_login(self, project: Project, user: User) -> None:
        with pytest.raises(AuthenticationError, match="login_by_mail"):
            project.session(user).refresh()

    def test_wrong_password(self, project: Project, user: User) -> None:
        with pytest.raises(AuthenticationError, match="password"):
            tensorage.login(user.email, "wrong-password", project.url, project.key)
        with (
            pytest.raises(AuthenticationError),
            BackendSession(user.email, "wrong", project.url, project.key).database(),
        ):
            pytest.fail("nobody is logged in")

    def test_wrong_key(self, project: Project, user: User) -> None:
        # The gateway refuses it at the login, or the REST API afterwards.
        with pytest.raises(AuthenticationError, match="key"):
            list(tensorage.login(user.email, user.password, project.url, "wrong"))


class TestClientOfTheSdk:
    def test_with_and_without_parentheses(self, session: BackendSession, store: TensorStore) -> None:
        store["x"] = np.arange(3)
        assert isinstance(session.client, supabase.Client)
        assert session.client() is session.client
        for client in (session.client, session.client()):
            rows = client.table("datasets").select("*").execute().data
            assert [row["key"] for row in rows] == ["x"]

    def test_it_has_the_renewed_token(self, session: BackendSession, store: TensorStore) -> None:
        client = session.client
        store["x"] = np.arange(3)
        session.refresh()
        assert client is session.client
        assert client.options.headers["Authorization"] == f"Bearer {session.token}"
        ended = session.token
        session.logout()
        assert ended not in str(client.options.headers)

    def test_auth_sdk_is_the_one_that_the_sdk_uses(self, session: BackendSession) -> None:
        assert supabase.AuthApiError is sdk.AuthApiError
        assert type(session.login_by_mail()) is sdk.AuthResponse


class TestNoSupabaseThere:
    def test_unreachable(self) -> None:
        session = BackendSession("ada@example.com", "password", f"http://127.0.0.1:{_closed_port()}", "key")
        with pytest.raises(BackendUnavailableError, match="cannot be reached"):
            session.login_by_mail()
        with pytest.raises(BackendUnavailableError), session.database():
            pytest.fail("nobody is logged in")

    def test_unknown_host(self) -> None:
        session = BackendSession("ada@example.com", "password", "https://project.invalid", "key")
        with pytest.raises(BackendUnavailableError, match=r"project\.invalid cannot be reached"):
            session.login_by_mail()

    @pytest.mark.parametrize(
        ("status", "content_type", "body"),
        [
            (200, "text/html", b"<html>Welcome</html>"),
            (404, "text/html", b"<html>Not found</html>"),
            (501, "text/html", b"<html>Unsupported method</html>"),
            (200, "application/json", b'{"hello": "world"}'),
            (200, "application/json", b"[1]"),
            (302, "text/html", b""),
        ],
    )
    def test_another_web_server(self, status: int, content_type: str, body: bytes) -> None:
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"]))
                self.send_response(status)
                self.send_header("Content-Type", content_type)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                """Keep messages out of the tests' output."""

        with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
            threading.Thread(target=server.serve_forever, args=(0.01,)).start()
            try:
                url = f"http://127.0.0.1:{server.server_port}"
                with pytest.raises(BackendUnavailableError, match="URL"):
                    BackendSession("ada@example.com", "password", url, "key").login_by_mail()
            finally:
                server.shutdown()


def _closed_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Iterator[control.Running]:
    """A backend of one's own, to be damaged: its tokens live for a few seconds."""
    data_dir = tmp_path_factory.mktemp("bare")
    yield servers.start(data_dir, jwt_lifetime_s=2)
    control.stop(data_dir)


class TestShortLivedTokens:
    @pytest.fixture
    def short(self, bare: control.Running) -> Iterator[BackendSession]:
        project = Project(bare.api_url, bare.anon_key)
        session = project.session(project.register())
        session.login_by_mail()
        yield session
        session.logout()

    def test_a_token_is_renewed_before_it_expires(self, short: BackendSession) -> None:
        before = short.token
        assert short.token == before
        refresh_token = short.login.session.refresh_token
        _wait_until(lambda: short.token != before)
        assert short.login.session.refresh_token != refresh_token
        assert list(short()) == []

    def test_the_client_is_renewed_too(self, short: BackendSession) -> None:
        before = short.client.options.headers["Authorization"]
        _wait_until(lambda: short.client.options.headers["Authorization"] != before)

    def test_an_ended_login_is_made_again_where_the_password_is_known(
        self, short: BackendSession, bare: control.Running
    ) -> None:
        before = short.token
        with psycopg.connect(bare.superuser_url, autocommit=True) as connection:
            connection.execute("delete from auth.sessions where user_id = %s", [short.user_id])
        _wait_until(lambda: short.token != before)
        assert list(short()) == []

    def test_an_expired_login_that_cannot_be_refreshed(
        self, short: BackendSession, bare: control.Running
    ) -> None:
        with psycopg.connect(bare.superuser_url, autocommit=True) as connection:
            connection.execute("delete from auth.sessions where user_id = %s", [short.user_id])
        short.password = None
        time.sleep(max(0, short.login.expires_at - time.time()))
        with pytest.raises(AuthenticationError, match="login_by_mail"):
            _ = short.token
        with pytest.raises(AuthenticationError, match="login_by_mail"):
            list(short())


def _wait_until(condition: Callable[[], bool], timeout_s: float = 20.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


class TestMigrations:
    @pytest.fixture
    def sql(self, bare: control.Running) -> Iterator[psycopg.Connection[Any]]:
        """SQL whose effect on the schema is undone afterwards."""
        with psycopg.connect(bare.superuser_url, autocommit=True) as connection:
            (original,) = connection.execute(
                "select pg_get_functiondef('public.tensorage_version'::regproc)"
            ).fetchone() or ("",)
            yield connection
            connection.execute("create schema if not exists public")
            connection.execute(original)
            connection.execute("notify pgrst, 'reload schema'")

    @pytest.fixture
    def fresh(self, bare: control.Running) -> Iterator[BackendSession]:
        project = Project(bare.api_url, bare.anon_key)
        session = project.session(project.register())
        yield session
        session.logout()

    @pytest.mark.parametrize(
        ("version", "message"),
        [
            (0, r"version 0, older than .*(?s:.)*migrations --sql"),
            (999, "version 999, newer than .*upgrade|Upgrade"),
        ],
    )
    def test_another_version(
        self, sql: psycopg.Connection[Any], fresh: BackendSession, version: int, message: str
    ) -> None:
        sql.execute(
            f"create or replace function public.tensorage_version() returns int language sql as 'select {version}'"
        )
        store = fresh()
        for _ in range(2):
            with pytest.raises(SchemaError, match=message):
                store["x"] = np.arange(3)
            with pytest.raises(SchemaError, match=message):
                store["x"]
            with pytest.raises(SchemaError, match=message), fresh.database() as db:
                db.check_schema_installed()
        assert sql.execute("select count(*) from datasets").fetchone() == (0,)

    def test_the_right_version_is_asked_for_once(
        self, sql: psycopg.Connection[Any], fresh: BackendSession
    ) -> None:
        with fresh.database() as db:
            assert db.check_schema_installed() is True
        store = fresh()
        store["x"] = np.arange(3)
        sql.execute(
            "create or replace function public.tensorage_version() returns int language sql as 'select 999'"
        )
        assert store["x"].tolist() == [0, 1, 2]
        with pytest.raises(SchemaError):
            DatabaseContext(fresh).check_schema_installed()
        del store["x"]

    def test_migrating_mends_a_session(self, sql: psycopg.Connection[Any], fresh: BackendSession) -> None:
        answer = (
            "create or replace function public.tensorage_version() returns int language sql as 'select {}'"
        )
        sql.execute(answer.format(SCHEMA_VERSION - 1))
        store = fresh()
        with pytest.raises(SchemaError):
            len(store)
        sql.execute(answer.format(SCHEMA_VERSION))
        assert len(store) == 0

    def test_none(self, fresh: BackendSession, bare: control.Running) -> None:
        """The last one that uses the backend."""
        with psycopg.connect(bare.superuser_url, autocommit=True) as connection:
            connection.execute("drop schema public cascade; create schema public")
            connection.execute("notify pgrst, 'reload schema'")
        _wait_until(lambda: _is_unknown(Project(bare.api_url, bare.anon_key), fresh.token))
        store = fresh()
        for use in (
            lambda: store.__setitem__("x", [1]),
            lambda: store["x"],
            lambda: len(store),
            DatabaseContext(fresh).check_schema_installed,
        ):
            with pytest.raises(SchemaError, match=r"tensorage migrations --sql"):
                use()


def _is_unknown(project: Project, token: str) -> bool:
    """The server has seen that the function is gone."""
    answer = httpx.post(
        f"{project.url}/rest/v1/rpc/tensorage_version",
        json={},
        headers={"apikey": project.key, "Authorization": f"Bearer {token}"},
        verify=tls_context(project.url),
    )
    return answer.status_code == 404


class TestTheEnd:
    def test_dropping_a_session_logs_out(self, project: Project, user: User, logins: Logins) -> None:
        session = project.session(user)
        session.login_by_mail()
        assert logins() == 1
        del session
        assert logins() == 0

    def test_a_tensor_keeps_its_session(self, project: Project, user: User, logins: Logins) -> None:
        tensor = _store_of(project, user, "x").open("x")
        gc.collect()
        assert tensor[...].tolist() == [0, 1, 2]
        assert logins() == 1
        del tensor
        gc.collect()
        assert logins() == 0

    def test_nothing_is_said_where_the_backend_is_gone(
        self, tmp_path: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        """Nothing is said when sessions are dropped or when a script ends."""
        running = servers.start(tmp_path)
        try:
            project = Project(running.api_url, running.anon_key)
            user = project.register()
            sessions = [project.session(user) for _ in range(3)]
            for session in sessions:
                session.login_by_mail()
            store = sessions[1]()
            context = sessions[2].database()
            context.__enter__()
            script = (
                "import sys, tensorage\n"
                "from tensorage.embedded import control\n"
                "store = tensorage.local(sys.argv[1])()\n"
                "store['x'] = [1]\n"
                "control.stop(sys.argv[1])\n"
            )
            ended = _run(script, tmp_path)
            assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")
        finally:
            control.stop(tmp_path)
        session = sessions[0]
        with pytest.raises(BackendUnavailableError):
            session.logout()
        session.logout()
        context.__exit__(None, None, None)
        sessions.clear()
        del session, store, context
        gc.collect()
        assert capfd.readouterr() == ("", "")

    def test_dropping_what_was_never_logged_in(self, capfd: pytest.CaptureFixture[str]) -> None:
        for url in (f"http://127.0.0.1:{_closed_port()}", "nonsense", None):
            session = BackendSession("ada@example.com", "password", url, "key")
            del session
        session = BackendSession.__new__(BackendSession)
        del session
        gc.collect()
        assert capfd.readouterr() == ("", "")

    @pytest.mark.parametrize(
        ("email", "password", "says"),
        [
            ("new-here@example.com", "short", r"at least 6 characters\. Choose"),
            ("no address", "a-good-password", "invalid format"),
        ],
    )
    def test_a_new_user_of_the_backend_is_told_what_will_not_do(
        self, backend: control.Running, email: str, password: str, says: str
    ) -> None:
        with pytest.raises(AuthenticationError, match=says) as caught:
            tensorage.local(backend.data_dir, email, password)
        assert "Invalid login credentials" not in str(caught.value)

    def test_a_wrong_password_of_the_backend(self, backend: control.Running) -> None:
        tensorage.local(backend.data_dir, "known-here@example.com", "password-7").logout()
        with pytest.raises(AuthenticationError, match="Invalid login credentials"):
            tensorage.local(backend.data_dir, "known-here@example.com", "another-guess")

    def test_a_script_ends_at_once(self, backend: control.Running, tmp_path: Path, database: Any) -> None:
        script = (
            "import sys, numpy as np, tensorage\n"
            "session = tensorage.local(sys.argv[1], 'script@example.com', 'password-7')\n"
            "store = session()\n"
            "store['x'] = np.arange(3)\n"
        )
        ended = _run(script, backend.data_dir)
        assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")
        rows = database.execute(
            "select u.id, count(s.id) from auth.users u left join auth.sessions s on s.user_id = u.id "
            "where email = 'script@example.com' group by u.id"
        ).fetchall()
        assert [count for _, count in rows] == [0]
        stored = database.execute("select tensor from tensors where user_id = %s", [rows[0][0]]).fetchall()
        assert stored == [(np.arange(3).tobytes(),)]
        database.execute("delete from auth.users where email = 'script@example.com'")


def _store_of(project: Project, user: User, key: str) -> TensorStore:
    store = project.session(user)()
    store[key] = np.arange(3)
    return store


def _run(script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable,
        "-W",
        "error",
        "-W",
        "ignore:The `supafunc` package is deprecated:DeprecationWarning",
    ]
    return subprocess.run(
        [*command, "-c", script, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


class TestProcesses:
    def test_a_forked_child_reads_with_connections_of_its_own(
        self, session: BackendSession, store: TensorStore, logins: Logins
    ) -> None:
        store["x"] = np.arange(1000)
        before = session.token
        assert session.client is not None

        def work() -> str:
            assert session.token == before
            assert store["x"].tolist() == list(range(1000))
            assert store.x[10:20].tolist() == list(range(10, 20))
            with session.database() as db:
                db.list_dataset_keys()
            assert session.client.table("datasets").select("key").execute().data == [{"key": "x"}]
            session.logout()
            return session.user_id

        # Several at once, while the parent goes on: shared connections would mix up answers.
        children = [fork(work) for _ in range(3)]
        for _ in range(20):
            assert store["x"].tolist() == list(range(1000))
        assert [child() for child in children] == [session.user_id] * 3
        assert session.token == before
        assert logins() == 1
        session.refresh()

    def test_a_fork_while_another_thread_logs_in(self, project: Project, user: User) -> None:
        """The lock of that thread is not there to be released in the child."""
        session = project.session(user)
        session.login_by_mail()
        held, done = threading.Event(), threading.Event()

        def hold() -> None:
            with session.login.lock:
                held.set()
                done.wait(30)

        thread = threading.Thread(target=hold)
        thread.start()
        held.wait(30)
        child = fork(lambda: session.user_id)
        try:
            assert child() == user.id
        finally:
            done.set()
            thread.join()
        session.logout()

    @pytest.mark.parametrize("what", ["session", "store", "tensor"])
    def test_a_pickle_carries_the_token_and_no_other_secret(
        self, what: str, session: BackendSession, store: TensorStore, user: User, logins: Logins
    ) -> None:
        store["x"] = np.arange(3)
        thing = {"session": session, "store": store, "tensor": store.x}[what]
        pickled = pickle.dumps(thing)
        assert session.login.session is not None
        assert session.token.encode() in pickled
        assert user.password.encode() not in pickled
        assert session.login.session.refresh_token.encode() not in pickled

        with PROCESSES.Pool(1) as pool:
            assert pool.apply(workers.use_pickled_thing, (what, pickled)) == ([0, 1, 2], user.id, b"text")
        assert logins() == 1
        session.refresh()

    def test_a_copy_does_not_end_the_login(self, session: BackendSession, logins: Logins) -> None:
        copied = pickle.loads(pickle.dumps(session))
        assert list(copied()) == []
        with copied.database() as db:
            db.list_dataset_keys()
        assert list(copied()) == []
        copied.logout()
        assert pickle.loads(pickle.dumps(copied)).user_id == session.user_id
        del copied
        gc.collect()
        assert logins() == 1


def test_a_store_that_another_thread_collects_does_not_hold_it_up(
    project: Project, user: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tensorage.store.LAST_LOGOUT_TIMEOUT_S", 0.1)
    session = project.session(user)
    store = session()
    is_locked, is_collected = threading.Event(), threading.Event()

    def use_the_login() -> None:
        with session.login.lock:
            is_locked.set()
            assert is_collected.wait(30)

    with ThreadPoolExecutor(1) as pool:
        using = pool.submit(use_the_login)
        assert is_locked.wait(30)
        del store
        gc.collect()
        is_collected.set()
        using.result()
    while session.login.session is not None:
        time.sleep(0.01)


def test_many_threads_use_one_store(project: Project, user: User) -> None:
    session = project.session(user)
    together = threading.Barrier(16)

    def work(number: int) -> bool:
        together.wait(30)
        store = session()
        for turn in range(3):
            array = np.full((50, number + 1), number * 10 + turn)
            store[f"{number}-{turn}"] = array
            if not np.array_equal(store[f"{number}-{turn}"], array):
                return False
        return store.keys().count(f"{number}-2") == 1

    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(work, range(16))) == [True] * 16
    assert len(session()) == 48


def test_no_secret_is_shown(
    project: Project, user: User, database: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    session = project.session(user)
    session.login_by_mail()
    store = session()
    store["x"] = np.arange(3)
    session.refresh()
    with session.storage() as storage:
        storage.upload_file("a.txt", "text")
    assert session.login.session is not None
    login = session.login.session
    shown = [
        repr(session),
        repr(store),
        repr(store.x),
        repr(session.login.ending),
        repr(session.transfer),
        str(vars(session)),
    ]
    told = "\n".join([*shown[:-1], *(record.getMessage() for record in caplog.records)])
    for secret in (user.password, login.access_token, login.refresh_token, project.key):
        assert secret not in told
    session.logout()


@pytest.mark.skipif(IS_ELSEWHERE, reason="SUPABASE_URL names another Supabase already")
def test_the_suite_runs_against_another_supabase(backend: control.Running, tmp_path: Path) -> None:
    """The fixtures take the project that the environment names."""
    environment = {**os.environ, "SUPABASE_URL": backend.api_url, "SUPABASE_KEY": backend.anon_key}
    chosen = "TestClientOfTheSdk or test_a_store_holds_a_login or test_a_script_ends_at_once"
    # In a folder of its own: at its end, pytest deletes the folders of earlier runs, which may take minutes.
    base = f"--basetemp={tmp_path / 'base'}"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", base, "-k", chosen, __file__]
    warning = ["-W", "ignore:The `supafunc` package is deprecated:DeprecationWarning"]
    ended = subprocess.run(
        [*command, *warning], env=environment, capture_output=True, text=True, check=False, timeout=120
    )
    assert "3 passed, 2 skipped" in ended.stdout, ended.stdout + ended.stderr
    assert "DB_URL" in ended.stdout
