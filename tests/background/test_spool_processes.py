"""Processes with a spool that are killed at each step of sending: nothing is lost, and nothing is done twice."""

from __future__ import annotations

import signal
import threading
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import workers
from processes import PROCESSES
from project import Project, User
from proxy import Exchange, Proxy

import tensorage
from tensorage import TensorStore
from tensorage.background.spool.sync import sync
from tensorage.types import Engine

EXPECTED = np.concatenate([[7.0, 0.0, 1.0, 2.0], -np.arange(1_500_000.0), [3.0]])


class Loop:
    """A process of `workers.spool`."""

    def __init__(self, project: Project, user: User, engine: Engine, folder: Path) -> None:
        self._taken, theirs = PROCESSES.Pipe(duplex=False)
        self._process = PROCESSES.Process(target=workers.spool, args=(project, user, engine, folder, theirs))
        self._process.start()
        # The end of the process ends the pipe, then.
        theirs.close()

    def wait_until_taken(self) -> None:
        """Wait until the spool has each change."""
        assert self._taken.recv() == "taken"
        self._taken.close()

    def kill(self) -> None:
        self._process.kill()

    def join(self) -> None:
        """Wait for the end of a process that is killed."""
        self._process.join(120)
        assert self._process.exitcode == -signal.SIGKILL
        self._process.close()


#: Requests whose answers are not heard, since the process is killed then, by the engine.
MOMENTS: dict[Engine, list[tuple[str, int]]] = {
    "database": [
        ("answered", 1), ("store", 1), ("append", 1), ("append", 2), ("assign", 1), ("begin", 1), ("put", 1),
        ("commit", 1), ("begin_assign", 1), ("commit", 2), ("append", 3), ("remove", 1), ("acknowledge", 1),
    ],
    "storage": [
        ("commit", 1), ("append_tails", 1), ("append_tails", 2), ("commit", 2), ("begin_append", 1), ("upload", 2),
        ("commit", 4), ("append_tails", 3), ("remove", 1),
    ],
}  # fmt: skip


@pytest.mark.parametrize(
    ("engine", "moment"), [(engine, moment) for engine, moments in MOMENTS.items() for moment in moments]
)
def test_a_kill_while_entries_are_sent(
    project: Project,
    user: User,
    login: tensorage.BackendSession,
    engine: Engine,
    moment: tuple[str, int],
    tmp_path: Path,
) -> None:
    folder = tmp_path / "spool"
    calls: Counter[str] = Counter()
    taken = threading.Event()

    def kills(exchange: Exchange) -> bool:
        calls[exchange.kind] += 1
        if (exchange.kind, calls[exchange.kind]) != moment:
            return False
        # All entries are there, so that the end is known.
        assert taken.wait(60)
        loop.kill()
        return True

    proxy = Proxy(project.url, kills)
    loop = Loop(Project(proxy.url, project.key), user, engine, folder)
    loop.wait_until_taken()
    taken.set()
    loop.join()
    proxy.close()
    store = TensorStore(login, quiet=True, engine=engine)
    assert sync(folder, store, is_moved=True) == []
    np.testing.assert_array_equal(store["x"], EXPECTED)
    assert store.keys() == ["x"]
    first, last = tensorage.background.spool.folder.SpoolFolder.join(folder).operations()
    assert login.transfer.call("tensorage_answered", {"first": first, "last": last}, "looking") == []


@pytest.mark.parametrize("engine", ["database"])
def test_the_next_writer_sends_what_is_left(
    project: Project, user: User, login: tensorage.BackendSession, engine: Engine, tmp_path: Path
) -> None:
    folder = tmp_path / "spool"
    loop = Loop(project, user, engine, folder)
    loop.wait_until_taken()
    loop.kill()
    loop.join()
    store = TensorStore(login, quiet=True, engine=engine)
    with store.background(spool=folder) as bg:
        bg.append("x", [4.0])
    np.testing.assert_array_equal(store["x"], [*EXPECTED, 4.0])
