"""Batches for training loops, fetched in the background before the loop asks for them."""

from __future__ import annotations

import operator
import secrets
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from functools import partial
from typing import Any

import numpy as np

from tensorage.backend.arrays import OpenArray
from tensorage.backend.wire.http import PARALLEL
from tensorage.backend.wire.patience import Hurry, current_hurry, end_waits_on
from tensorage.errors import ChangedError, InvalidInputError
from tensorage.indexing.selection import Selection
from tensorage.training.order import Shuffle
from tensorage.training.position import EpochPlan, Position, read_state, state_of
from tensorage.training.samples import SampleSource, name_of, read_source, read_together, same_length

__all__ = ["AlignedTensors", "Batches", "batches", "zip"]

#: Of the order, so many places are computed at once: each batch on its own would take longer than its bookkeeping.
_PAGE = 8192


class AlignedTensors:
    """Samples of several arrays, fetched together: a map-style dataset of PyTorch, made by `tensorage.zip`.

    A sample is a tuple of one sample of each array. What of several arrays is read is fetched at the same time, by one
    request for each that is stored, where that has room for it.

    Parameters
    ----------
    sources
        Stored arrays as `TensorStore.open` gives them, or arrays in memory, of the same length along their first axis.

    Raises
    ------
    InvalidInputError
        If there are none, or they are of different lengths.
    """

    def __init__(self, *sources: SampleSource) -> None:
        self._sources = sources
        self._length = same_length(sources)

    @property
    def sources(self) -> tuple[SampleSource, ...]:
        """The arrays."""
        return self._sources

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, selection: Selection) -> tuple[Any, ...]:
        """``(x[selection], y[selection], ...)``."""
        return read_together(self._sources, selection)

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[Any, ...]]:
        """Samples, in one request for each array: PyTorch's way of asking for a batch."""
        arrays = read_together(self._sources, np.asarray(indices, dtype=np.int64))
        return [tuple(array[i] for array in arrays) for i in range(len(indices))]

    def batches(self, batch_size: int, **how: Any) -> Batches:
        """Batches for a loop: see `tensorage.batches`."""
        return batches(self, batch_size=batch_size, **how)

    def __repr__(self) -> str:
        return f"<AlignedTensors of {', '.join(name_of(source) for source in self._sources)}, length {len(self)}>"


class Batches:
    """The batches of one epoch after the other, made by `tensorage.batches`.

    Each ``for`` loop over it is one epoch: the first begins where `start_at` says, each further one with the first
    batch of the next epoch, also if the one before was left early.

    Attributes
    ----------
    seed
        Of the order of the samples; None if they are not shuffled.
    epoch
        That of the present loop, or else of the next one.
    """

    def __init__(
        self,
        sources: Sequence[SampleSource],
        plan: EpochPlan,
        prefetch: int,
        start: Position,
        *,
        are_tuples: bool,
    ) -> None:
        self._reads = _Reads(sources)
        self._plan = plan
        self._prefetch = prefetch
        self._are_tuples = are_tuples
        self._position = start
        self._next_start = start
        self.epoch = start.epoch

    @property
    def seed(self) -> int | None:
        return self._plan.seed

    def __len__(self) -> int:
        """Batches of a whole epoch."""
        return self._plan.batch_count

    def __iter__(self) -> Iterator[Any]:
        start = self._next_start
        self._next_start = Position(start.epoch + 1)
        self._position, self.epoch = start, start.epoch
        return self._run(start)

    def state(self) -> dict[str, Any]:
        """How far the loop has come: what `start_at` takes, to go on with the batch after the one that it has now.

        JSON can hold it. After the last batch of an epoch it is the beginning of the next one.
        """
        return state_of(self._plan, self._position)

    def __repr__(self) -> str:
        return f"<Batches of {self._plan.batch_size}, {len(self)} an epoch, at {self._position}>"

    def _run(self, start: Position) -> Iterator[Any]:
        position = start
        with closing(self._reads.ahead(_selections(self._plan, start), self._prefetch)) as fetched:
            for arrays in fetched:
                position = position.after(len(self))
                self._position = position
                yield arrays if self._are_tuples else arrays[0]


def batches(
    *sources: SampleSource | AlignedTensors,
    batch_size: int,
    shuffle: bool = False,
    seed: int | None = None,
    drop_last: bool = False,
    prefetch: int = 4,
    start_at: Mapping[str, Any] | None = None,
) -> Batches:
    """Batches of samples along the first axis, for a loop: the next ones are fetched while it works on one.

    Every epoch has each sample once. Its order depends on `seed` and on the number of the epoch, and on nothing else. A
    batch is one request for each stored array, where that has room for it.

    Parameters
    ----------
    sources
        Stored arrays as `TensorStore.open` gives them, or arrays in memory, of the same length; or what `tensorage.zip`
        gives.
    batch_size
        Samples of a batch. The last one of an epoch has what is left.
    shuffle
        Take the samples in another order in each epoch.
    seed
        Of the orders; by default one by chance, which `state` tells.
    drop_last
        Leave out a last batch that is not full.
    prefetch
        So many batches are fetched before they are asked for, and are then in memory. With 0 each is fetched when the
        loop asks for it.
    start_at
        What `Batches.state` gave: go on from there. The number of samples and everything above has to be the same.

    Returns
    -------
    Batches
        Gives arrays of shape ``(batch_size, ...)`` for a single array, else tuples of one for each array.

    Raises
    ------
    InvalidInputError
        At once: if the arrays are of different lengths, a number is out of its bounds, or `start_at` is of others.
    ChangedError
        In the loop: if one of the arrays was replaced since, so that an epoch would be of two. Rows that were appended
        or assigned to are no reason: what they hold when they are read is what the loop gets.

    Examples
    --------
    .. code-block:: python

        loop = tensorage.batches(x, y, batch_size=64, shuffle=True, seed=0)
        for epoch in range(10):
            for xb, yb in loop:
                step(xb, yb)
                checkpoint["position"] = loop.state()

        loop = tensorage.batches(x, y, batch_size=64, shuffle=True, seed=0, start_at=checkpoint["position"])
    """
    arrays: list[SampleSource] = []
    for source in sources:
        arrays.extend(source.sources if isinstance(source, AlignedTensors) else [source])
    size = _whole("batch_size", batch_size, 1)
    ahead = _whole("prefetch", prefetch, 0)
    length = same_length(arrays)
    if seed is not None:
        seed = _whole("seed", seed, 0)
    elif shuffle:
        # Of the state it is taken; one that is none is refused below.
        before = start_at.get("seed") if isinstance(start_at, Mapping) else None
        seed = before if type(before) is int else secrets.randbits(63)
    plan = EpochPlan(length, size, bool(shuffle), seed if shuffle else None, bool(drop_last))
    start = Position() if start_at is None else read_state(start_at, plan)
    are_tuples = len(sources) > 1 or isinstance(sources[0], AlignedTensors)
    return Batches(arrays, plan, ahead, start, are_tuples=are_tuples)


def zip(*sources: SampleSource) -> AlignedTensors:  # noqa: A001 - written tensorage.zip
    """Samples of several arrays that belong together, fetched together.

    Parameters
    ----------
    sources
        Stored arrays as `TensorStore.open` gives them, or arrays in memory, of the same length along their first axis.

    Raises
    ------
    InvalidInputError
        If there are none, or they are of different lengths.

    Examples
    --------
    .. code-block:: python

        samples = tensorage.zip(store.open("images"), store.open("labels"))
        image, label = samples[7]
        loader = torch.utils.data.DataLoader(samples, batch_size=64, shuffle=True, num_workers=2)
    """
    return AlignedTensors(*sources)


def _whole(name: str, value: int, least: int) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        raise InvalidInputError(f"{name}={value!r}: it is a whole number, at least {least}") from None
    if number < least:
        raise InvalidInputError(f"{name}={number}: it is at least {least}")
    return number


def _selections(plan: EpochPlan, start: Position) -> Iterator[Selection]:
    """The samples of each batch of an epoch, from a batch on."""
    first = start.batch * plan.batch_size
    after = min(plan.batch_count * plan.batch_size, plan.length)
    if plan.seed is None:
        for low in range(first, after, plan.batch_size):
            yield np.s_[low : min(low + plan.batch_size, after)]
        return
    order = Shuffle(plan.length, plan.seed, start.epoch)
    page = -(-_PAGE // plan.batch_size) * plan.batch_size
    for beginning in range(first, after, page):
        samples = order[beginning : min(beginning + page, after)]
        for low in range(0, len(samples), plan.batch_size):
            yield samples[low : low + plan.batch_size]


class _Reads:
    """Reads samples of several arrays, as long as they are the same arrays."""

    def __init__(self, sources: Sequence[SampleSource]) -> None:
        self._jobs: list[Callable[[Selection], Any]] = [
            partial(_read_same, source, source.dataset.id)
            if isinstance(source, OpenArray)
            else partial(read_source, source)
            for source in sources
        ]

    def ahead(self, selections: Iterator[Selection], ahead: int) -> Generator[tuple[Any, ...], None, None]:
        """What is read for each selection, in order; for so many of them before it is asked for."""
        if not ahead:
            for selection in selections:
                yield tuple(read(selection) for read in self._jobs)
            return
        threads = min(ahead * len(self._jobs), PARALLEL)
        hurry = Hurry(current_hurry())

        def read_one(read: Callable[[Selection], Any], selection: Selection) -> Any:
            with end_waits_on(hurry):
                return read(selection)

        pool = ThreadPoolExecutor(threads, thread_name_prefix="tensorage prefetch")
        reading: deque[list[Future[Any]]] = deque()
        try:
            for selection in selections:
                reading.append([pool.submit(read_one, read, selection) for read in self._jobs])
                if len(reading) > ahead:
                    yield _results(reading.popleft())
            while reading:
                yield _results(reading.popleft())
        finally:
            # Also when the loop is left: what is under way ends before it goes on, and waits for no backend.
            hurry.begin()
            pool.shutdown(wait=True, cancel_futures=True)


def _results(reading: list[Future[Any]]) -> tuple[Any, ...]:
    return tuple(each.result() for each in reading)


def _read_same(tensor: OpenArray, data_id: int, selection: Selection) -> Any:
    """Read samples of a stored array, unless another one is under its key now."""
    try:
        array = tensor.read(selection)
    except IndexError:
        # Of a shorter one.
        if tensor.dataset.id == data_id:
            raise
    if tensor.dataset.id != data_id:
        raise ChangedError(
            f"{tensor.key!r} was replaced by another array while a loop went over it: an epoch would have samples of "
            "both. Open it again and begin anew"
        )
    return array
