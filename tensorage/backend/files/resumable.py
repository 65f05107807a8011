"""Resumable uploads to Storage: TUS 1.0.0, in parts of the size that Supabase asks for.

A broken connection, a restart of the server or an expired token costs at most the part under way. The server tells the
position at which the upload resumes.
"""

from __future__ import annotations

import base64
import logging
import re

from tensorage.backend.files.content import UploadContent
from tensorage.backend.wire.faults import Fault
from tensorage.backend.wire.http import Answer
from tensorage.backend.wire.storage_faults import StorageRefusal, is_missing_bucket
from tensorage.backend.wire.storage_requests import BUCKET, OCTETS, StorageRequests
from tensorage.errors import BackendUnavailableError
from tensorage.wording import quote

__all__ = ["PART_BYTES", "ResumableUpload"]

logger = logging.getLogger(__name__)

#: Bytes of every part but the last, as Supabase wants them.
PART_BYTES = 6 * 1024 * 1024

#: Most failures in a row without progress. Their pauses add up to about half a minute, in which a server can start
#: again.
MAX_FAILURES = 8
#: Added to the number of failures, so that the first pauses are as long as those of later attempts elsewhere.
_FIRST_PAUSE = 2

_PATH = "/upload/resumable"
#: Last part of the address of an upload, which is neither empty nor only dots.
_UPLOAD = re.compile(r"\.*[A-Za-z0-9_~=%+-][A-Za-z0-9_~.=%+-]*", re.ASCII)
_PROTOCOL = {"Tus-Resumable": "1.0.0"}

#: HTTP statuses of a server that does not know the protocol.
_NOT_OFFERED = frozenset({404, 405, 501})
#: HTTP statuses for an upload that is missing.
_GONE = frozenset({404, 410})
#: HTTP statuses after which the position of the upload has to be asked for.
_ELSEWHERE = _GONE | {409, 423}


class ResumableUpload:
    """One upload of known length, which replaces an object of the same name.

    Parameters
    ----------
    asked
        The user's wish, for error messages.
    """

    def __init__(self, requests: StorageRequests, name: str, source: UploadContent, asked: str) -> None:
        assert source.length is not None
        self._requests = requests
        self._name = name
        self._source = source
        self._length = source.length
        self._asked = asked
        self._path = ""
        self._furthest = 0
        self._tries = requests.http.patience.tries(asked, MAX_FAILURES)
        self._failures = 0

    def run(self) -> bool:
        """Upload the content. Return False, with nothing sent, if the server does not offer resumable uploads.

        Raises
        ------
        StorageRefusal
            If the server takes no such object.
        """
        try:
            self._path = self._begin()
        except StorageRefusal as refusal:
            if refusal.fault.status not in _NOT_OFFERED or is_missing_bucket(refusal.fault):
                raise
            return False
        try:
            offset = 0
            while offset < self._length:
                offset = self._send_part(offset)
                self._note_progress(offset)
        except BackendUnavailableError:
            raise
        except BaseException:
            self._give_up()
            raise
        return True

    def _begin(self) -> str:
        """Have the server begin an upload, and return its path."""
        fields = {"bucketName": BUCKET, "objectName": self._name, "contentType": OCTETS}
        metadata = ",".join(
            f"{key} {base64.b64encode(value.encode()).decode()}" for key, value in fields.items()
        )
        headers = _PROTOCOL | {
            "x-upsert": "true",
            "Upload-Length": str(self._length),
            "Upload-Metadata": metadata,
        }
        answer = self._requests.ask("POST", _PATH, self._asked, headers=headers)
        # Only the last part of the address is used. Servers behind proxies are often wrong about the rest, and the
        # token must not go to another host.
        upload = answer.headers.get("Location", "").rstrip("/").rpartition("/")[2]
        if _UPLOAD.fullmatch(upload) is None:
            raise self._nonsense_error(f"named no place for the upload, but {upload[:80]!r}")
        return f"{_PATH}/{upload}"

    def _send_part(self, offset: int) -> int:
        """Send the part at `offset`, and return the offset of the next part."""
        self._source.seek(offset)
        part = self._source.take(min(PART_BYTES, self._length - offset))
        try:
            outcome = self._patch(offset, part)
        except StorageRefusal as refusal:
            if refusal.fault.status not in _ELSEWHERE:
                raise
            outcome = refusal.fault
        if isinstance(outcome, Fault):
            self._wait(outcome)
            return self._find_offset()
        return self._offset_of(outcome)

    def _find_offset(self) -> int:
        """Ask the server for the offset of the next part. Begin a new upload if the server does not know this one."""
        while True:
            try:
                answer = self._requests.ask("HEAD", self._path, self._asked, headers=_PROTOCOL)
                offset = self._offset_of(answer)
                if offset < self._length:
                    return offset
                # The server has every byte. Only the answer to a part, even an empty one, tells if the object is
                # stored.
                outcome = self._patch(offset, b"")
            except BackendUnavailableError as error:
                self._wait(Fault(503, "", ""), error)
            except StorageRefusal as refusal:
                self._wait(refusal.fault)
                self._path = self._begin()
                return 0
            else:
                if not isinstance(outcome, Fault):
                    return offset
                self._wait(outcome)

    def _patch(self, offset: int, part: bytes | memoryview) -> Answer | Fault:
        headers = _PROTOCOL | {
            "x-upsert": "true",
            "Upload-Offset": str(offset),
            "Content-Type": "application/offset+octet-stream",
            "Content-Length": str(len(part)),
        }
        return self._requests.send("PATCH", self._path, asked=self._asked, headers=headers, body=[part])

    def _offset_of(self, answer: Answer) -> int:
        said = answer.headers.get("Upload-Offset", "")
        if not said.isdecimal() or int(said) > self._length:
            raise self._nonsense_error(f"is at {quote(said)} of {self._length} bytes")
        return int(said)

    def _note_progress(self, offset: int) -> None:
        if offset > self._furthest:
            self._furthest, self._failures = offset, 0
            self._tries.reset()

    def _wait(self, fault: Fault, error: BackendUnavailableError | None = None) -> None:
        """Wait after a failure, unless there were too many."""
        self._failures += 1
        # The request that raised the error has used up the patience already.
        if error is not None and (self._failures >= MAX_FAILURES or self._requests.http.patience.is_patient):
            raise error
        if self._failures >= MAX_FAILURES and fault.status in _ELSEWHERE:
            raise self._nonsense_error(f"does not go on with the upload ({fault})")
        self._tries.wait(fault, _FIRST_PAUSE + self._failures)

    def _give_up(self) -> None:
        """Cancel the upload. If even that fails, the server deletes the upload after a day."""
        try:
            outcome = self._requests.send("DELETE", self._path, asked=self._asked, headers=_PROTOCOL)
        except StorageRefusal as refusal:
            outcome = refusal.fault
        if isinstance(outcome, Fault):
            logger.info("what was uploaded of %r stays for a day: %s", self._name, outcome)

    def _nonsense_error(self, what: str) -> BackendUnavailableError:
        return BackendUnavailableError(f"{self._asked}: the server {what}. Try again later.")
