"""Whole chunks of an array, any of them together: fetched once each, and kept by whoever asked."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tensorage.backend.wire.progress import Advance
from tensorage.backend.zarr.codec import EMPTY
from tensorage.backend.zarr.layout import Layout
from tensorage.backend.zarr.reading import Reader
from tensorage.indexing.chunks import ChunkProjection
from tensorage.indexing.selection import Positions
from tensorage.indexing.tiles import TileGrid
from tensorage.model.memory import new_array

__all__ = ["count_encoded_bytes", "read_chunks", "tiles_of"]


@dataclass(frozen=True, slots=True)
class _Chunks:
    """Chunks of one shard: what `Reader` takes for a part of an array.

    Parameters
    ----------
    coords
        Of the shard.
    chunks
        Of each: its coordinates in the shard, its shape within the array, and where it goes.
    """

    coords: tuple[int, ...]
    chunks: list[tuple[tuple[int, ...], tuple[int, ...], tuple[slice, ...]]]

    def split(self, chunks: Sequence[int]) -> Iterator[ChunkProjection]:
        """Each chunk as a part of its own."""
        for coords, shape, place in self.chunks:
            taken = tuple(slice(0, extent, 1) for extent in shape)
            yield ChunkProjection(coords, tuple(chunks), shape, taken, place, math.prod(shape))


def tiles_of(layout: Layout) -> TileGrid:
    """Chunks as pieces: one is decoded as a whole, whatever is wanted of it."""
    return TileGrid(layout.shape, layout.chunks)


def read_chunks(reader: Reader, numbers: Positions, advance: Advance) -> npt.NDArray[Any]:
    """The elements of chunks, one after the other, as `tensorage.backend.engine.ArrayEngine.read_tiles` gives them.

    Parameters
    ----------
    numbers
        Of the chunks in the grid of the whole array.
    """
    layout = reader.codec.layout
    grid = tiles_of(layout)
    # On top of each other, along the first axis: without axes there is one chunk. Of zeros, so that what is behind
    # the end of the array is the same whoever reads it.
    shape = (len(numbers) * grid.chunks[0], *grid.chunks[1:]) if grid.chunks else ()
    buffer = new_array(shape, layout.dtype, f"reading {reader.dataset.key!r}")
    buffer[...] = np.zeros((), layout.dtype)
    reader.fill(_by_shard(layout, grid, numbers), buffer, advance)
    if not grid.is_flat:
        return buffer.reshape(-1)
    lengths = grid.lengths(numbers)
    if (lengths[:-1] == grid.full).all():
        return buffer.reshape(-1)[: int(lengths.sum())]
    pieces = buffer.reshape(len(numbers), *grid.chunks)
    return np.concatenate(
        [
            piece[tuple(slice(extent) for extent in grid.shape_in_file(number))].reshape(-1)
            for number, piece in zip(numbers.tolist(), pieces, strict=True)
        ]
    )


def count_encoded_bytes(reader: Reader, numbers: Positions) -> int:
    """Bytes of chunks, as they are stored: 0 of one that holds nothing but the fill value."""
    layout = reader.codec.layout
    total = 0
    shards = _by_shard(layout, tiles_of(layout), numbers)
    for part, entry in reader.with_records(shards):
        at = [layout.position_of(coords) for coords, _, _ in part.chunks]
        lengths = reader.ranges(entry)[at, 1]
        total += int(lengths[lengths != EMPTY].sum())
    return total


def _by_shard(layout: Layout, grid: TileGrid, numbers: Positions) -> list[_Chunks]:
    """Chunks, those of a shard together: the catalogue is asked for each shard once, and near chunks come together."""
    shards: dict[tuple[int, ...], list[Any]] = defaultdict(list)
    for position, number in enumerate(numbers.tolist()):
        coords = grid.coords_of(number)
        shape = tuple(axis.stop - axis.start for axis in grid.region(number))
        place = [slice(0, extent, 1) for extent in shape]
        if place:
            first = position * grid.chunks[0]
            place[0] = slice(first, first + shape[0], 1)
        split = [divmod(coord, each) for coord, each in zip(coords, layout.chunks_per_shard, strict=True)]
        shard = tuple(outer for outer, _ in split)
        shards[shard].append((tuple(inner for _, inner in split), shape, tuple(place)))
    return [_Chunks(coords, chunks) for coords, chunks in shards.items()]
