"""Errors, pipes that break, and Ctrl-C: one line, the right exit status, and nothing half-written."""

from __future__ import annotations

import errno
import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import click
import numpy as np
import pytest
from cli.conftest import Terminal
from project import Project
from proxy import Exchange, Proxy

from tensorage import TensorStore, errors
from tensorage.cli import failures, main
from tensorage.cli.failures import failure_of

ROWS = np.zeros((64, 1024, 256), "u1")
FULL = b"No space left on device: make room, or write to another place"


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (errors.KeyNotFoundError("x"), 3),
        (FileNotFoundError(errno.ENOENT, "no such file", "x"), 3),
        (errors.PermissionDeniedError("x"), 4),
        (errors.AuthenticationError("x"), 4),
        (PermissionError(errno.EACCES, "no", "x"), 4),
        (errors.BackendUnavailableError("x"), 5),
        (errors.ConfigurationError("x"), 1),
        (errors.SchemaError("x"), 1),
        (errors.QuotaExceededError("x"), 1),
        (errors.TooLargeError("x"), 1),
        (OSError(errno.ENOSPC, "No space left on device"), 1),
        (MemoryError("x"), 1),
    ],
)
def test_exit_statuses(error: Exception, status: int) -> None:
    failure = failure_of(error)
    assert failure is not None
    assert failure.exit_code == status
    assert status in failures.STATUSES


def test_mistakes_of_ours_keep_their_traceback() -> None:
    for error in (AttributeError("x"), RuntimeError("x"), ValueError("x"), KeyError("x"), AssertionError()):
        assert failure_of(error) is None


def test_a_message_is_one_short_line() -> None:
    failure = failure_of(errors.InvalidInputError("a\nb " + "payload " * 200_000 + "end"))
    assert failure is not None
    message = failure.format_message()
    assert message.startswith("InvalidInputError: a b payload")
    assert message.endswith("end")
    assert "\n" not in message
    assert len(message) < 1100


def test_no_login_and_no_project(terminal: Terminal) -> None:
    assert "AuthenticationError" in terminal.refusal("ls", status=4, USER_PASSWORD="wrong")
    assert "no password is configured" in terminal.refusal("ls", USER_PASSWORD=None)
    assert "--local" in terminal.refusal("ls", SUPABASE_URL=None)
    assert "cannot be reached" in terminal.refusal("ls", status=5, SUPABASE_URL="http://127.0.0.1:9")
    assert "leave --url" in terminal.refusal("ls", "--local", "--url", "http://x", status=2)
    assert "give --local" in terminal.refusal("ls", "--data-dir", "x", status=2)


def test_a_page_of_a_gateway_is_no_message(terminal: Terminal) -> None:
    page = (
        b"<html><head><title>502 Bad Gateway</title></head><body>"
        + b"<p>nginx</p>" * 1000
        + b"</body></html>"
    )
    with _answering(502, page) as url:
        line = terminal.refusal("ls", status=5, SUPABASE_URL=url)
    assert "502" in line
    assert "<" not in line
    assert len(line) < 500


class _answering:
    """A gateway that has one answer to everything."""

    def __init__(self, status: int, body: bytes) -> None:
        import http.server
        import threading

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"]))
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None: ...

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def __enter__(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


# Pipes and signals, in processes of their own ----------------------------------------------------------------


@pytest.mark.parametrize("command", [["ls", "-r"], ["cat", "x"], ["get", "x", "-o", "-"], ["ls", "-l", "-r"]])
def test_a_pipe_that_breaks(terminal: Terminal, command: list[str]) -> None:
    terminal.store["x"] = ROWS[:8]
    process = terminal.process(*command, stdout=subprocess.PIPE)
    assert process.stdout is not None
    # The first bytes may come before or after the reader has gone.
    process.stdout.close()
    _, said = process.communicate()
    assert (process.returncode, said) == (0, b"")


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_full_disk(terminal: Terminal, monkeypatch: pytest.MonkeyPatch, unbuffered: str) -> None:
    monkeypatch.setenv("PYTHONUNBUFFERED", unbuffered)
    terminal.store["x"] = ROWS[:8]
    for command in (["ls"], ["get", "x", "-o", "-"], ["cat", "x[0]"]):
        with Path("/dev/full").open("wb") as full:
            process = terminal.process(*command, stdout=full)
            _, said = process.communicate()
        assert (process.returncode, said) == (1, b"Error: " + FULL + b"\n")


def test_a_disk_that_fills_behind_an_unbuffered_stdout(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system writes a part then, and the rest must not be lost without a word."""
    monkeypatch.setenv("PYTHONUNBUFFERED", "1")
    terminal.store["x"] = ROWS[:8]
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, limits[1]))
    try:
        with (terminal.folder / "x.npy").open("wb") as file:
            process = terminal.process("get", "x", "-o", "-", stdout=file)
            _, said = process.communicate()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, ignored)
    assert (process.returncode, said) == (1, b"Error: File too large\n")


def test_a_full_disk_in_the_words_of_hdf5() -> None:
    said = "Can't synchronously write data (filename = '.x.h5.part', buf = 0x7f14, offset = 1048576)"
    failure = failure_of(OSError(errno.ENOSPC, said))
    assert failure is not None
    assert failure.format_message().encode() == FULL


def test_a_disk_that_fills_while_a_file_is_written(terminal: Terminal) -> None:
    terminal.store["x"] = ROWS[:8]
    there = terminal.folder / "x.npy"
    there.write_bytes(b"years of work")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, limits[1]))
    try:
        assert "too large" in terminal.refusal("get", "x", "-o", there, "--force")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, ignored)
    assert there.read_bytes() == b"years of work"
    assert [path.name for path in terminal.folder.iterdir()] == ["x.npy"]


@pytest.mark.parametrize("command", ["get", "put"])
def test_ctrl_c_in_a_long_transfer(terminal: Terminal, project: Project, command: str) -> None:
    """Each request takes a while, and the user has had enough once some have passed."""
    seen: list[Exchange] = []
    had_enough = threading.Event()

    def hold(exchange: Exchange) -> bool:
        seen.append(exchange)
        # However late this process gets to the signal, the transfer is not over before.
        if len(seen) > 4:
            had_enough.wait(60)
        time.sleep(0.2)
        return False

    rows = np.zeros((96, 1024, 1024), "u1")
    np.save("x.npy", rows)
    arguments = ["put", "x.npy", "y"]
    if command == "get":
        terminal.store["x"] = rows
        Path("x.npy").unlink()
        arguments = ["get", "x", "-o", "x.npy"]
    proxy = Proxy(project.url, hold)
    try:
        slow = Terminal({**terminal.environment, "SUPABASE_URL": proxy.url}, terminal.folder, terminal.store)
        process = slow.process(*arguments, stdout=subprocess.PIPE)
        while len(seen) < 5:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        had_enough.set()
        out, said = process.communicate(timeout=60)
    finally:
        had_enough.set()
        proxy.close()
    assert (process.returncode, out, said) == (130, b"", b"\nInterrupted.\n")
    assert [file.name for file in terminal.folder.iterdir()] == (["x.npy"] if command == "put" else [])
    assert "y" not in terminal.store


def test_ctrl_c_at_a_question(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal.store["x"] = [1]

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(click, "confirm", interrupt)
    assert terminal.run("rm", "x", status=130).stderr.endswith("\nInterrupted.\n")
    assert "x" in terminal.store


# Speed ------------------------------------------------------------------------------------------------------


def test_a_command_loads_no_more_than_it_needs(terminal: Terminal) -> None:
    terminal.store["exp/x"] = [1.0]
    code = (
        "import json, sys\nfrom tensorage.cli import main\ntry: main({}, prog_name='tensorage')\n"
        "finally: print(json.dumps(sorted(sys.modules)))"
    )
    settings = {name: value for name, value in terminal.environment.items() if value is not None}
    heavy = {
        "torch", "zarr", "dask", "pandas", "xarray", "h5py", "rich", "supabase", "pydantic", "PIL", "asyncpg",
        "tensorage.embedded", "tensorage.session", "tqdm",
    }  # fmt: skip
    for arguments, also in (
        (["ls"], {"numpy"}),
        (["ls", "-l"], {"numpy"}),
        (["tree", "--json"], {"numpy"}),
        (["whoami"], {"numpy"}),
        (["--help"], {"numpy", "urllib3"}),
        (["cat", "exp/x"], set()),
    ):
        done = subprocess.run(
            [sys.executable, "-c", code.format(arguments)], env={**os.environ, **settings}, capture_output=True,
            text=True, check=True,
        )  # fmt: skip
        loaded = set(json.loads(done.stdout.splitlines()[-1]))
        assert not loaded & (heavy | also), arguments


def test_how_many_requests_a_list_takes(terminal: Terminal, project: Project) -> None:
    terminal.store["exp/x"] = [1.0]
    proxy = Proxy(project.url)
    try:
        with proxy.counted() as exchanges:
            terminal.run("ls", SUPABASE_URL=proxy.url)
        asked = [exchange.target.partition("?")[0] for exchange in exchanges]
    finally:
        proxy.close()
    # Beside those of signing in and out.
    assert asked == ["/rest/v1/rpc/tensorage_version", "/rest/v1/rpc/tensorage_list"]


def test_the_program_has_one_name(terminal: Terminal) -> None:
    for module in ("tensorage", "tensorage.cli"):
        shown = subprocess.run(
            [sys.executable, "-m", module, "--help"], capture_output=True, text=True, check=True
        )
        assert shown.stdout.startswith("Usage: tensorage [OPTIONS] COMMAND")
    assert main.name == "main"
    assert isinstance(terminal.store, TensorStore)
