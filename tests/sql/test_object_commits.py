"""Commits of arrays of Storage, appends and assignments: all or nothing, once, and onto what they were made from."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from typing import Any

import pytest
from sql.api import Caller, Json, answer_of, code_of, described, new_key, new_operation
from sql.conftest import State
from sql.objects import (
    INDEX,
    NUMBERS,
    append,
    ask_shards,
    ask_to_append,
    assign,
    begin,
    begin_append,
    begin_assign,
    content_of,
    entry,
    fill,
    metadata,
    name_of,
    names,
    put,
    shards,
    store,
)

StateOf = Callable[[Caller], State]

# Complete or not ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("numbers", [[0, 1, 2, 3, 5], [0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4, 2**63 - 1], [-1]])
def test_array_has_no_other_shards_than_its_own(numbers: list[int], owner: Caller, state_of: StateOf) -> None:
    """Nothing is kept for an array that its elements, which the quota counts, do not account for."""
    begun = begin(owner, new_key())
    told = [entry(number, name_of(begun, number)) for number in numbers]
    before = state_of(owner)
    for refused in (owner.commit(begun["id"], shards=told), put(owner, begun, *told)):
        assert code_of(refused) == "TS006"
    assert state_of(owner) == before


def test_shard_has_no_more_chunks_than_elements(owner: Caller, state_of: StateOf) -> None:
    begun = begin(owner, new_key())
    most, too_many = (
        entry(0, name_of(begun, 0)) | {"index": base64.b64encode(INDEX * chunks).decode()}
        for chunks in (6, 7)
    )
    answer_of(put(owner, begun, most))
    before = state_of(owner)
    assert code_of(put(owner, begun, too_many)) == "TS006"
    assert state_of(owner) == before


@pytest.mark.parametrize("numbers", [[], [0, 1, 2, 3], [1, 2, 3, 4]])
def test_array_is_committed_with_all_of_its_shards(
    numbers: list[int], owner: Caller, state_of: StateOf
) -> None:
    key = new_key()
    begun = begin(owner, key)
    told = [entry(number, name_of(begun, number)) for number in numbers]
    before = state_of(owner)
    refused = owner.commit(begun["id"], shards=told)
    assert code_of(refused) == "TS004"
    whole = len(set(numbers) & set(NUMBERS))
    assert json.loads(refused.json()["details"]) == {"stored": whole, "expected": 5}
    assert state_of(owner) == before
    answer_of(put(owner, begun, *told))
    assert code_of(owner.commit(begun["id"])) == "TS004"
    assert code_of(owner.call("tensorage_open", key=key)) == "TS001"


@pytest.mark.parametrize(
    ("shape", "extents", "count"),
    [
        ([], (), 1),
        ([1], (2**63 - 1,), 1),
        ([2**62], (2**61,), 2),
        ([0], (1,), 0),
        ([0, 2**63 - 1], (5, 2**62 + 1), 0),
        ([5, 0, 3], (2, 1, 3), 0),
        ([5, 4, 3], (2, 3, 3), 6),
    ],
)
def test_shards_are_counted_in_any_shape(
    shape: list[int], extents: tuple[int, ...], count: int, owner: Caller
) -> None:
    begun = begin(owner, new_key(), shape, extents, dtype="|u1")
    told = [entry(number, name_of(begun, number)) for number in range(count + 1)]
    assert code_of(owner.commit(begun["id"], shards=told)) == "TS006"
    answer_of(owner.call("tensorage_abort", data_id=begun["id"]))
    begun = begin(owner, new_key(), shape, extents, dtype="|u1")
    told = [entry(number, name_of(begun, number)) for number in range(count)]
    if count:
        assert code_of(owner.commit(begun["id"], shards=told[1:])) == "TS004"
    committed = answer_of(owner.commit(begun["id"], shards=told))
    assert list(shards(owner, committed, range(count))) == list(range(count))


def test_description_holds_the_metadata_as_they_were_given(owner: Caller) -> None:
    zarr = metadata(fill_value=-0.0, é=[None, 12345678901234567890, 0.1])
    # No number of jsonb, or of a float.
    zarr = zarr.replace("0.1", " 1e400,  0.10")
    begun = begin(owner, new_key(), zarr=zarr, attrs={"a": 1}, dims=["x", "y"], is_shared=True)
    assert (begun["engine"], begun["zarr"], begun["state"]) == ("storage", zarr, "staged")
    committed = answer_of(owner.commit(begun["id"], shards=fill(owner, begun)))
    assert described(committed) == begun | {
        "state": "committed", "is_shared": True, "stored_bytes": committed["stored_bytes"],
        "updated_at": committed["updated_at"],
    }  # fmt: skip
    assert committed["stored_bytes"] > 0
    assert owner.open(begun["key"]) == described(committed)
    assert (committed["left"], committed["objects_left"], committed["version"]) == (0, 0, 1)


_GRID = {"name": "regular", "configuration": {"chunk_shape": [2, 3]}}


@pytest.mark.parametrize(
    "zarr",
    [
        None, "", "{", "nothing", "[]", "5", "null", '"text"', "{}", '{"chunk_grid": 5}', '{"chunk_grid": {}}',
        "[" * 1_000_000, '{"a":' * 50_000 + "1" + "}" * 50_000, metadata(note="a" * 65536),
        *(metadata(extents) for extents in [
            (), (2,), (2, 3, 1), (0, 3), (-2, 3), (2, None), (None, None), (1.5, 3), ("two", 3), ([2], 3), (2**63, 3),
            (True, 3), ({}, 3), (1e2, 3),
        ]),
        metadata(chunk_grid=_GRID | {"configuration": {"chunk_shape": 5}}),
        metadata(chunk_grid=_GRID | {"configuration": {"chunk_shape": {"0": 2}}}),
        metadata(chunk_grid=_GRID | {"configuration": {"chunk_shape": None}}),
        metadata(chunk_grid=_GRID | {"configuration": [2, 3]}),
    ],
    ids=lambda zarr: str(zarr)[-30:],
)  # fmt: skip
def test_what_is_no_metadata_is_refused(zarr: str | None, owner: Caller, state_of: StateOf) -> None:
    before = state_of(owner)
    asked = {
        "key": new_key(),
        "shape": [9, 3],
        "dtype": "<i4",
        "chunk": 10,
        "engine": "storage",
        "zarr": zarr,
    }
    refused = owner.call("tensorage_begin", asked)
    assert code_of(refused) in ("TS006", "23514"), refused.text
    assert state_of(owner) == before


def test_rows_have_no_metadata_and_engines_are_known_ones(owner: Caller, state_of: StateOf) -> None:
    before = state_of(owner)
    asked = {"key": new_key(), "shape": [9, 3], "dtype": "<i4", "chunk": 10, "zarr": metadata()}
    for engine in ({}, {"engine": "database"}, {"engine": "memory"}, {"engine": ""}, {"engine": None}):
        assert code_of(owner.call("tensorage_begin", asked | engine)) == "23514"
    # More shards than numbers.
    many = {"engine": "storage", "shape": [2**40, 2**40], "zarr": metadata((1, 1))}
    assert code_of(owner.call("tensorage_begin", asked | many)) == "TS006"
    assert state_of(owner) == before


# Appends -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [1, 2, 3, 0])
def test_append_brings_the_shards_from_its_first_row_on(rows: int, owner: Caller, state_of: StateOf) -> None:
    """Nine rows in shards of two leave one to the last shard: it is written anew with the rows that it has then."""
    dataset = store(owner)
    old = names(owner, dataset)
    begun = begin_append(owner, dataset, rows)
    assert (begun["shape"], begun["state"], begun["zarr"]) == ([rows, 3], "staged", dataset["zarr"])
    numbers = range(4, 4 + (rows + 2) // 2) if rows else range(4, 4)
    told = [entry(n, name_of(begun, n), based_on=old[4] if n == 4 else None) for n in numbers]
    before = state_of(owner)
    for too_few in (told[1:], told[:-1]):
        if too_few != told:
            assert code_of(owner.commit(begun["id"], shards=too_few)) == "TS004"
    before_it = entry(3, name_of(begun, 3), based_on=old[3])
    behind_it = entry(max(numbers.stop, 5), name_of(begun, 99))
    for surplus in (before_it, behind_it):
        assert code_of(owner.commit(begun["id"], shards=[surplus, *told])) == "TS006"
    assert state_of(owner) == before
    appended = answer_of(owner.commit(begun["id"], shards=told))
    assert (appended["id"], appended["shape"], appended["version"]) == (dataset["id"], [9 + rows, 3], 2)
    assert appended["objects_left"] == int(rows > 0)
    now = names(owner, appended, range(max(numbers.stop, 5)))
    assert now == (old[:4] + [entry["name"] for entry in told] if rows else old)


def test_append_behind_whole_shards_replaces_none(owner: Caller) -> None:
    begun = begin(owner, new_key(), [8, 3])
    dataset = answer_of(owner.commit(begun["id"], shards=fill(owner, begun, range(4))))
    old = names(owner, dataset, range(4))
    appended = append(owner, dataset, 3, [4, 5])
    assert appended["objects_left"] == 0
    assert names(owner, appended, range(4)) == old


def test_append_to_no_rows_and_across_columns_of_shards(owner: Caller) -> None:
    dataset = answer_of(owner.commit(begin(owner, new_key(), [0, 5], (2, 3))["id"]))
    dataset = append(owner, dataset, 3, range(4))
    olds = {f"of_{number}": name for number, name in enumerate(names(owner, dataset, range(4)))}
    begun = begin_append(owner, dataset, 2)
    # A row of shards begins with number 2.
    alone = fill(owner, begun, [2, 4, 5], **olds)
    assert code_of(owner.commit(begun["id"], shards=alone)) == "TS004"
    grown = answer_of(owner.commit(begun["id"], shards=fill(owner, begun, [2, 3, 4, 5], **olds)))
    assert grown["shape"] == [5, 5]
    assert names(owner, grown, range(6))[:2] == [olds["of_0"], olds["of_1"]]


def test_readers_of_the_earlier_version_go_on_after_an_append(owner: Caller) -> None:
    dataset = store(owner)
    old = names(owner, dataset)
    appended = append(owner, dataset, 3, [4, 5], of_4=old[4])
    # They are given the new object of the shard that has grown: the old one may be deleted.
    assert names(owner, dataset) == names(owner, appended)
    assert names(owner, dataset)[:4] == old[:4]
    for number, name in enumerate(names(owner, dataset)):
        content = content_of(owner, name)
        assert content is not None
        assert content.startswith(f"{number} of ".encode())
    assert content_of(owner, old[4]) is not None


@pytest.mark.parametrize("based_on", [None, "", "another", "old of 3"])
def test_append_to_a_shard_that_is_another_is_refused(
    based_on: str | None, owner: Caller, state_of: StateOf
) -> None:
    dataset = store(owner)
    begun = begin_append(owner, dataset, 1)
    name = names(owner, dataset)[3] if based_on == "old of 3" else based_on
    before = state_of(owner)
    refused = owner.commit(begun["id"], shards=[entry(4, name_of(begun, 4), based_on=name)])
    assert code_of(refused) == "TS003"
    assert state_of(owner) == before


def test_shard_without_an_object_is_built_on_too(owner: Caller) -> None:
    begun = begin(owner, new_key())
    dataset = answer_of(owner.commit(begun["id"], shards=[entry(number, None) for number in NUMBERS]))
    begun = begin_append(owner, dataset, 1)
    assert code_of(owner.commit(begun["id"], shards=[entry(4, None)])) == "TS003"
    appended = answer_of(owner.commit(begun["id"], shards=[entry(4, name_of(begun, 4), based_on="")]))
    begun = begin_assign(owner, appended)
    told = [entry(4, None, based_on=names(owner, appended)[4]), entry(0, name_of(begun, 0), based_on="")]
    assigned = answer_of(owner.commit(begun["id"], shards=told))
    assert names(owner, assigned) == [name_of(begun, 0), "", "", "", ""]


def test_later_append_of_two_is_refused(owner: Caller, state_of: StateOf) -> None:
    """The later one is as long as the first one was, or replaces nothing."""
    dataset = store(owner)
    begun = [
        begin_append(owner, dataset, 1),
        begin_append(owner, dataset, 1),
        begin_append(owner, dataset, 0),
    ]
    last = {"of_4": names(owner, dataset)[4]}
    told = [fill(owner, one, [4], **last) for one in begun[:2]]
    answer_of(owner.commit(begun[0]["id"], shards=told[0]))
    before = state_of(owner)
    assert code_of(owner.commit(begun[1]["id"], shards=told[1])) == "TS003"
    assert code_of(owner.commit(begun[2]["id"])) == "TS003"
    assert code_of(ask_to_append(owner, dataset, 1)) == "TS003"
    assert state_of(owner) == before


@pytest.mark.parametrize(
    "bad",
    [
        {"shape": [1, 4]}, {"shape": [1]}, {"shape": [1, 3, 1]}, {"shape": []}, {"shape": [-1, 3]},
        {"shape": [None, 3]}, {"shape": [1, None]}, {"shape": None}, {"shape": [[1, 3]]}, {"shape": [2**63 - 1, 3]},
        {"shape": [2**62, 3]},
    ],
    ids=str,
)  # fmt: skip
def test_rows_that_do_not_fit_are_refused(bad: Json, owner: Caller, state_of: StateOf) -> None:
    dataset = store(owner)
    before = state_of(owner)
    assert code_of(ask_to_append(owner, dataset, 1, **bad)) == "TS006"
    assert state_of(owner) == before


def test_append_is_to_the_rows_that_were_seen(owner: Caller, state_of: StateOf) -> None:
    dataset, single, staged = store(owner), begin(owner, new_key(), [], ()), begin(owner, new_key())
    single = answer_of(owner.commit(single["id"], shards=fill(owner, single, [0])))
    before = state_of(owner)
    for base_rows in (8, 10, 0, -1, 2**63 - 1, None):
        assert code_of(ask_to_append(owner, dataset, 1, base_rows=base_rows)) == "TS003"
    for base_rows, code in ((0, "TS003"), (None, "TS006")):
        refused = ask_to_append(owner, dataset, 1, data_id=single["id"], base_rows=base_rows)
        assert code_of(refused) == code
    for data_id in (staged["id"], 2**62, -1, None):
        assert code_of(ask_to_append(owner, dataset, 1, data_id=data_id)) == "TS003"
    assert state_of(owner) == before


# Assignments -------------------------------------------------------------------------------------------------


def test_assignment_replaces_its_shards(owner: Caller) -> None:
    dataset = store(owner)
    old = names(owner, dataset)
    assigned = assign(owner, dataset, of_1=old[1], of_4=old[4])
    assert (assigned["id"], assigned["shape"], assigned["version"]) == (dataset["id"], [9, 3], 2)
    assert assigned["objects_left"] == 1
    new = names(owner, assigned)
    assert [new[number] == old[number] for number in NUMBERS] == [True, False, True, True, False]
    assert code_of(ask_shards(owner, dataset)) == "TS003"
    assert code_of(owner.ask_to_assign(dataset, engine="storage")) == "TS003"
    # An append counts rows, which are the same.
    assert begin_append(owner, dataset, 1)["shape"] == [1, 3]


def test_disjoint_changes_all_get_through(owner: Caller) -> None:
    dataset = store(owner)
    old = names(owner, dataset)
    begun = [begin_assign(owner, dataset), begin_assign(owner, dataset), begin_append(owner, dataset, 1)]
    for one, number in zip(begun, (0, 3, 4), strict=True):
        answer_of(owner.commit(one["id"], shards=fill(owner, one, [number], **{f"of_{number}": old[number]})))
    opened = owner.open(dataset["key"])
    assert (opened["version"], opened["shape"]) == (4, [10, 3])
    owners = [name_of(begun[0], 0), old[1], old[2], name_of(begun[1], 3), name_of(begun[2], 4)]
    assert names(owner, opened) == owners


@pytest.mark.parametrize("first", ["assign", "append"])
def test_change_of_a_shard_that_was_changed_meanwhile_is_refused(
    first: str, owner: Caller, state_of: StateOf
) -> None:
    dataset = store(owner)
    last = {"of_4": names(owner, dataset)[4]}
    late = [begin_assign(owner, dataset), begin_append(owner, dataset, 1)]
    told = [fill(owner, one, [4], **last) for one in late]
    if first == "assign":
        assign(owner, dataset, **last)
    else:
        append(owner, dataset, 1, [4], **last)
    before = state_of(owner)
    for one, shards_of in zip(late, told, strict=True):
        assert code_of(owner.commit(one["id"], shards=shards_of)) == "TS003"
    assert state_of(owner) == before


@pytest.mark.parametrize("number", [5, 6, 2**62])
def test_assignment_outside_of_the_array_is_refused(number: int, owner: Caller, state_of: StateOf) -> None:
    """An append would find a shard where it brings one."""
    dataset = store(owner)
    begun = begin_assign(owner, dataset)
    before = state_of(owner)
    for based_on in (None, "", "another"):
        told = [entry(number, name_of(begun, 9), based_on=based_on)]
        assert code_of(owner.commit(begun["id"], shards=told)) == "TS006"
    assert state_of(owner) == before


def test_part_of_a_shard_is_neither_appended_nor_assigned(owner: Caller, state_of: StateOf) -> None:
    dataset = store(owner)
    for begun in (begin_assign(owner, dataset), begin_append(owner, dataset, 9)):
        before = state_of(owner)
        told = entry(1, name_of(begun, 1), low=2, high=4, before=None)
        assert code_of(put(owner, begun, told)) == "TS006"
        assert state_of(owner) == before


def test_assignment_of_nothing_is_one(owner: Caller) -> None:
    dataset = store(owner)
    assigned = answer_of(owner.commit(begin_assign(owner, dataset)["id"]))
    assert (assigned["version"], names(owner, assigned)) == (2, [name_of(dataset, n) for n in NUMBERS])


# Repetition --------------------------------------------------------------------------------------------------


def test_repeated_operations_answer_as_the_first_time(owner: Caller, state_of: StateOf) -> None:
    dataset = store(owner, attrs={"a": 1})
    old = names(owner, dataset)
    asks: list[tuple[Callable[[str], Json], list[int]]] = [
        (
            lambda operation: begin(owner, "key of " + operation, operation=operation, attrs={"b": 2}),
            list(NUMBERS),
        ),
        (lambda operation: begin_append(owner, dataset, 1, operation=operation), [4]),
        (lambda operation: begin_assign(owner, dataset, operation=operation), [2]),
    ]
    for ask, numbers in asks:
        operation, committed_by = new_operation(), new_operation()
        begun = ask(operation)
        before = state_of(owner)
        assert ask(operation) == begun
        assert state_of(owner) == before
        olds = {f"of_{number}": old[number] for number in NUMBERS} if len(numbers) == 1 else {}
        told: Any = fill(owner, begun, numbers, **olds)
        committed = answer_of(owner.commit(begun["id"], operation=committed_by, shards=told))
        before = state_of(owner)
        # The shards that come along do not matter.
        for again in (told, None, [{"number": -1}]):
            assert answer_of(owner.commit(begun["id"], operation=committed_by, shards=again)) == committed
        assert state_of(owner) == before
