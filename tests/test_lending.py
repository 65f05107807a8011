"""Processes that work with the login of another one: what they get of it, and what they are told when it is gone."""

from __future__ import annotations

import gc
import json
import multiprocessing
import os
import pickle
import secrets
import shutil
import signal
import struct
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from multiprocessing import connection
from pathlib import Path
from typing import Any

import numpy as np
import others
import psycopg
import pytest
import servers
from forks import fork
from processes import PROCESSES
from project import Project

from tensorage import AuthenticationError, BackendSession
from tensorage.embedded import control
from tensorage.signin import proofs
from tensorage.signin.auth_requests import AuthServer
from tensorage.signin.kept import keep_login
from tensorage.signin.lending import Loan, Whereabouts

#: Tokens of the backend of these tests live so long, in seconds.
LIFETIME_S = 2


#: Counts a user's logins and refresh tokens.
Events = Callable[[], tuple[int, int]]


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> Iterator[control.Running]:
    data_dir = tmp_path_factory.mktemp("short")
    yield servers.start(data_dir, jwt_lifetime_s=LIFETIME_S)
    control.stop(data_dir)


@pytest.fixture
def session(short: control.Running) -> Iterator[BackendSession]:
    project = Project(short.api_url, short.anon_key)
    session = project.session(project.register())
    session.login_by_mail()
    yield session
    session.logout()


@pytest.fixture
def events(short: control.Running, session: BackendSession) -> Events:
    """Number of the user's logins, and of the refresh tokens that there have been."""
    user_id = session.user_id

    def count() -> tuple[int, int]:
        with psycopg.connect(short.superuser_url, autocommit=True) as database:
            return tuple(
                database.execute(
                    f"select count(*) from auth.{table} where user_id::text = %s", [user_id]
                ).fetchone()[0]  # type: ignore[index]
                for table in ("sessions", "refresh_tokens")
            )  # type: ignore[return-value]

    return count


def expire(session: BackendSession) -> None:
    time.sleep(max(0.0, session.login.expires_at - time.time()))


def read_across_expiry(tensor: Any) -> str:
    """Read until two tokens have taken the place of the first, and return how many were used."""
    tokens = set()
    until = time.monotonic() + 60
    while len(tokens) < 3 and time.monotonic() < until:
        assert tensor[3].tolist() == 3
        tokens.add(tensor.arrays.project.backend.token)
        time.sleep(0.05)
    return str(len(tokens))


class TestTheNextToken:
    def test_comes_from_the_parent_of_a_fork(self, session: BackendSession, events: Events) -> None:
        store = session()
        store["x"] = np.arange(10)
        tensor = store.open("x")
        children = [fork(lambda: read_across_expiry(tensor)) for _ in range(2)]
        assert all(int(child()) == 3 for child in children)
        logins, refreshes = events()
        assert logins == 1
        # One for each life of a token, and not for each process.
        assert refreshes <= 8

    @pytest.mark.parametrize("kind", ["spawn", "forkserver"])
    def test_comes_from_the_process_that_pickled(
        self, session: BackendSession, events: Events, kind: str
    ) -> None:
        store = session()
        store["x"] = np.arange(10)
        with multiprocessing.get_context(kind).Pool(1) as pool:
            assert int(pool.apply(read_across_expiry, (store.open("x"),))) == 3
        assert events()[0] == 1

    def test_is_passed_on_to_a_childs_child(self, session: BackendSession, events: Events) -> None:
        store = session()
        store["x"] = np.arange(10)

        def work() -> str:
            copied = pickle.loads(pickle.dumps(store.open("x")))
            return fork(lambda: read_across_expiry(copied))()

        assert int(fork(work)()) == 3
        assert events()[0] == 1

    def test_replaces_a_refused_one(self, session: BackendSession) -> None:
        copied = pickle.loads(pickle.dumps(session))
        before = copied.token
        assert before == session.token
        copied.login.renew_unless_done(before)
        assert copied.token != before
        assert copied.token == session.token

    def test_is_asked_for_once_by_many_threads(self, session: BackendSession, events: Events) -> None:
        copied = pickle.loads(pickle.dumps(session))
        refused, (_, before) = copied.token, events()
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda _: copied.login.renew_unless_done(refused), range(32)))
        assert events()[1] == before + 1

    def test_reaches_the_client_too(self, session: BackendSession) -> None:
        session()["x"] = np.arange(10)
        copied = pickle.loads(pickle.dumps(session))
        assert copied.client.table("datasets").select("key").execute().data == [{"key": "x"}]
        expire(session)
        assert copied.client.table("datasets").select("key").execute().data == [{"key": "x"}]

    def test_is_not_needed_while_the_old_one_works(self, session: BackendSession) -> None:
        copied = pickle.loads(pickle.dumps(session))
        session.logout()
        assert copied.token


class TestALoginThatIsGone:
    def test_after_a_logout(self, session: BackendSession) -> None:
        copied = pickle.loads(pickle.dumps(session))
        expire(session)
        session.logout()
        with pytest.raises(AuthenticationError, match=r"logged out.*login_by_mail"):
            list(copied())
        assert copied.password is None

    def test_after_the_session_is_gone(self, short: control.Running) -> None:
        project = Project(short.api_url, short.anon_key)
        session = project.session(project.register())
        session.login_by_mail()
        copied, expires_at = pickle.loads(pickle.dumps(session)), session.login.expires_at
        del session
        gc.collect()
        time.sleep(max(0.0, expires_at - time.time()))
        with pytest.raises(AuthenticationError, match="Keep that process"):
            list(copied())

    def test_after_the_process_was_killed(self, short: control.Running) -> None:
        project = Project(short.api_url, short.anon_key)
        user = project.register()
        ours, theirs = multiprocessing.Pipe()
        lender = PROCESSES.Process(target=lend_and_wait, args=(project, user, theirs))
        lender.start()
        copied = pickle.loads(ours.recv_bytes())
        assert list(copied()) == []
        assert lender.pid is not None
        os.kill(lender.pid, signal.SIGKILL)
        lender.join()
        time.sleep(LIFETIME_S)
        with pytest.raises(AuthenticationError, match="cannot be asked"):
            list(copied())

    def test_after_somebody_else_made_the_socket_of_the_killed_process_anew(
        self, short: control.Running
    ) -> None:
        project = Project(short.api_url, short.anon_key)
        user = project.register()
        ours, theirs = multiprocessing.Pipe()
        lender = PROCESSES.Process(target=lend_and_wait, args=(project, user, theirs))
        lender.start()
        copied = pickle.loads(ours.recv_bytes())
        token = copied.login.loan.token
        assert lender.pid is not None
        os.kill(lender.pid, signal.SIGKILL)
        lender.join()
        address = copied.login.loan.lender.address
        Path(address).unlink()
        heard: list[bytes] = []

        def answer(asking: connection.Connection[Any, Any]) -> None:
            asking.send_bytes(bytes(32))
            heard.append(asking.recv_bytes())
            asking.send_bytes(bytes(32))
            heard.append(asking.recv_bytes())

        time.sleep(LIFETIME_S)
        with (
            listening(address, answer),
            pytest.raises(AuthenticationError, match=r"is not that process.*login_by_mail"),
        ):
            list(copied())
        assert [len(words) for words in heard] == [64]
        assert token.encode() not in heard[0]

    def test_a_child_says_so_too_and_does_not_log_in(self, session: BackendSession, events: Events) -> None:
        """It was forked with the password in its memory."""
        ready, go = multiprocessing.Pipe()

        def work() -> str:
            go.recv_bytes()
            expire_at = session.login.loan.expires_at  # type: ignore[union-attr]
            time.sleep(max(0.0, expire_at - time.time()))
            try:
                list(session())
            except AuthenticationError as error:
                return str(error)
            return "nothing was raised"

        child = fork(work)
        session.logout()
        ready.send_bytes(b"go")
        assert "logged out" in child()
        assert events()[0] == 0

    def test_it_can_log_in_by_itself_if_told_to(self, session: BackendSession) -> None:
        copied = pickle.loads(pickle.dumps(session))
        email, password = session.email, session.password
        session.logout()
        copied.login_by_mail(email, password)
        assert list(copied()) == []
        # The login is not that of a session that is unpickled later, either.
        session.login_by_mail()
        again = pickle.loads(pickle.dumps(session))
        assert again is not copied
        copied.logout()

    def test_it_cannot_be_refreshed_elsewhere(self, session: BackendSession) -> None:
        with pytest.raises(AuthenticationError, match="which refreshes it"):
            pickle.loads(pickle.dumps(session)).refresh()


class TestSharing:
    def test_what_is_unpickled_shares_a_session(self, session: BackendSession) -> None:
        store = session()
        store["x"] = np.arange(10)
        first, second = (pickle.loads(pickle.dumps(store.open("x"))) for _ in range(2))
        assert first.arrays.project.backend is second.arrays.project.backend
        assert first.arrays.project.backend is not session

    def test_a_newer_token_is_taken_over(self, session: BackendSession) -> None:
        copied = pickle.loads(pickle.dumps(session))
        before = copied.token
        session.refresh()
        assert pickle.loads(pickle.dumps(session)) is copied
        assert copied.token == session.token != before

    def test_not_with_other_users(self, session: BackendSession, short: control.Running) -> None:
        project = Project(short.api_url, short.anon_key)
        other = project.session(project.register())
        other.login_by_mail()
        assert pickle.loads(pickle.dumps(other)).user_id == other.user_id
        assert pickle.loads(pickle.dumps(session)).user_id == session.user_id
        other.logout()


class TestAKeptLogin:
    def test_it_outlives_many_tokens(
        self, short: control.Running, session: BackendSession, events: Events
    ) -> None:
        """Sessions that work for several lifetimes of a token: one login, and no token is spent twice."""
        server = AuthServer(short.api_url, short.anon_key)
        answer = server.log_in(str(session.email), str(session.password))
        server.close()
        session.logout()
        keep_login(short.api_url, answer, short.anon_key, "file")

        def work(_: int) -> int:
            mine = BackendSession(backend_url=short.api_url, backend_key=short.anon_key)
            tokens = set()
            store = mine()
            while len(tokens) < 3:
                tokens.add(mine.token)
                assert list(store) == []
            return len(tokens)

        with ThreadPoolExecutor(6) as pool:
            assert list(pool.map(work, range(6))) == [3] * 6
        assert events()[0] == 1


class TestTheSocket:
    @pytest.fixture
    def address(self, session: BackendSession) -> str:
        pickle.dumps(session)
        assert session.login.lender.whereabouts is not None
        return session.login.lender.whereabouts.address

    def test_others_of_this_machine_cannot_reach_it(self, address: str) -> None:
        assert Path(address).parent.stat().st_mode & 0o077 == 0

    @pytest.mark.parametrize(
        "question",
        [
            b"",
            b"nonsense",
            b"{}",
            b"[]",
            b'{"refused": null}',
            b"x" * 64,
            b"x" * 100_000,
        ],
    )
    @pytest.mark.parametrize("is_proved", [False, True])
    def test_what_is_no_question_gets_no_answer(
        self, session: BackendSession, address: str, question: bytes, is_proved: bool
    ) -> None:
        assert session.login.lender.whereabouts is not None
        key = session.login.lender.whereabouts.key if is_proved else None
        if is_proved and question == b'{"refused": null}':
            assert session.token.encode() in answer_to(address, question, key)
        else:
            with pytest.raises((EOFError, ConnectionError)):
                answer_to(address, question, key)
        assert list(pickle.loads(pickle.dumps(session))()) == []

    def test_who_asks_nothing_keeps_nobody_waiting(self, session: BackendSession, address: str) -> None:
        copied = pickle.loads(pickle.dumps(session))
        with connection.Client(address), connection.Client(address):
            copied.login.renew_unless_done(copied.token)
            assert copied.token == session.token

    def test_the_secret_is_shown_nowhere(self, session: BackendSession) -> None:
        loan = pickle.loads(pickle.dumps(session)).login.loan
        assert loan.token not in repr(loan)
        assert loan.lender.secret not in repr(loan)
        assert loan.lender.address in repr(loan)

    def test_the_answer_holds_no_more_than_the_token(self, session: BackendSession, address: str) -> None:
        assert session.login.lender.whereabouts is not None
        assert session.login.session is not None
        question = json.dumps({"refused": None}).encode()
        answer = answer_to(address, question, session.login.lender.whereabouts.key)
        assert session.token.encode() in answer
        assert session.login.session.refresh_token.encode() not in answer
        assert session.password is not None
        assert session.password.encode() not in answer

    def test_it_goes_with_the_session(self, short: control.Running) -> None:
        project = Project(short.api_url, short.anon_key)
        session = project.session(project.register())
        session.login_by_mail()
        pickle.dumps(session)
        whereabouts = session.login.lender.whereabouts
        assert whereabouts is not None
        # A child that lives on does not keep it open.
        ready, go = multiprocessing.Pipe()
        child = fork(lambda: str(go.recv_bytes()))
        del session
        gc.collect()
        with pytest.raises(OSError, match=r"."):
            connection.Client(whereabouts.address)
        ready.send_bytes(b"go")
        child()


def answer_to(address: str, question: bytes, key: bytes | None) -> bytes:
    """Answer to a question, asked with or without a proof that one may ask."""
    with connection.Client(address) as asking:
        if key is None:
            assert len(asking.recv_bytes()) == 32
        else:
            proofs.prove_as_asker(asking, key, 10)
        asking.send_bytes(question)
        return asking.recv_bytes()


@contextmanager
def listening(
    address: str, answer: Callable[[connection.Connection[Any, Any]], None]
) -> Iterator[list[BaseException]]:
    """Somebody else at an address, who answers one asker: the errors that this met."""
    met: list[BaseException] = []

    def serve() -> None:
        try:
            with listener.accept() as asking:
                answer(asking)
        except (OSError, EOFError) as error:
            met.append(error)

    with connection.Listener(address) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield met
        finally:
            thread.join()


KEY = b"the key"


def reflect(asking: connection.Connection[Any, Any]) -> None:
    """Have the asker's own code stand in for the lender's."""
    asking.send_bytes(secrets.token_bytes(32))
    asking.send_bytes(asking.recv_bytes()[32:])


def as_with_another_key(asking: connection.Connection[Any, Any]) -> None:
    proofs.prove_as_lender(asking, b"another key", 10)


def say_yes(asking: connection.Connection[Any, Any]) -> None:
    asking.send_bytes(bytes(32))
    asking.send_bytes(bytes(32))


def say_much(asking: connection.Connection[Any, Any]) -> None:
    asking.send_bytes(bytes(1_000_000))


def say_little(asking: connection.Connection[Any, Any]) -> None:
    asking.send_bytes(bytes(31))


class TestWhoIsThere:
    """Both sides prove that they are those whom the other means."""

    @pytest.fixture
    def address(self, tmp_path: Path) -> Iterator[str]:
        # Keep it short, as names of sockets have to be.
        folder = Path(f"/tmp/{secrets.token_hex(8)}")
        folder.mkdir(mode=0o700)
        yield str(folder / "socket")
        shutil.rmtree(folder)

    def test_both_know_the_key(self, address: str) -> None:
        def answer(asking: connection.Connection[Any, Any]) -> None:
            proofs.prove_as_lender(asking, KEY, 10)
            asking.send_bytes(b"come in")

        with listening(address, answer) as met, connection.Client(address) as lender:
            proofs.prove_as_asker(lender, KEY, 10)
            assert lender.recv_bytes() == b"come in"
        assert met == []

    @pytest.mark.parametrize("impostor", [reflect, as_with_another_key, say_yes, say_much, say_little])
    def test_an_impostor_is_told_nothing(
        self, address: str, impostor: Callable[[connection.Connection[Any, Any]], None]
    ) -> None:
        """A process outlives its parent, and another program has made the parent's folder and socket anew."""
        heard: list[bytes] = []

        def answer(asking: connection.Connection[Any, Any]) -> None:
            impostor(asking)
            heard.append(asking.recv_bytes())

        loan = Loan("TOKEN", 0.0, 0.0, "someone", Whereabouts(address, KEY.decode()))
        with (
            listening(address, answer),
            pytest.raises(AuthenticationError, match=r"login_by_mail"),
        ):
            loan.next("TOKEN")
        # It hears at most what its own nonce makes of the key.
        assert all(len(words) == 64 and KEY not in words for words in heard)

    def test_who_has_heard_everything_cannot_say_it_again(self, session: BackendSession) -> None:
        pickle.dumps(session)
        whereabouts = session.login.lender.whereabouts
        assert whereabouts is not None
        with connection.Client(whereabouts.address) as asking:
            recorder = Recorder(asking)
            proofs.prove_as_asker(recorder, whereabouts.key, 10)  # type: ignore[arg-type]
        assert len(recorder.sent) == 1
        with connection.Client(whereabouts.address) as asking:
            asking.recv_bytes()
            asking.send_bytes(recorder.sent[0])
            with pytest.raises((EOFError, ConnectionError)):
                asking.recv_bytes()

    @others.needs_root
    def test_another_user_who_knows_the_key_gets_nothing(self, session: BackendSession) -> None:
        pickle.dumps(session)
        whereabouts = session.login.lender.whereabouts
        assert whereabouts is not None
        assert session.token
        # Even where the folder lets others in.
        folder = Path(whereabouts.address).parent
        folder.chmod(0o755)
        Path(whereabouts.address).chmod(0o777)

        def ask() -> str:
            try:
                return answer_to(whereabouts.address, b'{"refused": null}', whereabouts.key).decode()
            except (EOFError, ConnectionError):
                return "no answer"

        try:
            assert session.token in fork(ask)()
            assert others.fork_as_other(ask)() == "no answer"
        finally:
            folder.chmod(0o700)

    @others.needs_root
    def test_a_lender_of_another_user_who_knows_the_key_is_told_nothing(self, address: str) -> None:
        others.give_away(Path(address).parent)
        ready, go = multiprocessing.Pipe()

        def impersonate() -> str:
            with connection.Listener(address) as listener:
                go.send_bytes(b"go")
                with listener.accept() as asking:
                    try:
                        asking.send_bytes(bytes(32))
                        return asking.recv_bytes().decode("latin-1")
                    except (EOFError, ConnectionError):
                        return "nothing"

        impostor = others.fork_as_other(impersonate)
        ready.recv_bytes()
        loan = Loan("TOKEN", 0.0, 0.0, "someone", Whereabouts(address, KEY.decode()))
        with pytest.raises(AuthenticationError, match=rf"another user \(uid {others.UID}\).*login_by_mail"):
            loan.next("TOKEN")
        assert impostor() == "nothing"

    def test_the_user_of_macos(self) -> None:
        """Version, user, number of groups, 16 groups."""
        credentials = struct.pack("=IIh2x16I", 0, 501, 1, *range(16))
        assert len(credentials) == proofs.XUCRED_BYTES
        assert proofs.uid_of_xucred(credentials) == 501
        with pytest.raises(proofs.NotThePeerError):
            proofs.uid_of_xucred(struct.pack("=IIh2x16I", 1, 501, 1, *range(16)))


class Recorder:
    """A connection that remembers what was sent through it."""

    def __init__(self, there: connection.Connection[Any, Any]) -> None:
        self._there = there
        self.sent: list[bytes] = []

    def send_bytes(self, message: bytes) -> None:
        self.sent.append(message)
        self._there.send_bytes(message)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._there, name)


def lend_and_wait(project: Project, user: Any, pipe: Any) -> None:
    session = project.session(user)
    session.login_by_mail()
    pipe.send_bytes(pickle.dumps(session))
    time.sleep(60)
