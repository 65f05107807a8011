"""The transaction that a store begins."""

from __future__ import annotations

import copy
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, Literal, NoReturn, Protocol

import numpy as np
import numpy.typing as npt

from tensorage.adapters.dask import is_dask
from tensorage.adapters.labelled import is_labelled
from tensorage.backend.arrays import Arrays
from tensorage.backend.restarts import on_latest
from tensorage.backend.transfer import Project, Transfer
from tensorage.backend.wire.faults import OtherDTypeError, StoredElsewhereError
from tensorage.errors import ChangedError, ClosedError, InvalidInputError
from tensorage.indexing.runs import MAX_REQUEST_BYTES
from tensorage.model.casting import cast_to
from tensorage.model.values import as_array, check_rows, split_key
from tensorage.tracebacks import end_tracebacks_here
from tensorage.transactions.recorder import Recorder
from tensorage.types import Dataset, EngineChoice
from tensorage.wording import quote

__all__ = ["RecordingBackend", "Transaction"]


class Store(Protocol):
    """The part of a store that a transaction needs. It works with the transaction's recorder."""

    @property
    def arrays(self) -> Arrays:
        """Arrays of the store's owner, whose changes are recorded."""
        ...

    def __setitem__(self, key: str | tuple[Any, ...], value: npt.ArrayLike) -> None: ...

    def __delitem__(self, key: str) -> None: ...

    def write(
        self,
        key: str,
        blocks: npt.ArrayLike,
        *,
        attrs: Mapping[str, Any] | None = None,
        dims: Sequence[str] | None = None,
        engine: EngineChoice | None = None,
        chunks: Sequence[int] | None = None,
        shards: Sequence[int] | Literal[False] | None = None,
        codecs: Sequence[Any] | None = None,
    ) -> object:
        """Store an array with its options."""
        ...

    def write_ragged(
        self,
        key: str,
        samples: Iterable[Any],
        dtype: npt.DTypeLike | None = None,
        *,
        attrs: Mapping[str, Any] | None = None,
        dims: Sequence[str] | None = None,
    ) -> object:
        """Store samples of any length."""
        ...

    def append(self, key: str, data: Any) -> None:
        """Add rows at the end of the first axis of an array."""
        ...


@dataclass
class RecordingBackend:
    """Access to a project for the store of a transaction. The store that began it holds the login.

    Parameters
    ----------
    project
        Access to the project.
    transfer
        Recorder of the transaction.
    """

    project: Project
    transfer: Transfer
    email: str | None = None

    @property
    def backend_url(self) -> str | None:
        return self.project.backend_url

    @property
    def user_id(self) -> str:
        return self.project.user_id

    @property
    def is_logged_in(self) -> bool:
        """False: the store of a transaction shows nothing and completes nothing."""
        return False

    def hold(self) -> None:
        """Do nothing."""

    def release(self) -> None:
        """Do nothing."""


@dataclass(frozen=True)
class _Append:
    """An append that can be recorded again.

    Parameters
    ----------
    full_key
        Key of the array in the project.
    key
        Key of the array in the store.
    rows
        Rows, or samples of any length, which nobody changes any more.
    """

    full_key: str
    key: str
    rows: Any


@end_tracebacks_here
class Transaction:
    """Several changes of one user's arrays: all of them are done, or none, and all are seen at once.

    Small arrays wait in memory, and go in one request at the end of the ``with`` block. Whatever does not fit into
    that request is staged while the block runs, and becomes visible with the rest. After an error in the block, or at
    its end, nothing has happened.

    Nothing of the transaction can be read before its end. Appends of several transactions to one array all land; in
    Storage, those of more than 8 MiB may meet others. An array that a transaction assigns to, replaces or deletes must
    not be changed by others while it is open: the first one wins, and the other one gets `ChangedError`. An array that
    is replaced or deleted unread may change while the last request is on its way: the transaction then comes second.

    Raises
    ------
    ChangedError
        At the end of the block, if somebody else was first.
    KeyExistsError, KeyNotFoundError, QuotaExceededError, DTypeError, InvalidInputError
        In the block or at its end, as from a store.

    Examples
    --------
    .. code-block:: python

        with store.transaction() as tx:
            tx["x"] = x
            tx.append("y", rows)
            tx["w", 3] = 0
            del tx["old"]
    """

    def __init__(self, recorder: Recorder, store: Store, held_by: object) -> None:
        self._recorder = recorder
        self._store = store
        # The store whose login the requests are sent with.
        self._held_by = held_by
        self._opened = time.monotonic()
        self._state: Literal["new", "open", "ended"] = "new"
        #: Appends that can be recorded again, by their positions among the steps.
        self._appends: dict[int, _Append] = {}
        #: Positions of appends that were recorded again once something was known of their array, with the errors that
        #: told it.
        self._recorded_again: set[tuple[int, type[Exception]]] = set()

    def __enter__(self) -> Transaction:
        if self._state != "new":
            raise ClosedError("this transaction has ended: begin another one with store.transaction()")
        self._opened = time.monotonic()
        self._state = "open"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._state = "ended"
        if error is not None:
            self._recorder.abort(error)
            return
        if not self._recorder.steps:
            return
        try:
            self._commit()
        except BaseException as failure:
            self._recorder.abort(failure)
            raise

    def __setattr__(self, name: str, value: object) -> None:
        if not name.startswith("_"):
            raise AttributeError(
                f"a transaction has no field {quote(name)} to set, and nothing was stored: tx[{quote(name)}] = array "
                "stores an array"
            )
        super().__setattr__(name, value)

    @property
    def arrays(self) -> Arrays:
        """Arrays of the store's owner by whole keys, for other parts of the package. Changes are steps."""
        return self._store.arrays

    def __getitem__(self, key: str | tuple[Any, ...]) -> NoReturn:
        """Refuse to read: nothing of the transaction is there before its end."""
        name, _ = split_key(key)
        raise InvalidInputError(
            f"reading {quote(name)} in a transaction: nothing of it can be read before its end. Read from the store, "
            f"and assign to parts by tx[{quote(name)}, selection] = values"
        )

    def __setitem__(self, key: str | tuple[Any, ...], value: npt.ArrayLike) -> None:
        """Store an array, ``tx[key] = array``, or assign to a selection of a stored one, ``tx[key, i, j] = value``."""
        name, _ = split_key(key)
        self._check(name, value)
        self._store[key] = value

    def __delitem__(self, key: str) -> None:
        """Delete an array."""
        self._check(key, None)
        del self._store[key]

    def write(
        self,
        key: str,
        array: npt.ArrayLike,
        *,
        attrs: Mapping[str, Any] | None = None,
        dims: Sequence[str] | None = None,
        engine: EngineChoice | None = None,
        chunks: Sequence[int] | None = None,
        shards: Sequence[int] | Literal[False] | None = None,
        codecs: Sequence[Any] | None = None,
    ) -> None:
        """Store an array with attributes, names of axes and a layout.

        Parameters
        ----------
        attrs
            Attributes, whatever JSON can hold.
        dims
            Names of the axes.
        engine
            Engine of the array, by default that of the store.
        chunks, shards, codecs
            Layout of an array of Storage: see `tensorage.TensorStore.write`.
        """
        self._check(key, array)
        self._store.write(
            key, array, attrs=attrs, dims=dims, engine=engine, chunks=chunks, shards=shards, codecs=codecs
        )

    def write_ragged(
        self,
        key: str,
        samples: Iterable[Any],
        dtype: npt.DTypeLike | None = None,
        *,
        attrs: Mapping[str, Any] | None = None,
        dims: Sequence[str] | None = None,
    ) -> None:
        """Store samples of any length: see `tensorage.TensorStore.write_ragged`."""
        self._check(key, samples)
        self._store.write_ragged(key, samples, dtype, attrs=attrs, dims=dims)

    def append(self, key: str, data: Any) -> None:
        """Add rows at the end of the first axis of an array, or samples at the end of a ragged array.

        It may be one that this transaction stores, if the database keeps it.
        """
        self._check(key, data)
        if is_labelled(data):
            raise InvalidInputError(
                f"appending to {key!r} in a transaction: labels of rows are added in a step of their own. Append the "
                "values (.values), or append outside of the transaction."
            )
        rows = _as_rows(data)
        position = len(self._recorder.steps)
        self._store.append(key, rows)
        # Rows that fit a request are sent in their own dtype. The array may have another one, which the end shows. In
        # Storage, others may append meanwhile. Large rows are not uploaded twice without their user's knowing.
        step = self._recorder.steps[position]
        is_small = isinstance(rows, np.ndarray) and rows.nbytes <= MAX_REQUEST_BYTES
        if not step.is_staged or (is_small and self._recorder.base_of(step) is not None):
            self._appends[position] = _Append(step.key, key, copy.deepcopy(rows))

    def _commit(self) -> None:
        conflicts: list[ChangedError] = []

        def commit(_: None) -> None:
            try:
                self._send()
            except ChangedError as error:
                conflicts.append(error)
                raise

        self._join_encoded()
        # Writers that append to one array of Storage at once begin anew, all but one, and would meet again.
        on_latest(commit, None, lambda: self._append_behind_others(conflicts[-1]), pauses=True)

    def _send(self) -> None:
        while True:
            try:
                self._recorder.commit(time.monotonic() - self._opened)
            except (OtherDTypeError, StoredElsewhereError) as error:
                if not error.description or not self._record_again(error.description, type(error)):
                    raise
            else:
                return

    def _append_behind_others(self, conflict: ChangedError) -> None:
        """Record appends to arrays of Storage again, on the arrays as they are now.

        Raises
        ------
        ChangedError
            The conflict, if it is none of these appends.
        """
        recorder, has_moved = self._recorder, False
        for position, append in sorted(self._appends.items()):
            before = recorder.steps[position]
            base = recorder.base_of(before)
            if base is not None:
                told = {each for each in self._recorded_again if each[0] == position}
                if told:
                    # The recorder knows it as it was when the end told of it, and would not look again.
                    self._store.arrays.open(append.full_key)
                    self._recorded_again -= told
                self._replace_step(position, append)
                has_moved |= recorder.base_of(recorder.steps[position]) != base
                recorder.drop(before, conflict)
        if not has_moved:
            raise conflict

    def _replace_step(self, position: int, append: _Append) -> None:
        """Put the step that an append records in place of another one."""
        steps = self._recorder.steps
        self._recorder.steps = steps[:position]
        self._store.append(append.key, append.rows)
        self._recorder.steps += steps[position + 1 :]

    def _record_again(self, description: Mapping[str, Any], told_by: type[Exception]) -> bool:
        """Record appends to an array again, now that its dtype and engine are known. Tell whether there were any."""
        recorder, key = self._recorder, description["key"]
        recorder.know(description)
        if told_by is StoredElsewhereError:
            # Encoded chunks rest on the rows that there are. A second append could not tell those of the first.
            self._join_appends(Dataset.from_json(description))
            recorder.refuse_loose(key)
        untold = [
            (position, append)
            for position, append in sorted(self._appends.items())
            if append.full_key == key and (position, told_by) not in self._recorded_again
        ]
        for position, append in untold:
            self._recorded_again.add((position, told_by))
            self._replace_step(position, append)
        recorder.try_loose(key)
        return bool(untold)

    def _join_encoded(self) -> None:
        """Join appends to an array of Storage of which more than one rests on the rows that it has."""
        bases = [self._recorder.base_of(self._recorder.steps[place]) for place in self._appends]
        for data_id, count in Counter(base[0] for base in bases if base is not None).items():
            description = self._recorder.opened(data_id)
            if count > 1 and Dataset.from_json(description).ragged is None:
                self._record_again(description, StoredElsewhereError)

    def _join_appends(self, dataset: Dataset) -> None:
        """Make one of all appends to an array, in place of the first one.

        Raises
        ------
        ChangedError, DTypeError, InvalidInputError
            If rows do not fit the array.
        """
        mine = {place: each for place, each in sorted(self._appends.items()) if each.full_key == dataset.key}
        if len(mine) < 2 or dataset.ragged is not None:
            return
        rows = [cast_to(each.rows, dataset) for each in mine.values()]
        for some in rows:
            check_rows(some, dataset)
        first, *others = mine
        self._appends[first] = replace(mine[first], rows=np.concatenate(rows))
        for place in mine:
            self._recorder.drop(self._recorder.steps[place], ChangedError("recorded again with other rows"))
        self._remove_steps(others)

    def _remove_steps(self, places: Sequence[int]) -> None:
        """Remove steps of appends, and keep in mind the new positions of the others."""
        removed = set(places)
        moved = {old: old - sum(place < old for place in places) for old in range(len(self._recorder.steps))}
        steps = enumerate(self._recorder.steps)
        self._recorder.steps = [step for place, step in steps if place not in removed]
        kept = self._appends.items()
        self._appends = {moved[place]: append for place, append in kept if place not in removed}
        told = self._recorded_again
        self._recorded_again = {(moved[place], error) for place, error in told if place not in removed}

    def _check(self, key: str, value: object) -> None:
        if self._state != "open":
            raise ClosedError(
                f"changing {key!r} in a transaction that is not open: use it as `with store.transaction() as tx:`"
            )
        if is_dask(value):
            raise InvalidInputError(
                f"storing {key!r} in a transaction: blocks of dask are stored by workers, which are no part of it. "
                "Compute the array first, or store it outside of the transaction."
            )


def _as_rows(data: Any) -> Any:
    """Return rows as an array, or samples of any length in a list, which can be looked at more than once."""
    if isinstance(data, Iterator):
        return list(data)
    # The values of a list have to fit the array, and not the dtype that numpy would give it: an array would not tell
    # that it was a list. The samples of a list may have one length by chance, too.
    if isinstance(data, list | tuple):
        return data
    try:
        return as_array(data)
    except InvalidInputError:
        return data
