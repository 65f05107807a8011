"""A project that is nearly empty, and the same when it is crowded: for tests of what a call reads in both.

Two arrays of each kind are looked at: ``few``, of 180 blocks (or shards), and ``many``, of 15,000. Blocks are small and
are made by SQL, past every trigger and foreign key.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import psycopg

Connection = psycopg.Connection[tuple[Any, ...]]

BLOCKS = {"few": 180, "many": 15_000}

#: Elements of a block, of 4 bytes each.
BLOCK = 16

ME = "00000000-0000-4000-8000-000000000001"
SHARER = "00000000-0000-4000-8000-000000000002"
STRANGER = "00000000-0000-4000-8000-000000000003"

#: Arrays of the user, of somebody else, and shared ones of somebody else; and users who share one under the same key.
CROWD = {ME: 100_000, STRANGER: 5_000, SHARER: 5_000}
SHARERS = 2_000

_USERS = "insert into auth.users (id, email, email_confirmed_at) values (%s, %s, now())"

#: Shares that the user has given, of all of the crowd's keys there are.
SHARES = 10_000

_ARRAY = f"""
with made as (
  insert into public.datasets (user_id, owner, key, shape, dtype, block_size, state)
    values (%(user)s::uuid, %(user)s::uuid::text || '@example.com', %(key)s::text, array[%(blocks)s::bigint * {BLOCK}],
            '<i4', {BLOCK}, 'committed')
    returning id, user_id),
filled as (
  insert into public.tensors (data_id, user_id, index, count, tensor)
    select made.id, made.user_id, n * {BLOCK}, {BLOCK}, decode(repeat('01000000', {BLOCK}), 'hex')
      from made, generate_series(0, %(blocks)s::bigint - 1) n)
select id from made
"""

#: The same number of texts of 4 letters, each block of which begins with a table of their ends.
_TEXTS = (
    _ARRAY.replace("'<i4'", "'text'")
    .replace(
        "decode(",
        f"(select string_agg(int4send(4 * i), '' order by i) from generate_series(1, {BLOCK}) i) || decode(",
    )
    .replace("01000000", "41414141")
)

_ZARR = json.dumps(
    {
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [BLOCK]}},
        "codecs": [{"name": "sharding_indexed", "configuration": {"chunk_shape": [BLOCK // 4]}}],
    }
)

_OBJECTS = f"""
with made as (
  insert into public.datasets (user_id, owner, key, shape, dtype, block_size, state, engine, zarr)
    values (%(user)s::uuid, %(user)s::uuid::text || '@example.com', %(key)s::text, array[%(blocks)s::bigint * {BLOCK}],
            '<i4', {BLOCK}, 'committed', 'storage', '{_ZARR}')
    returning id, user_id),
filled as (
  insert into public.shards (data_id, user_id, number, name, nbytes, index)
    select made.id, made.user_id, n, made.user_id || '/' || made.id || '/c/' || n, 64,
           decode(repeat('4000', 341), 'hex')
      from made, generate_series(0, %(blocks)s::bigint - 1) n
    returning name),
uploaded as (
  insert into storage.objects (bucket_id, name) select 'tensors', name from filled)
select id from made
"""

#: Takes every second block, or shard, from an array, which then has a fill value and never had them.
_WITH_HOLES = """
with made as (update public.datasets set fill = '\\x01000000' where id = %(id)s returning id, engine),
holes as (delete from public.tensors where data_id = %(id)s and index / 16 %% 2 = 1 returning 1),
more as (delete from public.shards where data_id = %(id)s and number %% 2 = 1 returning 1)
insert into tensorage.written (data_id, number)
select t.data_id, t.index from public.tensors t where t.data_id = %(id)s and t.index / 16 %% 2 = 0
union all select s.data_id, s.number from public.shards s where s.data_id = %(id)s and s.number %% 2 = 0
"""

_CROWD = """
insert into public.datasets (user_id, owner, key, shape, dtype, block_size, state)
select %(user)s::uuid, %(user)s::uuid::text || '@example.com', 'crowd/' || lpad(n::text, 6, '0'), '{16}',
       '<i4', 16, 'committed'
  from generate_series(1, %(arrays)s) n
"""

_SHARERS = """
with users as (
  insert into auth.users (id, email, email_confirmed_at)
    select gen_random_uuid(), 'sharer' || n || '@example.com', now() from generate_series(1, %s) n returning id, email),
shared as (
  insert into tensorage.shares (user_id, pattern, reader) select id, 'common', '' from users)
insert into public.datasets (user_id, owner, key, shape, dtype, block_size, state)
  select id, email, 'common', '{16}', '<i4', 16, 'committed' from users
"""

#: A share of each array of somebody, with everybody: read by all, and written to.
_SHARED = """
insert into tensorage.shares (user_id, pattern, reader, can_write)
select d.user_id, d.key, '', true from public.datasets d where d.user_id = %s::uuid
on conflict do nothing
"""

#: Shares of the user's own arrays with as many addresses, and of a prefix.
_GIVEN = """
insert into tensorage.shares (user_id, pattern, reader)
select %(user)s::uuid, 'crowd/' || lpad(n::text, 6, '0'), 'reader' || n || '@example.com'
  from generate_series(1, %(shares)s) n
union all select %(user)s::uuid, 'crowd/', 'reader' || n || '@example.com' from generate_series(1, 100) n
"""

#: Arrays that the user is writing.
_WRITING = """
insert into public.datasets (user_id, key, shape, dtype, block_size, expires_at)
select %s::uuid, 'writing/' || n, '{16}', '<i4', 16, now() + interval '1 hour' from generate_series(1, 2000) n
"""

#: Calls a statement, whatever comes of it: what is read by a call that is refused can be looked at, too.
_OUTCOME = """
create function public.outcome(statement text) returns text language plpgsql as $$
begin
  execute statement;
  return 'done';
exception when others then
  return sqlstate;
end
$$
"""


@dataclass(frozen=True)
class Numbers:
    """Numbers of the arrays: of the user, and shared by somebody else; as blocks, as objects, and of texts."""

    own: int
    shared: int
    own_objects: int
    shared_objects: int
    own_texts: int
    shared_texts: int
    #: Arrays of the user with a fill value, of which every second block or object was never written.
    holes: int
    hole_objects: int


@dataclass
class Project:
    """A project's database: nearly empty first, and crowded later."""

    superuser_dsn: str
    numbers: dict[str, Numbers] = field(default_factory=dict)

    def install(self) -> None:
        """Make the users and the small arrays."""
        with self._past_triggers() as connection:
            # A test says itself when there are statistics.
            for table in (
                "public.datasets",
                "public.tensors",
                "public.shards",
                "tensorage.shares",
                "tensorage.written",
            ):
                connection.execute(f"alter table {table} set (autovacuum_enabled = off)")
            connection.execute(_OUTCOME)
            for user in (ME, SHARER, STRANGER):
                connection.execute(_USERS, (user, f"{user}@example.com"))
            self._make_arrays(connection, "few")

    def crowd(self) -> None:
        """Add the large arrays, and all others."""
        with self._past_triggers() as connection:
            for user, arrays in CROWD.items():
                connection.execute(_CROWD, {"user": user, "arrays": arrays})
            connection.execute(_SHARERS, (SHARERS,))
            connection.execute(_WRITING, (ME,))
            connection.execute(_GIVEN, {"user": ME, "shares": SHARES})
            self._make_arrays(connection, "many")

    def analyze(self) -> None:
        with psycopg.connect(self.superuser_dsn, autocommit=True) as connection:
            connection.execute("analyze")

    @contextmanager
    def user(self, user_id: str = ME) -> Iterator[Connection]:
        """A connection as a signed-in user."""
        claims = json.dumps({"sub": user_id, "email": f"{user_id}@example.com"})
        with psycopg.connect(self.superuser_dsn, autocommit=True) as connection:
            connection.execute("select set_config('request.jwt.claims', %s, false)", (claims,))
            connection.execute("set role authenticated")
            yield connection

    @contextmanager
    def _past_triggers(self) -> Iterator[Connection]:
        with psycopg.connect(self.superuser_dsn) as connection:
            connection.execute("set local session_replication_role = replica")
            yield connection

    def _make_arrays(self, connection: Connection, name: str) -> None:
        def make(statement: str, user: str, key: str) -> int:
            named = {"user": user, "key": key, "blocks": BLOCKS[name]}
            (number,) = connection.execute(statement, named).fetchone() or (0,)
            return int(number)

        self.numbers[name] = Numbers(
            make(_ARRAY, ME, name),
            make(_ARRAY, SHARER, f"shared {name}"),
            make(_OBJECTS, ME, f"{name} objects"),
            make(_OBJECTS, SHARER, f"shared {name} objects"),
            make(_TEXTS, ME, f"{name} texts"),
            make(_TEXTS, SHARER, f"shared {name} texts"),
            make(_ARRAY, ME, f"{name} with holes"),
            make(_OBJECTS, ME, f"{name} objects with holes"),
        )
        for number in (self.numbers[name].holes, self.numbers[name].hole_objects):
            connection.execute(_WITH_HOLES, {"id": number})
        connection.execute(_SHARED, (SHARER,))


def buffers(connection: Connection, statement: str, *before: str) -> int:
    """Pages that PostgreSQL looks at for a statement and for all within it, which are then undone.

    Parameters
    ----------
    *before
        Statements to execute first, in the same transaction.
    """
    with connection.transaction(force_rollback=True):
        for each in before:
            connection.execute(each)
        (plan,) = connection.execute(f"explain (analyze, buffers, format json) {statement}").fetchone() or (
            [],
        )
    root = plan[0]["Plan"]
    return int(root["Shared Hit Blocks"]) + int(root["Shared Read Blocks"])
