"""Processes with a spool that are killed at each step of sending: nothing is lost, and nothing is done twice."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from project import Project, User
from proxy import Exchange, Proxy

import tensorage
from tensorage import TensorStore
from tensorage.background.spool.sync import sync
from tensorage.types import Engine

#: A loop that does each kind of change, some of them in several requests.
LOOP = """
import sys
import numpy as np
import tensorage
from tensorage.background.spool import sending

sending.ACKNOWLEDGE_AFTER = 3
*login, engine, folder = sys.argv[1:]
store = tensorage.TensorStore(tensorage.BackendSession(*login), quiet=True, engine=engine)
large = np.arange(1_500_000.0)
bg = store.background(spool=folder)
bg["x"] = np.zeros(2)
bg.append("x", [1.0])
bg.append("x", [2.0])
bg["x", 0] = 7.0
bg.append("x", large)
bg["x", 4:] = -large
bg.append("x", [3.0])
bg["gone"] = [1]
del bg["gone"]
print("taken", flush=True)
bg.close()
print("closed", flush=True)
"""

EXPECTED = np.concatenate([[7.0, 0.0, 1.0, 2.0], -np.arange(1_500_000.0), [3.0]])


def start(project: Project, user: User, engine: Engine, folder: Path) -> subprocess.Popen[str]:
    login = [user.email, user.password, project.url, project.key]
    return subprocess.Popen(
        [sys.executable, "-c", LOOP, *login, engine, str(folder)], stdout=subprocess.PIPE, text=True
    )


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
        process.kill()
        return True

    proxy = Proxy(project.url, kills)
    process = start(Project(proxy.url, project.key), user, engine, folder)
    assert process.stdout is not None
    assert process.stdout.readline() == "taken\n"
    taken.set()
    assert process.wait(120) == -signal.SIGKILL
    process.stdout.close()
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
    loops = [start(project, user, engine, folder)]
    assert loops[0].stdout is not None
    assert loops[0].stdout.readline() == "taken\n"
    loops[0].kill()
    loops[0].wait()
    loops[0].stdout.close()
    store = TensorStore(login, quiet=True, engine=engine)
    with store.background(spool=folder) as bg:
        bg.append("x", [4.0])
    np.testing.assert_array_equal(store["x"], [*EXPECTED, 4.0])
