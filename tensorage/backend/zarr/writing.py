"""Writing of shards: they are encoded, uploaded in parallel, and recorded in the catalogue."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple, cast

import numpy as np
import numpy.typing as npt

from tensorage.backend.engine import ReadRegion
from tensorage.backend.staging import stage, with_room
from tensorage.backend.transfer import Work
from tensorage.backend.wire.progress import Advance
from tensorage.backend.zarr.bucket import Bucket
from tensorage.backend.zarr.codec import EncodedShard, ShardCodec
from tensorage.backend.zarr.layout import Layout
from tensorage.backend.zarr.shard_records import ShardRecord
from tensorage.model.casting import flat_blocks
from tensorage.types import Dataset

__all__ = [
    "NewShard",
    "ShardWriter",
    "count_cores",
    "object_name",
    "return_elements",
    "shards_of_array",
    "shards_of_blocks",
    "shards_of_regions",
]

#: Records that one request tells the catalogue.
RECORDS_PER_REQUEST = 64


class NewShard(NamedTuple):
    """A shard to be written.

    Parameters
    ----------
    number
        Number of the shard, in C order of the grid of shards.
    make
        Returns the elements that the shard holds of the array, or the shard already encoded.
    based_on
        Fingerprint of the shard that the new one replaces, None if the array has no such shard yet.
    """

    number: int
    make: Callable[[], npt.NDArray[Any] | EncodedShard]
    based_on: str | None = None


@dataclass
class ShardWriter:
    """Writes the shards of one staged dataset. Safe to use from many threads.

    Attributes
    ----------
    pending
        Records that the catalogue has not been told yet. The commit carries them.
    """

    work: Work
    codec: ShardCodec
    pending: list[dict[str, Any]] = field(default_factory=list, init=False)
    #: Room for shards that are being encoded: more at once than there are cores would all be late, and the line idle.
    _encoding: threading.Semaphore = field(
        default_factory=lambda: threading.Semaphore(count_cores()), init=False, repr=False
    )
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False)

    @property
    def dataset(self) -> Dataset:
        """The staged dataset."""
        return self.work.dataset

    def write(self, shards: Iterable[NewShard], advance: Advance) -> None:
        """Write shards in parallel, taking no more of them from the iterable than are under way."""
        self.work.run(partial(self._write, shard, advance) for shard in shards)

    def upload(self, number: int, elements: npt.NDArray[Any], suffix: str = "") -> ShardRecord:
        """Encode a shard, upload its object if there is one, and return the record. The catalogue is not told.

        Parameters
        ----------
        suffix
            Suffix of the object's name, which makes the name new.
        """
        return self.upload_encoded(number, self.codec.encode(elements), suffix)

    def upload_encoded(self, number: int, encoded: EncodedShard, suffix: str = "") -> ShardRecord:
        """Upload the object of a shard, as `upload` does."""
        name = ""
        if encoded.parts:
            name = object_name(self.dataset, self.codec.layout, number) + suffix
            transfer = self.work.transfer
            # Leftovers may take the room that was there when the array was declared.
            with_room(transfer, lambda: Bucket(transfer).put(self.dataset, name, encoded.parts))
        return ShardRecord(number, name, encoded.nbytes, encoded.index)

    def put(self, record: ShardRecord, **more: Any) -> None:
        """Keep a record, and tell the catalogue once there are enough of them for a request."""
        with self._lock:
            self.pending.append(record.as_json(**more))
            if len(self.pending) < RECORDS_PER_REQUEST:
                return
            told, self.pending = self.pending, []
        # Outside of the lock, so that other threads go on uploading.
        self.tell(told)

    def tell(self, records: list[dict[str, Any]]) -> None:
        """Tell the catalogue records of shards.

        Raises
        ------
        ChangedError
            If the dataset is no longer being written, or an object that a new one is based on has been replaced.
        """
        arguments = {"data_id": self.dataset.id, "shards": records}
        self.work.call("tensorage_put_shards", arguments)

    def commit(self, send: Callable[[Advance], None], nbytes: int) -> Dataset:
        """Fill the dataset and commit it, or abort it.

        Parameters
        ----------
        send
            Fills the dataset by this writer.
        nbytes
            Bytes of elements that `send` moves.
        """
        # `put` replaces the list each time that the catalogue is told, so the list is looked up at the end.
        return stage(self.work, send, nbytes, shards=lambda: self.pending)

    def _write(self, shard: NewShard, advance: Advance) -> None:
        made = shard.make()
        if isinstance(made, EncodedShard):
            encoded = made
        else:
            with self._encoding:
                encoded = self.codec.encode(made)
        self.put(self.upload_encoded(shard.number, encoded), based_on=shard.based_on)
        advance(self.codec.layout.nbytes_of(shard.number))


def count_cores() -> int:
    """Return the number of cores that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity is not None else os.cpu_count() or 1


def object_name(dataset: Dataset, layout: Layout, number: int) -> str:
    """Return the name of the object of a shard of a staged dataset."""
    return f"{dataset.user_id}/{dataset.id}/{layout.key_of(number)}"


def shards_of_array(array: npt.NDArray[Any], layout: Layout) -> Iterator[NewShard]:
    """Yield the shards of an array in memory."""
    for number in range(layout.shard_count):
        yield NewShard(number, partial(_region_of, array, layout.region(number)))


def shards_of_blocks(blocks: Iterable[npt.ArrayLike], dataset: Dataset, layout: Layout) -> Iterator[NewShard]:
    """Yield the shards of an array that comes as blocks of rows, keeping no more rows than a shard has.

    Shards have memory of their own, so that the maker of the blocks may use the memory of a block again.

    Raises
    ------
    InvalidInputError, IncompleteTensorError
        If the blocks do not fill the dataset's shape exactly.
    """
    # A slab has the rows of one shard, and is cut into all shards that lie side by side along the other axes.
    row = dataset.size // dataset.shape[0] if dataset.shape[0] else 0
    first, filled = 0, 0
    slab: npt.NDArray[Any] | None = None
    for flat in flat_blocks(blocks, dataset):
        taken = 0
        while taken < flat.size:
            if slab is None:
                rows = min(layout.shards[0], dataset.shape[0] - first)
                slab, filled = np.empty(rows * row, dataset.dtype), 0
            part = flat[taken : taken + slab.size - filled]
            slab[filled : filled + part.size] = part
            taken, filled = taken + part.size, filled + part.size
            if filled == slab.size:
                array = slab.reshape(-1, *dataset.shape[1:])
                yield from _shards_of_rows(array, first, layout)
                first, slab = first + array.shape[0], None


def shards_of_regions(read: ReadRegion, layout: Layout) -> Iterator[NewShard]:
    """Yield the shards of an array that is read shard by shard, while earlier shards are written."""
    for number in range(layout.shard_count):
        yield NewShard(number, partial(return_elements, read(layout.region(number))))


def return_elements(elements: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return the elements, as the `make` of a `NewShard` whose elements exist already."""
    return elements


def _shards_of_rows(rows: npt.NDArray[Any], first: int, layout: Layout) -> Iterator[NewShard]:
    """Yield the shards that consist of these rows. The first row, `first` of the array, begins a shard."""
    for number in layout.shards_of(first, first + rows.shape[0]):
        yield NewShard(number, partial(_region_of, rows, (slice(None), *layout.region(number)[1:])))


def _region_of(array: npt.NDArray[Any], region: tuple[slice, ...]) -> npt.NDArray[Any]:
    # The ellipsis keeps an array: without axes, the index alone would return a number.
    part: npt.NDArray[Any] = array[cast("Any", (*region, ...))]
    return part
