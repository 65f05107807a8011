"""Batches in the order of a window: slabs are fetched ahead, dealt to rounds, and mixed, in the background.

An epoch goes in these steps. `tensorage.training.window` decides which slabs, rounds and samples they are about.

1. Some threads fetch the slabs that the window reaches next, and deal their samples to rounds. A slab is copied part by
   part, so that the samples that have left the window take no memory any more.
2. One thread puts the parts of a round together, and cuts batches from it.
"""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from tensorage.backend.arrays import OpenArray
from tensorage.backend.wire.http import PARALLEL
from tensorage.backend.wire.patience import Hurry, current_hurry, end_waits_on
from tensorage.errors import InvalidInputError
from tensorage.training.fetching import SourceReader
from tensorage.training.samples import SampleSource, name_of
from tensorage.training.window import WindowCut, WindowOrder, choose_slab_bytes, choose_width

__all__ = ["WINDOW_BYTES", "WindowReader", "choose_cut"]

#: Room of a window, unless the user says another.
WINDOW_BYTES = 256 * 1024 * 1024

#: Bytes that are under way at once, as far as connections allow. A long line needs so many.
_UNDER_WAY_BYTES = 32 * 1024 * 1024

#: Most connections of a process.
_CONNECTIONS = 2 * PARALLEL

#: With fewer slabs than this in a window, try smaller slabs.
_FEW = 8

#: Another array is read once, whole, and kept if the window has room for this many of it.
_SMALL = 8

#: Samples of each array that one slab deals to one round.
_Part = tuple[npt.NDArray[Any], ...]


def choose_cut(sources: Sequence[SampleSource], window_bytes: int) -> WindowCut:
    """Choose the samples that are fetched together, and how many such slabs the window has room for.

    The stored array with the most bytes decides. Its slabs are whole objects, or whole blocks.

    Raises
    ------
    InvalidInputError
        If the window has no room for the slabs of the array.
    """
    leader, length = sources[_leader(sources)], len(sources[0])
    of_all = sum(map(_row_bytes, sources))
    most_bytes = choose_slab_bytes(window_bytes)
    rows = min(_rows_together(leader, most_bytes), max(length, 1))
    if choose_width(window_bytes, rows * of_all) < _FEW:
        # The other arrays have much of the room. Otherwise, objects stay whole that are as large as slabs should be.
        rows = min(_rows_together(leader, most_bytes * _row_bytes(leader) // max(of_all, 1)), rows)
    slab_bytes = rows * of_all
    width = choose_width(window_bytes, slab_bytes)
    # The slabs of a window of a single one would follow each other unmixed.
    if (width < 2 and rows < length) or slab_bytes > window_bytes:
        least = slab_bytes if rows >= length else -(-5 * slab_bytes // 2)
        raise InvalidInputError(
            f"window_bytes={window_bytes}: samples are fetched as {name_of(leader)} has them stored, {rows} together, "
            f"which have {slab_bytes} bytes. Give window_bytes={least} or more, or shuffle=True, which fetches samples "
            "one by one"
        )
    return WindowCut(rows, max(width, 1))


def _leader(sources: Sequence[SampleSource]) -> int:
    """Return the number of the stored array with the most bytes, or of the first one if none is stored."""
    stored = [number for number, source in enumerate(sources) if isinstance(source, OpenArray)]
    return max(stored or [0], key=lambda number: _row_bytes(sources[number]))


def _row_bytes(source: SampleSource) -> int:
    itemsize = source.dataset.mean_bytes if isinstance(source, OpenArray) else source.dtype.itemsize
    return math.prod(source.shape[1:]) * itemsize


def _rows_together(source: SampleSource, most_bytes: int) -> int:
    """Return the number of samples that are fetched together: those of whole objects or blocks, if any are."""
    row_bytes = _row_bytes(source)
    if not row_bytes or not len(source):
        return max(len(source), 1)
    is_cut = isinstance(source, OpenArray) and (
        source.dataset.ragged is None or source.dataset.engine == "storage"
    )
    if isinstance(source, OpenArray) and is_cut:
        return source.arrays.shape_to_read(source.dataset, most_bytes)[0]
    # Blocks of samples of any length begin anywhere, and the server cuts them.
    return max(most_bytes // row_bytes, 1)


@dataclass(frozen=True)
class WindowReader:
    """Reads epochs of several arrays in the order of a window.

    Parameters
    ----------
    readers
        Readers of the arrays.
    length
        Number of samples.
    window_bytes
        Room of the window. An array beside the leading one that takes little of it is read at the beginning of a loop.
    """

    readers: tuple[SourceReader, ...]
    length: int
    cut: WindowCut
    window_bytes: int

    @classmethod
    def of(cls, readers: Iterable[SourceReader], cut: WindowCut, window_bytes: int) -> WindowReader:
        """Return a reader that shows no progress bar: each of many slabs would have one."""
        quiet = tuple(map(_quietly, readers))
        return cls(quiet, len(quiet[0].source), cut, window_bytes)

    def read_ahead(
        self, seed: int, epoch: int, places: range, batch_size: int, prefetch: int
    ) -> Generator[tuple[Any, ...], None, None]:
        """Yield batches of the samples at some places of an epoch.

        Parameters
        ----------
        prefetch
            Batches that are made before they are asked for. With 0, slabs are fetched when they are needed.
        """
        if not places:
            return
        order = WindowOrder(self.length, self.cut, seed, epoch)
        if not prefetch:
            yield from self._batches(order, places, batch_size, None)
            return
        hurry = Hurry(current_hurry())
        fetching = ThreadPoolExecutor(self._threads, thread_name_prefix="tensorage prefetch")
        mixing = ThreadPoolExecutor(1, thread_name_prefix="tensorage prefetch mixing")
        try:
            begin = partial(_submit_with_hurry, fetching, hurry)
            batches = self._batches(order, places, batch_size, begin)
            made = deque(mixing.submit(next, batches, None) for _ in range(prefetch))
            while (batch := made.popleft().result()) is not None:
                made.append(mixing.submit(next, batches, None))
                yield batch
        finally:
            # A loop that is left early gets here, too. Requests under way end first, and wait for no outage any more.
            hurry.begin()
            fetching.shutdown(wait=False, cancel_futures=True)
            mixing.shutdown(wait=True, cancel_futures=True)
            fetching.shutdown(wait=True)

    def _batches(
        self, order: WindowOrder, places: range, batch_size: int, begin: _Begin | None
    ) -> Generator[tuple[Any, ...], None, None]:
        first = order.round_of(places.start)
        skipped = places.start - order.first_sample(first)
        rounds = self._rounds(order, first, begin)
        for batch in _cut_batches(rounds, skipped, len(places), batch_size):
            yield tuple(
                reader.finish_rows(samples) for reader, samples in zip(self.readers, batch, strict=True)
            )

    def _rounds(self, order: WindowOrder, first: int, begin: _Begin | None) -> Iterator[_Part]:
        """Yield the samples of each round, from round `first` on, in the order in which the epoch visits them.

        The memory of a round is used again for the next one.
        """
        slabs = _Slabs(order, first, self._dealers(), self._ahead, begin)
        rooms: list[npt.NDArray[Any] | None] = [None] * len(self.readers)
        for number in range(first, order.round_count):
            places = order.arrangement(number)
            arrays = zip(*slabs.parts(number), strict=True)
            arranged = [_arrange(parts, places, room) for parts, room in zip(arrays, rooms, strict=True)]
            yield tuple(arranged)
            rooms = [array if array.base is None else array.base for array in arranged]

    def _dealers(self) -> list[_Dealer]:
        leader = _leader([reader.source for reader in self.readers])
        return [
            _Dealer(reader, self.cut.slab_rows, is_small=number != leader and self._is_small(reader))
            for number, reader in enumerate(self.readers)
        ]

    def _is_small(self, reader: SourceReader) -> bool:
        nbytes = self.length * _row_bytes(reader.source)
        return isinstance(reader.source, OpenArray) and nbytes * _SMALL <= self.window_bytes

    @property
    def _threads(self) -> int:
        """Number of slabs that are fetched at once."""
        wanted = _UNDER_WAY_BYTES // max(self._slab_bytes, 1)
        return min(max(wanted, 1), _CONNECTIONS)

    @property
    def _ahead(self) -> int:
        """Number of slabs that are fetched before the window reaches them: each thread has one, and one is next."""
        return 2 * self._threads

    @property
    def _slab_bytes(self) -> int:
        return self.cut.slab_rows * sum(_row_bytes(reader.source) for reader in self.readers)


@dataclass
class _Dealer:
    """Reads slabs of one array, and deals their samples.

    Parameters
    ----------
    slab_rows
        Most samples of a slab.
    is_small
        True if the array is read whole at the first slab, and kept. Slabs of another array cut through its chunks, and
        a chunk would be fetched for each of them.
    """

    reader: SourceReader
    slab_rows: int
    is_small: bool
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _whole: npt.NDArray[Any] | None = None
    _idle: deque[npt.NDArray[Any] | None] = field(default_factory=deque)

    def deal(self, rows: slice, parts: Iterable[npt.NDArray[np.int64]]) -> list[npt.NDArray[Any]]:
        """Return the samples of a slab, part by part, each part in memory of its own."""
        if self.is_small:
            whole = self._read_whole()[rows]
            return [np.take(whole, part, axis=0) for part in parts]
        # The kernel has to clear every page of new memory, which takes about as long as dealing.
        room = self._idle.pop() if self._idle else self.reader.room_for(self.slab_rows)
        samples = self.reader.read_rows(rows, room)
        dealt = [np.take(samples, part, axis=0) for part in parts]
        self._idle.append(room)
        return dealt

    def _read_whole(self) -> npt.NDArray[Any]:
        with self._lock:
            if self._whole is None:
                self._whole = self.reader.read_rows(slice(0, len(self.reader.source)))
        return self._whole


#: Parts of a slab for the rounds that are still to come.
_Dealt = deque[_Part]

#: Begins to fetch a slab.
_Begin = Callable[[Callable[[], _Dealt]], "Future[_Dealt]"]


@dataclass
class _Slabs:
    """Slabs of an epoch, each fetched once, in order, and dealt to the rounds from `first` on.

    Parameters
    ----------
    dealers
        Read slabs of each array.
    ahead
        Slabs that are fetched before the window reaches them.
    begin
        Begins to fetch a slab in the background. None: slabs are fetched when they are needed.
    """

    order: WindowOrder
    first: int
    dealers: Sequence[_Dealer]
    ahead: int
    begin: _Begin | None

    def __post_init__(self) -> None:
        self._next = self.order.window(self.first).start
        self._under_way: dict[int, Future[_Dealt]] = {}
        self._dealt: dict[int, _Dealt] = {}

    def parts(self, number: int) -> list[_Part]:
        """Return the parts of a round, slab by slab. Rounds have to be asked for in order."""
        window = self.order.window(number)
        self._begin_before(window.stop + self.ahead)
        return [self._take_part(place) for place in window]

    def _begin_before(self, place: int) -> None:
        if self.begin is None:
            return
        for each in range(self._next, min(place, self.order.round_count)):
            self._under_way[each] = self.begin(partial(self._fetch, each))
            self._next = each + 1

    def _take_part(self, place: int) -> _Part:
        dealt = self._dealt.pop(place, None)
        if dealt is None:
            dealt = self._fetch(place) if self.begin is None else self._under_way.pop(place).result()
        part = dealt.popleft()
        if dealt:
            self._dealt[place] = dealt
        return part

    def _fetch(self, place: int) -> _Dealt:
        rows, parts = self.order.slab(place), self.order.parts(place)
        # Rounds before the first one were visited by the loop that this one goes on with.
        parts = parts[max(self.first - self.order.rounds(place).start, 0) :]
        return deque(zip(*(dealer.deal(rows, parts) for dealer in self.dealers), strict=True))


def _arrange(
    parts: Sequence[npt.NDArray[Any]], places: npt.NDArray[np.int64], room: npt.NDArray[Any] | None
) -> npt.NDArray[Any]:
    """Put each sample of some parts at its place, in `room` if it is large enough."""
    if room is None or len(room) < len(places):
        room = np.empty((len(places), *parts[0].shape[1:]), parts[0].dtype)
    arranged, at = room[: len(places)], 0
    for part in parts:
        arranged[places[at : at + len(part)]] = part
        at += len(part)
    return arranged


def _cut_batches(rounds: Iterator[_Part], skipped: int, count: int, batch_size: int) -> Iterator[_Part]:
    """Cut `count` samples, from the one behind `skipped` on, into batches, each in memory of its own."""
    pieces: list[_Part] = []
    wanted = min(batch_size, count)
    for arrays in rounds:
        at, skipped = skipped, 0
        while wanted and at < len(arrays[0]):
            taken = min(wanted, len(arrays[0]) - at)
            pieces.append(tuple(array[at : at + taken] for array in arrays))
            at, wanted, count = at + taken, wanted - taken, count - taken
            if not wanted:
                yield tuple(np.concatenate(of_array) for of_array in zip(*pieces, strict=True))
                pieces, wanted = [], min(batch_size, count)
        if not wanted:
            return
        # The next round takes the place of this one.
        pieces = [tuple(array.copy() for array in piece) for piece in pieces]


def _submit_with_hurry(pool: ThreadPoolExecutor, hurry: Hurry, fetch: Callable[[], _Dealt]) -> Future[_Dealt]:
    def do() -> _Dealt:
        with end_waits_on(hurry):
            return fetch()

    return pool.submit(do)


def _quietly(reader: SourceReader) -> SourceReader:
    source = reader.source
    if not isinstance(source, OpenArray):
        return reader
    quiet = OpenArray(source.arrays.quietly(), source.dataset, reader=source.reader)
    return SourceReader(quiet, reader.data_id, reader.pad_value)
