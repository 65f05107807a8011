"""Elements as text: for people, and for programs that read commas."""

from __future__ import annotations

import csv
import itertools
from collections.abc import Iterator
from typing import Any, TextIO

import numpy as np
import numpy.typing as npt

from tensorage.cli.failures import Failure
from tensorage.cli.output import visible
from tensorage.interchange.grouped import Outgoing

__all__ = ["lines_of", "write_csv"]


def write_csv(file: TextIO, item: Outgoing) -> None:
    """Write an array of at most two axes: one line a row, without a head."""
    if len(item.shape) > 2:
        raise Failure(
            f"{item.key!r}: CSV has rows and columns, and this has {len(item.shape)} axes. Select two of them, as in "
            f"{item.key}[0]"
        )
    writer = csv.writer(file, lineterminator="\n")
    for _, rows in item.blocks():
        writer.writerows(_cells(row) for row in (rows if rows.ndim else rows[None]))


def _cells(row: Any) -> list[Any]:
    if isinstance(row, np.void) and row.dtype.names:
        return [_cell(value) for value in row.tolist()]
    if isinstance(row, np.ndarray) and row.dtype.kind != "O":
        return [_cell(value) for value in np.atleast_1d(_plain(row)).tolist()]
    return [_cell(row)]


def _plain(row: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return times as text: Python's own have no nanoseconds."""
    return np.datetime_as_string(row) if row.dtype.kind == "M" else row


def _cell(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    if isinstance(value, np.ndarray):
        return " ".join(str(part) for part in value.ravel().tolist())
    return value


def lines_of(item: Outgoing) -> Iterator[str]:
    """Yield lines of text: one for a row of the last axis, and an empty one between the matrices of more axes."""
    for number, (_, rows) in enumerate(item.blocks()):
        if number and rows.ndim > 2:
            yield ""
        yield from _lines(rows if rows.ndim else rows[None])


def _lines(rows: npt.NDArray[Any]) -> Iterator[str]:
    if rows.ndim <= 2:
        for row in rows:
            yield "\t".join(visible(str(cell)) for cell in _cells(row))
        return
    for number, matrix in enumerate(itertools.chain(rows)):
        if number:
            yield ""
        yield from _lines(matrix)
