"""A proxy between the client and the server: it tells what passed, and loses what it is told to lose."""

from __future__ import annotations

import contextlib
import select
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from urllib.parse import urlsplit

import pytest

_END_OF_HEAD = b"\r\n\r\n"

#: Enough of a body to tell the request from others: its header, and the id of its operation.
_BEGINNING_BYTES = 1024


@dataclass
class Exchange:
    """A request and its answer: bytes are those of the bodies."""

    target: str
    sent_bytes: int = 0
    received_bytes: int = 0
    beginning: bytes = b""
    is_answered: bool = False
    method: str = ""

    @property
    def function(self) -> str:
        """``read`` for a call of ``tensorage_read``."""
        return self.target.rpartition("tensorage_")[2]

    @property
    def kind(self) -> str:
        """The request in a word or two: a function, or that objects are stored, read or deleted."""
        if self.is_upload or self.is_download:
            return "upload" if self.is_upload else "download"
        return "remove objects" if self.method == "DELETE" else self.function

    @property
    def is_upload(self) -> bool:
        """True if it stores an object."""
        return self.method == "POST" and self.target.startswith("/storage/v1/object/tensors/")

    @property
    def is_download(self) -> bool:
        """True if it reads an object, or a range of one."""
        return self.method == "GET" and self.target.startswith("/storage/v1/object/authenticated/tensors/")


#: Kinds of the requests that delete leftovers.
_SWEEPING = frozenset({"sweep", "sweep_objects", "remove objects"})


class Proxy:
    """Passes on to the server at `url` whatever comes to its own `url`, one exchange after the other.

    Parameters
    ----------
    loses_answer
        Tells of an exchange whether its answer, which has just come, is to be lost along with the connection.
    breaks
        Tells of an exchange, of which something has just passed, whether the connection breaks now.
    changes
        Makes what the server gets of the beginning of a request.
    changes_answer
        Makes what the client gets of the beginning of an answer.
    port
        Port of its own; by default one that is free.
    """

    def __init__(
        self,
        url: str,
        loses_answer: Callable[[Exchange], bool] = lambda _: False,
        breaks: Callable[[Exchange], bool] = lambda _: False,
        changes: Callable[[bytes], bytes] = lambda head: head,
        port: int = 0,
        changes_answer: Callable[[bytes], bytes] = lambda head: head,
    ) -> None:
        address = urlsplit(url)
        if address.scheme != "http" or address.hostname is None:
            pytest.skip("what passes cannot be seen: the project is reached by TLS")
        self.server = (address.hostname, address.port or 80)
        self._loses_answer = loses_answer
        self._breaks = breaks
        self._changes = changes
        self._changes_answer = changes_answer
        self._listener = socket.create_server(("127.0.0.1", port), backlog=64)
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        #: Exchanges in the order in which they began, without those of signing in and out.
        self.exchanges: list[Exchange] = []
        # Shut down at the end, which wakes all threads: until then they wait without looking for it.
        self._end, self._ended = socket.socketpair()
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    @contextlib.contextmanager
    def counted(self, *, with_sweeping: bool = False) -> Iterator[list[Exchange]]:
        """The exchanges of the block, complete when it has ended.

        Sessions sweep behind their callers' backs, perhaps what was left before the block. Such requests are left out
        unless they are asked for, by a test that waits for them.
        """
        before = len(self.exchanges)
        exchanges: list[Exchange] = []
        yield exchanges
        exchanges += [
            exchange
            for exchange in self.exchanges[before:]
            if with_sweeping or exchange.kind not in _SWEEPING
        ]

    def close(self) -> None:
        # To close it would not do: children that were forked have it, too.
        self._end.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        self._end.close()
        self._ended.close()
        self._listener.close()

    def _accept(self) -> None:
        for listener in self._ready(self._listener):
            client, _ = listener.accept()
            thread = threading.Thread(target=self._pass_on, args=[client])
            self._threads.append(thread)
            thread.start()

    def _pass_on(self, client: socket.socket) -> None:
        exchange, is_answering, owed_bytes = Exchange(""), True, 0
        # A server that is down refuses: the client finds the connection closed.
        with client, contextlib.suppress(ConnectionError), socket.create_connection(self.server) as server:
            for end in (client, server):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            # A process that is killed resets its connections.
            with contextlib.suppress(ConnectionError):
                for source in self._ready(client, server):
                    data = source.recv(1024 * 1024)
                    if not data:
                        return
                    # The rest of a body is no new request, even if the answer is there already.
                    begins = is_answering == (source is client) and not (source is client and owed_bytes > 0)
                    if begins:
                        is_answering = source is server
                    body = data.partition(_END_OF_HEAD)[2] if begins else data
                    if source is server:
                        if begins and self._loses_answer(exchange):
                            return
                        exchange.is_answered = True
                        exchange.received_bytes += len(body)
                        client.sendall(self._changes_answer(data) if begins else data)
                    else:
                        if begins:
                            exchange, owed_bytes = self._began(data), _length_of_body(data)
                        owed_bytes -= len(body)
                        exchange.sent_bytes += len(body)
                        exchange.beginning = (exchange.beginning + body)[:_BEGINNING_BYTES]
                        server.sendall(self._changes(data) if begins else data)
                    if self._breaks(exchange):
                        return

    def _ready(self, *sockets: socket.socket) -> Iterator[socket.socket]:
        while self._ended not in (ready := select.select([*sockets, self._ended], [], [])[0]):
            yield from ready

    def _began(self, head: bytes) -> Exchange:
        method, target, _ = head.split(b" ", 2)
        exchange = Exchange(target.decode(), method=method.decode())
        if "/auth/" not in exchange.target:
            self.exchanges.append(exchange)
        return exchange


def _length_of_body(head: bytes) -> int:
    for line in head.partition(_END_OF_HEAD)[0].lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            return int(line.partition(b":")[2])
    return 0
