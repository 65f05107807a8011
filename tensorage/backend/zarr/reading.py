"""What a selection takes of which objects: the ranges to ask for, in parallel, and each chunk into its place."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from tensorage.backend.transfer import Work
from tensorage.backend.wire.progress import Advance
from tensorage.backend.zarr.bucket import Bucket, LostObjectError
from tensorage.backend.zarr.codec import EMPTY, CorruptChunkError, ShardCodec
from tensorage.backend.zarr.shard_records import ShardRecord, describe_shard, fetch_records, with_records
from tensorage.errors import ChangedError, CorruptTensorError, IncompleteTensorError, PermissionDeniedError
from tensorage.indexing.chunks import ChunkProjection, plan_chunks
from tensorage.model.memory import new_array
from tensorage.types import Dataset

__all__ = ["Reader", "ShardPart", "StoredChunk", "join_ranges"]

#: Ranges with no more than this between them are one: a request costs about as much as moving so many bytes.
MAX_GAP_BYTES = 64 * 1024

#: And no longer than this together, unless a chunk is.
MAX_RANGE_BYTES = 8 * 1024 * 1024

#: A shard whose object was replaced just when it was read is read again, not more often than this.
_MAX_ATTEMPTS = 20


class StoredChunk(NamedTuple):
    """A chunk of an object, and what is taken of it."""

    offset: int
    length: int
    part: ChunkProjection


class ShardPart(Protocol):
    """What is taken of one shard: a `ChunkProjection` of the grid of shards, or chunks that somebody chose."""

    @property
    def coords(self) -> tuple[int, ...]:
        """Of the shard."""
        ...

    def split(self, chunks: Sequence[int], /) -> Iterator[ChunkProjection]:
        """What is taken of each of its chunks, each once."""
        ...


T = TypeVar("T", bound=ShardPart)


class _Target(NamedTuple):
    """Where elements go."""

    buffer: npt.NDArray[Any]
    advance: Advance


@dataclass
class _Memory:
    """What one job at a time works in. Of new memory, the kernel has to clear every page: as long a work as decoding.

    Parameters
    ----------
    fetched
        Takes the bytes of a range.
    chunk
        Takes a chunk of which only a part goes into the buffer.
    """

    fetched: npt.NDArray[np.uint8] = field(default_factory=lambda: np.empty(0, np.uint8))
    chunk: npt.NDArray[Any] | None = None

    def for_bytes(self, nbytes: int) -> memoryview:
        if self.fetched.size < nbytes:
            self.fetched = new_array((nbytes,), self.fetched.dtype, "reading a range of an object")
        return self.fetched[:nbytes].data


@dataclass(frozen=True)
class Reader:
    """Reads elements of one array, as it was opened.

    Parameters
    ----------
    work
        Work on the array, as it was opened.
    codec
        Codec of the array, with its layout.
    """

    work: Work
    codec: ShardCodec
    _idle: deque[_Memory] = field(default_factory=deque, init=False, repr=False)

    @property
    def dataset(self) -> Dataset:
        """The array, as it was opened."""
        return self.work.dataset

    def fill(self, parts: Iterable[ShardPart], buffer: npt.NDArray[Any], advance: Advance) -> None:
        """Fill a buffer with what is taken of shards.

        Raises
        ------
        ChangedError
            If the array is not what it was when it was opened; the buffer is then of no use.
        CorruptTensorError, IncompleteTensorError
            The message says which object is damaged or lost.
        """
        self.work.run(self._jobs(parts, _Target(buffer, advance)))

    def read(self, entry: ShardRecord) -> npt.NDArray[Any]:
        """All elements of one shard that lie within the array.

        Raises
        ------
        LostObjectError
            If its object is not there.
        """
        layout = self.codec.layout
        reading = plan_chunks(layout.shape, layout.region(entry.number), layout.shards)
        buffer = new_array(
            reading.buffer_shape, layout.dtype, f"reading {entry.name!r} of {self.dataset.key!r}"
        )
        for part in reading.projections():
            for job in self._jobs_of(part, entry, _Target(buffer, lambda _bytes: None)):
                job()
        return buffer

    def ranges(self, entry: ShardRecord) -> npt.NDArray[np.uint64]:
        """Where the chunks of a shard are: see `ShardCodec.ranges`.

        Raises
        ------
        CorruptTensorError
            If the catalogue's index is none of such an object.
        """
        try:
            return self.codec.ranges(entry.index, entry.nbytes)
        except CorruptChunkError as error:
            raise self._corrupt(entry, "its index in the catalogue", error) from error

    def changed(self, entry: ShardRecord, lost: LostObjectError) -> ChangedError:
        """The error that a shard has another object by now. Raises one of its own if it is lost."""
        self._renewed(entry, lost)
        return ChangedError(f"{self.dataset.key!r} has changed since it was opened. Open it again.")

    def with_records(self, parts: Iterable[T]) -> Iterator[tuple[T, ShardRecord]]:
        """What is taken of shards, each with the entry of its shard."""
        layout = self.codec.layout
        return with_records(self.work, layout, parts, lambda part: layout.number_of(part.coords))

    def _jobs(self, parts: Iterable[ShardPart], target: _Target) -> Iterator[Callable[[], None]]:
        for part, entry in self.with_records(parts):
            for job in self._jobs_of(part, entry, target):
                yield partial(self._run, job, part, entry, target)

    def _jobs_of(self, part: ShardPart, entry: ShardRecord, target: _Target) -> Iterator[Callable[[], None]]:
        """What one shard takes: its empty chunks are filled at once, and the others fetched by what is yielded."""
        ranges = self.ranges(entry).tolist()
        layout = self.codec.layout
        chunks = []
        for chunk in part.split(layout.chunks):
            offset, length = ranges[layout.position_of(chunk.coords)]
            if offset == EMPTY:
                target.buffer[chunk.buffer_selection] = self.codec.fill_value
                target.advance(chunk.size * target.buffer.itemsize)
            else:
                chunks.append(StoredChunk(offset, length, chunk))
        for first, nbytes, members in join_ranges(chunks):
            yield partial(self._fetch, entry, first, nbytes, members, target)

    def _fetch(
        self, entry: ShardRecord, first: int, nbytes: int, chunks: list[StoredChunk], target: _Target
    ) -> None:
        memory = self._take()
        data = memory.for_bytes(nbytes)
        Bucket(self.work.transfer).get_into(self.dataset, entry, first, data)
        for offset, length, part in chunks:
            encoded = data[offset - first : offset - first + length]
            place = part.target(target.buffer)
            try:
                if place is not None:
                    self.codec.decode(encoded, place)
                else:
                    memory.chunk = self.codec.decode(encoded, memory.chunk)
                    part.take(memory.chunk, target.buffer)
            except CorruptChunkError as error:
                raise self._corrupt(entry, f"its chunk {part.coords}", error) from error
            target.advance(part.size * target.buffer.itemsize)
        self._idle.append(memory)

    def _take(self) -> _Memory:
        try:
            return self._idle.pop()
        except IndexError:
            return _Memory()

    def _run(self, job: Callable[[], None], part: ShardPart, entry: ShardRecord, target: _Target) -> None:
        """Do a job of a shard. If its object is gone, but not its array, all of the shard is read from its new one."""
        try:
            job()
        except LostObjectError as error:
            self._read_again(part, self._renewed(entry, error), target)

    def _read_again(self, part: ShardPart, entry: ShardRecord, target: _Target) -> None:
        for _ in range(_MAX_ATTEMPTS):
            try:
                for job in self._jobs_of(part, entry, target):
                    job()
            except LostObjectError as error:
                entry = self._renewed(entry, error)
            else:
                return
        raise ChangedError(f"reading {self.dataset.key!r}: it changes faster than it can be read. Try again.")

    def _renewed(self, entry: ShardRecord, lost: LostObjectError) -> ShardRecord:
        """What the catalogue now says of a shard whose object is gone: another object, as after an append."""
        number = entry.number
        now = fetch_records(self.work, self.codec.layout, [number])[number]
        if now.name == entry.name:
            raise self._lost(entry, lost)
        return now

    def _lost(
        self, entry: ShardRecord, lost: LostObjectError
    ) -> IncompleteTensorError | PermissionDeniedError:
        asked = f"reading {self.dataset.key!r}"
        arguments = {"data_id": self.dataset.id, "number": entry.number}
        where = f"{entry.name!r}, which holds {self._extent(entry)}"
        error: IncompleteTensorError | PermissionDeniedError
        is_there = self.work.call("tensorage_has_object", arguments)
        # What has an entry in the bucket, and is seen by it, has lost its bytes.
        if is_there and not Bucket(self.work.transfer).can_see(entry.name, asked):
            error = PermissionDeniedError(
                f"{asked}: the policies of the bucket 'tensors' do not let this user read {where}. Apply the "
                "migrations, which make them."
            )
        else:
            error = IncompleteTensorError(
                f"{asked}: Storage has lost {where}. Nothing is returned; store the array again, or read other parts."
            )
        error.__cause__ = lost.__cause__
        return error

    def _corrupt(self, entry: ShardRecord, where: str, error: CorruptChunkError) -> CorruptTensorError:
        return CorruptTensorError(
            f"reading {self.dataset.key!r}: the object {entry.name!r}, which holds {self._extent(entry)}, is damaged: "
            f"{where} cannot be read ({error}). Nothing is returned; store the array again, or read other parts."
        )

    def _extent(self, entry: ShardRecord) -> str:
        return describe_shard(self.codec.layout, entry.number)


def join_ranges(chunks: Iterable[StoredChunk]) -> Iterator[tuple[int, int, list[StoredChunk]]]:
    """Ranges of an object that have all of the chunks, neighbouring ones together: first byte, length, and chunks."""
    members: list[StoredChunk] = []
    first = end = 0
    for chunk in sorted(chunks, key=lambda chunk: chunk.offset):
        chunk_end = chunk.offset + chunk.length
        if members and (chunk.offset - end > MAX_GAP_BYTES or chunk_end - first > MAX_RANGE_BYTES):
            yield first, end - first, members
            members = []
        if not members:
            first = end = chunk.offset
        members.append(chunk)
        end = max(end, chunk_end)
    if members:
        yield first, end - first, members
