"""Two accounts of single sign-on with one address, of which one shares an array."""

from __future__ import annotations

from matrix.world import World
from sql.api import Json, answer_of, new_key


def entries_of_twins(world: World) -> tuple[str, list[Json]]:
    """Id of the twin who shares, and the entries that a sharee finds by the address of both."""
    sharer, other, reader = world.register(is_sso=True), world.register(is_sso=True), world["other"]
    world.database.execute("update auth.users set email = %s where id = %s", [sharer.email, other.id])
    key = new_key()
    for twin in (sharer, other):
        answer_of(twin.call("tensorage_begin", key=key, shape=[0], dtype="<i4", chunk=1))
        world.database.execute(
            "update public.datasets set state = 'committed', expires_at = null where user_id = %s", [twin.id]
        )
    answer_of(sharer.call("tensorage_share", key=key, readers=[reader.email]))
    found: Json = answer_of(reader.call("tensorage_catalogue", owner=sharer.email))
    return sharer.id, found["entries"]
