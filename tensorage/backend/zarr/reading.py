"""Reading of selections from objects: ranges are fetched in parallel, and each chunk is put into its place.

A read goes in these steps:

1. The catalogue tells the object of each shard, and the ranges of its chunks.
2. Chunks that lie close together in an object are joined to one range.
3. Each range is fetched by one request, and its chunks are decoded into the buffer.
"""

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
from tensorage.backend.zarr.shard_records import (
    ShardRecord,
    check_records,
    describe_shard,
    fetch_records,
    with_records,
)
from tensorage.errors import ChangedError, CorruptTensorError, IncompleteTensorError, PermissionDeniedError
from tensorage.indexing.chunks import ChunkProjection, plan_chunks
from tensorage.model.memory import new_array
from tensorage.types import Dataset

__all__ = ["Reader", "ShardProjection", "StoredChunk", "join_ranges"]

#: Largest gap between ranges that are joined. A request costs about as much as moving so many bytes.
MAX_GAP_BYTES = 64 * 1024

#: Most bytes of a joined range, unless a single chunk is longer.
MAX_RANGE_BYTES = 8 * 1024 * 1024

#: Most times that a shard is read if its object is replaced by another one each time.
_MAX_ATTEMPTS = 20


class StoredChunk(NamedTuple):
    """A chunk of an object.

    Parameters
    ----------
    offset, length
        Range of the chunk in the object, in bytes.
    projection
        Elements that the selection takes of the chunk, and their place in the buffer.
    """

    offset: int
    length: int
    projection: ChunkProjection


class ShardProjection(Protocol):
    """Part of a selection within one shard: a `ChunkProjection` of the grid of shards, or chosen chunks."""

    @property
    def coords(self) -> tuple[int, ...]:
        """Position of the shard in the grid of shards."""
        ...

    def split(self, chunks: Sequence[int], /) -> Iterator[ChunkProjection]:
        """Yield the projection of each chunk that is touched, each chunk once."""
        ...


T = TypeVar("T", bound=ShardProjection)


class _Target(NamedTuple):
    """Buffer that elements are read into, and its progress."""

    buffer: npt.NDArray[Any]
    advance: Advance


@dataclass
class _Memory:
    """Memory for one job, which later jobs use again.

    The kernel has to clear every page of new memory, which takes about as long as decoding.

    Parameters
    ----------
    fetched
        Room for the bytes of a range.
    chunk
        Room for a chunk that only partly goes into the buffer.
    """

    fetched: npt.NDArray[np.uint8] = field(default_factory=lambda: np.empty(0, np.uint8))
    chunk: npt.NDArray[Any] | None = None

    def for_bytes(self, nbytes: int) -> memoryview:
        if self.fetched.size < nbytes:
            self.fetched = new_array((nbytes,), self.fetched.dtype, "reading a range of an object")
        return self.fetched[:nbytes].data


@dataclass(frozen=True)
class Reader:
    """Reads elements of one version of an array.

    Parameters
    ----------
    work
        Work on the array, in the version that was opened.
    codec
        Codec of the array, with its layout.
    records
        Records of all shards, if they came along with the entry.
    """

    work: Work
    codec: ShardCodec
    records: bytes | None = None
    _idle: deque[_Memory] = field(default_factory=deque, init=False, repr=False)

    @property
    def dataset(self) -> Dataset:
        """Entry of the array, in the version that was opened."""
        return self.work.dataset

    def fill(
        self, projections: Iterable[ShardProjection], buffer: npt.NDArray[Any], advance: Advance
    ) -> None:
        """Fill a buffer with the elements of projections.

        Raises
        ------
        ChangedError
            If the array has changed since it was opened. The content of the buffer is then of no use.
        CorruptTensorError, IncompleteTensorError
            If an object is damaged or lost. The message names it.
        """
        self.work.run(self._jobs(projections, _Target(buffer, advance)))

    def read(self, record: ShardRecord) -> npt.NDArray[Any]:
        """Return all elements of one shard that lie within the array.

        Raises
        ------
        LostObjectError
            If the shard's object is missing.
        """
        layout = self.codec.layout
        plan = plan_chunks(layout.shape, layout.region(record.number), layout.shards)
        asked = f"reading {record.name!r} of {self.dataset.key!r}"
        buffer = new_array(plan.buffer_shape, layout.memory_dtype, asked)
        for projection in plan.projections():
            for job in self._jobs_of(projection, record, _Target(buffer, lambda _bytes: None)):
                job()
        return buffer

    def ranges(self, record: ShardRecord) -> npt.NDArray[np.uint64]:
        """Return the offset and length of each chunk of a shard: see `ShardCodec.ranges`.

        Raises
        ------
        CorruptTensorError
            If the index in the catalogue does not fit the object.
        """
        try:
            return self.codec.ranges(record.index, record.nbytes)
        except CorruptChunkError as error:
            raise self._corrupt_error(record, "its index in the catalogue", error) from error

    def changed_error(self, record: ShardRecord, lost: LostObjectError) -> ChangedError:
        """Return the error for a shard whose object has been replaced. Raise another error if the object is lost."""
        self._find_replacement(record, lost)
        return ChangedError(f"{self.dataset.key!r} has changed since it was opened. Open it again.")

    def with_records(self, projections: Iterable[T]) -> Iterator[tuple[T, ShardRecord]]:
        """Yield projections, each with the record of its shard."""
        layout = self.codec.layout
        if self.records is not None:
            known = check_records(self.work, layout, self.records)
            return ((each, known[layout.number_of(each.coords)]) for each in projections)
        return with_records(
            self.work, layout, projections, lambda projection: layout.number_of(projection.coords)
        )

    def _jobs(self, projections: Iterable[ShardProjection], target: _Target) -> Iterator[Callable[[], None]]:
        for projection, record in self.with_records(projections):
            for job in self._jobs_of(projection, record, target):
                yield partial(self._run_job, job, projection, record, target)

    def _jobs_of(
        self, projection: ShardProjection, record: ShardRecord, target: _Target
    ) -> Iterator[Callable[[], None]]:
        """Fill the empty chunks of a shard, and yield jobs that fetch the others."""
        layout = self.codec.layout
        touched = list(projection.split(layout.chunks))
        places = [layout.position_of(chunk.coords) for chunk in touched]
        # A shard may have 65,536 chunks: only the ranges of those that are read become numbers of Python.
        ranges = self.ranges(record)[places].tolist()
        chunks = []
        for chunk, (offset, length) in zip(touched, ranges, strict=True):
            if offset == EMPTY:
                target.buffer[chunk.buffer_selection] = self.codec.fill_value
                target.advance(chunk.size * target.buffer.itemsize)
            else:
                chunks.append(StoredChunk(offset, length, chunk))
        # Jobs are yielded, and not done here, so that ranges of several shards are fetched in parallel.
        for first, nbytes, members in join_ranges(chunks):
            yield partial(self._fetch, record, first, nbytes, members, target)

    def _fetch(
        self, record: ShardRecord, first: int, nbytes: int, chunks: list[StoredChunk], target: _Target
    ) -> None:
        memory = self._take_memory()
        data = memory.for_bytes(nbytes)
        Bucket(self.work.transfer).get_into(self.dataset, record, first, data)
        for offset, length, projection in chunks:
            encoded = data[offset - first : offset - first + length]
            # A chunk that is taken whole is decoded right into the buffer.
            place = projection.target(target.buffer)
            try:
                if place is not None:
                    self.codec.decode(encoded, place)
                else:
                    memory.chunk = self.codec.decode(encoded, memory.chunk)
                    projection.take(memory.chunk, target.buffer)
            except CorruptChunkError as error:
                raise self._corrupt_error(record, f"its chunk {projection.coords}", error) from error
            target.advance(projection.size * target.buffer.itemsize)
        # After an error the memory is dropped, which does no harm.
        self._idle.append(memory)

    def _take_memory(self) -> _Memory:
        try:
            return self._idle.pop()
        except IndexError:
            return _Memory()

    def _run_job(
        self, job: Callable[[], None], projection: ShardProjection, record: ShardRecord, target: _Target
    ) -> None:
        """Do a job of a shard. If the object has been replaced meanwhile, read the whole shard from the new object."""
        try:
            job()
        except LostObjectError as error:
            self._read_again(projection, self._find_replacement(record, error), target)

    def _read_again(self, projection: ShardProjection, record: ShardRecord, target: _Target) -> None:
        for _ in range(_MAX_ATTEMPTS):
            try:
                for job in self._jobs_of(projection, record, target):
                    job()
            except LostObjectError as error:
                record = self._find_replacement(record, error)
            else:
                return
        raise ChangedError(f"reading {self.dataset.key!r}: it changes faster than it can be read. Try again.")

    def _find_replacement(self, record: ShardRecord, lost: LostObjectError) -> ShardRecord:
        """Ask for the new object of a shard whose object is gone, as after an append. Raise if there is no new one."""
        number = record.number
        now = fetch_records(self.work, self.codec.layout, [number])[number]
        if now.name == record.name:
            raise self._lost_error(record, lost)
        return now

    def _lost_error(
        self, record: ShardRecord, lost: LostObjectError
    ) -> IncompleteTensorError | PermissionDeniedError:
        asked = f"reading {self.dataset.key!r}"
        arguments = {"data_id": self.dataset.id, "number": record.number}
        where = f"{record.name!r}, which holds {self._where(record)}"
        error: IncompleteTensorError | PermissionDeniedError
        is_there = self.work.call("tensorage_has_object", arguments)
        # The bucket may still list an object whose bytes are lost. An object that it hides is one that policies forbid.
        if is_there and not Bucket(self.work.transfer).can_see(record.name, asked):
            error = PermissionDeniedError(
                f"{asked}: the policies of the bucket 'tensors' do not let this user read {where}. Apply the "
                "migrations, which make them."
            )
        else:
            error = IncompleteTensorError(
                f"{asked}: Storage has lost {where}. Nothing is returned; store the array again, or read other parts."
            )
        # `LostObjectError` itself is of no use to users. Its cause holds the answer of Storage.
        error.__cause__ = lost.__cause__
        return error

    def _corrupt_error(self, record: ShardRecord, where: str, error: CorruptChunkError) -> CorruptTensorError:
        return CorruptTensorError(
            f"reading {self.dataset.key!r}: the object {record.name!r}, which holds {self._where(record)}, is damaged: "
            f"{where} cannot be read ({error}). Nothing is returned; store the array again, or read other parts."
        )

    def _where(self, record: ShardRecord) -> str:
        return describe_shard(self.codec.layout, record.number)


def join_ranges(chunks: Iterable[StoredChunk]) -> Iterator[tuple[int, int, list[StoredChunk]]]:
    """Join chunks of an object that lie close together to ranges.

    Yields
    ------
    tuple
        First byte of the range, its length, and its chunks.
    """
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
