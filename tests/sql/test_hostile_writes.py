"""Writes that are meant to harm: others' arrays, names that lead elsewhere, and values that are no values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import psycopg
import pytest
from sql.api import Caller, answer_of, code_of, new_key, whole
from sql.conftest import State
from sql.objects import ask_to_append, begin, begin_append, begin_assign, entry, folder_of, put, store

from tensorage.embedded import control

Connection = psycopg.Connection[tuple[Any, ...]]
StateOf = Callable[[Caller], State]

#: Names below the dataset's folder that a URL reads as those of somebody else, of another array, or of nothing.
_LEADING_ELSEWHERE = [
    "{own}/../../{victim}/c/0/0",
    "{own}/c/../../1/c/0",
    "{own}/./c/0",
    "{own}//c/0",
    "{own}/c/0/",
    "{own}/..",
    "{own}/c\\0",
    "{own}/c/0?token=1",
    "{own}/c/0#1",
    "{own}/c/%2e%2e/0",
    "{own}/c/0\n",
    "{victim}/c/0/0",
    "{own}",
    "/{own}/c/0",
    "",
]


@pytest.mark.parametrize("name", _LEADING_ELSEWHERE)
def test_names_that_lead_elsewhere_are_refused(
    name: str, owner: Caller, other: Caller, state_of: StateOf
) -> None:
    """A reader makes a URL of the name, and sends its token along."""
    victim = folder_of(store(other))
    stored = store(owner)
    for begun in (begin(owner, new_key()), begin_append(owner, stored, 1), begin_assign(owner, stored)):
        before = state_of(owner)
        told = name.format(own=folder_of(begun), victim=victim)
        assert code_of(put(owner, begun, entry(4, told))) == "TS006"
        assert code_of(owner.commit(begun["id"], shards=[entry(4, told)])) == "TS006"
        assert state_of(owner) == before


def test_names_are_plain_in_the_table_too(owner: Caller, database: Connection) -> None:
    """A user who may write the table cannot make readers fetch what is elsewhere, either."""
    stored = store(owner)
    with pytest.raises(psycopg.errors.CheckViolation):
        database.execute(
            "update public.shards set name = name || '/../x' where data_id = %s and number = 0",
            (stored["id"],),
        )


@pytest.mark.parametrize("name", ["append", "overwrite", "is_shared"])
@pytest.mark.parametrize("value", ["t", "yes", 1, [], {"a": True}])
def test_what_is_no_truth_value_is_refused(name: str, value: Any, owner: Caller, state_of: StateOf) -> None:
    before = state_of(owner)
    refused = owner.call("tensorage_store", whole(np.zeros(1), **{"key": new_key(), name: value}))
    assert code_of(refused) == "TS006"
    assert "true or false" in refused.json()["message"] or name == "append"
    assert state_of(owner) == before


@pytest.mark.parametrize("is_shared", [False, True])
def test_appends_to_somebody_elses_array_wait_for_nobody(
    is_shared: bool, owner: Caller, other: Caller, backend: control.Running
) -> None:
    """An array's owner is known before it is locked: nobody holds up the owner, or waits for them."""
    stored = store(owner, is_shared=is_shared)
    with psycopg.connect(backend.superuser_url) as writing:
        writing.execute("select from public.datasets where id = %s for update", (stored["id"],))
        assert code_of(ask_to_append(other, stored, 1)) == ("TS007" if is_shared else "TS003")
        writing.rollback()
    answer_of(ask_to_append(owner, stored, 1))
