"""Runs of elements of a stored array, and their split into requests. No I/O.

*Runs* say which elements to send, by the positions at which runs of consecutive elements begin. They are either a
`RunProduct` (each run of each row, all of one length: few numbers for many runs) or a `RunList` (runs of any length).
The elements of all runs, one after another, are the *buffer*.

`split` cuts runs into requests. Each request fits the limits and fills consecutive elements of the buffer.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from tensorage.indexing.selection import Positions

__all__ = [
    "MAX_POSITIONS",
    "MAX_REQUEST_BYTES",
    "MAX_RUNS",
    "RequestRuns",
    "RunList",
    "RunProduct",
    "Runs",
    "as_list",
    "halve",
    "max_elements",
    "split",
    "split_by_request",
]

#: Most bytes of elements in one request.
MAX_REQUEST_BYTES = 8 * 1024 * 1024

#: Most runs in one request.
MAX_RUNS = 1_000_000

#: Most numbers in one request that say where runs are: each is about ten bytes of JSON.
MAX_POSITIONS = 65536


@dataclass(frozen=True, slots=True)
class RunProduct:
    """The runs at ``rows[i] + runs[j]``, `i` outermost, of `run_length` elements each.

    Examples
    --------
    Two columns of the first three rows of an array of shape (10, 100):

    >>> RunProduct(np.array([0, 100, 200]), np.array([7, 23]), run_length=1).size
    6
    """

    rows: Positions
    runs: Positions
    run_length: int

    @property
    def size(self) -> int:
        """Elements of the buffer."""
        return len(self.rows) * len(self.runs) * self.run_length


@dataclass(frozen=True, slots=True)
class RunList:
    """The runs at `starts`, ascending and not overlapping, of `lengths` elements."""

    starts: Positions
    lengths: Positions

    @property
    def size(self) -> int:
        """Elements of the buffer."""
        return int(self.lengths.sum())


Runs: TypeAlias = RunProduct | RunList


@dataclass(frozen=True, slots=True)
class RequestRuns:
    """Runs that one request asks for. Their elements go to the buffer from `out_first` on."""

    runs: Runs
    out_first: int

    @property
    def size(self) -> int:
        """Elements of this request."""
        return self.runs.size


@dataclass(frozen=True, slots=True)
class _Caps:
    """Limits of one request; see `split`."""

    elements: int
    runs: int
    positions: int
    align: int
    blocks: int | None


def split(
    runs: Runs,
    max_elements: int,
    max_runs: int,
    *,
    align: int = 1,
    max_positions: int = MAX_POSITIONS,
    max_blocks: int | None = None,
) -> Iterator[RequestRuns]:
    """Cut runs into requests, in the order of the buffer.

    Parameters
    ----------
    max_elements
        Most elements of one request.
    max_runs
        Most runs of one request. A product has rows times runs.
    align
        Elements of a block. A long run is cut at a multiple of `align`, where `max_elements` allows.
    max_positions
        Most numbers that say where the runs of one request are, at least 2: a product has one for each row and each
        run, a run list one for each start.
    max_blocks
        Most blocks that one request touches, at least 1.

    Examples
    --------
    >>> product = RunProduct(np.array([0, 100, 200]), np.array([0]), run_length=50)
    >>> [(request.runs.rows.tolist(), request.out_first) for request in split(product, 100, 1000)]
    [([0, 100], 0), ([200], 100)]
    """
    caps = _Caps(max_elements, max_runs, max_positions, align, max_blocks)
    if not runs.size:
        return iter(())
    return _split_product(runs, caps) if isinstance(runs, RunProduct) else _split_list(runs, caps)


def as_list(runs: Runs) -> RunList:
    """Return the same runs, each with its start and length."""
    if isinstance(runs, RunList):
        return runs
    starts = np.add.outer(runs.rows, runs.runs).reshape(-1)
    return RunList(starts, np.full(len(starts), runs.run_length))


def max_elements(itemsize: int, block_size: int) -> int:
    """Return how many elements one request carries: whole blocks, where it has room for one."""
    elements = max(MAX_REQUEST_BYTES // itemsize, 1)
    return elements // block_size * block_size or elements


def split_by_request(
    runs: Runs, itemsize: int, block_size: int, max_blocks: int | None = None
) -> Iterator[RequestRuns]:
    """Cut runs into requests that keep to the limits of this module.

    Parameters
    ----------
    block_size
        Elements of a block.
    max_blocks
        Most blocks that one request touches.
    """
    return split(runs, max_elements(itemsize, block_size), MAX_RUNS, align=block_size, max_blocks=max_blocks)


def halve(request: RequestRuns) -> tuple[RequestRuns, RequestRuns]:
    """Split the runs of one request, of two or more elements, into two requests."""
    whole, middle = request.runs, request.size // 2
    if isinstance(whole, RunList):
        ends = np.cumsum(whole.lengths)
        return (
            RequestRuns(_cut_list(whole, ends, 0, middle), request.out_first),
            RequestRuns(_cut_list(whole, ends, middle, request.size), request.out_first + middle),
        )
    rows, runs, length = whole.rows, whole.runs, whole.run_length
    if len(rows) > 1:
        half = len(rows) // 2
        first, second = RunProduct(rows[:half], runs, length), RunProduct(rows[half:], runs, length)
    elif len(runs) > 1:
        half = len(runs) // 2
        first, second = RunProduct(rows, runs[:half], length), RunProduct(rows, runs[half:], length)
    else:
        first, second = RunProduct(rows, runs, middle), RunProduct(rows + middle, runs, length - middle)
    return RequestRuns(first, request.out_first), RequestRuns(second, request.out_first + first.size)


class _TouchedBlocks:
    """Count of the blocks that successive runs of elements touch.

    Each run counts the blocks that the run before it does not touch. The count is exact for runs in ascending order,
    and otherwise too high rather than too low.
    """

    def __init__(self, starts: Positions, lengths: Positions | int, align: int) -> None:
        self.first = starts // align
        self.last = (starts + lengths - 1) // align
        own = self.last - self.first + 1
        common = np.minimum(self.last[1:], self.last[:-1]) - np.maximum(self.first[1:], self.first[:-1]) + 1
        # Runs that are apart have a negative number of blocks in common.
        own[1:] -= np.maximum(common, 0)
        #: Blocks that all runs up to each one touch.
        self.until = np.cumsum(own)

    def stop(self, begin: int, max_blocks: int, first_block: int | None = None) -> int:
        """Find the end of the longest series of runs from `begin` on that touches at most `max_blocks` blocks.

        Parameters
        ----------
        first_block
            First block of the series, if it begins within the run `begin`.
        """
        # `until` counts from the first run of all, so its value at `begin` is taken off.
        first = int(self.first[begin]) if first_block is None else first_block
        blocks_of_first = int(self.last[begin]) - first + 1
        room = max_blocks - blocks_of_first + int(self.until[begin])
        return int(np.searchsorted(self.until[begin:], room, side="right")) + begin


def _split_product(product: RunProduct, caps: _Caps) -> Iterator[RequestRuns]:
    per_row = len(product.runs) * product.run_length
    at_once = min(
        caps.elements // per_row, caps.runs // len(product.runs), max(caps.positions, 2) - len(product.runs)
    )
    row, done, count = 0, 0, len(product.rows)
    # Blocks are counted once for all rows. If not even one row fits, `_split_row` counts those of each.
    touched, clusters = _touched_blocks_of_rows(product, caps) if at_once > 0 else (None, 1)
    while row < count:
        stop = min(row + at_once, count)
        if touched is not None and caps.blocks is not None and stop > row:
            stop = min(touched.stop(row * clusters, caps.blocks) // clusters, stop)
        if stop > row:
            yield RequestRuns(RunProduct(product.rows[row:stop], product.runs, product.run_length), done)
        else:
            # Not even one row fits, so cut within the row.
            stop = row + 1
            yield from _split_row(product, row, done, caps)
        done += (stop - row) * per_row
        row = stop


def _touched_blocks_of_rows(product: RunProduct, caps: _Caps) -> tuple[_TouchedBlocks | None, int]:
    """Count the blocks that rows touch, and the intervals of which each row consists.

    Runs that are less than a block apart make one interval: no block between them is left out.
    """
    if caps.blocks is None:
        return None, 1
    runs = np.sort(product.runs)
    ends = runs + product.run_length
    apart = np.flatnonzero(runs[1:] - ends[:-1] >= caps.align)
    first = runs[np.concatenate(([0], apart + 1))]
    last = ends[np.concatenate((apart, [-1]))]
    starts = np.add.outer(product.rows, first).reshape(-1)
    return _TouchedBlocks(starts, np.tile(last - first, len(product.rows)), caps.align), len(first)


def _split_row(product: RunProduct, row: int, done: int, caps: _Caps) -> Iterator[RequestRuns]:
    """Cut one row that is too much for one request."""
    at_once = min(caps.elements // product.run_length, caps.runs, max(caps.positions, 2) - 1)
    starts = product.rows[row] + product.runs
    touched = None if caps.blocks is None else _TouchedBlocks(starts, product.run_length, caps.align)
    run, count = 0, len(starts)
    while run < count:
        stop = min(run + at_once, count)
        if touched is not None and caps.blocks is not None and stop > run:
            stop = min(touched.stop(run, caps.blocks), stop)
        if stop > run:
            yield RequestRuns(
                RunProduct(product.rows[row : row + 1], product.runs[run:stop], product.run_length), done
            )
        else:
            stop = run + 1
            yield from _split_run(int(starts[run]), product.run_length, done, caps)
        done += (stop - run) * product.run_length
        run = stop


def _split_run(start: int, length: int, done: int, caps: _Caps) -> Iterator[RequestRuns]:
    """Cut one run that is too long for one request."""
    position, end = start, start + length
    while position < end:
        stop = _end_of_run(position, end, caps)
        yield RequestRuns(RunProduct(np.array([position]), np.zeros(1, np.int64), stop - position), done)
        done += stop - position
        position = stop


def _end_of_run(position: int, end: int, caps: _Caps) -> int:
    """Find the end of a request that begins at `position` of a run that ends at `end`."""
    stop = min(position + caps.elements, end)
    if caps.blocks is not None:
        stop = min((position // caps.align + caps.blocks) * caps.align, stop)
    aligned = stop // caps.align * caps.align
    # A request that ends at the end of a block leaves the next one no block to read a second time.
    return aligned if position < aligned and stop < end else stop


def _split_list(run_list: RunList, caps: _Caps) -> Iterator[RequestRuns]:
    ends = np.cumsum(run_list.lengths)
    touched = None if caps.blocks is None else _TouchedBlocks(run_list.starts, run_list.lengths, caps.align)
    at_once = min(caps.runs, caps.positions)
    done, size = 0, int(ends[-1])
    while done < size:
        # The request begins in run `begin`, perhaps after its start, and takes whole runs up to `stop`.
        begin = int(np.searchsorted(ends, done, side="right"))
        end = int(run_list.starts[begin] + run_list.lengths[begin])
        position = end - (int(ends[begin]) - done)
        stop = min(int(np.searchsorted(ends, done + caps.elements, side="right")), begin + at_once)
        if touched is not None and caps.blocks is not None:
            stop = min(touched.stop(begin, caps.blocks, position // caps.align), stop)
        until = int(ends[stop - 1]) if stop > begin else done + _end_of_run(position, end, caps) - position
        yield RequestRuns(_cut_list(run_list, ends, done, until), done)
        done = until


def _cut_list(run_list: RunList, ends: Positions, begin: int, stop: int) -> RunList:
    """Return the runs that fill the elements ``[begin, stop)`` of the buffer, given the `ends` of all runs in it."""
    first = int(np.searchsorted(ends, begin, side="right"))
    last = int(np.searchsorted(ends, stop, side="left"))
    # Copies, since the first and the last run are cut in place below.
    starts, lengths = run_list.starts[first : last + 1].copy(), run_list.lengths[first : last + 1].copy()
    lengths[-1] -= int(ends[last]) - stop
    skipped = begin - (int(ends[first]) - int(run_list.lengths[first]))
    starts[0] += skipped
    lengths[0] -= skipped
    return RunList(starts, lengths)
