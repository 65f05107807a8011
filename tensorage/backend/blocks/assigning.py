"""``array[selection] = value`` for a stored array: in one request where that has room for it, else staged.

The backend puts the elements into their blocks, so that none of them has to be read first. Readers see all of
it or nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt

from tensorage.backend.blocks.requests import describe_runs, send_patches
from tensorage.backend.restarts import gone_is_changed
from tensorage.backend.staging import new_operation, stage, with_room, written
from tensorage.backend.transfer import Work
from tensorage.backend.wire.header import bytes_of, header
from tensorage.backend.wire.http import TooMuchError
from tensorage.backend.wire.progress import Advance
from tensorage.errors import InvalidInputError
from tensorage.indexing.reading import RunPlan, plan_runs
from tensorage.indexing.runs import RequestRuns, split_by_request
from tensorage.indexing.selection import Selection
from tensorage.model.values import as_assigned
from tensorage.types import Dataset

__all__ = ["assign"]

#: Blocks that one request changes: each is rewritten whole.
MAX_BLOCKS = 64


def assign(work: Work, selection: Selection, value: npt.ArrayLike) -> Dataset:
    """Assign to a part of a stored array, as numpy does.

    Returns
    -------
    Dataset
        The array's entry, as it is now.

    Raises
    ------
    IndexError
        As numpy's.
    InvalidInputError
        If the value does not broadcast to the selection; nothing has changed.
    ChangedError
        If the array is not what it was when it was opened, or changed meanwhile; nothing has changed.
    """
    dataset, transfer = work.dataset, work.transfer
    reading = plan_runs(dataset.shape, selection, dataset.dtype.itemsize, dataset.block_size, exact=True)
    elements_of = _elements(as_assigned(value, dataset), reading, dataset)
    if not reading.size:
        return dataset
    parts = split_by_request(reading.runs, dataset.dtype.itemsize, dataset.block_size, max_blocks=MAX_BLOCKS)
    first = next(parts)
    if first.size == reading.size:
        try:
            return _assign_at_once(work, first, elements_of(first))
        except TooMuchError:
            pass  # Staged, it is halved until it is not.
    arguments = {"data_id": dataset.id, "version": dataset.version, "operation": new_operation()}
    answer = with_room(transfer, lambda: work.call("tensorage_begin_assign", arguments))
    staged = work.on(Dataset.from_json(answer))

    def send(advance: Advance) -> None:
        send_patches(staged, chain([first], parts), elements_of, advance)

    with gone_is_changed(f"{work.asked}: it was replaced or deleted meanwhile. Open it again."):
        return stage(staged, send, reading.size * dataset.dtype.itemsize)


def _elements(
    value: npt.NDArray[Any], reading: RunPlan, dataset: Dataset
) -> Callable[[RequestRuns], memoryview]:
    """What belongs to a part of the selection, as bytes. Of a single value, no more than a part is ever made."""
    if value.size == 1:
        return lambda part: bytes_of(np.full(part.size, value.reshape(()), dataset.dtype))
    if reading.is_whole_buffer and value.shape == reading.shape and value.flags.c_contiguous:
        buffer = value.reshape(-1)
    else:
        buffer = np.empty(reading.size, dataset.dtype)
        try:
            reading.place(value, buffer)
        except ValueError as error:
            raise InvalidInputError(f"assigning to {dataset.key!r}: {error}; nothing has changed") from error
    return lambda part: bytes_of(buffer[part.out_first : part.out_first + part.size])


def _assign_at_once(work: Work, part: RequestRuns, elements: memoryview) -> Dataset:
    dataset = work.dataset
    meta = {"version": dataset.version, "operation": new_operation(), **describe_runs(part.runs)}
    head = header(count=part.size, block_size=dataset.block_size, data_id=dataset.id, meta=meta)
    return written(work.transfer, work.send("tensorage_assign", [head, elements]))
