"""Dtypes of every kind, and arrays of them, for tests."""

from __future__ import annotations

import math
from typing import Any

import hypothesis.strategies as st
import ml_dtypes
import numpy as np
import numpy.typing as npt

__all__ = ["LEAVES", "RECORDS", "SMALL_FLOATS", "any_dtype", "array_of", "packed"]

SMALL_FLOATS = [
    np.dtype(ml_dtypes.bfloat16),
    np.dtype(ml_dtypes.float8_e4m3fn),
    np.dtype(ml_dtypes.float8_e5m2),
]

#: Dtypes without fields, in both byte orders.
LEAVES: list[np.dtype[Any]] = [
    *map(
        np.dtype, ["?", "i1", "<i4", ">i8", "u2", "<f2", ">f4", "<f8", ">c8", "<M8[ns]", ">M8[D]", "m8[25us]"]
    ),
    *map(np.dtype, ["<U1", "<U5", ">U7", "S1", "S3", "V1", "V5", "V8"]),
    *SMALL_FLOATS,
]

#: Dtypes of records: nested, with arrays within, with padding, and aligned.
RECORDS: list[np.dtype[Any]] = [
    np.dtype([("x", "<f4")]),
    np.dtype([("id", ">i8"), ("name", ">U4"), ("tag", "S3"), ("seen", "<M8[s]")]),
    np.dtype([("xyz", "<f4", (3,)), ("box", [("low", "<i2", (2, 2)), ("name", "<U2")], (2,)), ("raw", "V3")]),
    np.dtype([("flag", "i1"), ("value", "f8"), ("last", "i2")], align=True),
    np.dtype({"names": ["a", "b"], "formats": ["<i2", "<f4"], "offsets": [3, 9], "itemsize": 17}),
    np.dtype([("größe", "<f8"), ('a "quoted" [name]', "i1"), ("\N{GRINNING FACE}", ml_dtypes.bfloat16)]),
]


def any_dtype(depth: int = 2) -> st.SearchStrategy[np.dtype[Any]]:
    """Return dtypes that can be stored: of numbers, of text, and of records within each other."""
    leaves = st.sampled_from(LEAVES)
    if not depth:
        return leaves
    names = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=4)
    shapes = st.lists(st.integers(1, 3), max_size=2).map(tuple)
    field = st.tuples(any_dtype(depth - 1), shapes)
    records = st.tuples(st.dictionaries(names, field, min_size=1, max_size=4), st.booleans())
    return leaves | records.map(_record)


def _record(drawn: tuple[dict[str, tuple[np.dtype[Any], tuple[int, ...]]], bool]) -> np.dtype[Any]:
    fields, align = drawn
    return np.dtype([(name, *described) for name, described in fields.items()], align=align)


def packed(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Return the dtype that comes back: little-endian, and without padding. Made another way than by the client."""
    if dtype.subdtype is not None:
        return np.dtype((packed(dtype.base), dtype.shape))
    if dtype.names is None:
        return dtype.newbyteorder("<")
    return np.dtype([(name, packed(dtype[name])) for name in dtype.names])


def array_of(dtype: np.dtype[Any], shape: tuple[int, ...], seed: int = 0) -> npt.NDArray[Any]:
    """Return an array of values of all sorts. Bytes between fields are none that should be stored."""
    random = np.random.default_rng(seed)
    if dtype.names is not None:
        made = np.frombuffer(b"\xaa" * (math.prod(shape) * dtype.itemsize), dtype).reshape(shape).copy()
        for number, name in enumerate(dtype.names):
            field = dtype[name]
            made[name] = array_of(field.base, (*shape, *field.shape), seed + number + 1)
        return made
    size = math.prod(shape)
    if dtype.kind == "U":
        letters = np.array(list("ab \0é\N{GRINNING FACE}"))
        texts = [
            "".join(random.choice(letters, random.integers(0, dtype.itemsize // 4 + 1))) for _ in range(size)
        ]
        return np.array(texts, dtype).reshape(shape)
    if dtype.kind in "SV" and dtype not in SMALL_FLOATS:
        return np.frombuffer(random.bytes(size * dtype.itemsize), dtype).reshape(shape).copy()
    if dtype in SMALL_FLOATS:
        return random.integers(-100, 100, shape).astype("f4").astype(dtype)
    if dtype.kind == "b":
        return random.integers(0, 2, shape).astype(dtype)
    return random.integers(0, 100, shape).astype(dtype)
