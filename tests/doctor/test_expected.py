"""The project that the doctor expects is a fresh one, on every version of PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
from clusters import PRISTINE, dsn
from fresh_project import REMEDY, apply_migrations, as_text, parts_of

from tensorage.doctor.expected import EXPECTED_FILE, Expected, load_expected
from tensorage.embedded.postgres import Cluster

#: Grants that projects made before 2026-10-30 give on whatever is made in `public`.
_GRANTS_OF_OLD_PROJECTS = """
alter default privileges in schema public grant all on tables to anon, authenticated, service_role;
alter default privileges in schema public grant all on sequences to anon, authenticated, service_role;
alter default privileges in schema public grant all on functions to anon, authenticated, service_role;
"""


@contextmanager
def project_in(cluster: Cluster, before: str = "") -> Iterator[psycopg.Connection[tuple[Any, ...]]]:
    """A database with the migrations, which were applied after other SQL."""
    with psycopg.connect(dsn(cluster, "postgres"), autocommit=True) as connection:
        connection.execute(f"create database fresh template {PRISTINE}")
    try:
        with psycopg.connect(dsn(cluster, "postgres", "fresh"), autocommit=True) as connection:
            connection.execute(before)
            apply_migrations(connection)
            yield connection
    finally:
        with psycopg.connect(dsn(cluster, "postgres"), autocommit=True) as connection:
            connection.execute("drop database fresh")


def test_what_is_expected_is_a_fresh_project(cluster: Cluster) -> None:
    with project_in(cluster) as connection:
        parts = parts_of(connection)
        bodies = connection.execute(
            """select n.nspname || '.' || p.proname, md5(p.prosrc)
                 from pg_proc p join pg_namespace n on n.oid = p.pronamespace
                where n.nspname = 'tensorage' or (n.nspname = 'public' and starts_with(p.proname, 'tensorage_'))"""
        ).fetchall()
    assert as_text(parts) == EXPECTED_FILE.read_text(), REMEDY
    assert load_expected() == Expected.from_json(parts, dict(bodies))


def test_an_old_project_gives_more_to_the_service_key_alone(cluster: Cluster) -> None:
    """The doctor leaves that out: the key passes by every policy anyway."""
    with project_in(cluster, _GRANTS_OF_OLD_PROJECTS) as connection:
        found, expected = Expected.from_json(parts_of(connection), {}), load_expected()
    assert {role for role, _, _ in found.rights - expected.rights} == {"service_role"}
    assert expected.rights <= found.rights
    assert (found.policies, found.row_security) == (expected.policies, expected.row_security)


def test_quotas_are_set_and_listed(cluster: Cluster) -> None:
    with project_in(cluster) as connection:
        connection.execute("select public.tensorage_set_quota(null, 5, null)")
        ((answer,),) = connection.execute("select public.tensorage_quotas()").fetchall()
    assert answer == {"default_bytes": 5, "default_arrays": None, "users": []}
