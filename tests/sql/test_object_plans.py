"""Plans of PostgreSQL with many shards: it looks up those that are asked for, by an index, whoever asks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from sql.conftest import Register
from sql.test_plans import explain, plans

from tensorage.embedded import control

Connection = psycopg.Connection[tuple[Any, ...]]

_MANY = 20_000
_TABLES = ("datasets", "shards", "objects", "shares")

_DATASETS = """
insert into public.datasets (user_id, key, shape, dtype, block_size, state, engine, zarr)
select %s, 'run ' || n, '{}', '<i4', 1, 'committed', 'storage', '{}' from generate_series(1, %s) n
"""
#: Every array is shared by a share of its own.
_SHARES = """
insert into tensorage.shares (user_id, pattern, reader)
select d.user_id, d.key, '' from public.datasets d where d.user_id = %s
"""
#: Many arrays of one shard, and one of many. Every third shard of that has no object.
_SHARDS = """
insert into public.shards (data_id, user_id, number, name, nbytes, index)
select d.id, d.user_id, n, case when n %% 3 > 0 then d.user_id || '/' || d.id || '/c/' || n end, least(n %% 3, 1), ''
  from public.datasets d, generate_series(1, case d.key when 'run 100' then %s else 1 end) n
 where d.user_id = %s
"""
_OBJECTS = """
insert into storage.objects (bucket_id, name)
select 'tensors', s.name from public.shards s where s.name is not null and s.user_id = %s
"""


@pytest.fixture(scope="module")
def many(new_user: Register, backend: control.Running) -> Iterator[Connection]:
    """A connection as a user of many shards, in a project where others have and share as many."""
    with psycopg.connect(backend.superuser_url) as connection:
        owner = new_user()
        # The rows are never committed: other tests have the project to themselves. No plan depends on totals.
        connection.execute("set local session_replication_role = replica")
        for caller, shared in ((owner, False), (new_user(), False), (new_user(), True)):
            connection.execute(_DATASETS, (caller.id, _MANY))
            if shared:
                connection.execute(_SHARES, (caller.id,))
            connection.execute(_SHARDS, (_MANY, caller.id))
            connection.execute(_OBJECTS, (caller.id,))
        connection.execute("set local session_replication_role = origin")
        connection.execute("analyze public.datasets, public.shards, tensorage.shares, storage.objects")
        explain(connection, owner)
        yield connection
        connection.rollback()


def _array(many: Connection, whose: str, key: str = "run 100") -> int:
    """Number of the large array, or another, of the user or of somebody who shares it."""
    mine = "d.user_id = (current_setting('request.jwt.claims')::json ->> 'sub')::uuid"
    where = mine if whose == "own" else "d.user_id in (select s.user_id from tensorage.shares s)"
    row = many.execute(f"select d.id from public.datasets d where d.key = '{key}' and {where}").fetchone()
    assert row is not None
    return int(row[0])


def _scans(many: Connection, statement: str) -> list[dict[str, Any]]:
    nodes = [node for node in plans(many, statement) if node.get("Relation Name") in _TABLES]
    # A plan shows alternatives: these were taken.
    scans = [node for node in nodes if node["Actual Loops"] > 0]
    assert scans
    for scan in scans:
        assert scan["Node Type"] != "Seq Scan", (scan["Relation Name"], scan)
    return scans


_PAGE = "array(select generate_series(4000, 4999)::bigint)"


@pytest.mark.parametrize("whose", ["own", "shared"])
@pytest.mark.parametrize(
    ("statement", "most"),
    [
        ("select public.tensorage_shards({id}, 1, array[4321]::bigint[])", 1),
        ("select public.tensorage_shards({id}, 1, " + _PAGE + ")", 1000),
        ("select public.tensorage_has_object({id}, 4321)", 1),
        ("select from public.shards where data_id = {id} and number = 4321", 1),
        # The policies of the bucket ask this about an object, and with them the reading of one.
        ("select tensorage.is_shared_object('{name}')", 1),
        ("select tensorage.may_delete_object('{name}')", 1),
        ("select tensorage.may_write_object('{name}')", 1),
        ("select from storage.objects where bucket_id = 'tensors' and name = '{name}'", 1),
    ],
)
def test_shards_are_looked_up_by_an_index(statement: str, most: int, whose: str, many: Connection) -> None:
    data_id = _array(many, whose)
    row = many.execute("select name from public.shards where data_id = %s and number = 4321", (data_id,))
    (name,) = row.fetchone() or ("",)
    assert str(name).endswith(f"{data_id}/c/4321") or name is None
    for scan in _scans(many, statement.format(id=data_id, name=name)):
        # Each of somebody else's shards is asked for its dataset.
        assert scan["Actual Rows"] * scan["Actual Loops"] <= most, scan
        assert scan.get("Rows Removed by Filter", 0) <= 1, scan


def test_an_object_in_the_own_folder_is_looked_up_in_one_table(many: Connection) -> None:
    """The policies of shares, which look into the others, come later."""
    data_id = _array(many, "own")
    row = many.execute(
        "select name from public.shards where data_id = %s and number = 4321", (data_id,)
    ).fetchone()
    assert row is not None
    # PostgreSQL may tell the plan of a statement only when the next one comes.
    many.execute("select")
    scans = _scans(many, f"select from storage.objects where bucket_id = 'tensors' and name = '{row[0]}'")
    assert {scan["Relation Name"] for scan in scans} == {"objects"}


@pytest.mark.parametrize("key", ["run 100", "run 7"], ids=["large", "small"])
def test_sweeping_reads_a_page_of_what_is_gone(key: str, many: Connection) -> None:
    data_id = _array(many, "own", key)
    with many.transaction(force_rollback=True):
        many.execute(
            "update public.datasets set state = 'staged', expires_at = '-infinity' where id = %s", (data_id,)
        )
        scans = _scans(many, "select public.tensorage_sweep_objects(500)")
    assert {scan["Relation Name"] for scan in scans} == set(_TABLES) - {"shares"}
    for scan in scans:
        assert scan["Actual Rows"] * scan["Actual Loops"] <= 1000, scan
        assert scan.get("Rows Removed by Filter", 0) <= 100, scan
