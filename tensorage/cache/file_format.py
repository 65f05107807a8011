"""Format and name of a cache file. No I/O.

A file has three sections, each of which begins at a page::

    header    magic, and JSON that says which version of which array this is
    index     8 bytes for each tile: CRC-32 of its bytes, and a mark that says who may trust the tile unverified
    elements  the tiles, as `tensorage.indexing.tiles` puts them into a file

The file has its full length from the beginning. It takes no blocks of the disk for tiles that were never written.
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

from tensorage.dtypes import form_of
from tensorage.indexing.selection import Positions
from tensorage.indexing.tiles import TileGrid
from tensorage.types import Dataset

__all__ = ["FILE_NAME", "PAGE_BYTES", "RECORD", "FileFormat"]

#: First bytes of a file. Another format gets another number.
MAGIC = b"tensorage cache 1\n"

#: Unit in which disks give room. Sections begin at a multiple of it.
PAGE_BYTES = 4096

#: Record of the index. A mark of 0 says that the tile is missing; see `tensorage.cache.cache_file` for the others.
RECORD = np.dtype([("crc", "<u4"), ("mark", "<u4")])

#: Hexadecimal digits of a hash in a file's name: 80 bits, too many for a collision by chance.
_DIGITS = 20

#: Names of cache files: the array, and a version of it. Nothing else in a folder is touched.
FILE_NAME = re.compile(rf"[0-9a-f]{{{_DIGITS}}}-[0-9a-f]{{{_DIGITS}}}\.pieces")


@dataclass(frozen=True)
class FileFormat:
    """Format of the cache file of one version of an array.

    Parameters
    ----------
    url
        URL of the project.
    dataset
        The array in this version.
    grid
        Grid of its tiles.
    """

    url: str
    dataset: Dataset
    grid: TileGrid

    @cached_property
    def identity(self) -> dict[str, Any]:
        """Members that tell this version from all others. The key may be secret, so only its hash is on the disk."""
        dataset = self.dataset
        return {
            "array": self.array,
            "id": dataset.id,
            "version": dataset.version,
            # A project that was deleted and made anew counts from the same numbers again.
            "created_at": None if dataset.created_at is None else dataset.created_at.isoformat(),
            "shape": list(dataset.shape),
            "dtype": form_of(dataset.dtype),
            "pieces": list(self.grid.chunks),
        }

    @cached_property
    def array(self) -> str:
        """Digest of the array, whatever its version: of its project, user and key."""
        return _digest([self.url, self.dataset.user_id, self.dataset.key])

    @property
    def name(self) -> str:
        """Name of the file. The names for all versions of one array begin alike."""
        return f"{self.array}-{_digest(self.identity)}.pieces"

    @property
    def header(self) -> bytes:
        """First page of the file."""
        text = json.dumps(self.identity).encode()
        content = MAGIC + zlib.crc32(text).to_bytes(4, "little") + len(text).to_bytes(4, "little") + text
        return content.ljust(PAGE_BYTES, b"\0")

    @property
    def index_at(self) -> int:
        return PAGE_BYTES

    @cached_property
    def elements_at(self) -> int:
        return PAGE_BYTES + _round_to_pages(self.grid.count * RECORD.itemsize)

    @cached_property
    def nbytes(self) -> int:
        """Length of the file."""
        return self.elements_at + self.grid.size * self.dataset.dtype.itemsize

    def max_growth(self, numbers: Positions) -> int:
        """Return the most bytes of disk that tiles take, if the file has none of them yet.

        Parameters
        ----------
        numbers
            Numbers of the tiles, ascending.
        """
        itemsize = self.dataset.dtype.itemsize
        begin = self.elements_at + self.grid.starts(numbers) * itemsize
        end = begin + self.grid.lengths(numbers) * itemsize
        records = self.index_at + numbers * RECORD.itemsize
        return PAGE_BYTES * (_count_pages(begin, end) + _count_pages(records, records + RECORD.itemsize))


def identity_of(header: bytes) -> dict[str, Any] | None:
    """Read which version of which array a file holds from its first page; None if it is no cache file."""
    content = header.removeprefix(MAGIC)
    if len(header) != PAGE_BYTES or len(content) == len(header):
        return None
    crc, length = int.from_bytes(content[:4], "little"), int.from_bytes(content[4:8], "little")
    text = content[8 : 8 + length]
    if len(text) != length or zlib.crc32(text) != crc:
        return None
    identity: dict[str, Any] = json.loads(text)
    return identity


def _count_pages(begin: Positions, end: Positions) -> int:
    """Count the pages that ranges touch, each once. The ranges ascend and do not overlap."""
    first, last = begin // PAGE_BYTES, (end - 1) // PAGE_BYTES
    pages = last - first + 1
    # A range may begin in the page in which the one before it ends.
    return int(pages.sum() - (first[1:] == last[:-1]).sum())


def _round_to_pages(nbytes: int) -> int:
    return -(-nbytes // PAGE_BYTES) * PAGE_BYTES


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:_DIGITS]
