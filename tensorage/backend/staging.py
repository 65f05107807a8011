"""Writes of several requests: declared, filled, and made visible by a commit in one transaction, or given up.

What a write replaces is deleted by the same client afterwards, piece by piece: rows by the database, objects
by requests to Storage.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from tensorage.backend.transfer import Transfer, Work
from tensorage.backend.wire.faults import RestartedError
from tensorage.backend.wire.patience import Hurry, current_hurry, end_waits_on
from tensorage.backend.wire.progress import Advance
from tensorage.backend.wire.storage_requests import StorageRequests
from tensorage.errors import BackendUnavailableError, QuotaExceededError
from tensorage.types import Dataset

__all__ = ["begin", "commit", "from_the_beginning", "new_operation", "stage", "sweep", "with_room", "written"]

logger = logging.getLogger(__name__)

#: A database that fails more often while one array is written has another trouble than bad luck.
MAX_RESTARTS = 5

T = TypeVar("T")


def begin(transfer: Transfer, meta: Mapping[str, Any]) -> Dataset:
    """Declare an array that comes in several requests."""
    asked = f"storing {meta['key']!r}"
    return Dataset.from_json(with_room(transfer, lambda: transfer.call("tensorage_begin", meta, asked)))


def stage(
    work: Work,
    send: Callable[[Advance], None],
    nbytes: int,
    *,
    shards: Callable[[], list[dict[str, Any]]] | None = None,
) -> Dataset:
    """Fill a staged dataset and commit it, or give it up.

    Parameters
    ----------
    work
        Work on the staged dataset.
    send
        Fills it.
    nbytes
        Bytes of elements that `send` moves.
    shards
        For Storage: gives the shards that the catalogue has not been told of by then.
    """
    try:
        with work.bar(nbytes) as advance:
            send(advance)
        return commit(work.transfer, work.dataset, None if shards is None else shards())
    except BaseException as error:
        _abort(work.transfer, work.dataset, error)
        raise


def from_the_beginning(write: Callable[[], T]) -> T:
    """Write something, and once more from the beginning each time that the database failed on the way.

    The database refuses to commit what was begun before a failure, since it may have lost a part of that.

    Parameters
    ----------
    write
        Begins, fills and commits. Called again, it has to have all that it needs.
    """
    for _ in range(MAX_RESTARTS):
        try:
            return write()
        except RestartedError as error:
            logger.info("beginning anew: %s", error)
    return write()


def commit(transfer: Transfer, dataset: Dataset, shards: list[dict[str, Any]] | None = None) -> Dataset:
    """Make a staged dataset visible, with the last of its shards if it is of Storage."""
    arguments: dict[str, Any] = {"data_id": dataset.id, "operation": new_operation()}
    if shards is not None:
        arguments["shards"] = shards
    return written(transfer, transfer.call("tensorage_commit", arguments, f"storing {dataset.key!r}"))


def with_room(transfer: Transfer, ask: Callable[[], Any]) -> Any:
    """The answer to a request that needs room. Where there is none, what was given up is deleted first."""
    try:
        return ask()
    except QuotaExceededError:
        # Swept in pieces and by whoever writes next, it counts until then: a writer may have died before.
        left = transfer.call("tensorage_sweep", {}, "deleting what was given up")
        sweep(transfer, {"left": left, "objects_left": 1})
        return ask()


def written(transfer: Transfer, answer: Mapping[str, Any]) -> Dataset:
    """The dataset that a writing function answers with; what it left to be deleted is."""
    sweep(transfer, answer)
    return Dataset.from_json(answer)


def sweep(transfer: Transfer, answer: Mapping[str, Any]) -> None:
    """Delete, piece by piece, what was removed or replaced and a writing function says that it left.

    Parameters
    ----------
    answer
        The function's: ``left``, datasets with rows to delete, and ``objects_left``, those with objects.
    """
    left = answer.get("left", 0)
    while left:
        left = transfer.call("tensorage_sweep", {}, "deleting what was replaced")
    if answer.get("objects_left", 0):
        _sweep_objects(transfer)


def _sweep_objects(transfer: Transfer) -> None:
    """Delete the leftovers of this user's arrays in the bucket. What fails is tried again after the next write."""
    asked = "deleting what was replaced"
    requests = StorageRequests(transfer.http)
    before: list[str] = []
    try:
        while names := transfer.call("tensorage_sweep_objects", {}, asked):
            if names == before:
                logger.warning("%s objects that are not needed any more cannot be deleted", len(names))
                return
            requests.remove(names, asked)
            before = names
    except (OSError, RuntimeError, LookupError, ValueError) as error:
        # The write that came before is done: the caller has to be told of that.
        logger.warning("objects that are not needed any more stay until the next write: %s", error)


def new_operation() -> str:
    """Id of a request, so that it is done once however often it is sent."""
    return str(uuid.uuid4())


def _abort(transfer: Transfer, dataset: Dataset, reason: BaseException) -> None:
    """Give up what was staged. Where even that fails, it is swept a day later."""
    hurry = Hurry(current_hurry())
    if isinstance(reason, BackendUnavailableError) or not isinstance(reason, Exception):
        # The backend has been waited for, or somebody has pressed Ctrl-C: it is asked once.
        hurry.begin()
    try:
        with end_waits_on(hurry):
            transfer.call("tensorage_abort", {"data_id": dataset.id}, f"giving up {dataset.key!r}")
            sweep(transfer, {"objects_left": dataset.engine == "storage"})
    except (OSError, RuntimeError) as error:
        # The caller is about to be told why the write failed: that is the error which matters.
        logger.warning("what was staged of %r stays for a day: %s", dataset.key, error)
