"""A project of the tests' own, which they break, and the doctor as its owner would call it."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest
import servers
from click.testing import CliRunner
from fresh_project import apply_migrations
from project import Project, User

from tensorage.cli import main
from tensorage.embedded import control

#: Longest wait for REST to take notice of a change, in seconds.
_PATIENCE_S = 30.0


@dataclass(frozen=True)
class Seen:
    """One run of the command."""

    status: int
    report: dict[str, Any]

    @property
    def findings(self) -> dict[str, list[dict[str, str]]]:
        """Findings by their codes."""
        found: dict[str, list[dict[str, str]]] = {}
        for finding in self.report["findings"]:
            found.setdefault(finding["code"], []).append(finding)
        return found

    def the(self, code: str, about: str) -> dict[str, str]:
        """The only finding of a code and a thing."""
        (finding,) = [found for found in self.findings[code] if found["about"] == about]
        return finding


@dataclass(frozen=True)
class Patient:
    """A project that tests break, with one user."""

    running: control.Running
    user: User

    def environment(self, **other: str | None) -> dict[str, str | None]:
        """The settings of the user, or others. None is one that is not set."""
        settings = {
            "SUPABASE_URL": self.running.api_url,
            "SUPABASE_KEY": self.running.anon_key,
            "USER_EMAIL": self.user.email,
            "USER_PASSWORD": self.user.password,
        }
        return {**settings, **other}

    def examine(self, *options: str, **environment: str | None) -> Seen:
        """Call the command as the user, and check that it tells no secret and has a remedy for everything."""
        settings = self.environment(**environment)
        done = CliRunner().invoke(main, ["doctor", "--json", *options], env=settings, catch_exceptions=False)
        for secret in (self.running.anon_key, self.running.service_role_key, self.user.password):
            assert secret not in done.output
        seen = Seen(done.exit_code, json.loads(done.stdout))
        assert all(all(finding.values()) for finding in seen.report["findings"])
        has_error = any(finding["level"] == "error" for finding in seen.report["findings"])
        assert seen.status == int(has_error)
        assert seen.report["healthy"] is not has_error
        return seen

    def examine_until(self, is_there: Callable[[Seen], bool]) -> Seen:
        """Call the command until REST has taken notice of a change."""
        end = time.monotonic() + _PATIENCE_S
        while not is_there(seen := self.examine()):
            assert time.monotonic() < end, seen
        return seen

    def execute(self, sql: str) -> None:
        """Run SQL as a superuser, for what a project's owner cannot break."""
        with psycopg.connect(self.running.superuser_url, autocommit=True) as connection:
            connection.execute(sql)

    def cure(self, remedy: str, *, as_superuser: bool = False) -> None:
        """Do what a remedy says, as the project's owner: hosted projects have an extension for some of that."""
        sql = re.search(r"[Rr]un in the SQL editor: (.*;)", remedy)
        url = self.running.superuser_url if as_superuser else self.running.db_url
        with psycopg.connect(url, autocommit=True) as connection:
            if "pply the migrations" in remedy or "pply the new migrations" in remedy:
                apply_migrations(connection)
            if sql is not None:
                connection.execute(sql[1])


@pytest.fixture(scope="module")
def patient(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Patient]:
    data_dir: Path = tmp_path_factory.mktemp("patient")
    running = servers.start(data_dir)
    yield Patient(running, Project(running.api_url, running.anon_key).register())
    control.stop(data_dir)
