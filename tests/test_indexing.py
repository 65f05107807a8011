"""Selections as runs of elements, with numpy as the oracle. No backend: these are pure functions."""

from __future__ import annotations

import doctest
from collections.abc import Callable
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from selections import ODDITIES, Choices, Shape, any_selection, any_shape, distinct, selections

from examples import examples
from tensorage import indexing
from tensorage.indexing import (
    MAX_OVER_READ_BYTES,
    RequestRuns,
    RunList,
    RunPlan,
    RunProduct,
    Runs,
    covering,
    halve,
    plan_runs,
    reading,
    runs,
    split,
    split_by_request,
)
from tensorage.indexing import selection as selecting

#: The time of an example says nothing here.
UNTIMED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

MNIST = (60000, 28, 28)
#: Whole rows of it that fit 1 MiB.
MNIST_CHUNK = 784 * 334

#: Bytes of an element, such that the bound on over-read decides for small arrays as it does for large ones.
ITEMSIZES = st.sampled_from([1, 4, 100, 5000, 16384, 1 << 20, 1 << 22])
CHUNKS = st.sampled_from([1, 3, 8, 100, 10_000])
DTYPES = st.sampled_from(["<i4", ">f8", "u2", "c8", "M8[s]", "f2", "?"])
CAPS = st.fixed_dictionaries(
    {
        "max_elements": st.sampled_from([1, 3, 10, 1000]),
        "max_runs": st.sampled_from([1, 3, 1000]),
        "align": st.sampled_from([1, 4, 30]),
        "max_positions": st.sampled_from([2, 5, 1000]),
        "max_blocks": st.sampled_from([None, 1, 2, 5]),
    }
)


def positions(source: Runs) -> np.ndarray[Any, Any]:
    """The place in the flat array of each element of the buffer: what a server makes of a source."""
    if isinstance(source, RunProduct):
        runs = np.arange(source.run_length)
        return (source.rows[:, None, None] + source.runs[:, None] + runs).reshape(-1)
    inside = np.arange(source.size) - np.repeat(np.cumsum(source.lengths) - source.lengths, source.lengths)
    return np.repeat(source.starts, source.lengths) + inside


def filled_buffer(reading: RunPlan, array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return array.reshape(-1)[positions(reading.runs)]


def numbered(shape: tuple[int, ...], dtype: str = "<i4") -> np.ndarray[Any, Any]:
    return np.arange(int(np.prod(shape))).astype(dtype).reshape(shape)


def count_of(split_by_request: Any) -> int:
    return sum(1 for _ in split_by_request)


def assert_same(result: Any, expected: Any) -> None:
    """Equal in value, dtype and shape, and a scalar where the other is one."""
    assert type(result) is type(expected)
    assert result.dtype == expected.dtype
    assert result.shape == expected.shape
    np.testing.assert_array_equal(result, expected)


def refusal_of(indexing: Callable[[], Any]) -> Exception | None:
    """The error with which an index expression is refused."""
    try:
        indexing()
    except (IndexError, OverflowError, TypeError, ValueError) as error:
        return error
    return None


def message_of(error: Exception | None) -> str:
    """The message without the shapes, which numpy lists once for each axis of a mask."""
    return str(error).partition("with shapes")[0]


@settings(UNTIMED, max_examples=examples(2000))
@given(selections(), DTYPES, ITEMSIZES, CHUNKS, st.booleans())
def test_what_is_picked_is_what_numpy_gives(
    case: tuple[tuple[int, ...], Any], dtype: str, itemsize: int, chunk: int, exact: bool
) -> None:
    shape, selection = case
    array = numbered(shape, dtype)
    refusal = refusal_of(lambda: array[selection])
    if refusal is not None:
        ours = refusal_of(lambda: plan_runs(shape, selection, itemsize, chunk, exact=exact))
        assert type(ours) is type(refusal)
        assert message_of(ours) == message_of(refusal)
        return
    expected = array[selection]
    reading = plan_runs(shape, selection, itemsize, chunk, exact=exact)
    buffer = filled_buffer(reading, array)
    assert reading.shape == expected.shape
    assert_same(reading.pick(buffer), expected)
    if reading.is_whole_buffer:
        np.testing.assert_array_equal(buffer.reshape(reading.shape), expected)


@settings(UNTIMED, max_examples=examples(1000))
@given(selections(wrong=False), ITEMSIZES, CHUNKS, st.booleans(), CAPS)
def test_parts_are_the_buffer_and_obey_their_caps(
    case: tuple[tuple[int, ...], Any], itemsize: int, chunk: int, exact: bool, caps: dict[str, Any]
) -> None:
    shape, selection = case
    try:
        source = plan_runs(shape, selection, itemsize, chunk, exact=exact).runs
    except IndexError:
        return
    done = 0
    expected = positions(source)
    for part in split(source, **caps):
        asked = positions(part.runs)
        assert part.out_first == done
        assert 0 < len(asked) == part.size <= caps["max_elements"]
        np.testing.assert_array_equal(asked, expected[done : done + part.size])
        assert_within_caps(part.runs, caps)
        assert_halves_are_it(part)
        done += part.size
    assert done == source.size


def assert_within_caps(source: Runs, caps: dict[str, Any]) -> None:
    if isinstance(source, RunProduct):
        assert len(source.rows) * len(source.runs) <= caps["max_runs"]
        assert len(source.rows) + len(source.runs) <= caps["max_positions"]
    else:
        assert len(source.starts) <= min(caps["max_runs"], caps["max_positions"])
        assert (source.lengths > 0).all()
        assert (source.starts[1:] >= source.starts[:-1] + source.lengths[:-1]).all()
    if caps["max_blocks"] is not None:
        assert len(distinct(positions(source) // caps["align"])) <= caps["max_blocks"]


def assert_halves_are_it(part: RequestRuns) -> None:
    if part.size < 2:
        return
    first, second = halve(part)
    assert first.size > 0
    assert second.size > 0
    assert (first.out_first, second.out_first) == (part.out_first, part.out_first + first.size)
    both = np.concatenate((positions(first.runs), positions(second.runs)))
    np.testing.assert_array_equal(both, positions(part.runs))


def assert_little_travels(array_shape: tuple[int, ...], selection: Any, itemsize: int, chunk: int) -> RunPlan:
    """The rule in the module's docstring, by counting."""
    reading = plan_runs(array_shape, selection, itemsize, chunk)
    exact = plan_runs(array_shape, selection, itemsize, chunk, exact=True)
    selected = distinct(positions(exact.runs))
    assert exact.size == len(selected)
    allowed = 2 * len(selected) * itemsize + MAX_OVER_READ_BYTES * len(distinct(selected // chunk))
    if reading.size * itemsize > allowed:
        assert count_of(split_by_request(reading.runs, itemsize, chunk)) < count_of(
            split_by_request(exact.runs, itemsize, chunk)
        )
    return reading


@settings(UNTIMED, max_examples=examples(800))
@given(selections(wrong=False), ITEMSIZES, CHUNKS)
def test_over_read_is_bounded(case: tuple[tuple[int, ...], Any], itemsize: int, chunk: int) -> None:
    shape, selection = case
    array = numbered(shape, "i8")
    try:
        selected = distinct(array[selection])
    except IndexError:
        return
    exact = plan_runs(shape, selection, itemsize, chunk, exact=True)
    np.testing.assert_array_equal(np.sort(positions(exact.runs)), selected)
    assert_little_travels(shape, selection, itemsize, chunk)


@settings(UNTIMED, max_examples=examples(800))
@given(selections(wrong=False), st.sampled_from([1, 2, 3, 8, 30]))
@example(((2, 40), np.s_[:, [1, 8, 9]]), 4)
@example(((3, 4, 5), np.s_[[0, 0, 1], :, [0, 1, 3]]), 5)
def test_no_more_blocks_are_counted_than_are_touched(case: tuple[tuple[int, ...], Any], chunk: int) -> None:
    shape, selection = case
    try:
        selected = numbered(shape, "i8")[selection]
    except IndexError:
        return
    if selected.size:
        indexer = selecting.parse(shape, selection)
        counted = covering.count_touched_blocks(indexer.base, indexer.dims, chunk)
        assert counted <= len(distinct(selected // chunk))


@st.composite
def assignments(draw: st.DrawFn) -> tuple[Shape, Any, Shape]:
    """A selection, and the shape of a value that mostly broadcasts to it."""
    choices = Choices(draw)
    shape = any_shape(choices)
    return (shape, *any_assignment(choices, shape))


def any_assignment(choices: Choices, shape: Shape) -> tuple[Any, Shape]:
    selection = any_selection(choices, shape, wrong=False)
    try:
        value = list(np.empty(shape)[selection].shape)
    except IndexError:
        value = []
    value = value[choices.integer(0, len(value)) if choices.is_true() else 0 :]
    value = [choices.one_of([n, n, n, 1]) for n in value]
    odd = choices.one_of(["", "", "", "", "leading", "longer"])
    if odd == "leading":
        value.insert(0, 1)
    elif odd == "longer" and value:
        value[-1] += 1
    return selection, tuple(value)


@settings(UNTIMED, max_examples=examples(1200))
@given(assignments(), ITEMSIZES, CHUNKS)
def test_what_is_placed_is_what_numpy_assigns(
    case: tuple[tuple[int, ...], Any, tuple[int, ...]], itemsize: int, chunk: int
) -> None:
    shape, selection, value_shape = case
    array = numbered(shape)
    value = -1 - numbered(value_shape)
    try:
        reading = plan_runs(shape, selection, itemsize, chunk, exact=True)
    except IndexError:
        return
    expected = array.copy()
    buffer = filled_buffer(reading, array)
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
    array.reshape(-1)[positions(reading.runs)] = buffer
    np.testing.assert_array_equal(array, expected)


def test_a_shuffled_batch_with_repeats_is_one_request() -> None:
    batch = np.random.default_rng(0).integers(0, 60000, 1024)
    reading = assert_little_travels(MNIST, batch, 4, MNIST_CHUNK)
    assert isinstance(reading.runs, RunProduct)
    np.testing.assert_array_equal(reading.runs.rows, distinct(batch) * 784)
    assert (reading.runs.runs.tolist(), reading.runs.run_length) == ([0], 784)
    assert count_of(split_by_request(reading.runs, 4, MNIST_CHUNK)) == 1


def test_neighbouring_rows_are_one_run() -> None:
    for selection in (slice(100, 200), list(range(100, 200)), np.arange(60000) // 100 == 1):
        reading = plan_runs(MNIST, selection, 4, MNIST_CHUNK)
        assert reading.is_whole_buffer
        assert positions(reading.runs).tolist() == list(range(100 * 784, 200 * 784))
        assert count_of(split_by_request(reading.runs, 4, MNIST_CHUNK)) == 1
        assert isinstance(reading.runs, RunProduct)
        assert reading.runs.run_length == 100 * 784


def test_a_strided_last_axis_does_not_read_whole_rows() -> None:
    reading = plan_runs(MNIST, np.s_[..., ::4], 4, MNIST_CHUNK)
    selected, blocks = 60000 * 28 * 7, 180
    assert reading.size * 4 <= 2 * selected * 4 + MAX_OVER_READ_BYTES * blocks
    assert reading.shape == (60000, 28, 7)


def test_a_strided_last_axis_of_one_row_reads_it_as_one_run() -> None:
    reading = assert_little_travels(MNIST, np.s_[3, :, ::4], 4, MNIST_CHUNK)
    assert isinstance(reading.runs, RunProduct)
    assert (len(reading.runs.rows), len(reading.runs.runs)) == (1, 1)
    assert reading.runs.run_length == 27 * 28 + 25


def test_one_element_of_each_row_reads_nothing_else() -> None:
    reading = plan_runs(MNIST, np.s_[:, 4, 4], 4, MNIST_CHUNK)
    assert reading.size == 60000
    assert count_of(split_by_request(reading.runs, 4, MNIST_CHUNK)) == 1
    assert reading.is_whole_buffer


def test_rows_and_runs_are_few_numbers_for_many_runs() -> None:
    reading = plan_runs((1000, 1000, 1000, 10), np.s_[:, ::2, 4, 4], 8, 1 << 17)
    assert isinstance(reading.runs, RunProduct)
    assert (len(reading.runs.rows), len(reading.runs.runs)) == (1000, 500)


def test_more_may_travel_where_that_saves_requests() -> None:
    shape, chunk = (2048, 5120), 1 << 20
    reading = plan_runs(shape, np.s_[:, ::5], 1, chunk)
    exact = plan_runs(shape, np.s_[:, ::5], 1, chunk, exact=True)
    # All the bytes, 10 MiB, in fewer requests than so many runs.
    assert reading.size > 4 * exact.size + MAX_OVER_READ_BYTES * 10
    assert count_of(split_by_request(reading.runs, 1, chunk)) < count_of(
        split_by_request(exact.runs, 1, chunk)
    )


def test_stretches_are_few_spans() -> None:
    mask = np.zeros(60000, bool)
    for begin, end in ((5, 300), (1000, 1800), (59990, 60000)):
        mask[begin:end] = True
    sorted_list = np.flatnonzero(mask).tolist()
    for selection in (mask, sorted_list, sorted_list[::-1], sorted_list + sorted_list[:7]):
        reading = assert_little_travels((60000, 28), selection, 4, 28 * 9362)
        assert isinstance(reading.runs, RunList)
        assert reading.runs.starts.tolist() == [5 * 28, 1000 * 28, 59990 * 28]
        assert reading.runs.lengths.tolist() == [295 * 28, 800 * 28, 10 * 28]


def test_small_gaps_are_closed_but_for_an_assignment() -> None:
    indices = [0, 1, 3, 4, 6, 7, 500_000, 500_002, 500_003]
    reading = plan_runs((1_000_000,), indices, 4, 1 << 18)
    assert isinstance(reading.runs, RunList)
    assert reading.runs.starts.tolist() == [0, 500_000]
    assert reading.runs.lengths.tolist() == [8, 4]
    exact = plan_runs((1_000_000,), indices, 4, 1 << 18, exact=True)
    assert positions(exact.runs).tolist() == indices


def test_where_not_all_gaps_can_be_closed_the_smallest_are() -> None:
    # Pairs of elements with one between them, and twelve between the pairs: each gap is cheaper than a run.
    indices = np.cumsum(np.tile([2, 13], 10_000))
    reading = assert_little_travels((1_000_000,), indices, 8, 1 << 17)
    assert isinstance(reading.runs, RunList)
    gaps = reading.runs.starts[1:] - reading.runs.starts[:-1] - reading.runs.lengths[:-1]
    assert set(gaps.tolist()) == {12}
    assert 5000 < len(gaps) < 9999


@pytest.mark.parametrize("density", [0.001, 0.1, 0.5, 0.999])
def test_a_mask_of_a_million(density: float) -> None:
    mask = np.random.default_rng(1).random(1_000_000) < density
    array = numbered(mask.shape)
    reading = assert_little_travels(mask.shape, mask, 4, 1 << 18)
    assert_same(reading.pick(filled_buffer(reading, array)), array[mask])
    shaped = mask.reshape(100, 100, 100)
    reading = assert_little_travels(shaped.shape, shaped, 4, 1 << 18)
    assert_same(reading.pick(filled_buffer(reading, array)), array[mask])


def test_repeats_are_not_one_element_in_memory() -> None:
    array = numbered((5, 3))
    reading = plan_runs(array.shape, [2, 2], 4, 15)
    result = reading.pick(filled_buffer(reading, array))
    result[0] = -1
    assert result.tolist() == [[-1, -1, -1], [6, 7, 8]]


def test_an_array_of_any_size_is_planned_for() -> None:
    reading = plan_runs((10**9, 10**6), np.s_[5 : 10**9 - 5], 8, 1 << 17)
    assert reading.size == (10**9 - 10) * 10**6
    first = next(split_by_request(reading.runs, 8, 1 << 17))
    assert first.size <= indexing.max_elements(8, 1 << 17)


def test_long_runs_are_cut_where_blocks_end() -> None:
    reading = plan_runs((1000,), np.s_[150:950], 1, 100)
    parts = list(split(reading.runs, 250, 1000, align=100))
    assert [positions(part.runs)[0] for part in parts] == [150, 400, 600, 800]
    by_blocks = list(split(reading.runs, 1000, 1000, align=100, max_blocks=1))
    assert [positions(part.runs)[0] for part in by_blocks] == [150, *range(200, 1000, 100)]


@pytest.mark.parametrize("max_blocks", [1, 2, 3, 5, 7])
def test_runs_in_any_order_touch_no_more_blocks_than_allowed(max_blocks: int) -> None:
    # The selection [:, [0, 0], :, [0, 1]] gives such runs: its points lie around the third axis.
    grid = RunProduct(np.array([0, 237, 1000]), np.array([0, 40, 80, 1, 41, 81]), 1)
    parts = list(split(grid, 1000, 1000, align=10, max_blocks=max_blocks))
    assert all(len(distinct(positions(part.runs) // 10)) <= max_blocks for part in parts)
    np.testing.assert_array_equal(np.concatenate([positions(part.runs) for part in parts]), positions(grid))


@pytest.mark.parametrize(
    ("selection", "is_whole"),
    [
        (np.s_[:], True),
        (np.s_[3:9], True),
        (np.s_[4], True),
        (np.s_[2:5, 1:2, None], True),
        (np.s_[::2], True),
        (np.s_[[1, 2, 3]], True),
        (np.s_[[1, 7, 9]], True),
        (np.s_[::-1], False),
        (np.s_[[3, 2, 1]], False),
        (np.s_[[1, 1]], False),
        (np.s_[:, ::2], True),
        (np.s_[..., ::2], False),
        (np.s_[:, [2, 0]], False),
        (np.s_[:0], True),
    ],
    ids=str,
)
def test_a_buffer_that_is_the_result_is_known_as_such(selection: Any, is_whole: bool) -> None:
    assert plan_runs((10, 3, 40000), selection, 8, 120_000).is_whole_buffer is is_whole


@pytest.mark.parametrize(
    "selection",
    [np.s_[1, 2], np.s_[1, 2, ...], np.s_[np.array(1), np.uint8(2)], np.s_[[1], 2], np.s_[..., 2]],
    ids=str,
)
def test_a_scalar_is_one_where_numpy_gives_one(selection: Any) -> None:
    array = numbered((3, 4))
    reading = plan_runs(array.shape, selection, 4, 12)
    assert_same(reading.pick(filled_buffer(reading, array)), array[selection])


@pytest.mark.parametrize("selection", [(), ..., None, True, False, (None, ...), np.array(True)], ids=str)
def test_no_axes_at_all(selection: Any) -> None:
    array = np.array(5.0)
    reading = plan_runs((), selection, 8, 1)
    assert_same(reading.pick(filled_buffer(reading, array)), array[selection])


def test_of_repeated_indices_the_last_value_stays() -> None:
    reading = plan_runs((10,), [4, 2, 4, 2], 4, 10, exact=True)
    buffer = np.zeros(2, np.int32)
    reading.place(np.array([1, 2, 3, 4], np.int32), buffer)
    assert buffer.tolist() == [4, 3]


@pytest.mark.parametrize("selection", [np.s_[1:4], [1, 2, 3], np.s_[1:4, 0]], ids=str)
def test_what_does_not_broadcast_names_both_shapes_and_writes_nothing(selection: Any) -> None:
    reading = plan_runs((10, 2), selection, 4, 20, exact=True)
    buffer = np.zeros(reading.size, np.int32)
    with pytest.raises(ValueError, match=r"from shape \(7,\) into shape \(3,") as caught:
        reading.place(np.ones(7, np.int32), buffer)
    assert str(reading.shape) in str(caught.value)
    assert not buffer.any()


def test_a_single_element_takes_no_sequence() -> None:
    reading = plan_runs((10,), 3, 4, 10, exact=True)
    with pytest.raises(ValueError, match=r"from shape \(1,\) into shape \(\)"):
        reading.place(np.ones(1, np.int32), np.zeros(1, np.int32))


@pytest.mark.parametrize(
    "selection",
    [
        *ODDITIES,
        10**30,
        np.uint64(2**63),
        slice(1.5),
        slice(None, None, 0),
        np.s_[..., ...],
        np.s_[0, 0, 0],
        [True, False],
        np.ones((3, 5), bool),
        np.ones((3, 4, 1), bool),
        np.s_[[0, 1], [0, 1, 2]],
        np.s_[[3]],
        np.s_[:, [-5]],
        np.s_[[0], 4],
        np.s_[[9], slice(1.5)],
        np.s_[:0, [7]],
        [[1], [1, 2]],
        (None,) * 64,
    ],
    ids=str,
)
def test_what_numpy_refuses_is_refused_in_its_words(selection: Any) -> None:
    refusal = refusal_of(lambda: np.empty((3, 4))[selection])
    ours = refusal_of(lambda: plan_runs((3, 4), selection, 8, 12))
    assert type(ours) is type(refusal)
    assert str(ours) == str(refusal)


@pytest.mark.parametrize("module", [covering, reading, runs, selecting])
def test_examples(module: Any) -> None:
    assert doctest.testmod(module, extraglobs={"np": np}).failed == 0
