"""Chunks of an array as tiles, which a cache fetches and keeps as wholes."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from tensorage.backend.wire.progress import Advance
from tensorage.backend.zarr.codec import EMPTY
from tensorage.backend.zarr.layout import Layout
from tensorage.backend.zarr.reading import Reader
from tensorage.indexing.chunks import ChunkProjection, plan_chunks
from tensorage.indexing.selection import Positions
from tensorage.indexing.tiles import TileGrid
from tensorage.model.memory import new_array

__all__ = ["count_encoded_bytes", "read_chunks", "tiles_of"]


@dataclass(frozen=True, slots=True)
class _Chunks:
    """Whole chunks of one shard, as a `tensorage.backend.zarr.reading.ShardProjection`.

    Parameters
    ----------
    coords
        Position of the shard in the grid of shards.
    chunks
        For each chunk: its position in the shard, its shape within the array, and its place in the buffer.
    """

    coords: tuple[int, ...]
    chunks: list[tuple[tuple[int, ...], tuple[int, ...], tuple[slice, ...]]]

    def split(self, chunks: Sequence[int]) -> Iterator[ChunkProjection]:
        """Yield a projection that takes all of a chunk, for each chunk."""
        for coords, shape, place in self.chunks:
            taken = tuple(slice(0, length, 1) for length in shape)
            yield ChunkProjection(coords, tuple(chunks), shape, taken, place, math.prod(shape))


def tiles_of(layout: Layout) -> TileGrid:
    """Return the grid of chunks. A chunk is a tile, since it can only be decoded as a whole."""
    return TileGrid(layout.shape, layout.chunks)


def read_chunks(reader: Reader, numbers: Positions, advance: Advance) -> npt.NDArray[Any]:
    """Read whole chunks, one after the other: see `tensorage.backend.engine.ArrayEngine.read_tiles`.

    Parameters
    ----------
    numbers
        Numbers of the chunks, in the grid of the whole array.
    """
    layout = reader.codec.layout
    grid = tiles_of(layout)
    # Chunks are stacked along the first axis. Without axes there is one chunk. Elements behind the end of the array are
    # zeros, so that every reader of a tile keeps the same bytes.
    shape = (len(numbers) * grid.chunks[0], *grid.chunks[1:]) if grid.chunks else ()
    buffer = new_array(shape, layout.dtype, f"reading {reader.dataset.key!r}")
    buffer[...] = np.zeros((), layout.dtype)
    if layout.pages != layout.chunks and (np.diff(numbers) > 0).all():
        _read_rows(reader, numbers, buffer, advance)
    else:
        replace(reader, by_pages=False).read_into(_group_by_shard(layout, grid, numbers), buffer, advance)
    if not grid.is_flat:
        return buffer.reshape(-1)
    lengths = grid.lengths(numbers)
    if (lengths[:-1] == grid.full).all():
        return buffer.reshape(-1)[: int(lengths.sum())]
    tiles = buffer.reshape(len(numbers), *grid.chunks)
    return np.concatenate(
        [
            tile[tuple(slice(length) for length in grid.shape_in_file(number))].reshape(-1)
            for number, tile in zip(numbers.tolist(), tiles, strict=True)
        ]
    )


def _read_rows(reader: Reader, numbers: Positions, buffer: npt.NDArray[Any], advance: Advance) -> None:
    """Read chunks of whole rows as these rows, page by page: there may be many small ones."""
    layout = reader.codec.layout
    rows = (numbers[:, np.newaxis] * layout.chunks[0] + np.arange(layout.chunks[0])).reshape(-1)
    rows = rows[rows < layout.shape[0]]
    is_one_run = rows[-1] - rows[0] == len(rows) - 1
    plan = plan_chunks(
        layout.shape, slice(int(rows[0]), int(rows[-1]) + 1) if is_one_run else rows, layout.shards
    )
    # A chunk may be longer than a row.
    within = buffer[(slice(len(rows)), *map(slice, layout.shape[1:]))]
    reader.read_into(plan.projections(), within, advance)


def count_encoded_bytes(reader: Reader, numbers: Positions) -> int:
    """Count the bytes of chunks as they are stored, which are 0 for a chunk of nothing but the fill value."""
    layout = reader.codec.layout
    total = 0
    shards = _group_by_shard(layout, tiles_of(layout), numbers)
    for chunks_of_shard, record in reader.with_records(shards):
        at = [layout.position_of(coords) for coords, _, _ in chunks_of_shard.chunks]
        lengths = reader.ranges(record)[at, 1]
        total += int(lengths[lengths != EMPTY].sum())
    return total


def _group_by_shard(layout: Layout, grid: TileGrid, numbers: Positions) -> list[_Chunks]:
    """Group chunks by their shards.

    The record of each shard is then fetched once, and ranges of neighbouring chunks can be joined.
    """
    shards: dict[tuple[int, ...], list[Any]] = defaultdict(list)
    for position, number in enumerate(numbers.tolist()):
        coords = grid.coords_of(number)
        shape = tuple(axis.stop - axis.start for axis in grid.region(number))
        # Only the first axis tells the chunks in the buffer apart.
        place = [slice(0, length, 1) for length in shape]
        if place:
            first = position * grid.chunks[0]
            place[0] = slice(first, first + shape[0], 1)
        split = [divmod(coord, each) for coord, each in zip(coords, layout.chunks_per_shard, strict=True)]
        shard = tuple(outer for outer, _ in split)
        shards[shard].append((tuple(inner for _, inner in split), shape, tuple(place)))
    return [_Chunks(coords, chunks) for coords, chunks in shards.items()]
