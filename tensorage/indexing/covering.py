"""How a selection is read: which of its dims are walked run by run, and which each run covers. No I/O.

A run that covers some dims goes from the first to the last element that they select, and what lies between
travels too. That costs bytes, but a run costs as well: about as much as `RUN_COST_BYTES`, and more if there are
few in a block. `choose_covering` weighs them, within the bound on over-read that `tensorage.indexing` states.

Points may also be *joined*: neighbours with nothing or little between them become one run.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from tensorage.indexing.runs import RunList, RunProduct, Runs, split_by_request
from tensorage.indexing.selection import Dim, Indexer, Positions

__all__ = ["MAX_GAP_BYTES", "Covering", "choose_covering", "runs_of"]

#: For each block touched, so much may travel that is not selected.
MAX_GAP_BYTES = 64 * 1024

#: What a run costs the server beyond its bytes, in bytes, where many of them are in one block.
RUN_COST_BYTES = 128

#: What a run costs in addition where it is alone ...
LONELY_RUN_COST_BYTES = 4096

#: ... and the most that all runs in one block cost in addition: that of reading the block as a whole.
BLOCK_COST_BYTES = 200 * 1024

#: What naming the place of a row, of a run or of an end costs.
POSITION_COST_BYTES = 10

#: Points are joined if that leaves at most so many runs for each of theirs.
MAX_JOINED_RATIO = 0.75


class Covering(NamedTuple):
    """One way to read: dims before `level` are walked, those from it on are covered by each run."""

    level: int
    #: So many rows make a grid of it, each of as many runs.
    rows: int
    run_length: int
    runs: int
    #: Numbers that say where the runs are.
    positions: int
    size: int
    #: What is read instead of the grid.
    spans: RunList | None = None

    def cost(self, itemsize: int, blocks: int) -> int:
        """In bytes, roughly."""
        return (
            self.size * itemsize
            + self.runs * RUN_COST_BYTES
            + min(self.runs * LONELY_RUN_COST_BYTES, blocks * BLOCK_COST_BYTES)
            + self.positions * POSITION_COST_BYTES
        )


def choose_covering(indexer: Indexer, itemsize: int, block_size: int, *, exact: bool) -> Covering:
    """The cheapest way to read within the bound on over-read, or one beyond it that saves a request.

    Parameters
    ----------
    indexer
        Of a selection that is not empty.
    exact
        Whether nothing may travel beyond the elements selected.
    """
    layouts = _coverings(indexer.dims)
    contiguous = layouts[-1]
    if contiguous.level == 0:
        return contiguous
    blocks = _blocks_touched(indexer.base, indexer.dims, block_size)
    allowed = contiguous.size if exact else 2 * contiguous.size + MAX_GAP_BYTES * blocks // itemsize
    layouts = [
        _join_points(indexer, layout, allowed, 0 if exact else _cheap_gap(layout, blocks) // itemsize)
        if layout.level == 1 and indexer.dims[0].offsets is not None
        else layout
        for layout in (layouts[-1:] if exact else layouts)
    ]

    def cost(layout: Covering) -> int:
        return layout.cost(itemsize, blocks)

    within = [layout for layout in layouts if layout.size <= allowed]
    best = min(within, key=cost)
    beyond = [layout for layout in layouts if layout.size > allowed and cost(layout) < cost(best)]
    for layout in sorted(beyond, key=cost):
        source = runs_of(indexer, layout)
        if all(_is_fewer_requests(source, runs_of(indexer, other), itemsize, block_size) for other in within):
            return layout
    return best


def runs_of(indexer: Indexer, layout: Covering) -> Runs:
    """What travels."""
    if layout.spans is not None:
        return layout.spans
    walked = indexer.dims[: layout.level]
    cut, rows = 0, 1
    while rows < layout.rows:
        rows *= walked[cut].count
        cut += 1
    return RunProduct(_sums(walked[:cut], indexer.base), _sums(walked[cut:], 0), layout.run_length)


def _coverings(dims: tuple[Dim, ...]) -> list[Covering]:
    """The ways to walk and to cover, from a single run on to where nothing travels that is not selected."""
    span, count = 0, 1
    spans, counts = [0], [1]
    for dim in reversed(dims):
        span += dim.span
        count *= dim.count
        spans.append(span)
        counts.append(count)
    layouts: list[Covering] = []
    for level, (span, covered) in enumerate(zip(reversed(spans), reversed(counts), strict=True)):
        runs = count // covered
        # Rows and runs are named one by one: as few of both together as can be.
        rows = min((count // counts[-1 - cut] for cut in range(level, -1, -1)), key=lambda n: n + runs // n)
        layouts.append(Covering(level, rows, span + 1, runs, rows + runs // rows, runs * (span + 1)))
        if span + 1 == covered:
            break
    return layouts


def _blocks_touched(base: int, dims: tuple[Dim, ...], block_size: int) -> int:
    """How many blocks the selected elements touch: never more than they do, and hardly fewer."""
    blocks, span = 1, 0
    for number in range(len(dims) - 1, -1, -1):
        dim = dims[number]
        # The outermost dim begins where the selection does, the others somewhere in a block.
        offset = base % block_size if number == 0 else 0
        if dim.offsets is not None:
            at = (dim.offsets + offset) // block_size
            touched = int(np.count_nonzero(at[1:] != at[:-1])) + 1
            # Begun elsewhere, the same offsets may fall into half as many.
            touched = touched if number == 0 else (touched + 1) // 2
        else:
            touched = dim.count if dim.step >= block_size else (offset + dim.span) // block_size + 1
        # Where offsets are further apart than all that is inside of them, neighbours share one block at most.
        apart = dim.count * (blocks - 1) + 1 if dim.step > span else blocks
        blocks = max(touched, apart)
        span += dim.span
    return blocks


def _cheap_gap(layout: Covering, blocks: int) -> int:
    """Bytes between two runs that cost no more than a run."""
    is_lonely = layout.runs * LONELY_RUN_COST_BYTES < blocks * BLOCK_COST_BYTES
    return RUN_COST_BYTES + (LONELY_RUN_COST_BYTES if is_lonely else 0)


def _join_points(indexer: Indexer, layout: Covering, allowed: int, max_gap: int) -> Covering:
    """Points with at most `max_gap` elements between them as one run, if that makes clearly fewer runs.

    At most `allowed` elements may travel: the smallest gaps are closed first.
    """
    points, length = indexer.dims[0], layout.run_length
    if points.step - length > max_gap:
        return layout
    offsets = points.positions()
    gaps = offsets[1:] - offsets[:-1] - length
    # Runs overlap where points stand for inner axes too and the axes between are covered.
    room = max(allowed - layout.size - int(np.minimum(gaps, 0).sum()), 0)
    is_joined = gaps <= max_gap
    if int(gaps[is_joined & (gaps > 0)].sum()) > room:
        order = np.argsort(gaps, kind="stable")
        is_joined[order[np.cumsum(np.maximum(gaps[order], 0)) > room]] = False
    breaks = np.flatnonzero(~is_joined)
    if len(breaks) + 1 > layout.runs * MAX_JOINED_RATIO:
        return layout
    firsts = offsets[np.concatenate(([0], breaks + 1))]
    lengths = offsets[np.concatenate((breaks, [-1]))] + length - firsts
    spans = RunList(firsts + indexer.base, lengths)
    return layout._replace(runs=len(firsts), positions=2 * len(firsts), size=spans.size, spans=spans)


def _is_fewer_requests(source: Runs, other: Runs, itemsize: int, block_size: int) -> bool:
    others = split_by_request(other, itemsize, block_size)
    return all(
        next(others, None) is not None for _ in split_by_request(source, itemsize, block_size)
    ) and any(others)


def _sums(dims: tuple[Dim, ...], first: int) -> Positions:
    """All sums of one offset of each dim, the last one's changing fastest, from a first one on."""
    if not dims:
        return np.array([first])
    sums = dims[0].positions(first)
    for dim in dims[1:]:
        sums = np.add.outer(sums, dim.positions()).reshape(-1)
    return sums
