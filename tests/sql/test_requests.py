"""Requests that are malformed, at a limit, or about something that is not there."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from sql.api import Caller, Json, answer_of, binary, code_of, new_key, new_operation, whole
from sql.conftest import State

StateOf = Callable[[Caller], State]

_NUMBERS = np.arange(100, dtype="<i4")
_BINARY = ("tensorage_put", "tensorage_store", "tensorage_append")

# Binary requests -------------------------------------------------------------------------------------------

#: Header fields of an otherwise good request of 100 elements in blocks of 10.
_BAD_HEADERS: list[Json] = [
    {"magic": b"RSNT"},
    {"magic": b"tnsr"},
    {"version": 0},
    {"version": 2},
    {"version": 65535},
    {"count": -1},
    {"count": 99},
    {"count": 101},
    {"count": 400},
    {"count": 2**31},
    {"count": 2**62},
    {"count": 2**63 - 1},
    {"count": -(2**63)},
    {"chunk": 0},
    {"meta_bytes": 2**32 - 1},
    {"meta_bytes": 2**31},
    {"meta_bytes": 401},
    {"meta_bytes": 41},
]
#: An append is cut as its array is: nobody has to know how.
_BAD_CHUNKS: list[Json] = [{"chunk": 11}, {"chunk": 2**32 - 1}]
#: Only tensorage_put looks at these.
_BAD_PLACES: list[Json] = [
    {"index": -1}, {"index": 1}, {"index": 2**62}, {"index": 2**63 - 1}, {"index": -(2**63)},
    {"data_id": 0}, {"data_id": -1}, {"data_id": 2**63 - 1}, {"data_id": -(2**63)},
]  # fmt: skip


class Target:
    """Good requests of the three binary functions, to be spoiled."""

    def __init__(self, owner: Caller) -> None:
        self.key = new_key()
        owner.store(self.key, _NUMBERS, chunk=10)
        self.staged = owner.begin(new_key(), [100], chunk=10)["id"]

    def request(self, function: str, **header: Any) -> bytes:
        described = {"shape": [100], "dtype": "<i4", "chunk": 10, "operation": new_operation()}
        key = self.key if function == "tensorage_append" else new_key()
        meta = None if function == "tensorage_put" else {"key": key, **described}
        good = {"count": 100, "chunk": 10, "data_id": self.staged, "meta": meta}
        return binary(_NUMBERS.tobytes(), **good | header)


@pytest.fixture
def target(owner: Caller) -> Target:
    return Target(owner)


@pytest.mark.parametrize("function", _BINARY)
def test_good_request_is_taken(function: str, target: Target, owner: Caller) -> None:
    """The requests that are refused below are refused for what is bad in them."""
    answer_of(owner.call(function, target.request(function)))


@pytest.mark.parametrize("function", _BINARY)
def test_bad_headers_are_refused(function: str, target: Target, owner: Caller, state_of: StateOf) -> None:
    before = state_of(owner)
    bad = _BAD_HEADERS + (_BAD_PLACES if function == "tensorage_put" else [])
    for header in bad + (_BAD_CHUNKS if function != "tensorage_append" else []):
        refused = owner.call(function, target.request(function, **header))
        assert code_of(refused) in ("TS001", "TS004", "TS006"), (header, refused.text)
        assert state_of(owner) == before, header


def test_append_is_cut_as_its_array_is(target: Target, owner: Caller) -> None:
    for header in _BAD_CHUNKS:
        appended = answer_of(owner.call("tensorage_append", target.request("tensorage_append", **header)))
    assert appended["shape"] == [300]
    assert {count for _, count in owner.blocks(appended["id"])} == {10}
    assert np.array_equal(owner.read(appended), np.tile(_NUMBERS, 3))


@pytest.mark.parametrize("function", _BINARY)
def test_truncated_and_random_requests_are_refused(
    function: str, target: Target, owner: Caller, state_of: StateOf
) -> None:
    before = state_of(owner)
    good = target.request(function)
    dice = random.Random(20261123)
    bad = [good[:length] for length in (0, 1, 3, 4, 39, 40, 41, len(good) - 400, len(good) - 1)]
    bad += [good + b"\0", good * 2]
    bad += [dice.randbytes(dice.randrange(200)) for _ in range(20)]
    bad += [good[:8] + dice.randbytes(32) + good[40:] for _ in range(20)]
    bad += [good[:4] + struct.pack(">HH", 1, 0) + dice.randbytes(dice.randrange(32, 80)) for _ in range(20)]
    for body in bad:
        refused = owner.call(function, body)
        assert code_of(refused) in ("TS001", "TS004", "TS006"), (body, refused.text)
    assert state_of(owner) == before


_BAD_METAS: list[Any] = [
    b"\xff\xfe",
    b"{",
    b"nothing",
    b'{"key": "a',
    b"[]",
    b"null",
    b"7",
    b'"text"',
    b"[" * 100_000,
    {},
    {"shape": None},
    {"shape": 100},
    {"shape": "100"},
    {"shape": {"0": 100}},
    {"shape": [-100]},
    {"shape": [-10, -10]},
    {"shape": [100, None]},
    {"shape": [None]},
    {"shape": [100.5]},
    {"shape": ["many"]},
    {"shape": [[100]]},
    {"shape": [2**63]},
    {"shape": [2**62, 2**62]},
    {"shape": [2**63 - 1] * 3},
    {"shape": [1] * 64 + [100]},
    {"dtype": None},
    {"dtype": "float32"},
    {"dtype": ">i4"},
    {"dtype": "|O"},
    {"dtype": ">U4"},
    {"dtype": "<i3"},
    {"dtype": "<f99999999999"},
    {"dtype": "<m8[" + "a" * 33 + "]"},
    {"operation": "not a uuid"},
    {"operation": 5},
]
_BAD_METAS_OF_ARRAYS: list[Any] = [
    {"key": None},
    {"key": ""},
    {"key": "a" * 1025},
    {"key": "\u00e9" * 513},
    {"key": "a\0b"},
    {"chunk": None},
    {"chunk": 0},
    {"chunk": -1},
    {"chunk": 2**31},
    {"chunk": 2**31 - 1},
    {"engine": "memory"},
    {"attrs": [1]},
    {"attrs": "text"},
    {"attrs": {"note": "a" * 1_048_576}},
    {"dims": ["x", "y"]},
    {"dims": ["x" * 1_048_577]},
    {"is_shared": "perhaps"},
    {"overwrite": 5},
    {"append": "perhaps"},
]


@pytest.mark.parametrize("function", ["tensorage_store", "tensorage_append"])
def test_bad_metas_are_refused(function: str, target: Target, owner: Caller, state_of: StateOf) -> None:
    """The code is ours, or PostgreSQL's own for a value that a type or a constraint does not take."""
    before = state_of(owner)
    key = target.key if function == "tensorage_append" else new_key()
    good = {"key": key, "shape": [100], "dtype": "<i4", "chunk": 10}
    for bad in _BAD_METAS + (_BAD_METAS_OF_ARRAYS if function == "tensorage_store" else []):
        meta = good | bad if isinstance(bad, dict) and bad else bad
        refused = owner.call(function, target.request(function, meta=meta))
        assert code_of(refused)[:2] in ("TS", "22", "23", "54"), (str(bad)[:80], refused.text)
        assert state_of(owner) == before, str(bad)[:80]


def test_bad_declarations_are_refused(owner: Caller, state_of: StateOf) -> None:
    before = state_of(owner)
    good = {"key": new_key(), "shape": [100], "dtype": "<i4", "chunk": 10}
    for bad in _BAD_METAS + _BAD_METAS_OF_ARRAYS:
        if isinstance(bad, dict) and bad and bad.get("shape") != "100":
            refused = owner.call("tensorage_begin", good | bad)
            assert code_of(refused)[:2] in ("TS", "22", "23"), (str(bad)[:80], refused.text)
    assert state_of(owner) == before


# Reading ---------------------------------------------------------------------------------------------------


@pytest.fixture
def stored(owner: Caller) -> Json:
    return owner.store(new_key(), _NUMBERS.reshape(20, 5), chunk=15)


@pytest.mark.parametrize(
    ("rows", "runs", "length"),
    [
        ([0], [0], 100),
        ([99], [0], 1),
        ([14, 15], [0], 1),
        ([7], [0], 60),
        ([50, 0, 50], [3, 0], 2),
        ([0, 30], [0, 40], 30),
        ([], [0], 1),
        ([0], [], 1),
        ([], [], 2**40),
    ],
)
def test_selections_inside(
    rows: list[int], runs: list[int], length: int, stored: Json, owner: Caller
) -> None:
    answer = owner.ask(stored, rows, runs, length)
    assert answer.status_code == 200, answer.text
    expected = [_NUMBERS[row + run : row + run + length] for row in rows for run in runs]
    assert answer.content == b"".join(piece.tobytes() for piece in expected)


def test_selections_are_in_the_order_of_rows_and_then_of_runs(stored: Json, owner: Caller) -> None:
    """Any numbers of both keep it: no plan that PostgreSQL may choose for some of them changes it."""
    dice = random.Random(2)
    for counts in [(1, 1), (2, 3), (3, 2), (1, 30), (30, 1), (30, 2), (2, 30), (40, 40), (900, 3), (3, 900)]:
        for length in (1, 4):
            rows = [dice.randrange(50) for _ in range(counts[0])]
            runs = [dice.randrange(50 - length) for _ in range(counts[1])]
            answer = owner.ask(stored, rows, runs, length)
            starts = np.add.outer(rows, runs).reshape(-1, 1) + np.arange(length)
            assert answer.content == _NUMBERS[starts].tobytes(), (counts, length)


@pytest.mark.parametrize(
    ("rows", "runs", "length"),
    [
        ([100], [0], 1),
        ([99], [0], 2),
        ([0], [0], 101),
        ([-1], [0], 1),
        ([-1], [0], 100),
        ([0], [-1], 1),
        ([0], [100], 1),
        ([-5, 100], [0], 10),
        ([0, None], [0], 1),
        ([10**15], [0], 1),
        ([2**63 - 1], [0], 1),
        ([2**63 - 1], [1], 1),
        ([-(2**63)], [0], 1),
        ([0], [0], 0),
        ([0], [0], -1),
        ([0], [0], 2**63 - 1),
        ([0] * 1000, [0] * 1000, 2**60),
        ([0] * 1000, [0] * 1000, 1000),
        (None, [0], 1),
        ([0], None, 1),
        ([0], [0], None),
        ([[0, 1], [2, 3]], [0], 98),
    ],
    ids=lambda value: str(value)[:24],
)
def test_selections_outside_are_refused(
    rows: Any, runs: Any, length: Any, stored: Json, owner: Caller
) -> None:
    """The answer has no part of what they ask for."""
    code = code_of(owner.ask(stored, rows, runs, length))
    assert code in ("TS004", "TS006", "22003"), code


@pytest.mark.parametrize("version", [0, 2, -1, None, 2**63 - 1])
def test_reading_needs_the_version_that_there_is(version: int | None, stored: Json, owner: Caller) -> None:
    assert code_of(owner.ask(stored | {"version": version}, [0])) == "TS003"


@pytest.mark.parametrize("shape", [(0,), (0, 5), (5, 0), (3, 0, 2)])
def test_empty_arrays(shape: tuple[int, ...], owner: Caller) -> None:
    key = new_key()
    stored = owner.store(key, np.empty(shape, "<f8"))
    assert owner.open(key)["shape"] == list(shape)
    assert owner.read(stored).size == 0
    assert code_of(owner.ask(stored, [0])) == "TS004"
    begun = owner.begin(new_key(), shape)
    assert answer_of(owner.commit(begun["id"]))["shape"] == list(shape)


def test_scalar(owner: Caller) -> None:
    stored = owner.store(new_key(), np.array(2.5))
    assert (stored["shape"], owner.read(stored)) == ([], [2.5])


# Keys and lists of them -------------------------------------------------------------------------------------

_KEYS = [
    "a", " ", "'", '"', "''; drop table public.datasets; --", "100%", "%s", "a_b", "a\\b", "a/b//c/", "../..",
    "Größe", "気温", "🌡", "e\u0301", "\u00e9", "\n", "\x01", "a" * 1024, "é" * 512, "null", "{}", "*", "eq.1",
    "a.b,c(d)",
]  # fmt: skip


def test_keys_are_any_text(owner: Caller) -> None:
    for number, key in enumerate(_KEYS):
        owner.store(key, np.array([number]))
    for number, key in enumerate(_KEYS):
        assert owner.open(key)["key"] == key
        assert owner.read(owner.open(key)) == [number]
        assert answer_of(owner.append(key, np.array([number])))["shape"] == [2]
        assert key in answer_of(owner.call("tensorage_list", prefix=key))
    # Others may share arrays, too.
    listed = [key for key in answer_of(owner.call("tensorage_list")) if key in _KEYS]
    assert listed == sorted(_KEYS, key=str.encode)
    for key in _KEYS:
        answer_of(owner.call("tensorage_remove", key=key))
    assert owner.request("GET", f"/datasets?user_id=eq.{owner.id}").json() == []


@pytest.mark.parametrize("key", ["", "a" * 1025, "é" * 513, "a\0b", None], ids=lambda key: str(key)[:4])
def test_what_is_no_key_is_refused(key: str | None, owner: Caller, state_of: StateOf) -> None:
    before = state_of(owner)
    answers = [
        owner.call("tensorage_store", whole(_NUMBERS, key=key)),
        owner.call("tensorage_begin", key=key, shape=[1], dtype="<i4", chunk=1),
        owner.call("tensorage_open", key=key),
        owner.call("tensorage_remove", key=key),
        owner.call("tensorage_share", key=key),
    ]
    assert {code_of(answer)[:2] for answer in answers} <= {"TS", "22", "23"}
    assert state_of(owner) == before


def test_keys_come_in_pages(owner: Caller) -> None:
    keys = [f"run/{number:02}" for number in range(7)]
    for key in [*keys, "other", "run", "run0"]:
        owner.store(key, np.array([1]))
    assert answer_of(owner.call("tensorage_count")) >= 10
    pages, after = [], ""
    while page := answer_of(owner.call("tensorage_list", prefix="run/", after=after, max_rows=3)):
        pages.append(page)
        after = page[-1]
    assert pages == [keys[:3], keys[3:6], keys[6:]]
