"""Headers of the protocol of resumable uploads, TUS 1.0.0. Pure functions, no I/O."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from email.utils import formatdate
from typing import Final

from tensorage.embedded.storage.errors import StorageError, tus_refusal
from tensorage.embedded.storage.resumable_files import ResumableUpload
from tensorage.embedded.storage.upload_bodies import DEFAULT_CACHE_CONTROL

VERSION: Final = "1.0.0"
#: Media type of bodies that continue an upload.
MEDIA_TYPE: Final = "application/offset+octet-stream"

_EXTENSIONS: Final = "creation,creation-with-upload,expiration,termination"

#: Headers of an answer to OPTIONS.
CAPABILITIES: Final = {"Tus-Resumable": VERSION, "Tus-Version": VERSION, "Tus-Extension": _EXTENSIONS}

_MAX_METADATA_LENGTH: Final = 16_384
_NUMBER: Final = re.compile(r"\d{1,15}", re.ASCII)
_PAIR: Final = re.compile(r"([!-+\--~]+)(?: ([A-Za-z0-9+/=]*))?", re.ASCII)
_SECONDS: Final = re.compile(r"-?\d{1,10}", re.ASCII)


def check_version(headers: Mapping[str, str]) -> None:
    """Refuse requests of another protocol, or of another version of TUS."""
    version = headers.get("tus-resumable")
    if version is None:
        raise tus_refusal(412, "The header Tus-Resumable is required")
    if version != VERSION:
        raise tus_refusal(400, f"Tus-Resumable must be {VERSION}")


def read_upload_length(headers: Mapping[str, str]) -> int:
    """Return the size of the upload that a request begins."""
    if "upload-defer-length" in headers:
        raise tus_refusal(501, "The length of an upload has to be known when it begins")
    if "upload-concat" in headers:
        raise tus_refusal(501, "An upload is sent in one sequence of pieces")
    return _read_number(headers, "upload-length", 400)


def read_upload_offset(headers: Mapping[str, str]) -> int:
    """Return the offset at which a request continues its upload."""
    # Supabase Storage answers 403 if the header is missing.
    return _read_number(headers, "upload-offset", 403)


def check_media_type(headers: Mapping[str, str]) -> None:
    """Refuse a body that is not the next bytes of an upload."""
    if not has_content(headers):
        raise tus_refusal(415, f"The content type must be {MEDIA_TYPE}")


def has_content(headers: Mapping[str, str]) -> bool:
    """Tell whether a request brings bytes of the upload."""
    return headers.get("content-type", "") == MEDIA_TYPE


def read_upload_metadata(headers: Mapping[str, str]) -> dict[str, bytes]:
    """Return the pairs of the header ``Upload-Metadata``.

    Examples
    --------
    >>> read_upload_metadata({"upload-metadata": "bucketName dGVuc29ycw==,empty"})
    {'bucketName': b'tensors', 'empty': b''}
    """
    header = headers.get("upload-metadata")
    if header is None:
        raise tus_refusal(400, "The header Upload-Metadata is required")
    if len(header) > _MAX_METADATA_LENGTH:
        raise tus_refusal(400, "The header Upload-Metadata is too long")
    pairs: dict[str, bytes] = {}
    for part in header.split(","):
        match = _PAIR.fullmatch(part.strip())
        if match is None or match[1] in pairs:
            raise _invalid_metadata()
        try:
            pairs[match[1]] = base64.b64decode(match[2] or "", validate=True)
        except ValueError as error:
            raise _invalid_metadata() from error
    return pairs


def read_metadata_text(pairs: Mapping[str, bytes], name: str) -> str:
    """Return the metadata called `name` as text; empty if there is none."""
    try:
        return pairs.get(name, b"").decode()
    except UnicodeDecodeError as error:
        raise _invalid_metadata() from error


def make_cache_control(seconds: str) -> str:
    """Return the header ``Cache-Control`` of downloads, from ``cacheControl`` in the metadata."""
    return f"max-age={seconds}" if _SECONDS.fullmatch(seconds) else DEFAULT_CACHE_CONTROL


def make_progress_headers(upload: ResumableUpload) -> dict[str, str]:
    """Return the headers that tell how far an upload has come, and when it expires."""
    headers = {"Tus-Resumable": VERSION, "Upload-Offset": str(upload.offset)}
    if upload.is_finished:
        headers["Tus-Complete"] = "1"
    else:
        headers["Upload-Expires"] = formatdate(upload.declaration.expires_at, usegmt=True)
    return headers


def _read_number(headers: Mapping[str, str], name: str, status_if_missing: int) -> int:
    if name not in headers:
        raise tus_refusal(status_if_missing, f"The header {name} is required")
    if _NUMBER.fullmatch(headers[name]) is None:
        raise tus_refusal(400, f"The header {name} must be a number of bytes")
    return int(headers[name])


def _invalid_metadata() -> StorageError:
    return tus_refusal(400, "The header Upload-Metadata must be pairs of a name and its value in base64")
