"""Bare PostgreSQL clusters of every major version, with what a hosted project comes with and nothing of ours."""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
from filelock import FileLock
from postgres_versions import bin_dir

from tensorage.embedded.migrate import bootstrap
from tensorage.embedded.postgres import HOST, SUPERUSER, Cluster, free_port

_PASSWORD = "of this test"

#: Database of each cluster to copy: nobody connects to it, so that it stays as it is.
PRISTINE = "pristine"


#: Folder of a run of the tests, for a cluster of each version that all its processes copy. None outside of pytest.
_templates: Path | None = None


def set_templates(folder: Path) -> None:
    """Say where the clusters that are copied are to be made, when they are first needed."""
    global _templates  # noqa: PLW0603 - as for the servers of the tests
    _templates = folder


@contextmanager
def running(version: int, folder: Path) -> Iterator[Cluster]:
    """Run PostgreSQL of a major version in a folder."""
    cluster = Cluster(folder / "data", _PASSWORD, bin_dir=bin_dir(version))
    if _templates is None:
        _make(version, folder)
    else:
        template = _templates / str(version)
        _templates.mkdir(exist_ok=True)
        with FileLock(template.with_suffix(".lock")):
            if not (template / "made").exists():
                template.mkdir()
                _make(version, template)
                (template / "made").touch()
        # Owners are copied, too: root's PostgreSQL belongs to another user.
        subprocess.run(["cp", "-a", "--", os.fspath(template / "data"), os.fspath(folder)], check=True)
    with asyncio.Runner() as runner:
        runner.run(cluster.start(free_port()))
        try:
            with psycopg.connect(dsn(cluster, SUPERUSER)) as connection:
                major = connection.info.server_version // 10000
            assert major == version
            yield cluster
        finally:
            runner.run(cluster.stop())


def _make(version: int, folder: Path) -> None:
    cluster = Cluster(folder / "data", _PASSWORD, bin_dir=bin_dir(version))
    with asyncio.Runner() as runner:
        runner.run(cluster.create())
        stop_syncing(folder / "data")
        runner.run(cluster.start(free_port()))
        try:
            runner.run(bootstrap(dsn(cluster, SUPERUSER), {"postgres": _PASSWORD}))
            # Tests of migrations leave users and default privileges in `postgres`.
            with psycopg.connect(dsn(cluster, SUPERUSER, "template1"), autocommit=True) as connection:
                connection.execute(f"create database {PRISTINE} template postgres is_template true")
        finally:
            runner.run(cluster.stop())


def stop_syncing(data: Path) -> None:
    """Let a cluster leave it to the system when its files get to the disk.

    Tests kill processes, never the system, which keeps what a killed process has written.
    """
    with (data / "postgresql.conf").open("a") as settings:
        settings.write("fsync = off\n")
        # Files of the log are filled with zeros, so that to sync them is cheap: a fifth of the work of many tests.
        settings.write("wal_init_zero = off\n")


def dsn(cluster: Cluster, role: str, database: str = "postgres") -> str:
    """Reach a database of a cluster as one of its roles."""
    password = _PASSWORD.replace(" ", "%20")
    return f"postgresql://{role}:{password}@{HOST}:{cluster.port}/{database}"
