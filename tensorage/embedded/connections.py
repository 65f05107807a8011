"""Limits on one client's connection, as an HTTP server in front of Supabase would set them.

uvicorn accepts heads of any size, waits for slow clients without end, and queues any number of requests of one
connection. All of that needs no key, and is therefore bounded before the application is called.

A connection is checked every `Limits.progress_interval_s` seconds. Between two checks the client has to make progress:
end the head that it was sending, send some of its body, or take some of its answer. A connection that waits for the
server passes every check.
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

#: Part of the process's file descriptors for clients. The rest is for PostgreSQL's connections and Storage's objects.
_FILES_FOR_CONNECTIONS: Final = 0.5

_CLOSE: Final = (b"connection", b"close")


@dataclass(frozen=True)
class Limits:
    """Limits on the resources of one client, and of all clients together.

    Parameters
    ----------
    head_nbytes
        Bytes of a request's line and fields together. Beyond them the answer is 431.
    head_fields
        Number of a head's fields.
    pipelined
        Requests that a connection may send ahead of their answers.
    connections
        Open connections of all clients.
    progress_interval_s
        Seconds between two checks of a connection. One without progress ends after one to two intervals.
    progress_nbytes
        Fewest bytes of a body that count as progress. 4 KiB in 30 s are 1.1 kbit/s, a thirtieth of a telephone line:
        no useful upload is slower. Without this floor a byte now and then would hold a connection, and its share
        of the memory, for ever.
    drained_nbytes
        Bytes of a body that are received and discarded after its request was answered. A client that sends its
        whole body before it reads then still finds the answer.
    """

    head_nbytes: int = 64 * 1024
    head_fields: int = 256
    pipelined: int = 16
    connections: int = 1024
    progress_interval_s: float = 30.0
    progress_nbytes: int = 4096
    drained_nbytes: int = 64 * 1024 * 1024

    @classmethod
    def for_this_process(cls) -> Limits:
        """Return limits that this process can keep with the files it may open."""
        limits = cls()
        return replace(limits, connections=min(limits.connections, _find_connection_limit()))


def _find_connection_limit() -> int:
    if sys.platform == "win32":
        return Limits.connections
    import resource

    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return Limits.connections if soft == resource.RLIM_INFINITY else int(soft * _FILES_FOR_CONNECTIONS)


class _Refusal(NamedTuple):
    """An error that the connection itself answers, in the JSON of hosted Supabase's gateway."""

    status: int
    message: str


_INVALID: Final = _Refusal(400, "The request is not HTTP/1.1")


class _RefusedError(Exception):
    """Stops the parser. The connection keeps the refusal to answer with."""


class _Progress(NamedTuple):
    """State of a connection at one moment, compared with a later one to find progress."""

    phase: Literal["head", "body", "over", "other"]
    message: int
    received_nbytes: int
    unsent_nbytes: int
    drains: int


class _Joined:
    """Transport of one answer, which sends the head together with the beginning of the body.

    Each write of its own would be a system call here, and wake the client.
    """

    def __init__(self, transport: asyncio.Transport, cycle: RequestResponseCycle) -> None:
        self._transport = transport
        self._cycle = cycle
        self._held: bytes | None = None
        # The answer to HEAD has no body to wait for.
        self._is_begun = cycle.scope["method"] == "HEAD"

    def write(self, data: bytes) -> None:
        if self._held is not None:
            head, self._held = self._held, None
            self._transport.writelines([head, data])
        elif self._cycle.response_started and not self._is_begun:
            self._is_begun, self._held = True, data
        else:
            self._transport.write(data)

    def close(self) -> None:
        if self._held is not None:
            self.write(b"")
        self._transport.close()

    def is_closing(self) -> bool:
        return self._transport.is_closing()


class Connection(HttpToolsProtocol):
    """uvicorn's connection with limits. Subclasses set other limits."""

    limits: ClassVar[Limits] = Limits()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._application = self.app
        self.app = self._run_application
        self._refusal = _INVALID
        self._is_in_head = True
        self._is_over = False
        self._message = 0
        self._head_nbytes = self._head_fields = 0
        # Bytes of a field that has no end yet. The parser keeps them, and calls back only when the field ends.
        self._unheard_nbytes = 0
        self._received_nbytes = self._discarded_nbytes = 0
        self._drains = 0
        self._idle_since = 0.0
        self._last_progress: _Progress | None = None
        self._next_check: asyncio.TimerHandle | None = None

    # -- Connections ------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        super().connection_made(transport)
        self._idle_since = self.loop.time()
        self._next_check = self.loop.call_later(self.limits.progress_interval_s, self._check_progress)
        # The set includes this connection already.
        if len(self.connections) > self.limits.connections:
            self._make_room()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._next_check is not None:
            self._next_check.cancel()
        super().connection_lost(exc)

    def _make_room(self) -> None:
        """Close the connection that has been idle longest, or refuse this one if none is idle."""
        others = [
            other
            for other in self.connections
            if isinstance(other, Connection) and other is not self and not other.transport.is_closing()
        ]
        if len(others) < self.limits.connections:
            return
        idle = [other for other in others if other._is_idle]
        if idle:
            # Clients expect that servers close idle connections, and connect again.
            min(idle, key=lambda other: other._idle_since).transport.abort()
        else:
            self._refuse(
                _Refusal(503, f"All {self.limits.connections} connections are in use: try again later")
            )

    @property
    def _is_idle(self) -> bool:
        """True if no request is being served and no answer is being sent."""
        return self._is_answered and not self.pipeline and not self.transport.get_write_buffer_size()

    @property
    def _is_answered(self) -> bool:
        """True if every request was answered, apart from those that wait in the pipeline."""
        # uvicorn's annotation leaves out that the cycle is None before the first request.
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
            self._refuse(self._make_large_head_refusal())

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._message += 1
        self._unheard_nbytes = 0

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        self._count_head(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        super().on_header(name, value)
        # Trailers, which follow a body, count as well.
        self._head_fields += 1
        self._count_head(len(name) + len(value) + len(": \r\n"))

    def _count_head(self, nbytes: int) -> None:
        self._unheard_nbytes = 0
        self._head_nbytes += nbytes
        if self._head_nbytes > self.limits.head_nbytes or self._head_fields > self.limits.head_fields:
            self._stop_parsing(self._make_large_head_refusal())

    def _make_large_head_refusal(self) -> _Refusal:
        most = f"{self.limits.head_nbytes} bytes and {self.limits.head_fields} fields"
        return _Refusal(431, f"The URL and the headers of a request may have {most} together")

    def on_headers_complete(self) -> None:
        if len(self.pipeline) >= self.limits.pipelined:
            most = f"{self.limits.pipelined} requests"
            self._stop_parsing(_Refusal(400, f"A connection may send {most} ahead of their answers, no more"))
        before = self.cycle
        super().on_headers_complete()
        self._is_in_head = False
        if self.cycle is not before:
            # The application runs later.
            self.cycle.transport = _Joined(self.transport, self.cycle)  # type: ignore[assignment]  # what it needs

    def on_body(self, body: bytes) -> None:
        self._received_nbytes += len(body)
        if self.cycle.response_complete:
            # uvicorn receives a body to its end, even if the application has answered before.
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
            # The cycle lives until the next request. Body bytes that the application left unread would live as long.
            self.cycle.body = bytearray()

    def _discard(self, nbytes: int) -> None:
        """Discard bytes of a request that was answered, and hang up after too many of them."""
        self._discarded_nbytes += nbytes
        if self._discarded_nbytes > self.limits.drained_nbytes:
            self.transport.abort()

    async def _run_application(
        self, scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable
    ) -> None:
        """Run the application until its answer has left the process, apart from a small rest in the socket's buffer."""
        waits = scope["type"] == "http" and any(name == b"expect" for name, _ in scope["headers"])

        async def receive_body() -> Any:
            nonlocal waits
            waits = False
            return await receive()

        async def send_patiently(message: ASGISendEvent) -> None:
            if waits and message["type"] == "http.response.start":
                # The client asked before sending its body, and may send it or not: the next bytes could be the body or
                # another request. Closing avoids the question.
                message = {**message, "headers": [*message.get("headers", ()), _CLOSE]}
            await send(message)
            # Without this wait, an answer to a slow client would pile up in memory.
            if self.flow.write_paused:
                await self.flow.drain()

        await self._application(scope, receive_body, send_patiently)

    # -- Time -------------------------------------------------------------------------------------------

    def resume_writing(self) -> None:
        # The client has received enough of its answer for more to be sent: that is progress.
        self._drains += 1
        super().resume_writing()

    def _check_progress(self) -> None:
        """End the connection if it made no progress since the last check."""
        self._next_check = self.loop.call_later(self.limits.progress_interval_s, self._check_progress)
        last, now = self._last_progress, self._measure_progress()
        self._last_progress = now
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

    def _measure_progress(self) -> _Progress:
        unsent = self.transport.get_write_buffer_size()
        return _Progress(self._find_phase(), self._message, self._received_nbytes, unsent, self._drains)

    def _find_phase(self) -> Literal["head", "body", "over", "other"]:
        """Tell what the client has to do next: "other" if it has to do nothing."""
        if self._is_over:
            return "over"
        if self._is_in_head:
            # Between two requests uvicorn's own keep-alive timeout applies, until the first byte of a head comes.
            waits_for_head = self._is_answered and not self.pipeline
            return "head" if waits_for_head and self.timeout_keep_alive_task is None else "other"
        is_ours_to_go_on = self.flow.read_paused or self.cycle.waiting_for_100_continue
        return "other" if is_ours_to_go_on else "body"

    # -- Refusals ---------------------------------------------------------------------------------------

    def _stop_parsing(self, refusal: _Refusal) -> None:
        self._refusal = refusal
        raise _RefusedError

    def send_400_response(self, msg: str) -> None:
        """Answer with the reason that stopped the parser: one of our limits, or bytes that are not HTTP."""
        del msg
        self._refuse(self._refusal)

    def _refuse(self, refusal: _Refusal) -> None:
        """Answer with a refusal if no other answer is under way, and take no more requests from this connection."""
        if self._is_over or self.transport.is_closing():
            return
        self._is_over = True
        can_answer = self._can_answer()
        self._disconnect_application()
        if not can_answer or not self.transport.can_write_eof():
            self.transport.abort()
            return
        self.transport.write(self._encode_answer(refusal))
        # A socket that is closed with unread bytes is reset, and the client may never see the answer. The rest of the
        # request is therefore read and discarded.
        self.transport.write_eof()
        self.flow.resume_reading()

    def _can_answer(self) -> bool:
        """Tell whether the client expects an answer now, so that it takes the next one for its own."""
        if self.pipeline:
            return False
        if self._is_in_head:
            return self._is_answered
        return not self.cycle.response_started

    def _disconnect_application(self) -> None:
        """Tell the running application that its client is gone."""
        self._unset_keepalive_if_required()
        self.pipeline.clear()
        if not self._is_answered:
            self.cycle.disconnected = True
            self.cycle.message_event.set()

    def _encode_answer(self, refusal: _Refusal) -> bytes:
        body = json.dumps({"message": refusal.message}).encode()
        fields = dict(self.server_state.default_headers)
        fields |= {
            b"content-type": b"application/json; charset=utf-8",
            b"content-length": b"%d" % len(body),
            b"connection": b"close",
        }
        head = b"".join(b"%s: %s\r\n" % field for field in fields.items())
        return STATUS_LINE[refusal.status] + head + b"\r\n" + body


def make_connection_class(limits: Limits) -> type[Connection]:
    """Return a connection class with these limits."""
    return type("LimitedConnection", (Connection,), {"limits": limits})
