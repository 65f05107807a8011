"""Objects that are not needed any more: named until they are gone, and none that is."""

from __future__ import annotations

import json
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import psycopg
import pytest
from sql.api import Caller, Json, answer_of, code_of, new_key
from sql.objects import (
    NUMBERS,
    append,
    ask_to_sweep,
    assign,
    begin,
    begin_append,
    begin_assign,
    content_of,
    entry,
    fill,
    folder_of,
    name_of,
    names,
    put,
    remove,
    store,
    sweep,
    upload,
)

from tensorage.embedded import control

Connection = psycopg.Connection[tuple[Any, ...]]


@pytest.fixture
def live(owner: Caller) -> list[str]:
    """Names of all objects of an array that has been changed, of one that is written, and of a file."""
    dataset = store(owner)
    old = names(owner, dataset)
    dataset = append(owner, dataset, 1, [4], of_4=old[4])
    dataset = assign(owner, dataset, of_1=old[1])
    begun = begin(owner, new_key())
    told = fill(owner, begun, [0, 1])
    answer_of(put(owner, begun, told[0]))
    upload(owner, f"{owner.id}/a.txt")
    assert sweep(owner) == sorted([old[1], old[4]])
    return [*names(owner, dataset), *(one["name"] for one in told), f"{owner.id}/a.txt"]


def _expire(database: Connection, begun: Json) -> None:
    """Make its writer seem not to have been heard of for a day."""
    database.execute(
        "update public.datasets set expires_at = now() - interval '1 s' where id = %s", (begun["id"],)
    )


def _left(database: Connection, owner: Caller) -> tuple[list[int], list[str]]:
    """Datasets that are to be swept, and the names of all of the user's objects."""
    datasets = database.execute(
        "select id from public.datasets where user_id = %s and expires_at <= now()", (owner.id,)
    ).fetchall()
    objects = database.execute(
        "select name from storage.objects where starts_with(name, %s) order by 1", (owner.id,)
    ).fetchall()
    return [data_id for (data_id,) in datasets], [name for (name,) in objects]


def test_nothing_to_sweep(owner: Caller, live: list[str], database: Connection) -> None:
    assert ask_to_sweep(owner) == []
    assert _left(database, owner) == ([], sorted(live))
    assert all(content_of(owner, name) for name in live)


@pytest.mark.parametrize("how", ["remove", "abort", "expire", "overwrite", "rename", "database"])
def test_objects_of_what_is_gone_are_named_and_deleted(
    how: str, owner: Caller, live: list[str], database: Connection
) -> None:
    begun = begin(owner, new_key())
    told = fill(owner, begun)
    answer_of(put(owner, begun, *told[:3]))
    # One that the catalogue never heard of, beside the last two.
    upload(owner, folder_of(begun) + "/c/0/0.another")
    gone = sorted([*(one["name"] for one in told), folder_of(begun) + "/c/0/0.another"])
    if how in ("abort", "expire"):
        if how == "abort":
            answer_of(owner.call("tensorage_abort", data_id=begun["id"]))
        else:
            _expire(database, begun)
    else:
        answer_of(owner.commit(begun["id"], shards=told))
        if how == "remove":
            said = answer_of(owner.call("tensorage_remove", key=begun["key"]))
        elif how == "overwrite":
            replacing = begin(owner, begun["key"], [0, 3], overwrite=True)
            said = answer_of(owner.commit(replacing["id"]))
        elif how == "rename":
            said = answer_of(owner.commit(begin(owner, new_key(), [0, 3])["id"]))
            arguments = {"key": said["key"], "new_key": begun["key"], "overwrite": True}
            said = answer_of(owner.call("tensorage_rename", arguments))
        else:
            begin_rows = owner.begin(begun["key"], [0], overwrite=True)
            said = answer_of(owner.commit(begin_rows["id"]))
        assert said["objects_left"] == 1
    assert sorted(ask_to_sweep(owner)) == gone
    # They are named again, as they are not deleted yet.
    assert sorted(ask_to_sweep(owner)) == gone
    assert sweep(owner) == gone
    assert _left(database, owner) == ([], sorted(live))
    assert database.execute("select from public.shards where data_id = %s", (begun["id"],)).fetchall() == []


def test_replaced_shards_are_swept_and_the_array_goes_on(
    owner: Caller, other: Caller, live: list[str], database: Connection
) -> None:
    dataset = store(owner)
    old = names(owner, dataset)
    dataset = append(owner, dataset, 3, [4, 5], of_4=old[4])
    dataset = assign(owner, dataset, **{f"of_{n}": names(owner, dataset)[n] for n in (0, 4)})
    now = names(owner, dataset, range(6))
    kept = set(now) | set(live)
    # Nobody else is told of them.
    assert ask_to_sweep(other) == []
    swept = sweep(owner)
    assert len(swept) == 3
    assert {old[0], old[4]} < set(swept)
    assert _left(database, owner) == ([], sorted(kept))
    answer_of(owner.call("tensorage_remove", key=dataset["key"]))
    # Their names are in three folders.
    assert sweep(owner) == sorted(now)


def test_objects_without_bytes_are_forgotten_with_the_rest(owner: Caller, database: Connection) -> None:
    begun = begin(owner, new_key())
    told = [entry(number, None) for number in NUMBERS]
    told[3] = fill(owner, begun, [3])[0]
    # This object is told of, and never uploaded.
    told[4] = entry(4, name_of(begun, 4))
    answer_of(owner.commit(begun["id"], shards=told))
    answer_of(owner.call("tensorage_remove", key=begun["key"]))
    assert ask_to_sweep(owner) == [name_of(begun, 3)]
    assert sweep(owner) == [name_of(begun, 3)]
    assert _left(database, owner) == ([], [])


@pytest.mark.parametrize("max_objects", [1, 2, 3, 5, 7, 1000])
def test_pages_name_everything_and_no_more_than_asked_for(
    max_objects: int, owner: Caller, live: list[str], database: Connection
) -> None:
    """Only the last page is empty, however many objects have gone by then."""
    gone: list[str] = []
    for uploaded in (range(5), range(0), range(2), range(1, 5)):
        begun = begin(owner, new_key())
        told = fill(owner, begun, uploaded)
        # The first one of them is never told.
        answer_of(put(owner, begun, *told[1:]))
        answer_of(owner.call("tensorage_abort", data_id=begun["id"]))
        gone += [one["name"] for one in told]
    assert sweep(owner, max_objects) == sorted(gone)
    assert _left(database, owner) == ([], sorted(live))


def test_many_shards_come_in_pages(owner: Caller, database: Connection) -> None:
    """The first page of thousands comes, and when those are gone the next, though many shards have no object."""
    begun = begin(owner, new_key(), [5000], (1,))
    told = [entry(number, None) for number in range(5000)]
    for number in (*range(1500), 3000, 4999):
        told[number] = entry(number, f"{folder_of(begun)}/c/{number}")
    answer_of(owner.commit(begun["id"], shards=told))
    database.execute(
        "insert into storage.objects (bucket_id, name, owner_id) "
        "select 'tensors', s.name, s.user_id from public.shards s where s.data_id = %s and s.name is not null",
        (begun["id"],),
    )
    answer_of(owner.call("tensorage_remove", key=begun["key"]))
    pages = []
    # The bytes of these were never there: they are deleted where they are known.
    while named := ask_to_sweep(owner, 10**6):
        pages.append(len(named))
        database.execute("delete from storage.objects where name = any (%s)", (named,))
    assert pages == [1000, 502]
    assert _left(database, owner) == ([], [])


@pytest.mark.parametrize("max_objects", [0, -1, -(2**31)])
def test_page_of_nothing_names_nothing(max_objects: int, owner: Caller) -> None:
    dataset = store(owner)
    answer_of(owner.call("tensorage_remove", key=dataset["key"]))
    assert ask_to_sweep(owner, max_objects) == []
    for bad in (2**31, "many", 1.5, [1]):
        assert code_of(owner.call("tensorage_sweep_objects", max_objects=bad))[:2] == "22"
    assert len(ask_to_sweep(owner, None)) == 5


def test_what_was_staged_for_an_array_is_swept_with_it(
    owner: Caller, live: list[str], database: Connection
) -> None:
    dataset = store(owner)
    old = names(owner, dataset)
    gone = list(old)
    for begun in (begin_append(owner, dataset, 1), begin_assign(owner, dataset)):
        told = fill(owner, begun, [4], of_4=old[4])
        answer_of(put(owner, begun, *told))
        gone.append(told[0]["name"])
    answer_of(owner.call("tensorage_remove", key=dataset["key"]))
    assert sweep(owner) == sorted(gone)
    assert _left(database, owner) == ([], sorted(live))


@pytest.mark.parametrize("how", ["abort", "expire"])
def test_change_that_is_given_up_leaves_the_array_as_it_was(
    how: str, owner: Caller, live: list[str], database: Connection
) -> None:
    dataset = store(owner)
    old, gone = names(owner, dataset), []
    for begun in (begin_append(owner, dataset, 1), begin_assign(owner, dataset)):
        told = fill(owner, begun, [4], of_4=old[4])
        answer_of(put(owner, begun, *told))
        gone.append(told[0]["name"])
        if how == "abort":
            answer_of(owner.call("tensorage_abort", data_id=begun["id"]))
        else:
            _expire(database, begun)
        assert code_of(owner.commit(begun["id"])) == "TS003"
    assert sweep(owner) == sorted(gone)
    assert names(owner, dataset) == old
    assert _left(database, owner) == ([], sorted([*live, *old]))


def test_what_was_staged_for_an_empty_array_is_swept_with_it(owner: Caller, database: Connection) -> None:
    dataset = answer_of(owner.commit(begin(owner, new_key(), [0, 3])["id"]))
    begun = begin_append(owner, dataset, 1)
    told = fill(owner, begun, [0])
    answer_of(owner.call("tensorage_remove", key=dataset["key"]))
    assert sweep(owner) == [told[0]["name"]]
    assert _left(database, owner) == ([], [])


def test_objects_of_others_and_of_other_folders_are_never_named(
    owner: Caller, other: Caller, database: Connection
) -> None:
    """Some are of arrays whose numbers begin alike, and some are files that are named as folders are."""
    begun = begin(owner, new_key())
    fill(owner, begun, [0])
    upload(owner, f"{owner.id}/{begun['id']}")
    upload(owner, f"{owner.id}/x{begun['id']}/c/0/0")
    theirs = store(other)
    answer_of(other.call("tensorage_remove", key=theirs["key"]))
    # An array whose number is ten times this one's has such objects.
    beside = f"{owner.id}/{begun['id']}0/c/0/0"
    database.execute("insert into storage.objects (bucket_id, name) values ('tensors', %s)", (beside,))
    answer_of(owner.call("tensorage_abort", data_id=begun["id"]))
    assert sweep(owner) == [name_of(begun, 0)]
    files = sorted([f"{owner.id}/{begun['id']}", f"{owner.id}/x{begun['id']}/c/0/0", beside])
    assert _left(database, owner) == ([], files)


def test_only_what_is_gone_can_be_deleted(owner: Caller, live: list[str], database: Connection) -> None:
    begun = begin(owner, new_key())
    told = fill(owner, begun, [0, 1, 2])
    answer_of(put(owner, begun, *told[:2]))
    names_of = [one["name"] for one in told]
    # An object that was uploaded and not told of is nobody's.
    assert remove(owner, [*names_of, *live[:5]]) == names_of[2:]
    _expire(database, begun)
    assert upload(owner, names_of[0]).status_code == 400
    assert upload(owner, names_of[2]).status_code == 400
    assert remove(owner, names_of) == names_of[:2]
    assert ask_to_sweep(owner) == []
    assert _left(database, owner) == ([], sorted(live))


def test_writer_who_goes_on_is_not_expired(owner: Caller, database: Connection) -> None:
    begun = begin(owner, new_key())
    told = fill(owner, begun)
    for one in told:
        database.execute(
            "update public.datasets set expires_at = now() + interval '1 h' where id = %s", (begun["id"],)
        )
        answer_of(put(owner, begun, one))
        row = database.execute(
            "select expires_at > now() + interval '23 h' from public.datasets where id = %s", (begun["id"],)
        )
        assert row.fetchone() == (True,)
    _expire(database, begun)
    for refused in (put(owner, begun, told[0]), owner.commit(begun["id"])):
        assert code_of(refused) == "TS003"
    # Shards that come late do not bring them back.
    assert sweep(owner) == [one["name"] for one in told]
    assert code_of(owner.commit(begun["id"], shards=told)) == "TS001"


def test_sweeping_of_blocks_leaves_objects_to_those_who_can(owner: Caller, database: Connection) -> None:
    dataset = store(owner)
    answer_of(owner.call("tensorage_remove", key=dataset["key"]))
    assert answer_of(owner.call("tensorage_sweep")) == 0
    assert _left(database, owner) == ([dataset["id"]], [name_of(dataset, number) for number in NUMBERS])
    answer_of(owner.call("tensorage_abort", data_id=dataset["id"]))
    assert len(sweep(owner)) == 5


def test_object_that_comes_while_its_array_is_swept_is_not_left_behind(
    owner: Caller, backend: control.Running, database: Connection
) -> None:
    """Nobody would ever name it, and it would count against the quota for ever."""
    begun = begin(owner, new_key())
    claims = json.dumps({"sub": owner.id, "role": "authenticated"})
    # An upload as Storage does it, whose transaction has not ended yet.
    with psycopg.connect(backend.superuser_url) as upload_under_way:
        upload_under_way.execute("select set_config('request.jwt.claims', %s, true)", (claims,))
        upload_under_way.execute("set local role authenticated")
        upload_under_way.execute(
            "insert into storage.objects (bucket_id, name, owner_id, metadata) "
            "values ('tensors', %s, %s, '{\"size\": 1000}')",
            (name_of(begun, 0), owner.id),
        )
        # It would wait for the other one to end, if it had to.
        with ThreadPoolExecutor(1) as pool:
            given_up = pool.submit(_give_up, owner, begun)
            _wait_for_end_or_waiter(upload_under_way, given_up)
            upload_under_way.commit()
            given_up.result()
    ask_to_sweep(owner)
    datasets, objects = _left(database, owner)
    assert datasets != [] or objects == []


def _give_up(owner: Caller, begun: Json) -> None:
    answer_of(owner.call("tensorage_abort", data_id=begun["id"]))
    ask_to_sweep(owner)


def _wait_for_end_or_waiter(holder: psycopg.Connection[tuple[Any, ...]], other: Future[None]) -> None:
    """Return when the other one has ended, or waits for a lock that `holder` has."""
    asked = (
        "select exists (select from pg_stat_activity where pg_backend_pid() = any (pg_blocking_pids(pid)))"
    )
    holder.execute("reset role")
    while not other.done() and holder.execute(asked).fetchone() != (True,):
        holder.execute("select pg_stat_clear_snapshot(), pg_sleep(0.01)")
