"""Arrays as rows of a table, over PostgREST.

An array is cut into blocks of about 1 MiB; one block is a row of ``tensors``. A small array is written by
one request. A larger one is staged: declared, filled with blocks in parallel, and made visible by a
commit, in one transaction. A selection is read by as few requests as its bytes allow.

Here is what a context can do; how elements travel is in `tensorage.backend.writing`, `assigning` and `blocks`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from tensorage.backend.arrays import as_array, as_attrs, as_dims, cast_to, check_key, is_plain
from tensorage.backend.assigning import assign
from tensorage.backend.base import BaseContext, box_selection
from tensorage.backend.blocks import fetch_box
from tensorage.backend.faults import check_version, missing_schema
from tensorage.backend.progress import progress
from tensorage.backend.protocol import block_elements
from tensorage.backend.writing import (
    append_rows,
    begin,
    commit,
    new_operation,
    send_rows,
    store_array,
    store_blocks,
    sweep,
    written,
)
from tensorage.errors import IncompleteTensorError, InvalidInputError, KeyNotFoundError, SchemaError
from tensorage.indexing.reading import plan
from tensorage.indexing.runs import MAX_REQUEST_BYTES
from tensorage.indexing.selection import Selection
from tensorage.types import Dataset, storable_dtype

if TYPE_CHECKING:
    from tensorage.session import BackendSession

__all__ = ["DatabaseContext"]

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
        extents = _extents(shape)
        if dim != len(extents):
            raise InvalidInputError(
                f"dim={dim} contradicts the shape {extents}, which has {len(extents)} axes"
            )
        meta = _meta(
            key, extents, storable_dtype(type), chunk_size, is_shared=is_shared, attrs=attrs, dims=dims,
            overwrite=overwrite,
        )  # fmt: skip
        dataset = begin(self.backend.transfer, meta)
        if dataset.size == 0:
            dataset = commit(self.backend.transfer, dataset)
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
        send_rows(self.backend.transfer, dataset, rows, first, lambda _bytes: None)
        try:
            self._declared[data_id] = commit(self.backend.transfer, dataset)
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
        arguments = {"key": key, "operation": new_operation()}
        answer = self.backend.transfer.call("tensorage_remove", arguments, f"deleting {key!r}")
        sweep(self.backend.transfer, answer["left"])
        return True

    def list_dataset_keys(self) -> list[str]:
        return list(self.iterate_keys())

    # What stores and tensors are made of -------------------------------------------------------------

    def iterate_keys(self, prefix: str = "") -> Iterator[str]:
        """Every key that this user can open and that begins with `prefix`, sorted by code point, a page at a time."""
        after = ""
        while True:
            arguments = {"prefix": prefix, "after": after, "max_rows": KEYS_PER_PAGE}
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
        meta = _meta(
            key, array.shape, storable_dtype(array.dtype), chunk_size, is_shared=is_shared, attrs=attrs, dims=dims,
            overwrite=overwrite,
        )  # fmt: skip
        return store_array(self.backend.transfer, array, meta, quiet=quiet)

    def write_blocks(
        self,
        key: str,
        blocks: Iterable[npt.ArrayLike],
        shape: Sequence[int],
        dtype: npt.DTypeLike,
        *,
        chunk_size: int | None = None,
        is_shared: bool = False,
        attrs: Mapping[str, Any] | None = None,
        dims: Sequence[str] | None = None,
        overwrite: bool = False,
        quiet: bool = True,
    ) -> Dataset:
        """Store an array that comes as consecutive blocks of rows. No more of it is in memory than is under way."""
        extents = _extents(shape)
        if not extents:
            raise InvalidInputError(f"{key!r} of shape () has no rows that blocks could hold: store it whole")
        meta = _meta(
            key, extents, storable_dtype(dtype), chunk_size, is_shared=is_shared, attrs=attrs, dims=dims,
            overwrite=overwrite,
        )  # fmt: skip
        return store_blocks(self.backend.transfer, blocks, meta, quiet=quiet)

    def append(
        self, key: str, data: npt.ArrayLike, *, known: Dataset | None = None, quiet: bool = True
    ) -> Dataset:
        """Add rows at the end of axis 0, all at once. Done once, however often the request is repeated.

        Parameters
        ----------
        known
            The array, if it has been opened.
        """
        return append_rows(self.backend.transfer, key, data, known, lambda: self.open(key), quiet=quiet)

    def assign(
        self, dataset: Dataset, selection: Selection, value: npt.ArrayLike, *, quiet: bool = True
    ) -> Dataset:
        """``array[selection] = value`` for a stored array, as numpy does it: all of it, or nothing.

        Raises
        ------
        ChangedError
            If the array is not what it was when `dataset` was opened.
        """
        return assign(self.backend.transfer, dataset, selection, value, quiet=quiet)

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
        reading = plan(dataset.shape, selection, dataset.dtype.itemsize, dataset.chunk)
        if out is not None and (out.shape != reading.shape or out.dtype != dataset.dtype):
            raise InvalidInputError(
                f"out has shape {out.shape} and dtype {out.dtype}, the selection has shape {reading.shape} and "
                f"dtype {dataset.dtype}"
            )
        direct = reading.is_whole_box and is_plain(out, dataset, reading.shape)
        box = out.reshape(-1) if direct and out is not None else np.empty(reading.size, dataset.dtype)
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

    def annotate(
        self,
        dataset: Dataset,
        *,
        attrs: Mapping[str, Any] | None = None,
        removed: Sequence[str] = (),
        replace: bool = False,
    ) -> Dataset:
        """Change attributes: `removed` go, `attrs` are set, and with `replace` all others go too."""
        arguments = {
            "data_id": dataset.id, "attrs": as_attrs(attrs or {}), "removed": list(removed), "replace": replace,
        }  # fmt: skip
        return self._annotated(dataset, arguments)

    def name_axes(self, dataset: Dataset, dims: Sequence[str] | None) -> Dataset:
        """Give the axes names, or none."""
        arguments = {"data_id": dataset.id, "dims": as_dims(dims, dataset.ndim), "set_dims": True}
        return self._annotated(dataset, arguments)

    def rename(self, key: str, new_key: str, *, overwrite: bool = False) -> Dataset:
        """Give an array of this user another key. With `overwrite`, in place of the array that is there."""
        check_key(new_key)
        arguments = {"key": key, "new_key": new_key, "overwrite": overwrite, "operation": new_operation()}
        answer = self.backend.transfer.call("tensorage_rename", arguments, f"renaming {key!r} to {new_key!r}")
        return written(self.backend.transfer, answer)

    def compact(self, key: str) -> int:
        """Merge small neighbouring blocks of an array of this user. How many blocks fewer it has now."""
        merged, after = 0, 0
        while after is not None:
            arguments = {"key": key, "after": after}
            answer = self.backend.transfer.call("tensorage_compact", arguments, f"compacting {key!r}")
            merged, after = merged + answer["merged"], answer["after"]
        return merged

    def _annotated(self, dataset: Dataset, arguments: Mapping[str, Any]) -> Dataset:
        asked = f"describing {dataset.key!r}"
        return Dataset.from_json(self.backend.transfer.call("tensorage_annotate", arguments, asked))

    def _dataset(self, data_id: int) -> Dataset:
        return Dataset.from_json(
            self.backend.transfer.call(
                "tensorage_dataset", {"data_id": data_id}, f"opening dataset {data_id}"
            )
        )


def _extents(shape: Sequence[int]) -> tuple[int, ...]:
    extents = tuple(int(extent) for extent in shape)
    if any(extent < 0 for extent in extents):
        raise InvalidInputError(f"the shape {extents} has a negative extent")
    return extents


def _meta(
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
    """What the backend is told of an array that is to be stored."""
    check_key(key)
    if chunk_size is None:
        chunk_size = BLOCK_BYTES // dtype.itemsize
    elif not 1 <= chunk_size <= MAX_REQUEST_BYTES // dtype.itemsize:
        raise InvalidInputError(
            f"chunk_size={chunk_size} elements: a block of {dtype} holds 1 to "
            f"{MAX_REQUEST_BYTES // dtype.itemsize} of them ({MAX_REQUEST_BYTES} bytes)"
        )
    return {
        "key": key,
        "shape": shape,
        "dtype": dtype.str,
        "chunk": block_elements(shape, chunk_size),
        "is_shared": is_shared,
        "attrs": as_attrs(attrs or {}),
        "dims": as_dims(dims, len(shape)),
        "overwrite": overwrite,
        "operation": new_operation(),
    }
