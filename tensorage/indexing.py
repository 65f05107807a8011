"""Numpy selections as runs of elements: which elements of a stored array to ask for. No I/O.

The question answered here: given the shape of an array and an index expression, which runs of
consecutive elements have to travel, and what is left to do in memory?

1. `parse` normalises the expression: one `Axis` for each axis of the array, and the form of the result.
2. `plan` decides how much of each row (one index along axis 0) is read as one run. A run costs about as
   much as `RUN_COST_BYTES` bytes, so that nearby runs are read as one together with what lies between.
3. The answer is a *box*: (rows of axis 0) x (runs within a row) x (elements of a run), one shape for all
   rows. `Reading.pick` takes the selected elements out of it.

What is supported: integers, slices of any step, ``...``, ``None``, and one array of integers (any shape,
any order, repeats) or of booleans along the first axis. Other uses of arrays raise
`UnsupportedSelectionError`.

Over-read is bounded: a row is read as one run only if that is at most twice the selected bytes of the row
plus 64 KiB.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, SupportsIndex

import numpy as np
import numpy.typing as npt

from tensorage.errors import UnsupportedSelectionError

__all__ = ["Part", "Reading", "Selection", "plan", "split"]

#: An index expression, or a tuple of them.
Selection = Any

#: What a run costs the server beyond its bytes, in bytes.
RUN_COST_BYTES = 4096

#: A row is over-read by at most twice its selected bytes plus this.
MAX_GAP_BYTES = 64 * 1024

Positions = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Axis:
    """What is selected along one axis: `count` indices from `first` on, `step` (> 0) apart.

    `picked` says how the result takes them: an integer drops the axis, a slice may turn it around, an array
    gathers.
    """

    first: int
    step: int
    count: int
    picked: Any

    @property
    def extent(self) -> int:
        """Length of the shortest range that holds all of them."""
        return (self.count - 1) * self.step + 1 if self.count else 0


@dataclass(frozen=True, slots=True)
class Reading:
    """What to ask for, and how to make the result of it.

    Parameters
    ----------
    rows
        Positions (in the flat array) at which the outer rows begin.
    runs
        Where the runs of each row begin, relative to it.
    run_length
        Elements of each run.
    box_shape
        Shape of what comes back: ``rows x runs x run_length`` elements in C order.
    picked
        Numpy index that takes the result out of the box.
    """

    rows: Positions
    runs: Positions
    run_length: int
    box_shape: tuple[int, ...]
    picked: tuple[Any, ...]

    @property
    def size(self) -> int:
        """Elements that travel."""
        return len(self.rows) * len(self.runs) * self.run_length

    @property
    def is_whole_box(self) -> bool:
        """True if the box is the result, element by element."""
        return all(p is Ellipsis or (isinstance(p, slice) and p == slice(None)) for p in self.picked)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the result."""
        # Of a box that repeats a single byte: numpy then says what it would make of the real one.
        return np.shape(np.broadcast_to(np.int8(0), self.box_shape)[self.picked])

    def pick(self, box: npt.NDArray[Any]) -> Any:
        """Take the result out of the box: a view, or the scalar that numpy makes of a single element."""
        return box[self.picked]


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a reading that fits one request. Its elements go to the box from `out_first` on."""

    rows: Positions
    runs: Positions
    run_length: int
    out_first: int

    @property
    def size(self) -> int:
        return len(self.rows) * len(self.runs) * self.run_length


def plan(shape: tuple[int, ...], selection: Selection, itemsize: int) -> Reading:
    """Decide what to read for ``array[selection]``.

    Parameters
    ----------
    shape
        Of the stored array.
    itemsize
        Bytes per element.

    Raises
    ------
    IndexError
        As numpy's, for an index out of bounds or too many indices.

    Examples
    --------
    >>> reading = plan((60000, 28, 28), np.s_[[7, 3, 7]], 4)
    >>> reading.rows, reading.run_length
    (array([2352, 5488]), 784)
    >>> reading.box_shape
    (2, 28, 28)
    """
    axes, form = parse(shape, selection)
    if not axes:
        zero = np.zeros(1, np.int64)
        return Reading(zero, zero, 1, (), tuple(form))
    indices, outer_picked = _outer(axes[0])
    strides = _strides(shape)
    level = _covered_from(axes, shape, itemsize)
    inner = axes[1:]
    # Axes before `level` are read at their own indices, the axis at `level` from its first to its last
    # index, and those behind it whole.
    runs = np.zeros(1, np.int64)
    for k in range(1, min(level, len(axes))):
        steps = (axes[k].first + axes[k].step * np.arange(axes[k].count, dtype=np.int64)) * strides[k]
        runs = (runs[:, None] + steps[None, :]).reshape(-1)
    run_length = 1
    if level < len(axes):
        runs = runs + axes[level].first * strides[level]
        run_length = axes[level].extent * strides[level]
    picked: list[Any] = [outer_picked]
    box_shape: list[int] = [len(indices)]
    for k, axis in enumerate(inner, start=1):
        if k < level:
            box_shape.append(axis.count)
            picked.append(_pick(axis, axis.count, first=0, step=1))
        elif k == level:
            box_shape.append(axis.extent)
            picked.append(_pick(axis, axis.extent, first=0, step=axis.step))
        else:
            box_shape.append(shape[k])
            picked.append(_pick(axis, shape[k], first=axis.first, step=axis.step))
    rows = indices * strides[0]
    return _joined(Reading(rows, runs, run_length, tuple(box_shape), _in_form(picked, form)), strides[0])


def split(reading: Reading, max_elements: int, max_runs: int, align: int = 1) -> Iterator[Part]:
    """Cut a reading into parts of at most `max_elements` elements and `max_runs` runs.

    Parameters
    ----------
    align
        A long run is cut at multiples of this, where `max_elements` allows: the elements of a block.
    """
    per_row = len(reading.runs) * reading.run_length
    done = 0
    if per_row <= max_elements and len(reading.runs) <= max_runs:
        rows_at_once = max(min(max_elements // max(per_row, 1), max_runs // len(reading.runs)), 1)
        for first in range(0, len(reading.rows), rows_at_once):
            rows = reading.rows[first : first + rows_at_once]
            yield Part(rows, reading.runs, reading.run_length, done)
            done += len(rows) * per_row
        return
    zero = np.zeros(1, np.int64)
    for row in reading.rows:
        if reading.run_length <= max_elements:
            runs_at_once = min(max(max_elements // reading.run_length, 1), max_runs)
            for first in range(0, len(reading.runs), runs_at_once):
                runs = reading.runs[first : first + runs_at_once]
                yield Part(np.array([row]), runs, reading.run_length, done)
                done += len(runs) * reading.run_length
            continue
        for run in reading.runs:
            position, end = int(row + run), int(row + run) + reading.run_length
            while position < end:
                stop = min(position + max_elements, end)
                if stop < end and stop // align * align > position:
                    stop = stop // align * align
                yield Part(np.array([position]), zero, stop - position, done)
                done += stop - position
                position = stop


def parse(shape: tuple[int, ...], selection: Selection) -> tuple[list[Axis], list[Any]]:
    """One `Axis` for each axis of the array, and the expression's form with ``None`` where it has one.

    The second part holds, in order, ``None`` for each new axis, ``0`` for each axis of the array, and an
    ``Ellipsis`` at its end if the expression has one: numpy then makes a 0-d array, and a scalar otherwise.
    """
    items = list(selection) if isinstance(selection, tuple) else [selection]
    items = [_as_item(item) for item in items]
    has_ellipsis = any(item is Ellipsis for item in items)
    items = _expand_ellipsis(items, len(shape))
    axes: list[Axis] = []
    form: list[Any] = []
    for item in items:
        if item is None:
            form.append(None)
            continue
        axes.append(_axis(item, len(axes), shape[len(axes)], gathering=not form))
        form.append(0)
    return axes, [*form, ...] if has_ellipsis else form


def _as_item(item: Any) -> Any:
    """One of: int, slice, Ellipsis, None, integer array (a boolean one as the indices it stands for)."""
    if item is None or item is Ellipsis or isinstance(item, slice):
        return item
    if isinstance(item, SupportsIndex) and not isinstance(item, bool | np.bool_ | np.ndarray):
        return operator.index(item)
    array = np.asarray(item)
    if array.ndim == 0 and array.dtype.kind in "iu":
        return int(array)
    if array.dtype.kind == "b":
        if array.ndim != 1:
            raise UnsupportedSelectionError(
                f"a boolean mask of {array.ndim} dimensions is not supported yet: use a mask along the first axis"
            )
        return array
    if array.size == 0 and not isinstance(item, np.ndarray):
        return array.astype(np.int64)
    if array.dtype.kind not in "iu":
        raise IndexError(
            "only integers, slices (`:`), ellipsis (`...`), None and integer or boolean arrays are valid "
            f"indices, not {item!r}"
        )
    return array


def _expand_ellipsis(items: list[Any], ndim: int) -> list[Any]:
    used = sum(item is not None and item is not Ellipsis for item in items)
    ellipses = [i for i, item in enumerate(items) if item is Ellipsis]
    if len(ellipses) > 1:
        raise IndexError("an index can only have a single ellipsis ('...')")
    if used > ndim:
        raise IndexError(f"too many indices for array: array is {ndim}-dimensional, but {used} were indexed")
    at = ellipses[0] if ellipses else len(items)
    return [*items[:at], *[slice(None)] * (ndim - used), *items[at + 1 :]]


def _axis(item: Any, number: int, extent: int, *, gathering: bool) -> Axis:
    if isinstance(item, slice):
        start, stop, step = item.indices(extent)
        count = len(range(start, stop, step))
        if step < 0 and count:
            return Axis(start + (count - 1) * step, -step, count, slice(None, None, -1))
        return Axis(start, abs(step), count, slice(None))
    if isinstance(item, int):
        return Axis(_in_bounds(item, number, extent), 1, 1, 0)
    if number != 0 or not gathering:
        raise UnsupportedSelectionError(
            "an array as an index is supported along the first axis only, and without None before it: read the "
            "rows first and index the result"
        )
    if item.dtype.kind == "b":
        if len(item) != extent:
            raise IndexError(
                "boolean index did not match indexed array along axis 0; size of axis is "
                f"{extent} but size of corresponding boolean axis is {len(item)}"
            )
        item = np.flatnonzero(item)
    indices = item.astype(np.int64)
    outside = (indices < -extent) | (indices >= extent)
    if outside.any():
        _in_bounds(int(indices[outside][0]), number, extent)
    return Axis(0, 1, indices.size, np.where(indices < 0, indices + extent, indices))


def _in_bounds(index: int, number: int, extent: int) -> int:
    if not -extent <= index < extent:
        raise IndexError(f"index {index} is out of bounds for axis {number} with size {extent}")
    return index % extent


def _strides(shape: tuple[int, ...]) -> list[int]:
    """Elements from one index to the next, along each axis."""
    strides = [1] * len(shape)
    for k in range(len(shape) - 1, 0, -1):
        strides[k - 1] = strides[k] * shape[k]
    return strides


def _outer(axis: Axis) -> tuple[Positions, Any]:
    """Indices to read along axis 0, and how the result takes them from what comes back."""
    if isinstance(axis.picked, np.ndarray):
        # Sorted and without repeats: each row travels once, and neighbours are read together.
        indices, where = np.unique(axis.picked, return_inverse=True)
        return indices, where.reshape(axis.picked.shape)
    return axis.first + axis.step * np.arange(axis.count, dtype=np.int64), axis.picked


def _covered_from(axes: list[Axis], shape: tuple[int, ...], itemsize: int) -> int:
    """The axis from which on each row is read as a single run, or the number of axes for single elements."""
    selected = itemsize
    for axis in axes[1:]:
        selected *= axis.count
    if selected == 0:
        # At its own indices, the axis without any has nothing read for it.
        return len(axes)
    best, best_cost = len(axes), None
    strides = _strides(shape)
    runs = 1
    for level in range(1, len(axes) + 1):
        run_bytes = (axes[level].extent * strides[level] if level < len(axes) else 1) * itemsize
        total = runs * run_bytes
        cost = total + runs * RUN_COST_BYTES
        if total <= 2 * selected + MAX_GAP_BYTES and (best_cost is None or cost < best_cost):
            best, best_cost = level, cost
        if level < len(axes):
            runs *= axes[level].count
    return best


def _pick(axis: Axis, extent: int, *, first: int, step: int) -> Any:
    """Numpy index of an axis' selected elements in a box of `extent` along it, where they begin at `first`."""
    if not isinstance(axis.picked, slice):
        return first
    if not axis.count:
        return slice(0, 0)
    last = first + (axis.count - 1) * step
    if axis.picked == slice(None):
        return slice(None) if axis.count == extent else slice(first, last + 1, step)
    return slice(last, first - 1 if first else None, -step)


def _in_form(picked: list[Any], form: list[Any]) -> tuple[Any, ...]:
    """The indices of the box, with the new axes and the ellipsis of the expression among them."""
    remaining = iter(picked)
    return tuple(next(remaining) if item is not None and item is not Ellipsis else item for item in form)


def _joined(reading: Reading, row_stride: int) -> Reading:
    """Rows that follow each other without a gap, as one long run."""
    is_full = len(reading.runs) == 1 and reading.run_length == row_stride
    if (
        is_full
        and len(reading.rows) > 1
        and reading.rows[-1] - reading.rows[0] == (len(reading.rows) - 1) * row_stride
    ):
        # Indices are sorted and differ, so that the distance of the ends tells that they are consecutive.
        length = reading.run_length * len(reading.rows)
        return Reading(reading.rows[:1], reading.runs, length, reading.box_shape, reading.picked)
    return reading
