"""Numpy's selections in one normal form, the indexer. No I/O.

The question answered here: which elements does ``array[selection]`` take, and how does the result lay them out?

1. Each item of the selection becomes an integer, a slice, ``...``, ``None`` or an array, as numpy sees it.
2. The items meet the axes of the array. An item that numpy refuses is refused here, with the same kind of error.
3. The answer is an `Indexer`. Its elements are at all sums of a *base* and one offset of each *dim*. A slice is a dim
   of equal steps. All arrays of one selection are broadcast together and become one dim, the points: sorted, and each
   of them once. A mask counts as the positions of its true elements.
4. Each axis of the result walks one dim. The points may be gathered, which brings them into the order of the
   selection.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass, field
from types import EllipsisType
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

__all__ = ["Dim", "Indexer", "Points", "Positions", "ResultAxis", "Selection", "parse"]

#: Whatever numpy accepts between brackets: one item, or a tuple of items.
Selection = Any

#: Positions in a flat array, counted in elements.
Positions: TypeAlias = npt.NDArray[np.int64]

#: One item of a selection.
Item: TypeAlias = int | slice | npt.NDArray[Any] | EllipsisType | None

#: Most axes that an array of numpy can have.
MAX_NDIM = 64


@dataclass(frozen=True, slots=True)
class Dim:
    """Two or more offsets in elements, ascending from 0.

    Parameters
    ----------
    count
        Number of offsets.
    step
        Distance from each offset to the next, or the smallest one if the distances differ.
    offsets
        The offsets themselves, if the distances differ.
    """

    count: int
    step: int
    offsets: Positions | None = None

    @property
    def reach(self) -> int:
        """The last offset."""
        return (self.count - 1) * self.step if self.offsets is None else int(self.offsets[-1])

    def positions(self, first: int = 0) -> Positions:
        """Return the offsets, added to a first position."""
        if self.offsets is not None:
            return self.offsets + first
        return np.arange(first, first + self.count * self.step, self.step, dtype=np.int64)


class ResultAxis(NamedTuple):
    """An axis of the result: `extent` indices, each of which is the next offset of one dim.

    `dim` is the number of that dim, or None if there is only one offset. A reversed axis begins at the end of the dim.
    """

    extent: int
    dim: int | None = None
    is_reversed: bool = False


class Points(NamedTuple):
    """Points of a selection, and their axes in the result.

    Parameters
    ----------
    axis
        Axis of the result that walks the points, and that axes of `shape` are to replace.
    shape
        Shape of all index arrays, broadcast together.
    gather
        Number along `axis` of each point of the result, in an array of `shape`. None if the order stays.
    """

    axis: int
    shape: tuple[int, ...]
    gather: Positions | None


@dataclass(frozen=True, slots=True)
class Indexer:
    """A selection in its normal form.

    Parameters
    ----------
    base
        Position of the first element selected.
    dims
        Dims in the order of the array's axes, outermost first. The points stand at the place of their first axis.
    axes
        Axes of the result, with one axis for the points.
    points
        Points, if the selection has arrays.
    is_scalar
        True if numpy gives a scalar rather than an array.
    """

    base: int
    dims: tuple[Dim, ...]
    axes: tuple[ResultAxis, ...]
    points: Points | None
    is_scalar: bool

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the result."""
        shape = tuple(axis.extent for axis in self.axes)
        if self.points is None:
            return shape
        return (*shape[: self.points.axis], *self.points.shape, *shape[self.points.axis + 1 :])


def parse(shape: tuple[int, ...], selection: Selection) -> Indexer:
    """Bring ``array[selection]`` into its normal form.

    Raises
    ------
    IndexError, OverflowError, TypeError, ValueError
        If numpy raises the same for the selection.

    Examples
    --------
    >>> indexer = parse((60000, 28, 28), np.s_[5, :, ::-4])
    >>> indexer.base, indexer.dims
    (3923, (Dim(count=28, step=28, offsets=None), Dim(count=7, step=4, offsets=None)))
    >>> indexer.axes[1]
    ResultAxis(extent=7, dim=1, is_reversed=True)
    """
    written = (
        [_to_item(item) for item in selection] if isinstance(selection, tuple) else [_to_item(selection)]
    )
    items = _expand_ellipsis(written, len(shape))
    walk = _Walk(shape, _strides(shape))
    # Numpy checks the masks before it checks any index, so the same error comes first here.
    if any(isinstance(item, np.ndarray) for item in items):
        _check_masks(items, shape)
    for item in items:
        walk.take(item)
    if walk.arrays:
        walk.take_points(_points_axis(written, items))
    if len(walk.axes) + (len(walk.points.shape) - 1 if walk.points else 0) > MAX_NDIM:
        raise IndexError(
            f"number of dimensions must be within [0, {MAX_NDIM}], indexing result would have {len(walk.axes)}"
        )
    is_scalar = len(written) == len(shape) and all(isinstance(item, int) for item in written)
    return walk.indexer(is_scalar)


@dataclass(frozen=True, slots=True)
class _Array:
    """An index array of the selection, along one axis. A mask may be along several axes, which count as one.

    A boolean without axes has an axis of its own, of extent 1 and before all others.
    """

    index: Positions
    axis: int
    extent: int
    stride: int

    @classmethod
    def from_item(
        cls, item: npt.NDArray[Any], axis: int, shape: tuple[int, ...], strides: list[int]
    ) -> _Array:
        if item.dtype.kind != "b":
            # Numpy casts like this: an unsigned integer that is too large for a signed one wraps around.
            return cls(item.astype(np.int64, copy=False), axis, shape[axis], strides[axis])
        if item.ndim == 0:
            return cls(np.zeros(int(item), np.int64), -1, 1, 0)
        # The axes of a mask follow each other, so that positions in it are multiples of its last stride.
        return cls(np.flatnonzero(item), axis, item.size, strides[axis + item.ndim - 1])

    def positions(self) -> Positions:
        """Return the positions of the indices, in elements of the stored array.

        Raises
        ------
        IndexError
            If an index is out of bounds.
        """
        lowest, highest = int(self.index.min()), int(self.index.max())
        index = self.index
        if lowest < -self.extent or highest >= self.extent:
            _check_bounds(
                int(index[(index < -self.extent) | (index >= self.extent)][0]), self.axis, self.extent
            )
        if lowest < 0:
            index = np.where(index < 0, index + self.extent, index)
        return index * self.stride


@dataclass(slots=True)
class _Walk:
    """State of the parser while the items meet the axes of the array, from the first to the last."""

    shape: tuple[int, ...]
    strides: list[int]
    base: int = 0
    axis: int = 0
    #: Dim of each axis that has one. The dim of the points is at their first axis.
    dims: dict[int, Dim] = field(default_factory=dict)
    #: Extent of each axis of the result, its axis of the array, and whether it is reversed.
    axes: list[tuple[int, int, bool]] = field(default_factory=list)
    arrays: list[_Array] = field(default_factory=list)
    points: Points | None = None

    def take(self, item: Item) -> None:
        if item is None:
            self.axes.append((1, -1, False))
            return
        if isinstance(item, int):
            self.base += _check_bounds(item, self.axis, self.shape[self.axis]) * self.strides[self.axis]
        elif isinstance(item, slice):
            self._take_slice(item)
        elif isinstance(item, np.ndarray):
            self.arrays.append(_Array.from_item(item, self.axis, self.shape, self.strides))
        self.axis += _count_axes(item)

    def _take_slice(self, item: slice) -> None:
        start, stop, step = item.indices(self.shape[self.axis])
        count = len(range(start, stop, step))
        stride = self.strides[self.axis]
        if count:
            # Dims ascend, so a negative step begins at its last element and reverses the axis.
            self.base += (start if step > 0 else start + (count - 1) * step) * stride
        # A single index is no dim: the base stands for it.
        if count > 1:
            self.dims[self.axis] = Dim(count, abs(step) * stride)
        self.axes.append((count, self.axis, step < 0))

    def take_points(self, place: int) -> None:
        """Make one dim of all index arrays, and one axis of the result at `place`."""
        positions = _broadcast(self.arrays)
        axis = min((array.axis for array in self.arrays if array.axis >= 0), default=-1)
        gather: Positions | None = None
        extent = 0
        if positions.size:
            first, dim, gather = _sort_points(positions)
            self.base += first
            extent = 1
            if dim is not None:
                self.dims[axis] = dim
                extent = dim.count
        self.points = Points(place, positions.shape, gather)
        self.axes.insert(place, (extent, axis, False))

    def indexer(self, is_scalar: bool) -> Indexer:
        numbers = {axis: number for number, axis in enumerate(sorted(self.dims))}
        axes = tuple(ResultAxis(extent, numbers.get(axis), turned) for extent, axis, turned in self.axes)
        return Indexer(self.base, tuple(self.dims[axis] for axis in numbers), axes, self.points, is_scalar)


def _to_item(item: Any) -> Item:
    """Convert an item of the selection to one of few types, as numpy sees it."""
    if item is None or item is Ellipsis or isinstance(item, slice):
        return item
    if not isinstance(item, (bool, np.bool_, np.ndarray)):
        number = _to_integer(item)
        if number is not None:
            return number
    array = np.asarray(item)
    if array.size == 0 and not isinstance(item, np.ndarray):
        # Numpy makes floats of an empty list, and yet accepts the list as indices.
        return array.astype(np.int64)
    if array.dtype.kind == "b":
        return array
    if array.dtype.kind not in "iu":
        raise IndexError(
            "arrays used as indices must be of integer (or boolean) type"
            if isinstance(item, np.ndarray)
            else "only integers, slices (`:`), ellipsis (`...`), numpy.newaxis (`None`) and integer or boolean "
            "arrays are valid indices"
        )
    # An array without axes counts as an integer, as in numpy.
    if array.ndim:
        return array
    if not _fits_index(int(array)):
        raise OverflowError("Python int too large to convert to C long")
    return int(array)


def _to_integer(item: Any) -> int | None:
    try:
        number = operator.index(item)
    except TypeError:
        return None
    return number if _fits_index(number) else None


def _fits_index(number: int) -> bool:
    """Tell whether numpy can take a number for an index at all."""
    return -(2**63) <= number < 2**63


def _count_axes(item: Item) -> int:
    """Count the axes of the array that an item stands for."""
    if isinstance(item, np.ndarray) and item.dtype.kind == "b":
        return item.ndim
    return 0 if item is None else 1


def _expand_ellipsis(items: list[Item], ndim: int) -> list[Item]:
    """Replace an ellipsis, written or implied, by a whole slice for each axis that no item stands for."""
    at = [number for number, item in enumerate(items) if item is Ellipsis]
    if len(at) > 1:
        raise IndexError("an index can only have a single ellipsis ('...')")
    used = sum(map(_count_axes, items)) - len(at)
    if used > ndim:
        raise IndexError(f"too many indices for array: array is {ndim}-dimensional, but {used} were indexed")
    whole: list[Item] = [slice(None)] * (ndim - used)
    return [*items[: at[0]], *whole, *items[at[0] + 1 :]] if at else items + whole


def _check_masks(items: list[Item], shape: tuple[int, ...]) -> None:
    axis = 0
    for item in items:
        if isinstance(item, np.ndarray) and item.dtype.kind == "b":
            for number, extent in enumerate(item.shape, start=axis):
                # Numpy accepts a mask without elements for an axis of any extent.
                if extent not in (0, shape[number]):
                    raise IndexError(
                        f"boolean index did not match indexed array along axis {number}; size of axis is "
                        f"{shape[number]} but size of corresponding boolean axis is {extent}"
                    )
        axis += _count_axes(item)


def _points_axis(written: list[Item], items: list[Item]) -> int:
    """Find the axis of the result at which the axes of the points begin.

    It is the place of the first array or integer, if no other item (not even an ellipsis for no axis) is between the
    arrays and integers, and the first axis otherwise.
    """
    at = [number for number, item in enumerate(written) if isinstance(item, (int, np.ndarray))]
    if at[-1] - at[0] + 1 != len(at):
        return 0
    return next(number for number, item in enumerate(items) if isinstance(item, (int, np.ndarray)))


def _broadcast(arrays: list[_Array]) -> Positions:
    """Add up the positions of all index arrays: the positions of the points, in elements of the stored array."""
    shapes = [array.index.shape for array in arrays]
    try:
        shape = shapes[0] if len(shapes) == 1 else np.broadcast_shapes(*shapes)
    except ValueError:
        raise IndexError(
            "shape mismatch: indexing arrays could not be broadcast together with shapes "
            + "".join(f"{str(shape).replace(' ', '')} " for shape in shapes)
        ) from None
    if 0 in shape:
        # Without points, numpy does not check the indices, so one out of bounds is no error.
        return np.empty(shape, np.int64)
    positions = arrays[0].positions()
    for array in arrays[1:]:
        positions = positions + array.positions()
    return positions


def _sort_points(positions: Positions) -> tuple[int, Dim | None, Positions | None]:
    """Sort positions into a dim.

    Returns
    -------
    tuple
        First position; the dim, or None of a single position; and the number in the dim of each position given, or
        None if they are sorted already.
    """
    offsets = positions.reshape(-1)
    if offsets.size == 1:
        return int(offsets[0]), None, None
    gather = None
    gaps = offsets[1:] - offsets[:-1]
    smallest = int(gaps.min())
    if smallest <= 0:
        # Like np.unique, but in half the time for a batch, since the distances are needed too.
        order = offsets.argsort()
        offsets = offsets[order]
        gaps = offsets[1:] - offsets[:-1]
        is_new = gaps > 0
        numbers = np.zeros(len(order), np.int64)
        numbers[order[1:]] = is_new.cumsum()
        gather = numbers.reshape(positions.shape)
        gaps = gaps[is_new]
        if not gaps.size:
            return int(offsets[0]), None, gather
        offsets = offsets[np.concatenate(([True], is_new))]
        smallest = int(gaps.min())
    first = int(offsets[0])
    is_even = int(gaps.max()) == smallest
    return first, Dim(offsets.size, smallest, None if is_even else offsets - first), gather


def _check_bounds(index: int, axis: int, extent: int) -> int:
    if not -extent <= index < extent:
        raise IndexError(f"index {index} is out of bounds for axis {axis} with size {extent}")
    return index % extent


def _strides(shape: tuple[int, ...]) -> list[int]:
    """Return the number of elements from one index to the next, along each axis."""
    strides = [1] * len(shape)
    for k in range(len(shape) - 1, 0, -1):
        strides[k - 1] = strides[k] * shape[k]
    return strides
