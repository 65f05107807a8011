"""Content of objects in answers: the header Range, and files that are sent in pieces.

A thread reads the next piece while the last one is sent. At most two pieces are in memory. Few bytes that the system
has in its memory are read without a thread.
"""

from __future__ import annotations

import asyncio
import errno
import io
import os
import re
from collections.abc import Mapping
from typing import Final

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from tensorage.embedded.storage.errors import invalid_range

#: Bytes that are read from the disk at a time.
_PIECE_BYTES: Final = 1 << 20

#: Most bytes that are read without a thread. Copying them takes less time than handing them from thread to thread, and
#: keeps no other request waiting.
_READ_HERE_BYTES: Final = 64 * 1024

_ONE_RANGE: Final = re.compile(r"bytes=(\d{0,19})-(\d{0,19})", re.ASCII)


def parse_range(header: str, size: int) -> range:
    """Return the positions, at least one, that a header ``Range`` asks for in an object of `size` bytes.

    Raises
    ------
    StorageError
        416 for several ranges, anything that is no range, or a range beyond the end.

    Examples
    --------
    >>> parse_range("bytes=-100", 1024), parse_range("bytes=1000-5000", 1024)
    (range(924, 1024), range(1000, 1024))
    """
    match = _ONE_RANGE.fullmatch(header.strip())
    if match is None or not (match[1] or match[2]):
        raise invalid_range()
    if not match[1]:
        found = range(max(0, size - int(match[2])), size)
    else:
        last = int(match[2]) if match[2] else size - 1
        found = range(int(match[1]), min(last + 1, size))
    if not found:
        raise invalid_range()
    return found


class ContentResponse(Response):
    """Answer with bytes of an open file, which is closed after sending.

    Parameters
    ----------
    file
        The open file, whose size has been compared with the row's.
    first
        First piece of the bytes, read already.
    span
        Positions of the bytes in the file.
    """

    def __init__(
        self, file: io.FileIO, first: bytes, span: range, *, status: int, headers: Mapping[str, str]
    ) -> None:
        super().__init__(status_code=status, headers={**headers, "content-length": str(len(span))})
        self._file = file
        self._first = first
        self._span = span

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        del scope
        with self._file:
            await send(
                {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}
            )
            whole = len(self._first) == len(self._span)
            await send({"type": "http.response.body", "body": self._first, "more_body": not whole})
            if not whole:
                await self._send_rest(receive, send)

    async def _send_rest(self, receive: Receive, send: Send) -> None:
        # Sending to a client that hung up raises no error: only `receive` tells.
        gone = asyncio.create_task(_wait_for_disconnect(receive))
        rest = range(self._span.start + len(self._first), self._span.stop)
        reading = self._read(rest)
        try:
            while rest:
                piece = await asyncio.shield(reading)
                rest = rest[len(piece) :]
                if gone.done():
                    return  # the client hung up
                if rest:
                    # The disk works while the client receives the last piece.
                    reading = self._read(rest)
                await send({"type": "http.response.body", "body": piece, "more_body": bool(rest)})
        finally:
            gone.cancel()
            # The file must stay open until the thread that reads it is done.
            await asyncio.wait([reading])

    def _read(self, rest: range) -> asyncio.Future[bytes]:
        return asyncio.get_running_loop().run_in_executor(None, read_piece, self._file, rest)


def read_piece(file: io.FileIO, rest: range) -> bytes:
    """Read the first piece of the bytes at some positions. Blocks: called in a thread.

    Raises
    ------
    EOFError
        The file ends too early: it was cut off after its size was checked.
    """
    piece = os.pread(file.fileno(), min(_PIECE_BYTES, len(rest)), rest.start) if rest else b""
    if rest and not piece:
        raise EOFError(f"a stored file ends before byte {rest.start}")
    return piece


def read_from_memory(file: io.FileIO, rest: range) -> bytes:
    """Read all bytes at some positions without waiting for the disk.

    Raises
    ------
    BlockingIOError
        They are many, or not in the system's memory, or the system cannot tell: read them in a thread.
    """
    if len(rest) > _READ_HERE_BYTES or not hasattr(os, "RWF_NOWAIT"):
        raise BlockingIOError
    buffer = bytearray(len(rest))
    try:
        nbytes = os.preadv(file.fileno(), [buffer], rest.start, os.RWF_NOWAIT)
    except OSError as error:
        if error.errno == errno.EOPNOTSUPP:
            raise BlockingIOError from error
        raise
    # The missing bytes are on the disk, or the file ends too early: `read_piece` tells.
    if nbytes < len(rest):
        raise BlockingIOError
    return bytes(buffer)


async def _wait_for_disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
