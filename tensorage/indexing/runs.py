"""Runs of elements of a stored array, and how they are cut into requests. No I/O.

A *source* says which elements to send, by the positions at which runs of consecutive elements begin. It is
either a `RunProduct` (each run of each row, all of one length: few numbers for many runs) or `RunList` (runs of any
length). The elements of all runs, one after another, are the *buffer*.

`split` cuts a source into parts that each fit a request and fill consecutive elements of the buffer.
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
    "halve",
    "max_elements",
    "split",
    "split_by_request",
]

#: Bytes of elements in one request.
MAX_REQUEST_BYTES = 8 * 1024 * 1024

#: Runs in one request.
MAX_RUNS = 1_000_000

#: Numbers in one request that say where runs are: each is about ten bytes of JSON.
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
    """A part of a source that fits one request. Its elements go to the buffer from `out_first` on."""

    source: Runs
    out_first: int

    @property
    def size(self) -> int:
        """Elements of this part."""
        return self.source.size


@dataclass(frozen=True, slots=True)
class _Caps:
    """What a part may be at most; see `split`."""

    elements: int
    runs: int
    positions: int
    align: int
    blocks: int | None


def split(
    source: Runs,
    max_elements: int,
    max_runs: int,
    *,
    align: int = 1,
    max_positions: int = MAX_POSITIONS,
    max_blocks: int | None = None,
) -> Iterator[RequestRuns]:
    """Cut a source into parts, in the order of the buffer.

    Parameters
    ----------
    max_elements, max_runs
        Of one part: of a grid, rows times runs.
    align
        Elements of a block. A long run is cut at multiples of it, where `max_elements` allows.
    max_positions
        Of one part: of a grid, rows and runs, of spans, starts. At least 2.
    max_blocks
        How many blocks a part touches at most, at least 1.

    Examples
    --------
    >>> grid = RunProduct(np.array([0, 100, 200]), np.array([0]), run_length=50)
    >>> [(part.source.rows.tolist(), part.out_first) for part in split(grid, 100, 1000)]
    [([0, 100], 0), ([200], 100)]
    """
    caps = _Caps(max_elements, max_runs, max_positions, align, max_blocks)
    if not source.size:
        return iter(())
    return _split_product(source, caps) if isinstance(source, RunProduct) else _split_list(source, caps)


def max_elements(itemsize: int, block_size: int) -> int:
    """Elements in one request: whole blocks, where it has room for one."""
    elements = max(MAX_REQUEST_BYTES // itemsize, 1)
    return elements // block_size * block_size or elements


def split_by_request(
    source: Runs, itemsize: int, block_size: int, max_blocks: int | None = None
) -> Iterator[RequestRuns]:
    """The parts of a source that each fit one request.

    Parameters
    ----------
    block_size
        Elements of a block.
    max_blocks
        How many blocks a part touches at most.
    """
    return split(
        source, max_elements(itemsize, block_size), MAX_RUNS, align=block_size, max_blocks=max_blocks
    )


def halve(part: RequestRuns) -> tuple[RequestRuns, RequestRuns]:
    """Two parts that together are this one, which has two elements or more."""
    source, middle = part.source, part.size // 2
    if isinstance(source, RunList):
        ends = np.cumsum(source.lengths)
        return (
            RequestRuns(_cut_list(source, ends, 0, middle), part.out_first),
            RequestRuns(_cut_list(source, ends, middle, part.size), part.out_first + middle),
        )
    rows, runs, length = source.rows, source.runs, source.run_length
    if len(rows) > 1:
        half = len(rows) // 2
        first, second = RunProduct(rows[:half], runs, length), RunProduct(rows[half:], runs, length)
    elif len(runs) > 1:
        half = len(runs) // 2
        first, second = RunProduct(rows, runs[:half], length), RunProduct(rows, runs[half:], length)
    else:
        first, second = RunProduct(rows, runs, middle), RunProduct(rows + middle, runs, length - middle)
    return RequestRuns(first, part.out_first), RequestRuns(second, part.out_first + first.size)


class _Touched:
    """How many blocks successive runs of elements touch.

    Each run counts the blocks that the one before it does not touch: exact for runs in ascending order, and
    never too few.
    """

    def __init__(self, starts: Positions, lengths: Positions | int, align: int) -> None:
        self.first = starts // align
        self.last = (starts + lengths - 1) // align
        own = self.last - self.first + 1
        common = np.minimum(self.last[1:], self.last[:-1]) - np.maximum(self.first[1:], self.first[:-1]) + 1
        own[1:] -= np.maximum(common, 0)
        #: Blocks of all runs up to each.
        self.until = np.cumsum(own)

    def stop(self, begin: int, max_blocks: int, first_block: int | None = None) -> int:
        """The end of the longest series of runs from `begin` on that touches few enough blocks.

        Parameters
        ----------
        first_block
            Where the series begins within its first run: the block.
        """
        first = int(self.first[begin]) if first_block is None else first_block
        blocks_of_first = int(self.last[begin]) - first + 1
        room = max_blocks - blocks_of_first + int(self.until[begin])
        return int(np.searchsorted(self.until[begin:], room, side="right")) + begin


def _split_product(grid: RunProduct, caps: _Caps) -> Iterator[RequestRuns]:
    per_row = len(grid.runs) * grid.run_length
    at_once = min(
        caps.elements // per_row, caps.runs // len(grid.runs), max(caps.positions, 2) - len(grid.runs)
    )
    row, done, count = 0, 0, len(grid.rows)
    touched, clusters = _touched_by_rows(grid, caps) if at_once > 0 else (None, 1)
    while row < count:
        stop = min(row + at_once, count)
        if touched is not None and caps.blocks is not None and stop > row:
            stop = min(touched.stop(row * clusters, caps.blocks) // clusters, stop)
        if stop > row:
            yield RequestRuns(RunProduct(grid.rows[row:stop], grid.runs, grid.run_length), done)
        else:
            stop = row + 1
            yield from _split_row(grid, row, done, caps)
        done += (stop - row) * per_row
        row = stop


def _touched_by_rows(grid: RunProduct, caps: _Caps) -> tuple[_Touched | None, int]:
    """What each row touches, and as how many intervals: runs less than a block apart leave no block out."""
    if caps.blocks is None:
        return None, 1
    runs = np.sort(grid.runs)
    ends = runs + grid.run_length
    apart = np.flatnonzero(runs[1:] - ends[:-1] >= caps.align)
    first = runs[np.concatenate(([0], apart + 1))]
    last = ends[np.concatenate((apart, [-1]))]
    starts = np.add.outer(grid.rows, first).reshape(-1)
    return _Touched(starts, np.tile(last - first, len(grid.rows)), caps.align), len(first)


def _split_row(grid: RunProduct, row: int, done: int, caps: _Caps) -> Iterator[RequestRuns]:
    """Parts of one row that is too much for one part."""
    at_once = min(caps.elements // grid.run_length, caps.runs, max(caps.positions, 2) - 1)
    starts = grid.rows[row] + grid.runs
    touched = None if caps.blocks is None else _Touched(starts, grid.run_length, caps.align)
    run, count = 0, len(starts)
    while run < count:
        stop = min(run + at_once, count)
        if touched is not None and caps.blocks is not None and stop > run:
            stop = min(touched.stop(run, caps.blocks), stop)
        if stop > run:
            yield RequestRuns(
                RunProduct(grid.rows[row : row + 1], grid.runs[run:stop], grid.run_length), done
            )
        else:
            stop = run + 1
            yield from _split_run(int(starts[run]), grid.run_length, done, caps)
        done += (stop - run) * grid.run_length
        run = stop


def _split_run(start: int, length: int, done: int, caps: _Caps) -> Iterator[RequestRuns]:
    """Parts of one run that is too long for one part."""
    position, end = start, start + length
    while position < end:
        stop = _end_of_run(position, end, caps)
        yield RequestRuns(RunProduct(np.array([position]), np.zeros(1, np.int64), stop - position), done)
        done += stop - position
        position = stop


def _end_of_run(position: int, end: int, caps: _Caps) -> int:
    """Where a part ends that begins at `position` of a run that ends at `end`."""
    stop = min(position + caps.elements, end)
    if caps.blocks is not None:
        stop = min((position // caps.align + caps.blocks) * caps.align, stop)
    aligned = stop // caps.align * caps.align
    return aligned if position < aligned and stop < end else stop


def _split_list(spans: RunList, caps: _Caps) -> Iterator[RequestRuns]:
    ends = np.cumsum(spans.lengths)
    touched = None if caps.blocks is None else _Touched(spans.starts, spans.lengths, caps.align)
    at_once = min(caps.runs, caps.positions)
    done, size = 0, int(ends[-1])
    while done < size:
        # The part begins in span `begin`, perhaps after its start, and takes whole spans up to `stop`.
        begin = int(np.searchsorted(ends, done, side="right"))
        end = int(spans.starts[begin] + spans.lengths[begin])
        position = end - (int(ends[begin]) - done)
        stop = min(int(np.searchsorted(ends, done + caps.elements, side="right")), begin + at_once)
        if touched is not None and caps.blocks is not None:
            stop = min(touched.stop(begin, caps.blocks, position // caps.align), stop)
        until = int(ends[stop - 1]) if stop > begin else done + _end_of_run(position, end, caps) - position
        yield RequestRuns(_cut_list(spans, ends, done, until), done)
        done = until


def _cut_list(spans: RunList, ends: Positions, begin: int, stop: int) -> RunList:
    """What fills the elements ``[begin, stop)`` of the buffer; `ends` is where in the buffer each span ends."""
    first = int(np.searchsorted(ends, begin, side="right"))
    last = int(np.searchsorted(ends, stop, side="left"))
    starts, lengths = spans.starts[first : last + 1].copy(), spans.lengths[first : last + 1].copy()
    lengths[-1] -= int(ends[last]) - stop
    skipped = begin - (int(ends[first]) - int(spans.lengths[first]))
    starts[0] += skipped
    lengths[0] -= skipped
    return RunList(starts, lengths)
