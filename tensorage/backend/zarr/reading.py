"""Reading of selections from objects: ranges are fetched in parallel, and each chunk is put into its place.

A read goes in these steps:

1. The catalogue tells the object of each shard, and the ranges of its chunks.
2. Chunks that lie close together in an object are joined to one range.
3. Each range is fetched by one request, and its chunks are decoded into the buffer: those of a page together, if one
   range has all of them that are wanted.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain, islice
from operator import add
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from tensorage.backend.transfer import Work
from tensorage.backend.wire.http import Attempt
from tensorage.backend.wire.line import MAX_OBJECTS, LineEstimate
from tensorage.backend.wire.progress import Advance
from tensorage.backend.wire.together import Exchange
from tensorage.backend.zarr.bucket import Bucket, LostObjectError
from tensorage.backend.zarr.chunk_shapes import SHARD_BYTES
from tensorage.backend.zarr.codec import CorruptChunkError, ShardCodec
from tensorage.backend.zarr.compressors import joined_room
from tensorage.backend.zarr.layout import Layout
from tensorage.backend.zarr.ranges import EMPTY, join_ranges
from tensorage.backend.zarr.shard_records import (
    ShardRecord,
    check_records,
    describe_shard,
    fetch_records,
    numbers_per_request,
    with_records,
)
from tensorage.errors import ChangedError, CorruptTensorError, IncompleteTensorError, PermissionDeniedError
from tensorage.indexing.chunks import ChunkProjection, plan_chunks
from tensorage.indexing.selection import Positions
from tensorage.model.memory import new_array
from tensorage.types import Dataset

__all__ = ["Reader", "ShardProjection"]

#: Place of a chunk that is decoded alone.
_ALONE = np.zeros(1, np.int64)

#: Chunks of a page that are worth a page's memory.
_MANY_PER_PAGE = 4

#: Most bytes of ranges that are better fetched by one thread: larger ones are decoded by several.
_SMALL_BYTES = 64 * 1024

#: Most times that a shard is read if its object is replaced by another one each time.
_MAX_ATTEMPTS = 20


class _Piece(NamedTuple):
    """Chunks that are decoded together: of one page, or one chunk of it.

    Parameters
    ----------
    coords
        Position in the shard of the first chunk of the page.
    places
        Places of the chunks behind the first one, ascending.
    ranges
        Offset and length of each chunk in the object. Both are `EMPTY` for an empty chunk.
    projection
        Elements that the selection takes of these chunks, and their place in the buffer.
    """

    coords: tuple[int, ...]
    places: Positions
    ranges: npt.NDArray[np.uint64]
    projection: ChunkProjection


class _Job(NamedTuple):
    """The download of a range of so many bytes, and the decoding of its chunks: see `tensorage.backend.wire.together`.

    Its exchange holds memory from its beginning to its end.
    """

    nbytes: int
    do: Callable[[], None]
    begin: Callable[[], Exchange | None]


class _Range(NamedTuple):
    """Bytes of a shard to fetch, and the chunks to decode from them into a buffer."""

    record: ShardRecord
    first: int
    nbytes: int
    pieces: list[_Piece]
    target: _Target


class _Fetched(NamedTuple):
    """Bytes of an object, and the byte of the object that would be the first of this memory."""

    data: npt.NDArray[np.uint8]
    first: int


class ShardProjection(Protocol):
    """Part of a selection within one shard: a `ChunkProjection` of the grid of shards, or chosen chunks."""

    @property
    def coords(self) -> tuple[int, ...]:
        """Position of the shard in the grid of shards."""
        ...

    def split(self, chunks: Sequence[int], /) -> Iterator[ChunkProjection]:
        """Yield the projection of each chunk, or page, of this shape that is touched, each once."""
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
    elements
        Room for a page that only partly goes into the buffer.
    """

    fetched: npt.NDArray[np.uint8] = field(default_factory=lambda: np.empty(0, np.uint8))
    elements: npt.NDArray[Any] | None = None

    def for_bytes(self, nbytes: int) -> npt.NDArray[np.uint8]:
        if self.fetched.size < nbytes:
            self.fetched = new_array((nbytes,), self.fetched.dtype, "reading a range of an object")
        return self.fetched[:nbytes]

    def for_page(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
        size = math.prod(shape)
        if self.elements is None or self.elements.size < size:
            self.elements = new_array((size,), dtype, "decoding chunks")
        return self.elements[:size].reshape(shape)


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
    by_pages
        False if projections consist of chunks already.
    """

    work: Work
    codec: ShardCodec
    records: bytes | None = None
    by_pages: bool = True
    _idle: deque[_Memory] = field(default_factory=deque, init=False, repr=False)
    _moved: deque[int] = field(default_factory=deque, init=False, repr=False)

    @property
    def dataset(self) -> Dataset:
        """Entry of the array, in the version that was opened."""
        return self.work.dataset

    @property
    def moved_bytes(self) -> int:
        """Bytes of objects that `read_into` has asked for, over-read included."""
        return sum(self._moved)

    def read_into(
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
        jobs = self._jobs(projections, _Target(buffer, advance))
        first = list(islice(jobs, MAX_OBJECTS))
        if first:
            mean_bytes = sum(job.nbytes for job in first) / len(first)
            parallel, later = self._line().parallel(mean_bytes), chain(first, jobs)
            # A check has nothing to decode, so that a single range beside it is decoded by one thread in any case.
            is_light = mean_bytes <= _SMALL_BYTES or sum(job.nbytes > 0 for job in first) == 1
            if len(first) > 1 and is_light:
                self.work.transfer.run_small(later, min(parallel, len(first)))
            else:
                self.work.run((job.do for job in later), parallel)

    def read(self, record: ShardRecord, rows: slice | None = None) -> npt.NDArray[Any]:
        """Return all elements of one shard that lie within the array, or those of some of its rows.

        Parameters
        ----------
        rows
            Rows of the array, all of them in the shard.

        Raises
        ------
        LostObjectError
            If the shard's object is missing.
        """
        layout = self.codec.layout
        region = layout.region(record.number)
        plan = plan_chunks(layout.shape, region if rows is None else (rows, *region[1:]), layout.shards)
        asked = f"reading {record.name!r} of {self.dataset.key!r}"
        buffer = new_array(plan.buffer_shape, layout.memory_dtype, asked)
        for projection in plan.projections():
            for job in self._jobs_of(projection, record, _Target(buffer, lambda _bytes: None)):
                job.do()
        return buffer

    def read_unchanged(self, record: ShardRecord, rows: slice | None = None) -> npt.NDArray[Any]:
        """Return elements of one shard as `read` does, for a change that is based on them.

        Raises
        ------
        ChangedError
            If the shard's object has been replaced.
        """
        try:
            return self.read(record, rows)
        except LostObjectError as error:
            raise self.changed_error(record, error) from error

    def ranges(self, record: ShardRecord) -> npt.NDArray[np.uint64]:
        """Return the offset and length of each chunk of a shard: see `ShardCodec.ranges`.

        Raises
        ------
        CorruptTensorError
            If the index in the catalogue does not fit the object.
        """
        try:
            return self.codec.ranges(record.index, record.encoded_nbytes)
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

    def _check_known(self) -> None:
        """Raise `ChangedError` unless the array is what is remembered of it."""
        self.work.read("tensorage_shards", {**self.work.identity, "numbers": []})

    def _begin_check(self) -> Exchange | None:
        """Return the same as an exchange."""
        arguments = {**self.work.identity, "numbers": []}
        return self.work.transfer.exchange("tensorage_shards", arguments, self.work.asked)

    def _with_checked_records(
        self, projections: Iterable[ShardProjection]
    ) -> Iterator[tuple[ShardProjection, ShardRecord] | None]:
        """Yield projections, each with the record of its shard, and once None if the array is still to be checked.

        This leans on objects that are never changed. Records that are remembered name objects, or tails, that have the
        elements of the array in the version that it was opened in, for as long as the database lets this version be
        read. Records that are fetched are of an array that was checked by that request.
        """
        if self.records is not None:
            if self.work.known is not None:
                yield None
            yield from self.with_records(projections)
            return
        layout, memory = self.codec.layout, self.work.transfer.records
        source, is_checked = iter(projections), False
        while page := list(islice(source, numbers_per_request(layout))):
            numbers = [layout.number_of(projection.coords) for projection in page]
            records = memory.find(self.dataset, numbers)
            if missing := [number for number in numbers if number not in records]:
                records.update(self._fetch_records(missing))
            elif not is_checked:
                yield None
            is_checked = True
            yield from zip(page, map(records.__getitem__, numbers), strict=True)

    def _fetch_records(self, numbers: list[int]) -> dict[int, ShardRecord]:
        records = fetch_records(self.work, self.codec.layout, numbers)
        self.work.transfer.records.remember(self.dataset, records.values())
        return records

    def _line(self) -> LineEstimate:
        return self.work.transfer.http.meter.estimate()

    def _jobs(self, projections: Iterable[ShardProjection], target: _Target) -> Iterator[_Job]:
        for found in self._with_checked_records(projections):
            if found is None:
                yield _Job(0, self._check_known, self._begin_check)
                continue
            projection, record = found
            for job in self._jobs_of(projection, record, target):
                self._moved.append(job.nbytes)
                again = partial(self._run_job, projection=projection, record=record, target=target)
                yield _Job(job.nbytes, partial(again, job.do), partial(_with_end, job.begin, again))

    def _jobs_of(self, projection: ShardProjection, record: ShardRecord, target: _Target) -> Iterator[_Job]:
        """Fill the empty chunks of a shard, and yield jobs that fetch the others."""
        pages = list(self._pages(projection))
        # A shard may have 65,536 chunks: only the ranges of those that are read become numbers of Python.
        ranges = self.ranges(record)[np.concatenate([numbers for _, numbers in pages])]
        joined = join_ranges(ranges, self._line().gap_bytes())
        members: list[list[_Piece]] = [[] for _ in joined.firsts]
        at = 0
        for page, numbers in pages:
            some = slice(at, at + len(numbers))
            at = some.stop
            for number, piece in self._pieces(page, ranges[some], joined.numbers[some]):
                if number < 0:
                    self._read_piece_into(piece.projection, target)
                else:
                    members[number].append(piece)
        # Jobs are yielded, and not done here, so that ranges of several shards are fetched in parallel.
        for first, end, pieces in zip(joined.firsts, joined.ends, members, strict=True):
            wanted = _Range(record, first, end - first, pieces, target)
            yield _Job(wanted.nbytes, partial(self._fetch, wanted), partial(self._begin_fetch, wanted))

    def _pages(self, projection: ShardProjection) -> Iterator[tuple[ChunkProjection, Positions]]:
        """Yield the pages of a shard that are touched, each with the numbers of its touched chunks in the shard."""
        layout = self.codec.layout
        if not self.by_pages or _is_scattered(projection, layout):
            for chunk in projection.split(layout.chunks):
                yield chunk, np.array([layout.position_of(chunk.coords)])
            return
        # Planning takes time for each page, so that a shard that is wanted whole is one.
        for page in projection.split(layout.shards if _is_one_page(projection, layout) else layout.pages):
            first = layout.position_of(self._first_chunk(page))
            yield page, first + page.parts(layout.chunks[0] if layout.chunks else 1)

    def _first_chunk(self, page: ChunkProjection) -> tuple[int, ...]:
        """Return the position in the shard of the first chunk of a page."""
        chunks = self.codec.layout.chunks
        return tuple(
            coord * (extent // chunk)
            for coord, extent, chunk in zip(page.coords, page.chunks, chunks, strict=True)
        )

    def _pieces(
        self, page: ChunkProjection, ranges: npt.NDArray[np.uint64], numbers: Positions
    ) -> Iterator[tuple[int, _Piece]]:
        """Yield a page as a whole if one range has all of its chunks, else its chunks, each with its range's number."""
        chunks, first = self.codec.layout.chunks, self._first_chunk(page)
        if len(numbers) == 1 and page.chunks == chunks:
            yield int(numbers[0]), _Piece(page.coords, _ALONE, ranges, page)
            return
        number = int(numbers.max())
        if ((numbers == number) | (numbers < 0)).all():
            yield (
                number,
                _Piece(first, page.parts(chunks[0] if chunks else 1), ranges, _trim(page, chunks)),
            )
            return
        for place, (chunk, number) in enumerate(zip(page.split(chunks), numbers.tolist(), strict=True)):
            coords = tuple(map(add, first, chunk.coords))
            yield number, _Piece(coords, _ALONE, ranges[place : place + 1], chunk)

    def _read_piece_into(self, projection: ChunkProjection, target: _Target) -> None:
        target.buffer[projection.buffer_selection] = self.codec.fill_value
        target.advance(projection.size * target.buffer.itemsize)

    def _fetch(self, wanted: _Range) -> None:
        memory, data = self._take_memory(wanted)
        room = len(data) - wanted.nbytes
        Bucket(self.work.transfer).get_into(self.dataset, wanted.record, wanted.first, data[room:].data)
        self._take(wanted, memory, data)

    def _begin_fetch(self, wanted: _Range) -> Exchange | None:
        """Return the fetching of a range as an exchange, unless the catalogue has all of its bytes."""
        memory, data = self._take_memory(wanted)
        bucket, out = Bucket(self.work.transfer), data[len(data) - wanted.nbytes :].data
        download = bucket.download(self.dataset, wanted.record, wanted.first, out)
        if download is None:
            self._idle.append(memory)
            return None

        def end(begun: Attempt) -> None:
            bucket.finish(download, begun)
            self._take(wanted, memory, data)

        return Exchange(download.request, download.asked, end)

    def _take_memory(self, wanted: _Range) -> tuple[_Memory, npt.NDArray[np.uint8]]:
        """Return memory for a job, and the part of it that ends with the bytes of its range."""
        try:
            memory = self._idle.pop()
        except IndexError:
            memory = _Memory()
        room = joined_room(max(len(piece.places) for piece in wanted.pieces))
        return memory, memory.for_bytes(room + wanted.nbytes)

    def _take(self, wanted: _Range, memory: _Memory, data: npt.NDArray[np.uint8]) -> None:
        """Decode the chunks of a range, and give the memory back."""
        record, target = wanted.record, wanted.target
        fetched = _Fetched(data, wanted.first - (len(data) - wanted.nbytes))
        for piece in wanted.pieces:
            projection = piece.projection
            # Chunks that are taken whole are decoded right into the buffer.
            place = projection.target(target.buffer)
            page = memory.for_page(projection.chunks, target.buffer.dtype) if place is None else place
            self._decode(record, piece, fetched, page)
            if place is None:
                projection.take(page, target.buffer)
            target.advance(projection.size * target.buffer.itemsize)
        # After an error the memory is dropped, which does no harm.
        self._idle.append(memory)

    def _decode(self, record: ShardRecord, piece: _Piece, fetched: _Fetched, page: npt.NDArray[Any]) -> None:
        """Decode the chunks of a page."""
        places = page.reshape(-1, *self.codec.layout.chunks)
        if len(piece.places) > 1 and self._decode_together(piece, fetched, places):
            return
        for place, (offset, length) in zip(piece.places.tolist(), piece.ranges.tolist(), strict=True):
            if offset == EMPTY:
                places[place] = self.codec.fill_value
                continue
            start = offset - fetched.first
            try:
                self.codec.decode(fetched.data[start : start + length].data, places[place, ...])
            except CorruptChunkError as error:
                coords = (piece.coords[0] + place, *piece.coords[1:]) if piece.coords else ()
                raise self._corrupt_error(record, f"its chunk {coords}", error) from error

    def _decode_together(self, piece: _Piece, fetched: _Fetched, places: npt.NDArray[Any]) -> bool:
        """Decode chunks that follow each other at once. False if they have to be decoded one by one."""
        low, high = int(piece.places[0]), int(piece.places[-1]) + 1
        if high - low != len(piece.places) or (piece.ranges[:, 0] == EMPTY).any():
            return False
        starts = piece.ranges[:, 0].astype(np.int64) - fetched.first
        ends = starts + piece.ranges[:, 1].astype(np.int64)
        layout = self.codec.layout
        # A page at a time, which stays in the processor's cache from the checksum to the elements.
        each = layout.pages[0] // layout.chunks[0]
        return all(
            self.codec.decode_together(
                fetched.data,
                starts[first : first + each],
                ends[first : first + each],
                places[low + first : min(low + first + each, high)],
            )
            for first in range(0, high - low, each)
        )

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
                    job.do()
            except LostObjectError as error:
                record = self._find_replacement(record, error)
            else:
                return
        raise ChangedError(f"reading {self.dataset.key!r}: it changes faster than it can be read. Try again.")

    def _find_replacement(self, record: ShardRecord, lost: LostObjectError) -> ShardRecord:
        """Ask for the new object of a shard whose object is gone, as after an append. Raise if there is no new one."""
        number = record.number
        # Remembered, so that later reads of this version do not begin with the lost object.
        now = self._fetch_records([number])[number]
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


def _with_end(
    begin: Callable[[], Exchange | None], run: Callable[[Callable[[], None]], None]
) -> Exchange | None:
    """Return an exchange whose end is run by another function."""
    exchange = begin()
    if exchange is None:
        return None
    end = exchange.end
    return exchange._replace(end=lambda begun: run(partial(end, begun)))


def _is_scattered(projection: ShardProjection, layout: Layout) -> bool:
    """Tell whether so few chunks are touched of each page that they are better decoded alone."""
    if layout.pages == layout.chunks or not isinstance(projection, ChunkProjection):
        return True
    chunks, pages = (len(projection.parts(shape[0])) for shape in (layout.chunks, layout.pages))
    return chunks < _MANY_PER_PAGE * pages


def _is_one_page(projection: ShardProjection, layout: Layout) -> bool:
    """Tell whether all of a shard of common size is taken, of chunks that follow each other in memory."""
    nbytes = math.prod(layout.shards) * layout.dtype.itemsize
    is_whole = isinstance(projection, ChunkProjection) and projection.is_whole
    return is_whole and layout.pages != layout.chunks and nbytes <= SHARD_BYTES


def _trim(page: ChunkProjection, chunks: tuple[int, ...]) -> ChunkProjection:
    """Return the projection of a page without the chunks that lie behind the end of its shard or of the array."""
    if not chunks:
        return page
    rows = -(-page.shape[0] // chunks[0]) * chunks[0]
    return replace(page, chunks=(rows, *page.chunks[1:]))
