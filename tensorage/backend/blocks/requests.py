"""Requests that move elements between memory and the blocks of one array, several at once.

A request that is too large for the backend is halved, and halved again, down to a single element.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import numpy.typing as npt

from tensorage.backend.blocks.cutting import EncodedRun
from tensorage.backend.transfer import Work
from tensorage.backend.wire.header import bytes_of, header
from tensorage.backend.wire.progress import Advance
from tensorage.indexing.runs import (
    MAX_RUNS,
    RequestRuns,
    RunList,
    Runs,
    as_list,
    halve,
    max_elements,
    split,
    split_by_request,
)
from tensorage.model.fields import Fields

__all__ = ["describe_runs", "fetch_fields", "fetch_runs", "send_patches", "send_runs"]

#: Bytes of a run from which on a function of its own reads it faster.
LONG_RUN_BYTES = 1024 * 1024


def fetch_runs(work: Work, runs: Runs, buffer: npt.NDArray[Any], advance: Advance) -> None:
    """Fill a buffer with the elements of runs.

    Parameters
    ----------
    buffer
        One-dimensional array of the stored array's dtype, with as many elements as the runs have.

    Raises
    ------
    ChangedError
        If the array has changed since it was opened. The content of the buffer is then of no use.
    """
    # Each request fills its own part of the buffer, so that requests need no lock.
    elements = bytes_of(buffer)
    itemsize = work.dataset.dtype.itemsize

    def fetch(request: RequestRuns) -> None:
        out = elements[request.out_first * itemsize : (request.out_first + request.size) * itemsize]
        function, places = _reading(request.runs, len(out))
        work.read_into(function, {**work.identity, **places}, out)
        advance(len(out))

    requests = split_by_request(runs, itemsize, work.dataset.block_size)
    work.run(partial(work.in_halves, fetch, request, _halve) for request in requests)


def fetch_fields(work: Work, runs: Runs, fields: Fields, buffer: npt.NDArray[Any], advance: Advance) -> None:
    """Fill a buffer with fields of the records of runs. The rest of the records does not travel.

    Parameters
    ----------
    buffer
        One-dimensional array of the fields' dtype, with as many elements as the runs have.

    Raises
    ------
    ChangedError
        If the array has changed since it was opened. The content of the buffer is then of no use.
    """
    elements = bytes_of(buffer)
    itemsize = buffer.dtype.itemsize
    dataset = work.dataset

    def fetch(request: RequestRuns) -> None:
        out = elements[request.out_first * itemsize : (request.out_first + request.size) * itemsize]
        arguments = {
            **work.identity, **describe_runs(request.runs),
            "offsets": fields.offsets, "sizes": fields.sizes,
        }  # fmt: skip
        work.read_into("tensorage_read_fields", arguments, out)
        advance(len(out))

    # The database gathers whole records before it cuts them, so these bound a request.
    most = min(max_elements(dataset.dtype.itemsize, dataset.block_size), MAX_RUNS // len(fields.sizes))
    requests = split(as_list(runs), most, MAX_RUNS, align=dataset.block_size)
    work.run(partial(work.in_halves, fetch, request, _halve) for request in requests)


def send_runs(work: Work, runs: Iterable[EncodedRun], advance: Advance) -> None:
    """Store runs of a staged array. Blocks that are stored already stay as they are."""
    dataset = work.dataset

    def put(run: EncodedRun) -> None:
        head = header(count=run.count, block_size=dataset.block_size, data_id=dataset.id, index=run.index)
        work.send("tensorage_put", [head, run.elements])
        advance(len(run.elements))

    def halve_at_block(run: EncodedRun) -> tuple[EncodedRun, EncodedRun] | None:
        if run.count <= 1:
            return None
        half = run.count // 2
        # A cut between blocks keeps them whole. Below the size of a block, any cut will do.
        if half > dataset.block_size:
            half = half // dataset.block_size * dataset.block_size
        cut = half * dataset.dtype.itemsize
        return (
            EncodedRun(run.index, half, run.elements[:cut]),
            EncodedRun(run.index + half, run.count - half, run.elements[cut:]),
        )

    work.run(partial(work.in_halves, put, run, halve_at_block) for run in runs)


def send_patches(
    work: Work,
    requests: Iterable[RequestRuns],
    elements_of: Callable[[RequestRuns], memoryview],
    advance: Advance,
) -> None:
    """Send the patches of a staged assignment, one for each request.

    Parameters
    ----------
    elements_of
        Returns the bytes of the elements of a request.
    """
    staged = work.dataset

    def patch(request: RequestRuns) -> None:
        meta = describe_runs(request.runs)
        head = header(count=request.size, block_size=staged.block_size, data_id=staged.id, meta=meta)
        work.send("tensorage_patch", [head, elements_of(request)])
        advance(request.size * staged.dtype.itemsize)

    work.run(partial(work.in_halves, patch, request, _halve) for request in requests)


def describe_runs(runs: Runs) -> dict[str, Any]:
    """Return the arguments that name runs in a request."""
    if isinstance(runs, RunList):
        return {"starts": runs.starts.tolist(), "lengths": runs.lengths.tolist()}
    return {"rows": runs.rows.tolist(), "runs": runs.runs.tolist(), "run_length": runs.run_length}


def _reading(runs: Runs, nbytes: int) -> tuple[str, dict[str, Any]]:
    """Return the function that reads runs, and the arguments that name them."""
    if isinstance(runs, RunList):
        return "tensorage_read_spans", describe_runs(runs)
    if nbytes >= LONG_RUN_BYTES and len(runs.rows) == len(runs.runs) == 1:
        return "tensorage_read_run", {"first": int(runs.rows[0] + runs.runs[0]), "elements": runs.run_length}
    # A run product is shorter to describe than the same runs in a list.
    return "tensorage_read", describe_runs(runs)


def _halve(request: RequestRuns) -> tuple[RequestRuns, RequestRuns] | None:
    return halve(request) if request.size > 1 else None
