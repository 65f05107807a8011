"""The database engine: the operations of `tensorage.backend.engine.ArrayEngine` on arrays as rows."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from tensorage.backend.blocks.assigning import assign
from tensorage.backend.blocks.requests import fetch_fields, fetch_runs
from tensorage.backend.blocks.writing import BlockWriter, send_rows
from tensorage.backend.engine import WRITE_BYTES, EngineBase, OtherEngineError, ReadRegion
from tensorage.backend.shaping import create, resize
from tensorage.backend.staging import begin, begin_anew_after_failures, commit, final_operation
from tensorage.backend.transfer import Work
from tensorage.backend.wire.faults import StoredElsewhereError
from tensorage.backend.wire.progress import Advance
from tensorage.errors import InvalidInputError
from tensorage.indexing.covering import most_bytes_to_read
from tensorage.indexing.reading import plan_runs
from tensorage.indexing.regions import AxisLengths, consecutive_regions, grow_shape, join_rows
from tensorage.indexing.runs import MAX_REQUEST_BYTES, RunList, RunProduct, Runs
from tensorage.indexing.selection import Positions, Selection
from tensorage.indexing.tiles import TileGrid, find_number_runs, row_tiles
from tensorage.model.casting import flat_blocks
from tensorage.model.declaration import Declaration
from tensorage.model.fields import Fields
from tensorage.model.memory import new_array
from tensorage.model.results import Result
from tensorage.types import Dataset, Engine

__all__ = ["BlockEngine"]


class BlockEngine(EngineBase):
    """Keeps arrays as rows of the table ``tensors``, by calls of one project's functions."""

    name: ClassVar[Engine] = "database"

    @property
    def _writer(self) -> BlockWriter:
        return BlockWriter(self._transfer, self._quiet, self._owner)

    def begin(self, new: Declaration) -> Dataset:
        dataset = begin(self._transfer, _meta(new))
        return commit(self._transfer, dataset) if dataset.size == 0 else dataset

    def write_region(self, dataset: Dataset, region: tuple[slice, ...], elements: npt.NDArray[Any]) -> None:
        if not elements.size:
            return
        first = 0
        for axis, length in zip(region, dataset.shape, strict=True):
            first = first * length + axis.start
        send_rows(Work.storing(self._transfer, dataset), elements, first, lambda _bytes: None)

    def lengths_to_write(self, dataset: Dataset, lengths: AxisLengths) -> AxisLengths:
        # Blocks may begin at any row, so a region may end anywhere, and needs no more than the bytes of a request.
        itemsize = dataset.dtype.itemsize
        return join_rows(lengths, MAX_REQUEST_BYTES // itemsize, WRITE_BYTES // itemsize)

    def shape_to_read(self, dataset: Dataset, most_bytes: int) -> tuple[int, ...]:
        shape = dataset.shape
        lengths = grow_shape(shape, (1,) * len(shape), most_bytes // dataset.dtype.itemsize)
        row = math.prod(shape[1:])
        if shape and 0 < row <= dataset.block_size:
            rows_per_block = dataset.block_size // row
            return (max(lengths[0] // rows_per_block, 1) * rows_per_block, *lengths[1:])
        return lengths

    def create(self, new: Declaration, fill_value: npt.NDArray[Any]) -> Dataset:
        return create(self._transfer, _meta(new), fill_value)

    def resize(self, dataset: Dataset, rows: int, coords: Mapping[str, Any] | None) -> Dataset:
        return resize(self._transfer, dataset, rows, np.zeros((), dataset.dtype), coords)

    def store(self, array: npt.NDArray[Any], new: Declaration) -> Dataset:
        return self._writer.store_array(array, _meta(new))

    def store_blocks(self, blocks: Iterable[npt.ArrayLike], new: Declaration) -> Dataset:
        return self._writer.store_flats(partial(flat_blocks, blocks), _meta(new))

    def store_from(self, read: ReadRegion, new: Declaration) -> Dataset:
        def flats(dataset: Dataset) -> Iterator[npt.NDArray[Any]]:
            for region in consecutive_regions(dataset.shape, MAX_REQUEST_BYTES // dataset.dtype.itemsize):
                yield read(region).reshape(-1)

        return begin_anew_after_failures(lambda: self._writer.store_flats(flats, _meta(new)))

    def copy(self, dataset: Dataset, new: Declaration) -> None:
        """Return None: the database has no function that copies rows, since a statement's time is limited."""
        del dataset, new

    def append(self, key: str, data: npt.ArrayLike, known: Dataset | None) -> Dataset:
        try:
            return self._writer.append_rows(key, data, known, lambda: self._open_own(key))
        except StoredElsewhereError as error:
            if not error.description:
                raise
            raise OtherEngineError(Dataset.from_json(error.description)) from error

    def assign(self, dataset: Dataset, selection: Selection, value: npt.ArrayLike) -> Dataset:
        return assign(self._work("assigning to", dataset), selection, value)

    def read(self, dataset: Dataset, selection: Selection, out: npt.NDArray[Any] | None) -> Any:
        plan = plan_runs(dataset.shape, selection, dataset.dtype.itemsize, dataset.block_size)
        result = Result(plan, dataset.dtype, out, dataset.key)
        if plan.size:
            work = self._work("reading", dataset)
            with work.bar(plan.size * dataset.dtype.itemsize) as advance:
                fetch_runs(work, plan.runs, result.buffer, advance)
        return result.take()

    def read_exactly(self, dataset: Dataset, selection: Selection) -> Any:
        """Return ``array[selection]``, of which no other element travels, however many runs that takes."""
        plan = plan_runs(dataset.shape, selection, dataset.dtype.itemsize, dataset.block_size, exact=True)
        result = Result(plan, dataset.dtype, None, dataset.key)
        if plan.size:
            fetch_runs(self._work("reading", dataset), plan.runs, result.buffer, lambda _bytes: None)
        return result.take()

    def read_fields(self, dataset: Dataset, selection: Selection, fields: Fields) -> Any:
        itemsize, wanted = dataset.dtype.itemsize, fields.dtype.itemsize
        plan = plan_runs(dataset.shape, selection, itemsize, dataset.block_size)
        # Whole records are found faster, and are read as far as the bound on over-read allows.
        blocks = max(plan.size // dataset.block_size, 1)
        if plan.size * itemsize <= most_bytes_to_read(plan.size * wanted, blocks):
            return fields.take(self.read(dataset, selection, None))
        result = Result(plan, fields.dtype, None, dataset.key)
        work = self._work("reading", dataset)
        with work.bar(plan.size * wanted) as advance:
            fetch_fields(work, plan.runs, fields, result.buffer, advance)
        return fields.take(result.take())

    def check_unchanged(self, dataset: Dataset) -> None:
        self.read(dataset, (0,) * dataset.ndim, None)

    def tiles(self, dataset: Dataset) -> TileGrid:
        return row_tiles(dataset.shape, dataset.dtype)

    def read_tiles(self, dataset: Dataset, numbers: Positions, advance: Advance) -> npt.NDArray[Any]:
        grid = self.tiles(dataset)
        starts, ends = grid.starts(numbers), grid.starts(numbers) + grid.lengths(numbers)
        neighbours = find_number_runs(numbers)
        starts, lengths = starts[neighbours.first], ends[neighbours.last] - starts[neighbours.first]
        buffer = new_array((int(lengths.sum()),), dataset.dtype, f"reading {dataset.key!r}")
        # Runs of one length, as in a shuffled batch, take half as many numbers in the request.
        is_even = bool((lengths == lengths[0]).all())
        one = np.zeros(1, np.int64)
        runs: Runs = RunProduct(starts, one, int(lengths[0])) if is_even else RunList(starts, lengths)
        fetch_runs(self._work("reading", dataset), runs, buffer, advance)
        return buffer

    def moved_bytes(self, dataset: Dataset, numbers: Positions | None = None) -> int:
        if numbers is None:
            return dataset.nbytes
        return int(self.tiles(dataset).lengths(numbers).sum()) * dataset.dtype.itemsize

    def compact(self, key: str) -> int:
        merged, after = 0, 0
        while after is not None:
            answer = self._transfer.call(
                "tensorage_compact", {"key": key, "after": after}, f"compacting {key!r}"
            )
            merged, after = merged + answer["merged"], answer["after"]
        return merged


def _meta(new: Declaration) -> dict[str, Any]:
    for name in ("chunks", "shards", "codecs"):
        if new.options.get(name) is not None:
            raise InvalidInputError(
                f"{name}= is for engine='storage'; engine='database' cuts arrays into blocks of chunk_size elements"
            )
    return {**new.meta, "operation": final_operation()}
