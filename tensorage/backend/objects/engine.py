"""What the storage engine can do."""

from __future__ import annotations

import json
import math
import random
import time
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from tensorage.backend.arrays import cast_to
from tensorage.backend.declaration import Declaration
from tensorage.backend.engine import OtherEngineError
from tensorage.backend.objects.changing import append_rows, assign, fill_rows
from tensorage.backend.objects.codec import ShardCodec
from tensorage.backend.objects.layout import Layout
from tensorage.backend.objects.reading import Reader
from tensorage.backend.objects.writing import NewShard, ShardWriter, shards_of_array, shards_of_blocks
from tensorage.backend.progress import progress
from tensorage.backend.results import Result
from tensorage.backend.staging import begin, commit, new_operation, stage
from tensorage.backend.transfer import Transfer
from tensorage.errors import ChangedError, IncompleteTensorError
from tensorage.indexing.chunks import plan_chunks
from tensorage.indexing.selection import Selection
from tensorage.types import Dataset

__all__ = ["ObjectsEngine", "codec_of"]

#: The catalogue keeps a chunk's elements for what reads rows, and takes no more bytes of them than this.
_MAX_CHUNK_BYTES = 64 * 1024 * 1024

#: An append that finds the array changed begins anew, so many times and for so long at least.
MIN_RESTARTS = 20
RESTART_FOR_S = 60.0
FIRST_PAUSE_S = 0.01
LONGEST_PAUSE_S = 1.0


class ObjectsEngine:
    """Arrays as objects of Storage, which the catalogue names.

    Parameters
    ----------
    open_array
        Looks up the catalogue's entry under a key.
    """

    def __init__(self, transfer: Transfer, open_array: Callable[[str], Dataset]) -> None:
        self._transfer = transfer
        self._open = open_array

    def begin(self, new: Declaration) -> Dataset:
        dataset, _ = self._begin(new)
        return commit(self._transfer, dataset) if dataset.size == 0 else dataset

    def fill(self, dataset: Dataset, rows: npt.NDArray[Any], first: int) -> Dataset | None:
        codec = codec_of(dataset)
        row = math.prod(dataset.shape[1:])
        fill_rows(self._transfer, dataset, codec, rows, first // row)
        try:
            return commit(self._transfer, dataset)
        except IncompleteTensorError:
            # Not the last rows: the array stays invisible until those have come.
            return None

    def store(self, array: npt.NDArray[Any], new: Declaration, *, quiet: bool) -> Dataset:
        dataset, codec = self._begin(new)
        little = array.astype(dataset.dtype, copy=False)
        return self._write(dataset, codec, shards_of_array(little, codec.layout), quiet=quiet)

    def store_blocks(self, blocks: Iterable[npt.ArrayLike], new: Declaration, *, quiet: bool) -> Dataset:
        dataset, codec = self._begin(new)
        return self._write(dataset, codec, shards_of_blocks(blocks, dataset, codec.layout), quiet=quiet)

    def append(self, key: str, data: npt.ArrayLike, known: Dataset | None, *, quiet: bool) -> Dataset:
        restarts, until = 0, time.monotonic() + RESTART_FOR_S
        dataset = self._own(key) if known is None else known
        while True:
            rows = cast_to(data, dataset)
            try:
                return append_rows(self._transfer, dataset, codec_of(dataset), rows, quiet=quiet)
            except ChangedError:
                restarts += 1
                if restarts > MIN_RESTARTS and time.monotonic() > until:
                    raise
            # At random, so that those who append at the same time do not meet again at once.
            longest = min(FIRST_PAUSE_S * 2**restarts, LONGEST_PAUSE_S)
            time.sleep(random.uniform(0, longest))  # noqa: S311 - no secret
            dataset = self._own(key)

    def assign(self, dataset: Dataset, selection: Selection, value: npt.ArrayLike, *, quiet: bool) -> Dataset:
        return assign(self._transfer, dataset, codec_of(dataset), selection, value, quiet=quiet)

    def read(
        self, dataset: Dataset, selection: Selection, out: npt.NDArray[Any] | None, *, quiet: bool
    ) -> Any:
        codec = codec_of(dataset)
        reading = plan_chunks(dataset.shape, selection, codec.layout.shards)
        result = Result(reading, dataset.dtype, out)
        if reading.size:
            box = result.box.reshape(reading.box_shape)
            with progress(box.nbytes, dataset.key, quiet=quiet) as advance:
                Reader(self._transfer, dataset, codec).fill(reading.parts(), box, advance)
        return result.take()

    def compact(self, key: str) -> int:
        """Nothing to merge: an append leaves no small shards."""
        self._own(key)
        return 0

    def _begin(self, new: Declaration) -> tuple[Dataset, ShardCodec]:
        chosen = Layout.choose(
            new.shape,
            new.dtype,
            chunks=new.options.get("chunks"),
            shards=new.options.get("shards"),
            codecs=new.options.get("codecs"),
            chunk_size=new.options.get("chunk_size"),
        )
        chunk = min(math.prod(chosen.chunks), _MAX_CHUNK_BYTES // new.dtype.itemsize)
        meta = {
            **new.meta,
            "engine": "storage",
            "zarr": json.dumps(chosen.metadata()),
            "chunk": chunk,
            "operation": new_operation(),
        }
        return begin(self._transfer, meta), ShardCodec(chosen)

    def _write(
        self, dataset: Dataset, codec: ShardCodec, shards: Iterable[NewShard], *, quiet: bool
    ) -> Dataset:
        writer = ShardWriter(self._transfer, dataset, codec)
        return stage(
            self._transfer,
            dataset,
            lambda advance: writer.write(shards, advance),
            dataset.nbytes,
            quiet=quiet,
            shards=lambda: writer.pending,
        )

    def _own(self, key: str) -> Dataset:
        dataset = self._open(key)
        if dataset.engine != "storage":
            raise OtherEngineError(dataset)
        return dataset


@lru_cache(maxsize=64)
def _codec(zarr: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> ShardCodec:
    return ShardCodec(Layout.parse(json.loads(zarr), shape, dtype))


def codec_of(dataset: Dataset) -> ShardCodec:
    """The codec of an array of Storage, with its layout."""
    assert dataset.zarr is not None, "the catalogue has metadata of every array of Storage"
    return _codec(dataset.zarr, dataset.shape, dataset.dtype)
