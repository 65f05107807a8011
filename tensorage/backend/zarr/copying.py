"""An array of Storage again, by the server: its objects are copied where they are, and nothing is moved or decoded."""

from __future__ import annotations

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
        Of the array, as it was opened.

    Raises
    ------
    ChangedError
        If the array is not what it was.
    """
    layout = reader.codec.layout
    shards = with_records(reader.work, layout, range(layout.shard_count), int)
    writer.work.run(partial(_copy, reader, writer, entry, advance) for _, entry in shards)


def _copy(reader: Reader, writer: ShardWriter, entry: ShardRecord, advance: Advance) -> None:
    name = ""
    if entry.name:
        name = object_name(writer.dataset, writer.codec.layout, entry.number)
        try:
            Bucket(writer.work.transfer).copy(writer.dataset, entry.name, name)
        except LostObjectError as error:
            raise reader.changed(entry, error) from error
    writer.put(ShardRecord(entry.number, name, entry.nbytes, entry.index))
    advance(writer.codec.layout.nbytes_of(entry.number))
