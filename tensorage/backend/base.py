"""What every context can do: the catalogue's entries, and arrays in whichever engine keeps them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Unpack, cast

import numpy as np
import numpy.typing as npt

from tensorage.backend.blocks.block_engine import BlockEngine
from tensorage.backend.catalogue import Catalogue
from tensorage.backend.copying import copy_array
from tensorage.backend.engine import ArrayEngine, OtherEngineError
from tensorage.backend.staging import commit, stage
from tensorage.backend.wire.faults import check_version, missing_schema
from tensorage.backend.wire.progress import Advance
from tensorage.errors import IncompleteTensorError, InvalidInputError, SchemaError
from tensorage.indexing.regions import AxisLengths
from tensorage.indexing.selection import Positions, Selection
from tensorage.indexing.tiles import TileGrid
from tensorage.model.declaration import ArrayOptions, Declaration, declare
from tensorage.model.engine_choice import resolve_engine
from tensorage.model.values import as_array, cast_to
from tensorage.types import Dataset, Engine, EngineChoice

if TYPE_CHECKING:
    import zarr.abc.store

    from tensorage.backend.transfer import Transfer
    from tensorage.backend.zarr.zarr_engine import ZarrEngine
    from tensorage.session import BackendSession

__all__ = ["BaseContext"]


class BaseContext:
    """Arrays as the user of one session.

    Contexts are handed out by `BackendSession.database` and `BackendSession.storage`, which log in before
    and out after. They differ in where new arrays are kept; what is there is found and read in each of them.

    Parameters
    ----------
    backend
        The session whose user everything is done as.
    """

    #: Where new arrays are kept.
    engine: ClassVar[Engine]

    def __init__(self, backend: BackendSession) -> None:
        self.backend = backend
        self._declared: dict[int, Dataset] = {}
        self._engines: dict[str, ArrayEngine] = {}
        self._engines_transfer: Transfer | None = None

    def __getstate__(self) -> dict[str, Any]:
        # Connections stay in their process.
        return {**self.__dict__, "_engines": {}, "_engines_transfer": None}

    @property
    def user_id(self) -> str:
        """Id of the logged-in user, as ``auth.uid()`` gives it in SQL."""
        return self.backend.user_id

    # The contexts' interface ---------------------------------------------------------------------------

    def check_schema_installed(self) -> bool:
        """True if the project has the migrations of this version.

        Raises
        ------
        SchemaError
            If it has none, or those of another version: the message says how to migrate.
        """
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
        **options: Unpack[ArrayOptions],
    ) -> Dataset:
        """Declare an array, to be filled by `insert_tensor`.

        It is not visible under its key until every element is there.

        Parameters
        ----------
        key
            1 to 1024 bytes of UTF-8.
        shape
            Extents in elements.
        dim
            Number of axes: ``len(shape)``.
        type
            dtype of the elements.
        is_shared
            Let every signed-in user of the project read it.
        options
            See `tensorage.model.declaration.ArrayOptions`.

        Raises
        ------
        KeyExistsError, InvalidInputError, DTypeError, QuotaExceededError
            Nothing was declared.
        """
        new = declare(key, shape, type, is_shared, options)
        if dim != len(new.shape):
            raise InvalidInputError(
                f"dim={dim} contradicts the shape {new.shape}, which has {len(new.shape)} axes"
            )
        dataset = self._engine(self.engine).begin(new)
        self._declared[dataset.id] = dataset
        return dataset

    def insert_tensor(self, data_id: int, data: npt.ArrayLike, offset: int = 0) -> bool:
        """Store rows of a declared array; the last missing ones make it visible.

        Parameters
        ----------
        data_id
            `Dataset.id` of what `insert_dataset` answered.
        data
            Consecutive rows, of the declared shape but for axis 0.
        offset
            Index along axis 0 of the first of them.

        Returns
        -------
        bool
            True: the rows are stored.
        """
        dataset = self._declared.get(data_id) or self._catalogue.dataset(data_id)
        self._declared[data_id] = dataset
        rows = cast_to(data, dataset)
        region: tuple[slice, ...] = ()
        if dataset.ndim == 0:
            rows = rows.reshape(())
        elif rows.shape[1:] != dataset.shape[1:] or rows.ndim != dataset.ndim:
            raise InvalidInputError(
                f"rows of shape {rows.shape} do not fit the declared shape {dataset.shape}"
            )
        elif not 0 <= offset <= dataset.shape[0] - rows.shape[0]:
            raise InvalidInputError(
                f"rows {offset} to {offset + rows.shape[0]} lie outside of the declared shape {dataset.shape}"
            )
        else:
            region = (
                slice(offset, offset + rows.shape[0]),
                *map(slice, [0] * dataset.ndim, dataset.shape[1:]),
            )
        if rows.size:
            self.fill(dataset, region, rows)
            try:
                self._declared[data_id] = commit(self.backend.transfer, dataset)
            except IncompleteTensorError:
                # Not the last rows: the array stays invisible until those have come.
                self._declared[data_id] = dataset
        return True

    def append_tensor(self, key: str, data: npt.ArrayLike) -> bool:
        """Add rows at the end of axis 0 of a stored array, all at once. True: they are stored."""
        self.append(key, data)
        return True

    def get_dataset(self, key: str) -> Dataset:
        """The catalogue's entry of an array.

        Raises
        ------
        KeyNotFoundError
            If there is no (complete) array under the key that this user may see.
        """
        return self.open(key)

    def get_tensor(
        self,
        key: str,
        index_low: int | None = None,
        index_up: int | None = None,
        slice_low: Sequence[int] | None = None,
        slice_up: Sequence[int] | None = None,
    ) -> npt.NDArray[Any]:
        """A region out of a stored array. Bounds are 0-based and half-open, as numpy's.

        Parameters
        ----------
        index_low, index_up
            Along axis 0.
        slice_low, slice_up
            Along each further axis.
        """
        dataset = self.open(key)
        selection = region_of_bounds(dataset.ndim, index_low, index_up, slice_low, slice_up)
        return np.asarray(self.read(dataset, selection))

    def remove_dataset(self, key: str) -> bool:
        """Delete an array of this user. True: it is gone.

        Raises
        ------
        KeyNotFoundError, PermissionDeniedError
        """
        self._catalogue.remove(key)
        return True

    def list_dataset_keys(self) -> list[str]:
        """Every key that this user can open, sorted by code point."""
        return list(self.iterate_keys())

    # What stores and tensors are made of -----------------------------------------------------------------

    def iterate_keys(self, prefix: str = "") -> Iterator[str]:
        """Every key that this user can open and that begins with `prefix`, sorted by code point, a page at a time."""
        return self._catalogue.iterate_keys(prefix)

    def count_keys(self) -> int:
        """How many keys this user can open."""
        return self._catalogue.count_keys()

    def open(self, key: str, owner: str | None = None) -> Dataset:
        """The catalogue's entry of an array of this user, or else of one that somebody shares.

        Parameters
        ----------
        owner
            E-mail address of the user whose array is meant.
        """
        return self._catalogue.open(key, owner)

    def share(self, key: str, is_shared: bool) -> Dataset:
        """Let every signed-in user read an array of this user, or only this user again."""
        return self._catalogue.share(key, is_shared)

    def annotate(
        self,
        dataset: Dataset,
        *,
        attrs: Mapping[str, Any] | None = None,
        removed: Sequence[str] = (),
        replace: bool = False,
    ) -> Dataset:
        """Change attributes: `removed` go, `attrs` are set, and with `replace` all others go too."""
        return self._catalogue.annotate(dataset, attrs=attrs, removed=removed, replace=replace)

    def name_axes(self, dataset: Dataset, dims: Sequence[str] | None) -> Dataset:
        """Give the axes names, or none. Coordinates go with the axes that they run along.

        Raises
        ------
        InvalidInputError
            If coordinates would lose their axes, or one has the name that an axis is to have.
        """
        return self._catalogue.name_axes(dataset, dims)

    def label(self, dataset: Dataset, coords: Mapping[str, Any] | None) -> Dataset:
        """Replace the coordinates by others, as `tensorage.model.coords` encodes them, or by none."""
        return self._catalogue.label(dataset, coords)

    def rename(self, key: str, new_key: str, *, overwrite: bool = False) -> Dataset:
        """Give an array of this user another key. With `overwrite`, in place of the array that is there."""
        return self._catalogue.rename(key, new_key, overwrite=overwrite)

    def write(
        self,
        key: str,
        data: npt.ArrayLike,
        *,
        engine: EngineChoice | None = None,
        is_shared: bool = False,
        quiet: bool = True,
        **options: Unpack[ArrayOptions],
    ) -> Dataset:
        """Store an array: all of it becomes visible in one step, or nothing is stored."""
        array = as_array(data)
        new = declare(key, array.shape, array.dtype, is_shared, options)
        return self._engine_for(new, engine).store(array, new, quiet=quiet)

    def write_blocks(
        self,
        key: str,
        blocks: Iterable[npt.ArrayLike],
        shape: Sequence[int],
        dtype: npt.DTypeLike,
        *,
        engine: EngineChoice | None = None,
        is_shared: bool = False,
        quiet: bool = True,
        **options: Unpack[ArrayOptions],
    ) -> Dataset:
        """Store an array that comes as consecutive blocks of rows. No more of it is in memory than is under way."""
        new = declare(key, shape, dtype, is_shared, options)
        if not new.shape:
            raise InvalidInputError(f"{key!r} of shape () has no rows that blocks could hold: store it whole")
        return self._engine_for(new, engine).store_blocks(blocks, new, quiet=quiet)

    def write_with(
        self,
        key: str,
        fill_all: Callable[[Dataset], None],
        shape: Sequence[int],
        dtype: npt.DTypeLike,
        *,
        engine: EngineChoice | None = None,
        is_shared: bool = False,
        **options: Unpack[ArrayOptions],
    ) -> Dataset:
        """Store an array that others fill region by region: all of it is visible in one step, or nothing is stored.

        Parameters
        ----------
        fill_all
            Given the declared array, sees to it that each of its regions is filled, by `fill` of a context of the same
            user, in whatever thread, process or machine, before it returns. Not called if there are no elements.
        """
        new = declare(key, shape, dtype, is_shared, options)
        dataset = self._engine_for(new, engine).begin(new)
        if not dataset.size:
            return dataset
        return stage(self.backend.transfer, dataset, lambda _advance: fill_all(dataset), 0, quiet=True)

    def fill(self, dataset: Dataset, region: tuple[slice, ...], elements: npt.NDArray[Any]) -> None:
        """Store the elements of a region of a declared array: see `tensorage.backend.engine.ArrayEngine.fill`."""
        self._engine(dataset.engine).fill(dataset, region, elements)

    def lengths_to_fill(self, dataset: Dataset, sizes: AxisLengths) -> AxisLengths:
        """Boxes near those given that `fill` can store each on its own, also at the same time."""
        return self._engine(dataset.engine).lengths_to_fill(dataset, sizes)

    def shape_to_read(self, dataset: Dataset) -> tuple[int, ...]:
        """Extents of regions whose elements are convenient to read together. Asks for nothing."""
        return self._engine(dataset.engine).shape_to_read(dataset)

    def copy(
        self,
        dataset: Dataset,
        new_key: str,
        *,
        engine: EngineChoice | None = None,
        quiet: bool = True,
        **options: Unpack[ArrayOptions],
    ) -> Dataset:
        """Store an array again under another key of this user, with its attributes, dims and coordinates.

        Parameters
        ----------
        engine
            Of the copy, by default that of the array.

        Raises
        ------
        ChangedError
            If the array is not what it was when `dataset` was opened.
        """
        kept: ArrayOptions = {"attrs": dataset.attrs, "dims": dataset.dims, "coords": dataset.coords}
        new = declare(new_key, dataset.shape, dataset.dtype, False, {**kept, **options})
        target = self._engine_for(new, engine or dataset.engine)
        return copy_array(self._engine(dataset.engine), dataset, target, new, quiet=quiet)

    def import_zarr(
        self,
        key: str,
        source: Any,
        *,
        engine: Engine = "storage",
        is_shared: bool = False,
        quiet: bool = True,
        **options: Unpack[ArrayOptions],
    ) -> Dataset:
        """Store an array of Zarr that somebody else wrote, with its attributes and the names of its dimensions.

        Parameters
        ----------
        source
            An array of zarr, or whatever zarr opens: a path, a URL, a store.
        engine
            As objects, what Zarr v3 has encoded is taken over as it is.
        options
            What is said here takes the place of what the source says.

        Raises
        ------
        InvalidInputError, DTypeError
            If the source is no array that can be stored.
        CorruptTensorError
            If it is damaged. Nothing is stored.
        """
        storage = self._storage_engine()
        from tensorage.backend.zarr.importing import blocks_of, declaration_of, open_source

        array = open_source(source)
        new = declaration_of(array, key, is_shared, options)
        if engine == "storage":
            return storage.import_zarr(array, new, quiet=quiet)
        if not array.ndim:
            return self._engine(engine).store(np.asarray(array[...]), new, quiet=quiet)
        return self._engine(engine).store_blocks(blocks_of(array), new, quiet=quiet)

    def zarr_store(self, dataset: Dataset, *, as_group: str | None = None) -> zarr.abc.store.Store:
        """An array of Storage as it was opened, as a store of zarr: see `tensorage.backend.zarr.zarr_store`."""
        self._storage_engine()
        from tensorage.backend.zarr.zarr_store import CatalogueStore

        return CatalogueStore(TransferOf(self.backend), dataset, as_group=as_group)

    def append(
        self, key: str, data: npt.ArrayLike, *, known: Dataset | None = None, quiet: bool = True
    ) -> Dataset:
        """Add rows at the end of axis 0, all at once. Done once, however often the request is repeated.

        Parameters
        ----------
        known
            The array, if it has been opened.
        """
        # Without an entry, the database engine: it asks once, and is told if the array is elsewhere.
        engine: Engine = "database" if known is None else known.engine
        while True:
            try:
                return self._engine(engine).append(key, data, known, quiet=quiet)
            except OtherEngineError as error:
                known = error.dataset
                engine = known.engine

    def assign(
        self, dataset: Dataset, selection: Selection, value: npt.ArrayLike, *, quiet: bool = True
    ) -> Dataset:
        """``array[selection] = value`` for a stored array, as numpy does it: all of it, or nothing.

        Raises
        ------
        ChangedError
            If the array is not what it was when `dataset` was opened.
        """
        return self._engine(dataset.engine).assign(dataset, selection, value, quiet=quiet)

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
        return self._engine(dataset.engine).read(dataset, selection, out, quiet=quiet)

    def check_unchanged(self, dataset: Dataset) -> None:
        """Raise `ChangedError` unless the elements, of which there are some, are what they were when it was opened."""
        self._engine(dataset.engine).check_unchanged(dataset)

    def tiles(self, dataset: Dataset) -> TileGrid:
        """The grid of what is best fetched as a whole, and kept, of a stored array."""
        return self._engine(dataset.engine).tiles(dataset)

    def read_tiles(self, dataset: Dataset, numbers: Positions, advance: Advance) -> npt.NDArray[Any]:
        """Pieces of the grid, together: see `tensorage.backend.engine.ArrayEngine.read_tiles`."""
        return self._engine(dataset.engine).read_tiles(dataset, numbers, advance)

    def moved_bytes(self, dataset: Dataset, numbers: Positions | None = None) -> int:
        """Bytes that travel of pieces of the grid, each read once; by default, of all."""
        return self._engine(dataset.engine).moved_bytes(dataset, numbers)

    def compact(self, key: str) -> int:
        """Merge small neighbouring blocks of an array of this user. How many blocks fewer it has now."""
        return self._engine(self.open(key).engine).compact(key)

    # Parts ----------------------------------------------------------------------------------------------

    @property
    def _catalogue(self) -> Catalogue:
        return Catalogue(self.backend.transfer)

    def _engine_for(self, new: Declaration, choice: EngineChoice | None) -> ArrayEngine:
        return self._engine(resolve_engine(choice or self.engine, new))

    def _engine(self, name: Engine) -> ArrayEngine:
        transfer = self.backend.transfer
        if self._engines_transfer is not transfer:
            # At first, and after a fork: connections are never shared.
            self._engines, self._engines_transfer = {}, transfer
        if name not in self._engines:
            self._engines[name] = self._new_engine(name, transfer)
        return self._engines[name]

    def _new_engine(self, name: Engine, transfer: Transfer) -> ArrayEngine:
        if name == "database":
            return BlockEngine(transfer, self.open)
        try:
            from tensorage.backend.zarr.zarr_engine import ZarrEngine
        except ModuleNotFoundError as error:
            raise InvalidInputError(
                f"arrays of engine='storage' need the package {error.name!r}: pip install 'tensorage[storage]'"
            ) from error
        return ZarrEngine(transfer, self.open)

    def _storage_engine(self) -> ZarrEngine:
        return cast("ZarrEngine", self._engine("storage"))


@dataclass(frozen=True)
class TransferOf:
    """Gives the byte mover of a session: another one after a fork."""

    backend: BackendSession

    def __call__(self) -> Transfer:
        return self.backend.transfer


def region_of_bounds(
    ndim: int,
    index_low: int | None,
    index_up: int | None,
    slice_low: Sequence[int] | None,
    slice_up: Sequence[int] | None,
) -> tuple[slice, ...]:
    """The bounds of `BaseContext.get_tensor` as one slice an axis."""
    if ndim == 0:
        return ()
    lows = [index_low, *(slice_low if slice_low is not None else [None] * (ndim - 1))]
    ups = [index_up, *(slice_up if slice_up is not None else [None] * (ndim - 1))]
    return tuple(np.s_[low:up] for low, up in zip(lows, ups, strict=True))
