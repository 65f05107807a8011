"""Changes of stored arrays: appends, assignments, and declared arrays that are filled region by region.

A shard that changes is written anew, as another object. The catalogue is told which shard the new one is based on, by
its fingerprint, and refuses the new one if somebody else has changed that shard meanwhile. A few rows that are appended
go to tails instead.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from tensorage.backend.restarts import gone_is_changed
from tensorage.backend.staging import abort, new_operation, with_room
from tensorage.backend.transfer import Work
from tensorage.backend.wire.faults import RestartedError
from tensorage.backend.wire.http import TooMuchError
from tensorage.backend.zarr.bucket import Bucket, LostObjectError
from tensorage.backend.zarr.codec import ShardCodec
from tensorage.backend.zarr.reading import Reader
from tensorage.backend.zarr.shard_records import ShardRecord, fetch_records
from tensorage.backend.zarr.tails import append_loose, append_tails, make_tails, records_of_end
from tensorage.backend.zarr.writing import NewShard, ShardWriter, return_elements
from tensorage.errors import ChangedError, InvalidInputError
from tensorage.indexing.chunks import ChunkPlan, ChunkProjection, plan_chunks
from tensorage.indexing.selection import Selection
from tensorage.model.casting import as_assigned
from tensorage.model.values import check_rows
from tensorage.types import Dataset

__all__ = ["append_rows", "assign", "clear_edge", "fill_region"]


def append_rows(work: Work, codec: ShardCodec, rows: npt.NDArray[Any], owner: str | None = None) -> Dataset:
    """Add rows at the end of axis 0 of an array: to the version that was opened, or behind what others have added.

    Parameters
    ----------
    owner
        Owner of the array. None for this user.

    Raises
    ------
    ChangedError
        If the array has changed. Nothing was appended.
    """
    dataset, entries = work.dataset, work.transfer.entries
    check_rows(rows, dataset)
    # The requests of a transaction wait for its end, and meet others more.
    meets_others = work.transfer.is_transaction or entries.meets_others(dataset)
    if meets_others and (appended := append_loose(work, rows, owner)) is not None:
        return appended
    try:
        return _append_encoded(work, codec, rows, leaves_loose=meets_others)
    except ChangedError:
        if meets_others:
            raise
        entries.note_others(dataset)
        appended = append_loose(work, rows, owner)
        if appended is None:
            raise
        return appended


def _append_encoded(work: Work, codec: ShardCodec, rows: npt.NDArray[Any], *, leaves_loose: bool) -> Dataset:
    """Add rows in chunks, to the version that was opened."""
    dataset = work.dataset
    arguments = {
        "data_id": dataset.id,
        "shape": rows.shape,
        "base_rows": dataset.shape[0],
        "known": work.known,
    }
    grown = codec.with_rows(rows.shape[0])
    reader = _reader_of(work, codec)
    records = records_of_end(reader)
    tails = make_tails(reader, records, grown, rows, leaves_loose=leaves_loose)
    if tails is not None:
        with suppress(TooMuchError):
            appended = append_tails(work, arguments, tails)
            # Others go on behind loose rows. An array that takes none is met as before.
            if not any(tail.after.loose for tail in tails):
                work.transfer.entries.remember_end(appended, b"".join(tail.after.pack() for tail in tails))
            return appended
    work.transfer.entries.forget_end(dataset)
    staged = _begin(work, "tensorage_begin_append", arguments)
    shards = _shards_of_append(reader, records, grown, rows)
    return _write_staged(ShardWriter(staged, grown), shards, rows.nbytes, work.asked)


def assign(work: Work, codec: ShardCodec, selection: Selection, value: npt.ArrayLike) -> Dataset:
    """Assign to a selection of an array, in the version that was opened.

    Raises
    ------
    ChangedError
        If the array has changed. Nothing was assigned.
    """
    dataset = work.dataset
    plan = plan_chunks(dataset.shape, selection, codec.layout.shards)
    buffer = _fill_buffer(as_assigned(value, dataset), plan, dataset)
    if not plan.size:
        return dataset
    arguments = {"data_id": dataset.id, "version": dataset.version, "engine": "storage"}
    staged = _begin(work, "tensorage_begin_assign", arguments)
    # Rows that were appended since the array was opened are in the last shards, and stay there.
    now = codec.with_rows(staged.dataset.shape[0] - dataset.shape[0]) if dataset.shape else codec
    shards = _shards_of_assignment(_reader_of(work, now), plan, buffer)
    return _write_staged(ShardWriter(staged, now), shards, plan.size * dataset.dtype.itemsize, work.asked)


def clear_edge(work: Work, codec: ShardCodec) -> Dataset:
    """Write the shards that the end of axis 0 cuts anew, with fill values behind the end.

    An array that became shorter keeps its objects, and so may the objects of other programs hold anything there. Rows
    that are added have to read as the fill value.

    Raises
    ------
    ChangedError
        If the array has changed.
    """
    dataset, layout = work.dataset, codec.layout
    end = dataset.shape[0]
    cut = layout.shards_of(end - 1, end) if end % layout.shards[0] else range(0)
    records = [
        record
        for record in fetch_records(Work.reading(work.transfer, dataset), layout, cut).values()
        if not record.is_empty
    ]
    if not records:
        return dataset
    arguments = {"data_id": dataset.id, "version": dataset.version, "engine": "storage"}
    staged = _begin(work, "tensorage_begin_assign", arguments)
    if staged.dataset.shape != dataset.shape:
        error = ChangedError(f"{work.asked}: rows were appended to it since it was opened. Open it again.")
        abort(work.transfer, staged.dataset, error)
        raise error
    reader = _reader_of(work, codec)
    shards = (
        NewShard(record.number, partial(reader.read_unchanged, record), record.fingerprint)
        for record in records
    )
    nbytes = sum(layout.nbytes_of(record.number) for record in records)
    return _write_staged(ShardWriter(staged, codec), shards, nbytes, work.asked)


def fill_region(work: Work, codec: ShardCodec, region: tuple[slice, ...], elements: npt.NDArray[Any]) -> None:
    """Store the elements of a region of a staged dataset: whole shards, or whole rows of shards.

    Raises
    ------
    InvalidInputError
        If the region cuts a shard along another axis than the first.
    """
    layout, writer = codec.layout, ShardWriter(work, codec)
    whole_shards = []
    for number in layout.shards_in(region):
        shard = layout.region(number)
        shared = [
            slice(max(part.start, axis.start), min(part.stop, axis.stop))
            for part, axis in zip(shard, region, strict=True)
        ]
        if shared == list(shard):
            whole_shards.append(number)
        elif shared[1:] == list(shard[1:]):
            _fill_rows(writer, number, _crop(elements, region, shared), shared[0].start)
        else:
            raise InvalidInputError(
                f"{work.asked}: a region of {region} cuts the object of {shard}, and only rows can be cut"
            )
    # Another worker may have uploaded objects for the same region, and may still tell the catalogue of them. No object
    # of the region is therefore deleted before the array is.
    work.run(partial(_fill_shard, writer, number, elements, region) for number in whole_shards)


def _fill_shard(
    writer: ShardWriter, number: int, elements: npt.NDArray[Any], region: Sequence[slice]
) -> None:
    part = _crop(elements, region, writer.codec.layout.region(number))
    writer.tell([writer.upload(number, part, _new_suffix()).as_json()])


def _crop(elements: npt.NDArray[Any], region: Sequence[slice], part: Sequence[slice]) -> npt.NDArray[Any]:
    """Return the elements of `part`, which lies within `region`, out of the elements of `region`."""
    index: Any = [
        slice(wanted.start - axis.start, wanted.stop - axis.start)
        for wanted, axis in zip(part, region, strict=True)
    ]
    # The ellipsis keeps an array: without axes, the index alone would return a number.
    found: npt.NDArray[Any] = elements[(*index, ...)]
    return found


def _fill_rows(writer: ShardWriter, number: int, part: npt.NDArray[Any], first: int) -> None:
    """Store some rows of a shard, while other workers may store other rows of the same shard."""
    codec, work, bucket = writer.codec, writer.work, Bucket(writer.work.transfer)
    reader = _reader_of(work, codec)
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
                reader.changed_error(before, error)  # Raises unless somebody has just replaced the object.
                continue
        elements[at : at + part.shape[0]] = part
        record = writer.upload(number, elements, _new_suffix())
        rows = {"low": first, "high": first + part.shape[0]}
        try:
            writer.tell([record.as_json(**rows, before=None if before is None else before.name)])
        except RestartedError:
            # The dataset was begun before the database failed, and takes nothing any more. Trying again would never
            # end.
            raise
        except ChangedError:
            # A dataset that is no longer being written is refused in the same way. This call raises KeyNotFoundError
            # then.
            work.call("tensorage_dataset", {"data_id": work.dataset.id})
            if record.name:
                bucket.remove([record.name], work.asked)
            continue
        if before is not None and before.name:
            bucket.remove([before.name], work.asked)
        return


def _shards_of_append(
    reader: Reader, records: Mapping[int, ShardRecord], grown: ShardCodec, rows: npt.NDArray[Any]
) -> Iterator[NewShard]:
    base = reader.dataset.shape[0]
    for number in grown.layout.shards_of(base, base + rows.shape[0]):
        region = grown.layout.region(number)
        first = max(region[0].start, base)
        added = rows[(slice(first - base, region[0].stop - base), *region[1:])]
        record = records.get(number)
        if record is None:
            yield NewShard(number, partial(return_elements, added))
        else:
            yield NewShard(number, partial(_add_rows, reader, record, added), record.fingerprint)


def _add_rows(reader: Reader, record: ShardRecord, added: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Read a stored shard, and add rows behind its own."""
    return np.concatenate([reader.read_unchanged(record), added])


def _shards_of_assignment(reader: Reader, plan: ChunkPlan, buffer: npt.NDArray[Any]) -> Iterator[NewShard]:
    for part, record in reader.with_records(plan.projections()):
        yield NewShard(
            record.number, partial(_assign_to_shard, reader, record, part, buffer), record.fingerprint
        )


def _assign_to_shard(
    reader: Reader, record: ShardRecord, part: ChunkProjection, buffer: npt.NDArray[Any]
) -> npt.NDArray[Any]:
    layout = reader.codec.layout
    extents = tuple(axis.stop - axis.start for axis in layout.region(record.number))
    if part.is_whole and part.shape == extents:
        elements = np.empty(extents, layout.dtype)
    else:
        elements = reader.read_unchanged(record)
    part.put(buffer, elements[tuple(map(slice, part.shape))] if part.shape else elements)
    return elements


def _fill_buffer(value: npt.NDArray[Any], plan: ChunkPlan, dataset: Dataset) -> npt.NDArray[Any]:
    """Broadcast a value to the elements that are assigned to. A single value is not repeated in memory."""
    if value.size == 1 and value.ndim <= len(plan.shape):
        return np.broadcast_to(value.reshape(()), plan.buffer_shape)
    buffer = np.empty(plan.size, dataset.dtype)
    try:
        plan.place(value, buffer)
    except ValueError as error:
        raise InvalidInputError(f"assigning to {dataset.key!r}: {error}; nothing has changed") from error
    return buffer.reshape(plan.buffer_shape)


def _reader_of(work: Work, codec: ShardCodec) -> Reader:
    return Reader(Work.reading(work.transfer, work.dataset), codec)


def _begin(work: Work, function: str, arguments: dict[str, Any]) -> Work:
    """Begin a change of an array, and return the work on its staged dataset."""
    named = {**arguments, "operation": new_operation()}
    staged = Dataset.from_json(with_room(work.transfer, lambda: work.call(function, named)))
    return Work.storing(work.transfer, staged, quiet=work.quiet)


def _write_staged(writer: ShardWriter, shards: Iterator[NewShard], nbytes: int, asked: str) -> Dataset:
    with gone_is_changed(
        f"{asked}: it was replaced or deleted meanwhile, or is not shared any more. Open it again."
    ):
        return writer.commit(partial(writer.write, shards), nbytes)


def _new_suffix() -> str:
    """Make a suffix that no object's name had before."""
    return f".{secrets.token_hex(4)}"
