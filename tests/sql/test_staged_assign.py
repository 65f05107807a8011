"""Assignments of several requests: invisible until the commit, and then all of them or nothing."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import psycopg
import pytest
from sql.api import Caller, Json, answer_of, code_of, new_key, new_operation
from sql.conftest import State, wait_for_waiter
from sql.test_quota import allow

from tensorage.embedded import control

Connection = psycopg.Connection[tuple[Any, ...]]
StateOf = Callable[[Caller], State]

_NUMBERS = np.arange(100, dtype="<i4")


@pytest.fixture
def stored(owner: Caller) -> Json:
    return owner.store(new_key(), _NUMBERS, chunk=10)


@pytest.fixture
def no_blocks_left_behind(owner: Caller, database: Connection) -> Callable[[], None]:
    """Fail on blocks of no dataset, and of datasets that nobody will sweep; sweep the others."""

    def check() -> None:
        while answer_of(owner.call("tensorage_sweep")):
            pass
        rows = database.execute(
            """
            select t.data_id from public.tensors t left join public.datasets d on d.id = t.data_id
             where t.user_id = %s and d.state is distinct from 'committed'
            """,
            (owner.id,),
        ).fetchall()
        assert rows == []
        staged = owner.request("GET", f"/datasets?state=eq.staged&user_id=eq.{owner.id}").json()
        assert staged == []

    return check


def _is_unchanged(owner: Caller, stored: Json) -> None:
    assert owner.open(stored["key"])["version"] == stored["version"]
    assert np.array_equal(owner.read(stored), _NUMBERS)


def test_patches_are_seen_after_the_commit(
    stored: Json, owner: Caller, no_blocks_left_behind: Callable[[], None]
) -> None:
    begun = owner.begin_assign(stored)
    for start in (5, 30, 8, 77):
        assert answer_of(owner.patch(begun["id"], -_NUMBERS[start : start + 12], [start], [12])) == {
            "id": begun["id"], "count": 12,
        }  # fmt: skip
        _is_unchanged(owner, stored)
    committed = answer_of(owner.commit(begun["id"]))
    expected = np.where(
        np.isin(_NUMBERS, [*range(5, 20), *range(30, 42), *range(77, 89)]), -_NUMBERS, _NUMBERS
    )
    assert (committed["id"], committed["version"]) == (stored["id"], stored["version"] + 1)
    assert np.array_equal(owner.read(committed), expected)
    assert owner.blocks(stored["id"]) == [(index, 10) for index in range(0, 100, 10)]
    assert code_of(owner.ask(stored, [0])) == "TS003"
    no_blocks_left_behind()


def test_patch_again_replaces_and_repeats(stored: Json, owner: Caller, state_of: StateOf) -> None:
    begun = owner.begin_assign(stored)
    for _ in range(2):
        answer_of(owner.patch(begun["id"], -_NUMBERS[:15], [0], [15]))
        before = state_of(owner)
    answer_of(owner.patch(begun["id"], -_NUMBERS[:15], [0], [15]))
    assert state_of(owner) == before
    answer_of(owner.patch(begun["id"], _NUMBERS[50:55], [10], [5]))
    expected = np.concatenate([-_NUMBERS[:10], _NUMBERS[50:55], _NUMBERS[15:]])
    assert np.array_equal(owner.read(answer_of(owner.commit(begun["id"]))), expected)


def test_patches_of_one_block_in_parallel(stored: Json, owner: Caller) -> None:
    stored = owner.store(new_key(), np.zeros(8000, "<i4"), chunk=1000)
    begun = owner.begin_assign(stored)

    def patch(writer: int) -> None:
        for turn in range(5):
            starts = list(range(writer + 8 * turn, 8000, 40))
            answer_of(owner.patch(begun["id"], np.array(starts, "<i4"), starts, [1] * len(starts)))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(patch, range(8)))
    committed = answer_of(owner.commit(begun["id"]))
    assert np.array_equal(owner.read(committed), np.arange(8000))


def test_same_operation_begins_and_commits_once(stored: Json, owner: Caller, state_of: StateOf) -> None:
    begin, commit = new_operation(), new_operation()
    with ThreadPoolExecutor(8) as pool:
        begun = list(pool.map(lambda _: owner.begin_assign(stored, operation=begin), range(8)))
    assert all(each == begun[0] for each in begun)
    answer_of(owner.patch(begun[0]["id"], -_NUMBERS, [0], [100]))
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: owner.commit(begun[0]["id"], operation=commit), range(8)))
    first = answer_of(answers[0])
    before = state_of(owner)
    assert all(answer_of(answer) == first for answer in answers)
    assert answer_of(owner.commit(begun[0]["id"], operation=commit)) == first
    assert code_of(owner.commit(begun[0]["id"])) == "TS001"
    assert state_of(owner) == before
    assert first["version"] == stored["version"] + 1


def test_commit_of_no_patches_changes_no_element(stored: Json, owner: Caller) -> None:
    committed = answer_of(owner.commit(owner.begin_assign(stored)["id"]))
    assert np.array_equal(owner.read(committed), _NUMBERS)


def _overwrite(owner: Caller, stored: Json) -> None:
    owner.store(stored["key"], np.zeros(100, "<i4"), chunk=10, overwrite=True)


def _remove(owner: Caller, stored: Json) -> None:
    answer_of(owner.call("tensorage_remove", key=stored["key"]))


def _assign_at_once(owner: Caller, stored: Json) -> None:
    answer_of(owner.assign(stored, _NUMBERS[:1], [99], [1]))


def _assign_staged(owner: Caller, stored: Json) -> None:
    begun = owner.begin_assign(stored)
    answer_of(owner.patch(begun["id"], _NUMBERS[:1], [99], [1]))
    answer_of(owner.commit(begun["id"]))


@pytest.mark.parametrize("meddle", [_overwrite, _remove, _assign_at_once, _assign_staged])
def test_array_that_changed_meanwhile_is_not_assigned_to(
    meddle: Callable[[Caller, Json], None],
    stored: Json,
    owner: Caller,
    state_of: StateOf,
    no_blocks_left_behind: Callable[[], None],
) -> None:
    begun = owner.begin_assign(stored)
    answer_of(owner.patch(begun["id"], -_NUMBERS[:50], [0], [50]))
    meddle(owner, stored)
    before = state_of(owner)
    # A patch of an array that is gone is swept with it.
    gone = meddle in (_overwrite, _remove)
    expected = ("TS001", "TS003") if gone else ("TS003",)
    assert code_of(owner.patch(begun["id"], -_NUMBERS[:50], [0], [50])) in expected
    assert code_of(owner.commit(begun["id"])) in expected
    assert code_of(owner.ask_to_assign(stored)) == "TS003"
    assert state_of(owner) == before
    answer_of(owner.call("tensorage_abort", data_id=begun["id"]))
    no_blocks_left_behind()


def test_append_that_leaves_the_blocks_alone_does_not_matter(stored: Json, owner: Caller) -> None:
    begun = owner.begin_assign(stored)
    answer_of(owner.patch(begun["id"], -_NUMBERS[:20], [0], [20]))
    answer_of(owner.append(stored["key"], _NUMBERS[:7]))
    answer_of(owner.patch(begun["id"], -_NUMBERS[90:], [90], [10]))
    committed = answer_of(owner.commit(begun["id"]))
    assert (committed["shape"], committed["version"]) == ([107], 3)
    expected = np.concatenate([-_NUMBERS[:20], _NUMBERS[20:90], -_NUMBERS[90:], _NUMBERS[:7]])
    assert np.array_equal(owner.read(committed), expected)


@pytest.mark.parametrize("how", ["append", "compact"])
def test_append_and_compaction_that_merge_its_blocks_end_it(
    how: str, owner: Caller, state_of: StateOf
) -> None:
    stored = owner.store(new_key(), _NUMBERS[:15], chunk=10)
    answer_of(owner.append(stored["key"], _NUMBERS[15:18]))
    opened = owner.open(stored["key"])
    assert owner.blocks(stored["id"]) == [(0, 10), (10, 5), (15, 3)]
    begun = owner.begin_assign(opened)
    for start in (10, 15):
        answer_of(owner.patch(begun["id"], -_NUMBERS[start : start + 3], [start], [3]))
    if how == "append":
        answer_of(owner.append(stored["key"], _NUMBERS[18:20]))
        answer_of(owner.append(stored["key"], _NUMBERS[:1]))
    answer_of(owner.call("tensorage_compact", key=stored["key"]))
    assert owner.blocks(stored["id"])[1] != (10, 5)
    before = state_of(owner)
    assert code_of(owner.patch(begun["id"], -_NUMBERS[10:13], [10], [3])) == "TS003"
    assert code_of(owner.commit(begun["id"])) == "TS003"
    assert state_of(owner) == before


@pytest.mark.parametrize(("rows", "last"), [(1, 73), (4, 70)], ids=["longer", "gone"])
def test_patch_whose_blocks_are_merged_under_it_is_refused(
    rows: int, last: int, owner: Caller, backend: control.Running
) -> None:
    """It read where the blocks are before it copies them."""
    stored = owner.store(new_key(), _NUMBERS[:60], chunk=10)
    answer_of(owner.append(stored["key"], _NUMBERS[60:70]))
    stored = answer_of(owner.append(stored["key"], _NUMBERS[70:73]))
    stored = answer_of(owner.append(stored["key"], _NUMBERS[73:74]))
    assert owner.blocks(stored["id"])[-2:] == [(70, 3), (73, 1)]
    begun = owner.begin_assign(stored)
    with psycopg.connect(backend.superuser_url) as obstacle, ThreadPoolExecutor(1) as pool:
        # The copy of the first block waits for this one of the same place.
        obstacle.execute(
            "insert into public.tensors (data_id, user_id, index, count, tensor) values (%s, %s, 0, 10, '')",
            (begun["id"], owner.id),
        )
        patching = pool.submit(owner.patch, begun["id"], -_NUMBERS[:74], [0], [74])
        wait_for_waiter(obstacle)
        answer_of(owner.append(stored["key"], _NUMBERS[:rows]))
        assert owner.blocks(stored["id"])[-1][0] == last
        obstacle.rollback()
        assert code_of(patching.result()) == "TS003"
    assert owner.blocks(begun["id"]) == []


def test_what_is_staged_for_one_thing_does_not_take_another(
    stored: Json, owner: Caller, state_of: StateOf
) -> None:
    assigning, writing = owner.begin_assign(stored), owner.begin(new_key(), [100])
    appending = owner.begin(stored["key"], [100], append=True)
    before = state_of(owner)
    assert code_of(owner.put(assigning["id"], _NUMBERS)) == "TS006"
    for staged in (writing, appending):
        assert code_of(owner.patch(staged["id"], _NUMBERS, [0], [100])) == "TS006"
    assert code_of(owner.patch(stored["id"], _NUMBERS, [0], [100])) == "TS003"
    assert state_of(owner) == before


@pytest.mark.parametrize("how", ["aborted", "expired"])
def test_assignment_that_was_given_up_changes_nothing(
    how: str, owner: Caller, database: Connection, no_blocks_left_behind: Callable[[], None]
) -> None:
    stored = owner.store(new_key(), np.arange(700, dtype="<i4"), chunk=1)
    begun = owner.begin_assign(stored)
    answer_of(owner.patch(begun["id"], np.zeros(700, "<i4"), [0], [700]))
    if how == "aborted":
        assert answer_of(owner.call("tensorage_abort", data_id=begun["id"])) == 1
    else:
        database.execute("update public.datasets set expires_at = now() where id = %s", (begun["id"],))
    assert code_of(owner.patch(begun["id"], np.zeros(700, "<i4"), [0], [700])) == "TS003"
    assert code_of(owner.commit(begun["id"])) == "TS003"
    assert np.array_equal(owner.read(stored), np.arange(700))
    no_blocks_left_behind()


def test_replaced_blocks_are_swept_in_pieces(
    owner: Caller, no_blocks_left_behind: Callable[[], None]
) -> None:
    stored = owner.store(new_key(), np.arange(700, dtype="<i4"), chunk=1)
    begun = owner.begin_assign(stored)
    answer_of(owner.patch(begun["id"], np.zeros(700, "<i4"), [0], [700]))
    assert answer_of(owner.commit(begun["id"]))["left"] == 1
    assert [answer_of(owner.call("tensorage_sweep")) for _ in range(3)] == [1, 1, 0]
    no_blocks_left_behind()


@pytest.mark.parametrize("what", ["append", "assign"])
def test_what_was_staged_for_a_removed_array_is_swept_in_pieces(
    what: str, owner: Caller, no_blocks_left_behind: Callable[[], None]
) -> None:
    stored = owner.store(new_key(), np.zeros(10, "<i4"), chunk=1)
    if what == "append":
        begun = owner.begin(stored["key"], [600], append=True, chunk=1)
        answer_of(owner.put(begun["id"], np.zeros(600, "<i4"), chunk=1))
    else:
        answer_of(owner.append(stored["key"], np.zeros(590, "<i4")))
        begun = owner.begin_assign(stored)
        answer_of(owner.patch(begun["id"], np.ones(600, "<i4"), [0], [600]))
    removed = answer_of(owner.call("tensorage_remove", key=stored["key"]))
    assert removed["left"] > 0
    left = [len(owner.blocks(begun["id"]))]
    while answer_of(owner.call("tensorage_sweep")):
        left.append(len(owner.blocks(begun["id"])))
    # A sweep deletes at most 256 at once, though nothing refers to them any more.
    assert max(-np.diff([600, *left, 0])) <= 256
    assert code_of(owner.commit(begun["id"])) == "TS001"
    no_blocks_left_behind()


def test_quota_counts_an_assignment_as_the_array_while_it_lasts(owner: Caller, database: Connection) -> None:
    numbers = np.arange(10_000, dtype="<i4")
    stored = owner.store(new_key(), numbers, chunk=1000)
    allow(database, owner, numbers.nbytes + 10_000)
    begun = owner.begin_assign(stored)
    for end in ("abort", "commit"):
        assert not _fits(owner, 10_000)
        assert _fits(owner, 2000)
        answer_of(owner.call(f"tensorage_{end}", data_id=begun["id"]))
        assert _fits(owner, 40_000)
        begun = owner.begin_assign(stored) if end == "abort" else begun
    changed = owner.open(stored["key"])
    taken = owner.store(new_key(), np.zeros(20_000, "u1"))
    assert code_of(owner.ask_to_assign(changed)) == "TS005"
    # An assignment of one request copies nothing.
    answer_of(owner.assign(changed, -numbers, [0], [10_000]))
    answer_of(owner.call("tensorage_remove", key=taken["key"]))
    owner.begin_assign(owner.open(stored["key"]))


def _fits(owner: Caller, nbytes: int) -> bool:
    """True if an array of so many bytes may still be begun."""
    answer = owner.call("tensorage_begin", key=new_key(), shape=[nbytes], dtype="|u1", chunk=10_000)
    if answer.status_code == 200:
        answer_of(owner.call("tensorage_abort", data_id=answer.json()["id"]))
        return True
    assert code_of(answer) == "TS005"
    return False


def test_patch_of_an_array_that_is_being_replaced_is_told_so(owner: Caller, backend: control.Running) -> None:
    """Its blocks stay until the patch has ended."""
    stored = owner.store(new_key(), _NUMBERS, chunk=10)
    begun = owner.begin_assign(stored)
    with psycopg.connect(backend.superuser_url) as obstacle, ThreadPoolExecutor(1) as pool:
        obstacle.execute(
            "insert into public.tensors (data_id, user_id, index, count, tensor) values (%s, %s, 0, 10, '')",
            (begun["id"], owner.id),
        )
        patching = pool.submit(owner.patch, begun["id"], -_NUMBERS, [0], [100])
        wait_for_waiter(obstacle)
        owner.store(stored["key"], _NUMBERS, overwrite=True)
        obstacle.rollback()
        assert answer_of(patching.result())["count"] == 100
    assert code_of(owner.commit(begun["id"])) in ("TS001", "TS003")
    assert np.array_equal(owner.read(owner.open(stored["key"])), _NUMBERS)
