"""Words of error messages: values that are quoted, text of others, and sentences that are joined.

A message is for people. A quoted value shows what was meant and no more: an array, a file's content or a server's page
stays out of tracebacks and logs.
"""

from __future__ import annotations

import re
import reprlib
from typing import Any

__all__ = ["MAX_QUOTED", "MAX_SAID", "cut", "one_line", "quote", "quote_of", "sentences"]

#: Most characters of a quoted value, and of the text of a server or another library.
MAX_QUOTED = 120
MAX_SAID = 600

#: Beginnings of a page for browsers, as gateways and captive portals answer with.
_PAGE = re.compile(r"\s*(<!doctype|<html|<head|<body|<\?xml|<center|<h1)", re.IGNORECASE)


class _Quoting(reprlib.Repr):
    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = self.maxlong = MAX_QUOTED

    def repr_bytes(self, value: bytes | bytearray, _level: int) -> str:
        # The `repr` of all bytes would be made first, and take four times their room.
        return cut(repr(bytes(value[:MAX_QUOTED])), MAX_QUOTED // 3) + f" of {len(value)} bytes"

    repr_bytearray = repr_bytes

    def repr_ndarray(self, value: Any, _level: int) -> str:
        return f"an array of shape {value.shape} and dtype {cut(str(value.dtype), MAX_QUOTED)}"

    def repr_memoryview(self, value: memoryview, _level: int) -> str:
        return f"a memoryview of {value.nbytes} bytes"


_quoting = _Quoting()


def quote(value: object) -> str:
    """Return the `repr` of a value for a message, in one line of at most a few hundred characters.

    Examples
    --------
    >>> quote("weather")
    "'weather'"
    >>> len(quote("x" * 10**6)) <= 120
    True
    >>> quote(np.zeros((2, 3)))
    'an array of shape (2, 3) and dtype float64'
    """
    if isinstance(value, bytes) and len(value) <= MAX_QUOTED // 4:
        return repr(value)
    return cut(" ".join(_quoting.repr(value).split()), 2 * MAX_QUOTED)


def quote_of(key: str, owner: str | None) -> str:
    """Quote a key, and name its owner if that is somebody else.

    Examples
    --------
    >>> quote_of("era5", "ann@lab.org"), quote_of("era5", None)
    ("'era5' of ann@lab.org", "'era5'")
    """
    return quote(key) if owner is None else f"{quote(key)} of {owner}"


def cut(text: str, most: int) -> str:
    """Leave out the middle of a text that has more than so many characters.

    Examples
    --------
    >>> cut("0123456789", 7)
    '01...89'
    """
    if len(text) <= most:
        return text
    kept = max(most - 3, 2)
    return f"{text[: kept // 2]}...{text[len(text) - kept // 2 :]}"


def one_line(text: str, most: int = MAX_SAID) -> str:
    """Return what a server or another library says for a message: in one line, bounded, without its last full stop.

    A page for browsers is only named.

    Examples
    --------
    >>> one_line("Password should be longer.")
    'Password should be longer'
    >>> one_line("<html><head><title>502 Bad Gateway</title></head></html>")
    'a page for browsers'
    """
    if _PAGE.match(text):
        return "a page for browsers"
    # A few times as much as is shown: a text of megabytes is not split whole.
    begun = cut(text, 4 * most)
    return cut(" ".join(begun.split()), most).rstrip(". ")


def sentences(*parts: str) -> str:
    """Join sentences, which may end with a full stop or not. The last one stays as it is; empty ones are left out.

    Examples
    --------
    >>> sentences("storing 'x': it is full.", "Delete arrays.")
    "storing 'x': it is full. Delete arrays."
    >>> sentences("nothing was stored", "")
    'nothing was stored'
    """
    said = [part.strip() for part in parts if part and part.strip()]
    joined = "".join(part + (" " if part[-1] in ".!?" else ". ") for part in said[:-1])
    return joined + (said[-1] if said else "")
