"""What to read for an index expression, and how to make its result of what comes. No I/O."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from tensorage.indexing.layout import Layout, choose, source_of
from tensorage.indexing.runs import Grid, Source, Spans
from tensorage.indexing.selection import Indexer, Positions, Selection, parse

__all__ = ["BoxView", "Reading", "plan"]


class BoxView(NamedTuple):
    """A box as an array of strides, counted in elements."""

    first: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    #: Indexes the axis `gather_axis`.
    gather: Positions | None = None
    gather_axis: int = 0

    def of(self, box: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The view, before the gather. Numpy checks that it stays within the box."""
        return np.ndarray(
            self.shape,
            box.dtype,
            # As bytes, because numpy lends no buffer of its date and time types.
            buffer=box.view(np.uint8),
            offset=self.first * box.itemsize,
            strides=[stride * box.itemsize for stride in self.strides],
        )

    @property
    def gathering(self) -> tuple[Any, ...]:
        """Makes the gather of the view."""
        return (*[slice(None)] * self.gather_axis, self.gather)

    def is_contiguous(self, size: int) -> bool:
        """Whether it is all of a box of `size` elements, in order."""
        expected = 1
        for extent, stride in zip(reversed(self.shape), reversed(self.strides), strict=True):
            if extent > 1 and stride != expected:
                return False
            expected *= extent
        return self.gather is None and self.first == 0 and expected == size


@dataclass(frozen=True, slots=True)
class Reading:
    """What to ask for, and how to make the result of it.

    Parameters
    ----------
    source
        The elements that travel.
    shape
        Of the result.
    view
        The result in the box.
    is_scalar
        True where numpy gives a scalar rather than an array.
    """

    source: Source
    shape: tuple[int, ...]
    view: BoxView
    is_scalar: bool

    @property
    def size(self) -> int:
        """Elements that travel."""
        return self.source.size

    @property
    def is_whole_box(self) -> bool:
        """True if the box is the result, element by element in C order."""
        return not self.size or self.view.is_contiguous(self.size)

    def pick(self, box: npt.NDArray[Any]) -> Any:
        """Take the result out of a box.

        Parameters
        ----------
        box
            The elements that travelled: of one axis, contiguous, of any dtype.

        Returns
        -------
        numpy.ndarray or numpy.generic
            What numpy gives for ``array[selection]``; an array may be a view of the box.
        """
        view = self.view.of(box)
        if self.view.gather is not None:
            return view[self.view.gathering]
        return view[()] if self.is_scalar else view.reshape(self.shape)

    def place(self, value: npt.NDArray[Any], box: npt.NDArray[Any]) -> None:
        """Put into a box what ``array[selection] = value`` would put into the array.

        Where an element is selected more than once, the last of its values (in C order) stays.

        Parameters
        ----------
        value
            Broadcast as numpy broadcasts it in an assignment.
        box
            To fill: of one axis, contiguous, of any dtype. Of a plan made with ``exact=True``, every element of
            it is written.

        Raises
        ------
        ValueError
            If the value does not broadcast to the selection's shape. Nothing is written then.
        """
        value = self._broadcast(np.asarray(value))
        view = self.view.of(box)
        if self.view.gather is not None:
            view[self.view.gathering] = value
        else:
            # Splits an axis at most, so that it is a view of the box.
            view.reshape(self.shape)[...] = value

    def _broadcast(self, value: npt.NDArray[Any]) -> npt.NDArray[Any]:
        shape = value.shape
        while len(shape) > len(self.shape) and shape[0] == 1 and not self.is_scalar:
            shape = shape[1:]
        try:
            return np.broadcast_to(value.reshape(shape), self.shape)
        except ValueError:
            raise ValueError(
                f"could not broadcast input array from shape {value.shape} into shape {self.shape}"
            ) from None


def plan(
    shape: tuple[int, ...], selection: Selection, itemsize: int, chunk: int, *, exact: bool = False
) -> Reading:
    """Decide what to read for ``array[selection]``.

    Parameters
    ----------
    shape
        Of the stored array.
    itemsize
        Bytes per element.
    chunk
        Elements per stored block.
    exact
        Let nothing travel beyond the elements selected, as an assignment needs it.

    Raises
    ------
    IndexError, OverflowError, TypeError, ValueError
        As numpy does for the expression.

    Examples
    --------
    >>> reading = plan((60000, 28, 28), np.s_[[7, 3, 7]], itemsize=4, chunk=784 * 334)
    >>> reading.source
    Grid(rows=array([2352, 5488]), runs=array([0]), run_length=784)
    >>> reading.shape
    (3, 28, 28)
    """
    indexer = parse(shape, selection)
    if 0 in indexer.shape:
        nothing = Grid(np.empty(0, np.int64), np.zeros(1, np.int64), 1)
        return Reading(nothing, indexer.shape, BoxView(0, indexer.shape, (0,) * len(indexer.shape)), False)
    layout = choose(indexer, itemsize, chunk, exact=exact)
    return Reading(source_of(indexer, layout), indexer.shape, _view(indexer, layout), indexer.is_scalar)


def _view(indexer: Indexer, layout: Layout) -> BoxView:
    """Where the result is in the box of a layout."""
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
    first = 0
    axes = []
    for axis in indexer.axes:
        if axis.dim is None:
            axes.append((axis.extent, 0))
            continue
        extent, stride = extents[axis.dim], strides[axis.dim]
        if axis.is_reversed:
            first += (extent - 1) * stride
        axes.append((extent, -stride if axis.is_reversed else stride))
    return BoxView(
        first,
        tuple(extent for extent, _ in axes),
        tuple(stride for _, stride in axes),
        gather,
        points.axis if points is not None else 0,
    )


def _in_box(positions: Positions, spans: Spans) -> Positions:
    """Where in the box of some spans elements of the stored array are."""
    number = np.searchsorted(spans.starts, positions, side="right") - 1
    in_box = np.cumsum(spans.lengths) - spans.lengths
    return positions - spans.starts[number] + in_box[number]
