"""Selections of arrays that are cut into chunks, with numpy as the oracle. No backend: these are pure functions."""

from __future__ import annotations

import doctest
import math
from collections.abc import Iterator, Sequence
from itertools import islice, product
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import example, given, settings
from selections import ODDITIES, Choices, Shape, any_selection, any_shape, distinct
from test_indexing import DTYPES, UNTIMED, any_assignment, assert_same, message_of, numbered, refusal_of

from examples import examples
from tensorage.indexing import ChunkPlan, buffer, chunks, plan_chunks, projecting

Array = np.ndarray[Any, Any]

#: Content of chunks behind the array's end, and of buffers before they are filled: no element is that.
PADDING = -7


def any_grid(choices: Choices, shape: Shape) -> Shape:
    """Return a chunk shape: of one element, of the whole axis or more, and all between."""
    return tuple(choices.integer(1, choices.one_of([extent + 2, 3])) for extent in shape)


@st.composite
def cut_selections(draw: st.DrawFn, *, wrong: bool = False) -> tuple[Shape, Any, Shape]:
    choices = Choices(draw)
    shape = any_shape(choices)
    return shape, any_selection(choices, shape, wrong=wrong), any_grid(choices, shape)


@st.composite
def cut_assignments(draw: st.DrawFn) -> tuple[Shape, Any, Shape, Shape]:
    choices = Choices(draw)
    shape = any_shape(choices)
    return (shape, *any_assignment(choices, shape), any_grid(choices, shape))


def chunks_of(array: Array, chunk_shape: Shape) -> dict[Shape, Array]:
    """All chunks of an array, of full shape, by their places in the grid."""
    grid = [range(-(-extent // chunk)) for extent, chunk in zip(array.shape, chunk_shape, strict=True)]
    stored = {}
    for coords in product(*grid):
        within = array[region(coords, chunk_shape)]
        stored[coords] = np.full(chunk_shape, PADDING).astype(array.dtype)
        stored[coords][tuple(slice(extent) for extent in within.shape)] = within
    return stored


def region(coords: Shape, chunk_shape: Shape) -> tuple[slice, ...]:
    return tuple(
        slice(coord * chunk, (coord + 1) * chunk) for coord, chunk in zip(coords, chunk_shape, strict=True)
    )


def whole_of(stored: dict[Shape, Array], array: Array, chunk_shape: Shape) -> Array:
    """The array that chunks are of."""
    whole = np.empty_like(array)
    for coords, chunk in stored.items():
        # The ellipsis makes it a view where there are no axes.
        place = whole[(*region(coords, chunk_shape), ...)]
        place[...] = chunk[tuple(slice(extent) for extent in place.shape)]
    return whole


def read(reading: ChunkPlan, array: Array, chunk_shape: Shape) -> Array:
    """The buffer, by way of the chunks."""
    stored = chunks_of(array, chunk_shape)
    buffer = np.full(reading.buffer_shape, PADDING).astype(array.dtype)
    for part in reading.projections():
        part.take(stored[part.coords], buffer)
    return buffer


def coords_touched(shape: Shape, selection: Any, chunk_shape: Shape) -> list[Shape]:
    """Coords of the chunks that a selection touches, by a look at each element."""
    selected = np.unravel_index(distinct(numbered(shape, "i8")[selection]), shape) if shape else ()
    places = zip(*(axis // chunk for axis, chunk in zip(selected, chunk_shape, strict=True)), strict=True)
    return sorted({tuple(map(int, coords)) for coords in places})


@settings(UNTIMED, max_examples=examples(1500))
@given(cut_selections(wrong=True), DTYPES)
def test_what_is_read_through_chunks_is_what_numpy_gives(case: tuple[Shape, Any, Shape], dtype: str) -> None:
    shape, selection, chunk_shape = case
    array = numbered(shape, dtype)
    refusal = refusal_of(lambda: array[selection])
    if refusal is not None:
        ours = refusal_of(lambda: plan_chunks(shape, selection, chunk_shape))
        assert type(ours) is type(refusal)
        assert message_of(ours) == message_of(refusal)
        return
    expected = array[selection]
    reading = plan_chunks(shape, selection, chunk_shape)
    buffer = read(reading, array, chunk_shape)
    assert reading.shape == expected.shape
    assert_same(reading.pick(buffer), expected)
    assert_same(reading.pick(buffer.reshape(-1)), expected)
    if reading.is_whole_buffer:
        np.testing.assert_array_equal(buffer.reshape(reading.shape), expected)


@settings(UNTIMED, max_examples=examples(800))
@given(cut_selections())
def test_each_chunk_touched_comes_once_and_in_order(case: tuple[Shape, Any, Shape]) -> None:
    shape, selection, chunk_shape = case
    try:
        selected = distinct(numbered(shape, "i8")[selection])
    except IndexError:
        return
    reading = plan_chunks(shape, selection, chunk_shape)
    assert reading.size == math.prod(reading.buffer_shape) == len(selected)
    parts = list(reading.projections())
    if shape:
        assert [part.coords for part in parts] == coords_touched(shape, selection, chunk_shape)
    else:
        assert [part.coords for part in parts] == [()] * len(selected)
    times_filled = np.zeros(reading.buffer_shape, int)
    positions = numbered(shape, "i8")
    stored = chunks_of(positions, chunk_shape)
    taken = [stored[part.coords][part.chunk_selection].reshape(-1) for part in parts]
    for part, elements in zip(parts, taken, strict=True):
        assert part.size == len(distinct(elements)) > 0
        within = positions[region(part.coords, chunk_shape)]
        assert part.shape == within.shape
        assert part.is_whole is (part.size == within.size)
        times_filled[part.buffer_selection] += 1
    assert (times_filled == 1).all()
    np.testing.assert_array_equal(np.sort(np.concatenate([[], *taken])), selected)


@settings(UNTIMED, max_examples=examples(800))
@given(cut_selections())
@example(((4, 4), np.s_[...], (2, 4)))
@example(((4, 2, 3), np.ones((4, 2), bool), (1, 2, 3)))
@example(((5, 3), np.s_[[0, 1, 3, 4]], (2, 3)))
def test_a_chunk_is_decoded_in_its_place_if_it_is_all_there(case: tuple[Shape, Any, Shape]) -> None:
    shape, selection, chunk_shape = case
    try:
        reading = plan_chunks(shape, selection, chunk_shape)
    except IndexError:
        return
    buffer = np.arange(reading.size).reshape(reading.buffer_shape)
    for part in reading.projections():
        target = part.target(buffer)
        chunk = np.full(chunk_shape, -1)
        part.put(buffer, chunk)
        fits = -1 not in chunk and (np.diff(chunk.reshape(-1)) == 1).all()
        if target is not None:
            assert fits
            assert target.shape == chunk_shape
            assert target.flags.c_contiguous
            assert np.shares_memory(target, buffer)
            np.testing.assert_array_equal(target, chunk)
        elif fits:
            # Only points with a slice between them are not recognised.
            between = [isinstance(item, np.ndarray) for item in part.buffer_selection]
            assert any(between)
            assert any(isinstance(item, slice) for item in part.buffer_selection)


@settings(UNTIMED, max_examples=examples(600))
@given(cut_selections(), st.data())
def test_the_chunks_of_the_shards_are_the_chunks(case: tuple[Shape, Any, Shape], data: st.DataObject) -> None:
    shape, selection, chunk_shape = case
    per_shard = data.draw(st.tuples(*[st.integers(1, 3)] * len(shape)), label="chunks per shard")
    shard_shape = tuple(n * chunk for n, chunk in zip(per_shard, chunk_shape, strict=True))
    try:
        reading = plan_chunks(shape, selection, shard_shape)
    except IndexError:
        return
    array = numbered(shape)
    stored = chunks_of(array, chunk_shape)
    expected = {part.coords: part for part in plan_chunks(shape, selection, chunk_shape).projections()}
    buffer = np.full(reading.buffer_shape, PADDING, array.dtype)
    for shard in reading.projections():
        parts = list(shard.split(chunk_shape))
        assert [part.coords for part in parts] == sorted({part.coords for part in parts})
        assert sum(part.size for part in parts) == shard.size
        for part in parts:
            places = zip(shard.coords, per_shard, part.coords, strict=True)
            coords = tuple(first * n + within for first, n, within in places)
            alone = expected.pop(coords)
            assert (part.size, part.shape, part.is_whole) == (alone.size, alone.shape, alone.is_whole)
            part.take(stored[coords], buffer)
    assert not expected
    assert_same(reading.pick(buffer), array[selection])


@settings(UNTIMED, max_examples=examples(1000))
@given(cut_assignments())
def test_what_is_put_into_chunks_is_what_numpy_assigns(case: tuple[Shape, Any, Shape, Shape]) -> None:
    shape, selection, value_shape, chunk_shape = case
    array = numbered(shape)
    value = 10_000 + numbered(value_shape)
    try:
        reading = plan_chunks(shape, selection, chunk_shape)
    except IndexError:
        return
    expected = array.copy()
    buffer = np.full(reading.buffer_shape, PADDING, array.dtype)
    refusal = refusal_of(lambda: expected.__setitem__(selection, value))
    if isinstance(refusal, TypeError) or (refusal is not None and not reading.size):
        # Here, numpy is not consistent. A mask that is the whole expression takes no value of two axes, as
        # every other expression does. A value that does not broadcast to nothing may pass or not.
        return
    if refusal is not None:
        with pytest.raises(ValueError, match="could not broadcast input array from shape"):
            reading.place(value, buffer)
        return
    if reading.size:
        reading.place(value, buffer)
    stored = chunks_of(array, chunk_shape)
    for part in reading.projections():
        part.put(buffer, stored[part.coords])
    np.testing.assert_array_equal(whole_of(stored, array, chunk_shape), expected)
    for coords, chunk in chunks_of(expected, chunk_shape).items():
        # Nothing is written behind the array's end.
        np.testing.assert_array_equal(stored[coords], chunk)


def selected_parts(
    shape: Shape, selection: Any, chunk_shape: Shape
) -> Iterator[tuple[Shape, tuple[Any, ...], tuple[Any, ...]]]:
    for part in plan_chunks(shape, selection, chunk_shape).projections():
        yield part.coords, as_lists(part.chunk_selection), as_lists(part.buffer_selection)


def as_lists(items: Sequence[Any]) -> tuple[Any, ...]:
    return tuple(item.tolist() if isinstance(item, np.ndarray) else item for item in items)


def test_of_all_the_buffer_is_the_array() -> None:
    for shape, chunk_shape in (((7, 1, 5), (3, 1, 2)), ((0, 3), (2, 2)), ((4,), (10,)), ((), ())):
        reading = plan_chunks(shape, ..., chunk_shape)
        assert reading.buffer_shape == reading.shape == shape
        assert reading.is_whole_buffer
        assert all(part.is_whole for part in reading.projections())


def test_slices_are_slices_in_the_buffer() -> None:
    assert list(selected_parts((10, 8), np.s_[2:7, 3], (5, 4))) == [
        ((0, 0), (slice(2, 5, 1), slice(3, 4, 1)), (slice(0, 3, 1), slice(0, 1, 1))),
        ((1, 0), (slice(0, 2, 1), slice(3, 4, 1)), (slice(3, 5, 1), slice(0, 1, 1))),
    ]


def test_steps_over_chunks_skip_them() -> None:
    assert list(selected_parts((20,), np.s_[::-7], (3,))) == [
        ((1,), (slice(2, 3, 7),), (slice(0, 1, 1),)),
        ((4,), (slice(0, 1, 7),), (slice(1, 2, 1),)),
        ((6,), (slice(1, 2, 7),), (slice(2, 3, 1),)),
    ]


def test_a_shuffled_batch_is_sorted_by_chunk() -> None:
    assert list(selected_parts((100, 4), [71, 5, 70, 5, 9, 68], (10, 4))) == [
        ((0, 0), ([5, 9], slice(0, 4, 1)), (slice(0, 2, 1), slice(0, 4, 1))),
        ((6, 0), (slice(8, 9, 1), slice(0, 4, 1)), (slice(2, 3, 1), slice(0, 4, 1))),
        ((7, 0), (slice(0, 2, 1), slice(0, 4, 1)), (slice(3, 5, 1), slice(0, 4, 1))),
    ]


def test_points_of_two_axes_are_along_the_first() -> None:
    # The points in C order of the array: (0, 3), (1, 0), (1, 2), (4, 3).
    points = ([4, 0, 1, 1], [3, 3, 2, 0])
    assert list(selected_parts((5, 4), points, (2, 2))) == [
        ((0, 0), ([1], [0]), (slice(1, 2, 1), 0)),
        ((0, 1), ([0, 1], [1, 0]), ([0, 2], 0)),
        ((2, 1), ([0], [1]), (slice(3, 4, 1), 0)),
    ]


def test_points_around_a_slice_come_before_it_on_both_sides() -> None:
    array = numbered((5, 6, 4))
    reading = plan_chunks(array.shape, np.s_[[4, 0, 1], 1:5, [3, 3, 2]], (2, 3, 2))
    assert reading.buffer_shape == (3, 4, 1)
    for part in reading.projections():
        selected = np.empty(part.chunks)[part.chunk_selection]
        assert selected.shape == np.empty(reading.buffer_shape)[part.buffer_selection].shape
    buffer = read(reading, array, (2, 3, 2))
    assert_same(reading.pick(buffer), array[[4, 0, 1], 1:5, [3, 3, 2]])


def test_indices_of_one_value_along_an_axis_are_an_integer_there() -> None:
    reading = plan_chunks((5, 6, 4), np.s_[[4, 0, 1], :, [2, 2, 2]], (5, 6, 4))
    (part,) = reading.projections()
    assert as_lists(part.chunk_selection) == ([0, 1, 4], slice(0, 6, 1), slice(2, 3, 1))
    assert part.buffer_selection == (slice(0, 3, 1), slice(0, 6, 1), slice(0, 1, 1))


def test_stretches_of_a_mask_are_slices() -> None:
    mask = np.zeros(40, bool)
    mask[3:17] = mask[30:] = True
    reading = plan_chunks((40, 3), mask, (10, 3))
    buffer = np.zeros(reading.buffer_shape)
    taken = [
        (part.coords[0], part.chunk_selection[0], part.target(buffer) is not None)
        for part in reading.projections()
    ]
    assert taken == [(0, slice(3, 10, 1), False), (1, slice(0, 7, 1), False), (3, slice(0, 10, 1), True)]


def test_a_mask_of_all_axes_in_flat_order_is_the_buffer() -> None:
    array = numbered((30, 20, 10))
    mask = np.random.default_rng(0).random(array.shape) < 0.3
    reading = plan_chunks(array.shape, mask, (8, 7, 6))
    assert reading.is_whole_buffer
    assert_same(reading.pick(read(reading, array, (8, 7, 6))), array[mask])


def test_a_full_chunk_at_the_end_of_the_array_is_not_padded() -> None:
    reading = plan_chunks((5, 4), ..., (2, 4))
    buffer = np.zeros(reading.buffer_shape)
    assert [(part.is_whole, part.target(buffer) is not None) for part in reading.projections()] == [
        (True, True),
        (True, True),
        (True, False),
    ]


def test_a_chunk_that_is_not_of_whole_rows_of_the_buffer_is_not_decoded_in_place() -> None:
    reading = plan_chunks((4, 4), ..., (2, 2))
    buffer = np.zeros(reading.buffer_shape)
    assert [part.target(buffer) for part in reading.projections()] == [None] * 4


@pytest.mark.parametrize("selection", [(), ..., None, True, False, (None, ...), np.array(True)], ids=str)
def test_no_axes_at_all(selection: Any) -> None:
    array = np.array(5.0)
    reading = plan_chunks((), selection, ())
    buffer = np.zeros(reading.buffer_shape)
    for part in reading.projections():
        assert part.coords == ()
        target = part.target(buffer)
        assert target is not None
        target[...] = array
    assert_same(reading.pick(buffer), array[selection])


def test_a_single_element_is_a_scalar() -> None:
    array = numbered((3, 4))
    reading = plan_chunks(array.shape, (2, -1), (2, 2))
    assert reading.buffer_shape == (1, 1)
    assert_same(reading.pick(read(reading, array, (2, 2))), array[2, -1])


def test_the_last_of_repeated_indices_stays() -> None:
    reading = plan_chunks((10,), [4, 2, 4, 2], (3,))
    buffer = np.zeros(reading.buffer_shape, np.int32)
    reading.place(np.array([1, 2, 3, 4], np.int32), buffer)
    assert buffer.tolist() == [4, 3]


def test_a_buffer_that_is_not_contiguous_is_refused() -> None:
    reading = plan_chunks((4, 4), ..., (2, 2))
    buffer = np.zeros((4, 4)).T
    with pytest.raises(ValueError, match="C-contiguous"):
        reading.place(np.ones((4, 4)), buffer)
    with pytest.raises(ValueError, match="C-contiguous"):
        reading.pick(buffer)


def test_what_does_not_broadcast_names_both_shapes_and_writes_nothing() -> None:
    reading = plan_chunks((10, 2), np.s_[1:4], (4, 2))
    buffer = np.zeros(reading.buffer_shape)
    with pytest.raises(ValueError, match=r"from shape \(7,\) into shape \(3, 2\)"):
        reading.place(np.ones(7), buffer)
    assert not buffer.any()


@pytest.mark.parametrize(
    "selection", [*ODDITIES, np.s_[0, 0, 0], np.s_[[3]], np.s_[..., ...], [True]], ids=str
)
def test_what_numpy_refuses_is_refused_in_its_words(selection: Any) -> None:
    refusal = refusal_of(lambda: np.empty((3, 4))[selection])
    ours = refusal_of(lambda: plan_chunks((3, 4), selection, (2, 2)))
    assert type(ours) is type(refusal)
    assert str(ours) == str(refusal)


HUGE = (10**12, 1000)


@pytest.mark.parametrize(
    ("selection", "part_count"),
    [
        (np.s_[10**11 + 5 : 10**11 + 9], 10),
        (np.s_[-1], 10),
        (np.s_[:: 10**11, 7], 10),
        (np.s_[[5, 10**12 - 1, 6, -1], ::-1], 20),
        (np.s_[[5, 10**12 - 1, 6], [999, 3, 5]], 3),
        (np.s_[998:1001, [True] + [False] * 999], 2),
    ],
    ids=str,
)
def test_a_few_rows_of_a_huge_grid_are_few_parts(selection: Any, part_count: int) -> None:
    reading = plan_chunks(HUGE, selection, (1000, 100))
    # A thousand times more, and the test would fail rather than end never.
    parts = list(islice(reading.projections(), 1000 * part_count))
    assert len(parts) == part_count
    assert sum(part.size for part in parts) == reading.size


def test_parts_of_an_array_of_any_size_come_one_by_one() -> None:
    reading = plan_chunks(HUGE, ..., (1000, 100))
    assert reading.size == 10**15
    first = [part.coords for part in islice(reading.projections(), 11)]
    assert first == [*((0, column) for column in range(10)), (1, 0)]
    (shard,) = islice(plan_chunks(HUGE, ..., HUGE).projections(), 1)
    assert [part.coords for part in islice(shard.split((1000, 100)), 11)] == first


@pytest.mark.parametrize("module", [buffer, chunks, projecting])
def test_examples(module: Any) -> None:
    assert doctest.testmod(module, extraglobs={"np": np}).failed == 0
