"""Choice of the dims of a selection that are walked run by run, and of those that each run covers. No I/O.

A run that covers some dims goes from the first to the last element that they select, so that the elements between
travel too. Over-read costs bytes, but a run costs as well: about as much as `RUN_COST_BYTES`, and more if there are
few runs in a block. `choose_covering` weighs both costs, within the bound on over-read that `tensorage.indexing`
states.

Points may also be *joined*: neighbours with nothing or little between them become one run.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from tensorage.indexing.runs import RunList, RunProduct, Runs, split_by_request
from tensorage.indexing.selection import Dim, Indexer, Positions

__all__ = ["MAX_OVER_READ_BYTES", "Covering", "choose_covering", "most_bytes_to_read", "runs_of"]

#: The bound on over-read: at most so many bytes travel for each byte that is selected ...
MAX_OVER_READ_RATIO = 2

#: ... and so many more for each block touched.
MAX_OVER_READ_BYTES = 64 * 1024

#: Cost of a run to the server beyond its bytes, in bytes, if there are many runs in one block.
RUN_COST_BYTES = 128

#: Additional cost of a run that is alone in its block ...
LONELY_RUN_COST_BYTES = 4096

#: ... and most additional cost of all runs in one block: that of reading the whole block.
BLOCK_COST_BYTES = 200 * 1024

#: Cost of naming the place of a row, a run or an end, in bytes.
POSITION_COST_BYTES = 10

#: Merge points only if at most so many runs remain for each run there was.
MAX_JOINED_RATIO = 0.75


class Covering(NamedTuple):
    """One way to read: dims before `level` are walked, and each run covers the dims from `level` on."""

    level: int
    #: Rows of the run product. Each row has as many runs.
    rows: int
    run_length: int
    runs: int
    #: Count of the numbers that say where the runs are.
    positions: int
    size: int
    #: Runs to read in place of the run product, if points were joined.
    joined: RunList | None = None

    def cost(self, itemsize: int, blocks: int) -> int:
        """Estimate the cost of reading this way, in bytes."""
        return (
            self.size * itemsize
            + self.runs * RUN_COST_BYTES
            + min(self.runs * LONELY_RUN_COST_BYTES, blocks * BLOCK_COST_BYTES)
            + self.positions * POSITION_COST_BYTES
        )


def choose_covering(indexer: Indexer, itemsize: int, block_size: int, *, exact: bool) -> Covering:
    """Choose the cheapest covering within the bound on over-read, or one beyond the bound that saves a request.

    Parameters
    ----------
    indexer
        Indexer of a selection that is not empty.
    exact
        True if no element may travel that is not selected.
    """
    coverings = _coverings(indexer.dims)
    contiguous = coverings[-1]
    if contiguous.level == 0:
        return contiguous
    blocks = count_touched_blocks(indexer.base, indexer.dims, block_size)
    allowed = contiguous.size if exact else most_bytes_to_read(contiguous.size * itemsize, blocks) // itemsize
    coverings = [
        _join_points(indexer, covering, allowed, 0 if exact else _cheap_gap(covering, blocks) // itemsize)
        if covering.level == 1 and indexer.dims[0].offsets is not None
        else covering
        for covering in (coverings[-1:] if exact else coverings)
    ]

    def cost(covering: Covering) -> int:
        return covering.cost(itemsize, blocks)

    within = [covering for covering in coverings if covering.size <= allowed]
    best = min(within, key=cost)
    beyond = [covering for covering in coverings if covering.size > allowed and cost(covering) < cost(best)]
    for covering in sorted(beyond, key=cost):
        runs = runs_of(indexer, covering)
        if all(_is_fewer_requests(runs, runs_of(indexer, other), itemsize, block_size) for other in within):
            return covering
    return best


def most_bytes_to_read(selected_bytes: int, blocks: int) -> int:
    """Return the most bytes that may travel for the bytes selected in some blocks: the bound on over-read.

    >>> most_bytes_to_read(1000, 1)
    67536
    """
    return MAX_OVER_READ_RATIO * selected_bytes + MAX_OVER_READ_BYTES * blocks


def runs_of(indexer: Indexer, covering: Covering) -> Runs:
    """Return the runs that travel with a covering."""
    if covering.joined is not None:
        return covering.joined
    walked = indexer.dims[: covering.level]
    cut, rows = 0, 1
    while rows < covering.rows:
        rows *= walked[cut].count
        cut += 1
    return RunProduct(_sums(walked[:cut], indexer.base), _sums(walked[cut:], 0), covering.run_length)


def _coverings(dims: tuple[Dim, ...]) -> list[Covering]:
    """List the coverings: first a single run, last the one without over-read."""
    reach, count = 0, 1
    reaches, counts = [0], [1]
    for dim in reversed(dims):
        reach += dim.reach
        count *= dim.count
        reaches.append(reach)
        counts.append(count)
    coverings: list[Covering] = []
    for level, (reach, covered) in enumerate(zip(reversed(reaches), reversed(counts), strict=True)):
        runs = count // covered
        # A request names each row and each run, so the fewest of both together are best.
        rows = min((count // counts[-1 - cut] for cut in range(level, -1, -1)), key=lambda n: n + runs // n)
        coverings.append(Covering(level, rows, reach + 1, runs, rows + runs // rows, runs * (reach + 1)))
        if reach + 1 == covered:
            break
    return coverings


def count_touched_blocks(base: int, dims: tuple[Dim, ...], block_size: int) -> int:
    """Count the blocks that the selected elements touch: never too many, and hardly too few."""
    blocks, reach = 1, 0
    for number in range(len(dims) - 1, -1, -1):
        dim = dims[number]
        # Only the outermost dim is known to begin at `base`. The others begin anywhere in a block.
        offset = base % block_size if number == 0 else 0
        if dim.offsets is not None:
            at = (dim.offsets + offset) // block_size
            touched = int(np.count_nonzero(at[1:] != at[:-1])) + 1
            # The same offsets from another start may fall into half as many blocks.
            touched = touched if number == 0 else (touched + 1) // 2
        else:
            touched = dim.count if dim.step >= block_size else (offset + dim.reach) // block_size + 1
        # Offsets that are further apart than the inner dims reach share at most one block with their neighbour.
        apart = dim.count * (blocks - 1) + 1 if dim.step > reach else blocks
        blocks = max(touched, apart)
        reach += dim.reach
    return blocks


def _cheap_gap(covering: Covering, blocks: int) -> int:
    """Return the widest gap between two runs, in bytes, that costs no more than a run."""
    is_lonely = covering.runs * LONELY_RUN_COST_BYTES < blocks * BLOCK_COST_BYTES
    return RUN_COST_BYTES + (LONELY_RUN_COST_BYTES if is_lonely else 0)


def _join_points(indexer: Indexer, covering: Covering, allowed: int, max_gap: int) -> Covering:
    """Merge points with at most `max_gap` elements between them into one run, if that makes clearly fewer runs.

    At most `allowed` elements may travel, so the smallest gaps are closed first.
    """
    points, length = indexer.dims[0], covering.run_length
    if points.step - length > max_gap:
        return covering
    offsets = points.positions()
    gaps = offsets[1:] - offsets[:-1] - length
    # Runs overlap if points stand for inner axes too and the axes between are covered.
    room = max(allowed - covering.size - int(np.minimum(gaps, 0).sum()), 0)
    is_joined = gaps <= max_gap
    if int(gaps[is_joined & (gaps > 0)].sum()) > room:
        order = np.argsort(gaps, kind="stable")
        is_joined[order[np.cumsum(np.maximum(gaps[order], 0)) > room]] = False
    breaks = np.flatnonzero(~is_joined)
    if len(breaks) + 1 > covering.runs * MAX_JOINED_RATIO:
        return covering
    firsts = offsets[np.concatenate(([0], breaks + 1))]
    lengths = offsets[np.concatenate((breaks, [-1]))] + length - firsts
    joined = RunList(firsts + indexer.base, lengths)
    return covering._replace(runs=len(firsts), positions=2 * len(firsts), size=joined.size, joined=joined)


def _is_fewer_requests(runs: Runs, other: Runs, itemsize: int, block_size: int) -> bool:
    # Both are lazy: counting stops as soon as the answer is known.
    others = split_by_request(other, itemsize, block_size)
    return all(next(others, None) is not None for _ in split_by_request(runs, itemsize, block_size)) and any(
        others
    )


def _sums(dims: tuple[Dim, ...], first: int) -> Positions:
    """Return all sums of `first` and one offset of each dim. The offsets of the last dim change fastest."""
    if not dims:
        return np.array([first])
    sums = dims[0].positions(first)
    for dim in dims[1:]:
        sums = np.add.outer(sums, dim.positions()).reshape(-1)
    return sums
