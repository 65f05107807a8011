"""Rights of each role, as PostgreSQL's catalogue says it: also of what no other test knows of."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import psycopg
from sql.api import Caller, new_key, new_operation, whole

Connection = psycopg.Connection[tuple[Any, ...]]

_FUNCTIONS = """
from pg_proc p where (p.pronamespace = 'tensorage'::regnamespace
  or (p.pronamespace = 'public'::regnamespace and starts_with(p.proname, 'tensorage')))
"""

_RELATIONS = """
from pg_class c where c.relkind in ('r', 'p', 'v', 'm', 'S', 'f') and (
  c.relnamespace = 'tensorage'::regnamespace
  or c.oid in ('public.datasets'::regclass, 'public.tensors'::regclass, 'public.shards'::regclass,
            'public.datasets_id_seq'::regclass))
"""

#: Rights of `authenticated` on relations. Nothing else is granted to them, to anon or to everybody.
_GRANTED = {("datasets", "SELECT"), ("shards", "SELECT"), ("tensors", "SELECT")}

#: Inner functions which policies call; and those that columns, checks and indexes of the tables are computed with.
_CALLED = {
    "elements",
    "is_plain_name",
    "is_shared_object",
    "is_user",
    "itemsize",
    "may_delete_object",
    "may_read_rows_of",
    "may_use",
    "may_write_object",
    "record_size",
    "is_ragged",
    "ragged_unit",
    "tag",
}

#: Functions that read, and all that they call.
_READING = {
    "check_answer", "check_pieces", "check_wanted", "gather", "gather_dense", "gather_grid", "of_engine", "readable",
    "readable_run", "tensorage_count", "tensorage_dataset", "tensorage_has_object", "tensorage_list", "tensorage_open",
    "tensorage_read", "tensorage_read_fields", "tensorage_read_run", "tensorage_read_spans", "tensorage_shards",
}  # fmt: skip


#: Functions in SQL with settings of their own, which are planned anew at each call. None of them is a part of every
#: write or read: they count or recount, list, share, rename, or merge; and one reads long runs alone.
_PLANNED_ANEW = {
    "count_file_bytes", "count_usage", "ids_with_attrs", "lock_shares", "merge_ragged", "movable_prefixes",
    "move_all_shares", "move_shares", "name_of", "own_keys", "put_share", "regex_of_glob", "renamings", "shape_text",
    "shared_keys", "tensorage_read_run",
}  # fmt: skip


def test_functions_of_each_request_are_planned_once(database: Connection) -> None:
    """In SQL, a function has no settings, and becomes a part of the query; with settings it is in PL/pgSQL."""
    found = database.execute(
        f"select p.proname {_FUNCTIONS} and p.proconfig is not null "
        "and p.prolang = (select l.oid from pg_language l where l.lanname = 'sql')"
    )
    assert {name for (name,) in found} == _PLANNED_ANEW


def test_definers_look_up_no_temporary_names(database: Connection) -> None:
    """An empty search_path would not do: types are then looked up among a caller's temporary ones first."""
    definers = database.execute(f"select p.proname, p.proconfig {_FUNCTIONS} and p.prosecdef").fetchall()
    assert {
        name: config for name, config in definers if "search_path=pg_catalog, pg_temp" not in (config or [])
    } == {}
    assert "tensorage_put" in {name for name, _ in definers}


def test_functions_that_read_look_for_types_in_temporary_schemas_last(database: Connection) -> None:
    """An empty search path has `pg_temp` first for types: a domain of the caller's would run code as the owner."""
    found = database.execute(f"select p.proname, p.proconfig[1] {_FUNCTIONS}").fetchall()
    assert {name for name, path in found if path == "search_path=pg_catalog, pg_temp"} >= _READING


def test_types_of_a_caller_s_own_are_not_taken_for_postgresql_s(
    database: Connection, owner: Caller, other: Caller
) -> None:
    """A domain may run code when a value becomes one: as whoever makes it one."""
    stored = owner.store(new_key(), np.arange(10, dtype="<i4"), operation=new_operation())
    body = whole(np.arange(3, dtype="<i4"), key=new_key(), operation=new_operation())
    calls = [
        ("tensorage_store(%s)", body),
        (
            "tensorage_append(%s)",
            whole(np.arange(3, dtype="<i4"), key=stored["key"], operation=new_operation()),
        ),
        ("tensorage_begin(%s, '{3}', '<i4', 3)", new_key()),
        ("tensorage_begin_assign(%s, 1)", stored["id"]),
        ("tensorage_annotate(%s, '{\"a\": 1}')", stored["id"]),
        ("tensorage_open(%s)", stored["key"]),
        ("tensorage_list(%s)", ""),
        ("tensorage_rename(%s, 'another')", stored["key"]),
        ("tensorage_remove('another', %s)", new_operation()),
        ("tensorage_sweep_objects(%s)", 10),
    ]
    with database.transaction(force_rollback=True):
        database.execute("set local role authenticated")
        claims = json.dumps({"sub": owner.id, "email": owner.email})
        database.execute("select set_config('request.jwt.claims', %s, true)", (claims,))
        database.execute(
            "create function pg_temp.spy() returns boolean language plpgsql as "
            "$$ begin raise exception 'code of a caller ran as %', current_user; end $$"
        )
        for kind in (
            "uuid",
            "json",
            "jsonb",
            "text",
            "bytea",
            "timestamptz",
            "regclass",
            "int8range",
            "bool",
        ):
            database.execute(f"create domain pg_temp.{kind} as pg_catalog.{kind} check (pg_temp.spy())")  # type: ignore[call-overload]
        for call, argument in calls:
            database.execute(f"select public.{call}", (argument,))  # type: ignore[call-overload]


def test_definers_belong_to_nobody_more_powerful_than_the_owner_of_the_tables(database: Connection) -> None:
    owners = database.execute(f"select distinct p.proowner::regrole::text {_FUNCTIONS}").fetchall()
    assert owners == [("postgres",)]


def test_only_signed_in_users_and_the_service_may_execute(database: Connection) -> None:
    rows = database.execute(
        f"""
        select p.proname, coalesce(nullif(a.grantee, 0)::regrole::text, 'public')
        from (select * {_FUNCTIONS}) p,
             aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) a
        """
    ).fetchall()
    assert {grantee for _, grantee in rows} == {"postgres", "authenticated", "service_role"}
    inner = database.execute("select proname from pg_proc where pronamespace = 'tensorage'::regnamespace")
    assert {name for (name,) in inner} & {name for name, who in rows if who == "authenticated"} == _CALLED


def test_inner_functions_that_are_granted_run_as_their_caller(database: Connection) -> None:
    """A caller of one gets no more by it than by reading the tables."""
    definers = database.execute(
        "select p.proname, p.prorettype::regtype::text, "
        "has_function_privilege('authenticated', p.oid, 'execute') from pg_proc p "
        "where pronamespace = 'tensorage'::regnamespace and prosecdef"
    ).fetchall()
    # These tell policies what no policy may read: whether the caller's account is there, what others share with it, and
    # whether there is room for an object. Each answers for the caller alone. A trigger is called by nobody.
    granted = {name for name, _, is_granted in definers if is_granted}
    assert granted == _CALLED - {
        "elements",
        "is_plain_name",
        "is_ragged",
        "itemsize",
        "ragged_unit",
        "record_size",
        "tag",
    }
    assert {name for name, returns, _ in definers if returns != "trigger"} - granted == {"recount"}


def test_no_relation_is_granted_to_others_than_thought(database: Connection) -> None:
    rows = database.execute(
        f"""
        select c.relname, a.privilege_type
        from (select * {_RELATIONS}) c, aclexplode(c.relacl) a
        where a.grantee not in ('postgres'::regrole, 'service_role'::regrole)
        """
    ).fetchall()
    assert set(rows) == _GRANTED
    columns = database.execute(
        f"select attrelid::regclass from pg_attribute where attacl is not null and attrelid in "
        f"(select c.oid {_RELATIONS})"
    ).fetchall()
    assert columns == []


def test_every_table_has_row_level_security(database: Connection) -> None:
    rows = database.execute(f"select c.relname, c.relrowsecurity {_RELATIONS} and c.relkind in ('r', 'p')")
    assert dict(rows.fetchall()) == {
        "datasets": True, "tensors": True, "shards": True, "quotas": True, "settings": True, "operations": True,
        "usage": True, "reservations": True, "stagings": True, "shares": True, "audit": True, "written": True,
    }  # fmt: skip


def test_there_are_no_views(database: Connection) -> None:
    """A view of our tables would read them as its owner, past the policies."""
    views = database.execute(
        """
        select v.oid::regclass from pg_class v
        join pg_rewrite r on r.ev_class = v.oid
        join pg_depend d on d.objid = r.oid and d.classid = 'pg_rewrite'::regclass
        where v.relkind in ('v', 'm') and d.refobjid in (
          'public.datasets'::regclass, 'public.tensors'::regclass, 'public.shards'::regclass)
        """
    ).fetchall()
    assert views == []


def test_policies_let_signed_in_users_read_and_nobody_write(database: Connection) -> None:
    policies = database.execute(
        """
        select tablename, cmd, roles::text[], permissive from pg_policies
        where schemaname = 'tensorage' or (schemaname = 'public' and tablename in ('datasets', 'shards', 'tensors'))
        """
    ).fetchall()
    assert sorted(policies) == [
        ("datasets", "SELECT", ["authenticated"], "PERMISSIVE"),
        ("shards", "SELECT", ["authenticated"], "PERMISSIVE"),
        ("tensors", "SELECT", ["authenticated"], "PERMISSIVE"),
    ]


def test_policies_ask_for_the_user_once_a_statement(database: Connection) -> None:
    rows = database.execute(
        "select qual from pg_policies where schemaname = 'public' and tablename in ('datasets', 'shards', 'tensors')"
    ).fetchall()
    assert len(rows) == 3
    for (expression,) in rows:
        assert expression.count("auth.uid()") == expression.count("SELECT auth.uid() AS uid") == 1


def test_inner_schema_is_closed_to_strangers(database: Connection) -> None:
    rights = database.execute(
        "select has_schema_privilege('anon', 'tensorage', 'usage'), "
        "has_schema_privilege('authenticated', 'tensorage', 'create')"
    ).fetchone()
    assert rights == (False, False)
