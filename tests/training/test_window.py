"""The order of a window: each sample once, any part of it at once, memory that is bounded, and samples that mix."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tensorage.training.window import (
    MOST_WIDTH,
    WindowCut,
    WindowOrder,
    choose_slab_bytes,
    choose_width,
)

seeds = st.integers(0, 2**64)
few = settings(max_examples=40)
cuts = st.builds(WindowCut, slab_rows=st.integers(1, 40), width=st.integers(1, 12))


@few
@given(st.integers(0, 600), cuts, seeds, st.integers(0, 10**6))
def test_each_sample_comes_once(length: int, cut: WindowCut, seed: int, epoch: int) -> None:
    order = WindowOrder(length, cut, seed, epoch)[0:length]
    assert order.dtype == np.int64
    assert sorted(order.tolist()) == list(range(length))


@few
@given(st.integers(1, 300), cuts, seeds, st.data())
def test_it_resumes_at_any_sample(length: int, cut: WindowCut, seed: int, data: st.DataObject) -> None:
    order = WindowOrder(length, cut, seed, 0)
    first = data.draw(st.integers(0, length - 1))
    after = data.draw(st.integers(first, length))
    assert order[first:after].tolist() == order[0:length].tolist()[first:after]


def test_it_resumes_at_each_sample() -> None:
    order = WindowOrder(101, WindowCut(7, 3), 5, 2)
    whole = order[0:101].tolist()
    assert [order[place : place + 1].tolist() for place in range(101)] == [[each] for each in whole]


@few
@given(st.integers(1, 600), cuts, seeds)
def test_each_slab_enters_once_and_deals_all_of_its_samples(length: int, cut: WindowCut, seed: int) -> None:
    order = WindowOrder(length, cut, seed, 0)
    entered = 0
    for number in range(order.round_count):
        window = order.window(number)
        assert window.stop >= entered, "no slab leaves before it was there"
        entered = max(entered, window.stop)
        assert all(number in order.rounds(place) for place in window)
        assert len(window) <= 2 * cut.width, "a loop that resumes fetches no more slabs"
    slabs = [order.slab(place) for place in range(order.round_count)]
    assert sorted(row for rows in slabs for row in range(length)[rows]) == list(range(length))
    for place, rows in enumerate(slabs):
        parts = order.parts(place)
        assert len(parts) == len(order.rounds(place))
        assert sorted(np.concatenate(parts).tolist()) == list(range(rows.stop - rows.start))


@few
@given(st.integers(1, 2000), st.integers(8, 40), st.integers(2, 12), seeds)
def test_the_window_holds_what_it_has_room_for(length: int, slab_rows: int, width: int, seed: int) -> None:
    order = WindowOrder(length, WindowCut(slab_rows, width), seed, 0)
    for number in range(order.round_count):
        left = [
            sum(map(len, order.parts(place)[number - order.rounds(place).start :]))
            for place in order.window(number)
        ]
        # A quarter more while it grows, and a sample of each slab, since samples are whole.
        assert sum(left) <= 1.25 * width * slab_rows + len(left)


def test_the_order_never_changes() -> None:
    """Loops that were stored by an older version go on in the order that they began in."""
    order = WindowOrder(20, WindowCut(3, 2), seed=0, epoch=0)
    assert order[0:20].tolist() == [4, 5, 8, 3, 6, 10, 9, 7, 1, 19, 11, 18, 17, 2, 0, 15, 14, 13, 12, 16]
    far = WindowOrder(10**9, WindowCut(10_000, 25), seed=1, epoch=2)
    assert far[5 * 10**8 : 5 * 10**8 + 3].tolist() == [612424821, 363974513, 232809815]


def test_orders_differ_by_seed_epoch_and_cut() -> None:
    orders = [
        WindowOrder(60, WindowCut(slab_rows, width), seed, epoch)[:].tolist()
        for slab_rows, width, seed, epoch in [
            (5, 3, 0, 0),
            (6, 3, 0, 0),
            (5, 4, 0, 0),
            (5, 3, 1, 0),
            (5, 3, 0, 1),
        ]
    ]
    assert len({tuple(order) for order in orders}) == len(orders)


def test_an_array_of_few_slabs_is_mixed_as_a_whole() -> None:
    """All slabs are in the window from the first round to the last."""
    order = WindowOrder(1000, WindowCut(125, 64), 0, 0)
    assert [order.window(number) for number in range(order.round_count)] == [range(8)] * 8
    counts = np.zeros((8, 8))
    for epoch in range(200):
        samples = WindowOrder(1000, WindowCut(125, 64), 0, epoch)[:]
        np.add.at(counts, (np.arange(1000) // 125, samples // 125), 1)
    assert np.abs(counts / 200 / (125 / 8) - 1).max() < 0.05


@pytest.mark.parametrize(("slabs", "width"), [(100, 8), (400, 25)])
def test_neighbours_in_the_order_are_strangers(slabs: int, width: int) -> None:
    """On an array sorted by its labels, the label of a sample says little about that of the next one."""
    length = slabs * 50
    found = [correlation(WindowOrder(length, WindowCut(50, width), 0, epoch)[:]) for epoch in range(5)]
    assert abs(np.mean(found)) < 1.2 / width, "that of windows that follow each other is about 1 / width"


def test_slabs_of_one_sample_mix_too() -> None:
    """Samples as large as an object leave the window in another order than they entered it."""
    order = WindowOrder(500, WindowCut(1, 8), 0, 0)
    entered = {order.slab(place).start: place for place in range(500)}
    moved = [entered[int(sample)] - place for place, sample in enumerate(order[:])]
    assert np.std(moved) > 3
    assert max(map(abs, moved)) <= 2 * 8 + 4 * np.sqrt(8)


def test_the_room_decides_the_cut() -> None:
    for window_bytes in (1, 10, 10**3, 10**6, 10**7, 10**9, 10**12):
        slab_bytes = choose_slab_bytes(window_bytes)
        width = choose_width(window_bytes, slab_bytes)
        assert width <= MOST_WIDTH
        assert slab_bytes <= max(window_bytes // 5, 1)
        assert width * slab_bytes * 1.25 <= max(window_bytes, 2)


def correlation(order: npt.NDArray[np.int64]) -> float:
    """Correlation of the places in the array of samples that follow each other."""
    return float(np.corrcoef(order[:-1], order[1:])[0, 1])
