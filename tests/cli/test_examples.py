"""The examples in the help of each command: every one is run as it is printed."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import h5py
import numpy as np
import pytest
import servers
import workers
from click.testing import CliRunner
from programs import python
from project import Project, User

from tensorage import TensorStore
from tensorage.background.changes import Change, Settings
from tensorage.background.spool.folder import Identity, SpoolFolder
from tensorage.cli import main
from tensorage.cli.commands import Command
from tensorage.cli.failures import STATUSES
from tensorage.embedded import control

READER = "reader@lab.org"

#: Somebody who logs in, and the password that is asked for.
MEMBER, PASSWORD = "me@lab.org", "correct horse"


def commands(group: click.Group, *path: str) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Every command of the program, with its name."""
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            yield from commands(command, *path, name)
        else:
            yield (*path, name), command


COMMANDS = list(commands(main))
EXAMPLES = [
    example
    for _, command in COMMANDS
    for example in (command.examples if isinstance(command, Command) else ())
]

#: Examples for a project that nobody has.
ELSEWHERE = [example for example in EXAMPLES if "YOUR-PROJECT-REF" in example and "doctor" in example]
OF_BACKEND = [example for example in EXAMPLES if re.match(r"(eval .*)?tensorage local ", example)]
HERE = [example for example in EXAMPLES if example not in ELSEWHERE + OF_BACKEND]


def help_of(path: tuple[str, ...]) -> str:
    done = CliRunner().invoke(main, [*path, "--help"], prog_name="tensorage", env={"COLUMNS": "80"})
    assert done.exit_code == 0
    return done.stdout


@pytest.mark.parametrize(
    ("path", "command"), COMMANDS, ids=lambda value: " ".join(value) if isinstance(value, tuple) else ""
)
def test_the_help_of_a_command(path: tuple[str, ...], command: click.Command) -> None:
    assert isinstance(command, Command)
    text = help_of(path)
    lines = text.splitlines()
    assert command.examples
    begin = lines.index("Examples:" if len(command.examples) > 1 else "Example:")
    # Neither wrapped nor joined, so that they can be copied.
    assert lines[begin + 1 : begin + 1 + len(command.examples)] == [
        f"  {example}" for example in command.examples
    ]
    assert all(" ".join(("tensorage", *path)) in example for example in command.examples)
    assert "\\b" not in text
    assert "\b" not in text
    words = [parameter for parameter in command.params if isinstance(parameter, click.Option)]
    assert all(parameter.help for parameter in words)


def test_the_help_of_the_program() -> None:
    text = help_of(())
    for path, command in COMMANDS:
        assert re.search(rf"^  {path[0]} +[A-Z]", text, re.M), path
        assert command.help
    for status, words in STATUSES.items():
        assert re.search(rf"^  {status} +{re.escape(words)}$", text, re.M)
    assert max(map(len, text.splitlines())) <= 80


def test_every_command_prints_json() -> None:
    # The embedded backend has an option of its own, and a script for shells is none of data.
    for path, command in COMMANDS:
        if path != ("completion",) and path[0] != "local":
            assert "as_json" in {parameter.name for parameter in command.params}, path


# The examples -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def backend(tmp_path_factory: pytest.TempPathFactory) -> Iterator[control.Running]:
    """A backend apart: examples set quotas of every user, and name an address."""
    yield servers.start(data_dir := tmp_path_factory.mktemp("examples"))
    control.stop(data_dir)


@pytest.fixture(scope="module")
def project(backend: control.Running) -> Project:
    return Project(backend.api_url, backend.anon_key)


@pytest.fixture(scope="module")
def user(project: Project) -> User:
    return project.register()


@pytest.fixture(scope="module", autouse=True)
def _reader(project: Project) -> None:
    """People with the addresses of the examples. One shares an array of the name that they copy."""
    project.register(MEMBER, PASSWORD)
    with workers.store_of(project, project.register(READER)) as store:
        store["era5"] = np.arange(6.0).reshape(2, 3)
        store.share("era5")


@pytest.fixture
def environment(backend: control.Running, user: User, tmp_path: Path) -> dict[str, str]:
    """The shell of somebody whose project and user are configured, and in which `tensorage` is this checkout's."""
    programs = tmp_path / "bin"
    programs.mkdir()
    # psql is not at hand everywhere: it is a program that reads SQL.
    for name, line in (
        ("tensorage", f'exec {shlex.join(python())} -m tensorage "$@"'),
        ("psql", "cat > psql.sql"),
    ):
        (programs / name).write_text(f"#!/bin/sh\n{line}\n")
        (programs / name).chmod(0o755)
    return {
        **os.environ,
        "PATH": f"{programs}:{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join(sys.path),
        "HOME": str(tmp_path),
        "XDG_CONFIG_HOME": str(tmp_path / "config"),
        "XDG_DATA_HOME": str(tmp_path / "data"),
        "TENSORAGE_DATA_DIR": str(backend.data_dir),
        "SUPABASE_URL": backend.api_url,
        "SUPABASE_KEY": backend.anon_key,
        "SUPABASE_SERVICE_ROLE_KEY": backend.service_role_key,
        "USER_EMAIL": user.email,
        "USER_PASSWORD": user.password,
        "DB_URL": "postgresql://",
        "SUPABASE_DB_URL": backend.db_url,
        "LAB_PASSWORD": PASSWORD,
        "FORCE_COLOR": "1",
    }


@pytest.fixture
def world(session: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TensorStore:
    """The arrays and files that the examples name."""
    monkeypatch.chdir(tmp_path)
    store = TensorStore(session, quiet=True)  # type: ignore[arg-type]
    t2m = np.random.default_rng(0).normal(size=(24, 6, 5)).astype("f4")
    with store.transaction() as tx:
        for key in ("exp/run1/loss", "exp/run1/scratch", "exp/run2/weights", "labels"):
            tx[key] = np.arange(10.0)
        tx.write("era5/t2m", t2m, attrs={"units": "K"}, dims=("time", "lat", "lon"))
    store.share("era5/t2m", READER)
    store.share("exp/", READER)
    for name in ("loss", "more", "results/a", "results/sub/b"):
        path = tmp_path / f"{name}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, np.arange(3.0))
    np.savez(tmp_path / "weights.npz", model=np.ones(3), optimizer=np.zeros(2))
    (tmp_path / "table.csv").write_text("1,2\n3,4\n")
    with h5py.File(tmp_path / "run.h5", "w") as file:
        file["model/w"] = np.ones((3, 2))
    spool = SpoolFolder.open(tmp_path / "run" / "spool", Identity.of(store.arrays.project), None)
    for number in range(17):
        spool.add(Change("storing", f"spooled/{number}", Settings("database"), [1.0]))
    return store


@pytest.mark.parametrize("example", HERE)
def test_an_example(example: str, environment: dict[str, str], world: TensorStore) -> None:
    words = shlex.split(example)
    if set(words) & {"|", ">>"}:
        done = subprocess.run(
            ["bash", "-o", "pipefail", "-c", example],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        # A password is configured, and comes before the login that is kept.
        told = "Note: a password is configured" if "tensorage login" in example else ""
        assert (done.returncode, done.stderr[: len(told) or None]) == (0, told), done.stdout
        return
    assert words[0] == "tensorage"
    typed = f"{PASSWORD}\n" if words[1] == "login" else None
    here = CliRunner().invoke(main, words[1:], input=typed, env=environment, catch_exceptions=False)
    assert here.exit_code == 0, here.output
    assert here.stdout or words[1] == "find"
    assert here.stderr == "" or words[1] in {"login", "sync"}


@pytest.mark.parametrize("example", ELSEWHERE)
def test_an_example_for_a_project_that_nobody_has(example: str) -> None:
    words = shlex.split(example)[1:]
    context = click.Context(main)
    name, command, rest = main.resolve_command(context, words)
    assert command is not None
    command.parse_args(click.Context(command, info_name=name, parent=context), rest)


def test_examples_for_the_embedded_backend(environment: dict[str, str], tmp_path: Path) -> None:
    for data_dir in (tmp_path / "own", tmp_path / "data"):
        servers.make(data_dir)
    environment["TENSORAGE_DATA_DIR"] = str(tmp_path / "own")
    order = {"start": 0, "status": 1, "stop": 2, "reset": 3}
    lines = sorted(OF_BACKEND, key=lambda line: order[re.findall(r"tensorage local (\w+)", line)[0]])
    try:
        for line in lines:
            done = subprocess.run(
                ["bash", "-c", line],
                env=environment,
                cwd=tmp_path,
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
            assert done.stdout
    finally:
        for data_dir in (tmp_path / "own", tmp_path / "data"):
            control.stop(data_dir)
    assert not (tmp_path / "data").exists()
