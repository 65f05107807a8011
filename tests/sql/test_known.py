"""Requests that lean on what a client remembers of an array: answered only while the array is that."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
import numpy as np
import pytest
from sql import objects
from sql.api import Caller, Json, answer_of, binary, code_of, new_key
from sql.test_ragged import store as store_ragged

_BINARY = {"Accept": "application/vnd.tensorage"}

#: Functions that take what is remembered, with the rest of a request that they answer.
READS: dict[str, Json] = {
    "tensorage_read": {"rows": [0], "runs": [0], "run_length": 3},
    "tensorage_read_run": {"first": 0, "elements": 3},
    "tensorage_read_spans": {"starts": [0], "lengths": [3]},
    "tensorage_read_fields": {"starts": [0], "lengths": [3], "offsets": [0], "sizes": [2]},
    "tensorage_read_ragged": {"starts": [0], "lengths": [3]},
    "tensorage_shards": {"numbers": [0]},
}

#: Functions that append to an array of Storage, with the rest of a request for no rows.
APPENDS: dict[str, Json] = {"tensorage_begin_append": {}, "tensorage_append_tails": {"shards": []}}

FUNCTIONS = [*READS, "tensorage_assign", "tensorage_begin_assign", *APPENDS]


def stored(caller: Caller, function: str) -> Json:
    """An array that a function works with."""
    if function == "tensorage_read_ragged":
        return store_ragged(caller, [b"a", b"bc", b""])
    if function == "tensorage_shards" or function in APPENDS:
        return objects.store(caller)
    return caller.store(new_key(), np.arange(12, dtype="<i4"))


def ask(caller: Caller, function: str, dataset: Json, **known: Any) -> httpx.Response:
    """The answer of a function to a caller who remembers something of an array."""
    named = {"data_id": dataset["id"], "version": dataset["version"]} | known
    if function == "tensorage_assign":
        meta = {"version": dataset["version"], "starts": [1], "lengths": [1]} | known
        body = binary(b"\1\0\0\0", count=1, data_id=dataset["id"], meta=meta)
        return caller.call(function, body)
    if function in APPENDS:
        no_rows = {"data_id": dataset["id"], "shape": [0, 3], "base_rows": dataset["shape"][0]}
        return caller.call(function, no_rows | APPENDS[function] | known)
    if function == "tensorage_begin_assign":
        return caller.call(function, named)
    return caller.request("POST", f"/rpc/{function}", json=named | READS[function], headers=_BINARY)


def knowledge(dataset: Json, **other: Any) -> Json:
    return {"key": dataset["key"], "owner": None, "shape": dataset["shape"]} | other


@pytest.mark.parametrize("function", FUNCTIONS)
def test_what_is_not_so_any_more_is_refused(
    function: str, owner: Caller, state_of: Callable[[Caller], Any]
) -> None:
    dataset = stored(owner, function)
    before = state_of(owner)
    wrong: list[Any] = [
        knowledge(dataset, key=new_key()), knowledge(dataset, key=dataset["key"] + " "), knowledge(dataset, key=None),
        knowledge(dataset, shape=[*dataset["shape"], 1]), knowledge(dataset, shape=[dataset["shape"][0] + 1]),
        knowledge(dataset, shape=None), knowledge(dataset, shape="{12}"), knowledge(dataset, shape=[12.5]),
        knowledge(dataset, owner="nobody@example.com"), knowledge(dataset, owner=""), knowledge(dataset, owner=7),
        {}, [], 5, "known", True, {"key": dataset["key"]}, {"shape": dataset["shape"]},
    ]  # fmt: skip
    for known in wrong:
        assert code_of(ask(owner, function, dataset, known=known)) == "TS003", known
    assert state_of(owner) == before
    for known in (
        knowledge(dataset),
        knowledge(dataset, owner=owner.email),
        knowledge(dataset, owner=owner.id),
    ):
        answer = ask(
            owner, function, answer_of(owner.call("tensorage_open", key=dataset["key"])), known=known
        )
        assert answer.status_code == 200, answer.text


@pytest.mark.parametrize("function", FUNCTIONS)
def test_another_s_array_is_theirs(function: str, owner: Caller, new_user: Callable[[], Caller]) -> None:
    """The key of an array without its owner is that of the caller's own, and knowing it opens nothing."""
    reader, dataset = new_user(), stored(owner, function)
    for known in (knowledge(dataset), knowledge(dataset, owner=owner.email), None):
        assert code_of(ask(reader, function, dataset, known=known)) == "TS003"
    shared = {"key": dataset["key"], "readers": [reader.email], "can_write": function not in READS}
    answer_of(owner.call("tensorage_share", shared))
    for known in (knowledge(dataset), knowledge(dataset, owner=reader.email)):
        assert code_of(ask(reader, function, dataset, known=known)) == "TS003"
    assert ask(reader, function, dataset, known=knowledge(dataset, owner=owner.email)).status_code == 200


def test_a_renamed_array_has_another_key(owner: Caller) -> None:
    """Its id and its version are the same."""
    dataset, new = stored(owner, "tensorage_read"), new_key()
    renamed = answer_of(owner.call("tensorage_rename", key=dataset["key"], new_key=new, overwrite=False))
    assert renamed["id"] == dataset["id"]
    assert ask(owner, "tensorage_read", renamed).status_code == 200
    assert code_of(ask(owner, "tensorage_read", renamed, known=knowledge(dataset))) == "TS003"
    assert ask(owner, "tensorage_read", renamed, known=knowledge(dataset, key=new)).status_code == 200
