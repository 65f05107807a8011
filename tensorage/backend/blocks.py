"""Elements between memory and the rows of one dataset: in parts of a request's size, several at once.

A part that is too much for the backend (HTTP 413, or a statement that takes too long) is halved, and halved
again, down to a single element.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import numpy.typing as npt

from tensorage.backend.faults import error_of
from tensorage.backend.progress import Advance
from tensorage.backend.protocol import Piece, bytes_of, header, pieces_to_send
from tensorage.backend.transfer import TooMuchError, Transfer
from tensorage.indexing import Part, Reading, split
from tensorage.types import Dataset

__all__ = ["MAX_REQUEST_BYTES", "fetch_box", "send_blocks"]

#: Bytes of elements in one request, either way.
MAX_REQUEST_BYTES = 8 * 1024 * 1024

#: Runs asked for by one request: their positions are a few bytes of JSON each.
MAX_RUNS = 65536


def fetch_box(
    transfer: Transfer, dataset: Dataset, reading: Reading, box: npt.NDArray[Any], advance: Advance
) -> None:
    """Fill a box with what a reading asks for.

    Parameters
    ----------
    box
        Of the reading's `box_shape` and the dataset's dtype, in C order.

    Raises
    ------
    ChangedError
        If the dataset is not what it was when it was opened; the box is then of no use.
    """
    elements = bytes_of(box.reshape(-1))
    in_blocks = MAX_REQUEST_BYTES // dataset.dtype.itemsize // dataset.chunk * dataset.chunk
    max_elements = in_blocks or max(MAX_REQUEST_BYTES // dataset.dtype.itemsize, 1)
    parts = split(reading, max_elements, MAX_RUNS, align=dataset.chunk)
    transfer.run(partial(_fetch, transfer, dataset, part, elements, advance) for part in parts)


def send_blocks(
    transfer: Transfer, dataset: Dataset, array: npt.NDArray[Any], first: int, advance: Advance
) -> None:
    """Store elements of a staged dataset, from position `first` on. Blocks that are there stay as they are."""
    pieces = pieces_to_send(array, dataset.chunk, MAX_REQUEST_BYTES)
    moved = (replace(piece, index=first + piece.index) for piece in pieces)
    transfer.run(partial(_put, transfer, dataset, piece, advance) for piece in moved)


def _fetch(transfer: Transfer, dataset: Dataset, part: Part, elements: memoryview, advance: Advance) -> None:
    itemsize = dataset.dtype.itemsize
    out = elements[part.out_first * itemsize : (part.out_first + part.size) * itemsize]
    arguments = {
        "data_id": dataset.id,
        "version": dataset.version,
        "rows": part.rows.tolist(),
        "runs": part.runs.tolist(),
        "run_length": part.run_length,
    }
    asked = f"reading {dataset.key!r}"
    try:
        transfer.read_into("tensorage_read", arguments, out, asked)
    except TooMuchError as error:
        if part.size <= 1:
            raise error_of(error.fault, asked) from error
        for half in _halves(part):
            _fetch(transfer, dataset, half, elements, advance)
        return
    advance(len(out))


def _put(transfer: Transfer, dataset: Dataset, piece: Piece, advance: Advance) -> None:
    head = header(count=piece.count, chunk=dataset.chunk, data_id=dataset.id, index=piece.index)
    asked = f"storing {dataset.key!r}"
    try:
        transfer.send("tensorage_put", [head, piece.elements], asked)
    except TooMuchError as error:
        if piece.count <= 1:
            raise error_of(error.fault, asked) from error
        half = piece.count // 2
        if half > dataset.chunk:
            half = half // dataset.chunk * dataset.chunk
        cut = half * dataset.dtype.itemsize
        _put(transfer, dataset, Piece(piece.index, half, piece.elements[:cut]), advance)
        _put(transfer, dataset, Piece(piece.index + half, piece.count - half, piece.elements[cut:]), advance)
        return
    advance(len(piece.elements))


def _halves(part: Part) -> tuple[Part, Part]:
    """Two parts that together are this one."""
    if len(part.rows) > 1:
        half = len(part.rows) // 2
        first = replace(part, rows=part.rows[:half])
        return first, replace(part, rows=part.rows[half:], out_first=part.out_first + first.size)
    if len(part.runs) > 1:
        half = len(part.runs) // 2
        first = replace(part, runs=part.runs[:half])
        return first, replace(part, runs=part.runs[half:], out_first=part.out_first + first.size)
    half = part.run_length // 2
    first = replace(part, run_length=half)
    return first, replace(
        part, rows=part.rows + half, run_length=part.run_length - half, out_first=part.out_first + half
    )
