"""Arrays as rows of a table, over PostgREST.

An array is cut into blocks of about 1 MiB; one block is a row of ``tensors``. A small array is written by
one request. A larger one is staged: declared, filled with blocks in parallel, and made visible by a
commit, in one transaction. A selection is read by as few requests as its bytes allow.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from tensorage.backend.arrays import as_array, cast_to, check_key, is_plain
from tensorage.backend.base import BaseContext, box_selection
from tensorage.backend.blocks import MAX_REQUEST_BYTES, fetch_box, send_blocks
from tensorage.backend.faults import check_version, missing_schema
from tensorage.backend.progress import progress
from tensorage.backend.protocol import block_elements, bytes_of, header
from tensorage.backend.transfer import TooMuchError
from tensorage.errors import (
    IncompleteTensorError,
    InvalidInputError,
    KeyNotFoundError,
    SchemaError,
)
from tensorage.indexing import Selection, plan
from tensorage.types import Dataset, storable_dtype

if TYPE_CHECKING:
    from tensorage.session import BackendSession

__all__ = ["DatabaseContext"]

logger = logging.getLogger(__name__)

#: Bytes of one stored block, unless a chunk size is given.
BLOCK_BYTES = 1024 * 1024

#: Keys in one answer: hosted Supabase gives no more rows than that.
KEYS_PER_PAGE = 1000


class DatabaseContext(BaseContext):
    """Arrays as rows, as the user of one session."""

    def __init__(self, backend: BackendSession) -> None:
        super().__init__(backend)
        self._declared: dict[int, Dataset] = {}

    # The interface of every engine ---------------------------------------------------------------

    def check_schema_installed(self) -> bool:
        try:
            version = self.backend.transfer.schema_version()
        except SchemaError as error:
            raise missing_schema("there is no function tensorage_version") from error
        check_version(version)
        return True

    def insert_dataset(
        self,
        key: str,
        shape: Sequence[int],
        dim: int,
        type: npt.DTypeLike = "float32",  # noqa: A002 - the name is part of the API
        is_shared: bool = False,
        *,
        chunk_size: int | None = None,
        attrs: Mapping[str, Any] | None = None,
        dims: Sequence[str] | None = None,
        overwrite: bool = False,
    ) -> Dataset:
        extents = tuple(int(extent) for extent in shape)
        if dim != len(extents):
            raise InvalidInputError(
                f"dim={dim} contradicts the shape {extents}, which has {len(extents)} axes"
            )
        if any(extent < 0 for extent in extents):
            raise InvalidInputError(f"the shape {extents} has a negative extent")
        meta = self._meta(
            key, extents, storable_dtype(type), chunk_size, is_shared=is_shared, attrs=attrs, dims=dims,
            overwrite=overwrite,
        )  # fmt: skip
        dataset = self._begin(meta)
        if dataset.size == 0:
            dataset = self._commit(dataset)
        self._declared[dataset.id] = dataset
        return dataset

    def insert_tensor(self, data_id: int, data: npt.ArrayLike, offset: int = 0) -> bool:
        dataset = self._declared.get(data_id) or self._dataset(data_id)
        self._declared[data_id] = dataset
        rows = cast_to(data, dataset)
        if dataset.ndim == 0:
            rows, first = rows.reshape(()), 0
        elif rows.shape[1:] != dataset.shape[1:] or rows.ndim != dataset.ndim:
            raise InvalidInputError(
                f"rows of shape {rows.shape} do not fit the declared shape {dataset.shape}"
            )
        elif not 0 <= offset <= dataset.shape[0] - rows.shape[0]:
            raise InvalidInputError(
                f"rows {offset} to {offset + rows.shape[0]} lie outside of the declared shape {dataset.shape}"
            )
        else:
            first = offset * (dataset.size // dataset.shape[0]) if dataset.shape[0] else 0
        if rows.size == 0:
            return True
        send_blocks(self.backend.transfer, dataset, rows, first, lambda _bytes: None)
        try:
            self._declared[data_id] = self._commit(dataset)
        except IncompleteTensorError:
            # Not the last rows: the array stays invisible until those have come.
            return True
        return True

    def append_tensor(self, key: str, data: npt.ArrayLike) -> bool:
        self.append(key, data)
        return True

    def get_dataset(self, key: str) -> Dataset:
        return self.open(key)

    def get_tensor(
        self,
        key: str,
        index_low: int | None = None,
        index_up: int | None = None,
        slice_low: Sequence[int] | None = None,
        slice_up: Sequence[int] | None = None,
    ) -> npt.NDArray[Any]:
        dataset = self.open(key)
        selection = box_selection(dataset.ndim, index_low, index_up, slice_low, slice_up)
        return np.asarray(self.read(dataset, selection))

    def remove_dataset(self, key: str) -> bool:
        arguments = {"key": key, "operation": _new_operation()}
        answer = self.backend.transfer.call("tensorage_remove", arguments, f"deleting {key!r}")
        self._sweep(answer["left"])
        return True

    def list_dataset_keys(self) -> list[str]:
        return list(self.iterate_keys())

    # What stores and tensors are made of -------------------------------------------------------------

    def iterate_keys(self) -> Iterator[str]:
        """Every key that this user can open, sorted by code point, a page at a time."""
        after = ""
        while True:
            arguments = {"after": after, "max_rows": KEYS_PER_PAGE}
            page: list[str] = self.backend.transfer.call("tensorage_list", arguments, "listing the keys")
            yield from page
            if len(page) < KEYS_PER_PAGE:
                return
            after = page[-1]

    def count_keys(self) -> int:
        """How many keys this user can open."""
        return int(self.backend.transfer.call("tensorage_count", {}, "counting the keys"))

    def open(self, key: str, owner: str | None = None) -> Dataset:
        """The catalogue's entry of an array of this user, or else of one that somebody shares.

        Parameters
        ----------
        owner
            E-mail address of the user whose array is meant.
        """
        try:
            check_key(key)
        except InvalidInputError as error:
            raise KeyNotFoundError(f"opening {key!r}: there is no such array, because {error}") from error
        arguments = {"key": key} if owner is None else {"key": key, "owner": owner}
        return Dataset.from_json(self.backend.transfer.call("tensorage_open", arguments, f"opening {key!r}"))

    def share(self, key: str, is_shared: bool) -> Dataset:
        """Let every signed-in user read an array of this user, or only this user again."""
        arguments = {"key": key, "is_shared": is_shared}
        return Dataset.from_json(self.backend.transfer.call("tensorage_share", arguments, f"sharing {key!r}"))

    def write(
        self,
        key: str,
        data: npt.ArrayLike,
        *,
        chunk_size: int | None = None,
        is_shared: bool = False,
        attrs: Mapping[str, Any] | None = None,
        dims: Sequence[str] | None = None,
        overwrite: bool = False,
        quiet: bool = True,
    ) -> Dataset:
        """Store an array: all of it becomes visible in one step, or nothing is stored."""
        array = as_array(data)
        dtype = storable_dtype(array.dtype)
        meta = self._meta(
            key,
            array.shape,
            dtype,
            chunk_size,
            is_shared=is_shared,
            attrs=attrs,
            dims=dims,
            overwrite=overwrite,
        )
        if array.nbytes <= MAX_REQUEST_BYTES:
            try:
                return self._written(self._send_whole("tensorage_store", array, meta, f"storing {key!r}"))
            except TooMuchError:
                meta["operation"] = _new_operation()
        return self._staged(array, meta, quiet=quiet)

    def append(self, key: str, data: npt.ArrayLike, *, quiet: bool = True) -> Dataset:
        """Add rows at the end of axis 0, all at once. Done once, however often the request is repeated."""
        target = self.open(key)
        rows = cast_to(data, target)
        if target.ndim == 0 or rows.ndim != target.ndim or rows.shape[1:] != target.shape[1:]:
            raise InvalidInputError(
                f"rows of shape {rows.shape} cannot be appended to {key!r} of shape {target.shape}: "
                "all but the first axis have to be the same"
            )
        if rows.size == 0 and rows.shape[0] == 0:
            return target
        meta = {
            "key": key, "shape": rows.shape, "dtype": target.dtype.str, "chunk": target.chunk, "append": True,
            "operation": _new_operation(),
        }  # fmt: skip
        if rows.nbytes <= MAX_REQUEST_BYTES:
            try:
                return self._written(
                    self._send_whole("tensorage_append", rows, meta, f"appending to {key!r}")
                )
            except TooMuchError:
                meta["operation"] = _new_operation()
        return self._staged(rows, meta, quiet=quiet)

    def read(
        self,
        dataset: Dataset,
        selection: Selection,
        *,
        out: npt.NDArray[Any] | None = None,
        quiet: bool = True,
    ) -> Any:
        """``array[selection]`` of a stored array, as numpy gives it.

        Parameters
        ----------
        out
            Array of the result's shape and dtype, filled and returned instead of a new one.

        Raises
        ------
        ChangedError
            If the array is not what it was when `dataset` was opened.
        """
        reading = plan(dataset.shape, selection, dataset.dtype.itemsize)
        if out is not None and (out.shape != reading.shape or out.dtype != dataset.dtype):
            raise InvalidInputError(
                f"out has shape {out.shape} and dtype {out.dtype}, the selection has shape {reading.shape} and "
                f"dtype {dataset.dtype}"
            )
        direct = reading.is_whole_box and is_plain(out, dataset, reading.box_shape)
        box = out if direct and out is not None else np.empty(reading.box_shape, dataset.dtype)
        if reading.size:
            with progress(reading.size * dataset.dtype.itemsize, dataset.key, quiet=quiet) as advance:
                fetch_box(self.backend.transfer, dataset, reading, box, advance)
        if direct:
            return out
        result = reading.pick(box)
        if out is None:
            # A view into a much larger box would keep all of it in memory.
            small = isinstance(result, np.ndarray) and 2 * result.size < box.size
            return result.copy() if small else result
        out[...] = result
        return out

    # Writing -------------------------------------------------------------------------------------------

    def _meta(
        self,
        key: str,
        shape: tuple[int, ...],
        dtype: np.dtype[Any],
        chunk_size: int | None,
        *,
        is_shared: bool,
        attrs: Mapping[str, Any] | None,
        dims: Sequence[str] | None,
        overwrite: bool,
    ) -> dict[str, Any]:
        check_key(key)
        if chunk_size is None:
            chunk_size = BLOCK_BYTES // dtype.itemsize
        elif not 1 <= chunk_size <= MAX_REQUEST_BYTES // dtype.itemsize:
            raise InvalidInputError(
                f"chunk_size={chunk_size} elements: a block of {dtype} holds 1 to "
                f"{MAX_REQUEST_BYTES // dtype.itemsize} of them ({MAX_REQUEST_BYTES} bytes)"
            )
        if dims is not None and len(dims) != len(shape):
            raise InvalidInputError(f"{len(dims)} dims name {len(shape)} axes: give one name for each axis")
        return {
            "key": key,
            "shape": shape,
            "dtype": dtype.str,
            "chunk": block_elements(shape, chunk_size),
            "is_shared": is_shared,
            "attrs": dict(attrs or {}),
            "dims": None if dims is None else list(dims),
            "overwrite": overwrite,
            "operation": _new_operation(),
        }

    def _send_whole(
        self, function: str, array: npt.NDArray[Any], meta: dict[str, Any], asked: str
    ) -> dict[str, Any]:
        """An array in one request."""
        flat = np.ascontiguousarray(array, dtype=meta["dtype"]).reshape(-1)
        head = header(count=flat.size, chunk=meta["chunk"], meta=meta)
        answer: dict[str, Any] = self.backend.transfer.send(function, [head, bytes_of(flat)], asked)
        return answer

    def _staged(self, array: npt.NDArray[Any], meta: dict[str, Any], *, quiet: bool) -> Dataset:
        """An array in several requests, none of them visible before the last."""
        dataset = self._begin(meta)
        try:
            with progress(array.nbytes, dataset.key, quiet=quiet) as advance:
                send_blocks(self.backend.transfer, dataset, array, 0, advance)
            return self._commit(dataset)
        except BaseException:
            self._abort(dataset)
            raise

    def _begin(self, meta: dict[str, Any]) -> Dataset:
        return Dataset.from_json(
            self.backend.transfer.call("tensorage_begin", meta, f"storing {meta['key']!r}")
        )

    def _commit(self, dataset: Dataset) -> Dataset:
        arguments = {"data_id": dataset.id, "operation": _new_operation()}
        return self._written(
            self.backend.transfer.call("tensorage_commit", arguments, f"storing {dataset.key!r}")
        )

    def _abort(self, dataset: Dataset) -> None:
        """Give up what was staged. Where even that fails, it is swept a day later."""
        try:
            self.backend.transfer.call(
                "tensorage_abort", {"data_id": dataset.id}, f"giving up {dataset.key!r}"
            )
        except (OSError, RuntimeError) as error:
            # The caller is about to be told why the write failed: that is the error which matters.
            logger.warning("the staged blocks of %r stay for a day: %s", dataset.key, error)

    def _written(self, answer: dict[str, Any]) -> Dataset:
        self._sweep(answer.get("left", 0))
        return Dataset.from_json(answer)

    def _sweep(self, left: int) -> None:
        """Delete, a piece at a time, what was removed or replaced and was too much for one statement."""
        while left:
            left = self.backend.transfer.call("tensorage_sweep", {}, "deleting what was replaced")

    def _dataset(self, data_id: int) -> Dataset:
        return Dataset.from_json(
            self.backend.transfer.call(
                "tensorage_dataset", {"data_id": data_id}, f"opening dataset {data_id}"
            )
        )


def _new_operation() -> str:
    return str(uuid.uuid4())
