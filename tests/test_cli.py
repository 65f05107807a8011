"""The ``tensorage`` command, as a process of its own."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import servers

from tensorage.embedded import control
from tensorage.migrations import migration_files


def tensorage(*arguments: object, stdin: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tensorage.cli", *map(str, arguments)],
        input=stdin, capture_output=True, text=True, check=False, env={**os.environ, **environment},
    )  # fmt: skip


@pytest.fixture
def data_dir(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "data"
    control.stop(tmp_path / "data")


def test_start_status_stop_reset(data_dir: Path) -> None:
    started = tensorage("local", "start", "--data-dir", data_dir)
    running = control.status(data_dir)
    assert running is not None
    assert started.returncode == 0, started.stderr
    assert running.api_url in started.stdout
    assert started.stdout.endswith(f"tensorage local status -o env --data-dir {data_dir}\n")
    assert tensorage("local", "start", "--data-dir", data_dir).stdout == started.stdout
    assert tensorage("local", "status", "--data-dir", data_dir).stdout == started.stdout

    stopped = [tensorage("local", "stop", "--data-dir", data_dir).stdout for _ in range(2)]
    assert stopped == ["stopped\n", "it was not running\n"]
    status = tensorage("local", "status", "--data-dir", data_dir)
    assert status.returncode == 1
    assert f"not running: start it with `tensorage local start --data-dir {data_dir}`" in status.stderr

    asked = tensorage("local", "reset", "--data-dir", data_dir, stdin="n\n")
    assert asked.returncode == 1
    assert data_dir.exists()
    assert tensorage("local", "reset", "--data-dir", data_dir, "--yes").stdout == f"removed {data_dir}\n"
    assert not data_dir.exists()
    assert "no data" in tensorage("local", "reset", "--data-dir", data_dir).stdout


def test_formats_of_the_status(backend: control.Running) -> None:
    expected = backend.as_dict()
    assert set(expected) == {
        "API_URL", "ANON_KEY", "SERVICE_ROLE_KEY", "DB_URL", "JWT_SECRET", "DATA_DIR", "PID",
    }  # fmt: skip
    printed = {
        output: tensorage("local", "status", "-o", output, TENSORAGE_DATA_DIR=str(backend.data_dir)).stdout
        for output in ("json", "env", "text")
    }
    assert json.loads(printed["json"]) == expected
    assert dict(word.split("=", 1) for word in shlex.split(printed["env"])) == expected
    for name in ("ANON_KEY", "SERVICE_ROLE_KEY", "DB_URL", "JWT_SECRET"):
        assert expected[name] not in printed["text"]


def test_foreground_ends_with_ctrl_c(data_dir: Path) -> None:
    servers.make(data_dir)
    server = subprocess.Popen(
        [sys.executable, "-m", "tensorage.cli", "local", "start", "--foreground", "--data-dir", data_dir],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip
    while (running := control.status(data_dir)) is None:
        assert server.poll() is None
        time.sleep(0.01)
    assert running.pid == server.pid
    second = tensorage("local", "start", "--foreground", "--data-dir", data_dir)
    assert second.returncode == 1
    assert f"already runs, as process {server.pid}" in second.stderr
    os.killpg(server.pid, signal.SIGINT)
    output, _ = server.communicate()
    assert server.returncode == 0
    assert f"ready: {running.api_url}" in output
    assert "Traceback" not in output


def test_errors_are_messages(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    for command in (["start"], ["start", "--foreground"]):
        refused = tensorage("local", *command, "--data-dir", tmp_path)
        assert refused.returncode == 1
        assert refused.stderr.startswith("Error: ")
        assert "holds other files" in refused.stderr
        assert "Traceback" not in refused.stderr


def test_without_the_extra_it_says_what_to_install(tmp_path: Path) -> None:
    # A module that cannot be found, as where it is not installed.
    code = "import sys; sys.modules['psutil'] = None; from tensorage.cli import main; main()"
    refused = subprocess.run(
        [sys.executable, "-c", code, "local", "start", "--data-dir", str(tmp_path / "data")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert refused.returncode == 1
    assert "pip install 'tensorage[local]>=0.2'" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_migrations() -> None:
    files = migration_files()
    assert tensorage("migrations").stdout.splitlines() == [str(file) for file in files]
    sql = tensorage("migrations", "--sql").stdout
    assert all(file.read_text("utf-8") in sql for file in files)
    # One transaction: psql goes on after an error.
    assert sql.startswith("begin;\n")
    assert sql.endswith("commit;\n")


def first_example(text: str) -> str:
    """Return the line below the heading of the examples. Each example has a line of its own, to be copied."""
    lines = text.splitlines()
    (heading,) = (number for number, line in enumerate(lines) if line.strip() in {"Example:", "Examples:"})
    return lines[heading + 1]


@pytest.mark.parametrize("command", ["start", "stop", "status", "reset"])
def test_every_command_has_help_with_an_example(command: str) -> None:
    assert f"tensorage local {command}" in first_example(tensorage("local", command, "--help").stdout)


@pytest.mark.parametrize("command", ["migrations", "doctor", "quota set", "quota show"])
def test_commands_for_projects_have_help_with_an_example(command: str) -> None:
    assert f"tensorage {command}" in first_example(tensorage(*command.split(), "--help").stdout)


def test_version() -> None:
    from importlib.metadata import version

    assert version("tensorage") in tensorage("--version").stdout
