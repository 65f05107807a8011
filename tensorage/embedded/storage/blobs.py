"""The files that hold objects' bytes.

::

    storage/
      incoming/<version>   being received
      resumable/<version>  being received in several requests: a folder, see the module `partial`
      pending/<version>    empty: a transaction is deciding whether the file of this version stays
      objects/<version>    whole, and never changed

A version is a UUID of our making, so that no name which a user chose is ever part of a path. Everything here
blocks: it is called in threads.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import itertools
import os
import re
import stat
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tensorage.embedded.folder import FolderError

#: How many leftovers of killed servers are looked at when one starts.
MAX_LEFTOVERS: Final = 10_000

_VERSION: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")

#: A symbolic link in place of a file is refused, and no descriptor is handed to a child process.
FLAGS: Final = os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(frozen=True)
class Blob:
    """Content that is on the disk, whole.

    Parameters
    ----------
    version
        The file's name.
    md5
        Of the content, hexadecimal.
    """

    version: str
    size: int
    md5: str


class Blobs:
    """The files below one folder, which belongs to one server process."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.incoming, self._pending, self._objects = (
            path / name for name in ("incoming", "pending", "objects")
        )

    def prepare(self) -> None:
        """Make the folders where they are missing.

        Raises
        ------
        FolderError
            One of them is a symbolic link, or no folder.
        """
        for folder in (self._path, self.incoming, self._pending, self._objects):
            make_folder(folder)
        for leftover in names_in(self.incoming):
            (self.incoming / leftover).unlink()

    def undecided(self) -> list[str]:
        """Versions whose transactions were not seen to end by a server that was killed."""
        return [name for name in names_in(self._pending) if is_version(name)]

    def open(self, version: str) -> io.FileIO:
        """Open a blob for reading; who has it open goes on reading it whatever happens to its name.

        Raises
        ------
        OSError
            It is missing, or no plain file.
        """
        file = io.FileIO(os.open(self._objects / _checked(version), os.O_RDONLY | FLAGS))
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            file.close()
            raise OSError(f"{version} is no plain file")
        return file

    def publish(self, source: Path, version: str) -> None:
        """Give a whole file its name, on the disk before it is in any row."""
        self.mark([version])
        source.rename(self._objects / version)
        _sync_folder(self._objects)

    def adopt(self, source: Path, version: str) -> None:
        """Give a whole file, which is on the disk, its name beside the one that it has."""
        self.mark([version])
        os.link(source, self._objects / _checked(version), follow_symlinks=False)
        _sync_folder(self._objects)

    def has(self, version: str) -> bool:
        """Whether there is a file of this version, of a row or not."""
        return (self._objects / _checked(version)).exists()

    def link(self, version: str) -> str:
        """Give a blob, which never changes, a second name: all that a copy needs."""
        new = new_version()
        self.mark([new])
        os.link(self._objects / _checked(version), self._objects / new, follow_symlinks=False)
        _sync_folder(self._objects)
        return new

    def mark(self, versions: Iterable[str]) -> None:
        """Say that a transaction decides about these."""
        for version in versions:
            path = self._pending / _checked(version)
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | FLAGS, 0o600))

    def unmark(self, versions: Iterable[str]) -> None:
        for version in versions:
            (self._pending / _checked(version)).unlink(missing_ok=True)

    def delete(self, versions: Iterable[str]) -> None:
        """Delete blobs that no row names. Some may be gone already, by an earlier attempt."""
        for version in versions:
            (self._objects / _checked(version)).unlink(missing_ok=True)


class Incoming:
    """A file that is being received. Its first piece creates it; it ends by `finish` or `discard`."""

    def __init__(self, blobs: Blobs) -> None:
        self._blobs = blobs
        self._version = new_version()
        self._path = blobs.incoming / self._version
        self._digest = hashlib.md5(usedforsecurity=False)
        self._descriptor: int | None = None
        self._size = 0

    def write(self, pieces: Iterable[bytes]) -> None:
        descriptor = self._open()
        for piece in pieces:
            self._digest.update(piece)
            self._size += len(piece)
            write_all(descriptor, piece)

    def finish(self, pieces: Iterable[bytes]) -> Blob:
        """Write the last pieces, and give the file to the blobs: on the disk, with its final name."""
        self.write(pieces)
        os.fsync(self._open())
        self._close()
        self._blobs.publish(self._path, self._version)
        return Blob(self._version, self._size, self._digest.hexdigest())

    def discard(self) -> None:
        self._close()
        self._path.unlink(missing_ok=True)

    def _open(self) -> int:
        if self._descriptor is None:
            self._descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | FLAGS, 0o600)
        return self._descriptor

    def _close(self) -> None:
        if self._descriptor is not None:
            descriptor, self._descriptor = self._descriptor, None
            os.close(descriptor)


def new_version() -> str:
    return str(uuid.uuid4())


def is_version(version: str | None) -> bool:
    """Whether this is a name of ours: the column could hold anything, such as a path."""
    return version is not None and _VERSION.fullmatch(version) is not None


def _checked(version: str) -> str:
    if not is_version(version):
        raise FileNotFoundError(f"{version!r} names no blob")
    return version


def make_folder(folder: Path) -> None:
    """Make a folder where it is missing.

    Raises
    ------
    FolderError
        It is a symbolic link, or no folder.
    """
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    if not stat.S_ISDIR(folder.lstat().st_mode):
        raise FolderError(f"{folder} is no folder, or a link to one: objects are kept in a real folder")


def names_in(folder: Path) -> list[str]:
    """Names of what is in a folder, of a bounded number of them."""
    with os.scandir(folder) as entries:
        return [entry.name for entry in itertools.islice(entries, MAX_LEFTOVERS)]


def write_all(descriptor: int, piece: bytes) -> None:
    """Write all of `piece`, however much the system takes at a time."""
    rest = memoryview(piece)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
