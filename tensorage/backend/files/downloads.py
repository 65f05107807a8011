"""Downloads from Storage by ranges. A broken range is asked for again, and a result never mixes two versions."""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterator

from tensorage.backend.wire.http import Answer
from tensorage.backend.wire.storage_faults import StorageRefusal
from tensorage.backend.wire.storage_requests import FOR_READING, StorageRequests, object_path
from tensorage.errors import BackendUnavailableError, ChangedError

__all__ = ["read_file"]

#: Bytes of a range, and therefore the memory that a download takes.
PART_BYTES = 8 * 1024 * 1024

_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)", re.ASCII)


def read_file(requests: StorageRequests, name: str, asked: str) -> Iterator[bytes]:
    """Read an object, part by part.

    Raises
    ------
    StorageRefusal
    ChangedError
        If the object was replaced meanwhile. Parts that were read do not belong to the new one.
    """
    # The unique query keeps caches on the way from answering with an older object.
    path = f"{object_path(name, FOR_READING)}?t={uuid.uuid4().hex}"
    answer = _ask_first(requests, path, asked)
    etag, size = _read_etag(answer), _read_size(answer, 0, asked)
    yield answer.body
    position = len(answer.body)
    while position < size:
        try:
            answer = _ask(requests, path, position, asked)
        except StorageRefusal as refusal:
            if refusal.fault.status == 416:
                raise _changed_error(asked) from refusal
            raise
        if _read_etag(answer) != etag or _read_size(answer, position, asked) != size:
            raise _changed_error(asked)
        yield answer.body
        position += len(answer.body)


def _ask_first(requests: StorageRequests, path: str, asked: str) -> Answer:
    try:
        return _ask(requests, path, 0, asked)
    except StorageRefusal as refusal:
        # An empty object has no range.
        if refusal.fault.status != 416:
            raise
        return requests.ask("GET", path, asked)


def _ask(requests: StorageRequests, path: str, position: int, asked: str) -> Answer:
    headers = {"Range": f"bytes={position}-{position + PART_BYTES - 1}"}
    return requests.ask("GET", path, asked, headers=headers)


def _read_size(answer: Answer, position: int, asked: str) -> int:
    """Return the size of the whole object. Refuse an answer that is not the part at `position`."""
    if answer.status != 206:
        if position == 0:
            return len(answer.body)
        raise BackendUnavailableError(
            f"{asked}: the backend does not go on from the middle. Try again later."
        )
    match = _CONTENT_RANGE.fullmatch(answer.headers.get("Content-Range", ""))
    if match is None or int(match[1]) != position or int(match[2]) - position + 1 != len(answer.body):
        raise BackendUnavailableError(f"{asked}: the backend sent another part than was asked for")
    return int(match[3])


def _read_etag(answer: Answer) -> str:
    return answer.headers.get("ETag", "").removeprefix("W/")


def _changed_error(asked: str) -> ChangedError:
    return ChangedError(f"{asked}: the file was replaced while it was read. Read it again.")
