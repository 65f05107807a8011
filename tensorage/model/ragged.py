"""Samples of any length: their type, their blocks, and the answers that hold them. No I/O.

A block holds whole samples: a table of their ends, and their bytes. ``supabase/migrations/..._ragged.sql`` describes
both, and the answers of the functions that read them.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tensorage.dtypes import storable_dtype
from tensorage.errors import CorruptTensorError, DTypeError, InvalidInputError
from tensorage.indexing.runs import MAX_REQUEST_BYTES
from tensorage.model.casting import cast_to
from tensorage.model.declaration import BLOCK_BYTES, ArrayOptions, Declaration, declare, declare_ragged
from tensorage.model.values import as_array, is_array
from tensorage.ragged import RAGGED_BYTES, RAGGED_TEXT, TEXT_ARRAY, Ragged
from tensorage.types import END_BYTES, Dataset
from tensorage.wording import quote

__all__ = [
    "MAX_ROW_BYTES",
    "MAX_SAMPLE_BYTES",
    "Block",
    "Encoder",
    "as_objects",
    "as_rows",
    "as_texts",
    "choose_type",
    "declare_array",
    "decode",
    "decode_lengths",
    "decode_one",
    "encode_blocks",
    "is_of_text",
    "type_of_dtype",
]

#: Most bytes of one sample. One that is larger than a request comes in parts, each of which rewrites those before it.
MAX_SAMPLE_BYTES = 256 * 1024 * 1024

#: Most bytes of a row of samples that are arrays.
MAX_ROW_BYTES = MAX_REQUEST_BYTES // 2

#: Number of elements and bytes of a block, before it in a request.
_HEAD = struct.Struct(">II")

#: Ends are written as PostgreSQL's int4send writes them.
_ENDS = np.dtype(">u4")


@dataclass(frozen=True, slots=True)
class Block:
    """Consecutive samples, encoded.

    Parameters
    ----------
    ends
        End of each sample in `elements`, in bytes.
    """

    ends: npt.NDArray[np.int64]
    elements: bytes | memoryview

    @property
    def count(self) -> int:
        return len(self.ends)

    @property
    def nbytes(self) -> int:
        """Bytes in a request."""
        return _HEAD.size + END_BYTES * len(self.ends) + len(self.elements)

    def parts(self) -> list[bytes | memoryview]:
        """Return the bytes of a request."""
        head = _HEAD.pack(self.count, len(self.elements))
        return [head, self.ends.astype(_ENDS).tobytes(), self.elements]

    def halve(self) -> tuple[Block, Block] | None:
        """Cut the block in two, or return None for a single sample."""
        half = self.count // 2
        if not half:
            return None
        cut = int(self.ends[half - 1])
        elements = memoryview(self.elements)
        return Block(self.ends[:half], elements[:cut]), Block(self.ends[half:] - cut, elements[cut:])


# Types ------------------------------------------------------------------------------------------------------


def type_of_dtype(dtype: Any) -> tuple[Ragged | None, np.dtype[Any] | None]:
    """Return the type of samples that a dtype asks for: of text or bytes, or the dtype of arrays.

    >>> type_of_dtype(str)[0].kind, type_of_dtype("float32")[1].name
    ('text', 'float32')
    """
    if dtype is None:
        return None, None
    asked = _as_dtype(dtype)
    if asked.kind == "T" or (asked.kind == "U" and not asked.itemsize):
        return RAGGED_TEXT, None
    if asked.kind == "S" and not asked.itemsize:
        return RAGGED_BYTES, None
    return None, storable_dtype(asked)


def _as_dtype(dtype: Any) -> np.dtype[Any]:
    try:
        known: np.dtype[Any] = np.dtype(dtype)
    except TypeError as error:
        raise DTypeError(
            f"{quote(dtype)} is no numpy dtype: give one such as 'float32', or str or bytes"
        ) from error
    return known


def choose_type(key: str, samples: Iterable[Any], dtype: Any) -> tuple[Ragged, Iterator[Any]]:
    """Return the type of samples, and all of them: the first that shows it is looked at.

    Parameters
    ----------
    dtype
        Dtype that the user asks for, or None for that of the samples.

    Raises
    ------
    InvalidInputError, DTypeError
        If nothing shows the type, or samples of it cannot be stored.
    """
    if isinstance(samples, str | bytes | bytearray | Mapping) or not isinstance(samples, Iterable):
        raise InvalidInputError(
            f"storing {key!r}: samples are a list or another iterable of texts, bytes or arrays, not a "
            f"{type(samples).__name__}"
        )
    known, wanted = type_of_dtype(dtype)
    rest = iter(samples)
    if known is not None:
        return known, rest
    seen: list[Any] = []
    for sample in rest:
        seen.append(sample)
        if isinstance(sample, str):
            found = RAGGED_TEXT
        elif isinstance(sample, bytes | bytearray | memoryview):
            found = RAGGED_BYTES
        else:
            array = _array_of(key, len(seen) - 1, sample)
            # The dtype and shape of an empty list are an accident.
            if not array.size and not is_array(sample):
                continue
            found = Ragged("arrays", wanted or storable_dtype(array.dtype), array.shape[1:])
        if wanted is not None and found.kind != "arrays":
            raise DTypeError(f"storing {key!r}: samples are {found.kind}, and dtype={dtype} is none of it")
        return _check_sample_bytes(key, found), itertools.chain(seen, rest)
    if wanted is None:
        raise InvalidInputError(
            f"storing {key!r}: no sample shows what samples are. Say it by dtype=, such as dtype='int32' or dtype=str"
        )
    return Ragged("arrays", wanted), iter(seen)


def _check_sample_bytes(key: str, found: Ragged) -> Ragged:
    if found.kind == "arrays" and not 1 <= found.unit <= MAX_ROW_BYTES:
        raise InvalidInputError(
            f"storing {key!r}: a sample of shape (1, {', '.join(map(str, found.shape))}) has {found.unit} bytes, and "
            f"1 to {MAX_ROW_BYTES} are possible"
        )
    return found


def _array_of(key: str, number: int, sample: Any) -> npt.NDArray[Any]:
    try:
        array = as_array(sample)
    except (InvalidInputError, DTypeError) as error:
        raise type(error)(f"sample {number} for {key!r}: {error}") from error
    if not array.ndim:
        raise InvalidInputError(
            f"sample {number} for {key!r} is a single {type(sample).__name__}, and samples have a first axis of any "
            "length. Store single values as an array: store[key] = np.array(values)"
        )
    if array.dtype == object and array.size:
        raise DTypeError(
            f"sample {number} for {key!r} is an array of objects, such as a {type(array.flat[0]).__name__}, and "
            "elements of samples are numbers or other values of one length: convert it, for example with "
            ".astype('float64'), or leave out what is None. Nothing is stored"
        )
    return array


# Text -------------------------------------------------------------------------------------------------------


def is_of_text(array: npt.NDArray[Any]) -> bool:
    """Tell whether an array may be one of text of any length."""
    return array.dtype.kind in "TO"


def as_texts(key: str, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return an array of objects, each a `str`.

    Parameters
    ----------
    array
        Array of text, or of objects.

    Raises
    ------
    DTypeError
        If an element is no text. The message says which.
    """
    texts = np.asarray(array, object)
    for number, text in enumerate(texts.flat):
        if not isinstance(text, str):
            place = tuple(map(int, np.unravel_index(number, texts.shape)))
            shown = place[0] if len(place) == 1 else place
            raise DTypeError(
                f"{key!r} cannot be stored: the element at {shown} is a {type(text).__name__}, and an array of objects "
                "is stored only if all of them are texts (str). If they are numbers, .astype('float64') converts them; "
                "samples of any length are stored by store.write_ragged(key, samples)"
            )
    return texts


def declare_array(key: str, array: npt.NDArray[Any], is_shared: bool, options: ArrayOptions) -> Declaration:
    """Declare an array of any kind: see `tensorage.model.declaration.declare`."""
    if is_of_text(array):
        return declare_ragged(key, as_texts(key, array).shape, TEXT_ARRAY, is_shared, options)
    return declare(key, array.shape, array.dtype, is_shared, options)


def as_rows(rows: Any, dataset: Dataset) -> npt.NDArray[Any]:
    """Return rows for an array of text, as objects, each a `str`.

    Raises
    ------
    InvalidInputError, DTypeError
        If the rows do not fit the array.
    """
    rows = list(rows) if isinstance(rows, Iterator) else rows
    array = as_array(rows)
    if array.dtype.kind == "U" and isinstance(rows, list | tuple):
        # Texts of one length lose the NUL characters at their end.
        array = np.asarray(rows, dtype=object)
    if array.dtype.kind not in "TOU" and array.size:
        raise DTypeError(
            f"rows of dtype {array.dtype} do not fit {dataset.key!r}, which is text: convert them, with str()"
        )
    if array.ndim != dataset.ndim or array.shape[1:] != dataset.shape[1:]:
        raise InvalidInputError(
            f"rows of shape {array.shape} do not fit {dataset.key!r} of shape {dataset.shape}: all but the first axis "
            "have to be the same"
        )
    return as_texts(dataset.key, array)


# Encoding ---------------------------------------------------------------------------------------------------


class Encoder:
    """Encodes samples of one type, and refuses all others.

    Parameters
    ----------
    key
        Key of the array, for messages.
    """

    def __init__(self, key: str, ragged: Ragged) -> None:
        self._key = key
        self._ragged = ragged
        # The rules by which rows fit an array hold for the elements of a sample.
        self._target = Dataset(0, key, (0, *ragged.shape), ragged.dtype, 1)

    def encode(self, number: int, sample: Any) -> bytes:
        """Return the bytes of a sample.

        Parameters
        ----------
        number
            Number of the sample, for messages.

        Raises
        ------
        InvalidInputError, DTypeError
            If the sample does not fit.
        """
        if self._ragged.kind == "text":
            encoded = self._encode_text(number, sample)
        elif self._ragged.kind == "bytes":
            encoded = self._encode_bytes(number, sample)
        else:
            encoded = self._encode_array(number, sample)
        if len(encoded) > MAX_SAMPLE_BYTES:
            raise InvalidInputError(
                f"sample {number} for {self._key!r} has {len(encoded)} bytes, and {MAX_SAMPLE_BYTES} is the most of "
                "one sample: cut it into several, or store it under a key of its own. Nothing is stored"
            )
        return encoded

    def _encode_text(self, number: int, sample: Any) -> bytes:
        if not isinstance(sample, str):
            raise DTypeError(f"sample {number} for {self._key!r} is a {type(sample).__name__}, and no str")
        try:
            return sample.encode()
        except UnicodeEncodeError as error:
            raise InvalidInputError(
                f"sample {number} for {self._key!r} holds a lone surrogate at character {error.start}, which no text "
                "has. sample.encode('utf-8', 'surrogateescape') are the bytes that it was made of, perhaps"
            ) from error

    def _encode_bytes(self, number: int, sample: Any) -> bytes:
        if isinstance(sample, bytes | bytearray | memoryview):
            return bytes(sample)
        raise DTypeError(f"sample {number} for {self._key!r} is a {type(sample).__name__}, and no bytes")

    def _encode_array(self, number: int, sample: Any) -> bytes:
        ragged = self._ragged
        if isinstance(sample, str | bytes | bytearray):
            raise DTypeError(
                f"sample {number} for {self._key!r} is a {type(sample).__name__}, and samples are {ragged}"
            )
        array = _array_of(self._key, number, sample)
        if not array.size and not is_array(sample):
            return b""
        if array.shape[1:] != ragged.shape:
            raise InvalidInputError(
                f"sample {number} for {self._key!r} has the shape {array.shape}, and samples are {ragged}: all but the "
                "first axis have to be the same. Nothing is stored"
            )
        if array.dtype != ragged.dtype:
            try:
                array = cast_to(array if is_array(sample) else sample, self._target)
            except DTypeError as error:
                raise DTypeError(f"sample {number}: {error}") from error
        # A copy, since the caller may use the memory of one sample for the next.
        return array.tobytes()


def encode_blocks(
    samples: Iterable[Any], encoder: Encoder, block_size: int, block_bytes: int = BLOCK_BYTES
) -> Iterator[Block]:
    """Encode samples into blocks of about `block_bytes`, and of at most `block_size` samples.

    >>> block = next(encode_blocks(["ab", "", "c"], Encoder("k", RAGGED_TEXT), 10))
    >>> block.ends, block.elements
    (array([2, 2, 3]), b'abc')
    """
    encoded: list[bytes] = []
    room = block_bytes
    for number, sample in enumerate(samples):
        one = encoder.encode(number, sample)
        if encoded and (len(encoded) == block_size or len(one) + END_BYTES > room):
            yield _block(encoded)
            encoded, room = [], block_bytes
        encoded.append(one)
        room -= len(one) + END_BYTES
    if encoded:
        yield _block(encoded)


def _block(encoded: Sequence[bytes]) -> Block:
    return Block(np.cumsum([len(one) for one in encoded], dtype=np.int64), b"".join(encoded))


def as_objects(elements: Iterable[Any], shape: tuple[int, ...]) -> npt.NDArray[Any]:
    """Return elements, in C order, as an array of objects. Elements that are arrays make no further axes."""
    objects = np.empty(shape, object)
    flat = objects.reshape(-1)
    for number, element in enumerate(elements):
        flat[number] = element
    return objects


# Decoding ---------------------------------------------------------------------------------------------------


def decode(answer: bytes, ragged: Ragged, count: int, asked: str) -> list[Any]:
    """Return the samples of an answer, each in memory of its own.

    Parameters
    ----------
    count
        Number of samples that were asked for.

    Raises
    ------
    CorruptTensorError
        If the answer contradicts itself, or text is none.
    """
    lengths, elements = _lengths(answer, count, asked)
    ends = np.cumsum(lengths)
    if (int(ends[-1]) if count else 0) != len(elements) or (lengths % ragged.unit).any():
        raise CorruptTensorError(
            f"{asked}: the answer has {len(elements)} bytes, and its samples take others"
        )
    places = zip(np.r_[0, ends[:-1]].tolist() if count else (), ends.tolist(), strict=True)
    return [_decode(elements[at:end], ragged, asked) for at, end in places]


def decode_one(sample: bytes | bytearray, ragged: Ragged, asked: str) -> Any:
    """Return a sample of its bytes."""
    if len(sample) % ragged.unit:
        raise CorruptTensorError(f"{asked}: {len(sample)} bytes are no {ragged}")
    return _decode(memoryview(sample), ragged, asked)


def _decode(sample: memoryview, ragged: Ragged, asked: str) -> Any:
    if ragged.kind == "bytes":
        return bytes(sample)
    if ragged.kind == "arrays":
        shape = (len(sample) // ragged.unit, *ragged.shape)
        return np.frombuffer(sample, ragged.dtype).reshape(shape).copy()
    try:
        return str(sample, "utf-8")
    except UnicodeDecodeError as error:
        raise CorruptTensorError(f"{asked}: a stored text is none: {error}") from error


def decode_lengths(answer: bytes, count: int, asked: str) -> npt.NDArray[np.int64]:
    """Return the lengths of samples in bytes, of an answer that has them alone."""
    return _lengths(answer, count, asked)[0]


def _lengths(answer: bytes, count: int, asked: str) -> tuple[npt.NDArray[np.int64], memoryview]:
    """Return the lengths of the samples of an answer, and their bytes."""
    pieces = int.from_bytes(answer[:4], "big")
    at = 4 + _HEAD.size * pieces
    behind = at + END_BYTES * count
    if len(answer) < max(behind, 4):
        raise CorruptTensorError(f"{asked}: the answer ends before its samples do")
    counts, bases = np.frombuffer(answer, _ENDS, 2 * pieces, 4).astype(np.int64).reshape(-1, 2).T
    if counts.sum() != count or (counts < 1).any():
        raise CorruptTensorError(
            f"{asked}: the answer has {counts.sum()} samples, and {count} were asked for"
        )
    ends = np.frombuffer(answer, _ENDS, count, at).astype(np.int64)
    lengths = np.diff(ends, prepend=0)
    firsts = np.cumsum(counts) - counts
    lengths[firsts] = ends[firsts] - bases
    if (lengths < 0).any():
        raise CorruptTensorError(f"{asked}: a sample ends before it begins")
    return lengths, memoryview(answer)[behind:]
