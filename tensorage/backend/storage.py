"""Files as objects of Supabase Storage, in the user's own folder of the private bucket ``tensors``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

from tensorage.backend.base import BaseContext
from tensorage.errors import (
    BackendUnavailableError,
    InvalidInputError,
    KeyExistsError,
    KeyNotFoundError,
    PermissionDeniedError,
    QuotaExceededError,
    TensorageError,
)
from tensorage.types import Engine

__all__ = ["StorageContext"]

#: The private bucket that the migrations make.
BUCKET = "tensors"

#: Objects in one answer of a listing.
_PAGE = 100

#: Storage answers HTTP 400 to nearly everything, with the true status as a string in the body.
_BY_STATUS: dict[str, tuple[type[TensorageError], str]] = {
    "404": (KeyNotFoundError, "list_files() shows what there is; without the bucket, apply the migrations."),
    "409": (KeyExistsError, ""),
    "403": (PermissionDeniedError, "Files are kept in the user's own folder."),
    "413": (QuotaExceededError, "It is larger than the project allows."),
    "507": (QuotaExceededError, "The backend's disk is full."),
    "400": (InvalidInputError, ""),
}


class StorageContext(BaseContext):
    """New arrays as objects of Supabase Storage, and files beside them, as the user of one session."""

    engine: ClassVar[Engine] = "storage"

    def upload_file(self, path: str, content: str | bytes | Path) -> str:
        """Store a file, in place of the one at `path` if there is one.

        Parameters
        ----------
        path
            Name within the user's folder, parts separated by ``/``.
        content
            Text (stored as UTF-8), bytes, or the path of a local file.

        Returns
        -------
        str
            The object's name in the bucket.
        """
        if isinstance(content, Path):
            data = content.read_bytes()
        else:
            data = content.encode() if isinstance(content, str) else bytes(content)
        name = self._name(path)
        options = {"content-type": "application/octet-stream", "upsert": "true"}
        with _storage_errors(f"uploading {path!r}"):
            self._bucket().upload(name, data, options)
        return name

    def download_file(self, path: str) -> bytes:
        """Content of a file.

        Raises
        ------
        KeyNotFoundError
            If there is none at `path`.
        """
        with _storage_errors(f"downloading {path!r}"):
            content: bytes = self._bucket().download(self._name(path))
        return content

    def list_files(self, prefix: str = "") -> list[str]:
        """Paths of the files in a folder of the user's and below it, sorted.

        Parameters
        ----------
        prefix
            The folder, ``""`` for all.
        """
        with _storage_errors(f"listing {prefix!r}"):
            return sorted(self._walk(prefix.strip("/")))

    def remove_file(self, path: str) -> bool:
        """Delete a file. True: it is gone.

        Raises
        ------
        KeyNotFoundError
            If there is none at `path`.
        """
        with _storage_errors(f"deleting {path!r}"):
            removed = self._bucket().remove([self._name(path)])
        if not removed:
            raise KeyNotFoundError(
                f"deleting {path!r}: there is no such file. list_files() shows what there is"
            )
        return True

    def _bucket(self) -> Any:
        return self.backend.client.storage.from_(BUCKET)

    def _name(self, path: str) -> str:
        parts = path.split("/")
        if not path or any(part in {"", ".", ".."} for part in parts):
            raise InvalidInputError(
                f"{path!r} is no path of a file: name its parts, separated by single slashes"
            )
        return f"{self.user_id}/{path}"

    def _walk(self, folder: str) -> Iterator[str]:
        where = "/".join(part for part in (self.user_id, folder) if part)
        offset = 0
        while True:
            page = self._bucket().list(where, {"limit": _PAGE, "offset": offset})
            for entry in page:
                path = f"{folder}/{entry['name']}" if folder else entry["name"]
                # A folder is an entry without an id.
                if entry["id"] is None:
                    yield from self._walk(path)
                else:
                    yield path
            if len(page) < _PAGE:
                return
            offset += _PAGE


@contextmanager
def _storage_errors(asked: str) -> Iterator[None]:
    """The storage SDK's errors as ours."""
    import httpx
    from storage3.exceptions import StorageApiError

    try:
        yield
    except StorageApiError as error:
        kind, advice = _BY_STATUS.get(str(error.status), (BackendUnavailableError, "Try again later."))
        raise kind(f"{asked}: {error.message}. {advice}".strip()) from error
    except httpx.HTTPError as error:
        raise BackendUnavailableError(f"{asked}: the backend cannot be reached ({error})") from error
