"""Files of a user, as objects in their own folder of the private bucket ``tensors``."""

from __future__ import annotations

import contextlib
import json
import re
import secrets
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any, Protocol, TypeVar, overload

from tensorage.backend.files.content import Content, UploadContent, open_content
from tensorage.backend.files.downloads import read_file
from tensorage.backend.files.resumable import PIECE_BYTES, ResumableUpload
from tensorage.backend.transfer import Project
from tensorage.backend.wire.faults import Fault, error_of
from tensorage.backend.wire.http import Answer
from tensorage.backend.wire.storage_faults import refusals_as_errors
from tensorage.backend.wire.storage_requests import BUCKET, OCTETS, StorageRequests, object_path
from tensorage.errors import BackendUnavailableError, ChangedError, InvalidInputError, KeyNotFoundError

__all__ = ["Files", "Writable"]

#: Of a path. With the folder's name before it, Storage takes somewhat more.
MAX_PATH_BYTES = 900

#: Entries in one answer of a listing.
_PAGE = 1000

#: A file that is replaced while it is downloaded is begun again, not more often than this.
_MAX_BEGINNINGS = 5

#: What Storage allows in names of objects.
_PATH = re.compile(r"[A-Za-z0-9_/!.*'() &$@=;:+,?-]*")

#: Folders in which arrays are kept are named by the numbers of their datasets.
_OF_ARRAYS = re.compile(r"[0-9]+", re.ASCII)


T = TypeVar("T")


class Writable(Protocol):
    """An open file of bytes."""

    def write(self, data: memoryview, /) -> object: ...


class Files:
    """Files of the user of one session.

    Parameters
    ----------
    backend
        The session.
    """

    def __init__(self, backend: Project) -> None:
        self._backend = backend

    def upload_file(self, path: str, content: Content) -> str:
        """Store a file, in place of the one at `path` if there is one: all of it, or nothing.

        What is larger than 6 MiB and of known length goes up in pieces, if the server offers resumable uploads:
        after a broken connection, or a restart of the server, the upload goes on where it stopped.

        Parameters
        ----------
        path
            Name within the user's folder, parts separated by ``/``.
        content
            Text (stored as UTF-8), bytes, the path of a local file, or an open file, of bytes or of text, which is
            read from where it stands to its end and stays open.

        Returns
        -------
        str
            The object's name in the bucket.

        Raises
        ------
        InvalidInputError
            The path cannot be one, or the source cannot be read to the end that it had in the beginning.
        QuotaExceededError
            The project takes no file of this size, or has no room for it.
        """
        name, asked = self._writable_name(path), f"uploading {path!r}"
        with open_content(content, asked) as source, refusals_as_errors(asked):
            self._upload(name, source, asked)
        return name

    @overload
    def download_file(self, path: str) -> bytes: ...
    @overload
    def download_file(self, path: str, *, to: Path | Writable) -> int: ...
    def download_file(self, path: str, *, to: Path | Writable | None = None) -> bytes | int:
        """Content of a file, or where `to` says so, the number of bytes that were put there.

        Parameters
        ----------
        to
            A local file, which has the whole content or stays as it was; or an open file, in which only the bytes
            before an error have been written. No more than 8 MiB are in memory then.

        Raises
        ------
        KeyNotFoundError
            If there is none at `path`.
        ChangedError
            If it was replaced while it was read, and parts of it have been written to the open file.
        """
        name, asked = self._name(path), f"downloading {path!r}"

        def pieces() -> Iterator[bytes]:
            return read_file(self._requests, name, asked)

        with refusals_as_errors(asked):
            if to is None:
                return _of_one_version(lambda: b"".join(pieces()))
            if isinstance(to, Path):
                return _save(to, pieces)
            return _write(to, pieces())

    def list_files(self, prefix: str = "") -> list[str]:
        """Paths of the files in a folder of the user's and below it, sorted.

        Folders whose names differ in upper and lower case only are one to Storage, and listed as one. Where arrays
        are kept is left out.

        Parameters
        ----------
        prefix
            The folder, ``""`` for all.
        """
        folder = prefix.strip("/")
        if folder:
            self._name(folder)
        with refusals_as_errors(f"listing {prefix!r}"):
            return sorted(self._walk(folder))

    def remove_file(self, path: str) -> bool:
        """Delete a file. True: it is gone.

        Raises
        ------
        KeyNotFoundError
            If there is none at `path`.
        """
        asked = f"deleting {path!r}"
        body = {"prefixes": [self._writable_name(path)]}
        with refusals_as_errors(asked):
            removed = self._ask_json("DELETE", f"/object/{BUCKET}", body, asked)
        if not removed:
            raise KeyNotFoundError(f"{asked}: there is no such file. list_files() shows what there is")
        return True

    # -- Names ------------------------------------------------------------------------------------------

    def _name(self, path: object) -> str:
        """Name of the object of a file."""
        if not isinstance(path, str):
            # The content, if arguments were swapped: it may be long, or nobody's to see in a log.
            raise InvalidInputError(
                f"the path of a file is a string, not {type(path).__name__}: first the path, then the content"
            )
        if any(part in {"", ".", ".."} for part in path.split("/")):
            raise InvalidInputError(
                f"{path[:80]!r} is no path of a file: name its parts, separated by single slashes"
            )
        if _PATH.fullmatch(path) is None:
            raise InvalidInputError(
                f"the path {path[:80]!r} holds other characters than Storage allows: ASCII letters and digits, spaces "
                "and any of _/!.*'()&$@=;:+,?-"
            )
        if len(path) > MAX_PATH_BYTES:
            raise InvalidInputError(
                f"a path has at most {MAX_PATH_BYTES} bytes, this one {len(path)}: {path[:40]!r}"
            )
        return f"{self._backend.user_id}/{path}"

    def _writable_name(self, path: str) -> str:
        name = self._name(path)
        if _is_of_an_array(path):
            raise InvalidInputError(
                f"{path!r} lies where arrays are kept: no folder of files is named by a number alone"
            )
        return name

    # -- Requests ---------------------------------------------------------------------------------------

    @property
    def _requests(self) -> StorageRequests:
        # Of the moment: after a fork, connections are new.
        return StorageRequests(self._backend.transfer.http)

    def _upload(self, name: str, source: UploadContent, asked: str) -> None:
        if source.length is None:
            self._upload_stream(name, source, asked)
        elif source.length <= PIECE_BYTES:
            self._upload_small(name, source.take(source.length), asked)
        elif not ResumableUpload(self._requests, name, source, asked).run():
            self._upload_whole(name, source, asked)

    def _upload_small(self, name: str, content: bytes | memoryview, asked: str) -> None:
        headers = {"x-upsert": "true", "Content-Type": OCTETS}
        self._requests.ask("POST", object_path(name), asked, headers=headers, body=[content])

    def _upload_stream(self, name: str, source: UploadContent, asked: str) -> None:
        """Upload what cannot be read twice: in one request, and once."""
        beginning = source.read(PIECE_BYTES + 1)
        if len(beginning) <= PIECE_BYTES:
            self._upload_small(name, beginning, asked)
            return
        outcome = self._send(name, chain([beginning], source.pieces(PIECE_BYTES)), {}, asked)
        if isinstance(outcome, Fault):
            raise error_of(outcome, asked)

    def _upload_whole(self, name: str, source: UploadContent, asked: str) -> None:
        """Upload in one request, again from the beginning if it does not get through."""
        tries = self._backend.transfer.http.patience.tries(asked)
        while True:
            tries.begin()
            source.seek(0)
            length = {"Content-Length": str(source.length)}
            outcome = self._send(name, source.pieces(PIECE_BYTES), length, asked)
            if not isinstance(outcome, Fault):
                return
            tries.wait(outcome)

    def _send(
        self, name: str, body: Iterator[bytes | memoryview], headers: dict[str, str], asked: str
    ) -> Answer | Fault:
        headers = {"x-upsert": "true", "Content-Type": OCTETS} | headers
        return self._requests.send("POST", object_path(name), asked=asked, headers=headers, body=body)

    def _walk(self, folder: str) -> Iterator[str]:
        asked = f"listing {folder!r}"
        where = "/".join(part for part in (self._backend.user_id, folder) if part)
        offset = 0
        while True:
            body = {"prefix": where, "limit": _PAGE, "offset": offset}
            page = self._ask_json("POST", f"/object/list/{BUCKET}", body, asked)
            for entry in page:
                path = f"{folder}/{entry['name']}" if folder else entry["name"]
                # A folder is an entry without an id.
                if entry["id"] is not None:
                    yield path
                elif not _is_of_an_array(f"{path}/"):
                    yield from self._walk(path)
            if len(page) < _PAGE:
                return
            offset += _PAGE

    def _ask_json(self, method: str, path: str, body: object, asked: str) -> list[dict[str, Any]]:
        headers = {"Content-Type": "application/json"}
        answer = self._requests.ask(method, path, asked, headers=headers, body=[json.dumps(body).encode()])
        try:
            entries = json.loads(answer.body)
        except ValueError:
            entries = None
        if not isinstance(entries, list):
            raise BackendUnavailableError(
                f"{asked}: this is not what Storage answers. Is this a Supabase project?"
            )
        return entries


def _is_of_an_array(path: str) -> bool:
    folder, slash, _ = path.partition("/")
    return bool(slash) and _OF_ARRAYS.fullmatch(folder) is not None


def _of_one_version(read: Callable[[], T]) -> T:
    """What `read` gives, which begins again if the file is replaced meanwhile."""
    for _ in range(_MAX_BEGINNINGS - 1):
        with contextlib.suppress(ChangedError):
            return read()
    return read()


def _save(to: Path, pieces: Callable[[], Iterator[bytes]]) -> int:
    """Put the pieces into a local file: all of them, or it stays as it was."""
    temporary = to.with_name(f".{to.name}.{secrets.token_hex(4)}.part")

    def read() -> int:
        with temporary.open("wb") as file:
            return _write(file, pieces())

    try:
        size = _of_one_version(read)
        temporary.replace(to)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return size


def _write(to: Writable, pieces: Iterator[bytes]) -> int:
    size = 0
    for piece in pieces:
        rest = memoryview(piece)
        while rest:
            # Files without a buffer take what they can.
            written = to.write(rest)
            rest = rest[written if isinstance(written, int) else len(rest) :]
        size += len(piece)
    return size
