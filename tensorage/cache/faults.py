"""What goes wrong with the folder of a cache, as an error that says what to do."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tensorage.errors import CacheError

__all__ = ["cache_errors"]

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_FORBIDDEN = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})


@contextmanager
def cache_errors(folder: Path) -> Iterator[None]:
    """Errors of the operating system in the block are about the folder."""
    try:
        yield
    except CacheError:
        raise
    except OSError as error:
        named = CacheError(f"the cache in {folder} {_fault(error)}")
        named.errno = error.errno
        raise named from error


def _fault(error: OSError) -> str:
    reason = error.strerror or str(error)
    if error.errno in _FULL:
        return (
            f"has no room on its disk ({reason}). What is in it stays usable. Free some space, give a max_bytes "
            "that fits, or use a folder on another disk."
        )
    if error.errno in _FORBIDDEN:
        return f"cannot be written to ({reason}). Give a folder that this user may write to."
    return f"cannot be used ({reason}). Give a folder on a local disk that this user may write to."
