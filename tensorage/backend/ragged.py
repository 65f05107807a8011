"""Arrays whose elements have any length: text, and ragged arrays, in the database or in Storage."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import numpy.typing as npt

from tensorage.backend.blocks.ragged import RaggedWriter, fetch_lengths, read_samples
from tensorage.backend.engine import READ_BYTES
from tensorage.backend.restarts import on_latest
from tensorage.backend.staging import final_operation
from tensorage.backend.transfer import Transfer, Work
from tensorage.backend.wire.faults import OtherDTypeError
from tensorage.errors import DTypeError, InvalidInputError, missing_package
from tensorage.indexing.selection import Selection
from tensorage.model.declaration import MAX_BLOCK_ELEMENTS, ArrayOptions, Declaration, declare_ragged
from tensorage.model.engine_choice import check_engine
from tensorage.model.fields import split_fields
from tensorage.model.ragged import Block, Encoder, as_objects, as_rows, as_texts, choose_type, encode_blocks
from tensorage.ragged import TEXT_ARRAY, Ragged
from tensorage.types import Dataset, Engine, EngineChoice

if TYPE_CHECKING:
    from tensorage.backend.zarr.ragged import RaggedObjects

__all__ = ["RaggedArrays", "refuse_ragged"]


def refuse_ragged(asked: str, dataset: Dataset, advice: str) -> None:
    """Refuse something that has no meaning for elements of any length.

    Raises
    ------
    InvalidInputError
        If the elements of the array have any length.
    """
    if dataset.ragged is not None:
        raise InvalidInputError(
            f"{asked} {dataset.key!r}: its elements are {dataset.ragged}, which have no place there. {advice}"
        )


@dataclass(frozen=True)
class RaggedArrays:
    """Arrays of one owner whose elements have any length.

    Parameters
    ----------
    transfer
        Carries the requests.
    quiet
        Never show a progress bar.
    owner
        Owner of the arrays. None for this user.
    known
        Remembered key, owner and shape of the array: see `tensorage.backend.transfer.Work`.
    records
        Records of all shards of an array of Storage, if they came along with its entry.
    """

    transfer: Transfer
    quiet: bool
    owner: str | None = None
    known: Mapping[str, Any] | None = None
    records: bytes | None = None

    def write(
        self,
        key: str,
        samples: Iterable[Any],
        dtype: npt.DTypeLike | None,
        *,
        engine: EngineChoice,
        is_shared: bool,
        options: ArrayOptions,
    ) -> Dataset:
        """Store samples of any length. Only blocks under way are in memory."""
        ragged, rest = choose_type(key, samples, dtype)
        new = declare_ragged(key, (0,), ragged, is_shared, options)
        encoder = Encoder(key, ragged)
        once = [rest]

        def again() -> Iterable[Any]:
            # The choice of the type has looked at the first samples: `rest` gives them again, and can do so once.
            return once.pop() if once else samples

        # An iterator gives its samples once.
        is_repeatable = iter(samples) is not samples
        return self._write_samples(new, engine, encoder, again, is_repeatable=is_repeatable)

    def write_text(
        self,
        key: str,
        array: npt.NDArray[Any],
        *,
        engine: EngineChoice,
        is_shared: bool,
        options: ArrayOptions,
    ) -> Dataset:
        """Store an array of text of any length."""
        texts = as_texts(key, array)
        new = declare_ragged(key, texts.shape, TEXT_ARRAY, is_shared, options)
        if _engine_of(new, engine) == "storage":
            return self._objects.write_array(new, _objects_of_texts(texts, key))
        return self._store(new, lambda: _blocks_of_texts(texts, key, new.block_size), is_repeatable=True)

    def copy(self, dataset: Dataset, new_key: str, engine: EngineChoice, options: ArrayOptions) -> Dataset:
        """Copy an array of anybody to a key of this user. Only parts under way are in memory."""
        ragged = _type_of(dataset)
        new = declare_ragged(new_key, (0,) if ragged.is_list else dataset.shape, ragged, False, options)
        # The copy is this user's, whoever owns the source. `known` and `records` are of the source.
        own = RaggedArrays(self.transfer, self.quiet)
        kept_by = _engine_of(new, engine)
        if kept_by == dataset.engine == "storage" and (made := own._objects.copy(dataset, new)) is not None:
            return made
        if kept_by == "storage" and not ragged.is_list:
            # Only the written side shows a bar: both sides move the same elements.
            quiet = RaggedArrays(self.transfer, True, self.owner)

            def read(region: tuple[slice, ...]) -> npt.NDArray[Any]:
                return _objects_of_texts(np.asarray(quiet.read(dataset, region, None), object), new_key)

            return own._objects.write_regions(new, dataset.mean_bytes, read)
        encoder = Encoder(new_key, ragged)
        return own._write_samples(new, engine, encoder, lambda: self._samples(dataset), is_repeatable=True)

    def append(self, dataset: Dataset, data: Any, reopen: Callable[[], Dataset]) -> Dataset:
        """Add samples, or rows of text, at the end of an array: all at once, and once only.

        Parameters
        ----------
        reopen
            Opens the array anew, which another one may have replaced.
        """
        if dataset.engine == "storage":
            return self._append_objects(dataset, data, reopen)
        ragged = _type_of(dataset)
        block_size = MAX_BLOCK_ELEMENTS if dataset.block_size > MAX_BLOCK_ELEMENTS else dataset.block_size
        if ragged.is_list:
            _check_samples(dataset, data)
            shape: tuple[int, ...] = (0,)
            encoder = Encoder(dataset.key, ragged)

            def blocks() -> Iterator[Block]:
                return encode_blocks(data, encoder, block_size)
        else:
            rows = as_rows(data, dataset)
            shape = rows.shape

            def blocks() -> Iterator[Block]:
                return _blocks_of_texts(rows, dataset.key, block_size)

        meta = {
            "key": dataset.key, "shape": shape, "dtype": ragged.form, "chunk": block_size, "owner": self.owner,
            "operation": final_operation(),
        }  # fmt: skip
        is_repeatable = not isinstance(data, Iterator)
        try:
            return self._writer.store(blocks, meta, is_repeatable=is_repeatable, is_append=True)
        except OtherDTypeError as error:
            now = reopen()
            # An array of another type has replaced the one that was opened. Samples are encoded by type: all of them
            # have to be there once more.
            if now.ragged is None or not is_repeatable or now.ragged == ragged:
                raise _other_type_error(dataset, ragged) from error
            return self.append(now, data, reopen)

    def read(self, dataset: Dataset, selection: Selection, out: npt.NDArray[Any] | None) -> Any:
        """Return ``array[selection]``: a sample or a list of them, or of an array of text, text or an array of it."""
        fields, _ = split_fields(selection, dataset.dtype)
        if fields is not None:
            raise InvalidInputError(
                f"reading {dataset.key!r}: its elements are {dataset.ragged}, whose field {fields.names[0]!r} cannot "
                "be read alone. Read the samples, and take the field of each"
            )
        if dataset.engine == "storage":
            return self._objects.read(dataset, _type_of(dataset), selection, out)
        return read_samples(self._work("reading", dataset), _type_of(dataset), selection, out)

    def lengths(self, dataset: Dataset) -> npt.NDArray[np.int64]:
        """Return the length of each element: rows of arrays, bytes of bytes and of text in UTF-8."""
        unit = _type_of(dataset).unit
        if dataset.engine == "storage":
            lengths = self._objects.lengths(dataset)
        else:
            lengths = fetch_lengths(self._work("reading the lengths of", dataset), dataset.size)
        return (lengths // unit).reshape(dataset.shape)

    def check_unchanged(self, dataset: Dataset) -> None:
        """Raise `ChangedError` if the elements have changed since `dataset` was opened. The array has to have some."""
        if dataset.engine == "storage":
            self._objects.check_unchanged(dataset)
        else:
            fetch_lengths(self._work("reading", dataset), 1)

    @property
    def _objects(self) -> RaggedObjects:
        try:
            from tensorage.backend.zarr.ragged import RaggedObjects
        # numcodecs and the rest belong to an extra, which not every installation has.
        except ModuleNotFoundError as error:
            raise missing_package("arrays of engine='storage'", error, "storage") from error
        return RaggedObjects(self.transfer, self.quiet, self.known, self.records)

    @property
    def _writer(self) -> RaggedWriter:
        return RaggedWriter(self.transfer, self.quiet, self.owner)

    def _write_samples(
        self,
        new: Declaration,
        engine: EngineChoice,
        encoder: Encoder,
        samples: Callable[[], Iterable[Any]],
        *,
        is_repeatable: bool,
    ) -> Dataset:
        def blocks() -> Iterator[Block]:
            # Made anew by each call: a write that a failure of the database undoes begins with the first block again.
            return encode_blocks(samples(), encoder, new.block_size)

        if _engine_of(new, engine) == "database":
            return self._store(new, blocks, is_repeatable=is_repeatable)
        return self._objects.write_samples(
            new, lambda: _encode_each(samples(), encoder), is_repeatable=is_repeatable
        )

    def _append_objects(self, dataset: Dataset, data: Any, reopen: Callable[[], Dataset]) -> Dataset:
        """Add samples to an array of Storage. They stay in memory: an append that loses a race is repeated."""
        ragged = _type_of(dataset)
        if ragged.is_list:
            _check_samples(dataset, data)
            data = data if isinstance(data, Sequence | np.ndarray) else list(data)
            encoded = list(_encode_each(data, Encoder(dataset.key, ragged)))
            rows = as_objects(encoded, (len(encoded),))
        else:
            texts = as_rows(data, dataset)
            data, rows = texts, _objects_of_texts(texts, dataset.key)

        def append_to(now: Dataset) -> Dataset:
            if now.ragged != ragged:
                raise _other_type_error(dataset, ragged)
            return (
                self.append(now, data, reopen) if now.engine != "storage" else self._objects.append(now, rows)
            )

        # Others may append at the same time, and would meet again without a pause.
        return on_latest(append_to, dataset, reopen, pauses=True)

    def _store(
        self, new: Declaration, blocks: Callable[[], Iterator[Block]], *, is_repeatable: bool
    ) -> Dataset:
        meta = {**new.meta, "operation": final_operation()}
        return self._writer.store(blocks, meta, is_repeatable=is_repeatable, is_append=False)

    def _samples(self, dataset: Dataset) -> Iterator[Any]:
        """Yield the elements of an array in C order, read in parts of about 32 MiB."""
        if not dataset.ndim:
            yield self.read(dataset, (), None)
            return
        rows = dataset.shape[0]
        per_part = max(READ_BYTES // (dataset.mean_bytes * max(math.prod(dataset.shape[1:]), 1)), 1)
        quiet = RaggedArrays(self.transfer, True, self.owner)
        for first in range(0, rows, per_part):
            part = quiet.read(dataset, slice(first, first + per_part), None)
            yield from part if isinstance(part, list) else part.astype(object).flat

    def _work(self, verb: str, dataset: Dataset) -> Work:
        return Work(self.transfer, dataset, f"{verb} {dataset.key!r}", self.quiet, self.known)


def _type_of(dataset: Dataset) -> Ragged:
    if dataset.ragged is None:
        _refuse_dense(dataset)
    return dataset.ragged


def _refuse_dense(dataset: Dataset) -> NoReturn:
    raise InvalidInputError(
        f"the elements of {dataset.key!r} are {dataset.dtype}, and have one length: its shape is {dataset.shape}"
    )


def _blocks_of_texts(texts: npt.NDArray[Any], key: str, block_size: int) -> Iterator[Block]:
    return encode_blocks(texts.flat, Encoder(key, TEXT_ARRAY), block_size)


def _objects_of_texts(texts: npt.NDArray[Any], key: str) -> npt.NDArray[Any]:
    return as_objects(_encode_each(texts.flat, Encoder(key, TEXT_ARRAY)), texts.shape)


def _encode_each(samples: Iterable[Any], encoder: Encoder) -> Iterator[bytes]:
    return (encoder.encode(number, sample) for number, sample in enumerate(samples))


def _check_samples(dataset: Dataset, data: Any) -> None:
    # Text can be iterated over, too, and each letter would become a sample.
    if isinstance(data, str | bytes) or not isinstance(data, Iterable):
        raise InvalidInputError(
            f"appending to {dataset.key!r}: samples come in a list or another iterable, not as a "
            f"{type(data).__name__}"
        )


def _other_type_error(dataset: Dataset, ragged: Ragged) -> DTypeError:
    return DTypeError(
        f"appending to {dataset.key!r}: its elements were {ragged}, and another array has replaced it. Open it again. "
        "Nothing was appended"
    )


def _engine_of(new: Declaration, choice: EngineChoice) -> Engine:
    """Resolve the user's choice. Chunks or shards can only be meant for Storage; "auto" is the database otherwise."""
    check_engine(choice, f"storing {new.key!r}: ")
    layout = [name for name in ("chunks", "shards", "codecs") if new.options.get(name) is not None]
    if choice == "database" and layout:
        raise InvalidInputError(
            f"storing {new.key!r}: engine='database' has no {layout[0]}: give engine='storage', or leave it out. "
            "Nothing is stored"
        )
    return "storage" if choice == "storage" or layout else "database"
