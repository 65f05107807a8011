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
from programs import python
from project import Project, User

from tensorage import BackendSession, TensorStore
from tensorage.background.changes import Change, Settings
from tensorage.background.spool.folder import Identity, SpoolFolder
from tensorage.embedded import control
from tensorage.migrations import migration_files


def tensorage(*arguments: object, stdin: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*python(), "-m", "tensorage.cli", *map(str, arguments)],
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


# Spools --------------------------------------------------------------------------------------------------


def sync(project: Project, user: User, *arguments: object) -> subprocess.CompletedProcess[str]:
    login = {"USER_EMAIL": user.email, "USER_PASSWORD": user.password}
    return tensorage("sync", *arguments, SUPABASE_URL=project.url, SUPABASE_KEY=project.key, **login)


def test_sync_sends_what_is_left(
    project: Project, user: User, session: BackendSession, tmp_path: Path
) -> None:
    store, folder = TensorStore(session, quiet=True), tmp_path / "spool"
    store["taken"] = [1]
    spool = SpoolFolder.open(folder, Identity.of(TensorStore(session).arrays.project), None)
    settings = Settings("database")
    spool.add(Change("storing", "x", settings, [1.0]))
    spool.add(Change("storing", "taken", settings, [2]))
    spool.add(Change("appending to", "taken", settings, [3]))
    spool.add(Change("appending to", "x", settings, [2.0]))

    listed = tensorage("sync", folder, "--dry-run")
    assert listed.returncode == 0, listed.stderr
    assert "1 waiting" in listed.stdout
    assert "storing 'x'" in listed.stdout
    assert listed.stdout.endswith("\n4 left\n")
    said = json.loads(tensorage("sync", folder, "--dry-run", "--json").stdout)
    assert (said["sent"], [left["key"] for left in said["left"]]) == (None, ["x", "taken", "taken", "x"])

    sent = sync(project, user, folder)
    assert sent.returncode == 1
    told = [line for line in sent.stderr.splitlines() if line.startswith("sent ")]
    assert told == ["sent storing 'x'", "sent appending to 'x'"]
    assert "2 failed" in sent.stdout
    assert "KeyExistsError" in sent.stdout
    assert "3 behind" in sent.stdout
    assert sent.stdout.endswith("2 sent, 2 left\n")
    assert store["x"].tolist() == [1, 2]

    dropped = sync(project, user, folder, "--drop", 2, "--json")
    assert dropped.returncode == 0, dropped.stderr
    assert json.loads(dropped.stdout) == {"folder": str(folder), "sent": 1, "left": []}
    assert store["taken"].tolist() == [1, 3]


def test_sync_sends_all_though_nobody_listens(
    project: Project, user: User, session: BackendSession, tmp_path: Path
) -> None:
    store, folder = TensorStore(session, quiet=True), tmp_path / "spool"
    spool = SpoolFolder.open(folder, Identity.of(TensorStore(session).arrays.project), None)
    for number in range(3):
        spool.add(Change("appending to", "x", Settings("database"), [number], create=True))
    listener, stderr = os.pipe()
    os.close(listener)
    login = {"SUPABASE_URL": project.url, "SUPABASE_KEY": project.key, "USER_PASSWORD": user.password}
    command = [*python(), "-m", "tensorage.cli", "sync", str(folder)]
    environment = {**os.environ, **login, "USER_EMAIL": user.email}
    sent = subprocess.run(command, stdout=subprocess.PIPE, stderr=stderr, check=False, env=environment)
    os.close(stderr)
    assert sent.stdout == b"3 sent, 0 left\n"
    assert sorted(path.suffix for path in folder.iterdir()) == ["", "", ""]
    assert store["x"].tolist() == [0, 1, 2]


def test_sync_says_what_is_wrong(
    project: Project, user: User, session: BackendSession, tmp_path: Path
) -> None:
    nothing = tensorage("sync", tmp_path)
    assert nothing.returncode == 1
    assert f"SpoolError: there is no spool in {tmp_path}" in nothing.stderr
    assert tensorage("sync", tmp_path, "--dry-run", "--retry").returncode == 2
    folder = tmp_path / "spool"
    mine = Identity.of(TensorStore(session).arrays.project)
    spool = SpoolFolder.open(folder, Identity("http://127.0.0.1:9", mine.user_id), None)
    spool.add(Change("storing", "x", Settings("database"), [1.0]))
    elsewhere = sync(project, user, folder)
    assert elsewhere.returncode == 1
    assert "is of the project http://127.0.0.1:9" in elsewhere.stderr
    assert "entry 7" in sync(project, user, folder, "--moved", "--drop", 7).stderr
    with spool.sending():
        assert f"is being sent by process {os.getpid()}" in sync(project, user, folder).stderr
    assert sync(project, user, folder).returncode == 0
    assert TensorStore(session, quiet=True)["x"].tolist() == [1]
