"""Access to objects by the Storage API: of arrays, of what they were made from, and of files."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import psycopg
import pytest
from sql.api import Caller, Json, answer_of, code_of, new_key
from sql.conftest import Register, State
from sql.objects import (
    BUCKET,
    PREFIX,
    append,
    assign,
    begin,
    begin_append,
    begin_assign,
    content_of,
    fill,
    folder_of,
    name_of,
    names,
    put,
    remove,
    storage,
    store,
    sweep,
    upload,
)

Connection = psycopg.Connection[tuple[Any, ...]]
StateOf = Callable[[Caller], State]

_ROUTES = ("", "authenticated/", "info/", "info/authenticated/", "public/")


@dataclass(frozen=True)
class Bucket:
    """A user's objects, by what they are part of; and a folder of each of their arrays."""

    owner: Caller
    shared: list[str]
    others: dict[str, list[str]]
    folders: dict[str, str]

    @property
    def hidden(self) -> list[str]:
        return sorted(name for names_of in self.others.values() for name in names_of)


@pytest.fixture
def bucket(owner: Caller) -> Bucket:
    shared, private = store(owner, is_shared=True), store(owner)
    old, gone = names(owner, shared), store(owner, is_shared=True)
    shared = append(owner, shared, 1, [4], of_4=old[4])
    shared = assign(owner, shared, of_1=old[1])
    staged = begin(owner, new_key(), is_shared=True)
    answer_of(put(owner, staged, *fill(owner, staged, [0])))
    changing = [begin_append(owner, shared, 1), begin_assign(owner, shared)]
    for begun, number in zip(changing, [5, 4], strict=True):
        answer_of(put(owner, begun, *fill(owner, begun, [number])))
    answer_of(owner.call("tensorage_remove", key=gone["key"]))
    files = [f"{owner.id}/a.txt", f"{owner.id}/folder/a.txt", f"{owner.id}/{shared['id']}"]
    untold = name_of(staged, 1)
    for name in (*files, untold):
        assert upload(owner, name).status_code == 200
    others = {
        "private": names(owner, private),
        "replaced": [old[1], old[4]],
        "removed": [name_of(gone, number) for number in range(5)],
        "staged": [name_of(staged, 0)],
        "untold": [untold],
        "changing": [name_of(begun, 4) for begun in changing],
        "files": files,
    }
    folders = {"shared": folder_of(shared), "private": folder_of(private), "removed": folder_of(gone)}
    return Bucket(owner, names(owner, shared), others, folders | {"staged": folder_of(staged)})


@pytest.fixture(params=["other", "anon"])
def stranger(request: pytest.FixtureRequest) -> Caller:
    if request.param == "other":
        return request.getfixturevalue("other")
    return request.getfixturevalue("strangers")["anon"]


def _reads(caller: Caller, name: str) -> Iterator[httpx.Response]:
    """Answers to every way of reading an object."""
    for route in _ROUTES:
        for method in ("GET", "HEAD"):
            yield storage(caller, method, f"/object/{route}{BUCKET}/{name}")
    yield storage(caller, "GET", f"{PREFIX}/{name}", headers={"Range": "bytes=0-0"})
    yield storage(caller, "POST", f"/object/sign/{BUCKET}/{name}", json={"expiresIn": 60})


def _listed(caller: Caller, folder: str) -> list[str]:
    answer = storage(caller, "POST", f"/object/list/{BUCKET}", json={"prefix": folder, "limit": 1000})
    return [entry["name"] for entry in answer_of(answer)]


def resumable(caller: Caller, name: str) -> httpx.Response:
    """The answer to the beginning of a resumable upload."""
    pairs = {"bucketName": BUCKET, "objectName": name}
    metadata = ",".join(f"{key} {base64.b64encode(value.encode()).decode()}" for key, value in pairs.items())
    headers = {
        "Tus-Resumable": "1.0.0",
        "Upload-Length": "4",
        "Upload-Metadata": metadata,
        "x-upsert": "true",
    }
    return storage(caller, "POST", "/upload/resumable", headers=headers)


def _writes(caller: Caller, name: str) -> Iterator[httpx.Response]:
    """Answers to every way of making an object or writing over it, but from another one."""
    yield upload(caller, name, b"evil")
    yield upload(caller, name, b"evil", **{"x-upsert": "false"})
    yield storage(caller, "PUT", f"{PREFIX}/{name}", content=b"evil", headers={"Content-Type": "text/plain"})
    form = {"file": ("f", b"evil", "text/plain")}
    yield storage(caller, "POST", f"{PREFIX}/{name}", files=form, headers={"x-upsert": "true"})
    yield resumable(caller, name)


def _transfer(caller: Caller, how: str, source: str, destination: str) -> httpx.Response:
    ends = {"bucketId": BUCKET, "sourceKey": source, "destinationKey": destination}
    return storage(caller, "POST", f"/object/{how}", json=ends, headers={"x-upsert": "true"})


def _deletions(caller: Caller, name: str) -> Iterator[httpx.Response]:
    yield storage(caller, "DELETE", f"{PREFIX}/{name}")
    bulk = storage(caller, "DELETE", PREFIX, json={"prefixes": [name]})
    assert (bulk.status_code, bulk.json()) == (200, [])


def _all_refused(answers: Iterator[httpx.Response]) -> None:
    for answer in answers:
        # Storage says 400 where the truth is 403 or 404.
        assert 400 <= answer.status_code < 500, (answer.request, answer.text)


# Others ------------------------------------------------------------------------------------------------------


def test_strangers_read_nothing_that_is_not_shared(stranger: Caller, bucket: Bucket) -> None:
    for name in bucket.hidden:
        _all_refused(_reads(stranger, name))
        _all_refused(iter([_transfer(stranger, "copy", name, f"{stranger.id or bucket.owner.id}/stolen")]))
    many = {"expiresIn": 60, "paths": bucket.hidden}
    signed = answer_of(storage(stranger, "POST", f"/object/sign/{BUCKET}", json=many))
    assert {entry["signedURL"] for entry in signed} == {None}


def test_strangers_change_nothing(stranger: Caller, bucket: Bucket, state_of: StateOf) -> None:
    """The object may be shared or not, there or not."""
    places = [*bucket.shared, *(names_of[-1] for names_of in bucket.others.values())]
    new = [f"{folder}/c/9/9" for folder in bucket.folders.values()] + [f"{bucket.owner.id}/new"]
    mine = f"{stranger.id}/mine" if stranger.id else "mine"
    assert (upload(stranger, mine).status_code == 200) is bool(stranger.id)
    before = state_of(bucket.owner)
    for name in places:
        _all_refused(_deletions(stranger, name))
        _all_refused(iter([_transfer(stranger, "move", name, f"{mine}.moved")]))
    for name in (*places, *new):
        _all_refused(_writes(stranger, name))
        _all_refused(_transfer(stranger, how, mine, name) for how in ("move", "copy"))
    assert state_of(bucket.owner) == before


def test_anon_does_not_read_what_is_shared(strangers: dict[str, Caller], bucket: Bucket) -> None:
    for caller in strangers.values():
        for name in bucket.shared:
            _all_refused(_reads(caller, name))
    assert _listed(strangers["anon"], bucket.owner.id) == []


def test_shared_array_is_read_by_others_and_nothing_beside_it(bucket: Bucket, other: Caller) -> None:
    folders = {name.rsplit("/", 2)[0] for name in bucket.shared}
    assert len(folders) == 3
    for name in bucket.shared:
        content = content_of(bucket.owner, name)
        assert content is not None
        assert content_of(other, name) == content
        assert (
            storage(other, "GET", f"{PREFIX}/{name}", headers={"Range": "bytes=0-0"}).content == content[:1]
        )
        assert storage(other, "GET", f"/object/info/{BUCKET}/{name}").status_code == 200
    # Only these are listed of all that begins with the owner's name.
    listed = [f"{folder}/{number}/0" for folder in folders for number in _listed(other, folder)]
    assert sorted(listed) == sorted(bucket.shared)
    assert set(_listed(other, bucket.owner.id)) == {folder.split("/")[1] for folder in folders}


@pytest.mark.parametrize("how", ["unshare", "remove", "overwrite"])
def test_what_is_not_shared_any_more_is_not_read(
    how: str, bucket: Bucket, other: Caller, database: Connection
) -> None:
    row = database.execute(
        "select d.key from public.datasets d join tensorage.shares s on (s.user_id, s.pattern) = (d.user_id, d.key) "
        "where d.user_id = %s and d.state = 'committed'",
        (bucket.owner.id,),
    ).fetchone()
    assert row is not None
    if how == "unshare":
        answer_of(bucket.owner.call("tensorage_unshare", key=row[0]))
    elif how == "remove":
        answer_of(bucket.owner.call("tensorage_remove", key=row[0]))
    else:
        new = store(bucket.owner, row[0], overwrite=True)
    for name in bucket.shared:
        _all_refused(_reads(other, name))
        assert content_of(bucket.owner, name) is not None
    # The share belongs to the key, and the new array is read by it.
    assert _listed(other, bucket.owner.id) == ([str(new["id"])] if how == "overwrite" else [])


def test_shard_of_one_user_gives_no_object_of_another(owner: Caller, other: Caller, bucket: Bucket) -> None:
    """A user who shares an array says which objects it has: none but their own."""
    begun = begin(other, new_key(), [1], (1,), is_shared=True)
    for name in (bucket.others["private"][0], bucket.others["files"][0], f"{other.id}/../{owner.id}/a.txt"):
        told = {"number": 0, "name": name, "nbytes": 16, "index": ""}
        assert code_of(put(other, begun, told)) == "TS006"
    assert code_of(other.commit(begun["id"])) == "TS004"


# The owner ---------------------------------------------------------------------------------------------------


def test_owner_does_not_change_objects_of_an_array(bucket: Bucket, state_of: StateOf) -> None:
    """No late part of a request that was given up changes what can be read."""
    owner, file = bucket.owner, bucket.others["files"][0]
    before = state_of(owner)
    for name in (*bucket.shared, *bucket.others["private"][:2]):
        _all_refused(_writes(owner, name))
        _all_refused(_deletions(owner, name))
        _all_refused(iter([_transfer(owner, "move", name, f"{owner.id}/moved")]))
        _all_refused(_transfer(owner, how, file, name) for how in ("move", "copy"))
        assert content_of(owner, name) != b"evil"
    assert state_of(owner) == before


def test_owner_adds_nothing_to_folders_that_are_not_being_written(
    bucket: Bucket, other: Caller, state_of: StateOf
) -> None:
    owner, file = bucket.owner, bucket.others["files"][0]
    theirs, rows = begin(other, new_key()), owner.begin(new_key(), [3])
    folders = [bucket.folders[name] for name in ("shared", "private", "removed")]
    staged = bucket.folders["staged"].split("/")[1]
    numbers = [
        "0", "00", f"0{staged}", f"00{staged}", f"{theirs['id']}", f"{rows['id']}", f"{2**40}", f"{2**62}", f"{2**63}",
        "9" * 18, "9" * 19, "9" * 200,
    ]  # fmt: skip
    folders += [f"{owner.id}/{number}" for number in numbers]
    before = state_of(owner)
    for folder in folders:
        for name in (f"{folder}/c/7/0", f"{folder}/zarr.json"):
            _all_refused(_writes(owner, name))
            _all_refused(_transfer(owner, how, file, name) for how in ("move", "copy"))
    assert state_of(owner) == before


def test_owner_uploads_while_an_array_is_written(owner: Caller) -> None:
    dataset = store(owner)
    for begun in (begin(owner, new_key()), begin_append(owner, dataset, 1), begin_assign(owner, dataset)):
        name = name_of(begun, 4)
        assert upload(owner, name, b"first").status_code == 200
        assert upload(owner, name, b"second").status_code == 200
        assert resumable(owner, name).status_code == 201
        assert content_of(owner, name) == b"second"
        assert remove(owner, [name]) == [name]
        answer_of(owner.call("tensorage_abort", data_id=begun["id"]))
        _all_refused(_writes(owner, name))


def test_resumable_upload_that_ends_after_the_commit_is_none(owner: Caller, state_of: StateOf) -> None:
    begun = begin(owner, new_key())
    told = fill(owner, begun)
    location = resumable(owner, told[0]["name"]).headers["location"]
    answer_of(owner.commit(begun["id"], shards=told))
    before = state_of(owner)
    headers = {
        "Tus-Resumable": "1.0.0",
        "Upload-Offset": "0",
        "Content-Type": "application/offset+octet-stream",
    }
    late = storage(owner, "PATCH", location.partition("/storage/v1")[2], content=b"evil", headers=headers)
    assert 400 <= late.status_code < 500, late.text
    assert state_of(owner) == before


def test_owner_deletes_what_is_not_needed(bucket: Bucket) -> None:
    gone = sorted(bucket.others["replaced"] + bucket.others["removed"])
    assert remove(bucket.owner, [*gone, *bucket.shared, *bucket.others["private"]]) == gone
    assert sweep(bucket.owner) == []
    assert all(content_of(bucket.owner, name) for name in (*bucket.shared, *bucket.others["private"]))


@pytest.mark.parametrize("place", ["a.txt", "folder/a.txt", "12", "x12/a", "12x/a", "-1/a", "1.5/c/0"])
def test_files_are_written_over_moved_and_deleted(place: str, owner: Caller, other: Caller) -> None:
    name = f"{owner.id}/{place}"
    for content in (b"first", b"second"):
        assert upload(owner, name, content).status_code == 200, place
        assert content_of(owner, name) == content
    assert resumable(owner, name).status_code == 201
    assert _transfer(owner, "copy", name, name + ".copy").status_code == 200
    assert _transfer(owner, "move", name, name + ".moved").status_code == 200
    _all_refused(_reads(other, name + ".moved"))
    both = [name + ".copy", name + ".moved"]
    assert remove(other, both) == []
    assert remove(owner, both) == both


def test_files_of_two_users_are_apart(new_user: Register) -> None:
    first, second = new_user(), new_user()
    for caller in (first, second):
        upload(caller, f"{caller.id}/a.txt", caller.id.encode())
    assert content_of(first, f"{first.id}/a.txt") == first.id.encode()
    assert content_of(first, f"{second.id}/a.txt") is None
    assert _listed(first, first.id) == ["a.txt"]
    # Users who share arrays may be listed, too.
    roots = _listed(first, "")
    assert first.id in roots
    assert second.id not in roots


def _folder_names(caller: Caller, begun: Json) -> list[str]:
    return _listed(caller, folder_of(begun) + "/c")


def test_folders_of_shared_and_private_arrays_in_a_list(owner: Caller, other: Caller) -> None:
    private, shared = store(owner), store(owner, is_shared=True)
    assert _folder_names(owner, private) == _folder_names(owner, shared) == list("01234")
    assert _folder_names(other, private) == []
    assert _folder_names(other, shared) == list("01234")
