"""Writing of arrays to the database, and appends: in one request if the array fits, and staged otherwise.

Either way, all of an array is stored, or nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from tensorage.backend.blocks.cutting import cut_array, cut_flats
from tensorage.backend.blocks.requests import send_runs
from tensorage.backend.engine import OtherEngineError
from tensorage.backend.restarts import gone_is_changed
from tensorage.backend.staging import (
    begin,
    begin_anew_after_failures,
    final_operation,
    finish_write,
    stage,
    with_room,
)
from tensorage.backend.transfer import Transfer, Work
from tensorage.backend.wire.faults import OtherDTypeError
from tensorage.backend.wire.header import bytes_of, header
from tensorage.backend.wire.http import TooMuchError
from tensorage.backend.wire.progress import Advance
from tensorage.dtypes import dtype_of, form_of, storable_dtype
from tensorage.errors import InvalidInputError
from tensorage.indexing.runs import MAX_REQUEST_BYTES
from tensorage.model.casting import cast_to
from tensorage.model.values import as_array, check_rows
from tensorage.types import Dataset

__all__ = ["BlockWriter", "send_rows"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class BlockWriter:
    """Writes arrays as blocks.

    Parameters
    ----------
    transfer
        Carries the requests.
    quiet
        Never show a progress bar.
    owner
        Address, or id of the account, of somebody to whose arrays rows are appended. None for this user's own arrays.
    """

    transfer: Transfer
    quiet: bool
    owner: str | None = None

    def store_array(self, array: npt.NDArray[Any], meta: dict[str, Any]) -> Dataset:
        """Store an array in memory."""
        if array.nbytes <= MAX_REQUEST_BYTES:
            try:
                return self._store_at_once("tensorage_store", array, meta, f"storing {meta['key']!r}")
            # Gateways may allow less than the request cap, or the statement may take too long.
            except TooMuchError:
                logger.debug("storing %r in several requests: one was too much", meta["key"])
        return self._store_staged(array, meta)

    def store_flats(
        self, flats_of: Callable[[Dataset], Iterable[npt.NDArray[Any]]], meta: dict[str, Any]
    ) -> Dataset:
        """Store an array that comes in parts, and never has to exist whole.

        Parameters
        ----------
        flats_of
            Returns the elements of the declared array, in one-dimensional parts.
        """
        work = self._begin(meta)

        def send(advance: Advance) -> None:
            send_runs(work, cut_flats(flats_of(work.dataset), work.dataset, MAX_REQUEST_BYTES), advance)

        return stage(work, send, work.dataset.nbytes)

    def append_rows(
        self, key: str, data: npt.ArrayLike, known: Dataset | None, open_array: Callable[[], Dataset]
    ) -> Dataset:
        """Add rows at the end of axis 0 of an array, once however often the request is repeated.

        Rows that fit one request are sent in their own dtype, which mostly is the array's dtype. If not, the answer
        names the array's dtype, and the rows are sent again.

        Parameters
        ----------
        known
            Entry of the array, if the caller has opened it.
        open_array
            Opens the array, if its entry is needed.
        """

        def open_even() -> Dataset:
            target = open_array()
            if target.ragged is not None:
                raise OtherEngineError(target)
            return target

        rows = self._rows_of(data, open_even) if known is None else cast_to(data, known)
        stored = storable_dtype(rows.dtype)
        meta = {
            "key": key,
            "shape": rows.shape,
            "dtype": form_of(stored),
            "operation": final_operation(),
            "owner": self.owner,
        }
        if rows.nbytes <= MAX_REQUEST_BYTES:
            try:
                return self._store_at_once("tensorage_append", rows, meta, f"appending to {key!r}")
            except OtherDTypeError as error:
                if not error.description:
                    raise
                now = Dataset.from_json(error.description)
                if now.ragged is not None:
                    raise OtherEngineError(now) from error
                return self.append_rows(key, data, now, open_array)
            except TooMuchError:
                logger.debug("appending to %r in several requests: one was too much", key)
        # A staged append is cut into blocks here, so the entry is needed now.
        target = open_even()
        rows = cast_to(data, target)
        check_rows(rows, target)
        staged_meta = {
            "key": key, "shape": rows.shape, "dtype": form_of(target.dtype), "chunk": target.block_size, "append": True,
            "owner": self.owner,
        }  # fmt: skip
        with gone_is_changed(
            f"appending to {key!r}: it was replaced or deleted meanwhile, or is not shared any more. Nothing was "
            "appended."
        ):
            return self._store_staged(rows, staged_meta)

    @staticmethod
    def _rows_of(data: npt.ArrayLike, open_array: Callable[[], Dataset]) -> npt.NDArray[Any]:
        """Return rows in a dtype of their own, or that of the array, which alone makes records of tuples."""
        try:
            rows = as_array(data)
        except InvalidInputError:
            if not isinstance(data, list | tuple):
                raise
        else:
            if rows.dtype.kind != "O" or not isinstance(data, list | tuple):
                return rows
        return cast_to(data, open_array())

    def _store_at_once(
        self, function: str, array: npt.NDArray[Any], meta: dict[str, Any], asked: str
    ) -> Dataset:
        flat = np.ascontiguousarray(array, dtype=dtype_of(meta["dtype"])).reshape(-1)
        # The database cuts an append into blocks of the array's own size, so the sender need not know it.
        head = header(count=flat.size, block_size=meta.get("chunk", 1), meta=meta)
        transfer = self.transfer
        answer = with_room(transfer, lambda: transfer.send(function, [head, bytes_of(flat)], asked))
        return finish_write(transfer, answer)

    def _store_staged(self, array: npt.NDArray[Any], meta: dict[str, Any]) -> Dataset:
        def write() -> Dataset:
            work = self._begin(meta)
            return stage(work, partial(send_rows, work, array, 0), array.nbytes)

        return begin_anew_after_failures(write)

    def _begin(self, meta: Mapping[str, Any]) -> Work:
        return Work.storing(self.transfer, begin(self.transfer, meta), quiet=self.quiet)


def send_rows(work: Work, rows: npt.NDArray[Any], first: int, advance: Advance) -> None:
    """Store elements of a staged dataset, from position `first` of the flat array on."""
    runs = cut_array(rows, work.dataset.block_size, MAX_REQUEST_BYTES)
    send_runs(work, (replace(run, index=first + run.index) for run in runs), advance)
