"""Records of shards in the catalogue: the object of each shard, and the ranges of its chunks."""

from __future__ import annotations

import base64
import hashlib
import math
import re
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, islice, pairwise
from typing import Any, TypeVar

import numpy as np

from tensorage.backend.transfer import Work
from tensorage.backend.zarr.codec import CorruptChunkError, ShardCodec
from tensorage.backend.zarr.layout import Layout
from tensorage.errors import BackendUnavailableError, CorruptTensorError, IncompleteTensorError
from tensorage.types import Dataset

__all__ = [
    "ShardRecord",
    "check_records",
    "describe_shard",
    "fetch_all_records",
    "fetch_records",
    "numbers_per_request",
    "parse_records",
    "with_records",
]

T = TypeVar("T")

#: Head of a record in an answer of ``tensorage_shards``: the shard's number, and the bytes of its object, of the
#: object's name, of the index, of the tail and of the loose rows, and the row that these begin at.
_RECORD_HEAD = struct.Struct(">qqIIIII")

#: Most bytes of one answer of the catalogue, about.
_ANSWER_BYTES = 4 * 1024 * 1024

#: Most bytes of records that are fetched beside those that a read needs, for the reads to come.
_AHEAD_BYTES = 64 * 1024

#: Most records in one answer.
MAX_NUMBERS = 4096

#: Parts of an object's name: the owner's folder, the folder of the dataset that the object was written for, and a
#: suffix that sets the object apart from the one it replaces.
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.ASCII)
_DATASET = re.compile(r"[1-9][0-9]{0,18}", re.ASCII)
_SUFFIX = re.compile(r"(\.[0-9a-f]+)?", re.ASCII)

#: Bytes of an object's name, with some room.
_NAME_BYTES = 100


@dataclass(frozen=True, slots=True)
class ShardRecord:
    """The catalogue's record of one shard.

    Parameters
    ----------
    number
        Number of the shard, in C order of the grid of shards.
    name
        Name of the object in the bucket, or ``""`` if there is no object: all elements are the fill value, or in the
        tail.
    nbytes
        Bytes of the object.
    index
        Plain index of the chunks: see `tensorage.backend.zarr.codec`. Bytes of the tail are counted on from the end of
        the object.
    tail
        Encoded chunks of rows that were appended since the object was written. They stay in the catalogue.
    loose, loose_at
        Rows that no chunk has yet, in C order, and the row of the shard that they begin at, where a chunk does. The
        index of chunks from there on does not count.
    stored
        The record as the catalogue has it, if this one has its loose rows in chunks of the tail: see `with_chunks`.
    """

    number: int
    name: str
    nbytes: int
    index: bytes
    tail: bytes = b""
    loose: bytes = b""
    loose_at: int = 0
    stored: ShardRecord | None = None

    @property
    def as_stored(self) -> ShardRecord:
        """The record as the catalogue has it."""
        return self.stored or self

    @property
    def is_empty(self) -> bool:
        """True if there are no encoded chunks: all elements are the fill value."""
        return not self.name and not self.tail

    @property
    def encoded_nbytes(self) -> int:
        """Encoded bytes of the shard: those of its object, then those of its tail."""
        return self.nbytes + len(self.tail)

    @property
    def kept_bytes(self) -> int:
        """Approximate bytes of memory that the record takes."""
        own = len(self.index) + len(self.tail) + len(self.loose) + 2 * _NAME_BYTES
        return own if self.stored is None else own + self.stored.kept_bytes

    @property
    def fingerprint(self) -> str:
        """Text that differs from that of any other content of the shard. The catalogue makes the same."""
        stored = self.as_stored
        if not stored.tail and not stored.loose:
            return stored.name
        digest = hashlib.md5(stored.index + stored.tail, usedforsecurity=False)
        if stored.loose:
            digest.update(stored.loose_at.to_bytes(4) + stored.loose)
        return f"{stored.name}+{digest.hexdigest()}"

    def with_chunks(self, layout: Layout) -> ShardRecord:
        """Return the record with its loose rows in chunks of the tail, as readers of chunks need it.

        Raises
        ------
        CorruptChunkError
            If they are no rows of the shard.
        """
        if not self.loose:
            return self
        row_shape = tuple(axis.stop - axis.start for axis in layout.region(self.number)[1:])
        row_bytes = math.prod(row_shape) * layout.dtype.itemsize
        count, rest = divmod(len(self.loose), row_bytes) if row_bytes else (0, 1)
        if rest or self.loose_at % layout.chunks[0] or self.loose_at + count > layout.shards[0]:
            raise CorruptChunkError(f"{len(self.loose)} bytes are no rows from {self.loose_at} on")
        rows = np.frombuffer(self.loose, layout.dtype).reshape(count, *row_shape)
        index, chunks = ShardCodec(layout).put_rows(
            self.index, self.encoded_nbytes, self.loose_at // layout.chunks[0], rows, self.encoded_nbytes
        )
        return ShardRecord(self.number, self.name, self.nbytes, index, self.tail + chunks, stored=self)

    def as_json(self, **more: Any) -> dict[str, Any]:
        """Return the record as the catalogue takes it, with further fields."""
        return {
            "number": self.number,
            "name": self.name or None,
            "nbytes": self.nbytes,
            "index": base64.b64encode(self.index).decode(),
            **({"tail": base64.b64encode(self.tail).decode()} if self.tail else {}),
            **(
                {"loose": base64.b64encode(self.loose).decode(), "loose_at": self.loose_at}
                if self.loose
                else {}
            ),
            **more,
        }

    def pack(self) -> bytes:
        """Return the record as it stands in an answer of ``tensorage_shards``."""
        told = self.as_stored
        name = told.name.encode()
        parts = name, told.index, told.tail, told.loose
        head = _RECORD_HEAD.pack(told.number, told.nbytes, *map(len, parts), told.loose_at)
        return b"".join((head, *parts))


def fetch_records(work: Work, layout: Layout, numbers: Sequence[int]) -> dict[int, ShardRecord]:
    """Fetch records of shards, by number.

    A stored array has a record of every shard. An array that is being written has those that were stored so far.

    Raises
    ------
    ChangedError
        If the array has changed since it was opened.
    IncompleteTensorError
        If the catalogue lacks a record of a stored array.
    CorruptTensorError
        If a record names an object that does not belong to the array.
    """
    records: dict[int, ShardRecord] = {}
    most = numbers_per_request(layout)
    for first in range(0, len(numbers), most):
        some = list(numbers[first : first + most])
        try:
            found = _fetch(work, layout, some)
        except CorruptTensorError:
            raise
        except IncompleteTensorError as error:
            unknown = _first_unknown(work, layout, some)
            raise IncompleteTensorError(
                f"{work.asked}: the catalogue does not know the object of {describe_shard(layout, unknown)}, which was "
                "deleted behind its back. Nothing is returned; store the array again, or read other parts."
            ) from error
        records.update((record.number, record) for record in found)
    return records


def fetch_all_records(work: Work, layout: Layout) -> bytes | None:
    """Fetch the records of all shards, as ``tensorage_shards`` answers. None if they have more than about 64 KiB.

    Raises
    ------
    ChangedError, IncompleteTensorError, CorruptTensorError
        For the same reasons as `fetch_records`.
    """
    if layout.shard_count * _record_bytes(layout) > _AHEAD_BYTES:
        return None
    records = fetch_records(work, layout, range(layout.shard_count))
    return b"".join(record.pack() for record in records.values())


def with_records(
    work: Work, layout: Layout, things: Iterable[T], number_of: Callable[[T], int]
) -> Iterator[tuple[T, ShardRecord]]:
    """Yield things that belong to shards, each with the record of its shard. Records are fetched a page at a time.

    Parameters
    ----------
    number_of
        Returns the number of the shard that a thing belongs to. No two things belong to the same shard.

    Raises
    ------
    ChangedError, IncompleteTensorError, CorruptTensorError
        For the same reasons as `fetch_records`.
    """
    source = iter(things)
    while page := list(islice(source, numbers_per_request(layout))):
        numbers = [number_of(thing) for thing in page]
        records = fetch_records(work, layout, numbers)
        yield from zip(page, map(records.__getitem__, numbers), strict=True)


def _fetch(work: Work, layout: Layout, numbers: list[int]) -> list[ShardRecord]:
    """Ask for records in one request, or in smaller ones if one is too much."""
    dataset = work.dataset
    # Without a version, records of an array that is being written are asked for.
    identity = work.identity if dataset.state == "committed" else {"data_id": dataset.id, "version": None}
    records: list[ShardRecord] = []

    def ask(some: list[int]) -> None:
        arguments = {**identity, "numbers": some}
        answer = work.read("tensorage_shards", arguments)
        records.extend(check_records(work, layout, answer).values())

    work.in_halves(ask, numbers, _halve)
    return records


def check_records(work: Work, layout: Layout, answer: bytes) -> dict[int, ShardRecord]:
    """Parse records of shards of an array, and return them by number.

    Raises
    ------
    CorruptTensorError
        If a record names an object that does not belong to the array, or has rows that do not.
    """
    return {record.number: _checked(record, work, layout) for record in parse_records(answer, work.asked)}


def _checked(record: ShardRecord, work: Work, layout: Layout) -> ShardRecord:
    """Return a record that fits the array, with its loose rows in chunks."""
    _check_name(record, work.dataset, layout, work.asked)
    if (record.tail or record.loose) and not layout.has_tails:
        raise CorruptTensorError(
            f"{work.asked}: the catalogue has a tail of {describe_shard(layout, record.number)}, and objects like "
            "those of this array have none. Nothing was fetched; whoever stored the array has to store it again"
        )
    try:
        return record.with_chunks(layout)
    except CorruptChunkError as error:
        raise CorruptTensorError(
            f"{work.asked}: the rows that the catalogue has of {describe_shard(layout, record.number)} are damaged "
            f"({error}). Nothing was fetched; whoever stored the array has to store it again"
        ) from error


def _halve(numbers: list[int]) -> tuple[list[int], list[int]] | None:
    half = len(numbers) // 2
    return (numbers[:half], numbers[half:]) if half else None


def _first_unknown(work: Work, layout: Layout, numbers: list[int]) -> int:
    """Find a number whose record is missing, by halving. At least one of `numbers` has none."""
    while len(numbers) > 1:
        half = numbers[: len(numbers) // 2]
        try:
            _fetch(work, layout, half)
        except IncompleteTensorError:
            numbers = half
        else:
            numbers = numbers[len(half) :]
    return numbers[0]


def _check_name(record: ShardRecord, dataset: Dataset, layout: Layout, asked: str) -> None:
    """Refuse an object whose name no writer of this shard would have chosen.

    The owner of an array writes its records, and readers fetch the objects with their own tokens. A name that leads
    elsewhere, such as by ``..``, would make a reader fetch what the owner may not read.

    Raises
    ------
    CorruptTensorError
    """
    if not 0 <= record.number < layout.shard_count:
        raise CorruptTensorError(
            f"{asked}: the catalogue names shard {record.number}, and the array has {layout.shard_count}. Nothing was "
            "fetched"
        )
    if not record.name:
        return
    folder, _, rest = record.name.partition("/")
    written_by, _, key = rest.partition("/")
    is_ours = (
        folder == dataset.user_id
        and _UUID.fullmatch(folder) is not None
        and _DATASET.fullmatch(written_by) is not None
        and key.startswith(layout.key_of(record.number))
        and _SUFFIX.fullmatch(key.removeprefix(layout.key_of(record.number))) is not None
    )
    if not is_ours:
        raise CorruptTensorError(
            f"{asked}: the catalogue names the object {record.name!r} for {describe_shard(layout, record.number)}, and "
            f"its owner's are named {dataset.user_id}/<number>/{layout.key_of(record.number)}. Nothing was fetched; "
            "whoever stored the array has to store it again"
        )


def describe_shard(layout: Layout, number: int) -> str:
    """Describe the elements that a shard holds, for messages: ``elements [0:100, 0:28]``."""
    return "elements [" + ", ".join(f"{axis.start}:{axis.stop}" for axis in layout.region(number)) + "]"


def numbers_per_request(layout: Layout) -> int:
    """Return the most records to ask for at once."""
    return max(min(_ANSWER_BYTES // _record_bytes(layout), MAX_NUMBERS), 1)


def _record_bytes(layout: Layout) -> int:
    """Return the approximate bytes of a record without a tail."""
    return _RECORD_HEAD.size + _NAME_BYTES + 16 * layout.chunk_count_per_shard


def parse_records(answer: bytes, asked: str) -> Iterator[ShardRecord]:
    """Parse an answer of ``tensorage_shards``.

    Raises
    ------
    BackendUnavailableError
        If the answer ends within a record.
    """
    at = 0
    while at < len(answer):
        try:
            number, nbytes, *lengths, loose_at = _RECORD_HEAD.unpack_from(answer, at)
        except struct.error as error:
            raise BackendUnavailableError(f"{asked}: the catalogue's answer ends too early") from error
        ends = list(accumulate(lengths, initial=at + _RECORD_HEAD.size))
        at = ends[-1]
        if at > len(answer):
            raise BackendUnavailableError(f"{asked}: the catalogue's answer ends too early")
        name, index, tail, loose = (answer[low:high] for low, high in pairwise(ends))
        yield ShardRecord(number, name.decode("utf-8", "replace"), nbytes, index, tail, loose, loose_at)
