"""Labels of a coordinate as JSON: shape, dtype and compressed bytes. No I/O.

``data`` is the labels' bytes, compressed, in base64. Numbers are taken for little-endian integers of the same bits.
From each the one before is subtracted, ``deltas`` times over. Then come the first bytes of all, the second bytes of
all, and so on. Most labels have regular steps, which become zeros in this way. Text is a list in JSON. Both numbers
and text come back bit by bit.
"""

from __future__ import annotations

import base64
import json
import math
import re
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from tensorage.dtypes import is_number, storable_dtype
from tensorage.errors import DTypeError, InvalidInputError
from tensorage.wording import quote

__all__ = ["MAX_LABELS_BYTES", "TEXT_KINDS", "decode_labels", "encode_labels"]

#: Most bytes of the labels of one coordinate. Larger ones are refused before they are compressed, since they would not
#: fit. Readers are bound by it too: the array of another user cannot make them take more memory.
MAX_LABELS_BYTES = 256 * 1024 * 1024

#: Kinds of ``numpy.dtype.kind`` for text: of one length, Python's own objects, numpy's text of any length.
TEXT_KINDS = "UOT"

#: Numbers of subtractions to try. The one that makes the fewest bytes is taken.
_DELTAS = (0, 1, 2)

#: Level of zlib. Once neighbours are subtracted, higher levels take several times as long and save little.
_LEVEL = 6

#: Stands for the dtype of text of any length, which has no string of its own.
_VARIABLE_TEXT = "StringDType"

#: Dtypes that numpy is asked for. Others could be records, or expressions that numpy evaluates.
_DTYPE = re.compile(r"[<|][a-zA-Z][0-9]*(\[[0-9a-zA-Z]+\])?")


def encode_labels(values: npt.NDArray[Any]) -> dict[str, Any]:
    """Encode numbers, truth values, times or text as the JSON members ``shape``, ``dtype``, ``deltas`` and ``data``.

    Raises
    ------
    InvalidInputError
        If there is more text than `decode_labels` accepts.
    """
    if values.dtype.kind in TEXT_KINDS:
        text = json.dumps(values.ravel().tolist()).encode()
        if len(text) > MAX_LABELS_BYTES:
            raise InvalidInputError(
                f"{len(text)} bytes of labels as JSON, and no more than {MAX_LABELS_BYTES} can be stored"
            )
        deltas, packed = 0, zlib.compress(text, _LEVEL)
        dtype = _VARIABLE_TEXT if values.dtype.kind == "T" else values.dtype.newbyteorder("<").str
    else:
        little = np.ascontiguousarray(values, values.dtype.newbyteorder("<")).reshape(-1)
        dtype = little.dtype.str
        tries = [
            (n, zlib.compress(_shuffle(_subtract(little, n)), _LEVEL)) for n in _deltas_to_try(little.dtype)
        ]
        deltas, packed = min(tries, key=lambda tried: len(tried[1]))
    data = base64.b64encode(packed).decode()
    return {"shape": list(values.shape), "dtype": dtype, "deltas": deltas, "data": data}


def decode_labels(encoded: Mapping[str, Any]) -> npt.NDArray[Any]:
    """Decode labels that `encode_labels` encoded.

    Raises
    ------
    ValueError
        If `encoded` holds no such labels.
    """
    try:
        shape = tuple(int(extent) for extent in encoded["shape"])
        packed = base64.b64decode(encoded["data"], validate=True)
        dtype = encoded["dtype"]
        if dtype == _VARIABLE_TEXT:
            # Numpy 2.0 has the type, but not in its type hints.
            return _text(packed, np.dtypes.StringDType(), shape)  # type: ignore[attr-defined, unused-ignore]
        if not _DTYPE.fullmatch(dtype):
            raise ValueError(f"the dtype {quote(dtype)}")
        if np.dtype(dtype).kind in TEXT_KINDS:
            return _text(packed, np.dtype(dtype), shape)
        stored = storable_dtype(dtype)
        if not is_number(stored):
            raise ValueError(f"the dtype {quote(dtype)}, of no numbers and no text")
        return _numbers(packed, stored, shape, int(encoded["deltas"]))
    except (TypeError, AttributeError, OverflowError, RecursionError, DTypeError, zlib.error) as error:
        raise ValueError(str(error)) from error


def _text(packed: bytes, dtype: Any, shape: tuple[int, ...]) -> npt.NDArray[Any]:
    labels = json.loads(_unpack(packed, MAX_LABELS_BYTES))
    if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
        raise ValueError("no list of texts")
    # Numpy 2.0 turns an item size that is too large into a negative one.
    if len(labels) != math.prod(shape) or not 0 <= len(labels) * dtype.itemsize <= MAX_LABELS_BYTES:
        raise ValueError(f"{len(labels)} texts of {dtype.itemsize} bytes, for the shape {shape}")
    values = np.empty(len(labels), dtype)
    values[:] = labels
    if values.tolist() != labels:
        raise ValueError(f"texts that {dtype} cuts off")
    return values.reshape(shape)


def _numbers(packed: bytes, dtype: np.dtype[Any], shape: tuple[int, ...], deltas: int) -> npt.NDArray[Any]:
    nbytes = math.prod(shape) * dtype.itemsize
    if not 0 <= nbytes <= MAX_LABELS_BYTES or deltas not in _deltas_to_try(dtype):
        raise ValueError(f"{nbytes} bytes, {deltas} deltas")
    data = _unpack(packed, nbytes)
    if len(data) != nbytes:
        raise ValueError("fewer bytes than there should be")
    planes = np.frombuffer(data, np.uint8).reshape(dtype.itemsize, -1)
    # Copy single bytes too: their transpose would be a view of read-only memory.
    plain = np.array(planes.T, order="C").reshape(-1)
    if deltas:
        integers = plain.view(_bits(dtype))
        for _ in range(deltas):
            np.add.accumulate(integers, dtype=integers.dtype, out=integers)
    return plain.view(dtype).reshape(shape)


def _unpack(packed: bytes, most: int) -> bytes:
    reader = zlib.decompressobj()
    # One byte more than allowed shows that there are more, without making them all.
    data = reader.decompress(packed, most + 1)
    if len(data) > most or not reader.eof:
        raise ValueError("more or fewer bytes than there should be")
    return data


def _deltas_to_try(dtype: np.dtype[Any]) -> tuple[int, ...]:
    return _DELTAS if dtype.kind != "b" and dtype.itemsize <= 8 else (0,)


def _bits(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Return the dtype of unsigned integers with as many bits."""
    return np.dtype(f"<u{dtype.itemsize}")


def _subtract(flat: npt.NDArray[Any], deltas: int) -> npt.NDArray[Any]:
    if not deltas:
        return flat
    integers = flat.view(_bits(flat.dtype))
    for _ in range(deltas):
        integers = np.diff(integers, prepend=integers.dtype.type(0))
    return integers


def _shuffle(flat: npt.NDArray[Any]) -> bytes:
    return np.ascontiguousarray(flat.view(np.uint8).reshape(flat.size, flat.itemsize).T).tobytes()
