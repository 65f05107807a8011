"""Metadata of a Zarr v3 array, as JSON. No I/O, and no zarr."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from tensorage.dtypes import is_small_float
from tensorage.errors import DTypeError

__all__ = [
    "INDEX_CODECS",
    "SHARDING",
    "Codec",
    "array_metadata",
    "chunk_key",
    "configuration_of",
    "cut_of",
    "data_type_of",
    "default_codecs",
    "default_fill_value",
    "fill_value_as_json",
    "has_any_length",
    "name_of",
    "regular_grid",
    "zarr_dtype",
]

#: A codec as JSON: ``{"name": ..., "configuration": {...}}``, or its name alone.
Codec = Mapping[str, Any] | str

#: Name of the codec whose objects hold many chunks and an index of them.
SHARDING = "sharding_indexed"

#: Codecs of the index of a shard.
INDEX_CODECS: tuple[Codec, ...] = (
    {"name": "bytes", "configuration": {"endian": "little"}},
    {"name": "crc32c"},
)

#: Blosc shuffles: it puts the first bytes of all elements together, and so on. Numbers of several bytes then become
#: smaller than by zstd, in a fifth of its time (docs/decisions/0010).
BLOSC = {"cname": "lz4", "clevel": 5, "blocksize": 0}

#: Most bytes of an element that Blosc takes apart.
MAX_TYPESIZE = 255

#: Single bytes become smaller by zstd. Levels above this one are slower, and little better.
ZSTD = {"level": 1, "checksum": True}

#: Zarr's name of each of numpy's kinds, and the sizes in bytes that Zarr has of it.
_NUMBERS: Mapping[str, tuple[str, frozenset[int]]] = {
    "i": ("int", frozenset({1, 2, 4, 8})),
    "u": ("uint", frozenset({1, 2, 4, 8})),
    "f": ("float", frozenset({2, 4, 8})),
    "c": ("complex", frozenset({8, 16})),
}
#: zarr's names of numpy's kinds of text, bytes and raw bytes of one length, whose length is in the configuration.
_FIXED_LENGTHS: Mapping[str, str] = {
    "U": "fixed_length_utf32",
    "S": "null_terminated_bytes",
    "V": "raw_bytes",
}
#: zarr's name of records. Newer versions of zarr write "struct" for them, and read this name as well.
STRUCTURED = "structured"

#: zarr's names of elements of any length: of text, and of bytes, whose dtype of numpy has no length.
_ANY_LENGTH: Mapping[str, str] = {"T": "string", "S": "variable_length_bytes"}

#: Zarr's names of numpy's kinds of times, whose unit is in the configuration.
_TIMES: Mapping[str, str] = {"M": "numpy.datetime64", "m": "numpy.timedelta64"}


def data_type_of(dtype: np.dtype[Any]) -> str | dict[str, Any]:
    """Return Zarr's name of a dtype that can be stored.

    >>> data_type_of(np.dtype("<f4"))
    'float32'
    >>> data_type_of(np.dtype("<M8[25us]"))
    {'name': 'numpy.datetime64', 'configuration': {'unit': 'us', 'scale_factor': 25}}
    >>> data_type_of(np.dtype([("t", "<f8"), ("xyz", "<f4", (3,))]))["configuration"]["fields"][1]
    ['xyz', {'name': 'raw_bytes', 'configuration': {'length_bytes': 12}}]

    Raises
    ------
    DTypeError
        If Zarr has no name for the dtype, such as a wide float of some processors.
    """
    if dtype.names is not None:
        fields = [[name, _data_type_of_field(dtype[name])] for name in dtype.names]
        return {"name": STRUCTURED, "configuration": {"fields": fields}}
    if is_small_float(dtype) or has_any_length(dtype):
        return _ANY_LENGTH.get(dtype.kind, dtype.name)
    if dtype.kind in _FIXED_LENGTHS:
        return {"name": _FIXED_LENGTHS[dtype.kind], "configuration": {"length_bytes": dtype.itemsize}}
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


def has_any_length(dtype: np.dtype[Any]) -> bool:
    """Tell whether elements have any length, as text and bytes without a length have."""
    return dtype.kind == "T" or (dtype.kind == "S" and not dtype.itemsize)


def _data_type_of_field(dtype: np.dtype[Any]) -> str | dict[str, Any]:
    if dtype.subdtype is None:
        return data_type_of(dtype)
    # Zarr has no arrays within records, and zarr calls these raw bytes, too.
    data_type_of(dtype.base)
    return {"name": _FIXED_LENGTHS["V"], "configuration": {"length_bytes": dtype.itemsize}}


def zarr_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Return the dtype of numpy as which zarr reads a dtype: arrays within records are raw bytes for it."""
    if dtype.names is not None:
        return np.dtype([(name, zarr_dtype(dtype[name])) for name in dtype.names])
    return dtype if dtype.subdtype is None else np.dtype(f"V{dtype.itemsize}")


def default_fill_value(dtype: np.dtype[Any]) -> Any:
    """Return the value of elements that were never written, as JSON: zero, False, no text or not-a-time."""
    if dtype.kind in "UT":
        return ""
    if dtype.kind in "SV" and not is_small_float(dtype):
        return base64.b64encode(bytes(dtype.itemsize)).decode()
    if is_small_float(dtype):
        return 0.0
    if dtype.kind in _TIMES:
        # Zarr also allows the number behind not-a-time, but its readers refuse that for times without a unit.
        return "NaT"
    zero = dtype.type(0).item()
    return [zero.real, zero.imag] if isinstance(zero, complex) else zero


def fill_value_as_json(element: npt.NDArray[Any]) -> Any:
    """Return a value of elements that were never written, as JSON.

    >>> fill_value_as_json(np.array(float("nan"))), fill_value_as_json(np.array(1 - 2j))
    ('NaN', [1.0, -2.0])

    Parameters
    ----------
    element
        Array without dimensions, little-endian.
    """
    dtype = element.dtype
    if dtype.kind == "U":
        return str(element)
    if dtype.kind in "SV" and not is_small_float(dtype):
        return base64.b64encode(element.tobytes()).decode()
    if dtype.kind in _TIMES:
        return "NaT" if np.isnat(element) else int(element.view("<i8"))
    if dtype.kind == "c":
        return [_number_as_json(float(element.real)), _number_as_json(float(element.imag))]
    return _number_as_json(float(element) if is_small_float(dtype) else element.item())


def _number_as_json(number: float) -> float | str:
    if math.isfinite(number):
        return number
    return "NaN" if math.isnan(number) else f"{'-' * (number < 0)}Infinity"


def default_codecs(dtype: np.dtype[Any]) -> tuple[Codec, ...]:
    """Return the codecs of a chunk by default: elements little-endian, compressed, with a checksum."""
    if has_any_length(dtype):
        name = "vlen-utf8" if dtype.kind == "T" else "vlen-bytes"
        return ({"name": name}, {"name": "zstd", "configuration": ZSTD})
    if dtype.itemsize == 1 or (dtype.kind in "SV" and dtype.names is None and not is_small_float(dtype)):
        return ({"name": "bytes"}, {"name": "zstd", "configuration": ZSTD})
    if dtype.names is not None:
        return _codecs_of_records(dtype.itemsize)
    # The upper bits of integers are mostly the same. The lower bits of floats are noise: taking them apart only costs.
    shuffle = "shuffle" if dtype.kind in "fc" or is_small_float(dtype) else "bitshuffle"
    number_bytes = {"c": dtype.itemsize // 2, "U": 4}.get(dtype.kind, dtype.itemsize)
    return (
        {"name": "bytes", "configuration": {"endian": "little"}},
        {"name": "blosc", "configuration": {"typesize": number_bytes, "shuffle": shuffle, **BLOSC}},
        {"name": "crc32c"},
    )


def _codecs_of_records(itemsize: int) -> tuple[Codec, ...]:
    # zarr leaves the byte order of records to the machine, and refuses none that is said.
    little = {"name": "bytes", "configuration": {"endian": "little"}}
    if itemsize > MAX_TYPESIZE:
        return (little, {"name": "zstd", "configuration": ZSTD})
    # Records put alike bytes of a field together as numbers do.
    blosc = {"typesize": itemsize, "shuffle": "shuffle", **BLOSC}
    return (little, {"name": "blosc", "configuration": blosc}, {"name": "crc32c"})


def name_of(codec: Codec) -> str:
    """Return the name of a codec."""
    return codec if isinstance(codec, str) else str(codec["name"])


def configuration_of(codec: Codec) -> Mapping[str, Any]:
    """Return the configuration of a codec, empty if it has none."""
    return {} if isinstance(codec, str) else codec.get("configuration") or {}


def cut_of(metadata: Mapping[str, Any]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the shapes of a chunk and of a shard of an array, which are the same if it has no shards.

    >>> sharding = {"name": SHARDING, "configuration": {"chunk_shape": [3, 4]}}
    >>> cut_of({"chunk_grid": regular_grid((6, 4)), "codecs": [sharding]})
    ((3, 4), (6, 4))
    """
    shards = tuple(metadata["chunk_grid"]["configuration"]["chunk_shape"])
    first = metadata["codecs"][0]
    if name_of(first) != SHARDING:
        return shards, shards
    return tuple(configuration_of(first)["chunk_shape"]), shards


def chunk_key(coords: Sequence[int]) -> str:
    """Return the name of an object within its array, by Zarr's default chunk key encoding.

    >>> chunk_key((1, 0, 5))
    'c/1/0/5'
    >>> chunk_key(())
    'c'
    """
    return "/".join(["c", *(str(coord) for coord in coords)])


def regular_grid(chunk_shape: Sequence[int]) -> dict[str, Any]:
    """Describe the grid of objects of one shape."""
    return {"name": "regular", "configuration": {"chunk_shape": list(chunk_shape)}}


def array_metadata(
    dtype: np.dtype[Any], chunk_shape: Sequence[int], codecs: Sequence[Codec], fill_value: Any
) -> dict[str, Any]:
    """Return the metadata of an array, without its shape, attributes and names of dimensions.

    Parameters
    ----------
    chunk_shape
        Shape of an object, in elements.
    codecs
        Codecs of an object.
    fill_value
        Fill value, as JSON.
    """
    return {
        "zarr_format": 3,
        "node_type": "array",
        "data_type": data_type_of(dtype),
        "chunk_grid": regular_grid(chunk_shape),
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": fill_value,
        "codecs": list(codecs),
        "storage_transformers": [],
    }
