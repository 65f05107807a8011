"""What to read for an index expression, and how to make its result of what comes. No I/O."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tensorage.indexing.buffer import BufferPlan, BufferView, empty_view, view_of_result
from tensorage.indexing.covering import Covering, choose_covering, runs_of
from tensorage.indexing.runs import RunList, RunProduct, Runs
from tensorage.indexing.selection import Indexer, Positions, Selection, parse

__all__ = ["RunPlan", "plan_runs"]


@dataclass(frozen=True, slots=True)
class RunPlan(BufferPlan):
    """What to ask for, and how to make the result of it.

    Parameters
    ----------
    source
        The elements that travel.
    """

    source: Runs

    @property
    def size(self) -> int:
        """Elements that travel."""
        return self.source.size


def plan_runs(
    shape: tuple[int, ...], selection: Selection, itemsize: int, block_size: int, *, exact: bool = False
) -> RunPlan:
    """Decide what to read for ``array[selection]``.

    Parameters
    ----------
    shape
        Of the stored array.
    itemsize
        Bytes per element.
    block_size
        Elements per stored block.
    exact
        Let nothing travel beyond the elements selected, as an assignment needs it.

    Raises
    ------
    IndexError, OverflowError, TypeError, ValueError
        As numpy does for the expression.

    Examples
    --------
    >>> reading = plan_runs((60000, 28, 28), np.s_[[7, 3, 7]], itemsize=4, block_size=784 * 334)
    >>> reading.source
    RunProduct(rows=array([2352, 5488]), runs=array([0]), run_length=784)
    >>> reading.shape
    (3, 28, 28)
    """
    indexer = parse(shape, selection)
    if 0 in indexer.shape:
        nothing = RunProduct(np.empty(0, np.int64), np.zeros(1, np.int64), 1)
        return RunPlan(indexer.shape, empty_view(indexer), False, nothing)
    layout = choose_covering(indexer, itemsize, block_size, exact=exact)
    return RunPlan(indexer.shape, _view(indexer, layout), indexer.is_scalar, runs_of(indexer, layout))


def _view(indexer: Indexer, layout: Covering) -> BufferView:
    """Where the result is in the buffer of a layout."""
    dims, points = indexer.dims, indexer.points
    strides = [dim.step for dim in dims]
    extents = [dim.count for dim in dims]
    stride = layout.run_length
    for number in range(layout.level - 1, -1, -1):
        strides[number] = stride
        stride *= dims[number].count
    gather = points.gather if points is not None else None
    for number, dim in enumerate(dims):
        # Points that are not walked are gathered from all that lies between the first and the last.
        if dim.offsets is not None and points is not None and (layout.spans or number >= layout.level):
            within = dim.offsets
            if layout.spans is not None:
                within = _in_box(dim.offsets + indexer.base, layout.spans)
            gather = within[gather] if gather is not None else within.reshape(points.shape)
            strides[number], extents[number] = 1, int(within[-1]) + 1
    return view_of_result(indexer, extents, strides, gather)


def _in_box(positions: Positions, spans: RunList) -> Positions:
    """Where in the buffer of some spans elements of the stored array are."""
    number = np.searchsorted(spans.starts, positions, side="right") - 1
    in_buffer = np.cumsum(spans.lengths) - spans.lengths
    return positions - spans.starts[number] + in_buffer[number]
