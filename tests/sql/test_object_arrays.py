"""Arrays of Storage among those of the database: under their keys, for others, and when the two are mixed up."""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
import pytest
from sql.api import Caller, Json, answer_of, code_of, described, new_key, new_operation, whole
from sql.conftest import State
from sql.objects import (
    NUMBERS,
    append,
    ask_shards,
    ask_to_append,
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
    store,
    sweep,
)

StateOf = Callable[[Caller], State]

_ROWS = np.arange(27, dtype="<i4").reshape(9, 3)

# Engines -----------------------------------------------------------------------------------------------------


def test_functions_of_the_database_keep_away_from_objects(owner: Caller, state_of: StateOf) -> None:
    """The errors say what the array is like: a client then goes on with the other engine."""
    dataset = store(owner)
    key, staged = dataset["key"], begin_assign(owner, dataset)
    more = {"key": key, "shape": [1, 3], "dtype": "<i4", "chunk": 3, "append": True}
    before = state_of(owner)
    for refused in (
        owner.ask(dataset, [0]),
        owner.ask_spans(dataset, [0], [1]),
        owner.append(key, _ROWS[:1]),
        owner.call("tensorage_begin", more),
        owner.assign(dataset, _ROWS[:1], [0], [3]),
        owner.ask_to_assign(dataset),
        owner.ask_to_assign(dataset, engine="database"),
        owner.ask_to_assign(dataset, engine="memory"),
        owner.ask_to_assign(dataset, engine=None),
    ):
        assert code_of(refused) == "TS010", refused.text
        assert json.loads(refused.json()["details"]) == owner.open(key)
    for refused in (owner.put(staged["id"], _ROWS), owner.patch(staged["id"], _ROWS[:1], [0], [3])):
        assert code_of(refused) == "TS010"
        assert json.loads(refused.json()["details"]) == staged
    assert state_of(owner) == before


def test_functions_of_objects_keep_away_from_the_database(owner: Caller, state_of: StateOf) -> None:
    dataset = owner.store(new_key(), _ROWS)
    staged, assigning = owner.begin(new_key(), [9, 3]), owner.begin_assign(dataset)
    answer_of(owner.put(staged["id"], _ROWS))
    more = {"key": dataset["key"], "shape": [1, 3], "dtype": "<i4", "chunk": 3, "append": True}
    before = state_of(owner)
    for refused in (
        ask_shards(owner, dataset),
        ask_shards(owner, dataset, []),
        ask_to_append(owner, dataset, 1),
        owner.ask_to_assign(dataset, engine="storage"),
        owner.call("tensorage_begin", more | {"engine": "storage", "zarr": metadata()}),
    ):
        assert code_of(refused) == "TS010", refused.text
        assert json.loads(refused.json()["details"]) == described(dataset)
    for begun in (staged, assigning):
        told = [entry(0, name_of(begun, 0))]
        for refused in (
            put(owner, begun, *told),
            owner.commit(begun["id"], shards=told),
            ask_shards(owner, begun),
        ):
            assert code_of(refused) == "TS010"
            assert json.loads(refused.json()["details"]) == begun
    assert state_of(owner) == before
    answer_of(owner.commit(staged["id"]))


def test_rows_are_not_begun_to_be_appended_as_objects(owner: Caller, state_of: StateOf) -> None:
    """A function of its own begins an append to an array of Storage, and knows where it belongs."""
    dataset = store(owner)
    more = {"key": dataset["key"], "shape": [1, 3], "dtype": "<i4", "chunk": 3, "append": True}
    before = state_of(owner)
    refused = owner.call("tensorage_begin", more | {"engine": "storage", "zarr": metadata()})
    assert code_of(refused) == "TS010"
    assert state_of(owner) == before


def test_array_in_one_request_is_none_of_objects(owner: Caller, state_of: StateOf) -> None:
    before = state_of(owner)
    for rows in (_ROWS, _ROWS[:0]):
        meta = {"key": new_key(), "engine": "storage", "zarr": metadata()}
        assert code_of(owner.call("tensorage_store", whole(rows, **meta))) == "TS006"
    assert state_of(owner) == before


def test_either_kind_of_array_takes_the_place_of_the_other(owner: Caller) -> None:
    key = new_key()
    rows = owner.store(key, _ROWS)
    begun = begin(owner, key, overwrite=True)
    told = fill(owner, begun)
    assert np.array_equal(owner.read(owner.open(key)), _ROWS.reshape(-1))
    objects = answer_of(owner.commit(begun["id"], shards=told))
    assert (objects["version"], objects["left"], objects["objects_left"]) == (2, 0, 0)
    assert owner.open(key) == described(objects)
    assert code_of(owner.ask(rows, [0])) == "TS003"
    again = owner.store(key, -_ROWS, overwrite=True)
    assert (again["version"], again["left"], again["objects_left"]) == (3, 0, 1)
    assert code_of(ask_shards(owner, objects)) == "TS003"
    assert sweep(owner) == [name_of(objects, number) for number in NUMBERS]
    assert np.array_equal(owner.read(owner.open(key)), -_ROWS.reshape(-1))
    rows_left = owner.request("GET", f"/datasets?user_id=eq.{owner.id}&select=id").json()
    assert rows_left == [{"id": again["id"]}]


def test_taken_key_is_taken_for_both(owner: Caller, state_of: StateOf) -> None:
    rows, objects = owner.store(new_key(), _ROWS), store(owner)
    late = begin(owner, new_key())
    told = fill(owner, late)
    answer_of(owner.call("tensorage_rename", key=rows["key"], new_key=late["key"]))
    before = state_of(owner)
    assert code_of(owner.call("tensorage_store", whole(_ROWS, key=objects["key"]))) == "TS002"
    asked = {"shape": [9, 3], "dtype": "<i4", "chunk": 10, "engine": "storage", "zarr": metadata()}
    for key in (late["key"], objects["key"]):
        assert code_of(owner.call("tensorage_begin", asked, key=key)) == "TS002"
    assert code_of(owner.commit(late["id"], shards=told)) == "TS002"
    assert state_of(owner) == before


# Keys --------------------------------------------------------------------------------------------------------


def test_overwritten_array_counts_versions_on(owner: Caller) -> None:
    first = store(owner)
    appended = append(owner, first, 1, [4], of_4=names(owner, first)[4])
    second = store(owner, first["key"], overwrite=True)
    assert (second["version"], second["objects_left"]) == (3, 1)
    for dataset in (first, appended):
        assert code_of(ask_shards(owner, dataset)) == "TS003"
    assert names(owner, second) == [name_of(second, number) for number in NUMBERS]
    assert code_of(ask_shards(owner, second, version=2)) == "TS003"


def test_renamed_array_has_the_same_objects(owner: Caller) -> None:
    dataset, other_dataset, rows = store(owner), store(owner), owner.store(new_key(), _ROWS)
    renamed = answer_of(owner.call("tensorage_rename", key=dataset["key"], new_key=new_key()))
    assert (renamed["id"], renamed["version"]) == (dataset["id"], 2)
    assert names(owner, dataset) == names(owner, renamed) == [name_of(dataset, n) for n in NUMBERS]
    arguments = {"key": rows["key"], "new_key": other_dataset["key"], "overwrite": True}
    assert answer_of(owner.call("tensorage_rename", arguments))["objects_left"] == 1
    arguments = {"key": renamed["key"], "new_key": other_dataset["key"], "overwrite": True}
    renamed = answer_of(owner.call("tensorage_rename", arguments))
    assert (renamed["left"], renamed["objects_left"]) == (0, 1)
    assert sweep(owner) == [name_of(other_dataset, number) for number in NUMBERS]
    assert answer_of(owner.call("tensorage_rename", arguments | {"key": renamed["key"]})) == described(
        renamed
    )


def test_annotated_array_has_the_same_objects(owner: Caller) -> None:
    dataset = store(owner)
    annotated = answer_of(owner.call("tensorage_annotate", data_id=dataset["id"], attrs={"a": 1}))
    assert (annotated["attrs"], annotated["zarr"], annotated["version"]) == ({"a": 1}, dataset["zarr"], 2)
    assert names(owner, dataset) == names(owner, annotated)
    assert begin_assign(owner, dataset)["state"] == "staged"


def test_staged_changes_go_to_the_array_that_was_renamed_and_annotated(owner: Caller) -> None:
    dataset = store(owner)
    old = names(owner, dataset)
    assigning, appending = begin_assign(owner, dataset), begin_append(owner, dataset, 1)
    new = answer_of(owner.call("tensorage_rename", key=dataset["key"], new_key=new_key()))["key"]
    answer_of(owner.call("tensorage_annotate", data_id=dataset["id"], attrs={"a": 1}))
    answer_of(owner.commit(assigning["id"], shards=fill(owner, assigning, [0], of_0=old[0])))
    grown = answer_of(owner.commit(appending["id"], shards=fill(owner, appending, [4], of_4=old[4])))
    assert (grown["key"], grown["attrs"], grown["version"]) == (new, {"a": 1}, 5)


@pytest.mark.parametrize("how", ["remove", "overwrite"])
def test_changes_of_an_array_that_is_gone_are_refused(how: str, owner: Caller) -> None:
    dataset = store(owner)
    old = names(owner, dataset)
    assigning, appending = begin_assign(owner, dataset), begin_append(owner, dataset, 1)
    told = [fill(owner, assigning, [0], of_0=old[0]), fill(owner, appending, [4], of_4=old[4])]
    if how == "remove":
        operation = new_operation()
        arguments = {"key": dataset["key"], "operation": operation}
        removed = answer_of(owner.call("tensorage_remove", arguments))
        assert removed == {"id": dataset["id"], "left": 0, "objects_left": 1}
        assert answer_of(owner.call("tensorage_remove", arguments)) == removed
    else:
        store(owner, dataset["key"], overwrite=True)
    for begun, shards_of in zip((assigning, appending), told, strict=True):
        assert code_of(owner.commit(begun["id"], shards=shards_of)) == "TS003"
    assert code_of(ask_to_append(owner, dataset, 1)) == "TS003"
    assert code_of(owner.ask_to_assign(dataset, engine="storage")) == "TS003"
    assert code_of(ask_shards(owner, dataset)) == "TS003"


def test_nothing_is_merged_in_an_array_of_objects(owner: Caller, state_of: StateOf) -> None:
    dataset = store(owner)
    before = state_of(owner)
    assert answer_of(owner.call("tensorage_compact", key=dataset["key"])) == {"merged": 0, "after": None}
    assert state_of(owner) == before


# Other users -------------------------------------------------------------------------------------------------


def _writes(caller: Caller, dataset: Json, staged: list[Json]) -> dict[str, set[str]]:
    """The codes of all that would change an array, or what is staged for it."""
    told = [entry(4, name_of(dataset, 4) + ".new", based_on=name_of(dataset, 4))]
    return {
        "array": {
            code_of(ask_to_append(caller, dataset, 1)),
            code_of(ask_to_append(caller, dataset, 1, base_rows=5)),
            code_of(caller.ask_to_assign(dataset, engine="storage")),
            code_of(caller.call("tensorage_annotate", data_id=dataset["id"], attrs={"a": 1})),
        },
        "key": {
            code_of(caller.call("tensorage_remove", key=dataset["key"])),
            code_of(caller.call("tensorage_rename", key=dataset["key"], new_key=new_key())),
        },
        "staged": {
            code_of(write)
            for begun in (dataset, *staged)
            for write in (
                put(caller, begun, *told),
                caller.commit(begun["id"], shards=told),
                caller.commit(begun["id"]),
                ask_shards(caller, begun, version=None),
            )
        },
    }


def test_shared_array_is_read_and_not_written_by_others(
    owner: Caller, other: Caller, state_of: StateOf
) -> None:
    dataset = store(owner, attrs={"a": 1})
    answer_of(owner.call("tensorage_share", key=dataset["key"]))
    dataset = append(owner, owner.open(dataset["key"]), 1, [4], of_4=name_of(dataset, 4))
    staged = [
        begin_assign(owner, dataset),
        begin_append(owner, dataset, 1),
        begin(owner, new_key(), is_shared=True),
    ]
    for begun, number in zip(staged, [4, 5, 4], strict=True):
        answer_of(put(owner, begun, *fill(owner, begun, [number])))
    before = state_of(owner)
    assert other.open(dataset["key"], owner) == described(dataset) | {"is_shared": True}
    shared = names(other, dataset)
    assert shared == names(owner, dataset)
    assert all(content_of(other, name) for name in shared)
    rows = other.request("GET", f"/shards?user_id=eq.{owner.id}&select=data_id,number&order=number").json()
    assert rows == [{"data_id": dataset["id"], "number": number} for number in NUMBERS]
    assert _writes(other, dataset, staged) == {"array": {"TS007"}, "key": {"TS001"}, "staged": {"TS001"}}
    assert state_of(owner) == before

    answer_of(owner.call("tensorage_unshare", key=dataset["key"]))
    before = state_of(owner)
    assert code_of(ask_shards(other, dataset)) == "TS003"
    assert not answer_of(other.call("tensorage_has_object", data_id=dataset["id"], number=0))
    assert not any(content_of(other, name) for name in shared)
    assert other.request("GET", f"/shards?user_id=eq.{owner.id}").json() == []
    codes = _writes(other, dataset, staged)
    assert codes == {"array": {"TS003"}, "key": {"TS001"}, "staged": {"TS001"}}
    assert state_of(owner) == before


def test_same_key_of_two_users_is_two_arrays_of_objects(owner: Caller, other: Caller) -> None:
    mine = store(owner)
    theirs = store(other, mine["key"], is_shared=True)
    answer_of(other.call("tensorage_remove", key=theirs["key"]))
    assert sweep(owner) == []
    assert sweep(other) == [name_of(theirs, number) for number in NUMBERS]
    assert owner.open(mine["key"]) == described(mine)
    assert all(content_of(owner, name) for name in names(owner, mine))
