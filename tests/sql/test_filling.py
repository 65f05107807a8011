"""Arrays with a fill value: who waits for whom, and changes that meet."""

from __future__ import annotations

import base64
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import httpx
import numpy as np
import psycopg
import pytest
from sql.api import Caller, Json, answer_of, binary, code_of, new_key, new_operation, transaction
from sql.conftest import wait_for_waiter
from sql.objects import begin_assign, entry, metadata, put

from tensorage.embedded import control

Connection = psycopg.Connection[tuple[Any, ...]]

_SEVEN = base64.b64encode(np.int32(7).tobytes()).decode()


@pytest.fixture
def made(owner: Caller) -> Json:
    """An array of 100 elements, none of which was written, in blocks of 10."""
    return create(owner)


def create(owner: Caller, **more: Any) -> Json:
    asked = {"key": new_key(), "shape": [100], "dtype": "<i4", "chunk": 10, "fill": _SEVEN}
    asked["operation"] = new_operation()
    created: Json = answer_of(owner.call("tensorage_create", {**asked, **more}))
    return created


def expected(*written: tuple[int, int, int]) -> np.ndarray[Any, Any]:
    """Elements of the array: sevens, and in each of the given ranges its number."""
    elements = np.full(100, 7, "<i4")
    for low, high, number in written:
        elements[low:high] = number
    return elements


def assign(owner: Caller, opened: Json, low: int, high: int, number: int) -> Any:
    return owner.assign(opened, np.full(high - low, number, "<i4"), [low], [high - low])


def stage(owner: Caller, opened: Json, low: int, high: int, number: int) -> Json:
    begun: Json = owner.begin_assign(opened)
    answer_of(owner.patch(begun["id"], np.full(high - low, number, "<i4"), [low], [high - low]))
    return begun


def elements(owner: Caller, made: Json) -> np.ndarray[Any, Any]:
    return owner.read(owner.open(made["key"]))


def test_writers_of_different_blocks_do_not_wait_for_each_other(
    owner: Caller, made: Json, backend: control.Running
) -> None:
    answer_of(assign(owner, made, 0, 10, 1))
    with psycopg.connect(backend.superuser_url) as first, ThreadPoolExecutor(2) as pool:
        # An assignment to the first block, before its end.
        first.execute("select from public.datasets where id = %s for key share", (made["id"],))
        first.execute(
            "update public.tensors set tensor = tensor where data_id = %s and index = 0", (made["id"],)
        )
        answer_of(assign(owner, made, 30, 40, 3))
        same = pool.submit(assign, owner, made, 5, 15, 2)
        wait_for_waiter(first)
        first.commit()
        answer_of(same.result())
    np.testing.assert_array_equal(elements(owner, made), expected((0, 5, 1), (5, 15, 2), (30, 40, 3)))


@pytest.mark.parametrize("what", ["append", "resize", "compact", "overwrite", "commit"])
def test_changes_of_all_blocks_wait_for_assignments(
    what: str, owner: Caller, made: Json, backend: control.Running
) -> None:
    """They would otherwise wait for a block that the assignment has, which waits for the row that they have."""
    answer_of(assign(owner, made, 90, 100, 1))
    key = made["key"]
    begun = stage(owner, made, 90, 100, 9)
    calls: dict[str, Any] = {
        "append": lambda: owner.append(key, np.array([3], "<i4")),
        "resize": lambda: owner.call(
            "tensorage_resize", data_id=made["id"], base_rows=100, rows=95, fill=_SEVEN
        ),
        "compact": lambda: owner.call("tensorage_compact", key=key),
        "overwrite": lambda: owner.call(
            "tensorage_create", key=key, shape=[5], dtype="<i4", chunk=10, fill=_SEVEN, overwrite=True
        ),
        "commit": lambda: owner.commit(begun["id"]),
    }
    with psycopg.connect(backend.superuser_url) as assigning, ThreadPoolExecutor(1) as pool:
        assigning.execute("select from public.datasets where id = %s for key share", (made["id"],))
        waiting = pool.submit(calls[what])
        wait_for_waiter(assigning)
        assigning.execute("update public.tensors set tensor = tensor where data_id = %s", (made["id"],))
        assigning.execute("update public.datasets set version = version + 1 where id = %s", (made["id"],))
        assigning.commit()
        answer = waiting.result()
        # The block that the staged assignment has copied was written meanwhile.
        assert (code_of(answer) == "TS003") if what == "commit" else (answer.status_code == 200), answer.text


def test_two_who_make_one_block_both_write_to_it(owner: Caller, made: Json, backend: control.Running) -> None:
    with psycopg.connect(backend.superuser_url) as first, ThreadPoolExecutor(1) as pool:
        first.execute(
            "insert into public.tensors select %s, %s, 20, 10, decode(repeat('01000000', 10), 'hex')",
            (made["id"], owner.id),
        )
        first.execute("insert into tensorage.written values (%s, 20)", (made["id"],))
        second = pool.submit(assign, owner, made, 25, 35, 2)
        wait_for_waiter(first)
        first.commit()
        answer_of(second.result())
    np.testing.assert_array_equal(elements(owner, made), expected((20, 25, 1), (25, 35, 2)))


def test_large_assignments_to_different_blocks_both_land(owner: Caller, made: Json) -> None:
    answer_of(assign(owner, made, 0, 100, 1))
    first, second = stage(owner, made, 5, 20, 2), stage(owner, made, 20, 40, 3)
    answer_of(assign(owner, made, 60, 70, 6))
    answer_of(owner.commit(second["id"]))
    answer_of(owner.commit(first["id"]))
    wanted = expected((0, 100, 1), (5, 20, 2), (20, 40, 3), (60, 70, 6))
    np.testing.assert_array_equal(elements(owner, made), wanted)


@pytest.mark.parametrize("is_written", [True, False])
def test_large_assignment_to_a_block_that_changed_is_told(
    owner: Caller, made: Json, is_written: bool
) -> None:
    if is_written:
        answer_of(assign(owner, made, 0, 10, 1))
    staged = stage(owner, made, 0, 5, 2)
    answer_of(assign(owner, made, 9, 10, 3))
    assert code_of(owner.commit(staged["id"])) == "TS003"
    np.testing.assert_array_equal(
        elements(owner, made), expected(*([(0, 10, 1)] if is_written else []), (9, 10, 3))
    )


def test_two_large_assignments_that_make_one_block(owner: Caller, made: Json) -> None:
    first, second = stage(owner, made, 0, 5, 2), stage(owner, made, 5, 10, 3)
    answer_of(owner.commit(first["id"]))
    assert code_of(owner.commit(second["id"])) == "TS003"
    np.testing.assert_array_equal(elements(owner, made), expected((0, 5, 2)))


def test_large_assignment_meets_a_shorter_array(owner: Caller, made: Json) -> None:
    staged = stage(owner, made, 80, 100, 2)
    for rows, base in ((50, 100), (90, 50)):
        answer_of(owner.call("tensorage_resize", data_id=made["id"], base_rows=base, rows=rows, fill=_SEVEN))
    assert code_of(owner.commit(staged["id"])) == "TS003"
    np.testing.assert_array_equal(elements(owner, made), expected()[:90])
    assert code_of(assign(owner, made, 80, 100, 2)) == "TS003"


def test_large_assignment_meets_an_array_that_gets_a_fill_value(owner: Caller) -> None:
    stored = owner.store(new_key(), np.arange(100, dtype="<i4"), chunk=10)
    staged = owner.begin_assign(stored)
    answer_of(owner.patch(staged["id"], np.zeros(5, "<i4"), [0], [5]))
    answer_of(owner.call("tensorage_resize", data_id=stored["id"], base_rows=100, rows=120, fill=_SEVEN))
    assert code_of(owner.patch(staged["id"], np.zeros(5, "<i4"), [20], [5])) == "TS003"
    assert code_of(owner.commit(staged["id"])) == "TS003"
    np.testing.assert_array_equal(owner.read(owner.open(stored["key"])), [*range(100), *[7] * 20])


def test_assignments_within_a_transaction_are_told_of_others(owner: Caller, made: Json) -> None:
    answer_of(assign(owner, made, 0, 10, 1))
    meta = {"version": made["version"], "starts": [50], "lengths": [10]}
    body = binary(bytes(40), count=10, data_id=made["id"], meta=meta)
    locks = {"assigned": [{"data_id": made["id"], "version": made["version"]}]}
    answer = owner.call("tensorage_transact", transaction(("tensorage_assign", body), **locks))
    assert code_of(answer) == "TS003"
    np.testing.assert_array_equal(elements(owner, made), expected((0, 10, 1)))


def test_appended_blocks_are_merged_and_stay_known(owner: Caller, database: Connection) -> None:
    made = create(owner, shape=[4], chunk=16)
    for number in range(9):
        answer_of(owner.append(made["key"], np.array([number], "<i4")))
    answer_of(owner.call("tensorage_compact", key=made["key"]))
    np.testing.assert_array_equal(elements(owner, made), [7, 7, 7, 7, *range(9)])
    blocks, written = (
        [number for (number,) in database.execute(query, (made["id"],)).fetchall()]
        for query in (
            "select index from public.tensors where data_id = %s order by 1",
            "select number from tensorage.written where data_id = %s order by 1",
        )
    )
    assert blocks == written == [4]


def test_an_operation_is_done_once(owner: Caller, made: Json) -> None:
    again = {"operation": new_operation()}
    shorter = {"data_id": made["id"], "base_rows": 100, "rows": 50, "fill": _SEVEN, **again}
    first = answer_of(owner.call("tensorage_resize", shorter))
    answer_of(owner.append(made["key"], np.array([1], "<i4")))
    assert answer_of(owner.call("tensorage_resize", shorter))["shape"] == first["shape"] == [50]
    assert owner.open(made["key"])["shape"] == [51]
    new = {"key": new_key(), "shape": [3], "dtype": "<i4", "chunk": 3, "fill": _SEVEN, **again}
    assert code_of(owner.call("tensorage_create", {**new, "operation": "no id"})) == "22P02"


@pytest.mark.parametrize(
    ("function", "wrong"),
    [
        ("tensorage_create", {"fill": "AAAA"}),
        ("tensorage_create", {"fill": "%"}),
        ("tensorage_create", {"fill": None}),
        ("tensorage_create", {"shape": [2**60, 2**60]}),
        ("tensorage_resize", {"rows": -1}),
        ("tensorage_resize", {"rows": None}),
        ("tensorage_resize", {"rows": 2**62 + 1}),
    ],
)
def test_bad_input_changes_nothing(owner: Caller, made: Json, function: str, wrong: Json) -> None:
    good = {
        "tensorage_create": {"key": new_key(), "shape": [3], "dtype": "<i4", "chunk": 3, "fill": _SEVEN},
        "tensorage_resize": {"data_id": made["id"], "base_rows": 100, "rows": 3, "fill": _SEVEN},
    }[function]
    assert code_of(owner.call(function, {**good, **wrong})) == "TS006"
    assert [entry["key"] for entry in answer_of(owner.call("tensorage_catalogue"))["entries"]] == [
        made["key"]
    ]
    np.testing.assert_array_equal(elements(owner, made), expected())


def test_a_short_request_makes_no_more_than_256_blocks(owner: Caller, database: Connection) -> None:
    made = create(owner, shape=[10**9], chunk=10)
    starts = list(range(0, 2570, 10))
    answer = owner.assign(made, np.zeros(257, "<i4"), starts, [1] * 257)
    assert code_of(answer) == "PT413"
    answer_of(owner.assign(made, np.zeros(256, "<i4"), starts[:256], [1] * 256))
    query = "select count(*) from public.tensors where data_id = %s"
    assert database.execute(query, (made["id"],)).fetchone() == (256,)


def test_blocks_that_are_swept_take_their_notes_along(
    owner: Caller, made: Json, database: Connection
) -> None:
    answer_of(assign(owner, made, 0, 100, 1))
    answer_of(owner.call("tensorage_remove", key=made["key"]))
    while answer_of(owner.call("tensorage_sweep")):
        pass
    assert (
        database.execute("select * from tensorage.written where data_id = %s", (made["id"],)).fetchall() == []
    )


_TURNS = 12


def _until_taken(owner: Caller, made: Json, write: Callable[[Json], httpx.Response]) -> None:
    """Do what a client does: open again what changed since it was opened."""
    while (answer := write(owner.open(made["key"]))).status_code != 200:
        assert code_of(answer) == "TS003", answer.text


def _assign_in_turn(owner: Caller, made: Json, number: int) -> None:
    for turn in range(_TURNS):
        first = (number + 4 * turn) % 20 * 5
        _until_taken(owner, made, lambda now, first=first: assign(owner, now, first, first + 5, first))


def _assign_staged_in_turn(owner: Caller, made: Json, number: int) -> None:
    def write(now: Json, first: int) -> httpx.Response:
        return owner.commit(stage(owner, now, first, first + 5, first)["id"])

    for turn in range(_TURNS):
        _until_taken(owner, made, partial(write, first=(2 * turn + number) % 20 * 5))


def _append_in_turn(owner: Caller, made: Json, number: int) -> None:
    for turn in range(_TURNS):
        answer_of(owner.append(made["key"], np.full(3, 1000 * number + turn, "<i4")))


def _grow_in_turn(owner: Caller, made: Json, number: int) -> None:
    def grow(now: Json) -> httpx.Response:
        (rows,) = now["shape"]
        asked = {"data_id": now["id"], "base_rows": rows, "rows": rows + number, "fill": _SEVEN}
        return owner.call("tensorage_resize", asked)

    for _ in range(_TURNS):
        _until_taken(owner, made, grow)


def _compact_in_turn(owner: Caller, made: Json, number: int) -> None:
    for _ in range(_TURNS * number):
        answer_of(owner.call("tensorage_compact", key=made["key"]))


def test_writers_of_all_kinds_meet_in_one_array(owner: Caller) -> None:
    """None waits in a circle, and no element is lost: rows 0 to 99 are assigned, and more are appended."""
    made = create(owner)
    jobs = [(_assign_in_turn, number) for number in range(4)]
    jobs += [
        (_assign_staged_in_turn, 0),
        (_assign_staged_in_turn, 1),
        (_append_in_turn, 1),
        (_append_in_turn, 2),
    ]
    jobs += [(_grow_in_turn, 2), (_compact_in_turn, 1)]
    with ThreadPoolExecutor(len(jobs)) as pool:
        for job in [pool.submit(write, owner, made, number) for write, number in jobs]:
            job.result()
    opened = owner.open(made["key"])
    found = owner.read(opened)
    assert opened["shape"] == [100 + _TURNS * (2 + 3 + 3)]
    np.testing.assert_array_equal(found[:100], np.repeat(np.arange(20) * 5, 5))
    numbers, counts = np.unique(found[100:], return_counts=True)
    appended = {1000 * number + turn: 3 for number in (1, 2) for turn in range(_TURNS)}
    assert dict(zip(numbers.tolist(), counts.tolist(), strict=True)) == {7: 2 * _TURNS, **appended}


@pytest.mark.parametrize("is_appended", [False, True])
def test_large_assignment_to_a_block_that_was_made_and_merged_is_told(
    owner: Caller, is_appended: bool, database: Connection
) -> None:
    """The block that both have made has another one before it, and is a part of that one by now."""
    made = create(owner, shape=[4])
    answer_of(assign(owner, made, 0, 4, 1))
    answer_of(owner.call("tensorage_resize", data_id=made["id"], base_rows=4, rows=10, fill=_SEVEN))
    staged = stage(owner, owner.open(made["key"]), 5, 6, 2)
    if is_appended:
        begun = owner.begin(made["key"], [1], chunk=100, append=True)
        answer_of(owner.put(begun["id"], np.array([8], "<i4")))
        answer_of(owner.commit(begun["id"]))
    answer_of(assign(owner, owner.open(made["key"]), 6, 7, 3))
    answer_of(owner.call("tensorage_compact", key=made["key"]))
    assert code_of(owner.commit(staged["id"])) == "TS003"
    np.testing.assert_array_equal(
        elements(owner, made), [1, 1, 1, 1, 7, 7, 3, 7, 7, 7, 8][: 10 + is_appended]
    )


def test_an_append_leaves_the_block_size(owner: Caller) -> None:
    """Each block that is made later would otherwise be as large as somebody who may append has asked for."""
    made = create(owner)
    begun = owner.begin(made["key"], [20], chunk=1_000_000, append=True)
    assert begun["chunk"] == 10
    answer_of(owner.put(begun["id"], np.arange(20, dtype="<i4")))
    assert answer_of(owner.commit(begun["id"]))["chunk"] == 10
    stored = owner.store(new_key(), np.arange(5, dtype="<i4"), chunk=5)
    assert owner.begin(stored["key"], [20], chunk=20, append=True)["chunk"] == 20


def test_a_short_request_makes_no_more_than_some_bytes_of_blocks(owner: Caller) -> None:
    made = create(owner, shape=[2**40], chunk=2**24)
    answer = owner.assign(made, np.zeros(3, "<i4"), [0, 2**24, 2**30], [1] * 3)
    assert code_of(answer) == "PT413"
    answer_of(owner.assign(made, np.zeros(1, "<i4"), [2**30], [1]))


def test_large_assignment_to_shards_meets_a_shorter_array(owner: Caller) -> None:
    """It may have reached behind the end, into a shard that is there all the same."""
    made = create(owner, engine="storage", shape=[100], zarr=metadata([64]))
    first, second = begin_assign(owner, made), begin_assign(owner, made)
    answer_of(put(owner, first, entry(0, None, based_on="")))
    answer_of(put(owner, second, entry(0, None, based_on="")))
    answer_of(owner.call("tensorage_resize", data_id=made["id"], base_rows=100, rows=50, fill=_SEVEN))
    assert code_of(owner.commit(first["id"])) == "TS003"
    answer_of(owner.call("tensorage_resize", data_id=made["id"], base_rows=50, rows=120, fill=_SEVEN))
    answer_of(owner.commit(second["id"]))
