"""Names of buckets and objects, and MIME types, checked. Pure functions, no I/O."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from tensorage.embedded.storage.errors import invalid_bucket_name, invalid_key, invalid_mime_type

#: Longest name of an object. Supabase Storage fails at somewhat longer names.
MAX_NAME_BYTES: Final = 1000
MAX_BUCKET_NAME_BYTES: Final = 100

#: Longest stored value that becomes a header of answers.
MAX_HEADER_LENGTH: Final = 255

_OBJECT_NAME: Final = re.compile(r"[A-Za-z0-9_/!.*'() &$@=;:+,?-]+")
_BUCKET_NAME: Final = re.compile(r"[A-Za-z0-9_!.*'() &$@=;:+,?-]+")
_MIME_TYPE: Final = re.compile(r"([A-Za-z0-9!#$&^_.+-]+)/([A-Za-z0-9!#$&^_.+-]+)(?:\s*;[\x20-\x7e]*)?")
_ALLOWED_MIME_TYPE: Final = re.compile(r"[A-Za-z0-9!#$&^_.+*-]+/[A-Za-z0-9!#$&^_.+*-]+")


def is_object_name(name: str) -> bool:
    """Tell whether an object can have this name.

    Examples
    --------
    >>> is_object_name("a/b c.bin"), is_object_name("a/../b"), is_object_name("ü")
    (True, False, False)
    """
    return (
        len(name) <= MAX_NAME_BYTES
        and _OBJECT_NAME.fullmatch(name) is not None
        # Clients may use the name as a path. Without these steps the path stays within their folder.
        and not {".", ".."} & set(name.split("/"))
    )


def check_object_name(name: str) -> str:
    if not is_object_name(name):
        raise invalid_key(name)
    return name


def check_bucket_name(name: str) -> str:
    good = _BUCKET_NAME.fullmatch(name) and name.strip() == name and name not in (".", "..")
    if not good or len(name) > MAX_BUCKET_NAME_BYTES:
        raise invalid_bucket_name()
    return name


def check_mime_type(mime_type: str, allowed: Sequence[str] | None) -> str:
    """Return a MIME type. Refuse one that a bucket does not allow (None or empty: the bucket allows all).

    Examples
    --------
    >>> check_mime_type("text/plain; charset=utf-8", ["image/png", "text/*"])
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


def check_allowed_mime_types(allowed: Sequence[str]) -> list[str]:
    """Return the MIME types that a bucket is to allow. Refuse malformed ones."""
    for entry in allowed:
        if _ALLOWED_MIME_TYPE.fullmatch(entry) is None or len(entry) > MAX_HEADER_LENGTH:
            raise invalid_mime_type(entry[:MAX_HEADER_LENGTH])
    return list(allowed)
