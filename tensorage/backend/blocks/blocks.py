"""Elements between memory and the rows of one dataset: in parts of a request's size, several at once.

A part that is too much for the backend (HTTP 413, or a statement that takes too long) is halved, and halved
again, down to a single element.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import numpy.typing as npt

from tensorage.backend.blocks.pieces import Piece
from tensorage.backend.transfer import Transfer
from tensorage.backend.wire.faults import error_of
from tensorage.backend.wire.header import bytes_of, header
from tensorage.backend.wire.http import TooMuchError
from tensorage.backend.wire.progress import Advance
from tensorage.indexing.runs import Part, Source, Spans, halves, requests
from tensorage.types import Dataset

__all__ = ["fetch_box", "send_parts", "send_pieces", "whereabouts"]


def fetch_box(
    transfer: Transfer, dataset: Dataset, source: Source, box: npt.NDArray[Any], advance: Advance
) -> None:
    """Fill a box with the elements of a source.

    Parameters
    ----------
    box
        One-dimensional, of the source's size and the dataset's dtype.

    Raises
    ------
    ChangedError
        If the dataset is not what it was when it was opened; the box is then of no use.
    """
    elements = bytes_of(box)
    parts = requests(source, dataset.dtype.itemsize, dataset.chunk)
    transfer.run(partial(_fetch, transfer, dataset, part, elements, advance) for part in parts)


def send_pieces(transfer: Transfer, dataset: Dataset, pieces: Iterable[Piece], advance: Advance) -> None:
    """Store elements of a staged dataset. Blocks that are there stay as they are."""
    transfer.run(partial(_put, transfer, dataset, piece, advance) for piece in pieces)


def send_parts(
    transfer: Transfer,
    staged: Dataset,
    parts: Iterable[Part],
    elements_of: Callable[[Part], memoryview],
    advance: Advance,
) -> None:
    """Put elements into the places that `parts` name, in a staged assignment.

    Parameters
    ----------
    elements_of
        The bytes that belong to a part.
    """
    transfer.run(partial(_patch, transfer, staged, part, elements_of, advance) for part in parts)


def whereabouts(source: Source) -> dict[str, Any]:
    """What a request says of where its elements are."""
    if isinstance(source, Spans):
        return {"starts": source.starts.tolist(), "lengths": source.lengths.tolist()}
    return {"rows": source.rows.tolist(), "runs": source.runs.tolist(), "run_length": source.run_length}


def _fetch(transfer: Transfer, dataset: Dataset, part: Part, elements: memoryview, advance: Advance) -> None:
    itemsize = dataset.dtype.itemsize
    out = elements[part.out_first * itemsize : (part.out_first + part.size) * itemsize]
    arguments = {"data_id": dataset.id, "version": dataset.version, **whereabouts(part.source)}
    function = "tensorage_read_spans" if isinstance(part.source, Spans) else "tensorage_read"
    asked = f"reading {dataset.key!r}"
    try:
        transfer.read_into(function, arguments, out, asked)
    except TooMuchError as error:
        if part.size <= 1:
            raise error_of(error.fault, asked) from error
        for half in halves(part):
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


def _patch(
    transfer: Transfer,
    staged: Dataset,
    part: Part,
    elements_of: Callable[[Part], memoryview],
    advance: Advance,
) -> None:
    meta = whereabouts(part.source)
    head = header(count=part.size, chunk=staged.chunk, data_id=staged.id, meta=meta)
    asked = f"assigning to {staged.key!r}"
    try:
        transfer.send("tensorage_patch", [head, elements_of(part)], asked)
    except TooMuchError as error:
        if part.size <= 1:
            raise error_of(error.fault, asked) from error
        for half in halves(part):
            _patch(transfer, staged, half, elements_of, advance)
        return
    advance(part.size * staged.dtype.itemsize)
