"""Staged work of which PostgreSQL has lost a part, by a kill between two requests: no commit makes the rest visible.

Staging does not wait until the data are on disk. Later requests may be taken, or refused already.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
import numpy as np
import pytest
from chaos.backend import Backend
from sql.api import Caller, Json, answer_of, code_of, new_key
from sql.objects import NUMBERS, begin, begin_append, begin_assign, fill, name_of, put, store

NUMBERS_OLD = np.arange(100, dtype="<i4")

#: Makes a request that is answered and then lost.
Loses = Callable[[Callable[[], httpx.Response]], None]


def rows_kept(mortal: Backend, table: str, data_id: int) -> int:
    with mortal.sql() as database:
        row: tuple[Any, ...] | None = database.execute(
            f"select count(*) from public.{table} where data_id = %s", [data_id]
        ).fetchone()
    assert row is not None
    return int(row[0])


def goes_on(answer: httpx.Response) -> None:
    """A further part is stored beside the lost one, or refused as what was begun before the kill."""
    assert answer.status_code == 200 or code_of(answer) == "TS003", answer.text


# Rows -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def stored(owner: Caller) -> Json:
    return owner.store(new_key(), NUMBERS_OLD, chunk=10)


@pytest.fixture
def patched(mortal: Backend, owner: Caller, stored: Json, loses: Loses) -> Json:
    """An assignment to all elements, whose first half is lost."""
    begun = owner.begin_assign(stored)
    loses(lambda: owner.patch(begun["id"], -NUMBERS_OLD[:50], [0], [50]))
    assert rows_kept(mortal, "tensors", begun["id"]) == 0, "nothing was lost: this proves nothing"
    return begun


def test_a_staged_assignment(owner: Caller, stored: Json, patched: Json) -> None:
    goes_on(owner.patch(patched["id"], -NUMBERS_OLD[50:], [50], [50]))
    assert code_of(owner.commit(patched["id"])) == "TS003"
    assert np.array_equal(owner.read(stored), NUMBERS_OLD)


def test_a_staged_assignment_without_any_rows(owner: Caller, stored: Json, patched: Json) -> None:
    """All that was sent is lost: the commit must not take it for an assignment to nothing."""
    assert code_of(owner.commit(patched["id"])) == "TS003"
    assert np.array_equal(owner.read(stored), NUMBERS_OLD)


def test_a_staged_assignment_begun_anew(owner: Caller, stored: Json, patched: Json) -> None:
    assert code_of(owner.commit(patched["id"])) == "TS003"
    begun = owner.begin_assign(stored)
    answer_of(owner.patch(begun["id"], -NUMBERS_OLD, [0], [100]))
    assert np.array_equal(owner.read(answer_of(owner.commit(begun["id"]))), -NUMBERS_OLD)


def test_a_staged_assignment_whose_first_patch_is_on_disk(
    mortal: Backend, owner: Caller, stored: Json, loses: Loses
) -> None:
    """The second patch changes blocks of the first: they are there, half as they should be."""
    begun = owner.begin_assign(stored)
    answer_of(owner.patch(begun["id"], -NUMBERS_OLD[::2], list(range(0, 100, 2)), [1] * 50))
    # This waits for the disk, with all that was written before.
    owner.store(new_key(), NUMBERS_OLD)
    loses(lambda: owner.patch(begun["id"], -NUMBERS_OLD[1::2], list(range(1, 100, 2)), [1] * 50))
    assert rows_kept(mortal, "tensors", begun["id"]) == 10
    assert code_of(owner.commit(begun["id"])) == "TS003"
    assert np.array_equal(owner.read(stored), NUMBERS_OLD)


def test_a_staged_append(mortal: Backend, owner: Caller, stored: Json, loses: Loses) -> None:
    begun = owner.begin(stored["key"], [40], append=True)
    loses(lambda: owner.put(begun["id"], NUMBERS_OLD[:20]))
    assert rows_kept(mortal, "tensors", begun["id"]) == 0, "nothing was lost: this proves nothing"
    goes_on(owner.put(begun["id"], NUMBERS_OLD[20:40], 20))
    assert code_of(owner.commit(begun["id"])) in {"TS003", "TS004"}
    assert owner.open(stored["key"])["shape"] == [100]
    assert np.array_equal(owner.read(stored), NUMBERS_OLD)


def test_a_staged_array(mortal: Backend, owner: Caller, loses: Loses) -> None:
    key = new_key()
    begun = owner.begin(key, [40])
    loses(lambda: owner.put(begun["id"], NUMBERS_OLD[:20]))
    assert rows_kept(mortal, "tensors", begun["id"]) == 0, "nothing was lost: this proves nothing"
    goes_on(owner.put(begun["id"], NUMBERS_OLD[20:40], 20))
    assert code_of(owner.commit(begun["id"])) in {"TS003", "TS004"}
    assert code_of(owner.call("tensorage_open", key=key)) == "TS001"


# Objects --------------------------------------------------------------------------------------------------------


def shards_of(mortal: Backend, data_id: int) -> list[str | None]:
    with mortal.sql() as database:
        query = "select name from public.shards where data_id = %s order by number"
        return [row[0] for row in database.execute(query, [data_id])]


@pytest.fixture
def array(owner: Caller) -> Json:
    """An array of Storage, of five shards."""
    return store(owner)


def test_a_staged_assignment_of_objects(mortal: Backend, owner: Caller, array: Json, loses: Loses) -> None:
    before = shards_of(mortal, array["id"])
    begun = begin_assign(owner, array)
    based_on = {f"of_{number}": name_of(array, number) for number in NUMBERS}
    first = fill(owner, begun, [0, 1], **based_on)
    loses(lambda: put(owner, begun, *first))
    assert rows_kept(mortal, "shards", begun["id"]) == 0, "nothing was lost: this proves nothing"
    goes_on(put(owner, begun, *fill(owner, begun, [2, 3], **based_on)))
    last = fill(owner, begun, [4], **based_on)
    assert code_of(owner.commit(begun["id"], shards=last)) == "TS003"
    assert shards_of(mortal, array["id"]) == before


def test_a_staged_append_of_objects(mortal: Backend, owner: Caller, array: Json, loses: Loses) -> None:
    before = shards_of(mortal, array["id"])
    begun = begin_append(owner, array, 5)
    based_on = {"of_4": name_of(array, 4)}
    loses(lambda: put(owner, begun, *fill(owner, begun, [4], **based_on)))
    assert rows_kept(mortal, "shards", begun["id"]) == 0, "nothing was lost: this proves nothing"
    goes_on(put(owner, begun, *fill(owner, begun, [5, 6])))
    assert code_of(owner.commit(begun["id"])) in {"TS003", "TS004"}
    assert shards_of(mortal, array["id"]) == before


def test_a_staged_array_of_objects(mortal: Backend, owner: Caller, loses: Loses) -> None:
    begun = begin(owner, new_key())
    loses(lambda: put(owner, begun, *fill(owner, begun, [0, 1])))
    assert rows_kept(mortal, "shards", begun["id"]) == 0, "nothing was lost: this proves nothing"
    assert code_of(owner.commit(begun["id"], shards=fill(owner, begun, [2, 3, 4]))) in {"TS003", "TS004"}
    assert code_of(owner.call("tensorage_open", key=begun["key"])) == "TS001"
