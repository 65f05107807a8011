"""The backend that is killed, by the ids of its processes, and started again."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import psycopg
import servers
from project import Project

from tensorage.embedded import control
from tensorage.embedded.postgres import has_ended

PATIENCE_S = 60.0
_POLL_S = 0.01

Sql = psycopg.Connection[tuple[Any, ...]]


class Backend:
    """An embedded backend with a data folder of its own.

    Parameters
    ----------
    postgres_bin
        Programs of another PostgreSQL than the installed one.
    """

    def __init__(self, data_dir: Path, postgres_bin: Path | None = None) -> None:
        self._data_dir = data_dir
        self._postgres_bin = postgres_bin
        # A kill and a start exclude each other: whoever revives it finds all of it dead, or none.
        self._lock = threading.Lock()
        self._http = httpx.Client(timeout=PATIENCE_S)
        self.running = self._start()
        #: Servers that have been started.
        self.starts = 1

    @property
    def project(self) -> Project:
        return Project(self.running.api_url, self.running.anon_key)

    @contextlib.contextmanager
    def sql(self) -> Iterator[Sql]:
        """Connect straight to PostgreSQL, past every policy; every statement commits."""
        with psycopg.connect(self.running.superuser_url, autocommit=True) as connection:
            yield connection

    def files(self) -> set[str]:
        """Names of the files that hold the bytes of objects."""
        return self._names("objects")

    def undecided(self) -> set[str]:
        """Names of those of which the server will know when it starts again whether they are an object's."""
        return self._names("pending")

    def kill_postgres(self) -> None:
        """Kill the postmaster and all of its processes at once. The server starts it again."""
        with self._lock:
            _kill(self._postgres_processes())

    def kill_server(self) -> None:
        """Kill the server, which takes PostgreSQL along: that one is told to stop, as if its machine shut down."""
        with self._lock:
            _kill([psutil.Process(self.running.pid)])

    def kill_both(self) -> None:
        """Kill the server and PostgreSQL at once."""
        with self._lock:
            # The server first: it would start PostgreSQL again.
            _kill([psutil.Process(self.running.pid), *self._postgres_processes()])

    def freeze_wal_writer(self) -> None:
        """Stop the process that writes what nobody waits for, until PostgreSQL is killed."""
        for process in self._postgres_processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                if process.cmdline()[0].startswith("postgres: walwriter"):
                    process.send_signal(signal.SIGSTOP)
                    return
        raise AssertionError("this PostgreSQL has no process that is called walwriter")

    def revive(self) -> None:
        """Start what does not run, and return when all of it answers."""
        with self._lock:
            deadline = time.monotonic() + PATIENCE_S
            while not self._answers():
                assert time.monotonic() < deadline, f"the backend of {self._data_dir} does not come back"
                if has_ended_by_pid(self.running.pid):
                    self.running = self._start()
                    self.starts += 1
                time.sleep(_POLL_S)

    def wait_until_idle(self) -> None:
        """Return when PostgreSQL works on nothing that somebody began who is dead by now."""
        query = (
            "select count(*) from pg_stat_activity "
            "where backend_type = 'client backend' and state <> 'idle' and pid <> pg_backend_pid()"
        )
        with self.sql() as database:
            quiet = 0
            deadline = time.monotonic() + PATIENCE_S
            while quiet < 3:
                assert time.monotonic() < deadline, "PostgreSQL does not come to an end"
                is_quiet = database.execute(query).fetchone() == (0,)
                quiet = quiet + 1 if is_quiet else 0
                time.sleep(_POLL_S)

    def activity(self) -> str:
        """Tell of what PostgreSQL does, and waits for."""
        query = (
            "select state, wait_event_type, wait_event, now() - xact_start, pg_blocking_pids(pid), left(query, 80) "
            "from pg_stat_activity where backend_type = 'client backend' and pid <> pg_backend_pid()"
        )
        with self.sql() as database:
            return "; ".join(map(str, database.execute(query).fetchall()))

    def stop(self) -> None:
        self._http.close()
        control.stop(self._data_dir)

    def _start(self) -> control.Running:
        return servers.start(self._data_dir, postgres_bin=self._postgres_bin)

    def _names(self, folder: str) -> set[str]:
        return {path.name for path in (self._data_dir / "storage" / folder).iterdir()}

    def _postgres_processes(self) -> list[psutil.Process]:
        """List the postmaster first, so that it starts no others in place of those that are killed."""
        pid_file = self._data_dir / "postgres" / "postmaster.pid"
        with contextlib.suppress(psutil.NoSuchProcess, FileNotFoundError):
            postmaster = psutil.Process(int(pid_file.read_text().split()[0]))
            return [postmaster, *postmaster.children(recursive=True)]
        return []

    def _answers(self) -> bool:
        """Ask for something that PostgreSQL has to answer, by each of the server's connections to it."""
        headers = {
            "apikey": self.running.service_role_key,
            "Authorization": f"Bearer {self.running.service_role_key}",
        }
        paths = ("/rest/v1/rpc/tensorage_version", "/storage/v1/bucket/tensors")
        for path in paths:
            try:
                answer = self._http.get(self.running.api_url + path, headers=headers)
            except httpx.TransportError:
                return False
            if answer.status_code != 200:
                return False
        return True


def has_ended_by_pid(pid: int) -> bool:
    try:
        return has_ended(psutil.Process(pid))
    except psutil.NoSuchProcess:
        return True


def _kill(processes: list[psutil.Process]) -> None:
    """Kill all of them, and then wait for the end of each."""
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    until(lambda: all(has_ended(process) for process in processes))


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.002)
