"""A line of some length and width, between clients and a server on one machine.

Both directions are alike, and apart. All connections share a direction, as they share the line of a house: bytes
enter it in the order in which they come, and one after the other. A byte arrives half a round trip after it has
entered. A new connection waits for a round trip before its first byte enters.

The line holds what is on its way, and little more. A client that sends faster has to wait, and so has a server whose
client does not read.

A line loses nothing, and is as wide for a new connection as for an old one. TCP's slow start and the round trips of
TLS are no part of it, unless `connection_round_trips` says so.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import selectors
import socket
import struct
import threading
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, fields
from urllib.parse import urlsplit

from benchmarks.network.messages import Messages

#: Seconds' worth of bytes that wait for a line beyond those on it: it would run dry between two reads of a socket.
_QUEUE_S = 0.01
_MIN_QUEUE_BYTES = 64 * 1024
_MAX_QUEUE_BYTES = 1024 * 1024

#: Bytes on a line that has a length, and no end to its width.
_UNMETERED_BYTES = 16 * 1024 * 1024

#: Most bytes that enter a line in one go. The others wait for so long, so that it is a millisecond on a narrow line.
_MAX_PIECE_BYTES = 256 * 1024
_MIN_PIECE_BYTES = 8 * 1024
_PIECE_S = 0.001

#: Segments of Ethernet. Segments of loopback have 64 KiB: after a read of less, its window stays almost closed, until a
#: timer of 40 ms opens it.
_SEGMENT_BYTES = 1448

#: Makes closing a connection a reset, which drops what is still to be sent.
_RESETS = struct.pack("ii", 1, 0)


@dataclass
class Counts:
    """Totals of a line: bytes are all that passed, heads included."""

    connections: int = 0
    requests: int = 0
    sent_bytes: int = 0
    received_bytes: int = 0
    #: Most requests that were under way at once, from the first byte sent to the last one received.
    peak_requests: int = 0

    def since(self, before: Counts) -> Counts:
        """Return what came since `before`. The peak is this one's."""
        grown = {each.name: getattr(self, each.name) - getattr(before, each.name) for each in fields(self)}
        return Counts(**{**grown, "peak_requests": self.peak_requests})


class Line:
    """Passes on to the server at `url` whatever comes to its own `url`, and takes the time of a line for it.

    Parameters
    ----------
    round_trip_s
        Seconds from a request's last byte to its answer's first one, if the server takes none.
    bytes_per_s
        Width of each direction.
    connection_round_trips
        Round trips that a new connection takes before its first byte: 1 for TCP, 2 for TLS 1.3 on top of it.

    Examples
    --------
    >>> line = Line("http://127.0.0.1:9", round_trip_s=0.03, bytes_per_s=25e6)
    >>> line.url.startswith("http://127.0.0.1:")
    True
    >>> line.close()
    """

    def __init__(
        self,
        url: str,
        round_trip_s: float = 0.0,
        bytes_per_s: float = math.inf,
        connection_round_trips: int = 1,
    ) -> None:
        address = urlsplit(url)
        if address.scheme != "http" or address.hostname is None:
            raise ValueError(
                f"{url!r} is no address that starts with http://: what passes could not be counted"
            )
        self.server = (address.hostname, address.port or 80)
        self.round_trip_s = round_trip_s
        self.connecting_s = round_trip_s * connection_round_trips
        # epoll rounds each wait up to a whole millisecond, which is too much of a short line.
        self.loop = asyncio.SelectorEventLoop(selectors.SelectSelector())
        self.upwards = _Way(self.loop, round_trip_s / 2, bytes_per_s)
        self.downwards = _Way(self.loop, round_trip_s / 2, bytes_per_s)
        self.totals = Counts()
        self.requests_under_way = 0
        self.connections: set[_Connection] = set()
        listener = self.new_socket()
        listener.bind(("127.0.0.1", 0))
        listener.listen(128)
        self.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        self._server = self.loop.run_until_complete(
            self.loop.create_server(lambda: _Connection(self).client, sock=listener)
        )
        self._thread = threading.Thread(target=self.loop.run_forever, name="line", daemon=True)
        self._thread.start()

    def counts(self) -> Counts:
        """Return the totals since the line was made, and the peak since the last call."""
        return asyncio.run_coroutine_threadsafe(self._counts(), self.loop).result()

    @contextlib.contextmanager
    def counted(self) -> Iterator[Counts]:
        """Count what passes within the block: the counts are complete when it has ended."""
        before, counts = self.counts(), Counts()
        yield counts
        vars(counts).update(vars(self.counts().since(before)))

    def drop(self) -> int:
        """Break all connections at both ends, with what is on its way, and return how many there were."""
        return asyncio.run_coroutine_threadsafe(self._drop(), self.loop).result()

    def close(self) -> None:
        """Break all connections, and refuse new ones."""
        asyncio.run_coroutine_threadsafe(self._close(), self.loop).result()
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()

    def new_socket(self) -> socket.socket:
        """Return a socket that is not connected yet."""
        new = socket.socket()
        new.setblocking(False)
        if not self.upwards.is_instant:
            new.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, _SEGMENT_BYTES)
        return new

    def began(self) -> None:
        self.requests_under_way += 1
        self.totals.requests += 1
        self.totals.peak_requests = max(self.totals.peak_requests, self.requests_under_way)

    async def _counts(self) -> Counts:
        counts = Counts(**vars(self.totals))
        self.totals.peak_requests = self.requests_under_way
        return counts

    async def _drop(self) -> int:
        connections = list(self.connections)
        for connection in connections:
            connection.reset()
        # The sockets are closed in the loop's next turn.
        await asyncio.sleep(0)
        return len(connections)

    async def _close(self) -> None:
        self._server.close()
        await self._drop()
        opening = asyncio.all_tasks() - {asyncio.current_task()}
        for task in opening:
            task.cancel()
        await asyncio.gather(*opening, return_exceptions=True)
        await self._drop()


class _Way:
    """One direction of the line."""

    def __init__(self, loop: asyncio.AbstractEventLoop, delay_s: float, bytes_per_s: float) -> None:
        self._loop = loop
        self._delay_s = delay_s
        self._bytes_per_s = bytes_per_s
        self.is_instant = not delay_s and math.isinf(bytes_per_s)
        on_line = min(bytes_per_s * delay_s if delay_s else 0, _UNMETERED_BYTES)
        queued = max(_MIN_QUEUE_BYTES, min(bytes_per_s * _QUEUE_S, _MAX_QUEUE_BYTES))
        self.window_bytes = int(on_line + queued)
        self.piece_bytes = int(max(_MIN_PIECE_BYTES, min(bytes_per_s * _PIECE_S, _MAX_PIECE_BYTES)))
        self._under_way: deque[tuple[float, _End, bytes | None, int]] = deque()
        self._under_way_bytes = 0
        self._waiting: deque[_End] = deque()
        #: When the last byte that has entered leaves room for the next one.
        self._free_at = 0.0

    def enter(self, target: _End, source: _End, data: bytes | None) -> None:
        """Send bytes to `target`, or its end of the stream if there are none."""
        if self.is_instant:
            target.arrive(data)
            return
        size = len(data or b"")
        self._free_at = max(self._free_at, self._loop.time()) + size / self._bytes_per_s
        if not self._under_way:
            self._loop.call_at(self._free_at + self._delay_s, self._deliver)
        self._under_way.append((self._free_at + self._delay_s, target, data, size))
        self._under_way_bytes += size
        if self._under_way_bytes >= self.window_bytes:
            source.hold("line")
            self._waiting.append(source)

    def _deliver(self) -> None:
        while self._under_way and self._under_way[0][0] <= self._loop.time():
            _, target, data, size = self._under_way.popleft()
            self._under_way_bytes -= size
            target.arrive(data)
        self._let_in()
        if self._under_way:
            self._loop.call_at(self._under_way[0][0], self._deliver)

    def _let_in(self) -> None:
        """Let those read on that have waited longest, as many as there is room for.

        They may have nothing to send: when the line is empty, and no delivery is to come, all may read.
        """
        room = -(-(self.window_bytes - self._under_way_bytes) // self.piece_bytes)
        for _ in range(min(room, len(self._waiting)) if self._under_way else len(self._waiting)):
            self._waiting.popleft().release("line")


class _Connection:
    """One connection of a client, and the one to the server that goes with it."""

    def __init__(self, line: Line) -> None:
        self.line = line
        self.client = _End(self, line.upwards)
        self.server = _End(self, line.downwards)
        self._requests = Messages(self._began, lambda: None)
        self._answers = Messages(self._answer_began, self._answered, last_until_close=True)
        self._methods: deque[bytes] = deque()
        self._is_interim = False
        self._opening: asyncio.Task[None] | None = None

    def opened(self, end: _End) -> None:
        """Take the client's end: the server's is opened from here."""
        if end is self.client:
            self.line.totals.connections += 1
            self.line.connections.add(self)
            end.hold("connecting")
            self._opening = self.line.loop.create_task(self._open())
        elif not self.client.is_open:
            end.reset()

    async def _open(self) -> None:
        loop, begin = self.line.loop, self.line.loop.time()
        await asyncio.sleep(self.line.round_trip_s / 2)
        to_server = self.line.new_socket()
        try:
            await loop.sock_connect(to_server, self.line.server)
        except (OSError, asyncio.CancelledError):
            # A server that is down refuses: the client finds the connection closed.
            self.client.reset()
            to_server.close()
            return
        await loop.create_connection(lambda: self.server, sock=to_server)
        await asyncio.sleep(begin + self.line.connecting_s - loop.time())
        self.client.release("connecting")

    def other(self, end: _End) -> _End:
        return self.server if end is self.client else self.client

    def entered(self, end: _End, data: bytes) -> None:
        if end is self.client:
            self.line.totals.sent_bytes += len(data)
            self._requests.feed(data)
        else:
            self.line.totals.received_bytes += len(data)

    def arrived(self, end: _End, data: bytes) -> None:
        if end is self.client:
            self._answers.feed(data)

    def reset(self) -> None:
        self.client.reset()
        self.server.reset()

    def lost(self) -> None:
        """Forget the connection once both of its ends are closed."""
        if self.client.is_open or self.server.is_open:
            return
        if self._opening is not None:
            self._opening.cancel()
        self.line.connections.discard(self)
        self.line.requests_under_way -= len(self._methods)
        self._methods.clear()

    def _began(self, head: bytes) -> bool:
        self._methods.append(head.partition(b" ")[0])
        self.line.began()
        return True

    def _answer_began(self, head: bytes) -> bool:
        status = head.split(b" ", 2)[1]
        self._is_interim = status.startswith(b"1")
        is_of_head = bool(self._methods) and self._methods[0] == b"HEAD"
        return not (self._is_interim or is_of_head or status in (b"204", b"304"))

    def _answered(self) -> None:
        if self._methods and not self._is_interim:
            self._methods.popleft()
            self.line.requests_under_way -= 1


class _End(asyncio.BufferedProtocol):
    """One of the two ends of a connection: bytes that are read here are written at the other one."""

    def __init__(self, connection: _Connection, way: _Way) -> None:
        self._connection = connection
        self._way = way
        self._buffer = bytearray(way.piece_bytes)
        self._transport: asyncio.Transport | None = None
        #: Reasons to read no more for now.
        self._held_by: set[str] = set()
        self._has_ended = False
        self._is_told_to_end = False

    @property
    def is_open(self) -> bool:
        return self._transport is not None

    def hold(self, reason: str) -> None:
        self._held_by.add(reason)
        if self._transport is not None:
            self._transport.pause_reading()

    def release(self, reason: str) -> None:
        self._held_by.discard(reason)
        if self._transport is not None and not self._held_by:
            self._transport.resume_reading()

    def arrive(self, data: bytes | None) -> None:
        """Write what has come down the line, or end the stream."""
        if self._transport is None or self._transport.is_closing():
            return
        if data is not None:
            self._connection.arrived(self, data)
            self._transport.write(data)
        elif self._connection.other(self).is_broken:
            self.reset()
        else:
            self._end()

    def reset(self) -> None:
        if self._transport is not None:
            connected = self._transport.get_extra_info("socket")
            connected.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESETS)
            self._transport.abort()

    @property
    def is_broken(self) -> bool:
        """True if it is closed, and did not end its stream before."""
        return self._transport is None and not self._has_ended

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._connection.opened(self)

    def get_buffer(self, _sizehint: int) -> bytearray:
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        data = bytes(memoryview(self._buffer)[:nbytes])
        self._connection.entered(self, data)
        self._way.enter(self._connection.other(self), self, data)

    def eof_received(self) -> bool:
        """Pass on that this side sends no more. It may still be sent to."""
        self._has_ended = True
        self._way.enter(self._connection.other(self), self, None)
        return not self._is_told_to_end

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        if exc is not None or not self._has_ended:
            self._has_ended = False
            self._way.enter(self._connection.other(self), self, None)
        self._connection.lost()

    def pause_writing(self) -> None:
        self._connection.other(self).hold("reader")

    def resume_writing(self) -> None:
        self._connection.other(self).release("reader")

    def _end(self) -> None:
        assert self._transport is not None
        self._is_told_to_end = True
        if self._has_ended:
            self._transport.close()
        else:
            self._transport.write_eof()
