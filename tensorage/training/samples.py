"""Samples of several arrays: read together, one request for each array that is stored."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt

from tensorage.backend.arrays import OpenArray
from tensorage.errors import InvalidInputError
from tensorage.indexing.selection import Selection

__all__ = ["SampleSource", "name_of", "read_source", "read_together", "same_length"]

#: Array that samples come from: a stored one, or one in memory.
SampleSource = OpenArray | npt.NDArray[Any]


def same_length(sources: Sequence[SampleSource]) -> int:
    """How many samples there are in each of several arrays.

    Raises
    ------
    InvalidInputError
        If there are no arrays, or what has no length, or different lengths.
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
    """``source[selection]``, in memory that is the caller's."""
    if isinstance(source, OpenArray):
        return source.read(selection)
    # numpy says itself what it takes.
    taken: Any = source[selection]
    return taken.copy() if isinstance(taken, np.ndarray) else taken


def read_together(sources: Sequence[SampleSource], selection: Selection) -> tuple[Any, ...]:
    """``source[selection]`` of each, at the same time."""
    first, *others = sources
    if not others:
        return (read_source(first, selection),)
    with ThreadPoolExecutor(len(others), thread_name_prefix="tensorage zip") as pool:
        reading = [pool.submit(read_source, source, selection) for source in others]
        return (read_source(first, selection), *(each.result() for each in reading))


def name_of(source: SampleSource) -> str:
    """Return the words for an array in messages."""
    return repr(source.key) if isinstance(source, OpenArray) else f"an array of shape {source.shape}"
