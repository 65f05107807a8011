"""Loose rows: rows appended to arrays of Storage as they are, behind whatever is there."""

from __future__ import annotations

import base64
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from hashlib import md5
from typing import Any

import httpx
import numpy as np
import psycopg
import pytest
from sql.api import Caller, Json, answer_of, binary, code_of, new_key, new_operation, transaction, whole
from sql.objects import (
    INDEX,
    Shard,
    ask_shards,
    begin,
    begin_assign,
    entry,
    fill,
    metadata,
    name_of,
    shards,
    sweep,
)

StateOf = Callable[[Caller], Any]
Database = psycopg.Connection[tuple[Any, ...]]

#: The most bytes of the loose rows of a shard.
MOST = 131072

#: Shards of eight rows, and chunks of two.
EXTENTS, CHUNKS = (8, 3), (2, 3)


def sharded(extents: Any = EXTENTS, chunks: Any = CHUNKS, **more: Any) -> str:
    """Metadata of Zarr, of shards that consist of chunks."""
    configuration = {"chunk_shape": list(chunks), "codecs": [{"name": "bytes"}]} | more
    return metadata(extents, codecs=[{"name": "sharding_indexed", "configuration": configuration}])


def rows_of(count: int, first: int = 0) -> np.ndarray[Any, np.dtype[np.int32]]:
    return np.arange(3 * first, 3 * (first + count), dtype="<i4").reshape(count, 3)


def store(caller: Caller, rows: int, zarr: str | None = None, **more: Any) -> Json:
    """Store an array of so many rows, with an object for each of its shards."""
    begun = begin(caller, new_key(), [rows, 3], zarr=zarr or sharded(), **more)
    dataset: Json = answer_of(caller.commit(begun["id"], shards=fill(caller, begun, range(-(-rows // 8)))))
    return dataset


def append(caller: Caller, dataset: Json, count: int, first: int = 0, **meta: Any) -> Json:
    appended: Json = answer_of(caller.append(dataset["key"], rows_of(count, first), **meta))
    return appended


def shard_of(caller: Caller, dataset: Json, number: int) -> Shard:
    return shards(caller, caller.open(dataset["key"]), [number])[number]


def fingerprint(shard: Shard) -> str:
    behind = shard.loose_at.to_bytes(4) + shard.loose if shard.loose else b""
    return shard.name + "+" + md5(shard.index + shard.tail + behind).hexdigest()


def assert_counted(database: Database, caller: Caller) -> None:
    """The totals of a user are what is there."""
    found = database.execute(
        "select u.bytes - tensorage.count_usage(u.user_id) from tensorage.usage u where u.user_id = %s",
        [caller.id],
    ).fetchone()
    assert found == (0,)


# Appending ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [0, 2, 8, 10])
def test_rows_go_behind_each_other(owner: Caller, database: Database, rows: int) -> None:
    dataset = store(owner, rows)
    number, at = divmod(rows, 8)
    before = shards(owner, dataset, [number])[number] if at else Shard("", 0, b"")
    for step, first in enumerate((0, 1, 3)):
        appended = append(owner, dataset, 1 + step % 2, first)
        assert (appended["id"], appended["version"]) == (dataset["id"], 2 + step)
    assert appended["shape"] == [rows + 4, 3]
    assert appended["stored_bytes"] == dataset["stored_bytes"] + 4 * 12
    expected = before._replace(loose=rows_of(4).tobytes(), loose_at=at)
    assert shard_of(owner, dataset, number) == expected
    # Readers who opened the array before go on.
    assert ask_shards(owner, dataset, []).status_code == 200
    assert_counted(database, owner)


def test_all_of_many_at_once_land(owner: Caller, database: Database) -> None:
    dataset = store(owner, 0, sharded((800, 3), (20, 3)))

    def once(first: int) -> int:
        return owner.append(dataset["key"], rows_of(1, first)).status_code

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(once, range(40))) == [200] * 40
    found = np.frombuffer(shard_of(owner, dataset, 0).loose, "<i4").reshape(-1, 3)
    np.testing.assert_array_equal(found[found[:, 0].argsort()], rows_of(40))
    assert_counted(database, owner)


def test_a_transaction_appends_to_one_array_twice(owner: Caller) -> None:
    dataset, other = store(owner, 2), store(owner, 0)
    steps = [
        ("tensorage_append", whole(rows_of(1, first), key=key, chunk=3))
        for first, key in enumerate((dataset["key"], other["key"], dataset["key"]))
    ]
    keys = sorted([dataset["key"], other["key"]])
    answer_of(owner.call("tensorage_transact", transaction(*steps, keys=keys)))
    assert shard_of(owner, dataset, 0).loose == rows_of(3)[[0, 2]].tobytes()
    assert shard_of(owner, other, 0).loose == rows_of(1, 1).tobytes()


def test_an_append_is_answered_as_the_first_time(owner: Caller) -> None:
    dataset, operation = store(owner, 2), new_operation()
    first, again = (append(owner, dataset, 1, operation=operation) for _ in range(2))
    assert first == again
    assert owner.open(dataset["key"])["shape"] == [3, 3]


def test_a_shard_that_was_never_written_takes_rows(owner: Caller, database: Database) -> None:
    made = answer_of(
        owner.call(
            "tensorage_create", key=new_key(), shape=[18, 3], dtype="<i4", chunk=10, fill="AAAAAA==",
            engine="storage", zarr=sharded(),
        )
    )  # fmt: skip
    append(owner, made, 1)
    assert shard_of(owner, made, 2) == Shard("", 0, b"", loose=rows_of(1).tobytes(), loose_at=2)
    written = database.execute(
        "select number from tensorage.written where data_id = %s", [made["id"]]
    ).fetchall()
    assert written == [(2,)]
    assert_counted(database, owner)
    # Once it was written and is gone, it is not taken for one that never was.
    database.execute("delete from public.shards where data_id = %s", [made["id"]])
    database.execute("update public.datasets set shape = '{18,3}' where id = %s", [made["id"]])
    assert code_of(owner.append(made["key"], rows_of(1))) == "TS010"


# Arrays that take none -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "count", "zarr"),
    [
        (3, 1, sharded()),  # They would begin within a chunk.
        (6, 2, sharded()),  # The shard is worth an object then.
        (6, 3, sharded()),
        (0, MOST // 12 + 1, sharded((100_000, 3), (2, 3))),
        (2, 1, metadata(EXTENTS)),
        (2, 1, metadata(EXTENTS, codecs=[{"name": "bytes"}])),
        (2, 1, metadata(EXTENTS, codecs="sharding_indexed")),
        (2, 1, metadata(EXTENTS, codecs=[[], 1])),
        (2, 1, sharded(index_location="start")),
        (2, 1, sharded(chunk_shape=["x", 3])),
        (2, 1, sharded(chunk_shape=[0, 3])),
        (2, 1, sharded(chunk_shape=[])),
        (2, 1, sharded(chunk_shape={"0": 2})),
    ],
)  # fmt: skip
def test_an_array_without_room_tells_its_engine(
    owner: Caller, rows: int, count: int, zarr: str, state_of: StateOf
) -> None:
    dataset = store(owner, rows, zarr)
    before = state_of(owner)
    refused = owner.append(dataset["key"], rows_of(count))
    assert code_of(refused) == "TS010"
    assert '"id"' in refused.json()["details"]
    assert state_of(owner) == before


def test_two_codecs_are_no_shards(owner: Caller) -> None:
    inner = {"chunk_shape": [2, 3], "codecs": [{"name": "bytes"}]}
    codecs = [{"name": "sharding_indexed", "configuration": inner}, {"name": "zstd"}]
    dataset = store(owner, 2, metadata(EXTENTS, codecs=codecs))
    assert code_of(owner.append(dataset["key"], rows_of(1))) == "TS010"


def test_rows_of_several_shards_are_not_cut(owner: Caller) -> None:
    begun = begin(owner, new_key(), [2, 3], zarr=sharded((8, 2), (2, 1)))
    dataset = answer_of(owner.commit(begun["id"], shards=[entry(0, None), entry(1, None)]))
    assert code_of(owner.append(dataset["key"], rows_of(1))) == "TS010"


def test_rows_of_any_length_are_encoded(owner: Caller) -> None:
    begun = begin(owner, new_key(), [0], dtype="text", zarr=sharded((8,), (2,)))
    dataset = answer_of(owner.commit(begun["id"]))
    request = binary(b"", count=0, meta={"key": dataset["key"], "shape": [1], "dtype": "text"})
    assert code_of(owner.call("tensorage_append", request)) == "TS010"


def test_a_shard_takes_so_many_bytes(owner: Caller, database: Database) -> None:
    dataset = store(owner, 0, sharded((100_000, 3), (2, 3)))
    append(owner, dataset, MOST // 12)
    assert code_of(owner.append(dataset["key"], rows_of(1))) == "TS010"
    longer = "update public.shards set loose = loose || 'twelve bytes' where data_id = %s"
    with pytest.raises(psycopg.errors.CheckViolation):
        database.execute(longer, [dataset["id"]])


def test_rows_that_were_cut_off_leave_no_room(owner: Caller, database: Database) -> None:
    """They are behind the end, where nobody may add to them."""
    dataset = store(owner, 2)
    append(owner, dataset, 3)
    for rows in (4, 2):
        asked = {
            "data_id": dataset["id"],
            "base_rows": 5 if rows == 4 else 4,
            "rows": rows,
            "fill": "AAAAAA==",
        }
        answer_of(owner.call("tensorage_resize", asked))
        assert code_of(owner.append(dataset["key"], rows_of(1))) == "TS010"
    asked = {"data_id": dataset["id"], "base_rows": 2, "rows": 0, "fill": "AAAAAA=="}
    shorter = answer_of(owner.call("tensorage_resize", asked))
    assert shorter["stored_bytes"] == 0
    append(owner, dataset, 1)
    assert shard_of(owner, dataset, 0).loose == rows_of(1).tobytes()
    sweep(owner)
    assert_counted(database, owner)


def test_a_lost_shard_takes_no_rows(owner: Caller, database: Database) -> None:
    dataset = store(owner, 2)
    database.execute("delete from public.shards where data_id = %s", [dataset["id"]])
    assert code_of(owner.append(dataset["key"], rows_of(1))) == "TS010"


# Chunks in their place -----------------------------------------------------------------------------------


def append_tails(caller: Caller, dataset: Json, rows: int, *told: Json) -> httpx.Response:
    now = caller.open(dataset["key"])
    asked = {"data_id": now["id"], "shape": [rows, 3], "base_rows": now["shape"][0], "shards": told}
    return caller.call("tensorage_append_tails", asked)


def encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()


def test_chunks_take_the_place_of_loose_rows(owner: Caller, database: Database) -> None:
    dataset = store(owner, 2)
    append(owner, dataset, 3)
    before = shard_of(owner, dataset, 0)
    told = entry(0, None) | {
        "index": encoded(INDEX), "tail": encoded(b"chunk"), "loose": encoded(b"rest"), "loose_at": 4, "kept": 0,
        "based_on": fingerprint(before),
    }  # fmt: skip
    appended = answer_of(append_tails(owner, dataset, 1, told))
    now = shard_of(owner, dataset, 0)
    assert now == Shard(before.name, before.nbytes, INDEX, b"chunk", b"rest", 4)
    assert appended["stored_bytes"] == dataset["stored_bytes"] + 9
    assert_counted(database, owner)
    # Without loose rows, there are none any more.
    without = {name: value for name, value in told.items() if not name.startswith("loose")}
    answer_of(
        append_tails(owner, dataset, 1, without | {"kept": 5, "tail": "", "based_on": fingerprint(now)})
    )
    assert shard_of(owner, dataset, 0) == Shard(before.name, before.nbytes, INDEX, b"chunk")
    assert_counted(database, owner)


def test_whoever_did_not_see_the_last_rows_is_refused(owner: Caller, state_of: StateOf) -> None:
    """Chunks that are made of fewer rows would drop the others."""
    dataset = store(owner, 2)
    begun = begin_assign(owner, dataset)
    objects = fill(owner, begun, [0], of_0=shard_of(owner, dataset, 0).name)
    append(owner, dataset, 1)
    old = shard_of(owner, dataset, 0)
    append(owner, dataset, 1, 1)
    now = shard_of(owner, dataset, 0)
    before = state_of(owner)
    assert code_of(owner.commit(begun["id"], shards=objects)) == "TS003"
    wrong = [
        old.name,
        fingerprint(old),
        fingerprint(now._replace(loose_at=3)),
        fingerprint(now._replace(loose=b"")),
    ]
    for based_on in wrong:
        told = entry(0, None, kept=0, based_on=based_on) | {"tail": encoded(b"x")}
        assert code_of(append_tails(owner, dataset, 1, told)) == "TS003"
    assert state_of(owner) == before
    told = entry(0, None, kept=0, based_on=fingerprint(now)) | {"tail": encoded(b"x")}
    answer_of(append_tails(owner, dataset, 1, told))


def test_an_object_takes_the_place_of_loose_rows(owner: Caller, database: Database) -> None:
    dataset = store(owner, 2)
    append(owner, dataset, 1)
    old = shard_of(owner, dataset, 0)
    begun = begin_assign(owner, owner.open(dataset["key"]))
    answer_of(owner.commit(begun["id"], shards=fill(owner, begun, [0], of_0=fingerprint(old))))
    assert shard_of(owner, dataset, 0) == Shard(name_of(begun, 0), 16, INDEX)
    assert sweep(owner) == [old.name]
    assert_counted(database, owner)


@pytest.mark.parametrize(
    "bad",
    [
        {"loose": encoded(b"x")}, {"loose_at": 2}, {"loose": "?", "loose_at": 2}, {"loose": "", "loose_at": 2},
        {"loose": encoded(b"x"), "loose_at": -1}, {"loose": encoded(b"x"), "loose_at": 2**31},
        {"loose": encoded(bytes(MOST + 1)), "loose_at": 2},
        {"loose": encoded(b"x"), "loose_at": 2, "low": 0, "high": 1},
    ],
    ids=lambda bad: str(bad)[:40],
)  # fmt: skip
def test_what_are_no_loose_rows_is_refused(bad: Json, owner: Caller, state_of: StateOf) -> None:
    dataset = store(owner, 2)
    append(owner, dataset, 1)
    told = entry(0, None, kept=0, based_on=fingerprint(shard_of(owner, dataset, 0))) | {"tail": encoded(b"x")}
    before = state_of(owner)
    assert code_of(append_tails(owner, dataset, 1, told | bad)) == "TS006"
    assert state_of(owner) == before


# Rows that do not fit, and others ------------------------------------------------------------------------


def test_rows_that_do_not_fit_are_refused(owner: Caller, state_of: StateOf) -> None:
    dataset = store(owner, 2)
    before = state_of(owner)
    refused = owner.append(dataset["key"], rows_of(1).astype("<i8"))
    assert code_of(refused) == "TS009"
    assert '"id"' in refused.json()["details"]
    assert code_of(owner.append(dataset["key"], np.zeros((1, 4), "<i4"))) == "TS006"
    assert code_of(owner.append(dataset["key"], np.zeros(1, "<i4"))) == "TS006"
    for elements in (bytes(8), bytes(16)):
        meta = {"key": dataset["key"], "shape": [1, 3], "dtype": "<i4"}
        assert code_of(owner.call("tensorage_append", binary(elements, count=2, meta=meta))) == "TS006"
    assert state_of(owner) == before


def test_loose_rows_count_against_the_quota(owner: Caller, database: Database, state_of: StateOf) -> None:
    dataset = store(owner, 0, sharded((100_000, 3), (2, 3)))
    database.execute(
        "insert into tensorage.quotas (user_id, max_bytes) "
        "select user_id, bytes + 90000 from tensorage.usage where user_id = %s",
        [owner.id],
    )
    before = state_of(owner)
    assert code_of(owner.append(dataset["key"], rows_of(8000))) == "TS005"
    assert state_of(owner) == before
    append(owner, dataset, 4000)
    assert_counted(database, owner)


def test_others_append_as_they_may(owner: Caller, new_user: Callable[[], Caller]) -> None:
    dataset, other = store(owner, 2), new_user()

    def ask() -> httpx.Response:
        return other.append(dataset["key"], rows_of(1), owner=owner.email)

    assert code_of(ask()) == "TS001"
    answer_of(owner.call("tensorage_share", key=dataset["key"], readers=[other.email]))
    assert code_of(ask()) == "TS007"
    answer_of(owner.call("tensorage_share", key=dataset["key"], readers=[other.email], can_write=True))
    appended = answer_of(ask())
    assert shards(other, appended, [0])[0].loose == rows_of(1).tobytes()
