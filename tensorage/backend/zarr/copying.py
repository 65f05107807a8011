"""Server-side copy of a Zarr array: objects are copied within the bucket, and nothing is moved or decoded."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from tensorage.backend.wire.progress import Advance
from tensorage.backend.zarr.bucket import Bucket, LostObjectError
from tensorage.backend.zarr.reading import Reader
from tensorage.backend.zarr.shard_records import ShardRecord, with_records
from tensorage.backend.zarr.writing import ShardWriter, object_name

__all__ = ["copy_objects"]


def copy_objects(reader: Reader, writer: ShardWriter, advance: Advance) -> None:
    """Copy all shards of an array to a staged one of the same layout.

    Parameters
    ----------
    reader
        Reader of the array, in the version that was opened.

    Raises
    ------
    ChangedError
        If the array has changed since it was opened.
    """
    layout = reader.codec.layout
    shards = with_records(reader.work, layout, range(layout.shard_count), int)
    writer.work.run(partial(_copy, reader, writer, record, advance) for _, record in shards)


def _copy(reader: Reader, writer: ShardWriter, record: ShardRecord, advance: Advance) -> None:
    name = ""
    if record.name:
        name = object_name(writer.dataset, writer.codec.layout, record.number)
        try:
            Bucket(writer.work.transfer).copy(writer.dataset, record.name, name)
        except LostObjectError as error:
            raise reader.changed_error(record, error) from error
    # The index holds offsets within the object and the tail, which a copy keeps.
    writer.put(replace(record.as_stored, name=name))
    advance(writer.codec.layout.nbytes_of(record.number))
