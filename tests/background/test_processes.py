"""Background writers and the ends of processes: killed, forgotten, forked."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import numpy as np
import pytest
from gate import Gate
from programs import python
from project import Project, User

import tensorage
from tensorage import TensorStore
from tensorage.types import Engine

BEGINNING = """
import atexit, os, signal, sys, threading
import numpy as np
import tensorage

session = tensorage.BackendSession(*sys.argv[1:5])
store = tensorage.TensorStore(session, quiet=True, engine=sys.argv[5])

def in_a_thread(give, *what):
    # An error is raised to nobody else before the end.
    thread = threading.Thread(target=give, args=what)
    thread.start()
    thread.join()
"""


def run(
    project: Project, user: User, engine: Engine, script: str, *options: str
) -> subprocess.CompletedProcess[str]:
    command = [*([sys.executable, *options] if options else python()), "-c", BEGINNING + script]
    return subprocess.run(
        [*command, user.email, user.password, project.url, project.key, engine],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def test_what_was_flushed_outlives_a_kill(
    project: Project, user: User, engine: Engine, store: TensorStore
) -> None:
    done = run(
        project,
        user,
        engine,
        """
bg = store.background()
bg["x"] = np.zeros(0)
bg["large"] = np.arange(3_000_000.0)
for number in range(5):
    bg.append("x", [number])
bg.flush()
for number in range(5, 100):
    bg.append("x", [number])
    if number == 7:
        os.kill(os.getpid(), signal.SIGKILL)
""",
    )
    assert done.returncode == -9
    found = store["x"].tolist()
    assert found == list(range(len(found)))
    assert 5 <= len(found) <= 8
    np.testing.assert_array_equal(store["large"], np.arange(3_000_000.0))


def test_a_process_that_forgets_to_close_writes_what_was_taken(
    project: Project, user: User, engine: Engine, store: TensorStore
) -> None:
    done = run(
        project,
        user,
        engine,
        """
bg = store.background()
for number in range(3):
    bg[f"large/{number}"] = np.full(3_000_000, float(number))
    bg.append(f"large/{number}", [np.pi])
bg["small"] = 5
print(bg)
""",
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "in flight" in done.stdout
    for number in range(3):
        found = store[f"large/{number}"]
        assert (found.size, found[-1]) == (3_000_001, np.pi)
        assert (found[:-1] == number).all()
    assert store["small"] == 5


@pytest.mark.parametrize("engine", ["database"])
def test_a_process_that_forgets_to_close_says_what_was_not_written(
    project: Project, user: User, engine: Engine, store: TensorStore
) -> None:
    store["taken"] = [1]
    done = run(
        project,
        user,
        engine,
        """
bg = store.background()
in_a_thread(bg.__setitem__, "taken", [2])
in_a_thread(bg.append, "not there", [3])
bg["x"] = [3]
""",
        "-W",
        "default",
    )
    assert done.returncode == 0
    assert "background writer: storing 'taken' failed: KeyExistsError" in done.stderr
    assert "background writer: appending to 'not there' failed: KeyNotFoundError" in done.stderr
    assert "ResourceWarning: a background writer was not closed" in done.stderr
    assert store.keys() == ["taken", "x"]


def test_a_writer_that_is_used_at_the_very_end(project: Project, user: User, store: TensorStore) -> None:
    done = run(
        project,
        user,
        "database",
        """
bg = store.background()

@atexit.register
def last() -> None:
    bg["last"] = np.arange(2_000_000.0)
    bg["later"] = 6
    bg.close()

bg["first"] = 5
""",
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert store.keys() == ["first", "last", "later"]
    np.testing.assert_array_equal(store["last"], np.arange(2_000_000.0))


def test_a_server_that_is_gone_at_the_end(project: Project, user: User) -> None:
    done = run(
        project,
        user,
        "database",
        """
import tensorage.backend.wire.patience
tensorage.backend.wire.patience.FIRST_WAIT_S = 0.01
session.patience_s = 0
bg = store.background()
bg["x"] = 0
bg.flush()
session.transfer.http.base_url = "http://127.0.0.1:9"
in_a_thread(bg.__setitem__, "y", 1)
in_a_thread(bg.__setitem__, "z", 2)
""",
    )
    assert done.returncode == 0
    for key in "yz":
        assert f"background writer: storing '{key}' failed: BackendUnavailableError" in done.stderr


def join_threads() -> None:
    for thread in threading.enumerate():
        if thread.name == "tensorage-background":
            thread.join()


@pytest.mark.parametrize("engine", ["database"])
def test_a_writer_that_is_dropped_finishes_and_warns(gated: TensorStore, gate: Gate) -> None:
    gate.close()
    writers = [gated.background()]
    writers[0]["x"] = [1]
    with pytest.warns(ResourceWarning, match="was not closed"):
        writers.clear()
    gate.open()
    join_threads()
    assert gated["x"].tolist() == [1]


@pytest.mark.parametrize("engine", ["database"])
def test_errors_of_a_writer_that_was_dropped_are_logged(
    gated: TensorStore, gate: Gate, caplog: pytest.LogCaptureFixture
) -> None:
    gate.close()
    writers = [gated.background()]
    writers[0].append("not there", [1])
    with pytest.warns(ResourceWarning, match="was not closed"):
        writers.clear()
    gate.open()
    join_threads()
    assert "appending to 'not there' failed: KeyNotFoundError" in caplog.text


@pytest.mark.parametrize("engine", ["database"])
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_child_is_refused_and_the_parent_goes_on(gated: TensorStore, gate: Gate) -> None:
    with gated.background() as bg:
        gate.close()
        bg["x"] = [1]
        gate.wait_for(1)
        # Another thread's lock is not there to be released in the child.
        held, let_go = threading.Event(), threading.Event()

        def hold() -> None:
            with bg.workers.entrance, bg.workers.lock:
                held.set()
                let_go.wait(60)

        holder = threading.Thread(target=hold)
        holder.start()
        assert held.wait(60)
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            os.write(writer, _refusals(bg).encode())
            os._exit(0)
        os.close(writer)
        with os.fdopen(reader) as pipe:
            said = pipe.read()
        os.waitpid(child, 0)
        let_go.set()
        holder.join()
        assert said == "ClosedError " * 4 + f"of process {os.getpid()}"
        gate.open()
        bg["y"] = [2]
    assert gated.keys() == ["x", "y"]


def _refusals(bg: tensorage.background.writer.BackgroundWriter) -> str:
    said = ""
    try:
        for give in (
            lambda: bg.__setitem__("z", [1]),
            lambda: bg.append("z", [1]),
            bg.flush,
            bg.__enter__,
        ):
            try:
                give()
            except tensorage.ClosedError as error:
                said += f"{type(error).__name__} "
        bg.close()
        bg.workers.leave()
        said += repr(bg).rpartition(", ")[2].rstrip(">")
    except Exception as error:  # noqa: BLE001 - told to the parent
        said += repr(error)
    return said


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_child_makes_a_writer_of_its_own(store: TensorStore) -> None:
    with store.background() as bg:
        bg["parent"] = [1]
        child = os.fork()
        if child == 0:
            status = 1
            try:
                with store.background() as own:
                    own["child"] = [2]
                status = 0
            finally:
                os._exit(status)
        assert os.waitpid(child, 0)[1] == 0
    assert store.keys() == ["child", "parent"]
