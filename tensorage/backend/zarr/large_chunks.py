"""A warning about arrays whose chunks are large for the rows that are read of them."""

from __future__ import annotations

import math

import numpy as np

from tensorage.backend.zarr.chunk_shapes import SAMPLE_BYTES, choose_chunk_bytes, choose_chunks
from tensorage.backend.zarr.layout import Layout
from tensorage.backend.zarr.ranges import MAX_OVER_READ_BYTES
from tensorage.indexing.chunks import ChunkPlan
from tensorage.types import Dataset
from tensorage.warnings import warn

__all__ = ["warn_of_large_chunks"]

#: Scattered rows that are worth a warning.
MIN_ROWS = 8

#: Warns if a read moved so many times the bytes that it moves at most of chunks of the default size.
MIN_RATIO = 4

#: Arrays that this process has warned of: their owners and ids.
_warned: set[tuple[str | None, int]] = set()


def warn_of_large_chunks(dataset: Dataset, layout: Layout, plan: ChunkPlan, moved_bytes: int) -> None:
    """Warn once a process and array if a read of scattered rows moved much that small chunks would have spared.

    Parameters
    ----------
    plan
        Plan of the read.
    moved_bytes
        Bytes of objects that it moved.
    """
    identity = (dataset.user_id, dataset.id)
    along = plan.whole.chunk_selection[0] if plan.whole is not None and layout.shape else None
    if not isinstance(along, np.ndarray) or identity in _warned or plan.whole is None:
        return
    rows = len(np.unique(along))
    row_bytes = math.prod(layout.shape[1:]) * layout.dtype.itemsize
    if rows < MIN_ROWS or moved_bytes <= MIN_RATIO * rows * max(
        SAMPLE_BYTES + MAX_OVER_READ_BYTES, row_bytes
    ):
        return
    touched_bytes = len(plan.whole.parts(layout.chunks[0])) * math.prod(layout.chunks) * layout.dtype.itemsize
    chunk_bytes = choose_chunk_bytes(layout.shape, layout.dtype.itemsize, moved_bytes / touched_bytes)
    chunks = choose_chunks(layout.shape, layout.dtype.itemsize, chunk_bytes)
    warn(
        f"reading {rows} scattered rows of {dataset.key!r} moved {moved_bytes / 1e6:.1f} MB, since its chunks of "
        f"{layout.chunks} elements are large for rows of {row_bytes} bytes. A copy with smaller ones moves less: "
        f"store.copy({dataset.key!r}, new_key, chunks={chunks})"
    )
    # Noted only now: if warnings are errors, each read is to raise one.
    _warned.add(identity)
