"""Several processes use one array, over a bad network, and some of them die."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from typing import Any

import leftovers
import numpy as np
import psycopg
import pytest
import workers
from killed import Killed
from processes import PROCESSES
from project import Project, User
from proxy import Exchange, Proxy
from workers import LARGE, ROW

import tensorage
from tensorage import TensorStore
from tensorage.types import Engine

Sql = psycopg.Connection[tuple[Any, ...]]

#: Rows of each append: one of the appends is of more than a request.
COUNTS = [1, 7, 1, 270, 1, 2, 1]


@pytest.fixture(scope="module")
def processes() -> Iterator[ProcessPoolExecutor]:
    """Started anew, as on other machines: nothing is inherited."""
    with ProcessPoolExecutor(5, mp_context=PROCESSES) as pool:
        yield pool


def assert_nothing_is_left(database: Sql, user: User, store: TensorStore | None = None) -> None:
    """Nothing but arrays that are there. A later writer deletes leftovers that two writers leave to each other."""
    if store is not None and store.engine == "storage":
        store["later"] = 0
    leftovers.assert_only_arrays_are_kept(database, user.id)


def assert_appends(array: np.ndarray[Any, Any], appenders: int) -> None:
    """Each append once, its rows together and in order, those of an appender in their order."""
    assert (array == array[:, :1]).all()
    rows = array[:, 0]
    expected = {
        (appender, number): workers.appended(appender, number, count)[:, 0]
        for appender in range(appenders)
        for number, count in enumerate(COUNTS)
    }
    assert len(rows) == sum(map(len, expected.values()))
    came: dict[int, list[int]] = {appender: [] for appender in range(appenders)}
    at = 0
    while at < len(rows):
        appender, number = divmod(int(rows[at]) // 1000, 1000)
        together = expected[appender, number]
        np.testing.assert_array_equal(rows[at : at + len(together)], together)
        came[appender].append(number)
        at += len(together)
    assert came == {appender: list(range(len(COUNTS))) for appender in range(appenders)}


def loses_each_first_answer() -> Callable[[Exchange], bool]:
    """Every request that changes something is done, and has to be sent again."""
    times: Counter[tuple[str, bytes]] = Counter()

    def loses(exchange: Exchange) -> bool:
        changes = {
            "append",
            "begin",
            "put",
            "commit",
            "assign",
            "begin_assign",
            "begin_append",
            "append_tails",
            "patch",
            "store",
            "create",
            "resize",
            "remove",
            "rename",
            "remove_all",
            "rename_all",
            "transact",
        }
        if exchange.function not in changes and not exchange.is_upload:
            return False
        times[exchange.target, exchange.beginning] += 1
        return times[exchange.target, exchange.beginning] == 1

    return loses


@pytest.mark.parametrize("is_lossy", [False, True], ids=["good network", "answers get lost"])
def test_concurrent_appends_are_each_done_once(
    processes: ProcessPoolExecutor,
    project: Project,
    user: User,
    store: TensorStore,
    database: Sql,
    is_lossy: bool,
) -> None:
    store["log"] = np.empty((0, ROW), "i8")
    proxy = Proxy(project.url, loses_each_first_answer() if is_lossy else lambda _: False)
    try:
        through = Project(proxy.url, project.key)
        appenders = [
            processes.submit(workers.append, through, user, "log", appender, COUNTS) for appender in range(4)
        ]
        for appender in appenders:
            appender.result()
    finally:
        proxy.close()
    sent = Counter(exchange.function for exchange in proxy.exchanges)
    if store.engine == "database":
        assert (sent["append"], sent["commit"]) == ((48, 8) if is_lossy else (24, 4))
    else:
        # Each that finds the array changed sends its rows as they are, or begins anew.
        assert sent["commit"] + sent["append_tails"] + sent["append"] >= (56 if is_lossy else 28)
    assert_appends(store["log"], 4)
    assert_nothing_is_left(database, user, store)


def test_what_is_sent_again_is_done_once(project: Project, user: User, database: Sql, engine: Engine) -> None:
    proxy = Proxy(project.url, loses_each_first_answer())
    through = Project(proxy.url, project.key)
    try:
        with workers.store_of(through, user, engine=engine, allow_overwrite=True) as store:
            expected = np.zeros(LARGE, "u1")
            store["x"] = expected
            for number, rows in enumerate([np.s_[3], np.s_[1:], np.s_[:, ::2], np.s_[[5, 2, 5], 7]], 1):
                store["x", rows] = number
                expected[rows] = number
            np.testing.assert_array_equal(store["x"], expected)
            store["x"] = expected[:2]
            store.rename("x", "y")
            store.open("y").attrs["a"] = 1
            assert store.keys() == ["y"]
            np.testing.assert_array_equal(store["y"], expected[:2])
            store.allow_overwrite = False
            made = store.create("c", (4, 3), "i4", fill_value=7)
            made.resize(6)
            made[5] = 1
            with store.transaction() as tx:
                tx["d"] = [1]
                tx.append("c", np.full((1, 3), 2, "i4"))
            store.write_ragged("t", ["a", "bc"])
            assert store.rename_all("", "g/") == 4
            np.testing.assert_array_equal(store["g/c", :, 0], [7, 7, 7, 7, 7, 1, 2])
            assert store.open("g/t")[[1, 0]] == ["bc", "a"]
            del store["g/y"]
            assert store.remove_all("g/") == 3
    finally:
        proxy.close()
    assert_nothing_is_left(database, user)


@pytest.mark.parametrize("change", [workers.overwrite, workers.assign_all])
def test_readers_see_no_mix_while_all_of_an_array_changes(
    processes: ProcessPoolExecutor, project: Project, user: User, store: TensorStore, database: Sql,
    change: Callable[..., None],
) -> None:  # fmt: skip
    last = 8
    store["x"] = np.zeros(LARGE, "u1")
    readers = [
        processes.submit(workers.read_until, project, user, "x", last, by_handle)
        for by_handle in (False, True)
    ]
    writer = processes.submit(change, project, user, "x", range(1, last + 1), store.engine)
    writer.result()
    for reader in readers:
        seen = reader.result()
        assert seen == sorted(seen), "never an older one than before"
    assert_nothing_is_left(database, user)


def test_readers_see_no_mix_of_two_writers(
    processes: ProcessPoolExecutor, project: Project, user: User, store: TensorStore, database: Sql
) -> None:
    store["x"] = np.zeros(LARGE, "u1")
    last = 255
    readers = [
        processes.submit(workers.read_until, project, user, "x", last, by_handle)
        for by_handle in (False, True)
    ]
    values = [range(1, 6), range(11, 16)]
    writers = [processes.submit(workers.overwrite, project, user, "x", some, store.engine) for some in values]
    for writer in writers:
        writer.result()
    store.allow_overwrite = True
    store["x"] = np.full(LARGE, last, "u1")
    seen = {value for reader in readers for value in reader.result()}
    assert seen <= {0, last, *values[0], *values[1]}
    assert_nothing_is_left(database, user, store)


def test_concurrent_assignments_to_rows_are_all_there(
    processes: ProcessPoolExecutor, project: Project, user: User, store: TensorStore
) -> None:
    store["x"] = np.zeros((100, 1000), "i4")
    writers = [
        processes.submit(workers.assign_rows, project, user, "x", list(range(number, 100, 5)), number + 1)
        for number in range(5)
    ]
    for writer in writers:
        writer.result()
    np.testing.assert_array_equal(store["x"], np.broadcast_to((np.arange(100) % 5 + 1)[:, None], (100, 1000)))


def test_a_large_assignment_and_small_ones_elsewhere(
    processes: ProcessPoolExecutor, project: Project, user: User, store: TensorStore, database: Sql
) -> None:
    store["x"] = np.zeros(LARGE, "u1")
    small: Future[None] = processes.submit(workers.assign_rows, project, user, "x", [0, 9] * 15, 7)
    value = 0
    while not small.done():
        value += 1
        try:
            store["x", 1:9] = value
        except tensorage.ChangedError:
            value -= 1
    small.result()
    expected = np.full(LARGE, 7, "u1")
    expected[1:9] = value
    np.testing.assert_array_equal(store["x"], expected)
    assert_nothing_is_left(database, user, store)


def is_busy(database: Sql) -> bool:
    """True if the database is doing what a client asked for, even if the client is dead."""
    row = database.execute(
        "select count(*) from pg_stat_activity where backend_type = 'client backend' and state <> 'idle' "
        "and pid <> pg_backend_pid()"
    ).fetchone()
    return row != (0,)


Moments = dict[str, tuple[str, int]]

MOMENTS: dict[str, dict[Engine, Moments]] = {
    "begun": {
        "database": {"overwrite": ("begin", 1), "append": ("begin", 1), "assign": ("begin_assign", 1)},
        "storage": {"overwrite": ("begin", 1), "append": ("begin_append", 1), "assign": ("begin_assign", 1)},
    },
    "one request": {
        "database": {"overwrite": ("put", 1), "append": ("put", 1), "assign": ("patch", 1)},
        "storage": {"overwrite": ("upload", 1), "append": ("upload", 1), "assign": ("upload", 1)},
    },
    "all requests": {
        "database": {"overwrite": ("put", 2), "append": ("put", 2), "assign": ("patch", 2)},
        "storage": {"overwrite": ("upload", 2), "append": ("upload", 2), "assign": ("upload", 2)},
    },
    "committed": {
        "database": {"overwrite": ("commit", 1), "append": ("commit", 1), "assign": ("commit", 1)},
        "storage": {"overwrite": ("commit", 1), "append": ("commit", 1), "assign": ("commit", 1)},
    },
}  # fmt: skip


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_writer_that_is_killed_leaves_the_array_whole(
    project: Project, user: User, store: TensorStore, database: Sql, moment: str
) -> None:
    moments = MOMENTS[moment][store.engine]
    old, new = np.zeros(LARGE, "u1"), np.ones(LARGE, "u1")
    for key in moments:
        store[key] = old
    writers = [Killed(project, user, store, key, moment) for key, moment in moments.items()]
    for writer in writers:
        writer.join()
    is_done = ("commit", 1) in moments.values()
    np.testing.assert_array_equal(store["overwrite"], new if is_done else old)
    np.testing.assert_array_equal(store["append"], np.concatenate([old, new]) if is_done else old)
    new[:, 0] = 0
    np.testing.assert_array_equal(store["assign"], new if is_done else old)
    while is_busy(database):
        time.sleep(0.01)
    assert (staged_arrays(database, user) == 0) == is_done
    if moment in {"one request", "all requests"} and store.engine == "storage":
        named = [name for key in moments for name in leftovers.shards_of(database, user.id, key)]
        assert len(leftovers.objects_of(database, user.id)) > sum(name is not None for name in named)
    store.allow_overwrite = True
    for key in moments:
        store[key] = np.full((3, 2), 9)
        np.testing.assert_array_equal(store[key], np.full((3, 2), 9))
    a_day_passes(database, user)
    store["swept by this"] = old
    assert_nothing_is_left(database, user)


def staged_arrays(database: Sql, user: User) -> int:
    query = "select count(*) from public.datasets where user_id = %s and state = 'staged' and isfinite(expires_at)"
    row = database.execute(query, [user.id]).fetchone()
    assert row is not None
    return int(row[0])


def a_day_passes(database: Sql, user: User) -> None:
    database.execute(
        "update public.datasets set expires_at = expires_at - interval '1 day' "
        "where user_id = %s and state = 'staged' and isfinite(expires_at)",
        [user.id],
    )
