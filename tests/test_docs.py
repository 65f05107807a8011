"""What the README and the documentation say: their Python runs, their commands and names exist."""

from __future__ import annotations

import inspect
import os
import re
import shlex
import subprocess
import sys
import uuid
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING

import click
import httpx
import psycopg
import pytest
from run_page import blocks

import tensorage
from tensorage import cli, errors
from tensorage.embedded.lifetime import ENDS_WITH_VARIABLE

if TYPE_CHECKING:
    from tensorage.embedded.control import Running

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PAGES_WITH_PYTHON = [page for page in PAGES if blocks(page, "python", "pycon")]


def page_name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.fixture
def reader(backend: Running, tmp_path: Path) -> dict[str, str]:
    """The environment of somebody who has an account, a running embedded backend and an empty home."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("SUPABASE", "USER_", "TENSORAGE"))}
    email, password = f"{uuid.uuid4()}@example.com", str(uuid.uuid4())
    httpx.post(
        f"{backend.api_url}/auth/v1/signup",
        headers={"apikey": backend.anon_key},
        json={"email": email, "password": password},
    ).raise_for_status()
    return {
        **kept,
        "HOME": str(tmp_path),
        "XDG_CONFIG_HOME": str(tmp_path / "config"),
        "XDG_DATA_HOME": str(tmp_path / "data"),
        "TENSORAGE_DATA_DIR": str(backend.data_dir),
        ENDS_WITH_VARIABLE: os.environ[ENDS_WITH_VARIABLE],
        "SUPABASE_URL": backend.api_url,
        "SUPABASE_KEY": backend.anon_key,
        "USER_EMAIL": email,
        "USER_PASSWORD": password,
    }


@pytest.mark.parametrize("page", PAGES_WITH_PYTHON, ids=page_name)
def test_the_python_of_a_page_runs_and_can_run_again(
    page: Path, reader: dict[str, str], tmp_path: Path
) -> None:
    command = [sys.executable, "-W", "error", Path(__file__).with_name("run_page.py"), page]
    for _ in range(2):
        done = subprocess.run(
            command, cwd=tmp_path, env=reader, capture_output=True, text=True, check=False, timeout=120
        )
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "sql", "postgresql")], ids=page_name)
def test_the_sql_of_a_page_runs_as_the_owner_of_a_project(page: Path, backend: Running) -> None:
    with psycopg.connect(backend.db_url) as connection:
        for block in blocks(page, "sql", "postgresql"):
            connection.execute(block.content.encode())
        connection.rollback()


def commands(page: Path) -> list[list[str]]:
    """Every line of shell on a page, as words, without what follows a comment, a pipe or a redirection."""
    shell = [line for block in blocks(page, "bash") for line in block.content.splitlines()]
    lines = [shlex.split(line, comments=True) for line in shell]
    return [list(takewhile(lambda word: word not in {"|", ">"}, words)) for words in lines if words]


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_every_command_on_a_page_exists(page: Path) -> None:
    targets = set(re.findall(r"^([a-z][\w-]*):", (ROOT / "Makefile").read_text(), re.M))
    for words in commands(page):
        if words[0] == "make":
            assert {word for word in words[1:] if "=" not in word} <= targets, words
        if words[0] == "tensorage":
            assert_click_accepts(words[1:])


def assert_click_accepts(words: list[str]) -> None:
    """The words name a command and its options: parsed as the program would, and not carried out."""
    command: click.Command = cli.main
    context = click.Context(command, info_name="tensorage")
    while isinstance(command, click.Group):
        name, command, words = command.resolve_command(context, words)
        assert command is not None, name
        context = click.Context(command, info_name=name, parent=context)
    command.parse_args(context, words)


def test_the_first_screen_of_the_readme() -> None:
    first_screen = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()[:45]
    assert {"make demo", "make test"} <= {line.split("#")[0].strip() for line in first_screen}
    assert "```python" in first_screen


def test_ci_runs_the_commands_of_the_readme() -> None:
    script = (ROOT / ".ci" / "run").read_text()
    for words in commands(ROOT / "README.md"):
        if words[0] == "make" and words[1] in {"demo", "test", "check"}:
            assert re.search(rf"^{' '.join(words)}$", script, re.M), words


def test_every_public_name_is_documented() -> None:
    written = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    missing = [name for name in tensorage.__all__ if not re.search(rf"\b{name}\b", written)]
    assert not missing


def test_every_error_has_its_place_in_troubleshooting() -> None:
    page = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    classes = [c for c in vars(errors).values() if inspect.isclass(c) and issubclass(c, Exception)]
    assert errors.TensorageError in classes
    missing = [c.__name__ for c in classes if f"| `{c.__name__}`" not in page]
    assert not missing


def test_the_demonstration_trains_and_can_run_again(backend: Running, tmp_path: Path) -> None:
    command = [sys.executable, "-W", "error", ROOT / "examples" / "train_digits.py", backend.data_dir]
    for _ in range(2):
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        held_out = re.findall(r"held-out images (0\.\d+)$", done.stdout, re.M)
        (again,) = re.findall(r"second session: accuracy (0\.\d+)$", done.stdout, re.M)
        assert float(held_out[-1]) > 0.9
        assert again == held_out[-1]
