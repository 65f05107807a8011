"""Arrays of Storage whose elements have any length: writing, appending and reading.

A stream of samples does not tell how many there are. Its objects are uploaded first, under a staged array without
samples; then the catalogue is told the number, and the records of the shards, whose numbers depend on it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, islice
from typing import Any

import numpy as np
import numpy.typing as npt

from tensorage.backend.staging import begin, begin_anew_after_failures
from tensorage.backend.transfer import Transfer, Work
from tensorage.backend.wire.progress import Advance
from tensorage.backend.zarr.changing import append_rows
from tensorage.backend.zarr.chunk_shapes import SHARD_BYTES
from tensorage.backend.zarr.copying import copy_objects
from tensorage.backend.zarr.layout import Layout
from tensorage.backend.zarr.ragged_codec import RaggedCodec, choose_ragged_layout
from tensorage.backend.zarr.reading import Reader
from tensorage.backend.zarr.shard_records import ShardRecord, fetch_records
from tensorage.backend.zarr.writing import ShardWriter, shards_of_array, shards_of_regions
from tensorage.backend.zarr.zarr_engine import asks_for_layout, codec_of, meta_of
from tensorage.indexing.chunks import plan_chunks
from tensorage.indexing.selection import Selection
from tensorage.model.arranging import arrange, refuse_out
from tensorage.model.declaration import Declaration
from tensorage.model.memory import check_fits, new_array
from tensorage.model.ragged import as_objects, decode_one
from tensorage.ragged import Ragged
from tensorage.types import Dataset

__all__ = ["RaggedObjects"]

#: Most samples that are looked at to choose the layout.
_MAX_LOOKED_AT = 65536

#: Most samples of an array, for the numbers of shards before it is known how many there are.
_MANY = 2**62


@dataclass(frozen=True)
class RaggedObjects:
    """Arrays of Storage whose elements have any length. Elements are encoded: each is `bytes`."""

    transfer: Transfer
    quiet: bool
    known: Mapping[str, Any] | None = None
    records: bytes | None = None

    def write_samples(
        self, new: Declaration, encoded: Callable[[], Iterator[bytes]], *, is_repeatable: bool
    ) -> Dataset:
        """Store a list of samples. Only shards under way are in memory.

        Parameters
        ----------
        encoded
            Returns the encoded samples.
        is_repeatable
            True if `encoded` returns the same samples once more.
        """

        def write() -> Dataset:
            samples = encoded()
            ahead = list(_take_first(samples))
            layout = _layout_of(new, ahead)
            staged = begin(self.transfer, meta_of(new, layout))
            # Numbers of shards are those of an array that is long enough.
            endless = RaggedCodec(layout.with_rows(_MANY))
            writer = ShardWriter(Work.storing(self.transfer, staged, quiet=self.quiet), endless)
            return writer.commit(partial(_send, writer, chain(ahead, samples)), 0)

        return begin_anew_after_failures(write) if is_repeatable else write()

    def write_array(self, new: Declaration, elements: npt.NDArray[Any]) -> Dataset:
        """Store an array of encoded elements, of a shape that is known."""
        layout = _layout_of(new, list(islice(elements.flat, _MAX_LOOKED_AT)))
        return self._write(
            new, layout, lambda writer: writer.write(shards_of_array(elements, layout), _ignore)
        )

    def write_regions(
        self,
        new: Declaration,
        mean_bytes: int,
        read: Callable[[tuple[slice, ...]], npt.NDArray[Any]],
    ) -> Dataset:
        """Store an array that is read region by region, as an array of encoded elements."""
        layout = choose_ragged_layout(new, mean_bytes)
        return self._write(new, layout, lambda writer: writer.write(shards_of_regions(read, layout), _ignore))

    def copy(self, dataset: Dataset, new: Declaration) -> Dataset | None:
        """Copy the objects of an array, of anybody, within the bucket. None if an option asks for another layout."""
        if asks_for_layout(new):
            return None
        source = codec_of(dataset)
        declared = replace(new, shape=dataset.shape)
        reader = Reader(Work.reading(self.transfer, dataset), source)
        return self._write(declared, source.layout, lambda writer: copy_objects(reader, writer, _ignore))

    def append(self, dataset: Dataset, rows: npt.NDArray[Any]) -> Dataset:
        """Add encoded elements at the end of an array, in the version that was opened.

        Raises
        ------
        ChangedError
            If the array has changed. Nothing was appended.
        """
        return append_rows(self._work("appending to", dataset), codec_of(dataset), rows)

    def read(
        self, dataset: Dataset, ragged: Ragged, selection: Selection, out: npt.NDArray[Any] | None
    ) -> Any:
        """Return ``array[selection]``: a sample, a list of them, or an array of text.

        Raises
        ------
        ChangedError
            If the array has changed since it was opened.
        CorruptTensorError, IncompleteTensorError
            If an object is damaged or lost, or text is none.
        """
        work = self._work("reading", dataset)
        refuse_out(ragged, out, work.asked)
        plan = plan_chunks(dataset.shape, selection, codec_of(dataset).layout.shards)
        check_fits((plan.size, dataset.mean_bytes), np.dtype("u1"), work.asked)
        buffer = new_array(plan.buffer_shape, np.dtype(object), work.asked)
        if plan.size:
            with work.bar(buffer.nbytes) as advance:
                Reader(work, codec_of(dataset), records=self.records).read_into(
                    plan.projections(), buffer, advance
                )
        samples = [decode_one(element, ragged, work.asked) for element in buffer.reshape(-1)]
        return arrange(samples, plan, ragged, out)

    def lengths(self, dataset: Dataset) -> npt.NDArray[np.int64]:
        """Return the bytes of each element, in one dimension. A chunk has them between its elements: all travel."""
        layout, work = codec_of(dataset).layout, self._work("reading the lengths of", dataset)
        lengths = new_array((dataset.size,), np.dtype(np.int64), work.asked)
        if not dataset.size:
            return lengths
        reader, at = Reader(work, codec_of(dataset)), 0
        rows = max(dataset.shape[0], 1) if dataset.ndim else 1
        step = layout.shards[0] if dataset.ndim else 1
        with work.bar(8 * dataset.size) as advance:
            for first in range(0, rows, step):
                selection = np.s_[first : first + step] if dataset.ndim else ()
                plan = plan_chunks(dataset.shape, selection, layout.shards)
                buffer = np.empty(plan.buffer_shape, object)
                reader.read_into(plan.projections(), buffer, advance)
                lengths[at : at + plan.size] = list(map(len, buffer.reshape(-1)))
                at += plan.size
        return lengths

    def check_unchanged(self, dataset: Dataset) -> None:
        """Raise `ChangedError` if the elements have changed since `dataset` was opened."""
        fetch_records(self._work("reading", dataset), codec_of(dataset).layout, [0])

    def _write(self, new: Declaration, layout: Layout, send: Callable[[ShardWriter], None]) -> Dataset:
        def write() -> Dataset:
            staged = begin(self.transfer, meta_of(new, layout))
            writer = ShardWriter(Work.storing(self.transfer, staged, quiet=self.quiet), RaggedCodec(layout))
            return writer.commit(lambda _advance: send(writer), 0)

        return begin_anew_after_failures(write)

    def _work(self, verb: str, dataset: Dataset) -> Work:
        return Work(self.transfer, dataset, f"{verb} {dataset.key!r}", self.quiet, self.known)


def _send(writer: ShardWriter, samples: Iterator[bytes], _advance: Advance) -> None:
    """Upload the shards of a staged list of samples, and tell the catalogue of them once their number is known."""
    records: list[ShardRecord] = []
    counted = 0

    def upload(number: int, elements: npt.NDArray[Any]) -> None:
        records.append(writer.upload(number, elements))

    def jobs() -> Iterator[Callable[[], None]]:
        nonlocal counted
        number = 0
        while some := list(islice(samples, writer.codec.layout.shards[0])):
            counted += len(some)
            yield partial(upload, number, as_objects(some, (len(some),)))
            number += 1

    work = writer.work
    work.run(jobs())
    if counted:
        work.call("tensorage_end_ragged", {"data_id": work.dataset.id, "shape": (counted,)})
    for record in records:
        writer.put(record)


def _take_first(samples: Iterator[bytes]) -> Iterator[bytes]:
    """Take samples that show how long they are: about as many as a shard has."""
    nbytes = 0
    for sample in islice(samples, _MAX_LOOKED_AT):
        yield sample
        nbytes += len(sample)
        if nbytes >= SHARD_BYTES:
            return


def _layout_of(new: Declaration, some: list[bytes]) -> Layout:
    mean = -(-sum(map(len, some)) // max(len(some), 1))
    return choose_ragged_layout(new, mean)


def _ignore(_nbytes: int) -> None:
    """Show no progress."""
