"""The storage engine: the operations of `tensorage.backend.engine.ArrayEngine` on arrays of Storage."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import lru_cache, partial
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt

from tensorage.backend.engine import FILL_BYTES, EngineBase, ReadRegion
from tensorage.backend.restarts import on_latest
from tensorage.backend.shaping import create, resize
from tensorage.backend.staging import begin, begin_anew_after_failures, commit
from tensorage.backend.transfer import Work
from tensorage.backend.wire.faults import Fault, error_of
from tensorage.backend.wire.http import TooMuchError
from tensorage.backend.wire.progress import Advance
from tensorage.backend.zarr.changing import append_rows, assign, clear_edge, fill_region
from tensorage.backend.zarr.chunk_shapes import CHUNK_BYTES
from tensorage.backend.zarr.codec import ShardCodec, choose_layout, sample_of
from tensorage.backend.zarr.copying import copy_objects
from tensorage.backend.zarr.large_chunks import warn_of_large_chunks
from tensorage.backend.zarr.layout import Layout
from tensorage.backend.zarr.ragged_codec import codec_for, stored_dtype
from tensorage.backend.zarr.reading import Reader
from tensorage.backend.zarr.shard_records import fetch_all_records, fetch_records
from tensorage.backend.zarr.tails import make_whole, store_tails
from tensorage.backend.zarr.tiles import count_encoded_bytes, read_chunks, tiles_of
from tensorage.backend.zarr.writing import (
    NewShard,
    ShardWriter,
    shards_of_array,
    shards_of_blocks,
    shards_of_regions,
)
from tensorage.errors import KeyNotFoundError
from tensorage.indexing.chunks import plan_chunks
from tensorage.indexing.regions import AxisLengths, grow_shape, join_chunks
from tensorage.indexing.selection import Positions, Selection
from tensorage.indexing.tiles import TileGrid
from tensorage.model.casting import cast_to
from tensorage.model.declaration import Declaration
from tensorage.model.fields import Fields
from tensorage.model.results import Result
from tensorage.model.zarr_metadata import fill_value_as_json
from tensorage.types import Dataset, Engine

if TYPE_CHECKING:
    import zarr

__all__ = ["ZarrEngine", "asks_for_layout", "codec_of", "meta_of"]

#: Most bytes of a chunk that the catalogue's column `chunk` may name. A longer chunk is entered as one of this length.
_MAX_CHUNK_BYTES = 64 * 1024 * 1024

#: Options of the layout.
_LAYOUT_OPTIONS = ("chunks", "shards", "codecs", "chunk_size")


class ZarrEngine(EngineBase):
    """Keeps arrays as objects of Storage, which the catalogue records."""

    name: ClassVar[Engine] = "storage"

    def begin(self, new: Declaration) -> Dataset:
        dataset, _ = self._begin(new)
        return commit(self._transfer, dataset) if dataset.size == 0 else dataset

    def fill(self, dataset: Dataset, region: tuple[slice, ...], elements: npt.NDArray[Any]) -> None:
        fill_region(Work.storing(self._transfer, dataset), codec_of(dataset), region, elements)

    def lengths_to_fill(self, dataset: Dataset, lengths: AxisLengths) -> AxisLengths:
        return join_chunks(lengths, codec_of(dataset).layout.shards, FILL_BYTES // dataset.dtype.itemsize)

    def shape_to_read(self, dataset: Dataset, most_bytes: int) -> tuple[int, ...]:
        layout, itemsize = codec_of(dataset).layout, dataset.mean_bytes
        # A small object is read whole. Chunks of a large one are fetched by ranges.
        is_small = math.prod(layout.shards) * itemsize <= most_bytes
        least = layout.shards if is_small else layout.chunks
        return grow_shape(dataset.shape, least, most_bytes // (math.prod(least) * itemsize))

    def create(self, new: Declaration, fill: npt.NDArray[Any]) -> Dataset:
        layout = replace(_layout_of(new), fill_value=fill_value_as_json(fill))
        return create(self._transfer, meta_of(new, layout), fill)

    def resize(self, dataset: Dataset, rows: int, coords: Mapping[str, Any] | None) -> Dataset:
        codec = codec_of(dataset)
        if rows > dataset.shape[0]:
            dataset = clear_edge(self._work("resizing", dataset), codec)
        return resize(self._transfer, dataset, rows, codec.fill_value, coords)

    def store(self, array: npt.NDArray[Any], new: Declaration) -> Dataset:
        # Zarr's codecs encode little-endian elements, without padding. An array that is so already is not copied.
        little = array.astype(new.dtype, copy=False)

        layout = _layout_of(new, sample_of(little))
        # Elsewhere, an array that is to be in Storage is there, and takes no room in the database.
        if self._transfer.is_transaction:
            meta = meta_of(new, layout)
            # Many small arrays of one layout have one codec.
            records = make_whole(_parse_codec(meta["zarr"], layout.shape, layout.dtype), little)
            if records is not None:
                # The transaction's request may have no room for them.
                with suppress(TooMuchError):
                    return store_tails(self._transfer, meta, records)

        def write() -> Dataset:
            dataset, codec = self._begin(new, layout)
            return self._write(dataset, codec, shards_of_array(little, codec.layout))

        return begin_anew_after_failures(write)

    def store_blocks(self, blocks: Iterable[npt.ArrayLike], new: Declaration) -> Dataset:
        self._check_free(new)
        later = iter(blocks)
        first = list(islice(later, 1))
        is_sample = bool(first) and isinstance(first[0], np.ndarray) and first[0].dtype == new.dtype
        layout = _layout_of(new, sample_of(np.asarray(first[0])) if is_sample else None)
        dataset, codec = self._begin(new, layout)
        return self._write(dataset, codec, shards_of_blocks(chain(first, later), dataset, codec.layout))

    def store_from(self, read: ReadRegion, new: Declaration) -> Dataset:
        def write() -> Dataset:
            dataset, codec = self._begin(new, _layout_of(new, _first_rows(read, new)))
            return self._write(dataset, codec, shards_of_regions(read, codec.layout))

        return begin_anew_after_failures(write)

    def copy(self, dataset: Dataset, new: Declaration) -> Dataset | None:
        if asks_for_layout(new):
            return None
        source = codec_of(dataset)

        def write() -> Dataset:
            staged, codec = self._begin(new, source.layout)
            writer = ShardWriter(Work.storing(self._transfer, staged, quiet=self._quiet), codec)
            reader = Reader(Work.reading(self._transfer, dataset), source)
            return writer.commit(partial(copy_objects, reader, writer), staged.nbytes)

        return begin_anew_after_failures(write)

    def import_zarr(self, source: zarr.Array[Any], new: Declaration) -> Dataset:
        """Store an array of Zarr. Take over its objects as they are, if possible, unless an option asks for others.

        Parameters
        ----------
        source
            Array that `tensorage.backend.zarr.importing.open_source` returns.
        new
            Declaration that `tensorage.backend.zarr.importing.declaration_of` returns. With `chunks`, `shards`,
            `codecs` or `chunk_size` among its options, the array is encoded anew.

        Raises
        ------
        CorruptTensorError, InvalidInputError
            If the source is damaged or cannot be read. Nothing is stored.
        """
        # Importing needs zarr itself, which takes long to load.
        from tensorage.backend.zarr.importing import (
            decode_shards,
            layout_like,
            layout_of,
            take_over_shards,
        )

        taken = None if asks_for_layout(new) else layout_of(source)

        def write() -> Dataset:
            dataset, codec = self._begin(new, taken or layout_like(source, new))
            shards = decode_shards(source, codec.layout) if taken is None else take_over_shards(source, codec)
            return self._write(dataset, codec, shards)

        return begin_anew_after_failures(write)

    def append(self, key: str, data: npt.ArrayLike, known: Dataset | None) -> Dataset:
        def append_to(dataset: Dataset) -> Dataset:
            work = self._work("appending to", dataset)
            return append_rows(work, codec_of(dataset), cast_to(data, dataset), self._owner)

        if known is not None and self._known is not None:
            # A caller that remembers an array looks at it again before the next try.
            return append_to(known)
        first = self._open_own(key) if known is None else known
        # Others may append at the same time, and would meet again without a pause.
        return on_latest(append_to, first, lambda: self._open_own(key), pauses=True)

    def assign(self, dataset: Dataset, selection: Selection, value: npt.ArrayLike) -> Dataset:
        return assign(self._work("assigning to", dataset), codec_of(dataset), selection, value)

    def read(self, dataset: Dataset, selection: Selection, out: npt.NDArray[Any] | None) -> Any:
        codec = codec_of(dataset)
        plan = plan_chunks(dataset.shape, selection, codec.layout.shards)
        result = Result(plan, dataset.dtype, out, dataset.key)
        if plan.size:
            buffer = result.buffer.reshape(plan.buffer_shape)
            work = self._work("reading", dataset)
            with work.bar(buffer.nbytes) as advance:
                reader = Reader(work, codec, records=self._records)
                reader.fill(plan.projections(), buffer, advance)
            warn_of_large_chunks(dataset, codec.layout, plan, reader.moved_bytes)
        return result.take()

    def read_fields(self, dataset: Dataset, selection: Selection, fields: Fields) -> Any:
        # A chunk is encoded as a whole, so that nothing less can be fetched.
        return fields.take(self.read(dataset, selection, None))

    def check_unchanged(self, dataset: Dataset) -> None:
        fetch_records(self._work("reading", dataset), codec_of(dataset).layout, [0])

    def records(self, dataset: Dataset) -> bytes | None:
        """Return the records of all shards of an array: see `tensorage.backend.arrays.Arrays.records`."""
        return fetch_all_records(self._work("reading", dataset), codec_of(dataset).layout)

    def tiles(self, dataset: Dataset) -> TileGrid:
        return tiles_of(codec_of(dataset).layout)

    def read_tiles(self, dataset: Dataset, numbers: Positions, advance: Advance) -> npt.NDArray[Any]:
        return read_chunks(self._reader(dataset), numbers, advance)

    def moved_bytes(self, dataset: Dataset, numbers: Positions | None = None) -> int:
        if numbers is None:
            numbers = np.arange(self.tiles(dataset).count)
        return count_encoded_bytes(self._reader(dataset), numbers)

    def compact(self, key: str) -> int:
        """Return 0: an append leaves no small shards to merge."""
        self._open_own(key)
        return 0

    def _begin(self, new: Declaration, layout: Layout | None = None) -> tuple[Dataset, ShardCodec]:
        chosen = layout or _layout_of(new)
        return begin(self._transfer, meta_of(new, chosen)), codec_for(chosen)

    def _check_free(self, new: Declaration) -> None:
        """Refuse a key that is taken before the first block is made, whose elements decide the layout.

        Raises
        ------
        KeyExistsError
        """
        if new.meta["overwrite"]:
            return
        try:
            self._open(new.key)
        except KeyNotFoundError:
            return
        fault = Fault(400, "TS002", f"the key {new.key!r} is taken")
        raise error_of(fault, f"storing {new.key!r}")

    def _write(self, dataset: Dataset, codec: ShardCodec, shards: Iterable[NewShard]) -> Dataset:
        writer = ShardWriter(Work.storing(self._transfer, dataset, quiet=self._quiet), codec)
        return writer.commit(partial(writer.write, shards), dataset.nbytes)

    def _reader(self, dataset: Dataset) -> Reader:
        return Reader(self._work("reading", dataset), codec_of(dataset))


def _first_rows(read: ReadRegion, new: Declaration) -> npt.NDArray[Any] | None:
    """Read a few rows, unless that is much or the layout does not depend on them."""
    row_bytes = math.prod(new.shape[1:]) * new.dtype.itemsize
    if asks_for_layout(new) or not new.shape or not 0 < row_bytes < CHUNK_BYTES:
        return None
    rows = min(CHUNK_BYTES // row_bytes, new.shape[0])
    return read((slice(0, rows), *(slice(0, extent) for extent in new.shape[1:])))


def _layout_of(new: Declaration, sample: npt.NDArray[Any] | None = None) -> Layout:
    return choose_layout(
        new.shape,
        new.dtype,
        chunks=new.options.get("chunks"),
        shards=new.options.get("shards"),
        codecs=new.options.get("codecs"),
        chunk_size=new.options.get("chunk_size"),
        sample=sample,
    )


def meta_of(new: Declaration, layout: Layout) -> dict[str, Any]:
    """Return the declaration of an array, as ``tensorage_begin`` takes it."""
    return {
        **new.meta,
        "engine": "storage",
        "zarr": json.dumps(layout.metadata()),
        "chunk": min(math.prod(layout.chunks), _MAX_CHUNK_BYTES // max(new.dtype.itemsize, 1)),
    }


def asks_for_layout(new: Declaration) -> bool:
    """Tell whether an option asks for a layout."""
    return any(new.options.get(option) is not None for option in _LAYOUT_OPTIONS)


# Parsing metadata takes longer than reading a small selection, and readers open the same arrays again and again.
@lru_cache(maxsize=64)
def _parse_codec(zarr: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> ShardCodec:
    return codec_for(Layout.parse(json.loads(zarr), shape, dtype))


def codec_of(dataset: Dataset) -> ShardCodec:
    """Return the codec of an array of Storage, with its layout."""
    assert dataset.zarr is not None, "the catalogue has metadata of every array of Storage"
    dtype = dataset.dtype if dataset.ragged is None else stored_dtype(dataset.ragged)
    return _parse_codec(dataset.zarr, dataset.shape, dtype)
