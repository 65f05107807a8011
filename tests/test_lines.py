"""The measured line, and the decisions that depend on it: pure functions."""

from __future__ import annotations

import doctest

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from tensorage.backend.wire import line
from tensorage.backend.wire.line import MAX_OBJECTS, MIN_RATED_BYTES, PARALLEL, LineEstimate, LineMeter
from tensorage.backend.zarr import ranges
from tensorage.backend.zarr.ranges import EMPTY, MAX_OVER_READ_BYTES, join_ranges

#: The time of an example says nothing here.
UNTIMED = settings(deadline=None)

LINES = st.builds(LineEstimate, st.floats(1e-5, 10), st.floats(1e3, 1e12))


@pytest.mark.parametrize("module", [line, ranges])
def test_examples_of_docstrings(module: object) -> None:
    assert doctest.testmod(module).failed == 0  # type: ignore[arg-type]


# --- decisions ----------------------------------------------------------------------------------------


@UNTIMED
@given(LINES, st.integers(0, 2**33), st.integers(0, 2**33))
def test_downloads_at_once(estimate: LineEstimate, nbytes: int, more: int) -> None:
    parallel = estimate.parallel(nbytes)
    assert PARALLEL <= parallel <= MAX_OBJECTS
    # Longer downloads fill the line sooner.
    assert estimate.parallel(nbytes + more) <= parallel
    # A longer line, or a thicker one, has room for as many.
    longer = LineEstimate(2 * estimate.round_trip_s, estimate.bytes_per_s)
    thicker = LineEstimate(estimate.round_trip_s, 2 * estimate.bytes_per_s)
    assert min(longer.parallel(nbytes), thicker.parallel(nbytes)) >= parallel


@UNTIMED
@given(LINES)
def test_bytes_that_are_worth_a_request(estimate: LineEstimate) -> None:
    gap = estimate.gap_bytes()
    assert gap >= 0
    # They never take longer than a request alone would, or than this process takes for one.
    assert gap <= max(estimate.round_trip_s / PARALLEL, line.REQUEST_S) * estimate.bytes_per_s
    assert LineEstimate(estimate.round_trip_s, 2 * estimate.bytes_per_s).gap_bytes() >= min(gap, 2**31)


@st.composite
def chunks_of_an_object(draw: st.DrawFn) -> np.ndarray[tuple[int, int], np.dtype[np.uint64]]:
    """Chunks in any order, with gaps, some of them empty."""
    at, found = draw(st.integers(0, 100)), []
    for _ in range(draw(st.integers(0, 30))):
        length = draw(st.integers(1, 1000))
        found.append((at, length))
        at += length + draw(st.one_of(st.just(0), st.integers(1, 200_000)))
    found += [(EMPTY, EMPTY)] * draw(st.integers(0, 3))
    return np.array(draw(st.permutations(found)), np.uint64).reshape(-1, 2)


@UNTIMED
@given(chunks_of_an_object(), st.integers(0, 200_000), st.integers(1, 3_000_000))
def test_ranges_have_all_chunks_and_little_else(
    chunks: np.ndarray[tuple[int, int], np.dtype[np.uint64]], max_gap_bytes: int, max_bytes: int
) -> None:
    joined = join_ranges(chunks, max_gap_bytes, max_bytes)
    stored = chunks[:, 0] != EMPTY
    assert (joined.numbers == -1).tolist() == (~stored).tolist()
    useful = int(chunks[stored, 1].sum())
    covered = sum(joined.ends) - sum(joined.firsts)
    # The bound on over-read, and on a gap.
    assert covered - useful <= MAX_OVER_READ_BYTES * int(stored.sum())
    spans = list(zip(joined.firsts, joined.ends, strict=True))
    assert spans == sorted(spans)
    for number, (first, end) in enumerate(spans):
        members = chunks[joined.numbers == number].astype(np.int64)
        members = members[np.argsort(members[:, 0])]
        # Each chunk lies in its range, whose ends are those of chunks, and each gap is narrow.
        assert first == members[0, 0]
        assert end == members[-1].sum()
        gaps = members[1:, 0] - members[:-1].sum(axis=1)
        assert (gaps <= max_gap_bytes).all()
        assert end - first <= max_bytes or len(members) == 1


def test_the_narrowest_gaps_are_closed_first() -> None:
    room = 4 * MAX_OVER_READ_BYTES
    starts = np.cumsum([0, room // 2 + 1, room // 2 - 10, 2 * room])
    chunks = np.stack((starts, np.ones(4, int)), axis=1).astype(np.uint64)
    assert join_ranges(chunks, 10 * room).numbers.tolist() == [0, 0, 0, 1]
    chunks[2:, 0] += np.uint64(100)
    assert join_ranges(chunks, 10 * room).numbers.tolist() == [0, 0, 1, 2]
    assert join_ranges(chunks, 0).numbers.tolist() == [0, 1, 2, 3]


# --- measuring ----------------------------------------------------------------------------------------


def test_nothing_measured_is_guessed() -> None:
    assert LineMeter().estimate() == LineEstimate()


@UNTIMED
@given(
    st.floats(0.001, 0.2),
    st.floats(1e6, 1e9),
    st.lists(st.tuples(st.integers(2**18, 2**24), st.floats(0, 3)), min_size=1, max_size=15),
)
def test_noise_only_makes_a_line_longer_and_thinner(
    round_trip_s: float, bytes_per_s: float, downloads: list[tuple[int, float]]
) -> None:
    meter, now = LineMeter(), 1000.0
    for nbytes, noise_s in [*downloads, (2**20, 0.0)]:
        meter.begin(now)
        now += round_trip_s + nbytes / bytes_per_s + noise_s
        meter.end(now, round_trip_s + noise_s, nbytes)
    estimate = meter.estimate()
    # The last download has no noise, which tells the round trip.
    assert estimate.round_trip_s == pytest.approx(round_trip_s)
    # A wait that is most of the time is no measure, so that half of it counts at least.
    rated = 2 * 2**20 / (round_trip_s + 2**20 / bytes_per_s)
    assert min(bytes_per_s, rated) <= estimate.bytes_per_s * 1.001
    assert estimate.bytes_per_s <= bytes_per_s * 1.001


def test_downloads_side_by_side_are_rated_together() -> None:
    meter = LineMeter()
    for _ in range(8):
        meter.begin(10.0)
    for _ in range(8):
        meter.end(10.53, 0.03, 2**20)
    assert meter.estimate().bytes_per_s == pytest.approx(8 * 2**20 / 0.5)


def test_few_bytes_tell_no_width_and_failures_tell_nothing() -> None:
    meter = LineMeter()
    for nbytes in (0, 100, MIN_RATED_BYTES - 1):
        meter.begin(1.0)
        meter.end(1.001, 0.001, nbytes)
    assert meter.estimate() == LineEstimate(0.001)
    meter.begin(2.0)
    meter.end(2.0)
    assert meter.estimate() == LineEstimate(0.001)


def test_what_was_measured_long_ago_is_forgotten() -> None:
    meter = LineMeter()
    for took_s in [0.1] + [0.2] * 100:
        meter.begin(1.0)
        meter.end(1.0 + took_s, took_s / 2, MIN_RATED_BYTES)
    assert meter.estimate().round_trip_s == 0.1
    assert meter.estimate().bytes_per_s == pytest.approx(MIN_RATED_BYTES / 0.1)
