"""The backend starts again after any death. Real processes, killed by their pid."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import psycopg
import pytest
from postgres_versions import VERSIONS, bin_dir

from tensorage.embedded import control, postgres
from tensorage.embedded.postgres import has_ended

PATIENCE_S = 60.0


@pytest.fixture
def data_dir(tmp_path: Path) -> Iterator[Path]:
    """A data folder that is not there yet, and whose server does not outlive the test."""
    path = tmp_path / "data"
    yield path
    control.stop(path)


@pytest.fixture(scope="module", params=VERSIONS)
def of_version(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Backend]:
    """A backend over each PostgreSQL, for tests to kill."""
    backend = Backend(tmp_path_factory.mktemp("killed") / "data", bin_dir(request.param))
    yield backend
    control.stop(backend.data_dir)


class Backend:
    """A backend that is killed and started again, with a row for each start that succeeded."""

    def __init__(self, data_dir: Path, postgres_bin: Path | None = None) -> None:
        self.data_dir = data_dir
        self._postgres_bin = postgres_bin
        self._rows = 0
        self.running = self.start()
        self._execute("create table public.starts (n int)")

    def start(self) -> control.Running:
        self.running = control.start(self.data_dir, postgres_bin=self._postgres_bin)
        return self.running

    def start_again(self) -> None:
        """Start, find all rows, and write one more."""
        self.start()
        with psycopg.connect(self.running.db_url, autocommit=True) as connection:
            rows = connection.execute("select n from public.starts order by n").fetchall()
            assert rows == [(n,) for n in range(self._rows)]
            connection.execute("insert into public.starts values (%s)", [self._rows])
        self._rows += 1
        assert sockets(self.data_dir) in ({self.socket_name, self.socket_name + ".lock"}, set())

    @property
    def socket_name(self) -> str:
        return f".s.PGSQL.{self.running.db_url.rpartition(':')[2].removesuffix('/postgres')}"

    @property
    def server(self) -> psutil.Process:
        return psutil.Process(self.running.pid)

    @property
    def postmaster(self) -> psutil.Process:
        return psutil.Process(int((self.data_dir / "postgres" / "postmaster.pid").read_text().split()[0]))

    def _execute(self, sql: str) -> None:
        with psycopg.connect(self.running.db_url, autocommit=True) as connection:
            connection.execute(sql)


def sockets(data_dir: Path) -> set[str]:
    return {path.name for path in (data_dir / "postgres").glob(".s.PGSQL.*")}


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.005)


def kill(*processes: psutil.Process) -> None:
    """Kill at once, and wait until the last has ended."""
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    until(lambda: all(has_ended(process) for process in processes))


def everything(backend: Backend) -> list[psutil.Process]:
    return [backend.server, *backend.server.children(recursive=True)]


DEATHS: dict[str, Callable[[Backend], None]] = {
    "server and postmaster": lambda backend: kill(backend.postmaster, backend.server),
    "every process": lambda backend: kill(*everything(backend)),
    "server": lambda backend: kill(backend.server),
}


@pytest.mark.parametrize("death", DEATHS)
def test_starts_again_with_what_was_committed(of_version: Backend, death: str) -> None:
    for _ in range(2):
        DEATHS[death](of_version)
        of_version.start_again()


def test_the_pid_of_a_bystander_is_no_postmaster(data_dir: Path) -> None:
    backend = Backend(data_dir)
    cluster = data_dir / "postgres"
    # Recycled pids of a user whom PostgreSQL may signal: it would take any of them for a postmaster.
    with bystander(cluster) as alive:
        kill(*everything(backend))
        for name in ("postmaster.pid", f"{backend.socket_name}.lock", ".s.PGSQL.1.lock"):
            (cluster / name).write_text(f"{alive.pid}\n{cluster}\n1\n1\n{cluster}\n")
        (cluster / ".s.PGSQL.1").touch()
        backend.start_again()
        assert alive.poll() is None


@contextlib.contextmanager
def bystander(cluster: Path) -> Iterator[subprocess.Popen[bytes]]:
    owner = cluster.stat().st_uid if os.geteuid() == 0 else None
    command = [shutil.which("cat") or "cat"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, user=owner, cwd="/") as process:
        yield process
        process.kill()


def test_a_socket_without_its_pid_file_is_removed_too(data_dir: Path) -> None:
    backend = Backend(data_dir)
    kill(*everything(backend))
    (data_dir / "postgres" / "postmaster.pid").unlink()
    backend.start_again()


def test_a_postmaster_without_its_pid_file_is_stopped(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one whose server was killed before it had written the file."""
    backend = Backend(data_dir)
    orphan, children = backend.postmaster, backend.postmaster.children()
    # Too busy to notice the end of its server, and to hear anything but SIGKILL.
    orphan.suspend()
    kill(backend.server)
    (data_dir / "postgres" / "postmaster.pid").unlink()
    monkeypatch.setattr(postgres, "_IMMEDIATE_SHUTDOWN_S", 0.1)
    postgres.stop_leftovers(data_dir / "postgres")
    assert all(has_ended(process) for process in [orphan, *children])
    backend.start_again()
