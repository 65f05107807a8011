"""What is where in the file of a cached array, and what it is called. No I/O.

A file has three parts, each of which begins at a page::

    header    magic, and JSON that says which version of which array this is
    index     8 bytes for each piece: CRC-32 of its bytes, and by whom it may be believed without a look at them
    elements  the pieces, as `tensorage.indexing.tiles` puts them into a file

The file is as long as all of it from the beginning, but has no blocks on the disk for what was never written.
"""

from __future__ import annotations

import hashlib
import json
import re
import zlib
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from tensorage.indexing.selection import Positions
from tensorage.indexing.tiles import TileGrid
from tensorage.types import Dataset

__all__ = ["ENTRY_NAME", "PAGE_BYTES", "RECORD", "FileFormat"]

#: Files begin with it; another format gets another number.
MAGIC = b"tensorage cache 1\n"

#: Parts begin at multiples of it, and disks give room in it.
PAGE_BYTES = 4096

#: Of the index. A mark of 0 says that the piece is not there; see `tensorage.cache.cache_file` for the others.
RECORD = np.dtype([("crc", "<u4"), ("mark", "<u4")])

_DIGITS = 20

#: What entries are called, and nothing else in a folder is touched: the array, and a version of it.
ENTRY_NAME = re.compile(rf"[0-9a-f]{{{_DIGITS}}}-[0-9a-f]{{{_DIGITS}}}\.pieces")


@dataclass(frozen=True)
class FileFormat:
    """The file of one version of an array.

    Parameters
    ----------
    url
        Of the project.
    dataset
        The version.
    grid
        Of its pieces.
    """

    url: str
    dataset: Dataset
    grid: TileGrid

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What tells this version from all others. The key alone may be secret: only its hash is on the disk."""
        dataset = self.dataset
        return {
            "array": self.array,
            "id": dataset.id,
            "version": dataset.version,
            # The numbers of a project that was deleted and made anew begin anew, too.
            "created_at": None if dataset.created_at is None else dataset.created_at.isoformat(),
            "shape": list(dataset.shape),
            "dtype": dataset.dtype.str,
            "pieces": list(self.grid.chunks),
        }

    @cached_property
    def array(self) -> str:
        """The array, whatever its version: a project, a user, and a key."""
        return _digest([self.url, self.dataset.user_id, self.dataset.key])

    @property
    def name(self) -> str:
        """Of the file. Those of one array begin alike."""
        return f"{self.array}-{_digest(self.identity)}.pieces"

    @property
    def header(self) -> bytes:
        """All of the file's first page."""
        text = json.dumps(self.identity).encode()
        content = MAGIC + zlib.crc32(text).to_bytes(4, "little") + len(text).to_bytes(4, "little") + text
        return content.ljust(PAGE_BYTES, b"\0")

    @property
    def index_at(self) -> int:
        return PAGE_BYTES

    @cached_property
    def elements_at(self) -> int:
        return PAGE_BYTES + _whole_pages(self.grid.count * RECORD.itemsize)

    @cached_property
    def nbytes(self) -> int:
        """Length of the file."""
        return self.elements_at + self.grid.size * self.dataset.dtype.itemsize

    def growth(self, numbers: Positions) -> int:
        """Bytes of disk that pieces take at the most, if the file has none of them.

        Parameters
        ----------
        numbers
            Ascending.
        """
        itemsize = self.dataset.dtype.itemsize
        begin = self.elements_at + self.grid.starts(numbers) * itemsize
        end = begin + self.grid.lengths(numbers) * itemsize
        records = self.index_at + numbers * RECORD.itemsize
        return PAGE_BYTES * (_pages(begin, end) + _pages(records, records + RECORD.itemsize))


def identity_of(header: bytes) -> dict[str, Any] | None:
    """What the first page of a file says that it is; None if it is not that of an entry."""
    content = header.removeprefix(MAGIC)
    if len(header) != PAGE_BYTES or len(content) == len(header):
        return None
    crc, length = int.from_bytes(content[:4], "little"), int.from_bytes(content[4:8], "little")
    text = content[8 : 8 + length]
    if len(text) != length or zlib.crc32(text) != crc:
        return None
    identity: dict[str, Any] = json.loads(text)
    return identity


def _pages(begin: Positions, end: Positions) -> int:
    """Pages that ranges touch, each once. The ranges ascend and do not overlap."""
    first, last = begin // PAGE_BYTES, (end - 1) // PAGE_BYTES
    pages = last - first + 1
    # The page in which one range ends may be that in which the next one begins.
    return int(pages.sum() - (first[1:] == last[:-1]).sum())


def _whole_pages(nbytes: int) -> int:
    return -(-nbytes // PAGE_BYTES) * PAGE_BYTES


def _digest(parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:_DIGITS]
