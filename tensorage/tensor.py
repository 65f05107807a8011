"""A lazy handle on one stored array."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt

from tensorage.adapters.dask import PinnedArray
from tensorage.adapters.labelled import append_labelled, is_labelled, labels_of
from tensorage.backend.arrays import OpenArray
from tensorage.errors import CacheError, InvalidInputError
from tensorage.indexing.selection import Selection
from tensorage.model.attributes import Attributes
from tensorage.model.coords import Coords, as_coords, replace_coords
from tensorage.model.memory import describe_bytes
from tensorage.tracebacks import end_tracebacks_here
from tensorage.types import Engine

if TYPE_CHECKING:
    import dask.array
    import xarray as xr

    from tensorage.cache.cached import CachedReader
    from tensorage.training.batches import Batches

__all__ = ["Tensor"]


@end_tracebacks_here
class Tensor(OpenArray):
    """A stored array: its shape and dtype are known, its elements are read when they are asked for.

    Made by `TensorStore.open`. A read that finds the array changed since it was opened begins anew, on its present
    version, so that a result never mixes two versions.

    Parameters
    ----------
    arrays
        Arrays of the user who reads it.
    dataset
        Its entry in the catalogue.
    owner
        E-mail address of the user whose array was asked for, if that was said.
    """

    @property
    def attrs(self) -> Attributes:
        """The attributes stored with it: a dictionary that stores what is changed in it, at once.

        To be assigned as a whole, too: ``tensor.attrs = {"units": "K"}``.
        """
        return Attributes(lambda: self.dataset.attrs, self._annotate)

    @attrs.setter
    def attrs(self, attrs: Mapping[str, Any]) -> None:
        self._annotate(attrs=attrs, replace=True)

    @property
    def dims(self) -> tuple[str, ...] | None:
        """Names of the axes, if it has any. Can be assigned: one for each axis, or None."""
        return self.dataset.dims

    @dims.setter
    def dims(self, dims: Sequence[str] | None) -> None:
        self.dataset = self.arrays.name_axes(self.dataset, dims)

    @property
    def coords(self) -> Coords:
        """Labels of the axes, arrays by the name of the coordinate. They are kept with the attributes.

        Can be assigned as a whole: for each name labels along the axis of that name, or along those of the coordinate
        that is there; ``(dims, labels)``; or ``(dims, labels, attrs)``, as for xarray. ``{**tensor.coords, ...}`` adds
        some. Labels are numbers, truth values, times or text, and take no more than 1 MiB together, compressed. Rows
        that are appended without labels make coordinates shorter than their axis.

        Examples
        --------
        .. code-block:: python

            weather.dims = ("time", "lat", "lon")
            weather.coords = {"lat": np.linspace(90, -90, 721), "season": ("time", ["winter", "spring"])}
        """
        return Coords(self.dataset)

    @coords.setter
    def coords(self, coords: Mapping[str, Any]) -> None:
        made = as_coords(coords, self.dataset)
        self.dataset = self.arrays.label(self.dataset, replace_coords(self.dataset, made))

    @property
    def engine(self) -> Engine:
        """Where it is kept."""
        return self.dataset.engine

    def __iter__(self) -> Iterator[Any]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, selection: Selection) -> Any:
        """``array[selection]``, as numpy gives it for any index expression; only what is needed travels.

        See `tensorage.indexing` for how much that is.
        """
        return self.read(selection)

    def __setitem__(self, selection: Selection, value: npt.ArrayLike) -> None:
        """``array[selection] = value``, as numpy does it: all of it at once for every reader, or not at all.

        Values are cast within a kind, as from float64 to float32; of another kind, and as integers, they have to
        stay what they are.

        Raises
        ------
        IndexError
            As numpy's.
        InvalidInputError
            If the value does not broadcast to the selection.
        DTypeError
            If the values are others in the array's dtype.
        PermissionDeniedError
            If the array is somebody else's.
        """
        self.dataset = self.on_latest(lambda now: self.arrays.assign(now, selection, value))

    def __getitems__(self, indices: Sequence[int]) -> list[Any]:
        """Samples along the first axis, in one request: PyTorch's way of asking for a batch."""
        return list(self.read(np.asarray(indices, dtype=np.int64)))

    def batches(
        self,
        batch_size: int,
        *,
        shuffle: bool = False,
        seed: int | None = None,
        drop_last: bool = False,
        prefetch: int = 4,
        start_at: Mapping[str, Any] | None = None,
    ) -> Batches:
        """Batches of samples along the first axis, fetched before a loop asks for them: see `tensorage.batches`.

        Examples
        --------
        .. code-block:: python

            for batch in store.open("images").batches(64, shuffle=True, seed=0):
                step(batch)
        """
        from tensorage.training.batches import batches

        return batches(
            self, batch_size=batch_size, shuffle=shuffle, seed=seed, drop_last=drop_last, prefetch=prefetch,
            start_at=start_at,
        )  # fmt: skip

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> npt.NDArray[Any]:
        if copy is False:
            raise ValueError("the elements of a stored array have to be read: copy=False is not possible")
        return np.asarray(self.read(...), dtype=dtype)

    def cached(
        self, directory: str | os.PathLike[str], *, max_bytes: int | None = None, check_every_s: float = 1.0
    ) -> Tensor:
        """The same array, read through a cache on the local disk: what was read once is not fetched again.

        Neither in the next epoch nor in another process that names the folder. What is kept belongs to one version of
        the array: after an overwrite, an assignment or an append everything is fetched anew. Changes by this session
        are seen at once, those by others within `check_every_s`.

        Parameters
        ----------
        directory
            A folder of its own on a local disk: a new one, an empty one, or one that is a cache already, whatever
            arrays it is of.
        max_bytes
            What the folder may take on the disk, also together with what other arrays have in it. When it is reached,
            arrays that no process has open make room, those first that were used the longest time ago. If that is not
            enough, no more is kept, and what is missing is fetched each time. By default, the disk is the limit.
        check_every_s
            The catalogue is asked for the array's version when first read, and by the first read after so many
            seconds. With 0, by every read.

        Raises
        ------
        CacheError
            If the folder cannot be made or written to, or holds something else. Later, also from a read: if the disk is
            full or cannot be written to any more.
        InvalidInputError
            If `max_bytes` or `check_every_s` is negative.

        Examples
        --------
        .. code-block:: python

            images = store.open("images").cached("~/.cache/my-training", max_bytes=20 * 2**30)
            for epoch in range(10):
                for batch in np.array_split(random.permutation(len(images)), len(images) // 64):
                    step(images[batch])
        """
        try:
            from tensorage.cache.cached import CachedReader
        except ModuleNotFoundError as error:
            if error.name != "fcntl":
                raise
            raise CacheError("caches on the local disk need the file locks of Linux or macOS") from error
        reader = CachedReader(directory, max_bytes=max_bytes, check_every_s=check_every_s)
        reader.use(self)
        return Tensor(self.arrays, self.dataset, self.asked_owner, reader=reader)

    @property
    def cache(self) -> CachedReader | None:
        """The cache on the local disk that it is read through, if there is one: its `directory` and `max_bytes`."""
        return cast("CachedReader | None", self.reader)

    def to_dask(self, chunks: Any = None) -> dask.array.Array:
        """An array of dask, which reads what it needs when it is computed, by whoever computes it.

        It is of the array as this handle has seen it last. Once elements have changed, computing raises
        `ChangedError`: then `refresh`, and make another one.

        Parameters
        ----------
        chunks
            As for `dask.array.from_array`, also by the names of dims: ``{"time": 24}``. By default blocks of up to
            32 MiB that are cheap to read: of Storage, whole objects; of the database, consecutive rows.

        Raises
        ------
        InvalidInputError
            If the chunks do not fit the shape, or dask is not installed.

        Examples
        --------
        .. code-block:: python

            means = store.open("era5").to_dask().mean(axis=0)
            store["era5/mean"] = means
        """
        from tensorage.adapters.dask import to_dask

        return to_dask(self.arrays, self.dataset, chunks)

    def to_xarray(self, chunks: Any = None) -> xr.DataArray:
        """A DataArray of xarray, with the labels that were stored. It reads what it needs, when it needs it.

        These are its name, dims, coordinates and attributes. An array whose axes have no names gets xarray's, and one
        that did not come from xarray has its key for a name. Assigning to elements changes a copy in memory.

        It is of the array as this handle has seen it last. Once elements of that have changed, reading raises
        `ChangedError`: then `refresh`, and make another one.

        Parameters
        ----------
        chunks
            Make it one of dask, computed in parts: as for `to_dask`, where ``"auto"`` is its default.

        Raises
        ------
        InvalidInputError
            If xarray, or dask where `chunks` asks for it, is not installed; or if two axes have the same name.
        CorruptTensorError
            If the coordinates are damaged.

        Warns
        -----
        UserWarning
            If a coordinate is left out, as rows were appended without labels.

        Examples
        --------
        .. code-block:: python

            store["t2m"] = xarray.open_dataset("era5.nc")["t2m"]
            store.open("t2m").to_xarray().sel(lat=52.5, lon=13.4, method="nearest").plot()
        """
        try:
            from tensorage.adapters.xarray import data_array_of
        except ModuleNotFoundError as error:
            raise InvalidInputError(
                f"arrays of xarray need the package {error.name!r}: pip install 'tensorage[xarray]>=0.2'"
            ) from error
        return data_array_of(self.arrays, self.dataset, None if chunks is None else self.to_dask(chunks))

    def append(self, data: npt.ArrayLike) -> None:
        """Add rows at the end of the first axis: all at once, or not at all. See `TensorStore.append`."""
        if is_labelled(data):
            rows: Any = data
            self.dataset = append_labelled(self.arrays, self.key, rows.data, labels_of(self.key, rows))
            return
        self.dataset = self.arrays.append(self.key, data, known=self.dataset)

    def __dask_tokenize__(self) -> tuple[Any, ...]:
        return PinnedArray(self.arrays.quietly(), self.dataset).__dask_tokenize__()

    def __repr__(self) -> str:
        size = describe_bytes(self.nbytes)
        cached = "" if self.cache is None else f", kept in {self.cache.directory}"
        kind = "Tensor" if self.cache is None else "CachedTensor"
        return f"<{kind} {self.key!r}, shape {self.shape}, {self.dtype}, {size}, {self.engine}{cached}>"

    def _repr_html_(self) -> str:
        from html import escape

        rows = {
            "shape": self.shape, "dtype": self.dtype, "size": describe_bytes(self.nbytes), "dims": self.dims,
            "owner": self.dataset.owner, "shared": self.dataset.is_shared, "engine": self.engine,
            "attrs": dict(self.attrs), "coords": ", ".join(self.coords),
        }  # fmt: skip
        cells = "".join(
            f"<tr><th style='text-align:left'>{name}</th><td>{escape(str(value))}</td></tr>"
            for name, value in rows.items()
            if value not in (None, {}, "")
        )
        return f"<table><caption>Tensor <b>{escape(self.key)}</b></caption>{cells}</table>"

    def _annotate(
        self, *, attrs: Mapping[str, Any] | None = None, removed: Iterable[str] = (), replace: bool = False
    ) -> None:
        self.dataset = self.arrays.annotate(self.dataset, attrs=attrs, removed=list(removed), replace=replace)
