"""Work that nobody waits for: sweeping what a large array has replaced."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

import leftovers
import numpy as np
import psycopg
import pytest
from project import Project, User
from proxy import Exchange, Proxy

from tensorage import BackendSession, TensorStore
from tensorage.backend import afterwards as of_afterwards
from tensorage.backend.afterwards import Afterwards, Leftovers
from tensorage.errors import BackendUnavailableError
from tensorage.types import Engine

Sql = psycopg.Connection[tuple[object, ...]]

#: More blocks than a commit sweeps by itself.
LARGE = np.zeros((150, 1024), "i8")


_ENGINES: tuple[Engine, ...] = ("database", "storage")


@pytest.fixture
def afterwards() -> Iterator[Afterwards]:
    made = Afterwards()
    yield made
    made.end(10)


def test_steps_are_taken_one_after_the_other(afterwards: Afterwards) -> None:
    left, threads = list(range(5)), set[int]()

    def step() -> bool:
        threads.add(threading.get_ident())
        left.pop()
        return bool(left)

    afterwards.begin(step)
    afterwards.end(10)
    assert left == []
    assert threading.get_ident() not in threads
    assert len(threads) == 1
    # Another job begins anew.
    left.append(1)
    afterwards.begin(step)
    afterwards.end(10)
    assert left == []


def test_an_end_comes_between_two_steps(afterwards: Afterwards) -> None:
    began, may_go_on, taken = threading.Event(), threading.Event(), []

    def step() -> bool:
        taken.append(1)
        began.set()
        return may_go_on.wait(10)

    afterwards.begin(step)
    assert began.wait(10)
    threading.Timer(0.2, may_go_on.set).start()
    afterwards.end(0.1)
    assert taken == [1]


def test_a_job_takes_the_place_of_another(afterwards: Afterwards) -> None:
    began, may_go_on, taken = threading.Event(), threading.Event(), list[str]()

    def first() -> bool:
        taken.append("first")
        began.set()
        return may_go_on.wait(10)

    def second() -> bool:
        taken.append("second")
        return False

    afterwards.begin(first)
    assert began.wait(10)
    afterwards.begin(second)
    may_go_on.set()
    afterwards.end(10)
    assert taken == ["first", "second"]


def test_a_failure_ends_the_job_alone(afterwards: Afterwards, caplog: pytest.LogCaptureFixture) -> None:
    def fail() -> bool:
        raise BackendUnavailableError("the backend is away")

    with caplog.at_level("INFO", logger="tensorage"):
        afterwards.begin(fail)
        afterwards.end(10)
    assert "left for the next write: the backend is away" in caplog.text
    done = threading.Event()
    afterwards.begin(lambda: done.set() or False)
    assert done.wait(10)


def test_an_error_that_nobody_expects_ends_the_job_alone(
    afterwards: Afterwards, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[object] = []
    is_told = threading.Event()

    def hear(error: threading.ExceptHookArgs) -> None:
        told.append(error.exc_type)
        is_told.set()

    def fail() -> bool:
        raise ZeroDivisionError

    monkeypatch.setattr(threading, "excepthook", hear)
    afterwards.begin(fail)
    assert is_told.wait(10)
    assert told == [ZeroDivisionError]
    done = threading.Event()
    afterwards.begin(lambda: done.set() or False)
    assert done.wait(10)


def test_a_job_may_end_its_own_session(afterwards: Afterwards) -> None:
    """The last reference to the session may go while it works."""
    done = threading.Event()

    def step() -> bool:
        afterwards.end(10)
        done.set()
        return False

    afterwards.begin(step)
    assert done.wait(5)


def test_an_overwrite_does_not_wait_for_what_it_replaces(
    project: Project, user: User, database: Sql, engine: Engine
) -> None:
    may_go_on = threading.Event()

    def holds(exchange: Exchange) -> bool:
        if exchange.kind in ("sweep", "sweep_objects", "remove objects"):
            may_go_on.wait(20)
        return False

    with contextlib.closing(Proxy(project.url, loses_answer=holds)) as proxy:
        session = Project(proxy.url, project.key).session(user)
        store = TensorStore(session, quiet=True, allow_overwrite=True, chunk_size=1024, engine=engine)
        store["x"] = LARGE
        store["x"] = LARGE + 1
        np.testing.assert_array_equal(store["x"], LARGE + 1)
        assert not may_go_on.is_set()
        may_go_on.set()
        session.transfer.finish(20)
        leftovers.assert_only_arrays_are_kept(database, user.id)
        session.logout()


def test_a_logout_comes_after_the_sweep(new_session: BackendSession, database: Sql, engine: Engine) -> None:
    store = TensorStore(new_session, quiet=True, allow_overwrite=True, chunk_size=1024, engine=engine)
    store["x"] = LARGE
    store["x"] = LARGE + 1
    user_id = new_session.user_id
    new_session.logout()
    assert not new_session.login.session
    leftovers.assert_only_arrays_are_kept(database, user_id)
    assert not new_session.login.session, "nothing logs in again"


def test_rows_and_objects_are_swept_by_one_job(new_session: BackendSession, database: Sql) -> None:
    """Leftovers of a write that ends while the session sweeps for another one are swept, too."""
    stores = [
        TensorStore(new_session, quiet=True, allow_overwrite=True, chunk_size=1024, engine=each)
        for each in _ENGINES
    ]
    for number in range(4):
        for key, store in zip("ab", stores, strict=True):
            store[key] = LARGE + number
    new_session.transfer.finish(30)
    assert leftovers.beyond_arrays(database, new_session.user_id) == []


@pytest.mark.parametrize("left", ["rows", "objects"])
def test_the_next_session_sweeps_what_a_session_left(
    new_session: BackendSession, database: Sql, monkeypatch: pytest.MonkeyPatch, left: str
) -> None:
    """A process that is killed after its commit deletes nothing. The next write of its user does, of either engine."""
    with monkeypatch.context() as patched:
        patched.setattr(Afterwards, "begin", lambda _self, _step: None)
        store = TensorStore(
            new_session, quiet=True, chunk_size=1024, engine="database" if left == "rows" else "storage"
        )
        store["x"] = LARGE
        del store["x"]
    assert leftovers.beyond_arrays(database, new_session.user_id)
    assert new_session.transfer.leftovers.is_any
    new_session.transfer.leftovers = Leftovers()
    TensorStore(new_session, quiet=True)["later"] = 1
    new_session.transfer.finish(30)
    assert leftovers.beyond_arrays(database, new_session.user_id) == []


class TestLeftovers:
    def test_what_is_noted_meanwhile_is_not_lost(self) -> None:
        left = Leftovers()
        assert not left.is_any
        assert left.note_left(objects=True)
        assert not left.take_rows()
        assert left.take_objects()
        assert left.note_left(rows=True)
        assert left.note_left()
        assert not left.take_objects()
        assert left.take_rows()
        assert not left.is_any

    def test_a_short_failure_is_not_told(self, caplog: pytest.LogCaptureFixture) -> None:
        left = Leftovers()
        for _ in range(5):
            left.note_failure("the backend is away")
        assert not caplog.records

    def test_a_lasting_failure_is_told_once(
        self, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(of_afterwards, "LASTS_S", 0.0)
        left = Leftovers()
        left.note_failure("the backend is away")
        left.note_swept()
        left.note_failure("the backend is away")
        assert not caplog.records
        for _ in range(5):
            left.note_failure("2 of them cannot be deleted")
        assert [record.levelname for record in caplog.records] == ["WARNING"]
        assert "2 of them cannot be deleted. Each write tries again" in caplog.text


def test_usage_is_told_when_a_session_has_swept(new_session: BackendSession, engine: Engine) -> None:
    store = TensorStore(new_session, quiet=True, chunk_size=1024, engine=engine)
    before = store.usage()
    # Random, so that objects are no smaller.
    store["x"] = np.random.default_rng(1).integers(0, 255, (150, 8192), "u1")
    del store["x"]
    # The database keeps answers to operations, and records of who did what.
    assert store.usage().bytes < before.bytes + 10_000
