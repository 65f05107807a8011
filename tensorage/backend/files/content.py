"""Content of an upload: text, bytes, a local file or an open file, read part by part and never as a whole."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from tensorage.errors import InvalidInputError
from tensorage.wording import one_line

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
        Open file, which is read from its present position.
    asked
        The user's wish, for error messages.

    Attributes
    ----------
    length
        Length in bytes, None if only the end of the content tells. With a known length, `seek` works.
    """

    def __init__(self, file: Readable, asked: str) -> None:
        # Users' files are of many kinds, and may return text or bytes.
        self._file: Any = file
        self._asked = asked
        self._position = 0
        self._ahead = bytearray()
        self._start = 0
        self.length = self._measure()

    def read(self, nbytes: int) -> bytes | memoryview:
        """Read the next bytes, fewer only at the end."""
        if not self._ahead:
            part = self._next(nbytes)
            if len(part) == nbytes:
                self._position += nbytes
                return part
            self._ahead += part
        # Pipes and text files may return less than was asked for before their end.
        while len(self._ahead) < nbytes:
            part = self._next(nbytes - len(self._ahead))
            if not part:
                break
            self._ahead += part
        taken = bytes(memoryview(self._ahead)[:nbytes])
        del self._ahead[:nbytes]
        self._position += len(taken)
        return taken

    def take(self, nbytes: int) -> bytes | memoryview:
        """Read the next bytes, which have to be there according to `length`."""
        taken = self.read(nbytes)
        if len(taken) != nbytes:
            raise InvalidInputError(
                f"{self._asked}: the source ends after {self._position} bytes, and had {self.length} when the upload "
                "began. Nothing was stored"
            )
        return taken

    def parts(self, nbytes: int) -> Iterator[bytes | memoryview]:
        """Read the rest, `nbytes` at a time."""
        if self.length is None:
            while part := self.read(nbytes):
                yield part
        else:
            while self._position < self.length:
                yield self.take(min(nbytes, self.length - self._position))

    def seek(self, position: int) -> None:
        """Move to another position."""
        # Seeking would drop bytes that were read ahead, so it is done only if needed.
        if position != self._position:
            self._file.seek(self._start + position)
            self._position = position
            self._ahead.clear()

    def _measure(self) -> int | None:
        """Return the bytes from here to the end, if the file can seek. The bytes of text are known only at its end."""
        seekable = getattr(self._file, "seekable", None)
        if seekable is None or not seekable() or isinstance(self._file.read(0), str):
            return None
        self._start = self._file.tell()
        end: int = self._file.seek(0, os.SEEK_END)
        self._file.seek(self._start)
        return end - self._start

    def _next(self, nbytes: int) -> bytes | memoryview:
        try:
            part = self._file.read(nbytes)
            return part.encode() if isinstance(part, str) else memoryview(part)
        except Exception as error:
            # File objects of users may raise anything.
            raise InvalidInputError(
                f"{self._asked}: the source cannot be read behind byte {self._position + len(self._ahead)} "
                f"({type(error).__name__}: {one_line(str(error))}). Nothing was stored"
            ) from error


@contextmanager
def open_content(content: Content, asked: str) -> Iterator[UploadContent]:
    """Open the content of an upload. A file that is open already stays open."""
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
            f"a file is made of text, bytes, a pathlib.Path or an open file, not of "
            f"{type(content).__name__} ({one_line(str(error))})"
        ) from error


class _View:
    """Bytes in memory as an open file. Unlike `io.BytesIO`, it makes no copy."""

    def __init__(self, content: memoryview) -> None:
        self._content = content
        self._position = 0

    def read(self, size: int, /) -> memoryview:
        part = self._content[self._position : self._position + size]
        self._position += len(part)
        return part

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        self._position = offset + (len(self._content) if whence == os.SEEK_END else 0)
        return self._position
