"""Shards of a staged dataset: encoded, uploaded in parallel, and told to the catalogue."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple, cast

import numpy as np
import numpy.typing as npt

from tensorage.backend.engine import ReadRegion
from tensorage.backend.staging import stage
from tensorage.backend.transfer import Work
from tensorage.backend.wire.progress import Advance
from tensorage.backend.zarr.bucket import Bucket
from tensorage.backend.zarr.codec import EncodedShard, ShardCodec
from tensorage.backend.zarr.layout import Layout
from tensorage.backend.zarr.shard_records import ShardRecord
from tensorage.model.values import flat_blocks
from tensorage.types import Dataset

__all__ = [
    "NewShard",
    "ShardWriter",
    "object_name",
    "return_elements",
    "shards_of_array",
    "shards_of_blocks",
    "shards_of_regions",
]

#: The catalogue is told of so many shards at once.
ENTRIES_PER_REQUEST = 64


class NewShard(NamedTuple):
    """A shard to be written.

    Parameters
    ----------
    number
        In C order of the grid.
    make
        Gives its elements, all that it has of the array, or the object that they are encoded in.
    based_on
        Name of the object of the array that it takes the place of, ``""`` for a shard without one; None if the
        array has no such shard.
    """

    number: int
    make: Callable[[], npt.NDArray[Any] | EncodedShard]
    based_on: str | None = None


@dataclass
class ShardWriter:
    """Writes shards of one staged dataset. Safe to use from many threads.

    Attributes
    ----------
    pending
        What the catalogue has not been told yet: it goes along with the commit.
    """

    work: Work
    codec: ShardCodec
    pending: list[dict[str, Any]] = field(default_factory=list, init=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False)

    @property
    def dataset(self) -> Dataset:
        """The staged dataset."""
        return self.work.dataset

    def write(self, shards: Iterable[NewShard], advance: Advance) -> None:
        """Write shards in parallel, taking no more of them from the iterable than are under way."""
        self.work.run(partial(self._write, shard, advance) for shard in shards)

    def upload(self, number: int, elements: npt.NDArray[Any], suffix: str = "") -> ShardRecord:
        """Encode a shard and upload its object, if it has one. The catalogue is not told.

        Parameters
        ----------
        suffix
            Makes the name of the object one that was never used before.
        """
        return self.upload_encoded(number, self.codec.encode(elements), suffix)

    def upload_encoded(self, number: int, encoded: EncodedShard, suffix: str = "") -> ShardRecord:
        """Upload the object of a shard, as `upload` does."""
        name = ""
        if encoded.parts:
            name = object_name(self.dataset, self.codec.layout, number) + suffix
            Bucket(self.work.transfer).put(self.dataset, name, encoded.parts)
        return ShardRecord(number, name, encoded.nbytes, encoded.index)

    def put(self, entry: ShardRecord, **more: Any) -> None:
        """Tell the catalogue of one shard, or keep it with others for later."""
        with self._lock:
            self.pending.append(entry.as_json(**more))
            if len(self.pending) < ENTRIES_PER_REQUEST:
                return
            told, self.pending = self.pending, []
        self.tell(told)

    def tell(self, entries: list[dict[str, Any]]) -> None:
        """Tell the catalogue of shards.

        Raises
        ------
        ChangedError
            If the dataset is no longer being written, or what they were made from is not there any more.
        """
        arguments = {"data_id": self.dataset.id, "shards": entries}
        self.work.call("tensorage_put_shards", arguments)

    def commit(self, send: Callable[[Advance], None], nbytes: int) -> Dataset:
        """Fill the dataset and make it visible, or give it up.

        Parameters
        ----------
        send
            Fills it, by this writer.
        nbytes
            What that moves.
        """
        # Looked up at the end: it is another list each time that the catalogue was told.
        return stage(self.work, send, nbytes, shards=lambda: self.pending)

    def _write(self, shard: NewShard, advance: Advance) -> None:
        made = shard.make()
        encoded = made if isinstance(made, EncodedShard) else self.codec.encode(made)
        self.put(self.upload_encoded(shard.number, encoded), based_on=shard.based_on)
        advance(self.codec.layout.nbytes_of(shard.number))


def object_name(dataset: Dataset, layout: Layout, number: int) -> str:
    """Name of the object of a shard that belongs to a staged dataset."""
    return f"{dataset.user_id}/{dataset.id}/{layout.key_of(number)}"


def shards_of_array(array: npt.NDArray[Any], layout: Layout) -> Iterator[NewShard]:
    """The shards of an array that is in memory."""
    for number in range(layout.shard_count):
        yield NewShard(number, partial(_region_of, array, layout.region(number)))


def shards_of_blocks(blocks: Iterable[npt.ArrayLike], dataset: Dataset, layout: Layout) -> Iterator[NewShard]:
    """The shards of an array that comes as blocks of rows: no more rows than a shard has are kept.

    They have memory of their own, so that whoever makes the blocks may use theirs again.

    Raises
    ------
    InvalidInputError, IncompleteTensorError
        Once the blocks turn out not to fill the dataset's shape exactly.
    """
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
    """The shards of an array that is read a shard at a time, while those before are written."""
    for number in range(layout.shard_count):
        yield NewShard(number, partial(return_elements, read(layout.region(number))))


def return_elements(elements: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """What a new shard is made of that is there already."""
    return elements


def _shards_of_rows(rows: npt.NDArray[Any], first: int, layout: Layout) -> Iterator[NewShard]:
    """The shards that have no rows but these, the first of which is that of a shard."""
    for number in layout.shards_of(first, first + rows.shape[0]):
        yield NewShard(number, partial(_region_of, rows, (slice(None), *layout.region(number)[1:])))


def _region_of(array: npt.NDArray[Any], region: tuple[slice, ...]) -> npt.NDArray[Any]:
    # The ellipsis makes it an array where there are no axes.
    part: npt.NDArray[Any] = array[cast("Any", (*region, ...))]
    return part
