"""Rights on tables and functions, as the catalogue has them: those that no request over REST could tell apart."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import psycopg

Sql = psycopg.Connection[tuple[Any, ...]]

_ALL: Final = "select insert update delete"

#: Rights of roles on tables. Rights that are not here are nobody's.
ON_TABLES: Final = {
    **{("authenticated", f"public.{table}"): "select" for table in ("datasets", "tensors", "shards")},
    **{("service_role", f"public.{table}"): _ALL for table in ("datasets", "tensors", "shards")},
    **{
        ("service_role", f"tensorage.{table}"): _ALL
        for table in ("shares", "operations", "quotas", "settings")
    },
    **{
        ("service_role", f"tensorage.{table}"): "select"
        for table in ("audit", "usage", "reservations", "stagings", "written")
    },
}

#: Inner functions that policies, columns, checks and indexes call, as whoever asks.
_CALLED_BY_TABLES: Final = frozenset(
    {
        "elements", "itemsize", "record_size", "is_ragged", "ragged_unit", "is_plain_name", "tag",
        "may_write_object", "may_delete_object",
        "is_shared_object", "is_user",
        "may_use", "may_read_rows_of",
    }
)  # fmt: skip

_ROLES: Final = ("anon", "authenticated", "service_role")


def is_executable(role: str, schema: str, function: str) -> bool:
    """Tell whether a role is to execute a function."""
    if role == "anon":
        return False
    if schema == "tensorage":
        return function in _CALLED_BY_TABLES
    return role == "service_role" or function not in ("tensorage_set_quota", "tensorage_quotas")


def wrong_rights(database: Sql) -> Iterator[str]:
    """Tell all rights that differ from those above, and tables without row-level security."""
    yield from _wrong_on_tables(database)
    yield from _wrong_on_functions(database)


def _wrong_on_tables(database: Sql) -> Iterator[str]:
    # One statement for all rights: there are hundreds, and they are looked at for each that is given by mistake.
    tables = database.execute(
        "select n.nspname || '.' || c.relname, c.relrowsecurity, array("
        "select array[r.role, p.privilege] from unnest(%s::text[]) r(role), unnest(%s::text[]) p(privilege) "
        "where has_table_privilege(r.role, c.oid, p.privilege)) from pg_class c "
        "join pg_namespace n on n.oid = c.relnamespace where c.relkind in ('r', 'p', 'v', 'm') "
        "and (n.nspname in ('public', 'tensorage') or c.oid = 'storage.objects'::regclass)",
        [list(_ROLES), _ALL.split()],
    ).fetchall()
    for name, is_secured, given in tables:
        if not is_secured:
            yield f"{name} has no row-level security"
        if name == "storage.objects":
            continue
        for role in _ROLES:
            for right in _ALL.split():
                is_wanted = right in ON_TABLES.get((role, name), "").split()
                if ([role, right] in given) != is_wanted:
                    yield f"{role} {'lacks' if is_wanted else 'has'} {right} on {name}"


def _wrong_on_functions(database: Sql) -> Iterator[str]:
    functions = database.execute(
        "select p.oid, n.nspname, p.proname, r.role, has_function_privilege(r.role, p.oid, 'execute') from pg_proc p "
        "join pg_namespace n on n.oid = p.pronamespace, unnest(%s::text[]) r(role) "
        "where n.nspname in ('public', 'tensorage') and p.prokind = 'f'",
        [list(_ROLES)],
    ).fetchall()
    for _, schema, function, role, may in functions:
        if may != is_executable(role, schema, function):
            yield f"{role} {'may' if may else 'may not'} execute {schema}.{function}"
    for role, is_wanted in (("anon", False), ("authenticated", True), ("service_role", True)):
        row = database.execute("select has_schema_privilege(%s, 'tensorage', 'usage')", [role])
        if row.fetchone() != (is_wanted,):
            yield f"{role}: wrong right on the schema tensorage"
