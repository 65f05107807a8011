"""Assignment to a selection of a stored array: in one request if it fits, and staged otherwise.

The backend puts the elements into their blocks, so that no block has to be read first. Readers see the whole assignment
or nothing of it.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt

from tensorage.backend.blocks.requests import describe_runs, send_patches
from tensorage.backend.restarts import gone_is_changed
from tensorage.backend.staging import final_operation, finish_write, new_operation, stage, with_room
from tensorage.backend.transfer import Work
from tensorage.backend.wire.header import bytes_of, header
from tensorage.backend.wire.http import TooMuchError
from tensorage.backend.wire.progress import Advance
from tensorage.errors import InvalidInputError
from tensorage.indexing.reading import RunPlan, plan_runs
from tensorage.indexing.runs import RequestRuns, split_by_request
from tensorage.indexing.selection import Selection
from tensorage.model.casting import as_assigned
from tensorage.types import Dataset

__all__ = ["assign"]

#: Most blocks that one request changes. The database rewrites each of them as a whole.
MAX_BLOCKS = 64


def assign(work: Work, selection: Selection, value: npt.ArrayLike) -> Dataset:
    """Assign to a selection of a stored array, as numpy does.

    Returns
    -------
    Dataset
        Entry of the array after the assignment.

    Raises
    ------
    IndexError
        If the selection does not fit the shape, as numpy raises it.
    InvalidInputError
        If the value does not broadcast to the selection. Nothing has changed.
    ChangedError
        If somebody else has changed the array since it was opened. Nothing of this assignment is stored.
    """
    dataset, transfer = work.dataset, work.transfer
    plan = plan_runs(dataset.shape, selection, dataset.dtype.itemsize, dataset.block_size, exact=True)
    elements_of = _elements(as_assigned(value, dataset), plan, dataset)
    if not plan.size:
        return dataset
    requests = split_by_request(plan.runs, dataset.dtype.itemsize, dataset.block_size, max_blocks=MAX_BLOCKS)
    first = next(requests)
    # One request needs no staging: the database assigns all of it in one transaction.
    if first.size == plan.size:
        try:
            return _assign_at_once(work, first, elements_of(first))
        except TooMuchError:
            pass  # A staged assignment is halved until its requests are small enough.
    arguments = {**work.identity, "operation": new_operation()}
    answer = with_room(transfer, lambda: work.call("tensorage_begin_assign", arguments))
    staged = work.on(Dataset.from_json(answer))

    def send(advance: Advance) -> None:
        send_patches(staged, chain([first], requests), elements_of, advance)

    with gone_is_changed(
        f"{work.asked}: it was replaced or deleted meanwhile, or is not shared any more. Open it again."
    ):
        return stage(staged, send, plan.size * dataset.dtype.itemsize)


def _elements(
    value: npt.NDArray[Any], plan: RunPlan, dataset: Dataset
) -> Callable[[RequestRuns], memoryview]:
    """Return a function that gives the bytes of a request. A single value is repeated for one request at a time."""
    if value.size == 1:
        return lambda request: bytes_of(np.full(request.size, value.reshape(()), dataset.dtype))
    # Elements in the order of the request need no copy.
    if plan.is_whole_buffer and value.shape == plan.shape and value.flags.c_contiguous:
        buffer = value.reshape(-1)
    else:
        buffer = np.empty(plan.size, dataset.dtype)
        try:
            plan.place(value, buffer)
        except ValueError as error:
            raise InvalidInputError(f"assigning to {dataset.key!r}: {error}; nothing has changed") from error
    return lambda request: bytes_of(buffer[request.out_first : request.out_first + request.size])


def _assign_at_once(work: Work, request: RequestRuns, elements: memoryview) -> Dataset:
    dataset = work.dataset
    meta = {**work.checks, "operation": final_operation(), **describe_runs(request.runs)}
    head = header(count=request.size, block_size=dataset.block_size, data_id=dataset.id, meta=meta)
    return finish_write(work.transfer, work.send("tensorage_assign", [head, elements]))
