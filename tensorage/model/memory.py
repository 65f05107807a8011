"""Memory for arrays whose size a backend has told."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tensorage.errors import TooLargeError

__all__ = ["check_fits", "describe_bytes", "new_array"]

#: File in which Linux tells the size of its swap.
_SWAP_OF_LINUX = Path("/proc/meminfo")

_GIB = 1024**3


def new_array(shape: Sequence[int], dtype: np.dtype[Any], asked: str) -> npt.NDArray[Any]:
    """Allocate an array without setting its elements.

    Parameters
    ----------
    asked
        Purpose of the array, for the message: ``reading 'weather'``.

    Raises
    ------
    TooLargeError
        If this machine has no memory for the array.
    """
    check_fits(shape, dtype, asked)
    try:
        return np.empty(tuple(shape), dtype)
    except (MemoryError, ValueError) as error:
        # A process may be limited to less than the machine has. Numpy refuses more than there can be addresses.
        raise _too_large(shape, dtype, asked, "this process gets no memory for it") from error


def check_fits(shape: Sequence[int], dtype: np.dtype[Any], asked: str) -> None:
    """Refuse an array that is larger than the memory of this machine.

    An operating system promises memory that it does not have, and ends the process that uses it.

    Raises
    ------
    TooLargeError
    """
    most = _machine_bytes()
    if most is not None and math.prod(shape) * dtype.itemsize > most:
        raise _too_large(shape, dtype, asked, f"this machine has {most / _GIB:.1f} GiB of memory")


def _too_large(shape: Sequence[int], dtype: np.dtype[Any], asked: str, why: str) -> TooLargeError:
    nbytes = math.prod(shape) * dtype.itemsize
    return TooLargeError(
        f"{asked}: {tuple(shape)} elements of {dtype} are {nbytes} bytes ({nbytes / _GIB:.1f} GiB), and {why}. Nothing "
        "was fetched. Ask for a part at a time, by a slice or by batches(), or give an np.memmap as out="
    )


@cache
def _machine_bytes() -> int | None:
    """Return the bytes of memory and swap of this machine; None if they are not known."""
    try:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        # Windows has no `sysconf`.
        return None
    return memory + _swap_bytes() if memory > 0 else None


def _swap_bytes() -> int:
    try:
        lines = _SWAP_OF_LINUX.read_text().splitlines()
    except OSError:
        # Other systems than Linux swap to files that grow with the need.
        return 64 * _GIB
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith("SwapTotal:"))


def describe_bytes(nbytes: float) -> str:
    """Return a number of bytes in words.

    >>> describe_bytes(3 * 2**20)
    '3 MiB'
    """
    for unit in ("B", "KiB", "MiB", "GiB"):
        if nbytes < 1024:
            return f"{nbytes:.3g} {unit}"
        nbytes /= 1024
    return f"{nbytes:.3g} TiB"
