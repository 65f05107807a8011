"""Changes of stored arrays beside writing them: compaction, attributes, renaming, lists of keys."""

from __future__ import annotations

import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Event
from typing import Any

import numpy as np
import psycopg
import pytest
from sql.api import Caller, Json, answer_of, code_of, described, new_key, new_operation
from sql.conftest import State
from sql.test_reads import store_in_blocks

Connection = psycopg.Connection[tuple[Any, ...]]
StateOf = Callable[[Caller], State]

_NUMBERS = np.arange(100, dtype="<i4")

# Compaction ------------------------------------------------------------------------------------------------


def _in_blocks(owner: Caller, counts: list[int], chunk: int) -> Json:
    """An array in blocks of given counts, each element its position."""
    begun = owner.begin(new_key(), [sum(counts)], dtype="|u1", chunk=chunk)
    first = 0
    for count in counts:
        answer_of(owner.put(begun["id"], np.arange(first, first + count, dtype="u1"), first, chunk=chunk))
        first += count
    committed: Json = answer_of(owner.commit(begun["id"]))
    assert [count for _, count in owner.blocks(begun["id"])] == counts
    return committed


@pytest.mark.parametrize(
    ("counts", "chunk", "compacted"),
    [
        ([1] * 25, 10, [10, 10, 5]),
        ([10, 10, 5], 10, [10, 10, 5]),
        ([6, 6, 6], 10, [6, 6, 6]),
        ([6, 4, 6, 3, 2], 10, [10, 9, 2]),
        ([10, 1, 1, 10, 1], 10, [10, 2, 10, 1]),
        ([3], 10, [3]),
    ],
)
def test_compaction_merges_neighbours_up_to_the_chunk(
    counts: list[int], chunk: int, compacted: list[int], owner: Caller
) -> None:
    stored = _in_blocks(owner, counts, chunk)
    answer = answer_of(owner.call("tensorage_compact", key=stored["key"]))
    assert answer == {"merged": len(counts) - len(compacted), "after": None}
    assert [count for _, count in owner.blocks(stored["id"])] == compacted
    assert np.array_equal(owner.read(stored), np.arange(sum(counts)))
    assert owner.open(stored["key"]) == described(stored)
    assert answer_of(owner.call("tensorage_compact", key=stored["key"])) == {"merged": 0, "after": None}


def test_compaction_goes_on_where_it_was_told_to(owner: Caller) -> None:
    stored = _in_blocks(owner, [1] * 20, 5)
    for after, counts in [
        (18, [1] * 18 + [2]), (20, [1] * 18 + [2]), (2**62, [1] * 18 + [2]), (None, [1] * 18 + [2]),
        (7, [1] * 7 + [5, 5, 3]), (-1, [5, 2, 5, 5, 3]),
    ]:  # fmt: skip
        assert answer_of(owner.call("tensorage_compact", key=stored["key"], after=after))["after"] is None
        assert [count for _, count in owner.blocks(stored["id"])] == counts
        assert np.array_equal(owner.read(stored), np.arange(20))


def test_compaction_of_much_comes_in_pieces(owner: Caller) -> None:
    """About 32 MiB are rewritten by a request, which is told where the next one begins."""
    block, count = 1 << 20, 36
    elements = np.random.default_rng(0).integers(0, 255, count * block, "u1")
    begun = owner.begin(new_key(), elements.shape, dtype="|u1", chunk=2 * block)
    for first in range(0, elements.size, 6 * block):
        answer_of(owner.put(begun["id"], elements[first : first + 6 * block], first, chunk=block))
    stored = answer_of(owner.commit(begun["id"]))
    after, pieces = 0, []
    while after is not None:
        answer = answer_of(owner.call("tensorage_compact", key=stored["key"], after=after))
        pieces.append(answer["merged"])
        after = answer["after"]
    assert pieces == [17, 1]
    assert owner.blocks(stored["id"]) == [(first, 2 * block) for first in range(0, elements.size, 2 * block)]
    for first in range(0, elements.size, 12 * block):
        part = owner.read(stored, first, 12 * block)
        assert np.array_equal(part, elements[first : first + 12 * block])


def test_readers_and_appenders_do_not_notice_compactions(owner: Caller) -> None:
    array = store_in_blocks(owner, "<i4", 2000, 100, random.Random(4))
    key, done = array.dataset["key"], Event()

    def read() -> int:
        reads = 0
        while not done.is_set():
            assert owner.ask(array.dataset, [0], run_length=2000).content == array.elements.tobytes()
            reads += 1
        return reads

    def append() -> None:
        for number in range(60):
            answer_of(owner.append(key, np.full(7, number, "<i4")))

    def compact() -> int:
        merged = 0
        while not done.is_set():
            merged += answer_of(owner.call("tensorage_compact", key=key))["merged"]
        return merged

    with ThreadPoolExecutor(3) as pool:
        jobs = [pool.submit(read), pool.submit(compact)]
        try:
            pool.submit(append).result()
        finally:
            done.set()
        assert all(job.result() for job in jobs)
    expected = np.concatenate([array.elements, np.repeat(np.arange(60, dtype="<i4"), 7)])
    assert owner.read(owner.open(key)).tobytes() == expected.tobytes()
    assert max(count for _, count in owner.blocks(array.dataset["id"])) <= 100


def test_compaction_needs_an_array_of_the_caller(owner: Caller, other: Caller, state_of: StateOf) -> None:
    stored = _in_blocks(owner, [1] * 20, 5)
    answer_of(owner.call("tensorage_share", key=stored["key"]))
    before = state_of(owner)
    for caller, key in ((other, stored["key"]), (owner, new_key()), (owner, None), (owner, "")):
        assert code_of(caller.call("tensorage_compact", key=key)) == "TS001"
    assert state_of(owner) == before


# Attributes ------------------------------------------------------------------------------------------------


def test_attributes_are_set_removed_and_replaced(owner: Caller) -> None:
    stored = owner.store(new_key(), _NUMBERS.reshape(10, 10), attrs={"a": 1, "b": {"c": [2, None]}})
    version = stored["version"]
    for change, attrs, dims in [
        ({"attrs": {"a": 3, "Größe": "気温"}}, {"a": 3, "b": {"c": [2, None]}, "Größe": "気温"}, None),
        ({"removed": ["b", "no such"]}, {"a": 3, "Größe": "気温"}, None),
        ({"removed": ["a"], "attrs": {"a": None}}, {"a": None, "Größe": "気温"}, None),
        ({"dims": ["x", "y"]}, {"a": None, "Größe": "気温"}, None),
        ({"dims": ["x", "y"], "set_dims": True}, {"a": None, "Größe": "気温"}, ["x", "y"]),
        ({"attrs": {"z": 0}, "replace": True}, {"z": 0}, ["x", "y"]),
        ({"replace": True}, {}, ["x", "y"]),
        ({"set_dims": True}, {}, None),
        ({}, {}, None),
    ]:  # fmt: skip
        said = answer_of(owner.call("tensorage_annotate", data_id=stored["id"], **change))
        version += 1
        assert (said["attrs"], said["dims"], said["version"]) == (attrs, dims, version)
        assert owner.open(stored["key"]) == said
    assert np.array_equal(owner.read(stored), _NUMBERS)


@pytest.mark.parametrize(
    "change",
    [
        {"attrs": [1]},
        {"attrs": "text"},
        {"attrs": 5},
        {"attrs": None},
        {"removed": None},
        {"replace": "perhaps"},
        {"attrs": {"note": "a" * 1_048_576}},
        {"attrs": {"a\0b": 1}},
        {"dims": ["x"], "set_dims": True},
        {"dims": ["x", "y", "z"], "set_dims": True},
        {"dims": ["x", "y" * 1_048_577], "set_dims": True},
    ],
    ids=lambda change: str(change)[:30],
)
def test_bad_attributes_are_refused(change: Json, owner: Caller, state_of: StateOf) -> None:
    stored = owner.store(new_key(), _NUMBERS.reshape(10, 10), attrs={"a": 1})
    before = state_of(owner)
    refused = owner.call("tensorage_annotate", data_id=stored["id"], **change)
    assert code_of(refused)[:2] in ("TS", "22", "23"), refused.text
    assert state_of(owner) == before


def test_attributes_are_of_arrays_that_are_there(owner: Caller, state_of: StateOf) -> None:
    begun = owner.begin(new_key(), [10])
    gone = owner.store(new_key(), np.zeros(400, "<i4"), chunk=1)
    answer_of(owner.call("tensorage_remove", key=gone["key"]))
    assigning = owner.begin_assign(owner.store(new_key(), _NUMBERS))
    before = state_of(owner)
    for data_id in (begun["id"], gone["id"], assigning["id"], 2**40, -1, None):
        refused = owner.call("tensorage_annotate", data_id=data_id, attrs={"a": 1})
        assert code_of(refused) == "TS003", data_id
    assert state_of(owner) == before


# Renaming --------------------------------------------------------------------------------------------------


def test_renamed_array_is_the_same_under_another_key(owner: Caller) -> None:
    stored = owner.store(new_key(), _NUMBERS, attrs={"a": 1}, is_shared=True)
    new = "Größe/気温 🌡 100%_\\'\""
    renamed = answer_of(owner.call("tensorage_rename", key=stored["key"], new_key=new))
    assert (renamed["id"], renamed["key"], renamed["attrs"]) == (stored["id"], new, {"a": 1})
    assert renamed["version"] == stored["version"] + 1
    assert code_of(owner.call("tensorage_open", key=stored["key"])) == "TS001"
    assert np.array_equal(owner.read(owner.open(new)), _NUMBERS)
    assert answer_of(owner.append(new, _NUMBERS))["shape"] == [200]
    answer_of(owner.call("tensorage_rename", key=new, new_key=stored["key"]))


def test_renaming_onto_a_taken_key(owner: Caller, state_of: StateOf) -> None:
    first = owner.store(new_key(), _NUMBERS)
    for _ in range(5):
        answer_of(owner.append(first["key"], _NUMBERS[:1]))
    second = owner.store(new_key(), -_NUMBERS)
    before = state_of(owner)
    assert code_of(owner.call("tensorage_rename", key=second["key"], new_key=first["key"])) == "TS002"
    assert state_of(owner) == before
    renamed = answer_of(
        owner.call("tensorage_rename", key=second["key"], new_key=first["key"], overwrite=True)
    )
    # A client that looks at the key only sees its versions grow.
    assert (renamed["id"], renamed["version"], renamed["left"]) == (second["id"], 7, 0)
    assert code_of(owner.ask(first, [0])) == "TS003"
    assert np.array_equal(owner.read(second), -_NUMBERS)
    rows = owner.request("GET", f"/datasets?user_id=eq.{owner.id}&select=id").json()
    assert rows == [{"id": second["id"]}]


@pytest.mark.parametrize("overwrite", [False, True])
def test_renaming_onto_itself_changes_nothing(overwrite: bool, owner: Caller, state_of: StateOf) -> None:
    stored = owner.store(new_key(), _NUMBERS)
    before = state_of(owner)
    key = stored["key"]
    said = answer_of(owner.call("tensorage_rename", key=key, new_key=key, overwrite=overwrite))
    assert said == owner.open(key)
    assert state_of(owner) == before


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("new", ["", "a" * 1025, "é" * 513, "a\0b", None], ids=lambda key: str(key)[:4])
def test_what_is_no_key_is_not_renamed_to(
    new: str | None, overwrite: bool, owner: Caller, state_of: StateOf
) -> None:
    stored = owner.store(new_key(), _NUMBERS)
    before = state_of(owner)
    refused = owner.call("tensorage_rename", key=stored["key"], new_key=new, overwrite=overwrite)
    assert code_of(refused)[:2] in ("TS", "22", "23"), refused.text
    for key in ("", "a" * 1025, None, new_key()):
        assert code_of(owner.call("tensorage_rename", key=key, new_key=new_key())) == "TS001"
    assert state_of(owner) == before


def test_somebody_elses_array_is_not_renamed_or_replaced(
    owner: Caller, other: Caller, state_of: StateOf
) -> None:
    stored = owner.store(new_key(), _NUMBERS, is_shared=True)
    before = state_of(owner)
    assert code_of(other.call("tensorage_rename", key=stored["key"], new_key=new_key())) == "TS001"
    mine = other.store(new_key(), -_NUMBERS)
    renamed = answer_of(
        other.call("tensorage_rename", key=mine["key"], new_key=stored["key"], overwrite=True)
    )
    assert (renamed["id"], renamed["user_id"]) == (mine["id"], other.id)
    assert state_of(owner) == before
    assert np.array_equal(owner.read(owner.open(stored["key"])), _NUMBERS)


def test_same_renaming_is_done_once(owner: Caller, state_of: StateOf) -> None:
    stored, new, operation = owner.store(new_key(), _NUMBERS, attrs={"a": 1}), new_key(), new_operation()
    arguments = {"key": stored["key"], "new_key": new, "operation": operation}
    first = answer_of(owner.call("tensorage_rename", arguments))
    before = state_of(owner)
    assert answer_of(owner.call("tensorage_rename", arguments)) == first
    assert state_of(owner) == before
    owner.store(stored["key"], -_NUMBERS)
    assert answer_of(owner.call("tensorage_rename", arguments)) == first
    assert np.array_equal(owner.read(owner.open(stored["key"])), -_NUMBERS)


def test_what_is_staged_goes_to_the_renamed_array(owner: Caller) -> None:
    stored = owner.store(new_key(), _NUMBERS)
    appending = owner.begin(stored["key"], [100], append=True)
    assigning = owner.begin_assign(stored)
    answer_of(owner.put(appending["id"], _NUMBERS))
    answer_of(owner.patch(assigning["id"], -_NUMBERS, [0], [100]))
    new = answer_of(owner.call("tensorage_rename", key=stored["key"], new_key=new_key()))["key"]
    # A block that an append merged is not assigned to: so this comes first.
    assert answer_of(owner.commit(assigning["id"]))["key"] == new
    assert answer_of(owner.commit(appending["id"]))["key"] == new
    assert np.array_equal(owner.read(owner.open(new)), np.concatenate([-_NUMBERS, _NUMBERS]))


# Lists of keys -----------------------------------------------------------------------------------------------

_LAST = "\U0010ffff"
_KEYS = [
    "a", "a%", "a%b", "a_", "a_b", "a\\", "a\\%", "ab", "a/b", "axb", "A", "b", "é", "e\u0301", "ß", "気温", "気", "🌡",
    _LAST, _LAST * 2, _LAST + "a", "a" + _LAST, "a" + _LAST * 2 + "b", "a" + _LAST * 255, _LAST * 256, "a" * 1024,
    "\ud7ff", "\ue000", "\uffff", "\x7f", "\x80",
]  # fmt: skip


def test_prefixes_are_plain_text(owner: Caller, database: Connection) -> None:
    """Prefixes are no patterns, and of no language. Pages of any size hold the same."""
    # Others may share arrays, too, so that these keys are under a name of their own.
    name = new_key() + "/"
    keys = [name + key for key in _KEYS if len((name + key).encode()) <= 1024]
    keys += [key for key in _KEYS if key.startswith(_LAST * 256)]
    for key in keys:
        owner.store(key, np.array([1]))
    prefixes = {name + key[:length] for key in _KEYS for length in (0, 1, 2, 255)} | {
        _LAST * 256,
        _LAST * 300,
    }
    for prefix in sorted(prefixes):
        expected = sorted((key for key in keys if key.startswith(prefix)), key=str.encode)
        assert answer_of(owner.call("tensorage_list", prefix=prefix)) == expected, prefix
        if prefix == name:
            pages, after = [], ""
            while page := answer_of(owner.call("tensorage_list", prefix=prefix, after=after, max_rows=2)):
                pages += page
                after = page[-1]
            assert pages == expected


def test_keys_are_the_callers_or_those_that_an_owner_shares(owner: Caller, other: Caller) -> None:
    name = new_key() + "/"
    for caller, key, shared in [
        (owner, "a", True), (other, "a", False), (owner, "b", False), (owner, "c", True), (other, "d", True),
    ]:  # fmt: skip
        caller.store(name + key, np.array([1]), is_shared=shared)

    def keys(caller: Caller, **options: Any) -> str:
        listed = answer_of(caller.call("tensorage_list", prefix=name, **options))
        return "".join(key.removeprefix(name) for key in listed)

    assert (keys(other), keys(owner)) == ("ad", "abc")
    assert (keys(other, owner=owner.email), keys(owner, owner=other.id)) == ("ac", "d")
    assert keys(other, owner=owner.email, after=name + "a", max_rows=1) == "c"
    assert keys(owner, owner=owner.email) == "abc"
    # A share of the prefix, and more than one of a key, list each key once.
    answer_of(owner.call("tensorage_share", key=name, readers=[other.email]))
    answer_of(owner.call("tensorage_share", key=name + "a", readers=[other.email]))
    assert keys(other, owner=owner.email) == "abc"
    assert answer_of(other.call("tensorage_count", owner=owner.email)) >= 3
