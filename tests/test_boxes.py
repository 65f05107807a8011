"""Boxes of consecutive elements, next to numpy."""

from __future__ import annotations

import math

import hypothesis.strategies as st
import numpy as np
from hypothesis import example, given

from tensorage.indexing.boxes import consecutive_boxes

SHAPES = st.lists(st.integers(0, 7), max_size=4).map(tuple)


@given(SHAPES, st.integers(1, 100))
@example((1, 1000, 1000), 300)
@example((), 1)
def test_boxes_are_the_array_in_order(shape: tuple[int, ...], max_elements: int) -> None:
    array = np.arange(math.prod(shape)).reshape(shape)
    parts = [array[box] for box in consecutive_boxes(shape, max_elements)]
    assert all(0 < part.size <= max_elements for part in parts)
    assert np.array_equal(
        np.concatenate([np.empty(0, int), *(part.reshape(-1) for part in parts)]), array.reshape(-1)
    )


def test_boxes_are_as_large_as_they_may_be() -> None:
    assert [box[0] for box in consecutive_boxes((10, 4, 5), 70)] == [
        slice(0, 3),
        slice(3, 6),
        slice(6, 9),
        slice(9, 10),
    ]
    assert len(list(consecutive_boxes((1, 1000, 1000), 2**18))) == 4
