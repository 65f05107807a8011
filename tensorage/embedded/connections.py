"""One client's connection, held to limits: what an HTTP server in front of Supabase does for the servers behind it.

uvicorn takes heads of any size, waits for slow clients without an end, and queues as many requests as a connection
sends at once. Nobody needs a key for any of this, so that it has to be bounded before the application is asked.

A connection is looked at every `Limits.patience_s` seconds. Between two looks it has to get on: end the head that it
was sending, send some of its body, or take some of its answer. Nothing is asked of a connection that waits for us.
"""

from __future__ import annotations

import asyncio
import json
import sys
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal, NamedTuple

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

if TYPE_CHECKING:
    from uvicorn._types import ASGIReceiveCallable, ASGISendCallable, ASGISendEvent, Scope
    from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

#: Files that are kept free for PostgreSQL's connections and Storage's objects, as a part of all.
_FILES_FOR_CONNECTIONS: Final = 0.5

_CLOSE: Final = (b"connection", b"close")


@dataclass(frozen=True)
class Limits:
    """Bounds on what one client, or all of them together, can have of the server.

    Parameters
    ----------
    head_nbytes
        Bytes of a request's line and fields together. 431 beyond.
    head_fields
        Number of these fields.
    pipelined
        Requests that a connection may send ahead of their answers.
    connections
        At once, of all clients.
    patience_s
        Seconds in which a connection has to get on. It is ended after one to two times as long.
    progress_nbytes
        Bytes of a body that count as getting on. With a patience of 30 s, 4 KiB are 1.1 kbit/s, a thirtieth of what a
        telephone line carried: no upload that is worth waiting for is slower, and without such a floor a byte now
        and then would keep a connection, and its part of the memory, for ever.
    drained_nbytes
        Bytes of a body that are received and thrown away after its request was answered, so that a client that
        sends first and listens then finds the answer.
    """

    head_nbytes: int = 64 * 1024
    head_fields: int = 256
    pipelined: int = 16
    connections: int = 1024
    patience_s: float = 30.0
    progress_nbytes: int = 4096
    drained_nbytes: int = 64 * 1024 * 1024

    @classmethod
    def of_this_process(cls) -> Limits:
        """Limits for a server that may open as many files as this process may."""
        limits = cls()
        return replace(limits, connections=min(limits.connections, _file_limit()))


def _file_limit() -> int:
    if sys.platform == "win32":
        return Limits.connections
    import resource

    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return Limits.connections if soft == resource.RLIM_INFINITY else int(soft * _FILES_FOR_CONNECTIONS)


class _Refusal(NamedTuple):
    """An answer of the connection itself. Its JSON has the form that hosted Supabase's gateway gives."""

    status: int
    message: str


_INVALID: Final = _Refusal(400, "The request is not HTTP/1.1")


class _RefusedError(Exception):
    """Stops the parser; the refusal is kept by the connection."""


class _Look(NamedTuple):
    """State of a connection at one moment, to be compared with a later one."""

    phase: Literal["head", "body", "over", "other"]
    message: int
    received_nbytes: int
    unsent_nbytes: int
    drains: int


class Connection(HttpToolsProtocol):
    """uvicorn's connection, bounded. A subclass has other limits."""

    limits: ClassVar[Limits] = Limits()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._application = self.app
        self.app = self._run
        self._refusal = _INVALID
        self._is_in_head = True
        self._is_over = False
        self._message = 0
        self._head_nbytes = self._head_fields = 0
        # Bytes of a head that the parser has swallowed without a word: of a field that has no end yet.
        self._unheard_nbytes = 0
        self._received_nbytes = self._discarded_nbytes = 0
        self._drains = 0
        self._idle_since = 0.0
        self._last_look: _Look | None = None
        self._next_look: asyncio.TimerHandle | None = None

    # -- Connections ------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        super().connection_made(transport)
        self._idle_since = self.loop.time()
        self._next_look = self.loop.call_later(self.limits.patience_s, self._look)
        if len(self.connections) > self.limits.connections:
            self._make_room()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._next_look is not None:
            self._next_look.cancel()
        super().connection_lost(exc)

    def _make_room(self) -> None:
        """Let the connection go that has been waiting longest for a request, or this one where all are at work."""
        others = [
            other
            for other in self.connections
            if isinstance(other, Connection) and other is not self and not other.transport.is_closing()
        ]
        if len(others) < self.limits.connections:
            return
        idle = [other for other in others if other._is_idle]
        if idle:
            min(idle, key=lambda other: other._idle_since).transport.abort()
        else:
            self._refuse(
                _Refusal(503, f"All {self.limits.connections} connections are in use: try again later")
            )

    @property
    def _is_idle(self) -> bool:
        """Whether no request is being served, nor its answer sent."""
        return self._is_answered and not self.pipeline and not self.transport.get_write_buffer_size()

    @property
    def _is_answered(self) -> bool:
        """Whether the last request that is not waiting in the pipeline was answered, or there was none."""
        # uvicorn does not say that it is None at first.
        cycle: RequestResponseCycle | None = self.cycle
        return cycle is None or cycle.response_complete

    # -- Requests ---------------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        if self._is_over:
            self._discard(len(data))
            return
        if self._is_in_head:
            self._unheard_nbytes += len(data)
        super().data_received(data)
        if self._is_in_head and self._head_nbytes + self._unheard_nbytes > self.limits.head_nbytes:
            self._refuse(self._large_head())

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._message += 1
        self._unheard_nbytes = 0

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        self._count_head(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        super().on_header(name, value)
        # Trailers, which come after a body, count, too.
        self._head_fields += 1
        self._count_head(len(name) + len(value) + len(": \r\n"))

    def _count_head(self, nbytes: int) -> None:
        self._unheard_nbytes = 0
        self._head_nbytes += nbytes
        if self._head_nbytes > self.limits.head_nbytes or self._head_fields > self.limits.head_fields:
            self._stop_parsing(self._large_head())

    def _large_head(self) -> _Refusal:
        most = f"{self.limits.head_nbytes} bytes and {self.limits.head_fields} fields"
        return _Refusal(431, f"The URL and the headers of a request may have {most} together")

    def on_headers_complete(self) -> None:
        if len(self.pipeline) >= self.limits.pipelined:
            most = f"{self.limits.pipelined} requests"
            self._stop_parsing(_Refusal(400, f"A connection may send {most} ahead of their answers, no more"))
        super().on_headers_complete()
        self._is_in_head = False

    def on_body(self, body: bytes) -> None:
        self._received_nbytes += len(body)
        if self.cycle.response_complete:
            self._discard(len(body))
        super().on_body(body)

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._is_in_head = True
        self._head_nbytes = self._head_fields = self._unheard_nbytes = self._discarded_nbytes = 0

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._idle_since = self.loop.time()
        if not self.pipeline and self.cycle.response_complete:
            # It lives until the next request comes, and nobody asks for what it did not read.
            self.cycle.body = bytearray()

    def _discard(self, nbytes: int) -> None:
        """Throw away bytes of a request that was answered."""
        self._discarded_nbytes += nbytes
        if self._discarded_nbytes > self.limits.drained_nbytes:
            self.transport.abort()

    async def _run(self, scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        """Run the application; it returns when its answer has left the process, but for a small rest."""
        waits = scope["type"] == "http" and any(name == b"expect" for name, _ in scope["headers"])

        async def receive_body() -> Any:
            nonlocal waits
            waits = False
            return await receive()

        async def send_patiently(message: ASGISendEvent) -> None:
            if waits and message["type"] == "http.response.start":
                # Told to go on or not, the client may send its body: what follows on this connection is not known.
                message = {**message, "headers": [*message.get("headers", ()), _CLOSE]}
            await send(message)
            await self.flow.drain()

        await self._application(scope, receive_body, send_patiently)

    # -- Time -------------------------------------------------------------------------------------------

    def resume_writing(self) -> None:
        self._drains += 1
        super().resume_writing()

    def _look(self) -> None:
        """End the connection if it did not get on since the last look."""
        self._next_look = self.loop.call_later(self.limits.patience_s, self._look)
        last, now = self._last_look, self._seen()
        self._last_look = now
        if last is None or last.message != now.message:
            return
        is_unread = now.unsent_nbytes >= last.unsent_nbytes > 0 and now.drains == last.drains
        if is_unread or last.phase == now.phase == "over":
            self.transport.abort()
        elif last.phase == now.phase == "head":
            self._refuse(_Refusal(408, "The head of the request did not come"))
        elif (
            last.phase == now.phase == "body"
            and now.received_nbytes - last.received_nbytes < self.limits.progress_nbytes
        ):
            self._refuse(_Refusal(408, "The body of the request did not come, or came too slowly"))

    def _seen(self) -> _Look:
        unsent = self.transport.get_write_buffer_size()
        return _Look(self._phase(), self._message, self._received_nbytes, unsent, self._drains)

    def _phase(self) -> Literal["head", "body", "over", "other"]:
        """Tell what the client is to do next; "other" if it is not its turn."""
        if self._is_over:
            return "over"
        if self._is_in_head:
            # Between two requests uvicorn has a time limit of its own, which the first byte lifts.
            waits_for_head = self._is_answered and not self.pipeline
            return "head" if waits_for_head and self.timeout_keep_alive_task is None else "other"
        is_ours_to_go_on = self.flow.read_paused or self.cycle.waiting_for_100_continue
        return "other" if is_ours_to_go_on else "body"

    # -- Refusals ---------------------------------------------------------------------------------------

    def _stop_parsing(self, refusal: _Refusal) -> None:
        self._refusal = refusal
        raise _RefusedError

    def send_400_response(self, msg: str) -> None:
        """Answer what stopped the parser: a limit of ours, or something that is not HTTP."""
        del msg
        self._refuse(self._refusal)

    def _refuse(self, refusal: _Refusal) -> None:
        """Answer, where nothing else is being answered, and take nothing more from this connection."""
        if self._is_over or self.transport.is_closing():
            return
        self._is_over = True
        can_answer = self._can_answer()
        self._give_up_cycle()
        if not can_answer or not self.transport.can_write_eof():
            self.transport.abort()
            return
        self.transport.write(self._answer(refusal))
        # Closed with bytes of the request unread, the system would take the answer back.
        self.transport.write_eof()
        self.flow.resume_reading()

    def _can_answer(self) -> bool:
        """Whether an answer that is written now is the one that the client expects next."""
        if self.pipeline:
            return False
        if self._is_in_head:
            return self._is_answered
        return not self.cycle.response_started

    def _give_up_cycle(self) -> None:
        """Tell the application that is being run that its client is gone."""
        self._unset_keepalive_if_required()
        self.pipeline.clear()
        if not self._is_answered:
            self.cycle.disconnected = True
            self.cycle.message_event.set()

    def _answer(self, refusal: _Refusal) -> bytes:
        body = json.dumps({"message": refusal.message}).encode()
        fields = dict(self.server_state.default_headers)
        fields |= {
            b"content-type": b"application/json; charset=utf-8",
            b"content-length": b"%d" % len(body),
            b"connection": b"close",
        }
        head = b"".join(b"%s: %s\r\n" % field for field in fields.items())
        return STATUS_LINE[refusal.status] + head + b"\r\n" + body


def protocol(limits: Limits) -> type[Connection]:
    """Make the kind of connection that has these limits."""
    return type("LimitedConnection", (Connection,), {"limits": limits})
