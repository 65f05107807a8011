"""Who has which rights, as PostgreSQL's catalogue says it: also of what no other test knows of."""

from __future__ import annotations

from typing import Any

import psycopg

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

#: What `authenticated` may do with relations. Nothing else is granted to them, to anon or to everybody.
_GRANTED = {("datasets", "SELECT"), ("shards", "SELECT"), ("tensors", "SELECT")}

#: Inner functions which policies call; and what a column of `datasets` is computed with.
_CALLED = {"elements", "folder_of_array", "is_shared_object", "may_delete_object", "may_write_object"}

#: Functions that read, and all that they call.
_READING = {
    "check_answer", "check_pieces", "check_wanted", "gather", "gather_dense", "gather_grid", "of_engine", "readable",
    "tensorage_count", "tensorage_dataset", "tensorage_has_object", "tensorage_list", "tensorage_open",
    "tensorage_read", "tensorage_read_spans", "tensorage_shards",
}  # fmt: skip


def test_definers_set_a_search_path_without_schemas_of_others(database: Connection) -> None:
    definers = database.execute(f"select p.proname, p.proconfig[1] {_FUNCTIONS} and p.prosecdef").fetchall()
    safe = {'search_path=""', "search_path=pg_catalog, pg_temp"}
    assert {name: config for name, config in definers if config not in safe} == {}
    assert {"tensorage_put", "tensorage_read"} <= {name for name, _ in definers}


def test_functions_that_read_look_for_types_in_temporary_schemas_last(database: Connection) -> None:
    """An empty search path has `pg_temp` first for types: a domain of the caller's would run code as the owner."""
    found = database.execute(f"select p.proname, p.proconfig[1] {_FUNCTIONS}").fetchall()
    assert {name for name, path in found if path == "search_path=pg_catalog, pg_temp"} >= _READING


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
    """So that who calls one gets no more by it than by reading the tables."""
    definers = database.execute(
        "select proname from pg_proc where pronamespace = 'tensorage'::regnamespace and prosecdef"
    ).fetchall()
    assert definers == []


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
