"""HTTP/1.1 messages in a stream of bytes: just enough of their heads to tell where each begins and ends."""

from __future__ import annotations

import math
import re
from collections.abc import Callable

_END_OF_HEAD = b"\r\n\r\n"
_END_OF_LINE = b"\r\n"
_HEX = re.compile(rb"[0-9a-fA-F]+")

#: A longer head is none: the bytes are of another protocol.
_MAX_HEAD_BYTES = 64 * 1024


class Messages:
    """Messages that go one way on one connection.

    Parameters
    ----------
    began
        Called with the head of each message, without the empty line. Tells whether a body may follow it.
    ended
        Called when the last byte of a message is there.
    last_until_close
        True if a body without a length lasts until the connection closes, as that of an answer does.
    """

    def __init__(
        self, began: Callable[[bytes], bool], ended: Callable[[], None], last_until_close: bool = False
    ) -> None:
        self._began = began
        self._ended = ended
        self._last_until_close = last_until_close
        self._text = bytearray()
        self._body_bytes: float = 0
        self._is_chunked = False
        self._is_trailer = False
        #: False from the first byte on that is of no HTTP message: nothing is told from there on.
        self.is_http = True

    def feed(self, data: bytes) -> None:
        """Take the next bytes of the stream."""
        at = 0
        while at < len(data) and self.is_http:
            at += self._take(data[at:] if at else data)

    def _take(self, data: bytes) -> int:
        """Return how many of the bytes were of one and the same part of a message."""
        if self._body_bytes:
            return self._take_body(data)
        text, taken = self._take_text(data, _END_OF_LINE if self._is_chunked else _END_OF_HEAD)
        if text is not None:
            (self._take_chunk_line if self._is_chunked else self._take_head)(text)
        return taken

    def _take_body(self, data: bytes) -> int:
        taken = int(min(self._body_bytes, len(data)))
        self._body_bytes -= taken
        if not self._body_bytes and not self._is_chunked:
            self._ended()
        return taken

    def _take_text(self, data: bytes, end: bytes) -> tuple[bytes | None, int]:
        """Return what stands before `end`, or None if `end` is still to come, and the number of bytes taken."""
        known = len(self._text)
        self._text += data[: _MAX_HEAD_BYTES + len(end)]
        found = self._text.find(end, max(0, known - len(end) + 1))
        if found < 0:
            self.is_http = len(self._text) <= _MAX_HEAD_BYTES
            return None, len(data)
        text = bytes(self._text[:found])
        self._text.clear()
        return text, found + len(end) - known

    def _take_head(self, head: bytes) -> None:
        first, _, rest = head.partition(_END_OF_LINE)
        if b"HTTP/1." not in first:
            self.is_http = False
            return
        fields = _fields(rest)
        if self._began(head):
            self._is_chunked = b"chunked" in fields.get(b"transfer-encoding", b"")
            without_length = math.inf if self._last_until_close and not self._is_chunked else 0
            length = fields.get(b"content-length", b"")
            self._body_bytes = int(length) if length.isdigit() and not self._is_chunked else without_length
        if not self._body_bytes and not self._is_chunked:
            self._ended()

    def _take_chunk_line(self, line: bytes) -> None:
        """Take the line with a chunk's size, or one of the trailer, of which the last one is empty."""
        if self._is_trailer:
            if not line:
                self._is_trailer = self._is_chunked = False
                self._ended()
            return
        digits = line.partition(b";")[0].strip()
        self.is_http = _HEX.fullmatch(digits) is not None
        size = int(digits, 16) if self.is_http else 0
        # A line's end follows the chunk.
        self._body_bytes = size + len(_END_OF_LINE) if size else 0
        self._is_trailer = not size


def _fields(head: bytes) -> dict[bytes, bytes]:
    lines = (line.partition(b":") for line in head.lower().split(_END_OF_LINE))
    return {name.strip(): value.strip() for name, _, value in lines}
