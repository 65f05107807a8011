"""Servers that begin with all modules loaded: to load them takes three times as long as all else of a start.

They are forked from a process that has done nothing but to load the modules, which is this file, run as a program.
A test of how a server begins starts one by `control.start`.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from functools import cache
from pathlib import Path
from typing import IO, Any

#: Begin of the commands of servers, after Python itself.
_SERVER = ["-P", "-m", "tensorage.embedded"]

#: The modules of a server that runs: it loads most of them late.
_MODULES = (
    "tensorage.embedded.__main__",
    "tensorage.embedded.connections",
    "tensorage.embedded.gateway",
    "tensorage.embedded.migrate",
    "uvicorn.lifespan.on",
    "uvloop",
)

#: Most bytes of a message: a command and an environment.
_MESSAGE_BYTES = 1 << 17

_is_forking = ContextVar("_is_forking", default=False)


@contextlib.contextmanager
def forking() -> Iterator[None]:
    """Let the servers be forked that this thread starts. Elsewhere than on Linux, forks are not safe for libraries."""
    token = _is_forking.set(sys.platform == "linux")
    try:
        yield
    finally:
        _is_forking.reset(token)


def launcher(spawn: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that forks servers within `forking`, and does as the given one elsewhere."""

    def launch(command: Sequence[str], **options: Any) -> Any:
        if not _is_forking.get():
            return spawn(command, **options)
        assert command[1:4] == _SERVER
        return Forked(command[4:], options["stdout"], options["cwd"])

    return launch


class Forked:
    """A server that is forked. It has what `control.start` uses of a `subprocess.Popen`."""

    def __init__(self, arguments: Sequence[str], output: IO[bytes], cwd: Path) -> None:
        self.returncode: int | None = None
        self._status, theirs = os.pipe()
        order = {"arguments": arguments, "cwd": os.fspath(cwd), "environment": dict(os.environ)}
        try:
            self.pid = _spawner().fork(json.dumps(order).encode(), [output.fileno(), theirs])
        finally:
            os.close(theirs)

    def __del__(self) -> None:
        os.close(self._status)

    def poll(self) -> int | None:
        os.set_blocking(self._status, False)
        with contextlib.suppress(BlockingIOError):
            self._read_status()
        return self.returncode

    def wait(self) -> int:
        os.set_blocking(self._status, True)
        return self._read_status()

    def terminate(self) -> None:
        if self.poll() is None:
            os.kill(self.pid, signal.SIGTERM)

    def _read_status(self) -> int:
        if self.returncode is None:
            self.returncode = int(os.read(self._status, 100))
        return self.returncode


class _Spawner:
    """The way of this process to the one that forks, which ends with it, also when it is killed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", __file__, str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                cwd="/",
                # Ctrl-C is for the tests, which stop their servers.
                start_new_session=True,
            )
        atexit.register(self._close)

    def fork(self, order: bytes, descriptors: list[int]) -> int:
        with self._lock:
            socket.send_fds(self._channel, [order], descriptors)
            return int(self._channel.recv(100))

    def _close(self) -> None:
        self._channel.close()
        self._process.wait()


_spawner = cache(_Spawner)


def _serve(channel: socket.socket) -> list[str] | None:
    """Fork a server for each order. Return its arguments in the server, and None at the end of the orders."""
    running: dict[int, tuple[int, int]] = {}
    with selectors.DefaultSelector() as selector:
        selector.register(channel, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.fileobj is not channel:
                    pid, status = running.pop(key.fd)
                    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                    with contextlib.suppress(BrokenPipeError):
                        os.write(status, str(code).encode())
                    selector.unregister(key.fd)
                    os.close(key.fd)
                    os.close(status)
                    continue
                said, descriptors, _, _ = socket.recv_fds(channel, _MESSAGE_BYTES, 2)
                if not said:
                    return None
                output, status = descriptors
                if not (pid := os.fork()):
                    for descriptor in (
                        channel.detach(),
                        *running,
                        *(other for _, other in running.values()),
                        status,
                    ):
                        os.close(descriptor)
                    return _begin(json.loads(said), output)
                channel.send(str(pid).encode())
                os.close(output)
                process = os.pidfd_open(pid)
                running[process] = (pid, status)
                selector.register(process, selectors.EVENT_READ)


def _begin(order: dict[str, Any], output: int) -> list[str]:
    """Make this process what `control.start` would have made a new one."""
    os.setsid()
    os.chdir(order["cwd"])
    os.environ.clear()
    os.environ.update(order["environment"])
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.close(output)
    arguments: list[str] = order["arguments"]
    return arguments


if __name__ == "__main__":
    for name in _MODULES:
        importlib.import_module(name)
    # Collections in a server would write to the memory that it shares with this process.
    gc.collect()
    gc.freeze()
    given = _serve(socket.socket(fileno=int(sys.argv[1])))
    if given is not None:
        from tensorage.embedded.__main__ import main

        sys.argv[1:] = given
        sys.exit(main())
