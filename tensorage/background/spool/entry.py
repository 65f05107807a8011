"""File of one entry: a header that says what to change, and arrays as they are. Written once, and never changed.

.. code-block:: text

    magic    18 bytes
    CRC-32 of the header's text, length of that text, length of the file: 4, 4 and 8 bytes, little-endian
    header   JSON, up to the first array
    arrays   elements in C order, little-endian, each array from a multiple of 64 bytes on

Arrays have checksums of their own in the header, which is therefore written last. It has its full length from the
beginning: checksums are eight digits.
"""

from __future__ import annotations

import errno
import json
import os
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tensorage.background.changes import Change
from tensorage.background.spool.records import read_record, record_of
from tensorage.dtypes import dtype_of, form_of, storable_dtype

__all__ = ["DamagedFileError", "EntryFile", "NewEntry"]

#: First bytes of a file. Another format gets another number.
MAGIC = b"tensorage spool 1\n"

#: Checksum and length of the header's text, and length of the file.
_HEAD = struct.Struct("<IIQ")
_TEXT_AT = len(MAGIC) + _HEAD.size

#: Arrays begin at a multiple of this, so that elements of any dtype can be mapped.
_ALIGN_BYTES = 64

#: Bytes that are checked and written at once.
_PART_BYTES = 1024 * 1024

Array = npt.NDArray[Any]


class DamagedFileError(ValueError):
    """The file of an entry is not as it was written. The message says why."""


@dataclass(frozen=True)
class NewEntry:
    """An entry that is about to be written.

    Parameters
    ----------
    operation
        Id under which the database makes the change once.
    """

    operation: str
    record: Mapping[str, Any]
    arrays: Sequence[Array]

    @classmethod
    def of(cls, operation: str, change: Change) -> NewEntry:
        """Return the entry of a change.

        Raises
        ------
        InvalidInputError
            If the change cannot be written down.
        """
        record, arrays = record_of(change)
        little = [np.asarray(array, storable_dtype(array.dtype), order="C") for array in arrays]
        return cls(operation, record, little)

    @property
    def nbytes(self) -> int:
        """Length of the file."""
        return self._places[-1]

    def write(self, fd: int) -> None:
        """Write the file, and see that it is on the disk.

        Raises
        ------
        OSError
            If the disk is full, before anything else has been written.
        """
        _reserve(fd, self.nbytes)
        sums = [
            _write_array(fd, array, place) for array, place in zip(self.arrays, self._places, strict=False)
        ]
        text = self._text(sums)
        # The head last: a file without it is damaged, however many of its elements were written before a crash.
        head = MAGIC + _HEAD.pack(zlib.crc32(text), len(text), self.nbytes)
        _write_all(fd, head + text, 0)
        os.fsync(fd)

    @property
    def _places(self) -> list[int]:
        """Return the place of the first byte of each array, and the end of the last one."""
        # The header comes before the arrays, and has their checksums. These have one length, so that zeros do here.
        places = [_TEXT_AT + len(self._text([0] * len(self.arrays)))]
        for array in self.arrays:
            first = -(-places.pop() // _ALIGN_BYTES) * _ALIGN_BYTES
            places += [first, first + array.nbytes]
        return places

    def _text(self, sums: Sequence[int]) -> bytes:
        arrays = [
            {"dtype": form_of(array.dtype), "shape": array.shape, "crc": f"{number:08x}"}
            for array, number in zip(self.arrays, sums, strict=True)
        ]
        header = {"operation": self.operation, "change": self.record, "arrays": arrays}
        return json.dumps(header).encode()


@dataclass(frozen=True)
class EntryFile:
    """An entry that is on the disk. Its elements are mapped, and not in memory.

    Parameters
    ----------
    number
        Place in the order.
    key
        Whole key of the array that is changed.
    """

    path: Path
    number: int
    operation: str
    verb: str
    key: str
    nbytes: int
    header: Mapping[str, Any]
    #: Length of the header, with all that is before it.
    header_bytes: int

    @classmethod
    def open(cls, path: Path, number: int) -> EntryFile:
        """Read the header of an entry.

        Raises
        ------
        DamagedFileError
            If the header is damaged, or the file has another length.
        FileNotFoundError
            If there is no such file any more.
        """
        with path.open("rb") as file:
            head = file.read(_TEXT_AT)
            if len(head) < _TEXT_AT or not head.startswith(MAGIC):
                raise DamagedFileError("it does not begin as an entry does")
            crc, length, nbytes = _HEAD.unpack(head[len(MAGIC) :])
            found = os.fstat(file.fileno()).st_size
            if found != nbytes or length > nbytes:
                raise DamagedFileError(f"it has {found} bytes, and was written with {nbytes}")
            text = file.read(length)
        if zlib.crc32(text) != crc:
            raise DamagedFileError("the checksum of its header is wrong")
        header = json.loads(text)
        change = header["change"]
        named = header["operation"], change["verb"], change["key"]
        return cls(path, number, *named, nbytes, header, _TEXT_AT + length)

    def __str__(self) -> str:
        return f"{self.verb} {self.key!r}"

    def change(self) -> Change:
        """Return the change, whose arrays are mapped from the file.

        Raises
        ------
        DamagedFileError
            If elements are damaged.
        """
        # Checksums are compared before the change is made: a damaged array is not stored in part.
        return read_record(self.header["change"], [self._map(number) for number in range(len(self._arrays))])

    @property
    def _arrays(self) -> Sequence[Mapping[str, Any]]:
        described: Sequence[Mapping[str, Any]] = self.header["arrays"]
        return described

    def _map(self, number: int) -> Array:
        """Map an array, and compare its checksum."""
        described = self._arrays[number]
        dtype, shape = dtype_of(described["dtype"]), tuple(described["shape"])
        first = self._first_of(number)
        nbytes = dtype.itemsize * int(np.prod(shape, dtype=np.int64))
        if not nbytes:
            return np.empty(shape, dtype)
        if first + nbytes > self.nbytes:
            raise DamagedFileError("its arrays do not fit into it")
        raw = np.memmap(self.path, np.uint8, "r", offset=first, shape=(nbytes,))
        crc = 0
        for part in _parts(raw):
            crc = zlib.crc32(part.data, crc)
        if f"{crc:08x}" != described["crc"]:
            raise DamagedFileError(f"the checksum of array {number} in it is wrong")
        # A plain array over the map: arrays of the class `memmap` are no better than that to the rest.
        return np.asarray(raw).view(dtype).reshape(shape)

    def _first_of(self, number: int) -> int:
        place = self.header_bytes
        for described in self._arrays[:number]:
            nbytes = dtype_of(described["dtype"]).itemsize * int(np.prod(described["shape"], dtype=np.int64))
            place = -(-place // _ALIGN_BYTES) * _ALIGN_BYTES + nbytes
        return -(-place // _ALIGN_BYTES) * _ALIGN_BYTES


def _reserve(fd: int, nbytes: int) -> None:
    """Take room on the disk for a file, so that a full disk is met before anything is written."""
    if not hasattr(os, "posix_fallocate"):
        os.ftruncate(fd, nbytes)
        return
    try:
        os.posix_fallocate(fd, 0, nbytes)
    except OSError as error:
        # Some file systems cannot. A full disk is met while the file is written then.
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
            raise
        os.ftruncate(fd, nbytes)


def _write_array(fd: int, array: Array, place: int) -> int:
    """Write an array, and return the checksum of what was written: the loop may be changing the array."""
    crc = 0
    for part in _parts(array.reshape(-1).view(np.uint8) if array.nbytes else np.empty(0, np.uint8)):
        # A copy, of which both the checksum and the file are made.
        content = part.tobytes()
        crc = zlib.crc32(content, crc)
        _write_all(fd, content, place)
        place += len(content)
    return crc


def _write_all(fd: int, content: bytes, place: int) -> None:
    rest = memoryview(content)
    while rest:
        written = os.pwrite(fd, rest, place)
        rest, place = rest[written:], place + written


def _parts(raw: npt.NDArray[np.uint8]) -> Iterator[npt.NDArray[np.uint8]]:
    for first in range(0, len(raw), _PART_BYTES):
        yield raw[first : first + _PART_BYTES]
