"""Ways round the rights of a share that were found by looking for them, each closed."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from matrix import races
from matrix.twins import entries_of_twins
from matrix.world import FILE, OBJECTS_KEY, ROWS, ROWS_KEY, World
from sql.api import Caller, answer_of, code_of
from sql.objects import BUCKET, ask_to_sweep, begin_append, fill, name_of, remove, storage, upload


@pytest.fixture
def writer(world: World) -> Caller:
    """Somebody with whom arrays are shared for writing, which are as they were."""
    world.make("rows", "objects", "file")
    return world["write sharee"]


def test_a_move_is_no_way_round_the_owners_quota(world: World, writer: Caller) -> None:
    """A file counts against its folder's user: it cannot be moved to where another user has no room for it."""
    begun = begin_append(writer, world.things.objects, 1)
    large = f"{writer.id}/large"
    assert upload(writer, large, bytes(100_000)).status_code == 200
    used = world.one("select bytes from tensorage.usage where user_id = %s", world.owner.id)
    world.database.execute(
        "insert into tensorage.quotas (user_id, max_bytes) values (%s, %s)", [world.owner.id, used + 50_000]
    )
    body = {"bucketId": BUCKET, "sourceKey": large, "destinationKey": name_of(begun, 7)}
    try:
        refused = storage(writer, "POST", "/object/move", json=body)
        after = world.one("select bytes from tensorage.usage where user_id = %s", world.owner.id)
        kept = world.content(large)
    finally:
        world.make("no_quota")
    assert refused.status_code >= 400
    assert "do not fit into the quota of the owner" in refused.text
    assert after == used
    assert kept == bytes(100_000)


def test_a_writer_is_not_told_how_much_the_owner_has(world: World, writer: Caller) -> None:
    used = world.one("select bytes from tensorage.usage where user_id = %s", world.owner.id)
    world.database.execute(
        "insert into tensorage.quotas (user_id, max_bytes) values (%s, %s)", [world.owner.id, used + 1]
    )
    try:
        refused = writer.append(ROWS_KEY, ROWS, owner=world.owner.email)
        own = world.owner.append(ROWS_KEY, ROWS)
    finally:
        world.make("no_quota")
    assert (code_of(refused), code_of(own)) == ("TS005", "TS005")
    assert str(used + 1) not in refused.text
    assert refused.json()["details"] is None
    assert str(used + 1) in own.text


def test_objects_that_a_writer_does_not_tell_of_are_swept(world: World, writer: Caller) -> None:
    """They would stay in the owner's folder for good, where no list of the owner's shows them."""
    begun = begin_append(writer, world.things.objects, 1)
    entries = fill(writer, begun, [4], of_4=world.things.object_names[4])
    untold = name_of(begun, 99)
    assert upload(writer, untold, b"untold").status_code == 200
    answer_of(writer.commit(begun["id"], shards=entries))
    assert world.content(untold) == b"untold"
    named = ask_to_sweep(world.owner)
    assert untold in named
    assert entries[0]["name"] not in named
    remove(world.owner, named)
    assert ask_to_sweep(world.owner) == []
    assert not world.one("select count(*) from public.datasets where id = %s", begun["id"])
    opened = world.owner.open(OBJECTS_KEY)
    assert opened["shape"] == [10, 3]


def test_a_signed_url_of_the_owner_is_good_and_nobody_else_signs(world: World, writer: Caller) -> None:
    """A share that ends would leave a URL behind that shows even what the file holds later."""
    name = f"{world.owner.id}/{FILE}"
    asked = {"json": {"expiresIn": 3600}}
    refused = storage(writer, "POST", f"/object/sign/{BUCKET}/{name}", **asked)
    signed = answer_of(storage(world.owner, "POST", f"/object/sign/{BUCKET}/{name}", **asked))
    read = storage(writer, "GET", f"/object/authenticated/{BUCKET}/{name}")
    assert (refused.status_code, read.status_code) == (400, 200)
    assert storage(world["no key"], "GET", signed["signedURL"]).content == read.content


@pytest.mark.parametrize("prepare", races.REQUESTS, ids=lambda prepare: prepare.__name__)
@pytest.mark.parametrize("end", ["unshare", "rename"])
def test_a_share_that_ends_while_a_request_waits(
    world: World, prepare: Callable[[World, Caller], races.Ready], end: races.End
) -> None:
    """The request waits for the row of the array; when it has it, its right is looked at anew."""
    assert code_of(races.race(world, prepare, end)) == "TS003"
    assert world.elements(world.things.rows["id"]) == ROWS.tobytes()
    assert world.one("select shape from public.datasets where id = %s", world.things.objects["id"]) == [9, 3]


def test_the_twin_of_an_address_who_shares_nothing_is_not_seen(world: World) -> None:
    """Several accounts of single sign-on may have one address: those that share count, each for what it shares."""
    sharer, entries = entries_of_twins(world)
    assert [entry["user_id"] for entry in entries] == [sharer]


def test_a_rename_does_not_join_two_shares_to_one_that_allows_more(world: World, writer: Caller) -> None:
    """One lets somebody write and has ended, the other lets them read: neither lets them write now."""
    shares = "select can_write, expires_at from tensorage.shares where user_id = %s and pattern = %s and reader = %s"
    world.owner.store("lab/from", ROWS)
    for key, can_write, expires_at in (
        ("lab/from", True, "2026-01-01T00:00:00Z"),
        (ROWS_KEY, False, None),
    ):
        world.database.execute(
            "insert into tensorage.shares (user_id, pattern, reader, can_write, expires_at) "
            "values (%s, %s, %s, %s, %s)",
            [world.owner.id, key, world["other"].email, can_write, expires_at],
        )
    answer_of(world.owner.call("tensorage_rename", key="lab/from", new_key=ROWS_KEY, overwrite=True))
    found = world.database.execute(shares, [world.owner.id, ROWS_KEY, world["other"].email]).fetchall()
    refused = world["other"].append(ROWS_KEY, ROWS, owner=world.owner.email)
    world.make("rows")
    assert found == [(False, None)]
    assert code_of(refused) == "TS007"
