"""The verdicts on what a store holds: each kind of fault is told from the others, and from what may be there."""

from __future__ import annotations

import numpy as np
import pytest
from chaos.model import (
    ROW,
    Entry,
    Outcome,
    Seen,
    State,
    Stored,
    Unreadable,
    Verdict,
    judge,
    judge_log,
    log_rows,
)
from chaos.operations import (
    Append,
    Assign,
    Delete,
    LogAppend,
    Operation,
    Overwrite,
    Rename,
    Sweep,
    Write,
    values,
)

ACKNOWLEDGED, REFUSED, UNKNOWN = Outcome.ACKNOWLEDGED, Outcome.REFUSED, Outcome.UNKNOWN

OLD = Stored(values(1, (6, ROW), "<i8"), {"seed": 1}, "database")
THERE: State = {"x": OLD}

WRITE = Write("store", "database", "y", 2, 4, "<f8")
APPEND = Append("append", "database", "x", 3, 2, "<i8")
ASSIGN = Assign("assign", "database", "x", 4, 4, 1, 2, "<i8")
OVERWRITE = Overwrite("overwrite", "database", "x", 5, 6, "<i8")
RENAME = Rename("rename", "database", "x", 6, "z")
DELETE = Delete("delete", "database", "x", 7)
SWEEP = Sweep("sweep", "database", "w", 8)

OPERATIONS = [WRITE, APPEND, ASSIGN, OVERWRITE, RENAME, DELETE]


def with_array(array: np.ndarray[tuple[int, ...], np.dtype[np.int64]], key: str = "x") -> Seen:
    return {key: Stored(array, OLD.attrs, "database")}


def verdict_of(operation: Operation, outcome: Outcome, seen: Seen) -> Verdict:
    verdicts, differences = judge(THERE, [operation], [outcome], seen)
    assert len(verdicts) == 1
    assert bool(differences) == (verdicts[0] in {Verdict.WRONG, Verdict.TORN, Verdict.DOUBLED, Verdict.LOST})
    return verdicts[0]


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.kind)
def test_all_or_nothing(operation: Operation) -> None:
    after = operation.then(THERE)
    assert verdict_of(operation, ACKNOWLEDGED, after) is Verdict.ACKNOWLEDGED
    assert verdict_of(operation, UNKNOWN, after) is Verdict.COMPLETED
    assert verdict_of(operation, UNKNOWN, THERE) is Verdict.NOT_THERE
    assert verdict_of(operation, REFUSED, THERE) is Verdict.REFUSED
    assert verdict_of(operation, ACKNOWLEDGED, THERE) is Verdict.LOST
    assert verdict_of(operation, REFUSED, after) is Verdict.WRONG


@pytest.mark.parametrize("outcome", Outcome)
def test_torn(outcome: Outcome) -> None:
    assigned = ASSIGN.then(THERE)["x"].array
    half = np.concatenate([assigned[:3], OLD.array[3:]])
    assert verdict_of(ASSIGN, outcome, with_array(half)) is Verdict.TORN
    overwritten = OVERWRITE.then(THERE)["x"]
    half = np.concatenate([OLD.array[:2], overwritten.array[2:]])
    assert verdict_of(OVERWRITE, outcome, {"x": Stored(half, overwritten.attrs, "database")}) is Verdict.TORN
    appended = APPEND.then(THERE)["x"].array
    assert verdict_of(APPEND, outcome, with_array(appended[:7])) is Verdict.TORN
    assert verdict_of(APPEND, outcome, {"x": Unreadable("blocks are missing")}) is Verdict.TORN
    assert verdict_of(RENAME, outcome, {}) in {Verdict.TORN, Verdict.LOST, Verdict.WRONG}


def test_torn_before_a_renaming() -> None:
    half = np.concatenate([ASSIGN.then(THERE)["x"].array[:3], OLD.array[3:]])
    verdicts, _ = judge(THERE, [ASSIGN, RENAME], [ACKNOWLEDGED, ACKNOWLEDGED], with_array(half, "z"))
    assert verdicts[-1] is Verdict.TORN


def test_half_of_a_renaming() -> None:
    both = {"x": OLD, "z": OLD}
    assert verdict_of(RENAME, UNKNOWN, both) is Verdict.TORN
    assert verdict_of(RENAME, UNKNOWN, {}) is Verdict.TORN


def test_doubled() -> None:
    appended = APPEND.then(THERE)["x"].array
    for outcome in Outcome:
        twice = with_array(np.concatenate([appended, APPEND.added]))
        assert verdict_of(APPEND, outcome, twice) is Verdict.DOUBLED


def test_wrong() -> None:
    for outcome in Outcome:
        assert verdict_of(ASSIGN, outcome, with_array(values(9, (6, ROW), "<i8"))) is Verdict.WRONG
        assert verdict_of(APPEND, outcome, {"x": Stored(OLD.array, {"seed": 9}, "database")}) is Verdict.WRONG
    a_bit = OLD.array.copy()
    a_bit[5, 63] ^= 1
    for outcome in Outcome:
        assert verdict_of(SWEEP, outcome, with_array(a_bit)) is Verdict.WRONG


def test_earlier_operations_hold() -> None:
    done = ASSIGN.then(THERE)
    assert judge(THERE, [ASSIGN, APPEND], [ACKNOWLEDGED, UNKNOWN], done) == (
        [Verdict.ACKNOWLEDGED, Verdict.NOT_THERE],
        [],
    )
    verdicts, differences = judge(THERE, [ASSIGN, WRITE], [ACKNOWLEDGED, UNKNOWN], THERE)
    assert verdicts[0] is Verdict.LOST
    assert [difference.key for difference in differences] == ["x"]


ENTRIES = [Entry(1, 3, 0, ACKNOWLEDGED), Entry(2, 2, 1, ACKNOWLEDGED), Entry(3, 2, 1, UNKNOWN)]


def log(*pieces: np.ndarray[tuple[int, ...], np.dtype[np.int64]]) -> Stored:
    return Stored(np.concatenate(pieces), {}, "storage")


def test_appends_to_a_log() -> None:
    one, two, three = log_rows(1, 3), log_rows(2, 2), log_rows(3, 2)
    there, unknown = Verdict.ACKNOWLEDGED, Verdict.COMPLETED
    assert judge_log("log", ENTRIES, log(two, one, three)) == ([there, there, unknown], [])
    assert judge_log("log", ENTRIES, log(one, two)) == ([there, there, Verdict.NOT_THERE], [])
    for pieces, at, verdict in [
        ((two, three), 0, Verdict.LOST),
        ((one, two, one), 0, Verdict.DOUBLED),
        ((one, two, three, three), 2, Verdict.DOUBLED),
        ((one[:2], two), 0, Verdict.TORN),
        ((one[:2], two, one[2:]), 0, Verdict.TORN),
    ]:
        verdicts, differences = judge_log("log", ENTRIES, log(*pieces))
        assert verdicts[at] is verdict
        assert len(differences) == 1
    assert judge_log("log", ENTRIES, log(one, two, log_rows(7, 1)))[1], "a stranger"
    assert judge_log("log", ENTRIES, log(one, three, two))[1], "out of order"
    assert judge_log("log", ENTRIES, None)[1], "no log"


def test_a_log_is_no_key_of_its_writers() -> None:
    append = LogAppend("append", "database", "log", 3, 2)
    assert judge(THERE, [append], [UNKNOWN], THERE)[1] == []
