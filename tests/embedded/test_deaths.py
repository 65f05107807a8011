"""The backend starts again after any death. Real processes, killed by their pid."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
import psycopg
import pytest
import servers
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

    def __init__(
        self,
        data_dir: Path,
        postgres_bin: Path | None = None,
        start: Callable[..., control.Running] = servers.start,
    ) -> None:
        self.data_dir = data_dir
        self._postgres_bin = postgres_bin
        self._start = start
        self._rows = 0
        self.running = self.start()
        self._execute("create table public.starts (n int)")

    def start(self) -> control.Running:
        self.running = self._start(self.data_dir, postgres_bin=self._postgres_bin)
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
        return postmaster_of(self.data_dir)

    def _execute(self, sql: str) -> None:
        with psycopg.connect(self.running.db_url, autocommit=True) as connection:
            connection.execute(sql)


def postmaster_of(data_dir: Path) -> psutil.Process:
    return psutil.Process(int((data_dir / "postgres" / "postmaster.pid").read_text().split()[0]))


def sockets(data_dir: Path) -> set[str]:
    return {path.name for path in (data_dir / "postgres").glob(".s.PGSQL.*")}


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.005)


def kill(*processes: psutil.Process) -> None:
    """Kill all at once, so that none does anything on another's death, and wait until the last has ended."""
    for act in (psutil.Process.suspend, psutil.Process.kill):
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                act(process)
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
    DEATHS[death](of_version)
    of_version.start_again()


def test_killed_while_clients_write(of_version: Backend) -> None:
    """Every insert that was acknowledged is there, whatever else is."""
    url = of_version.running.db_url
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("create table if not exists public.written (n int)")
    acknowledged: list[int] = []

    def write(first: int) -> None:
        with (
            contextlib.suppress(psycopg.OperationalError),
            psycopg.connect(url, autocommit=True) as connection,
        ):
            for n in itertools.count(first, 2):
                connection.execute("insert into public.written values (%s)", [n])
                acknowledged.append(n)

    with ThreadPoolExecutor(2) as writers:
        writing = [writers.submit(write, first) for first in (0, 1)]
        until(lambda: len(acknowledged) > 50)
        kill(*everything(of_version))
    for writer in writing:
        writer.result()
    of_version.start_again()
    with psycopg.connect(of_version.running.db_url, autocommit=True) as connection:
        kept = {n for (n,) in connection.execute("select n from public.written")}
        connection.execute("drop table public.written")
    assert set(acknowledged) <= kept


STARTS = "import sys; from tensorage.embedded import control; control.start(sys.argv[1])"


@pytest.mark.parametrize(
    "moment",
    [
        ("secrets.json", "postgres.new/PG_VERSION"),
        ("postgres.new/base/1/PG_VERSION", "postgres/PG_VERSION"),
        ("postgres/postmaster.pid", "postgres/postmaster.pid"),
        ("server.json", "postgres/postmaster.pid"),
    ],
    ids=" then ".join,
)
def test_killed_twice_while_it_starts(data_dir: Path, moment: tuple[str, str]) -> None:
    for name, is_starter_killed in zip(moment, (False, True), strict=True):
        (data_dir / "postgres" / "postmaster.pid").unlink(missing_ok=True)
        with subprocess.Popen([sys.executable, "-c", STARTS, data_dir], stderr=subprocess.DEVNULL) as starter:
            until((data_dir / name).exists)
            started = psutil.Process(starter.pid)
            below = started.children(recursive=True)
            kill(*([started] if is_starter_killed else []), *below)
    backend = Backend(data_dir)
    backend.start_again()
    assert not list(data_dir.glob("postgres.new*"))


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
    """The server was killed before it had written the file."""
    backend = Backend(data_dir)
    orphan, children = backend.postmaster, backend.postmaster.children()
    # Too busy to notice the end of its server, and to hear anything but SIGKILL.
    orphan.suspend()
    kill(backend.server)
    (data_dir / "postgres" / "postmaster.pid").unlink()
    monkeypatch.setattr(postgres, "IMMEDIATE_SHUTDOWN_S", 0.1)
    postgres.stop_leftovers(data_dir / "postgres")
    assert all(has_ended(process) for process in [orphan, *children])
    backend.start_again()


# PostgreSQL alone


def test_who_starts_while_postgresql_is_away_waits_for_it(data_dir: Path) -> None:
    backend = Backend(data_dir)
    server = backend.server
    for _ in range(2):
        kill(backend.postmaster)
        backend.start_again()
    assert backend.server == server


@pytest.mark.parametrize("moment", ["roles", "migrations"])
def test_postgresql_killed_while_its_database_is_prepared(data_dir: Path, moment: str) -> None:
    """The start that is on its way succeeds."""
    said = {"roles": "ready to accept connections", "migrations": "made the roles"}[moment]
    with ThreadPoolExecutor(1) as starter:
        starting = starter.submit(Backend, data_dir, start=control.start)
        until(lambda: said in log_of(data_dir))
        postmaster_of(data_dir).kill()
        backend = starting.result()
    kill(backend.postmaster)
    backend.start_again()


def log_of(data_dir: Path) -> str:
    log = data_dir / "server.log"
    return log.read_text() if log.exists() else ""


@contextlib.contextmanager
def outage(backend: Backend) -> Iterator[None]:
    """PostgreSQL is away: one of its processes does not end, and the server waits some seconds before it kills it."""
    postmaster = backend.postmaster
    stuck = postmaster.children()[0]
    stuck.suspend()
    kill(postmaster)
    yield
    assert not has_ended(stuck), "the outage was over before the requests had been made"
    # By one client: a new one would read all trusted certificates, for each question.
    with httpx.Client(base_url=backend.running.api_url) as http:
        until(lambda: http.get("/health").status_code == 200)


def test_an_outage_is_told_in_the_words_of_each_api(data_dir: Path) -> None:
    backend = Backend(data_dir)
    with httpx.Client(base_url=backend.running.api_url, timeout=PATIENCE_S) as http:
        http.headers.update(
            {
                "apikey": backend.running.anon_key,
                "Authorization": f"Bearer {backend.running.service_role_key}",
            }
        )
        credentials = {"email": "a@example.com", "password": "password-7"}
        session = http.post("/auth/v1/signup", json=credentials).json()
        file = "/storage/v1/object/tensors/somebody/file"
        assert http.post(file, content=b"old").status_code == 200
        files = stored_files(data_dir)
        # The second of each finds a pool whose connections are known to be lost.
        with outage(backend):
            for _ in range(2):
                rest = http.get("/rest/v1/datasets?limit=0")
                assert (rest.status_code, rest.json()["code"][:5]) == (503, "PGRST")
                for answer in (
                    http.post("/auth/v1/token?grant_type=password", json=credentials),
                    http.post(
                        "/auth/v1/token?grant_type=refresh_token",
                        json={"refresh_token": session["refresh_token"]},
                    ),
                    http.post("/auth/v1/signup", json=credentials),
                    http.get("/auth/v1/user", headers={"Authorization": f"Bearer {session['access_token']}"}),
                ):
                    assert answer.status_code == 503, answer.text
                    assert answer.json()["error_code"] == "unexpected_failure"
                for answer in (
                    http.get(file),
                    http.post(file, content=b"new", headers={"x-upsert": "true"}),
                    http.put(file, content=b"new"),
                    http.request(
                        "DELETE", "/storage/v1/object/tensors", json={"prefixes": ["somebody/file"]}
                    ),
                    http.post("/storage/v1/object/list/tensors", json={"prefix": ""}),
                    http.post(
                        "/storage/v1/object/copy",
                        json={
                            "bucketId": "tensors",
                            "sourceKey": "somebody/file",
                            "destinationKey": "somebody/copy",
                        },
                    ),
                    http.post("/storage/v1/object/sign/tensors/somebody/file", json={"expiresIn": 60}),
                    http.get("/storage/v1/bucket"),
                ):
                    assert answer.status_code == 503, (answer.request, answer.text)
                    assert (answer.json()["statusCode"], answer.json()["code"]) == ("503", "DatabaseError")
                assert http.get("/health").status_code == 503
        assert http.get(file).content == b"old"
        # No content of a refused upload is kept.
        assert stored_files(data_dir) == files
        assert http.post("/auth/v1/token?grant_type=password", json=credentials).status_code == 200


def stored_files(data_dir: Path) -> set[Path]:
    return {path for path in (data_dir / "storage").rglob("*") if path.is_file()}


# Leftovers outside the folder


@dataclass(frozen=True)
class SharedMemory:
    """Segments of a running cluster."""

    system_v: str
    posix: frozenset[Path]

    @classmethod
    def of(cls, data_dir: Path) -> SharedMemory:
        system_v = (data_dir / "postgres" / "postmaster.pid").read_text().splitlines()[6].split()[1]
        mapped = set()
        for process in [postmaster_of(data_dir), *postmaster_of(data_dir).children()]:
            with contextlib.suppress(psutil.NoSuchProcess):
                mapped |= {Path(part.path) for part in process.memory_maps()}
        return cls(system_v, frozenset(path for path in mapped if path.parent == Path("/dev/shm")))

    def left(self) -> set[str | Path]:
        listed = Path("/proc/sysvipc/shm").read_text().splitlines()[1:]
        left = {self.system_v} & {line.split()[1] for line in listed}
        return left | {path for path in self.posix if path.exists()}


def sleep_in_parallel(backend: Backend) -> None:
    """A query whose worker needs a segment, which is not one of those that every cluster has."""
    with (
        contextlib.suppress(psycopg.OperationalError),
        psycopg.connect(backend.running.superuser_url, autocommit=True) as connection,
    ):
        name = "debug_parallel_query" if connection.info.server_version >= 160000 else "force_parallel_mode"
        connection.execute(f"set {name} = on")
        connection.execute("select pg_sleep(600)")


@pytest.mark.skipif(sys.platform != "linux", reason="it is looked for in Linux's own files")
@pytest.mark.parametrize("end", [control.start, control.stop])
def test_shared_memory_of_the_killed_does_not_pile_up(
    of_version: Backend, end: Callable[..., object]
) -> None:
    of_version.start_again()
    usual = SharedMemory.of(of_version.data_dir)
    with ThreadPoolExecutor(1) as query:
        query.submit(sleep_in_parallel, of_version)
        until(lambda: len(SharedMemory.of(of_version.data_dir).posix) > len(usual.posix))
        killed = SharedMemory.of(of_version.data_dir)
        kill(*everything(of_version))
    assert killed.left() == {killed.system_v, *killed.posix}
    if end is control.start:
        of_version.start_again()
    else:
        end(of_version.data_dir)
    assert killed.left() == set()
