"""Datasets that were begun before PostgreSQL failed: written no further, never committed, and begun anew.

A crash empties the unlogged table `tensorage.stagings`. These tests empty it themselves, which takes no second; that a
crash does is tested where PostgreSQL is killed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
import numpy as np
import psycopg
import pytest
from sql.api import Caller, Json, answer_of, code_of, new_key, new_operation
from sql.conftest import State
from sql.objects import begin, begin_append, begin_assign, fill, names, put, store, sweep

Connection = psycopg.Connection[tuple[Any, ...]]
StateOf = Callable[[Caller], State]

_ROWS = np.arange(40, dtype="<i4").reshape(10, 4)


def _rows(caller: Caller) -> tuple[Json, Callable[[], httpx.Response]]:
    begun = caller.begin(new_key(), _ROWS.shape)
    return begun, lambda: caller.put(begun["id"], _ROWS)


def _appended_rows(caller: Caller) -> tuple[Json, Callable[[], httpx.Response]]:
    key = new_key()
    caller.store(key, _ROWS)
    begun = caller.begin(key, _ROWS.shape, append=True)
    return begun, lambda: caller.put(begun["id"], _ROWS)


def _assigned_rows(caller: Caller) -> tuple[Json, Callable[[], httpx.Response]]:
    begun = caller.begin_assign(caller.store(new_key(), _ROWS, chunk=4))
    return begun, lambda: caller.patch(begun["id"], -_ROWS, [0], [40])


def _objects(caller: Caller) -> tuple[Json, Callable[[], httpx.Response]]:
    begun = begin(caller, new_key())
    return begun, lambda: put(caller, begun, *fill(caller, begun))


def _appended_objects(caller: Caller) -> tuple[Json, Callable[[], httpx.Response]]:
    stored = store(caller)
    begun = begin_append(caller, stored, 2)
    last = names(caller, stored, [4])[0]
    return begun, lambda: put(caller, begun, *fill(caller, begun, [4, 5], of_4=last))


def _assigned_objects(caller: Caller) -> tuple[Json, Callable[[], httpx.Response]]:
    stored = store(caller)
    begun = begin_assign(caller, stored)
    first = names(caller, stored, [0])[0]
    return begun, lambda: put(caller, begun, *fill(caller, begun, [0], of_0=first))


_ALL = [_rows, _appended_rows, _assigned_rows, _objects, _appended_objects, _assigned_objects]


def _fail_and_come_back(database: Connection) -> None:
    database.execute("truncate tensorage.stagings")


def _assert_restarted(answer: httpx.Response) -> None:
    assert code_of(answer) == "TS003"
    assert answer.json()["details"] == "restarted"
    assert "while" in answer.json()["message"]


@pytest.mark.parametrize("stage", _ALL)
def test_what_was_begun_before_a_crash_is_not_committed(
    stage: Callable[[Caller], tuple[Json, Callable[[], httpx.Response]]],
    owner: Caller,
    database: Connection,
    state_of: StateOf,
) -> None:
    begun, write = stage(owner)
    answer_of(write())
    _fail_and_come_back(database)
    before = state_of(owner)
    _assert_restarted(owner.commit(begun["id"]))
    _assert_restarted(owner.commit(begun["id"], operation=new_operation()))
    assert state_of(owner) == before


@pytest.mark.parametrize("stage", _ALL)
def test_what_was_begun_before_a_crash_is_written_no_further(
    stage: Callable[[Caller], tuple[Json, Callable[[], httpx.Response]]], owner: Caller, database: Connection
) -> None:
    """Nobody uploads for an hour what the commit will refuse."""
    begun, write = stage(owner)
    _fail_and_come_back(database)
    _assert_restarted(write())
    answer_of(owner.call("tensorage_abort", data_id=begun["id"]))
    while answer_of(owner.call("tensorage_sweep")):
        pass
    sweep(owner)
    assert database.execute("select from public.datasets where id = %s", (begun["id"],)).fetchone() is None


def test_beginning_again_after_a_crash_begins_anew(owner: Caller, database: Connection) -> None:
    """The answer to a beginning was lost with PostgreSQL, and the client asks again."""
    rows, objects = owner.store(new_key(), _ROWS, chunk=4), store(owner)
    asked: list[tuple[str, Json]] = [
        ("tensorage_begin", {"key": new_key(), "shape": [10, 4], "dtype": "<i4", "chunk": 10}),
        ("tensorage_begin_assign", {"data_id": rows["id"], "version": rows["version"]}),
        ("tensorage_begin_append", {"data_id": objects["id"], "shape": [1, 3], "base_rows": 9}),
    ]
    for function, arguments in asked:
        named = arguments | {"operation": new_operation()}
        first, again = (answer_of(owner.call(function, named)) for _ in range(2))
        assert first == again
        _fail_and_come_back(database)
        third, fourth = (answer_of(owner.call(function, named)) for _ in range(2))
        assert third["id"] != first["id"]
        assert third == fourth
        _assert_restarted_or_gone(owner.commit(first["id"]))


def _assert_restarted_or_gone(answer: httpx.Response) -> None:
    assert code_of(answer) in {"TS001", "TS003"}


def test_what_is_committed_stays_so(owner: Caller, database: Connection) -> None:
    begun, write = _rows(owner)
    operation = new_operation()
    answer_of(write())
    committed = answer_of(owner.commit(begun["id"], operation=operation))
    _fail_and_come_back(database)
    assert answer_of(owner.commit(begun["id"], operation=operation)) == committed
    assert owner.read(owner.open(begun["key"])).tobytes() == _ROWS.tobytes()
    # Appends and assignments of one request stage nothing: they need no beginning.
    answer_of(owner.append(begun["key"], _ROWS[:1]))
    answer_of(owner.assign(owner.open(begun["key"]), _ROWS[:1], [0], [4]))
