"""Programs that begin with all modules loaded: to load them takes most of them longer than all else that they do.

`python` names an interpreter to put in place of `sys.executable`. It is this file, run as a program that loads next to
nothing: it hands its files, arguments and environment to a process that has loaded the modules, which forks a program
with them, and it ends as that does. A test of how a program begins, of what it loads, or of the signals that it gets
names `sys.executable`.
"""

from __future__ import annotations

import _socket
import _struct
import marshal
import os
import sys

if sys.flags.isolated:
    # The program that is started. The imports below would take it as long as all that it does.
    _channel = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
    _channel.connect(sys.argv[1])
    _order = marshal.dumps((sys.argv[2:], dict(os.environ), os.getcwd()))  # noqa: PTH109
    _channel.sendmsg([_order], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, _struct.pack("3i", 0, 1, 2))])
    _code = int(_channel.recv(100))
    if _code < 0:
        os.kill(os.getpid(), -_code)
    os._exit(_code)

import atexit
import contextlib
import gc
import importlib
import runpy
import selectors
import shutil
import signal
import socket
import subprocess
import tempfile
import types
from functools import cache
from pathlib import Path

#: The modules of programs that use tensorage.
_MODULES = (
    "numpy",
    "zarr",
    "urllib3",
    "filelock",
    "supabase",
    "tensorage.cli",
    "tensorage.session",
    "tensorage.store",
    "tensorage.tensor",
    "tensorage.signin.sdk",
    "tensorage.embedded.control",
    "tensorage.background.spool.folder",
    "tensorage.backend.zarr.zarr_engine",
)

#: Most bytes of an order: arguments and an environment.
_ORDER_BYTES = 1 << 17


@cache
def python() -> list[str]:
    """Return the begin of a command that takes what Python takes after ``-c`` or ``-m``."""
    if sys.platform != "linux":
        return [sys.executable]  # Elsewhere, forks are not safe for libraries.
    # Only this user reaches a socket there.
    folder = Path(tempfile.mkdtemp())
    address = os.fspath(folder / "programs")
    ours, theirs = socket.socketpair()
    with theirs, socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(address)
        listener.listen(100)
        descriptors = [listener.fileno(), theirs.fileno()]
        process = subprocess.Popen(
            [sys.executable, __file__, *map(str, descriptors)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=descriptors,
            start_new_session=True,
        )

    def close() -> None:
        # It ends with this process, also when this one is killed.
        ours.close()
        process.wait()
        shutil.rmtree(folder)

    atexit.register(close)
    return [sys.executable, "-IS", __file__, address]


#: Arguments, environment and folder of a program.
_Order = tuple[list[str], dict[str, str], str]


class _Programs:
    """The programs that run, each by a handle of its process: its pid, and the way to who waits for its end."""

    def __init__(self, listener: socket.socket, companion: socket.socket) -> None:
        self._listener, self._companion = listener, companion
        self._running: dict[int, tuple[int, socket.socket]] = {}
        self._selector = selectors.DefaultSelector()
        for asking in (listener, companion):
            self._selector.register(asking, selectors.EVENT_READ)

    def serve(self) -> _Order | None:
        """Fork a program for each order. Return the order in the program, and None when nobody can give any more."""
        while True:
            for key, _ in self._selector.select():
                if key.fileobj is self._companion:
                    return None
                if key.fileobj is self._listener:
                    if order := self._fork():
                        return order
                elif key.data is None:
                    self._tell_of_the_end(key.fd)
                else:
                    # The client that waits for the program was killed.
                    self._selector.unregister(key.fileobj)
                    os.kill(key.data, signal.SIGKILL)

    def _fork(self) -> _Order | None:
        channel, _ = self._listener.accept()
        said, descriptors, _, _ = socket.recv_fds(channel, _ORDER_BYTES, 3)
        if not (pid := os.fork()):
            for number, descriptor in enumerate(descriptors):
                os.dup2(descriptor, number)
            channels = [channel, self._listener, self._companion, *(way for _, way in self._running.values())]
            for descriptor in (*descriptors, *self._running, *(way.detach() for way in channels)):
                os.close(descriptor)
            self._selector.close()
            order: _Order = marshal.loads(said)
            return order
        for descriptor in descriptors:
            os.close(descriptor)
        handle = os.pidfd_open(pid)
        self._running[handle] = (pid, channel)
        self._selector.register(handle, selectors.EVENT_READ)
        self._selector.register(channel, selectors.EVENT_READ, pid)
        return None

    def _tell_of_the_end(self, handle: int) -> None:
        pid, channel = self._running.pop(handle)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        # Nobody waits any more if that was killed.
        with contextlib.suppress(BrokenPipeError, KeyError):
            channel.send(str(code).encode())
            self._selector.unregister(channel)
        channel.close()
        self._selector.unregister(handle)
        os.close(handle)


def _run(arguments: list[str], environment: dict[str, str], folder: str) -> None:
    """Do as Python does with these arguments."""
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    kind, program, *sys.argv[1:] = arguments
    if kind == "-m":
        sys.path[0] = folder
        runpy.run_module(program, run_name="__main__", alter_sys=True)
    else:
        assert kind == "-c"
        sys.argv[0], sys.path[0] = "-c", ""
        main = types.ModuleType("__main__")
        sys.modules["__main__"] = main
        exec(compile(program, "<string>", "exec"), vars(main))


if __name__ == "__main__":
    for name in _MODULES:
        importlib.import_module(name)
    # Collections in a program would write to the memory that it shares with this process.
    gc.collect()
    gc.freeze()
    order = _Programs(*(socket.socket(fileno=int(number)) for number in sys.argv[1:])).serve()
    if order is not None:
        _run(*order)
