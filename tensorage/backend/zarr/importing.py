"""Import of Zarr arrays that somebody else wrote.

Most arrays of Zarr v3 are taken over as they are: their objects are copied, under names of our own, and only the
indexes of shards are decoded. An index, or the length and checksum of a chunk, tells whether an object is whole.
`layout_of` decides which arrays can be taken over.

All other arrays, of Zarr v2 among them, are decoded by zarr and encoded anew. The new chunks are those of the source
if their size is sensible, so that each chunk is decoded once.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import zarr
from zarr.buffer.cpu import buffer_prototype
from zarr.core.sync import sync

from tensorage.backend.wire.header import bytes_of
from tensorage.backend.zarr.chunk_shapes import SHARD_BYTES
from tensorage.backend.zarr.codec import CorruptChunkError, EncodedShard, ShardCodec, choose_layout
from tensorage.backend.zarr.codec_pipeline import check_encoded_chunk
from tensorage.backend.zarr.layout import Layout
from tensorage.backend.zarr.writing import NewShard
from tensorage.dtypes import storable_dtype
from tensorage.errors import CorruptTensorError, InvalidInputError, TensorageError
from tensorage.model.declaration import ArrayOptions, Declaration, declare
from tensorage.model.values import as_attrs

__all__ = [
    "blocks_of",
    "declaration_of",
    "decode_shards",
    "layout_like",
    "layout_of",
    "open_source",
    "take_over_shards",
]

#: Attribute for the names of the dimensions in Zarr v2, whose metadata have no place for them: xarray's convention.
V2_DIMENSIONS = "_ARRAY_DIMENSIONS"

#: Chunks of fewer bytes than this are not kept if they have to be encoded anew.
MIN_CHUNK_BYTES = 1024

#: Most arrays of a group that an error names.
_MAX_NAMES = 10


def open_source(source: Any) -> zarr.Array[Any]:
    """Open the array to import.

    Parameters
    ----------
    source
        Array of zarr, or anything that zarr opens: a path, a URL, a store.

    Raises
    ------
    InvalidInputError
        If the source is no array of Zarr.
    """
    node = source
    if not isinstance(source, zarr.Array | zarr.Group):
        try:
            node = zarr.open(source, mode="r")
        except Exception as error:
            # The errors of stores have no common type.
            raise InvalidInputError(
                f"{source!r} is no array of Zarr that can be opened ({type(error).__name__}: {error})"
            ) from error
    if isinstance(node, zarr.Group):
        names = [name for name, _ in zip(node.array_keys(), range(_MAX_NAMES), strict=False)]
        raise InvalidInputError(
            f"{source!r} is a group of Zarr: give one of its arrays, such as zarr.open(...)[name]; of its own it has "
            f"{', '.join(map(repr, names)) or 'none'}"
        )
    return cast("zarr.Array[Any]", node)


def declaration_of(array: zarr.Array[Any], key: str, is_shared: bool, options: ArrayOptions) -> Declaration:
    """Declare the new array as the source declares itself, unless the options say otherwise.

    Raises
    ------
    DTypeError
        If arrays of its dtype cannot be stored.
    InvalidInputError
        If the key, the options or the source's attributes make no sense.
    """
    attrs, dims = attributes_of(array)
    said: ArrayOptions = {**options}
    if said.get("dims") is None:
        said["dims"] = dims
    if said.get("attrs") is None:
        try:
            said["attrs"] = as_attrs(attrs)
        except InvalidInputError as error:
            raise InvalidInputError(
                f"importing {key!r}: {error}. Give attrs= that take the place of the source's"
            ) from error
    return declare(key, array.shape, array.dtype, is_shared, said)


def attributes_of(array: zarr.Array[Any]) -> tuple[dict[str, Any], tuple[str, ...] | None]:
    """Return the attributes of an array, and the names of its dimensions, which may be kept among the attributes."""
    attrs = dict(array.attrs.asdict())
    names: Any = getattr(array.metadata, "dimension_names", None)
    if names is None:
        names = attrs.get(V2_DIMENSIONS)
        if not _is_names(names, array.ndim):
            return attrs, None
        del attrs[V2_DIMENSIONS]
    # Zarr v3 allows some dimensions to have names and others not. With none, the array has no dims.
    if all(name is None for name in names):
        return attrs, None
    # Xarray gives these names to dimensions that have none.
    return attrs, tuple(f"dim_{axis}" if name is None else name for axis, name in enumerate(names))


def layout_of(array: zarr.Array[Any]) -> Layout | None:
    """Parse the layout of an array whose objects can be taken over as they are.

    None if they cannot be: if the array is one of Zarr v2, or if this engine does not read its chunks, shards, codecs
    or dtype.

    Raises
    ------
    DTypeError
        If arrays of its dtype cannot be stored.
    """
    dtype = storable_dtype(array.dtype)
    if array.metadata.zarr_format != 3:
        return None
    document = json.loads(array.metadata.to_buffer_dict(buffer_prototype)["zarr.json"].to_bytes())
    try:
        layout = Layout.parse(document, array.shape, dtype)
        ShardCodec(layout)
    except InvalidInputError:
        return None
    return layout


def layout_like(array: zarr.Array[Any], new: Declaration) -> Layout:
    """Choose the layout of an array that is encoded anew, with the chunks and the fill value of the source.

    Raises
    ------
    InvalidInputError, DTypeError
        If the same declaration of any new array is refused.
    """
    options = new.options
    chunks = options.get("chunks")
    if chunks is None and options.get("shards") is None and options.get("chunk_size") is None:
        own = chunks_of(array)
        # Tiny chunks would make a large index. A chunk beyond a shard would make requests too large.
        if own and MIN_CHUNK_BYTES <= math.prod(own) * new.dtype.itemsize <= SHARD_BYTES:
            chunks = own
    layout = choose_layout(
        new.shape,
        new.dtype,
        chunks=chunks,
        shards=options.get("shards"),
        codecs=options.get("codecs"),
        chunk_size=options.get("chunk_size"),
    )
    return replace(layout, fill_value=_fill_value_of(array, layout.fill_value))


def take_over_shards(array: zarr.Array[Any], codec: ShardCodec) -> Iterator[NewShard]:
    """Yield the shards of a new array. Each takes over an object of the source, or has none if the source has none.

    Parameters
    ----------
    codec
        Codec of the layout that `layout_of` returns.

    Raises
    ------
    CorruptTensorError
        When a shard is made whose object is damaged, as far as that shows without decoding: from its index, or from
        the length and checksum of a chunk.
    InvalidInputError
        When an object cannot be read.
    """
    for number in range(codec.layout.shard_count):
        yield NewShard(number, partial(_take_over, array, codec, number))


def decode_shards(array: zarr.Array[Any], layout: Layout) -> Iterator[NewShard]:
    """Yield the shards of a new array of any layout, with elements that zarr reads.

    Raises
    ------
    CorruptTensorError, InvalidInputError
        When a shard is made whose elements zarr cannot read.
    """
    for number in range(layout.shard_count):
        yield NewShard(number, partial(_decode_region, array, layout.region(number)))


def blocks_of(array: zarr.Array[Any]) -> Iterator[npt.NDArray[Any]]:
    """Yield all rows of an array, in blocks of whole rows of chunks: about 8 MiB, or more if a row of chunks is larger.

    Parameters
    ----------
    array
        Array with at least one dimension.

    Raises
    ------
    CorruptTensorError, InvalidInputError
        If zarr cannot read the rows.
    """
    chunks = chunks_of(array) or (1,)
    row_bytes = math.prod(array.shape[1:]) * array.dtype.itemsize
    rows = chunks[0] * max(SHARD_BYTES // max(chunks[0] * row_bytes, 1), 1)
    for first in range(0, array.shape[0], rows):
        yield _decode_region(array, (slice(first, min(first + rows, array.shape[0])),))


def chunks_of(array: zarr.Array[Any]) -> tuple[int, ...] | None:
    """Return the shape of the part that zarr decodes at once; None if it differs within the array."""
    try:
        return tuple(array.shards or array.chunks)
    except (AttributeError, NotImplementedError):
        # Only a regular grid has one shape of chunks.
        return None


def _take_over(array: zarr.Array[Any], codec: ShardCodec, number: int) -> EncodedShard:
    place = array.store_path / array.metadata.encode_chunk_key(codec.layout.coords_of(number))
    try:
        found = sync(place.get(buffer_prototype))
    except TensorageError:
        raise
    except Exception as error:
        raise InvalidInputError(
            f"the object {str(place)!r} cannot be read ({type(error).__name__}: {error}). Nothing was stored"
        ) from error
    # In Zarr, a missing object means that all elements are the fill value.
    if found is None:
        return EncodedShard([], 0, b"")
    blob = bytes_of(np.ascontiguousarray(found.as_numpy_array()).reshape(-1))
    try:
        if not codec.layout.is_sharded:
            check_encoded_chunk(blob, codec.layout)
        return EncodedShard([blob], len(blob), codec.index_of(blob))
    except CorruptChunkError as error:
        raise CorruptTensorError(
            f"the object {str(place)!r} is damaged: {error}. Nothing was stored"
        ) from error


def _decode_region(array: zarr.Array[Any], region: tuple[slice, ...]) -> npt.NDArray[Any]:
    try:
        # Zarr may return a number for an array without dimensions.
        return np.asarray(array[cast("Any", region) or ...])
    except TensorageError:
        raise
    except Exception as error:
        where = ", ".join(f"{axis.start}:{axis.stop}" for axis in region)
        # An OSError is about the store of the source. All other errors are about its bytes.
        kind = InvalidInputError if isinstance(error, OSError) else CorruptTensorError
        raise kind(
            f"elements [{where}] of {str(array.store_path)!r} cannot be read ({type(error).__name__}: {error}). "
            "Nothing was stored"
        ) from error


def _fill_value_of(array: zarr.Array[Any], default: Any) -> Any:
    """Return the fill value of an array as the JSON of Zarr v3, or the default if an array of Zarr v2 has none."""
    value = array.metadata.fill_value
    if value is None or (array.dtype.kind in "mM" and np.isnat(value)):
        return default
    return array.metadata.dtype.to_json_scalar(value, zarr_format=3)


def _is_names(names: Any, ndim: int) -> bool:
    return isinstance(names, list | tuple) and len(names) == ndim and all(isinstance(n, str) for n in names)
