"""A stored array again, under another key: read and written region by region, never in memory as a whole."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from tensorage.backend.engine import ArrayEngine
from tensorage.model.declaration import Declaration
from tensorage.types import Dataset

__all__ = ["copy_array"]


def copy_array(
    source: ArrayEngine, dataset: Dataset, target: ArrayEngine, new: Declaration, *, quiet: bool
) -> Dataset:
    """Store the elements of an array as another one.

    Raises
    ------
    ChangedError
        If the array is not what it was when `dataset` was opened. Nothing was stored.
    """
    if source is target and (made := source.copy(dataset, new, quiet=quiet)) is not None:
        return made

    def read(region: tuple[slice, ...]) -> npt.NDArray[Any]:
        return np.asarray(source.read(dataset, region, None, quiet=True))

    return target.store_from(read, new, quiet=quiet)
