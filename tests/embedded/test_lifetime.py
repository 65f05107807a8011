"""Servers that end with another process, however that ends."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import servers

import tensorage
from tensorage.embedded import control
from tensorage.embedded.lifetime import ENDS_WITH_VARIABLE, Companion, LifetimeError
from tensorage.embedded.postgres import has_ended

PATIENCE_S = 60.0

STARTS = """
    import sys, tensorage
    session = tensorage.local(sys.argv[1], keep_running=False)
    session()["x"] = [1, 2]
"""


@pytest.fixture
def new_dir(tmp_path: Path) -> Iterator[Path]:
    """A data folder that is not there yet."""
    path = tmp_path / "data"
    yield path
    control.stop(path)


@pytest.fixture
def data_dir(new_dir: Path) -> Path:
    """The folder as a server that has been stopped leaves it."""
    return servers.make(new_dir)


def until(condition: Callable[[], object], every_s: float = 0.005) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(every_s)


def python(code: str, *arguments: object, **options: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
        stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True, **options,
    )  # fmt: skip


def lines(process: subprocess.Popen[str]) -> Iterator[str]:
    assert process.stdout is not None
    return iter(process.stdout.readline, "")


def processes_below(folder: Path) -> list[psutil.Process]:
    """Servers and processes of PostgreSQL of every data folder below."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if not has_ended(process) and (
                ("tensorage.embedded" in process.cmdline() and str(folder) in " ".join(process.cmdline()))
                or Path(process.cwd()).is_relative_to(folder)
            ):
                found.append(process)
    return found


FORKS = """
    import os, sys, tensorage, time
    tensorage.local(sys.argv[1], keep_running=False)()["x"] = [1, 2]
    child = os.fork()
    if child:
        print(child, flush=True)
    time.sleep(3600)
"""


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_ends_with_its_starter_even_if_children_of_that_live_on(data_dir: Path, end: signal.Signals) -> None:
    """The children inherit every descriptor. Nobody but this test reaps the starter: it is a zombie for a while."""
    starter = python(FORKS, data_dir)
    child = psutil.Process(int(next(lines(starter))))
    try:
        running = control.status(data_dir)
        assert running is not None
        server = psutil.Process(running.pid)
        everything = [server, *server.children(recursive=True)]
        starter.send_signal(end)
        until(lambda: all(has_ended(process) for process in everything))
        assert child.is_running()
        assert not (data_dir / "postgres" / "postmaster.pid").exists(), "it was not stopped but killed"
    finally:
        child.kill()
        starter.communicate()
    again = tensorage.local(data_dir, keep_running=False)
    assert again()["x"].tolist() == [1, 2]
    again.logout()


def test_ends_while_it_starts(new_dir: Path) -> None:
    starter = python(FORKS, new_dir)
    until((new_dir / "postgres.new" / "PG_VERSION").exists)
    starter.kill()
    starter.communicate()
    until(lambda: not processes_below(new_dir))
    assert control.status(new_dir) is None


@pytest.mark.parametrize("options", [[], ["-n", "1"]], ids=["one process", "workers"])
def test_a_run_of_pytest_that_is_killed_leaves_nothing(tmp_path: Path, options: list[str]) -> None:
    """Servers of its fixtures, of its tests, and of programs that its tests run, by the tests' own `conftest.py`."""
    tests = tmp_path / "tests"
    tests.mkdir()
    real = Path(__file__).parents[1]
    (tests / "conftest.py").write_text((real / "conftest.py").read_text())
    (tests / "test_it.py").write_text(
        textwrap.dedent(f"""
        import subprocess, sys, time
        from pathlib import Path
        import pytest, servers, tensorage
        from tensorage.embedded import control

        @pytest.fixture(scope="session", autouse=True)
        def _template():
            servers.set_template(Path({os.fspath(servers.template_of_run())!r}))

        def test_it(backend, tmp_path):
            for name in ("one", "two", "three"):
                servers.make(tmp_path / name)
            control.start(tmp_path / "one")
            tensorage.local(tmp_path / "two").logout()
            start = [sys.executable, "-m", "tensorage.cli", "local", "start", "--data-dir", tmp_path / "three"]
            subprocess.run(start, check=True)
            (tmp_path / "all run").touch()
            time.sleep(3600)
        """)
    )
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", os.devnull]
    path = os.pathsep.join([str(real), *sys.path])
    # This run may be a worker's: the other one is not.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    run = subprocess.Popen(
        [*command, *options, "--rootdir", tests, "--basetemp", tmp_path / "base", tests / "test_it.py"],
        cwd=tests, stdout=subprocess.DEVNULL, env={**environment, "PYTHONPATH": path},
    )  # fmt: skip
    ran = "popen-gw0/*/all run" if options else "*/all run"
    try:
        until(lambda: list((tmp_path / "base").glob(ran)) or run.poll() is not None)
        found = [
            process
            for process in processes_below(tmp_path / "base")
            if "tensorage.embedded" in process.cmdline()
        ]
        assert len(found) == 4
    finally:
        run.kill()
        run.wait()
    # It takes long to look at all processes.
    until(lambda: not processes_below(tmp_path / "base"), every_s=0.1)


def test_a_server_without_a_companion_goes_on(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ENDS_WITH_VARIABLE)
    starter = python("import sys, tensorage; tensorage.local(sys.argv[1]); print(1)", data_dir)
    assert next(lines(starter)) == "1\n"
    starter.kill()
    starter.communicate()
    running = control.status(data_dir)
    assert running is not None
    # A process that joins it leaves its life as it is.
    joined = python(STARTS, data_dir)
    assert joined.wait(PATIENCE_S) == 0
    joined.communicate()
    time.sleep(1)
    assert control.status(data_dir) == running


def test_any_process_will_do(data_dir: Path) -> None:
    with python("input()") as bystander:
        running = servers.start(data_dir, ends_with=bystander.pid)
        bystander.communicate("\n")
    until(lambda: has_ended(psutil.Process(running.pid)) if psutil.pid_exists(running.pid) else True)


def test_another_process_of_the_same_pid_is_not_it(new_dir: Path) -> None:
    me = Companion.of(os.getpid())
    server = [sys.executable, "-m", "tensorage.embedded", "--data-dir", str(new_dir)]
    earlier = [*server, "--ends-with", str(me.pid), "--began-at", str(me.create_time - 60)]
    ended = subprocess.run(earlier, capture_output=True, text=True, check=False, timeout=PATIENCE_S)
    assert ended.returncode == 1
    assert f"the server is to end with process {me.pid}, which does not run" in ended.stderr
    assert not new_dir.exists()


@pytest.mark.parametrize("how", ["argument", "environment"])
def test_a_process_that_has_ended_is_refused(
    new_dir: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    with python("") as ended:
        ended.communicate()
    if how == "environment":
        monkeypatch.setenv(ENDS_WITH_VARIABLE, str(ended.pid))
    with pytest.raises(LifetimeError, match=f"process {ended.pid}, which does not run: name one"):
        control.start(new_dir, ends_with=ended.pid if how == "argument" else None)
    assert not new_dir.exists()


@pytest.mark.parametrize("said", ["me", "-1", "1.5"])
def test_an_environment_that_names_no_process(
    new_dir: Path, monkeypatch: pytest.MonkeyPatch, said: str
) -> None:
    monkeypatch.setenv(ENDS_WITH_VARIABLE, said)
    with pytest.raises(LifetimeError, match=f"{ENDS_WITH_VARIABLE} is '{said}'"):
        control.start(new_dir)
    assert not new_dir.exists()


@pytest.mark.parametrize("pid", [0, -1, 1 << 40])
def test_impossible_pids(new_dir: Path, pid: int) -> None:
    with pytest.raises(LifetimeError, match="does not run"):
        control.start(new_dir, ends_with=pid)
    assert not new_dir.exists()


def test_the_command_line_takes_a_process_too(data_dir: Path) -> None:
    command = [sys.executable, "-m", "tensorage.cli", "local", "start", "--data-dir", str(data_dir)]
    with python("input()") as bystander:
        subprocess.run([*command, "--ends-with", str(bystander.pid)], check=True, stdout=subprocess.DEVNULL)
        (server,) = [p for p in processes_below(data_dir) if "tensorage.embedded" in p.cmdline()]
        foreground = subprocess.run(
            [*command, "--foreground", "--ends-with", str(1 << 40)],
            capture_output=True,
            text=True,
            check=False,
        )
        assert foreground.returncode == 1
        assert "does not run" in foreground.stderr
        bystander.communicate("\n")
    until(lambda: has_ended(server))
