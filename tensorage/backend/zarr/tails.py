"""Tails: encoded chunks of few rows, which the catalogue keeps until they are worth an object.

An append of a few rows to an array of Storage would fetch and send the last shard, up to 8 MiB, for each. Its chunks go
into the record of the shard instead, behind those of the object: one request, without one to Storage. Readers get them
with the record, which they need anyway. Once the tails of an append would take more than `MOST_TAIL_BYTES`, or its last
shards are full, all of their chunks go into new objects.

Such an append rests on the rows that there were. If many append at once, all but one would begin anew, each time that
one lands. Rows that go as they are rest on nothing: the catalogue puts *loose* rows behind whatever is there. They are
few, and begin where a chunk does. A writer that finds no room for them makes chunks of all, and leaves the rows that
fill no chunk loose again.

A small array that a transaction stores has nothing but tails, too: they go with the request that commits it, where an
object would take two requests more for each array.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from tensorage.backend.restarts import gone_is_changed
from tensorage.backend.staging import final_operation, finish_write, with_room
from tensorage.backend.transfer import Transfer, Work
from tensorage.backend.wire.faults import OtherDTypeError, StoredElsewhereError
from tensorage.backend.wire.header import bytes_of, header
from tensorage.backend.wire.http import TooMuchError
from tensorage.backend.zarr.codec import ShardCodec
from tensorage.backend.zarr.ranges import EMPTY
from tensorage.backend.zarr.reading import Reader
from tensorage.backend.zarr.shard_records import ShardRecord, check_records, fetch_records
from tensorage.dtypes import form_of
from tensorage.types import Dataset

__all__ = [
    "MOST_TAIL_BYTES",
    "MOST_WHOLE_BYTES",
    "NewTail",
    "append_loose",
    "append_tails",
    "make_tails",
    "make_whole",
    "records_of_end",
    "store_tails",
]

#: Most bytes of the tails of an array together. A shard that an object is made of has 8 MiB: of rows that come one by
#: one, 32 bytes are moved for each byte in the end, and not 1,000.
MOST_TAIL_BYTES = 256 * 1024

#: Most bytes of the loose rows of a shard, as the catalogue has it.
MOST_LOOSE_BYTES = 128 * 1024

#: Most bytes of rows that are left loose: others find room behind them.
_MOST_LEFT_BYTES = MOST_LOOSE_BYTES // 2

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
        added = replace(self.after, name="", nbytes=0, tail=self.after.tail[self.kept :])
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
    reader: Reader,
    records: Mapping[int, ShardRecord],
    grown: ShardCodec,
    rows: npt.NDArray[Any],
    *,
    leaves_loose: bool = False,
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
    leaves_loose
        Leave rows that fill no chunk loose, for others who append at the same time.
    """
    layout, base = grown.layout, reader.dataset.shape[0]
    end, extent = base + rows.shape[0], layout.shards[0] if layout.shards else 1
    is_within = len(rows) > 0 and base // extent == end // extent
    if not layout.has_tails or not is_within or rows.nbytes > _MANY_BYTES:
        return None
    tails: list[NewTail] = []
    room = MOST_TAIL_BYTES
    # The catalogue takes loose rows where a row is a part of one shard, and its elements have one length.
    leaves_loose = leaves_loose and math.prod(layout.grid[1:]) == 1 and not rows.dtype.hasobject
    for tail in _tails(reader, records, grown, rows, leaves_loose):
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
    with gone_is_changed(
        f"{work.asked}: it was replaced or deleted meanwhile, or is not shared any more. Open it again."
    ):
        answer = with_room(work.transfer, lambda: work.call("tensorage_append_tails", asked))
    return finish_write(work.transfer, answer)


def append_loose(work: Work, rows: npt.NDArray[Any], owner: str | None) -> Dataset | None:
    """Append rows as they are, behind whatever there is by now.

    Return None if the array takes none, or if a transaction has no room for them in its last request.

    Raises
    ------
    ChangedError
        If the array was replaced or deleted. Nothing was appended.
    """
    if rows.dtype.hasobject or not 0 < rows.nbytes <= MOST_LOOSE_BYTES:
        return None
    meta = {
        "key": work.dataset.key, "shape": rows.shape, "dtype": form_of(work.dataset.dtype), "owner": owner,
        "operation": final_operation(),
    }  # fmt: skip
    flat = np.ascontiguousarray(rows).reshape(-1)
    parts: list[bytes | memoryview] = [header(count=flat.size, block_size=1, meta=meta), bytes_of(flat)]
    try:
        answer = with_room(work.transfer, lambda: work.send("tensorage_append", parts))
    except (StoredElsewhereError, OtherDTypeError, TooMuchError):
        # Another array may have taken its place.
        return None
    return finish_write(work.transfer, answer)


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
    reader: Reader,
    records: Mapping[int, ShardRecord],
    grown: ShardCodec,
    rows: npt.NDArray[Any],
    leaves_loose: bool,
) -> Iterator[NewTail]:
    base, each = reader.dataset.shape[0], grown.layout.chunks[0]
    for number in grown.layout.shards_of(base, base + rows.shape[0]):
        region = grown.layout.region(number)
        added = rows[(slice(None), *region[1:])]
        record = records.get(number)
        at = base - region[0].start
        # A chunk that has room for further rows is encoded anew, with those that it has, and so are loose rows.
        first = at - at % each
        if record is not None:
            if record.as_stored.loose:
                first = min(first, record.as_stored.loose_at)
            if first < at:
                kept = reader.read_unchanged(record, slice(region[0].start + first, base))
                added = np.concatenate([kept, added])
        before = ShardRecord(number, "", 0, b"") if record is None else record.as_stored
        after, kept_bytes = _extend(grown, before, first // each, added, leaves_loose)
        yield NewTail(record, after, kept_bytes)


def _extend(
    codec: ShardCodec, before: ShardRecord, at: int, elements: npt.NDArray[Any], leaves_loose: bool
) -> tuple[ShardRecord, int]:
    """Put elements into a shard from row `at` of its chunks on, with nothing behind them.

    Returns
    -------
    tuple
        The new record, and the bytes of the tail of `before` that are the beginning of its own.
    """
    layout = codec.layout
    ranges = codec.ranges(before.index, before.encoded_nbytes).reshape(layout.chunks_per_shard[0], -1, 2)
    stays = ranges[:at][ranges[:at, :, 0] != EMPTY].astype(np.int64)
    kept = max(int(stays.sum(axis=1).max(initial=0)) - before.nbytes, 0)
    rest = len(elements) % layout.chunks[0]
    if not leaves_loose or elements[:rest].nbytes > _MOST_LEFT_BYTES:
        rest = 0
    whole = len(elements) - rest
    index, chunks = codec.put_rows(
        before.index, before.encoded_nbytes, at, elements[:whole], before.nbytes + kept
    )
    tail, loose = before.tail[:kept] + chunks, elements[whole:].tobytes()
    loose_at = at * layout.chunks[0] + whole if loose else 0
    return ShardRecord(before.number, before.name, before.nbytes, index, tail, loose, loose_at), kept
