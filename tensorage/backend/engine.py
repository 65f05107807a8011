"""What an engine is: a way to keep the elements of arrays whose entries are in the catalogue."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Protocol

import numpy.typing as npt

from tensorage.backend.wire.progress import Advance
from tensorage.indexing.regions import AxisLengths
from tensorage.indexing.selection import Positions, Selection
from tensorage.indexing.tiles import TileGrid
from tensorage.model.declaration import Declaration
from tensorage.types import Dataset, Engine

__all__ = ["FILL_BYTES", "READ_BYTES", "ArrayEngine", "OtherEngineError", "ReadRegion"]

#: Bytes of a region that is convenient to read, at most: enough that every connection of a process carries a full
#: request, and little enough that a worker that computes with a few of them stays below 1 GiB.
READ_BYTES = 32 * 1024 * 1024

#: Bytes of a region that somebody else fills, at most. Dask's own blocks have 128 MiB, of which a cut copies nothing.
FILL_BYTES = 64 * 1024 * 1024

#: Gives the elements of a region of an array: one slice for each axis.
ReadRegion = Callable[[tuple[slice, ...]], npt.NDArray[Any]]


class OtherEngineError(Exception):
    """The array is kept by another engine. Never leaves the context.

    Attributes
    ----------
    dataset
        The array.
    """

    def __init__(self, dataset: Dataset) -> None:
        super().__init__(f"{dataset.key!r} is kept by engine {dataset.engine!r}")
        self.dataset = dataset


class ArrayEngine(Protocol):
    """Moves elements between memory and where they are kept. Datasets given to it are of its kind."""

    @property
    def name(self) -> Engine:
        """The engine's name in the catalogue."""
        ...

    def begin(self, new: Declaration) -> Dataset:
        """Declare an array that `fill` fills, and a commit makes visible; of one without elements, it is done."""
        ...

    def fill(self, dataset: Dataset, region: tuple[slice, ...], elements: npt.NDArray[Any]) -> None:
        """Store the elements of a region of a declared array. Done twice, it is as if it were done once.

        Parameters
        ----------
        region
            One slice for each axis, none with an open end: of whole rows, or of the grid that `lengths_to_fill` gives.
        elements
            Of the region's shape and the array's dtype.
        """
        ...

    def lengths_to_fill(self, dataset: Dataset, sizes: AxisLengths) -> AxisLengths:
        """Boxes near those given that `fill` can store each on its own, also at the same time."""
        ...

    def shape_to_read(self, dataset: Dataset) -> tuple[int, ...]:
        """Shape of regions that are convenient to read: no two of them ask for the same bytes."""
        ...

    def store(self, array: npt.NDArray[Any], new: Declaration) -> Dataset:
        """Store an array that is in memory: all of it becomes visible in one step, or nothing is stored."""
        ...

    def store_blocks(self, blocks: Iterable[npt.ArrayLike], new: Declaration) -> Dataset:
        """Store an array that comes as consecutive blocks of rows, and never exists whole."""
        ...

    def store_from(self, read: ReadRegion, new: Declaration) -> Dataset:
        """Store an array that is read region by region, no more of them at a time than are under way."""
        ...

    def copy(self, dataset: Dataset, new: Declaration) -> Dataset | None:
        """Store one of this engine's arrays again without moving its elements. None if that cannot be done.

        Raises
        ------
        ChangedError
            If the array is not what it was when `dataset` was opened.
        """
        ...

    def append(self, key: str, data: npt.ArrayLike, known: Dataset | None) -> Dataset:
        """Add rows at the end of axis 0: all at once, and once only.

        Raises
        ------
        OtherEngineError
            If the array is of another engine, which shows only now where it was not `known`.
        """
        ...

    def assign(self, dataset: Dataset, selection: Selection, value: npt.ArrayLike) -> Dataset:
        """``array[selection] = value``: all of it, or nothing.

        Raises
        ------
        ChangedError
            If the array is not what it was when `dataset` was opened.
        """
        ...

    def read(self, dataset: Dataset, selection: Selection, out: npt.NDArray[Any] | None) -> Any:
        """``array[selection]``, in `out` if it is given.

        Raises
        ------
        ChangedError
            If the array is not what it was when `dataset` was opened.
        """
        ...

    def check_unchanged(self, dataset: Dataset) -> None:
        """Ask whether the elements are still what they were when `dataset` was opened. It has some.

        Raises
        ------
        ChangedError
            If they are not.
        """
        ...

    def tiles(self, dataset: Dataset) -> TileGrid:
        """The grid of what is best fetched as a whole, and kept."""
        ...

    def read_tiles(self, dataset: Dataset, numbers: Positions, advance: Advance) -> npt.NDArray[Any]:
        """Pieces of the grid, together, in as few requests as there can be.

        Parameters
        ----------
        numbers
            Ascending, each once, and at least one.

        Returns
        -------
        numpy.ndarray
            Of one axis: the elements of the pieces, one after the other, as they stand in a file of the grid. What a
            piece has behind the end of the array is zeros.

        Raises
        ------
        ChangedError
            If the array is not what it was when `dataset` was opened.
        """
        ...

    def moved_bytes(self, dataset: Dataset, numbers: Positions | None = None) -> int:
        """Bytes that travel of some pieces, each read once; by default, of all.

        Raises
        ------
        ChangedError
            If the array is not what it was when `dataset` was opened.
        """
        ...

    def compact(self, key: str) -> int:
        """Merge small neighbouring blocks. How many blocks fewer it has now."""
        ...
