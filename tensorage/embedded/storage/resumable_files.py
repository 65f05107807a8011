"""The files of resumable uploads.

::

    storage/resumable/<id>/
      upload.json   the declaration of the upload; never changed
      content       content that has arrived, until the object is stored
      offset        number of those bytes that count; replaced in one step

The offset reaches the whole size only after the object is stored: an unfinished upload never looks finished. Bytes in
`content` behind the offset were arriving when a server was killed, and are overwritten.

The id is a UUID that the server made, and becomes the version of the object. All functions here block, and are called
in threads.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from tensorage.embedded.storage.blobs import FLAGS, is_version, list_names, make_folder, write_all

#: Seconds after which an expired upload is deleted. Requests that began before its end are over by then.
_GRACE_S: Final = 3600

_UPLOAD: Final = "upload.json"
_CONTENT: Final = "content"
_OFFSET: Final = "offset"


@dataclass(frozen=True)
class UploadDeclaration:
    """Declaration of an upload: everything that is known before its content comes.

    Parameters
    ----------
    role, subject
        Role and claim ``sub`` of the token that began the upload. Nobody else may continue it.
    size
        Bytes of the whole content.
    user_metadata
        JSON object, as text.
    sent_metadata
        The header ``Upload-Metadata``, which answers repeat.
    expires_at
        End of the upload, in seconds since the epoch.
    """

    id: str
    role: str
    subject: str | None
    bucket_id: str
    name: str
    size: int
    content_type: str
    cache_control: str
    user_metadata: str
    sent_metadata: str
    expires_at: float

    def belongs_to(self, role: str, subject: object) -> bool:
        return (self.role, self.subject) == (role, subject)


@dataclass(frozen=True)
class ResumableUpload:
    """A resumable upload, and the number of its bytes that count."""

    declaration: UploadDeclaration
    offset: int

    @property
    def is_finished(self) -> bool:
        return self.offset == self.declaration.size

    @property
    def missing_nbytes(self) -> int:
        return self.declaration.size - self.offset


class Continuation:
    """Bytes that continue the content of an upload, and count only after `ResumableFiles.advance`."""

    def __init__(self, path: Path, offset: int) -> None:
        self._path = path
        self._offset = offset
        self._size = 0
        self._descriptor: int | None = None

    def write(self, pieces: Iterable[bytes]) -> None:
        descriptor = self._open()
        for piece in pieces:
            self._size += len(piece)
            write_all(descriptor, piece)

    def finish(self, pieces: Iterable[bytes]) -> int:
        """Write the last pieces, wait until all are on the disk, and return the number of bytes."""
        self.write(pieces)
        os.fsync(self._open())
        self._close()
        return self._size

    def discard(self) -> None:
        if self._descriptor is not None:
            os.ftruncate(self._descriptor, self._offset)
        self._close()

    def _open(self) -> int:
        if self._descriptor is None:
            self._descriptor = os.open(self._path, os.O_WRONLY | FLAGS)
            os.ftruncate(self._descriptor, self._offset)
            # Bytes behind the offset came before a crash, and do not count.
            os.lseek(self._descriptor, self._offset, os.SEEK_SET)
        return self._descriptor

    def _close(self) -> None:
        if self._descriptor is not None:
            descriptor, self._descriptor = self._descriptor, None
            os.close(descriptor)


class ResumableFiles:
    """The resumable uploads in one folder, which belongs to one server process."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def prepare(self) -> None:
        """Make the folder if it is missing.

        Raises
        ------
        FolderError
            The folder is a symbolic link, or no folder.
        """
        make_folder(self._path)

    def create(self, declaration: UploadDeclaration) -> ResumableUpload:
        folder = self._path / declaration.id
        folder.mkdir(mode=0o700)
        try:
            os.close(os.open(folder / _CONTENT, os.O_WRONLY | os.O_CREAT | os.O_EXCL | FLAGS, 0o600))
            # Written last: the upload exists from here on.
            _replace(folder / _UPLOAD, json.dumps(asdict(declaration)))
        except BaseException:
            shutil.rmtree(folder)
            raise
        return ResumableUpload(declaration, 0)

    def find(self, upload_id: str) -> ResumableUpload | None:
        """Return an upload, or None if there is no such upload."""
        if not is_version(upload_id):
            return None
        folder = self._path / upload_id
        try:
            declaration = UploadDeclaration(**json.loads(_read(folder / _UPLOAD)))
        except FileNotFoundError:
            return None
        return ResumableUpload(declaration, _read_offset(folder))

    def content_path(self, upload_id: str) -> Path:
        """Return the path of an unfinished upload's content."""
        return self._path / upload_id / _CONTENT

    def continue_content(self, upload: ResumableUpload) -> Continuation:
        """Return a file that continues the content of an upload."""
        return Continuation(self.content_path(upload.declaration.id), upload.offset)

    def advance(self, upload: ResumableUpload, offset: int) -> ResumableUpload:
        """Count the bytes before `offset`, which are on the disk already."""
        _replace(self._path / upload.declaration.id / _OFFSET, str(offset))
        return ResumableUpload(upload.declaration, offset)

    def finish(self, upload: ResumableUpload) -> ResumableUpload:
        """Mark an upload as finished, whose object is stored and whose content is a blob."""
        finished = self.advance(upload, upload.declaration.size)
        self.content_path(upload.declaration.id).unlink(missing_ok=True)
        return finished

    def remove(self, upload_id: str) -> None:
        shutil.rmtree(self._path / upload_id)

    def delete_expired(self, now: float) -> None:
        """Delete uploads that expired a while ago, and folders of uploads that were never created completely."""
        for name in list_names(self._path):
            folder = self._path / name
            upload = self.find(name)
            # Without a declaration, the folder is one that a killed server was making.
            ends_at = folder.lstat().st_mtime if upload is None else upload.declaration.expires_at
            if ends_at + _GRACE_S < now:
                shutil.rmtree(folder)


def _read_offset(folder: Path) -> int:
    try:
        text = _read(folder / _OFFSET)
    except FileNotFoundError:
        return 0
    # The file may be empty after a loss of power, since it is not synced. Beginning anew is always right.
    return int(text) if text.isdecimal() else 0


def _read(path: Path) -> str:
    with os.fdopen(os.open(path, os.O_RDONLY | FLAGS), encoding="ascii") as file:
        return file.read()


def _replace(path: Path, text: str) -> None:
    descriptor, temporary = tempfile.mkstemp(dir=path.parent)
    try:
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(text)
        # Not synced: an offset that is lost or empty is read as zero.
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink()
        raise
