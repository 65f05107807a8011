"""Batches for training loops, fetched in the background before the loop asks for them."""

from __future__ import annotations

import operator
import secrets
from collections import deque
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from typing import Any, Literal

import numpy as np

from tensorage.backend.wire.http import PARALLEL
from tensorage.backend.wire.patience import Hurry, current_hurry, end_waits_on
from tensorage.errors import InvalidInputError
from tensorage.indexing.selection import Selection
from tensorage.tracebacks import end_tracebacks_here
from tensorage.training.fetching import SourceReader
from tensorage.training.mixing import WINDOW_BYTES, WindowReader, choose_cut
from tensorage.training.order import Shuffle
from tensorage.training.padding import check_padding
from tensorage.training.position import EpochPlan, Position, read_state, state_of
from tensorage.training.samples import SampleSource, common_length, name_of, read_together
from tensorage.wording import quote

__all__ = ["AlignedTensors", "Batches", "batches", "zip"]

#: Places of the order that are computed at once. Computing each batch on its own would take longer.
_PAGE = 8192


@end_tracebacks_here
class AlignedTensors:
    """Samples of several arrays, fetched together: a map-style dataset of PyTorch, made by `tensorage.zip`.

    A sample is a tuple of one sample of each array. Samples of all arrays are fetched at the same time, mostly by one
    request for each stored array.

    Parameters
    ----------
    sources
        Stored arrays that `TensorStore.open` returns, or arrays in memory, of the same length along their first axis.

    Raises
    ------
    InvalidInputError
        If there are no arrays, or they have different lengths.
    """

    def __init__(self, *sources: SampleSource) -> None:
        self._sources = sources
        self._length = common_length(sources)

    @property
    def sources(self) -> tuple[SampleSource, ...]:
        """Arrays that the samples come from."""
        return self._sources

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        # By a function of C, which has no frame in the traceback of an error.
        return map(self.__getitem__, range(len(self)))

    def __getitem__(self, selection: Selection) -> tuple[Any, ...]:
        """Return ``(x[selection], y[selection], ...)``."""
        return read_together(self._sources, selection)

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[Any, ...]]:
        """Return samples, by one request for each array: PyTorch's way of asking for a batch."""
        arrays = read_together(self._sources, np.asarray(indices, dtype=np.int64))
        return [tuple(array[i] for array in arrays) for i in range(len(indices))]

    def batches(self, batch_size: int, **how: Any) -> Batches:
        """Return batches for a loop: see `tensorage.batches`."""
        return batches(self, batch_size=batch_size, **how)

    def __repr__(self) -> str:
        return f"<AlignedTensors of {', '.join(name_of(source) for source in self._sources)}, length {len(self)}>"


@end_tracebacks_here
class Batches:
    """Batches of one epoch after the other, made by `tensorage.batches`.

    Each ``for`` loop over `Batches` is one epoch. The first loop begins at `start_at`. Each later loop begins with the
    first batch of the next epoch, also if the loop before was left early.

    Attributes
    ----------
    seed
        Seed of the order of the samples, None if they are not shuffled.
    epoch
        Number of the epoch of the present loop, or else of the next loop.
    """

    def __init__(
        self,
        sources: Sequence[SampleSource],
        plan: EpochPlan,
        prefetch: int,
        start: Position,
        *,
        are_tuples: bool,
        pad_value: Any = None,
        window_bytes: int = WINDOW_BYTES,
    ) -> None:
        self._readers = [SourceReader.of(source, pad_value) for source in sources]
        self._plan = plan
        self._window_bytes = window_bytes
        self._prefetch = prefetch
        self._are_tuples = are_tuples
        self._position = start
        self._next_start = start
        self.epoch = start.epoch

    @property
    def seed(self) -> int | None:
        return self._plan.seed

    def __len__(self) -> int:
        """Return the number of batches of a whole epoch."""
        return self._plan.batch_count

    def __iter__(self) -> Iterator[Any]:
        start = self._next_start
        # Set before the loop runs, so that a loop that is left early counts as its epoch.
        self._next_start = Position(start.epoch + 1)
        self._position, self.epoch = start, start.epoch
        return self._run(start)

    def state(self) -> dict[str, Any]:
        """Return the position of the loop, as JSON can hold it. Given as `start_at`, it resumes at the next batch.

        After the last batch of an epoch, the position is the beginning of the next epoch.
        """
        return state_of(self._plan, self._position)

    def __repr__(self) -> str:
        return f"<Batches of {self._plan.batch_size}, {len(self)} an epoch, at {self._position}>"

    @end_tracebacks_here
    def _run(self, start: Position) -> Iterator[Any]:
        position = start
        with closing(self._read_ahead(start)) as fetched:
            for arrays in fetched:
                position = position.after(len(self))
                self._position = position
                yield arrays if self._are_tuples else arrays[0]

    def _read_ahead(self, start: Position) -> Generator[tuple[Any, ...], None, None]:
        plan = self._plan
        if plan.window is None or plan.seed is None:
            return _read_ahead(self._readers, _selections(plan, start), self._prefetch)
        reader = WindowReader.of(self._readers, plan.window, self._window_bytes)
        return reader.read_ahead(
            plan.seed, start.epoch, plan.places_from(start), plan.batch_size, self._prefetch
        )


@end_tracebacks_here
def batches(
    *sources: SampleSource | AlignedTensors,
    batch_size: int,
    shuffle: bool | Literal["shards"] = False,
    seed: int | None = None,
    drop_last: bool = False,
    prefetch: int = 4,
    start_at: Mapping[str, Any] | None = None,
    pad_value: Any = None,
    window_bytes: int | None = None,
) -> Batches:
    """Return batches of samples along the first axis. The next ones are fetched while a loop works on one.

    Every epoch visits each sample once, in an order that depends only on `seed`, the number of the epoch and the number
    of samples. A batch mostly takes one request for each stored array.

    With ``shuffle="shards"``, samples that are stored together are fetched together, and each stored byte travels once
    an epoch. Objects of Storage, or blocks of the database, are fetched in random order, and their samples are mixed
    within a window. The order then depends on `window_bytes` too, and on how the largest of the arrays is stored.

    Parameters
    ----------
    sources
        Stored arrays that `TensorStore.open` returns, or arrays in memory, of the same length; or the result of
        `tensorage.zip`.
    batch_size
        Samples of a batch. The last batch of an epoch may have fewer.
    shuffle
        Visit the samples in another order in each epoch. True: in an order that is any of all orders by chance.
        ``"shards"``: in an order that is less random, for arrays of Storage and for all that is read far away.
    seed
        Seed of the orders. By default a random one, which `state` tells.
    drop_last
        Leave out a last batch that is not full.
    prefetch
        Batches that are fetched before the loop asks for them, and kept in memory. With 0, each batch is fetched when
        the loop asks for it, and nothing in the background.
    start_at
        Result of `Batches.state`, at which the loop resumes. The number of samples and the other arguments have to be
        the same.
    pad_value
        Value behind the elements of samples of a ragged array that are shorter than the longest of their batch. By
        default, a batch of a ragged array is a list of samples.
    window_bytes
        Room for the samples of all arrays that ``shuffle="shards"`` mixes, 256 MiB by default. A larger window mixes
        better. A loop takes memory for about the window, for `prefetch` batches, and for at most 128 MiB, or four
        objects, that are fetched, wait for the window, or are put together. Beside a larger array, one that takes at
        most an eighth of the window is read whole at the beginning of a loop, and kept.

    Returns
    -------
    Batches
        Iterable of arrays of shape ``(batch_size, ...)``, or of tuples of them, one for each of several arrays.
        Samples of a ragged array come as a list, or as an array of shape ``(batch_size, longest, ...)`` with
        `pad_value`.

    Raises
    ------
    InvalidInputError
        If the arrays have different lengths, a number is out of its bounds, or `start_at` belongs to other batches.
    ChangedError
        In the loop, if an array was replaced meanwhile, so that an epoch would mix two arrays. Appends and assignments
        are no reason: the loop gets the elements at the time of the read.

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
    size = _check_number("batch_size", batch_size, 1)
    ahead = _check_number("prefetch", prefetch, 0)
    length = common_length(arrays)
    _check_shuffle(shuffle, window_bytes)
    room = WINDOW_BYTES if window_bytes is None else _check_number("window_bytes", window_bytes, 1)
    if seed is not None:
        seed = _check_number("seed", seed, 0)
    elif shuffle:
        # Take the seed from `start_at`, which `read_state` validates below.
        before = start_at.get("seed") if isinstance(start_at, Mapping) else None
        seed = before if type(before) is int else secrets.randbits(63)
    plan = EpochPlan(
        length,
        size,
        shuffle if shuffle == "shards" else bool(shuffle),
        seed if shuffle else None,
        bool(drop_last),
        choose_cut(arrays, room) if shuffle == "shards" else None,
    )
    start = Position() if start_at is None else read_state(start_at, plan)
    are_tuples = len(sources) > 1 or isinstance(sources[0], AlignedTensors)
    check_padding(arrays, pad_value)
    return Batches(arrays, plan, ahead, start, are_tuples=are_tuples, pad_value=pad_value, window_bytes=room)


@end_tracebacks_here
def zip(*sources: SampleSource) -> AlignedTensors:  # noqa: A001 - written tensorage.zip
    """Return a dataset of samples of several arrays that belong together, fetched together.

    Parameters
    ----------
    sources
        Stored arrays that `TensorStore.open` returns, or arrays in memory, of the same length along their first axis.

    Raises
    ------
    InvalidInputError
        If there are no arrays, or they have different lengths.

    Examples
    --------
    .. code-block:: python

        samples = tensorage.zip(store.open("images"), store.open("labels"))
        image, label = samples[7]
        loader = torch.utils.data.DataLoader(samples, batch_size=64, shuffle=True, num_workers=2)
    """
    return AlignedTensors(*sources)


def _check_shuffle(shuffle: object, window_bytes: object) -> None:
    is_flag = shuffle is None or isinstance(shuffle, int | np.bool)
    if not is_flag and not (isinstance(shuffle, str) and shuffle == "shards"):
        raise InvalidInputError(f"shuffle={quote(shuffle)}: it is True, False or 'shards'")
    if window_bytes is not None and shuffle != "shards":
        raise InvalidInputError(f"window_bytes={quote(window_bytes)} is for shuffle='shards'")


def _check_number(name: str, value: int, least: int) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        raise InvalidInputError(f"{name}={quote(value)}: it is a whole number, at least {least}") from None
    if number < least:
        raise InvalidInputError(f"{name}={number}: it is at least {least}")
    return number


def _selections(plan: EpochPlan, start: Position) -> Iterator[Selection]:
    """Yield the selection of each batch of an epoch, from position `start` on."""
    places = plan.places_from(start)
    first, after = places.start, places.stop
    if plan.seed is None:
        for low in range(first, after, plan.batch_size):
            yield np.s_[low : min(low + plan.batch_size, after)]
        return
    order = Shuffle(plan.length, plan.seed, start.epoch)
    # Pages end where batches do.
    page = -(-_PAGE // plan.batch_size) * plan.batch_size
    for beginning in range(first, after, page):
        samples = order[beginning : min(beginning + page, after)]
        for low in range(0, len(samples), plan.batch_size):
            yield samples[low : low + plan.batch_size]


def _read_ahead(
    readers: Sequence[SourceReader], selections: Iterator[Selection], ahead: int
) -> Generator[tuple[Any, ...], None, None]:
    """Yield the samples of each selection, in order, fetching `ahead` selections before they are asked for."""
    if not ahead:
        for selection in selections:
            yield tuple(reader.read(selection) for reader in readers)
        return
    # More threads than connections would only wait for each other.
    threads = min(ahead * len(readers), PARALLEL)
    hurry = Hurry(current_hurry())

    def read_one(reader: SourceReader, selection: Selection) -> Any:
        with end_waits_on(hurry):
            return reader.read(selection)

    pool = ThreadPoolExecutor(threads, thread_name_prefix="tensorage prefetch")
    fetching: deque[list[Future[Any]]] = deque()
    try:
        for selection in selections:
            fetching.append([pool.submit(read_one, reader, selection) for reader in readers])
            if len(fetching) > ahead:
                yield _wait_for_results(fetching.popleft())
        while fetching:
            yield _wait_for_results(fetching.popleft())
    finally:
        # A loop that is left early gets here, too. Requests under way end first, and wait for no outage any more.
        hurry.begin()
        pool.shutdown(wait=True, cancel_futures=True)


def _wait_for_results(fetching: list[Future[Any]]) -> tuple[Any, ...]:
    return tuple(each.result() for each in fetching)
