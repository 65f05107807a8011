"""A new database, held against that of a hosted Supabase project; and migrations."""

from __future__ import annotations

import asyncio
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import errors

from tensorage.embedded import control
from tensorage.embedded.migrate import MigrationError, bootstrap, migrate
from tensorage.embedded.postgres import HOST, SUPERUSER, Cluster, free_port, installed_bin_dir, stop_leftovers
from tensorage.migrations import migration_files

Connection = psycopg.Connection[tuple[Any, ...]]


@pytest.fixture
def owner(backend: control.Running) -> Iterator[Connection]:
    """The database as the role `postgres`; nothing that a test does stays."""
    with psycopg.connect(backend.db_url) as connection:
        yield connection
        connection.rollback()


def test_roles_are_those_of_a_hosted_project(database: Connection) -> None:
    rows = database.execute(
        "select rolname, rolcanlogin, rolinherit, rolbypassrls, rolsuper, rolcreaterole from pg_roles "
        "where not rolname like 'pg\\_%'"
    )
    assert {name: flags for name, *flags in rows} == {
        "supabase_admin": [True, True, True, True, True],
        "postgres": [True, True, True, False, True],
        "authenticator": [True, False, False, False, False],
        "anon": [False, False, False, False, False],
        "authenticated": [False, False, False, False, False],
        "service_role": [False, False, True, False, False],
        "supabase_auth_admin": [True, False, False, False, True],
        "supabase_storage_admin": [True, False, False, False, True],
    }


def test_statement_timeouts_are_those_of_a_hosted_project(database: Connection) -> None:
    rows = database.execute(
        "select rolname, substring(setting from '=(.*)') from pg_roles, unnest(rolconfig) setting "
        "where setting like 'statement_timeout=%'"
    )
    assert dict(rows.fetchall()) == {"anon": "3s", "authenticated": "8s", "authenticator": "8s"}


def test_authenticator_may_only_become_the_role_of_a_request(owner: Connection) -> None:
    owner.execute("create table public.secret (n int)")
    owner.execute("grant select on public.secret to authenticated")
    members = owner.execute(
        "select r.rolname from pg_auth_members m join pg_roles r on r.oid = m.roleid "
        "where m.member = 'authenticator'::regrole"
    )
    assert {name for (name,) in members} == {"anon", "authenticated", "service_role"}
    assert owner.execute(
        "select has_table_privilege('authenticator', 'public.secret', 'select')"
    ).fetchone() == (False,)


def test_new_tables_are_nobodys_but_the_owners(owner: Connection) -> None:
    owner.execute("create table public.mine (n int)")
    for role in ("anon", "authenticated", "service_role"):
        for privilege in ("select", "insert", "update", "delete"):
            answer = owner.execute("select has_table_privilege(%s, 'public.mine', %s)", [role, privilege])
            assert answer.fetchone() == (False,), (role, privilege)


def test_owner_is_no_superuser_and_does_not_own_auth(owner: Connection) -> None:
    for statement in (
        "alter table auth.users add column x int",
        "create role x superuser",
        "drop schema auth",
    ):
        with owner.transaction(), pytest.raises(errors.InsufficientPrivilege), owner.transaction():
            owner.execute(statement)
    owner.execute("create table public.of_user (user_id uuid references auth.users on delete cascade)")
    owner.execute("create schema mine")


def test_owner_makes_policies_on_objects(owner: Connection) -> None:
    user, other = uuid.uuid4(), uuid.uuid4()
    owner.execute("insert into storage.buckets (id, name) values ('b', 'b')")
    owner.execute(
        "create policy own on storage.objects to authenticated using "
        "((storage.foldername(name))[1] = (select auth.uid())::text)"
    )
    for name in (user, other):
        owner.execute(
            "insert into storage.objects (bucket_id, name) values ('b', %s || '/x/y.bin')", [str(name)]
        )
    owner.execute("set local role authenticated")
    owner.execute(
        "select set_config('request.jwt.claims', json_build_object('sub', %s::text)::text, true)", [user]
    )
    seen = owner.execute(
        "select path_tokens, storage.filename(name), storage.extension(name) from storage.objects"
    ).fetchall()
    assert seen == [([str(user), "x", "y.bin"], "y.bin", "bin")]


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("a/b/c.tar.gz", (["a", "b"], "c.tar.gz", "gz")),
        ("plain", ([], "plain", "plain")),
        ("", ([], "", "")),
        ("a//b", (["a", ""], "b", "b")),
    ],
)
def test_parts_of_an_object_name(database: Connection, name: str, parts: tuple[list[str], str, str]) -> None:
    row = database.execute(
        "select storage.foldername(%(n)s), storage.filename(%(n)s), storage.extension(%(n)s)", {"n": name}
    ).fetchone()
    assert row == parts


def test_settings_of_the_cluster(database: Connection) -> None:
    names = ["timezone", "server_encoding", "listen_addresses", "jit"]
    assert [database.execute("select current_setting(%s)", [name]).fetchone() for name in names] == [
        ("UTC",), ("UTF8",), ("127.0.0.1",), ("off",),
    ]  # fmt: skip


def test_passwords_are_asked_for(backend: control.Running) -> None:
    for url in (backend.db_url, backend.superuser_url):
        role, _, rest = url.partition("://")[2].partition(":")
        address = rest.partition("@")[2]
        port = psycopg.conninfo.conninfo_to_dict(url)["port"]
        for other in (address, f"/postgres?host={backend.data_dir / 'postgres'}&port={port}"):
            with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
                psycopg.connect(f"postgresql://{role}:wrong@{other}")


def test_our_migrations_are_remembered_as_the_supabase_cli_does(database: Connection) -> None:
    rows = database.execute("select version, name, statements from supabase_migrations.schema_migrations")
    expected = {(*path.stem.split("_", 1), path.read_text("utf-8")) for path in migration_files()}
    assert expected
    assert expected <= {(version, name, statements[0]) for version, name, statements in rows}


def test_migration_that_fails_leaves_nothing_of_itself(
    backend: control.Running, database: Connection, tmp_path: Path
) -> None:
    mark = uuid.uuid4().hex
    good, bad, later = (tmp_path / f"{mark}{n}_{n}.sql" for n in ("1", "2", "3"))
    good.write_text(f"create table public.good_{mark} ()")
    bad.write_text(f"create table public.bad_{mark} (); select 1/0")
    later.write_text(f"create table public.later_{mark} ()")
    # A database that has had others than these is refused.
    ours = migration_files()
    with pytest.raises(MigrationError, match=rf"{bad.name} cannot be applied: 22012: division by zero"):
        asyncio.run(migrate(backend.db_url, [*ours, good, bad, later]))

    def tables() -> list[tuple[Any, ...]]:
        return database.execute(
            "select relname, relowner::regrole::text from pg_class where relname like %s order by 1",
            [f"%{mark}"],
        ).fetchall()

    assert tables() == [(f"good_{mark}", "postgres")]
    bad.write_text(f"create table public.bad_{mark} ()")
    assert asyncio.run(migrate(backend.db_url, [*ours, good, bad, later])) == [bad.name, later.name]
    assert [name for name, _ in tables()] == [f"bad_{mark}", f"good_{mark}", f"later_{mark}"]
    assert asyncio.run(migrate(backend.db_url, [*ours, good, bad, later])) == []
    tidy = "delete from supabase_migrations.schema_migrations where starts_with(version, %s)"
    database.execute(tidy, [mark])
    for name, _ in tables():
        database.execute(f"drop table public.{name}")


def test_bootstrap_is_done_once(backend: control.Running) -> None:
    assert not asyncio.run(bootstrap(backend.superuser_url, {}))


def test_cluster_without_a_server_is_stopped(tmp_path: Path) -> None:
    """On some systems PostgreSQL does not learn of the death of its server."""

    async def orphaned() -> int:
        cluster = Cluster(tmp_path / "postgres", "password-of-the-superuser")
        await cluster.create()
        await cluster.start(free_port())
        # Clusters that users make do: most of those of tests do without.
        url = f"postgresql://{SUPERUSER}:password-of-the-superuser@{HOST}:{cluster.port}/postgres"
        with psycopg.connect(url) as connection:
            assert connection.execute("show fsync").fetchone() == ("on",)
        await asyncio.to_thread(stop_leftovers, tmp_path / "postgres")
        status = await cluster.wait()
        await cluster.stop()
        return status

    assert asyncio.run(orphaned()) == 0
    assert not (tmp_path / "postgres" / "postmaster.pid").exists()
    state = subprocess.run(
        [installed_bin_dir() / "pg_controldata", tmp_path / "postgres"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "shut down" in state.stdout


def test_a_folder_of_an_older_server_gets_the_functions_of_this_one(
    backend: control.Running, database: Connection
) -> None:
    database.execute("drop schema embedded cascade")
    database.commit()
    assert not asyncio.run(bootstrap(backend.superuser_url, {}))
    roles = ["authenticator", "anon", "authenticated", "service_role", "supabase_auth_admin"]
    function = "embedded.find_object(text, text, text, text, text, text)"
    rows = database.execute(
        "select role from unnest(%s::text[]) role where has_function_privilege(role, %s, 'execute')",
        [roles, function],
    )
    # It takes roles, which is the right of this one alone.
    assert [role for (role,) in rows.fetchall()] == ["authenticator"]
