"""What holds when several processes use one array, over a bad network, and when they die."""

from __future__ import annotations

import multiprocessing
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from typing import Any

import numpy as np
import psycopg
import pytest
import workers
from project import Project, User
from proxy import Exchange, Proxy
from workers import LARGE, ROW

import tensorage
from tensorage import TensorStore

Sql = psycopg.Connection[tuple[Any, ...]]

#: Rows of each append: one of the appends is of more than a request.
COUNTS = [1, 7, 1, 270, 1, 2, 1]

_SPAWN = multiprocessing.get_context("spawn")


@pytest.fixture(scope="module")
def processes() -> Iterator[ProcessPoolExecutor]:
    """Started anew, as on other machines: nothing is inherited."""
    with ProcessPoolExecutor(5, mp_context=_SPAWN) as pool:
        yield pool


def assert_nothing_is_left(database: Sql, user: User) -> None:
    """No rows but those of arrays that are there."""
    left = database.execute(
        "select count(*) from public.tensors t left join public.datasets d on d.id = t.data_id "
        "where t.user_id = %s and d.state is distinct from 'committed'",
        [user.id],
    ).fetchone()
    staged = database.execute(
        "select count(*) from public.datasets where user_id = %s and state = 'staged'", [user.id]
    ).fetchone()
    assert (left, staged) == ((0,), (0,))


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
        if exchange.function not in {
            "append",
            "begin",
            "put",
            "commit",
            "assign",
            "begin_assign",
            "patch",
            "store",
        }:
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
    assert (sent["append"], sent["commit"]) == ((48, 8) if is_lossy else (24, 4))
    assert_appends(store["log"], 4)
    assert_nothing_is_left(database, user)


def test_what_is_sent_again_is_done_once(project: Project, user: User, database: Sql) -> None:
    proxy = Proxy(project.url, loses_each_first_answer())
    try:
        with workers.store_of(Project(proxy.url, project.key), user, allow_overwrite=True) as store:
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
    writer = processes.submit(change, project, user, "x", range(1, last + 1))
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
    for writer in [processes.submit(workers.overwrite, project, user, "x", some) for some in values]:
        writer.result()
    store.allow_overwrite = True
    store["x"] = np.full(LARGE, last, "u1")
    seen = {value for reader in readers for value in reader.result()}
    assert seen <= {0, last, *values[0], *values[1]}
    assert_nothing_is_left(database, user)


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
    assert_nothing_is_left(database, user)


def is_busy(database: Sql) -> bool:
    """What a client asked for is being done, whether or not it lives to hear of it."""
    row = database.execute(
        "select count(*) from pg_stat_activity where backend_type = 'client backend' and state <> 'idle' "
        "and pid <> pg_backend_pid()"
    ).fetchone()
    return row != (0,)


class Killed:
    """A process that is killed when an answer comes for it, and does not hear it.

    Parameters
    ----------
    moment
        Name of the function whose answer that is, and how many times it has been called.
    """

    def __init__(self, project: Project, user: User, key: str, moment: tuple[str, int]) -> None:
        self._moment = moment
        self._calls: Counter[str] = Counter()
        self._proxy = Proxy(project.url, self._kills)
        through = Project(self._proxy.url, project.key)
        self._process = _SPAWN.Process(target=workers.change, args=(through, user, key))
        self._process.start()

    def _kills(self, exchange: Exchange) -> bool:
        self._calls[exchange.function] += 1
        if (exchange.function, self._calls[exchange.function]) != self._moment:
            return False
        self._process.kill()
        return True

    def join(self) -> None:
        self._process.join()
        assert self._process.exitcode == -signal.SIGKILL
        self._process.close()
        self._proxy.close()


MOMENTS = [
    {"overwrite": ("begin", 1), "append": ("begin", 1), "assign": ("begin_assign", 1)},
    {"overwrite": ("put", 1), "append": ("put", 1), "assign": ("patch", 1)},
    {"overwrite": ("put", 2), "append": ("put", 2), "assign": ("patch", 2)},
    {"overwrite": ("commit", 1), "append": ("commit", 1), "assign": ("commit", 1)},
]


@pytest.mark.parametrize("moments", MOMENTS, ids=["begun", "one request", "all requests", "committed"])
def test_a_writer_that_is_killed_leaves_the_array_whole(
    project: Project, user: User, store: TensorStore, database: Sql, moments: dict[str, tuple[str, int]]
) -> None:
    old, new = np.zeros(LARGE, "u1"), np.ones(LARGE, "u1")
    for key in moments:
        store[key] = old
    writers = [Killed(project, user, key, moment) for key, moment in moments.items()]
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
