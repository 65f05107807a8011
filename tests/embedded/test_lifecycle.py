"""The life of an embedded backend: starts, joins, crashes, stops. Real processes, real signals."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import psycopg
import pytest
import servers

from tensorage.embedded import control
from tensorage.embedded.folder import DataFolder, FolderError, ServerState
from tensorage.embedded.postgres import has_ended

PATIENCE_S = 60.0


@pytest.fixture
def new_dir(tmp_path: Path) -> Iterator[Path]:
    """A data folder that is not there yet, and whose server does not outlive the test."""
    path = tmp_path / "data"
    yield path
    control.stop(path)


@pytest.fixture
def data_dir(new_dir: Path) -> Path:
    """The folder as a server that has been stopped leaves it."""
    return servers.make(new_dir)


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.005)


def python(code: str, *arguments: object, **options: object) -> subprocess.Popen[str]:
    """A process of its own that runs the code, its output for us to read."""
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options,
    )  # fmt: skip


def postmaster(running: control.Running) -> psutil.Process:
    return psutil.Process(int((running.data_dir / "postgres" / "postmaster.pid").read_text().split()[0]))


def execute(running: control.Running, sql: str) -> None:
    with psycopg.connect(running.db_url, autocommit=True) as connection:
        connection.execute(sql)


def fetch(running: control.Running, sql: str) -> list[tuple[object, ...]]:
    with psycopg.connect(running.db_url, autocommit=True) as connection:
        return connection.execute(sql).fetchall()


def remember(running: control.Running) -> None:
    execute(running, "create table public.kept (n int); insert into public.kept values (41), (42)")


def assert_kept(running: control.Running) -> None:
    assert fetch(running, "select n from public.kept order by n") == [(41,), (42,)]


def get(running: control.Running, path: str = "/rest/v1/datasets?limit=0") -> int:
    """Status of a request that PostgreSQL takes part in, 0 where nobody answers."""
    connection = http.client.HTTPConnection(running.api_url.removeprefix("http://"), timeout=PATIENCE_S)
    try:
        connection.request("GET", path, headers={"apikey": running.service_role_key})
        answer = connection.getresponse()
        answer.read()
    except (OSError, http.client.HTTPException):
        return 0
    finally:
        connection.close()
    return answer.status


START = """
    import sys
    from tensorage.embedded import control
    print(control.start(sys.argv[1]).pid, flush=True)
"""


# Starting and joining


def test_processes_that_start_at_once_share_one_server(new_dir: Path) -> None:
    starters = [python(START, new_dir) for _ in range(3)]
    outputs = [starter.communicate()[0].strip() for starter in starters]
    running = control.status(new_dir)
    assert running is not None
    assert outputs == [str(running.pid)] * 3


def test_who_comes_later_joins(data_dir: Path) -> None:
    first = servers.start(data_dir)
    assert control.start(data_dir) == first == control.status(data_dir)


def test_joining_with_other_wishes_is_refused(data_dir: Path) -> None:
    running = servers.start(data_dir, jwt_lifetime_s=77)
    assert running.jwt_lifetime_s == 77
    with pytest.raises(control.StartError, match="tokens of 77 s, not of 60 s"):
        control.start(data_dir, jwt_lifetime_s=60)
    with pytest.raises(control.StartError, match="not on 1:"):
        control.start(data_dir, port=1)
    assert control.start(data_dir).pid == running.pid


def test_server_survives_the_death_of_its_starter(data_dir: Path) -> None:
    code = START + "\n    input()"
    starter = python(code, data_dir, stdin=subprocess.PIPE, start_new_session=True)
    assert starter.stdout is not None
    pid = int(starter.stdout.readline())
    # A terminal that closes ends the starter and all of its process group.
    os.killpg(starter.pid, signal.SIGKILL)
    starter.communicate()
    running = control.status(data_dir)
    assert running is not None
    assert running.pid == pid
    assert fetch(running, "select 1") == [(1,)]


def test_starter_killed_half_way_leaves_a_start_to_be_joined(new_dir: Path) -> None:
    starter = python(START, new_dir)
    until((new_dir / "server.json").exists)
    starter.kill()
    starter.communicate()
    begun = json.loads((new_dir / "server.json").read_text())
    running = control.start(new_dir)
    assert running.pid == begun["pid"]


def test_folders_side_by_side_share_nothing(new_dir: Path, tmp_path: Path) -> None:
    one, other = control.start(new_dir), control.start(tmp_path / "other")
    try:
        for name, value in one.as_dict().items():
            assert other.as_dict()[name] != value, name
        assert one.password != other.password
        remember(one)
        assert fetch(other, "select to_regclass('public.kept')") == [(None,)]
        assert control.stop(other.data_dir)
        assert_kept(one)
    finally:
        control.stop(other.data_dir)


def test_any_path_will_do(tmp_path: Path) -> None:
    path = tmp_path / f"a 'quoted' \"path\" with $HOME, ünï©ödé 数据 and {'length ' * 15}"
    running = control.start(path)
    try:
        assert running.data_dir == path
        assert fetch(running, "select 1") == [(1,)]
    finally:
        assert control.stop(path)


def test_modules_in_the_current_folder_are_not_loaded(data_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "uvicorn.py").write_text("raise RuntimeError('the wrong module')")
    starter = python(START, data_dir, cwd=tmp_path)
    assert starter.communicate()[0].strip().isdigit()


# Ports


def test_port_in_use_is_an_error_that_names_it(data_dir: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(control.StartError, match=f"port {port} on 127.0.0.1 is in use"):
            control.start(data_dir, port=port)
    assert control.status(data_dir) is None
    assert servers.start(data_dir, port=port).api_url == f"http://127.0.0.1:{port}"


def test_ports_stay_where_they_are_free(data_dir: Path) -> None:
    first = servers.start(data_dir)
    control.stop(data_dir)
    second = servers.start(data_dir)
    assert (second.api_url, second.db_url) == (first.api_url, first.db_url)
    control.stop(data_dir)
    taken = [int(url.rpartition(":")[2].removesuffix("/postgres")) for url in (first.api_url, first.db_url)]
    with socket.create_server(("127.0.0.1", taken[0])), socket.create_server(("127.0.0.1", taken[1])):
        third = servers.start(data_dir)
        assert third.api_url != first.api_url
        assert third.db_url != first.db_url
        assert fetch(third, "select 1") == [(1,)]


def test_listens_on_the_loopback_address_only(backend: control.Running) -> None:
    server = psutil.Process(backend.pid)
    processes = [server, *server.children(recursive=True)]
    connections = []
    for process in processes:
        # PostgreSQL's processes come and go; those that listen stay.
        with contextlib.suppress(psutil.NoSuchProcess):
            connections += process.net_connections("all")
    listening = [connection.laddr for connection in connections if connection.status == psutil.CONN_LISTEN]
    assert {address.ip for address in listening} == {"127.0.0.1"}
    assert len({address.port for address in listening}) == 2


# Crashes


def test_killed_server_comes_back_with_its_data(data_dir: Path) -> None:
    killed = servers.start(data_dir)
    remember(killed)
    psutil.Process(killed.pid).kill()
    until(lambda: control.status(data_dir) is None)
    running = control.start(data_dir)
    assert running.pid != killed.pid
    assert_kept(running)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process of its parent's death")
def test_postgres_ends_when_its_server_is_killed(data_dir: Path) -> None:
    running = servers.start(data_dir)
    database = postmaster(running)
    psutil.Process(running.pid).kill()
    until(lambda: has_ended(database))


def test_killed_postgres_is_started_again(data_dir: Path) -> None:
    running = servers.start(data_dir)
    remember(running)
    killed = postmaster(running)
    killed.kill()
    until(lambda: has_ended(killed))
    until(lambda: get(running) == 200)
    assert_kept(running)
    assert control.status(data_dir) == running


def test_server_ends_when_postgres_cannot_be_started(data_dir: Path) -> None:
    running = servers.start(data_dir)
    server = psutil.Process(running.pid)
    control_file = data_dir / "postgres" / "global" / "pg_control"
    control_file.rename(control_file.with_suffix(".away"))
    postmaster(running).kill()
    until(lambda: has_ended(server))
    assert control.status(data_dir) is None
    # A running server logs to its own log, whose size is bounded; its last words are for both.
    assert "attempt 1" in (data_dir / "server.log").read_text()
    assert "attempt 1" not in (data_dir / "start.log").read_text()
    with pytest.raises(control.StartError, match="pg_control"):
        control.start(data_dir)
    control_file.with_suffix(".away").rename(control_file)
    assert fetch(servers.start(data_dir), "select 1") == [(1,)]


@pytest.mark.parametrize(
    "moment", ["postgres.new/PG_VERSION", "postgres/PG_VERSION", "postgres/postmaster.pid"]
)
def test_killed_while_making_the_database(new_dir: Path, moment: str) -> None:
    starter = python(START, new_dir)
    until((new_dir / moment).exists)
    state = DataFolder(new_dir).read_state()
    assert state is not None
    psutil.Process(state.pid).kill()
    starter.communicate()
    running = servers.start(new_dir)
    assert fetch(running, "select count(*) from pg_roles where rolname in ('anon', 'authenticator')") == [
        (2,)
    ]
    assert not (new_dir / "postgres.new").exists()


def test_stale_state_is_not_believed(data_dir: Path) -> None:
    servers.start(data_dir)
    control.stop(data_dir)
    me = psutil.Process()
    bystander = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        # A pid that now belongs to somebody else, who began at another time.
        for pid in (me.pid, bystander.pid):
            DataFolder(data_dir).write_state(
                ServerState(
                    pid, me.create_time() - 1000, api_port=1, postgres_port=2, jwt_lifetime_s=3, ready=True
                )
            )
            assert control.status(data_dir) is None
            assert not control.stop(data_dir)
            assert bystander.poll() is None
        # The pid in PostgreSQL's own file may be a bystander's, too.
        (data_dir / "postgres" / "postmaster.pid").write_text(f"{bystander.pid}\n{data_dir / 'postgres'}\n")
        assert fetch(servers.start(data_dir), "select 1") == [(1,)]
        assert bystander.poll() is None
    finally:
        bystander.communicate()


# Stopping


def test_stopping_twice(data_dir: Path) -> None:
    running = control.start(data_dir)
    database = postmaster(running)
    assert control.stop(data_dir)
    assert not psutil.pid_exists(running.pid)
    assert has_ended(database)
    assert control.status(data_dir) is None
    assert not control.stop(data_dir)


def test_terminated_under_load(data_dir: Path) -> None:
    running = servers.start(data_dir)
    execute(
        running,
        """create function public.nap() returns text language sql volatile as
           $$ select pg_sleep(0.05); select repeat('z', 100000) $$;
           grant execute on function public.nap() to anon;
           notify pgrst, 'reload schema'""",
    )
    server, database = psutil.Process(running.pid), postmaster(running)
    address, key = running.api_url.removeprefix("http://"), running.anon_key
    answers: list[tuple[int, bytes]] = []

    def ask() -> None:
        with (
            contextlib.suppress(OSError, http.client.HTTPException),
            contextlib.closing(http.client.HTTPConnection(address, timeout=PATIENCE_S)) as connection,
        ):
            while True:
                connection.request(
                    "POST", "/rest/v1/rpc/nap", b"{}", {"apikey": key, "Content-Type": "application/json"}
                )
                answer = connection.getresponse()
                answers.append((answer.status, answer.read()))

    askers = [threading.Thread(target=ask) for _ in range(8)]
    for asker in askers:
        asker.start()
    until(lambda: sum(status == 200 for status, _ in answers) > 20)
    server.terminate()
    for asker in askers:
        asker.join(PATIENCE_S)
    until(lambda: has_ended(server))
    assert has_ended(database)
    assert {body for status, body in answers if status == 200} == {json.dumps("z" * 100000).encode()}
    assert fetch(servers.start(data_dir), "select length(public.nap())") == [(100000,)]


def test_stops_with_idle_and_stuck_connections(data_dir: Path) -> None:
    running = servers.start(data_dir)
    port = int(running.api_url.rpartition(":")[2])
    with (
        socket.create_connection(("127.0.0.1", port)),
        socket.create_connection(("127.0.0.1", port)) as stuck,
        contextlib.closing(psycopg.connect(running.db_url)) as open_transaction,
    ):
        # The request has a key, as it would be answered already without one.
        fields = f"Host: localhost\r\napikey: {running.anon_key}\r\nContent-Length: 1000\r\n\r\n{{"
        stuck.sendall(f"POST /rest/v1/rpc/nap HTTP/1.1\r\n{fields}".encode())
        open_transaction.execute("create table public.never_committed ()")
        assert control.stop(data_dir)
    assert fetch(servers.start(data_dir), "select to_regclass('public.never_committed')") == [(None,)]


def test_ctrl_c_stops_a_server_in_the_foreground(data_dir: Path) -> None:
    server = subprocess.Popen(
        [sys.executable, "-m", "tensorage.embedded", "--data-dir", str(data_dir)],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip
    until(lambda: control.status(data_dir) is not None)
    running = control.status(data_dir)
    assert running is not None
    database = postmaster(running)
    # A terminal sends it to the whole process group.
    os.killpg(server.pid, signal.SIGINT)
    output, _ = server.communicate()
    assert (server.returncode, output) == (0, b"")
    assert has_ended(database)
    assert not (data_dir / "server.json").exists()


def test_signal_during_the_start_ends_it_cleanly(new_dir: Path) -> None:
    server = subprocess.Popen(
        [sys.executable, "-m", "tensorage.embedded", "--data-dir", str(new_dir)],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    until((new_dir / "postgres.new" / "PG_VERSION").exists)
    server.terminate()
    output, _ = server.communicate()
    assert (server.returncode, output) == (0, b"")
    assert fetch(servers.start(new_dir), "select 1") == [(1,)]


def test_reset_removes_everything(data_dir: Path) -> None:
    running = control.start(data_dir)
    assert control.reset(data_dir)
    assert not data_dir.exists()
    assert not psutil.pid_exists(running.pid)
    assert not control.reset(data_dir)
    assert control.start(data_dir).jwt_secret != running.jwt_secret


# The folder


def test_everything_is_the_owners_alone(backend: control.Running) -> None:
    modes = {path: path.stat().st_mode & 0o777 for path in [backend.data_dir, *backend.data_dir.iterdir()]}
    assert modes == {path: 0o700 if path.is_dir() else 0o600 for path in modes}
    assert (backend.data_dir / "secrets.json") in modes


def addresses_of_the_server(running: control.Running) -> list[tuple[object, ...]]:
    """Addresses of the server's own connections to PostgreSQL: none, if by its Unix socket."""
    # Only a superuser is told.
    with psycopg.connect(running.superuser_url, autocommit=True) as connection:
        return connection.execute(
            "select distinct client_addr::text from pg_stat_activity where usename = 'authenticator'"
        ).fetchall()


def test_the_server_reaches_postgresql_by_a_socket_that_is_the_owners_alone(backend: control.Running) -> None:
    assert addresses_of_the_server(backend) == [(None,)]
    cluster = backend.data_dir / "postgres"
    assert [path for path in cluster.iterdir() if path.is_socket()]
    assert cluster.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("name", ["long" * 30, "with,comma"])
def test_where_no_socket_can_be_it_goes_by_tcp(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    try:
        assert addresses_of_the_server(servers.start(path)) == [("127.0.0.1/32",)]
    finally:
        control.stop(path)


def test_no_secret_is_logged_or_shown(backend: control.Running) -> None:
    with contextlib.suppress(psycopg.Error):
        execute(backend, "select 'a mistake with a secret' from nowhere")
    logged = "".join((backend.data_dir / name).read_text() for name in ("server.log", "start.log"))
    assert "ready: http" in logged
    assert "a mistake" not in logged
    secrets = DataFolder(backend.data_dir).read_secrets()
    hidden = [secrets.jwt_secret, secrets.anon_key, secrets.service_role_key, secrets.password]
    server = psutil.Process(backend.pid)
    commands = " ".join(server.cmdline())
    for process in server.children(recursive=True):
        # PostgreSQL's processes come and go.
        with contextlib.suppress(psutil.NoSuchProcess):
            commands += " ".join(process.cmdline())
    assert "postgres" in commands
    for secret in [*hidden, *secrets.database_passwords.values()]:
        assert secret not in logged + repr(backend) + repr(secrets) + commands


def test_folder_of_somebody_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(FolderError, match=r"holds other files \('thesis.tex'"):
        control.start(tmp_path)
    assert not control.reset(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_folder_of_a_newer_release_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tensorage.json").write_text('{"format": 1000}')
    for call in (control.start, control.status, control.stop, control.reset):
        with pytest.raises(FolderError, match=r"newer release .*1000"):
            call(tmp_path)


def test_folder_that_another_version_has_migrated_is_refused(data_dir: Path) -> None:
    """A checkout of before the first release made such a folder. Only a reset removes what is in it."""
    running = servers.start(data_dir)
    execute(
        running,
        "insert into supabase_migrations.schema_migrations (version, name) values ('20261125000000', 'objects')",
    )
    control.stop(data_dir)
    for _ in range(2):
        with pytest.raises(
            control.StartError,
            match=r"does not know \(20261125000000_objects\).*Nothing has been changed.*reset",
        ):
            servers.start(data_dir)
        assert control.status(data_dir) is None
        assert (data_dir / "postgres").is_dir()
    assert control.reset(data_dir)
    assert get(servers.start(data_dir)) == 200


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"format": "1"}', "\x00\xff"])
def test_damaged_folder_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "tensorage.json").write_text(content)
    with pytest.raises(FolderError, match="damaged"):
        control.start(tmp_path)


def test_path_that_cannot_be_a_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "below", Path(os.devnull)):
        with pytest.raises(FolderError, match="cannot be used"):
            control.start(path)


def test_lost_secrets_are_not_made_again(data_dir: Path) -> None:
    servers.start(data_dir)
    control.stop(data_dir)
    (data_dir / "secrets.json").rename(data_dir / "elsewhere.json")
    with pytest.raises(control.StartError, match=r"secrets\.json is gone"):
        control.start(data_dir)
    (data_dir / "elsewhere.json").rename(data_dir / "secrets.json")
    assert fetch(servers.start(data_dir), "select 1") == [(1,)]


def test_environment_names_the_folder(new_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TENSORAGE_DATA_DIR", str(new_dir))
    # Variables that would lead PostgreSQL and its clients elsewhere.
    for name, value in {"PGPORT": "1", "PGDATA": "/nowhere", "PGHOST": "nowhere.invalid"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("USER_PASSWORD", "SECRET")
    running = control.start()
    assert running.data_dir == new_dir
    # Under root, PostgreSQL runs as nobody, and is not to have what is root's.
    inherited = postmaster(running).environ()
    assert "PATH" in inherited
    assert "USER_PASSWORD" not in inherited
    assert control.stop()
