"""The background writer, which a loop gives its arrays to."""

from __future__ import annotations

import copy
import logging
import operator
import weakref
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from types import TracebackType
from typing import Any, Literal, NoReturn, Protocol, cast

import numpy as np
import numpy.typing as npt

from tensorage.adapters.labelled import append_labelled, is_labelled, labels_of, unwrap
from tensorage.backend.arrays import Arrays
from tensorage.background.operations import Operation
from tensorage.background.workers import Workers
from tensorage.dtypes import storable_dtype
from tensorage.errors import ClosedError, InvalidInputError
from tensorage.interchange.objects import described
from tensorage.model.declaration import ArrayOptions
from tensorage.model.engine_choice import check_engine
from tensorage.model.ragged import as_texts, declare_array, is_of_text
from tensorage.model.values import as_array, check_key, is_array, split_key
from tensorage.types import COORDS_ATTRIBUTE, Dataset, EngineChoice

__all__ = ["BackgroundWriter"]

logger = logging.getLogger("tensorage.background")

#: Types that numpy makes an array of with memory of its own.
_COPIED_ANYWAY = (list, tuple, bool, int, float, complex)


class Store(Protocol):
    """The part of a store that a background writer needs."""

    chunk_size: int | None
    allow_overwrite: bool
    engine: EngineChoice

    @property
    def arrays(self) -> Arrays:
        """Arrays of the user."""
        ...

    def full_key(self, key: str) -> str:
        """Return the whole key of an array of the store."""
        ...

    def open(self, key: str) -> Assignable:
        """Return a handle on an array."""
        ...

    def write_declared(self, key: str, value: npt.ArrayLike, **how: Any) -> Dataset:
        """Store an array with its options."""
        ...

    def append(self, key: str, data: npt.ArrayLike, *, create: bool = False) -> None:
        """Add rows at the end of the first axis of an array, which is made of them if it may be."""
        ...

    def __delitem__(self, key: str) -> None: ...


class Assignable(Protocol):
    """A handle whose selections can be assigned to."""

    def __setitem__(self, selection: Any, value: npt.ArrayLike, /) -> None: ...


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

    Raises
    ------
    InvalidInputError
        If `max_in_flight` or `max_bytes` is less than 1.

    Examples
    --------
    .. code-block:: python

        with store.background(max_in_flight=16) as bg:
            for step, batch in enumerate(batches):
                loss = train(weights, batch)
                bg.append("run/3/loss", [loss])
                bg[f"run/3/weights/{step}"] = weights
    """

    def __init__(self, store: Store, *, max_in_flight: int = 8, max_bytes: int = 256 * 1024 * 1024) -> None:
        limits = _check_limit("max_in_flight", max_in_flight), _check_limit("max_bytes", max_bytes)
        self._of = repr(store)
        # Holds the login until the writer is closed.
        self._store: Store | None = store
        self.workers = Workers(*limits)
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
        store = self._require_open()
        check_key(name)
        array = _snapshot(value)
        # Texts of any length are assigned to nowhere: told now, not when the loop is far ahead.
        storable_dtype(array.array.dtype)
        # The loop may change arrays within the selection, too.
        where = deepcopy(selection)

        def do() -> None:
            store.open(name)[where] = array.given

        self._take("assigning to", name, array.nbytes + _nbytes_of(where), do)

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
            "chunks": deepcopy(chunks), "shards": deepcopy(shards), "codecs": deepcopy(codecs),
        }  # fmt: skip
        array, said = described(key, array, said)
        elements, said = unwrap(key, array, said)
        copied = _snapshot(elements)
        options = cast("ArrayOptions", said)
        # The declaration checks the options, and copies attributes and names of axes. Coordinates are text by now,
        # which needs no copy.
        meta = declare_array(key, copied.array, is_shared, options).meta
        meta["attrs"].pop(COORDS_ATTRIBUTE, None)
        options = {**options, "attrs": meta["attrs"], "dims": meta["dims"]}
        where = store.engine if engine is None else engine

        def do() -> None:
            store.write_declared(key, copied.array, engine=where, is_shared=is_shared, **options)

        self._take("storing", key, copied.nbytes, do)

    def append(self, key: str, data: npt.ArrayLike, *, create: bool = False) -> None:
        """Add rows at the end of the first axis of an array, later: see `TensorStore.append`.

        Raises
        ------
        ClosedError, InvalidInputError, DTypeError, TensorageError
            For the same reasons as an assignment to the writer.
        """
        store = self._require_open()
        check_key(key)
        if is_labelled(data) and create:
            # A new array takes all of its labels, and not those of its rows alone.
            labelled = cast("Any", data).copy(deep=True)
            labels_of(key, labelled)
            self._take("appending to", key, labelled.nbytes, lambda: store.append(key, labelled, create=True))
            return
        if is_labelled(data):
            labels = labels_of(key, data).copy()
            values = _snapshot(cast("Any", data).data)
            self._take(
                "appending to",
                key,
                values.nbytes + sum(coord.values.nbytes for coord in labels.coords),
                lambda: append_labelled(store.arrays, store.full_key(key), values.given, labels),
            )
            return
        rows = _snapshot(data)
        self._take(
            "appending to",
            key,
            rows.nbytes,
            lambda: store.append(key, rows.given, create=create),
        )

    def __delitem__(self, key: str) -> None:
        """Delete an array of this user, later.

        Raises
        ------
        ClosedError, InvalidInputError, TensorageError
            For the same reasons as an assignment to the writer.
        """
        store = self._require_open()
        check_key(key)
        self._take("deleting", key, 0, lambda: store.__delitem__(key))

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
        self.workers.flush()

    def close(self) -> None:
        """Take no more operations, and wait as `flush` does. Closing again does nothing.

        Ctrl-C ends the waiting, and drops operations that have not begun. The notes of the interrupt name them.

        In a forked process, closing does nothing: the process that took the operations does them.

        Raises
        ------
        TensorageError
            If an operation that was given before has failed, once all others are done.
        """
        try:
            self.workers.close()
        finally:
            # The login is given up even if an error is raised.
            self._store = None

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

    def _take(self, verb: str, key: str, nbytes: int, do: Callable[[], object]) -> None:
        self.workers.take(Operation(verb, key, nbytes, do))


class _Snapshot:
    """An array as it was when it was given.

    Parameters
    ----------
    given
        The value in its original kind, for callers that treat lists and arrays differently: an array, whose dtype
        counts, or a list or tuple. None stands for anything else, whose dtype does not count.
    """

    def __init__(self, array: npt.NDArray[Any], given: npt.ArrayLike | None) -> None:
        self.array = array
        self.given: npt.ArrayLike = self if given is None else given

    @property
    def nbytes(self) -> int:
        return self.array.nbytes

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> npt.NDArray[Any]:
        return np.asarray(self.array, dtype=dtype)


def _snapshot(value: npt.ArrayLike) -> _Snapshot:
    array = as_array(value)
    if is_of_text(array):
        as_texts("an array", array)
    else:
        storable_dtype(array.dtype)
    if isinstance(value, list | tuple):
        # Tuples may stand for records, which only the dtype of the stored array tells.
        return _Snapshot(array, copy.deepcopy(value))
    # `as_array` may return the caller's own memory.
    if not isinstance(value, _COPIED_ANYWAY):
        array = np.array(array, order="C", copy=True)
    return _Snapshot(array, array if is_array(value) else None)


def _nbytes_of(selection: Any) -> int:
    """Count the bytes of the arrays in a selection."""
    items = selection if isinstance(selection, tuple) else (selection,)
    return sum(item.nbytes for item in items if isinstance(item, np.ndarray))


def _check_limit(name: str, value: int) -> int:
    try:
        number = operator.index(value)
    except TypeError as error:
        raise InvalidInputError(f"{name}={value!r} is no whole number") from error
    if number < 1:
        raise InvalidInputError(f"{name}={number}: a background writer needs room for 1 at least")
    return number
