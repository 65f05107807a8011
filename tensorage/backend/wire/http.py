"""HTTP requests to one project as one login: reuse of connections, retries, and renewal of the login.

Every request made here is idempotent, so that it may be repeated: a function of tensorage takes an operation id where
that matters, and an object is stored under a name of its own.
"""

from __future__ import annotations

import functools
import logging
import os
import re
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from http.client import HTTPConnection as HttpClientConnection
from http.client import HTTPException, HTTPResponse
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, cast
from urllib.request import getproxies, proxy_bypass

from tensorage.backend.wire.faults import Fault, error_of
from tensorage.backend.wire.line import MAX_OBJECTS, PARALLEL, LineMeter
from tensorage.backend.wire.patience import Patience, Tries
from tensorage.errors import BackendUnavailableError

if TYPE_CHECKING:
    import urllib3

    _Pool = urllib3.HTTPConnectionPool
else:
    # urllib3 is loaded with the first request.
    _Pool = object

__all__ = [
    "PARALLEL",
    "READ_TIMEOUT_S",
    "Answer",
    "Attempt",
    "Connection",
    "Http",
    "Login",
    "OwnPool",
    "Request",
    "TooMuchError",
    "WrongSizeError",
    "bytes_of",
    "complete_headers",
    "new_pool",
    "read_plainly",
    "tls_context",
]

logger = logging.getLogger(__name__)

CONNECT_TIMEOUT_S = 5.0
#: Longest wait for the next bytes of an answer. Hosted Supabase ends a statement after 8 s.
READ_TIMEOUT_S = 60.0

#: Bytes read from the socket at a time, if they are then copied: enough to be cheap, few enough to stay in the cache.
_READ_BYTES = 256 * 1024

#: Bytes of a request that are sent at once: a copy of so few is cheaper than another system call.
_JOINED_BYTES = 16 * 1024

#: Most bytes of a request's body that go past urllib3, and paths that may.
_PLAIN_BYTES = _JOINED_BYTES - 4096
_PLAIN_PATH = re.compile(r"[!-~]*")

#: Bytes read from the socket at a time into their final place.
_READ_INTO_BYTES = 1024 * 1024


class Connection(Protocol):
    """Connection of a pool, whose requests and answers may go past urllib3, by Python's own ``http.client``.

    That takes a third of the time. urllib3 adds nothing to a request whose connection is open, and whose answer is read
    to its end at once.
    """

    sock: Any

    @property
    def is_closed(self) -> bool: ...

    def send_plainly(self, request: Request, path: str, headers: Mapping[str, str]) -> None:
        """Send a request."""
        ...

    def receive_plainly(self) -> HTTPResponse:
        """Wait for the head of the answer."""
        ...

    def close(self) -> None: ...


class Login(Protocol):
    """Headers of a session's user for requests, and their renewal when they expire."""

    def headers(self) -> Mapping[str, str]:
        """Return the headers ``apikey`` and ``Authorization``."""
        ...

    def renew(self, refused: str) -> None:
        """Make the next headers hold another token than the `refused` ``Authorization``."""
        ...


class TooMuchError(Exception):
    """The request was too large, or took too long: a smaller one may pass. Never leaves the engine."""

    def __init__(self, fault: Fault, asked: str) -> None:
        super().__init__(str(fault))
        self.fault = fault
        self.asked = asked


class WrongSizeError(BackendUnavailableError):
    """A good answer has another number of bytes than were asked for."""


@dataclass(frozen=True, slots=True)
class Request:
    """A request, without the headers that all requests of a login have in common.

    Parameters
    ----------
    path
        Path behind the URL of the project, with its leading slash.
    body
        Parts of the body, sent one after the other.
    out
        Memory for the bytes of a good answer, which have to fill it exactly.
    read_fault
        Function that makes a fault of an error answer: of its status, its body, and its header ``Retry-After``.
    is_download
        True for a download of an object, of which more may be under way.
    """

    method: str
    path: str
    headers: Mapping[str, str] = field(repr=False)
    body: Sequence[bytes | memoryview] = field(default=(), repr=False)
    out: memoryview | None = None
    read_fault: Callable[[int, bytes, str | None], Fault] = Fault.parse
    is_download: bool = False


class Answer(NamedTuple):
    """A good answer. Its body is empty if it went to `Request.out`."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Attempt(NamedTuple):
    """A request that was made once.

    Parameters
    ----------
    outcome
        Answer or fault; an error that no repetition changes, for `Http.ask` to raise.
    authorization
        Header ``Authorization`` that it was made with.
    """

    outcome: Answer | Fault | Exception
    authorization: str


@dataclass
class Http:
    """Requests to one project as one login. Safe to use from many threads; after a fork, make another one.

    Parameters
    ----------
    base_url
        URL of the project, without a path.
    login
        Login that the requests are made as.
    max_connections
        Most connections, and thereby requests at once, of all that use this object: a read, a loop's prefetching,
        background writes. A request that waits for the end of an outage takes none.
    max_downloads
        Most downloads of objects at once, beside those.
    patience
        Limit of the wait for the end of an outage. By default there is no wait, only a few quick tries.
    """

    base_url: str
    login: Login
    max_connections: int = 2 * PARALLEL
    max_downloads: int = MAX_OBJECTS
    patience: Patience = field(default_factory=Patience, repr=False)
    #: Measures the line by the requests made here.
    meter: LineMeter = field(default_factory=LineMeter, init=False, repr=False)
    _pool: urllib3.PoolManager | None = field(default=None, init=False, repr=False)
    _straight: tuple[urllib3.PoolManager, str, urllib3.HTTPConnectionPool, str] | None = field(
        default=None, init=False, repr=False
    )
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False)
    _room: threading.BoundedSemaphore = field(init=False, repr=False)
    #: Room for downloads.
    downloads: threading.BoundedSemaphore = field(init=False, repr=False)

    def __post_init__(self) -> None:
        # urllib3's pool opens more connections than it keeps, so the requests are counted here.
        self._room = threading.BoundedSemaphore(self.max_connections)
        self.downloads = threading.BoundedSemaphore(self.max_downloads)

    def ask(self, request: Request, asked: str, begun: Attempt | None = None) -> Answer:
        """Make a request, and repeat it if that may help, until there is a good answer.

        Parameters
        ----------
        asked
            Wish of the user, for error messages: ``opening 'weather'``.
        begun
            First attempt, if it was made already, as by `tensorage.backend.wire.together`.

        Raises
        ------
        TooMuchError
            If a smaller request may pass.
        TensorageError
            The translation of the backend's last fault.
        """
        renewed = False
        tries = self.patience.tries(asked)
        while True:
            tries.begin()
            attempt, begun = begun or self._attempt_in_turn(request, tries, asked), None
            outcome = attempt.outcome
            if isinstance(outcome, Exception):
                raise outcome
            if not isinstance(outcome, Fault):
                self.patience.note_answer()
                return outcome
            # A token that is refused right after its renewal is refused for another reason than its age.
            if outcome.is_expired_login and not renewed:
                self._renew(attempt.authorization, tries)
                renewed = True
                continue
            if outcome.is_too_much:
                raise TooMuchError(outcome, asked)
            if not outcome.is_passing:
                self.patience.note_answer()
                raise error_of(outcome, asked)
            tries.wait(outcome)

    def _attempt_in_turn(self, request: Request, tries: Tries, asked: str) -> Attempt:
        """Make a request once, as soon as fewer than the most are under way."""
        # The headers are made anew for each try, since the token may have been renewed meanwhile.
        headers = complete_headers(request, self._login_headers(tries))
        with self.room(request):
            return Attempt(self.attempt(request, headers, asked), headers.get("Authorization", ""))

    def room(self, request: Request) -> threading.BoundedSemaphore:
        """Return the room for requests of a kind, which each of them takes a place of while it is under way."""
        return self.downloads if request.is_download else self._room

    def headers(self, asked: str) -> Mapping[str, str]:
        """Return the login's headers. If the login has to be renewed and its backend is away, wait for it."""
        return self._login_headers(self.patience.tries(asked))

    def _login_headers(self, tries: Tries) -> Mapping[str, str]:
        while True:
            try:
                return self.login.headers()
            except BackendUnavailableError as error:
                self.patience.wait_for_login(error, tries)

    def _renew(self, refused: str, tries: Tries) -> None:
        while True:
            try:
                return self.login.renew(refused)
            except BackendUnavailableError as error:
                self.patience.wait_for_login(error, tries)

    def close(self) -> None:
        """Close the connections. The next request opens new ones."""
        with self._lock:
            pool, self._pool = self._pool, None
        if pool is not None:
            pool.clear()

    def open_ahead(self) -> None:
        """Begin to open a connection, for the first request: it takes a round trip, or more with TLS.

        The first request may come before it is open, and opens another one then.
        """
        pool, _ = self.straight_pool()
        if isinstance(pool, OwnPool):
            threading.Thread(target=pool.open_one, name="tensorage-connection", daemon=True).start()

    def connections(self) -> urllib3.PoolManager:
        """Return the pool of connections for requests."""
        import urllib3

        with self._lock:
            if self._pool is None:
                timeout = urllib3.Timeout(connect=CONNECT_TIMEOUT_S, read=READ_TIMEOUT_S)
                self._pool = new_pool(self.base_url, self.max_connections + self.max_downloads, timeout)
            return self._pool

    def straight_pool(self) -> tuple[urllib3.PoolManager | urllib3.HTTPConnectionPool, str]:
        """Return where requests go, and what comes before their path: the project's own pool, unless there is a proxy.

        A pool of pools looks for the project's pool with every request, which is a tenth of the work of a small one.
        """
        import urllib3

        pools = self.connections()
        if isinstance(pools, urllib3.ProxyManager):
            return pools, self.base_url
        straight = self._straight
        if straight is None or straight[0] is not pools or straight[1] != self.base_url:
            own = pools.connection_from_url(self.base_url)
            # Quoted as urllib3 does.
            base = urllib3.util.parse_url(self.base_url).path or ""
            self._straight = straight = (pools, self.base_url, own, base)
        return straight[2], straight[3]

    def attempt(self, request: Request, headers: Mapping[str, str], asked: str) -> Answer | Fault:
        """Make a request once."""
        import urllib3

        begun = time.monotonic()
        once = None
        self.meter.begin(begun)
        try:
            pool, base = self.straight_pool()
            once = _Once(request, base + request.path, headers, asked, begun)
            taken = pool.take_open(1) if isinstance(pool, OwnPool) and _is_plain(request) else []
            if not taken or not isinstance(pool, OwnPool):
                return once.by_urllib3(pool)
            try:
                # urllib3 counts the requests that it makes.
                pool.num_requests += 1
                return once.plainly(taken[0])
            finally:
                pool.give_back(taken)
        except BackendUnavailableError:
            # This error is an OSError too, but not one of the connection: a repeated request would be answered alike.
            raise
        except (urllib3.exceptions.HTTPError, HTTPException, OSError) as error:
            return Fault.unreachable(self.base_url, error)
        finally:
            wait_s, nbytes = (None, 0) if once is None else (once.wait_s, once.nbytes)
            self.meter.end(time.monotonic(), wait_s, nbytes)


def _is_plain(request: Request) -> bool:
    """Tell whether a request may go past urllib3, if a connection is open: see `Connection`.

    That leans on a body that is sent at once: urllib3 reads answers that come while a long one is still being sent. It
    also quotes what stands in paths, which ours are already.
    """
    return sum(map(len, request.body)) <= _PLAIN_BYTES and _PLAIN_PATH.fullmatch(request.path) is not None


@dataclass(slots=True)
class _Once:
    """A request that is made once, with what the meter of the line wants to know of it."""

    request: Request
    url: str
    headers: Mapping[str, str]
    asked: str
    begun: float
    wait_s: float | None = None
    nbytes: int = 0

    def plainly(self, connection: Connection) -> Answer | Fault:
        """Make the request on an open connection, past urllib3."""
        response = None
        try:
            connection.sock.settimeout(READ_TIMEOUT_S)
            connection.send_plainly(self.request, self.url, self.headers)
            response = connection.receive_plainly()
            self.wait_s = time.monotonic() - self.begun
            answer = read_plainly(self.request, response, self.asked)
        finally:
            # An answer that was not read to its end: its rest must not be taken for the next answer.
            if response is None or not response.isclosed():
                connection.close()
        self.nbytes = bytes_of(self.request, answer)
        return answer

    def by_urllib3(self, pool: urllib3.PoolManager | urllib3.HTTPConnectionPool) -> Answer | Fault:
        """Make the request on whatever connection urllib3 has, or opens."""
        request = self.request
        response = pool.urlopen(
            request.method,
            self.url,
            body=cast("Iterable[bytes]", request.body) if request.body else None,
            headers=self.headers,
            retries=False,
            redirect=False,
            preload_content=False,
            decode_content=False,
        )
        self.wait_s = time.monotonic() - self.begun
        try:
            if not 200 <= response.status < 300:
                retry_after = response.headers.get("Retry-After")
                return request.read_fault(response.status, response.read(), retry_after)
            _check_uncompressed(response.headers, self.asked)
            body = b""
            if request.out is None:
                body = response.read()
            else:
                _fill(request.out, response, self.asked)
        except BaseException:
            # The answer was not read to its end: its rest must not be taken for the next answer.
            response.close()
            raise
        finally:
            response.release_conn()
        answer = Answer(response.status, response.headers, body)
        self.nbytes = bytes_of(request, answer)
        return answer


def bytes_of(request: Request, outcome: Answer | Fault | Exception) -> int:
    """Return the bytes of a good answer, 0 for any other outcome."""
    if not isinstance(outcome, Answer):
        return 0
    return len(outcome.body) if request.out is None else len(request.out)


def complete_headers(request: Request, of_login: Mapping[str, str]) -> dict[str, str]:
    """Return the headers of a request: those of the login, the length of its body, and its own."""
    nbytes = sum(len(part) for part in request.body)
    return {**of_login, "Content-Length": str(nbytes), **request.headers}


def read_plainly(request: Request, response: HTTPResponse, asked: str) -> Answer | Fault:
    """Read an answer of ``http.client`` to its end.

    Raises
    ------
    BackendUnavailableError
        If a good answer is not what was asked for.
    OSError, http.client.HTTPException
        If the connection ends before the answer.
    """
    # urllib3 logs the requests that it makes in the same way.
    logger.debug('"%s %s HTTP/1.1" %s', request.method, request.path, response.status)
    headers = cast("Mapping[str, str]", response.headers)
    if not 200 <= response.status < 300:
        return request.read_fault(response.status, response.read(), headers.get("Retry-After"))
    _check_uncompressed(headers, asked)
    if request.out is None:
        return Answer(response.status, headers, response.read())
    out, announced = request.out, response.length
    if announced is not None and announced != len(out):
        raise _wrong_size(asked, announced, len(out))
    filled = _fill_straight(out, response)
    if announced is None:
        filled += len(response.read(1))
    elif filled < len(out):
        raise ConnectionResetError(f"the connection ended after {filled} of {len(out)} bytes")
    if filled != len(out):
        raise _wrong_size(asked, filled, len(out))
    return Answer(response.status, headers, b"")


def _check_uncompressed(headers: Mapping[str, str], asked: str) -> None:
    """Refuse a compressed answer, which nobody asked for: its true size would show too late."""
    encoding = headers.get("Content-Encoding", "identity")
    if encoding.lower() != "identity":
        raise BackendUnavailableError(
            f"{asked}: the answer has Content-Encoding {encoding[:40]!r}, which was not asked for: it is not "
            "decompressed. What stands between this client and the project has to leave answers as they are."
        )


def _fill(out: memoryview, response: urllib3.BaseHTTPResponse, asked: str) -> None:
    announced = response.headers.get("Content-Length")
    if announced is not None and int(announced) != len(out):
        raise _wrong_size(asked, int(announced), len(out))
    socket_file = _socket_file(response)
    # Without an announced length, an early end of the connection looks like a short answer.
    if announced is not None and socket_file is not None:
        received = _fill_straight(out, socket_file)
        if received < len(out):
            raise ConnectionResetError(f"the connection ended after {received} of {len(out)} bytes")
        return
    filled = 0
    for part in response.stream(_READ_BYTES, decode_content=False):
        if filled + len(part) > len(out):
            raise _wrong_size(asked, filled + len(part), len(out))
        out[filled : filled + len(part)] = part
        filled += len(part)
    if filled != len(out):
        raise _wrong_size(asked, filled, len(out))


def _socket_file(response: urllib3.BaseHTTPResponse) -> HTTPResponse | None:
    """Return the file that urllib3 reads an answer from, if it passes the bytes on unchanged.

    urllib3 cannot read into existing memory, and a copy takes a sixth of the time of a large read.
    """
    below = getattr(response, "_fp", None)
    if not isinstance(below, HTTPResponse) or below.chunked or "Content-Encoding" in response.headers:
        return None
    return below


def _fill_straight(out: memoryview, socket_file: HTTPResponse) -> int:
    """Fill memory with the bytes of an answer, as far as there are any, and return their number."""
    filled = 0
    while filled < len(out):
        received = socket_file.readinto(out[filled : filled + _READ_INTO_BYTES])
        if not received:
            break
        filled += received
    return filled


def _wrong_size(asked: str, received: int, expected: int) -> WrongSizeError:
    return WrongSizeError(
        f"{asked}: the backend sent {received} bytes where {expected} were asked for; nothing is returned"
    )


def new_pool(base_url: str, maxsize: int, timeout: urllib3.Timeout) -> urllib3.PoolManager:
    """Make a pool of connections to a project, through the proxy that the environment names for it, if any."""
    import urllib3

    scheme, _, rest = base_url.partition("://")
    host = rest.partition("/")[0]
    # urllib3 does not look at the environment by itself.
    proxy = None if proxy_bypass(host) else getproxies().get(scheme)
    make = partial(urllib3.ProxyManager, proxy) if proxy else urllib3.PoolManager
    pools = make(
        maxsize=maxsize,
        block=False,
        timeout=timeout,
        ssl_context=tls_context(base_url) if scheme == "https" else None,
    )
    pools.pool_classes_by_scheme = _pool_classes()
    return pools


class OwnPool(_Pool):
    """Part of a pool: connections that are opened before a request needs them, or are taken out of it for a while."""

    def take_open(self, most: int) -> list[Connection]:
        """Take connections that are open and idle out of the pool, at most so many of them."""
        from urllib3.exceptions import ClosedPoolError

        taken: list[Connection] = []
        closed: list[Connection] = []
        try:
            for _ in range(most):
                connection = cast("Connection", self._get_conn())
                (closed if connection.is_closed else taken).append(connection)
        except ClosedPoolError:
            pass
        self.give_back(closed)
        return taken

    def give_back(self, connections: Iterable[Connection]) -> None:
        """Put connections back, whose answers were read to their end. Closed ones are opened again later."""
        # The last one is taken first again.
        for connection in sorted(connections, key=lambda each: not each.is_closed):
            self._put_conn(cast("Any", connection))

    def open_one(self) -> None:
        """Open a connection and keep it for a request. A failure is left to the request, which tells of it."""
        from urllib3.exceptions import HTTPError

        connection = self._get_conn()
        try:
            # A request may have opened it meanwhile.
            if connection.is_closed:
                connection.timeout = CONNECT_TIMEOUT_S
                connection.connect()
        except (HTTPError, OSError) as error:
            logger.debug("no connection to %s was opened ahead: %s", self.host, error)
            connection.close()
        finally:
            self._put_conn(connection)


class _Joining:
    """Part of a connection that sends a head and a small body at once.

    Else each is a system call, and the server wakes for the head alone.
    """

    _held: list[Any] | None = None

    def request(self, *args: Any, **options: Any) -> None:
        with self._joined():
            super().request(*args, **options)  # type: ignore[misc]

    def send(self, data: Any) -> None:
        if self._held is None:
            super().send(data)  # type: ignore[misc]
            return
        self._held.append(data)
        if sum(map(len, self._held)) > _JOINED_BYTES:
            self._send_held()

    def send_plainly(self, request: Request, path: str, headers: Mapping[str, str]) -> None:
        """Send a request: see `Connection`."""
        # urllib3 says the same of itself. Gateways may refuse whoever says nothing.
        named = {"User-Agent": _agent(), **headers}
        with self._joined():
            HttpClientConnection.request(cast("Any", self), request.method, path, None, named)
            for part in request.body:
                self.send(part)

    def receive_plainly(self) -> HTTPResponse:
        """Wait for the head of the answer."""
        return HttpClientConnection.getresponse(cast("Any", self))

    @contextmanager
    def _joined(self) -> Iterator[None]:
        self._held = []
        try:
            yield
            self._send_held()
        finally:
            self._held = None

    def _send_held(self) -> None:
        held, self._held = self._held or [], None
        if held and sum(map(len, held)) <= _JOINED_BYTES:
            held = [b"".join(held)]
        for part in held:
            self.send(part)


def _is_silent(readable: Any) -> bool:
    """Tell whether a connection by TLS that is idle and has something to read has but what TLS sends of its own accord.

    Servers send tickets behind the handshake. urllib3 takes anything to read for the end of an idle connection, so that
    one which was opened ahead would be closed, and the first request would open another one.
    """
    if readable is None:
        return False
    try:
        readable.settimeout(0)
        # Whatever comes here was sent without a request, or is the end.
        readable.recv(1)
    except ssl.SSLWantReadError:
        return True
    except OSError:
        return False
    return False


@functools.cache
def _agent() -> str:
    return f"python-urllib3/{version('urllib3')}"


@functools.cache
def _pool_classes() -> dict[str, type[urllib3.HTTPConnectionPool]]:
    """Return urllib3's pools of connections, with parts of ours."""
    import urllib3
    from urllib3.connection import HTTPConnection, HTTPSConnection

    class Plain(_Joining, HTTPConnection):
        pass

    class Tls(_Joining, HTTPSConnection):
        @property
        def is_connected(self) -> bool:
            return super().is_connected or _is_silent(self.sock)

    class Pool(OwnPool, urllib3.HTTPConnectionPool):
        ConnectionCls = Plain

    class TlsPool(OwnPool, urllib3.HTTPSConnectionPool):
        ConnectionCls = Tls

    return {"http": Pool, "https": TlsPool}


def tls_context(base_url: str) -> ssl.SSLContext:
    """Return the TLS settings of connections to a project, which all sessions of this process share.

    Reading the trusted certificates takes some 40 ms. A project that is reached by plain HTTP needs none of them: its
    settings trust nobody, so that a connection by TLS fails instead of going unchecked.
    """
    if not base_url.startswith("https:"):
        return _trusting_nobody()
    return _trusting(os.environ.get("SSL_CERT_FILE"), os.environ.get("SSL_CERT_DIR"))


@functools.cache
def _trusting_nobody() -> ssl.SSLContext:
    return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


@functools.cache
def _trusting(*_variables: str | None) -> ssl.SSLContext:
    """Trust the roots that the SDK's own client trusts, so that both reach the same hosts.

    The variables are those that httpx reads: a process that changes them gets what they say now.
    """
    import httpx

    return httpx.create_ssl_context()


# Another thread may be using it, and hold a lock of OpenSSL's, at the moment of a fork.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_trusting.cache_clear)
