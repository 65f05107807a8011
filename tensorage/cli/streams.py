"""An array that comes by a pipe: its rows are read as they are needed, and never all of them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from tensorage.cli.failures import Failure

__all__ = ["Incoming", "read_csv", "read_npy"]

#: Bytes of rows that are read at once.
BLOCK_BYTES = 8 * 1024 * 1024


@dataclass(frozen=True)
class Incoming:
    """An array on its way in.

    Parameters
    ----------
    blocks
        Blocks of consecutive rows, which together have the shape. The array itself if it has no axes.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    blocks: Iterator[npt.NDArray[Any]]

    def whole(self) -> npt.NDArray[Any]:
        """Read all of it."""
        blocks = [block.reshape(-1) for block in self.blocks]
        return np.concatenate([np.empty(0, self.dtype), *blocks]).reshape(self.shape)


def read_npy(stream: IO[bytes]) -> Incoming:
    """Read the header of a ``.npy``, and its elements later.

    Raises
    ------
    Failure
        If it is none, or holds objects of Python, which are never loaded.
    """
    try:
        version = np.lib.format.read_magic(stream)
        read = (
            np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        )
        shape, is_fortran, dtype = read(stream)
    except (ValueError, EOFError) as error:
        raise Failure(
            f"stdin is no .npy ({error}): give --format csv if it is text. Nothing was stored"
        ) from error
    if dtype.hasobject:
        raise Failure("stdin holds objects of Python, which are never loaded. Nothing was stored")
    if is_fortran or not shape:
        # The rows are not one after another: all of it has to be there for the first of them.
        elements = np.frombuffer(_read_exactly(stream, math.prod(shape) * dtype.itemsize), dtype)
        whole = elements.reshape(shape, order="F" if is_fortran else "C")
        return Incoming(shape, dtype, iter([whole]))
    return Incoming(shape, dtype, _rows(stream, shape, dtype))


def _rows(stream: IO[bytes], shape: tuple[int, ...], dtype: np.dtype[Any]) -> Iterator[npt.NDArray[Any]]:
    row_bytes = math.prod(shape[1:]) * dtype.itemsize
    rows = max(BLOCK_BYTES // max(row_bytes, 1), 1)
    for first in range(0, shape[0], rows):
        count = min(rows, shape[0] - first)
        yield np.frombuffer(_read_exactly(stream, count * row_bytes), dtype).reshape(count, *shape[1:])


def _read_exactly(stream: IO[bytes], nbytes: int) -> bytes:
    parts, missing = [], nbytes
    while missing:
        # A pipe may give less than is asked for, and memory is taken for what has come.
        part = stream.read(min(missing, BLOCK_BYTES))
        if not part:
            raise Failure(f"stdin ended {missing} bytes too early. Nothing was stored")
        parts.append(part)
        missing -= len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def read_csv(file: Any, dtype: str | None, name: str) -> Incoming:
    """Read rows of numbers, as a whole. A single column is an array of one axis."""
    try:
        rows = np.loadtxt(file, dtype or "float64", delimiter=",", ndmin=2)
    except (ValueError, TypeError) as error:
        raise Failure(f"{name} has no rows of {dtype or 'float64'} ({error}). Nothing was stored") from error
    array = rows[:, 0] if rows.shape[1] == 1 else rows
    return Incoming(array.shape, array.dtype, iter([array]))
