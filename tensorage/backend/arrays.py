"""Arrays of one user: opening, reading, writing, copying, and restarts after changes, in either engine."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, Unpack

import numpy as np
import numpy.typing as npt

from tensorage.backend.blocks.block_engine import BlockEngine
from tensorage.backend.catalogue import Catalogue, FirstPage, Found
from tensorage.backend.engine import READ_BYTES, ArrayEngine, OtherEngineError
from tensorage.backend.entries import EntryMemory, Remembered
from tensorage.backend.ragged import RaggedArrays, refuse_ragged
from tensorage.backend.restarts import on_latest
from tensorage.backend.sharing import Sharing
from tensorage.backend.staging import commit, stage
from tensorage.backend.transfer import ChangeCount, Project, Transfer, Work
from tensorage.backend.wire.line import LineEstimate
from tensorage.backend.wire.progress import Advance
from tensorage.errors import (
    ChangedError,
    IncompleteTensorError,
    InvalidInputError,
    KeyNotFoundError,
    PermissionDeniedError,
    missing_package,
)
from tensorage.indexing.regions import AxisLengths
from tensorage.indexing.runs import MAX_REQUEST_BYTES
from tensorage.indexing.selection import Positions, Selection
from tensorage.indexing.tiles import TileGrid
from tensorage.model.casting import as_element
from tensorage.model.coords import shorten_coords
from tensorage.model.declaration import ArrayOptions, Declaration, declare
from tensorage.model.engine_choice import resolve_engine
from tensorage.model.fields import split_fields
from tensorage.model.ragged import is_of_text
from tensorage.model.values import as_array, check_owner, rows_to_have
from tensorage.tracebacks import end_tracebacks_here
from tensorage.types import Dataset, Engine, EngineChoice

if TYPE_CHECKING:
    import zarr.abc.store

    from tensorage.backend.zarr.zarr_engine import ZarrEngine

__all__ = ["Arrays", "OpenArray", "Reader", "TransferOf"]

T = TypeVar("T")

#: Errors of an operation on an array that is remembered, and has changed since. Mistakes of a caller are raised again
#: once the array was looked at. `IncompleteTensorError`, a `ValueError`, is none of these: the array was as known.
_OUT_OF_DATE = (ChangedError, IndexError, TypeError, ValueError)

_WHOLE_ALONE = "Append to it, or write it anew as a whole. Nothing has changed"


@dataclass(frozen=True)
class Arrays:
    """All arrays of one owner that a user may work with, by key. `Arrays` can be sent to other processes.

    Parameters
    ----------
    project
        Access to the project.
    quiet
        Never show a progress bar.
    owner
        Address, or id of the account, of somebody who shares arrays with this user. None for this user's own arrays.
    """

    project: Project
    quiet: bool = True
    owner: str | None = None

    def shared_by(self, owner: str) -> Arrays:
        """Return the arrays of somebody else, as far as they are shared with this user."""
        check_owner(owner)
        return replace(self, owner=owner)

    def own(self) -> Arrays:
        """Return this user's own arrays."""
        # A copy, as all changes of settings are: other threads may use this object.
        return replace(self, owner=None)

    def check_own(self, asked: str) -> None:
        """Refuse something that only the owner of arrays does, if these are somebody else's.

        Raises
        ------
        PermissionDeniedError
        """
        if self.owner is not None:
            raise PermissionDeniedError(
                f"{asked}: these are arrays of {self.owner}, who alone can do this. Others read them, and append and "
                "assign where the share lets them. Nothing has changed."
            )

    def quietly(self) -> Arrays:
        """Return the same arrays without progress bars."""
        return replace(self, quiet=True)

    @property
    def changes(self) -> int:
        """Number that grows with every request of this session that may have changed an array."""
        return self.change_count.number

    @property
    def change_count(self) -> ChangeCount:
        """Count that `changes` is read from, for loops that look at it for each row."""
        return self.project.transfer.changes

    @property
    def line(self) -> LineEstimate:
        """Round trip and width of the line to the project, as this session's requests have measured them."""
        return self.project.transfer.http.meter.estimate()

    # The catalogue --------------------------------------------------------------------------------------

    def iterate_keys(self, prefix: str = "") -> Iterator[str]:
        """Yield every key of the owner that this user can open and that begins with `prefix`, sorted by code point.

        Keys are fetched page by page.
        """
        return self._catalogue.iterate_keys(prefix)

    def count_keys(self, prefix: str = "") -> int:
        """Return the number of keys of the owner that this user can open and that begin with `prefix`."""
        return self._catalogue.count_keys(prefix)

    def entries(
        self, prefix: str = "", glob: str | None = None, attrs: Mapping[str, Any] | None = None
    ) -> Iterator[Dataset]:
        """Yield catalogue's entries: see `tensorage.backend.catalogue.Catalogue.entries`."""
        return self._catalogue.entries(prefix, glob, attrs)

    def first_keys(self, prefix: str = "", most: int = 1000) -> list[str]:
        """Return the first keys that begin with `prefix`, at most 1,000 of them, by one request."""
        return self._catalogue.first_keys(prefix, most)

    def first_page(self, prefix: str = "") -> FirstPage:
        """Return the first arrays of the owner: see `tensorage.backend.catalogue.Catalogue.first_page`."""
        return self._catalogue.first_page(prefix)

    def open(self, key: str) -> Dataset:
        """Return the catalogue's entry of an array of the owner.

        Raises
        ------
        KeyNotFoundError
            If there is no committed array under the key that this user may see.
        """
        return self._remember(self._catalogue.open(key))

    def find(self, key: str) -> Dataset | None:
        """Return the entry of an array, or None if there is none that this user may see."""
        try:
            return self.open(key)
        except KeyNotFoundError:
            return None

    def open_by_id(self, data_id: int) -> Dataset:
        """Return this user's entry with an id, also of an array that is still being written."""
        return self._catalogue.dataset(data_id)

    def remove(self, key: str) -> None:
        """Delete an array of this user.

        Raises
        ------
        KeyNotFoundError, PermissionDeniedError
        """
        self.check_own(f"deleting {key!r}")
        self._catalogue.remove(key)
        self._memory.forget(self.owner, key)

    def remove_all(self, prefix: str) -> int:
        """Delete all arrays of this user whose keys begin with `prefix`, in one transaction. Return their number."""
        self.check_own(f"deleting the arrays below {prefix!r}" if prefix else "deleting all arrays")
        # Entries that are remembered stay: the next request that leans on one has it checked by the database.
        return self._catalogue.remove_all(prefix)

    def rename_all(self, prefix: str, new_prefix: str) -> int:
        """Put another prefix in place of `prefix` in all keys that begin with it, in one transaction."""
        self.check_own(f"renaming the arrays below {prefix!r}")
        return self._catalogue.rename_all(prefix, new_prefix)

    def rename(self, key: str, new_key: str, *, overwrite: bool = False) -> Dataset:
        """Give an array of this user another key. With `overwrite`, an array under that key is replaced."""
        self.check_own(f"renaming {key!r}")
        return self._remember(self._catalogue.rename(key, new_key, overwrite=overwrite))

    def sharing(self, asked: str) -> Sharing:
        """Return the shares of this user's own arrays, for something that was asked."""
        self.check_own(asked)
        return Sharing(self.project.transfer)

    def annotate(
        self,
        dataset: Dataset,
        *,
        attrs: Mapping[str, Any] | None = None,
        removed: Sequence[str] = (),
        replace: bool = False,
    ) -> Dataset:
        """Set `attrs` and delete the attributes named in `removed`; with `replace`, delete all others, too."""
        return self._catalogue.annotate(dataset, attrs=attrs, removed=removed, replace=replace)

    def name_axes(self, dataset: Dataset, dims: Sequence[str] | None) -> Dataset:
        """Name the axes, or take their names away. Coordinates follow the axes that they run along.

        Raises
        ------
        InvalidInputError
            If coordinates would lose their axes, or a coordinate already has the new name of an axis.
        """
        return self._catalogue.name_axes(dataset, dims)

    def label(self, dataset: Dataset, coords: Mapping[str, Any] | None) -> Dataset:
        """Replace the coordinates, encoded by `tensorage.model.coords`, or remove them."""
        return self._catalogue.label(dataset, coords)

    # Writing --------------------------------------------------------------------------------------------

    def begin(self, new: Declaration, engine: EngineChoice) -> Dataset:
        """Begin to store a declared array, which `fill` fills and `commit` makes visible."""
        return self._engine_for(new, engine).begin(new)

    def write_region(self, dataset: Dataset, region: tuple[slice, ...], elements: npt.NDArray[Any]) -> None:
        """Store the elements of a region of a declared array: see `tensorage.backend.engine.ArrayEngine.fill`."""
        self._engine(dataset.engine).write_region(dataset, region, elements)

    def commit(self, dataset: Dataset) -> Dataset:
        """Make a declared array visible.

        Raises
        ------
        IncompleteTensorError
            If elements are missing.
        """
        return commit(self.project.transfer, dataset)

    def write(
        self,
        key: str,
        data: npt.ArrayLike,
        *,
        engine: EngineChoice = "database",
        is_shared: bool = False,
        **options: Unpack[ArrayOptions],
    ) -> Dataset:
        """Store an array: all of it becomes visible in one step, or nothing is stored."""
        array = as_array(data)
        if is_of_text(array):
            self.check_own(f"storing {key!r}")
            return self._ragged().write_text(key, array, engine=engine, is_shared=is_shared, options=options)
        new = declare(key, array.shape, array.dtype, is_shared, options)
        return self._remember(self._engine_for(new, engine).store(array, new))

    def write_ragged(
        self,
        key: str,
        samples: Iterable[Any],
        dtype: npt.DTypeLike | None = None,
        *,
        engine: EngineChoice = "database",
        is_shared: bool = False,
        **options: Unpack[ArrayOptions],
    ) -> Dataset:
        """Store samples of any length: all of them become visible in one step, or nothing is stored."""
        self.check_own(f"storing {key!r}")
        return self._ragged().write(key, samples, dtype, engine=engine, is_shared=is_shared, options=options)

    def write_blocks(
        self,
        key: str,
        blocks: Iterable[npt.ArrayLike],
        shape: Sequence[int],
        dtype: npt.DTypeLike,
        *,
        engine: EngineChoice = "database",
        is_shared: bool = False,
        **options: Unpack[ArrayOptions],
    ) -> Dataset:
        """Store an array that comes as consecutive blocks of rows. Only blocks under way are in memory."""
        new = declare(key, shape, dtype, is_shared, options)
        if not new.shape:
            raise InvalidInputError(f"{key!r} of shape () has no rows that blocks could hold: store it whole")
        return self._engine_for(new, engine).store_blocks(blocks, new)

    def create(
        self,
        key: str,
        shape: Sequence[int],
        dtype: npt.DTypeLike,
        *,
        fill_value: Any = 0,
        engine: EngineChoice = "database",
        is_shared: bool = False,
        **options: Unpack[ArrayOptions],
    ) -> Dataset:
        """Make an array without elements, which reads as a fill value until it is assigned to."""
        new = declare(key, shape, dtype, is_shared, options)
        made = self._engine_for(new, engine).create(new, as_element(fill_value, key, new.dtype))
        return self._remember(made)

    def resize(self, dataset: Dataset, rows: int | Sequence[int]) -> Dataset:
        """Give an array of this user another number of rows. Labels of rows that are cut off are cut off with them.

        Raises
        ------
        InvalidInputError
            If there is no axis 0, or another axis would change.
        ChangedError
            If the array has another number of rows by now.
        """
        self.check_own(f"resizing {dataset.key!r}")
        refuse_ragged("resizing", dataset, _WHOLE_ALONE)
        wanted = rows_to_have(dataset, rows)
        resized = self._engine(dataset.engine).resize(dataset, wanted, shorten_coords(dataset, wanted))
        return self._remember(resized)

    def write_with(
        self,
        key: str,
        write_all: Callable[[Dataset], None],
        shape: Sequence[int],
        dtype: npt.DTypeLike,
        *,
        engine: EngineChoice = "database",
        is_shared: bool = False,
        **options: Unpack[ArrayOptions],
    ) -> Dataset:
        """Store an array that others fill region by region. All of it becomes visible in one step, or nothing.

        Parameters
        ----------
        write_all
            Has every region of the declared array filled before it returns, by `fill`, in any thread, process or
            machine of the same user. An array without elements needs no call.
        """
        dataset = self.begin(declare(key, shape, dtype, is_shared, options), engine)
        # `begin` has already committed an array without elements.
        if not dataset.size:
            return dataset
        return stage(Work.storing(self.project.transfer, dataset), lambda _advance: write_all(dataset), 0)

    def lengths_to_write(self, dataset: Dataset, lengths: AxisLengths) -> AxisLengths:
        """Return a cut close to the given one, whose regions `fill` can store independently and at the same time."""
        return self._engine(dataset.engine).lengths_to_write(dataset, lengths)

    def copy(
        self,
        dataset: Dataset,
        new_key: str,
        *,
        engine: EngineChoice | None = None,
        **options: Unpack[ArrayOptions],
    ) -> Dataset:
        """Copy an array of the owner to a key of this user, with its attributes, dims and coordinates.

        The array is copied region by region, and never in memory as a whole.

        Parameters
        ----------
        engine
            Engine of the copy, by default that of the array.

        Raises
        ------
        ChangedError
            If the array has changed since `dataset` was opened. Nothing was stored.
        """
        kept: ArrayOptions = {"attrs": dataset.attrs, "dims": dataset.dims, "coords": dataset.coords}
        if dataset.ragged is not None:
            return self._ragged().copy(dataset, new_key, engine or dataset.engine, {**kept, **options})
        new = declare(new_key, dataset.shape, dataset.dtype, False, {**kept, **options})
        # Only the written side shows a bar: both sides move the same bytes.
        source = self.quietly()._engine(dataset.engine)
        target = self.own()._engine_for(new, engine or dataset.engine)
        # An engine may copy its own arrays without moving elements, which is much faster.
        if dataset.engine == target.name and (made := target.copy(dataset, new)) is not None:
            return made
        return target.store_from(lambda region: np.asarray(source.read(dataset, region, None)), new)

    def import_zarr(
        self,
        key: str,
        source: Any,
        *,
        engine: Engine = "storage",
        is_shared: bool = False,
        **options: Unpack[ArrayOptions],
    ) -> Dataset:
        """Store an array of Zarr that somebody else wrote, with its attributes and the names of its dimensions.

        Parameters
        ----------
        source
            An array of zarr, or whatever zarr opens: a path, a URL, a store.
        engine
            Engine of the new array. With ``"storage"``, encoded chunks of Zarr v3 are taken over as they are.
        options
            Options that replace those of the source.

        Raises
        ------
        InvalidInputError, DTypeError
            If the source is no array that can be stored.
        CorruptTensorError
            If the source is damaged. Nothing is stored.
        """
        # The engine comes first: without zarr, its error tells which package to install.
        storage = self._zarr_engine()
        from tensorage.backend.zarr.importing import blocks_of, declaration_of, open_source

        array = open_source(source)
        new = declaration_of(array, key, is_shared, options)
        if engine == "storage":
            return storage.import_zarr(array, new)
        if not array.ndim:
            return self._engine(engine).store(np.asarray(array[...]), new)
        return self._engine(engine).store_blocks(blocks_of(array), new)

    def append(
        self, key: str, data: npt.ArrayLike, *, known: Dataset | None = None, likely: Engine = "database"
    ) -> Dataset:
        """Add rows at the end of axis 0, all at once, and once even if the request is repeated.

        Parameters
        ----------
        known
            Entry of the array, if it has been opened.
        likely
            Engine that the array is probably kept by, if it has not been opened.
        """
        # Rows that no array of one length holds are for an array of another kind, if they are for any.
        is_even = known is not None or _is_even(data)
        if known is None and is_even and (appended := self._append_to_remembered(key, data)) is not None:
            return appended
        # The database engine needs no entry: its one request also tells if the array is elsewhere, once all of the rows
        # were sent.
        if known is None and (likely == "storage" or not is_even):
            known = self.open(key)
        engine: Engine = "database" if known is None else known.engine
        # Each further turn follows the key to the engine that keeps its array now. There is a third one only if others
        # replace the array each time.
        while True:
            try:
                if known is not None and known.ragged is not None:
                    return self._remember(self._ragged().append(known, data, lambda: self.open(key)))
                return self._remember(self._engine(engine).append(key, data, known))
            except OtherEngineError as error:
                if isinstance(data, Iterator):
                    raise ChangedError(
                        f"appending to {key!r}: another array has replaced it, and an iterator gives its samples once. "
                        "Open it again. Nothing was appended"
                    ) from error
                known = error.dataset
                engine = known.engine

    def _append_to_remembered(self, key: str, data: npt.ArrayLike) -> Dataset | None:
        """Append rows to an array of Storage whose entry is remembered. None if it is not, or not so any more."""
        found = self._memory.find(self.owner, key)
        if found is None or found.entry.engine != "storage" or found.entry.ragged is not None:
            return None
        engine = self._engine("storage", self._knowledge(found.entry))
        try:
            return self._remember(engine.append(key, data, found.entry))
        except IncompleteTensorError:
            raise
        except _OUT_OF_DATE:
            self._memory.forget(self.owner, key)
            return None

    def assign(
        self,
        dataset: Dataset,
        selection: Selection,
        value: npt.ArrayLike,
        *,
        known: Mapping[str, Any] | None = None,
    ) -> Dataset:
        """Assign to a selection of a stored array, as numpy does it: all of it, or nothing.

        Parameters
        ----------
        known
            Remembered entry of the array, if it was not looked at: see `tensorage.backend.transfer.Work`.

        Raises
        ------
        ChangedError
            If the array is not what it was when `dataset` was opened.
        """
        refuse_ragged("assigning to", dataset, _WHOLE_ALONE)
        fields, _ = split_fields(selection, dataset.dtype)
        if fields is not None:
            raise InvalidInputError(
                f"assigning to {dataset.key!r}: the selection names the field {fields.names[0]!r}, and records are "
                "assigned whole. Read them, change the field, and assign them: records = handle[10:20]; "
                f"records[{fields.names[0]!r}] = ...; handle[10:20] = records. Nothing has changed"
            )
        return self._remember(self._engine(dataset.engine, known).assign(dataset, selection, value))

    def assign_to_key(self, key: str, selection: Selection, value: npt.ArrayLike) -> None:
        """Assign to a selection of the array under a key, by one request if its entry is remembered.

        Raises
        ------
        KeyNotFoundError
            If there is no committed array under the key that this user may see.
        """
        found = self._memory.find(self.owner, key)
        # Storage takes several requests, and its objects belong to one version.
        if found is not None and found.entry.engine == "database" and found.entry.ragged is None:
            try:
                # Without elements to assign, nothing was asked for.
                known = self._knowledge(found.entry)
                if self.assign(found.entry, selection, value, known=known) is not found.entry:
                    return
            except IncompleteTensorError:
                raise
            except _OUT_OF_DATE:
                self._memory.forget(self.owner, key)
        OpenArray(self, self.open(key)).on_latest(lambda now: self.assign(now, selection, value))

    def compact(self, key: str) -> int:
        """Merge small neighbouring blocks of an array of this user, and return the number of blocks saved."""
        self.check_own(f"compacting {key!r}")
        return self._engine(self.open(key).engine).compact(key)

    # Reading --------------------------------------------------------------------------------------------

    def read_key(self, key: str, selection: Selection = ...) -> Any:
        """Return ``array[selection]`` of the array under a key.

        One request does for a whole array of the database of at most 8 MiB, and for a part of an array whose entry is
        remembered. The request itself checks what is remembered, so that a change by others is seen.

        Raises
        ------
        KeyNotFoundError
            If there is no committed array under the key that this user may see.
        """
        known = self._memory.find(self.owner, key)
        if selection is ... and (known is None or _is_best_looked_at(known)):
            [found] = self._look([key])
            if found.elements is not None:
                return _as_array(found.entry, found.elements)
            # A version that takes its place meanwhile has other records.
            return OpenArray(self, found.entry).on_latest(
                lambda now: self.read(now, ..., records=found.records if now is found.entry else None)
            )
        if known is not None:
            try:
                elements = self.read(
                    known.entry, selection, known=self._knowledge(known.entry), records=known.records
                )
            except IncompleteTensorError:
                raise
            except _OUT_OF_DATE:
                self._memory.forget(self.owner, key)
            else:
                # Without elements to read, nothing was asked for.
                if len(elements) if isinstance(elements, list) else np.size(elements):
                    return elements
        return OpenArray(self, self.open(key)).read(selection)

    def read(
        self,
        dataset: Dataset,
        selection: Selection,
        *,
        out: npt.NDArray[Any] | None = None,
        known: Mapping[str, Any] | None = None,
        records: bytes | None = None,
    ) -> Any:
        """Return ``array[selection]`` of a stored array, as numpy would, or fields of it.

        Parameters
        ----------
        selection
            Index expression of numpy. For an array of records, it may begin with the name of a field, or a list of
            names.
        out
            Array of the result's shape and dtype, filled and returned in place of a new one.
        known
            Remembered entry of the array, if it was not looked at: see `tensorage.backend.transfer.Work`.
        records
            Records of all shards of an array of Storage, if they came along with its entry, or are those of `records`.
            Elements are then read as they were when the records were fetched.

        Raises
        ------
        ChangedError
            If the array is not what it was when `dataset` was opened.
        """
        if dataset.ragged is not None:
            return self._ragged(known, records).read(dataset, selection, out)
        engine = self._engine(dataset.engine, known, records)
        fields, rest = split_fields(selection, dataset.dtype)
        if fields is None:
            return engine.read(dataset, rest, out)
        return fields.put(engine.read_fields(dataset, rest, fields), out)

    def read_exactly(self, dataset: Dataset, selection: Selection) -> Any:
        """Return ``array[selection]`` without over-read. From Storage, whole chunks travel nevertheless."""
        if dataset.engine == "storage":
            return self._engine(dataset.engine).read(dataset, selection, None)
        transfer = self.project.transfer
        # The engine of the database by its class: the interface of engines has no such method.
        blocks = BlockEngine(transfer, self.open, quiet=self.quiet, owner=self.owner)
        return blocks.read_exactly(dataset, selection)

    def lengths(self, dataset: Dataset) -> npt.NDArray[np.int64]:
        """Return the length of each element, of an array whose elements have any length.

        Raises
        ------
        InvalidInputError
            If the elements of the array have one length.
        ChangedError
            If the array is not what it was when `dataset` was opened.
        """
        return self._ragged().lengths(dataset)

    def read_many(self, keys: Sequence[str] | None, below: str | None = None) -> list[tuple[Dataset, Any]]:
        """Read whole arrays as they are at one moment: see `tensorage.backend.catalogue.Catalogue.look`.

        Small arrays of the database come together, 8 MiB in a request.
        """

        def look() -> list[Found]:
            return self._look(keys, below)

        def read(found: list[Found]) -> list[tuple[Dataset, Any]]:
            contents = self._read_rest(found)
            return [
                (each.entry, _as_array(each.entry, content))
                for each, content in zip(found, contents, strict=True)
            ]

        return on_latest(read, look(), look, pauses=True)

    def _read_rest(self, found: list[Found]) -> list[Any]:
        """Read what did not come along with a look, of the same versions.

        Raises
        ------
        ChangedError
            If an array has another version by now.
        """
        contents: list[Any] = [each.elements for each in found]
        rest = [number for number, content in enumerate(contents) if content is None]
        while rest:
            entries = [found[number].entry for number in rest]
            if not _may_come_along(entries[0]):
                contents[rest[0]] = self.read(entries[0], ..., records=found[rest[0]].records)
                rest = rest[1:]
                continue
            # Arrays in their order, as many as one answer has room for. The first one always fits.
            room, taken = MAX_REQUEST_BYTES, list[int]()
            for number, entry in zip(rest, entries, strict=True):
                if _may_come_along(entry) and entry.nbytes <= room:
                    room, taken = room - entry.nbytes, [*taken, number]
            again = self._look([found[number].entry.key for number in taken])
            for number, now in zip(taken, again, strict=True):
                # Asked for by key, under which another array or version may be by now. The result is of one moment.
                before = found[number].entry
                if now.elements is None or (now.entry.id, now.entry.version) != (before.id, before.version):
                    raise ChangedError(f"{before.key!r} has changed while it was read with others")
                contents[number] = now.elements
            rest = [number for number in rest if contents[number] is None]
        return contents

    def shape_to_read(self, dataset: Dataset, most_bytes: int = READ_BYTES) -> tuple[int, ...]:
        """Return the shape of regions of about `most_bytes` that are convenient to read. Sends no request."""
        return self._engine(dataset.engine).shape_to_read(dataset, most_bytes)

    def check_unchanged(self, dataset: Dataset) -> None:
        """Raise `ChangedError` if the elements have changed since `dataset` was opened. The array has to have some."""
        if dataset.ragged is not None:
            self._ragged().check_unchanged(dataset)
            return
        self._engine(dataset.engine).check_unchanged(dataset)

    def records(self, dataset: Dataset) -> bytes | None:
        """Return the records of all shards of an array of Storage, which `read` takes, by one request.

        None for an array of the database, and for one whose records have more than about 64 KiB.

        Raises
        ------
        ChangedError
            If the array is not what it was when `dataset` was opened.
        """
        if dataset.engine != "storage" or not dataset.size:
            return None
        return self._zarr_engine().records(dataset)

    def tiles(self, dataset: Dataset) -> TileGrid:
        """Return the grid of tiles of a stored array."""
        return self._engine(dataset.engine).tiles(dataset)

    def read_tiles(self, dataset: Dataset, numbers: Positions, advance: Advance) -> npt.NDArray[Any]:
        """Read tiles together: see `tensorage.backend.engine.ArrayEngine.read_tiles`."""
        return self._engine(dataset.engine).read_tiles(dataset, numbers, advance)

    def moved_bytes(self, dataset: Dataset, numbers: Positions | None = None) -> int:
        """Return the bytes that travel if some tiles, by default all, are read once each."""
        if dataset.ragged is not None:
            return dataset.nbytes
        return self._engine(dataset.engine).moved_bytes(dataset, numbers)

    def zarr_store(self, dataset: Dataset, *, as_group: str | None = None) -> zarr.abc.store.Store:
        """Return an array of Storage as a store of zarr: see `tensorage.backend.zarr.zarr_store`."""
        self._zarr_engine()
        from tensorage.backend.zarr.zarr_store import CatalogueStore

        return CatalogueStore(TransferOf(self.project), dataset, as_group=as_group)

    # Engines --------------------------------------------------------------------------------------------

    def _ragged(self, known: Mapping[str, Any] | None = None, records: bytes | None = None) -> RaggedArrays:
        return RaggedArrays(self.project.transfer, self.quiet, self.owner, known, records)

    @property
    def _catalogue(self) -> Catalogue:
        return Catalogue(self.project.transfer, self.owner)

    def _engine_for(self, new: Declaration, choice: EngineChoice) -> ArrayEngine:
        self.check_own(f"storing {new.key!r}")
        return self._engine(resolve_engine(choice, new))

    def _engine(
        self, name: Engine, known: Mapping[str, Any] | None = None, records: bytes | None = None
    ) -> ArrayEngine:
        if name == "database":
            transfer = self.project.transfer
            return BlockEngine(transfer, self.open, quiet=self.quiet, owner=self.owner, known=known)
        return self._zarr_engine(known, records)

    def _zarr_engine(
        self, known: Mapping[str, Any] | None = None, records: bytes | None = None
    ) -> ZarrEngine:
        try:
            from tensorage.backend.zarr.zarr_engine import ZarrEngine
        # numcodecs and the rest belong to an extra, which not every installation has.
        except ModuleNotFoundError as error:
            raise missing_package("arrays of engine='storage'", error, "storage") from error
        transfer = self.project.transfer
        return ZarrEngine(
            transfer, self.open, quiet=self.quiet, owner=self.owner, known=known, records=records
        )

    # Entries that are remembered ------------------------------------------------------------------------

    @property
    def _memory(self) -> EntryMemory:
        return self.project.transfer.entries

    def _look(self, keys: Sequence[str] | None, below: str | None = None) -> list[Found]:
        found = self._catalogue.look(keys, below)
        for each in found:
            self._memory.remember(self.owner, each.entry, each.records)
        return found

    def _remember(self, entry: Dataset) -> Dataset:
        self._memory.remember(self.owner, entry)
        return entry

    def _knowledge(self, entry: Dataset) -> dict[str, Any]:
        """Return what the database has to check if an entry is used without a look at the catalogue."""
        return {"key": entry.key, "owner": self.owner, "shape": entry.shape}


def _is_even(data: Any) -> bool:
    """Tell whether data may be rows of an array whose elements have one length."""
    if isinstance(data, np.ndarray):
        return not is_of_text(data)
    return hasattr(data, "__array__") or not isinstance(data, Iterator)


def _may_come_along(entry: Dataset) -> bool:
    """Tell whether an array is small enough, and of a kind, to come with others in one answer."""
    return entry.engine == "database" and entry.ragged is None and entry.nbytes <= MAX_REQUEST_BYTES


def _is_best_looked_at(known: Remembered) -> bool:
    """Tell whether a look, which may bring elements or records of shards along, is the best way to a whole array."""
    is_small = known.entry.nbytes <= MAX_REQUEST_BYTES
    return _may_come_along(known.entry) or (
        is_small and known.entry.engine == "storage" and known.records is None
    )


def _as_array(entry: Dataset, content: Any) -> Any:
    """Return a whole array, or the list of samples of a ragged one."""
    if not isinstance(content, memoryview):
        return content if isinstance(content, list) else np.asarray(content)
    # Copied: arrays over bytes cannot be written to.
    return np.frombuffer(content, entry.dtype).reshape(entry.shape).copy()


@dataclass(frozen=True)
class TransferOf:
    """Returns the byte mover of a project: another one after a fork."""

    project: Project

    def __call__(self) -> Transfer:
        return self.project.transfer


class Reader(Protocol):
    """Another way to an array's elements than the network alone, such as a cache."""

    def read(self, array: OpenArray, selection: Selection, out: npt.NDArray[Any] | None) -> Any:
        """Return ``array[selection]``, in `out` if it is given."""
        ...

    def epoch_cost(self, array: OpenArray) -> int:
        """Return the bytes of elements that reading every row once would fetch now."""
        ...


@end_tracebacks_here
class OpenArray:
    """One stored array, and the way to its elements.

    A read that finds the array changed begins anew on the present version. A result therefore never mixes two versions.

    Parameters
    ----------
    arrays
        Arrays of the user who reads.
    dataset
        Entry of the array in the catalogue.
    reader
        Another way to the elements than the network alone.

    Attributes
    ----------
    dataset
        Entry of the array, as the catalogue last gave it.
    """

    def __init__(self, arrays: Arrays, dataset: Dataset, *, reader: Reader | None = None) -> None:
        self.arrays = arrays
        self.dataset = dataset
        self.reader = reader

    @property
    def key(self) -> str:
        return self.dataset.key

    @property
    def owner(self) -> str | None:
        """E-mail address of the user whose array it is."""
        return self.dataset.owner

    @property
    def is_shared(self) -> bool:
        """True if anybody but the owner may use the array."""
        return self.dataset.is_shared

    @property
    def shape(self) -> tuple[int, ...]:
        return self.dataset.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.dataset.dtype

    @property
    def ndim(self) -> int:
        return self.dataset.ndim

    @property
    def size(self) -> int:
        """Number of elements."""
        return self.dataset.size

    @property
    def nbytes(self) -> int:
        """Bytes of the elements."""
        return self.dataset.nbytes

    def __len__(self) -> int:
        shape = self.dataset.shape
        if not shape:
            raise TypeError("len() of unsized object")
        return shape[0]

    def read(self, selection: Selection = ..., out: npt.NDArray[Any] | None = None) -> Any:
        """Return ``array[selection]``, or fields of it.

        Parameters
        ----------
        selection
            Index expression of numpy. For an array of records, it may be the name of a field or a list of names, or
            begin with one: ``("t", slice(10))`` reads ``array[:10]["t"]``.
        out
            Array of the result's shape and dtype, filled and returned in place of a new one.

        Raises
        ------
        IndexError
            If the selection does not fit the shape, as numpy raises it.
        InvalidInputError
            If there is no field of such a name.
        KeyNotFoundError
            If the array has been deleted meanwhile.
        IncompleteTensorError
            If blocks of the array were deleted without the catalogue's knowledge.
        """
        if self.reader is not None:
            fields, rest = split_fields(selection, self.dtype)
            if fields is None:
                return self.reader.read(self, rest, out)
            return fields.put(fields.take(self.reader.read(self, rest, None)), out)
        return self.on_latest(lambda now: self.arrays.read(now, selection, out=out))

    def epoch_cost(self) -> int:
        """Return the bytes of elements that reading every row once, in order, moves over the network now.

        For the database, this is `nbytes`. For Storage, it is the sum of the compressed chunks, each counted once, as
        when large slices are read. Chunks that hold nothing but the fill value do not travel, and are not counted.
        With a cache, elements on the disk are not counted.
        """
        if self.reader is not None:
            return self.reader.epoch_cost(self)
        return self.on_latest(lambda now: self.arrays.moved_bytes(now) if now.size else 0)

    def refresh(self) -> None:
        """Fetch the entry from the catalogue again: its shape, attributes and version."""
        self.reopen()

    def reopen(self) -> Dataset:
        """Fetch the entry from the catalogue again, and return it."""
        self.dataset = now = self.arrays.open(self.key)
        return now

    def on_latest(self, use: Callable[[Dataset], T], first: Dataset | None = None) -> T:
        """Return the result of `use` on one version, beginning anew on the next version after a change.

        Parameters
        ----------
        first
            Version to begin with, by default that of this handle, which other threads may change.
        """
        return on_latest(use, self.dataset if first is None else first, self.reopen)
