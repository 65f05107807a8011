"""Writers and servers that die while an array of Storage is written, and answers that nobody hears.

The array that was there stays whole, what is done is done once, and what is left behind is deleted by a later writer.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import leftovers
import numpy as np
import psutil
import psycopg
import pytest
import servers
import workers
from killed import Killed
from project import Project, User
from proxy import Exchange, Proxy
from workers import LARGE

import tensorage
from tensorage import BackendSession, TensorStore
from tensorage.backend.wire import patience
from tensorage.backend.wire.http import Answer, Attempt, Request
from tensorage.embedded import control

Sql = psycopg.Connection[tuple[Any, ...]]
Array = np.ndarray[Any, Any]

#: Three shards of two chunks each, the last one with room for rows.
CHUNK, SHARD = (5, 100), (10, 100)

ARRAY = np.random.default_rng(0).integers(1, 256, (40, 100), "u1")
OLD = ARRAY[:25]


def put(store: TensorStore, key: str, array: Array, chunks: Any = CHUNK, shards: Any = SHARD) -> None:
    store.arrays.write(key, array, engine="storage", chunks=chunks, shards=shards, overwrite=True)


@pytest.fixture
def store(session: BackendSession) -> TensorStore:
    return TensorStore(session, quiet=True, engine="storage", allow_overwrite=True)


def a_day_passes(database: Sql, user_id: str) -> None:
    database.execute(
        "update public.datasets set expires_at = expires_at - interval '1 day' "
        "where user_id = %s and state = 'staged' and isfinite(expires_at)",
        [user_id],
    )


def staged(database: Sql, user_id: str) -> int:
    """Writes that nobody has given up yet."""
    query = "select count(*) from public.datasets where user_id = %s and state = 'staged' and isfinite(expires_at)"
    row = database.execute(query, [user_id]).fetchone()
    assert row is not None
    return int(row[0])


# Writers ----------------------------------------------------------------------------------------------------

MOMENTS: dict[str, dict[str, tuple[str, int]]] = {
    "amid reading and writing": {
        "overwrite": ("upload", 1),
        "append": ("download", 1),
        "assign": ("download", 2),
    },
    "amid writing": {"overwrite": ("upload", 2), "append": ("upload", 2), "assign": ("upload", 3)},
    "amid deleting": {
        "overwrite": ("sweep_objects", 1),
        "append": ("remove objects", 1),
        "assign": ("commit", 1),
    },
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_writer_that_is_killed(
    project: Project, user: User, store: TensorStore, database: Sql, moment: str
) -> None:
    old = np.full(LARGE, 7, "u1") + np.arange(LARGE[0], dtype="u1")[:, None, None]
    handles = {}
    for key in MOMENTS[moment]:
        put(store, key, old, (2, 1024, 1024), (4, 1024, 1024))
        handles[key] = store.open(key)
    for key, at in MOMENTS[moment].items():
        # One after the other: at the same time, one may delete what another was to be killed over.
        Killed(project, user, store, key, at).join()
    ones = np.ones(LARGE, "u1")
    expected = {"overwrite": old, "append": old, "assign": old}
    is_done = moment == "amid deleting"
    if is_done:
        assigned = ones.copy()
        assigned[:, 0] = old[:, 0]
        expected = {"overwrite": ones, "append": np.concatenate([old, ones]), "assign": assigned}
    for key, array in expected.items():
        np.testing.assert_array_equal(store[key], array)
        np.testing.assert_array_equal(handles[key][...], old if key == "append" else array)
    store["later"] = 1
    # Nobody can know before a day has passed if they live.
    assert staged(database, user.id) == (0 if is_done else 3)
    a_day_passes(database, user.id)
    store["later"] = 2
    leftovers.assert_only_arrays_are_kept(database, user.id)
    for key, array in expected.items():
        np.testing.assert_array_equal(store[key], array)


# Answers ----------------------------------------------------------------------------------------------------------


class Losing:
    """Tells of exchanges whether their answers are lost: the first one of each kind that is named."""

    def __init__(self) -> None:
        self.kinds: set[str] = set()
        self.lost: list[str] = []
        self._lock = threading.Lock()

    def __call__(self, exchange: Exchange) -> bool:
        with self._lock:
            if exchange.kind not in self.kinds:
                return False
            self.kinds.remove(exchange.kind)
            self.lost.append(exchange.kind)
            return True


@pytest.fixture(scope="module")
def losing() -> Losing:
    return Losing()


@pytest.fixture(scope="module")
def lossy(project: Project, user: User, losing: Losing) -> Iterator[TensorStore]:
    """A store whose answers get lost."""
    proxy = Proxy(project.url, losing)
    through = Project(proxy.url, project.key)
    with workers.store_of(through, user, engine="storage", allow_overwrite=True) as store:
        yield store
    proxy.close()


@pytest.fixture
def _is_impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "FIRST_WAIT_S", 0.001)


def fill(store: TensorStore) -> None:
    del store["x"]
    with store.backend.storage() as context:
        declared = context.insert_dataset("x", ARRAY.shape, 2, type="u1", chunks=CHUNK, shards=SHARD)
        for low, high in [(0, 3), (33, 40), (3, 20), (28, 33), (20, 28)]:
            context.insert_tensor(declared.id, ARRAY[low:high], low)


#: Operations on the array, the array after each, and the requests on the way.
OPERATIONS: dict[str, tuple[Callable[[TensorStore], Any], Array, list[str]]] = {
    "store": (
        lambda store: put(store, "x", ARRAY, (1, 50), (1, 50)),
        ARRAY,
        ["begin", "upload", "put_shards", "commit", "sweep_objects", "remove objects"],
    ),
    "append": (
        lambda store: store.append("x", ARRAY[25:]),
        ARRAY,
        ["begin_append", "shards", "download", "upload", "commit", "sweep_objects", "remove objects"],
    ),
    "append a few rows": (
        lambda store: store.append("x", ARRAY[25:27]),
        ARRAY[:27],
        ["shards", "append_tails"],
    ),
    "assign": (
        lambda store: store.__setitem__(("x", slice(3, 22)), ARRAY[10:29]),
        np.concatenate([OLD[:3], ARRAY[10:29], OLD[22:]]),
        ["open", "begin_assign", "shards", "download", "upload", "commit", "sweep_objects", "remove objects"],
    ),
    "fill": (
        fill,
        ARRAY,
        ["remove", "begin", "shards", "download", "upload", "put_shards", "remove objects", "commit"],
    ),
    "read": (lambda store: store["x", :], OLD, ["shards", "download"]),
    "read with others": (lambda store: store.read_many(["x"]), OLD, ["read_many", "download"]),
    "remove": (
        lambda store: (store.__delitem__("x"), put(store, "x", ARRAY)),
        ARRAY,
        ["remove", "sweep_objects", "remove objects"],
    ),
}

LOSSES = [
    (operation, kinds)
    for operation, (_, _, all_kinds) in OPERATIONS.items()
    for kinds in (*([kind] for kind in all_kinds), all_kinds)
]


@pytest.mark.usefixtures("_is_impatient")
@pytest.mark.parametrize(
    ("operation", "kinds"),
    LOSSES,
    ids=[f"{operation}-{kinds[0] if len(kinds) == 1 else 'all'}" for operation, kinds in LOSSES],
)
def test_what_is_asked_again_is_done_once(
    lossy: TensorStore, losing: Losing, database: Sql, user: User, operation: str, kinds: list[str]
) -> None:
    do, expected, _ = OPERATIONS[operation]
    put(lossy, "x", OLD)
    lossy.backend.transfer.finish(30)
    losing.lost.clear()
    losing.kinds.update(kinds)
    do(lossy)
    # The session sweeps behind the caller's back.
    lossy.backend.transfer.finish(30)
    assert sorted(losing.lost) == sorted(kinds)
    np.testing.assert_array_equal(lossy["x"], expected)
    leftovers.assert_only_arrays_are_kept(database, user.id)


# Servers ------------------------------------------------------------------------------------------------------------


class Server:
    """A backend of its own, which dies."""

    def __init__(self, data_dir: Path) -> None:
        self.data_dir = data_dir
        self.running = servers.start(data_dir)
        self.project = Project(self.running.api_url, self.running.anon_key)

    def kill(self) -> None:
        server = psutil.Process(self.running.pid)
        server.kill()
        server.wait(60)

    def start(self) -> None:
        self.running = servers.start(self.data_dir)
        assert self.running.api_url == self.project.url

    def connect(self) -> Sql:
        return psycopg.connect(self.running.superuser_url, autocommit=True)

    def files(self) -> set[str]:
        return {path.name for path in (self.data_dir / "storage" / "objects").iterdir()}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    data_dir = tmp_path_factory.mktemp("data")
    yield Server(data_dir)
    control.stop(data_dir)


@pytest.fixture(scope="module")
def on_server(server: Server) -> Iterator[TensorStore]:
    user = server.project.register()
    with workers.store_of(server.project, user, engine="storage", allow_overwrite=True) as store:
        # The server stays away for as long as somebody waits for it.
        store.backend.patience_s = 0
        yield store


CHANGES: dict[str, tuple[Callable[[TensorStore], Any], Array]] = {
    name: OPERATIONS[name][:2] for name in ("store", "append", "assign")
}


def kind_of(request: Request) -> str:
    return Exchange(request.path, method=request.method).kind


@pytest.mark.usefixtures("_is_impatient")
@pytest.mark.parametrize("moment", [("upload", 2), ("commit", 1)], ids=["objects", "commit"])
@pytest.mark.parametrize("change", CHANGES)
def test_a_server_that_is_killed(
    server: Server,
    on_server: TensorStore,
    monkeypatch: pytest.MonkeyPatch,
    change: str,
    moment: tuple[str, int],
) -> None:
    """The writer is told, and nothing of it is seen; at the commit, whether it was heard is not known."""
    ask, calls = on_server.backend.transfer.http.ask, Counter[str]()

    def ask_or_kill(request: Request, asked: str, begun: Attempt | None = None) -> Answer:
        calls[kind_of(request)] += 1
        if (kind_of(request), calls[kind_of(request)]) == moment:
            server.kill()
        return ask(request, asked, begun)

    put(on_server, "x", OLD)
    do, _ = CHANGES[change]
    with monkeypatch.context() as patched:
        patched.setattr(on_server.backend.transfer.http, "ask", ask_or_kill)
        with pytest.raises(tensorage.BackendUnavailableError, match=r"'x'.*cannot be reached"):
            do(on_server)
    server.start()
    np.testing.assert_array_equal(on_server["x"], OLD)
    with server.connect() as database:
        user_id = on_server.backend.user_id
        assert staged(database, user_id) == 1
        a_day_passes(database, user_id)
        on_server["later"] = np.arange(3)
        leftovers.assert_only_arrays_are_kept(database, user_id)
        versions = {str(row[0]) for row in database.execute("select version from storage.objects")}
        assert server.files() == versions
    np.testing.assert_array_equal(on_server["x"], OLD)


@pytest.mark.usefixtures("_is_impatient")
@pytest.mark.parametrize("change", CHANGES)
def test_a_server_that_comes_back(
    server: Server, on_server: TensorStore, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    """Killed after it has done what was asked for, before an upload and a commit are answered."""
    ask, heard = on_server.backend.transfer.http.ask, {"upload": False, "commit": False}

    def ask_twice(request: Request, asked: str, begun: Attempt | None = None) -> Answer:
        answer = ask(request, asked, begun)
        if heard.get(kind_of(request), True):
            return answer
        heard[kind_of(request)] = True
        server.kill()
        server.start()
        return ask(request, asked)

    put(on_server, "x", OLD)
    do, expected = CHANGES[change]
    with monkeypatch.context() as patched:
        patched.setattr(on_server.backend.transfer.http, "ask", ask_twice)
        # One request at a time: no other one finds the server away.
        patched.setattr(on_server.backend.transfer, "parallel", 1)
        do(on_server)
    assert all(heard.values())
    np.testing.assert_array_equal(on_server["x"], expected)
    with server.connect() as database:
        leftovers.assert_only_arrays_are_kept(database, on_server.backend.user_id)


@pytest.mark.usefixtures("_is_impatient")
def test_readers_of_a_server_that_is_killed(server: Server, on_server: TensorStore) -> None:
    put(on_server, "x", OLD)
    handle = on_server.open("x")
    server.kill()
    with pytest.raises(tensorage.BackendUnavailableError, match=r"'x'.*cannot be reached"):
        handle[3:7]
    server.start()
    np.testing.assert_array_equal(handle[...], OLD)
