"""Plans for reading a selection of an array that is stored flat: runs to fetch, and their way to the result. No I/O."""

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
    """Runs to fetch for a selection, and the way from their elements to the result.

    Parameters
    ----------
    runs
        Runs that travel.
    """

    runs: Runs

    @property
    def size(self) -> int:
        """Elements that travel."""
        return self.runs.size


def plan_runs(
    shape: tuple[int, ...], selection: Selection, itemsize: int, block_size: int, *, exact: bool = False
) -> RunPlan:
    """Plan which runs to fetch for ``array[selection]``.

    Parameters
    ----------
    shape
        Shape of the stored array.
    itemsize
        Bytes per element.
    block_size
        Elements per stored block.
    exact
        Fetch no element that is not selected. An assignment needs this.

    Raises
    ------
    IndexError, OverflowError, TypeError, ValueError
        If numpy raises the same for the selection.

    Examples
    --------
    >>> plan = plan_runs((60000, 28, 28), np.s_[[7, 3, 7]], itemsize=4, block_size=784 * 334)
    >>> plan.runs
    RunProduct(rows=array([2352, 5488]), runs=array([0]), run_length=784)
    >>> plan.shape
    (3, 28, 28)
    """
    indexer = parse(shape, selection)
    if 0 in indexer.shape:
        # A covering needs a first element, which an empty selection has not.
        nothing = RunProduct(np.empty(0, np.int64), np.zeros(1, np.int64), 1)
        return RunPlan(indexer.shape, empty_view(indexer), False, nothing)
    covering = choose_covering(indexer, itemsize, block_size, exact=exact)
    return RunPlan(indexer.shape, _view(indexer, covering), indexer.is_scalar, runs_of(indexer, covering))


def _view(indexer: Indexer, covering: Covering) -> BufferView:
    """Describe the result as a view of the buffer of a covering."""
    dims, points = indexer.dims, indexer.points
    strides = [dim.step for dim in dims]
    lengths = [dim.count for dim in dims]
    # Walked dims stride over whole runs. Covered dims keep the strides of the array within each run.
    stride = covering.run_length
    for number in range(covering.level - 1, -1, -1):
        strides[number] = stride
        stride *= dims[number].count
    gather = points.gather if points is not None else None
    for number, dim in enumerate(dims):
        # Points that are not walked are gathered: the run that covers them holds all between the first and the last.
        if dim.offsets is not None and points is not None and (covering.joined or number >= covering.level):
            within = dim.offsets
            if covering.joined is not None:
                within = _place_in_buffer(dim.offsets + indexer.base, covering.joined)
            gather = within[gather] if gather is not None else within.reshape(points.shape)
            strides[number], lengths[number] = 1, int(within[-1]) + 1
    return view_of_result(indexer, lengths, strides, gather)


def _place_in_buffer(positions: Positions, joined: RunList) -> Positions:
    """Return the places of elements of the stored array in the buffer of joined runs."""
    number = np.searchsorted(joined.starts, positions, side="right") - 1
    in_buffer = np.cumsum(joined.lengths) - joined.lengths
    return positions - joined.starts[number] + in_buffer[number]
