"""A client that sends just any bytes, and a server with limits that a test can reach in a moment."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import psutil
import uvicorn

from tensorage.backend.wire.http import tls_context
from tensorage.embedded import control
from tensorage.embedded.connections import Limits, make_connection_class
from tensorage.embedded.folder import DataFolder
from tensorage.embedded.gateway import Settings, build_app

PATIENCE_S = 30.0
MIB = 1024 * 1024


@dataclass(frozen=True)
class Answer:
    """An answer as it came: status, headers in lower case, body."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Raw:
    """One connection."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S)
        self._file = self.socket.makefile("rb")

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def send_what_is_taken(self, data: bytes) -> None:
        """Send until the server hangs up, if it does."""
        with contextlib.suppress(ConnectionError):
            self.socket.sendall(data)

    def answer(self) -> Answer:
        line = self._file.readline()
        assert line.startswith(b"HTTP/1.1 "), line
        headers = {}
        while (field := self._file.readline().strip()) != b"":
            name, _, value = field.decode("latin-1").partition(":")
            headers[name.lower()] = value.strip()
        return Answer(int(line.split()[1]), headers, self._file.read(int(headers.get("content-length", "0"))))

    def answers(self) -> int:
        """Wait for the end, and return the number of whole answers before it."""
        number = 0
        with contextlib.suppress(ConnectionError, AssertionError):
            while True:
                self.answer()
                number += 1
        return number

    def is_closed(self) -> bool:
        """Wait for the end; False if something else comes."""
        try:
            return self._file.read(1) == b""
        except ConnectionError:
            return True

    def close(self) -> None:
        self._file.close()
        self.socket.close()


@contextlib.contextmanager
def connected(port: int) -> Iterator[Raw]:
    raw = Raw(port)
    try:
        yield raw
    finally:
        raw.close()


def port_of(running: control.Running) -> int:
    port = urlsplit(running.api_url).port
    assert port is not None
    return port


def head(method: str, path: str, **headers: object) -> bytes:
    """Write a request's head."""
    fields = {"Host": "127.0.0.1", **{name.replace("_", "-"): value for name, value in headers.items()}}
    text = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return f"{method} {path} HTTP/1.1\r\n{text}\r\n".encode("latin-1")


@contextlib.contextmanager
def serving(running: control.Running, storage_dir: Path, limits: Limits) -> Iterator[int]:
    """Serve the database of a running backend once more, with other limits, and return the port."""
    secrets = DataFolder.open(running.data_dir).read_secrets()
    postgres = urlsplit(running.db_url).port
    assert postgres is not None
    app = build_app(
        Settings(
            rest_dsn=secrets.database_url("authenticator", postgres) + "?sslmode=disable",
            auth_dsn=secrets.database_url("supabase_auth_admin", postgres) + "?sslmode=disable",
            storage_dir=storage_dir,
            jwt_secret=secrets.jwt_secret,
            anon_key=secrets.anon_key,
            service_role_key=secrets.service_role_key,
        )
    )
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(
            uvicorn.Config(
                app,
                http=make_connection_class(limits),
                ws="none",
                lifespan="on",
                log_config=None,
                access_log=False,
                timeout_graceful_shutdown=1,
            )
        )
        started = threading.Event()

        async def serve() -> None:
            await server.startup([listener])
            started.set()
            await server.main_loop()
            await server.shutdown([listener])

        def run() -> None:
            server.config.load()
            server.lifespan = server.config.lifespan_class(server.config)
            asyncio.run(serve())

        thread = threading.Thread(target=run)
        thread.start()
        try:
            assert started.wait(PATIENCE_S)
            yield listener.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join(PATIENCE_S)


@contextlib.contextmanager
def growing_at_most(running: control.Running, nbytes: int) -> Iterator[None]:
    """Check that the server does not take more memory."""
    server = psutil.Process(running.pid)
    before = server.memory_info().rss
    yield
    grown = server.memory_info().rss - before
    assert grown < nbytes, f"{grown / MIB:.0f} MiB"


def is_served(running: control.Running) -> bool:
    return httpx.get(f"{running.api_url}/health", verify=tls_context(running.api_url)).status_code == 200
