"""Order of an epoch that reads neighbouring samples together, and mixes those of many places. No I/O.

The question answered here: given the number of samples, the number of samples that are fetched together, and the room
in memory, which samples does an epoch fetch when, and in which order does it visit them?

1. The samples are cut into *slabs* of neighbours. A slab is fetched once, as a whole. Slabs are in random order.
2. The epoch goes in *rounds*, as many as there are slabs. The *window* of a round is a range of the slabs in their
   order. It opens with an eighth of its slabs, so that a loop need not wait for all of them, grows by two slabs in each
   round until it is full, and then moves on by a slab in each round. Its last slabs stay to the end.
3. A slab deals its samples at random, in equal parts, to the rounds that have it in their window.
4. A round visits the samples that were dealt to it in random order.

Each round can be computed without the rounds before it. A loop that resumes fetches the slabs of the window, and
nothing else. An order takes 8 bytes of memory for each slab.

The order depends on nothing but the seed, the epoch, the number of samples and the `WindowCut`. It is a promise, as
that of `tensorage.training.order` is.
"""

from __future__ import annotations

import bisect
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from tensorage.training.order import Shuffle, mix

__all__ = ["MOST_WIDTH", "WindowCut", "WindowOrder", "choose_slab_bytes", "choose_width"]

_Numbers = npt.NDArray[np.int64]

#: Bytes of a slab, unless the window is very small or very large. An object of Storage has about as many.
_SLAB_BYTES = 8 * 1024 * 1024

#: Fewest bytes of a slab in windows of some MiB. Smaller requests would cost more than their bytes.
_LEAST_SLAB_BYTES = 1024 * 1024

#: Fewest and most slabs of a window, as far as their size can be chosen. Each slab is dealt to twice as many rounds.
_LEAST_WIDTH, MOST_WIDTH = 8, 128

#: Increment of SplitMix64.
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)

#: Part of the window that a round may begin with, at the beginning of an epoch.
_OPENING = 8


def choose_slab_bytes(window_bytes: int) -> int:
    """Choose about how many bytes to fetch together.

    >>> [choose_slab_bytes(2**power) >> 10 for power in (20, 25, 28, 32)]
    [204, 4096, 8192, 32768]
    """
    wanted = min(max(window_bytes // _LEAST_WIDTH, _LEAST_SLAB_BYTES), _SLAB_BYTES, window_bytes // 5)
    return max(wanted, window_bytes // MOST_WIDTH, 1)


def choose_width(window_bytes: int, slab_bytes: int) -> int:
    """Return the number of whole slabs that a window has room for.

    While it grows, a window may have a quarter more: many slabs that have dealt little yet.

    >>> choose_width(256 * 2**20, 8 * 2**20)
    25
    """
    return min(4 * window_bytes // max(5 * slab_bytes, 1), MOST_WIDTH)


@dataclass(frozen=True)
class WindowCut:
    """Cut of an epoch into slabs, and the room of its window.

    Parameters
    ----------
    slab_rows
        Samples of a slab. The last one may have fewer.
    width
        Whole slabs that the window has room for. Samples leave it before those of the same slab do, so that it reaches
        over twice as many.
    """

    slab_rows: int
    width: int


class WindowOrder:
    """Order of one epoch.

    Parameters
    ----------
    length
        Number of samples.
    seed, epoch
        Numbers that choose the order.

    Examples
    --------
    >>> order = WindowOrder(40, WindowCut(slab_rows=8, width=2), seed=0, epoch=0)
    >>> order.round_count, [list(order.window(round)) for round in range(5)]
    (5, [[0, 1], [0, 1, 2], [1, 2, 3], [2, 3, 4], [3, 4]])
    >>> sorted(order[0:40]) == list(range(40))
    True
    """

    def __init__(self, length: int, cut: WindowCut, seed: int, epoch: int) -> None:
        self._length = length
        self._slab_rows = max(cut.slab_rows, 1)
        self._width = cut.width
        self._opening = max(cut.width // _OPENING, 2)
        self._count = -(-length // self._slab_rows)
        self._seed, self._epoch = seed, epoch
        # Draw the last slab's place apart: it may be shorter, while all others have equal length.
        self._others = Shuffle(max(self._count - 1, 0), seed, epoch, "slabs")[:]
        self._last_place = int(self._chance("place", np.zeros(1, np.uint64), self._count)[0])

    @property
    def round_count(self) -> int:
        """Number of rounds, which is that of the slabs."""
        return self._count

    def slab(self, place: int) -> slice:
        """Return the samples of the slab at a place of the order of slabs."""
        number = self._count - 1
        if place != self._last_place:
            number = int(self._others[place - (place > self._last_place)])
        return slice(number * self._slab_rows, min((number + 1) * self._slab_rows, self._length))

    def window(self, number: int) -> range:
        """Return the places of the slabs in the window of a round."""
        entered = min(self._count, self._opening + 2 * number, self._width + number)
        return range(max(number - self._width + 1, 0), entered)

    def rounds(self, place: int) -> range:
        """Return the rounds that have a slab in their window."""
        ((entry,), (count,)) = self._stays(np.array([place]))
        return range(int(entry), int(entry + count))

    def first_sample(self, number: int) -> int:
        """Return the place of a round's first sample in the epoch. One behind the last round is allowed."""
        if number >= self._count:
            return self._length
        window = self.window(number)
        gone = window.start * self._slab_rows - (self._missing if self._last_place < window.start else 0)
        places = np.arange(window.start, window.stop, dtype=np.int64)
        entries, counts = self._stays(places)
        return gone + int(self._dealt(places, number - entries, counts).sum())

    def round_of(self, sample: int) -> int:
        """Return the round that visits the sample at a place of the epoch."""
        return bisect.bisect_right(range(self._count), sample, key=self.first_sample) - 1

    def parts(self, place: int) -> list[_Numbers]:
        """Return the samples that a slab deals to each of its rounds, counted from the slab's first one."""
        rounds, rows = self.rounds(place), self.slab(place)
        places = np.full(len(rounds) + 1, place, np.int64)
        counts = np.full(len(rounds) + 1, len(rounds), np.int64)
        ends = self._dealt(places, np.arange(len(rounds) + 1), counts)
        samples = self._shuffle(f"slab {place}", rows.stop - rows.start)
        return [samples[first:end] for first, end in pairwise(ends)]

    def arrangement(self, number: int) -> _Numbers:
        """Return the place in the round for each sample that was dealt to it, slab by slab."""
        count = self.first_sample(number + 1) - self.first_sample(number)
        return self._shuffle(f"round {number}", count)

    def __getitem__(self, places: slice) -> _Numbers:
        """Return the samples at consecutive places of the epoch."""
        first, after, _ = places.indices(self._length)
        if first >= after:
            return np.empty(0, np.int64)
        numbers = range(self.round_of(first), self.round_of(after - 1) + 1)
        begin = first - self.first_sample(numbers.start)
        return np.concatenate(list(self._visit(numbers)))[begin : begin + after - first]

    def _visit(self, numbers: range) -> Iterator[_Numbers]:
        """Yield the samples that each of some rounds visits, in order."""
        dealt: dict[int, tuple[_Numbers, ...]] = {}
        for number in numbers:
            window = self.window(number)
            dealt = {
                place: dealt.get(place) or tuple(self.slab(place).start + part for part in self.parts(place))
                for place in window
            }
            parts = np.concatenate([dealt[place][number - self.rounds(place).start] for place in window])
            samples = np.empty_like(parts)
            samples[self.arrangement(number)] = parts
            yield samples

    @property
    def _missing(self) -> int:
        """Number of samples that the last slab has fewer than the others."""
        return self._count * self._slab_rows - self._length

    def _stays(self, places: _Numbers) -> tuple[_Numbers, _Numbers]:
        """Return the first round that has each slab in its window, and the number of such rounds."""
        # The inverse of `window`: a slab enters in the first round by which so many have entered.
        later = np.maximum((places - self._opening + 2) // 2, places - self._width + 1)
        entries = np.maximum(later, 0)
        return entries, np.minimum(places + self._width, self._count) - entries

    def _dealt(self, places: _Numbers, done: _Numbers, counts: _Numbers) -> _Numbers:
        """Return how many samples slabs have dealt after some of their rounds.

        Parts are equal as far as whole samples allow. A slab of few samples deals them at rounds left to chance.
        """
        lengths = np.full(len(places), self._slab_rows, np.int64)
        lengths[places == self._last_place] -= self._missing
        chance = (self._chance("deal", places.astype(np.uint64), 1 << 30) * counts) >> 30
        dealt: _Numbers = (done * lengths + chance) // counts
        return dealt

    def _shuffle(self, of: str, count: int) -> _Numbers:
        """Return the numbers below `count` in random order.

        All of them are wanted at once, and sorting random words then takes a tenth of the time of a `Shuffle`.
        """
        words = self._words(of, np.arange(count, dtype=np.uint64))
        shuffled: _Numbers = np.argsort(words, kind="stable").astype(np.int64, copy=False)
        return shuffled

    def _chance(self, of: str, numbers: npt.NDArray[np.uint64], below: int) -> _Numbers:
        """Return a random number below a bound for each number."""
        words = self._words(of, numbers)
        return (words % np.uint64(max(below, 1))).astype(np.int64)

    def _words(self, of: str, numbers: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
        """Return a random word for each number, another one for another number: the sequence of SplitMix64."""
        key = hashlib.blake2b(f"{self._seed}/{self._epoch}/{of}".encode(), digest_size=8).digest()
        words: npt.NDArray[np.uint64] = mix(numbers * _GOLDEN + np.uint64(int.from_bytes(key, "little")))
        return words
