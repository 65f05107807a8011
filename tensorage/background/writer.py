"""Writing from a loop that does not wait for it."""

from __future__ import annotations

import logging
import operator
import weakref
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from types import TracebackType
from typing import Any, Literal, NoReturn, Protocol, cast

import numpy as np
import numpy.typing as npt

from tensorage.adapters.labelled import append_labelled, is_labelled, labels_of, unwrapped
from tensorage.backend.arrays import Arrays
from tensorage.background.operations import Operation
from tensorage.background.workers import Workers
from tensorage.errors import ClosedError, InvalidInputError
from tensorage.model.declaration import ArrayOptions, declare
from tensorage.model.engine_choice import check_engine
from tensorage.model.values import as_array, check_key, split_key
from tensorage.types import COORDS_ATTRIBUTE, Dataset, EngineChoice, storable_dtype

__all__ = ["BackgroundWriter"]

logger = logging.getLogger("tensorage.background")

#: Of these, numpy makes an array with memory of its own.
_COPIED_ANYWAY = (list, tuple, bool, int, float, complex)


class Store(Protocol):
    """A store, as far as a background writer needs one."""

    chunk_size: int | None
    allow_overwrite: bool
    engine: EngineChoice

    @property
    def arrays(self) -> Arrays:
        """The user's arrays."""
        ...

    def open(self, key: str) -> Assignable:
        """Return a handle on an array."""
        ...

    def write_declared(self, key: str, value: npt.ArrayLike, **how: Any) -> Dataset:
        """Store an array with all that is said of it."""
        ...

    def append(self, key: str, data: npt.ArrayLike) -> None:
        """Add rows at the end of the first axis of an array."""
        ...

    def __delitem__(self, key: str) -> None: ...


class Assignable(Protocol):
    """A handle whose selections can be assigned to."""

    def __setitem__(self, selection: Any, value: npt.ArrayLike, /) -> None: ...


class BackgroundWriter:
    """Stores arrays in threads of its own, while the loop that gives them goes on.

    Made by `TensorStore.background`. Each call keeps a copy of its array, which the loop may change right away, and
    returns; it waits only when as much is in flight as may be. A mistake that can be seen at once, as a dtype that
    cannot be stored, is raised at once.

    Operations of one key are done in the order in which they were given. Those of different keys may overtake each
    other.

    An error of the backend is raised, as it is, by the next call of the thread that gave the operation, by `flush`, or
    at the end of the ``with`` block, whichever comes first. Its notes say which operations failed or, being of the
    same key and behind one that failed, were dropped. The call that raises it has done nothing else. Then the
    writer goes on.

    At the end of a ``with`` block, all that was taken is written, also when the block raises an error. That one is the
    one to be seen then: an error of writing becomes a note of it, and is logged.

    Safe to use from many threads. It cannot be pickled, and in a forked process it is closed: make one there.

    Parameters
    ----------
    store
        Store of its own, which draws no progress bars across what the loop prints.
    max_in_flight, max_bytes
        Operations, and bytes of their arrays, that may be waiting or under way. A single array may be larger.

    Raises
    ------
    InvalidInputError
        If one of them is less than 1.

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
        limits = _at_least_one("max_in_flight", max_in_flight), _at_least_one("max_bytes", max_bytes)
        self._of = repr(store)
        # Holds the login until the writer is closed.
        self._store: Store | None = store
        self.workers = Workers(*limits)
        weakref.finalize(self, self.workers.leave)

    # What is written --------------------------------------------------------------------------------

    def __setitem__(self, key: str | tuple[Any, ...], value: npt.ArrayLike) -> None:
        """Store an array, ``bg[key] = array``, or assign to a part of one, ``bg[key, i, j, ...] = value``.

        As ``store[key] = array`` and ``store[key, i, j, ...] = value``, later on.

        Raises
        ------
        ClosedError
            If the writer has been closed.
        InvalidInputError, DTypeError
            If that can be seen without asking the backend.
        TensorageError
            Of an operation that was given before. This one has not been taken then.
        """
        name, selection = split_key(key)
        if selection is None:
            self.write(name, value)
            return
        store = self._opened()
        check_key(name)
        array = _snapshot(value)
        where = deepcopy(selection)

        def do() -> None:
            store.open(name)[where] = array

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
        """Store an array with all that belongs to it: as `TensorStore.write` does, of an array that is in memory.

        Parameters
        ----------
        attrs, dims, is_shared, engine, chunks, shards, codecs
            As for `TensorStore.write`.

        Raises
        ------
        ClosedError, InvalidInputError, DTypeError, TensorageError
            As for assignment.
        """
        store = self._opened()
        if engine is not None:
            check_engine(engine, f"storing {key!r}: ")
        said = {
            "chunk_size": store.chunk_size, "overwrite": store.allow_overwrite, "attrs": attrs, "dims": dims,
            "chunks": deepcopy(chunks), "shards": deepcopy(shards), "codecs": deepcopy(codecs),
        }  # fmt: skip
        elements, said = unwrapped(key, array, said)
        copied = _snapshot(elements)
        options = cast("ArrayOptions", said)
        # Checks all that it is told, and makes copies of the attributes and the names of the axes. Of coordinates
        # there is one already: their text.
        meta = declare(key, copied.array.shape, copied.array.dtype, is_shared, options).meta
        meta["attrs"].pop(COORDS_ATTRIBUTE, None)
        options = {**options, "attrs": meta["attrs"], "dims": meta["dims"]}
        where = store.engine if engine is None else engine

        def do() -> None:
            store.write_declared(key, copied.array, engine=where, is_shared=is_shared, **options)

        self._take("storing", key, copied.nbytes, do)

    def append(self, key: str, data: npt.ArrayLike) -> None:
        """Add rows at the end of the first axis of an array: as `TensorStore.append`, later on.

        Raises
        ------
        ClosedError, InvalidInputError, DTypeError, TensorageError
            As for assignment.
        """
        store = self._opened()
        check_key(key)
        if is_labelled(data):
            labels = labels_of(key, data).copied()
            values = _snapshot(cast("Any", data).data)
            self._take(
                "appending to",
                key,
                values.nbytes + sum(coord.values.nbytes for coord in labels.coords),
                lambda: append_labelled(store.arrays, key, values.given, labels),
            )
            return
        rows = _snapshot(data)
        self._take(
            "appending to",
            key,
            rows.nbytes,
            lambda: store.append(key, rows.given),
        )

    def __delitem__(self, key: str) -> None:
        """Delete an array of this user, later on.

        Raises
        ------
        ClosedError, InvalidInputError, TensorageError
            As for assignment.
        """
        store = self._opened()
        check_key(key)
        self._take("deleting", key, 0, lambda: store.__delitem__(key))

    # The end ----------------------------------------------------------------------------------------

    def flush(self) -> None:
        """Wait until all that was given before is committed: others see it, and nothing can lose it any more.

        Interrupted by Ctrl-C, it stops waiting, and the writing goes on.

        Raises
        ------
        ClosedError
            If the writer has been closed.
        TensorageError
            Of an operation that was given before, when all others are done.
        """
        self.workers.flush()

    def close(self) -> None:
        """Wait as `flush` does, and take nothing any more. Closing again does nothing.

        Interrupted by Ctrl-C, it stops waiting, and what has not begun by then is not written: the notes of the
        interrupt say what.

        In a forked process, it does nothing: what was taken is written by the process that took it.

        Raises
        ------
        TensorageError
            Of an operation that was given before, when all others are done.
        """
        try:
            self.workers.close()
        finally:
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
            if late is error:
                return
            for note in [f"{type(late).__name__}: {late}", *getattr(late, "__notes__", ())]:
                error.add_note(
                    note if note.startswith("background writer: ") else f"background writer: {note}"
                )
            # A note of SystemExit, or of an error that is caught, is not seen by anybody.
            logger.exception("background writer: an error of writing, when another error had ended the block")

    def __repr__(self) -> str:
        return f"<BackgroundWriter of {self._of}, {self.workers}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a background writer cannot be pickled or copied, since its threads cannot: make one in each process, with "
            "store.background()"
        )

    # Inner parts ------------------------------------------------------------------------------------

    def _opened(self) -> Store:
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
    is_array
        Whether it was one of numpy's, whose dtype counts, or something else, of which only the values do.
    """

    def __init__(self, array: npt.NDArray[Any], *, is_array: bool) -> None:
        self.array = array
        self._is_array = is_array

    @property
    def nbytes(self) -> int:
        return self.array.nbytes

    @property
    def given(self) -> npt.ArrayLike:
        """For whom an array and a list are not the same."""
        return self.array if self._is_array else self

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> npt.NDArray[Any]:
        return np.asarray(self.array, dtype=dtype)


def _snapshot(value: npt.ArrayLike) -> _Snapshot:
    array = as_array(value)
    storable_dtype(array.dtype)
    if not isinstance(value, _COPIED_ANYWAY):
        array = np.array(array, order="C", copy=True)
    return _Snapshot(array, is_array=isinstance(value, np.ndarray | np.generic))


def _nbytes_of(selection: Any) -> int:
    """Of the arrays that it may consist of."""
    items = selection if isinstance(selection, tuple) else (selection,)
    return sum(item.nbytes for item in items if isinstance(item, np.ndarray))


def _at_least_one(name: str, value: int) -> int:
    try:
        number = operator.index(value)
    except TypeError as error:
        raise InvalidInputError(f"{name}={value!r} is no whole number") from error
    if number < 1:
        raise InvalidInputError(f"{name}={number}: a background writer needs room for 1 at least")
    return number
