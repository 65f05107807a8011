"""Objects of arrays in the bucket: uploads, downloads and copies, and the meaning of their failures."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from tensorage.backend.transfer import Transfer
from tensorage.backend.wire.faults import BackendAnswerError
from tensorage.backend.wire.http import Attempt, Request, WrongSizeError
from tensorage.backend.wire.storage_faults import StorageRefusal, is_missing_bucket, refusals_as_errors
from tensorage.backend.wire.storage_requests import (
    BUCKET,
    FOR_READING,
    OCTETS,
    StorageRequests,
    check_object_name,
    object_path,
)
from tensorage.backend.zarr.shard_records import ShardRecord
from tensorage.errors import (
    ChangedError,
    CorruptTensorError,
    KeyNotFoundError,
    PermissionDeniedError,
    QuotaExceededError,
)
from tensorage.types import Dataset

__all__ = ["Bucket", "Download", "LostObjectError"]

#: An object never changes once it is written, so caches may keep it.
_FOR_EVER = "max-age=31536000"


class LostObjectError(Exception):
    """Storage has no object of this name, or hides it from this user. Never leaves the engine."""


class Download(NamedTuple):
    """Download of bytes of a shard's object."""

    record: ShardRecord
    asked: str
    request: Request


@dataclass(frozen=True)
class Bucket:
    """The bucket, as one login sees it."""

    transfer: Transfer

    def put(self, dataset: Dataset, name: str, parts: Sequence[bytes | memoryview]) -> None:
        """Upload an object of an array that is being written.

        Parameters
        ----------
        parts
            Bytes of the object, one part after the other.

        Raises
        ------
        ChangedError
            If the array is no longer being written.
        QuotaExceededError
            If the project takes no object of that size, or has no room for the object.
        PermissionDeniedError, SchemaError
            If the bucket or its policies are missing.
        """
        asked = f"storing {name!r} of {dataset.key!r}"
        # Upsert, since a repeated request may find the object of its first try.
        headers = {"x-upsert": "true", "Content-Type": OCTETS, "Cache-Control": _FOR_EVER}
        with refusals_as_errors(asked):
            try:
                self._requests.ask("POST", object_path(name), asked, headers=headers, body=parts)
            except StorageRefusal as refusal:
                self._explain(refusal, dataset, asked)
                raise

    def copy(self, dataset: Dataset, source: str, name: str) -> None:
        """Have the server copy an object to one of an array that is being written. No bytes travel.

        Raises
        ------
        LostObjectError
            If there is no object `source`.
        ChangedError, QuotaExceededError, PermissionDeniedError, SchemaError
            For the same reasons as `put`.
        """
        asked = f"copying {source!r} to {dataset.key!r}"
        # `source` comes from the catalogue, which the owner of the array writes.
        for either in (source, name):
            check_object_name(either)
        body = json.dumps({"bucketId": BUCKET, "sourceKey": source, "destinationKey": name}).encode()
        headers = {"x-upsert": "true", "Content-Type": "application/json"}
        with refusals_as_errors(asked):
            try:
                self._requests.ask("POST", "/object/copy", asked, headers=headers, body=[body])
            except StorageRefusal as refusal:
                if _is_missing(refusal):
                    raise LostObjectError(source) from BackendAnswerError(str(refusal.fault))
                self._explain(refusal, dataset, asked)
                raise

    def get_into(self, dataset: Dataset, record: ShardRecord, first: int, out: memoryview) -> None:
        """Read as many bytes of a shard as `out` holds, from byte `first` on: of its object, and then of its tail.

        Raises
        ------
        LostObjectError
            If the object is missing.
        CorruptTensorError
            If the object is shorter than the catalogue says.
        """
        download = self.download(dataset, record, first, out)
        if download is not None:
            self.finish(download)

    def download(self, dataset: Dataset, record: ShardRecord, first: int, out: memoryview) -> Download | None:
        """Fill `out` as `get_into` does, as far as the tail has its bytes, and return the download of the others."""
        of_object = min(max(record.nbytes - first, 0), len(out))
        if of_object < len(out):
            at = first + of_object - record.nbytes
            out[of_object:] = record.tail[at : at + len(out) - of_object]
        if not of_object:
            return None
        is_whole = first == 0 and of_object == record.nbytes
        headers = {} if is_whole else {"Range": f"bytes={first}-{first + of_object - 1}"}
        path = object_path(record.name, FOR_READING)
        request = self._requests.download(path, headers, out[:of_object])
        return Download(record, f"reading {record.name!r} of {dataset.key!r}", request)

    def finish(self, download: Download, begun: Attempt | None = None) -> None:
        """Make a download.

        Parameters
        ----------
        begun
            First attempt, if it was made already.

        Raises
        ------
        LostObjectError, CorruptTensorError
            For the same reasons as `get_into`.
        """
        record, asked, request = download
        try:
            with refusals_as_errors(asked):
                try:
                    self.transfer.http.ask(request, asked, begun)
                except StorageRefusal as refusal:
                    if _is_missing(refusal):
                        raise LostObjectError(record.name) from BackendAnswerError(str(refusal.fault))
                    if refusal.fault.status == 416:
                        raise _too_short_error(asked, record) from BackendAnswerError(str(refusal.fault))
                    raise
        except WrongSizeError as error:
            raise _too_short_error(asked, record) from error

    def remove(self, names: Sequence[str], asked: str) -> None:
        """Delete objects. Names of missing objects are ignored."""
        self._requests.remove(names, asked)

    def can_see(self, name: str, asked: str) -> bool:
        """Tell whether the bucket lists an object for this user. The bytes of a listed object may still be lost."""
        path = object_path(name, "/object/info/authenticated")
        with refusals_as_errors(asked):
            try:
                self._requests.ask("GET", path, asked)
            except StorageRefusal as refusal:
                if _is_missing(refusal):
                    return False
                raise
        return True

    @property
    def _requests(self) -> StorageRequests:
        return StorageRequests(self.transfer.http)

    def _explain(self, refusal: StorageRefusal, dataset: Dataset, asked: str) -> None:
        """Raise the error that a refusal of an object stands for, if the answer alone does not tell."""
        cause = BackendAnswerError(str(refusal.fault))
        if refusal.fault.status == 413:
            raise QuotaExceededError(
                f"{asked}: the project takes no object of that size ({refusal.fault.message}). Give smaller shards=, "
                "or raise the size limit of the bucket 'tensors'."
            ) from cause
        # Policies let objects be written only for arrays that are staged, so a missing array looks like a missing
        # right.
        if refusal.fault.status == 403:
            self._check_staged(dataset, asked)
            raise PermissionDeniedError(
                f"{asked}: the policies of the bucket 'tensors' refuse it ({refusal.fault.message}). Apply the "
                "migrations, which make them."
            ) from cause

    def _check_staged(self, dataset: Dataset, asked: str) -> None:
        over = f"{asked}: it is no longer being written. Nothing was stored."
        try:
            now = self.transfer.call("tensorage_dataset", {"data_id": dataset.id}, asked)
        except KeyNotFoundError as error:
            raise ChangedError(over) from error
        if now["state"] != "staged":
            raise ChangedError(over)


def _is_missing(refusal: StorageRefusal) -> bool:
    """Tell whether the object is missing, and not the bucket."""
    return refusal.fault.status == 404 and not is_missing_bucket(refusal.fault)


def _too_short_error(asked: str, record: ShardRecord) -> CorruptTensorError:
    return CorruptTensorError(
        f"{asked}: the object does not have the {record.nbytes} bytes that were written. Store the array again."
    )
