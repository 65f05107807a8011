"""Changes of stored arrays: appends, assignments, and arrays that are filled piece by piece.

A shard that changes is written anew, as another object. What it is made from is told along with it, so that the
catalogue refuses what somebody else has changed meanwhile.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from tensorage.backend.restarts import gone_is_changed
from tensorage.backend.staging import new_operation, with_room
from tensorage.backend.transfer import Work
from tensorage.backend.wire.faults import RestartedError
from tensorage.backend.zarr.bucket import Bucket, LostObjectError
from tensorage.backend.zarr.codec import ShardCodec
from tensorage.backend.zarr.reading import Reader
from tensorage.backend.zarr.shard_records import ShardRecord, fetch_records
from tensorage.backend.zarr.writing import NewShard, ShardWriter, return_elements
from tensorage.errors import ChangedError, InvalidInputError
from tensorage.indexing.chunks import ChunkPlan, ChunkProjection, plan_chunks
from tensorage.indexing.selection import Selection
from tensorage.model.values import as_assigned, check_rows
from tensorage.types import Dataset

__all__ = ["append_rows", "assign", "fill_region"]


def append_rows(work: Work, codec: ShardCodec, rows: npt.NDArray[Any]) -> Dataset:
    """Add rows at the end of axis 0 of an array, as it was opened.

    Raises
    ------
    ChangedError
        If it has changed; nothing was appended.
    """
    dataset = work.dataset
    check_rows(rows, dataset)
    arguments = {"data_id": dataset.id, "shape": rows.shape, "base_rows": dataset.shape[0]}
    staged = _begin(work, "tensorage_begin_append", arguments)
    grown = ShardCodec(codec.layout.with_rows(rows.shape[0]))
    writer = ShardWriter(staged, grown)
    shards = _appended(_reader(work, codec), grown, rows)
    return _staged(writer, shards, rows.nbytes, work.asked)


def assign(work: Work, codec: ShardCodec, selection: Selection, value: npt.ArrayLike) -> Dataset:
    """``array[selection] = value`` for an array, as it was opened.

    Raises
    ------
    ChangedError
        If it has changed; nothing was assigned.
    """
    dataset = work.dataset
    reading = plan_chunks(dataset.shape, selection, codec.layout.shards)
    buffer = _buffer_of(as_assigned(value, dataset), reading, dataset)
    if not reading.size:
        return dataset
    arguments = {"data_id": dataset.id, "version": dataset.version, "engine": "storage"}
    staged = _begin(work, "tensorage_begin_assign", arguments)
    writer = ShardWriter(staged, codec)
    shards = _assigned(_reader(work, codec), reading, buffer)
    return _staged(writer, shards, reading.size * dataset.dtype.itemsize, work.asked)


def fill_region(work: Work, codec: ShardCodec, region: tuple[slice, ...], elements: npt.NDArray[Any]) -> None:
    """Store the elements of a region of a staged dataset: whole shards, or whole rows.

    Raises
    ------
    InvalidInputError
        If it is neither.
    """
    layout, writer = codec.layout, ShardWriter(work, codec)
    whole = []
    for number in layout.shards_in(region):
        shard = layout.region(number)
        shared = [
            slice(max(part.start, axis.start), min(part.stop, axis.stop))
            for part, axis in zip(shard, region, strict=True)
        ]
        if shared == list(shard):
            whole.append(number)
        elif shared[1:] == list(shard[1:]):
            _fill_part(writer, number, _within(elements, region, shared), shared[0].start)
        else:
            raise InvalidInputError(
                f"{work.asked}: a region of {region} cuts the object of {shard}, and only rows can be cut"
            )
    # What was uploaded by somebody who filled the same region before stays until the array goes: that one may still be
    # alive, and tell the catalogue of it once more.
    work.run(partial(_fill_whole, writer, number, elements, region) for number in whole)


def _fill_whole(
    writer: ShardWriter, number: int, elements: npt.NDArray[Any], region: Sequence[slice]
) -> None:
    part = _within(elements, region, writer.codec.layout.region(number))
    writer.tell([writer.upload(number, part, _suffix()).as_json()])


def _within(elements: npt.NDArray[Any], region: Sequence[slice], part: Sequence[slice]) -> npt.NDArray[Any]:
    """Of the elements of a region, those of a part of it."""
    index: Any = [
        slice(wanted.start - axis.start, wanted.stop - axis.start)
        for wanted, axis in zip(part, region, strict=True)
    ]
    # The ellipsis makes it an array where there are no axes.
    found: npt.NDArray[Any] = elements[(*index, ...)]
    return found


def _fill_part(writer: ShardWriter, number: int, part: npt.NDArray[Any], first: int) -> None:
    """Store some rows of a shard, beside those that others store at the same time."""
    codec, work, bucket = writer.codec, writer.work, Bucket(writer.work.transfer)
    reader = _reader(work, codec)
    region = codec.layout.region(number)
    at = first - region[0].start
    while True:
        before = fetch_records(reader.work, codec.layout, [number]).get(number)
        if before is None:
            shape = tuple(axis.stop - axis.start for axis in region)
            elements = np.full(shape, codec.fill_value, codec.layout.dtype)
        else:
            try:
                elements = reader.read(before)
            except LostObjectError as error:
                reader.changed(before, error)  # Somebody has just replaced it, or this raises.
                continue
        elements[at : at + part.shape[0]] = part
        entry = writer.upload(number, elements, _suffix())
        rows = {"low": first, "high": first + part.shape[0]}
        try:
            writer.tell([entry.as_json(**rows, before=None if before is None else before.name)])
        except RestartedError:
            # Nothing more is taken of what was begun before: to try again would never end.
            raise
        except ChangedError:
            # Also raised if the dataset is not being written any more: then this raises KeyNotFoundError.
            work.call("tensorage_dataset", {"data_id": work.dataset.id})
            if entry.name:
                bucket.remove([entry.name], work.asked)
            continue
        if before is not None and before.name:
            bucket.remove([before.name], work.asked)
        return


def _appended(reader: Reader, grown: ShardCodec, rows: npt.NDArray[Any]) -> Iterator[NewShard]:
    base = reader.dataset.shape[0]
    numbers = grown.layout.shards_of(base, base + rows.shape[0])
    # Of those, only the first ones are there already, with rows of their own.
    has_room = len(numbers) > 0 and base % grown.layout.shards[0] > 0
    old = reader.codec.layout.shards_of(base - 1, base) if has_room else range(0)
    entries = fetch_records(reader.work, reader.codec.layout, old)
    for number in numbers:
        region = grown.layout.region(number)
        first = max(region[0].start, base)
        added = rows[(slice(first - base, region[0].stop - base), *region[1:])]
        entry = entries.get(number)
        if entry is None:
            yield NewShard(number, partial(return_elements, added))
        else:
            yield NewShard(number, partial(_behind, reader, entry, added), entry.name)


def _behind(reader: Reader, entry: ShardRecord, added: npt.NDArray[Any]) -> npt.NDArray[Any]:
    try:
        return np.concatenate([reader.read(entry), added])
    except LostObjectError as error:
        raise reader.changed(entry, error) from error


def _assigned(reader: Reader, reading: ChunkPlan, buffer: npt.NDArray[Any]) -> Iterator[NewShard]:
    for part, entry in reader.with_records(reading.projections()):
        yield NewShard(entry.number, partial(_patched, reader, entry, part, buffer), entry.name)


def _patched(
    reader: Reader, entry: ShardRecord, part: ChunkProjection, buffer: npt.NDArray[Any]
) -> npt.NDArray[Any]:
    if part.is_whole:
        elements = np.empty(part.shape, reader.codec.layout.dtype)
    else:
        try:
            elements = reader.read(entry)
        except LostObjectError as error:
            raise reader.changed(entry, error) from error
    part.put(buffer, elements)
    return elements


def _buffer_of(value: npt.NDArray[Any], reading: ChunkPlan, dataset: Dataset) -> npt.NDArray[Any]:
    """What is assigned to each element of the buffer. A single value is not repeated in memory."""
    if value.size == 1 and value.ndim <= len(reading.shape):
        return np.broadcast_to(value.reshape(()), reading.buffer_shape)
    buffer = np.empty(reading.size, dataset.dtype)
    try:
        reading.place(value, buffer)
    except ValueError as error:
        raise InvalidInputError(f"assigning to {dataset.key!r}: {error}; nothing has changed") from error
    return buffer.reshape(reading.buffer_shape)


def _reader(work: Work, codec: ShardCodec) -> Reader:
    return Reader(Work.reading(work.transfer, work.dataset), codec)


def _begin(work: Work, function: str, arguments: dict[str, Any]) -> Work:
    """Begin a change of an array, and return the work of filling its staged dataset."""
    named = {**arguments, "operation": new_operation()}
    staged = Dataset.from_json(with_room(work.transfer, lambda: work.call(function, named)))
    return Work.storing(work.transfer, staged, quiet=work.quiet)


def _staged(writer: ShardWriter, shards: Iterator[NewShard], nbytes: int, asked: str) -> Dataset:
    with gone_is_changed(f"{asked}: it was replaced or deleted meanwhile. Open it again."):
        return writer.commit(partial(writer.write, shards), nbytes)


def _suffix() -> str:
    return f".{secrets.token_hex(4)}"
