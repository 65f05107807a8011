"""Resumable uploads to Storage: TUS 1.0.0, in the pieces that Supabase asks for.

A connection that breaks, a server that restarts or a token that runs out costs the piece that was under way, and
not always that: the server says from where to go on.
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

__all__ = ["PIECE_BYTES", "ResumableUpload"]

logger = logging.getLogger(__name__)

#: What Supabase asks of every piece but the last.
PIECE_BYTES = 6 * 1024 * 1024

#: Failures one after the other, without a byte that got further, and what the wait after the first is like. That
#: many are about half a minute: a server has the time to start again.
MAX_FAILURES = 8
_FIRST_PAUSE = 2

_PATH = "/upload/resumable"
#: Last part of the address of an upload: something, and not only dots.
_UPLOAD = re.compile(r"\.*[A-Za-z0-9_~=%+-][A-Za-z0-9_~.=%+-]*", re.ASCII)
_PROTOCOL = {"Tus-Resumable": "1.0.0"}

#: Such a server does not know the protocol.
_NOT_OFFERED = frozenset({404, 405, 501})
#: The upload is not there any more, or never was.
_GONE = frozenset({404, 410})
#: Whoever is told this has to ask how far the upload has come.
_ELSEWHERE = _GONE | {409, 423}


class ResumableUpload:
    """One upload of known length, in place of the object that has the name.

    Parameters
    ----------
    asked
        What the caller wanted, for error messages.
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
        """Upload. False if the server does not offer this; nothing was sent then.

        Raises
        ------
        StorageRefusal
            The server takes no such object.
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
                offset = self._advance(offset)
                self._note_progress(offset)
        except BackendUnavailableError:
            raise
        except BaseException:
            self._give_up()
            raise
        return True

    def _begin(self) -> str:
        """Have the server make an upload: its path."""
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
        # Behind proxies, servers are often wrong about their own address; and the token is for nobody else.
        upload = answer.headers.get("Location", "").rstrip("/").rpartition("/")[2]
        if _UPLOAD.fullmatch(upload) is None:
            raise self._nonsense(f"named no place for the upload, but {upload[:80]!r}")
        return f"{_PATH}/{upload}"

    def _advance(self, offset: int) -> int:
        """Send the piece at `offset`. Where to go on."""
        self._source.seek(offset)
        piece = self._source.take(min(PIECE_BYTES, self._length - offset))
        try:
            outcome = self._patch(offset, piece)
        except StorageRefusal as refusal:
            if refusal.fault.status not in _ELSEWHERE:
                raise
            outcome = refusal.fault
        if isinstance(outcome, Fault):
            self._wait(outcome)
            return self._find_offset()
        return self._offset_of(outcome)

    def _find_offset(self) -> int:
        """Ask the server where to go on: at the beginning of a new upload if it knows nothing of this one."""
        while True:
            try:
                answer = self._requests.ask("HEAD", self._path, self._asked, headers=_PROTOCOL)
                offset = self._offset_of(answer)
                if offset < self._length:
                    return offset
                # Every byte is there. Whether the object is, says only the answer to a piece, be it empty.
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

    def _patch(self, offset: int, piece: bytes | memoryview) -> Answer | Fault:
        headers = _PROTOCOL | {
            "x-upsert": "true",
            "Upload-Offset": str(offset),
            "Content-Type": "application/offset+octet-stream",
            "Content-Length": str(len(piece)),
        }
        return self._requests.send("PATCH", self._path, asked=self._asked, headers=headers, body=[piece])

    def _offset_of(self, answer: Answer) -> int:
        said = answer.headers.get("Upload-Offset", "")
        if not said.isdecimal() or int(said) > self._length:
            raise self._nonsense(f"is at {said!r} of {self._length} bytes")
        return int(said)

    def _note_progress(self, offset: int) -> None:
        if offset > self._furthest:
            self._furthest, self._failures = offset, 0
            self._tries.reset()

    def _wait(self, fault: Fault, error: BackendUnavailableError | None = None) -> None:
        """Wait after a failure, unless there were too many."""
        self._failures += 1
        # The request that raised it has waited as long as is waited.
        if error is not None and (self._failures >= MAX_FAILURES or self._requests.http.patience.is_patient):
            raise error
        if self._failures >= MAX_FAILURES and fault.status in _ELSEWHERE:
            raise self._nonsense(f"does not go on with the upload ({fault})")
        self._tries.wait(fault, _FIRST_PAUSE + self._failures)

    def _give_up(self) -> None:
        """Tell the server that nothing more comes. Where even that fails, it deletes the upload after a day."""
        try:
            outcome = self._requests.send("DELETE", self._path, asked=self._asked, headers=_PROTOCOL)
        except StorageRefusal as refusal:
            outcome = refusal.fault
        if isinstance(outcome, Fault):
            logger.warning("what was uploaded of %r stays for a day: %s", self._name, outcome)

    def _nonsense(self, what: str) -> BackendUnavailableError:
        return BackendUnavailableError(f"{self._asked}: the server {what}. Try again later.")
