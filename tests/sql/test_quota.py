"""Quotas: what counts, to the byte; of a user, of the project, and against writers at once.

A quota counts what is stored, with its rows, and what is reserved for arrays that are being written. Each test ends
with the total of its users compared with what there is.
"""

from __future__ import annotations

import base64
import json
import secrets
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psycopg
import pytest
from sql.api import Caller, answer_of, code_of, new_key, new_operation, whole
from sql.conftest import State
from sql.objects import (
    PREFIX,
    append,
    ask_to_append,
    assign,
    begin,
    begin_append,
    begin_assign,
    entry,
    fill,
    folder_of,
    metadata,
    name_of,
    names,
    put,
    remove,
    storage,
    store,
    sweep,
    upload,
)

from tensorage.embedded import control

Connection = psycopg.Connection[tuple[Any, ...]]
StateOf = Callable[[Caller], State]
Write = Callable[[Caller, int], httpx.Response]

_ROW = 128


@pytest.fixture(autouse=True)
def _totals_are_what_there_is(owner: Caller, other: Caller, database: Connection) -> Iterator[None]:
    yield
    for caller in (owner, other):
        assert_total(database, caller)


def assert_total(database: Connection, caller: Caller) -> None:
    counted = database.execute("select tensorage.count_usage(%s)", (caller.id,)).fetchone()
    assert counted == (used(database, caller),)


def used(database: Connection, caller: Caller) -> int:
    row = database.execute("select bytes from tensorage.usage where user_id = %s", (caller.id,)).fetchone()
    return int(row[0]) if row else 0


def used_beside_records(database: Connection, caller: Caller) -> int:
    """Bytes that count, without records of who did what: these stay when the arrays are gone."""
    row = database.execute(
        "select coalesce(sum(tensorage.record_bytes(key, detail)), 0) from tensorage.audit where user_id = %s",
        (caller.id,),
    ).fetchone()
    assert row is not None
    return used(database, caller) - int(row[0])


def allow(database: Connection, caller: Caller, more: int) -> None:
    """Let the user store so many bytes more than now."""
    database.execute(
        "insert into tensorage.quotas values (%s, %s) "
        "on conflict (user_id) do update set max_bytes = excluded.max_bytes",
        (caller.id, used(database, caller) + more),
    )


def cost(database: Connection, caller: Caller, write: Callable[[], httpx.Response]) -> int:
    """Bytes that a request, which has to succeed, adds to what counts."""
    before = used(database, caller)
    answer_of(write())
    return used(database, caller) - before


def _store(caller: Caller, count: int, **meta: Any) -> httpx.Response:
    return caller.call("tensorage_store", whole(np.zeros(count, "u1"), **{"key": new_key()} | meta))


def _begin(caller: Caller, count: int, **more: Any) -> httpx.Response:
    asked = {"key": new_key(), "shape": [count], "dtype": "|u1", "chunk": 100} | more
    return caller.call("tensorage_begin", asked)


def _begin_objects(caller: Caller, count: int, **more: Any) -> httpx.Response:
    return _begin(caller, count, engine="storage", zarr=metadata((100,)), **more)


@pytest.mark.parametrize("write", [_store, _begin, _begin_objects])
def test_quota_is_the_last_byte(
    write: Write, owner: Caller, other: Caller, database: Connection, state_of: StateOf
) -> None:
    taken = cost(database, other, lambda: write(other, 1000))
    allow(database, owner, taken - 1)
    before = state_of(owner)
    refused = write(owner, 1000)
    assert code_of(refused) == "TS005"
    assert json.loads(refused.json()["details"]) == {"asked": taken, "used": 0, "allowed": taken - 1}
    assert state_of(owner) == before
    allow(database, owner, taken)
    assert write(owner, 1000).status_code == 200
    assert used(database, owner) == taken
    assert code_of(write(owner, 0)) == "TS005"


def test_all_that_is_stored_counts(owner: Caller, database: Connection) -> None:
    """Everything counts: blocks with their rows, datasets with their descriptions, answers."""
    bare = cost(database, owner, lambda: _store(owner, 0))
    assert cost(database, owner, lambda: _store(owner, 1000, chunk=1000)) == bare + 1000 + _ROW
    assert cost(database, owner, lambda: _store(owner, 1000, chunk=10)) == bare + 1000 + 100 * _ROW
    attrs = {f"{n}": n for n in range(10_000)}
    assert cost(database, owner, lambda: _store(owner, 0, attrs=attrs)) > bare + 10_000
    dims = ["x" * 100_000]
    assert cost(database, owner, lambda: _store(owner, 0, dims=dims)) > bare + 1000
    assert cost(database, owner, lambda: _store(owner, 0, operation=new_operation())) > bare + _ROW


def test_append_is_counted(owner: Caller, database: Connection, state_of: StateOf) -> None:
    key = new_key()
    owner.store(key, np.zeros(10, "u1"))
    taken = cost(database, owner, lambda: owner.append(key, np.zeros(1000, "u1")))
    allow(database, owner, 1000)
    before = state_of(owner)
    assert code_of(owner.append(key, np.zeros(1100, "u1"))) == "TS005"
    refused = owner.call("tensorage_begin", key=key, shape=[1100], dtype="|u1", chunk=11, append=True)
    assert code_of(refused) == "TS005"
    assert state_of(owner) == before
    # It may leave a block more than the other one, and the time in its answer another number of digits.
    allow(database, owner, taken + 2 * _ROW)
    assert answer_of(owner.append(key, np.zeros(1000, "u1")))["shape"] == [2010]


def test_attributes_are_counted(owner: Caller, database: Connection, state_of: StateOf) -> None:
    stored = owner.store(new_key(), np.zeros(1, "u1"))
    allow(database, owner, 2000)
    before = state_of(owner)
    attrs = {f"{n}": n for n in range(10_000)}
    assert code_of(owner.call("tensorage_annotate", data_id=stored["id"], attrs=attrs)) == "TS005"
    many = ["x" * 700_000 + new_key()]
    dims = owner.call("tensorage_annotate", data_id=stored["id"], dims=many, set_dims=True)
    assert code_of(dims) == "TS005"
    assert state_of(owner) == before
    assert owner.call("tensorage_annotate", data_id=stored["id"], attrs={"a": 1}).status_code == 200


def test_reservation_goes_with_what_it_was_for(owner: Caller, database: Connection) -> None:
    """Room that nobody needs is there for others, when an array is given up, committed, or expires."""
    start = used_beside_records(database, owner)
    begun = answer_of(_begin(owner, 10_000))
    assert used_beside_records(database, owner) > start + 10_000
    answer_of(owner.call("tensorage_abort", data_id=begun["id"]))
    assert used_beside_records(database, owner) == start
    begun = answer_of(_begin(owner, 10_000))
    reserved = used_beside_records(database, owner)
    answer_of(owner.put(begun["id"], np.zeros(5000, "u1"), chunk=100))
    assert used_beside_records(database, owner) == reserved
    answer_of(owner.put(begun["id"], np.zeros(5000, "u1"), index=5000, chunk=100))
    assert used_beside_records(database, owner) == reserved
    answer_of(owner.commit(begun["id"]))
    assert used_beside_records(database, owner) == reserved - 1024
    for ask in (_begin, _begin_objects):
        begun = answer_of(ask(owner, 10_000))
        database.execute(
            "update public.datasets set expires_at = now() - interval '1 s' where id = %s", (begun["id"],)
        )
        answer_of(owner.call("tensorage_sweep"))
        sweep(owner)
        assert used_beside_records(database, owner) == reserved - 1024


def test_what_is_given_up_is_counted_until_it_is_deleted(owner: Caller, database: Connection) -> None:
    """Overwriting leaves more blocks than one request sweeps, and does not get past the quota, either."""
    key = new_key()
    owner.store(key, np.zeros(900, "u1"), chunk=1)
    old = used(database, owner)
    allow(database, owner, 2000)
    owner.store(key, np.zeros(1, "u1"), overwrite=True)
    # 64 of them are swept on the way, and others by what is refused.
    assert used(database, owner) > old - 300 * _ROW
    assert code_of(_store(owner, 100_000)) == "TS005"
    while answer_of(owner.call("tensorage_sweep")):
        pass
    assert _store(owner, 100_000).status_code == 200


def test_replaced_and_new_array_are_both_counted_until_the_commit(
    owner: Caller, database: Connection
) -> None:
    """A reader still needs the old one while the new one comes."""
    key = new_key()
    owner.store(key, np.zeros(500, "u1"))
    begun = answer_of(_begin(owner, 500, key=key, overwrite=True))
    answer_of(owner.put(begun["id"], np.zeros(500, "u1"), chunk=100))
    both = used(database, owner)
    answer_of(owner.commit(begun["id"]))
    while answer_of(owner.call("tensorage_sweep")):
        pass
    assert used(database, owner) < both - 500


def test_others_arrays_are_not_counted(owner: Caller, other: Caller, database: Connection) -> None:
    allow(database, owner, 10_000)
    other.store(new_key(), np.zeros(50_000, "u1"), is_shared=True)
    assert _store(owner, 1000).status_code == 200


def test_project_has_a_quota_for_everybody_without_one(
    owner: Caller, other: Caller, database: Connection
) -> None:
    allow(database, owner, 10_000)
    database.execute("update tensorage.settings set default_quota_bytes = 2000")
    try:
        assert code_of(_store(other, 2000)) == "TS005"
        assert _store(other, 1000).status_code == 200
        assert _store(owner, 5000).status_code == 200
    finally:
        database.execute("update tensorage.settings set default_quota_bytes = null")
    assert _store(other, 5000).status_code == 200


_WRITES_OF_ROWS = ["store", "begin", "append", "assign"]
_WRITES_OF_OBJECTS = ["begin objects", "append objects", "assign objects", "files"]


@pytest.mark.parametrize("how", _WRITES_OF_ROWS + _WRITES_OF_OBJECTS)
def test_writers_at_once_do_not_find_the_same_room(how: str, owner: Caller, database: Connection) -> None:
    nbytes = 100_000
    dataset = owner.store(new_key(), np.zeros(nbytes, "u1"), chunk=nbytes)
    objects = store(owner, shape=(nbytes // 8 - 1, 2), extents=(nbytes // 40, 2))
    ways: dict[str, Callable[[int], httpx.Response]] = {
        "store": lambda _: _store(owner, nbytes),
        "begin": lambda _: _begin(owner, nbytes, chunk=nbytes),
        "append": lambda _: owner.append(dataset["key"], np.zeros(nbytes, "u1")),
        "assign": lambda _: owner.ask_to_assign(dataset),
        "begin objects": lambda _: _begin_objects(owner, nbytes),
        "append objects": lambda _: ask_to_append(owner, objects, nbytes // 8),
        "assign objects": lambda _: owner.ask_to_assign(objects, engine="storage"),
        "files": lambda n: upload(owner, f"{owner.id}/file {n}", bytes(nbytes)),
    }
    allow(database, owner, nbytes * 7 // 2)
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(ways[how], range(8)))
    assert [answer.status_code for answer in answers].count(200) == 3
    refused = [answer for answer in answers if answer.status_code != 200]
    if how == "files":
        assert all("more bytes do not fit" in answer.json()["message"] for answer in refused)
    else:
        assert {code_of(answer) for answer in refused} == {"TS005"}


def test_quota_is_not_got_round_by_blocks_of_one_element(owner: Caller, database: Connection) -> None:
    allow(database, owner, 10_000)
    begun = answer_of(_begin(owner, 1000))
    refused = owner.put(begun["id"], np.zeros(1000, "u1"), chunk=1)
    assert code_of(refused) == "TS005"
    answer_of(owner.put(begun["id"], np.zeros(1000, "u1"), chunk=100))
    answer_of(owner.commit(begun["id"]))


def test_quota_is_not_got_round_by_assigning_again_and_again(owner: Caller, database: Connection) -> None:
    """Replaced blocks take room until they are swept."""
    nbytes = 1_000_000
    allow(database, owner, 2 * nbytes)
    stored = owner.store(new_key(), np.zeros(nbytes, "u1"), chunk=1000)
    # Each commit sweeps 64 of the 900 blocks that it replaces.
    for _ in range(6):
        asked = owner.ask_to_assign(stored)
        if asked.status_code != 200:
            assert code_of(asked) == "TS005"
            break
        begun = answer_of(asked)
        answer_of(owner.patch(begun["id"], np.ones(900_000, "u1"), [0], [900_000]))
        stored = answer_of(owner.commit(begun["id"]))
        stored_bytes = database.execute(
            "select sum(octet_length(tensor)) from public.tensors where user_id = %s", (owner.id,)
        ).fetchone()
        assert stored_bytes is not None
        assert stored_bytes[0] <= 2 * nbytes
    else:
        pytest.fail("six assignments found room for six times as many blocks")


def test_quota_is_not_got_round_by_answers_that_are_kept(owner: Caller, database: Connection) -> None:
    """An answer describes the array, whose dims may be a mebibyte."""
    dims = ["x" * 500_000]
    key = new_key()
    owner.store(key, np.zeros(1, "u1"), dims=dims)
    taken = cost(database, owner, lambda: owner.append(key, np.zeros(1, "u1")))
    assert taken < 2000
    operation = new_operation()
    first, again = (answer_of(owner.append(key, np.zeros(1, "u1"), operation=operation)) for _ in range(2))
    assert first == again
    assert again["dims"] == dims


def test_answers_to_writers_who_never_come_back_are_swept_by_the_owner(
    owner: Caller, other: Caller, database: Connection
) -> None:
    """They count against the owner, who could not be rid of them."""
    key = new_key()
    owner.store(key, np.zeros(1, "u1"))
    answer_of(owner.call("tensorage_share", key=key, readers=[other.email], can_write=True))
    for _ in range(3):
        answer_of(other.append(key, np.zeros(1, "u1"), owner=owner.email))
    kept = "select count(*) from tensorage.operations where owner = %s and user_id = %s"
    answer_of(owner.call("tensorage_sweep"))
    assert database.execute(kept, (owner.id, other.id)).fetchone() == (3,)
    database.execute(
        "update tensorage.operations set finished_at = now() - interval '25 hours' where user_id = %s",
        (other.id,),
    )
    taken = cost(database, owner, lambda: owner.call("tensorage_sweep"))
    assert database.execute(kept, (owner.id, other.id)).fetchone() == (0,)
    assert taken < 0


def test_full_quota_keeps_no_answers_of_requests_that_delete_nothing(
    owner: Caller, database: Connection
) -> None:
    """They have to fit no quota, since they make room: kept, they would take any number of bytes."""
    allow(database, owner, 0)
    asked = {"prefix": "no such/", "operation": new_operation()}
    taken = cost(database, owner, lambda: owner.call("tensorage_remove_all", asked))
    assert taken == 0


def test_full_quota_lets_one_delete(owner: Caller, database: Connection) -> None:
    key = new_key()
    owner.store(key, np.zeros(1000, "u1"))
    objects = store(owner)
    allow(database, owner, 0)
    assert code_of(_store(owner, 1)) == "TS005"
    for gone in (key, objects["key"]):
        answer_of(owner.call("tensorage_remove", key=gone, operation=new_operation()))
    assert sweep(owner) != []
    assert _store(owner, 100).status_code == 200


def test_bytes_of_arrays_are_stored_with_them(owner: Caller, database: Connection) -> None:
    key = new_key()
    stored = owner.store(key, np.zeros((3, 5), "<c16"))
    for expected in (240, 320):
        row = database.execute("select nbytes from public.datasets where id = %s", (stored["id"],)).fetchone()
        assert row == (expected,)
        answer_of(owner.append(key, np.zeros((1, 5), "<c16")))
    huge = owner.begin(new_key(), [2**62], dtype="<c16", chunk=1)
    row = database.execute("select nbytes from public.datasets where id = %s", (huge["id"],)).fetchone()
    assert row == (2**66,)


def test_service_may_write_the_table_whose_bytes_are_computed(owner: Caller, database: Connection) -> None:
    with database.transaction():
        database.execute("set local role service_role")
        row = database.execute(
            "insert into public.datasets (user_id, key, shape, dtype, block_size, expires_at) "
            "values (%s, 'a', '{2,3}', '<i4', 1, now()) returning id, nbytes",
            (owner.id,),
        ).fetchone()
        assert row is not None
        assert row[1] == 24
        changed = database.execute(
            "update public.datasets set shape = '{5,3}' where id = %s returning nbytes", (row[0],)
        )
        assert changed.fetchone() == (60,)
        database.execute("delete from public.datasets where id = %s", (row[0],))


def test_growing_beyond_what_can_be_counted_is_refused(owner: Caller, state_of: StateOf) -> None:
    key = new_key()
    owner.store(key, np.empty((0, 0), "u1"))
    asked = {"key": key, "append": True, "dtype": "|u1", "chunk": 1, "shape": [2**63 - 1, 0]}
    begun = answer_of(owner.call("tensorage_begin", asked))
    assert answer_of(owner.commit(begun["id"]))["shape"] == [2**63 - 1, 0]
    before = state_of(owner)
    assert code_of(owner.append(key, np.empty((1, 0), "u1"))) == "TS006"
    assert code_of(owner.call("tensorage_begin", asked)) == "TS006"
    assert state_of(owner) == before


def test_blocks_cannot_take_more_room_than_was_declared(owner: Caller, database: Connection) -> None:
    allow(database, owner, 20_000)
    begun = answer_of(_begin(owner, 1000))
    for index in range(0, 100, 7):
        owner.put(begun["id"], np.zeros(1000 - index, "u1"), index, chunk=100)
    row = database.execute(
        "select sum(count) from public.tensors where data_id = %s", (begun["id"],)
    ).fetchone()
    assert row is not None
    assert row[0] <= 1000


# Arrays of Storage and files, which count by the size of their objects -------------------------------------------


def test_objects_count_by_their_size(owner: Caller, database: Connection) -> None:
    """Reserved as declared, an array that is compressed counts in the end what is stored of it."""
    begun = begin(owner, new_key(), (100_000,), (10_000,))
    reserved = used(database, owner)
    assert reserved > 400_000
    name, content = f"{folder_of(begun)}/c/0", bytes(3000)
    assert upload(owner, name, content).status_code == 200
    assert used(database, owner) == reserved
    told = [entry(0, name, nbytes=len(content)), *(entry(number, None) for number in range(1, 10))]
    answer_of(owner.commit(begun["id"], shards=told))
    assert len(content) + 10 * _ROW < used(database, owner) < reserved - 390_000


def test_object_is_compared_with_the_quota_and_not_with_its_array(
    owner: Caller, database: Connection
) -> None:
    allow(database, owner, 100_000)
    begun = answer_of(_begin_objects(owner, 1))
    refused = upload(owner, name_of(begun, 0), bytes(1_000_000))
    assert refused.status_code != 200
    assert "more bytes do not fit" in refused.json()["message"]
    assert remove(owner, [name_of(begun, 0)]) == []
    assert upload(owner, name_of(begun, 0), bytes(50_000)).status_code == 200
    # Written over, it counts once.
    assert upload(owner, name_of(begun, 0), bytes(60_000)).status_code == 200
    assert upload(owner, name_of(begun, 1), bytes(60_000)).status_code != 200


def test_index_and_names_of_shards_are_counted(
    owner: Caller, database: Connection, state_of: StateOf
) -> None:
    begun = begin(owner, new_key(), (1,), (65536,))
    allow(database, owner, 10_000)
    before = state_of(owner)
    index = "A" * (16 * 65536 * 4 // 3 // 4 * 4)
    assert code_of(put(owner, begun, entry(0, None, index=index))) in {"TS005", "TS006"}
    assert state_of(owner) == before


@pytest.mark.parametrize("based_on", ["x" * 1101, "y" * 1_000_000])
def test_replaced_shard_has_a_fingerprint_of_a_fingerprint_s_length(
    based_on: str, owner: Caller, state_of: StateOf
) -> None:
    stored = store(owner)
    begun = begin_assign(owner, stored)
    before = state_of(owner)
    refused = put(owner, begun, entry(0, None, based_on=based_on))
    assert code_of(refused) == "TS006"
    assert state_of(owner) == before


def test_new_array_takes_the_place_of_no_object(owner: Caller, state_of: StateOf) -> None:
    begun = begin(owner, new_key())
    before = state_of(owner)
    assert code_of(put(owner, begun, entry(0, None, based_on=""))) == "TS006"
    assert state_of(owner) == before


def test_append_of_objects_is_counted(owner: Caller, database: Connection, state_of: StateOf) -> None:
    dataset = store(owner)
    allow(database, owner, 5000)
    before = state_of(owner)
    assert code_of(ask_to_append(owner, dataset, 2000)) == "TS005"
    assert state_of(owner) == before
    begun = begin_append(owner, dataset, 1)
    told = fill(owner, begun, [4], of_4=names(owner, dataset, [4])[0])
    assert answer_of(owner.commit(begun["id"], shards=told))["shape"] == [10, 3]


def test_assignment_to_objects_counts_as_the_array(
    owner: Caller, database: Connection, state_of: StateOf
) -> None:
    dataset = store(owner, shape=(9, 3000), extents=(2, 3000))
    nbytes = 9 * 3000 * 4
    allow(database, owner, nbytes)
    before = state_of(owner)
    assert code_of(owner.ask_to_assign(dataset, engine="storage")) == "TS005"
    assert state_of(owner) == before
    allow(database, owner, nbytes + 5000)
    begun = begin_assign(owner, dataset)
    assert code_of(_store(owner, 5000)) == "TS005"
    told = fill(owner, begun, [0], of_0=names(owner, dataset, [0])[0])
    answer_of(owner.commit(begun["id"], shards=told))
    assert _store(owner, 5000).status_code == 200


def test_objects_that_are_given_up_are_counted_until_they_are_swept(
    owner: Caller, database: Connection
) -> None:
    """Writing sweeps blocks on its way, but cannot delete objects."""
    dataset = store(owner)
    begun = begin(owner, new_key())
    fill(owner, begun)
    there = used_beside_records(database, owner)
    unused = database.execute(
        "select bytes from tensorage.reservations where data_id = %s", (begun["id"],)
    ).fetchone()
    assert unused is not None
    answer_of(owner.call("tensorage_remove", key=dataset["key"]))
    answer_of(owner.call("tensorage_abort", data_id=begun["id"]))
    there -= unused[0]
    for _ in range(2):
        assert used_beside_records(database, owner) == there
        before = used_beside_records(database, owner)
        answer_of(_store(owner, 0))
        there += used_beside_records(database, owner) - before
    assert len(sweep(owner)) == 10
    assert used_beside_records(database, owner) < there - 10 * 16


def test_files_are_counted(owner: Caller, other: Caller, database: Connection) -> None:
    folder = f"{owner.id}/papers"
    assert upload(owner, f"{folder}/a.pdf", bytes(6000)).status_code == 200
    # Every file has such a row, as all have names of one length.
    row = used(database, owner) - 6000
    assert 4 * _ROW < row < 10 * _ROW
    quota = 10_000 + 2 * row
    allow(database, owner, quota - used(database, owner))
    refused = upload(owner, f"{folder}/b.pdf", bytes(6000))
    assert refused.status_code == 500
    assert refused.json()["message"] == (
        f"{6000 + row} more bytes do not fit: {6000 + row} of {quota} bytes are in use"
    )
    assert used(database, owner) == 6000 + row
    moved = storage(
        owner, "POST", "/object/move",
        json={"bucketId": "tensors", "sourceKey": f"{folder}/a.pdf", "destinationKey": f"{folder}/c.pdf"},
    )  # fmt: skip
    answer_of(moved)
    assert used(database, owner) == 6000 + row
    assert upload(owner, f"{folder}/c.pdf", bytes(9000)).status_code == 200
    assert upload(owner, f"{folder}/d.pdf", bytes(1000)).status_code == 200
    # The file is refused before its bytes are received, if there is no room at all.
    refused = storage(owner, "POST", f"{PREFIX}/{folder}/e.pdf", content=b"x")
    assert refused.json()["message"] == f"more bytes do not fit: {quota} of {quota} bytes are in use"
    assert remove(owner, [f"{folder}/c.pdf", f"{folder}/d.pdf"]) == [f"{folder}/c.pdf", f"{folder}/d.pdf"]
    assert used(database, owner) == 0
    assert used(database, other) == 0


def test_resumable_upload_that_will_not_fit_is_refused_before_its_bytes_come(
    owner: Caller, backend: control.Running, database: Connection
) -> None:
    """They would lie on the disk for a day, whatever the quota is."""
    allow(database, owner, 10_000)
    fields = {"bucketName": "tensors", "objectName": f"{owner.id}/a.pdf"}
    said = ",".join(f"{key} {base64.b64encode(value.encode()).decode()}" for key, value in fields.items())
    headers = {"Tus-Resumable": "1.0.0", "Upload-Length": "5000000", "Upload-Metadata": said}
    unfinished = Path(backend.data_dir) / "storage" / "resumable"
    before = list(unfinished.iterdir())
    refused = storage(owner, "POST", "/upload/resumable", headers=headers)
    assert refused.status_code == 500
    assert "more bytes do not fit" in refused.text
    assert list(unfinished.iterdir()) == before
    small = storage(owner, "POST", "/upload/resumable", headers=headers | {"Upload-Length": "5000"})
    assert small.status_code == 201


@pytest.mark.parametrize("how", ["names", "metadata"])
def test_quota_is_not_got_round_by_files_without_bytes(how: str, owner: Caller, database: Connection) -> None:
    """Their rows take room: with a long name, or with what their sender says of them."""
    allow(database, owner, 50_000)
    for number in range(60):
        name = f"f{number}/{secrets.token_hex(90)}" if how == "names" else str(number)
        said = {} if how == "names" else {"x-metadata": secrets.token_hex(2000)}
        headers = {"x-metadata": base64.b64encode(json.dumps(said).encode()).decode()}
        answer = storage(owner, "POST", f"{PREFIX}/{owner.id}/{name}", content=b"", headers=headers)
        if answer.status_code != 200:
            assert "more bytes do not fit" in answer.json()["message"]
            break
    else:
        pytest.fail(f"no limit to files without bytes: {used(database, owner)} of 50000 bytes are counted")
    row = database.execute(
        "select sum(pg_column_size(o.*) + 3 * octet_length(o.name)) from storage.objects o "
        "where starts_with(o.name, %s)",
        (owner.id,),
    ).fetchone()
    assert row is not None
    assert 0 < row[0] <= used(database, owner) <= 50_000


# Totals ------------------------------------------------------------------------------------------------------------


def test_total_is_right_after_everything(owner: Caller, database: Connection) -> None:
    """Each operation of both engines, and again what fails and what is given up; compared after every step."""
    keys = [new_key() for _ in range(3)]
    stored = owner.store(
        keys[0], np.arange(1000, dtype="<i4"), chunk=100, attrs={"a": 1}, operation=new_operation()
    )
    assert_total(database, owner)
    for count in (1, 7, 50):
        answer_of(owner.append(keys[0], np.arange(count, dtype="<i4")))
        assert_total(database, owner)
    opened = owner.open(keys[0])
    answer_of(owner.assign(opened, np.ones(5, "<i4"), [3], [5], operation=new_operation()))
    assert_total(database, owner)
    begun = owner.begin_assign(owner.open(keys[0]), operation=new_operation())
    answer_of(owner.patch(begun["id"], np.ones(300, "<i4"), [50], [300]))
    assert_total(database, owner)
    answer_of(owner.commit(begun["id"], operation=new_operation()))
    assert_total(database, owner)
    more = owner.begin(keys[0], [100], append=True, chunk=30)
    answer_of(owner.put(more["id"], np.ones(100, "<i4"), chunk=30))
    answer_of(owner.commit(more["id"]))
    assert_total(database, owner)
    answer_of(owner.call("tensorage_compact", key=keys[0]))
    answer_of(owner.call("tensorage_annotate", data_id=stored["id"], attrs={str(n): n for n in range(3000)}))
    assert_total(database, owner)
    answer_of(owner.call("tensorage_rename", key=keys[0], new_key=keys[1], operation=new_operation()))
    assert_total(database, owner)
    owner.store(keys[1], np.arange(10, dtype="<i4"), overwrite=True)
    assert_total(database, owner)
    objects = store(owner, keys[2])
    assert_total(database, owner)
    append(owner, objects, 3, [4, 5], of_4=names(owner, objects, [4])[0])
    assert_total(database, owner)
    now = owner.open(keys[2])
    assign(owner, now, of_0=names(owner, now, [0])[0])
    assert_total(database, owner)
    upload(owner, f"{owner.id}/a file", b"of this length")
    for key in keys[1:]:
        answer_of(owner.call("tensorage_remove", key=key, operation=new_operation()))
        assert_total(database, owner)
    while answer_of(owner.call("tensorage_sweep")):
        assert_total(database, owner)
    sweep(owner)


def test_recount_mends_a_wrong_total(owner: Caller, database: Connection) -> None:
    owner.store(new_key(), np.zeros(1000, "u1"))
    upload(owner, f"{owner.id}/a file", b"of this length")
    right = used(database, owner)
    database.execute("update tensorage.usage set bytes = 77 where user_id = %s", (owner.id,))
    assert database.execute("select tensorage.recount(%s)", (owner.id,)).fetchone() == (right,)
    assert used(database, owner) == right
    database.execute("delete from tensorage.usage where user_id = %s", (owner.id,))
    assert database.execute("select tensorage.recount(%s)", (owner.id,)).fetchone() == (right,)


def test_rows_that_are_changed_past_the_functions_are_counted(owner: Caller, database: Connection) -> None:
    stored = owner.store(new_key(), np.zeros(1000, "u1"), chunk=100)
    assert_total(database, owner)
    database.execute("delete from public.tensors where data_id = %s and index >= 500", (stored["id"],))
    assert_total(database, owner)
    database.execute("update public.datasets set attrs = '{\"a\": [1, 2]}' where id = %s", (stored["id"],))
    assert_total(database, owner)
    database.execute("delete from public.datasets where id = %s", (stored["id"],))
    assert_total(database, owner)
    assert used_beside_records(database, owner) == 0


def test_user_who_is_deleted_leaves_no_total(new_user: Callable[[], Caller], database: Connection) -> None:
    leaving = new_user()
    leaving.store(new_key(), np.zeros(1000, "u1"), operation=new_operation())
    answer_of(_begin(leaving, 1000))
    database.execute("delete from auth.users where id = %s", (leaving.id,))
    assert (
        database.execute("select from tensorage.usage where user_id = %s", (leaving.id,)).fetchone() is None
    )


def test_totals_are_nobody_s_to_see_or_change(owner: Caller, database: Connection) -> None:
    with database.transaction(force_rollback=True):
        database.execute("set local role authenticated")
        for table in ("usage", "reservations", "stagings", "quotas"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege), database.transaction():
                database.execute(f"select from tensorage.{table}")  # type: ignore[call-overload]
        for call in ("recount(%s)", "settle()", "move(%s, 0, -1)", "count_usage(%s)"):
            parameters = (owner.id,) if "%s" in call else ()
            with pytest.raises(psycopg.errors.InsufficientPrivilege), database.transaction():
                database.execute(f"select tensorage.{call}", parameters)  # type: ignore[call-overload]


@pytest.mark.parametrize("end", ["unshare", "share for reading", "unshare the prefix", "rename"])
def test_room_that_a_sharee_reserved_is_the_owners_again_when_the_share_ends(
    end: str, owner: Caller, other: Caller, database: Connection
) -> None:
    key = f"{new_key()}/x"
    owner.store(key, np.zeros(10, "<i4"))
    pattern = f"{key.partition('/')[0]}/" if end == "unshare the prefix" else key
    answer_of(owner.call("tensorage_share", key=pattern, readers=[other.email], can_write=True))
    before = used_beside_records(database, owner)
    begun = other.begin(key, [10**6], append=True, owner=owner.email)
    assert used_beside_records(database, owner) >= before + 4 * 10**6
    if end == "share for reading":
        answer_of(owner.call("tensorage_share", key=pattern, readers=[other.email]))
    elif end == "rename":
        # The share of a key goes with it, that of a prefix does not.
        answer_of(
            owner.call(
                "tensorage_share", key=f"{key.partition('/')[0]}/", readers=[other.email], can_write=True
            )
        )
        answer_of(owner.call("tensorage_unshare", key=key))
        answer_of(owner.call("tensorage_rename", key=key, new_key=new_key()))
    else:
        answer_of(owner.call("tensorage_unshare", key=pattern))
    assert used_beside_records(database, owner) <= before
    assert code_of(other.put(begun["id"], np.zeros(10, "<i4"))) in ("TS001", "TS003")


def test_a_sharee_whom_another_share_lets_write_goes_on(
    owner: Caller, other: Caller, database: Connection
) -> None:
    key = f"{new_key()}/x"
    owner.store(key, np.zeros(10, "<i4"))
    for pattern in (key, f"{key.partition('/')[0]}/"):
        answer_of(owner.call("tensorage_share", key=pattern, readers=[other.email], can_write=True))
    begun = other.begin(key, [10], append=True, owner=owner.email)
    answer_of(owner.call("tensorage_unshare", key=key))
    answer_of(other.put(begun["id"], np.ones(10, "<i4")))
    assert answer_of(other.commit(begun["id"]))["shape"] == [20]


# Fill values, and arrays that become shorter ------------------------------------------------------


def create(owner: Caller, **more: Any) -> httpx.Response:
    asked = {"key": new_key(), "shape": [1000], "dtype": "|S1", "chunk": 10, "fill": "AA=="}
    return owner.call("tensorage_create", {**asked, **more})


def resize(owner: Caller, made: dict[str, Any], rows: int, **more: Any) -> httpx.Response:
    asked = {"data_id": made["id"], "base_rows": owner.open(made["key"])["shape"][0], "rows": rows}
    return owner.call("tensorage_resize", {**asked, "fill": "AA==", "operation": new_operation(), **more})


def test_long_fill_values_and_dtypes_count(owner: Caller, database: Connection) -> None:
    """An element may have a mebibyte."""
    long = {"dtype": "|S1048576", "fill": base64.b64encode(bytes(2**20)).decode(), "chunk": 1}
    answer_of(create(owner))
    before = used(database, owner)
    answer_of(create(owner, **long))
    assert 2**20 <= used(database, owner) - before < 2**20 + 2000
    fields = json.dumps([[f"field {number}", "|u1"] for number in range(1000)])
    before = used(database, owner)
    answer_of(create(owner, dtype=fields, fill=base64.b64encode(bytes(1000)).decode()))
    assert used(database, owner) - before > len(fields)


def test_answers_that_are_kept_have_no_fill_value(owner: Caller, database: Connection) -> None:
    fill = base64.b64encode(bytes(2**20)).decode()
    again = {"key": new_key(), "dtype": "|S1048576", "fill": fill, "chunk": 1, "operation": new_operation()}
    made = answer_of(create(owner, **again))
    assert used(database, owner) < 2**20 + 4000
    assert answer_of(create(owner, **again))["fill"] == made["fill"]
    answer_of(resize(owner, made, 10, fill=fill))
    assert used(database, owner) < 2**20 + 8000


@pytest.mark.parametrize("coords", [None, {"row": "x" * 100_000}])
def test_a_shorter_array_stores_nothing_past_the_quota(
    owner: Caller, database: Connection, coords: Any
) -> None:
    made = answer_of(create(owner))
    # It notes its first change in the record of this minute.
    answer_of(resize(owner, made, 999))
    limit = used(database, owner) + 10
    database.execute("insert into tensorage.quotas values (%s, %s, null)", (owner.id, limit))
    assert code_of(resize(owner, made, 500, coords=coords)) == "TS005"
    assert owner.open(made["key"])["shape"] == [999]


def test_a_shorter_array_makes_room(owner: Caller, database: Connection) -> None:
    stored = owner.store(new_key(), np.zeros(100_000, "|S1"), chunk=100)
    database.execute("insert into tensorage.quotas values (%s, 100, null)", (owner.id,))
    before = used(database, owner)
    answer_of(resize(owner, stored, 10))
    assert used(database, owner) < before
