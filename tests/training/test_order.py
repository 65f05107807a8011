"""The order of an epoch: a permutation, any part of it at once, and by chance as far as statistics can tell."""

from __future__ import annotations

import math
from collections import Counter
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tensorage.training.order import Shuffle

seeds = st.integers(0, 2**64)


@given(st.integers(0, 3000), seeds, st.integers(0, 10**6))
def test_each_sample_comes_once(length: int, seed: int, epoch: int) -> None:
    assert sorted(Shuffle(length, seed, epoch)[0:length].tolist()) == list(range(length))


@given(st.integers(1, 2**62), seeds, st.data())
def test_a_part_is_the_same_as_in_the_whole(length: int, seed: int, data: st.DataObject) -> None:
    first = data.draw(st.integers(0, length - 1))
    places = range(first, min(first + 20, length))
    shuffle = Shuffle(length, seed, 0)
    samples = shuffle[places.start : places.stop]
    assert samples.dtype == np.int64
    assert [int(shuffle[place : place + 1][0]) for place in places] == samples.tolist()
    assert len(set(samples.tolist())) == len(places)
    assert all(0 <= sample < length for sample in samples.tolist())


def test_the_order_never_changes() -> None:
    """Loops that were stored by an older version go on in the order that they began in."""
    assert Shuffle(8, seed=0, epoch=0)[0:8].tolist() == [3, 7, 1, 4, 5, 6, 2, 0]
    assert Shuffle(10**12, seed=1, epoch=2)[5:8].tolist() == [120117603137, 341679260038, 929622051707]


def test_nothing_comes_of_nothing() -> None:
    assert Shuffle(0, 0, 0)[0:10].tolist() == []
    assert Shuffle(5, 0, 0)[3:3].tolist() == []
    assert Shuffle(5, 0, 0)[4:2].tolist() == []


@pytest.mark.parametrize("length", [2, 3, 4, 5])
def test_all_permutations_of_a_few_are_as_likely(length: int) -> None:
    epochs = 6000
    seen = Counter(tuple(Shuffle(length, 7, epoch)[0:length].tolist()) for epoch in range(epochs))
    expected = epochs / math.factorial(length)
    assert _chi_square([seen[each] for each in permutations(range(length))], expected) < 5


def test_all_places_are_as_likely_for_all_samples() -> None:
    length, epochs, bins = 1000, 500, 10
    counts = np.zeros((bins, bins))
    for epoch in range(epochs):
        order = Shuffle(length, 1, epoch)[0:length]
        counts += np.histogram2d(np.arange(length), order, bins=bins)[0]
    assert _chi_square(counts.ravel().tolist(), length * epochs / bins**2) < 5


def test_neighbours_do_not_stay_together() -> None:
    """One pair an epoch follows each other as before by chance, whatever the length."""
    pairs = [int((np.diff(Shuffle(500, 3, epoch)[0:500]) == 1).sum()) for epoch in range(1000)]
    assert abs(np.mean(pairs) - 1) < 5 / math.sqrt(len(pairs))


def test_seeds_and_epochs_are_different_orders() -> None:
    orders = {tuple(Shuffle(1000, seed, epoch)[0:20].tolist()) for seed in range(20) for epoch in range(20)}
    assert len(orders) == 400


def _chi_square(counts: list[float], expected: float) -> float:
    """Standard deviations by which the counts are further from equal than by chance."""
    freedom = len(counts) - 1
    statistic = sum((count - expected) ** 2 / expected for count in counts)
    return (statistic - freedom) / math.sqrt(2 * freedom)
