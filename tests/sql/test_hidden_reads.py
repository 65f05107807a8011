"""Reading functions run as the owner of the tables: no argument gets at what the caller may not see, or tells of it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import psycopg
import pytest
from sql.api import Caller, Json, answer_of, binary, new_key
from sql.conftest import Register
from sql.kept import Kept, assert_unmarked
from sql.objects import ask_shards, begin, store

from tensorage.embedded import control
from tensorage.indexing.runs import MAX_RUNS

#: An id of nothing.
_NOTHING = 2**40

_BINARY = {"Accept": "application/vnd.tensorage"}
_SHARED = np.arange(40, dtype="<i4")


def _reads(data_id: int | None, version: int | None) -> Iterator[tuple[str, Json]]:
    """Calls of every function that names an array by its number."""
    named = {"data_id": data_id, "version": version}
    for rows in ([0], [], [0] * 300, [-1], [2**40], None):
        yield "tensorage_read", named | {"rows": rows, "runs": [0], "run_length": 1}
        yield "tensorage_read_spans", named | {"starts": rows, "lengths": rows and [1] * len(rows)}
        for offsets in ([0], [], [99], None):
            spans = {"starts": rows, "lengths": rows and [1] * len(rows)}
            yield "tensorage_read_fields", named | spans | {"offsets": offsets, "sizes": [1]}
        yield "tensorage_shards", named | {"numbers": rows}
    yield "tensorage_read", named | {"rows": [0], "runs": [0], "run_length": 2**62}
    for first in (0, -1, 2**40, 2**63 - 1, None):
        for elements in (1, 0, -1, 2**63 - 1, None):
            yield "tensorage_read_run", named | {"first": first, "elements": elements}
    yield "tensorage_shards", {"data_id": data_id, "version": None, "numbers": [0]}
    yield "tensorage_dataset", {"data_id": data_id}
    for number in (0, 4, -1, None):
        yield "tensorage_has_object", {"data_id": data_id, "number": number}


def _answers(caller: Caller, data_id: int | None, version: int | None) -> list[tuple[int, str]]:
    """Status and text of the answers, but for the number that was asked for."""
    answers = []
    for function, arguments in _reads(data_id, version):
        headers = _BINARY if function.startswith("tensorage_read") or function == "tensorage_shards" else {}
        answer = caller.request("POST", f"/rpc/{function}", json=arguments, headers=headers)
        answers.append((answer.status_code, re.sub('with id [^"]*', "with id ...", answer.text)))
    return answers


@pytest.fixture
def hidden(owner: Caller, kept: Kept) -> list[int]:
    """Arrays that only their owner sees, whatever they were or are about to be; and those that nobody sees."""
    n = kept.names
    numbers = [n.id, n.staged, n.assigning, n.objects, n.writing, n.growing, n.changing]
    will_be = owner.begin(new_key(), [40], chunk=40, is_shared=True)
    answer_of(owner.put(will_be["id"], _SHARED, chunk=40))
    will_be_objects = begin(owner, new_key(), is_shared=True)
    key = new_key()
    replaced = owner.store(key, np.arange(400, dtype="<i4"), is_shared=True, chunk=1)
    owner.store(key, _SHARED, overwrite=True)
    removed = owner.store(new_key(), np.arange(400, dtype="<i4"), is_shared=True, chunk=1)
    answer_of(owner.call("tensorage_remove", key=removed["key"]))
    no_longer = owner.store(new_key(), _SHARED, is_shared=True)
    answer_of(owner.call("tensorage_unshare", key=no_longer["key"]))
    given_up = owner.begin(new_key(), [40], chunk=40, is_shared=True)
    answer_of(owner.put(given_up["id"], _SHARED, chunk=40))
    removed_objects = store(owner, is_shared=True)
    answer_of(owner.call("tensorage_remove", key=removed_objects["key"]))
    more = (will_be, will_be_objects, replaced, removed, no_longer, given_up, removed_objects)
    return numbers + [each["id"] for each in more]


def test_what_is_hidden_is_as_what_does_not_exist(hidden: list[int], kept: Kept, other: Caller) -> None:
    for version in (1, 2, None):
        on_nothing = _answers(other, _NOTHING, version)
        assert {status for status, _ in on_nothing} <= {200, 400, 404}
        assert all(text == "false" for status, text in on_nothing if status == 200)
        for data_id in hidden:
            assert _answers(other, data_id, version) == on_nothing, (data_id, version)
    for data_id in (0, -1, 2**63 - 1, -(2**63), None):
        assert _answers(other, data_id, 1) == _answers(other, _NOTHING, 1)
    for data_id in hidden:
        for function, arguments in _reads(data_id, 1):
            assert_unmarked(other.request("POST", f"/rpc/{function}", json=arguments), kept)


def test_nobody_gets_an_answer(hidden: list[int], strangers: dict[str, Caller]) -> None:
    for stranger in strangers.values():
        for data_id in (hidden[0], hidden[3], _NOTHING):
            for status, text in _answers(stranger, data_id, 1):
                assert status == 401, text


def test_what_was_removed_is_not_read_by_its_owner_either(owner: Caller) -> None:
    removed = owner.store(new_key(), np.arange(400, dtype="<i4"), chunk=1)
    objects = store(owner)
    for each in (removed, objects):
        answer_of(owner.call("tensorage_remove", key=each["key"]))
        for version in (None, 1, 2):
            assert _answers(owner, each["id"], version)[:-4] == _answers(owner, _NOTHING, version)[:-4]


def test_what_is_shared_is_read_and_nothing_beside_it(owner: Caller, other: Caller) -> None:
    """The calls above get something of an array that is shared."""
    shared = owner.store(new_key(), _SHARED, is_shared=True, chunk=7)
    private = owner.store(new_key(), -_SHARED, chunk=7)
    assert np.array_equal(other.read(shared), _SHARED)
    spans = other.ask_spans(shared, [3, 20], [2, 5])
    assert spans.content == _SHARED[[3, 4, 20, 21, 22, 23, 24]].tobytes()
    objects = store(owner, is_shared=True)
    assert ask_shards(other, objects).status_code == 200
    assert answer_of(other.call("tensorage_has_object", data_id=objects["id"], number=0)) is True
    # No position leads out of the array, whose neighbour has the next number.
    assert private["id"] == shared["id"] + 1
    for rows in ([40], [-1], [-40], [47]):
        assert other.ask(shared, rows, [0], 1).status_code == 400
        assert other.ask_spans(shared, rows, [1]).status_code == 400


# Code of the caller's -----------------------------------------------------------------------------------------

#: Types that names in a function could stand for in place of PostgreSQL's own.
_PLANTED = """
create domain pg_temp.bytea as pg_catalog.bytea check (pg_temp.noted(value));
create domain pg_temp.json as pg_catalog.json check (pg_temp.noted(value::text));
"""


@pytest.fixture
def as_owner_of_a_session(owner: Caller, backend: control.Running) -> Iterator[psycopg.Connection[Any]]:
    """A connection of the user to PostgreSQL itself, with things of theirs where names are looked for first."""
    with psycopg.connect(backend.superuser_url) as connection:
        connection.execute("grant temporary on database postgres to authenticated")
        claims = json.dumps({"sub": owner.id, "email": owner.email})
        connection.execute("select set_config('request.jwt.claims', %s, true)", (claims,))
        connection.execute("set local role authenticated")
        connection.execute(
            "create function pg_temp.noted(anyelement) returns boolean language plpgsql as "
            "$$ begin raise exception 'code of the caller ran as %', current_user; end $$"
        )
        connection.execute(_PLANTED)
        connection.execute("set local search_path = pg_temp, public, pg_catalog")
        yield connection
        connection.rollback()


def test_reading_runs_no_code_of_the_caller(
    as_owner_of_a_session: psycopg.Connection[Any], owner: Caller
) -> None:
    connection = as_owner_of_a_session
    stored, objects = owner.store(new_key(), np.arange(1000), chunk=100), store(owner)
    # Positions that are many enough to be read densely.
    at = "array(select generate_series(0, 998, 2))::pg_catalog.int8[]"
    calls = [
        f"tensorage_open('{stored['key']}')",
        f"tensorage_dataset({stored['id']})",
        "tensorage_list()",
        "tensorage_count()",
        f"tensorage_read({stored['id']}, 1, {at}, '{{0}}', 1)",
        f"tensorage_read({stored['id']}, 1, '{{0}}', '{{0}}', 12)",
        f"tensorage_read_run({stored['id']}, 1, 5, 500)",
        f"tensorage_read_spans({stored['id']}, 1, {at}, array_fill(1::pg_catalog.int8, array[500]))",
        f"tensorage_shards({objects['id']}, 1, '{{0,1}}')",
        f"tensorage_has_object({objects['id']}, 0)",
    ]
    for call in calls:
        assert connection.execute(f"select public.{call}").fetchone() is not None
    with pytest.raises(psycopg.errors.RaiseException, match="code of the caller ran as authenticated"):
        connection.execute("select ''::bytea")


# Lists that are too long ---------------------------------------------------------------------------------------

_MOST = 2**20


@pytest.fixture(scope="module")
def small(new_user: Register) -> tuple[Caller, Json]:
    owner = new_user()
    return owner, owner.store(new_key(), np.arange(100, dtype="|u1"), chunk=100)


def test_more_positions_than_a_request_may_have_are_refused(small: tuple[Caller, Json]) -> None:
    """The refusal comes before anything is built from them: a few thousand numbers may stand for millions."""
    owner, array = small
    side, long = [0] * 1025, [0] * (_MOST + 1)
    objects = store(owner)

    def assign(count: int, **where: Any) -> httpx.Response:
        body = binary(bytes(count), count=count, data_id=array["id"], meta={"version": 1, **where})
        return owner.call("tensorage_assign", body)

    for answer in (
        owner.ask(array, side, side, 1),
        owner.ask(array, long, [], 1),
        owner.ask(array, [], long, 1),
        owner.ask_spans(array, long, long),
        ask_shards(owner, objects, long),
        assign(len(side) ** 2, rows=side, runs=side, run_length=1),
        assign(1, rows=long, runs=[0], run_length=1),
        assign(1, starts=long, lengths=[1]),
    ):
        assert (answer.status_code, answer.json()["code"]) == (400, "TS006"), answer.text
        assert "are too many for one request" in answer.json()["message"]
    assert np.array_equal(owner.read(array), np.arange(100))


def test_as_many_positions_as_a_client_sends_are_taken(database: psycopg.Connection[Any]) -> None:
    assert MAX_RUNS <= _MOST
    database.execute("select tensorage.check_pieces(%s)", (_MOST,))
    with pytest.raises(psycopg.errors.DatabaseError, match="too many"):
        database.execute("select tensorage.check_pieces(%s)", (_MOST + 1,))


def test_repeated_elements_are_no_way_to_a_large_answer(small: tuple[Caller, Json]) -> None:
    owner, array = small
    for rows in (167_773, 900_000):
        answer = owner.ask(array, [0] * rows, [0], 100)
        assert (answer.status_code, answer.json()["code"]) == (400, "TS006")
