"""Bodies of uploads, written to files: a thread writes while the next bytes arrive, with few bytes in memory."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final, Generic, Protocol, TypeVar

from starlette.requests import Request

from tensorage.embedded.storage.blobs import Blob, Blobs, Incoming
from tensorage.embedded.storage.database import Bucket
from tensorage.embedded.storage.errors import invalid_request, too_large
from tensorage.embedded.storage.multipart import MAX_FIELD_BYTES, FormUpload
from tensorage.embedded.storage.names import MAX_HEADER_LENGTH, check_mime_type

#: Bytes that a thread writes at a time.
_BATCH_BYTES: Final = 1 << 20

#: Media type of content whose sender gives none.
OCTETS: Final = "application/octet-stream"
#: Supabase Storage's default.
DEFAULT_CACHE_CONTROL: Final = "no-cache"

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


@dataclass(frozen=True)
class Upload:
    """An object's content in a file, with its sender's description.

    Parameters
    ----------
    user_metadata
        JSON object, as text.
    """

    blob: Blob
    content_type: str
    cache_control: str
    user_metadata: str


class Receiver(Protocol[T_co]):
    """A file that receives content, until `finish` or `discard`. All methods block."""

    def write(self, pieces: Iterable[bytes]) -> None: ...

    def finish(self, pieces: Iterable[bytes]) -> T_co: ...

    def discard(self) -> None: ...


class Sink(Generic[T]):
    """A buffer in front of a file that receives content. At most two batches are in memory.

    Parameters
    ----------
    max_nbytes
        Most bytes to receive. More are refused.
    """

    def __init__(self, incoming: Receiver[T], max_nbytes: int | None) -> None:
        self._incoming = incoming
        self._max_nbytes = max_nbytes
        self._received = 0
        self._batch: list[bytes] = []
        self._batch_nbytes = 0
        self._work: asyncio.Future[None] | None = None

    async def add(self, piece: bytes) -> None:
        """Add a piece. Waits if a batch is being written while the next one is full."""
        self._received += len(piece)
        if self._max_nbytes is not None and self._received > self._max_nbytes:
            raise too_large()
        self._batch.append(piece)
        self._batch_nbytes += len(piece)
        if self._batch_nbytes >= _BATCH_BYTES:
            await self._wait_for_thread()
            self._work = _run_in_thread(self._incoming.write, self._take_batch())

    async def finish(self) -> T:
        """Write the rest, and return the result of the file's `finish`."""
        await self._wait_for_thread()
        return await asyncio.shield(_run_in_thread(self._incoming.finish, self._take_batch()))

    async def discard(self) -> None:
        """Discard all content that was received."""
        if self._work is not None:
            await asyncio.wait([self._work])
        await asyncio.to_thread(self._incoming.discard)

    def _take_batch(self) -> list[bytes]:
        batch, self._batch, self._batch_nbytes = self._batch, [], 0
        return batch

    async def _wait_for_thread(self) -> None:
        if self._work is not None:
            # Shielded, since a thread cannot be cancelled: `discard` waits for its end before the file is deleted.
            await asyncio.shield(self._work)
            self._work = None


async def receive_upload(request: Request, blobs: Blobs, bucket: Bucket) -> Upload:
    """Receive the content in a request. A bucket's limits are checked as early as possible.

    Raises
    ------
    StorageError
        The content is too large or of a type that is not allowed, or the form cannot be read. No file is left.
    starlette.requests.ClientDisconnect
        The client hung up before the end. No file is left.
    """
    boundary = _find_boundary(request)
    sink = Sink(Incoming(blobs), bucket.file_size_limit or None)
    try:
        if boundary is None:
            upload = await _receive_raw(request, sink, bucket)
        else:
            upload = await _receive_form(request, sink, bucket, boundary)
    except BaseException:
        await sink.discard()
        raise
    return upload


def _find_boundary(request: Request) -> bytes | None:
    """Return the boundary of a form; None if the body is the content itself."""
    header = request.headers.get("content-type", "")
    if not header.lower().startswith("multipart/form-data"):
        return None
    # Imported here, since most uploads are no forms.
    from python_multipart.multipart import parse_options_header

    boundary = parse_options_header(header)[1].get(b"boundary")
    if not boundary:
        raise invalid_request("The form's content type names no boundary")
    return boundary


async def _receive_raw(request: Request, sink: Sink[Blob], bucket: Bucket) -> Upload:
    content_type = request.headers.get("content-type") or OCTETS
    check_mime_type(content_type, bucket.allowed_mime_types)
    # Refused before it is received, if its length is announced.
    if bucket.file_size_limit and int(request.headers.get("content-length", "0")) > bucket.file_size_limit:
        raise too_large()
    cache_control = _check_header_value("cache-control", request.headers.get("cache-control"))
    user_metadata = _decode_metadata(request.headers.get("x-metadata"))
    async for piece in request.stream():
        await sink.add(piece)
    return Upload(await sink.finish(), content_type, cache_control or DEFAULT_CACHE_CONTROL, user_metadata)


async def _receive_form(request: Request, sink: Sink[Blob], bucket: Bucket, boundary: bytes) -> Upload:
    form = FormUpload(boundary)
    async for piece in request.stream():
        if piece:
            await form.feed(piece, sink.add)
    form.check_complete()
    fields = form.fields
    content_type = fields.get("contentType", b"").decode("latin-1") or form.content_type or OCTETS
    check_mime_type(content_type, bucket.allowed_mime_types)
    max_age = _check_header_value("cacheControl", fields.get("cacheControl", b"").decode("latin-1"))
    cache_control = f"max-age={max_age}" if max_age else DEFAULT_CACHE_CONTROL
    user_metadata = check_user_metadata(fields["metadata"]) if "metadata" in fields else "{}"
    return Upload(await sink.finish(), content_type, cache_control, user_metadata)


def _check_header_value(name: str, value: str | None) -> str:
    if value and (len(value) > MAX_HEADER_LENGTH or not value.isprintable()):
        raise invalid_request(f"{name} cannot be kept: it is too long, or not printable")
    return value or ""


def _decode_metadata(header: str | None) -> str:
    if header is None:
        return "{}"
    try:
        return check_user_metadata(base64.b64decode(header, validate=True))
    except ValueError as error:
        raise invalid_request("headers/x-metadata must be base64") from error


def check_user_metadata(text: bytes) -> str:
    """Return a user's metadata of an object as JSON. Refuse anything but a JSON object, or too large a one."""
    try:
        value = json.loads(text)
        if isinstance(value, dict) and len(text) <= MAX_FIELD_BYTES:
            return json.dumps(value, allow_nan=False)
    except (ValueError, RecursionError) as error:
        raise invalid_request("metadata must be an object in JSON") from error
    raise invalid_request("metadata must be an object in JSON, of at most 1 MiB")


def _run_in_thread(call: Callable[[Iterable[bytes]], T], pieces: list[bytes]) -> asyncio.Future[T]:
    return asyncio.get_running_loop().run_in_executor(None, call, pieces)
