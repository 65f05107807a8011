"""Everything that the project keeps of a user's arrays, looked at by SQL, round the client."""

from __future__ import annotations

import time
from typing import Any

import psycopg

#: Seconds for a session to sweep what its writes have left.
PATIENCE_S = 20.0

Sql = psycopg.Connection[tuple[Any, ...]]


def objects_of(database: Sql, user_id: str) -> list[str]:
    """Names of the objects in the bucket that are, or were to be, a part of an array."""
    query = "select name from storage.objects where bucket_id = 'tensors' and name ~ %s order by name"
    return [row[0] for row in database.execute(query, [f"^{user_id}/[0-9]+/"])]


def shards_of(database: Sql, user_id: str, key: str) -> list[str | None]:
    """Names of the objects that an array consists of, in order; None for a shard without one."""
    query = (
        "select s.name from public.shards s join public.datasets d on d.id = s.data_id "
        "where d.user_id = %s and d.key = %s and d.state = 'committed' order by s.number"
    )
    return [row[0] for row in database.execute(query, [user_id, key])]


def beyond_arrays(database: Sql, user_id: str) -> list[str]:
    """Leftovers of arrays that are gone, in words; and objects that should be there and are not."""
    found = []
    staged = "select id, key, shape from public.datasets where user_id = %s and state = 'staged' order by id"
    found += [f"staged dataset {row}" for row in database.execute(staged, [user_id])]
    for table in ("tensors", "shards"):
        orphans = (
            f"select t.data_id, count(*) from public.{table} t left join public.datasets d on d.id = t.data_id "
            "where t.user_id = %s and d.state is distinct from 'committed' group by t.data_id"
        )
        found += [
            f"{row[1]} rows of {table} of dataset {row[0]}" for row in database.execute(orphans, [user_id])
        ]
    named = "select name from public.shards where user_id = %s and name is not null order by name"
    of_shards = {row[0] for row in database.execute(named, [user_id])}
    of_bucket = set(objects_of(database, user_id))
    found += [f"object {name} of no shard" for name in sorted(of_bucket - of_shards)]
    found += [f"shard without its object {name}" for name in sorted(of_shards - of_bucket)]
    return found


def assert_only_arrays_are_kept(database: Sql, user_id: str) -> None:
    """Fail on anything that is no part of an array that is there, and stays: sessions sweep behind their users."""
    until = time.monotonic() + PATIENCE_S
    while beyond := beyond_arrays(database, user_id):
        assert time.monotonic() < until, beyond
        time.sleep(0.02)
