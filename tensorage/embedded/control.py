"""Start, join, stop and reset the server of a data folder, from any process."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from filelock import Timeout

from tensorage.embedded import lifetime
from tensorage.embedded.folder import DataFolder, EmbeddedError, Secrets, ServerState
from tensorage.embedded.postgres import HOST, SUPERUSER, has_ended, stop_leftovers

_POLL_S = 0.01
_HEALTH_TIMEOUT_S = 10.0
_LOCK_POLL_S = 0.1
#: Pids are used again: a process that began at another time is another one, even with the same pid.
_SAME_TIME_S = 1.0


class StartError(EmbeddedError):
    """The server did not start. The message is the server's own, if it gave one."""


class StopError(EmbeddedError):
    """The server does not stop."""


class BusyError(EmbeddedError):
    """Another process has been starting or stopping the same server for too long."""


@dataclass(frozen=True)
class Running:
    """A running server, with the addresses and keys that reach it.

    Parameters
    ----------
    api_url
        The project's URL, in Supabase's words.
    anon_key, service_role_key
        The project's API keys.
    db_url
        URL of PostgreSQL for the role ``postgres``, the owner of the project's tables.
    superuser_url
        URL of PostgreSQL for its superuser.
    jwt_secret
        The HS256 key of every token.
    jwt_lifetime_s
        Seconds for which an access token is good.
    email, password
        The folder's default user, who is signed up at the first login.
    data_dir, pid
        Data folder and process of the server.
    """

    api_url: str
    data_dir: Path
    pid: int
    email: str
    jwt_lifetime_s: int
    anon_key: str = field(repr=False)
    service_role_key: str = field(repr=False)
    db_url: str = field(repr=False)
    superuser_url: str = field(repr=False)
    jwt_secret: str = field(repr=False)
    password: str = field(repr=False)

    def as_dict(self) -> dict[str, str]:
        """Return the values that ``supabase status`` prints, under the same names."""
        return {
            "API_URL": self.api_url,
            "ANON_KEY": self.anon_key,
            "SERVICE_ROLE_KEY": self.service_role_key,
            "DB_URL": self.db_url,
            "JWT_SECRET": self.jwt_secret,
            "DATA_DIR": str(self.data_dir),
            "PID": str(self.pid),
        }


def start(
    data_dir: str | os.PathLike[str] | None = None,
    *,
    port: int | None = None,
    timeout_s: float = 60.0,
    jwt_lifetime_s: int | None = None,
    postgres_bin: str | os.PathLike[str] | None = None,
    ends_with: int | None = None,
) -> Running:
    """Start the server of a data folder, or join the one that runs.

    Parameters
    ----------
    data_dir
        The data folder; by default ``TENSORAGE_DATA_DIR``, or one in the user's own data folder.
    port
        Port of the API; by default the folder's last port, or any free one.
    timeout_s
        Seconds to wait until the server is ready.
    jwt_lifetime_s
        Seconds for which an access token is good; by default as long as hosted Supabase's.
    postgres_bin
        Folder with the programs of another PostgreSQL, 15 to 18; by default the one of the extra ``local``. A data
        folder works only with the major version that made it. A server that already runs keeps its PostgreSQL.
    ends_with
        Pid of a process with which the server ends, even if that process is killed: ``os.getpid()`` for this one. By
        default the pid in ``TENSORAGE_ENDS_WITH``, or none. A server that already runs keeps the choice of its starter.

    Returns
    -------
    Running
        The server. It outlives this process, until :func:`stop`, unless `ends_with` ends it before.

    Raises
    ------
    FolderError
        The folder cannot be used.
    StartError
        The server did not start, or runs with another port or lifetime than asked for.
    LifetimeError
        The process of `ends_with` does not run.
    """
    companion = lifetime.find_companion(ends_with)
    folder = DataFolder.open(data_dir)
    deadline = time.monotonic() + timeout_s
    # One process at a time: two that start at the same time would both start a server.
    with _hold_control(folder, timeout_s):
        # A folder whose secrets others could have written is refused at once, rather than after a wait for a server.
        with contextlib.suppress(FileNotFoundError):
            folder.read_secrets()
        process: subprocess.Popen[bytes] | None = None
        while time.monotonic() < deadline:
            state = _read_live_state(folder)
            if state is not None and state.ready and _is_healthy(state):
                if process is not None and process.pid != state.pid:
                    # Another process's server was already starting. Ours would only wait for the folder's lock.
                    process.terminate()
                    process.wait()
                running = _describe_server(folder, state)
                _check_options(running, port, jwt_lifetime_s)
                return running
            if process is None and state is None:
                process = _spawn(folder, port, jwt_lifetime_s, postgres_bin, companion)
            elif process is not None and process.poll() is not None and state is None:
                raise StartError(_explain_end(folder, process))
            time.sleep(_POLL_S)
    raise StartError(
        f"the server of {folder.path} is not ready after {timeout_s:g} s. It goes on starting: look into "
        f"{folder.log_file}, try again later, or stop it with `tensorage local stop`"
    )


def status(data_dir: str | os.PathLike[str] | None = None) -> Running | None:
    """Return the server of a data folder, or None if none is ready."""
    folder = DataFolder.find(data_dir)
    state = _read_live_state(folder) if folder else None
    return _describe_server(folder, state) if folder and state and state.ready else None


def stop(data_dir: str | os.PathLike[str] | None = None, *, timeout_s: float = 60.0) -> bool:
    """Stop the server of a data folder, and wait until it and its PostgreSQL have ended.

    Returns
    -------
    bool
        False if no server ran. Processes that a killed server left behind are stopped in any case.

    Raises
    ------
    PostgresError
        Processes of a killed server cannot be stopped.
    StopError
        The server still runs after `timeout_s` seconds.
    """
    folder = DataFolder.find(data_dir)
    if folder is None:
        return False
    with _hold_control(folder, timeout_s), _keep_stopped(folder, timeout_s) as stopped:
        return stopped


def reset(data_dir: str | os.PathLike[str] | None = None, *, timeout_s: float = 60.0) -> bool:
    """Stop the server of a data folder and remove the folder, with all that was stored.

    Returns
    -------
    bool
        False if there was no data folder.
    """
    folder = DataFolder.find(data_dir)
    if folder is None:
        return False
    with _hold_control(folder, timeout_s), _keep_stopped(folder, timeout_s):
        folder.remove()
    return True


@contextmanager
def _keep_stopped(folder: DataFolder, timeout_s: float) -> Iterator[bool]:
    """Stop the folder's server and keep any other from starting. Yields whether one had to be stopped."""
    lock, deadline, stopped = folder.server_lock(), time.monotonic() + timeout_s, False
    while True:
        stopped |= _stop_process(folder, timeout_s)
        try:
            lock.acquire(timeout=_LOCK_POLL_S)
        except Timeout as error:
            # The lock's holder shows no pid: it is either a killed server whose threads take a moment to end, or one
            # that is starting and will soon write its state. Looking again finds out.
            if time.monotonic() > deadline:
                raise StopError(f"a server still holds {folder.path} after {timeout_s:g} s") from error
        else:
            break
    try:
        # A killed server may have left processes of PostgreSQL.
        stop_leftovers(folder.postgres_dir, starts_again=False)
        yield stopped
    finally:
        lock.release()


class DetachedProcess(subprocess.Popen[bytes]):
    """A process that may outlive this object, and the process that started it."""

    def __del__(self) -> None:
        """Skip the warning of `Popen` that the process still runs."""


def _spawn(
    folder: DataFolder,
    port: int | None,
    jwt_lifetime_s: int | None,
    postgres_bin: str | os.PathLike[str] | None,
    companion: lifetime.Companion | None,
) -> subprocess.Popen[bytes]:
    # -P: a module in the current folder must not stand in for one that the server imports.
    command = [sys.executable, "-P", "-m", "tensorage.embedded", "--data-dir", str(folder.path)]
    if port is not None:
        command += ["--port", str(port)]
    if jwt_lifetime_s is not None:
        command += ["--jwt-lifetime", str(jwt_lifetime_s)]
    if postgres_bin is not None:
        command += ["--postgres-bin", os.fspath(Path(postgres_bin).absolute())]
    if companion is not None:
        command += ["--ends-with", str(companion.pid), "--began-at", repr(companion.create_time)]
    # The file is the owner's alone, like all of the folder.
    descriptor = os.open(folder.start_log_file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as start_log:
        return DetachedProcess(
            command,
            stdin=subprocess.DEVNULL,
            stdout=start_log,
            stderr=start_log,
            cwd=folder.path,
            # Keep Ctrl-C in the starter's terminal, and the end of that terminal, away from the server.
            start_new_session=True,
        )


def _stop_process(folder: DataFolder, timeout_s: float) -> bool:
    state = _read_live_state(folder)
    if state is None:
        return False
    # The process may end by itself at any time.
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(state.pid)
        process.terminate()
        deadline = time.monotonic() + timeout_s
        while not has_ended(process):
            if time.monotonic() > deadline:
                raise StopError(
                    f"the server of {folder.path} (process {state.pid}) still runs after {timeout_s:g} s"
                )
            time.sleep(_POLL_S)
        _reap(process)
    return True


def _read_live_state(folder: DataFolder) -> ServerState | None:
    """Return the state of the folder's server, or None if that server does not run."""
    state = folder.read_state()
    if state is None:
        return None
    try:
        process = psutil.Process(state.pid)
        same = abs(process.create_time() - state.create_time) < _SAME_TIME_S
    except psutil.NoSuchProcess:
        return None
    if has_ended(process):
        _reap(process)
        return None
    return state if same else None


def _reap(process: psutil.Process) -> None:
    """Reap a process that has ended. A child of this process would stay a zombie otherwise."""
    with contextlib.suppress(psutil.TimeoutExpired):
        process.wait(timeout=0)


def _is_healthy(state: ServerState) -> bool:
    """Tell whether the server and its PostgreSQL answer. PostgreSQL may have died, and be starting again."""
    # Imported here, so that this module itself is imported fast.
    import http.client

    connection = http.client.HTTPConnection(HOST, state.api_port, timeout=_HEALTH_TIMEOUT_S)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == http.client.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _describe_server(folder: DataFolder, state: ServerState) -> Running:
    secrets: Secrets = folder.read_secrets()
    return Running(
        api_url=f"http://{HOST}:{state.api_port}",
        data_dir=folder.path,
        pid=state.pid,
        email=secrets.email,
        jwt_lifetime_s=state.jwt_lifetime_s,
        anon_key=secrets.anon_key,
        service_role_key=secrets.service_role_key,
        db_url=secrets.database_url("postgres", state.postgres_port),
        superuser_url=secrets.database_url(SUPERUSER, state.postgres_port),
        jwt_secret=secrets.jwt_secret,
        password=secrets.password,
    )


def _check_options(running: Running, port: int | None, jwt_lifetime_s: int | None) -> None:
    # A running server keeps its options, since other processes use it already.
    has_port = int(running.api_url.rpartition(":")[2])
    if port not in {None, 0, has_port}:
        raise StartError(
            f"the server of {running.data_dir} runs on port {has_port}, not on {port}: stop it first, "
            "or ask for no port"
        )
    if jwt_lifetime_s not in {None, running.jwt_lifetime_s}:
        raise StartError(
            f"the server of {running.data_dir} runs with tokens of {running.jwt_lifetime_s} s, not of "
            f"{jwt_lifetime_s} s: stop it first"
        )


def _explain_end(folder: DataFolder, process: subprocess.Popen[bytes]) -> str:
    # The server prints its reason there, since its log may be missing: see `__main__`.
    said = folder.start_log_file.read_text("utf-8", errors="replace").strip()
    ended = f"the server of {folder.path} ended with status {process.returncode} before it was ready"
    return said or f"{ended}: see {folder.log_file}"


@contextmanager
def _hold_control(folder: DataFolder, timeout_s: float) -> Iterator[None]:
    lock = folder.control_lock()
    try:
        lock.acquire(timeout=timeout_s)
    except Timeout as error:
        raise BusyError(
            f"another process has been starting or stopping the server of {folder.path} for {timeout_s:g} s"
        ) from error
    try:
        yield
    finally:
        lock.release()
