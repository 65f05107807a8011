"""Writes of several requests whose database fails on the way: the client begins anew where it has all that it needs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import psycopg
import pytest
from project import Project, User
from proxy import Exchange, Proxy

from tensorage import BackendSession, TensorStore
from tensorage.errors import ChangedError

Connection = psycopg.Connection[tuple[Any, ...]]
Array = npt.NDArray[Any]

#: More than a request takes.
ARRAY = np.arange(3 * 2**20, dtype="<f4").reshape(-1, 256)


class Crash:
    """Does to the database, after some requests that write, what a crash does: nothing staged is known to be whole."""

    def __init__(self, database: Connection) -> None:
        self._database = database
        self.after = -1
        self.happened = 0

    def __call__(self, exchange: Exchange) -> bool:
        if exchange.function in {"put", "patch", "put_shards"} or exchange.is_upload:
            self.after -= 1
            if self.after == 0:
                self._database.execute("truncate tensorage.stagings")
                self.happened += 1
        return False


@pytest.fixture
def crash(database: Connection) -> Crash:
    return Crash(database)


@pytest.fixture
def crashing(project: Project, user: User, crash: Crash, engine: Any) -> Iterator[TensorStore]:
    proxy = Proxy(project.url, loses_answer=crash)
    session = BackendSession(user.email, user.password, proxy.url, project.key)
    session.login_by_mail()
    yield TensorStore(session, quiet=True, engine=engine)
    session.logout()
    proxy.close()


def _store(store: TensorStore) -> Array:
    store["new"] = ARRAY
    return ARRAY


def _overwrite(store: TensorStore) -> Array:
    TensorStore(store.backend, quiet=True, engine=store.engine, allow_overwrite=True)["old"] = ARRAY
    return ARRAY


def _append(store: TensorStore) -> Array:
    store.append("old", ARRAY)
    return np.concatenate([-ARRAY, ARRAY])


def _assign(store: TensorStore) -> Array:
    store["old", 5:-5] = ARRAY[5:-5]
    return np.concatenate([-ARRAY[:5], ARRAY[5:-5], -ARRAY[-5:]])


def _copy(store: TensorStore) -> Array:
    store.copy("old", "new", engine="storage" if store.engine == "database" else "database")
    return -ARRAY


@pytest.mark.parametrize("write", [_store, _overwrite, _append, _assign, _copy])
def test_a_write_begins_anew(
    write: Callable[[TensorStore], Array], store: TensorStore, crashing: TensorStore, crash: Crash
) -> None:
    store["old"] = -ARRAY
    crash.after = 2 if write is not _copy or store.engine == "storage" else 1
    expected = write(crashing)
    assert crash.happened == 1
    key = "new" if "new" in store else "old"
    np.testing.assert_array_equal(store[key], expected)


@pytest.mark.parametrize("engine", ["database"])
@pytest.mark.parametrize("is_append", [False, True])
def test_samples_of_any_length_begin_anew(
    store: TensorStore, crashing: TensorStore, crash: Crash, is_append: bool
) -> None:
    samples = [bytes([number]) * 2**19 for number in range(40)]
    store.write_ragged("old", [b"first"])
    crash.after = 2
    if is_append:
        crashing.append("old", samples)
    else:
        crashing.write_ragged("new", samples)
    assert crash.happened == 1
    assert store["old" if is_append else "new"] == [*([b"first"] if is_append else []), *samples]
    crash.after = 2
    with pytest.raises(ChangedError, match="failed and came back"):
        crashing.append("old", iter(samples))
    assert crash.happened == 2
    assert len(store.open("old")) == (41 if is_append else 1)


def test_blocks_that_come_once_are_not_asked_for_again(
    store: TensorStore, crashing: TensorStore, crash: Crash
) -> None:
    store["old"] = -ARRAY
    crash.after = 1

    def blocks() -> Iterator[Array]:
        yield from np.split(ARRAY, 8)

    with pytest.raises(
        ChangedError, match=r"failed and came back while 'new' was being written. Write it again"
    ):
        crashing.write("new", blocks(), shape=ARRAY.shape, dtype=ARRAY.dtype)
    assert crash.happened == 1
    assert list(store) == ["old"]
