"""Arrays whose elements have any length: text, and ragged arrays. They are kept by the database."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from tensorage.backend.blocks.ragged import RaggedWriter, fetch_lengths, read_samples
from tensorage.backend.engine import READ_BYTES
from tensorage.backend.staging import new_operation
from tensorage.backend.transfer import Transfer, Work
from tensorage.backend.wire.faults import OtherDTypeError
from tensorage.errors import DTypeError, InvalidInputError
from tensorage.indexing.selection import Selection
from tensorage.model.declaration import MAX_BLOCK_ELEMENTS, ArrayOptions, Declaration, declare_ragged
from tensorage.model.engine_choice import check_engine
from tensorage.model.fields import split_fields
from tensorage.model.ragged import Block, Encoder, as_rows, as_texts, choose_type, encode_blocks
from tensorage.ragged import TEXT_ARRAY, Ragged
from tensorage.types import Dataset, EngineChoice

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
            f"{asked} {dataset.key!r}: its elements are {dataset.ragged}, which have no place there. {advice}. Nothing "
            "has changed"
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
    """

    transfer: Transfer
    quiet: bool
    owner: str | None = None

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
        _check_layout(new, engine)
        encoder = Encoder(key, ragged)
        once = [rest]

        def blocks() -> Iterator[Block]:
            return encode_blocks(once.pop() if once else samples, encoder, new.block_size)

        # An iterator gives its samples once.
        return self._store(new, blocks, is_repeatable=iter(samples) is not samples)

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
        _check_layout(new, engine)
        return self._store(new, lambda: _blocks_of_texts(texts, key, new.block_size), is_repeatable=True)

    def copy(self, dataset: Dataset, new_key: str, engine: EngineChoice, options: ArrayOptions) -> Dataset:
        """Copy an array of anybody to a key of this user. Only parts under way are in memory."""
        ragged = _type_of(dataset)
        new = declare_ragged(new_key, (0,) if ragged.is_list else dataset.shape, ragged, False, options)
        _check_layout(new, engine)
        encoder = Encoder(new_key, ragged)

        def blocks() -> Iterator[Block]:
            return encode_blocks(self._samples(dataset), encoder, new.block_size)

        return RaggedArrays(self.transfer, self.quiet)._store(new, blocks, is_repeatable=True)

    def append(self, dataset: Dataset, data: Any, reopen: Callable[[], Dataset]) -> Dataset:
        """Add samples, or rows of text, at the end of an array: all at once, and once only.

        Parameters
        ----------
        reopen
            Opens the array anew, which another one may have replaced.
        """
        ragged = _type_of(dataset)
        block_size = MAX_BLOCK_ELEMENTS if dataset.block_size > MAX_BLOCK_ELEMENTS else dataset.block_size
        if ragged.is_list:
            if isinstance(data, str | bytes) or not isinstance(data, Iterable):
                raise InvalidInputError(
                    f"appending to {dataset.key!r}: samples come in a list or another iterable, not as a "
                    f"{type(data).__name__}"
                )
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
            "operation": new_operation(),
        }  # fmt: skip
        is_repeatable = not isinstance(data, Iterator)
        try:
            return self._writer.store(blocks, meta, is_repeatable=is_repeatable, is_append=True)
        except OtherDTypeError as error:
            now = reopen()
            if now.ragged is None or not is_repeatable or now.ragged == ragged:
                raise DTypeError(
                    f"appending to {dataset.key!r}: its elements were {ragged}, and another array has replaced it. "
                    "Open it again. Nothing was appended"
                ) from error
            return self.append(now, data, reopen)

    def read(self, dataset: Dataset, selection: Selection, out: npt.NDArray[Any] | None) -> Any:
        """Return ``array[selection]``: a sample or a list of them, or of an array of text, text or an array of it."""
        fields, _ = split_fields(selection, dataset.dtype)
        if fields is not None:
            raise InvalidInputError(
                f"reading {dataset.key!r}: its elements are {dataset.ragged}, whose field {fields.names[0]!r} cannot "
                "be read alone. Read the samples, and take the field of each"
            )
        return read_samples(self._work("reading", dataset), _type_of(dataset), selection, out)

    def lengths(self, dataset: Dataset) -> npt.NDArray[np.int64]:
        """Return the length of each element: rows of arrays, bytes of bytes and of text in UTF-8."""
        work = self._work("reading the lengths of", dataset)
        return (fetch_lengths(work, dataset.size) // _type_of(dataset).unit).reshape(dataset.shape)

    def check_unchanged(self, dataset: Dataset) -> None:
        """Raise `ChangedError` if the elements have changed since `dataset` was opened. The array has to have some."""
        fetch_lengths(self._work("reading", dataset), 1)

    @property
    def _writer(self) -> RaggedWriter:
        return RaggedWriter(self.transfer, self.quiet, self.owner)

    def _store(
        self, new: Declaration, blocks: Callable[[], Iterator[Block]], *, is_repeatable: bool
    ) -> Dataset:
        meta = {**new.meta, "operation": new_operation()}
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
        return Work(self.transfer, dataset, f"{verb} {dataset.key!r}", self.quiet)


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


def _check_layout(new: Declaration, engine: EngineChoice) -> None:
    check_engine(engine, f"storing {new.key!r}: ")
    if engine == "storage" or any(
        new.options.get(name) is not None for name in ("chunks", "shards", "codecs")
    ):
        raise InvalidInputError(
            f"storing {new.key!r}: its elements are {new.ragged}, which engine='database' keeps, and Storage does "
            "not: give engine='database', and no chunks, shards or codecs. Nothing is stored"
        )
