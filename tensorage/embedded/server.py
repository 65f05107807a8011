"""The process that owns a data folder: it runs PostgreSQL and serves HTTP until it is told to stop."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import importlib.util
import logging
import os
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
from filelock import Timeout

from tensorage.embedded import memory
from tensorage.embedded.folder import DataFolder, EmbeddedError, Ports, Secrets, ServerState
from tensorage.embedded.lifetime import Companion, wait_for_end
from tensorage.embedded.postgres import (
    HOST,
    SUPERUSER,
    Cluster,
    PostgresError,
    PostgresKilledError,
    free_port,
)
from tensorage.migrations import migration_files

if TYPE_CHECKING:
    import uvicorn

log = logging.getLogger(__name__)

#: Seconds for which hosted Supabase's access tokens are good.
DEFAULT_JWT_LIFETIME_S = 3600

_LOG_FILE_BYTES = 5_000_000
_LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
#: Seconds to wait for a server that is just ending.
_LOCK_TIMEOUT_S = 30.0
#: Most connections that the system accepts before the server takes them.
_BACKLOG = 2048
#: Seconds for which idle connections are kept. Clients give up earlier: then no request meets a closing connection.
_KEEP_ALIVE_S = 75
#: Seconds for running requests to end, after the server is told to stop.
_GRACE_S = 3
#: Attempts to start PostgreSQL before giving up.
_RESTARTS = 5
_RESTART_PAUSE_S = 0.5


class ServerError(EmbeddedError):
    """The server cannot run."""


@dataclass(frozen=True)
class Options:
    """Options of a server.

    Parameters
    ----------
    data_dir
        The data folder; by default the user's own.
    port
        Port of the API; by default the folder's last port, or any free one.
    jwt_lifetime_s
        Seconds for which an access token is good.
    foreground
        True to log to the terminal, too.
    bin_dir
        Folder with the programs of another PostgreSQL; by default that of the extra ``local``.
    ends_with
        Process with which the server ends, even if that is killed.
    """

    data_dir: str | os.PathLike[str] | None = None
    port: int | None = None
    jwt_lifetime_s: int = DEFAULT_JWT_LIFETIME_S
    foreground: bool = False
    bin_dir: Path | None = None
    ends_with: Companion | None = None


def run(options: Options) -> None:
    """Serve a data folder until SIGTERM or SIGINT.

    Raises
    ------
    EmbeddedError
        The server could not start, or PostgreSQL cannot be restarted.
    """
    memory.keep_memory()
    # Checked before anything is made: a server whose companion has ended is needed by nobody.
    companion = options.ends_with.find_process() if options.ends_with else None
    folder = DataFolder.open(options.data_dir)
    try:
        with (
            folder.server_lock().acquire(timeout=_LOCK_TIMEOUT_S),
            _log_to_folder(folder) as terminal,
            asyncio.Runner(loop_factory=_find_loop_factory()) as runner,
        ):
            runner.run(_Service(folder, options, terminal).run(companion))
    except Timeout as error:
        raise ServerError(f"another server holds the data folder {folder.path}") from error
    except OSError as error:
        raise ServerError(f"the server of {folder.path} failed: {error}") from error


class _Service:
    """One run of the server, from start to stop."""

    def __init__(self, folder: DataFolder, options: Options, terminal: logging.Handler) -> None:
        self._folder = folder
        self._options = options
        self._terminal = terminal
        # The output of a start in the background becomes the message of its error: see `control.start`.
        terminal.setLevel(logging.INFO if options.foreground else logging.ERROR)
        self._secrets = folder.make_secrets()
        self._cluster = Cluster(
            folder.postgres_dir, self._secrets.database_passwords[SUPERUSER], bin_dir=options.bin_dir
        )
        self._http: uvicorn.Server | None = None
        self._task: asyncio.Task[None] | None = None
        self._stopping = False

    async def run(self, companion: psutil.Process | None) -> None:
        loop = asyncio.get_running_loop()
        self._task = asyncio.create_task(self._serve())
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop)
        watch = asyncio.create_task(self._end_with(companion)) if companion else None
        try:
            await self._task
        except asyncio.CancelledError:
            if not self._stopping:
                raise
        finally:
            if watch is not None:
                watch.cancel()
        log.info("stopped")

    async def _end_with(self, companion: psutil.Process) -> None:
        await wait_for_end(companion)
        log.info("process %s has ended, and with it this server", companion.pid)
        self._stop()

    def _stop(self) -> None:
        """Begin to stop. A second call stops without waiting for requests to end."""
        # Removed first, so that no other process joins a server that is about to end.
        self._folder.remove_state()
        if self._http is None and not self._stopping:
            assert self._task is not None
            self._task.cancel()
        elif self._http is not None:
            # uvicorn waits for running requests, unless it is told to exit by force.
            self._http.force_exit = self._http.should_exit
            self._http.should_exit = True
        self._stopping = True

    async def _serve(self) -> None:
        # A server that was killed left its state behind.
        self._folder.remove_state()
        last = self._folder.read_ports()
        with _listen(self._options.port, last.api) as listener:
            me = psutil.Process()
            state = ServerState(
                pid=me.pid,
                create_time=me.create_time(),
                api_port=listener.getsockname()[1],
                postgres_port=0,
                jwt_lifetime_s=self._options.jwt_lifetime_s,
            )
            self._folder.write_state(state)
            # Importing the rest of the server takes as long as starting PostgreSQL: do both at the same time.
            loading = asyncio.create_task(asyncio.to_thread(_load_application))
            try:
                await self._cluster.create()
                await self._start_cluster(last.postgres)
                await loading
                await self._prepare_database_with_restarts()
                await self._serve_http(listener, replace(state, postgres_port=self._cluster.port, ready=True))
            finally:
                self._folder.remove_state()
                await self._cluster.stop()
                # A thread cannot be cancelled, and its error is of no interest any more.
                await asyncio.gather(loading, return_exceptions=True)

    async def _start_cluster(self, last_port: int) -> None:
        port = free_port(last_port)
        for attempt in range(1, _RESTARTS + 1):
            try:
                return await self._cluster.start(port)
            except PostgresError as error:
                # Another program may have taken the port since it was found free, or have killed PostgreSQL.
                another = free_port(port)
                may_pass = another != port or isinstance(error, PostgresKilledError)
                if not may_pass or attempt == _RESTARTS:
                    raise
                log.warning("attempt %s of %s: %s", attempt, _RESTARTS, error)
                port = another
        return None

    async def _prepare_database_with_restarts(self) -> None:
        """Prepare the database, again if PostgreSQL is lost meanwhile: each step is one transaction."""
        from tensorage.embedded.database import is_outage

        for attempt in range(1, _RESTARTS + 1):
            try:
                await self._prepare_database()
            except Exception as error:
                if not is_outage(error) or attempt == _RESTARTS:
                    raise
                log.warning(
                    "PostgreSQL was lost while its database was prepared, starting it again: %s", error
                )
                await self._cluster.stop()
                await self._start_cluster(self._cluster.port)
            else:
                return

    async def _prepare_database(self) -> None:
        from tensorage.embedded.migrate import bootstrap, migrate

        secrets, cluster = self._secrets, self._cluster
        if await bootstrap(_make_dsn(secrets, SUPERUSER, cluster), secrets.database_passwords):
            log.info("made the roles and schemas of a new project")
        for name in await migrate(_make_dsn(secrets, "postgres", cluster), migration_files()):
            log.info("applied %s", name)

    async def _serve_http(self, listener: socket.socket, state: ServerState) -> None:
        def ready() -> None:
            self._folder.write_ports(Ports(api=state.api_port, postgres=state.postgres_port))
            self._folder.write_state(state)
            log.info("ready: http://%s:%s", HOST, state.api_port)
            if not self._options.foreground:
                logging.getLogger().removeHandler(self._terminal)

        self._http = _make_http_server(self._folder.storage_dir, self._secrets, self._cluster, state, ready)
        supervisor = asyncio.create_task(self._supervise())
        # The supervisor ends only if PostgreSQL cannot be started again.
        supervisor.add_done_callback(lambda _: self._stop())
        try:
            # Some versions of uvicorn exit if the application fails to start. The reason is in the log.
            with contextlib.suppress(SystemExit):
                await self._http.serve([listener])
        finally:
            supervisor.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await supervisor
        if not self._http.started:
            raise ServerError(f"the server could not start: see {self._folder.log_file}")

    async def _supervise(self) -> None:
        """Start PostgreSQL again whenever it ends by itself. Never returns; raises after too many failures."""
        while True:
            log.error("PostgreSQL ended by itself (%s): starting it again", await self._cluster.wait())
            for attempt in range(1, _RESTARTS + 1):
                try:
                    await self._cluster.start(self._cluster.port)
                    break
                except PostgresError:
                    log.exception("attempt %s of %s", attempt, _RESTARTS)
                    if attempt == _RESTARTS:
                        raise
                    await asyncio.sleep(_RESTART_PAUSE_S)


@contextmanager
def _log_to_folder(folder: DataFolder) -> Iterator[logging.Handler]:
    """Log to the folder's file and to standard error. Yields the handler of standard error."""
    # Only the owner may read the log and all other files of the folder.
    os.umask(0o077)
    file = RotatingFileHandler(folder.log_file, maxBytes=_LOG_FILE_BYTES, backupCount=1, encoding="utf-8")
    terminal = logging.StreamHandler()
    logging.basicConfig(level=logging.INFO, format=_LOG_FORMAT, handlers=[file, terminal])
    try:
        yield terminal
    finally:
        for handler in (file, terminal):
            logging.getLogger().removeHandler(handler)
            handler.close()


def _load_application() -> None:
    """Import the modules that take long. Later imports find them loaded."""
    for name in ("connections", "gateway", "migrate"):
        importlib.import_module(f"tensorage.embedded.{name}")


def _find_loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    # uvloop is faster, and not available on every system.
    if importlib.util.find_spec("uvloop") is None:
        return None
    import uvloop

    return uvloop.new_event_loop


def _make_dsn(secrets: Secrets, role: str, cluster: Cluster) -> str:
    if cluster.socket_dir is not None:
        return secrets.socket_url(role, cluster.port, cluster.socket_dir)
    # The cluster on 127.0.0.1 has no TLS: asking for it would cost a round trip.
    return secrets.database_url(role, cluster.port) + "?sslmode=disable"


def _listen(port: int | None, last: int) -> socket.socket:
    """Listen on `port`. Without one, listen on the last port if it is free, else on any."""
    for candidate in (last, 0) if port is None else (port,):
        listener = socket.socket()
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((HOST, candidate))
            # Binding is not enough: until one socket listens, another one may bind the same port.
            listener.listen(_BACKLOG)
        except OSError as error:
            listener.close()
            if port is not None:
                reason = (
                    "is in use" if error.errno == errno.EADDRINUSE else f"cannot be had ({error.strerror})"
                )
                raise ServerError(f"port {port} on {HOST} {reason}: choose another one, or none") from error
        else:
            return listener
    raise ServerError(f"no port is free on {HOST}")


def _make_http_server(
    storage_dir: Path, secrets: Secrets, cluster: Cluster, state: ServerState, ready: Callable[[], None]
) -> uvicorn.Server:
    import uvicorn

    from tensorage.embedded.connections import Limits, make_connection_class
    from tensorage.embedded.gateway import Settings, build_app

    class Server(uvicorn.Server):
        """uvicorn's server, which reports when it is ready and leaves signals to `_Service`."""

        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            if self.started:
                ready()

        @contextmanager
        def capture_signals(self) -> Iterator[None]:
            yield

    app = build_app(
        Settings(
            rest_dsn=_make_dsn(secrets, "authenticator", cluster),
            auth_dsn=_make_dsn(secrets, "supabase_auth_admin", cluster),
            storage_dir=storage_dir,
            jwt_secret=secrets.jwt_secret,
            anon_key=secrets.anon_key,
            service_role_key=secrets.service_role_key,
            jwt_lifetime_s=state.jwt_lifetime_s,
        )
    )
    return Server(
        uvicorn.Config(
            app,
            http=make_connection_class(Limits.for_this_process()),
            ws="none",
            lifespan="on",
            log_config=None,
            access_log=False,
            server_header=False,
            # No proxy is in front: clients could claim any address with such headers.
            proxy_headers=False,
            backlog=_BACKLOG,
            timeout_keep_alive=_KEEP_ALIVE_S,
            timeout_graceful_shutdown=_GRACE_S,
        )
    )
