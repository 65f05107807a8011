"""Numpy's index expressions in one normal form. No I/O.

The question answered here: which elements does ``array[selection]`` take, and how does the result lay them out?

1. Each item of the expression becomes an integer, a slice, ``...``, ``None`` or an array, as numpy sees it.
2. The items meet the axes of the array; what numpy refuses is refused here, with the same kind of error.
3. The answer is an `Indexer`. Its elements are all the sums of a *base* and one offset of each *dim*. A slice
   is a dim of equal steps. All arrays of one expression (of a mask, the positions of its true elements) are
   broadcast together and become one dim, the points: sorted, and each of them once.
4. Each axis of the result walks one dim; the points may be gathered, which brings them into the order that was
   asked for.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass, field
from types import EllipsisType
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

__all__ = ["Dim", "Indexer", "Points", "Positions", "ResultAxis", "Selection", "parse"]

#: An index expression, or a tuple of them.
Selection = Any

#: Counted in elements.
Positions: TypeAlias = npt.NDArray[np.int64]

#: What an expression consists of, each item looked at alone.
Item: TypeAlias = int | slice | npt.NDArray[Any] | EllipsisType | None

#: Axes that an array of numpy's can have.
MAX_NDIM = 64


@dataclass(frozen=True, slots=True)
class Dim:
    """Two or more offsets in elements, ascending from 0.

    Parameters
    ----------
    count
        How many there are.
    step
        From each to the next; where the distances differ, the smallest of them.
    offsets
        The offsets themselves, where the distances differ.
    """

    count: int
    step: int
    offsets: Positions | None = None

    @property
    def span(self) -> int:
        """The last offset."""
        return (self.count - 1) * self.step if self.offsets is None else int(self.offsets[-1])

    def positions(self, first: int = 0) -> Positions:
        """All of them, from a first one on."""
        if self.offsets is not None:
            return self.offsets + first
        return np.arange(first, first + self.count * self.step, self.step, dtype=np.int64)


class ResultAxis(NamedTuple):
    """An axis of the result: `extent` indices, each one offset of a dim after the one before.

    `dim` is its number, or None where there is only one offset; a reversed axis begins at the dim's end.
    """

    extent: int
    dim: int | None = None
    is_reversed: bool = False


class Points(NamedTuple):
    """How the result takes the points.

    Parameters
    ----------
    axis
        The axis of the result that walks them, and that is to become axes of `shape`.
    shape
        Of all the index arrays, broadcast together.
    gather
        Of that shape: for each point of the result, its number along the axis. None where it is the same.
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
        In the order of the array's axes, outermost first; the points stand where their first axis does.
    axes
        Of the result, with one axis for the points.
    points
        Where the expression has arrays.
    is_scalar
        True where numpy gives a scalar rather than an array.
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
        As numpy does.

    Examples
    --------
    >>> indexer = parse((60000, 28, 28), np.s_[5, :, ::-4])
    >>> indexer.base, indexer.dims
    (3923, (Dim(count=28, step=28, offsets=None), Dim(count=7, step=4, offsets=None)))
    >>> indexer.axes[1]
    ResultAxis(extent=7, dim=1, is_reversed=True)
    """
    written = (
        [_as_item(item) for item in selection] if isinstance(selection, tuple) else [_as_item(selection)]
    )
    items = _without_ellipsis(written, len(shape))
    walk = _Walk(shape, _strides(shape))
    if any(isinstance(item, np.ndarray) for item in items):
        _check_masks(items, shape)
    for item in items:
        walk.take(item)
    if walk.arrays:
        walk.take_points(_place(written, items))
    if len(walk.axes) + (len(walk.points.shape) - 1 if walk.points else 0) > MAX_NDIM:
        raise IndexError(
            f"number of dimensions must be within [0, {MAX_NDIM}], indexing result would have {len(walk.axes)}"
        )
    is_scalar = len(written) == len(shape) and all(isinstance(item, int) for item in written)
    return walk.indexer(is_scalar)


@dataclass(frozen=True, slots=True)
class _Array:
    """An array of the expression, along one axis or, of a mask, along several ones taken as one.

    A boolean without axes has one of its own, of extent 1 and before all others.
    """

    index: Positions
    axis: int
    extent: int
    stride: int

    @classmethod
    def of(cls, item: npt.NDArray[Any], axis: int, shape: tuple[int, ...], strides: list[int]) -> _Array:
        if item.dtype.kind != "b":
            # As numpy casts them: an unsigned integer too large for a signed one wraps around.
            return cls(item.astype(np.int64, copy=False), axis, shape[axis], strides[axis])
        if item.ndim == 0:
            return cls(np.zeros(int(item), np.int64), -1, 1, 0)
        # The axes of a mask follow each other, so that positions in it are multiples of its last stride.
        return cls(np.flatnonzero(item), axis, item.size, strides[axis + item.ndim - 1])

    def positions(self) -> Positions:
        """In elements of the stored array.

        Raises
        ------
        IndexError
            If an index is out of bounds.
        """
        lowest, highest = int(self.index.min()), int(self.index.max())
        index = self.index
        if lowest < -self.extent or highest >= self.extent:
            _in_bounds(int(index[(index < -self.extent) | (index >= self.extent)][0]), self.axis, self.extent)
        if lowest < 0:
            index = np.where(index < 0, index + self.extent, index)
        return index * self.stride


@dataclass(slots=True)
class _Walk:
    """What is known of the result while the items meet the axes of the array, from the first to the last."""

    shape: tuple[int, ...]
    strides: list[int]
    base: int = 0
    axis: int = 0
    #: Of each axis that has one, and of the points at their first axis.
    dims: dict[int, Dim] = field(default_factory=dict)
    #: Of the result: extent, axis of the array, and whether it is reversed.
    axes: list[tuple[int, int, bool]] = field(default_factory=list)
    arrays: list[_Array] = field(default_factory=list)
    points: Points | None = None

    def take(self, item: Item) -> None:
        if item is None:
            self.axes.append((1, -1, False))
            return
        if isinstance(item, int):
            self.base += _in_bounds(item, self.axis, self.shape[self.axis]) * self.strides[self.axis]
        elif isinstance(item, slice):
            self._take_slice(item)
        elif isinstance(item, np.ndarray):
            self.arrays.append(_Array.of(item, self.axis, self.shape, self.strides))
        self.axis += _axes_used(item)

    def _take_slice(self, item: slice) -> None:
        start, stop, step = item.indices(self.shape[self.axis])
        count = len(range(start, stop, step))
        stride = self.strides[self.axis]
        if count:
            self.base += (start if step > 0 else start + (count - 1) * step) * stride
        if count > 1:
            self.dims[self.axis] = Dim(count, abs(step) * stride)
        self.axes.append((count, self.axis, step < 0))

    def take_points(self, place: int) -> None:
        """Make one dim of all arrays, and one axis of the result at `place`."""
        positions = _broadcast(self.arrays)
        axis = min((array.axis for array in self.arrays if array.axis >= 0), default=-1)
        gather: Positions | None = None
        extent = 0
        if positions.size:
            first, dim, gather = _in_order(positions)
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


def _as_item(item: Any) -> Item:
    """What numpy sees in one item, as one of few types."""
    if item is None or item is Ellipsis or isinstance(item, slice):
        return item
    if not isinstance(item, (bool, np.bool_, np.ndarray)):
        number = _as_integer(item)
        if number is not None:
            return number
    array = np.asarray(item)
    if array.size == 0 and not isinstance(item, np.ndarray):
        # An empty list has no type of its own.
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
    if array.ndim:
        return array
    if not _fits(int(array)):
        raise OverflowError("Python int too large to convert to C long")
    return int(array)


def _as_integer(item: Any) -> int | None:
    try:
        number = operator.index(item)
    except TypeError:
        return None
    return number if _fits(number) else None


def _fits(number: int) -> bool:
    """Whether numpy can take it for an index at all."""
    return -(2**63) <= number < 2**63


def _axes_used(item: Item) -> int:
    """Axes of the array that an item stands for."""
    if isinstance(item, np.ndarray) and item.dtype.kind == "b":
        return item.ndim
    return 0 if item is None else 1


def _without_ellipsis(items: list[Item], ndim: int) -> list[Item]:
    """The items, with a whole slice for each axis that none of them stands for."""
    at = [number for number, item in enumerate(items) if item is Ellipsis]
    if len(at) > 1:
        raise IndexError("an index can only have a single ellipsis ('...')")
    used = sum(map(_axes_used, items)) - len(at)
    if used > ndim:
        raise IndexError(f"too many indices for array: array is {ndim}-dimensional, but {used} were indexed")
    whole: list[Item] = [slice(None)] * (ndim - used)
    return [*items[: at[0]], *whole, *items[at[0] + 1 :]] if at else items + whole


def _check_masks(items: list[Item], shape: tuple[int, ...]) -> None:
    axis = 0
    for item in items:
        if isinstance(item, np.ndarray) and item.dtype.kind == "b":
            for number, extent in enumerate(item.shape, start=axis):
                # Numpy lets a mask without elements pass, whatever it is to mask.
                if extent not in (0, shape[number]):
                    raise IndexError(
                        f"boolean index did not match indexed array along axis {number}; size of axis is "
                        f"{shape[number]} but size of corresponding boolean axis is {extent}"
                    )
        axis += _axes_used(item)


def _place(written: list[Item], items: list[Item]) -> int:
    """The axis of the result from which on the points have theirs.

    It is where the first array or integer stands, if no other item (not even an ellipsis for no axis) is
    between them, and the first axis otherwise.
    """
    at = [number for number, item in enumerate(written) if isinstance(item, (int, np.ndarray))]
    if at[-1] - at[0] + 1 != len(at):
        return 0
    return next(number for number, item in enumerate(items) if isinstance(item, (int, np.ndarray)))


def _broadcast(arrays: list[_Array]) -> Positions:
    """Positions of the points, in elements of the stored array: the arrays' own, added up."""
    shapes = [array.index.shape for array in arrays]
    try:
        shape = shapes[0] if len(shapes) == 1 else np.broadcast_shapes(*shapes)
    except ValueError:
        raise IndexError(
            "shape mismatch: indexing arrays could not be broadcast together with shapes "
            + "".join(f"{str(shape).replace(' ', '')} " for shape in shapes)
        ) from None
    if 0 in shape:
        # Nothing is taken, and numpy does not look at the indices.
        return np.empty(shape, np.int64)
    positions = arrays[0].positions()
    for array in arrays[1:]:
        positions = positions + array.positions()
    return positions


def _in_order(positions: Positions) -> tuple[int, Dim | None, Positions | None]:
    """The first of some positions, the dim that they are, and each one's number in it where it is not its own."""
    offsets = positions.reshape(-1)
    if offsets.size == 1:
        return int(offsets[0]), None, None
    gather = None
    gaps = offsets[1:] - offsets[:-1]
    smallest = int(gaps.min())
    if smallest <= 0:
        # As np.unique does it, in half the time for a batch: the distances are wanted too.
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


def _in_bounds(index: int, axis: int, extent: int) -> int:
    if not -extent <= index < extent:
        raise IndexError(f"index {index} is out of bounds for axis {axis} with size {extent}")
    return index % extent


def _strides(shape: tuple[int, ...]) -> list[int]:
    """Elements from one index to the next, along each axis."""
    strides = [1] * len(shape)
    for k in range(len(shape) - 1, 0, -1):
        strides[k - 1] = strides[k] * shape[k]
    return strides
