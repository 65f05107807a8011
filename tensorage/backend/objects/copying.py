"""An array of Storage again, by the server: its objects are copied where they are, and nothing is moved or decoded."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

from tensorage.backend.objects.bucket import Bucket, LostObjectError
from tensorage.backend.objects.entries import ShardEntry, fetch_entries, numbers_per_request
from tensorage.backend.objects.reading import Reader
from tensorage.backend.objects.writing import ShardWriter, object_name
from tensorage.backend.progress import Advance

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
    writer.transfer.run(_jobs(reader, writer, advance))


def _jobs(reader: Reader, writer: ShardWriter, advance: Advance) -> Iterator[Callable[[], None]]:
    layout = reader.codec.layout
    most = numbers_per_request(layout)
    for first in range(0, layout.shard_count, most):
        numbers = range(first, min(first + most, layout.shard_count))
        entries = fetch_entries(reader.transfer, reader.dataset, layout, numbers)
        for number in numbers:
            yield partial(_copy, reader, writer, entries[number], advance)


def _copy(reader: Reader, writer: ShardWriter, entry: ShardEntry, advance: Advance) -> None:
    name = ""
    if entry.name:
        name = object_name(writer.dataset, writer.codec.layout, entry.number)
        try:
            Bucket(writer.transfer).copy(writer.dataset, entry.name, name)
        except LostObjectError as error:
            raise reader.changed(entry, error) from error
    writer.put(ShardEntry(entry.number, name, entry.nbytes, entry.index))
    advance(writer.codec.layout.nbytes_of(entry.number))
