"""Values and selections of writes as JSON, beside arrays that are kept as they are. No I/O.

JSON has what is small: numbers, text, lists. An array is a reference, ``{"array": 3}``, into a list of arrays. Tuples,
slices and the rest of what a selection may hold are objects of one member, whose name says what they are.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from tensorage.errors import InvalidInputError
from tensorage.model.ragged import as_objects, as_texts, is_of_text
from tensorage.model.values import as_array, is_array

__all__ = ["Loose", "decode", "encode"]

Array = npt.NDArray[Any]


class Loose:
    """An array whose dtype nobody chose, such as one of a Python number: it takes that of the array it goes into."""

    def __init__(self, array: Array) -> None:
        self.array = array

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> Array:
        return np.asarray(self.array, dtype=dtype)


def encode(value: Any, arrays: list[Array]) -> Any:
    """Return a value as JSON. Arrays in it are added to `arrays`.

    >>> encode((slice(3), ..., [1, 2]), [])
    {'tuple': [{'slice': [None, 3, None]}, {'ellipsis': None}, [1, 2]]}

    Raises
    ------
    InvalidInputError
        If it holds something else than numbers, text, bytes, arrays, and lists and tuples of them.
    """
    # A number of NumPy may be a number of Python, too, but has a dtype.
    if value is None or (isinstance(value, _PLAIN) and not isinstance(value, np.generic)):
        return value
    if isinstance(value, list):
        return [encode(item, arrays) for item in value]
    for kind, encoded in _ENCODERS:
        if isinstance(value, kind):
            return encoded(value, arrays)
    if is_array(value):
        return _encode_array(as_array(value), arrays)
    raise InvalidInputError(
        f"a {type(value).__name__} cannot wait in a spool: give numbers, arrays, text, or lists and tuples of them"
    )


def decode(said: Any, arrays: Sequence[Array]) -> Any:
    """Return the value that `encode` has made JSON of.

    >>> decode({"tuple": [{"slice": [None, 3, None]}, {"ellipsis": None}]}, [])
    (slice(None, 3, None), Ellipsis)
    """
    if isinstance(said, list):
        return [decode(item, arrays) for item in said]
    if not isinstance(said, dict):
        return said
    [(kind, content)] = said.items()
    return _KINDS[kind](content, arrays)


def _refer(array: Array, arrays: list[Array]) -> int:
    arrays.append(array)
    return len(arrays) - 1


def _encode_array(array: Array, arrays: list[Array]) -> dict[str, Any]:
    if not is_of_text(array):
        return {"array": _refer(array, arrays)}
    # Text of any length: one array of all bytes, and one of the length of each text.
    encoded = [text.encode() for text in as_texts("the array", array).flat]
    lengths = np.array([len(text) for text in encoded], np.int64)
    joined = np.frombuffer(b"".join(encoded), np.uint8)
    return {"text": [list(array.shape), _refer(lengths, arrays), _refer(joined, arrays)]}


def _decode_text(content: Any, arrays: Sequence[Array]) -> Array:
    shape, lengths, joined = content
    ends = np.cumsum(arrays[lengths], dtype=np.int64).tolist()
    whole = arrays[joined].tobytes()
    texts = [whole[first:end].decode() for first, end in zip([0, *ends], ends, strict=False)]
    return as_objects(texts, tuple(shape))


#: Types that JSON has, and those that become objects of one member.
_PLAIN = (bool, int, float, str)
_ENCODERS: tuple[tuple[type, Callable[[Any, list[Array]], Any]], ...] = (
    (np.generic, lambda value, arrays: {"scalar": _refer(np.asarray(value), arrays)}),
    (Loose, lambda value, arrays: {"loose": _refer(value.array, arrays)}),
    (tuple, lambda value, arrays: {"tuple": [encode(item, arrays) for item in value]}),
    (slice, lambda value, arrays: {"slice": encode([value.start, value.stop, value.step], arrays)}),
    (type(...), lambda _value, _arrays: {"ellipsis": None}),
    (complex, lambda value, _arrays: {"complex": [value.real, value.imag]}),
    (bytes, lambda value, _arrays: {"bytes": base64.b64encode(value).decode()}),
)

_KINDS: dict[str, Callable[[Any, Sequence[Array]], Any]] = {
    "tuple": lambda content, arrays: tuple(decode(item, arrays) for item in content),
    "slice": lambda content, arrays: slice(*(decode(item, arrays) for item in content)),
    "ellipsis": lambda _content, _arrays: ...,
    "complex": lambda content, _arrays: complex(*content),
    "bytes": lambda content, _arrays: base64.b64decode(content),
    "scalar": lambda content, arrays: arrays[content][()],
    "loose": lambda content, arrays: Loose(arrays[content]),
    "array": lambda content, arrays: arrays[content],
    "text": _decode_text,
}
