"""The project that the doctor expects is a fresh one, on every version of PostgreSQL."""

from __future__ import annotations

import psycopg
from clusters import dsn
from fresh_project import REMEDY, apply_migrations, as_text, parts_of

from tensorage.doctor.expected import EXPECTED_FILE, Expected, load_expected
from tensorage.embedded.postgres import Cluster


def test_what_is_expected_is_a_fresh_project(cluster: Cluster) -> None:
    name = "fresh"
    with psycopg.connect(dsn(cluster, "postgres"), autocommit=True) as connection:
        connection.execute(f"create database {name} template postgres")
    try:
        with psycopg.connect(dsn(cluster, "postgres", name), autocommit=True) as connection:
            apply_migrations(connection)
            parts = parts_of(connection)
            answered = connection.execute(
                """select n.nspname || '.' || p.proname, md5(p.prosrc)
                     from pg_proc p join pg_namespace n on n.oid = p.pronamespace
                    where n.nspname = 'tensorage' or (n.nspname = 'public' and starts_with(p.proname, 'tensorage_'))"""
            ).fetchall()
    finally:
        with psycopg.connect(dsn(cluster, "postgres"), autocommit=True) as connection:
            connection.execute(f"drop database {name}")
    assert as_text(parts) == EXPECTED_FILE.read_text(), REMEDY
    assert load_expected() == Expected.from_json(parts, dict(answered))
