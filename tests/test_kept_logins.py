"""Logins that are kept for all processes of a user: who renews them, who may read them, and where they are sent."""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import pickle
import re
import resource
import select
import signal
import socket
import threading
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import keyring
import keyring.backend
import keyring.backends.fail
import keyring.backends.null
import keyring.errors
import others
import psycopg
import pytest
import workers
from forks import fork
from processes import PROCESSES
from project import Project, User
from proxy import Exchange, Proxy

import tensorage
from tensorage import AuthenticationError, BackendSession, BackendUnavailableError, ConfigurationError
from tensorage.signin.auth_requests import AuthServer
from tensorage.signin.kept import KeptLogin, check_can_keep, find_login, keep_login
from tensorage.signin.kept_tokens import Place, Record, Tokens, load_record, save_record

#: Numbers of a user's logins, and of all refresh tokens that there have been of those that go on.
Events = Callable[[], tuple[int, int]]


@pytest.fixture
def user(new_user: User) -> User:
    """A user of each test's own: logins are counted."""
    return new_user


@pytest.fixture
def events(database: psycopg.Connection[Any], user: User) -> Events:
    def count(table: str) -> int:
        row = database.execute(
            f"select count(*) from auth.{table} where user_id::text = %s", [user.id]
        ).fetchone()
        assert row is not None
        return int(row[0])

    return lambda: (count("sessions"), count("refresh_tokens"))


def keep(project: Project, user: User, place: Place | None = "file", url: str | None = None) -> KeptLogin:
    """Log in as `tensorage login` does."""
    server = AuthServer(project.url, project.key)
    try:
        answer = server.log_in(user.email, user.password)
    finally:
        server.close()
    return keep_login(url or project.url, answer, project.key, place)


@pytest.fixture
def kept(project: Project, user: User) -> KeptLogin:
    return keep(project, user)


def content(kept: KeptLogin) -> tuple[Record, Tokens]:
    found = load_record(kept.path)
    assert found is not None
    return found


def tokens_of(kept: KeptLogin) -> Tokens:
    return content(kept)[1]


def age(kept: KeptLogin, *, expires_at: float = 0.0) -> None:
    """Make the kept tokens as old as they are after an hour: nobody has to wait for it."""
    record, tokens = content(kept)
    save_record(kept.path, record, replace(tokens, fresh_until=0.0, expires_at=expires_at))


def spoil(kept: KeptLogin) -> None:
    """Make the kept access token one that the project refuses, as after a clock that was wrong."""
    record, tokens = content(kept)
    save_record(kept.path, record, replace(tokens, access_token=f"{tokens.access_token[:-8]}AAAAAAAA"))


@pytest.fixture
def counted(project: Project) -> Iterator[tuple[Project, list[str]]]:
    """The project by a way on which requests for tokens are noted: by a password, or by a refresh token."""
    asked: list[str] = []

    def note(exchange: Exchange) -> bool:
        if "grant_type=" in exchange.target:
            asked.append(exchange.target.rpartition("=")[2])
        return False

    with contextlib.closing(Proxy(project.url, note)) as proxy:
        yield Project(proxy.url, project.key), asked


def session_of(project: Project, **settings: Any) -> BackendSession:
    return BackendSession(backend_url=project.url, backend_key=project.key, **settings)


# Sharing ----------------------------------------------------------------------------------------------------


def test_a_session_uses_it_and_leaves_it(
    project: Project, user: User, kept: KeptLogin, events: Events
) -> None:
    session = session_of(project)
    with session.database() as database:
        database.insert_dataset("x", [1], 1)
    assert session.user_id == user.id
    assert session.email == user.email
    assert f"logged in as {user.email}" in repr(session)
    session.logout()
    assert "not logged in" in repr(session)
    store = session()
    assert session.client.auth.get_user(session.token).user.id == user.id
    del store, session
    assert events() == (1, 1)
    # The functions that lead to a store take it, too.
    store = tensorage.login(backend_url=project.url, backend_key=project.key)
    assert store.backend.user_id == user.id
    tensorage.link_to(project.url, project.key)
    assert tensorage.login().backend.user_id == user.id
    assert events() == (1, 1)


def test_many_refresh_it_once(counted: tuple[Project, list[str]], user: User, events: Events) -> None:
    project, asked = counted
    kept = keep(project, user)
    age(kept)
    home = os.environ["XDG_CONFIG_HOME"]
    together = PROCESSES.Barrier(3 + 1)
    with PROCESSES.Pool(3, workers.wait_for, [together]) as pool:
        waiting = pool.map_async(workers.use_kept, [(home, project)] * 3, chunksize=1)
        everybody = threading.Barrier(13)

        def use(_: int) -> str:
            session = session_of(project)
            everybody.wait(60)
            assert list(session()) == []
            return session.user_id

        with ThreadPoolExecutor(12) as threads:
            found = threads.map(use, range(12))
            together.wait(60)
            everybody.wait(60)
            assert list(found) == [user.id] * 12
        assert waiting.get(60) == [user.id] * 3
    assert asked == ["password", "refresh_token"]
    assert events() == (1, 2)


def test_nobody_spends_anothers_token(counted: tuple[Project, list[str]], user: User, events: Events) -> None:
    """Eight threads find that their token is refused, again and again. Each use of a refresh token is the first one."""
    project, asked = counted
    kept = keep(project, user)

    def work(_: int) -> None:
        token = kept.tokens(project.key).access_token
        for _ in range(4):
            renewed = kept.tokens(project.key, refused=token).access_token
            assert renewed != token
            token = renewed

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    sessions, refresh_tokens = events()
    assert sessions == 1
    assert 4 < refresh_tokens <= 1 + 8 * 4
    # Auth answers a second use with the token that is there already.
    assert asked.count("refresh_token") == refresh_tokens - 1


def test_a_refused_token_is_renewed(project: Project, kept: KeptLogin, events: Events) -> None:
    record, tokens = content(kept)
    save_record(kept.path, record, replace(tokens, access_token=tokens.access_token[:-8] + "AAAAAAAA"))
    assert list(session_of(project)()) == []
    assert events() == (1, 2)


def test_a_forked_child_renews_it_by_itself(
    project: Project, kept: KeptLogin, user: User, events: Events
) -> None:
    session = session_of(project)
    store = session()
    before = session.token

    def work() -> str:
        assert session.login.loan is not None
        session.login.loan = replace(session.login.loan, fresh_until=0.0)
        age(kept)
        assert list(store) == []
        return f"{session.user_id} {session.token == before}"

    assert fork(work)() == f"{user.id} False"
    session.login.renew_unless_done(before)
    assert session.token == tokens_of(kept).access_token
    assert events() == (1, 2)


def test_a_pickle_borrows_from_this_process(project: Project, kept: KeptLogin, events: Events) -> None:
    session = session_of(project)
    session()["x"] = [1]
    pickled = pickle.dumps(session)
    tokens = tokens_of(kept)
    assert tokens.access_token.encode() in pickled
    assert tokens.refresh_token.encode() not in pickled
    assert str(kept.path).encode() not in pickled
    with PROCESSES.Pool(1) as pool:
        # The worker has no kept login, and its token is refused: it asks this process, which renews it.
        assert pool.apply(workers.use_pickled, [pickled]) == ["x"]
    assert events() == (1, 2)
    session.logout()


# Precedence -------------------------------------------------------------------------------------------------


def test_passwords_come_before_it(
    project: Project, user: User, kept: KeptLogin, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    other = project.register()
    monkeypatch.setenv("USER_EMAIL", other.email)
    # Nothing is kept for this address.
    with pytest.raises(ConfigurationError, match="tensorage login"):
        session_of(project)()
    monkeypatch.setenv("USER_PASSWORD", other.password)
    assert session_of(project).user_id == other.id
    monkeypatch.delenv("USER_EMAIL")
    # A password is that of somebody: not of the account that is kept.
    with pytest.raises(ConfigurationError, match=r"no email .*take the password away"):
        session_of(project)()
    monkeypatch.delenv("USER_PASSWORD")
    assert session_of(project, email=other.email, password=other.password).user_id == other.id
    assert session_of(project, email=user.email.upper()).user_id == user.id
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".env").write_text(f"USER_EMAIL={other.email}\nUSER_PASSWORD={other.password}\n")
    assert session_of(project).user_id == other.id


def test_the_last_login_is_the_one_that_is_used(project: Project, user: User, kept: KeptLogin) -> None:
    other = project.register()
    first = session_of(project)
    assert first.user_id == user.id
    keep(project, other)
    assert session_of(project).user_id == other.id
    assert session_of(project, email=user.email).user_id == user.id
    # A session goes on as the account that it began with.
    first.logout()
    assert first.user_id == user.id
    found = find_login(project.url, other.email)
    assert found is not None
    found.forget()
    assert session_of(project).user_id == user.id


def test_another_login_takes_its_place(project: Project, user: User, kept: KeptLogin, events: Events) -> None:
    age(kept)
    again = keep(project, user)
    spoil(again)
    again = keep(project, user)
    assert again.path == kept.path
    assert [path.suffix for path in sorted(kept.path.parent.iterdir())] == [".json", ".lock"]
    assert events() == (1, 1)
    # A program that began with the one of before goes on with this one.
    assert kept.tokens(project.key) == tokens_of(again)


def test_another_account_does_not(project: Project, kept: KeptLogin, user: User) -> None:
    record, tokens = content(kept)
    save_record(kept.path, replace(record, user_id=project.register().id), tokens)
    with pytest.raises(AuthenticationError, match="another account"):
        kept.tokens(project.key)


# Its end ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("token", ["good", "old", "refused"])
def test_ending_it(project: Project, user: User, kept: KeptLogin, events: Events, token: str) -> None:
    session = session_of(project)
    store = session()
    with workers.store_of(project, user) as other:
        if token == "old":
            age(kept)
        elif token == "refused":
            spoil(kept)
        kept.end(project.key)
        # The other login of the user goes on.
        assert events()[0] == 1
        assert list(other) == []
    assert not kept.path.exists()
    assert find_login(project.url) is None
    assert session.login.loan is not None
    session.login.loan = replace(session.login.loan, fresh_until=0.0, expires_at=0.0)
    with pytest.raises(AuthenticationError, match=f"`tensorage login {user.email}`"):
        list(store)
    keep(project, user)
    assert list(store) == []


def test_one_that_has_ended_says_so(
    project: Project, kept: KeptLogin, user: User, database: psycopg.Connection[Any]
) -> None:
    age(kept)
    database.execute("delete from auth.sessions where user_id = %s", [user.id])
    for _ in range(2):
        with pytest.raises(AuthenticationError, match=f"has ended.*`tensorage login {user.email}`"):
            session_of(project)()
    assert kept.path.exists()
    kept.end(project.key)
    assert not kept.path.exists()


def test_an_auth_server_that_gives_no_codes(
    project: Project, user: User, database: psycopg.Connection[Any]
) -> None:
    """Older ones do not: a refusal of theirs is none of another web server."""
    with contextlib.closing(
        Proxy(project.url, changes_answer=lambda answer: answer.replace(b'"code":', b'"kind":'))
    ) as proxy:
        far = Project(proxy.url, project.key)
        kept = keep(far, user)
        age(kept)
        database.execute("delete from auth.sessions where user_id = %s", [user.id])
        with pytest.raises(AuthenticationError, match="has ended"):
            kept.tokens(far.key)
        kept.end(far.key)


def test_a_wrong_key_does_not_end_it(project: Project, kept: KeptLogin) -> None:
    age(kept)
    with pytest.raises(AuthenticationError):
        kept.tokens("wrong")
    with pytest.raises(AuthenticationError):
        kept.end("wrong")
    assert kept.tokens(project.key).is_fresh()


def test_a_process_that_dies_before_it_has_saved(
    project: Project, kept: KeptLogin, database: psycopg.Connection[Any], user: User, events: Events
) -> None:
    age(kept)
    before = kept.path.read_bytes()

    def die(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def work() -> str:
        Path.replace = die  # type: ignore[assignment, method-assign]
        kept.tokens(project.key)
        return "not reached"

    with pytest.raises(AssertionError):
        fork(work)()
    # The token is spent, the new one lost, the lock free.
    assert events() == (1, 2)
    assert kept.path.read_bytes() == before
    renewed = kept.tokens(project.key)
    assert renewed.is_fresh()
    assert events() == (1, 2)
    # Nothing of the dead process is left.
    assert [path.suffix for path in sorted(kept.path.parent.iterdir())] == [".json", ".lock"]

    # Later than the reuse interval, it is too late.
    age(kept)
    with pytest.raises(AssertionError):
        fork(work)()
    database.execute(
        "update auth.refresh_tokens set updated_at = updated_at - interval '1 hour' where user_id = %s",
        [user.id],
    )
    with pytest.raises(AuthenticationError, match=r"has ended.*`tensorage login"):
        kept.tokens(project.key)
    assert keep(project, user).tokens(project.key).is_fresh()


def test_a_token_that_could_not_be_saved_is_not_spent(
    project: Project, kept: KeptLogin, events: Events
) -> None:
    age(kept)
    before = kept.path.read_bytes()

    def work() -> str:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
        try:
            kept.tokens(project.key)
        except ConfigurationError as error:
            return str(error)
        return "no error"

    assert "make room" in fork(work)()
    assert events() == (1, 1)
    assert kept.path.read_bytes() == before
    assert [path.suffix for path in sorted(kept.path.parent.iterdir())] == [".json", ".lock"]
    assert kept.tokens(project.key).is_fresh()


# Outages ----------------------------------------------------------------------------------------------------


def test_an_outage_leaves_it(project: Project, user: User, events: Events) -> None:
    proxy = Proxy(project.url)
    port = int(proxy.url.rpartition(":")[2])
    far = Project(proxy.url, project.key)
    kept = keep(far, user)
    session = session_of(far, patience_s=0)
    store = session()
    age(kept)
    before = kept.path.read_bytes()
    proxy.close()
    assert session.login.loan is not None
    session.login.loan = replace(session.login.loan, fresh_until=0.0)
    # The token of before is good for a while.
    assert session.token == session.login.loan.token
    session.login.loan = replace(session.login.loan, expires_at=0.0)
    for use in (lambda: session.token, lambda: kept.end(far.key)):
        with pytest.raises(BackendUnavailableError):
            use()
    assert kept.path.read_bytes() == before
    # Old tokens that are not over yet are used.
    age(kept, expires_at=2**40)
    assert kept.tokens(far.key) == tokens_of(kept)
    age(kept)
    with contextlib.closing(Proxy(project.url, port=port)):
        assert list(store) == []
    assert events() == (1, 2)


def test_a_loop_that_begins_offline(project: Project, user: User, tmp_path: Path) -> None:
    """A week without a network, and a reboot: what it writes waits in its spool."""
    proxy = Proxy(project.url)
    port = int(proxy.url.rpartition(":")[2])
    far = Project(proxy.url, project.key)
    age(keep(far, user))
    proxy.close()
    for first in (0, 2):
        store = session_of(far, patience_s=0)()
        with store.background(spool=tmp_path / "spool") as writer:
            for step in (first, first + 1):
                writer.append("loss", [step], create=True)
        with pytest.raises(BackendUnavailableError):
            list(store)
    with contextlib.closing(Proxy(project.url, port=port)):
        store = session_of(far)()
        with store.background(spool=tmp_path / "spool") as writer:
            writer.append("loss", [4])
        assert store["loss"].tolist() == [0, 1, 2, 3, 4]


def test_a_lost_answer(project: Project, user: User, events: Events) -> None:
    lost: list[str] = []

    def loses(exchange: Exchange) -> bool:
        is_first = "refresh_token" in exchange.target and not lost
        if is_first:
            lost.append(exchange.target)
        return is_first

    with contextlib.closing(Proxy(project.url, loses)) as proxy:
        far = Project(proxy.url, project.key)
        kept = keep(far, user)
        age(kept)
        assert kept.tokens(far.key).is_fresh()
    assert lost
    assert events() == (1, 2)


def test_what_is_no_answer_to_a_login_is_not_kept(project: Project, user: User) -> None:
    """It could not be read again, and would take the place of a login that can."""
    lives: list[bytes] = []

    def change(answer: bytes) -> bytes:
        return re.sub(rb'(?<="expires_in":)3600', lives[0], answer) if lives else answer

    with contextlib.closing(Proxy(project.url, changes_answer=change)) as proxy:
        far = Project(proxy.url, project.key)
        kept = keep(far, user)
        age(kept)
        for life in (b" NaN", b" -10", b"1e99", b"null", b'"ab"'):
            lives[:] = [life]
            with pytest.raises(BackendUnavailableError, match="does not answer as a Supabase project"):
                kept.tokens(far.key)
        lives.clear()
        assert kept.tokens(far.key).is_fresh()


def test_one_that_is_forgotten_while_it_is_renewed(project: Project, user: User) -> None:
    forgetting: list[threading.Thread] = []

    def forget_meanwhile(exchange: Exchange) -> bool:
        if "refresh_token" in exchange.target and not forgetting:
            forgetting.append(threading.Thread(target=kept.forget))
            forgetting[0].start()
            # Without a lock it would be done before the answer is kept.
            forgetting[0].join(0.3)
        return False

    with contextlib.closing(Proxy(project.url, forget_meanwhile)) as proxy:
        far = Project(proxy.url, project.key)
        kept = keep(far, user)
        age(kept)
        kept.tokens(far.key)
        forgetting[0].join()
    assert not kept.path.exists()


def test_a_process_that_holds_the_lock_for_long(
    project: Project, kept: KeptLogin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tensorage.signin.kept.LOCK_TIMEOUT_S", 0.2)
    lock = kept.path.with_suffix(".lock")
    with lock.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        # Nobody waits for a token while there is one that is good for a moment.
        age(kept, expires_at=2**40)
        assert kept.tokens(project.key) == tokens_of(kept)
        age(kept)
        with pytest.raises(BackendUnavailableError, match=lock.name):
            kept.tokens(project.key)
    assert kept.tokens(project.key).is_fresh()


# Files of others, and files that are none -------------------------------------------------------------------


DAMAGE = {
    "empty": "",
    "no JSON": "{'",
    "no object": "[1]",
    "cut off": '{"format": 1, "url": "https://a.example"',
    "of another version": '{"format": 2}',
    "without tokens": None,
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file(project: Project, user: User, kept: KeptLogin, damage: str) -> None:
    text = DAMAGE[damage]
    secrets = tokens_of(kept)
    if text is None:
        found = json.loads(kept.path.read_text())
        del found["tokens"]["refresh_token"]
        text = json.dumps(found)
    kept.path.write_text(text)
    for use in (session_of(project), lambda: kept.tokens(project.key), lambda: find_login(project.url)):
        with pytest.raises(ConfigurationError, match=r"cannot be read.*`tensorage login`") as caught:
            use()
        told = "".join(traceback.format_exception(caught.value))
        assert secrets.access_token not in told
        assert secrets.refresh_token not in told
    # Another login mends it.
    assert keep(project, user).tokens(project.key).is_fresh()


@pytest.mark.parametrize("kind", ["folder", "link", "pipe"])
def test_no_file(project: Project, kept: KeptLogin, tmp_path: Path, kind: str) -> None:
    (tmp_path / "elsewhere").write_bytes(kept.path.read_bytes())
    kept.path.unlink()
    if kind == "folder":
        kept.path.mkdir()
    elif kind == "link":
        kept.path.symlink_to(tmp_path / "elsewhere")
    else:
        os.mkfifo(kept.path, 0o600)
    with pytest.raises(ConfigurationError, match="tensorage login"):
        session_of(project)()


def test_only_this_user_can_read_it(project: Project, user: User) -> None:
    before = os.umask(0)
    try:
        kept = keep(project, user)
        age(kept)
        kept.tokens(project.key)
    finally:
        os.umask(before)
    assert kept.path.stat().st_mode & 0o777 == 0o600
    assert kept.path.parent.stat().st_mode & 0o777 == 0o700
    assert user.password not in kept.path.read_text()


@pytest.mark.parametrize(
    ("of_folder", "mode"), [(False, 0o644), (False, 0o640), (True, 0o755), (True, 0o770)]
)
def test_a_mode_that_is_too_wide(project: Project, kept: KeptLogin, of_folder: bool, mode: int) -> None:
    path = kept.path.parent if of_folder else kept.path
    path.chmod(mode)
    with pytest.raises(ConfigurationError, match=f"chmod {700 if of_folder else 600}"):
        session_of(project)()
    if of_folder:
        # Nothing is kept there either.
        with pytest.raises(ConfigurationError, match="chmod 700"):
            check_can_keep(project.url)


@others.needs_root
@pytest.mark.parametrize("what", ["file", "folder", "folder above"])
def test_what_belongs_to_somebody_else(project: Project, kept: KeptLogin, what: str) -> None:
    places = {"file": kept.path, "folder": kept.path.parent, "folder above": kept.path.parent.parent}
    others.give_away(places[what])
    with pytest.raises(ConfigurationError, match="belongs to uid"):
        session_of(project)()


def test_it_goes_to_its_project_and_no_other(project: Project, user: User, kept: KeptLogin) -> None:
    """Somebody renames the file, so that it is found for a server of theirs."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        assert find_login(url) is None
        theirs = KeptLogin(kept.path, url, kept.user_id, kept.email, "file")
        age(kept)
        for use in (theirs.tokens, theirs.end):
            with pytest.raises(ConfigurationError, match="is not sent to"):
                use(project.key)
        digest = kept.path.name.partition("-")[0]
        keep(project, user, url=url)
        (mine,) = [path for path in kept.path.parent.glob("*.json") if not path.name.startswith(digest)]
        mine.write_bytes(kept.path.read_bytes())
        # The attempt to end a login there, above, is all that has come.
        while select.select([server], [], [], 0)[0]:
            server.accept()[0].close()
        with pytest.raises(ConfigurationError, match="is not sent to"):
            BackendSession(backend_url=url, backend_key=project.key)()
        # Another login for that server takes its place, and does not end it there.
        keep(project, user, url=url)
        assert not select.select([server], [], [], 0)[0]


def test_unencrypted(project: Project, kept: KeptLogin) -> None:
    with pytest.raises(ConfigurationError, match="https://"):
        check_can_keep("http://project.example")
    record, tokens = content(kept)
    save_record(kept.path, replace(record, url="http://project.example"), tokens)
    with pytest.raises(ConfigurationError, match="not encrypted"):
        replace(kept, url="http://project.example").tokens(project.key)


# The keyring ------------------------------------------------------------------------------------------------


class Memory(keyring.backend.KeyringBackend):
    """A keyring that lasts as long as its object."""

    priority = 5.0  # type: ignore[assignment]

    def __init__(self) -> None:
        super().__init__()
        self.kept: dict[tuple[str, str], str] = {}
        self.is_locked = False

    def get_password(self, service: str, username: str) -> str | None:
        self._check(None)
        return self.kept.get((service, username))

    def set_password(self, service: str, username: str, password: str) -> None:
        self._check(password)
        self.kept[service, username] = password

    def delete_password(self, service: str, username: str) -> None:
        self._check(None)
        del self.kept[service, username]

    def _check(self, secret: str | None) -> None:
        if self.is_locked:
            raise keyring.errors.KeyringLocked(f"the keyring is locked: {secret} {self.kept}")


@pytest.fixture
def memory() -> Iterator[Memory]:
    before, memory = keyring.get_keyring(), Memory()
    keyring.set_keyring(memory)
    yield memory
    keyring.set_keyring(before)


def test_the_keyring(project: Project, user: User, memory: Memory, events: Events) -> None:
    kept = keep(project, user, place=None)
    assert (kept.kept_in, kept.where) == ("keyring", "the system's keyring")
    age(kept)
    session = session_of(project)
    assert session.user_id == user.id
    assert events() == (1, 2)
    tokens = tokens_of(kept)
    ((service, account),) = memory.kept
    assert (service, account) == (f"tensorage {project.url}", user.email)
    (secret,) = memory.kept.values()
    assert json.loads(secret) == {"url": project.url, "user_id": user.id, "tokens": asdict(tokens)}
    for path in kept.path.parent.iterdir():
        assert tokens.refresh_token not in path.read_text()
        assert tokens.access_token not in path.read_text()
    # A secret of another project under this name is not sent here.
    memory.kept[service, account] = secret.replace(project.url, "https://other.example")
    with pytest.raises(ConfigurationError, match="another project"):
        kept.tokens(project.key)
    memory.kept[service, account] = secret
    # From there to a file.
    assert keep(project, user).kept_in == "file"
    assert not memory.kept
    keep(project, user, place="keyring").end(project.key)
    assert not memory.kept
    assert not kept.path.exists()
    assert events()[0] == 0


def test_a_keyring_that_is_locked(project: Project, user: User, memory: Memory, events: Events) -> None:
    kept = keep(project, user, place=None)
    (secret,) = memory.kept.values()
    refresh_token = json.loads(secret)["tokens"]["refresh_token"]
    memory.is_locked = True
    uses = (
        lambda: kept.tokens(project.key),
        lambda: kept.end(project.key),
        lambda: keep(project, user, place=None),
    )
    for use in uses:
        with pytest.raises(ConfigurationError, match=r"KeyringLocked.*--keep-in file") as caught:
            use()
        assert refresh_token not in "".join(traceback.format_exception(caught.value))
    # The login that could not be kept has been ended.
    assert events()[0] == 1
    memory.is_locked = False
    assert kept.tokens(project.key).is_fresh()
    keyring.set_keyring(keyring.backends.fail.Keyring())
    with pytest.raises(ConfigurationError, match="--keep-in file"):
        kept.tokens(project.key)
    assert keep(project, user, "file").tokens(project.key).is_fresh()


@pytest.mark.parametrize("kind", [keyring.backends.fail.Keyring, keyring.backends.null.Keyring])
def test_keyrings_that_are_none(project: Project, user: User, memory: Memory, kind: type) -> None:
    keyring.set_keyring(kind())
    kept = keep(project, user, place=None)
    assert kept.kept_in == "file"
    with pytest.raises(ConfigurationError, match="there is none here"):
        keep(project, user, place="keyring")


# Secrets ----------------------------------------------------------------------------------------------------


def test_no_token_is_shown(project: Project, kept: KeptLogin, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    session = session_of(project)
    store = session()
    before = tokens_of(kept)
    age(kept)
    kept.tokens(project.key, refused=session.token)
    session.login.renew_unless_done(session.token)
    after = tokens_of(kept)
    assert after != before
    shown = [
        *(repr(thing) for thing in (session, store, kept, session.login.loan, after, vars(session))),
        *(record.getMessage() for record in caplog.records),
    ]
    for tokens in (before, after):
        for secret in (tokens.access_token, tokens.refresh_token):
            assert secret not in "\n".join(shown)
