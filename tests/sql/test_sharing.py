"""Rights of others on an array that its owner shares: to read it, as long as it is shared, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import psycopg
import pytest
from sql.api import Caller, Json, answer_of, binary, code_of, new_key, new_operation, whole
from sql.conftest import State
from sql.objects import content_of, remove, upload

_ARRAY = np.arange(12, dtype="<i4").reshape(4, 3)


@pytest.fixture
def shared(owner: Caller) -> Json:
    key = new_key()
    owner.store(key, _ARRAY, is_shared=True, chunk=5)
    return owner.open(key)


def test_sharee_reads(shared: Json, owner: Caller, other: Caller) -> None:
    opened = other.open(shared["key"], owner)
    assert opened == shared
    assert opened["owner"] == owner.email
    assert np.array_equal(other.read(opened), _ARRAY.reshape(-1))
    assert answer_of(other.call("tensorage_list", prefix=shared["key"])) == []
    assert answer_of(other.call("tensorage_list", prefix=shared["key"], owner=owner.email)) == [shared["key"]]
    row = other.request("GET", f"/datasets?id=eq.{shared['id']}").json()
    assert [(r["key"], r["user_id"]) for r in row] == [(shared["key"], owner.id)]
    blocks = other.request("GET", f"/tensors?data_id=eq.{shared['id']}&select=index,count&order=index").json()
    assert blocks == [{"index": 0, "count": 5}, {"index": 5, "count": 5}, {"index": 10, "count": 2}]


def test_sharee_follows_what_the_owner_appends(shared: Json, owner: Caller, other: Caller) -> None:
    answer_of(owner.append(shared["key"], _ARRAY[:1]))
    assert np.array_equal(other.read(other.open(shared["key"], owner))[12:], _ARRAY[0])
    # The array that was opened before is as it was.
    assert np.array_equal(other.read(shared), _ARRAY.reshape(-1))


def test_sharee_cannot_change_it(
    shared: Json, owner: Caller, other: Caller, state_of: Callable[[Caller], State]
) -> None:
    before = state_of(owner)
    key, number = shared["key"], shared["id"]
    put = binary(_ARRAY.tobytes(), count=12, chunk=5, data_id=number)
    refused = {
        "TS001": [
            other.call("tensorage_share", key=key),
            other.call("tensorage_remove", key=key),
            other.call("tensorage_append", whole(_ARRAY, key=key, chunk=5, operation=new_operation())),
            other.call("tensorage_begin", key=key, shape=[4, 3], dtype="<i4", chunk=5, append=True),
            other.call("tensorage_rename", key=key, new_key=new_key()),
            other.call("tensorage_put", put),
            other.patch(number, _ARRAY, [0], [12]),
            other.call("tensorage_compact", key=key),
            other.call("tensorage_commit", data_id=number),
            other.call("tensorage_dataset", data_id=number),
        ],
        "TS007": [
            other.call(
                "tensorage_append",
                whole(_ARRAY, key=key, chunk=5, operation=new_operation(), owner=owner.email),
            ),
            other.call(
                "tensorage_begin", key=key, shape=[4, 3], dtype="<i4", chunk=5, append=True, owner=owner.email
            ),
            other.assign(shared, -_ARRAY, [0], [12]),
            other.call("tensorage_begin_assign", data_id=number, version=shared["version"]),
            other.call("tensorage_annotate", data_id=number, attrs={"note": "mine"}),
        ],
        "42501": [
            other.request("PATCH", f"/datasets?id=eq.{number}", json={"share_at_commit": True}),
            other.request("DELETE", f"/datasets?id=eq.{number}"),
            other.request("DELETE", f"/tensors?data_id=eq.{number}"),
            other.request("PATCH", f"/tensors?data_id=eq.{number}", json={"count": 1}),
        ],
    }
    assert code_of(other.call("tensorage_unshare", key=key)) == "TS006"
    for code, answers in refused.items():
        assert [code_of(answer) for answer in answers] == [code] * len(answers)
    assert answer_of(other.call("tensorage_abort", data_id=number)) == 0
    assert answer_of(other.call("tensorage_sweep")) == 0
    assert state_of(owner) == before


def test_sharee_who_stores_under_the_key_has_an_array_of_their_own(
    shared: Json, owner: Caller, other: Caller
) -> None:
    other.store(shared["key"], -_ARRAY, overwrite=True)
    assert other.open(shared["key"])["user_id"] == other.id
    assert np.array_equal(owner.read(owner.open(shared["key"])), _ARRAY.reshape(-1))
    theirs = answer_of(other.call("tensorage_open", key=shared["key"], owner=owner.email))
    assert theirs["id"] == shared["id"]


def test_two_users_share_arrays_under_one_key(
    shared: Json, owner: Caller, other: Caller, new_user: Callable[[], Caller]
) -> None:
    other.store(shared["key"], -_ARRAY, is_shared=True)
    reader = new_user()
    assert code_of(reader.call("tensorage_open", key=shared["key"])) == "TS001"
    assert np.array_equal(reader.read(reader.open(shared["key"], other)), -_ARRAY.reshape(-1))
    assert np.array_equal(reader.read(reader.open(shared["key"], owner)), _ARRAY.reshape(-1))
    assert answer_of(reader.call("tensorage_list", prefix=shared["key"])) == []


def _assert_hidden(dataset: Json, caller: Caller, owner: Caller) -> None:
    _assert_unread(dataset, caller)
    for whose in ({}, {"owner": owner.email}, {"owner": owner.id}):
        assert code_of(caller.call("tensorage_open", key=dataset["key"], **whose)) == "TS001"
        assert answer_of(caller.call("tensorage_list", prefix=dataset["key"], **whose)) == []


def _assert_unread(dataset: Json, caller: Caller) -> None:
    assert code_of(caller.ask(dataset, [0])) == "TS003"
    assert caller.request("GET", f"/datasets?id=eq.{dataset['id']}").json() == []
    assert caller.request("GET", f"/tensors?data_id=eq.{dataset['id']}").json() == []


def test_end_of_sharing_ends_access(shared: Json, owner: Caller, other: Caller) -> None:
    answer_of(owner.call("tensorage_unshare", key=shared["key"]))
    _assert_hidden(shared, other, owner)
    answer_of(owner.call("tensorage_share", key=shared["key"]))
    assert np.array_equal(other.read(other.open(shared["key"], owner)), _ARRAY.reshape(-1))


def test_removed_and_replaced_arrays_are_hidden_though_still_stored(
    shared: Json, owner: Caller, other: Caller
) -> None:
    many = np.arange(400, dtype="<i4")
    first = owner.store(shared["key"], many, is_shared=True, overwrite=True, chunk=1)
    second = owner.store(shared["key"], _ARRAY, overwrite=True)
    _assert_unread(first, other)
    assert second["left"] == 1
    # The share belongs to the key.
    assert np.array_equal(other.read(other.open(shared["key"], owner)), _ARRAY.reshape(-1))
    assert owner.request("GET", f"/tensors?data_id=eq.{first['id']}&select=count&limit=1").json() == [
        {"count": 1}
    ]


def test_operation_that_is_sent_again_after_the_share_tells_nothing_new(owner: Caller, other: Caller) -> None:
    key = new_key()
    stored = owner.store(key, _ARRAY, attrs={"note": "before"})
    answer_of(owner.call("tensorage_share", key=key, readers=[other.email], can_write=True))
    body = whole(_ARRAY[:1], key=key, operation=new_operation(), owner=owner.email)
    assert answer_of(other.call("tensorage_append", body))["attrs"] == {"note": "before"}
    answer_of(owner.call("tensorage_unshare", key=key))
    answer_of(owner.call("tensorage_annotate", data_id=stored["id"], attrs={"note": "after"}))
    again = other.call("tensorage_append", body)
    assert "after" not in again.text
    assert owner.open(key)["shape"] == [5, 3]


def test_array_being_written_is_invisible_however_it_will_be_shared(owner: Caller, other: Caller) -> None:
    begun = owner.begin(new_key(), [4, 3], is_shared=True, chunk=12)
    answer_of(owner.put(begun["id"], _ARRAY, chunk=12))
    _assert_hidden(begun, other, owner)
    answer_of(owner.commit(begun["id"]))
    assert np.array_equal(other.read(other.open(begun["key"], owner)), _ARRAY.reshape(-1))


def test_array_cannot_be_given_away(owner: Caller, other: Caller) -> None:
    key = new_key()
    meta = {"user_id": other.id, "data_id": 1, "id": 1, "writer": other.id}
    assert owner.store(key, _ARRAY, **meta)["user_id"] == owner.id
    named = owner.call("tensorage_store", whole(_ARRAY, key=new_key(), owner=other.email))
    assert code_of(named) == "TS006"
    refused = owner.call(
        "tensorage_begin", key=key, shape=[1], dtype="<i4", chunk=1, overwrite=True, user_id=other.id
    )
    assert code_of(refused) == "PGRST202"
    assert code_of(other.call("tensorage_open", key=key)) == "TS001"


def test_owner_is_named_by_the_address_of_now(
    shared: Json, owner: Caller, other: Caller, database: psycopg.Connection[tuple[Any, ...]]
) -> None:
    """An address that an account has had before may be another one's, and a token tells the old one for an hour."""
    new_address = f"new-{owner.email}"
    database.execute("update auth.users set email = %s where id = %s", (new_address, owner.id))
    by_new = answer_of(other.call("tensorage_open", key=shared["key"], owner=new_address))
    assert (by_new["id"], by_new["owner"]) == (shared["id"], new_address)
    # The address may be spelt in any case.
    assert answer_of(other.call("tensorage_open", key=shared["key"], owner=new_address.upper())) == by_new
    # The token still says the old address: what is made by it does not.
    made = owner.store(new_key(), _ARRAY, is_shared=True)
    assert made["owner"] == new_address
    assert code_of(other.call("tensorage_open", key=shared["key"], owner=owner.email)) == "TS001"
    database.execute("update auth.users set email = %s where id = %s", (owner.email, other.id))
    assert code_of(other.call("tensorage_open", key=shared["key"], owner=owner.email)) == "TS001"
    assert answer_of(owner.call("tensorage_open", key=shared["key"], owner=new_address))["id"] == shared["id"]


def test_deleted_user_s_token_is_nobody_s(
    shared: Json, owner: Caller, new_user: Callable[[], Caller], database: psycopg.Connection[tuple[Any, ...]]
) -> None:
    """It is good for an hour, as far as the token says."""
    leaving = new_user()
    leaving.store(new_key(), _ARRAY)
    assert leaving.open(shared["key"], owner)["id"] == shared["id"]
    assert upload(leaving, f"{leaving.id}/a file").status_code == 200
    database.execute("delete from auth.users where id = %s", (leaving.id,))
    for function, arguments in (
        ("tensorage_open", {"key": shared["key"]}),
        ("tensorage_list", {}),
        ("tensorage_count", {}),
        ("tensorage_sweep", {}),
        ("tensorage_begin", {"key": "a", "shape": [1], "dtype": "<i4", "chunk": 1}),
    ):
        assert code_of(leaving.call(function, arguments)) == "42501", function
    assert leaving.ask(shared, [0]).status_code in {401, 403}
    for table in ("datasets", "tensors", "shards"):
        assert (
            leaving.request("GET", f"/{table}?select=data_id" if table != "datasets" else "/datasets").json()
            == []
        )
    assert upload(leaving, f"{leaving.id}/another file").status_code != 200
    assert remove(leaving, [f"{leaving.id}/a file"]) == []
    assert content_of(leaving, f"{leaving.id}/a file") is None


def _is_shared(key: str, owner: Caller, reader: Caller) -> bool:
    return reader.call("tensorage_open", key=key, owner=owner.email).status_code == 200


@pytest.mark.parametrize("below", ["array", "file"])
def test_renaming_all_shares_nothing_that_is_below_the_new_prefix_already(
    below: str, owner: Caller, other: Caller
) -> None:
    """The share of the old prefix would let its readers have it."""
    old, new = f"{new_key()}/", f"{new_key()}/"
    owner.store(f"{old}1", _ARRAY)
    owner.store(f"{old}sub/2", _ARRAY)
    answer_of(owner.call("tensorage_share", key=old, readers=[other.email]))
    answer_of(owner.call("tensorage_share", key=f"{old}sub/", readers=[other.email]))
    answer_of(owner.call("tensorage_share", key=f"{old}1", readers=[other.email]))
    private = f"{new}private"
    if below == "array":
        owner.store(private, _ARRAY)
    else:
        assert upload(owner, f"{owner.id}/{private}").status_code == 200
    answer_of(owner.call("tensorage_rename_all", prefix=old, new_prefix=new))
    assert not _is_shared(private, owner, other)
    assert content_of(other, f"{owner.id}/{private}") is None
    # The share of an array goes along, and so does that of a prefix with nothing else below its new name.
    assert {share["key"] for share in answer_of(owner.call("tensorage_shares"))} == {
        old,
        f"{new}sub/",
        f"{new}1",
    }
    assert _is_shared(f"{new}1", owner, other)
    assert _is_shared(f"{new}sub/2", owner, other)


def test_renaming_all_leaves_the_shares_of_files(owner: Caller, other: Caller) -> None:
    """A file is not renamed: its share would be one of an array that has the same name below the new prefix."""
    old, new = f"{new_key()}/", f"{new_key()}/"
    owner.store(f"{old}1", _ARRAY)
    owner.store(f"{new}notes", _ARRAY)
    assert upload(owner, f"{owner.id}/{old}notes", b"notes").status_code == 200
    answer_of(owner.call("tensorage_share", key=f"{old}notes", readers=[other.email]))
    answer_of(owner.call("tensorage_rename_all", prefix=old, new_prefix=new))
    assert not _is_shared(f"{new}notes", owner, other)
    assert content_of(other, f"{owner.id}/{old}notes") == b"notes"


def test_renaming_all_leaves_no_share_of_an_old_key(owner: Caller, other: Caller) -> None:
    """It would be one of the next array under that key, also where the new key can have no share of its own."""
    key = new_key()
    owner.store(key, _ARRAY)
    answer_of(owner.call("tensorage_share", key=key, readers=[other.email]))
    answer_of(owner.call("tensorage_rename_all", prefix=key, new_prefix=f"{key}/"))
    owner.store(key, _ARRAY)
    assert not _is_shared(key, owner, other)
    assert answer_of(owner.call("tensorage_shares")) == []


def test_records_tell_of_shares_that_come_with_an_array_and_of_arrays_that_are_renamed_over(
    owner: Caller,
) -> None:
    first, second = new_key(), new_key()
    owner.store(first, _ARRAY, is_shared=True)
    owner.store(second, _ARRAY)
    answer_of(owner.call("tensorage_rename", key=second, new_key=first, overwrite=True))
    records = answer_of(owner.call("tensorage_audit", key=first))
    assert [(record["action"], record["detail"]) for record in records] == [
        ("renamed", second),
        ("replaced", None),
        ("shared", None),
        ("created", None),
    ]
