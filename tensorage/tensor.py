"""A lazy handle on one stored array."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
import numpy.typing as npt

from tensorage.adapters.dask import PinnedArray
from tensorage.adapters.labelled import append_labelled, is_labelled, labels_of
from tensorage.backend.arrays import Arrays, OpenArray, Reader
from tensorage.backend.ragged import refuse_ragged
from tensorage.dtypes import is_small_float
from tensorage.errors import CacheError, missing_package
from tensorage.indexing.selection import Selection
from tensorage.model.attributes import Attributes
from tensorage.model.coords import Coords, as_coords, replace_coords
from tensorage.model.memory import describe_bytes
from tensorage.model.ragged import as_objects
from tensorage.model.values import DLPACK_CPU
from tensorage.tracebacks import end_tracebacks_here
from tensorage.training.rows import RowsAhead, iterate_rows
from tensorage.types import Dataset, Engine, Share

if TYPE_CHECKING:
    from datetime import datetime

    import dask.array
    import xarray as xr

    from tensorage.adapters.preview import Preview
    from tensorage.cache.cached import CachedReader
    from tensorage.training.batches import Batches

__all__ = ["Tensor"]

#: Advice for libraries that know elements of one length alone.
_READ_IN_PARTS = "Read it in parts, such as handle[:1000], or by batches()"


@end_tracebacks_here
class Tensor(OpenArray):
    """A handle on a stored array: shape and dtype are known, and elements are read when they are asked for.

    `TensorStore.open` makes handles. A read that finds the array changed begins anew on the present version. A result
    therefore never mixes two versions.

    Parameters
    ----------
    arrays
        Arrays of the user who reads.
    dataset
        Entry of the array in the catalogue.
    """

    def __init__(self, arrays: Arrays, dataset: Dataset, *, reader: Reader | None = None) -> None:
        super().__init__(arrays, dataset, reader=reader)
        self._rows = RowsAhead()

    @property
    def attrs(self) -> Attributes:
        """Attributes of the array: a dictionary that stores each change at once.

        Attributes can be assigned as a whole, too: ``tensor.attrs = {"units": "K"}``.
        """
        # The function looks the entry up each time, as changes replace it.
        return Attributes(lambda: self.dataset.attrs, self._annotate)

    @attrs.setter
    def attrs(self, attrs: Mapping[str, Any]) -> None:
        self._annotate(attrs=attrs, replace=True)

    @property
    def dims(self) -> tuple[str, ...] | None:
        """Names of the axes, if there are any. One name for each axis, or None, can be assigned."""
        return self.dataset.dims

    @dims.setter
    def dims(self, dims: Sequence[str] | None) -> None:
        self.dataset = self.arrays.name_axes(self.dataset, dims)

    @property
    def coords(self) -> Coords:
        """Labels of the axes: arrays by the name of the coordinate, kept with the attributes.

        Coordinates can be assigned as a whole, and ``{**tensor.coords, ...}`` adds some. A value is labels along the
        axis, or the stored coordinate, of that name; or ``(dims, labels)``; or ``(dims, labels, attrs)``, as for
        xarray. Labels are numbers, truth values, times or text, and take at most 1 MiB together, compressed. Rows that
        are appended without labels make coordinates shorter than their axis.

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
        """Engine that keeps the array."""
        return self.dataset.engine

    def __iter__(self) -> Iterator[Any]:
        """Iterate over the rows, read in blocks of up to 32 MiB."""
        len(self)  # Raises for an array without axes now, and not with the first row.
        return iterate_rows(self)

    def __reversed__(self) -> Iterator[Any]:
        """Iterate over the rows from the last to the first."""
        len(self)
        return iterate_rows(self, backwards=True)

    def __getitem__(self, selection: Selection) -> Any:
        """Read ``array[selection]``, as numpy would for any index expression. Only what is needed travels.

        See `tensorage.indexing` for the bound of what travels.

        Fields of records are read by their names: ``handle["t"]`` is ``array["t"]``, and ``handle[["t", "x"]]`` has
        records of these fields alone, without numpy's gaps in place of the others. A selection may follow:
        ``handle["t", 10:20]`` is ``array[10:20]["t"]``. From the database, the fields travel without the rest of the
        records, within the same bound. From Storage, the chunks travel that hold them.

        Rows that are asked for by their number, one after another, are read ahead: as many as are worth while, and of
        an array of up to 64 MiB all, if they come in any order. Changes by this session are seen at once, and so is any
        change of a row that was asked for before. In another row, a change by somebody else is seen after a second.

        In a ragged array, a number selects a sample, and any other selection a list of samples, in one request whatever
        their lengths: ``handle[[7, 3, 9]]``.

        Raises
        ------
        IndexError
            If the selection does not fit the shape, as numpy raises it.
        InvalidInputError
            If there is no field of such a name, which is a `ValueError`, as numpy raises it.
        """
        # A loop over rows comes here for each of them. A `bool` is another selection than the number that it is.
        # A cache has its own way to be quick, and to stay up to date.
        if self.reader is None:
            if type(selection) is int:
                return self._rows.read(self, selection)
            if isinstance(selection, np.integer):
                return self._rows.read(self, int(selection))
        return self.read(selection)

    def __setitem__(self, selection: Selection, value: npt.ArrayLike) -> None:
        """Assign to a selection, as numpy does it: all of it at once for every reader, or not at all.

        Values are cast within a kind, as from float64 to float32. A cast to another kind, or to integers, must not
        change a value.

        Raises
        ------
        IndexError
            If the selection does not fit the shape, as numpy raises it.
        InvalidInputError
            If the value does not broadcast to the selection, or the selection names fields: whole records are assigned.
        DTypeError
            If the array's dtype would change a value.
        PermissionDeniedError
            If somebody else owns the array, and shares it for reading only.
        InvalidInputError
            If the elements have any length: such an array is appended to, or stored anew.
        """
        self.dataset = self.on_latest(lambda now: self.arrays.assign(now, selection, value))

    def __getitems__(self, indices: Sequence[int]) -> list[Any]:
        """Return samples along the first axis by one request: PyTorch's way of asking for a batch."""
        return list(self.read(np.asarray(indices, dtype=np.int64)))

    def batches(
        self,
        batch_size: int,
        *,
        shuffle: bool | Literal["shards"] = False,
        seed: int | None = None,
        drop_last: bool = False,
        prefetch: int = 4,
        start_at: Mapping[str, Any] | None = None,
        pad_value: Any = None,
        window_bytes: int | None = None,
    ) -> Batches:
        """Return batches of samples along the first axis, fetched before a loop asks for them: see `tensorage.batches`.

        Examples
        --------
        .. code-block:: python

            for batch in store.open("images").batches(64, shuffle=True, seed=0):
                step(batch)
        """
        from tensorage.training.batches import batches

        return batches(
            self, batch_size=batch_size, shuffle=shuffle, seed=seed, drop_last=drop_last, prefetch=prefetch,
            start_at=start_at, pad_value=pad_value, window_bytes=window_bytes,
        )  # fmt: skip

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> npt.NDArray[Any]:
        # With `copy=False`, numpy 2 wants existing memory, and a stored array has none here.
        if copy is False:
            raise ValueError("the elements of a stored array have to be read: copy=False is not possible")
        content = self.read(...)
        if isinstance(content, list):
            # Samples of one length by chance make no array of more axes.
            content = as_objects(content, (len(content),))
        return np.asarray(content, dtype=dtype)

    def __dlpack_device__(self) -> tuple[int, int]:
        """Return the device of the elements once they are read: the memory of this machine."""
        return DLPACK_CPU, 0

    def __dlpack__(self, **how: Any) -> Any:
        """Read the array whole, for libraries that take arrays by DLPack: ``torch.as_tensor(handle)``.

        Raises
        ------
        BufferError
            If DLPack has no such dtype, or the caller wants no copy. Nothing was fetched.
        """
        if how.get("copy") is False:
            raise BufferError("the elements of a stored array have to be read: copy=False is not possible")
        if self.dataset.ragged is not None or self.dtype.kind not in "biufc" or is_small_float(self.dtype):
            raise BufferError(
                f"DLPack has no elements of dtype {self._elements}: read them, with np.asarray(handle)"
            )
        return np.asarray(self.read(...)).__dlpack__(**how)

    def cached(
        self, directory: str | os.PathLike[str], *, max_bytes: int | None = None, check_every_s: float = 1.0
    ) -> Tensor:
        """Return a handle that reads through a cache on the local disk. Elements that were read are not fetched again.

        Later epochs profit, and so do other processes that name the same folder. A cache file belongs to one
        version of the array: after an overwrite, an assignment or an append, everything is fetched anew. Changes by
        this session are seen at once, and changes by others within `check_every_s`.

        Parameters
        ----------
        directory
            Folder on a local disk: a new one, an empty one, or a cache of any arrays.
        max_bytes
            Most bytes that the folder may take on the disk, cache files of other arrays included. When they are used
            up, files that no process has open are deleted, the longest unused ones first. If that is not enough, no
            more elements are kept, and missing ones are fetched each time. By default, the disk is the limit.
        check_every_s
            Seconds for which the last answer about the array's version is believed. With 0, every read asks the
            catalogue.

        Raises
        ------
        CacheError
            If the folder cannot be made or written to, or holds something else. A later read raises it, too, if the
            disk is full or cannot be written to any more.
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
        refuse_ragged("caching", self.dataset, "Read it without a cache")
        try:
            from tensorage.cache.cached import CachedReader
        except ModuleNotFoundError as error:
            # Windows lacks the module. Any other missing module is a mistake of ours.
            if error.name != "fcntl":
                raise
            raise CacheError("caches on the local disk need the file locks of Linux or macOS") from error
        reader = CachedReader(directory, max_bytes=max_bytes, check_every_s=check_every_s)
        # The file is held from now on, so that other processes do not delete it to make room.
        reader.use(self)
        return Tensor(self.arrays, self.dataset, reader=reader)

    @property
    def cache(self) -> CachedReader | None:
        """Cache on the local disk that the array is read through, if any, with its `directory` and `max_bytes`."""
        return cast("CachedReader | None", self.reader)

    def to_dask(self, chunks: Any = None) -> dask.array.Array:
        """Return an array of dask, whose tasks read what they need when they are computed.

        The array of dask belongs to the version that this handle has seen last. Once elements have changed, computing
        raises `ChangedError`: call `refresh` then, and make another one.

        Parameters
        ----------
        chunks
            Chunks as `dask.array.from_array` takes them, also by the names of dims: ``{"time": 24}``. By default blocks
            of up to 32 MiB that are cheap to read: whole objects of Storage, or consecutive rows of the database.

        Raises
        ------
        InvalidInputError
            If the chunks do not fit the shape, dask is not installed, or the elements have any length.

        Examples
        --------
        .. code-block:: python

            means = store.open("era5").to_dask().mean(axis=0)
            store["era5/mean"] = means
        """
        from tensorage.adapters.dask import to_dask

        refuse_ragged("making an array of dask of", self.dataset, _READ_IN_PARTS)
        return to_dask(self.arrays, self.dataset, chunks)

    def to_xarray(self, chunks: Any = None) -> xr.DataArray:
        """Return a DataArray of xarray with the stored labels, which reads elements when they are needed.

        The labels are its name, dims, coordinates and attributes. Axes without names get those of xarray, and an array
        that did not come from xarray is named by its key. Assigning to elements changes a copy in memory.

        The DataArray belongs to the version that this handle has seen last. Once elements have changed, reading raises
        `ChangedError`: call `refresh` then, and make another one.

        Parameters
        ----------
        chunks
            Chunks of an array of dask that holds the elements: see `to_dask`. ``"auto"`` stands for its default.

        Raises
        ------
        InvalidInputError
            If xarray is not installed, or dask, if `chunks` asks for it; if two axes have the same name; or if the
            elements have any length.
        CorruptTensorError
            If the coordinates are damaged.

        Warns
        -----
        UserWarning
            If a coordinate is left out, since rows were appended without labels.

        Examples
        --------
        .. code-block:: python

            store["t2m"] = xarray.open_dataset("era5.nc")["t2m"]
            store.open("t2m").to_xarray().sel(lat=52.5, lon=13.4, method="nearest").plot()
        """
        try:
            from tensorage.adapters.xarray import data_array_of
        except ModuleNotFoundError as error:
            raise missing_package("arrays of xarray", error, "xarray") from error
        return data_array_of(self.arrays, self.dataset, None if chunks is None else self.to_dask(chunks))

    def lengths(self) -> npt.NDArray[np.int64]:
        """Return the length of each element of a ragged array, or of one of text.

        The database sends the lengths alone. From Storage, all elements travel, since chunks hold both. Samples that
        are arrays have as many rows as their length. The length of bytes, and of text in UTF-8, is in bytes.

        Raises
        ------
        InvalidInputError
            If all elements have one length.
        """
        return self.on_latest(self.arrays.lengths)

    def preview(self, selection: Selection | None = None) -> Preview:
        """Fetch at most 256 kB of the array, and return them as a small picture, which shows itself in a notebook.

        A matrix is a heat map, a row a line, both with a histogram; an image of (rows, columns, 3 or 4) is itself. Axes
        before the last two are cut in their middle. From the database, every second, third, ... element of long axes
        is fetched, and nothing else, by one request. Storage gives whole chunks: a part around the middle, by one
        request for the places of the chunks and one for the chunks. Complex numbers are drawn by their absolute
        values, and text and records are written.

        Parameters
        ----------
        selection
            Numbers, slices and ``...``, as between brackets. By default the whole array.

        Returns
        -------
        tensorage.adapters.preview.Preview
            Picture, with the `elements` that were fetched and the `part` of the array that they are.

        Raises
        ------
        InvalidInputError
            If the elements have any length, one element or one chunk has more than 256 kB, or the selection has
            anything but numbers, slices and ``...``.
        IndexError
            If the selection does not fit the shape.

        Examples
        --------
        .. code-block:: python

            store.open("era5").preview()
            store.open("era5").preview(np.s_[0, :, 100:200])
        """
        from tensorage.adapters.preview import preview

        return preview(self, selection)

    def append(self, data: Any) -> None:
        """Add rows, or samples of any length, at the end: all at once, or not at all. See `TensorStore.append`."""
        if is_labelled(data):
            rows: Any = data
            self.dataset = append_labelled(self.arrays, self.key, rows.data, labels_of(self.key, rows))
            return
        self.dataset = self.arrays.append(self.key, data, known=self.dataset)

    @property
    def fill_value(self) -> Any:
        """Element that stands for those never written. None if the array has all of its elements."""
        return self.dataset.fill_value

    def resize(self, rows: int | Sequence[int]) -> None:
        """Give the array another number of rows along the first axis: all at once, by its owner alone.

        Rows that are added read as the array's fill value, and take no room until they are written. Arrays that were
        stored whole get one: zero in the database, and the fill value of the layout in Storage. Rows that are cut off
        are gone, with their labels: rows that are added later read as the fill value.

        Parameters
        ----------
        rows
            Number of rows, or a shape whose other axes are those of the array.

        Raises
        ------
        InvalidInputError
            If the array has no axes, the number is negative, or another axis would change.
        PermissionDeniedError
            If the array is somebody else's.

        Examples
        --------
        .. code-block:: python

            simulation = store.create("sim", shape=(0, 512), dtype="f4")
            simulation.resize(1_000)
            simulation[10] = first_state
        """
        self.dataset = self.on_latest(lambda now: self.arrays.resize(now, rows))

    def share(
        self,
        who: str | Sequence[str] | None = None,
        *,
        write: bool = False,
        expires_at: datetime | None = None,
    ) -> list[Share]:
        """Let others use the array, and return its shares: see `TensorStore.share`."""
        sharing = self.arrays.sharing(f"sharing {self.key!r}")
        return sharing.share(self.key, who, write=write, expires_at=expires_at)

    def unshare(self, who: str | Sequence[str] | None = None) -> list[Share]:
        """End shares of the array, and return those that are left: see `TensorStore.unshare`."""
        return self.arrays.sharing(f"ending shares of {self.key!r}").unshare(self.key, who)

    def shares(self) -> list[Share]:
        """Return the shares that let others use the array, those of its prefixes included."""
        return self.arrays.sharing(f"listing the shares of {self.key!r}").shares(self.key)

    @property
    def _elements(self) -> Any:
        """Words for the elements: their dtype, or what they are if they have any length."""
        return self.dataset.ragged or self.dtype

    def __dask_tokenize__(self) -> tuple[Any, ...]:
        return PinnedArray(self.arrays.quietly(), self.dataset).__dask_tokenize__()

    def __repr__(self) -> str:
        size = describe_bytes(self.nbytes)
        cached = "" if self.cache is None else f", kept in {self.cache.directory}"
        kind = "Tensor" if self.cache is None else "CachedTensor"
        owner = "" if self.arrays.owner is None else f" of {self.arrays.owner}"
        return f"<{kind} {self.key!r}{owner}, shape {self.shape}, {self._elements}, {size}, {self.engine}{cached}>"

    def _repr_html_(self) -> str:
        # Only notebooks need it.
        from tensorage.adapters.notebook import html_of_tensor

        return html_of_tensor(self, dict(self.attrs))

    def _annotate(
        self, *, attrs: Mapping[str, Any] | None = None, removed: Iterable[str] = (), replace: bool = False
    ) -> None:
        self.dataset = self.arrays.annotate(self.dataset, attrs=attrs, removed=list(removed), replace=replace)
