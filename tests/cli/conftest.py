"""The command line as its users call it: in this process, or as a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import workers
from click.testing import CliRunner, Result
from project import Project, User

from tensorage import TensorStore
from tensorage.cli import main


@dataclass(frozen=True)
class Terminal:
    """Calls of the command as one user of a project."""

    environment: dict[str, str | None]
    folder: Path
    store: TensorStore = field(repr=False)

    def run(
        self, *arguments: object, status: int = 0, stdin: str | bytes = "", **environment: str | None
    ) -> Result:
        """Call the command here, and check its exit status. An error has one line, and no traceback."""
        settings = {**self.environment, **environment}
        done = CliRunner().invoke(
            main, list(map(str, arguments)), input=stdin, env=settings, catch_exceptions=False
        )
        assert done.exit_code == status, done.output
        assert "Traceback" not in done.output
        return done

    def refusal(self, *arguments: object, status: int = 1, **how: Any) -> str:
        """The line by which a command is refused."""
        done = self.run(*arguments, status=status, **how)
        assert done.stdout == ""
        (line,) = done.stderr.splitlines()
        assert line.startswith("Error: ")
        return line

    def json(self, *arguments: object, **how: Any) -> Any:
        return json.loads(self.run(*arguments, "--json", **how).stdout)

    def process(self, *arguments: object, **options: Any) -> subprocess.Popen[bytes]:
        """Begin the command as a process of its own."""
        settings = {name: value for name, value in self.environment.items() if value is not None}
        return subprocess.Popen(
            [sys.executable, "-m", "tensorage", *map(str, arguments)],
            env={**os.environ, **settings}, cwd=self.folder, stderr=subprocess.PIPE, **options,
        )  # fmt: skip


@pytest.fixture
def terminal(
    project: Project, user: User, session: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Terminal:
    monkeypatch.chdir(tmp_path)
    environment: dict[str, str | None] = {
        "SUPABASE_URL": project.url, "SUPABASE_KEY": project.key, "USER_EMAIL": user.email,
        "USER_PASSWORD": user.password, "NO_COLOR": "1", "FORCE_COLOR": None, "COLUMNS": "80",
        "XDG_CONFIG_HOME": str(tmp_path / "config"),
    }  # fmt: skip
    return Terminal(environment, tmp_path, TensorStore(session, quiet=True, allow_overwrite=True))


@pytest.fixture
def other(project: Project) -> Iterator[TensorStore]:
    """The store of somebody else."""
    with workers.store_of(project, project.register()) as store:
        yield store
