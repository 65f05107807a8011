"""Choice of the better engine for an array. No I/O.

The choice rests on measurements: see the page "Which engine when" of the documentation. The database takes fewer
requests to write and read, and gives a sample without its neighbours. Objects cost less, take less room, and move more
bytes in a second.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, get_args

import numpy as np

from tensorage.errors import DTypeError, InvalidInputError
from tensorage.model.declaration import Declaration
from tensorage.types import Engine, EngineChoice
from tensorage.wording import quote

__all__ = ["check_engine", "choose_engine", "resolve_engine"]

#: Arrays of two requests or fewer are faster in the database, whatever is read of them.
SMALL_BYTES = 16 * 1024 * 1024

#: Samples of axis 0 that are smaller than this are read one by one. From objects, many times as much would be fetched.
SAMPLE_BYTES = 64 * 1024

#: Larger arrays than this are too much for a database, however small their samples are.
LARGE_BYTES = 4 * 1024 * 1024 * 1024


def choose_engine(shape: Sequence[int], dtype: np.dtype[Any]) -> Engine:
    """Choose the engine that ``engine="auto"`` stands for.

    >>> choose_engine((1000, 1000), np.dtype("<f4"))
    'database'
    >>> choose_engine((60000, 28, 28), np.dtype("<f4"))
    'database'
    >>> choose_engine((365, 721, 1440), np.dtype("<f4"))
    'storage'
    """
    nbytes = math.prod(shape) * dtype.itemsize
    if nbytes <= SMALL_BYTES or not is_zarr_dtype(dtype):
        return "database"
    sample_bytes = math.prod(shape[1:]) * dtype.itemsize
    return "database" if sample_bytes < SAMPLE_BYTES and nbytes <= LARGE_BYTES else "storage"


def resolve_engine(choice: EngineChoice, new: Declaration) -> Engine:
    """Resolve the user's choice for a new array. Chunks, shards or codecs can only be meant for Storage."""
    check_engine(choice, f"storing {new.key!r}: ")
    if choice != "auto":
        return choice
    if any(new.options.get(name) is not None for name in ("chunks", "shards", "codecs")):
        return "storage"
    return choose_engine(new.shape, new.dtype)


def check_engine(choice: str, asked: str = "") -> None:
    """Refuse a choice that names no engine.

    Parameters
    ----------
    asked
        Beginning of the message.
    """
    if choice not in get_args(EngineChoice):
        known = ", ".join(map(repr, get_args(EngineChoice)))
        raise InvalidInputError(f"{asked}engine={quote(choice)} is none of {known}")


def is_zarr_dtype(dtype: np.dtype[Any]) -> bool:
    """Tell whether Zarr has a name for a dtype that can be stored."""
    from tensorage.model.zarr_metadata import data_type_of

    try:
        data_type_of(dtype)
    except DTypeError:
        return False
    return True
