"""Writes of several requests: an array is declared, filled, and committed in one transaction, or aborted.

The same client sweeps the leftovers of a write afterwards, in small requests, in a thread that the writer does not
wait for: the database deletes rows, and requests to Storage delete objects. Whatever a client has not swept at its end
stays in the catalogue as expired. The next write of the user finds it, and so does one that has no room.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any, TypeVar

from tensorage.backend.transfer import Transfer, Work
from tensorage.backend.wire.faults import RestartedError
from tensorage.backend.wire.patience import Hurry, current_hurry, end_waits_on
from tensorage.backend.wire.progress import Advance
from tensorage.backend.wire.storage_requests import StorageRequests
from tensorage.errors import BackendUnavailableError, QuotaExceededError
from tensorage.types import Dataset

__all__ = [
    "abort",
    "as_operation",
    "begin",
    "begin_anew_after_failures",
    "commit",
    "final_operation",
    "finish_write",
    "new_operation",
    "stage",
    "sweep",
    "sweep_objects",
    "sweep_rows",
    "sweep_some_objects",
    "with_room",
]

logger = logging.getLogger(__name__)

#: Most restarts of one write. A database that fails more often has a lasting trouble.
MAX_RESTARTS = 5

T = TypeVar("T")


def begin(transfer: Transfer, meta: Mapping[str, Any]) -> Dataset:
    """Declare an array that comes in several requests."""
    # An id of its own for each beginning: by that of an earlier one, the database would take it for a repeated request.
    # The commit, which changes something, has the id of the change.
    meta = {**meta, "operation": new_operation()}
    asked = f"storing {meta['key']!r}"
    return Dataset.from_json(with_room(transfer, lambda: transfer.call("tensorage_begin", meta, asked)))


def stage(
    work: Work,
    send: Callable[[Advance], None],
    nbytes: int,
    *,
    shards: Callable[[], list[dict[str, Any]]] | None = None,
) -> Dataset:
    """Fill a staged dataset and commit it, or abort it.

    Parameters
    ----------
    work
        Work on the staged dataset.
    send
        Fills the dataset.
    nbytes
        Bytes of elements that `send` moves.
    shards
        Returns the records of shards that the catalogue has not been told yet, for an array of Storage.
    """
    try:
        with work.bar(nbytes) as advance:
            send(advance)
        return commit(work.transfer, work.dataset, None if shards is None else shards())
    except BaseException as error:
        # Also after Ctrl-C: the staged elements take room within the quota until they are swept.
        abort(work.transfer, work.dataset, error)
        raise


def begin_anew_after_failures(write: Callable[[], T]) -> T:
    """Return the result of `write`, begun anew each time that the database failed on the way.

    The database refuses to commit an array that was begun before a failure, since parts of it may be lost.

    Parameters
    ----------
    write
        Begins, fills and commits an array, several times if need be.
    """
    for _ in range(MAX_RESTARTS):
        try:
            return write()
        except RestartedError as error:
            logger.info("beginning anew: %s", error)
    return write()


def commit(transfer: Transfer, dataset: Dataset, shards: list[dict[str, Any]] | None = None) -> Dataset:
    """Make a staged dataset visible, and tell the catalogue the last records of shards, if any."""
    arguments: dict[str, Any] = {"data_id": dataset.id, "operation": final_operation()}
    if shards is not None:
        arguments["shards"] = shards
    return finish_write(transfer, transfer.call("tensorage_commit", arguments, f"storing {dataset.key!r}"))


def with_room(transfer: Transfer, ask: Callable[[], Any]) -> Any:
    """Return the answer to a request that needs room. If the quota is used up, sweep leftovers and ask again."""
    try:
        return ask()
    except QuotaExceededError:
        # Leftovers of a writer that died take room until they are swept, so the next writer sweeps them.
        sweep_rows(transfer)
        sweep_objects(transfer)
        # Not in a loop: if there is still no room, arrays take it, and sweeping again frees nothing.
        return ask()


def finish_write(transfer: Transfer, answer: Mapping[str, Any]) -> Dataset:
    """Sweep the leftovers that the answer of a writing function names, and return the dataset in the answer."""
    sweep(transfer, answer)
    return Dataset.from_json(answer)


def sweep(transfer: Transfer, answer: Mapping[str, Any]) -> None:
    """Delete the leftovers that a writing function names in its answer.

    Parameters
    ----------
    answer
        Answer of the function: ``left`` counts datasets with rows to delete, ``objects_left`` those with objects.
    """
    left = transfer.leftovers
    if left.note_left(rows=bool(answer.get("left", 0)), objects=bool(answer.get("objects_left", 0))):
        # Its time is no concern of the writer's, who may store the next array meanwhile.
        transfer.afterwards.begin(partial(_take_a_step, transfer))


def sweep_rows(transfer: Transfer) -> None:
    """Delete all rows that this user's arrays have left, and wait for it."""
    while _sweep_some_rows(transfer):
        pass


def sweep_objects(transfer: Transfer) -> None:
    """Delete the leftovers of this user's arrays in the bucket, and wait for it. A failure is only noted."""
    before: list[str] = []
    while before := sweep_some_objects(transfer, before):
        pass


def _take_a_step(transfer: Transfer) -> bool:
    """Delete some of what is noted as left, and tell whether there is more. After an error, the next write tells."""
    left = transfer.leftovers
    if left.take_rows():
        left.note_left(rows=_sweep_some_rows(transfer) > 0)
    elif left.take_objects():
        left.named = sweep_some_objects(transfer, left.named)
        left.note_left(objects=bool(left.named))
    return left.is_any


def _sweep_some_rows(transfer: Transfer) -> int:
    """Delete some of the rows that this user's arrays have left, and return how many datasets have more."""
    return int(transfer.call("tensorage_sweep", {}, "deleting what was replaced"))


def sweep_some_objects(transfer: Transfer, before: list[str]) -> list[str]:
    """Delete some of the leftovers of this user's arrays in the bucket.

    Parameters
    ----------
    before
        Names that the same job has deleted last. If they are named again, they cannot be deleted.

    Returns
    -------
    list
        Names of objects that were deleted, none if nothing is left, or nothing can be deleted. After a failure, the
        next write tries again.
    """
    asked = "deleting what was replaced"
    try:
        names: list[str] = transfer.call("tensorage_sweep_objects", {}, asked)
        # Storage answers with success for names that it did not delete. Without this, the job would not end.
        if names and names == before:
            transfer.leftovers.note_failure(f"{len(names)} of them cannot be deleted")
            return []
        StorageRequests(transfer.http).remove(names, asked)
    except (OSError, RuntimeError, LookupError, ValueError) as error:
        # The write itself is done, so the caller must not get an error.
        transfer.leftovers.note_failure(str(error))
        return []
    if not names:
        transfer.leftovers.note_swept()
    return names


def new_operation() -> str:
    """Make the id of an operation, which is done once however often its request is sent."""
    return str(uuid.uuid4())


#: Id of the change that is made in this context, if it has one that outlives the process.
#: A context variable: the id has to get from a spool to one request deep below, whatever the kind of the change.
_operation: ContextVar[str | None] = ContextVar("tensorage_operation", default=None)


@contextmanager
def as_operation(operation: str) -> Iterator[None]:
    """Make the one change of the block under an id, so that the database makes it once, whoever sends it again."""
    before = _operation.set(operation)
    try:
        yield
    finally:
        _operation.reset(before)


def final_operation() -> str:
    """Return the id of a request that makes a change visible: that of the change, or a new one.

    Requests that only prepare a change have ids by `new_operation`.
    """
    return _operation.get() or new_operation()


def abort(transfer: Transfer, dataset: Dataset, reason: BaseException) -> None:
    """Abort a staged dataset. If even that fails, the dataset expires and is swept a day later."""
    hurry = Hurry(current_hurry())
    if isinstance(reason, BackendUnavailableError) or not isinstance(reason, Exception):
        # The backend has been waited for already, or somebody has pressed Ctrl-C: a single try has to do.
        hurry.begin()
    try:
        with end_waits_on(hurry):
            left = transfer.call("tensorage_abort", {"data_id": dataset.id}, f"giving up {dataset.key!r}")
            sweep(transfer, {"left": left, "objects_left": dataset.engine == "storage"})
    except (OSError, RuntimeError) as error:
        # The caller is about to get the error of the write, which matters more.
        logger.info("what was staged of %r stays for a day: %s", dataset.key, error)
