"""Work of the processes of a test, each with a session of its own.

It is in a module of its own, since a process that is started anew imports it by name.
"""

from __future__ import annotations

import contextlib
import os
import pickle
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from project import Project, User

from tensorage import BackendSession, TensorStore
from tensorage.types import Engine

#: Elements of a row of the arrays that are appended to: 32 KiB.
ROW = 4096

#: Shape of the arrays that are overwritten: two requests.
LARGE = (10, 1024, 1024)


@contextlib.contextmanager
def store_of(
    project: Project, user: User, *, engine: Engine = "database", allow_overwrite: bool = False
) -> Iterator[TensorStore]:
    session = project.session(user)
    session.login_by_mail()
    try:
        yield TensorStore(session, quiet=True, engine=engine, allow_overwrite=allow_overwrite)
    finally:
        session.logout()


@contextlib.contextmanager
def sharing(store: TensorStore) -> Iterator[None]:
    """Share what the block shares no longer than it lasts."""
    try:
        yield
    finally:
        for key in {share.key for share in store.shares()}:
            store.unshare(key)


def appended(appender: int, append: int, count: int) -> np.ndarray[Any, Any]:
    """Rows that say which of which append of which appender they are."""
    rows = np.empty((count, ROW), "i8")
    rows[...] = (appender * 1000 + append) * 1000 + np.arange(count)[:, None]
    return rows


def append(project: Project, user: User, key: str, appender: int, counts: list[int]) -> None:
    """Append so many rows, one after the other; every other appender by a handle."""
    with store_of(project, user) as store:
        handle = store.open(key)
        for number, count in enumerate(counts):
            rows = appended(appender, number, count)
            if appender % 2:
                handle.append(rows)
            else:
                store.append(key, rows)


def overwrite(project: Project, user: User, key: str, values: range, engine: Engine) -> None:
    """Store arrays that are the same value everywhere."""
    with store_of(project, user, engine=engine, allow_overwrite=True) as store:
        for value in values:
            store[key] = np.full(LARGE, value, "u1")


def assign_all(project: Project, user: User, key: str, values: range, engine: Engine) -> None:
    """Assign a value to all elements, whatever engine keeps them."""
    with store_of(project, user) as store:
        for value in values:
            store[key, ...] = value


def read_until(project: Project, user: User, key: str, last: int, by_handle: bool) -> list[int]:
    """Read the array until it holds the last value, and return the values seen. Each has to be everywhere in it."""
    seen: list[int] = []
    with store_of(project, user) as store:
        handle = store.open(key)
        while not seen or seen[-1] != last:
            array = handle[...] if by_handle else store[key]
            assert array.shape == LARGE
            # Many times faster than to look for all of its values.
            least, most = int(array.min()), int(array.max())
            assert least == most, f"a mix of {least} and {most}"
            seen.append(least)
    return seen


def assign_rows(project: Project, user: User, key: str, rows: list[int], value: int) -> None:
    """Assign a value to rows, one at a time."""
    with store_of(project, user) as store:
        handle = store.open(key)
        for row in rows:
            if row % 2:
                store[key, row] = value
            else:
                handle[row] = value


def change(project: Project, user: User, key: str, engine: Engine) -> None:
    """Overwrite, append to, or assign to an array: what its key says."""
    with store_of(project, user, engine=engine, allow_overwrite=True) as store:
        ones = np.ones(LARGE, "u1")
        if key == "overwrite":
            store[key] = ones
        elif key == "append":
            store.append(key, ones)
        else:
            store[key, :, 1:] = ones[:, 1:]


def spool(project: Project, user: User, engine: Engine, folder: Path, taken: Connection) -> None:
    """Do each kind of change through a spool, some of them in several requests, and tell when it has taken all."""
    from tensorage.background.spool import sending

    sending.ACKNOWLEDGE_AFTER = 3
    store = TensorStore(project.session(user), quiet=True, engine=engine)
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
    taken.send("taken")
    bg.close()


def wait_for(others: Any) -> None:
    """Begin the work of a process when all others are there, too."""
    others.wait(60)


def use_kept(place: tuple[str, Project]) -> str:
    """Work with the login that is kept in a folder of settings, and return the id of its account."""
    os.environ["XDG_CONFIG_HOME"], project = place
    session = BackendSession(backend_url=project.url, backend_key=project.key)
    assert list(session()) == []
    return session.user_id


def use_pickled(pickled: bytes) -> list[str]:
    """Work with a session of another process, whose token is refused, and return the keys of its user."""
    session: BackendSession = pickle.loads(pickled)
    session.login.renew_unless_done(session.token)
    return list(session())


def keys_of_pickled(pickled: bytes) -> list[str]:
    """Return the keys of the user of another process's session."""
    session: BackendSession = pickle.loads(pickled)
    return list(session())


def use_pickled_thing(what: str, pickled: bytes) -> tuple[list[int], str, bytes]:
    """Read an array, and keep a file, by what another process pickled: return what is read, and whose it is."""
    thing = pickle.loads(pickled)
    tensor = {"session": lambda: thing().open("x"), "store": lambda: thing.x, "tensor": lambda: thing}[what]()
    session = tensor.arrays.project.backend
    with session.storage() as storage:
        storage.upload_file("a.txt", "text")
        return tensor[...].tolist(), session.user_id, storage.download_file("a.txt")
