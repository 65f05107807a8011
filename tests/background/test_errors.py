"""Errors of a background writer: in the loop that caused them, all of them, once; and writers that are closed."""

from __future__ import annotations

import contextlib
import logging
import signal
import threading
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from gate import Gate, wait_until_in
from leftovers import Sql
from project import Project, User
from proxy import Proxy

import tensorage
from tensorage import BackendSession, TensorStore
from tensorage.backend.wire import patience
from tensorage.background.writer import BackgroundWriter
from tensorage.types import Engine


@pytest.fixture
def engine() -> Engine:
    """One is enough here: it is the writer that handles errors, and the engine only makes them."""
    return "database"


@pytest.fixture
def store(session: BackendSession, engine: Engine) -> TensorStore:
    """A store in which "taken" is taken."""
    store = TensorStore(session, quiet=True, engine=engine)
    store["taken"] = [1]
    return store


def notes(error: BaseException) -> str:
    return "\n".join(getattr(error, "__notes__", []))


@contextlib.contextmanager
def interrupted(function: str) -> Iterator[pytest.ExceptionInfo[KeyboardInterrupt]]:
    """Ctrl-C, once the main thread waits in a function. The block raises it."""
    main = threading.main_thread()

    def interrupt() -> None:
        wait_until_in(main, function)
        assert main.ident is not None
        signal.pthread_kill(main.ident, signal.SIGINT)

    # Tests that run in the background of a shell ignore it.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    thread = threading.Thread(target=interrupt)
    thread.start()
    try:
        with pytest.raises(KeyboardInterrupt) as raised:
            yield raised
    finally:
        thread.join()
        signal.signal(signal.SIGINT, before)


def test_the_next_call_raises_it_and_gives_nothing(store: TensorStore) -> None:
    # With room for one, the next call comes when this one has failed.
    with store.background(max_in_flight=1) as bg:
        bg["taken"] = [2]
        with pytest.raises(tensorage.KeyExistsError, match="taken") as raised:
            bg["x"] = [3]
        assert "storing 'taken' failed" in notes(raised.value)
        assert "storing 'x' was not begun" in notes(raised.value)
        # It has been said, and the writer goes on.
        bg["y"] = [4]
    assert store.keys() == ["taken", "y"]
    assert store["taken"].tolist() == [1]


def test_flush_raises_it_when_all_else_is_written(gated: TensorStore, gate: Gate, store: TensorStore) -> None:
    with gated.background() as bg:
        gate.close()
        bg["taken"] = [2]
        bg["x"] = [3]
        gate.open()
        with pytest.raises(tensorage.KeyExistsError):
            bg.flush()
        assert store["x"].tolist() == [3]
        bg.flush()


def test_the_end_raises_it(gated: TensorStore, gate: Gate, store: TensorStore) -> None:
    bg = gated.background()
    gate.close()
    bg["taken"] = [2]
    bg["x"] = np.arange(3)
    gate.open()
    with pytest.raises(tensorage.KeyExistsError):
        bg.__exit__(None, None, None)
    assert store["x"].tolist() == [0, 1, 2]
    # The error is raised once.
    bg.close()


@pytest.mark.parametrize("engine", ["database", "storage"])
def test_what_comes_behind_in_the_same_key_is_dropped_and_said(gated: TensorStore, gate: Gate) -> None:
    with gated.background() as bg:
        gate.close()
        for number in range(3):
            bg.append("not there", [number])
        bg["not there", 0] = 5
        bg["x"] = [1]
        bg.append("x", [2])
        gate.open()
        with pytest.raises(tensorage.KeyNotFoundError) as raised:
            bg.flush()
        assert notes(raised.value) == (
            "background writer: appending to 'not there' failed; dropped because of it: "
            "appending to 'not there' (2 times), assigning to 'not there'"
        )
        assert gated["x"].tolist() == [1, 2]
        assert gated.keys() == ["x"]
        bg["not there"] = [0]
        bg.append("not there", [1])
    assert gated["not there"].tolist() == [0, 1]


@pytest.mark.parametrize("engine", ["database", "storage"])
def test_further_errors_are_notes_of_the_first(gated: TensorStore, gate: Gate, store: TensorStore) -> None:
    store["floats"] = np.zeros((1, 2))
    with gated.background() as bg:
        gate.close()
        bg["taken"] = [2]
        del bg["no such key"]
        bg.append("floats", [[1, 2, 3]])
        bg["x"] = [3]
        gate.open()
        with pytest.raises(tensorage.TensorageError) as raised:
            bg.flush()
    said = f"{type(raised.value).__name__}\n{notes(raised.value)}"
    for part in ("storing 'taken' failed", "deleting 'no such key' failed", "appending to 'floats' failed"):
        assert part in said
    for error in ("KeyExistsError", "KeyNotFoundError", "InvalidInputError"):
        assert error in said
    assert store["x"].tolist() == [3]


@pytest.mark.parametrize("engine", ["database", "storage"])
def test_no_room_for_so_many_bytes(
    gated: TensorStore, gate: Gate, store: TensorStore, database: Sql, session: BackendSession
) -> None:
    database.execute("insert into tensorage.quotas values (%s, 1000000)", [session.user_id])
    with gated.background() as bg:
        gate.close()
        bg["large"] = np.random.default_rng(0).random(1_000_000)
        bg["small"] = np.zeros(3)
        gate.open()
        with pytest.raises(tensorage.QuotaExceededError) as raised:
            bg.flush()
    database.execute("delete from tensorage.quotas where user_id = %s", [session.user_id])
    assert "storing 'large' failed" in notes(raised.value)
    assert store.keys() == ["small", "taken"]


def test_the_thread_that_gave_it_hears_of_it_even_if_another_one_has(store: TensorStore) -> None:
    with store.background() as bg:
        given, flushed = threading.Event(), threading.Event()
        heard: list[BaseException] = []

        def loop() -> None:
            bg["taken"] = [2]
            given.set()
            assert flushed.wait(60)
            try:
                bg.flush()
            except tensorage.KeyExistsError as error:
                heard.append(error)
            bg.flush()

        thread = threading.Thread(target=loop)
        thread.start()
        assert given.wait(60)
        with pytest.raises(tensorage.KeyExistsError) as raised:
            bg.flush()
        bg["x"] = [1]
        flushed.set()
        thread.join()
        assert heard == [raised.value]


def test_an_error_of_a_thread_that_has_ended_is_not_lost(store: TensorStore) -> None:
    bg = store.background()
    thread = threading.Thread(target=bg.__setitem__, args=["taken", [2]])
    thread.start()
    thread.join()
    bg["x"] = [1]
    with pytest.raises(tensorage.KeyExistsError):
        bg.close()


class TestErrorsOfTheBlock:
    def test_what_was_taken_is_written(self, store: TensorStore) -> None:
        def loop() -> None:
            with store.background() as bg:
                for number in range(6):
                    bg[f"x/{number}"] = [number]
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError) as raised:
            loop()
        assert len(store.keys("x/")) == 6
        assert notes(raised.value) == ""

    @pytest.mark.parametrize("kind", [ZeroDivisionError, SystemExit, GeneratorExit])
    def test_an_error_of_writing_becomes_a_note_and_is_logged(
        self, store: TensorStore, kind: type[BaseException], caplog: pytest.LogCaptureFixture
    ) -> None:
        def loop() -> None:
            with store.background() as bg:
                bg["taken"] = [2]
                raise kind

        with pytest.raises(kind) as raised:
            loop()
        assert "background writer: KeyExistsError: " in notes(raised.value)
        assert "background writer: storing 'taken' failed" in notes(raised.value)
        (record,) = [record for record in caplog.records if record.name == "tensorage.background"]
        assert record.levelno == logging.ERROR
        assert record.exc_info is not None
        assert record.exc_info[0] is tensorage.KeyExistsError

    def test_an_error_that_the_writer_raised_itself_is_said_once(
        self, store: TensorStore, caplog: pytest.LogCaptureFixture
    ) -> None:
        def loop() -> None:
            with store.background() as bg:
                bg["taken"] = [2]
                bg.flush()

        with pytest.raises(tensorage.KeyExistsError) as raised:
            loop()
        assert notes(raised.value) == "background writer: storing 'taken' failed"
        assert not caplog.records


class TestInterrupts:
    """Ctrl-C while the loop waits."""

    def test_for_room(self, gated: TensorStore, gate: Gate) -> None:
        with gated.background(max_in_flight=1) as bg:
            gate.close()
            bg["x"] = [1]
            with interrupted("take") as raised:
                bg["y"] = [2]
            assert notes(raised.value) == "background writer: storing 'y' was not taken"
            gate.open()
        assert gated.keys() == ["x"]

    def test_in_flush(self, gated: TensorStore, gate: Gate) -> None:
        with gated.background() as bg:
            gate.close()
            bg["x"] = [1]
            bg.append("x", [2])
            with interrupted("flush") as raised:
                bg.flush()
            assert notes(raised.value) == (
                "background writer: not waited for, and still going on: storing 'x', appending to 'x'"
            )
            gate.open()
        assert gated["x"].tolist() == [1, 2]

    def test_at_the_end(self, gated: TensorStore, gate: Gate, caplog: pytest.LogCaptureFixture) -> None:
        with interrupted("close") as raised, gated.background() as bg:
            gate.close()
            bg["x"] = [1]
            gate.wait_for(1)
            bg.append("x", [2])
        assert notes(raised.value).splitlines() == [
            "background writer: not written: appending to 'x'",
            "background writer: not waited for, and under way: storing 'x'",
        ]
        gate.open()
        bg.close()
        assert gated["x"].tolist() == [1]
        assert not caplog.records

    def test_at_the_end_with_an_error_that_was_not_said(self, gated: TensorStore, gate: Gate) -> None:
        with interrupted("close") as raised, gated.background() as bg:
            del bg["not there"]
            while "0 operations" not in repr(bg):
                wait_for_change(bg)
            gate.close()
            bg.workers.failures[0].giver = threading.Thread()  # Another loop seems to have given it.
            bg["x"] = [1]
            gate.wait_for(1)
        assert "deleting 'not there' failed: KeyNotFoundError: " in notes(raised.value)
        gate.open()
        bg.close()
        assert gated["x"].tolist() == [1]


def wait_for_change(bg: BackgroundWriter) -> None:
    change = bg.workers.next_change()
    change.acquire(timeout=0.01)


OPERATIONS: list[Callable[[BackgroundWriter], object]] = [
    lambda bg: bg.__setitem__("x", 1),
    lambda bg: bg.__setitem__(("x", 0), 1),
    lambda bg: bg.append("x", [1]),
    lambda bg: bg.write("x", [1]),
    lambda bg: bg.__delitem__("x"),
    lambda bg: bg.flush(),
    lambda bg: bg.__enter__(),
]


class TestClosed:
    def test_it_says_so_at_once(self, store: TensorStore) -> None:
        with store.background() as bg:
            bg["x"] = [1]
        for give in OPERATIONS:
            with pytest.raises(tensorage.ClosedError, match=r"is closed.*store\.background\(\)"):
                give(bg)
        bg.close()
        assert store["x"].tolist() == [1]

    def test_a_loop_that_goes_on_with_it_ends(self, store: TensorStore) -> None:
        bg = store.background()

        def loop() -> None:
            with bg:
                for number in range(10):
                    bg[f"x/{number}"] = [number]
                    if number == 3:
                        bg.close()

        with pytest.raises(tensorage.ClosedError) as raised:
            loop()
        assert notes(raised.value) == ""
        assert len(store.keys("x/")) == 4

    def test_who_waits_for_room_hears_of_it(self, gated: TensorStore, gate: Gate) -> None:
        bg = gated.background(max_in_flight=1)
        gate.close()
        bg["x"] = [1]
        errors: list[BaseException] = []

        def loop(key: str) -> None:
            try:
                bg[key] = [2]
            except tensorage.ClosedError as error:
                errors.append(error)

        loops = [threading.Thread(target=loop, args=[key]) for key in "yz"]
        for thread in loops:
            thread.start()
        closing = threading.Thread(target=bg.close)
        closing.start()
        # While the backend holds back what it was asked.
        for thread in loops:
            thread.join()
        assert len(errors) == 2
        gate.open()
        closing.join()
        assert gated.keys() == ["x"]


@pytest.mark.parametrize("engine", ["database", "storage"])
def test_a_server_that_is_gone(
    project: Project, user: User, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patience, "FIRST_WAIT_S", 0.01)
    is_gone = threading.Event()
    proxy = Proxy(project.url, breaks=lambda exchange: is_gone.is_set() and "/auth/" not in exchange.target)
    session = Project(proxy.url, project.key).session(user)
    session.patience_s = 0
    session.login_by_mail()
    with TensorStore(session, quiet=True, engine=engine).background(max_in_flight=2) as bg:
        bg["before"] = [1]
        bg.flush()
        is_gone.set()

        def loop() -> None:
            for number in range(100):
                bg[f"x/{number % 2}"] = [number]

        with pytest.raises(tensorage.BackendUnavailableError) as raised:
            loop()
        assert "storing 'x/" in notes(raised.value)
        with contextlib.suppress(tensorage.BackendUnavailableError):
            bg.flush()
        is_gone.clear()
        bg["after"] = [2]
    session.logout()
    proxy.close()
    assert {"before", "after"} <= set(project_keys(project, user))


def project_keys(project: Project, user: User) -> list[str]:
    session = project.session(user)
    with session.database() as db:
        return db.list_dataset_keys()
