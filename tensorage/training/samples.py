"""Reading of samples of several arrays together, by one request for each stored array."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt

from tensorage.backend.arrays import OpenArray
from tensorage.errors import InvalidInputError
from tensorage.indexing.selection import Selection

__all__ = ["SampleSource", "common_length", "name_of", "read_source", "read_together"]

#: Array that samples come from: a stored array, or an array in memory.
SampleSource = OpenArray | npt.NDArray[Any]


def common_length(sources: Sequence[SampleSource]) -> int:
    """Return the number of samples, which has to be the same in each of several arrays.

    Raises
    ------
    InvalidInputError
        If there are no arrays, if one is no array or has no axes, or if their lengths differ.
    """
    if not sources:
        raise InvalidInputError("no arrays: give at least one, such as store.open('x')")
    for source in sources:
        if not isinstance(source, OpenArray | np.ndarray):
            raise InvalidInputError(
                f"samples come from stored arrays, such as store.open('x'), and from numpy arrays, not from a "
                f"{type(source).__name__}"
            )
        if not source.ndim:
            raise InvalidInputError(f"{name_of(source)} has no axes, and so no samples")
    if len({len(source) for source in sources}) > 1:
        said = ", ".join(f"{name_of(source)} has {len(source)}" for source in sources)
        raise InvalidInputError(f"the arrays do not have the same number of samples: {said}")
    return len(sources[0])


def read_source(source: SampleSource, selection: Selection) -> Any:
    """Return ``source[selection]``, in memory of its own."""
    if isinstance(source, OpenArray):
        return source.read(selection)
    # numpy checks the selection by itself.
    taken: Any = source[selection]
    return taken.copy() if isinstance(taken, np.ndarray) else taken


def read_together(sources: Sequence[SampleSource], selection: Selection) -> tuple[Any, ...]:
    """Return ``source[selection]`` of each array, read at the same time."""
    first, *others = sources
    if not others:
        return (read_source(first, selection),)
    with ThreadPoolExecutor(len(others), thread_name_prefix="tensorage zip") as pool:
        futures = [pool.submit(read_source, source, selection) for source in others]
        return (read_source(first, selection), *(each.result() for each in futures))


def name_of(source: SampleSource) -> str:
    """Return the words for an array in messages."""
    return repr(source.key) if isinstance(source, OpenArray) else f"an array of shape {source.shape}"
