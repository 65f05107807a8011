"""Names of buckets and objects, and MIME types: which are allowed. Pure functions."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from tensorage.embedded.storage.errors import invalid_bucket_name, invalid_key, invalid_mime_type

#: Longest name of an object. Supabase's own server fails somewhat above this.
MAX_NAME_BYTES: Final = 1000
MAX_BUCKET_NAME_BYTES: Final = 100

#: Longest value kept to become a header of an answer.
MAX_HEADER_LENGTH: Final = 255

_OBJECT_NAME: Final = re.compile(r"[A-Za-z0-9_/!.*'() &$@=;:+,?-]+")
_BUCKET_NAME: Final = re.compile(r"[A-Za-z0-9_!.*'() &$@=;:+,?-]+")
_MIME_TYPE: Final = re.compile(r"([A-Za-z0-9!#$&^_.+-]+)/([A-Za-z0-9!#$&^_.+-]+)(?:\s*;[\x20-\x7e]*)?")
_ALLOWED_MIME_TYPE: Final = re.compile(r"[A-Za-z0-9!#$&^_.+*-]+/[A-Za-z0-9!#$&^_.+*-]+")


def is_object_name(name: str) -> bool:
    """Whether an object can have this name.

    Examples
    --------
    >>> is_object_name("a/b c.bin"), is_object_name("a/../b"), is_object_name("ü")
    (True, False, False)
    """
    return (
        len(name) <= MAX_NAME_BYTES
        and _OBJECT_NAME.fullmatch(name) is not None
        # Whoever takes the name for a path stays within the bucket.
        and not {".", ".."} & set(name.split("/"))
    )


def checked_object_name(name: str) -> str:
    if not is_object_name(name):
        raise invalid_key(name)
    return name


def checked_bucket_name(name: str) -> str:
    good = _BUCKET_NAME.fullmatch(name) and name.strip() == name and name not in (".", "..")
    if not good or len(name) > MAX_BUCKET_NAME_BYTES:
        raise invalid_bucket_name()
    return name


def checked_mime_type(mime_type: str, allowed: Sequence[str] | None) -> str:
    """`mime_type`, if a bucket that allows these (all, if None or empty) takes it.

    Examples
    --------
    >>> checked_mime_type("text/plain; charset=utf-8", ["image/png", "text/*"])
    'text/plain; charset=utf-8'
    """
    parts = _MIME_TYPE.fullmatch(mime_type)
    if parts is None or len(mime_type) > MAX_HEADER_LENGTH:
        raise invalid_mime_type(mime_type[:MAX_HEADER_LENGTH])
    kind, subtype = parts[1].lower(), parts[2].lower()
    fitting = {f"{kind}/{subtype}", f"{kind}/*", "*/*"}
    if allowed and not any(entry.lower() in fitting for entry in allowed):
        raise invalid_mime_type(mime_type)
    return mime_type


def checked_allowed_mime_types(allowed: Sequence[str]) -> list[str]:
    """List of `allowed`, if a bucket may be told to allow these."""
    for entry in allowed:
        if _ALLOWED_MIME_TYPE.fullmatch(entry) is None or len(entry) > MAX_HEADER_LENGTH:
            raise invalid_mime_type(entry[:MAX_HEADER_LENGTH])
    return list(allowed)
