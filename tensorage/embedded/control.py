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
#: A process of the same pid that began at another time is another process.
_SAME_TIME_S = 1.0


class StartError(EmbeddedError):
    """The server did not start. The message is the server's own, where it said why."""


class StopError(EmbeddedError):
    """The server does not stop."""


class BusyError(EmbeddedError):
    """Somebody else is starting or stopping the same server, and does not come to an end."""


@dataclass(frozen=True)
class Running:
    """A running server, and everything that reaches it.

    Parameters
    ----------
    api_url
        What Supabase calls the project's URL.
    anon_key, service_role_key
        The project's API keys.
    db_url
        PostgreSQL as the role ``postgres``, the owner of the project's tables.
    superuser_url
        PostgreSQL as its superuser.
    jwt_secret
        The HS256 key of every token.
    jwt_lifetime_s
        Seconds for which an access token is good.
    email, password
        The folder's default user. Who logs in first signs it up.
    data_dir, pid
        Of the server.
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
        """Give what ``supabase status`` prints, under its names."""
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
    """Start the server of a data folder, or join it where it runs.

    Parameters
    ----------
    data_dir
        The data folder; by default ``TENSORAGE_DATA_DIR``, or one in the user's own data folder.
    port
        Where to serve HTTP; by default the folder's last port, or any.
    timeout_s
        How long to wait until it serves.
    jwt_lifetime_s
        Seconds for which an access token is good; by default as long as hosted Supabase's.
    postgres_bin
        Folder of another PostgreSQL's programs, 15 to 18; by default that of the extra ``local``. A data folder works
        with the major version that made it. A server that already runs keeps its own.
    ends_with
        Process (its pid) with which the server ends, even if that is killed: ``os.getpid()`` for this one. By default
        the one that ``TENSORAGE_ENDS_WITH`` names, or none. A server that already runs ends as its own starter said.

    Returns
    -------
    Running
        The server. It outlives this process, until :func:`stop`, unless `ends_with` says otherwise.

    Raises
    ------
    FolderError
        The folder cannot be used.
    StartError
        The server did not start, or runs with another port or lifetime than asked for.
    LifetimeError
        The process with which it is to end does not run.
    """
    companion = lifetime.companion(ends_with)
    folder = DataFolder.open(data_dir)
    deadline = time.monotonic() + timeout_s
    with _control(folder, timeout_s):
        # Before a server is waited for: a folder whose secrets others could have written is refused at once.
        with contextlib.suppress(FileNotFoundError):
            folder.read_secrets()
        process: subprocess.Popen[bytes] | None = None
        while time.monotonic() < deadline:
            state = _live_state(folder)
            if state is not None and state.ready and _is_healthy(state):
                if process is not None and process.pid != state.pid:
                    # Another server was on its way, unseen: ours would wait for its place.
                    process.terminate()
                    process.wait()
                running = _running(folder, state)
                _check_as_asked(running, port, jwt_lifetime_s)
                return running
            if process is None and state is None:
                process = _spawn(folder, port, jwt_lifetime_s, postgres_bin, companion)
            elif process is not None and process.poll() is not None and state is None:
                raise StartError(_why_it_ended(folder, process))
            time.sleep(_POLL_S)
    raise StartError(
        f"the server of {folder.path} is not ready after {timeout_s:g} s. It goes on starting: look into "
        f"{folder.log_file}, try again later, or stop it with `tensorage local stop`"
    )


def status(data_dir: str | os.PathLike[str] | None = None) -> Running | None:
    """Tell of the server of a data folder, if it runs and is ready."""
    folder = DataFolder.find(data_dir)
    state = _live_state(folder) if folder else None
    return _running(folder, state) if folder and state and state.ready else None


def stop(data_dir: str | os.PathLike[str] | None = None, *, timeout_s: float = 60.0) -> bool:
    """Stop the server of a data folder, and wait until it and its PostgreSQL have ended.

    Returns
    -------
    bool
        False where none ran. What a killed one left behind is stopped all the same.

    Raises
    ------
    PostgresError
        Processes that a killed server left cannot be stopped.
    StopError
        It still runs after `timeout_s` seconds.
    """
    folder = DataFolder.find(data_dir)
    if folder is None:
        return False
    with _control(folder, timeout_s), _held(folder, timeout_s) as stopped:
        return stopped


def reset(data_dir: str | os.PathLike[str] | None = None, *, timeout_s: float = 60.0) -> bool:
    """Stop the server of a data folder and remove the folder, with all that was stored.

    Returns
    -------
    bool
        False where there was no data folder.
    """
    folder = DataFolder.find(data_dir)
    if folder is None:
        return False
    with _control(folder, timeout_s), _held(folder, timeout_s):
        folder.remove()
    return True


@contextmanager
def _held(folder: DataFolder, timeout_s: float) -> Iterator[bool]:
    """Keep the folder from every server, while nothing of one runs. Yields whether one had to be stopped."""
    lock, deadline, stopped = folder.server_lock(), time.monotonic() + timeout_s, False
    while True:
        stopped |= _stop(folder, timeout_s)
        try:
            lock.acquire(timeout=_LOCK_POLL_S)
        except Timeout as error:
            # Threads of a killed server outlive its pid for a moment; one that starts will soon say where it is.
            if time.monotonic() > deadline:
                raise StopError(f"a server still holds {folder.path} after {timeout_s:g} s") from error
        else:
            break
    try:
        # A killed server may have left some of it.
        stop_leftovers(folder.postgres_dir, starts_again=False)
        yield stopped
    finally:
        lock.release()


class _Detached(subprocess.Popen[bytes]):
    """A process that is meant to outlive the object, and this process."""

    def __del__(self) -> None:
        """Do not warn that it still runs."""


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
    descriptor = os.open(folder.start_log_file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as start_log:
        return _Detached(
            command,
            stdin=subprocess.DEVNULL,
            stdout=start_log,
            stderr=start_log,
            cwd=folder.path,
            # Ctrl-C in the starter's terminal, or its end, is not the server's.
            start_new_session=True,
        )


def _stop(folder: DataFolder, timeout_s: float) -> bool:
    state = _live_state(folder)
    if state is None:
        return False
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
        _take_note_of_end(process)
    return True


def _live_state(folder: DataFolder) -> ServerState | None:
    """Read what the folder's server says of itself, if that server is alive."""
    state = folder.read_state()
    if state is None:
        return None
    try:
        process = psutil.Process(state.pid)
        same = abs(process.create_time() - state.create_time) < _SAME_TIME_S
    except psutil.NoSuchProcess:
        return None
    if has_ended(process):
        _take_note_of_end(process)
        return None
    return state if same else None


def _take_note_of_end(process: psutil.Process) -> None:
    """Let go of a process that has ended: if it was a child of ours, nobody else will."""
    with contextlib.suppress(psutil.TimeoutExpired):
        process.wait(timeout=0)


def _is_healthy(state: ServerState) -> bool:
    """Whether the server answers, and its PostgreSQL does: that one may have died, and be on its way back."""
    import http.client

    connection = http.client.HTTPConnection(HOST, state.api_port, timeout=_HEALTH_TIMEOUT_S)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == http.client.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _running(folder: DataFolder, state: ServerState) -> Running:
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


def _check_as_asked(running: Running, port: int | None, jwt_lifetime_s: int | None) -> None:
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


def _why_it_ended(folder: DataFolder, process: subprocess.Popen[bytes]) -> str:
    said = folder.start_log_file.read_text("utf-8", errors="replace").strip()
    ended = f"the server of {folder.path} ended with status {process.returncode} before it was ready"
    return said or f"{ended}: see {folder.log_file}"


@contextmanager
def _control(folder: DataFolder, timeout_s: float) -> Iterator[None]:
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
