"""Assignments of one request: against numpy, refused, repeated."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from sql.api import Caller, Json, answer_of, binary, code_of, new_key, new_operation
from sql.conftest import State
from sql.test_reads import apart, grid_of, spans_of, store_in_blocks

StateOf = Callable[[Caller], State]

_NUMBERS = np.arange(100, dtype="<i4")


@pytest.fixture
def stored(owner: Caller) -> Json:
    return owner.store(new_key(), _NUMBERS, chunk=10)


@pytest.mark.parametrize("chunk", [1, 13, 100, 2000])
@pytest.mark.parametrize("dtype", ["|u1", "<f4", "<c16"])
def test_assignments_are_numpys(dtype: str, chunk: int, owner: Caller) -> None:
    """Spans and grids may have any order; the blocks stay as they are cut."""
    dice = random.Random(f"{dtype} of {chunk}")
    size = 2000 if chunk > 1 else 200
    array = store_in_blocks(owner, dtype, size, chunk, dice)
    opened, expected = array.dataset, array.elements.copy()
    blocks = owner.blocks(opened["id"])
    for _ in range(12):
        if size < 2000 or dice.random() < 0.5:
            starts = apart(dice, dice.randint(1, size // 20), 9, size)
            lengths = [dice.randint(1, 9) for _ in starts]
            where: Json = {"starts": starts, "lengths": lengths}
        else:
            rows, runs, length = grid_of(dice, size)
            where = {"starts": None, "lengths": None, "rows": rows, "runs": runs, "run_length": length}
            starts = np.add.outer(rows, runs).reshape(-1).tolist()
            lengths = [length] * len(starts)
        order = dice.sample(range(len(starts)), len(starts))
        if where["starts"] is not None:
            starts, lengths = [starts[n] for n in order], [lengths[n] for n in order]
            where = {"starts": starts, "lengths": lengths}
        places = np.concatenate([np.arange(at, at + n) for at, n in zip(starts, lengths, strict=True)])
        values = np.frombuffer(dice.randbytes(places.size * expected.itemsize), dtype)
        assigned = answer_of(_assign(owner, opened, values, where))
        expected[places] = values
        assert (assigned["id"], assigned["version"]) == (opened["id"], opened["version"] + 1)
        opened = assigned
        assert owner.read(opened).tobytes() == expected.tobytes(), where
    assert owner.blocks(opened["id"]) == blocks


def _assign(owner: Caller, opened: Json, values: Any, where: Json) -> Any:
    meta = {"version": opened["version"]} | {
        name: value for name, value in where.items() if value is not None
    }
    body = binary(values.tobytes(), count=values.size, data_id=opened["id"], meta=meta)
    return owner.call("tensorage_assign", body)


def test_many_spans_of_one_block(owner: Caller) -> None:
    array = store_in_blocks(owner, "<f4", 5000, 5000, random.Random(5))
    starts, lengths = spans_of(random.Random(300), 5000)
    values = np.arange(sum(lengths), dtype="<f4")
    opened = answer_of(owner.assign(array.dataset, values, starts, lengths))
    expected = array.elements.copy()
    expected[np.concatenate([np.arange(a, a + n) for a, n in zip(starts, lengths, strict=True)])] = values
    assert owner.read(opened).tobytes() == expected.tobytes()


_BAD_PLACES: list[Json] = [
    {"starts": [], "lengths": []},
    {"starts": [0], "lengths": [9]},
    {"starts": [0], "lengths": [11]},
    {"starts": [0, 20], "lengths": [10]},
    {"starts": [0], "lengths": [5, 5]},
    {"starts": [0, 4], "lengths": [5, 5]},
    {"starts": [4, 0], "lengths": [5, 5]},
    {"starts": [3, 3], "lengths": [5, 5]},
    {"starts": [-1], "lengths": [10]},
    {"starts": [-10], "lengths": [10]},
    {"starts": [91], "lengths": [10]},
    {"starts": [100], "lengths": [10]},
    {"starts": [0, 99], "lengths": [5, 5]},
    {"starts": [0, 2**63 - 1], "lengths": [5, 5]},
    {"starts": [0, 2**62], "lengths": [5, 5]},
    {"starts": [0, 2**64], "lengths": [5, 5]},
    {"starts": [-(2**63), 0], "lengths": [5, 5]},
    {"starts": [0, 50], "lengths": [10, 0]},
    {"starts": [0, 50], "lengths": [20, -10]},
    {"starts": [0, 50], "lengths": [2**63 - 1, -(2**63) + 11]},
    {"starts": [None], "lengths": [10]},
    {"starts": [0], "lengths": [None]},
    {"starts": [0.5], "lengths": [10]},
    {"starts": ["a"], "lengths": [10]},
    {"starts": [[0]], "lengths": [10]},
    {"starts": 0, "lengths": 10},
    {"starts": {"0": 0}, "lengths": {"0": 10}},
    {"starts": [0]},
    {"starts": [0], "lengths": None},
    {"lengths": [10]},
    {},
    {"rows": [0], "runs": [0]},
    {"rows": [0], "runs": [0], "run_length": 9},
    {"rows": [0], "runs": [0], "run_length": "ten"},
    {"rows": [0], "runs": [0], "run_length": [10]},
    {"rows": [0], "runs": [0], "run_length": 10.5},
    {"rows": [0], "runs": [0], "run_length": 2**64},
    {"rows": [0, 5], "runs": [0], "run_length": -5},
    {"rows": [0, 4], "runs": [0], "run_length": 5},
    {"rows": [0], "runs": [0, 0], "run_length": 5},
    {"rows": [95], "runs": [0, 5], "run_length": 5},
    {"rows": [2**63 - 1], "runs": [2**63 - 1], "run_length": 10},
    {"rows": [-(2**63)], "runs": [-1], "run_length": 10},
    {"rows": [None], "runs": [0], "run_length": 10},
    {"rows": [], "runs": [0], "run_length": 10},
    {"rows": list(range(10**5)), "runs": list(range(10**5)), "run_length": 1},
    {"runs": [0], "run_length": 10},
]


@pytest.mark.parametrize("bad", _BAD_PLACES, ids=lambda bad: str(bad)[:60])
def test_bad_places_are_refused(bad: Json, stored: Json, owner: Caller, state_of: StateOf) -> None:
    """Ten elements come, in a whole assignment and in a patch."""
    staged = owner.begin_assign(stored)["id"]
    before = state_of(owner)
    values = np.full(10, -1, "<i4")
    for function, data_id in (("tensorage_assign", stored["id"]), ("tensorage_patch", staged)):
        body = binary(values.tobytes(), count=10, data_id=data_id, meta={"version": 1} | bad)
        refused = owner.call(function, body)
        assert code_of(refused) in ("TS004", "TS006"), refused.text
        assert state_of(owner) == before


@pytest.mark.parametrize("function", ["tensorage_assign", "tensorage_patch"])
def test_bad_requests_are_refused(function: str, stored: Json, owner: Caller, state_of: StateOf) -> None:
    staged = owner.begin_assign(stored)["id"]
    before = state_of(owner)
    values = np.full(10, -1, "<i4").tobytes()
    data_id = stored["id"] if function == "tensorage_assign" else staged
    good: Json = {"data_id": data_id, "count": 10, "meta": {"version": 1, "starts": [0], "lengths": [10]}}
    bad: list[Json] = [
        {"count": 9}, {"count": 11}, {"count": 0}, {"count": -1}, {"count": 2**63 - 1}, {"magic": b"TNSS"},
        {"version": 2}, {"meta": None}, {"meta": b"{"}, {"meta": b"7"}, {"meta": b"[]"}, {"meta_bytes": 5},
    ]  # fmt: skip
    requests = [binary(values, **good | header) for header in bad]
    requests += [
        binary(short, **good) for short in (b"", values[:-1], values[:-4], values + b"\0", values * 2)
    ]
    dice = random.Random(9)
    complete = binary(values, **good)
    requests += [complete[:length] for length in range(0, len(complete), 7)]
    requests += [complete[:8] + dice.randbytes(32) + complete[40:] for _ in range(20)]
    for body in requests:
        assert code_of(owner.call(function, body)) in ("TS001", "TS003", "TS004", "TS006"), body
        assert state_of(owner) == before
    answer_of(owner.call(function, complete))


def test_other_version_is_refused(stored: Json, owner: Caller, state_of: StateOf) -> None:
    before = state_of(owner)
    for version in (0, 2, -1, None, 2**63 - 1):
        asked = stored | {"version": version}
        assert code_of(owner.assign(asked, _NUMBERS, [0], [100])) == "TS003", version
        refused = owner.call("tensorage_begin_assign", data_id=stored["id"], version=version)
        assert code_of(refused) == "TS003", version
    assert state_of(owner) == before


def test_what_is_not_an_array_of_the_callers_is_not_assigned_to(
    stored: Json, owner: Caller, state_of: StateOf
) -> None:
    """Staged, aborted, replaced, removed, or none at all."""
    begun = [owner.begin(new_key(), [100]) for _ in range(2)]
    for each in begun:
        answer_of(owner.put(each["id"], _NUMBERS))
    owner.call("tensorage_abort", data_id=begun[1]["id"])
    replaced = owner.store(new_key(), np.zeros(400, "<i4"), chunk=1)
    owner.store(replaced["key"], _NUMBERS, overwrite=True)
    removed = owner.store(new_key(), np.zeros(400, "<i4"), chunk=1)
    answer_of(owner.call("tensorage_remove", key=removed["key"]))
    assigning = owner.begin_assign(stored)
    before = state_of(owner)
    for none in (*begun, replaced, removed, assigning, stored | {"id": 2**40}, stored | {"id": -1}):
        assert code_of(owner.assign(none, _NUMBERS, [0], [100])) == "TS003", none
        refused = owner.call("tensorage_begin_assign", data_id=none["id"], version=none["version"])
        assert code_of(refused) == "TS003", none
    assert state_of(owner) == before


def test_same_operation_is_done_once(stored: Json, owner: Caller, state_of: StateOf) -> None:
    operation = new_operation()
    first = answer_of(owner.assign(stored, -_NUMBERS[:10], [0], [10], operation=operation))
    before = state_of(owner)
    assert answer_of(owner.assign(stored, -_NUMBERS[:10], [0], [10], operation=operation)) == first
    # The repetition is answered however much has changed since.
    answer_of(owner.assign(first, _NUMBERS[:10], [0], [10]))
    assert answer_of(owner.assign(stored, -_NUMBERS[:10], [0], [10], operation=operation)) == first
    assert state_of(owner) != before
    assert np.array_equal(owner.read(owner.open(stored["key"])), _NUMBERS)


def test_answers_are_kept_without_attributes_and_given_with_them(owner: Caller, state_of: StateOf) -> None:
    key, operation = new_key(), new_operation()
    owner.store(key, _NUMBERS, attrs={"note": "x" * 10_000}, operation=operation)
    appended = answer_of(owner.append(key, _NUMBERS, operation=(again := new_operation())))
    assert not any("xxx" in str(row) for kind, row in state_of(owner) if kind == "operation")
    assert appended["attrs"]["note"] == "x" * 10_000
    assert answer_of(owner.append(key, _NUMBERS, operation=again)) == appended


def test_assignment_that_covers_the_array_without_gaps(stored: Json, owner: Caller) -> None:
    changed = answer_of(owner.assign(stored, -_NUMBERS, [0], [100]))
    assert np.array_equal(owner.read(changed), -_NUMBERS)
    starts = list(range(100))
    changed = answer_of(owner.assign(changed, _NUMBERS, starts[::-1], [1] * 100))
    assert np.array_equal(owner.read(changed), _NUMBERS[::-1])


def test_scalar_is_assigned(owner: Caller) -> None:
    stored = owner.store(new_key(), np.array(2.5))
    assert owner.read(answer_of(owner.assign(stored, np.array([3.5]), [0], [1]))) == [3.5]


def test_nothing_fits_in_an_empty_array(owner: Caller) -> None:
    stored = owner.store(new_key(), np.empty((0, 3)))
    assert code_of(owner.assign(stored, np.array([3.5]), [0], [1])) == "TS004"
    assert code_of(owner.assign(stored, np.array([]), [], [])) == "TS006"
