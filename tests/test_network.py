"""The line of benchmarks and tests: bytes pass in order, no faster than it allows, and both ends learn of its end.

Times are bounded on one side alone: a busy machine makes a line slower, and nothing makes it faster.
"""

from __future__ import annotations

import contextlib
import http.client
import http.server
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import workers
from project import Project, User

from benchmarks.network import Apart, Counts, Line
from benchmarks.network.messages import Messages

#: Clocks of two processes, and roundings, within a bound that is exact otherwise.
ALMOST = 0.99

LINES: list[dict[str, float]] = [
    {},
    {"round_trip_s": 0.02},
    {"bytes_per_s": 20e6},
    {"round_trip_s": 0.02, "bytes_per_s": 20e6},
]


class Listener:
    """A server that gives each of its connections to `serve`, in a thread."""

    def __init__(self, serve: Callable[[socket.socket], object]) -> None:
        self._serve = serve
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.errors: list[BaseException] = []
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def join(self) -> None:
        """Take no more connections, and wait for those that there are."""
        self._listener.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(30)
            assert not thread.is_alive()
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                self._threads.append(threading.Thread(target=self._run, args=[connection]))
                self._threads[-1].start()

    def _run(self, connection: socket.socket) -> None:
        with connection:
            try:
                self._serve(connection)
            except OSError as error:
                self.errors.append(error)


@contextlib.contextmanager
def line_to(serve: Callable[[socket.socket], object], **how: float) -> Iterator[tuple[Line, Listener]]:
    listener = Listener(serve)
    line = Line(listener.url, **how)
    try:
        yield line, listener
    finally:
        line.close()
        listener.join()


def connect(line: Line | Apart) -> socket.socket:
    host, port = line.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=30)


def read_all(connection: socket.socket) -> bytes:
    data = bytearray()
    while piece := connection.recv(65536):
        data += piece
    return bytes(data)


def echo(connection: socket.socket) -> None:
    """Return what comes while it comes, and its end."""
    while piece := connection.recv(65536):
        connection.sendall(piece)


def swallow(connection: socket.socket) -> None:
    """Read everything, and answer with its size."""
    connection.sendall(str(len(read_all(connection))).encode())


def send_and_end(connection: socket.socket, data: bytes) -> None:
    connection.sendall(data)
    connection.shutdown(socket.SHUT_WR)


@pytest.mark.parametrize("how", LINES, ids=str)
def test_bytes_keep_their_order_both_ways(how: dict[str, float]) -> None:
    data = random.Random(0).randbytes(2_000_000)
    with line_to(echo, **how) as (line, _), connect(line) as connection, line.counted() as counts:
        sender = threading.Thread(target=send_and_end, args=[connection, data])
        sender.start()
        assert read_all(connection) == data
        sender.join()
    assert (counts.sent_bytes, counts.received_bytes) == (len(data), len(data))


def test_an_answer_takes_a_round_trip_and_a_new_connection_another_one() -> None:
    with line_to(echo, round_trip_s=0.1) as (line, _):
        begin = time.monotonic()
        with connect(line) as connection:
            connection.sendall(b"1")
            assert connection.recv(1) == b"1"
            opened_s, begin = time.monotonic() - begin, time.monotonic()
            connection.sendall(b"2")
            assert connection.recv(1) == b"2"
            again_s = time.monotonic() - begin
    assert opened_s >= ALMOST * 0.2
    assert again_s >= ALMOST * 0.1


def test_a_connection_may_take_more_round_trips() -> None:
    with line_to(echo, round_trip_s=0.05, connection_round_trips=3) as (line, _):
        begin = time.monotonic()
        with connect(line) as connection:
            connection.sendall(b"1")
            assert connection.recv(1) == b"1"
        assert time.monotonic() - begin >= ALMOST * 0.2


@pytest.mark.parametrize("connections", [1, 8])
def test_all_connections_share_the_width_of_a_line(connections: int) -> None:
    size = 800_000 // connections

    def send(connection: socket.socket) -> bytes:
        send_and_end(connection, bytes(size))
        return read_all(connection)

    with contextlib.ExitStack() as stack:
        line, _ = stack.enter_context(line_to(swallow, bytes_per_s=4e6))
        opened = [stack.enter_context(connect(line)) for _ in range(connections)]
        pool = stack.enter_context(ThreadPoolExecutor(connections))
        begin = time.monotonic()
        assert list(pool.map(send, opened)) == [str(size).encode()] * connections
        assert time.monotonic() - begin >= ALMOST * 0.2
        assert line.counts().connections == connections


def test_answers_are_no_faster_than_the_line() -> None:
    def answer(connection: socket.socket) -> None:
        connection.sendall(bytes(800_000))

    with line_to(answer, bytes_per_s=4e6) as (line, _), connect(line) as connection:
        begin = time.monotonic()
        assert len(read_all(connection)) == 800_000
        assert time.monotonic() - begin >= ALMOST * 0.2


@pytest.mark.parametrize("how", LINES, ids=str)
def test_a_side_that_does_not_read_stops_the_other(how: dict[str, float]) -> None:
    done = threading.Event()

    def send(connection: socket.socket) -> None:
        with contextlib.suppress(ConnectionError):
            connection.sendall(bytes(200_000_000))

    with line_to(lambda _: done.wait(60), **how) as (line, _), connect(line) as connection:
        sender = threading.Thread(target=send, args=[connection])
        sender.start()
        known, sent = -1, 0
        while sent != known:
            time.sleep(0.3)
            known, sent = sent, line.counts().sent_bytes
        # The system's own buffers of two connections are some megabytes.
        assert 0 < sent < 50_000_000
        line.drop()
        done.set()
        sender.join()


@pytest.mark.parametrize("how", LINES, ids=str)
def test_the_end_of_a_client_is_the_servers(how: dict[str, float]) -> None:
    ended = threading.Event()

    def serve(connection: socket.socket) -> None:
        assert read_all(connection) == b"last words"
        ended.set()

    with line_to(serve, **how) as (line, _):
        with connect(line) as connection:
            connection.sendall(b"last words")
        assert ended.wait(30)


@pytest.mark.parametrize("how", LINES, ids=str)
def test_the_end_of_a_server_is_the_clients(how: dict[str, float]) -> None:
    def serve(connection: socket.socket) -> None:
        connection.sendall(b"last words")

    with line_to(serve, **how) as (line, _), connect(line) as connection:
        assert read_all(connection) == b"last words"


@pytest.mark.parametrize("how", LINES, ids=str)
def test_both_sides_see_a_line_that_drops(how: dict[str, float]) -> None:
    with line_to(echo, **how) as (line, listener):
        with connect(line) as connection:
            connection.sendall(b"first words")
            assert connection.recv(1)
            assert line.drop() == 1
            with pytest.raises(ConnectionResetError):
                read_all(connection)
        # A line that has dropped takes new connections.
        with connect(line) as connection:
            connection.sendall(b"again")
            assert connection.recv(1)
    assert isinstance(listener.errors[0], ConnectionResetError)


@pytest.mark.parametrize("how", LINES, ids=str)
def test_a_server_that_is_down_refuses(how: dict[str, float]) -> None:
    listener = Listener(echo)
    listener.join()
    line = Line(listener.url, **how)

    def read() -> bytes:
        with connect(line) as connection:
            return connection.recv(1)

    with pytest.raises(ConnectionResetError):
        read()
    line.close()


def test_bytes_that_are_no_http_pass_and_are_no_requests() -> None:
    with line_to(echo) as (line, _), connect(line) as connection, line.counted() as counts:
        connection.sendall(b"SSH-2.0\r\n\r\n")
        assert connection.recv(4) == b"SSH-"
    assert counts.requests == 0
    assert counts.sent_bytes == 11


def test_none_waits_for_others_that_have_nothing_to_send() -> None:
    # Several times as many connections as there is room for in the line.
    with contextlib.ExitStack() as stack:
        line, _ = stack.enter_context(line_to(echo, bytes_per_s=20e6))
        opened = [stack.enter_context(connect(line)) for _ in range(60)]
        for connection in opened:
            connection.sendall(bytes(20_000))
        for connection in opened:
            left = 20_000
            while left:
                left -= len(connection.recv(left))


def test_an_address_that_cannot_be_read_is_refused() -> None:
    with pytest.raises(ValueError, match="starts with http://"):
        Line("https://example.org")


class Answers(http.server.BaseHTTPRequestHandler):
    """Answers of each kind: with a length, in chunks, without a body, and until the connection closes."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self._answer(200, body)

    def do_GET(self) -> None:
        getattr(self, self.path.removeprefix("/"))()

    def do_HEAD(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "1000")
        self.end_headers()

    def chunks(self) -> None:
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self.wfile.write(b"3\r\nabc\r\n2;x=y\r\nde\r\n0\r\nTrailer: 1\r\n\r\n")

    def nothing(self) -> None:
        self.send_response(204)
        self.end_headers()

    def together(self) -> None:
        with contextlib.suppress(threading.BrokenBarrierError):
            self.server.barrier.wait()  # type: ignore[attr-defined]
            self._answer(200, b"together")

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def web() -> Iterator[str]:
    """A server that waits at ``/together`` for three."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    server.barrier = threading.Barrier(3)  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, args=[0.05])
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.barrier.abort()  # type: ignore[attr-defined]
    server.shutdown()
    thread.join()
    server.server_close()


def ask(line: Line | Apart, *requests: tuple[str, str, bytes | None]) -> list[bytes]:
    connection = http.client.HTTPConnection(line.url.removeprefix("http://"), timeout=30)
    answers = []
    for method, path, body in requests:
        connection.request(method, path, body)
        answers.append(connection.getresponse().read())
    connection.close()
    return answers


@pytest.mark.parametrize("how", LINES, ids=str)
def test_requests_are_counted(web: str, how: dict[str, float]) -> None:
    line = Line(web, **how)
    blob = bytes(300_000)
    with line.counted() as counts:
        answers = ask(
            line,
            ("POST", "/", blob),
            ("HEAD", "/", None),
            ("GET", "/chunks", None),
            ("GET", "/nothing", None),
            ("POST", "/", b""),
        )
    line.close()
    assert answers == [blob, b"", b"abcde", b"", b""]
    assert (counts.connections, counts.requests, counts.peak_requests) == (1, 5, 1)
    assert len(blob) < counts.sent_bytes < len(blob) + 2000
    assert len(blob) < counts.received_bytes < len(blob) + 2000


def test_requests_at_once_are_counted(web: str) -> None:
    line = Line(web, round_trip_s=0.01)
    with ThreadPoolExecutor(3) as pool:
        answers = list(pool.map(lambda _: ask(line, ("GET", "/together", None)), range(3)))
    assert answers == [[b"together"]] * 3
    counts = line.counts()
    assert (counts.connections, counts.requests, counts.peak_requests) == (3, 3, 3)
    ask(line, ("GET", "/nothing", None))
    assert line.counts().peak_requests == 1
    line.close()


def test_a_request_that_is_dropped_is_under_way_no_more(web: str) -> None:
    line = Line(web)
    with connect(line) as connection:
        connection.sendall(b"GET /together HTTP/1.1\r\n\r\n")
        while not line.counts().requests:
            time.sleep(0.01)
        line.drop()
    ask(line, ("GET", "/nothing", None))
    line.counts()
    ask(line, ("GET", "/nothing", None))
    assert line.counts().peak_requests == 1
    line.close()


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_messages_are_told_apart_however_they_are_cut(size: int) -> None:
    heads: list[bytes] = []
    ended: list[int] = []
    text = (
        b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n\r\n\r\nabc"
        b"HTTP/1.1 100 Continue\r\n\r\n"
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\nA\r\n0123456789\r\n0\r\n\r\n"
        b"HTTP/1.1 204 No Content\r\n\r\n"
        b"HTTP/1.1 200 OK\r\n\r\nuntil the end\r\n\r\nHTTP/1.1"
    )

    def began(head: bytes) -> bool:
        heads.append(head.split()[1])
        return heads[-1] == b"200"

    messages = Messages(began, lambda: ended.append(len(heads)), last_until_close=True)
    for at in range(0, len(text), size):
        messages.feed(text[at : at + size])
    assert messages.is_http
    assert heads == [b"200", b"100", b"200", b"204", b"200"]
    assert ended == [1, 2, 3, 4]


@pytest.mark.parametrize(
    "text",
    [
        b"nothing of the kind\r\n\r\n",
        bytes(70_000),
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nno size\r\n",
    ],
)
def test_other_protocols_are_left_alone(text: bytes) -> None:
    messages = Messages(lambda _: True, lambda: None)
    messages.feed(text)
    messages.feed(b"GET / HTTP/1.1\r\n\r\n")
    assert not messages.is_http


def test_a_line_in_a_process_of_its_own(web: str) -> None:
    with Apart(web, round_trip_s=0.05, bytes_per_s=4e6) as line:
        begin = time.monotonic()
        assert ask(line, ("POST", "/", bytes(200_000))) == [bytes(200_000)]
        assert time.monotonic() - begin >= ALMOST * (0.1 + 0.05 + 0.05)
        counts = line.counts()
        assert (counts.connections, counts.requests) == (1, 1)
        assert line.counts() == Counts()
        with connect(line) as connection:
            while not line.counts().connections:
                time.sleep(0.01)
            # The end of the connection before it may still be on its way.
            assert line.drop() >= 1
            with pytest.raises(ConnectionResetError):
                connection.recv(1)


def test_a_store_works_through_a_line(project: Project, user: User) -> None:
    if not project.url.startswith("http://"):
        pytest.skip("what passes cannot be seen: the project is reached by TLS")
    array = np.arange(3000.0).reshape(1000, 3)
    line = Line(project.url, round_trip_s=0.01, bytes_per_s=25e6)
    with workers.store_of(Project(line.url, project.key), user) as store:
        store["x"] = array
        handle = store.open("x")
        with line.counted() as counts:
            begin = time.monotonic()
            assert np.array_equal(handle[[7, 3, 999]], array[[7, 3, 999]])
            assert time.monotonic() - begin >= ALMOST * 0.01
    assert (counts.connections, counts.requests, counts.peak_requests) == (0, 1, 1)
    assert counts.received_bytes > 72
    line.close()
