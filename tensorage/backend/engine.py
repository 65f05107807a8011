"""The interface of an engine, which keeps the elements of arrays. The catalogue keeps their entries."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar, Protocol

import numpy.typing as npt

from tensorage.backend.transfer import Transfer, Work
from tensorage.backend.wire.progress import Advance
from tensorage.indexing.regions import AxisLengths
from tensorage.indexing.selection import Positions, Selection
from tensorage.indexing.tiles import TileGrid
from tensorage.model.declaration import Declaration
from tensorage.model.fields import Fields
from tensorage.types import Dataset, Engine

__all__ = ["READ_BYTES", "WRITE_BYTES", "ArrayEngine", "EngineBase", "OtherEngineError", "ReadRegion"]

#: Most bytes of a region that is convenient to read. Every connection of a process can then carry a full request, and a
#: worker that computes with a few regions stays below 1 GiB.
READ_BYTES = 32 * 1024 * 1024

#: Most bytes of a region that a worker writes. Blocks of dask have 128 MiB by default, and cutting them copies nothing.
WRITE_BYTES = 64 * 1024 * 1024

#: Returns the elements of a region: one slice for each axis.
ReadRegion = Callable[[tuple[slice, ...]], npt.NDArray[Any]]


class OtherEngineError(Exception):
    """The array is kept by another engine, or has elements of any length. `tensorage.backend.arrays.Arrays` catches it.

    Attributes
    ----------
    dataset
        Entry of the array.
    """

    def __init__(self, dataset: Dataset) -> None:
        super().__init__(f"{dataset.key!r} is kept by engine {dataset.engine!r}")
        self.dataset = dataset


class EngineBase:
    """Common parts of both engines: their requests, and the entries of their arrays.

    Parameters
    ----------
    transfer
        Carries the requests.
    open_array
        Looks up the catalogue's entry under a key.
    quiet
        Never show a progress bar.
    owner
        Address, or id of the account, of somebody whose arrays these are. None for this user's own arrays.
    known
        Remembered key, owner and shape of the array: see `tensorage.backend.transfer.Work`.
    records
        Records of all shards of an array of Storage, if they came along with its entry.
    """

    name: ClassVar[Engine]

    def __init__(
        self,
        transfer: Transfer,
        open_array: Callable[[str], Dataset],
        *,
        quiet: bool,
        owner: str | None = None,
        known: Mapping[str, Any] | None = None,
        records: bytes | None = None,
    ) -> None:
        self._known = known
        self._records = records
        self._transfer = transfer
        self._open = open_array
        self._quiet = quiet
        self._owner = owner

    def _open_own(self, key: str) -> Dataset:
        """Return the entry of an array that this engine keeps.

        Raises
        ------
        OtherEngineError
            If another engine keeps the array.
        """
        dataset = self._open(key)
        if dataset.engine != self.name:
            raise OtherEngineError(dataset)
        return dataset

    def _work(self, verb: str, dataset: Dataset) -> Work:
        return Work(self._transfer, dataset, f"{verb} {dataset.key!r}", self._quiet, self._known)


class ArrayEngine(Protocol):
    """Moves elements between memory and the backend, for arrays that this engine keeps."""

    @property
    def name(self) -> Engine:
        """Name of the engine in the catalogue."""
        ...

    def begin(self, new: Declaration) -> Dataset:
        """Declare an array that `write_region` fills and a commit makes visible. An empty one is committed at once."""
        ...

    def write_region(self, dataset: Dataset, region: tuple[slice, ...], elements: npt.NDArray[Any]) -> None:
        """Store the elements of a region of a declared array. Storing them twice does no harm.

        Parameters
        ----------
        region
            Whole rows, or a region of the cut that `lengths_to_write` returns: one slice for each axis, without open
            ends.
        elements
            Array of the region's shape and the stored array's dtype.
        """
        ...

    def lengths_to_write(self, dataset: Dataset, lengths: AxisLengths) -> AxisLengths:
        """Return a cut close to the given one, whose regions `write_region` can store at the same time."""
        ...

    def shape_to_read(self, dataset: Dataset, most_bytes: int) -> tuple[int, ...]:
        """Return the shape of regions of about `most_bytes` that are convenient to read.

        No two of them ask for the same bytes.
        """
        ...

    def create(self, new: Declaration, fill_value: npt.NDArray[Any]) -> Dataset:
        """Make an array without elements, which reads as `fill_value`, an array without dimensions."""
        ...

    def resize(self, dataset: Dataset, rows: int, coords: Mapping[str, Any] | None) -> Dataset:
        """Give an array another number of rows. Rows that are added read as its fill value.

        Parameters
        ----------
        coords
            Encoded coordinates of the array with its new shape. None leaves them as they are.

        Raises
        ------
        ChangedError
            If the array has another number of rows by now.
        """
        ...

    def store(self, array: npt.NDArray[Any], new: Declaration) -> Dataset:
        """Store an array in memory. All of it becomes visible in one step, or nothing is stored."""
        ...

    def store_blocks(self, blocks: Iterable[npt.ArrayLike], new: Declaration) -> Dataset:
        """Store an array that comes as consecutive blocks of rows, and never exists whole."""
        ...

    def store_from(self, read: ReadRegion, new: Declaration) -> Dataset:
        """Store an array that is read region by region. Only regions under way are in memory."""
        ...

    def copy(self, dataset: Dataset, new: Declaration) -> Dataset | None:
        """Copy one of this engine's arrays without moving its elements. Return None if that cannot be done.

        Raises
        ------
        ChangedError
            If the array is not what it was when `dataset` was opened.
        """
        ...

    def append(self, key: str, data: npt.ArrayLike, known: Dataset | None) -> Dataset:
        """Add rows at the end of axis 0, all at once, and once only.

        Raises
        ------
        OtherEngineError
            If the array is kept by another engine, which may show only now if the array is not `known`.
        """
        ...

    def assign(self, dataset: Dataset, selection: Selection, value: npt.ArrayLike) -> Dataset:
        """Assign to a selection of a stored array: all of it, or nothing.

        Raises
        ------
        ChangedError
            If the array is not what it was when `dataset` was opened.
        """
        ...

    def read(self, dataset: Dataset, selection: Selection, out: npt.NDArray[Any] | None) -> Any:
        """Return ``array[selection]``, in `out` if it is given.

        Raises
        ------
        ChangedError
            If the array is not what it was when `dataset` was opened.
        """
        ...

    def read_fields(self, dataset: Dataset, selection: Selection, fields: Fields) -> Any:
        """Return fields of ``array[selection]`` of an array of records.

        Raises
        ------
        ChangedError
            If the array is not what it was when `dataset` was opened.
        """
        ...

    def check_unchanged(self, dataset: Dataset) -> None:
        """Check that the elements have not changed since `dataset` was opened. The array has to have some.

        Raises
        ------
        ChangedError
            If they have changed.
        """
        ...

    def tiles(self, dataset: Dataset) -> TileGrid:
        """Return the grid of tiles, each of which is best fetched and cached as a whole."""
        ...

    def read_tiles(self, dataset: Dataset, numbers: Positions, advance: Advance) -> npt.NDArray[Any]:
        """Read tiles together, in as few requests as possible.

        Parameters
        ----------
        numbers
            Numbers of the tiles: ascending, each once, and at least one.

        Returns
        -------
        numpy.ndarray
            Elements of the tiles in one dimension, one tile after the other, in the order of a cache file. Elements of
            a tile behind the end of the array are zeros.

        Raises
        ------
        ChangedError
            If the array is not what it was when `dataset` was opened.
        """
        ...

    def moved_bytes(self, dataset: Dataset, numbers: Positions | None = None) -> int:
        """Return the bytes that travel if some tiles, by default all, are read once each.

        Raises
        ------
        ChangedError
            If the array is not what it was when `dataset` was opened.
        """
        ...

    def compact(self, key: str) -> int:
        """Merge small neighbouring blocks, and return the number of blocks saved."""
        ...
