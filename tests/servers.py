"""Servers on data folders that begin as a copy of one that has been run: making a database anew takes seconds."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import clusters
import psycopg
import pytest
import spawner
from filelock import FileLock
from postgres_versions import bin_dir
from psycopg import sql

from tensorage.embedded import control
from tensorage.embedded.folder import DataFolder, Secrets, write_private

#: Programs of the PostgreSQL that servers of the tests run, if the test names none: `POSTGRES=15` says the version.
PROGRAMS = bin_dir(int(os.environ["POSTGRES"])) if "POSTGRES" in os.environ else None

#: The data folder of this run of the tests that is copied, and that all processes share. None outside of pytest.
_template: Path | None = None


def set_template(path: Path) -> None:
    """Say where the data folder that is copied is to be made, when it is first needed."""
    global _template  # noqa: PLW0603 - the tests that start servers are too many to be handed it
    _template = path


def start(data_dir: Path, **options: Any) -> control.Running:
    """Start the server of a data folder, which is made as a copy where there is none, with all modules loaded."""
    is_new = not data_dir.exists() or not any(data_dir.iterdir())
    programs = options.pop("postgres_bin", None) or PROGRAMS
    if is_new and _template is not None and programs == PROGRAMS:
        make(data_dir)
    with spawner.forking():
        return control.start(data_dir, postgres_bin=programs, **options)


def template_of_run() -> Path:
    """Return the data folder that is copied, which the first who needs it makes."""
    assert _template is not None
    with FileLock(_template.with_suffix(".lock")):
        if not (_template / "made").exists():
            _shorten_logins(control.start(_template, postgres_bin=PROGRAMS))
            control.stop(_template)
            clusters.stop_syncing(DataFolder(_template).postgres_dir)
            (_template / "made").touch()
    return _template


def _shorten_logins(running: control.Running) -> None:
    """Have each password hashed once, and not four thousand times by whoever connects: nobody guesses it."""
    with psycopg.connect(running.superuser_url) as connection:
        if connection.info.server_version < 160_000:
            return  # PostgreSQL 15 has no such setting.
        connection.execute("set scram_iterations = 1")
        for role, password in DataFolder(running.data_dir).read_secrets().database_passwords.items():
            alter = sql.SQL("alter role {} password {}")
            connection.execute(alter.format(sql.Identifier(role), sql.Literal(password)))


def make(data_dir: Path) -> Path:
    """Make a data folder as the first run of a server leaves it: nobody has signed up, nothing is stored.

    Its secrets are its own, but for the passwords of PostgreSQL's roles. Its PostgreSQL does not wait for the disk.
    """
    folder, template = DataFolder.open(data_dir), DataFolder(template_of_run())
    # Owners are copied, too: root's PostgreSQL belongs to another user.
    copied = [template.postgres_dir, template.storage_dir]
    subprocess.run(["cp", "-a", "--", *map(os.fspath, copied), os.fspath(folder.path)], check=True)
    secrets = replace(Secrets.new(), database_passwords=template.read_secrets().database_passwords)
    write_private(folder.path / "secrets.json", json.dumps(asdict(secrets)))
    return folder.path


# For the whole run: threads that start servers at once would undo each other's change.
pytest.MonkeyPatch().setattr(control, "DetachedProcess", spawner.launcher(control.DetachedProcess))
