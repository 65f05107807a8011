"""Guarantees of writing: all or nothing, once however often it is asked, and no block of anything else."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from typing import Any

import httpx
import numpy as np
import psycopg
import pytest
from sql.api import Caller, Json, answer_of, binary, code_of, new_key, new_operation, whole
from sql.conftest import State

Connection = psycopg.Connection[tuple[Any, ...]]
StateOf = Callable[[Caller], State]

_NUMBERS = np.arange(100, dtype="<i4")


# All or nothing --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "pieces",
    [
        [],
        [(0, 99)],
        [(1, 100)],
        [(0, 40), (50, 100)],
        [(0, 10), (20, 30), (90, 100)],
    ],
    ids=["nothing", "short", "no beginning", "gap", "gaps"],
)
def test_incomplete_array_is_not_committed(pieces: list[tuple[int, int]], owner: Caller) -> None:
    begun = owner.begin(new_key(), [100], chunk=10)
    for low, up in pieces:
        answer_of(owner.put(begun["id"], _NUMBERS[low:up], low))
    assert code_of(owner.commit(begun["id"])) == "TS004"
    assert code_of(owner.call("tensorage_open", key=begun["key"])) == "TS001"
    assert code_of(owner.ask(begun, [0])) == "TS003"


def test_refused_commit_can_be_completed(owner: Caller) -> None:
    begun = owner.begin(new_key(), [100], chunk=10)
    answer_of(owner.put(begun["id"], _NUMBERS[50:], 50))
    refused = owner.commit(begun["id"])
    assert code_of(refused) == "TS004"
    assert refused.json()["details"] == '{"stored" : 50, "expected" : 100}'
    answer_of(owner.put(begun["id"], _NUMBERS[:50], 0))
    committed = answer_of(owner.commit(begun["id"]))
    assert np.array_equal(owner.read(committed), _NUMBERS)


@pytest.mark.parametrize(
    ("index", "count", "chunk"),
    [(5, 10, 10), (0, 15, 7), (15, 10, 10), (45, 10, 10), (0, 5, 5), (40, 3, 10)],
)
def test_blocks_that_overlap_stored_ones_are_refused(
    index: int, count: int, chunk: int, owner: Caller, state_of: StateOf
) -> None:
    """Such blocks could never be complete, and could take any room whatever the quota."""
    begun = owner.begin(new_key(), [100], chunk=10)
    answer_of(owner.put(begun["id"], _NUMBERS[:20], 0))
    answer_of(owner.put(begun["id"], _NUMBERS[40:50], 40))
    before = state_of(owner)
    assert code_of(owner.put(begun["id"], _NUMBERS[:count], index, chunk)) == "TS006"
    assert state_of(owner) == before


@pytest.mark.parametrize("index", [91, 100, 2**40, 2**62])
def test_block_outside_of_the_shape_is_refused(index: int, owner: Caller, state_of: StateOf) -> None:
    begun = owner.begin(new_key(), [100], chunk=10)
    before = state_of(owner)
    assert code_of(owner.put(begun["id"], _NUMBERS[:10], index)) == "TS006"
    assert state_of(owner) == before


def test_block_larger_than_declared_is_refused(owner: Caller) -> None:
    begun = owner.begin(new_key(), [100], chunk=10)
    assert code_of(owner.put(begun["id"], _NUMBERS[:20], 0, chunk=11)) == "TS006"
    assert owner.blocks(begun["id"]) == []


def test_array_of_other_size_than_its_shape_is_refused(owner: Caller) -> None:
    for count in (0, 99):
        body = binary(
            _NUMBERS[:count].tobytes(),
            count=count,
            meta={"key": new_key(), "shape": [10, 10], "dtype": "<i4", "chunk": 10},
        )
        assert code_of(owner.call("tensorage_store", body)) == "TS004"


# Repetition ------------------------------------------------------------------------------------------------


def test_same_put_is_stored_once(owner: Caller, state_of: StateOf) -> None:
    begun = owner.begin(new_key(), [100], chunk=10)
    first = answer_of(owner.put(begun["id"], _NUMBERS, 0))
    before = state_of(owner)
    assert answer_of(owner.put(begun["id"], _NUMBERS, 0)) == first
    assert state_of(owner) == before
    assert len(owner.blocks(begun["id"])) == 10


def test_put_of_the_same_blocks_with_other_elements_replaces_them(owner: Caller) -> None:
    begun = owner.begin(new_key(), [100], chunk=10)
    answer_of(owner.put(begun["id"], _NUMBERS, 0))
    answer_of(owner.put(begun["id"], -_NUMBERS[10:30], 10))
    expected = _NUMBERS.copy()
    expected[10:30] *= -1
    assert np.array_equal(owner.read(answer_of(owner.commit(begun["id"]))), expected)


def _store(caller: Caller, key: str, operation: str) -> httpx.Response:
    return caller.call("tensorage_store", whole(_NUMBERS, key=key, operation=operation))


def _append(caller: Caller, key: str, operation: str) -> httpx.Response:
    return caller.append(key, _NUMBERS, operation=operation)


def _remove(caller: Caller, key: str, operation: str) -> httpx.Response:
    return caller.call("tensorage_remove", key=key, operation=operation)


@pytest.mark.parametrize("write", [_store, _append, _remove])
def test_same_operation_answers_the_same(
    write: Callable[[Caller, str, str], httpx.Response], owner: Caller, state_of: StateOf
) -> None:
    key, operation = new_key(), new_operation()
    if write is not _store:
        owner.store(key, _NUMBERS)
    first = write(owner, key, operation)
    assert first.status_code == 200
    before = state_of(owner)
    assert write(owner, key, operation).json() == first.json()
    assert state_of(owner) == before
    # Another operation is not answered from memory.
    again = write(owner, key, new_operation())
    assert again.json() != first.json()


def test_operation_that_failed_may_be_tried_again(owner: Caller) -> None:
    key, operation = new_key(), new_operation()
    assert code_of(_append(owner, key, operation)) == "TS001"
    owner.store(key, _NUMBERS)
    assert answer_of(_append(owner, key, operation))["shape"] == [200]


@pytest.mark.parametrize("append", [False, True])
def test_same_commit_answers_the_same(append: bool, owner: Caller, state_of: StateOf) -> None:
    key, operation, begin = new_key(), new_operation(), new_operation()
    if append:
        owner.store(key, _NUMBERS)
    begun = owner.begin(key, [100], append=append, operation=begin)
    assert owner.begin(key, [100], append=append, operation=begin) == begun
    answer_of(owner.put(begun["id"], _NUMBERS, 0))
    first = answer_of(owner.commit(begun["id"], operation=operation))
    before = state_of(owner)
    assert answer_of(owner.commit(begun["id"], operation=operation)) == first
    assert state_of(owner) == before
    assert first["shape"] == [200 if append else 100]


def test_array_cannot_be_stored_as_an_append(owner: Caller, state_of: StateOf) -> None:
    """It would be deleted with the array that it replaces."""
    key = new_key()
    owner.store(key, _NUMBERS)
    before = state_of(owner)
    body = whole(_NUMBERS, key=key, append=True, overwrite=True)
    assert code_of(owner.call("tensorage_store", body)) == "TS006"
    assert state_of(owner) == before


# Late, aborted, expired, swept ------------------------------------------------------------------------------


def _expire(database: Connection, data_id: int) -> None:
    database.execute("update public.datasets set expires_at = now() where id = %s", (data_id,))


def test_block_after_the_commit_is_refused(owner: Caller) -> None:
    begun = owner.begin(new_key(), [100])
    answer_of(owner.put(begun["id"], _NUMBERS, 0))
    committed = answer_of(owner.commit(begun["id"]))
    assert code_of(owner.put(begun["id"], -_NUMBERS, 0)) == "TS003"
    assert np.array_equal(owner.read(committed), _NUMBERS)


@pytest.mark.parametrize("how", ["aborted", "expired"])
def test_array_that_was_given_up_takes_nothing_more(how: str, owner: Caller, database: Connection) -> None:
    begun = owner.begin(new_key(), [1000], chunk=1)
    for low in (0, 500):
        answer_of(owner.put(begun["id"], np.arange(500, dtype="<i4"), low, chunk=1))
    if how == "aborted":
        # More blocks than are deleted at once: something is left to be refused.
        assert answer_of(owner.call("tensorage_abort", data_id=begun["id"])) == 1
    else:
        _expire(database, begun["id"])
    assert code_of(owner.put(begun["id"], _NUMBERS, 0, chunk=1)) == "TS003"
    assert code_of(owner.commit(begun["id"])) == "TS003"
    assert code_of(owner.call("tensorage_dataset", data_id=begun["id"])) == "TS001"


def test_array_being_written_does_not_expire_under_its_writer(owner: Caller, database: Connection) -> None:
    begun = owner.begin(new_key(), [100])
    database.execute(
        "update public.datasets set expires_at = now() + interval '1 minute' where id = %s", (begun["id"],)
    )
    answer_of(owner.put(begun["id"], _NUMBERS[:10], 0))
    row = database.execute(
        "select expires_at > now() + interval '23 hours' from public.datasets where id = %s", (begun["id"],)
    ).fetchone()
    assert row == (True,)


def test_sweep_deletes_in_pieces(owner: Caller, database: Connection) -> None:
    kept = owner.store(new_key(), _NUMBERS)
    waiting = owner.begin(new_key(), [100])
    owner.put(waiting["id"], _NUMBERS, 0)
    given_up = [owner.begin(new_key(), [300], chunk=1)["id"] for _ in range(2)]
    for number in given_up:
        answer_of(owner.put(number, np.zeros(300, "<i4"), 0, chunk=1))
    for number in given_up:
        _expire(database, number)
    assert [answer_of(owner.call("tensorage_sweep")) for _ in range(4)] == [2, 1, 0, 0]
    rows = owner.request("GET", f"/datasets?user_id=eq.{owner.id}&select=id&order=id").json()
    assert rows == [{"id": kept["id"]}, {"id": waiting["id"]}]
    assert np.array_equal(owner.read(answer_of(owner.commit(waiting["id"]))), _NUMBERS)


_MIB = 2**20


def _count_blocks(database: Connection, owner: Caller) -> int:
    row = database.execute("select count(*) from public.tensors where user_id = %s", (owner.id,)).fetchone()
    assert row is not None
    return int(row[0])


def test_request_sweeps_as_many_bytes_as_it_brings(owner: Caller, database: Connection) -> None:
    """Requests that store no less than they replace leave nothing, also where nobody sweeps behind them."""
    key = new_key()
    old, new = (np.full(4 * _MIB, number, "u1") for number in (1, 2))
    owner.store(key, old, chunk=_MIB)
    assert owner.store(key, new, chunk=_MIB, overwrite=True)["left"] == 0
    assert _count_blocks(database, owner) == 4


@pytest.mark.parametrize("how", ["store", "commit", "remove"])
def test_request_that_brings_little_sweeps_little(how: str, owner: Caller, database: Connection) -> None:
    """Its caller does not wait until a large array is swept."""
    key = new_key()
    owner.store(key, np.zeros(4 * _MIB, "u1"), chunk=_MIB)
    if how == "store":
        answer, stored = owner.store(key, np.zeros(1, "u1"), overwrite=True), 1
    elif how == "commit":
        begun = owner.begin(key, [10], "|u1", overwrite=True)
        answer_of(owner.put(begun["id"], np.zeros(10, "u1")))
        answer, stored = answer_of(owner.commit(begun["id"])), 1
    else:
        answer, stored = answer_of(owner.call("tensorage_remove", key=key)), 0
    assert answer["left"] == 1
    assert _count_blocks(database, owner) == stored + 3
    assert answer_of(owner.call("tensorage_sweep")) == 0
    assert _count_blocks(database, owner) == stored


def test_pieces_of_a_sweep_are_of_some_bytes(owner: Caller, database: Connection) -> None:
    block = 8 * _MIB
    given_up = owner.begin(new_key(), [7 * block], "|u1", chunk=block)["id"]
    for number in range(7):
        answer_of(owner.put(given_up, np.zeros(block, "u1"), number * block, chunk=block))
    _expire(database, given_up)
    counts = [_count_blocks(database, owner)]
    while counts[-1]:
        answer_of(owner.call("tensorage_sweep"))
        counts.append(_count_blocks(database, owner))
    assert counts == [7, 3, 0]


def test_answers_are_forgotten_after_a_day(owner: Caller, database: Connection) -> None:
    key = new_key()
    _store(owner, key, new_operation())
    database.execute(
        "update tensorage.operations set finished_at = now() - interval '25 hours' where user_id = %s",
        (owner.id,),
    )
    answer_of(owner.call("tensorage_sweep"))
    rows = database.execute("select count(*) from tensorage.operations where user_id = %s", (owner.id,))
    assert rows.fetchone() == (0,)


def test_answers_are_forgotten_by_who_does_nothing_but_append(owner: Caller, database: Connection) -> None:
    key = new_key()
    owner.store(key, _NUMBERS)
    database.execute(
        "insert into tensorage.operations select %s, gen_random_uuid(), %s, '{}', now() - interval '25 hours' "
        "from generate_series(1, 5)",
        (owner.id, owner.id),
    )
    counts = []
    for _ in range(4):
        answer_of(owner.append(key, _NUMBERS))
        rows = database.execute("select count(*) from tensorage.operations where user_id = %s", (owner.id,))
        counts.append((rows.fetchone() or (None,))[0])
    assert counts == [4, 3, 3, 4]


def _of_a_spool() -> str:
    """Id of an operation that the client acknowledges: a UUID of version 8."""
    return str(uuid.UUID(int=uuid.uuid4().int & ~(0xF << 76) | 8 << 76))


def _kept(database: Connection, owner: Caller) -> int:
    rows = database.execute("select count(*) from tensorage.operations where user_id = %s", (owner.id,))
    return (rows.fetchone() or (-1,))[0]


def test_operations_of_a_spool_are_kept_until_they_are_acknowledged(
    owner: Caller, database: Connection
) -> None:
    key, operation = new_key(), _of_a_spool()
    _store(owner, key, operation)
    appended = _of_a_spool()
    rows = whole(_NUMBERS, key=key, operation=appended)
    first = answer_of(owner.call("tensorage_append", rows))
    # A month later.
    database.execute(
        "update tensorage.operations set finished_at = finished_at - interval '30 days' where user_id = %s",
        (owner.id,),
    )
    answer_of(owner.call("tensorage_sweep"))
    assert _kept(database, owner) == 2
    assert answer_of(owner.call("tensorage_append", rows))["shape"] == first["shape"] == [200]
    asked = {"first": min(operation, appended), "last": max(operation, appended)}
    assert answer_of(owner.call("tensorage_answered", **asked)) == sorted([operation, appended])
    assert answer_of(owner.call("tensorage_answered", first=appended, last=appended)) == [appended]
    assert answer_of(owner.call("tensorage_acknowledge", operations=[appended, _of_a_spool()])) == 1
    assert answer_of(owner.call("tensorage_acknowledge", operations=[appended])) == 0
    assert answer_of(owner.call("tensorage_answered", **asked)) == [operation]
    # A request that got stuck on its way is still known for a day.
    assert answer_of(owner.call("tensorage_append", rows))["shape"] == [200]
    database.execute(
        "update tensorage.operations set finished_at = finished_at - interval '25 hours' where user_id = %s",
        (owner.id,),
    )
    answer_of(owner.call("tensorage_sweep"))
    assert _kept(database, owner) == 1


def test_too_many_operations_are_refused(owner: Caller) -> None:
    many = [new_operation() for _ in range(10_001)]
    assert code_of(owner.call("tensorage_acknowledge", operations=many)) == "TS006"


def test_an_operation_of_a_spool_counts_against_who_sends_it(
    owner: Caller, other: Caller, database: Connection
) -> None:
    """The owner of an array could not get rid of what somebody else keeps."""
    key = new_key()
    owner.store(key, _NUMBERS)
    answer_of(owner.call("tensorage_share", key=key, readers=[other.email], can_write=True))
    for operation in (_of_a_spool(), new_operation()):
        answer_of(
            other.call("tensorage_append", whole(_NUMBERS, key=key, operation=operation, owner=owner.email))
        )
    rows = database.execute(
        "select owner, finished_at = 'infinity' from tensorage.operations where user_id = %s order by 2",
        (other.id,),
    )
    assert [(str(whose), is_kept) for whose, is_kept in rows.fetchall()] == [
        (owner.id, False),
        (other.id, True),
    ]
    answer_of(owner.call("tensorage_unshare", key=key))


def test_deleted_user_leaves_nothing(owner: Caller, database: Connection, state_of: StateOf) -> None:
    owner.store(new_key(), _NUMBERS, operation=new_operation())
    owner.begin(new_key(), [5])
    assert {kind for kind, _ in state_of(owner)} == {"dataset", "block", "operation", "settings"}
    database.execute("delete from auth.users where id = %s", (owner.id,))
    assert {kind for kind, _ in state_of(owner)} == {"settings"}


# Overwriting and appending ----------------------------------------------------------------------------------


def test_taken_key_is_refused_unless_overwriting(owner: Caller) -> None:
    key = new_key()
    first = owner.store(key, _NUMBERS)
    assert code_of(owner.call("tensorage_store", whole(_NUMBERS, key=key))) == "TS002"
    refused = owner.call("tensorage_begin", key=key, shape=[1], dtype="<i4", chunk=1)
    assert code_of(refused) == "TS002"
    second = owner.store(key, -_NUMBERS, overwrite=True)
    assert (second["version"], first["version"]) == (2, 1)
    assert second["id"] != first["id"]
    assert code_of(owner.ask(first, [0])) == "TS003"
    assert np.array_equal(owner.read(second), -_NUMBERS)


def test_many_small_appends_leave_few_blocks(owner: Caller) -> None:
    """The count of blocks grows with the logarithm of the rows, until blocks are full."""
    key, appends, chunk = new_key(), 150, 64
    owner.store(key, np.empty((0, 2), "<i4"), chunk=chunk)
    for row in range(appends):
        answer_of(owner.append(key, np.array([[row, -row]], "<i4")))
    opened = owner.open(key)
    blocks = owner.blocks(opened["id"])
    full = 2 * appends // (chunk // 2)
    assert len(blocks) <= full + np.log2(chunk)
    assert max(count for _, count in blocks) <= chunk
    expected = np.stack([np.arange(appends), -np.arange(appends)], 1)
    assert np.array_equal(owner.read(opened).reshape(-1, 2), expected)


def test_two_thousand_appends_in_one_transaction(owner: Caller, database: Connection) -> None:
    """The same by SQL alone, which is quick enough for more of them."""
    key = new_key()
    stored = owner.store(key, np.empty((0,), "<i4"), chunk=262144)
    body = whole(np.array([7], "<i4"), key=key, chunk=1)
    with database.transaction():
        database.execute("select set_config('request.jwt.claims', %s, true)", (f'{{"sub":"{owner.id}"}}',))
        database.execute("set local role authenticated")
        database.execute("select count(public.tensorage_append(%s)) from generate_series(1, 2000)", (body,))
    assert [count for _, count in owner.blocks(stored["id"])] == [1024, 512, 256, 128, 64, 16]
    assert np.array_equal(owner.read(owner.open(key)), np.full(2000, 7))


@pytest.mark.parametrize("rows", [1, 40])
def test_staged_append_is_like_one_in_a_request(rows: int, owner: Caller) -> None:
    key = new_key()
    stored = owner.store(key, _NUMBERS[:30].reshape(10, 3), chunk=6)
    more = np.arange(rows * 3, dtype="<i4").reshape(rows, 3)
    begun = owner.begin(key, more.shape, append=True, chunk=12)
    for first in range(0, more.size, 12):
        answer_of(owner.put(begun["id"], more.reshape(-1)[first : first + 12], first, chunk=12))
    assert np.array_equal(owner.read(owner.open(key)), _NUMBERS[:30])
    committed = answer_of(owner.commit(begun["id"]))
    assert (committed["id"], committed["shape"]) == (stored["id"], [10 + rows, 3])
    expected = np.concatenate([_NUMBERS[:30], more.reshape(-1)])
    assert np.array_equal(owner.read(committed), expected)
    assert np.array_equal(owner.read(stored), _NUMBERS[:30])


_UNFITTING: list[Json] = [
    {"shape": [1, 4]}, {"shape": [3]}, {"shape": [1, 3, 1]}, {"shape": []}, {"dtype": "<i8"}, {"dtype": None},
    {"shape": [-1, 3]}, {"shape": [None, 3]}, {"shape": [1, None]}, {"shape": None},
]  # fmt: skip


@pytest.mark.parametrize("meta", _UNFITTING, ids=str)
@pytest.mark.parametrize("row", [3, 0])
def test_rows_that_do_not_fit_are_not_appended(
    meta: Json, row: int, owner: Caller, state_of: StateOf
) -> None:
    if row == 0 and meta.get("shape") == [1, 3, 1]:
        meta = {"shape": [1, 0, 1]}
    elif row == 0 and "shape" in meta and meta["shape"] == [-1, 3]:
        meta = {"shape": [-1, 0]}
    key = new_key()
    owner.store(key, np.ones((2, row), "<i4"))
    before = state_of(owner)
    refused = owner.append(key, np.ones((1, row), "<i4"), **meta)
    codes = ("TS009",) if "dtype" in meta else ("TS006", "22023")
    assert code_of(refused) in codes, refused.text
    staged = owner.call(
        "tensorage_begin", {"key": key, "append": True, "chunk": 3, "shape": [1, row], "dtype": "<i4"} | meta
    )
    assert code_of(staged) in codes, staged.text
    if "dtype" in meta:
        # The client needs these details to cast the rows and send them again.
        said = [json.loads(answer.json()["details"]) for answer in (refused, staged)]
        assert said == [owner.open(key)] * 2
    assert state_of(owner) == before
