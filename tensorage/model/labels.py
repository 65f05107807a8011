"""The labels of a coordinate as JSON can hold them: shape, dtype and compressed bytes. No I/O.

``data`` is the labels' bytes, compressed, in base64. Numbers are taken for integers of the same bits, little-endian,
of which those before are subtracted, ``deltas`` times over; then come the first bytes of all, the second bytes, and so
on. Regular steps, as most labels have, so become zeros. Text is a list in JSON. Either comes back bit by bit.
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

from tensorage.errors import DTypeError, InvalidInputError
from tensorage.types import storable_dtype

__all__ = ["MAX_LABELS_BYTES", "TEXT_KINDS", "decode_labels", "encode_labels"]

#: Labels of one coordinate. More than that is not compressed first, to see that it does not fit; nor does somebody
#: else's array, which holds whatever its owner likes, make a reader take more memory.
MAX_LABELS_BYTES = 256 * 1024 * 1024

#: Of ``numpy.dtype.kind``: text of one length, Python's own objects, numpy's text of any length.
TEXT_KINDS = "UOT"

#: How often the label before is subtracted: whatever makes the least of it.
_DELTAS = (0, 1, 2)

#: Of zlib. Higher ones take several times as long, and make little of it, once neighbours are subtracted.
_LEVEL = 6

_VARIABLE_TEXT = "StringDType"

#: What numpy is asked for, so that it is not asked for records or for what it would have to evaluate.
_DTYPE = re.compile(r"[<|][a-zA-Z][0-9]*(\[[0-9a-zA-Z]+\])?")


def encode_labels(values: npt.NDArray[Any]) -> dict[str, Any]:
    """Numbers, truth values, times or text as JSON: the members ``shape``, ``dtype``, ``deltas`` and ``data``.

    Raises
    ------
    InvalidInputError
        If it is more text than would be decoded again.
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


def decode_labels(entry: Mapping[str, Any]) -> npt.NDArray[Any]:
    """The labels again.

    Raises
    ------
    ValueError
        If these are none.
    """
    try:
        shape = tuple(int(extent) for extent in entry["shape"])
        packed = base64.b64decode(entry["data"], validate=True)
        dtype = entry["dtype"]
        if dtype == _VARIABLE_TEXT:
            # Numpy 2.0 has the type, and its type hints do not.
            return _text(packed, np.dtypes.StringDType(), shape)  # type: ignore[attr-defined, unused-ignore]
        if not _DTYPE.fullmatch(dtype):
            raise ValueError(f"the dtype {dtype!r}")
        if np.dtype(dtype).kind in TEXT_KINDS:
            return _text(packed, np.dtype(dtype), shape)
        return _numbers(packed, storable_dtype(dtype), shape, int(entry["deltas"]))
    except (TypeError, AttributeError, OverflowError, RecursionError, DTypeError, zlib.error) as error:
        raise ValueError(str(error)) from error


def _text(packed: bytes, dtype: Any, shape: tuple[int, ...]) -> npt.NDArray[Any]:
    labels = json.loads(_unpack(packed, MAX_LABELS_BYTES))
    if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
        raise ValueError("no list of texts")
    # Of a length that is too large, numpy 2.0 makes a negative one.
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
    # A copy also of single bytes, whose transpose would be what cannot be written to.
    plain = np.array(planes.T, order="C").reshape(-1)
    if deltas:
        integers = plain.view(_bits(dtype))
        for _ in range(deltas):
            np.add.accumulate(integers, dtype=integers.dtype, out=integers)
    return plain.view(dtype).reshape(shape)


def _unpack(packed: bytes, most: int) -> bytes:
    reader = zlib.decompressobj()
    data = reader.decompress(packed, most + 1)
    if len(data) > most or not reader.eof:
        raise ValueError("more or fewer bytes than there should be")
    return data


def _deltas_to_try(dtype: np.dtype[Any]) -> tuple[int, ...]:
    return _DELTAS if dtype.kind != "b" and dtype.itemsize <= 8 else (0,)


def _bits(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Integers of the same bits."""
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
