"""Many small requests by one thread: each answer is what `Http.ask` makes of it, and no connection keeps a rest."""

from __future__ import annotations

import select
import socket
import ssl
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import pytest

from tensorage.backend.wire.http import Attempt, Http, OwnPool, Request, TooMuchError, WrongSizeError
from tensorage.backend.wire.storage_faults import StorageRefusal, read_fault
from tensorage.backend.wire.together import Exchange, do_together
from tensorage.errors import BackendUnavailableError

CERTIFICATE = Path(__file__).with_name("localhost.pem")

#: Path of requests that open connections, which are not counted.
OPENING = "/opening"

#: Bytes of a good answer, which tell of the request.
NBYTES = 5000


class Answers:
    """A server that answers each request by its path and by how often it came, on connections that stay open."""

    def __init__(self, answer: Callable[[str, int], bytes | None], context: ssl.SSLContext | None) -> None:
        self._answer = answer
        self._context = context
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port = self._listener.getsockname()[1]
        self.heads: list[bytes] = []
        self.accepted = 0
        self.came: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._opening = threading.Barrier(4)
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()
        self._connections: list[socket.socket] = []

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._threads[0].join()
        for connection in self._connections:
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue
        for thread in self._threads[1:]:
            thread.join()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self.accepted += 1
            self._threads.append(threading.Thread(target=self._serve, args=[client]))
            self._threads[-1].start()

    def _serve(self, client: socket.socket) -> None:
        try:
            with self._context.wrap_socket(client, server_side=True) if self._context else client as stream:
                self._connections.append(stream)
                while head := _read_head(stream):
                    path = head.split(b" ", 2)[1].decode()
                    if path == OPENING:
                        # All of them are under way at once, so that each has a connection of its own.
                        self._opening.wait()
                        stream.sendall(good(path))
                        continue
                    with self._lock:
                        self.heads.append(head)
                        self.came[path] += 1
                        count = self.came[path]
                    answer = self._answer(path, count)
                    if answer is None:
                        return
                    stream.sendall(answer)
                    if b"Connection: close" in answer:
                        return
        except OSError:
            return


def _read_head(stream: socket.socket) -> bytes:
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        if not (more := stream.recv(65536)):
            return b""
        head += more
    return head


def head(status: int, *lines: str) -> bytes:
    return "\r\n".join([f"HTTP/1.1 {status} Said", *lines, "", ""]).encode()


def content(path: str) -> bytes:
    return (path.encode() * NBYTES)[:NBYTES]


def good(path: str, *lines: str) -> bytes:
    return head(206, f"Content-Length: {NBYTES}", *lines) + content(path)


def refusal(status: int, body: bytes, *lines: str) -> bytes:
    return head(status, f"Content-Length: {len(body)}", *lines) + body


class Renewed:
    """A login whose token is as good as the number of its renewals says."""

    def __init__(self) -> None:
        self.refused: list[str] = []

    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {len(self.refused)}"}

    def renew(self, refused: str) -> None:
        # Later threads find it renewed.
        if refused == self.headers()["Authorization"]:
            self.refused.append(refused)


class Work(NamedTuple):
    do: Callable[[], None]
    begin: Callable[[], Exchange | None]


@dataclass
class Client:
    """Downloads from a server, as jobs."""

    http: Http
    got: dict[str, bytes | Exception] = field(default_factory=dict)
    by_threads: list[str] = field(default_factory=list)

    def job(self, path: str) -> Work:
        out = bytearray(NBYTES)
        request = Request(
            "GET", path, {"Range": "bytes=0-4999"}, (), memoryview(out), read_fault, is_download=True
        )

        def end(begun: Attempt | None) -> None:
            try:
                self.http.ask(request, path, begun)
                self.got[path] = bytes(out)
            except (StorageRefusal, BackendUnavailableError, TooMuchError) as error:
                self.got[path] = error

        def do() -> None:
            self.by_threads.append(path)
            end(None)

        return Work(do, lambda: Exchange(request, path, end))

    def run(self, paths: list[str], most: int = 4) -> None:
        for left in do_together(self.http, map(self.job, paths), most):
            left()

    def open(self, count: int) -> None:
        """Open connections, and leave them to the pool."""
        request = Request("GET", OPENING, {})
        threads = [threading.Thread(target=self.http.ask, args=[request, "opening"]) for _ in range(count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


@pytest.fixture(params=["plain", "tls"])
def serve(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., tuple[Client, Answers]]]:
    """Start a server, and a client with four open connections to it."""
    context, scheme = None, "http"
    if request.param == "tls":
        monkeypatch.setenv("SSL_CERT_FILE", str(CERTIFICATE))
        context, scheme = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), "https"
        context.load_cert_chain(CERTIFICATE)
    servers, clients = [], []

    def start(answer: Callable[[str, int], bytes | None]) -> tuple[Client, Answers]:
        servers.append(Answers(answer, context))
        clients.append(Client(Http(f"{scheme}://localhost:{servers[-1].port}", Renewed())))
        clients[-1].open(4)
        return clients[-1], servers[-1]

    yield start
    for client in clients:
        client.http.close()
    for server in servers:
        server.close()


def assert_at_rest(http: Http) -> None:
    """No request is under way, and each place for one is free."""
    request = Request("GET", "/", {}, is_download=True)
    room = http.room(request)
    taken = [room.acquire(blocking=False) for _ in range(http.max_downloads + 1)]
    assert taken == [True] * http.max_downloads + [False]
    for _ in range(http.max_downloads):
        room.release()
    assert http.meter.under_way == 0


PATHS = [f"/{number}" for number in range(20)]


def test_one_thread_makes_all_requests(serve: Callable[..., tuple[Client, Answers]]) -> None:
    client, server = serve(lambda path, _: good(path))
    client.run(PATHS)
    assert client.got == {path: content(path) for path in PATHS}
    assert client.by_threads == []
    assert server.came == dict.fromkeys(PATHS, 1)
    assert_at_rest(client.http)


def test_requests_say_the_same_by_either_way(serve: Callable[..., tuple[Client, Answers]]) -> None:
    client, server = serve(lambda path, _: good(path))
    client.run(["/x", "/x"])
    client.job("/x").do()
    of_each = [sorted(each.split(b"\r\n")) for each in server.heads]
    assert of_each[0] == of_each[1] == of_each[2]


#: Answers to the first request of a path, and how often it is then asked for.
ODD: dict[str, tuple[Callable[[str], bytes | None], int]] = {
    "in chunks": (
        lambda path: head(200, "Transfer-Encoding: chunked") + b"1388\r\n" + content(path) + b"\r\n0\r\n\r\n",
        1,
    ),
    "and closes": (lambda path: good(path, "Connection: close"), 1),
    "until the end": (lambda path: head(200, "Connection: close") + content(path), 1),
    "hangs up": (lambda _: None, 2),
    "hangs up in the middle": (lambda path: good(path, "Connection: close")[:-10], 2),
    "no HTTP": (lambda _: b"SSH-2.0-what\r\nConnection: close\r\n\r\n", 2),
    "out of order": (lambda _: refusal(503, b"{}"), 2),
    "token has expired": (lambda _: refusal(401, b'{"code": "PGRST301", "message": "JWT expired"}'), 2),
}


@pytest.mark.parametrize(("answer", "times"), ODD.values(), ids=ODD)
def test_odd_answers_end_as_usual(
    serve: Callable[..., tuple[Client, Answers]], answer: Callable[[str], bytes | None], times: int
) -> None:
    client, server = serve(lambda path, count: answer(path) if (path, count) == ("/3", 1) else good(path))
    client.run(PATHS)
    assert client.got == {path: content(path) for path in PATHS}
    assert server.came == {path: times if path == "/3" else 1 for path in PATHS}
    assert_at_rest(client.http)
    # Nothing of an answer is left on any connection.
    client.run(PATHS)
    assert client.got == {path: content(path) for path in PATHS}


#: Answers that no repetition changes, and the errors.
REFUSALS: dict[str, tuple[bytes, type[Exception]]] = {
    "too short": (head(206, "Content-Length: 7") + b"shorter", WrongSizeError),
    "too long": (head(206, "Content-Length: 5001") + b"x" * 5001, WrongSizeError),
    "too long in chunks": (
        head(200, "Transfer-Encoding: chunked") + b"1389\r\n" + b"x" * 5001 + b"\r\n0\r\n\r\n", WrongSizeError,
    ),
    "too short in chunks": (head(200, "Transfer-Encoding: chunked") + b"2\r\nxx\r\n0\r\n\r\n", WrongSizeError),
    "compressed": (
        head(200, "Content-Encoding: gzip", f"Content-Length: {NBYTES}") + b"x" * NBYTES, BackendUnavailableError,
    ),
    "refused": (refusal(404, b'{"statusCode": "404", "message": "gone"}'), StorageRefusal),
    "elsewhere": (refusal(302, b"", "Location: http://localhost:9/"), StorageRefusal),
}  # fmt: skip


@pytest.mark.parametrize(("answer", "error"), REFUSALS.values(), ids=REFUSALS)
def test_refusals_are_raised_by_the_job(
    serve: Callable[..., tuple[Client, Answers]], answer: bytes, error: type[Exception]
) -> None:
    client, server = serve(lambda path, _: answer if path == "/3" else good(path))
    client.run(PATHS)
    assert type(client.got.pop("/3")) is error
    assert client.got == {path: content(path) for path in PATHS if path != "/3"}
    assert server.came == dict.fromkeys(PATHS, 1)
    assert_at_rest(client.http)
    client.run(PATHS[4:])
    assert client.got == {path: content(path) for path in PATHS if path != "/3"}


def test_a_token_is_renewed_once(serve: Callable[..., tuple[Client, Answers]]) -> None:
    expired = refusal(401, b'{"code": "PGRST301", "message": "JWT expired"}')
    client, server = serve(lambda path, _: None)
    server._answer = lambda path, count: (
        expired if b"Bearer 0" in [each for each in server.heads if path.encode() in each][-1] else good(path)
    )
    client.run(["/a", "/b", "/c", "/d", "/e"])
    assert client.got == {path: content(path) for path in ["/a", "/b", "/c", "/d", "/e"]}
    assert vars(client.http.login)["refused"] == ["Bearer 0"]


def test_threads_open_connections_in_place_of_those_that_are_closed(
    serve: Callable[..., tuple[Client, Answers]],
) -> None:
    closing, closed, are_closed = {"/0", "/1", "/2"}, set[str](), threading.Event()

    def answer(path: str, _: int) -> bytes:
        if path not in closing:
            # The one connection that stays open is not the quickest.
            are_closed.wait()
            return good(path)
        closed.add(path)
        if closed == closing:
            are_closed.set()
        return good(path, "Connection: close")

    client, server = serve(answer)
    client.run(PATHS)
    assert client.got == {path: content(path) for path in PATHS}
    assert server.came == dict.fromkeys(PATHS, 1)
    # Not one after the other, on the one connection that is still open.
    assert len(client.by_threads) > len(PATHS) // 2
    assert_at_rest(client.http)


def test_no_more_is_sent_after_a_fault(serve: Callable[..., tuple[Client, Answers]]) -> None:
    client, _ = serve(lambda path, count: refusal(503, b"{}") if count == 1 else good(path))
    client.run(PATHS)
    assert client.got == {path: content(path) for path in PATHS}
    # Four were under way.
    assert client.by_threads == PATHS[4:]


def test_an_answer_that_does_not_come_is_not_waited_for(
    serve: Callable[..., tuple[Client, Answers]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tensorage.backend.wire.together.READ_TIMEOUT_S", 0.5)
    ends = threading.Event()

    def answer(path: str, count: int) -> bytes | None:
        if (path, count) == ("/3", 1):
            ends.wait()
        return good(path)

    client, server = serve(answer)
    client.run(PATHS)
    ends.set()
    assert client.got == {path: content(path) for path in PATHS}
    assert server.came["/3"] == 2
    assert_at_rest(client.http)


def fail(_: Attempt) -> None:
    raise ValueError("no")


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_of_the_work_leaves_nothing_under_way(
    serve: Callable[..., tuple[Client, Answers]], error: type[BaseException]
) -> None:
    client, _ = serve(lambda path, _: good(path))

    def fail_so(_: Attempt) -> None:
        raise error("no")

    def begin() -> Exchange:
        exchange = client.job("/bad").begin()
        assert exchange is not None
        return exchange._replace(end=fail_so)

    jobs = chain(map(client.job, PATHS[:5]), [Work(lambda: None, begin)], map(client.job, PATHS[5:]))
    with pytest.raises(error, match="no"):
        list(do_together(client.http, jobs, 4))
    assert_at_rest(client.http)
    # The others' answers are on no connection that is used again.
    client.got.clear()
    client.open(4)
    client.run(PATHS)
    assert client.got == {path: content(path) for path in PATHS}


def open_connections(client: Client) -> int:
    """Count the connections of the pool that may be used again."""
    pool = client.http.straight_pool()[0]
    assert isinstance(pool, OwnPool)
    found = pool.take_open(client.http.max_connections + client.http.max_downloads)
    pool.give_back(found)
    return len(found)


def test_a_connection_whose_answer_is_still_to_come_is_not_used_again(
    serve: Callable[..., tuple[Client, Answers]],
) -> None:
    came = threading.Barrier(4)
    ends = threading.Event()

    def answer(path: str, _: int) -> bytes | None:
        came.wait()
        if path != "/bad":
            ends.wait()
        return good(path)

    client, _ = serve(answer)

    def begin() -> Exchange:
        exchange = client.job("/bad").begin()
        assert exchange is not None
        return exchange._replace(end=fail)

    jobs = [*map(client.job, PATHS[:3]), Work(lambda: None, begin)]
    try:
        with pytest.raises(ValueError, match="no"):
            list(do_together(client.http, iter(jobs), 4))
        assert open_connections(client) == 1
    finally:
        ends.set()


def test_a_connection_that_announces_too_much_is_not_used_again(
    serve: Callable[..., tuple[Client, Answers]],
) -> None:
    client, _ = serve(lambda path, _: head(206, "Content-Length: 5001") if path == "/3" else good(path))
    client.run(PATHS[:4])
    assert type(client.got["/3"]) is WrongSizeError
    assert open_connections(client) == 3


def test_a_connection_that_is_opened_ahead_is_used(serve: Callable[..., tuple[Client, Answers]]) -> None:
    """Servers send tickets behind a handshake, which urllib3 takes for the end of an idle connection."""
    client, server = serve(lambda path, _: good(path))
    client.http.close()
    pool = client.http.straight_pool()[0]
    assert isinstance(pool, OwnPool)
    before = server.accepted
    pool.open_one()
    (opened,) = pool.take_open(1)
    if client.http.base_url.startswith("https"):
        # The tickets have come, or come soon.
        assert select.select([opened.sock], [], [], 30)[0]
    pool.give_back([opened])
    client.run(PATHS, most=1)
    client.job("/x").do()
    assert client.got == {path: content(path) for path in [*PATHS, "/x"]}
    assert server.accepted == before + 1


def test_a_connection_that_has_ended_is_not_used(serve: Callable[..., tuple[Client, Answers]]) -> None:
    client, _ = serve(lambda _path, _count: None)
    pool = client.http.straight_pool()[0]
    assert isinstance(pool, OwnPool)
    opened = pool.take_open(4)
    for each in opened:
        each.sock.sendall(b"GET /ends HTTP/1.1\r\n\r\n")
        assert select.select([each.sock], [], [], 30)[0]
    pool.give_back(opened)
    assert open_connections(client) == 0


def test_without_connections_all_is_left_to_threads(serve: Callable[..., tuple[Client, Answers]]) -> None:
    client, _ = serve(lambda path, _: good(path))
    client.run(PATHS, most=5)
    assert client.by_threads == PATHS
    client.http.close()
    client.run(PATHS, most=2)
    assert client.by_threads == PATHS * 2
    assert_at_rest(client.http)


def test_no_more_are_under_way_than_there_is_room_for(
    serve: Callable[..., tuple[Client, Answers]],
) -> None:
    client, _ = serve(lambda path, _: good(path))
    room = client.http.downloads
    taken = [room.acquire() for _ in range(client.http.max_downloads - 2)]
    assert not list(do_together(client.http, map(client.job, PATHS), 4))
    assert client.got == {path: content(path) for path in PATHS}
    for _ in taken:
        room.release()
    assert_at_rest(client.http)


def test_no_more_are_under_way_than_are_wanted(serve: Callable[..., tuple[Client, Answers]]) -> None:
    client, _ = serve(lambda path, _: good(path))
    under_way, most = set[str](), 0

    def begin(path: str) -> Exchange:
        nonlocal most
        exchange = client.job(path).begin()
        assert exchange is not None
        under_way.add(path)
        most = max(most, len(under_way))

        def end(attempt: Attempt) -> None:
            exchange.end(attempt)
            under_way.remove(path)

        return exchange._replace(end=end)

    jobs = (Work(client.job(path).do, partial(begin, path)) for path in PATHS)
    assert not list(do_together(client.http, jobs, 2))
    assert most == 2
    assert client.got == {path: content(path) for path in PATHS}


def test_requests_of_two_threads_share_the_room(serve: Callable[..., tuple[Client, Answers]]) -> None:
    """Each thread takes what the other one has left, and waits if that is nothing."""
    came, ends = threading.Barrier(3), threading.Event()

    def answer(path: str, _: int) -> bytes | None:
        if path in {"/0", "/1"}:
            came.wait()
            ends.wait()
        return good(path)

    client, server = serve(answer)
    client.http = Http(client.http.base_url, Renewed(), max_downloads=2)
    client.open(4)
    first = threading.Thread(target=client.run, args=[PATHS[:2]])
    second = threading.Thread(target=client.run, args=[PATHS[2:]])
    first.start()
    came.wait()
    second.start()
    assert server.came.keys() == {"/0", "/1"}
    ends.set()
    first.join()
    second.join()
    assert client.got == {path: content(path) for path in PATHS}
    assert client.by_threads == []
    assert_at_rest(client.http)


def test_a_login_that_cannot_be_renewed_is_left_to_the_usual_way(
    serve: Callable[..., tuple[Client, Answers]],
) -> None:
    client, server = serve(lambda path, _: good(path))
    login, asked = client.http.login, []

    class Away:
        def headers(self) -> dict[str, str]:
            asked.append(None)
            if len(asked) == 3:
                raise BackendUnavailableError("no token")
            return dict(login.headers())

        renew = login.renew

    client.http.login = Away()
    client.run(PATHS)
    assert client.got == {path: content(path) for path in PATHS}
    assert client.by_threads == PATHS[2:]
    assert server.came == dict.fromkeys(PATHS, 1)
    assert_at_rest(client.http)
