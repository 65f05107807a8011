"""Conversion and checks of the arrays, keys and attributes that users hand in. No I/O."""

from __future__ import annotations

import json
import sys
import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from tensorage.dtypes import SMALL_FLOATS, dtype_of
from tensorage.errors import DTypeError, InvalidInputError
from tensorage.types import COORDS_ATTRIBUTE, Dataset
from tensorage.wording import one_line, quote

__all__ = [
    "DLPACK_CPU",
    "MAX_ATTRS_BYTES",
    "MAX_EXTENT",
    "MAX_KEY_BYTES",
    "as_array",
    "as_attrs",
    "as_dims",
    "check_key",
    "check_owner",
    "check_prefix",
    "check_rows",
    "is_array",
    "json_bytes",
    "rows_to_have",
    "split_key",
]

#: Most bytes of a key in UTF-8.
MAX_KEY_BYTES = 1024

#: Most bytes of the attributes as JSON, coordinates included, that the database has room for.
MAX_ATTRS_BYTES = 1024 * 1024

#: Most rows of an array, and the longest that any other axis is.
MAX_EXTENT = 2**62

#: Number by which DLPack names the memory of this machine.
DLPACK_CPU = 1


def check_key(key: str) -> None:
    """Refuse a value that cannot be a key."""
    if not isinstance(key, str):
        raise InvalidInputError(f"a key is a string, not {quote(key)}")
    try:
        length = len(key.encode())
    except UnicodeEncodeError as error:
        raise InvalidInputError(
            f"the key {quote(key)} holds a lone surrogate, which no text has: {one_line(str(error))}"
        ) from error
    if not 1 <= length <= MAX_KEY_BYTES:
        raise InvalidInputError(
            f"a key has 1 to {MAX_KEY_BYTES} bytes of UTF-8, this one {length}: {key[:40]!r}"
        )
    if "\0" in key:
        raise InvalidInputError(f"a key holds no NUL character, as {quote(key)} does")


def is_array(data: object) -> bool:
    """Tell whether data are an array with a dtype that somebody chose, and not a list of values."""
    return isinstance(data, np.ndarray | np.generic) or _is_tensor(data)


def check_prefix(prefix: str) -> None:
    """Refuse a value that cannot begin a key. The database would take 3 for "3", and delete what begins with it."""
    if not isinstance(prefix, str):
        raise InvalidInputError(f"a prefix of keys is a string, not {quote(prefix)}")


def check_owner(owner: object) -> None:
    """Refuse a value that names no account, neither by address nor by id."""
    if not isinstance(owner, str) or not (_is_address(owner) or _is_id(owner)):
        raise InvalidInputError(
            f"{quote(owner)} names no owner: give the e-mail address or the id of the account, as "
            "store.shared_with_me() shows them"
        )


def _is_address(text: str) -> bool:
    name, _, domain = text.rpartition("@")
    return bool(name and domain) and not any(letter.isspace() for letter in text)


def _is_id(text: str) -> bool:
    try:
        uuid.UUID(text)
    except ValueError:
        return False
    return True


def as_array(data: npt.ArrayLike) -> npt.NDArray[Any]:
    """Convert data to an array, and refuse data that an array cannot hold.

    Parameters
    ----------
    data
        Whatever numpy takes, anything with ``__array__`` or ``__dlpack__``, and tensors of PyTorch on any device, of
        any dtype, also such as require gradients.
    """
    # Numpy would drop the mask without a word.
    if isinstance(data, np.ma.MaskedArray):
        raise InvalidInputError(
            "a masked array has no elements where it is masked: store data.filled(...) and, if needed, data.mask"
        )
    if isinstance(data, Iterator) and not hasattr(data, "__array__"):
        # numpy would take the iterator itself for a single object.
        raise DTypeError(
            "an iterator does not tell its shape: store its blocks of rows with store.write(key, blocks, shape=..., "
            "dtype=...), np.stack(list(...)) of them, or samples of any length with store.write_ragged(key, samples)"
        )
    try:
        if _is_tensor(data):
            return _array_of_tensor(data)
        if hasattr(data, "__dlpack__") and not hasattr(data, "__array__"):
            return _array_of_dlpack(data)
        return np.asarray(data)
    except InvalidInputError:
        raise
    except (ValueError, BufferError) as error:
        raise InvalidInputError(f"this is no array: {one_line(str(error))}") from error


def _is_tensor(data: object) -> bool:
    """Tell whether data are a tensor of PyTorch."""
    # Look only in `sys.modules`: importing PyTorch is slow, and a tensor implies that it is loaded.
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(data, torch.Tensor)


def _array_of_tensor(data: Any) -> npt.NDArray[Any]:
    """Return the elements of a tensor of PyTorch, copied to the memory of this machine if they are elsewhere."""
    if data.layout is not sys.modules["torch"].strided:
        raise InvalidInputError(
            f"this is no array: a tensor of layout {data.layout} keeps only some of its elements; store data.to_dense()"
        )
    if data.device.type == "meta":
        raise InvalidInputError(
            "this is no array: a tensor on the device 'meta' has a shape, and no elements"
        )
    # Conjugated and negated views keep a flag in place of the values, which numpy does not know.
    tensor = data.detach().cpu().resolve_conj().resolve_neg()
    name = str(tensor.dtype).removeprefix("torch.")
    if name in SMALL_FLOATS:
        # numpy has no such dtype of its own, so the bits travel as integers.
        bits = getattr(sys.modules["torch"], f"uint{8 * tensor.element_size()}")
        return np.asarray(tensor.view(bits).numpy()).view(dtype_of(name))
    try:
        return np.asarray(tensor.numpy())
    except TypeError as error:
        raise DTypeError(
            f"arrays of dtype {tensor.dtype} cannot be stored: convert the tensor, for example with .float()"
        ) from error


def _array_of_dlpack(data: Any) -> npt.NDArray[Any]:
    # Memory of another device has to be copied, and older exporters know of no such request.
    on_cpu = data.__dlpack_device__()[0] == DLPACK_CPU
    return np.from_dlpack(data) if on_cpu else np.from_dlpack(data, device="cpu")


def rows_to_have(dataset: Dataset, rows: int | Sequence[int]) -> int:
    """Return the number of rows that an array is to have.

    Parameters
    ----------
    rows
        Number of rows, or a shape.

    Raises
    ------
    InvalidInputError
        If the array has no axes, the number is none, or the shape differs along another axis.
    """
    asked = f"resizing {dataset.key!r} of shape {dataset.shape}"
    if not dataset.shape:
        raise InvalidInputError(f"{asked}: it has no axes, and so no rows")
    if isinstance(rows, Sequence) and tuple(rows[1:]) != dataset.shape[1:]:
        raise InvalidInputError(
            f"{asked}: only the first axis can become longer or shorter, and {quote(rows)} differs along another. "
            "Nothing has changed"
        )
    count: Any = rows[0] if isinstance(rows, Sequence) else rows
    if isinstance(count, bool) or not isinstance(count, int | np.integer) or count < 0:
        raise InvalidInputError(f"{asked}: {quote(count)} is no number of rows. Nothing has changed")
    if count > MAX_EXTENT:
        raise InvalidInputError(f"{asked}: {MAX_EXTENT} rows is the most. Nothing has changed")
    return int(count)


def check_rows(rows: npt.NDArray[Any], target: Dataset) -> None:
    """Refuse rows whose shape differs from that of the array beyond the first axis."""
    if target.ndim == 0 or rows.ndim != target.ndim or rows.shape[1:] != target.shape[1:]:
        raise InvalidInputError(
            f"rows of shape {rows.shape} do not fit {target.key!r} of shape {target.shape}: "
            "all but the first axis have to be the same"
        )


def as_attrs(attrs: Mapping[str, Any]) -> dict[str, Any]:
    """Convert attributes to JSON's types: numpy's numbers and arrays become Python's."""
    if not isinstance(attrs, Mapping):
        raise InvalidInputError(
            f'attributes are a mapping of names to values, such as {{"units": "K"}}, not {quote(attrs)}'
        )
    if not attrs:
        return {}
    for name in attrs:
        if not isinstance(name, str):
            raise InvalidInputError(f"the name of an attribute is a string, not {quote(name)}")
        if name == COORDS_ATTRIBUTE:
            raise InvalidInputError(
                f"the name {quote(name)} is reserved: coordinates are kept under it, and tensor.coords changes them"
            )
    try:
        # A round trip through JSON makes a copy that later changes of the user's objects do not reach.
        plain: dict[str, Any] = json.loads(json.dumps(dict(attrs), default=_to_json_type, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise InvalidInputError(
            f"the attributes cannot be written as JSON: {one_line(str(error))}"
        ) from error
    text = json.dumps(plain, ensure_ascii=False)
    # JSON writes a backslash of the text as two. With these removed, only a NUL character is left as \u0000.
    if "\\u0000" in text.replace("\\\\", ""):
        raise InvalidInputError("the attributes hold a NUL character, which PostgreSQL cannot store")
    try:
        nbytes = len(text.encode())
    except UnicodeEncodeError as error:
        raise InvalidInputError(
            f"the attributes hold a lone surrogate, which no text has: {one_line(str(error))}"
        ) from error
    if nbytes > MAX_ATTRS_BYTES:
        raise _no_room_error(plain, nbytes)
    return plain


def _no_room_error(attrs: Mapping[str, Any], nbytes: int) -> InvalidInputError:
    """Return the error about attributes that do not fit the catalogue: the largest of them is named."""
    sizes = {name: json_bytes(value) for name, value in attrs.items()}
    largest = max(sizes, key=lambda name: sizes[name])
    return InvalidInputError(
        f"the attributes take {nbytes} bytes in the catalogue, which has room for {MAX_ATTRS_BYTES} of each array; "
        f"{quote(largest)} takes {sizes[largest]} of them. Store it as an array, or as a file by upload_file()"
    )


def json_bytes(value: Any) -> int:
    """Return the bytes that PostgreSQL counts of JSON: those of its text, in UTF-8."""
    return len(json.dumps(value, ensure_ascii=False).encode())


def as_dims(dims: Sequence[str] | None, ndim: int) -> list[str] | None:
    """Check the names of the axes: one for each."""
    if dims is None:
        return None
    if isinstance(dims, str) or not all(isinstance(name, str) for name in dims):
        raise InvalidInputError(f"dims are the names of the axes, such as ('time', 'x'), not {quote(dims)}")
    if len(dims) != ndim:
        raise InvalidInputError(f"{len(dims)} dims name {ndim} axes: give one name for each axis")
    return list(dims)


def _to_json_type(value: object) -> Any:
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    raise TypeError(f"{quote(value)} is no text, number, truth value, None, list or dict")


def split_key(key: str | tuple[Any, ...]) -> tuple[str, Any]:
    """Return the key of ``store[key]`` or ``store[key, i, j, ...]``, and the selection: None if there is none."""
    if isinstance(key, tuple):
        if not key:
            raise InvalidInputError("a key is a string: store['key'] or store['key', 10:20]")
        # store["k", a] is array[a], store["k", a, b] is array[a, b]. A single None stays a tuple: None alone would mean
        # that there is no selection.
        name, *items = key
        if not items:
            return name, None
        return name, items[0] if len(items) == 1 and items[0] is not None else tuple(items)
    return key, None
