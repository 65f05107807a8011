"""Arrays into the database: in one request where that has room for them, else staged, all or nothing either way.

What is staged is declared, filled by requests in parallel, and made visible by a commit, in one transaction.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from tensorage.backend.blocks.cutting import cut_array, cut_flats
from tensorage.backend.blocks.requests import send_runs
from tensorage.backend.staging import begin, from_the_beginning, new_operation, stage, with_room, written
from tensorage.backend.transfer import Transfer
from tensorage.backend.wire.faults import OtherDTypeError
from tensorage.backend.wire.header import bytes_of, header
from tensorage.backend.wire.http import TooMuchError
from tensorage.backend.wire.progress import Advance
from tensorage.errors import ChangedError, KeyNotFoundError
from tensorage.indexing.runs import MAX_REQUEST_BYTES
from tensorage.model.values import as_array, cast_to, check_rows
from tensorage.types import Dataset, storable_dtype

__all__ = ["append_rows", "send_rows", "store_array", "store_flats"]

logger = logging.getLogger(__name__)


def store_array(transfer: Transfer, array: npt.NDArray[Any], meta: dict[str, Any], *, quiet: bool) -> Dataset:
    """Store an array that is in memory."""
    if array.nbytes <= MAX_REQUEST_BYTES:
        try:
            return _store_at_once(transfer, "tensorage_store", array, meta, f"storing {meta['key']!r}")
        except TooMuchError:
            logger.debug("storing %r in several requests: one was too much", meta["key"])
    return _store_staged(transfer, array, meta, quiet=quiet)


def store_flats(
    transfer: Transfer,
    parts_of: Callable[[Dataset], Iterable[npt.NDArray[Any]]],
    meta: dict[str, Any],
    *,
    quiet: bool,
) -> Dataset:
    """Store an array that comes in parts, and need never exist whole.

    Parameters
    ----------
    parts_of
        Gives its elements, in one dimension, once it is declared.
    """
    dataset = begin(transfer, meta)

    def send(advance: Advance) -> None:
        send_runs(transfer, dataset, cut_flats(parts_of(dataset), dataset, MAX_REQUEST_BYTES), advance)

    return stage(transfer, dataset, send, dataset.nbytes, quiet=quiet)


def append_rows(
    transfer: Transfer,
    key: str,
    data: npt.ArrayLike,
    known: Dataset | None,
    open_array: Callable[[], Dataset],
    *,
    quiet: bool,
) -> Dataset:
    """Add rows at the end of axis 0 of an array: once, however often a request is repeated.

    Rows that fit one request are sent in their own dtype, which is mostly that of the array; where it is not,
    the answer says which one is, and they are sent again.

    Parameters
    ----------
    known
        The array, if the caller has opened it.
    open_array
        Opens it, where what is to be sent depends on it.
    """
    rows = as_array(data) if known is None else cast_to(data, known)
    meta = {
        "key": key,
        "shape": rows.shape,
        "dtype": storable_dtype(rows.dtype).str,
        "operation": new_operation(),
    }
    if rows.nbytes <= MAX_REQUEST_BYTES:
        try:
            return _store_at_once(transfer, "tensorage_append", rows, meta, f"appending to {key!r}")
        except OtherDTypeError as error:
            if not error.description:
                raise
            now = Dataset.from_json(error.description)
            return append_rows(transfer, key, data, now, open_array, quiet=quiet)
        except TooMuchError:
            logger.debug("appending to %r in several requests: one was too much", key)
    target = open_array()
    rows = cast_to(data, target)
    check_rows(rows, target)
    staged_meta = {
        "key": key, "shape": rows.shape, "dtype": target.dtype.str, "chunk": target.block_size, "append": True,
    }  # fmt: skip
    try:
        return _store_staged(transfer, rows, staged_meta, quiet=quiet)
    except KeyNotFoundError as error:
        # What is staged for an array goes along with it.
        raise ChangedError(
            f"appending to {key!r}: it was replaced or deleted meanwhile. Nothing was appended."
        ) from error


def send_rows(
    transfer: Transfer, dataset: Dataset, rows: npt.NDArray[Any], first: int, advance: Advance
) -> None:
    """Store elements of a staged dataset, from position `first` of the flat array on."""
    pieces = cut_array(rows, dataset.block_size, MAX_REQUEST_BYTES)
    moved = (replace(piece, index=first + piece.index) for piece in pieces)
    send_runs(transfer, dataset, moved, advance)


def _store_at_once(
    transfer: Transfer, function: str, array: npt.NDArray[Any], meta: dict[str, Any], asked: str
) -> Dataset:
    flat = np.ascontiguousarray(array, dtype=meta["dtype"]).reshape(-1)
    # An append is cut into blocks as its array is, whose chunk the sender need not know.
    head = header(count=flat.size, block_size=meta.get("chunk", 1), meta=meta)
    answer = with_room(transfer, lambda: transfer.send(function, [head, bytes_of(flat)], asked))
    return written(transfer, answer)


def _store_staged(
    transfer: Transfer, array: npt.NDArray[Any], meta: dict[str, Any], *, quiet: bool
) -> Dataset:
    def write() -> Dataset:
        dataset = begin(transfer, {**meta, "operation": new_operation()})
        return stage(
            transfer,
            dataset,
            lambda advance: send_rows(transfer, dataset, array, 0, advance),
            array.nbytes,
            quiet=quiet,
        )

    return from_the_beginning(write)
