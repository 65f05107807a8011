"""Selections as runs of elements, with numpy as the oracle. No backend: these are pure functions."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis.extra import numpy as hnp

from tensorage.errors import UnsupportedSelectionError
from tensorage.indexing import MAX_GAP_BYTES, plan, split

SHAPES = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=8)


@st.composite
def selections(draw: st.DrawFn) -> tuple[tuple[int, ...], Any]:
    """A shape, and an index expression for it that numpy may or may not accept."""
    shape = draw(SHAPES)
    first = draw(st.sampled_from(["basic", "integers", "mask"])) if shape else "basic"
    if first == "basic":
        index = draw(hnp.basic_indices(shape, allow_newaxis=True, allow_ellipsis=True))
        return shape, index
    if first == "mask":
        array: Any = draw(hnp.arrays(bool, shape[0]))
    else:
        # One too far, either way, now and then: then numpy's error is wanted.
        positions = st.integers(-shape[0] - draw(st.integers(0, 1)), max(shape[0], 1) - 1)
        array = draw(hnp.arrays(np.int64, draw(hnp.array_shapes(max_dims=2, max_side=5)), elements=positions))
    rest = draw(hnp.basic_indices(shape[1:], allow_newaxis=False, allow_ellipsis=True))
    return shape, (array, *(rest if isinstance(rest, tuple) else (rest,)))


def numpys_answer(array: np.ndarray[Any, Any], selection: Any) -> tuple[Any, IndexError | None]:
    try:
        return array[selection], None
    except IndexError as error:
        return None, error


def read(array: np.ndarray[Any, Any], selection: Any, max_elements: int, max_runs: int, align: int) -> Any:
    """What a reader of the plan gets, part by part."""
    reading = plan(array.shape, selection, array.itemsize)
    assert reading.shape == np.shape(array[selection])
    flat, box = array.reshape(-1), np.full(reading.size, -1, array.dtype)
    filled = np.zeros(reading.size, int)
    for part in split(reading, max_elements, max_runs, align) if reading.size else ():
        assert 0 < part.size <= max(max_elements, 1)
        assert len(part.rows) * len(part.runs) <= max_runs
        run = np.arange(part.run_length)
        positions = (part.rows[:, None, None] + part.runs[:, None] + run).reshape(-1)
        box[part.out_first : part.out_first + part.size] = flat[positions]
        filled[part.out_first : part.out_first + part.size] += 1
    assert (filled == 1).all()
    return reading.pick(box.reshape(reading.box_shape))


@settings(max_examples=3000, deadline=None)
@given(
    selections(), st.sampled_from([1, 3, 10, 1000]), st.sampled_from([1, 3, 1000]), st.sampled_from([1, 4])
)
def test_a_plan_gives_what_numpy_gives(
    case: tuple[tuple[int, ...], Any], max_elements: int, max_runs: int, align: int
) -> None:
    shape, selection = case
    array = np.arange(int(np.prod(shape)), dtype="<i4").reshape(shape)
    expected, refusal = numpys_answer(array, selection)
    if refusal is not None:
        with pytest.raises(IndexError) as caught:
            plan(shape, selection, 4)
        assert str(caught.value) == str(refusal)
        return
    result = read(array, selection, max_elements, max_runs, align)
    assert isinstance(result, np.ndarray) == isinstance(expected, np.ndarray)
    assert result.dtype == expected.dtype
    assert result.shape == expected.shape
    np.testing.assert_array_equal(result, expected)


@settings(max_examples=500, deadline=None)
@given(selections())
def test_over_read_is_bounded(case: tuple[tuple[int, ...], Any]) -> None:
    shape, selection = case
    try:
        selected = np.empty(shape, "i1")[selection].size
    except IndexError:
        return
    # As if each element were large, so that 64 KiB are not more than any row of these small shapes.
    itemsize = 16 * 1024
    reading = plan(shape, selection, itemsize)
    rows = reading.box_shape[0] if reading.box_shape else 1
    distinct = np.unique(np.arange(int(np.prod(shape))).reshape(shape)[selection]).size
    assert distinct <= max(selected, 1)
    assert reading.size * itemsize <= 2 * distinct * itemsize + MAX_GAP_BYTES * rows


def test_a_shuffled_batch_reads_each_row_once_in_order() -> None:
    reading = plan((60000, 28, 28), [7, 3, 7, 59999, 3], 4)
    assert reading.rows.tolist() == [3 * 784, 7 * 784, 59999 * 784]
    assert reading.run_length == 784


def test_neighbouring_rows_are_one_run() -> None:
    reading = plan((60000, 28, 28), slice(100, 200), 4)
    assert (reading.rows.tolist(), reading.run_length) == ([100 * 784], 100 * 784)
    assert reading.is_whole_box


def test_single_elements_of_large_rows_are_not_read_as_rows() -> None:
    reading = plan((1000, 1000, 1000), np.s_[:, 4, 4], 4)
    assert reading.size == 1000


@pytest.mark.parametrize(
    "selection",
    [np.s_[:, [0, 1]], np.s_[None, [0]], np.ones((3, 4), bool), np.s_[..., [1]], np.s_[[0], [1]], np.True_],
    ids=str,
)
def test_what_is_not_supported_says_so(selection: Any) -> None:
    with pytest.raises(
        UnsupportedSelectionError, match=r"not supported yet|supported along the first axis only"
    ):
        plan((3, 4), selection, 4)


@pytest.mark.parametrize(
    "selection", ["a", 1.5, [0.5], {}, np.s_[..., ...], np.s_[0, 0, 0], [True, False]], ids=str
)
def test_what_numpy_refuses_is_an_index_error(selection: Any) -> None:
    with pytest.raises(IndexError):
        np.empty((3, 4))[selection]
    with pytest.raises(IndexError):
        plan((3, 4), selection, 4)
