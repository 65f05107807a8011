"""What the metadata of a Zarr v3 array say, as JSON. No I/O, and no zarr."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tensorage.errors import DTypeError

__all__ = [
    "INDEX_CODECS",
    "SHARDING",
    "Codec",
    "array_metadata",
    "chunk_key",
    "configuration_of",
    "data_type_of",
    "default_codecs",
    "default_fill_value",
    "name_of",
    "regular_grid",
]

#: A codec as the metadata name it: ``{"name": ..., "configuration": {...}}``, or by its name alone.
Codec = Mapping[str, Any] | str

#: The codec whose objects hold many chunks and an index of them.
SHARDING = "sharding_indexed"

#: Codecs of the index of a shard.
INDEX_CODECS: tuple[Codec, ...] = (
    {"name": "bytes", "configuration": {"endian": "little"}},
    {"name": "crc32c"},
)

#: With what stands in one place of all elements next to each other, numbers of several bytes become smaller than by
#: zstd, in a fifth of its time (docs/decisions/0010).
BLOSC = {"cname": "lz4", "clevel": 5, "blocksize": 0}

#: Of single bytes, it is the other way round. Levels above this one are slower, and little better.
ZSTD = {"level": 1, "checksum": True}

#: Zarr's names of numpy's kinds, and the sizes in bytes that Zarr knows of each.
_NUMBERS: Mapping[str, tuple[str, frozenset[int]]] = {
    "i": ("int", frozenset({1, 2, 4, 8})),
    "u": ("uint", frozenset({1, 2, 4, 8})),
    "f": ("float", frozenset({2, 4, 8})),
    "c": ("complex", frozenset({8, 16})),
}
_TIMES: Mapping[str, str] = {"M": "numpy.datetime64", "m": "numpy.timedelta64"}


def data_type_of(dtype: np.dtype[Any]) -> str | dict[str, Any]:
    """Zarr's name of a dtype that can be stored.

    >>> data_type_of(np.dtype("<f4"))
    'float32'
    >>> data_type_of(np.dtype("<M8[25us]"))
    {'name': 'numpy.datetime64', 'configuration': {'unit': 'us', 'scale_factor': 25}}

    Raises
    ------
    DTypeError
        If Zarr has none, as for the wide floats of some processors.
    """
    if dtype.kind == "b":
        return "bool"
    if dtype.kind in _TIMES:
        unit, count = np.datetime_data(dtype)
        return {"name": _TIMES[dtype.kind], "configuration": {"unit": unit, "scale_factor": count}}
    name, sizes = _NUMBERS.get(dtype.kind, ("", frozenset()))
    if dtype.itemsize not in sizes:
        raise DTypeError(
            f"engine='storage' keeps arrays in the Zarr format, which has no {dtype}: convert the array, for "
            "example with .astype('float64'), or store it with engine='database', which can keep it"
        )
    return f"{name}{8 * dtype.itemsize}"


def default_fill_value(dtype: np.dtype[Any]) -> Any:
    """What elements are that were never written: zero, False or not-a-time, as JSON."""
    if dtype.kind in _TIMES:
        # Zarr also has the number behind it, which its readers don't take for times without a unit.
        return "NaT"
    zero = dtype.type(0).item()
    return [zero.real, zero.imag] if isinstance(zero, complex) else zero


def default_codecs(dtype: np.dtype[Any]) -> tuple[Codec, ...]:
    """Codecs of a chunk: its elements little-endian, compressed, with a checksum."""
    if dtype.itemsize == 1:
        return ({"name": "bytes"}, {"name": "zstd", "configuration": ZSTD})
    # The upper bits of integers are mostly the same. The lower ones of floats are noise: to take them apart only costs.
    shuffle = "shuffle" if dtype.kind in "fc" else "bitshuffle"
    number_bytes = dtype.itemsize // 2 if dtype.kind == "c" else dtype.itemsize
    return (
        {"name": "bytes", "configuration": {"endian": "little"}},
        {"name": "blosc", "configuration": {"typesize": number_bytes, "shuffle": shuffle, **BLOSC}},
        {"name": "crc32c"},
    )


def name_of(codec: Codec) -> str:
    """Name of a codec."""
    return codec if isinstance(codec, str) else str(codec["name"])


def configuration_of(codec: Codec) -> Mapping[str, Any]:
    """What a codec is told, nothing if it is told nothing."""
    return {} if isinstance(codec, str) else codec.get("configuration") or {}


def chunk_key(coords: Sequence[int]) -> str:
    """Name of an object within its array, by Zarr's default chunk key encoding.

    >>> chunk_key((1, 0, 5))
    'c/1/0/5'
    >>> chunk_key(())
    'c'
    """
    return "/".join(["c", *(str(coord) for coord in coords)])


def regular_grid(extents: Sequence[int]) -> dict[str, Any]:
    """The grid of objects of these extents."""
    return {"name": "regular", "configuration": {"chunk_shape": list(extents)}}


def array_metadata(
    dtype: np.dtype[Any], extents: Sequence[int], codecs: Sequence[Codec], fill_value: Any
) -> dict[str, Any]:
    """All that the metadata say of an array but its shape, attributes and names of dimensions.

    Parameters
    ----------
    extents
        Of an object, in elements.
    codecs
        Of an object.
    fill_value
        As JSON.
    """
    return {
        "zarr_format": 3,
        "node_type": "array",
        "data_type": data_type_of(dtype),
        "chunk_grid": regular_grid(extents),
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": fill_value,
        "codecs": list(codecs),
        "storage_transformers": [],
    }
