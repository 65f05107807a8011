"""Tails: encoded chunks of few rows, which the catalogue keeps until they are worth an object.

An append of a few rows to an array of Storage would fetch and send the last shard, up to 8 MiB, for each. Its chunks go
into the record of the shard instead, behind those of the object: one request, without one to Storage. Readers get them
with the record, which they need anyway. Once the tails of an append would take more than `MOST_TAIL_BYTES`, or its last
shards are full, all of their chunks go into new objects.

A small array that a transaction stores has nothing but tails, too: they go with the request that commits it, where an
object would take two requests more for each array.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tensorage.backend.restarts import gone_is_changed
from tensorage.backend.staging import final_operation, finish_write, with_room
from tensorage.backend.transfer import Transfer, Work
from tensorage.backend.wire.header import header
from tensorage.backend.zarr.codec import ShardCodec, plain_index
from tensorage.backend.zarr.ranges import EMPTY
from tensorage.backend.zarr.reading import Reader
from tensorage.backend.zarr.shard_records import ShardRecord, check_records, fetch_records
from tensorage.errors import ChangedError
from tensorage.types import Dataset

__all__ = [
    "MOST_TAIL_BYTES",
    "MOST_WHOLE_BYTES",
    "NewTail",
    "append_tails",
    "make_tails",
    "make_whole",
    "records_of_end",
    "store_tails",
]

#: Most bytes of the tails of an array together. A shard that an object is made of has 8 MiB: of rows that come one by
#: one, 32 bytes are moved for each byte in the end, and not 1,000.
MOST_TAIL_BYTES = 256 * 1024

#: Most bytes of the tails of an array that is stored without an object. An object takes a tenth of that in the
#: database, for its entry in the list of the bucket.
MOST_WHOLE_BYTES = 16 * 1024

#: Bytes of an array that is not encoded to see whether it fits.
_MANY_WHOLE_BYTES = 4 * MOST_WHOLE_BYTES

#: Bytes of rows that are not encoded to see whether they fit, since few compress so far.
_MANY_BYTES = 16 * MOST_TAIL_BYTES


@dataclass(frozen=True)
class NewTail:
    """The change of one shard by an append that goes to tails.

    Parameters
    ----------
    before
        Record of the shard before the append. None if there is no such shard yet.
    after
        Record of the shard after it.
    kept
        Bytes of the tail of `before` that are the beginning of that of `after`.
    """

    before: ShardRecord | None
    after: ShardRecord
    kept: int

    def as_json(self) -> dict[str, Any]:
        """Return the change as the catalogue takes it: the bytes that it has already are not sent."""
        if self.before is None:
            return self.after.as_json()
        added = ShardRecord(self.after.number, "", 0, self.after.index, self.after.tail[self.kept :])
        return added.as_json(kept=self.kept, based_on=self.before.fingerprint)


def records_of_end(reader: Reader) -> dict[int, ShardRecord]:
    """Return the records of the shards that have room for further rows: none if the last row ends its shards."""
    layout, dataset = reader.codec.layout, reader.dataset
    rows = dataset.shape[0]
    numbers = layout.shards_of(rows - 1, rows) if rows % layout.shards[0] else range(0)
    remembered = reader.work.transfer.entries.find_end(dataset)
    if remembered is not None:
        known = check_records(reader.work, layout, remembered)
        if known.keys() == set(numbers):
            return known
    return fetch_records(reader.work, layout, numbers)


def make_tails(
    reader: Reader, records: Mapping[int, ShardRecord], grown: ShardCodec, rows: npt.NDArray[Any]
) -> list[NewTail] | None:
    """Put rows into the tails of the last shards of an array, or return None if they are better put into objects.

    Parameters
    ----------
    reader
        Reader of the array before the append.
    records
        Records that `records_of_end` returns.
    grown
        Codec of the array after the append.
    """
    layout, base = grown.layout, reader.dataset.shape[0]
    end, extent = base + rows.shape[0], layout.shards[0] if layout.shards else 1
    is_within = len(rows) > 0 and base // extent == end // extent
    if not layout.has_tails or not is_within or rows.nbytes > _MANY_BYTES:
        return None
    tails: list[NewTail] = []
    room = MOST_TAIL_BYTES
    for tail in _tails(reader, records, grown, rows):
        room -= len(tail.after.tail)
        if room < 0:
            return None
        tails.append(tail)
    return tails


def append_tails(work: Work, arguments: Mapping[str, Any], tails: Sequence[NewTail]) -> Dataset:
    """Append rows by their tails, in one request.

    Parameters
    ----------
    arguments
        Arguments that tell the array and the shape of the rows, as ``tensorage_begin_append`` takes them.

    Raises
    ------
    ChangedError
        If the array has changed. Nothing was appended.
    """
    asked = {**arguments, "shards": [tail.as_json() for tail in tails], "operation": final_operation()}
    entries = work.transfer.entries
    try:
        with gone_is_changed(
            f"{work.asked}: it was replaced or deleted meanwhile, or is not shared any more. Open it again."
        ):
            answer = with_room(work.transfer, lambda: work.call("tensorage_append_tails", asked))
    except ChangedError:
        entries.forget_end(work.dataset)
        raise
    appended = finish_write(work.transfer, answer)
    entries.remember_end(appended, b"".join(tail.after.pack() for tail in tails))
    return appended


def make_whole(codec: ShardCodec, array: npt.NDArray[Any]) -> list[ShardRecord] | None:
    """Put an array into the tails of its shards, or return None if it is better put into objects."""
    layout = codec.layout
    if not layout.has_tails or array.nbytes > _MANY_WHOLE_BYTES:
        return None
    records: list[ShardRecord] = []
    room = MOST_WHOLE_BYTES
    for number in range(layout.shard_count):
        tail, index = codec.encode_apart(array[layout.region(number)])
        room -= len(tail)
        if room < 0:
            return None
        records.append(ShardRecord(number, "", 0, index, tail))
    return records


def store_tails(transfer: Transfer, meta: Mapping[str, Any], records: Sequence[ShardRecord]) -> Dataset:
    """Store an array by the tails of all of its shards, in one request or as one step.

    Parameters
    ----------
    meta
        Entry for the catalogue.
    """
    shards = [
        {"number": each.number, "index": base64.b64encode(each.index).decode(), "tail": len(each.tail)}
        for each in records
    ]
    tails = [each.tail for each in records]
    head = header(
        count=sum(map(len, tails)),
        block_size=1,
        meta={**meta, "shards": shards, "operation": final_operation()},
    )
    asked = f"storing {meta['key']!r}"
    answer = with_room(transfer, lambda: transfer.send("tensorage_store_tails", [head, *tails], asked))
    return finish_write(transfer, answer)


def _tails(
    reader: Reader, records: Mapping[int, ShardRecord], grown: ShardCodec, rows: npt.NDArray[Any]
) -> Iterator[NewTail]:
    base = reader.dataset.shape[0]
    for number in grown.layout.shards_of(base, base + rows.shape[0]):
        region = grown.layout.region(number)
        added = rows[(slice(None), *region[1:])]
        record = records.get(number)
        # A chunk that has room for further rows is encoded anew, with those that it has.
        first = base - (base - region[0].start) % grown.layout.chunks[0]
        if record is not None and first < base:
            added = np.concatenate([reader.read_unchanged(record, slice(first, base)), added])
        yield _extend(grown, record, number, (first - region[0].start) // grown.layout.chunks[0], added)


def _extend(
    codec: ShardCodec, record: ShardRecord | None, number: int, at: int, elements: npt.NDArray[Any]
) -> NewTail:
    """Put elements into a shard from row `at` of its chunks on, with nothing behind them."""
    before = ShardRecord(number, "", 0, b"") if record is None else record
    ranges = codec.ranges(before.index, before.encoded_nbytes).reshape(
        codec.layout.chunks_per_shard[0], -1, 2
    )
    ranges = ranges.copy()
    # An array that became shorter may have chunks behind its end.
    ranges[at:] = EMPTY
    stays = ranges[ranges[:, :, 0] != EMPTY].astype(np.int64)
    kept = max(int(stays.sum(axis=1).max(initial=0)) - before.nbytes, 0)
    data, added = codec.encode_rows(elements)
    offset = np.uint64(before.nbytes + kept)
    added[:, :, 0] += np.where(added[:, :, 0] == EMPTY, np.uint64(0), offset)
    ranges[at : at + len(added)] = added
    index = plain_index(ranges)
    after = ShardRecord(number, before.name, before.nbytes, index, before.tail[:kept] + data)
    return NewTail(record, after, kept)
