"""Assignments, appends, compactions, renamings and overwrites at once: none is lost, none waits for ever."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from threading import Event
from typing import Any

import httpx
import numpy as np
import numpy.typing as npt
import psycopg
import pytest
from sql.api import Caller, answer_of, code_of, new_key, new_operation, whole
from sql.conftest import wait_for_waiter

from tensorage.embedded import control

Connection = psycopg.Connection[tuple[Any, ...]]
Array = npt.NDArray[Any]

_NUMBERS = np.arange(100, dtype="<i4")


@pytest.fixture
def limited(owner: Caller, database: Connection) -> Caller:
    """A user with a quota: their writers have one lock more to wait for."""
    database.execute("insert into tensorage.quotas values (%s, %s)", (owner.id, 10**9))
    return owner


def _run_all(*jobs: Callable[[], Any]) -> list[Any]:
    with ThreadPoolExecutor(len(jobs)) as pool:
        return [future.result() for future in [pool.submit(job) for job in jobs]]


@dataclass(frozen=True)
class Writer:
    """The ways of writing one array, by its key."""

    caller: Caller
    key: str

    def open(self) -> httpx.Response:
        return self.caller.call("tensorage_open", key=self.key)

    def overwrite(self) -> httpx.Response:
        body = whole(_NUMBERS, key=self.key, overwrite=True, operation=new_operation(), chunk=10)
        return self.caller.call("tensorage_store", body)

    def append(self, rows: Array = _NUMBERS[:3]) -> httpx.Response:
        return self.caller.append(self.key, rows)

    def append_staged(self) -> httpx.Response:
        asked = {"key": self.key, "shape": [100], "dtype": "<i4", "chunk": 10, "append": True}
        begun = self.caller.call("tensorage_begin", asked)
        if begun.status_code != 200:
            return begun
        put = self.caller.put(begun.json()["id"], _NUMBERS)
        return self.caller.commit(begun.json()["id"]) if put.status_code == 200 else put

    def assign(self, values: Array = -_NUMBERS, places: Sequence[int] = range(100)) -> httpx.Response:
        opened = self.open()
        if opened.status_code != 200:
            return opened
        return self.caller.assign(opened.json(), values, list(places), [1] * len(places))

    def assign_staged(self, values: Array = -_NUMBERS, places: Sequence[int] = range(100)) -> httpx.Response:
        opened = self.open()
        begun = opened if opened.status_code != 200 else self.caller.ask_to_assign(opened.json())
        if begun.status_code != 200:
            return begun
        data_id = begun.json()["id"]
        patched = self.caller.patch(data_id, values, list(places), [1] * len(places))
        return self.caller.commit(data_id) if patched.status_code == 200 else patched

    def compact(self) -> httpx.Response:
        return self.caller.call("tensorage_compact", key=self.key)

    def sweep(self) -> httpx.Response:
        return self.caller.call("tensorage_sweep")

    def rename(self, new_key: str) -> httpx.Response:
        named = {"key": self.key, "new_key": new_key, "overwrite": True, "operation": new_operation()}
        return self.caller.call("tensorage_rename", named)


def _until_it_is_taken(write: Callable[[], httpx.Response]) -> None:
    """Do what a client does: open again what changed since it was opened."""
    while (answer := write()).status_code != 200:
        assert code_of(answer) == "TS003", answer.text


def test_assignments_to_parts_of_one_block_all_stay(owner: Caller) -> None:
    key, writers, turns = new_key(), 6, 8
    owner.store(key, np.zeros(writers * turns, "<i4"))
    writer = Writer(owner, key)

    def assign(number: int) -> None:
        for turn in range(turns):
            place = number + writers * turn
            write = writer.assign if turn % 4 else writer.assign_staged
            _until_it_is_taken(partial(write, np.array([place + 1], "<i4"), [place]))

    _run_all(*[partial(assign, number) for number in range(writers)])
    opened = owner.open(key)
    assert np.array_equal(owner.read(opened), np.arange(writers * turns) + 1)
    assert opened["version"] == 1 + writers * turns


_TURNS = 12


def _append_rows(writer: Writer, number: int) -> None:
    for turn in range(_TURNS):
        answer_of(writer.append(np.full((2 + turn % 3, 3), 1000 * number + turn, "<i4")))


def _assign_in_turn(writer: Writer, number: int) -> None:
    for turn in range(_TURNS):
        _until_it_is_taken(partial(writer.assign, np.full(10, turn + 1, "<i4"), range(number, 30, 3)))


def _annotate(writer: Writer) -> None:
    for turn in range(_TURNS):
        data_id = answer_of(writer.open())["id"]
        answer_of(writer.caller.call("tensorage_annotate", data_id=data_id, attrs={str(turn): turn}))


def _compact_until(done: Event, writer: Writer) -> None:
    while not done.is_set():
        answer_of(writer.compact())


def _read_until(done: Event, writer: Writer) -> None:
    while not done.is_set():
        opened = answer_of(writer.open())
        answer = writer.caller.ask(opened, [0], run_length=3 * opened["shape"][0])
        assert answer.status_code == 200 or code_of(answer) == "TS003", answer.text


def test_all_that_writers_do_at_once_is_done(limited: Caller) -> None:
    """Rows are appended once and together, elements assigned, attributes set; compactions show in nothing."""
    key = new_key()
    limited.store(key, np.zeros((10, 3), "<i4"), chunk=30)
    writer, done = Writer(limited, key), Event()

    def write() -> None:
        try:
            assigning = [partial(_assign_in_turn, writer, number) for number in range(3)]
            appending = [partial(_append_rows, writer, number) for number in (1, 2)]
            _run_all(*assigning, *appending, partial(_annotate, writer))
        finally:
            done.set()

    _run_all(write, partial(_compact_until, done, writer), partial(_read_until, done, writer))
    opened = limited.open(key)
    assert opened["attrs"] == {str(turn): turn for turn in range(_TURNS)}
    assert max(count for _, count in limited.blocks(opened["id"])) <= 30
    rows = limited.read(opened).reshape(-1, 3)
    assert np.array_equal(rows[:10], np.full((10, 3), _TURNS))
    starts = np.flatnonzero(np.diff(rows[10:, 0], prepend=-1))
    names, sizes = rows[10:, 0][starts], np.diff(starts, append=len(rows) - 10)
    appended = [(int(name), int(size)) for name, size in zip(names, sizes, strict=True)]
    assert sorted(appended) == [
        (1000 * number + turn, 2 + turn % 3) for number in (1, 2) for turn in range(_TURNS)
    ]


#: Finds long waits: both processes, the locks of both, and the rows of arrays whose turn they have or wait for.
_LONG_WAITS = """
with waiting as (
  select distinct w.pid, pg_blocking_pids(w.pid) as blockers from pg_locks w
   where w.waitstart < clock_timestamp() - interval '0.4 s')
select a.pid, (select w.blockers from waiting w where w.pid = a.pid), a.backend_xid, a.query,
       array(select format('%s %s %s%s %s', l.mode, l.locktype, l.transactionid, l.relation::regclass,
                           case when l.page is not null then format('(%s,%s)', l.page, l.tuple) end)
                    || case when l.granted then '' else ' wanted' end
               from pg_locks l where l.pid = a.pid and l.locktype in ('transactionid', 'tuple', 'advisory')),
       array(select format('%s %s %s', d.ctid, d.id, d.state) from public.datasets d
              where d.ctid = any (array(select format('(%s,%s)', l.page, l.tuple)::tid from pg_locks l
                                         where l.pid = a.pid and l.locktype = 'tuple')))
  from pg_stat_activity a
 where a.pid in (select w.pid from waiting w union select unnest(w.blockers) from waiting w)
"""


def _look_for_long_waits(connection: Connection, done: Event) -> list[tuple[Any, ...]]:
    seen = []
    while not done.wait(0.2):
        seen += connection.execute(_LONG_WAITS).fetchall()
    return seen


@pytest.fixture
def _long_waits_are_told(backend: control.Running) -> Iterator[None]:
    """Print them behind a test that fails: of a deadlock, the answer and the log name the processes alone."""
    done = Event()
    with psycopg.connect(backend.superuser_url, autocommit=True) as watching, ThreadPoolExecutor(1) as pool:
        looking = pool.submit(_look_for_long_waits, watching, done)
        try:
            yield
        finally:
            done.set()
        for seen in looking.result():
            print(*seen, sep="\n  ")


@pytest.mark.usefixtures("_long_waits_are_told")
def test_writers_of_all_kinds_do_not_wait_in_a_circle(limited: Caller) -> None:
    """Each writer succeeds or gets one of our codes, and the array is whole."""
    writers = [Writer(limited, new_key()) for _ in range(2)]
    for writer in writers:
        answer_of(writer.overwrite())

    def repeat(work: Callable[..., httpx.Response]) -> None:
        for turn in range(_TURNS):
            other = [writers[1 - turn % 2].key] if work is Writer.rename else []
            answer = work(writers[turn % 2], *other)
            assert answer.status_code == 200 or code_of(answer) in ("TS001", "TS003"), (work, answer.text)

    works: list[Callable[..., httpx.Response]] = [
        Writer.overwrite, Writer.append_staged, Writer.assign_staged, Writer.assign, Writer.append,
        Writer.rename, Writer.sweep, Writer.compact, Writer.overwrite, Writer.append_staged,
    ]  # fmt: skip
    _run_all(*[partial(repeat, work) for work in works])
    for writer in writers:
        assert np.array_equal(limited.read(answer_of(writer.overwrite())), _NUMBERS)
    while answer_of(limited.call("tensorage_sweep")):
        pass
    staged = limited.request(
        "GET", f"/datasets?user_id=eq.{limited.id}&state=eq.staged&select=expires_at,created_at"
    )
    # Staged arrays of writers that were refused between beginning and committing are kept for a day.
    assert all(row["expires_at"] > row["created_at"] for row in staged.json())


@pytest.mark.parametrize("what", ["append", "assign"])
def test_commit_that_waits_for_a_replacement_does_not_stop_it(
    what: str, owner: Caller, backend: control.Running
) -> None:
    """The replacement sweeps the old array, and with it what was staged for it."""
    stored = owner.store(new_key(), _NUMBERS)
    if what == "append":
        begun = owner.begin(stored["key"], [100], append=True)
        answer_of(owner.put(begun["id"], _NUMBERS))
    else:
        begun = owner.begin_assign(stored)
        answer_of(owner.patch(begun["id"], -_NUMBERS, [0], [100]))
    with psycopg.connect(backend.superuser_url) as replacing, ThreadPoolExecutor(1) as pool:
        replacing.execute("select set_config('request.jwt.claims', %s, true)", (f'{{"sub":"{owner.id}"}}',))
        replacing.execute("select tensorage.hide(%s, 0)", (stored["key"],))
        committing = pool.submit(owner.commit, begun["id"])
        wait_for_waiter(replacing)
        # The rest of a replacement does this, in its transaction.
        replacing.execute("select tensorage.sweep_on_the_way()")
        replacing.commit()
        assert code_of(committing.result()) == "TS003"
    while answer_of(owner.call("tensorage_sweep")):
        pass
    assert owner.request("GET", f"/datasets?user_id=eq.{owner.id}").json() == []


def test_staged_append_and_replacement_take_the_total_last(limited: Caller, backend: control.Running) -> None:
    """A replacement has the array locked before the total: an append waits for the array, with no total in hand."""
    owner = limited
    stored = owner.store(new_key(), _NUMBERS, operation=new_operation())
    with psycopg.connect(backend.superuser_url) as replacing, ThreadPoolExecutor(1) as pool:
        replacing.execute("select set_config('request.jwt.claims', %s, true)", (f'{{"sub":"{owner.id}"}}',))
        replacing.execute("select tensorage.hide(%s, 0)", (stored["key"],))
        asked = {"key": stored["key"], "shape": [1], "dtype": "<i4", "chunk": 1, "append": True}
        beginning = pool.submit(owner.call, "tensorage_begin", asked)
        wait_for_waiter(replacing)
        replacing.execute("select tensorage.sweep_on_the_way()")
        replacing.execute("select tensorage.settle()")
        replacing.commit()
        assert code_of(beginning.result()) in ("TS001", "TS003")


def test_whoever_has_the_total_waits_for_nothing_else(limited: Caller, backend: control.Running) -> None:
    """One that is about to end lets the next one end: with the array that both append to in nobody's hands."""
    owner = limited
    stored = owner.store(new_key(), _NUMBERS, operation=new_operation())
    with psycopg.connect(backend.superuser_url) as settling, ThreadPoolExecutor(1) as pool:
        settling.execute("select from tensorage.usage where user_id = %s for update", (owner.id,))
        asked = {"key": stored["key"], "shape": [1], "dtype": "<i4", "chunk": 1, "append": True}
        beginning = pool.submit(owner.call, "tensorage_begin", asked)
        wait_for_waiter(settling)
        # All that the waiting one holds of the array leaves it to be read, appended to and assigned to.
        assert settling.execute(
            "select id from public.datasets where id = %s for no key update nowait", (stored["id"],)
        ).fetchone() == (stored["id"],)
        settling.commit()
        answer_of(beginning.result())


def test_a_transaction_of_many_keys_has_one_lock_of_them(owner: Caller, backend: control.Running) -> None:
    """PostgreSQL has room for some thousands of locks of all users. Writers of single keys wait all the same."""
    stored = owner.store(new_key(), _NUMBERS, operation=new_operation())
    keys = [f"{stored['key']}/{number}" for number in range(100_000)]
    body = whole(-_NUMBERS, key=stored["key"], overwrite=True)
    with psycopg.connect(backend.superuser_url) as holding, ThreadPoolExecutor(1) as pool:
        holding.execute("select set_config('request.jwt.claims', %s, true)", (f'{{"sub":"{owner.id}"}}',))
        holding.execute(
            "select tensorage.lock_for_steps(%s)", (json.dumps({"keys": [stored["key"], *keys]}),)
        )
        # Keys that a step locks again take no lock of their own.
        holding.execute("select tensorage.lock_key(key) from unnest(%s::text[]) key", (keys,))
        storing = pool.submit(owner.call, "tensorage_store", body)
        wait_for_waiter(holding)
        holding.commit()
        answer_of(storing.result())
    np.testing.assert_array_equal(owner.read(owner.open(stored["key"])), -_NUMBERS)


def test_renaming_in_both_directions_at_once(owner: Caller) -> None:
    for overwrite in (False, True):
        for _ in range(6):
            keys = new_key(), new_key()
            for number, key in enumerate(keys):
                owner.store(key, np.array([number]))

            def rename(first: str, second: str, overwrite: bool = overwrite) -> httpx.Response:
                return owner.call("tensorage_rename", key=first, new_key=second, overwrite=overwrite)

            answers = _run_all(lambda k=keys: rename(*k), lambda k=keys: rename(*k[::-1]))
            left = [key for key in keys if owner.call("tensorage_open", key=key).status_code == 200]
            if overwrite:
                # The one that came second had nothing left to rename, or renamed what the first one had made.
                assert len(left) == 1
                assert [a.status_code for a in answers].count(200) >= 1
            else:
                assert {code_of(answer) for answer in answers} == {"TS002"}
                assert left == list(keys)


@pytest.mark.parametrize("function", ["remove", "remove_all"])
def test_array_that_is_deleted_while_it_is_shared_leaves_no_share(
    function: str, owner: Caller, backend: control.Running
) -> None:
    """A share that came after would be one of the next array under that key."""
    stored = owner.store(new_key(), _NUMBERS)
    with psycopg.connect(backend.superuser_url) as removing, ThreadPoolExecutor(1) as pool:
        removing.execute("select set_config('request.jwt.claims', %s, true)", (f'{{"sub":"{owner.id}"}}',))
        removing.execute(f"select tensorage_{function}(%s)", (stored["key"],))
        sharing = pool.submit(owner.call, "tensorage_share", key=stored["key"])
        wait_for_waiter(removing)
        removing.commit()
        assert code_of(sharing.result()) == "TS001"
    assert answer_of(owner.call("tensorage_shares")) == []


def test_array_that_is_shared_while_it_is_deleted_leaves_no_share(
    owner: Caller, backend: control.Running
) -> None:
    stored = owner.store(new_key(), _NUMBERS)
    with psycopg.connect(backend.superuser_url) as sharing, ThreadPoolExecutor(1) as pool:
        sharing.execute("select set_config('request.jwt.claims', %s, true)", (f'{{"sub":"{owner.id}"}}',))
        sharing.execute("select tensorage_share(%s)", (stored["key"],))
        removing = pool.submit(owner.call, "tensorage_remove", key=stored["key"])
        wait_for_waiter(sharing)
        sharing.commit()
        answer_of(removing.result())
    assert answer_of(owner.call("tensorage_shares")) == []


def _wait_for_two(database: Connection) -> None:
    """Return when two connections wait for locks."""
    waiting = "select count(*) from pg_stat_activity where cardinality(pg_blocking_pids(pid)) > 0"
    while database.execute(waiting).fetchone() != (2,):
        database.execute("select pg_sleep(0.01)")


@pytest.mark.parametrize("function", ["tensorage_rename", "tensorage_rename_all"])
def test_renaming_to_and_fro_at_once(
    function: str, owner: Caller, database: Connection, backend: control.Running
) -> None:
    """The second waits before it has an array that the first needs: they would wait for each other in a circle."""
    here, there = new_key() + "/", new_key() + "/"
    for key in (f"{here}1", f"{here}2", f"{there}2"):
        owner.store(key, _NUMBERS)
    back = {
        "tensorage_rename": {"key": f"{there}2", "new_key": f"{here}2"},
        "tensorage_rename_all": {"prefix": there, "new_prefix": here},
    }
    with psycopg.connect(backend.superuser_url) as holding, ThreadPoolExecutor(2) as pool:
        # The first renaming waits for this key in its midst.
        holding.execute(
            "insert into public.datasets (user_id, key, shape, dtype, block_size, state) "
            "values (%s, %s, '{0}', '<i4', 1, 'committed')",
            (owner.id, f"{there}1"),
        )
        first = pool.submit(owner.call, "tensorage_rename_all", prefix=here, new_prefix=there)
        wait_for_waiter(holding)
        second = pool.submit(owner.call, function, back[function])
        _wait_for_two(database)
        holding.rollback()
        assert {code_of(first.result()), code_of(second.result())} == {"TS002"}
    assert answer_of(owner.call("tensorage_count")) == 3


@pytest.mark.parametrize("function", ["tensorage_remove_all", "tensorage_rename_all"])
def test_array_is_renamed_over_another_while_both_change(
    function: str, owner: Caller, database: Connection, backend: control.Running
) -> None:
    """One that locks all arrays below a prefix has the first already: the other one must not have the last."""
    prefix = new_key() + "/"
    _, second, _ = (owner.store(f"{prefix}{number}", _NUMBERS) for number in range(3))
    with psycopg.connect(backend.superuser_url) as holding, ThreadPoolExecutor(2) as pool:
        holding.execute("select from public.datasets where id = %s for update", (second["id"],))
        asked = {"prefix": prefix} | ({"new_prefix": new_key()} if function == "tensorage_rename_all" else {})
        all_of_them = pool.submit(owner.call, function, asked)
        wait_for_waiter(holding)
        keys = {"key": f"{prefix}2", "new_key": f"{prefix}0", "overwrite": True}
        renaming = pool.submit(owner.call, "tensorage_rename", keys)
        _wait_for_two(database)
        holding.rollback()
        assert answer_of(all_of_them.result())["keys"] == 3
        assert code_of(renaming.result()) == "TS001"


def test_array_that_is_deleted_while_it_is_replaced_is_found(owner: Caller, backend: control.Running) -> None:
    """There is one under the key at any time: the old one, or the new one, which is deleted then."""
    stored = owner.store(new_key(), _NUMBERS)
    begun = owner.begin(stored["key"], [100], overwrite=True)
    answer_of(owner.put(begun["id"], -_NUMBERS))
    with psycopg.connect(backend.superuser_url) as replacing, ThreadPoolExecutor(1) as pool:
        replacing.execute("select set_config('request.jwt.claims', %s, true)", (f'{{"sub":"{owner.id}"}}',))
        replacing.execute("select tensorage_commit(%s)", (begun["id"],))
        removing = pool.submit(owner.call, "tensorage_remove", key=stored["key"])
        wait_for_waiter(replacing)
        replacing.commit()
        assert answer_of(removing.result())["id"] == begun["id"]
    assert answer_of(owner.call("tensorage_list")) == []
