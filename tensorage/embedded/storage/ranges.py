"""The ``Range`` header: one range of bytes, or a refusal. Pure functions, no I/O."""

from __future__ import annotations

import re
from typing import Final

from tensorage.embedded.storage.errors import invalid_range

_ONE_RANGE: Final = re.compile(r"bytes=(\d{0,19})-(\d{0,19})", re.ASCII)


def parse_range(header: str, size: int) -> range:
    """Return the positions that a header ``Range`` asks for, in an object of `size` bytes. There is at least one.

    Raises
    ------
    StorageError
        416 for several ranges, anything that is no range, or a range beyond the end.

    Examples
    --------
    >>> parse_range("bytes=-100", 1024), parse_range("bytes=1000-5000", 1024)
    (range(924, 1024), range(1000, 1024))
    """
    match = _ONE_RANGE.fullmatch(header.strip())
    if match is None or not (match[1] or match[2]):
        raise invalid_range()
    if not match[1]:
        asked = range(max(0, size - int(match[2])), size)
    else:
        last = int(match[2]) if match[2] else size - 1
        asked = range(int(match[1]), min(last + 1, size))
    if not asked:
        raise invalid_range()
    return asked
