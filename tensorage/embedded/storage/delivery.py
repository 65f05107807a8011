"""Files to answers: read by a thread while the last piece is sent, a bounded number of bytes in memory."""

from __future__ import annotations

import asyncio
import io
import os
from collections.abc import Mapping
from typing import Final

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

#: Bytes that are read from the disk at a time.
_PIECE_BYTES: Final = 1 << 20


class ContentResponse(Response):
    """Answer with bytes of an open file, which is closed after sending.

    Parameters
    ----------
    file
        The open file. Its size has been compared with its row's.
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


async def _wait_for_disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
