"""Tails of the shards of arrays of Storage: chunks of appended rows, kept in the catalogue."""

from __future__ import annotations

import base64
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from hashlib import md5
from typing import Any

import httpx
import psycopg
import pytest
from sql.api import Caller, Json, answer_of, code_of, new_key, new_operation, transaction
from sql.objects import (
    INDEX,
    NUMBERS,
    SHAPE,
    Shard,
    ask_shards,
    begin,
    begin_append,
    begin_assign,
    content_of,
    entry,
    fill,
    name_of,
    names,
    parse_shards,
    put,
    shards,
    store,
    sweep,
    with_tails,
)

StateOf = Callable[[Caller], Any]
Database = psycopg.Connection[tuple[Any, ...]]

#: The most bytes of a tail.
MOST = 262144


def encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()


def fingerprint(shard: Shard) -> str:
    """The text by which a writer says which shard a new one is made from."""
    return shard.name + ("+" + md5(shard.index + shard.tail).hexdigest() if shard.tail else "")


def tail_of(number: int, tail: bytes, index: bytes = INDEX, **more: Any) -> Json:
    return entry(number, None, **more) | {"tail": encoded(tail), "index": encoded(index)}


def behind(shard: Shard, number: int, tail: bytes, kept: int = 0, index: bytes = INDEX) -> Json:
    """A shard that keeps its object, and so many bytes of its tail."""
    return tail_of(number, tail, index, kept=kept, based_on=fingerprint(shard))


def ask_to_append(caller: Caller, dataset: Json, rows: int, *told: Json, **more: Any) -> httpx.Response:
    named = {
        "data_id": dataset["id"],
        "shape": [rows, *dataset["shape"][1:]],
        "base_rows": dataset["shape"][0],
        "shards": told,
    }
    return caller.call("tensorage_append_tails", named | more)


def append(caller: Caller, dataset: Json, rows: int, *told: Json) -> Json:
    appended: Json = answer_of(ask_to_append(caller, dataset, rows, *told))
    return appended


def long_store(caller: Caller) -> Json:
    """Store an array of three shards, the last one with a row of four."""
    begun = begin(caller, new_key(), [9, 3], (4, 3))
    dataset: Json = answer_of(caller.commit(begun["id"], shards=fill(caller, begun, range(3))))
    return dataset


def whole_store(caller: Caller) -> Json:
    """Store an array of four shards, all of which are full."""
    begun = begin(caller, new_key(), [8, 3])
    dataset: Json = answer_of(caller.commit(begun["id"], shards=fill(caller, begun, range(4))))
    return dataset


def grow(caller: Caller, dataset: Json, tail: bytes = b"tail") -> Json:
    """Add the tenth row to an array of nine, as a tail of the last shard."""
    return append(caller, dataset, 1, behind(shards(caller, dataset)[4], 4, tail))


def assert_counted(database: Database, caller: Caller) -> None:
    """The totals of a user are what is there."""
    found = database.execute(
        "select u.bytes - tensorage.count_usage(u.user_id) from tensorage.usage u where u.user_id = %s",
        [caller.id],
    ).fetchone()
    assert found == (0,)


# Appending ---------------------------------------------------------------------------------------------------


def test_a_tail_comes_behind_the_object(owner: Caller, database: Database) -> None:
    dataset = store(owner)
    before = shards(owner, dataset)
    appended = append(owner, dataset, 1, behind(before[4], 4, b"tail", index=INDEX + INDEX))
    assert (appended["id"], appended["shape"], appended["version"]) == (dataset["id"], [10, 3], 2)
    assert appended["objects_left"] == 0
    assert appended["stored_bytes"] == dataset["stored_bytes"] + 4
    after = shards(owner, appended)
    assert after == before | {4: Shard(before[4].name, before[4].nbytes, INDEX + INDEX, b"tail")}
    # Readers who opened the array before go on.
    assert shards(owner, dataset) == after
    assert content_of(owner, after[4].name) is not None
    assert_counted(database, owner)


def test_a_tail_keeps_the_beginning_of_the_one_before(owner: Caller, database: Database) -> None:
    dataset = long_store(owner)
    for kept, tail, expected in ((0, b"abcdef", b"abcdef"), (4, b"XY", b"abcdXY"), (6, b"", b"abcdXY")):
        before = shards(owner, dataset, range(3))[2]
        dataset = append(owner, dataset, 1, behind(before, 2, tail, kept))
        assert shards(owner, dataset, range(3))[2].tail == expected
    assert dataset["shape"] == [12, 3]
    assert dataset["stored_bytes"] == 3 * 16 + 6
    # Nothing was put in place of an object.
    assert sweep(owner) == []
    assert_counted(database, owner)


def test_a_new_shard_may_be_nothing_but_a_tail(owner: Caller, database: Database) -> None:
    dataset = whole_store(owner)
    dataset = append(owner, dataset, 1, tail_of(4, b"first"))
    assert shards(owner, dataset)[4] == Shard("", 0, INDEX, b"first")
    dataset = append(owner, dataset, 1, behind(shards(owner, dataset)[4], 4, b"second", 2))
    assert shards(owner, dataset)[4] == Shard("", 0, INDEX, b"fisecond")
    assert_counted(database, owner)


def test_an_object_takes_the_place_of_a_tail(owner: Caller, database: Database) -> None:
    dataset = long_store(owner)
    dataset = append(owner, dataset, 1, behind(shards(owner, dataset, range(3))[2], 2, b"tail"))
    old = shards(owner, dataset, range(3))[2]
    begun = begin_append(owner, dataset, 1)
    dataset = answer_of(owner.commit(begun["id"], shards=fill(owner, begun, [2], of_2=fingerprint(old))))
    assert shards(owner, dataset, range(3))[2] == Shard(name_of(begun, 2), 16, INDEX)
    assert dataset["stored_bytes"] == 3 * 16
    assert sweep(owner) == [old.name]
    assert_counted(database, owner)


def test_tails_and_objects_in_one_append(owner: Caller, database: Database) -> None:
    """A staged append may keep the object of one shard, and bring an object for the next."""
    dataset = store(owner)
    begun = begin_append(owner, dataset, 2)
    told = [behind(shards(owner, dataset)[4], 4, b"tail"), *fill(owner, begun, [5])]
    assert put(owner, begun, *told).status_code == 200
    assert put(owner, begun, *told).status_code == 200
    appended = answer_of(owner.commit(begun["id"]))
    now = shards(owner, appended, range(6))
    assert (now[4].tail, now[5].name) == (b"tail", name_of(begun, 5))
    assert_counted(database, owner)


def test_an_array_is_copied_with_its_tail(owner: Caller, database: Database) -> None:
    begun = begin(owner, new_key())
    told = [*fill(owner, begun, range(4)), entry(4, None) | {"tail": encoded(b"tail")}]
    copied = answer_of(owner.commit(begun["id"], shards=told))
    assert copied["stored_bytes"] == 4 * 16 + 4
    assert shards(owner, copied)[4] == Shard("", 0, b"", b"tail")
    assert_counted(database, owner)


def test_rows_that_are_cut_off_take_their_tail_along(owner: Caller, database: Database) -> None:
    dataset = grow(owner, store(owner))
    asked = {"data_id": dataset["id"], "base_rows": 10, "rows": 8, "fill": "AAAAAA=="}
    shorter = answer_of(owner.call("tensorage_resize", asked))
    assert shorter["stored_bytes"] == 4 * 16
    assert len(sweep(owner)) == 1
    assert_counted(database, owner)


def test_an_append_is_answered_as_the_first_time(owner: Caller) -> None:
    dataset, operation = store(owner), new_operation()
    told = behind(shards(owner, dataset)[4], 4, b"tail")
    first, again = (answer_of(ask_to_append(owner, dataset, 1, told, operation=operation)) for _ in range(2))
    assert first == again
    assert owner.open(dataset["key"])["shape"] == [10, 3]


def test_a_transaction_appends_tails(owner: Caller, state_of: StateOf) -> None:
    dataset = store(owner)
    told = [behind(shards(owner, dataset)[4], 4, b"tail")]
    asked = {"data_id": dataset["id"], "shape": [1, 3], "base_rows": 9, "shards": told}
    step = ("tensorage_append_tails", asked)
    assigned = [{"data_id": dataset["id"], "version": None}]
    before = state_of(owner)
    # The second step would need the array as it was before the first.
    assert code_of(owner.call("tensorage_transact", transaction(step, step, assigned=assigned))) == "TS003"
    assert state_of(owner) == before
    answer_of(owner.call("tensorage_transact", transaction(step, assigned=assigned)))
    assert shards(owner, dataset)[4].tail == b"tail"


# Arrays without objects --------------------------------------------------------------------------

TAILS = [b"first", b"second", b"", b"fourth", b"fifth"]


def test_an_array_is_stored_by_its_tails(owner: Caller) -> None:
    key, operation = new_key(), new_operation()
    request = with_tails(TAILS, key=key, attrs={"a": 1}, operation=operation)
    stored = answer_of(owner.call("tensorage_store_tails", request))
    assert answer_of(owner.call("tensorage_store_tails", request)) == stored
    opened = owner.open(key)
    assert (opened["engine"], opened["shape"], opened["attrs"]) == ("storage", list(SHAPE), {"a": 1})
    assert (opened["version"], opened["stored_bytes"]) == (1, sum(map(len, TAILS)))
    assert {n: (shard.name, shard.tail) for n, shard in shards(owner, opened).items()} == {
        n: ("", tail) for n, tail in enumerate(TAILS)
    }
    # It takes the place of another one, which is swept.
    again = answer_of(owner.call("tensorage_store_tails", with_tails(TAILS[::-1], key=key, overwrite=True)))
    assert again["version"] == 2
    assert shards(owner, owner.open(key))[0].tail == TAILS[4]


def test_a_transaction_stores_tails(owner: Caller, state_of: StateOf) -> None:
    keys = sorted([new_key(), new_key()])
    before = state_of(owner)
    steps = [("tensorage_store_tails", with_tails(TAILS, key=key)) for key in keys]
    assert code_of(owner.call("tensorage_transact", transaction(*steps, steps[0], keys=keys))) == "TS002"
    assert state_of(owner) == before
    answer_of(owner.call("tensorage_transact", transaction(*steps, keys=keys)))
    assert [shards(owner, owner.open(key))[1].tail for key in keys] == [b"second"] * 2


def shards_of(*numbers: Any, **more: Any) -> Json:
    return {"shards": [{"number": number, "index": encoded(INDEX), "tail": 5} | more for number in numbers]}


@pytest.mark.parametrize(
    ("changed", "code"),
    [
        ({"shards": []}, "TS006"),
        (shards_of(0, 1, 2, 3), "TS006"),
        (shards_of(0, 1, 2, 3, 5), "TS006"),
        (shards_of(0, 1, 2, 3, -1), "TS006"),
        (shards_of(0, 1, 2, 3, 3), "TS006"),
        (shards_of(0, 1, 2, 3, None), "TS006"),
        (shards_of(0, 1, 2, 3, 4, tail=4), "TS006"),
        (shards_of(0, 1, 2, 3, 4, tail=6), "TS006"),
        (shards_of(0, 1, 2, 3, 4, tail=-5), "TS006"),
        (shards_of(0, 1, 2, 3, 4, tail=2**31), "TS006"),
        (shards_of(0, 1, 2, 3, 4, index="no base64!"), "TS006"),
        (shards_of(0, 1, 2, 3, 4, index=encoded(b"odd")), "TS006"),
        (shards_of(0, 1, 2, 3, 4, index=encoded(bytes(200))), "TS006"),
        ({"shards": 5}, "TS006"),
        ({"shards": None}, "TS006"),
        ({"engine": "database", "zarr": None}, "TS010"),
        ({"zarr": None}, "23514"),
        ({"append": True}, "TS006"),
        ({"owner": "owner@lab.org"}, "TS006"),
        ({"dtype": "nonsense"}, "23514"),
    ],
)
def test_what_is_no_array_is_refused(owner: Caller, changed: Json, code: str, state_of: StateOf) -> None:
    before = state_of(owner)
    request = with_tails([b"12345"] * 5, key=new_key(), **changed)
    assert code_of(owner.call("tensorage_store_tails", request)) == code
    assert state_of(owner) == before


def test_no_shard_may_be_missing(owner: Caller, state_of: StateOf) -> None:
    before = state_of(owner)
    for tails in ([], TAILS[:4]):
        request = with_tails(tails, key=new_key())
        assert code_of(owner.call("tensorage_store_tails", request)) == "TS006"
    assert state_of(owner) == before
    # Without elements, there are none.
    assert answer_of(owner.call("tensorage_store_tails", with_tails([], key=new_key(), shape=[0, 3])))[
        "shape"
    ] == [0, 3]


def test_no_tail_is_longer_than_those_of_appends(owner: Caller) -> None:
    for length, expected in ((MOST, 200), (MOST + 1, 400)):
        request = with_tails([bytes(length), *TAILS[1:]], key=new_key())
        assert owner.call("tensorage_store_tails", request).status_code == expected


def test_a_key_that_is_taken(owner: Caller) -> None:
    key = store(owner)["key"]
    assert code_of(owner.call("tensorage_store_tails", with_tails(TAILS, key=key))) == "TS002"


# Others meanwhile --------------------------------------------------------------------------------


def test_of_appends_at_once_each_is_whole_or_refused(owner: Caller, database: Database) -> None:
    begun = begin(owner, new_key(), [1, 3], (100, 3))
    dataset = answer_of(owner.commit(begun["id"], shards=fill(owner, begun, [0])))
    told = behind(shards(owner, dataset, [0])[0], 0, b"x")

    def once(_: int) -> str:
        answer = ask_to_append(owner, dataset, 1, told)
        return "done" if answer.status_code == 200 else code_of(answer)

    with ThreadPoolExecutor(8) as pool:
        assert sorted(pool.map(once, range(16))) == ["TS003"] * 15 + ["done"]
    assert owner.open(dataset["key"])["shape"] == [2, 3]
    assert_counted(database, owner)


def test_what_was_made_from_another_tail_is_refused(owner: Caller, state_of: StateOf) -> None:
    """The object is the same, and the rows behind it are others: whoever knows only its name would drop them."""
    dataset = long_store(owner)
    old = shards(owner, dataset, range(3))[2]
    begun = [begin_assign(owner, dataset), begin_append(owner, dataset, 1)]
    told = [fill(owner, one, [2], of_2=old.name) for one in begun]
    grown = append(owner, dataset, 1, behind(old, 2, b"tail"))
    before = state_of(owner)
    for one, objects in zip(begun, told, strict=True):
        assert code_of(owner.commit(one["id"], shards=objects)) == "TS003"
    assert code_of(ask_to_append(owner, dataset, 1, behind(old, 2, b"other"))) == "TS003"
    now = shards(owner, grown, range(3))[2]
    wrong = [old.name, "", now.name + "+", fingerprint(now) + "0", fingerprint(now._replace(tail=b"tale"))]
    for based_on in wrong:
        refused = ask_to_append(owner, grown, 1, tail_of(2, b"x", kept=0, based_on=based_on))
        assert code_of(refused) == "TS003"
    assert state_of(owner) == before


@pytest.mark.parametrize("rows", [1, 3])
def test_an_assignment_from_before_an_append_has_not_its_rows(
    rows: int, owner: Caller, state_of: StateOf
) -> None:
    """It was begun with the rows that there were then, although it names the shard as it is now."""
    dataset = long_store(owner)
    old = names(owner, dataset, range(3))
    begun = begin_assign(owner, dataset)
    grown = append(owner, dataset, rows, behind(shards(owner, dataset, range(3))[2], 2, b"tail"))
    told = fill(owner, begun, [0, 2], of_0=old[0], of_2=fingerprint(shards(owner, grown, range(3))[2]))
    before = state_of(owner)
    assert code_of(owner.commit(begun["id"], shards=told)) == "TS003"
    assert state_of(owner) == before
    # The rows of another shard are as they were.
    assigned = answer_of(owner.commit(begun["id"], shards=told[:1]))
    assert shards(owner, assigned, range(3))[2].tail == b"tail"
    assert names(owner, assigned, range(3)) == [name_of(begun, 0), *old[1:]]


def test_an_assignment_reads_the_tail_first(owner: Caller, database: Database) -> None:
    dataset = grow(owner, store(owner))
    old = shards(owner, dataset)[4]
    begun = begin_assign(owner, dataset)
    assigned = answer_of(owner.commit(begun["id"], shards=fill(owner, begun, [4], of_4=fingerprint(old))))
    assert shards(owner, assigned)[4] == Shard(name_of(begun, 4), 16, INDEX)
    assert sweep(owner) == [old.name]
    assert_counted(database, owner)


# Bad input -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "bad",
    [
        {"kept": 1}, {"kept": -1}, {"kept": 2**31}, {"kept": "x"}, {"based_on": None, "kept": 0}, {"tail": "?"},
        {"tail": encoded(bytes(MOST + 1))}, {"name": "x", "nbytes": 1}, {"nbytes": 7}, {"number": 3}, {"number": None},
        {"index": "?"},
    ],
    ids=lambda bad: str(bad)[:40],
)  # fmt: skip
def test_what_is_no_tail_is_refused(bad: Json, owner: Caller, state_of: StateOf) -> None:
    dataset = store(owner)
    told = behind(shards(owner, dataset)[4], 4, b"tail")
    before = state_of(owner)
    assert code_of(ask_to_append(owner, dataset, 1, told | bad)) in ("TS003", "TS004", "TS006")
    assert state_of(owner) == before
    begun = begin_append(owner, dataset, 1)
    before = state_of(owner)
    assert code_of(owner.commit(begun["id"], shards=[told | bad])) in ("TS003", "TS004", "TS006")
    assert state_of(owner) == before


def test_a_tail_has_an_end(owner: Caller, state_of: StateOf) -> None:
    dataset = append(owner, whole_store(owner), 1, tail_of(4, bytes(MOST)))
    before = state_of(owner)
    refused = ask_to_append(owner, dataset, 1, behind(shards(owner, dataset)[4], 4, b"x", MOST))
    assert code_of(refused) == "TS006"
    assert state_of(owner) == before


def test_kept_is_for_appends(owner: Caller, state_of: StateOf) -> None:
    dataset = store(owner)
    told = behind(shards(owner, dataset)[4], 4, b"tail")
    for begun in (begin(owner, new_key()), begin_assign(owner, dataset)):
        assert code_of(put(owner, begun, told)) == "TS006"
    begun = begin(owner, new_key())
    part = entry(4, None, low=8, high=9, before=None) | {"tail": encoded(b"x")}
    assert code_of(put(owner, begun, part)) == "TS006"


def test_tails_count_against_the_quota(owner: Caller, database: Database, state_of: StateOf) -> None:
    dataset = store(owner)
    told = behind(shards(owner, dataset)[4], 4, bytes(100_000))
    database.execute(
        "insert into tensorage.quotas (user_id, max_bytes) "
        "select user_id, bytes + 90000 from tensorage.usage where user_id = %s",
        [owner.id],
    )
    before = state_of(owner)
    assert code_of(ask_to_append(owner, dataset, 1, told)) == "TS005"
    assert state_of(owner) == before
    database.execute("delete from tensorage.quotas where user_id = %s", [owner.id])
    answer_of(ask_to_append(owner, dataset, 1, told))
    assert_counted(database, owner)


def test_others_append_and_read_tails_as_they_may(owner: Caller, new_user: Callable[[], Caller]) -> None:
    dataset, other = store(owner), new_user()
    told = behind(shards(owner, dataset)[4], 4, b"tail")
    assert code_of(ask_to_append(other, dataset, 1, told)) == "TS003"
    answer_of(owner.call("tensorage_share", key=dataset["key"], readers=[other.email]))
    assert code_of(ask_to_append(other, dataset, 1, told)) == "TS007"
    answer_of(owner.call("tensorage_share", key=dataset["key"], readers=[other.email], can_write=True))
    appended = answer_of(ask_to_append(other, dataset, 1, told))
    assert shards(other, appended)[4].tail == b"tail"
    answer_of(owner.call("tensorage_unshare", key=dataset["key"], readers=[other.email]))
    assert code_of(ask_shards(other, appended)) == "TS003"


def test_few_records_come_along_with_the_entry(owner: Caller) -> None:
    dataset = grow(owner, store(owner))
    asked = {"keys": [dataset["key"]]}
    headers = {"Accept": "application/vnd.tensorage"}
    answer = owner.request("POST", "/rpc/tensorage_read_many", json=asked, headers=headers)
    assert parse_shards(answer.content[4 + int.from_bytes(answer.content[:4], "big") :])[4].tail == b"tail"
    assert names(owner, dataset, NUMBERS)
    assert SHAPE == (9, 3)
