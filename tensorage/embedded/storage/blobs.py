"""Blobs: the files that hold the content of objects.

::

    storage/
      incoming/<version>   content that is being received
      resumable/<version>  folder of a resumable upload, see the module `resumable_files`
      pending/<version>    an empty file, the mark: a transaction decides whether the blob of this version stays
      objects/<version>    the blob: whole, and never changed

A version is a UUID that the server made: no name that a user chose is part of a path. All functions here block, and are
called in threads.
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

#: Most files of a folder that are listed. After a killed server there are far fewer.
MAX_LISTED_NAMES: Final = 10_000

_VERSION: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")

#: Flags of every `os.open`: refuse a symbolic link, and give no descriptor to a child process.
FLAGS: Final = os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(frozen=True)
class Blob:
    """A file of content that is on the disk, whole.

    Parameters
    ----------
    version
        Name of the file.
    size
        Bytes of the content.
    md5
        MD5 of the content, in hexadecimal digits.
    """

    version: str
    size: int
    md5: str


class Blobs:
    """The blobs in one folder, which belongs to one server process."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.incoming, self._pending, self._objects = (
            path / name for name in ("incoming", "pending", "objects")
        )

    def prepare(self) -> None:
        """Make the folders that are missing, and delete content that was not received to its end.

        Raises
        ------
        FolderError
            A folder is a symbolic link, or no folder.
        """
        for folder in (self._path, self.incoming, self._pending, self._objects):
            make_folder(folder)
        for leftover in list_names(self.incoming):
            (self.incoming / leftover).unlink()

    def list_marked(self) -> list[str]:
        """Return the marked versions: a server was killed while transactions decided about them."""
        return [name for name in list_names(self._pending) if is_version(name)]

    def open(self, version: str) -> io.FileIO:
        """Open a blob for reading. An open blob can be read even after its name is deleted.

        Raises
        ------
        OSError
            The blob is missing, or no plain file.
        """
        # Joined as text: a path object takes as long as the call.
        file = io.FileIO(os.open(f"{self._objects}/{_check_version(version)}", os.O_RDONLY | FLAGS))
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            file.close()
            raise OSError(f"{version} is no plain file")
        return file

    def publish(self, source: Path, version: str) -> None:
        """Move a whole file to the blobs, and wait until the new name is on the disk."""
        self.mark([version])
        # Marked first: a crash after the rename would leave a file that nobody finds.
        source.rename(self._objects / version)
        _sync_folder(self._objects)

    def adopt(self, source: Path, version: str) -> None:
        """Add a whole file to the blobs under a second name, while it keeps the first."""
        self.mark([version])
        os.link(source, self._objects / _check_version(version), follow_symlinks=False)
        _sync_folder(self._objects)

    def has(self, version: str) -> bool:
        """Tell whether a version has a file, even if no row has the version."""
        return (self._objects / _check_version(version)).exists()

    def link(self, version: str) -> str:
        """Copy a blob under a new version. A second name for the file is enough, since it never changes."""
        new = new_version()
        self.mark([new])
        os.link(self._objects / _check_version(version), self._objects / new, follow_symlinks=False)
        _sync_folder(self._objects)
        return new

    def mark(self, versions: Iterable[str]) -> None:
        """Mark versions: a transaction is about to decide whether their blobs stay."""
        for version in versions:
            path = self._pending / _check_version(version)
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | FLAGS, 0o600))

    def unmark(self, versions: Iterable[str]) -> None:
        for version in versions:
            (self._pending / _check_version(version)).unlink(missing_ok=True)

    def delete(self, versions: Iterable[str]) -> None:
        """Delete blobs that no row has. An earlier attempt may have deleted some of them."""
        for version in versions:
            (self._objects / _check_version(version)).unlink(missing_ok=True)


class Incoming:
    """A file that is being received. The first piece creates it, and `finish` or `discard` ends it."""

    def __init__(self, blobs: Blobs) -> None:
        self._blobs = blobs
        self._version = new_version()
        self._path = blobs.incoming / self._version
        # An MD5, since ETags of Supabase Storage are. Nothing relies on it for security.
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
        """Write the last pieces, and move the file to the blobs once it is on the disk."""
        self.write(pieces)
        # A row must never name content that a loss of power can take away.
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
    """Tell whether this is a version that the server made. The column could hold anything else, such as a path."""
    return version is not None and _VERSION.fullmatch(version) is not None


def _check_version(version: str) -> str:
    if not is_version(version):
        # A row that was made by plain SQL may hold any text as its version, and no such text becomes a path.
        raise FileNotFoundError(f"{version!r} names no blob")
    return version


def make_folder(folder: Path) -> None:
    """Make a folder if it is missing.

    Raises
    ------
    FolderError
        The folder is a symbolic link, or no folder.
    """
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    if not stat.S_ISDIR(folder.lstat().st_mode):
        raise FolderError(f"{folder} is no folder, or a link to one: objects are kept in a real folder")


def list_names(folder: Path) -> list[str]:
    """Return the names of the files in a folder, at most a bounded number."""
    with os.scandir(folder) as entries:
        return [entry.name for entry in itertools.islice(entries, MAX_LISTED_NAMES)]


def write_all(descriptor: int, piece: bytes) -> None:
    """Write a whole piece, however few bytes the system accepts at a time."""
    rest = memoryview(piece)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
