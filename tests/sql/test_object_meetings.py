"""Writers of one array of Storage at once: none is lost, none waits for ever, and no live object is swept."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import count
from threading import Barrier, Event
from typing import Any

import httpx
import psycopg
import pytest
from sql.api import Caller, Json, answer_of, code_of, new_key, new_operation
from sql.conftest import wait_for_waiter
from sql.objects import (
    NUMBERS,
    append,
    ask_shards,
    ask_to_append,
    ask_to_sweep,
    begin,
    begin_append,
    begin_assign,
    content_of,
    entry,
    fill,
    name_of,
    names,
    parse_shards,
    put,
    remove,
    shards,
    store,
    sweep,
)

from tensorage.embedded import control

Connection = psycopg.Connection[tuple[Any, ...]]

_THREADS = 6


@pytest.fixture
def limited(owner: Caller, database: Connection) -> Caller:
    """A user with a quota: their writers have one lock more to wait for."""
    database.execute("insert into tensorage.quotas values (%s, %s)", (owner.id, 10**9))
    return owner


def _at_once(*jobs: Callable[[], Any]) -> list[Any]:
    """Return the results of jobs that are begun at the same moment."""
    ready = Barrier(len(jobs))

    def one(job: Callable[[], Any]) -> Any:
        ready.wait(30)
        return job()

    with ThreadPoolExecutor(len(jobs)) as pool:
        return list(pool.map(one, jobs))


def _codes(answers: list[httpx.Response]) -> list[str]:
    return sorted("ok" if answer.status_code == 200 else code_of(answer) for answer in answers)


def test_one_of_the_appends_behind_the_same_rows_passes(owner: Caller) -> None:
    for shape, last in (([9, 3], 4), ([8, 3], None)):
        begun = begin(owner, new_key(), shape)
        told = fill(owner, begun, range((shape[0] + 1) // 2))
        dataset = answer_of(owner.commit(begun["id"], shards=told))
        based_on = {} if last is None else {"of_4": name_of(dataset, last)}
        appends = [begin_append(owner, dataset, 1) for _ in range(_THREADS)]
        entries = [fill(owner, one, [4], **based_on) for one in appends]
        answers = _at_once(
            *[
                lambda one=one, told=told: owner.commit(one["id"], shards=told)
                for one, told in zip(appends, entries, strict=True)
            ]
        )
        assert _codes(answers) == ["TS003"] * (_THREADS - 1) + ["ok"]
        winner = appends[[answer.status_code for answer in answers].index(200)]
        opened = owner.open(dataset["key"])
        assert (opened["shape"], opened["version"]) == ([shape[0] + 1, 3], 2)
        assert names(owner, opened)[4] == name_of(winner, 4)


def test_appends_that_begin_anew_lose_and_double_nothing(limited: Caller) -> None:
    """The objects that they replace can be swept all the while."""
    owner, rounds = limited, 3
    dataset = store(owner)
    done = Event()

    def append_rows() -> None:
        for _ in range(rounds):
            while True:
                opened = owner.open(dataset["key"])
                rows = opened["shape"][0]
                old = names(owner, opened, range((rows + 1) // 2))
                based_on = {f"of_{rows // 2}": old[-1]} if rows % 2 else {}
                begun = ask_to_append(owner, opened, 1)
                if begun.status_code == 200:
                    told = fill(owner, begun.json(), [rows // 2], **based_on)
                    begun = owner.commit(begun.json()["id"], shards=told)
                if begun.status_code == 200:
                    break
                assert code_of(begun) == "TS003"

    def sweep_all() -> None:
        while not done.is_set():
            remove(owner, ask_to_sweep(owner))

    with ThreadPoolExecutor(4) as pool:
        sweeping = pool.submit(sweep_all)
        try:
            for job in [pool.submit(append_rows) for _ in range(3)]:
                job.result()
        finally:
            done.set()
        sweeping.result()
    opened = owner.open(dataset["key"])
    assert (opened["shape"], opened["version"]) == ([9 + 3 * rounds, 3], 1 + 3 * rounds)
    now = names(owner, opened, range(9))
    assert all(content_of(owner, name) for name in now)
    sweep(owner)
    assert all(content_of(owner, name) for name in now)


def test_assignments_to_different_shards_all_pass(owner: Caller) -> None:
    dataset = store(owner)
    old = names(owner, dataset)
    begun = [begin_assign(owner, dataset) for _ in NUMBERS]
    told = [fill(owner, one, [n], **{f"of_{n}": old[n]}) for n, one in enumerate(begun)]
    jobs = [lambda n=n: owner.commit(begun[n]["id"], shards=told[n]) for n in NUMBERS]
    assert _codes(_at_once(*jobs)) == ["ok"] * 5
    opened = owner.open(dataset["key"])
    assert opened["version"] == 6
    assert names(owner, opened) == [name_of(one, n) for n, one in enumerate(begun)]


def test_one_of_the_assignments_to_a_shard_passes(owner: Caller) -> None:
    """An assignment that names more shards changes all of them, or none."""
    dataset = store(owner)
    old = {f"of_{n}": name for n, name in enumerate(names(owner, dataset))}
    begun = [begin_assign(owner, dataset) for _ in range(4)]
    told = [fill(owner, one, [n, 4], **old) for n, one in enumerate(begun)]
    jobs = [lambda n=n: owner.commit(begun[n]["id"], shards=told[n]) for n in range(4)]
    answers = _at_once(*jobs)
    assert _codes(answers) == ["TS003"] * 3 + ["ok"]
    winner = [answer.status_code for answer in answers].index(200)
    expected = [old[f"of_{n}"] for n in NUMBERS]
    expected[winner], expected[4] = name_of(begun[winner], winner), name_of(begun[winner], 4)
    assert names(owner, owner.open(dataset["key"])) == expected


@pytest.mark.parametrize("what", ["array", "append", "assign"])
def test_repeated_commit_is_done_once(what: str, owner: Caller) -> None:
    dataset = store(owner)
    operation, last = new_operation(), {"of_4": name_of(dataset, 4)}
    if what == "array":
        begun = begin(owner, dataset["key"], overwrite=True)
        told = fill(owner, begun)
    else:
        begun = begin_append(owner, dataset, 1) if what == "append" else begin_assign(owner, dataset)
        told = fill(owner, begun, [4], **last)
    jobs = [lambda: owner.commit(begun["id"], operation=operation, shards=told)] * _THREADS
    answers = [answer_of(answer) for answer in _at_once(*jobs)]
    assert all(answer == answers[0] for answer in answers)
    assert owner.open(dataset["key"])["version"] == 2


@pytest.mark.parametrize("what", ["array", "append", "assign"])
def test_repeated_beginning_is_done_once(what: str, limited: Caller, database: Connection) -> None:
    owner = limited
    dataset, operation = store(owner), new_operation()
    asks: dict[str, Callable[[], Json]] = {
        "array": lambda: begin(owner, dataset["key"], overwrite=True, operation=operation),
        "append": lambda: begin_append(owner, dataset, 1, operation=operation),
        "assign": lambda: begin_assign(owner, dataset, operation=operation),
    }
    answers = _at_once(*[asks[what]] * _THREADS)
    assert all(answer == answers[0] for answer in answers)
    rows = database.execute("select id from public.datasets where user_id = %s", (owner.id,)).fetchall()
    assert len(rows) == 2


def test_parts_of_one_shard_at_once_all_stay(owner: Caller) -> None:
    """Each beside what its writer saw; who is late looks again."""
    begun = begin(owner, new_key(), [_THREADS, 3], (_THREADS, 3))

    def fill_row(row: int) -> None:
        for turn in count():
            seen = shards(owner, begun, [0]).get(0)
            rows = {"low": row, "high": row + 1, "before": None if seen is None else seen.name}
            told = put(owner, begun, entry(0, f"{name_of(begun, 0)}.{row}.{turn}", **rows))
            if told.status_code == 200:
                return
            assert code_of(told) == "TS003"

    _at_once(*[partial(fill_row, row) for row in range(_THREADS)])
    answer_of(owner.commit(begun["id"]))


@pytest.mark.parametrize("what", ["append", "assign"])
def test_commit_that_waits_for_a_replacement_is_refused(
    what: str, owner: Caller, backend: control.Running
) -> None:
    """The objects that it brought are swept, with the array that they were for."""
    dataset = store(owner)
    old = names(owner, dataset)
    begun = begin_append(owner, dataset, 1) if what == "append" else begin_assign(owner, dataset)
    told = fill(owner, begun, [4], of_4=old[4])
    answer_of(put(owner, begun, *told))
    with psycopg.connect(backend.superuser_url) as replacing, ThreadPoolExecutor(1) as pool:
        replacing.execute("select set_config('request.jwt.claims', %s, true)", (f'{{"sub":"{owner.id}"}}',))
        replacing.execute("select tensorage.hide(%s, 0)", (dataset["key"],))
        committing = pool.submit(owner.commit, begun["id"])
        wait_for_waiter(replacing)
        # Somebody sweeps at that moment: what is being committed is passed by.
        named = replacing.execute("select public.tensorage_sweep_objects()").fetchone()
        assert named == (old,)
        replacing.commit()
        assert code_of(committing.result()) == "TS003"
    assert sweep(owner) == sorted([*old, told[0]["name"]])
    assert owner.request("GET", f"/datasets?user_id=eq.{owner.id}").json() == []


def test_commit_and_abort_at_once(owner: Caller) -> None:
    for _ in range(4):
        begun = begin(owner, new_key())
        told = fill(owner, begun)
        committed, aborted = _at_once(
            lambda begun=begun, told=told: owner.commit(begun["id"], shards=told),
            lambda begun=begun: owner.call("tensorage_abort", data_id=begun["id"]),
        )
        assert aborted.status_code == 200
        if committed.status_code == 200:
            assert names(owner, owner.open(begun["key"])) == [name_of(begun, n) for n in NUMBERS]
            assert ask_to_sweep(owner) == []
        else:
            assert code_of(committed) in ("TS001", "TS003")
            assert len(sweep(owner)) == 5


def test_sweeping_at_once_names_all_and_only_what_is_gone(owner: Caller) -> None:
    live, gone = store(owner), [store(owner) for _ in range(3)]
    for dataset in gone:
        answer_of(owner.call("tensorage_remove", key=dataset["key"]))

    def sweep_some() -> set[str]:
        seen: set[str] = set()
        while named := ask_to_sweep(owner, 4):
            seen |= set(named)
            remove(owner, named)
        return seen

    seen = set.union(*_at_once(*[sweep_some] * 4))
    seen |= set(sweep(owner))
    assert seen == {name_of(dataset, number) for dataset in gone for number in NUMBERS}
    assert all(content_of(owner, name) for name in names(owner, live))


@dataclass(frozen=True)
class Writer:
    """The ways of writing one array, by its key."""

    caller: Caller
    key: str

    def overwrite(self) -> httpx.Response:
        begun = begin(self.caller, self.key, overwrite=True)
        return self.caller.commit(begun["id"], shards=fill(self.caller, begun))

    def append(self) -> httpx.Response:
        return self._change(lambda opened: ask_to_append(self.caller, opened, 1))

    def assign(self) -> httpx.Response:
        return self._change(lambda opened: self.caller.ask_to_assign(opened, engine="storage"))

    def rename(self, new_key: str) -> httpx.Response:
        return self.caller.call("tensorage_rename", key=self.key, new_key=new_key, overwrite=True)

    def sweep(self) -> httpx.Response:
        named = self.caller.call("tensorage_sweep_objects")
        remove(self.caller, named.json())
        return named

    def _change(self, ask: Callable[[Json], httpx.Response]) -> httpx.Response:
        """Change, or add, the shard that one more row of the array is in."""
        opened = self.caller.call("tensorage_open", key=self.key)
        if opened.status_code != 200:
            return opened
        rows = opened.json()["shape"][0]
        begun, found = ask(opened.json()), ask_shards(self.caller, opened.json(), [(rows - 1) // 2])
        if begun.status_code != 200 or found.status_code != 200:
            return found if begun.status_code == 200 else begun
        number, last = parse_shards(found.content).popitem()
        if begun.json()["shape"] == [1, 3] and rows % 2 == 0:
            told = entry(number + 1, name_of(begun.json(), number + 1))
        else:
            told = entry(number, name_of(begun.json(), number), based_on=last.name)
        # Nothing is uploaded: that is refused once the array has been replaced.
        return self.caller.commit(begun.json()["id"], shards=[told])


def test_writers_of_all_kinds_do_not_wait_in_a_circle(limited: Caller) -> None:
    """Each writer succeeds or gets one of our codes, and the array is whole."""
    writers = [Writer(limited, new_key()) for _ in range(2)]
    for writer in writers:
        answer_of(writer.overwrite())

    def repeat(work: Callable[..., httpx.Response]) -> None:
        for turn in range(6):
            other = [writers[1 - turn % 2].key] if work is Writer.rename else []
            answer = work(writers[turn % 2], *other)
            assert answer.status_code == 200 or code_of(answer) in ("TS001", "TS003"), (work, answer.text)

    works = [Writer.overwrite, Writer.append, Writer.assign, Writer.rename, Writer.sweep, Writer.assign]
    _at_once(*[partial(repeat, work) for work in works])
    for writer in writers:
        answer_of(writer.overwrite())
        opened = limited.open(writer.key)
        assert all(content_of(limited, name) for name in names(limited, opened))
        append(limited, opened, 1, [4], of_4=name_of(opened, 4))
    sweep(limited)
