"""The background writer, which a loop gives its arrays to."""

from __future__ import annotations

import copy
import logging
import operator
import os
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal, NoReturn, cast

import numpy as np
import numpy.typing as npt

from tensorage.adapters.labelled import is_labelled, labels_of, unwrap
from tensorage.background.changes import Change, Settings, Store, Stores, Verb
from tensorage.background.operations import Operation
from tensorage.background.spool.folder import Identity, SpoolFolder
from tensorage.background.spool.sending import Sender
from tensorage.background.spool.values import Loose
from tensorage.background.workers import Workers
from tensorage.dtypes import storable_dtype
from tensorage.errors import BackendUnavailableError, ClosedError, InvalidInputError
from tensorage.interchange.objects import take_description
from tensorage.model.declaration import ArrayOptions
from tensorage.model.engine_choice import check_engine
from tensorage.model.ragged import as_texts, declare_array, is_of_text
from tensorage.model.values import as_array, check_key, is_array, split_key
from tensorage.tracebacks import end_tracebacks_here
from tensorage.types import COORDS_ATTRIBUTE, EngineChoice
from tensorage.wording import quote

__all__ = ["BackgroundWriter"]

logger = logging.getLogger("tensorage.background")

#: Types that numpy makes an array of with memory of its own.
_COPIED_ANYWAY = (list, tuple, bool, int, float, complex)


@end_tracebacks_here
class BackgroundWriter:
    """Stores arrays in threads of its own, while the loop that gives them continues.

    `TensorStore.background` makes writers. Each call copies its array, which the loop may change right away, and
    returns. A call waits only if there is no room for another operation. A mistake that shows at once, such as a dtype
    that cannot be stored, is raised at once.

    Operations of one key are done in the order in which they were given. Operations of different keys may overtake each
    other.

    An error of the backend is raised by the next call of the thread that gave the operation, by `flush`, or at the end
    of the ``with`` block, whichever comes first. Notes of the error name the operations that failed, and later
    operations of the same keys, which were dropped. The call that raises an error has done nothing else, and the writer
    continues.

    At the end of a ``with`` block, all taken operations are done, also if the block raises an error. An error of
    writing then becomes a note of the block's error, and is logged.

    A writer is safe to use from many threads, but cannot be pickled. In a forked process the writer is closed: make
    another one there.

    Parameters
    ----------
    store
        Store for this writer alone, without progress bars, which would disturb the output of the loop.
    max_in_flight, max_bytes
        Most operations, and most bytes of their arrays, that are waiting or under way. A single array may be larger.
    spool
        Folder in which arrays wait, in place of memory. Each call returns once its array is on the disk. Arrays
        that are left when the process ends are sent by the next writer with the same folder, or by ``tensorage sync``.
    spool_bytes
        Most bytes of the folder; by default, as many as the disk has.

    Raises
    ------
    InvalidInputError
        If a limit is less than 1.
    SpoolError
        If the folder is another project's or user's, or holds other files.

    Examples
    --------
    .. code-block:: python

        with store.background(max_in_flight=16) as bg:
            for step, batch in enumerate(batches):
                loss = train(weights, batch)
                bg.append("run/3/loss", [loss])
                bg[f"run/3/weights/{step}"] = weights
    """

    def __init__(
        self,
        store: Store,
        *,
        max_in_flight: int = 8,
        max_bytes: int = 256 * 1024 * 1024,
        spool: str | os.PathLike[str] | None = None,
        spool_bytes: int | None = None,
    ) -> None:
        limits = _check_limit("max_in_flight", max_in_flight), _check_limit("max_bytes", max_bytes)
        if spool_bytes is not None:
            if spool is None:
                raise InvalidInputError("spool_bytes= is the room of a spool: give spool= as well")
            _check_limit("spool_bytes", spool_bytes)
        self._of = repr(store)
        # Holds the login until the writer is closed.
        self._store: Store | None = store
        self._stores: Stores | None = Stores(store)
        self.workers = Workers(*limits)
        self.sender: Sender | None = None
        if spool is not None:
            folder = SpoolFolder.open(spool, Identity.of(store.arrays.project), spool_bytes)
            self.sender = Sender(folder, Stores(store), self.workers)
            weakref.finalize(self, _tell_what_is_left, self.sender)
            # An earlier process may have left something.
            self.sender.kick()
        weakref.finalize(self, self.workers.leave)

    # Operations -------------------------------------------------------------------------------------

    def __setitem__(self, key: str | tuple[Any, ...], value: npt.ArrayLike) -> None:
        """Store an array, ``bg[key] = array``, or assign to a selection, ``bg[key, i, j, ...] = value``.

        The writer does ``store[key] = array`` or ``store[key, i, j, ...] = value`` later.

        Raises
        ------
        ClosedError
            If the writer has been closed.
        InvalidInputError, DTypeError
            If the array cannot be stored, as far as that shows without asking the backend.
        TensorageError
            If an earlier operation has failed. The new operation has not been taken then.
        """
        name, selection = split_key(key)
        if selection is None:
            self.write(name, value)
            return
        self._require_open()
        check_key(name)
        taken = self._snapshot(value)
        # Texts of any length are assigned to nowhere: told now, not when the loop is far ahead.
        storable_dtype(taken.array.dtype)
        where = self._copy(selection)
        self._take("assigning to", name, taken.nbytes + _nbytes_of(where), value=taken.given, selection=where)

    def write(
        self,
        key: str,
        array: npt.ArrayLike,
        *,
        attrs: Mapping[str, Any] | None = None,
        dims: Sequence[str] | None = None,
        is_shared: bool = False,
        engine: EngineChoice | None = None,
        chunks: Sequence[int] | None = None,
        shards: Sequence[int] | Literal[False] | None = None,
        codecs: Sequence[Any] | None = None,
    ) -> None:
        """Store an array in memory with attributes, names of axes and a layout, later.

        Parameters
        ----------
        attrs, dims, is_shared, engine, chunks, shards, codecs
            Options of `TensorStore.write`.

        Raises
        ------
        ClosedError, InvalidInputError, DTypeError, TensorageError
            For the same reasons as an assignment to the writer.
        """
        store = self._require_open()
        if engine is not None:
            check_engine(engine, f"storing {key!r}: ")
        said = {
            "chunk_size": store.chunk_size, "overwrite": store.allow_overwrite, "attrs": attrs, "dims": dims,
            "chunks": copy.deepcopy(chunks), "shards": copy.deepcopy(shards), "codecs": copy.deepcopy(codecs),
        }  # fmt: skip
        array, said = take_description(key, array, said)
        elements, said = unwrap(key, array, said)
        taken = self._snapshot(elements)
        options = cast("ArrayOptions", said)
        # The declaration checks the options, and copies attributes and names of axes. Coordinates are text by now,
        # which needs no copy.
        meta = declare_array(key, taken.array, is_shared, options).meta
        meta["attrs"].pop(COORDS_ATTRIBUTE, None)
        where = store.engine if engine is None else engine
        options = {**options, "attrs": meta["attrs"], "dims": meta["dims"]}
        how = {**options, "engine": where, "is_shared": is_shared}
        self._take("storing", key, taken.nbytes, value=taken.array, options=how)

    def append(self, key: str, data: npt.ArrayLike, *, create: bool = False) -> None:
        """Add rows at the end of the first axis of an array, later: see `TensorStore.append`.

        Raises
        ------
        ClosedError, InvalidInputError, DTypeError, TensorageError
            For the same reasons as an assignment to the writer.
        """
        store = self._require_open()
        check_key(key)
        if not is_labelled(data):
            rows = self._snapshot(data)
            self._take("appending to", key, rows.nbytes, value=rows.given, create=create)
            return
        labelled = cast("Any", data)
        labels = labels_of(key, labelled).copy()
        rows = self._snapshot(labelled.data)
        nbytes = rows.nbytes + sum(coord.values.nbytes for coord in labels.coords)
        # A new array takes its attributes, too.
        how = {
            "attrs": copy.deepcopy(dict(labelled.attrs)),
            "engine": store.engine,
            "chunk_size": store.chunk_size,
        }
        self._take(
            "appending to",
            key,
            nbytes,
            value=rows.given,
            labels=labels,
            create=create,
            options=how if create else {},
        )

    def __delitem__(self, key: str) -> None:
        """Delete an array of this user, later.

        Raises
        ------
        ClosedError, InvalidInputError, TensorageError
            For the same reasons as an assignment to the writer.
        """
        self._require_open()
        check_key(key)
        self._take("deleting", key, 0)

    # The end ----------------------------------------------------------------------------------------

    def flush(self) -> None:
        """Wait until all operations that were given before are committed: others see them, and nothing can lose them.

        Ctrl-C ends the waiting, but not the writing.

        Raises
        ------
        ClosedError
            If the writer has been closed.
        TensorageError
            If an operation that was given before has failed, once all others are done.
        """
        self.workers.check_open()
        if self.sender is None:
            self.workers.flush()
        else:
            self._flush(self.sender)

    def close(self, *, wait: bool = True) -> int:
        """Take no more operations, and wait as `flush` does. Closing again does nothing.

        With a spool, what cannot be sent stays there: a backend that is away is no error, but an entry of the log.

        Ctrl-C ends the waiting, and drops operations that have not begun. The notes of the interrupt name them.

        In a forked process, closing does nothing: the process that took the operations does them.

        Parameters
        ----------
        wait
            With a spool, false ends the sending at once. The rest stays in the folder.

        Returns
        -------
        int
            Operations that are left in the spool, of those that this writer took. 0 without a spool.

        Raises
        ------
        TensorageError
            If an operation that was given before has failed, once all others are done.
        """
        if not wait and self.sender is None:
            raise InvalidInputError(
                "close(wait=False) is for a writer with a spool: without one, arrays would be lost"
            )
        if not self.workers.is_here:
            return 0
        try:
            self.workers.close()
            return 0 if self.sender is None else self._close_spool(self.sender, wait=wait)
        finally:
            # The login is given up even if an error is raised.
            self._store = None
            self._stores = None

    def __enter__(self) -> BackgroundWriter:
        self.workers.check_open()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is None:
            self.close()
            return
        try:
            self.close()
        except Exception as late:
            # The block itself may have raised the error of an operation.
            if late is error:
                return
            for note in [f"{type(late).__name__}: {late}", *getattr(late, "__notes__", ())]:
                error.add_note(
                    note if note.startswith("background writer: ") else f"background writer: {note}"
                )
            # Nobody sees the notes of SystemExit, or of an error that is caught.
            logger.exception("background writer: an error of writing, when another error had ended the block")

    def __repr__(self) -> str:
        return f"<BackgroundWriter of {self._of}, {self.workers}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a background writer cannot be pickled or copied, since its threads cannot: make one in each process, with "
            "store.background()"
        )

    # Inner parts ------------------------------------------------------------------------------------

    def _require_open(self) -> Store:
        self.workers.check_open()
        store = self._store
        if store is None:
            raise ClosedError("the background writer is closed")
        return store

    def _take(self, verb: Verb, key: str, nbytes: int, **what: Any) -> None:
        store, stores = self._require_open(), self._stores
        assert stores is not None, "an open writer has a login"
        change = Change(verb, store.full_key(key), Settings.of(store), **what)
        operation = Operation(verb, key, nbytes, lambda: change.make(stores))
        if self.sender is None:
            self.workers.take(operation)
            return
        self.workers.raise_failures(refused=operation)
        self.sender.give(change)

    def _snapshot(self, value: npt.ArrayLike) -> _Snapshot:
        """Return an array as it is now. A spool writes it down at once, and needs no copy."""
        return _snapshot(value, is_copied=self.sender is None)

    def _copy(self, selection: Any) -> Any:
        # The loop may change arrays within the selection, too.
        return copy.deepcopy(selection) if self.sender is None else selection

    def _flush(self, sender: Sender) -> None:
        try:
            sender.flush()
        except KeyboardInterrupt as interrupt:
            interrupt.add_note(f"background writer: not waited for: {sender.describe_left() or 'nothing'}")
            raise

    def _close_spool(self, sender: Sender, *, wait: bool) -> int:
        if sender.is_stopped:
            return sender.left
        is_interrupted = False
        try:
            if wait:
                sender.flush()
        except BackendUnavailableError as error:
            logger.warning("background writer: %s", error)
        except KeyboardInterrupt as interrupt:
            is_interrupted = True
            interrupt.add_note(f"background writer: {sender.describe_left() or 'all was sent'}")
            raise
        finally:
            sender.stop(in_a_hurry=is_interrupted or not wait)
            if wait and not is_interrupted:
                sender.join()
        _tell_what_is_left(sender)
        return sender.left


def _tell_what_is_left(sender: Sender) -> None:
    is_told, sender.is_told = sender.is_told, True
    if not is_told and (left := sender.describe_left()):
        logger.warning(
            "background writer: %s: `tensorage sync %s` sends what is there", left, sender.folder.path
        )


@dataclass(frozen=True)
class _Snapshot:
    """An array as it was when it was given.

    Parameters
    ----------
    given
        The value in its original kind, for callers that treat lists and arrays differently: an array, whose dtype
        counts, a list or tuple, or anything else, whose dtype does not count.
    """

    array: npt.NDArray[Any]
    given: Any

    @property
    def nbytes(self) -> int:
        return self.array.nbytes


def _snapshot(value: npt.ArrayLike, *, is_copied: bool) -> _Snapshot:
    array = as_array(value)
    if is_of_text(array):
        as_texts("an array", array)
    else:
        storable_dtype(array.dtype)
    if isinstance(value, list | tuple):
        # Tuples may stand for records, which only the dtype of the stored array tells.
        return _Snapshot(array, copy.deepcopy(value) if is_copied else value)
    # `as_array` may return the caller's own memory.
    if is_copied and not isinstance(value, _COPIED_ANYWAY):
        array = np.array(array, order="C", copy=True)
    return _Snapshot(array, array if is_array(value) else Loose(array))


def _nbytes_of(selection: Any) -> int:
    """Count the bytes of the arrays in a selection."""
    items = selection if isinstance(selection, tuple) else (selection,)
    return sum(item.nbytes for item in items if isinstance(item, np.ndarray))


def _check_limit(name: str, value: int) -> int:
    try:
        number = operator.index(value)
    except TypeError as error:
        raise InvalidInputError(f"{name}={quote(value)} is no whole number") from error
    if number < 1:
        raise InvalidInputError(f"{name}={number}: a background writer needs room for 1 at least")
    return number
