"""Shapes of the parts that a stored array is cut into. No I/O."""

from __future__ import annotations

import json
import math

from tensorage.model import zarr_metadata
from tensorage.types import Dataset

__all__ = ["cut_of"]


def cut_of(entry: Dataset) -> tuple[tuple[int, ...] | None, tuple[int, ...] | None]:
    """Return the shapes of the chunks and of the objects of an array.

    Blocks of the database stand for chunks. They are whole rows of axis 0, or parts of a row: of as many elements as
    the largest block has. None where there is no such cut.

    >>> from tensorage.types import Dataset
    >>> cut_of(Dataset(1, "x", (60000, 28, 28), np.dtype("f4"), block_size=784 * 334))
    ((334, 28, 28), None)
    """
    if not entry.shape or not entry.size:
        return None, None
    if entry.engine == "storage":
        return zarr_metadata.cut_of(json.loads(entry.zarr)) if entry.zarr is not None else (None, None)
    if entry.ragged is not None or not entry.block_size:
        return None, None
    chunks = list(entry.shape)
    for axis, extent in enumerate(entry.shape):
        inner = math.prod(entry.shape[axis + 1 :])
        chunks[axis] = max(min(entry.block_size // inner, extent), 1)
        if chunks[axis] > 1 or entry.block_size >= inner:
            break
    return tuple(chunks), None
