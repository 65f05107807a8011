"""A backend that is away for a while: what is waited out, for how long, and what is said of it."""

from __future__ import annotations

import os
import pickle
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from forks import fork
from project import Project, User
from proxy import Exchange, Proxy

import tensorage
from tensorage import BackendSession, TensorStore
from tensorage.backend.wire import patience
from tensorage.types import Engine

#: Length of the outages of these tests: longer than the quick tries take.
OUTAGE_S = 2.5


class Line:
    """The way to a backend, which can be cut: connections break, and new ones are refused."""

    def __init__(self, project: Project) -> None:
        self._project = project
        self._proxy: Proxy | None = Proxy(project.url, breaks=lambda _: self._is_cut)
        self.url = self._proxy.url
        self._port = int(self.url.rpartition(":")[2])
        self._is_cut = False
        self._timers: list[threading.Timer] = []
        self.exchanges: list[Exchange] = self._proxy.exchanges

    def cut(self, for_s: float | None = None) -> None:
        self._is_cut = True
        if self._proxy is not None:
            self._proxy.close()
            self._proxy = None
        if for_s is not None:
            self._timers.append(threading.Timer(for_s, self.mend))
            self._timers[-1].start()

    def mend(self) -> None:
        self._is_cut = False
        self._proxy = Proxy(self._project.url, breaks=lambda _: self._is_cut, port=self._port)
        self.exchanges = self._proxy.exchanges

    def close(self) -> None:
        for timer in self._timers:
            timer.join()
        if self._proxy is not None:
            self._proxy.close()


@pytest.fixture
def user(new_user: User) -> User:
    """A user of each test's own: a test may leave a login that nobody could end."""
    return new_user


@pytest.fixture
def line(project: Project) -> Iterator[Line]:
    line = Line(project)
    yield line
    line.close()


@pytest.fixture
def far(line: Line, project: Project, user: User) -> Iterator[BackendSession]:
    """A session at the end of the line, which has worked."""
    session = BackendSession(user.email, user.password, line.url, project.key, patience_s=20)
    session.login_by_mail()
    yield session
    session.logout()


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.message for record in caplog.records if "does not serve" in record.message]


def test_reads_and_writes_wait_for_the_end(
    line: Line, far: BackendSession, engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    store = TensorStore(far, quiet=True, engine=engine, allow_overwrite=True)
    array = np.arange(3_000_000, dtype="f4")
    store["x"] = array
    for number, do in enumerate(
        (
            lambda: np.testing.assert_array_equal(store["x"], array),
            lambda: store.__setitem__("x", array),
            lambda: store.append("x", array[:10]),
        )
    ):
        caplog.clear()
        line.cut(OUTAGE_S if number == 0 else 1.0)
        do()
        assert len(told(caplog)) <= 1
        if number == 0:
            assert told(caplog) == [told(caplog)[0]]
            assert "up to 20 s" in told(caplog)[0]
    np.testing.assert_array_equal(store["x"], np.concatenate([array, array[:10]]))


def test_a_background_writer_loses_nothing(line: Line, far: BackendSession, engine: Engine) -> None:
    store = TensorStore(far, quiet=True, engine=engine)
    with store.background(max_in_flight=4) as bg:
        bg["log"] = np.empty(0, "i8")
        bg.flush()
        for step in range(12):
            if step == 3:
                line.cut(OUTAGE_S)
            bg[f"x/{step}"] = np.full(100, step)
            bg.append("log", [step])
    assert store["log"].tolist() == list(range(12))
    assert [int(store[f"x/{step}", 5]) for step in range(12)] == list(range(12))


def test_an_outage_that_is_too_long_leaves_everything_as_it_was(
    line: Line, far: BackendSession, user: User, project: Project
) -> None:
    store = TensorStore(far, quiet=True, allow_overwrite=True)
    store["x"] = np.arange(10)
    far.patience_s = 2
    line.cut()
    began = time.monotonic()
    with pytest.raises(
        tensorage.BackendUnavailableError, match=r"storing 'x'.*Tried \d+ times in \d"
    ) as raised:
        store["x"] = np.ones(10)
    assert "tensorage local start" in str(raised.value)
    assert time.monotonic() - began >= 2
    # The outage is as long by now as it is waited out: what meets it too adds nothing to it.
    errors: list[BaseException] = []

    def read() -> None:
        try:
            _ = store["x"]
        except tensorage.BackendUnavailableError as error:
            errors.append(error)

    # More of them than there are connections.
    threads = [threading.Thread(target=read) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(errors) == 12
    assert all(f"Tried {patience.ATTEMPTS} times" in str(error) for error in errors)
    line.mend()
    assert store["x"].tolist() == list(range(10))
    assert store.keys() == ["x"]


def fail_for_good(shared: patience.Patience, fault: patience.Fault) -> None:
    tries = shared.tries("reading 'x'")
    tries.begin()
    while True:
        tries.wait(fault)


def test_what_meets_one_outage_shares_the_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(patience.time, "monotonic", lambda: clock[0])
    shared = patience.Patience(60, has_worked=True)
    slept: list[float] = []

    def wait(seconds: float, **_: Any) -> bool:
        slept.append(seconds)
        clock[0] += seconds
        return True

    monkeypatch.setattr(shared, "wait", wait)
    fault = patience.Fault.unreachable("http://x", OSError("refused"))

    def spend() -> float:
        before = clock[0]
        with pytest.raises(tensorage.BackendUnavailableError, match="Tried"):
            fail_for_good(shared, fault)
        return clock[0] - before

    assert spend() == pytest.approx(60)
    assert max(slept) <= 1.5 * patience.LONGEST_WAIT_S
    # A second request, in the same outage.
    assert spend() < 10
    # Once it has been answered, the next outage is another one.
    shared.note_answer()
    assert spend() == pytest.approx(60)
    # It is another one, too, if nobody has asked for long.
    clock[0] += 1000
    assert spend() == pytest.approx(60)


def test_the_end_of_an_outage_and_a_hurry_may_end_one_wait() -> None:
    """The one that comes second finds that nobody waits any more, or somebody who is just waking up."""
    shared, hurry = patience.Patience(60, has_worked=True), patience.Hurry()
    shared.note_outage(patience.Fault.unreachable("http://x", OSError("refused")), time.monotonic())
    results: list[bool] = []

    def wait() -> None:
        with patience.end_waits_on(hurry):
            results.append(shared.wait(30, may_be_cut_short=True))

    threads = [threading.Thread(target=wait) for _ in range(20)]
    for thread in threads:
        thread.start()
    while len(shared.waiting) < len(threads):
        time.sleep(0.001)
    shared.note_answer()
    hurry.begin()
    for thread in threads:
        thread.join(30)
    assert len(results) == len(threads)
    # Neither minds that nobody waits.
    shared.note_answer()
    hurry.begin()


def test_others_that_are_answered_do_not_make_the_wait_endless(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(patience.time, "monotonic", lambda: clock[0])
    shared = patience.Patience(60, has_worked=True)

    def wait(seconds: float, **_: Any) -> bool:
        clock[0] += seconds
        # Storage is away, and the database answers.
        shared.note_answer()
        return True

    monkeypatch.setattr(shared, "wait", wait)
    with pytest.raises(tensorage.BackendUnavailableError):
        fail_for_good(shared, patience.Fault(503, "", "no storage"))
    assert clock[0] == pytest.approx(60)


@pytest.mark.parametrize("status", [429, 503])
def test_no_wait_that_is_asked_for_is_longer_than_the_patience(
    status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A gateway that asks for a day must not make 4 s of patience 4 minutes."""
    clock = [0.0]
    monkeypatch.setattr(patience.time, "monotonic", lambda: clock[0])

    def wait(seconds: float, *, may_be_cut_short: bool) -> bool:
        clock[0] += seconds
        return True

    shared = patience.Patience(4, has_worked=True)
    monkeypatch.setattr(shared, "wait", wait)
    with pytest.raises(tensorage.BackendUnavailableError):
        fail_for_good(shared, patience.Fault(status, "", "come back tomorrow", retry_after_s=86400.0))
    assert clock[0] == pytest.approx(4)


@pytest.mark.parametrize(
    ("status", "body", "is_outage"),
    [
        (503, b'{"code": "PGRST001"}', True),
        (503, b'{"code": "PGRST002"}', True),
        (504, b'{"code": "PGRST003"}', True),
        (500, b'{"code": "57P03"}', True),
        (502, b"<html>", True),
        (522, b"", True),
        (429, b"{}", True),
        (500, b'{"code": "XX000"}', False),
        (500, b'{"code": "57014"}', False),
        (503, b'{"code": "53100"}', False),
        (400, b'{"code": "23514"}', False),
    ],
)
def test_what_is_an_outage(status: int, body: bytes, is_outage: bool) -> None:
    assert patience.Fault.parse(status, body).is_outage is is_outage


def test_a_first_contact_fails_at_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
    session = BackendSession("a@example.com", "password", url, "key", patience_s=1000)
    for ask in (session.login_by_mail, lambda: TensorStore(session), lambda: session.token):
        with pytest.raises(
            tensorage.BackendUnavailableError, match=r"cannot be reached.*tensorage local start"
        ):
            ask()
    elsewhere = BackendSession("a@example.com", "password", "https://project.invalid", "key", patience_s=1000)
    with pytest.raises(tensorage.BackendUnavailableError) as raised:
        elsewhere.login_by_mail()
    assert "local start" not in str(raised.value)


def test_without_patience_there_are_the_quick_tries(line: Line, far: BackendSession) -> None:
    store = TensorStore(far, quiet=True)
    store["x"] = [1]
    far.patience_s = 0
    line.cut()
    with pytest.raises(tensorage.BackendUnavailableError, match=f"Tried {patience.ATTEMPTS} times"):
        _ = store["x"]
    line.mend()


@pytest.mark.parametrize("seconds", [-1, float("nan"), "60", None, True])
def test_what_is_no_length_of_time_is_refused(seconds: Any) -> None:
    with pytest.raises(tensorage.InvalidInputError, match="patience_s="):
        BackendSession(patience_s=seconds)


def ctrl_c_while(thread_waits: Callable[[], bool]) -> threading.Thread:
    def interrupt() -> None:
        while not thread_waits():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    return thread


@pytest.fixture
def _hears_ctrl_c() -> Iterator[None]:
    """Let Ctrl-C be heard: tests that run in the background of a shell ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


# Ctrl-C has to come amid the wait. On a busy machine, it may come while the wait ends.
@pytest.mark.alone
@pytest.mark.usefixtures("_hears_ctrl_c")
@pytest.mark.parametrize("nbytes", [10, 40_000_000])
def test_ctrl_c_ends_the_wait(line: Line, far: BackendSession, engine: Engine, nbytes: int) -> None:
    store = TensorStore(far, quiet=True, engine=engine)
    store["x"] = np.zeros(nbytes, "u1")
    handle = store.open("x")
    far.patience_s = 10_000
    line.cut()
    thread = ctrl_c_while(lambda: bool(far.login.patience.waiting))
    with pytest.raises(KeyboardInterrupt):
        _ = handle[...]
    thread.join()
    # Nobody who waits has stayed behind.
    assert not far.login.patience.waiting
    line.mend()


def test_the_login_is_renewed_when_the_backend_is_back(line: Line, far: BackendSession) -> None:
    store = TensorStore(far, quiet=True)
    store["x"] = [1, 2]
    used = far.login.session.refresh_token  # type: ignore[union-attr]
    far.login.expires_at = time.time() + 1
    line.cut(OUTAGE_S)
    assert store["x"].tolist() == [1, 2]
    assert far.login.session.refresh_token != used  # type: ignore[union-attr]


def test_a_refresh_token_is_not_spent_twice(project: Project, user: User) -> None:
    sent: list[bytes] = []

    def is_refresh(head: bytes) -> bytes:
        if b"grant_type=" in head:
            sent.append(head.partition(b"\r\n")[0])
        return head

    lost = [True]

    def loses(exchange: Exchange) -> bool:
        return "grant_type=refresh_token" in exchange.target and bool(lost) and lost.pop()

    proxy = Proxy(project.url, loses_answer=loses, changes=is_refresh)
    session = BackendSession(user.email, user.password, proxy.url, project.key)
    session.login_by_mail()
    store = TensorStore(session, quiet=True)
    store["x"] = [1, 2]
    session.login.expires_at = time.time() + 1
    assert store["x"].tolist() == [1, 2]
    # The answer was lost: nobody knows whether the token is spent, and the password is known.
    kinds = [line.rpartition(b"grant_type=")[2].split()[0].split(b"&")[0] for line in sent]
    assert kinds == [b"password", b"refresh_token", b"password"]
    lost.append(True)
    session.password = None
    session.login.expires_at = time.time() + 1
    with pytest.raises(tensorage.AuthenticationError, match="cannot be refreshed"):
        _ = store["x"]
    session.password = user.password
    session.logout()
    proxy.close()


def test_a_forked_process_and_a_pickle_are_patient_too(line: Line, far: BackendSession) -> None:
    store = TensorStore(far, quiet=True)
    store["x"] = np.arange(10)
    handle = store.open("x")
    line.cut(OUTAGE_S)
    child = fork(lambda: str(handle[3]))
    again = pickle.loads(pickle.dumps(far))
    assert again.patience_s == far.patience_s
    assert child() == "3"
    assert TensorStore(again, quiet=True)["x"].tolist() == list(range(10))
