"""Index expressions of every kind, right and wrong ones, for tests against numpy."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import numpy as np
from hypothesis.extra import numpy as hnp

Shape = tuple[int, ...]

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


#: Shapes of up to five axes, with few indices or none, and of up to two with more.
SHAPES = st.one_of(
    hnp.array_shapes(max_dims=5, max_side=6),
    hnp.array_shapes(max_dims=2, max_side=40),
    hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3),
)


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
        Whether some items are out of bounds, of the wrong shape or no index at all. Without them numpy may
        still refuse the expression: arrays do not always broadcast with masks.
    """
    shape = draw(SHAPES if shapes is None else shapes)
    common = draw(st.sampled_from([(1,), (3,), (3,), (9,), (2, 3), (3, 1), (2, 1, 2), (0,), (2, 0)]))
    slack = draw(st.sampled_from([0, 0, 0, 0, 0, 0, 0, 0, 0, 1])) if wrong else 0
    items: list[Any] = []
    axis, has_ellipsis = 0, False
    while axis < len(shape) + slack:
        kind = draw(
            st.sampled_from(
                ["slice", "slice", "integer", "array", "array", "array", "mask", "mask", "other", "stop"]
            )
        )
        rest = shape[axis:] or (2,)
        if kind == "stop":
            break
        if kind == "other":
            item = draw(st.sampled_from([None, None, ..., ..., True, np.True_, np.array(True), False]))
            if item is Ellipsis and has_ellipsis:
                continue
            if item is Ellipsis:
                # The axes that it stands for.
                axis += draw(st.integers(0, len(rest)))
                has_ellipsis = True
            items.append(item)
            continue
        if kind == "integer" and not rest[0] and not slack:
            kind = "slice"
        if kind == "mask":
            item = draw(masks(rest, wrong=slack > 0))
            axis += np.ndim(item)
        else:
            item = draw(_ONE_AXIS[kind](rest[0], common, slack))
            axis += 1
        items.append(item)
    if slack and draw(st.booleans()):
        items.insert(draw(st.integers(0, len(items))), draw(st.sampled_from([..., *ODDITIES])))
    return shape, items[0] if len(items) == 1 and draw(st.booleans()) else tuple(items)


def slices(extent: int) -> st.SearchStrategy[slice]:
    """Any slice, of Python's integers or of numpy's."""
    anywhere = st.integers(-extent - 2, extent + 2)
    bounds = st.one_of(st.none(), st.none(), anywhere, anywhere.map(np.int16))
    steps = st.sampled_from([None, 1, 2, 3, -1, -2, -3, np.int8(2), 100])
    return st.builds(slice, bounds, bounds, steps)


def integers(extent: int, slack: int = 0) -> st.SearchStrategy[Any]:
    """One index as anything that numpy takes for an integer, `slack` too far now and then."""
    low, high = -extent - slack, max(extent - 1, 0) + slack
    forms = st.sampled_from([int, np.int64, np.int8, np.array, lambda index: np.uint64(max(index, 0))])
    return st.builds(lambda form, index: form(index), forms, st.integers(low, high))


@st.composite
def index_arrays(draw: st.DrawFn, extent: int, common: Shape, slack: int = 0) -> Any:
    """Indices in an array or in nested lists, which broadcast to `common` but for `slack`."""
    # Broadcasting lets leading axes be left out, and any axis be 1.
    kept = common[draw(st.integers(0, len(common) - 1)) :]
    shape = tuple(draw(st.sampled_from([n, n, n, 1])) for n in kept)
    if slack and draw(st.booleans()):
        shape = (*shape[:-1], shape[-1] + 1)
    if not extent and not slack:
        shape = (*shape[:-1], 0)
    dtype = np.dtype(draw(st.sampled_from(["i8", "i4", "i1", "u1", "u8", ">i4"])))
    low = 0 if dtype.kind == "u" else -extent - slack
    elements = st.integers(low, max(extent - 1, 0) + slack)
    array = draw(hnp.arrays(dtype, shape, elements=elements))
    return draw(st.sampled_from([array, array, array.tolist()]))


@st.composite
def masks(draw: st.DrawFn, rest: Shape, *, wrong: bool = False) -> Any:
    """A mask of one or more axes, of few or of many true elements."""
    shape = rest[: draw(st.sampled_from([1, 1, *range(1, len(rest) + 1)]))]
    if wrong and draw(st.booleans()):
        shape = (*shape[:-1], shape[-1] + 1)
    mask = draw(hnp.arrays(bool, shape, fill=st.booleans()))
    return draw(st.sampled_from([mask, mask, mask.tolist()])) if mask.size else mask


_ONE_AXIS = {
    "slice": lambda extent, common, slack: slices(extent),
    "integer": lambda extent, common, slack: integers(extent, slack),
    "array": index_arrays,
}
