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
from tensorage.backend.files.resumable import PART_BYTES, ResumableUpload
from tensorage.backend.sharing import Sharing
from tensorage.backend.transfer import Project
from tensorage.backend.wire.faults import Fault, error_of
from tensorage.backend.wire.http import Answer
from tensorage.backend.wire.storage_faults import refusals_as_errors
from tensorage.backend.wire.storage_requests import BUCKET, OCTETS, StorageRequests, object_path
from tensorage.errors import BackendUnavailableError, ChangedError, InvalidInputError, KeyNotFoundError
from tensorage.tracebacks import end_tracebacks_here
from tensorage.wording import quote

__all__ = ["Files", "Writable"]

#: Most bytes of a path. Storage takes somewhat more, for the name of the folder before it.
MAX_PATH_BYTES = 900

#: Entries in one answer of a listing.
_PAGE = 1000

#: Most times that a download begins, if the file is replaced each time.
_MAX_BEGINNINGS = 5

#: Paths of the characters that Storage allows in names of objects.
_PATH = re.compile(r"[A-Za-z0-9_/!.*'() &$@=;:+,?-]*")

#: Names of the folders of arrays, which are the numbers of their datasets.
_ARRAY_FOLDER = re.compile(r"[0-9]+", re.ASCII)


T = TypeVar("T")


class Writable(Protocol):
    """An open file of bytes."""

    def write(self, data: memoryview, /) -> object: ...


@end_tracebacks_here
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
        """Store a file, all of it or nothing, in place of a file at `path`.

        Content of more than 6 MiB and of known length goes up in parts, if the server offers resumable uploads. After a
        broken connection, or a restart of the server, the upload resumes.

        Parameters
        ----------
        path
            Name of the file within the user's folder, with parts separated by ``/``.
        content
            Text (stored as UTF-8), bytes, the path of a local file, or an open file of bytes or text. An open file is
            read from its present position to its end, and stays open.

        Returns
        -------
        str
            Name of the object in the bucket.

        Raises
        ------
        InvalidInputError
            If the path is not allowed, or the content ends earlier than it did when the upload began.
        QuotaExceededError
            If the project takes no file of this size, or has no room for the file.
        """
        name, asked = self._writable_name(path), f"uploading {quote(path)}"
        with open_content(content, asked) as source, refusals_as_errors(asked):
            self._upload(name, source, asked)
        return name

    @overload
    def download_file(self, path: str, *, owner: str | None = None) -> bytes: ...
    @overload
    def download_file(self, path: str, *, to: Path | Writable, owner: str | None = None) -> int: ...
    def download_file(
        self, path: str, *, to: Path | Writable | None = None, owner: str | None = None
    ) -> bytes | int:
        """Return the content of a file, or write it to `to` and return the number of bytes.

        Parameters
        ----------
        to
            Path of a local file, which gets the whole content or stays as it was; or an open file, which gets the bytes
            before an error. With `to`, memory holds at most 8 MiB of the content.
        owner
            E-mail address, or id of the account, of somebody who shares the file, or a prefix of its path. By default,
            the file is this user's own.

        Raises
        ------
        KeyNotFoundError
            If there is no file at `path`, or none that is shared with this user.
        ChangedError
            If the file was replaced during the download, and parts of it have been written to an open file.
        """
        asked = f"downloading {quote(path)}" + (f" of {owner}" if owner is not None else "")
        name = self._name(path, self._folder_of(owner, asked))

        def parts() -> Iterator[bytes]:
            return read_file(self._requests, name, asked)

        with refusals_as_errors(asked):
            if to is None:
                return _read_one_version(lambda: b"".join(parts()))
            if isinstance(to, Path):
                return _save(to, parts)
            return _write(to, parts())

    def list_files(self, prefix: str = "", *, owner: str | None = None) -> list[str]:
        """Return the paths of the files in a folder and below it, sorted.

        Storage takes folders whose names differ in upper and lower case only for one folder, and lists them as one.
        Folders of arrays are left out.

        Parameters
        ----------
        prefix
            Name of the folder, ``""`` for all files.
        owner
            E-mail address, or id of the account, of somebody else, whose shared files are listed.
        """
        folder = prefix.strip("/")
        asked = f"listing {quote(prefix)}" + (f" of {owner}" if owner is not None else "")
        user_id = self._folder_of(owner, asked)
        if folder:
            self._name(folder, user_id)
        with refusals_as_errors(asked):
            return sorted(self._walk(user_id, folder))

    def remove_file(self, path: str) -> bool:
        """Delete a file. Return True once it is gone.

        Raises
        ------
        KeyNotFoundError
            If there is no file at `path`.
        """
        asked = f"deleting {quote(path)}"
        body = {"prefixes": [self._writable_name(path)]}
        with refusals_as_errors(asked):
            removed = self._ask_json("DELETE", f"/object/{BUCKET}", body, asked)
        if not removed:
            raise KeyNotFoundError(f"{asked}: there is no such file. list_files() shows what there is")
        return True

    # -- Names ------------------------------------------------------------------------------------------

    def _folder_of(self, owner: str | None, asked: str) -> str:
        """Return the name of the folder in the bucket that holds the files of an owner, by default this user."""
        if owner is None:
            return self._backend.user_id
        return Sharing(self._backend.transfer).id_of(owner, asked)

    def _name(self, path: object, user_id: str) -> str:
        """Return the name of the object of a file, or refuse the path."""
        if not isinstance(path, str):
            # With swapped arguments, this is the content, which may be long or secret, and stays out of the message.
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
        return f"{user_id}/{path}"

    def _writable_name(self, path: str) -> str:
        name = self._name(path, self._backend.user_id)
        if _is_in_array_folder(path):
            raise InvalidInputError(
                f"{quote(path)} lies where arrays are kept: no folder of files is named by a number alone"
            )
        return name

    # -- Requests ---------------------------------------------------------------------------------------

    @property
    def _requests(self) -> StorageRequests:
        # The transfer is looked up each time, since a fork replaces its connections.
        return StorageRequests(self._backend.transfer.http)

    def _upload(self, name: str, source: UploadContent, asked: str) -> None:
        if source.length is None:
            self._upload_stream(name, source, asked)
        elif source.length <= PART_BYTES:
            self._upload_small(name, source.take(source.length), asked)
        elif not ResumableUpload(self._requests, name, source, asked).run():
            self._upload_whole(name, source, asked)

    def _upload_small(self, name: str, content: bytes | memoryview, asked: str) -> None:
        headers = {"x-upsert": "true", "Content-Type": OCTETS}
        self._requests.ask("POST", object_path(name), asked, headers=headers, body=[content])

    def _upload_stream(self, name: str, source: UploadContent, asked: str) -> None:
        """Upload content that cannot be read twice, by one request without a second try."""
        beginning = source.read(PART_BYTES + 1)
        if len(beginning) <= PART_BYTES:
            self._upload_small(name, beginning, asked)
            return
        outcome = self._send(name, chain([beginning], source.parts(PART_BYTES)), {}, asked)
        if isinstance(outcome, Fault):
            raise error_of(outcome, asked)

    def _upload_whole(self, name: str, source: UploadContent, asked: str) -> None:
        """Upload by one request, and begin anew if it does not get through."""
        tries = self._backend.transfer.http.patience.tries(asked)
        while True:
            tries.begin()
            source.seek(0)
            length = {"Content-Length": str(source.length)}
            outcome = self._send(name, source.parts(PART_BYTES), length, asked)
            if not isinstance(outcome, Fault):
                return
            tries.wait(outcome)

    def _send(
        self, name: str, body: Iterator[bytes | memoryview], headers: dict[str, str], asked: str
    ) -> Answer | Fault:
        headers = {"x-upsert": "true", "Content-Type": OCTETS} | headers
        return self._requests.send("POST", object_path(name), asked=asked, headers=headers, body=body)

    def _walk(self, user_id: str, folder: str) -> Iterator[str]:
        asked = f"listing {quote(folder)}"
        where = "/".join(part for part in (user_id, folder) if part)
        offset = 0
        while True:
            body = {"prefix": where, "limit": _PAGE, "offset": offset}
            page = self._ask_json("POST", f"/object/list/{BUCKET}", body, asked)
            for entry in page:
                path = f"{folder}/{entry['name']}" if folder else entry["name"]
                # A folder is an entry without an id.
                if entry["id"] is not None:
                    yield path
                elif not _is_in_array_folder(f"{path}/"):
                    yield from self._walk(user_id, path)
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


def _is_in_array_folder(path: str) -> bool:
    folder, slash, _ = path.partition("/")
    return bool(slash) and _ARRAY_FOLDER.fullmatch(folder) is not None


def _read_one_version(read: Callable[[], T]) -> T:
    """Return the result of `read`, begun anew if the file is replaced meanwhile."""
    for _ in range(_MAX_BEGINNINGS - 1):
        with contextlib.suppress(ChangedError):
            return read()
    return read()


def _save(to: Path, parts: Callable[[], Iterator[bytes]]) -> int:
    """Put all parts into a local file, which stays as it was if that fails."""
    temporary = to.with_name(f".{to.name}.{secrets.token_hex(4)}.part")

    def read() -> int:
        with temporary.open("wb") as file:
            return _write(file, parts())

    try:
        size = _read_one_version(read)
        temporary.replace(to)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return size


def _write(to: Writable, parts: Iterator[bytes]) -> int:
    size = 0
    for part in parts:
        rest = memoryview(part)
        while rest:
            # Unbuffered files may take only a part of the bytes.
            written = to.write(rest)
            rest = rest[written if isinstance(written, int) else len(rest) :]
        size += len(part)
    return size
