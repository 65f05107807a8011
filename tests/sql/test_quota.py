"""Quotas: of a user, of the project, and against writers at once."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
import psycopg
import pytest
from sql.api import Caller, answer_of, code_of, new_key, whole
from sql.conftest import State
from sql.objects import ask_to_append, entry, metadata, sweep

Connection = psycopg.Connection[tuple[Any, ...]]
StateOf = Callable[[Caller], State]


@pytest.fixture
def limited(owner: Caller, database: Connection) -> Caller:
    """A user who may store 1000 bytes."""
    database.execute("insert into tensorage.quotas values (%s, 1000)", (owner.id,))
    return owner


def _store(caller: Caller, count: int, **meta: Any) -> httpx.Response:
    return caller.call("tensorage_store", whole(np.zeros(count, "u1"), **{"key": new_key()} | meta))


def _begin(caller: Caller, count: int) -> httpx.Response:
    return caller.call("tensorage_begin", key=new_key(), shape=[count], dtype="|u1", chunk=100)


@pytest.mark.parametrize("write", [_store, _begin])
def test_quota_is_the_last_byte(
    write: Callable[[Caller, int], httpx.Response], limited: Caller, state_of: StateOf
) -> None:
    before = state_of(limited)
    refused = write(limited, 1001)
    assert code_of(refused) == "TS005"
    assert json.loads(refused.json()["details"]) == {"asked": 1001, "used": 0, "allowed": 1000}
    assert state_of(limited) == before
    assert write(limited, 999).status_code == 200
    assert code_of(write(limited, 2)) == "TS005"
    assert write(limited, 1).status_code == 200
    assert write(limited, 0).status_code == 200


def test_append_is_counted(limited: Caller, state_of: StateOf) -> None:
    key = new_key()
    limited.store(key, np.zeros(990, "u1"))
    before = state_of(limited)
    assert code_of(limited.append(key, np.zeros(11, "u1"))) == "TS005"
    refused = limited.call("tensorage_begin", key=key, shape=[11], dtype="|u1", chunk=11, append=True)
    assert code_of(refused) == "TS005"
    assert state_of(limited) == before
    assert answer_of(limited.append(key, np.zeros(10, "u1")))["shape"] == [1000]


def test_what_is_given_up_is_not_counted(limited: Caller) -> None:
    key = new_key()
    limited.store(key, np.zeros(1000, "u1"))
    answer_of(limited.call("tensorage_remove", key=key))
    begun = answer_of(_begin(limited, 1000))
    assert code_of(_store(limited, 1)) == "TS005"
    answer_of(limited.call("tensorage_abort", data_id=begun["id"]))
    assert _store(limited, 1000).status_code == 200


def test_what_is_given_up_is_counted_until_it_is_deleted(limited: Caller) -> None:
    """More blocks than one request sweeps: whoever never sweeps does not get past the quota by overwriting."""
    key = new_key()
    limited.store(key, np.zeros(900, "u1"), chunk=1)
    limited.store(key, np.zeros(1, "u1"), overwrite=True)
    refused = _store(limited, 900)
    assert code_of(refused) == "TS005"
    assert json.loads(refused.json()["details"])["used"] == 901
    while answer_of(limited.call("tensorage_sweep")):
        pass
    assert _store(limited, 900).status_code == 200


def test_replaced_and_new_array_are_both_counted_until_the_commit(limited: Caller) -> None:
    """A reader still needs the old one while the new one comes."""
    key = new_key()
    limited.store(key, np.zeros(500, "u1"))
    assert code_of(_store(limited, 501, key=key, overwrite=True)) == "TS005"
    assert _store(limited, 500, key=key, overwrite=True).status_code == 200
    assert _store(limited, 500).status_code == 200


def test_others_arrays_are_not_counted(limited: Caller, other: Caller) -> None:
    other.store(new_key(), np.zeros(5000, "u1"), is_shared=True)
    assert _store(limited, 1000).status_code == 200


def test_project_has_a_quota_for_everybody_without_one(
    limited: Caller, other: Caller, database: Connection
) -> None:
    database.execute("update tensorage.settings set default_quota_bytes = 10")
    try:
        assert code_of(_store(other, 11)) == "TS005"
        assert _store(other, 10).status_code == 200
        assert _store(limited, 1000).status_code == 200
    finally:
        database.execute("update tensorage.settings set default_quota_bytes = null")
    assert _store(other, 5000).status_code == 200


@pytest.mark.parametrize("how", ["store", "begin", "append"])
def test_writers_at_once_do_not_find_the_same_room(how: str, limited: Caller, database: Connection) -> None:
    key = new_key()
    limited.store(key, np.zeros(100, "u1"))

    def write(_: int) -> httpx.Response:
        if how == "append":
            return limited.append(key, np.zeros(250, "u1"), chunk=250)
        return (_store if how == "store" else _begin)(limited, 250)

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(write, range(8)))
    assert [answer.status_code for answer in answers].count(200) == 3
    assert {code_of(answer) for answer in answers if answer.status_code != 200} == {"TS005"}


def test_bytes_of_arrays_are_stored_with_them(owner: Caller, database: Connection) -> None:
    key = new_key()
    stored = owner.store(key, np.zeros((3, 5), "<c16"))
    for expected in (240, 320):
        row = database.execute("select nbytes from public.datasets where id = %s", (stored["id"],)).fetchone()
        assert row == (expected,)
        answer_of(owner.append(key, np.zeros((1, 5), "<c16")))
    huge = owner.begin(new_key(), [2**62], dtype="<c16", chunk=1)
    row = database.execute("select nbytes from public.datasets where id = %s", (huge["id"],)).fetchone()
    assert row == (2**66,)


def test_service_may_write_the_table_whose_bytes_are_computed(owner: Caller, database: Connection) -> None:
    with database.transaction():
        database.execute("set local role service_role")
        row = database.execute(
            "insert into public.datasets (user_id, key, shape, dtype, chunk, expires_at) "
            "values (%s, 'a', '{2,3}', '<i4', 1, now()) returning id, nbytes",
            (owner.id,),
        ).fetchone()
        assert row is not None
        assert row[1] == 24
        changed = database.execute(
            "update public.datasets set shape = '{5,3}' where id = %s returning nbytes", (row[0],)
        )
        assert changed.fetchone() == (60,)
        database.execute("delete from public.datasets where id = %s", (row[0],))


def test_growing_beyond_what_can_be_counted_is_refused(owner: Caller, state_of: StateOf) -> None:
    key = new_key()
    owner.store(key, np.empty((0, 0), "u1"))
    asked = {"key": key, "append": True, "dtype": "|u1", "chunk": 1, "shape": [2**63 - 1, 0]}
    begun = answer_of(owner.call("tensorage_begin", asked))
    assert answer_of(owner.commit(begun["id"]))["shape"] == [2**63 - 1, 0]
    before = state_of(owner)
    assert code_of(owner.append(key, np.empty((1, 0), "u1"))) == "TS006"
    assert code_of(owner.call("tensorage_begin", asked)) == "TS006"
    assert state_of(owner) == before


def test_blocks_cannot_take_more_room_than_was_declared(limited: Caller, database: Connection) -> None:
    begun = answer_of(_begin(limited, 1000))
    for index in range(0, 100, 7):
        limited.put(begun["id"], np.zeros(1000 - index, "u1"), index, chunk=100)
    row = database.execute(
        "select sum(count) from public.tensors where data_id = %s", (begun["id"],)
    ).fetchone()
    assert row is not None
    assert row[0] <= 1000


# Arrays of Storage, which count by their elements, whatever their objects have of bytes ----------------------


def _begin_objects(caller: Caller, count: int, **more: Any) -> httpx.Response:
    asked = {"key": new_key(), "shape": [count], "dtype": "|u1", "chunk": 100} | more
    return caller.call("tensorage_begin", asked, engine="storage", zarr=metadata((100,)))


def _store_objects(caller: Caller, count: int, **more: Any) -> httpx.Response:
    begun = _begin_objects(caller, count, **more)
    if begun.status_code != 200:
        return begun
    told = [entry(number, None) for number in range((count + 99) // 100)]
    return caller.commit(begun.json()["id"], shards=told)


@pytest.mark.parametrize("write", [_store_objects, _begin_objects])
def test_quota_of_objects_is_the_last_byte(
    write: Callable[..., httpx.Response], limited: Caller, state_of: StateOf
) -> None:
    before = state_of(limited)
    refused = write(limited, 1001)
    assert code_of(refused) == "TS005"
    assert json.loads(refused.json()["details"]) == {"asked": 1001, "used": 0, "allowed": 1000}
    assert state_of(limited) == before
    assert write(limited, 600).status_code == 200
    assert _store(limited, 399).status_code == 200
    for another in (write, _begin, _store):
        assert code_of(another(limited, 2)) == "TS005"
    assert write(limited, 1).status_code == 200
    assert write(limited, 0).status_code == 200


def test_append_of_objects_is_counted(limited: Caller, state_of: StateOf) -> None:
    dataset = answer_of(_store_objects(limited, 990))
    before = state_of(limited)
    assert code_of(ask_to_append(limited, dataset, 11)) == "TS005"
    assert state_of(limited) == before
    begun = answer_of(ask_to_append(limited, dataset, 10))
    assert code_of(_store(limited, 1)) == "TS005"
    told = [entry(9, None, based_on="")]
    assert answer_of(limited.commit(begun["id"], shards=told))["shape"] == [1000]
    assert code_of(ask_to_append(limited, dataset | {"shape": [1000]}, 1)) == "TS005"


def test_assignment_to_objects_counts_as_the_array(limited: Caller, state_of: StateOf) -> None:
    dataset = answer_of(_store_objects(limited, 501))
    before = state_of(limited)
    assert code_of(limited.ask_to_assign(dataset, engine="storage")) == "TS005"
    assert state_of(limited) == before
    dataset = answer_of(_store_objects(limited, 499, key=dataset["key"], overwrite=True))
    sweep(limited)
    begun = answer_of(limited.ask_to_assign(dataset, engine="storage"))
    assert code_of(_store(limited, 3)) == "TS005"
    answer_of(limited.commit(begun["id"], shards=[entry(0, None, based_on="")]))
    sweep(limited)
    assert _store(limited, 501).status_code == 200


def test_objects_that_are_given_up_are_counted_until_they_are_swept(limited: Caller) -> None:
    """Writing sweeps blocks on its way, but cannot delete objects."""
    dataset = answer_of(_store_objects(limited, 600))
    begun = answer_of(_begin_objects(limited, 400))
    answer_of(limited.call("tensorage_remove", key=dataset["key"]))
    answer_of(limited.call("tensorage_abort", data_id=begun["id"]))
    for write in (_store, _begin_objects):
        refused = write(limited, 1)
        assert code_of(refused) == "TS005"
        assert json.loads(refused.json()["details"])["used"] == 1000
    assert sweep(limited) == []
    assert _store_objects(limited, 1000).status_code == 200


def test_writers_of_objects_at_once_do_not_find_the_same_room(limited: Caller) -> None:
    dataset = answer_of(_store_objects(limited, 100))

    def write(number: int) -> httpx.Response:
        if number % 2:
            return ask_to_append(limited, dataset, 250)
        return _begin_objects(limited, 250)

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(write, range(8)))
    assert [answer.status_code for answer in answers].count(200) == 3
    assert {code_of(answer) for answer in answers if answer.status_code != 200} == {"TS005"}
