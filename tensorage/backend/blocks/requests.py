"""Elements between memory and the rows of one dataset: in parts of a request's size, several at once.

A part that is too much for the backend (HTTP 413, or a statement that takes too long) is halved, and halved
again, down to a single element.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import numpy.typing as npt

from tensorage.backend.blocks.cutting import EncodedRun
from tensorage.backend.transfer import Transfer
from tensorage.backend.wire.faults import error_of
from tensorage.backend.wire.header import bytes_of, header
from tensorage.backend.wire.http import TooMuchError
from tensorage.backend.wire.progress import Advance
from tensorage.indexing.runs import RequestRuns, RunList, Runs, halve, split_by_request
from tensorage.types import Dataset

__all__ = ["describe_runs", "fetch_runs", "send_patches", "send_runs"]


def fetch_runs(
    transfer: Transfer, dataset: Dataset, source: Runs, buffer: npt.NDArray[Any], advance: Advance
) -> None:
    """Fill a buffer with the elements of a source.

    Parameters
    ----------
    buffer
        One-dimensional, of the source's size and the dataset's dtype.

    Raises
    ------
    ChangedError
        If the dataset is not what it was when it was opened; the buffer is then of no use.
    """
    elements = bytes_of(buffer)
    parts = split_by_request(source, dataset.dtype.itemsize, dataset.block_size)
    transfer.run(partial(_fetch, transfer, dataset, part, elements, advance) for part in parts)


def send_runs(transfer: Transfer, dataset: Dataset, pieces: Iterable[EncodedRun], advance: Advance) -> None:
    """Store elements of a staged dataset. Blocks that are there stay as they are."""
    transfer.run(partial(_put, transfer, dataset, piece, advance) for piece in pieces)


def send_patches(
    transfer: Transfer,
    staged: Dataset,
    parts: Iterable[RequestRuns],
    elements_of: Callable[[RequestRuns], memoryview],
    advance: Advance,
) -> None:
    """Put elements into the places that `parts` name, in a staged assignment.

    Parameters
    ----------
    elements_of
        The bytes that belong to a part.
    """
    transfer.run(partial(_patch, transfer, staged, part, elements_of, advance) for part in parts)


def describe_runs(source: Runs) -> dict[str, Any]:
    """What a request says of where its elements are."""
    if isinstance(source, RunList):
        return {"starts": source.starts.tolist(), "lengths": source.lengths.tolist()}
    return {"rows": source.rows.tolist(), "runs": source.runs.tolist(), "run_length": source.run_length}


def _fetch(
    transfer: Transfer, dataset: Dataset, part: RequestRuns, elements: memoryview, advance: Advance
) -> None:
    itemsize = dataset.dtype.itemsize
    out = elements[part.out_first * itemsize : (part.out_first + part.size) * itemsize]
    arguments = {"data_id": dataset.id, "version": dataset.version, **describe_runs(part.source)}
    function = "tensorage_read_spans" if isinstance(part.source, RunList) else "tensorage_read"
    asked = f"reading {dataset.key!r}"
    try:
        transfer.read_into(function, arguments, out, asked)
    except TooMuchError as error:
        if part.size <= 1:
            raise error_of(error.fault, asked) from error
        for half in halve(part):
            _fetch(transfer, dataset, half, elements, advance)
        return
    advance(len(out))


def _put(transfer: Transfer, dataset: Dataset, piece: EncodedRun, advance: Advance) -> None:
    head = header(count=piece.count, block_size=dataset.block_size, data_id=dataset.id, index=piece.index)
    asked = f"storing {dataset.key!r}"
    try:
        transfer.send("tensorage_put", [head, piece.elements], asked)
    except TooMuchError as error:
        if piece.count <= 1:
            raise error_of(error.fault, asked) from error
        half = piece.count // 2
        if half > dataset.block_size:
            half = half // dataset.block_size * dataset.block_size
        cut = half * dataset.dtype.itemsize
        _put(transfer, dataset, EncodedRun(piece.index, half, piece.elements[:cut]), advance)
        _put(
            transfer,
            dataset,
            EncodedRun(piece.index + half, piece.count - half, piece.elements[cut:]),
            advance,
        )
        return
    advance(len(piece.elements))


def _patch(
    transfer: Transfer,
    staged: Dataset,
    part: RequestRuns,
    elements_of: Callable[[RequestRuns], memoryview],
    advance: Advance,
) -> None:
    meta = describe_runs(part.source)
    head = header(count=part.size, block_size=staged.block_size, data_id=staged.id, meta=meta)
    asked = f"assigning to {staged.key!r}"
    try:
        transfer.send("tensorage_patch", [head, elements_of(part)], asked)
    except TooMuchError as error:
        if part.size <= 1:
            raise error_of(error.fault, asked) from error
        for half in halve(part):
            _patch(transfer, staged, half, elements_of, advance)
        return
    advance(part.size * staged.dtype.itemsize)
