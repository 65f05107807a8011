"""Many small requests at once, made by one thread: all are sent, and each answer is read as it comes.

A thread for each request takes longer than the request: it has to be begun, and each of its steps waits for the
interpreter. Here one thread sends requests on connections that are open already, waits for whichever answer comes
first, and reads it. Python's own ``http.client`` writes the requests and reads the answers.

A request is made once here. Whatever is not a good answer is left for `Http.ask`, which gets it as its first attempt,
and waits, repeats, renews the login, or raises.
"""

from __future__ import annotations

import selectors
import time
from collections.abc import Callable, Iterator
from http.client import HTTPException
from typing import NamedTuple, Protocol

from tensorage.backend.wire.faults import Fault
from tensorage.backend.wire.http import (
    READ_TIMEOUT_S,
    Answer,
    Attempt,
    Connection,
    Http,
    OwnPool,
    Request,
    bytes_of,
    complete_headers,
    read_plainly,
)
from tensorage.errors import BackendUnavailableError

__all__ = ["Exchange", "Job", "do_together"]


class Exchange(NamedTuple):
    """A request, and the work on its answer.

    Parameters
    ----------
    asked
        Wish of the user, for error messages.
    end
        Goes on from an attempt: gives it to `Http.ask`, and does the work on its answer.
    """

    request: Request
    asked: str
    end: Callable[[Attempt], None]


class Job(Protocol):
    """Work that may consist of one request, and of work on its answer."""

    @property
    def do(self) -> Callable[[], None]:
        """Function that does the job in any way."""
        ...

    @property
    def begin(self) -> Callable[[], Exchange | None]:
        """Function that returns the job as an exchange, or None if it is none."""
        ...


class _Sent(NamedTuple):
    exchange: Exchange
    connection: Connection
    authorization: str
    at: float


def do_together(http: Http, jobs: Iterator[Job], most: int) -> Iterator[Callable[[], None]]:
    """Do jobs by this thread alone, as far as that goes, and yield functions that do what is left.

    All are left if fewer connections are open than there is room for requests, or if there is a proxy: threads then
    open connections. After the first request without a good answer, no other one is sent.

    Parameters
    ----------
    most
        Most requests at once. They take room for downloads, of which other threads may have some.

    Raises
    ------
    Exception
        The first error of the work on an answer. No further request is then under way.
    """
    pool, base = http.straight_pool()
    left: list[Callable[[], None]] = []
    if isinstance(pool, OwnPool):
        together = _Together(http, pool, base, most)
        try:
            left = together.do(jobs)
        finally:
            together.end()
    yield from left
    yield from (job.do for job in jobs)


class _Together:
    """Exchanges on a few connections, each of which has a place in the room for downloads."""

    def __init__(self, http: Http, pool: OwnPool, base: str, most: int) -> None:
        self._http = http
        self._pool = pool
        self._base = base
        self._most = most
        self._idle: list[Connection] = []
        self._under_way: dict[Connection, _Sent] = {}
        self._selector = selectors.DefaultSelector()
        self._left: list[Callable[[], None]] = []
        self._is_over = False
        self._closed = 0

    def do(self, jobs: Iterator[Job]) -> list[Callable[[], None]]:
        """Do jobs until there are no more, or until one has no good answer, and return what is left of those begun."""
        self._is_over = not self._open()
        while True:
            while not self._is_over and (self._idle or self._widen()):
                if (job := next(jobs, None)) is None:
                    self._is_over = True
                else:
                    self._begin(job)
            if self._is_over:
                # Other threads may wait for the room.
                self._give_back(self._idle)
            if not self._under_way:
                return self._left
            self._receive()

    def end(self) -> None:
        """Close connections whose answers were not read, and give all of them back."""
        for sent in list(self._under_way.values()):
            self._finish(sent, None, 0)
            sent.connection.close()
            self._give_back([sent.connection])
        self._give_back(self._idle)
        self._selector.close()

    def _open(self) -> bool:
        """Take as much room as there is, and as many open connections. False if there are fewer."""
        # Nobody waits for this thread while it has nothing under way.
        self._http.downloads.acquire()
        places = 1
        while places < self._most and self._http.downloads.acquire(blocking=False):
            places += 1
        self._idle = self._pool.take_open(places)
        for _ in range(places - len(self._idle)):
            self._http.downloads.release()
        return len(self._idle) == places

    def _widen(self) -> bool:
        """Take one more connection, if it is open and there is room that others had before."""
        if len(self._under_way) >= self._most or not self._http.downloads.acquire(blocking=False):
            return False
        self._idle = self._pool.take_open(1)
        if not self._idle:
            self._http.downloads.release()
        return bool(self._idle)

    def _give_back(self, connections: list[Connection]) -> None:
        self._pool.give_back(connections)
        for _ in connections:
            self._http.downloads.release()
        connections.clear()

    def _begin(self, job: Job) -> None:
        exchange = job.begin()
        # No thread waits for room here while answers wait for it.
        if exchange is None or not self._take_other_room(exchange):
            self._left.append(job.do)
            self._is_over = exchange is not None
            return
        connection, request = self._idle.pop(), exchange.request
        self._http.meter.begin(now := time.monotonic())
        sent = _Sent(exchange, connection, "", now)
        self._under_way[connection] = sent
        try:
            headers = complete_headers(request, self._http.login.headers())
            self._under_way[connection] = sent = sent._replace(authorization=headers.get("Authorization", ""))
            connection.sock.settimeout(READ_TIMEOUT_S)
            self._pool.num_requests += 1
            connection.send_plainly(request, self._base + request.path, headers)
            self._selector.register(connection.sock, selectors.EVENT_READ, connection)
        except BackendUnavailableError:
            # The login cannot be renewed now.
            self._finish(sent, None, 0)
            self._idle.append(connection)
            self._left.append(job.do)
            self._is_over = True
        except (OSError, HTTPException) as error:
            self._fail(sent, error)

    def _take_other_room(self, exchange: Exchange) -> bool:
        """Take a place in the room of requests that are no downloads, if it is one."""
        return exchange.request.is_download or self._http.room(exchange.request).acquire(blocking=False)

    def _receive(self) -> None:
        """Wait for answers, and read those that have begun to come."""
        first = min(sent.at for sent in self._under_way.values())
        ready = self._selector.select(max(first + READ_TIMEOUT_S - time.monotonic(), 0.0))
        for key, _ in ready:
            self._read(self._under_way[key.data])
        if not ready:
            for sent in list(self._under_way.values()):
                if sent.at + READ_TIMEOUT_S <= time.monotonic():
                    self._selector.unregister(sent.connection.sock)
                    self._fail(sent, TimeoutError(f"no answer within {READ_TIMEOUT_S:g} s"))

    def _read(self, sent: _Sent) -> None:
        self._selector.unregister(sent.connection.sock)
        request, asked, _ = sent.exchange
        response = wait_s = None
        try:
            response = sent.connection.receive_plainly()
            wait_s = time.monotonic() - sent.at
            outcome: Answer | Fault | Exception = read_plainly(request, response, asked)
        except (OSError, HTTPException) as error:
            # This error is an OSError too, but not one of the connection.
            if not isinstance(error, BackendUnavailableError):
                self._fail(sent, error)
                return
            outcome = error
        except Exception as error:  # noqa: BLE001 - a refusal, which `Http.ask` raises
            outcome = error
        # An answer that was not read to its end: its rest must not be taken for the next answer.
        if response is None or not response.isclosed():
            sent.connection.close()
        self._finish(sent, wait_s, bytes_of(request, outcome))
        self._keep(sent.connection)
        self._go_on(sent, outcome)

    def _fail(self, sent: _Sent, error: Exception) -> None:
        sent.connection.close()
        self._finish(sent, None, 0)
        self._keep(sent.connection)
        self._go_on(sent, Fault.unreachable(self._http.base_url, error))

    def _keep(self, connection: Connection) -> None:
        """Keep a connection for the next request, unless it was closed."""
        if not connection.is_closed:
            self._idle.append(connection)
            return
        self._give_back([connection])
        self._closed += 1
        # A server may close connections after so many requests, all at about the same time: threads open others.
        if self._closed > len(self._idle) + len(self._under_way):
            self._is_over = True

    def _finish(self, sent: _Sent, wait_s: float | None, nbytes: int) -> None:
        del self._under_way[sent.connection]
        if not sent.exchange.request.is_download:
            self._http.room(sent.exchange.request).release()
        self._http.meter.end(time.monotonic(), wait_s, nbytes)

    def _go_on(self, sent: _Sent, outcome: Answer | Fault | Exception) -> None:
        attempt = Attempt(outcome, sent.authorization)
        if isinstance(outcome, Answer):
            sent.exchange.end(attempt)
            return
        # Other answers must not wait for a wait, a renewal or a second request.
        self._is_over = True
        self._left.append(lambda: sent.exchange.end(attempt))
