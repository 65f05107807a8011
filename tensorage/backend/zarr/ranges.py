"""Ranges of an object to fetch: chunks that lie close together are joined. No I/O.

Bytes between two chunks are fetched, and dropped, where that takes less time than one more request, which the line
knows. Whatever the line, they are bounded: see `MAX_OVER_READ_BYTES`.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from tensorage.indexing.selection import Positions

__all__ = ["EMPTY", "MAX_RANGE_BYTES", "JoinedRanges", "join_ranges"]

#: Offset, and also length, of an empty chunk.
EMPTY = 2**64 - 1

#: Most bytes of a joined range, unless a single chunk is longer: a whole shard, also one of noise, whose chunks are a
#: little longer than their elements.
MAX_RANGE_BYTES = 8 * 1024 * 1024 + 256 * 1024


#: Most bytes between chunks that are fetched for each chunk of a shard that is wanted.
MAX_OVER_READ_BYTES = 24 * 1024


class JoinedRanges(NamedTuple):
    """Ranges of an object, and the chunks in them.

    Parameters
    ----------
    firsts, ends
        First byte of each range, and the byte behind its last one, ascending.
    numbers
        For each chunk, the number of the range that it lies in, or -1 if it is empty.
    """

    firsts: list[int]
    ends: list[int]
    numbers: Positions


def join_ranges(
    chunks: npt.NDArray[np.uint64], max_gap_bytes: int, max_bytes: int = MAX_RANGE_BYTES
) -> JoinedRanges:
    """Join chunks of an object that lie close together to ranges.

    Parameters
    ----------
    chunks
        Offset and length of each chunk, in any order: an array of shape (chunks, 2). Both are `EMPTY` for an empty
        chunk.
    max_gap_bytes
        Most bytes between two chunks that are joined. The narrowest gaps are closed, as long as all of them together
        have at most `MAX_OVER_READ_BYTES` for each stored chunk.

    Examples
    --------
    >>> chunks = np.array([[0, 10], [50, 10], [EMPTY, EMPTY], [12, 8]], np.uint64)
    >>> joined = join_ranges(chunks, max_gap_bytes=5)
    >>> joined.firsts, joined.ends, joined.numbers.tolist()
    ([0, 50], [20, 60], [0, 1, -1, 0])
    """
    numbers = np.full(len(chunks), -1, np.int64)
    stored = np.flatnonzero(chunks[:, 0] != EMPTY)
    if not len(stored):
        return JoinedRanges([], [], numbers)
    order = stored[np.argsort(chunks[stored, 0], kind="stable")]
    firsts = chunks[order, 0].astype(np.int64)
    # A foreign index may name chunks that overlap.
    ends = np.maximum.accumulate(firsts + chunks[order, 1].astype(np.int64))
    is_new = np.append(True, ~_find_closed_gaps(firsts[1:] - ends[:-1], max_gap_bytes))
    begins = np.flatnonzero(is_new)
    for begin, behind in zip(begins.tolist(), [*begins[1:].tolist(), len(order)], strict=True):
        _cut(is_new[begin:behind], firsts[begin:behind], ends[begin:behind], max_bytes)
    begins = np.flatnonzero(is_new)
    numbers[order] = np.cumsum(is_new) - 1
    lasts = np.append(begins[1:], len(order)) - 1
    return JoinedRanges(firsts[begins].tolist(), ends[lasts].tolist(), numbers)


def _find_closed_gaps(gaps: Positions, max_gap_bytes: int) -> npt.NDArray[np.bool_]:
    """Tell which gaps between chunks, in order of the chunks, are closed."""
    closed = gaps <= 0
    wide = np.flatnonzero(~closed)
    if len(wide):
        narrowest = wide[np.argsort(gaps[wide], kind="stable")]
        over_read = np.cumsum(gaps[narrowest])
        fits = (gaps[narrowest] <= max_gap_bytes) & (over_read <= MAX_OVER_READ_BYTES * (len(gaps) + 1))
        closed[narrowest[fits]] = True
    return closed


def _cut(is_new: npt.NDArray[np.bool_], firsts: Positions, ends: Positions, max_bytes: int) -> None:
    """Mark further beginnings in a range that is too long, each as late as possible."""
    at = 0
    while ends[-1] - firsts[at] > max_bytes:
        at = max(int(np.searchsorted(ends, firsts[at] + max_bytes, "right")), at + 1)
        if at == len(firsts):
            return
        is_new[at] = True
