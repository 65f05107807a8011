"""Shards of an array that is being written: those that the catalogue takes, and its answers about them."""

from __future__ import annotations

import base64
import struct
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from sql.api import Caller, Json, answer_of, code_of, new_key
from sql.conftest import State
from sql.objects import (
    INDEX,
    NUMBERS,
    Shard,
    ask_shards,
    begin,
    begin_append,
    entry,
    fill,
    name_of,
    names,
    put,
    shards,
    store,
)

Connection = psycopg.Connection[tuple[Any, ...]]
StateOf = Callable[[Caller], State]

# Telling of shards -------------------------------------------------------------------------------------------


def test_shards_are_as_they_were_told(owner: Caller) -> None:
    begun = begin(owner, new_key())
    index = struct.pack("<6Q", 0, 5, 2**64 - 1, 2**64 - 1, 2**63, 10)
    told = [
        entry(3, name_of(begun, 3) + ".größe", nbytes=2**62, index=base64.b64encode(index).decode()),
        entry(1, None),
        entry(0, name_of(begun, 0), index=""),
    ]
    assert answer_of(put(owner, begun, *told)) == {"id": begun["id"]}
    expected = {
        0: Shard(name_of(begun, 0), 16, b""),
        1: Shard("", 0, b""),
        3: Shard(name_of(begun, 3) + ".größe", 2**62, index),
    }
    assert shards(owner, begun) == expected
    assert shards(owner, begun, [3, 3, 1]) == {number: expected[number] for number in (1, 3)}
    assert shards(owner, begun, [4, -1, 2**62]) == {}


def test_shards_told_again_are_there_once(owner: Caller, state_of: StateOf) -> None:
    begun = begin(owner, new_key())
    told = [entry(number, name_of(begun, number)) for number in NUMBERS]
    answer_of(put(owner, begun, *told))
    before = state_of(owner)
    answer_of(put(owner, begun, *told[::-1]))
    answer_of(put(owner, begun, told[2], told[2]))
    assert state_of(owner) == before
    answer_of(put(owner, begun, entry(2, name_of(begun, 2) + ".new"), entry(4, None)))
    assert names(owner, begun)[2::2] == [name_of(begun, 2) + ".new", ""]
    assert answer_of(owner.commit(begun["id"], shards=told[:1]))["state"] == "committed"


def test_nothing_at_all_is_no_error(owner: Caller, state_of: StateOf) -> None:
    begun = begin(owner, new_key())
    before = state_of(owner)
    for nothing in ([], None):
        answer_of(owner.call("tensorage_put_shards", data_id=begun["id"], shards=nothing))
    assert state_of(owner) == before


_OTHERS_ID = "00000000-0000-4000-8000-000000000000"

#: Fields of an otherwise good shard. Owner and number of the folder are put in for the text that stands for them.
_BAD_FIELDS: list[Json] = [
    {"number": None}, {"number": -1}, {"number": 2**63}, {"number": "one"}, {"number": 1.5}, {"number": [1]},
    {"nbytes": None}, {"nbytes": -1}, {"nbytes": 0}, {"nbytes": 2**63}, {"nbytes": "many"}, {"nbytes": {}},
    {"index": None}, {"index": "AAAA"}, {"index": "?"}, {"index": 5},
    {"index": base64.b64encode(bytes(15)).decode()}, {"index": base64.b64encode(bytes(17)).decode()},
    {"index": base64.b64encode(bytes(16 * 65537)).decode()},
    {"name": None}, {"name": ""}, {"name": "c/1/0"}, {"name": "{user}/c/1/0"}, {"name": "{user}/{id}"},
    {"name": "{user}/{id}0/c"}, {"name": "{user}/0{id}/c"}, {"name": "{user}/0/c"}, {"name": "{user}/x/{id}/c"},
    {"name": "{user}//{id}/c"}, {"name": "/{user}/{id}/c"}, {"name": " {user}/{id}/c"}, {"name": "{user} /{id}/c"},
    {"name": f"{_OTHERS_ID}/{{id}}/c"}, {"name": "{USER}/{id}/c"}, {"name": "../{id}/{user}/{id}/c"},
    {"name": "{user}/{id}/" + "a" * 1024}, {"name": ["{user}/{id}/c"]}, {"name": "{user}/{id}/c/0/0"},
    {"low": 2}, {"high": 4}, {"low": 2, "high": None}, {"low": 4, "high": 2}, {"low": "two", "high": 4},
    {"low": 1, "high": 3}, {"low": 3, "high": 5}, {"low": -2, "high": 4}, {"low": 2, "high": 2**63 - 1},
    {"low": -(2**63), "high": 2**63 - 1}, {"low": 2**63, "high": 2**63 + 1},
    {"low": 0, "high": 2, "number": 2**62}, {"low": 0, "high": 2, "number": 5}, {"low": 3, "high": 3},
]  # fmt: skip


@pytest.mark.parametrize("bad", _BAD_FIELDS, ids=lambda bad: str(bad)[:50])
def test_what_is_no_shard_is_refused(bad: Json, owner: Caller, state_of: StateOf) -> None:
    """None of the shards that come along with it is taken."""
    begun = begin(owner, new_key())
    answer_of(put(owner, begun, entry(0, name_of(begun, 0))))
    if isinstance(name := bad.get("name"), str):
        known = {"{user}": owner.id, "{USER}": owner.id.upper(), "{id}": str(begun["id"])}
        for placeholder, value in known.items():
            name = name.replace(placeholder, value)
        bad = bad | {"name": name}
    told = [entry(2, None), entry(1, name_of(begun, 1)) | bad, entry(3, name_of(begun, 3))]
    before = state_of(owner)
    for refused in (put(owner, begun, *told), owner.commit(begun["id"], shards=told)):
        assert code_of(refused) == "TS006", refused.text
        assert state_of(owner) == before


def test_name_that_is_no_text_of_postgresql_is_refused(owner: Caller, state_of: StateOf) -> None:
    begun = begin(owner, new_key())
    before = state_of(owner)
    assert code_of(put(owner, begun, entry(1, name_of(begun, 1) + "\0"))) in ("22P05", "TS006")
    assert state_of(owner) == before


@pytest.mark.parametrize(
    "bad", [{}, {"number": 1}, 5, "text", True, [1], [None], [[]], [{}], [{"number": 0}, 5]], ids=str
)
def test_what_is_no_list_of_shards_is_refused(bad: Any, owner: Caller, state_of: StateOf) -> None:
    begun = begin(owner, new_key())
    before = state_of(owner)
    assert code_of(owner.call("tensorage_put_shards", data_id=begun["id"], shards=bad)) == "TS006"
    assert code_of(owner.commit(begun["id"], shards=bad)) == "TS006"
    assert state_of(owner) == before


def test_object_is_one_shard_of_one_array(owner: Caller, state_of: StateOf) -> None:
    first, second = begin(owner, new_key()), begin(owner, new_key())
    answer_of(put(owner, first, entry(0, name_of(first, 0))))
    before = state_of(owner)
    for begun, told in [
        (first, [entry(1, name_of(first, 0))]),
        (first, [entry(2, name_of(first, 2)), entry(3, name_of(first, 2))]),
        (first, [entry(1, name_of(first, 0), low=2, high=3)]),
        (second, [entry(0, name_of(first, 0))]),
    ]:
        assert code_of(put(owner, begun, *told)) == "TS006"
        assert state_of(owner) == before


def test_shards_are_told_of_what_is_being_written(owner: Caller, state_of: StateOf) -> None:
    committed, gone, aborted = store(owner), store(owner), begin(owner, new_key())
    rows = owner.begin(new_key(), [9, 3])
    answer_of(owner.call("tensorage_remove", key=gone["key"]))
    answer_of(put(owner, aborted, entry(0, name_of(aborted, 0))))
    answer_of(owner.call("tensorage_abort", data_id=aborted["id"]))
    before = state_of(owner)
    for begun, code in [
        (committed, "TS003"), (gone, "TS003"), (aborted, "TS003"), (rows, "TS010"),
        (rows | {"id": 2**62}, "TS001"), (rows | {"id": -1}, "TS001"), (rows | {"id": None}, "TS001"),
    ]:  # fmt: skip
        assert code_of(put(owner, begun, entry(0, name_of(begun, 0) + ".new"))) == code, begun
        assert state_of(owner) == before


# Parts of shards ---------------------------------------------------------------------------------------------


def _part(begun: Json, number: int, low: int, high: int, before: str | None, suffix: str) -> Json:
    """Rows of a shard of ten rows, in an object of their own beside those that were there."""
    return entry(number, f"{name_of(begun, number)}.{suffix}", low=low, high=high, before=before)


def test_shard_is_filled_part_by_part(owner: Caller) -> None:
    begun = begin(owner, new_key(), [25, 3], (10, 3))
    before = None
    for low, high in [(4, 6), (8, 10), (0, 3), (0, 5), (6, 8)]:
        assert code_of(owner.commit(begun["id"])) == "TS004"
        told = _part(begun, 0, low, high, before, f"{low}-{high}")
        answer_of(put(owner, begun, told))
        before = told["name"]
        assert shards(owner, begun)[0].name == before
    # The last one has but five rows.
    whole = [entry(1, None), _part(begun, 2, 20, 25, None, "a")]
    assert answer_of(owner.commit(begun["id"], shards=whole))["shape"] == [25, 3]


def test_missing_rows_of_a_shard_are_missing(owner: Caller) -> None:
    begun = begin(owner, new_key(), [25, 3], (10, 3))
    answer_of(put(owner, begun, entry(0, name_of(begun, 0)), entry(1, None)))
    answer_of(put(owner, begun, _part(begun, 2, 21, 25, None, "a")))
    refused = owner.commit(begun["id"])
    assert code_of(refused) == "TS004"
    assert refused.json()["details"] == '{"stored" : 2, "expected" : 3}'
    answer_of(put(owner, begun, _part(begun, 2, 20, 21, f"{name_of(begun, 2)}.a", "b")))
    answer_of(owner.commit(begun["id"]))


def test_part_goes_beside_what_its_writer_saw(owner: Caller, state_of: StateOf) -> None:
    """A writer that saw another object, or none, would lose rows."""
    begun = begin(owner, new_key(), [25, 3], (10, 3))
    first = _part(begun, 0, 0, 3, None, "a")
    empty = {"name": None, "nbytes": 0, "index": ""}
    answer_of(put(owner, begun, first, _part(begun, 1, 10, 12, None, "") | empty))
    before = state_of(owner)
    for number, low, seen in [
        (0, 3, None), (0, 3, ""), (0, 3, "another"), (1, 12, None), (1, 12, "another"), (2, 20, ""),
        (2, 20, "another"),
    ]:  # fmt: skip
        refused = put(owner, begun, _part(begun, number, low, low + 5, seen, "b"))
        assert code_of(refused) == "TS003", (number, seen)
        assert state_of(owner) == before
    # An answer that was lost: the same again.
    answer_of(put(owner, begun, first))
    assert state_of(owner) == before
    answer_of(put(owner, begun, _part(begun, 1, 12, 20, "", "b")))
    answer_of(put(owner, begun, _part(begun, 0, 3, 10, first["name"], "b")))
    answer_of(owner.commit(begun["id"], shards=[entry(2, None)]))


def test_whole_shard_takes_the_place_of_parts(owner: Caller) -> None:
    begun = begin(owner, new_key(), [25, 3], (10, 3))
    answer_of(put(owner, begun, _part(begun, 0, 0, 3, None, "a"), entry(1, None), entry(2, None)))
    answer_of(put(owner, begun, entry(0, name_of(begun, 0))))
    answer_of(put(owner, begun, _part(begun, 0, 0, 3, name_of(begun, 0), "b")))
    answer_of(owner.commit(begun["id"]))


def test_single_element_is_filled_whole_or_by_its_only_row(owner: Caller) -> None:
    for told in ({}, {"low": 0, "high": 1, "before": None}):
        begun = begin(owner, new_key(), [], ())
        answer_of(owner.commit(begun["id"], shards=[entry(0, name_of(begun, 0), **told)]))


# Asking for shards -------------------------------------------------------------------------------------------


def test_shards_outside_of_an_array_are_an_error(owner: Caller) -> None:
    dataset = store(owner)
    for numbers in ([5], [0, -1], [2**63 - 1], [0, 1, 2, 3, 4, 5]):
        assert code_of(ask_shards(owner, dataset, numbers)) == "TS004"
    for numbers in ([], None, [None]):
        assert ask_shards(owner, dataset, numbers).content == b""
    for numbers in ("text", ["a"], [1.5], [2**63], 5):
        assert code_of(ask_shards(owner, dataset, numbers))[:2] == "22"


def test_shards_are_asked_for_by_version(owner: Caller) -> None:
    dataset = store(owner)
    for version in (0, -1, dataset["version"] + 1, 2**63 - 1):
        assert code_of(ask_shards(owner, dataset, version=version)) == "TS003"
    # No version is that of a staged one.
    assert code_of(ask_shards(owner, dataset, version=None)) == "TS001"
    begun = begin(owner, new_key())
    assert code_of(ask_shards(owner, begun, version=1)) == "TS003"
    answer_of(put(owner, begun, *fill(owner, begun)))
    answer_of(owner.call("tensorage_abort", data_id=begun["id"]))
    assert code_of(ask_shards(owner, begun)) == "TS001"


def test_shards_of_a_staged_append_are_its_own(owner: Caller) -> None:
    begun = begin_append(owner, store(owner), 3)
    assert shards(owner, begun) == {}
    answer_of(put(owner, begun, entry(5, name_of(begun, 5))))
    assert shards(owner, begun, range(6)) == {5: Shard(name_of(begun, 5), 16, INDEX)}


def test_has_object(owner: Caller, other: Caller, database: Connection) -> None:
    """Everybody who may read the array is answered, whether or not the policies of the bucket let them."""

    def asks(caller: Caller, dataset: Json, number: Any) -> Any:
        return answer_of(caller.call("tensorage_has_object", data_id=dataset["id"], number=number))

    key = new_key()
    begun = begin(owner, key)
    told = fill(owner, begun, [0, 1])
    answer_of(put(owner, begun, told[0], entry(1, None), entry(2, name_of(begun, 2))))
    assert [asks(owner, begun, number) for number in range(4)] == [True, False, False, False]
    dataset = answer_of(owner.commit(begun["id"], shards=[entry(3, None), entry(4, None)]))
    assert not asks(other, dataset, 0)
    answer_of(owner.call("tensorage_share", key=key))
    assert asks(other, dataset, 0)
    for number in (1, 2, 5, -1, 2**62, None):
        assert not asks(owner, dataset, number)
        assert not asks(other, dataset, number)
    assert not asks(owner, {"id": None}, 0)
