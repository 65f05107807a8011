"""Layout of an array of Storage: its cut into shards and chunks, and the codecs of a chunk. No I/O, and no zarr.

The catalogue keeps a `Layout` as metadata of Zarr v3, beside the shape and dtype of the array. "Shard" means an object
throughout, also if the array is not sharded and an object is a single chunk.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from operator import floordiv
from typing import Any, Literal

import numpy as np

from tensorage.backend.zarr.chunk_shapes import (
    CHUNK_BYTES,
    check_chunks,
    check_shape,
    check_shards,
    choose_chunk_bytes,
    choose_chunks,
    choose_shards,
)
from tensorage.dtypes import is_small_float
from tensorage.errors import InvalidInputError
from tensorage.model.zarr_metadata import (
    INDEX_CODECS,
    SHARDING,
    Codec,
    array_metadata,
    chunk_key,
    configuration_of,
    data_type_of,
    default_codecs,
    default_fill_value,
    has_any_length,
    name_of,
)

__all__ = ["Layout"]


@dataclass(frozen=True)
class Layout:
    """Cut of an array into shards, cut of a shard into chunks, and encoding of a chunk.

    Parameters
    ----------
    shape
        Shape of the array, in elements.
    dtype
        Dtype, little-endian. That of text or bytes without a length, for elements of any length.
    chunks
        Shape of a chunk. Chunks at the end of the array are as large, with fill values behind the end.
    shards
        Shape of a shard: whole chunks, and exactly one if the array is not sharded.
    is_sharded
        True if an object holds an index of its chunks. Otherwise an object is an encoded chunk, and nothing else.
    codecs
        Codecs of a chunk, as the JSON of Zarr's metadata.
    fill_value
        Value of elements that were never written, as the JSON of Zarr's metadata.
    index_codecs, index_location
        Codecs of the index of a shard, and its place in the object.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    chunks: tuple[int, ...]
    shards: tuple[int, ...]
    is_sharded: bool
    codecs: tuple[Codec, ...]
    fill_value: Any
    index_codecs: tuple[Codec, ...] = INDEX_CODECS
    index_location: Literal["start", "end"] = "end"

    @property
    def has_tails(self) -> bool:
        """True if chunks may come behind those of an object: the index tells where, and comes behind them."""
        return self.is_sharded and self.index_location == "end"

    @classmethod
    def choose(
        cls,
        shape: Sequence[int],
        dtype: np.dtype[Any],
        *,
        chunks: Sequence[int] | None = None,
        shards: Sequence[int] | Literal[False] | None = None,
        chunk_size: int | None = None,
        encoded_ratio: float = 1.0,
    ) -> Layout:
        """Choose the layout of a new array, with codecs by default.

        Parameters
        ----------
        dtype
            Dtype that `tensorage.dtypes.storable_dtype` returns.
        chunks
            Shape of a chunk, any one. By default whole rows that make about 24 KiB once they are encoded, or one row,
            or about 1 MiB of a larger row. Without shards, about 1 MiB.
        shards
            Shape of an object, a multiple of `chunks`. By default as many chunks as make at most 8 MiB. False: an
            object for each chunk, without an index, for readers that know nothing of shards. An array without
            dimensions, which is a single element, is stored so in any case; records and raw bytes are by default.
        chunk_size
            Elements of a chunk, about, if `chunks` are not given.
        encoded_ratio
            Bytes of encoded elements for each byte of elements, as far as it is known.

        Raises
        ------
        InvalidInputError
            If the shapes don't fit the array or each other.
        DTypeError
            If Zarr has no such dtype.
        """
        shape, itemsize = tuple(shape), dtype.itemsize
        # Refuses a dtype that Zarr has not, before any shape is checked.
        data_type_of(dtype)
        if shards is None and _is_of_voids(dtype):
            shards = False
        if chunk_size is not None:
            chunk_bytes = chunk_size * itemsize
        elif shards is False:
            # An object has a row in two tables, and a request of its own when it is written.
            chunk_bytes = CHUNK_BYTES
        else:
            chunk_bytes = choose_chunk_bytes(shape, itemsize, encoded_ratio)
        if chunks is not None:
            inner = check_chunks(chunks, shape, itemsize)
        elif shards is None or shards is False:
            inner = choose_chunks(shape, itemsize, chunk_bytes)
        else:
            # Given shards have to consist of whole chunks, so the chunks are fitted to the shards.
            whole = check_shape("shards", shards, shape)
            inner = _largest_divisors(whole, choose_chunks(whole, itemsize, chunk_bytes))
        if shards is None:
            outer = choose_shards(shape, inner, itemsize)
        else:
            outer = check_shards(inner if shards is False else shards, inner, shape)
        # A shard of a single element would only add an index to it.
        is_sharded = shards is not False and len(shape) > 0
        return cls(shape, dtype, inner, outer, is_sharded, default_codecs(dtype), default_fill_value(dtype))

    @classmethod
    def parse(cls, zarr: Mapping[str, Any], shape: Sequence[int], dtype: np.dtype[Any]) -> Layout:
        """Parse metadata of Zarr v3: the catalogue's, or those of an array that somebody else wrote.

        `key_of` names objects by the default chunk key encoding, also if the metadata have another one.

        Raises
        ------
        InvalidInputError
            If the metadata are not of Zarr v3, of a kind that can't be read, or of another dtype.
        """
        shape = tuple(shape)
        try:
            return cls._parse(zarr, shape, dtype)
        # The metadata may be any JSON, so that whatever they lack shows only when it is looked up.
        except (KeyError, TypeError, AttributeError) as error:
            raise InvalidInputError(
                f"these are no metadata of a Zarr v3 array of shape {shape}: {error!r} in {zarr!r}"
            ) from error

    @classmethod
    def _parse(cls, zarr: Mapping[str, Any], shape: tuple[int, ...], dtype: np.dtype[Any]) -> Layout:
        _require("zarr_format", zarr["zarr_format"], 3)
        _require("node_type", zarr["node_type"], "array")
        # Zarr v3 allows both spellings of a data type without configuration.
        _require("data_type", _strip_empty_configuration(zarr["data_type"]), data_type_of(dtype))
        _require("chunk_grid", zarr["chunk_grid"]["name"], "regular")
        # A storage transformer would change keys and bytes below the codecs. No version of Zarr defines one yet.
        _require("storage_transformers", list(zarr.get("storage_transformers") or ()), [])
        shards = zarr["chunk_grid"]["configuration"]["chunk_shape"]
        codecs, fill_value = zarr["codecs"], zarr["fill_value"]
        # With any other codec beside the sharding one, a chunk can't be had without the rest of its shard.
        if len(codecs) != 1 or name_of(codecs[0]) != SHARDING:
            chunks = check_chunks(shards, shape, dtype.itemsize)
            return cls(shape, dtype, chunks, chunks, False, tuple(codecs), fill_value)
        sharding = configuration_of(codecs[0])
        location = sharding.get("index_location", "end")
        if location not in ("start", "end"):
            raise InvalidInputError(f"the index of a shard is at its 'start' or 'end', not at {location!r}")
        chunks = check_chunks(sharding["chunk_shape"], shape, dtype.itemsize)
        return cls(
            shape,
            dtype,
            chunks,
            check_shards(shards, chunks, shape),
            True,
            tuple(sharding["codecs"]),
            fill_value,
            tuple(sharding.get("index_codecs", INDEX_CODECS)),
            location,
        )

    def metadata(self) -> dict[str, Any]:
        """Return the metadata that the catalogue keeps as `zarr`: all for which it has no columns."""
        return array_metadata(self.dtype, self.shards, self._object_codecs, self.fill_value)

    def document(self, attrs: Mapping[str, Any], dims: Sequence[str] | None) -> dict[str, Any]:
        """Return the content of the array's ``zarr.json``."""
        document = {"shape": list(self.shape), **self.metadata(), "attributes": dict(attrs)}
        # Zarr v3 lets `dimension_names` be left out, but not be null.
        if dims is not None:
            document["dimension_names"] = list(dims)
        return document

    def with_rows(self, rows: int) -> Layout:
        """Return the layout of the array with more rows of axis 0. Shards keep their numbers.

        Raises
        ------
        InvalidInputError
            If there is no axis 0.
        """
        if not self.shape:
            raise InvalidInputError("an array without dimensions has no rows that could be added to")
        # Numbers count in C order, axis 0 outermost, so that new shards come behind all others.
        return replace(self, shape=(self.shape[0] + rows, *self.shape[1:]))

    @property
    def memory_dtype(self) -> np.dtype[Any]:
        """Dtype of elements in memory. Elements of any length are objects, each the `bytes` of one element."""
        return np.dtype(object) if has_any_length(self.dtype) else self.dtype

    @cached_property
    def grid(self) -> tuple[int, ...]:
        """Number of shards along each axis."""
        return tuple(-(-length // shard) for length, shard in zip(self.shape, self.shards, strict=True))

    @cached_property
    def shard_count(self) -> int:
        return math.prod(self.grid)

    @cached_property
    def chunks_per_shard(self) -> tuple[int, ...]:
        """Number of chunks of a shard along each axis, chunks behind the end of the array included."""
        return tuple(map(floordiv, self.shards, self.chunks))

    @cached_property
    def chunk_count_per_shard(self) -> int:
        """Number of chunks of a shard, chunks behind the end of the array included."""
        return math.prod(self.chunks_per_shard)

    @cached_property
    def pages(self) -> tuple[int, ...]:
        """Shape of a page: of chunks of one shard that are read together, one behind the other along axis 0.

        A page has about 1 MiB, and its elements have the order in memory that its chunks have, one after another. If
        a shard has chunks side by side, a page is one chunk.
        """
        # A page is memory that is kept for the next one: bytes of any length would be kept with it.
        if not self.shape or math.prod(self.chunks_per_shard[1:]) > 1 or has_any_length(self.dtype):
            return self.chunks
        chunk_bytes = math.prod(self.chunks) * self.dtype.itemsize
        count = min(max(CHUNK_BYTES // chunk_bytes, 1), self.chunks_per_shard[0])
        return (self.chunks[0] * count, *self.chunks[1:])

    def number_of(self, coords: Sequence[int]) -> int:
        """Return the number, in C order, of the shard at a position of the grid."""
        return _number_in_grid(coords, self.grid)

    def coords_of(self, number: int) -> tuple[int, ...]:
        """Return the position of a shard in the grid."""
        coords = []
        for length in reversed(self.grid):
            number, coord = divmod(number, length)
            coords.append(coord)
        return tuple(reversed(coords))

    def key_of(self, number: int) -> str:
        """Return the name of a shard's object within its array, such as ``c/1/0/0``."""
        return chunk_key(self.coords_of(number))

    def region(self, number: int) -> tuple[slice, ...]:
        """Return the region of the array that a shard holds."""
        return tuple(
            slice(coord * shard, min((coord + 1) * shard, length))
            for coord, shard, length in zip(self.coords_of(number), self.shards, self.shape, strict=True)
        )

    def nbytes_of(self, number: int) -> int:
        """Count the bytes in memory of the elements that a shard holds of the array."""
        return (
            int(math.prod(axis.stop - axis.start for axis in self.region(number)))
            * self.memory_dtype.itemsize
        )

    def shards_of(self, row_low: int, row_high: int) -> range:
        """Return the numbers of the shards that hold any of the rows from `row_low` to before `row_high` of axis 0.

        Rows may lie behind the end of the array, as rows do that are to be added. An array without dimensions has
        one shard, whatever the rows.
        """
        if not self.shape:
            return range(1)
        each = math.prod(self.grid[1:])
        # Rounding below would otherwise make a shard of an empty range of rows.
        if row_high <= row_low:
            return range(0)
        return range(row_low // self.shards[0] * each, -(-row_high // self.shards[0]) * each)

    def shards_in(self, region: Sequence[slice]) -> Iterator[int]:
        """Yield the numbers of the shards that hold any element of a region, whose slices have no open ends."""
        touched = (
            range(axis.start // shard, -(-axis.stop // shard)) if axis.start < axis.stop else range(0)
            for axis, shard in zip(region, self.shards, strict=True)
        )
        return map(self.number_of, product(*touched))

    def position_of(self, inner_coords: Sequence[int]) -> int:
        """Return the position in a shard's index of the chunk with these coords in the shard."""
        return _number_in_grid(inner_coords, self.chunks_per_shard)

    @property
    def _object_codecs(self) -> tuple[Codec, ...]:
        if not self.is_sharded:
            return self.codecs
        # In Zarr, a shard is a chunk of the array whose only codec makes it of inner chunks.
        configuration = {
            "chunk_shape": list(self.chunks),
            "codecs": list(self.codecs),
            "index_codecs": list(self.index_codecs),
            "index_location": self.index_location,
        }
        return ({"name": SHARDING, "configuration": configuration},)


def _is_of_voids(dtype: np.dtype[Any]) -> bool:
    """Tell whether elements are records or raw bytes for numpy.

    zarr reads no shards of them: it looks shards up by the fill value, and numpy gives no hash of such an element
    (seen with zarr 3.1.6).
    """
    return dtype.kind == "V" and not is_small_float(dtype)


def _number_in_grid(coords: Sequence[int], grid: Sequence[int]) -> int:
    number = 0
    for coord, length in zip(coords, grid, strict=True):
        number = number * length + coord
    return number


def _largest_divisors(shards: Sequence[int], wanted: Sequence[int]) -> tuple[int, ...]:
    """Return the largest chunk shape that divides a shard and is along no axis longer than `wanted`."""
    return tuple(
        next(length for length in range(min(shard, most), 0, -1) if shard % length == 0)
        for shard, most in zip(shards, wanted, strict=True)
    )


def _strip_empty_configuration(data_type: Any) -> Any:
    """Return a data type without its configuration, if that is empty."""
    if isinstance(data_type, Mapping) and not data_type.get("configuration"):
        return data_type["name"]
    return data_type


def _require(what: str, found: Any, wanted: Any) -> None:
    if found != wanted:
        raise InvalidInputError(
            f"the metadata of a Zarr array say {what} {found!r}; readable is {wanted!r} only"
        )
