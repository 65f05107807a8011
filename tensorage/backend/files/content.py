"""What is uploaded: text, bytes, a local file, or an open file, read piece by piece and never as a whole."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from tensorage.errors import InvalidInputError

__all__ = ["Content", "Readable", "UploadContent", "open_content"]


class Readable(Protocol):
    """An open file, of bytes or of text."""

    def read(self, size: int, /) -> Any: ...


Content = str | bytes | bytearray | memoryview | Path | Readable


class UploadContent:
    """Content of an upload.

    Parameters
    ----------
    file
        Read from where it stands.
    asked
        What is done with it, for error messages.

    Attributes
    ----------
    length
        In bytes, None where only the end will tell. Where it is known, `seek` works.
    """

    def __init__(self, file: Readable, asked: str) -> None:
        self._file: Any = file
        self._asked = asked
        self._position = 0
        self._ahead = bytearray()
        self._start = 0
        self.length = self._measure()

    def read(self, nbytes: int) -> bytes | memoryview:
        """Read the next bytes, fewer only at the end."""
        if not self._ahead:
            piece = self._next(nbytes)
            if len(piece) == nbytes:
                self._position += nbytes
                return piece
            self._ahead += piece
        while len(self._ahead) < nbytes:
            piece = self._next(nbytes - len(self._ahead))
            if not piece:
                break
            self._ahead += piece
        taken = bytes(memoryview(self._ahead)[:nbytes])
        del self._ahead[:nbytes]
        self._position += len(taken)
        return taken

    def take(self, nbytes: int) -> bytes | memoryview:
        """Read the next bytes, which are there by `length`."""
        taken = self.read(nbytes)
        if len(taken) != nbytes:
            raise InvalidInputError(
                f"{self._asked}: the source ends after {self._position} bytes, and had {self.length} when the upload "
                "began. Nothing was stored"
            )
        return taken

    def pieces(self, nbytes: int) -> Iterator[bytes | memoryview]:
        """Read the rest, `nbytes` at a time."""
        if self.length is None:
            while piece := self.read(nbytes):
                yield piece
        else:
            while self._position < self.length:
                yield self.take(min(nbytes, self.length - self._position))

    def seek(self, position: int) -> None:
        """Go on at another position."""
        if position != self._position:
            self._file.seek(self._start + position)
            self._position = position
            self._ahead.clear()

    def _measure(self) -> int | None:
        """How much there is from here on, if that can be known; of text, only its end tells."""
        seekable = getattr(self._file, "seekable", None)
        if seekable is None or not seekable() or isinstance(self._file.read(0), str):
            return None
        self._start = self._file.tell()
        end: int = self._file.seek(0, os.SEEK_END)
        self._file.seek(self._start)
        return end - self._start

    def _next(self, nbytes: int) -> bytes | memoryview:
        try:
            piece = self._file.read(nbytes)
            return piece.encode() if isinstance(piece, str) else memoryview(piece)
        except Exception as error:
            # Of a file object, it may be anything.
            raise InvalidInputError(
                f"{self._asked}: the source cannot be read behind byte {self._position + len(self._ahead)} "
                f"({type(error).__name__}: {error}). Nothing was stored"
            ) from error


@contextmanager
def open_content(content: Content, asked: str) -> Iterator[UploadContent]:
    """Open what is to be uploaded. An open file stays open."""
    if isinstance(content, Path):
        with content.open("rb") as file:
            yield UploadContent(file, asked)
    elif hasattr(content, "read"):
        yield UploadContent(content, asked)
    else:
        yield UploadContent(_View(_as_bytes(content)), asked)


def _as_bytes(content: Any) -> memoryview:
    try:
        view = memoryview(content.encode() if isinstance(content, str) else content)
        return view.cast("B") if view.nbytes else memoryview(b"")
    except (TypeError, UnicodeEncodeError) as error:
        raise InvalidInputError(
            f"a file is made of text, bytes, a pathlib.Path or an open file, not of {type(content).__name__} ({error})"
        ) from error


class _View:
    """Bytes in memory as an open file: unlike `io.BytesIO`, without a copy of them."""

    def __init__(self, content: memoryview) -> None:
        self._content = content
        self._position = 0

    def read(self, size: int, /) -> memoryview:
        piece = self._content[self._position : self._position + size]
        self._position += len(piece)
        return piece

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        self._position = offset + (len(self._content) if whence == os.SEEK_END else 0)
        return self._position
