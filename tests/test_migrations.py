"""The migrations on every major version of PostgreSQL that Supabase runs, as the role that hosted projects have."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pytest
from click.testing import CliRunner
from clusters import dsn
from postgres_versions import bin_dir
from run_page import blocks
from schema_objects import schema_objects
from sql.api import binary, whole

from tensorage.backend.wire.header import FIRST_RELEASED_SCHEMA, SCHEMA_VERSION
from tensorage.cli import main
from tensorage.embedded.migrate import MigrationError, migrate
from tensorage.embedded.postgres import SUPERUSER, Cluster
from tensorage.migrations import migration_files

Connection = psycopg.Connection[tuple[Any, ...]]

#: Grants that projects made before 2026-10-30 give on whatever is made in `public`.
_GRANTS_OF_OLD_PROJECTS = """
alter default privileges in schema public grant all on tables to anon, authenticated, service_role;
alter default privileges in schema public grant all on sequences to anon, authenticated, service_role;
alter default privileges in schema public grant all on functions to anon, authenticated, service_role;
"""

_TROUBLESHOOTING = Path(__file__).parents[1] / "docs" / "troubleshooting.md"

#: Removes all of tensorage, as the documentation says.
UNINSTALL = (
    "drop schema if exists supabase_migrations cascade;" + blocks(_TROUBLESHOOTING, "postgresql")[0].content
)

_RIGHTS_OF_ANON = """
select c.oid::regclass::text from pg_class c, aclexplode(c.relacl) a
  where a.grantee in (0, 'anon'::regrole) and (c.relnamespace = 'tensorage'::regnamespace
    or c.relname in ('datasets', 'tensors', 'shards', 'datasets_id_seq'))
union all
select p.oid::regprocedure::text from pg_proc p, aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) a
  where a.grantee in (0, 'anon'::regrole) and (p.pronamespace = 'tensorage'::regnamespace
    or p.proname like '%tensorage%')
union all
select c.oid::regclass::text || ' of authenticated' from pg_class c, aclexplode(c.relacl) a
  where a.grantee = 'authenticated'::regrole and a.privilege_type <> 'SELECT' and (
    c.relnamespace = 'tensorage'::regnamespace or c.relname in ('datasets', 'tensors', 'shards', 'datasets_id_seq'))
"""


@pytest.fixture
def owner(cluster: Cluster) -> Iterator[Connection]:
    """The project's database as hosted projects give it to their owner: not as a superuser."""
    with psycopg.connect(dsn(cluster, "postgres"), autocommit=True) as connection:
        assert connection.info.parameter_status("is_superuser") == "off"
        connection.execute(_GRANTS_OF_OLD_PROJECTS)
        yield connection
        connection.execute(UNINSTALL)


def test_migrations_apply(cluster: Cluster, owner: Connection) -> None:
    """Applied as one script that is pasted, or file by file, and again on top of themselves, they work."""
    pasted = CliRunner().invoke(main, ["migrations", "--sql"]).output
    for _ in range(2):
        owner.execute(pasted)
        _check(cluster, owner)
    owner.execute(UNINSTALL)

    files = migration_files()
    assert asyncio.run(migrate(dsn(cluster, "postgres"), files)) == [file.name for file in files]
    made = schema_objects(owner)
    _check(cluster, owner)
    assert asyncio.run(migrate(dsn(cluster, "postgres"), files)) == []
    for file in files:
        owner.execute(file.read_text("utf-8"))
    assert schema_objects(owner) == made
    _check(cluster, owner)


def test_what_is_stored_is_still_there_when_they_are_applied_again(
    cluster: Cluster, owner: Connection
) -> None:
    """Readable, appended to and assigned to, and what was begun is completed."""
    files = migration_files()
    for file in files:
        owner.execute(file.read_text("utf-8"))
    array = np.arange(600, dtype="<f4").reshape(20, 30)
    user_id, by, again = (str(uuid.uuid4()) for _ in range(3))
    with _as_user(cluster, user_id) as user:
        stored = _value(
            user, "tensorage_store", whole(array, key="a", chunk=90, attrs={"n": 1}, operation=by)
        )
        for _ in range(3):
            appended = _value(user, "tensorage_append", whole(array[:2], key="a", chunk=60, operation=again))
        begun = _value(user, "tensorage_begin", "b", [20, 30], "<f4", 300)
        _value(user, "tensorage_put", binary(array.tobytes(), count=600, chunk=300, data_id=begun["id"]))
        more = _value(user, "tensorage_begin", "a", [20, 30], "<f4", 300, *_AS_APPEND)
        _value(user, "tensorage_put", binary(array.tobytes(), count=600, chunk=300, data_id=more["id"]))

    for _ in range(2):
        for file in files:
            owner.execute(file.read_text("utf-8"))
    assert owner.execute("select public.tensorage_version()").fetchone() == (SCHEMA_VERSION,)
    assert owner.execute("select key, nbytes from public.datasets order by id").fetchall() == [
        ("a", 2640), ("b", 2400), ("a", 2400),
    ]  # fmt: skip
    with _as_user(cluster, user_id) as user:
        # Repeated requests are answered as the first time.
        assert _value(user, "tensorage_store", whole(array, key="a", operation=by)) == stored
        assert _value(user, "tensorage_append", whole(array[:2], key="a", operation=again)) == appended
        expected = np.concatenate([array, array[:2]])
        assert _read(user, stored, 600) == array.tobytes()
        assert _read(user, appended, 660) == expected.tobytes()
        assert _value(user, "tensorage_commit", begun["id"])["key"] == "b"
        grown = _value(user, "tensorage_commit", more["id"])
        grown = _value(user, "tensorage_append", whole(array[:3], key="a"))
        expected = np.concatenate([expected, array, array[:3]])
        assert _read(user, grown, 1350) == expected.tobytes()
        meta = {"version": grown["version"], "rows": [600, 30], "runs": [0, 7], "run_length": 3}
        values = -np.arange(12, dtype="<f4")
        body = binary(values.tobytes(), count=12, data_id=grown["id"], meta=meta)
        changed = _value(user, "tensorage_assign", body)
        expected.reshape(-1)[np.add.outer([600, 607, 30, 37], np.arange(3)).reshape(-1)] = values
        assert _read(user, changed, 1350) == expected.tobytes()
        assert _value(user, "tensorage_compact", "a")["after"] is None
        assert _read(user, changed, 1350) == expected.tobytes()


def test_both_ways_of_applying_them_make_the_same(owner: Connection) -> None:
    """The same includes the order of columns, and functions that nobody calls."""
    owner.execute(CliRunner().invoke(main, ["migrations", "--sql"]).output)
    made = schema_objects(owner)
    owner.execute(UNINSTALL)
    for file in migration_files():
        with owner.transaction():
            owner.execute(file.read_text("utf-8"))
    assert schema_objects(owner) == made


def test_every_function_is_defined_once() -> None:
    """Every column is defined where its table is."""
    sql = "".join(file.read_text("utf-8") for file in migration_files())
    defined = re.findall(r"^create or replace function ([\w.]+)\(", sql, re.MULTILINE)
    assert defined
    assert sorted(set(defined)) == sorted(defined)
    assert "add column" not in sql
    assert sql.rstrip().endswith("notify pgrst, 'reload schema';")
    assert sql.count("notify pgrst") == 1


def test_the_version_is_the_clients(owner: Connection) -> None:
    files = migration_files()
    for file in files:
        owner.execute(file.read_text("utf-8"))
    assert owner.execute("select public.tensorage_version()").fetchone() == (SCHEMA_VERSION,)
    assert f"installed < {FIRST_RELEASED_SCHEMA} then" in files[0].read_text("utf-8")


@pytest.fixture(params=[1, FIRST_RELEASED_SCHEMA - 1])
def earlier(request: pytest.FixtureRequest, owner: Connection) -> int:
    """The project has a schema that was never released: other columns, other functions."""
    for file in migration_files():
        owner.execute(file.read_text("utf-8"))
    owner.execute(
        f"""
        create or replace function public.tensorage_version() returns int language sql as 'select {request.param}';
        alter table public.datasets drop column base_rows;
        drop function public.tensorage_share(text, text[], boolean, timestamptz);
        """
    )
    version: int = request.param
    return version


def test_an_earlier_schema_is_refused_and_left_alone(
    cluster: Cluster, owner: Connection, earlier: int
) -> None:
    """The pasted script refuses, as does the first file, and in a psql that goes on after errors."""
    before = schema_objects(owner)
    pasted = CliRunner().invoke(main, ["migrations", "--sql"]).output
    says = f"(?s)version {earlier} of tensorage's schema, which was never released.*nothing has been changed.*checkout"
    with pytest.raises(psycopg.errors.RaiseException, match=says):
        owner.execute(pasted)
    owner.rollback()
    assert schema_objects(owner) == before
    with pytest.raises(psycopg.errors.RaiseException, match=says):
        owner.execute(migration_files()[0].read_text("utf-8"))
    assert schema_objects(owner) == before
    psql = subprocess.run(
        [bin_dir(owner.info.server_version // 10000) / "psql", "--no-psqlrc", dsn(cluster, "postgres")],
        input=pasted, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert re.search(says, psql.stderr)
    assert "ROLLBACK" in psql.stdout
    assert schema_objects(owner) == before


def test_an_earlier_schema_is_refused_by_the_embedded_backend(
    cluster: Cluster, owner: Connection, earlier: int
) -> None:
    """The refusal needs no record of that version."""
    before = schema_objects(owner)
    with pytest.raises(
        MigrationError, match=f"version {earlier} of tensorage's schema, which was never released"
    ):
        asyncio.run(migrate(dsn(cluster, "postgres"), migration_files()))
    assert schema_objects(owner) == before


def test_recorded_migrations_of_others_are_refused(
    cluster: Cluster, owner: Connection, tmp_path: Path
) -> None:
    """A folder that another version made is refused before anything changes."""
    *first, last = migration_files()
    other = tmp_path / "20261123000000_tensorage.sql"
    other.write_text("create table public.of_another_version ()")
    assert asyncio.run(migrate(dsn(cluster, "postgres"), [other, *first])) == [
        file.name for file in (other, *first)
    ]
    before = schema_objects(owner)
    recorded = owner.execute("select * from supabase_migrations.schema_migrations").fetchall()
    says = (
        r"does not know \(20261123000000_tensorage\).*Nothing has been changed.*checkout of tensorage that made it"
        r".*tensorage local reset"
    )
    for _ in range(2):
        with pytest.raises(MigrationError, match=says):
            asyncio.run(migrate(dsn(cluster, "postgres"), [*first, last]))
        assert schema_objects(owner) == before
        assert owner.execute("select * from supabase_migrations.schema_migrations").fetchall() == recorded
    owner.execute("drop table public.of_another_version")


def test_a_recorded_migration_of_another_text_is_refused(
    cluster: Cluster, owner: Connection, tmp_path: Path
) -> None:
    """Checkouts of before the first release change files where they stand: their names do not tell them apart."""
    first, *rest = migration_files()
    before_it_changed = tmp_path / first.name
    before_it_changed.write_text(first.read_text("utf-8") + "-- Its last line, later.\n")
    asyncio.run(migrate(dsn(cluster, "postgres"), [before_it_changed, *rest]))
    before = schema_objects(owner)
    with pytest.raises(MigrationError, match=rf"does not know \({first.stem}\).*Nothing has been changed"):
        asyncio.run(migrate(dsn(cluster, "postgres"), [first, *rest]))
    assert schema_objects(owner) == before
    # The Supabase CLI records one statement after the other, of which the file cannot be told.
    owner.execute(
        "update supabase_migrations.schema_migrations set statements = '{select 1,select 2}' where version = %s",
        [first.stem.partition("_")[0]],
    )
    assert asyncio.run(migrate(dsn(cluster, "postgres"), [first, *rest])) == []


#: Arguments of tensorage_begin after chunk: engine, is_shared, attrs, dims, overwrite, append.
_AS_APPEND = ("database", False, "{}", None, False, True)


@contextmanager
def _as_user(cluster: Cluster, user_id: str) -> Iterator[Connection]:
    """A transaction as a signed-in user, who is made if there is none of that id."""
    with psycopg.connect(dsn(cluster, SUPERUSER)) as connection:
        connection.execute(
            "insert into auth.users (id, email) values (%s, %s) on conflict do nothing", (user_id, user_id)
        )
        claims = json.dumps({"sub": user_id, "email": user_id})
        connection.execute("select set_config('request.jwt.claims', %s, true)", (claims,))
        connection.execute("set local role authenticated")
        yield connection


def _read(connection: Connection, dataset: Any, count: int) -> bytes:
    """Elements of an array from its first one on."""
    answer = connection.execute(
        "select public.tensorage_read(%s, %s, '{0}', '{0}', %s)",
        (dataset["id"], dataset["version"], count),
        binary=True,
    )
    (elements,) = answer.fetchone() or (b"",)
    return bytes(elements)


def _check(cluster: Cluster, owner: Connection) -> None:
    """Nobody has a right too many, and a user who stores an array and appends to it reads it."""
    assert owner.execute(_RIGHTS_OF_ANON).fetchall() == []
    array = np.arange(600, dtype="<f4").reshape(20, 30)
    with _as_user(cluster, str(uuid.uuid4())) as connection:
        operation = str(uuid.uuid4())
        _value(connection, "tensorage_store", whole(array, key="a", chunk=90, operation=operation))
        grown = _value(connection, "tensorage_append", whole(array[:2], key="a", chunk=90))
        assert grown["shape"] == [22, 30]
        assert _value(connection, "tensorage_list", "", "", 10) == ["a"]
        rows, runs = [19 * 30, 0, 21 * 30], [4, 2]
        arguments = (grown["id"], grown["version"], rows, runs, 2)
        answer = connection.execute(
            "select public.tensorage_read(%s, %s, %s, %s, %s)", arguments, binary=True
        )
        (elements,) = answer.fetchone() or (b"",)
        expected = np.concatenate([array, array[:2]])[[19, 19, 0, 0, 21, 21]][
            np.arange(6)[:, None], [[4, 5], [2, 3]] * 3
        ]
        assert elements == expected.tobytes()
        assert _value(connection, "tensorage_remove", "a")["left"] == 0


def _value(connection: Connection, function: str, *arguments: Any) -> Any:
    places = ", ".join(["%s"] * len(arguments))
    row = connection.execute(f"select public.{function}({places})", arguments).fetchone()
    assert row is not None
    return row[0]
