"""Index expressions of every kind, right and wrong ones, for tests against numpy.

A draw of hypothesis takes longer than to plan a selection does, so that an expression is made of a few draws of many
bytes, rather than of one for each of its numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import hypothesis.strategies as st
import numpy as np

Shape = tuple[int, ...]
T = TypeVar("T")

#: Drawn at once: as many choices as most expressions take.
_BYTES = st.binary(min_size=32, max_size=32)

#: Objects that no array takes for an index, or numpy only with care.
ODDITIES: list[Any] = [
    1.5,
    "a",
    [0.5],
    {},
    10**30,
    np.float64(1),
    np.array(1.0),
    np.array([], float),
    [[]],
    b"x",
]


class Choices:
    """Choices that drawn bytes decide. Bytes of zero are the simplest ones: hypothesis looks for these in the end."""

    def __init__(self, draw: st.DrawFn) -> None:
        self._draw = draw
        self._left = b""

    def take(self, count: int) -> bytes:
        """Return so many bytes that nothing else is made of."""
        while len(self._left) < count:
            self._left += self._draw(_BYTES)
        taken, self._left = self._left[:count], self._left[count:]
        return taken

    def one_of(self, options: Sequence[T]) -> T:
        """Return one of up to 256 options, by default the first."""
        return options[self.take(1)[0] % len(options)]

    def is_true(self) -> bool:
        """True if something is so: as often as not."""
        return self.take(1)[0] % 2 == 1

    def integer(self, low: int, high: int) -> int:
        """Return one of the integers from `low` to `high`."""
        return int(self.integers(low, high, ())[()])

    def integers(self, low: int, high: int, shape: Shape) -> np.ndarray[Any, Any]:
        """Return integers from `low` to `high`, by default all the one that is next to zero."""
        drawn = np.frombuffer(self.take(2 * math.prod(shape)), ">u2").astype("i8").reshape(shape)
        simplest = min(max(low, 0), high)
        # From the simplest one up, and from the lowest one up to it.
        return low + (drawn + simplest - low) % (high - low + 1)

    def mask(self, shape: Shape) -> np.ndarray[Any, Any]:
        """Return a mask of few or of many true elements."""
        share = self.one_of(_SHARES)
        size = math.prod(shape)
        if size <= _MOST_DRAWN:
            drawn = np.frombuffer(self.take(size), "u1")
        else:
            random = np.random.default_rng(int.from_bytes(self.take(4)))
            drawn = random.integers(0, 256, size)
        return (drawn.astype("i8") + share >= 256).reshape(shape)


#: Elements of a mask of which each is drawn. A larger mask follows from a few bytes.
_MOST_DRAWN = 100

#: True elements of a mask, among 256.
_SHARES = [128, 128, 128, 24, 24, 232, 232, 3, 253, 0, 256]


def distinct(numbers: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return what `np.unique` returns. That takes thirty times as long for many different numbers."""
    numbers = np.sort(numbers, axis=None)
    is_new = np.ones(len(numbers), bool)
    np.not_equal(numbers[1:], numbers[:-1], out=is_new[1:])
    return numbers[is_new]


def any_shape(choices: Choices) -> Shape:
    """Return a shape of up to five axes, with few indices or none, or of up to two with more."""
    min_dims, max_dims, min_side, max_side = choices.one_of(_SIZES)
    sides = choices.integers(min_side, max_side, (choices.integer(min_dims, max_dims),))
    return tuple(sides.tolist())


@st.composite
def selections(
    draw: st.DrawFn, shapes: st.SearchStrategy[Shape] | None = None, *, wrong: bool = True
) -> tuple[Shape, Any]:
    """A shape, and an expression for it.

    Parameters
    ----------
    shapes
        To draw from: by default of up to five axes, of zero and more indices each.
    wrong
        True if some items are out of bounds, of the wrong shape or no index at all. Without them numpy may
        still refuse the expression: arrays do not always broadcast with masks.
    """
    choices = Choices(draw)
    shape = any_shape(choices) if shapes is None else draw(shapes)
    return shape, any_selection(choices, shape, wrong=wrong)


def any_selection(choices: Choices, shape: Shape, *, wrong: bool = True) -> Any:
    """Return an expression for an array of a shape; see `selections`."""
    common = choices.one_of(_COMMON)
    slack = choices.one_of(_SLACKS) if wrong else 0
    items: list[Any] = []
    axis, has_ellipsis = 0, False
    while axis < len(shape) + slack:
        kind = choices.one_of(_KINDS)
        rest = shape[axis:] or (2,)
        if kind == "stop":
            break
        if kind == "other":
            item = choices.one_of(_OTHERS)
            if item is Ellipsis and has_ellipsis:
                continue
            if item is Ellipsis:
                # The axes that it stands for.
                axis += choices.integer(0, len(rest))
                has_ellipsis = True
            items.append(item)
            continue
        if kind == "integer" and not rest[0] and not slack:
            kind = "slice"
        if kind == "mask":
            item = _mask(choices, rest, wrong=slack > 0)
            axis += np.ndim(item)
        else:
            item = _ONE_AXIS[kind](choices, rest[0], common, slack)
            axis += 1
        items.append(item)
    if slack and choices.is_true():
        items.insert(choices.integer(0, len(items)), choices.one_of([..., *ODDITIES]))
    return items[0] if len(items) == 1 and choices.is_true() else tuple(items)


#: Fewest and most axes of a shape, and fewest and most indices along one.
_SIZES = [(1, 5, 1, 6), (1, 5, 1, 6), (1, 2, 1, 40), (1, 2, 1, 40), (0, 3, 0, 3), (1, 3, 0, 2)]

#: Shapes that the arrays of an expression broadcast to.
_COMMON: list[Shape] = [(1,), (3,), (3,), (9,), (2, 3), (3, 1), (2, 1, 2), (0,), (2, 0)]
_SLACKS = [0, 0, 0, 0, 0, 0, 0, 0, 0, 1]
_KINDS = ["slice", "slice", "integer", "array", "array", "array", "mask", "mask", "other", "stop"]
_OTHERS: list[Any] = [None, None, ..., ..., True, np.True_, np.array(True), False]
_STEPS: list[Any] = [None, 1, 2, 3, -1, -2, -3, np.int8(2), 100]
_FORMS: list[Callable[[int], Any]] = [
    int,
    np.int64,
    np.int8,
    np.array,
    lambda index: np.uint64(max(index, 0)),
]
_DTYPES = ["i8", "i4", "i1", "u1", "u8", ">i4"]


def _slice(choices: Choices, extent: int, common: Shape, slack: int) -> slice:
    """Return any slice, of Python's integers or of numpy's."""
    bounds: list[Any] = []
    for _ in range(2):
        form = choices.one_of([None, None, int, np.int16])
        bounds.append(form if form is None else form(choices.integer(-extent - 2, extent + 2)))
    return slice(*bounds, choices.one_of(_STEPS))


def _integer(choices: Choices, extent: int, common: Shape, slack: int) -> Any:
    """Return one index as anything that numpy takes for an integer, `slack` too far now and then."""
    form = choices.one_of(_FORMS)
    return form(choices.integer(-extent - slack, max(extent - 1, 0) + slack))


def _index_array(choices: Choices, extent: int, common: Shape, slack: int) -> Any:
    """Return indices in an array or in nested lists, which broadcast to `common` but for `slack`."""
    # Broadcasting lets leading axes be left out, and any axis be 1.
    kept = common[choices.integer(0, len(common) - 1) :]
    shape = tuple(choices.one_of([n, n, n, 1]) for n in kept)
    if slack and choices.is_true():
        shape = (*shape[:-1], shape[-1] + 1)
    if not extent and not slack:
        shape = (*shape[:-1], 0)
    dtype = np.dtype(choices.one_of(_DTYPES))
    low = 0 if dtype.kind == "u" else -extent - slack
    array = choices.integers(low, max(extent - 1, 0) + slack, shape).astype(dtype)
    return choices.one_of([array, array, array.tolist()])


def _mask(choices: Choices, rest: Shape, *, wrong: bool = False) -> Any:
    """Return a mask of one or more axes."""
    shape = rest[: choices.one_of([1, 1, *range(1, len(rest) + 1)])]
    if wrong and choices.is_true():
        shape = (*shape[:-1], shape[-1] + 1)
    mask = choices.mask(shape)
    return choices.one_of([mask, mask, mask.tolist()]) if mask.size else mask


_ONE_AXIS: dict[str, Callable[[Choices, int, Shape, int], Any]] = {
    "slice": _slice,
    "integer": _integer,
    "array": _index_array,
}
