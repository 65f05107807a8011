"""Calls on a project that is far away, next to what the line allows."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

import tensorage
from benchmarks import probes
from benchmarks.bench import Bench
from benchmarks.measure import MB, REPETITIONS, Result, Target, median_of
from benchmarks.network import Apart, Counts
from tensorage.types import Engine

#: 63 MB of images of 3 kB.
SHAPE = (20_000, 28, 28)

BATCH = 64
BATCHES = 8

#: A row that has taken so long is not repeated any more.
ENOUGH_S = 30.0

_ENGINES: tuple[Engine, ...] = ("database", "storage")


@dataclass(frozen=True)
class Distance:
    """The length and the width of a line."""

    round_trip_s: float = 0.0
    bytes_per_s: float = math.inf

    def __str__(self) -> str:
        if math.isinf(self.bytes_per_s):
            return f"{1e3 * self.round_trip_s:g} ms"
        return f"{1e3 * self.round_trip_s:g} ms, {8 * self.bytes_per_s / MB:g} Mbit/s"

    def least_s(self, round_trips: int, nbytes: int) -> float:
        """Return the time that the line takes, whatever a client does."""
        return round_trips * self.round_trip_s + nbytes / self.bytes_per_s


#: The distance that targets are for is the second one.
DISTANCES = (Distance(), Distance(0.03, 200 * MB / 8), Distance(0.12, 50 * MB / 8))


@dataclass(frozen=True)
class Row:
    """A call to measure, by the number of its repetition.

    Parameters
    ----------
    call
        Returns the seconds that it took if it knows them better, and what it read.
    expected
        Returns what it should have read.
    nbytes
        Useful bytes: those of the elements that were asked for, or given.
    round_trips
        Round trips that cannot be avoided.
    warms
        True if a call that is not measured comes first, so that connections are open.
    targets
        Largest ratio to the limit, by engine.
    """

    name: str
    call: Callable[[int], Any]
    expected: Callable[[int], Any]
    nbytes: int
    round_trips: int = 1
    warms: bool = True
    targets: Mapping[Engine, Target] = field(default_factory=dict)


def far(bench: Bench) -> Iterator[Result]:
    """20,000 images of 3 kB, and arrays of 10 numbers, through lines of some length, by both engines."""
    images = np.random.default_rng(0).random(SHAPE, dtype=np.float32)
    for engine in _ENGINES:
        bench.store.write(f"far/{engine}/images", images, engine=engine)
        for number in range(REPETITIONS + 1):
            bench.store.write(f"far/{engine}/small/{number}", _numbers(number), engine=engine)
    bench.straight.execute("vacuum analyze")
    bench.straight.execute("checkpoint")
    for distance in DISTANCES:
        for engine in _ENGINES:
            yield from _measure(bench, distance, engine, images)
    bench.store.group("far").clear()


def _measure(
    bench: Bench, distance: Distance, engine: Engine, images: npt.NDArray[np.float32]
) -> Iterator[Result]:
    with ExitStack() as stack:
        line = stack.enter_context(Apart(bench.running.api_url, distance.round_trip_s, distance.bytes_per_s))
        user = (bench.running.email, bench.running.password)
        session = tensorage.BackendSession(*user, line.url, bench.running.anon_key)
        stack.callback(session.logout)
        store = tensorage.TensorStore(session, quiet=True, engine=engine, allow_overwrite=True)
        for row in _rows(bench, line, store.group(f"far/{engine}"), images):
            yield from _measure_row(f"{distance}, {engine}: {row.name}", row, line, distance, engine)
        bench.check(bench.store[f"far/{engine}/copy"][: len(images)], images)


def _measure_row(case: str, row: Row, line: Apart, distance: Distance, engine: Engine) -> Iterator[Result]:
    took, passed = _repeat(row, line)
    limit_s = distance.least_s(row.round_trips, row.nbytes)
    beside = _medians(passed)
    if limit_s:
        beside = {
            "ms is the limit": 1e3 * limit_s,
            "x the limit": statistics.median(took) / limit_s,
            **beside,
        }
    yield Result(case, 1e3 * statistics.median(took), "ms", (1e3 * min(took), 1e3 * max(took)), None, beside)
    if distance is DISTANCES[1] and engine in row.targets:
        ratios = [each / limit_s for each in took]
        yield median_of(f"{case} / the limit", ratios, "x", row.targets[engine])


def _repeat(row: Row, line: Apart) -> tuple[list[float], list[Counts]]:
    took: list[float] = []
    passed: list[Counts] = []
    if row.warms:
        row.call(0)
    for number in range(1, REPETITIONS + 1):
        line.counts()
        begin = time.perf_counter()
        found = row.call(number)
        took.append(time.perf_counter() - begin)
        passed.append(line.counts())
        if isinstance(found, _Probed):
            took[-1], found = found.took_s, found.array
        if not np.array_equal(found, row.expected(number)):
            raise AssertionError(f"{row.name}: what came back is not what was stored")
        if sum(took) > ENOUGH_S:
            break
    return took, passed


def _medians(passed: list[Counts]) -> dict[str, float]:
    def median(name: str) -> float:
        return float(statistics.median(getattr(counts, name) for counts in passed))

    return {
        "requests": median("requests"),
        "at most at once": median("peak_requests"),
        "new connections": median("connections"),
        "kB up": median("sent_bytes") / 1e3,
        "kB down": median("received_bytes") / 1e3,
        "repetitions": len(passed),
    }


@dataclass(frozen=True)
class _Probed:
    took_s: float
    array: Any


def _rows(
    bench: Bench, line: Apart, store: tensorage.TensorStore, images: npt.NDArray[np.float32]
) -> Iterator[Row]:
    row_nbytes = images[0].nbytes
    small = _numbers(0)
    handle = store.open("images")
    random = np.random.default_rng(3)
    indices = [random.choice(len(images), BATCH, replace=False) for _ in range(REPETITIONS + 1)]
    yield Row(
        "read of 10 numbers, for the first time",
        lambda number: store[f"small/{number}"],
        _numbers,
        small.nbytes,
        targets=dict.fromkeys(_ENGINES, ("<=", 1.2)),
    )
    yield Row(
        "read of 10 numbers, again",
        lambda _: store["small/0"],
        lambda _: small,
        small.nbytes,
        targets=dict.fromkeys(_ENGINES, ("<=", 1.2)),
    )
    yield Row(
        f"{BATCH} shuffled samples",
        lambda number: handle[indices[number]],
        lambda number: images[indices[number]],
        BATCH * row_nbytes,
        targets={"database": ("<=", 1.4), "storage": ("<=", 4.0)},
    )
    yield Row(
        "1 sample",
        lambda number: handle[int(indices[number][0])],
        lambda number: images[indices[number][0]],
        row_nbytes,
    )
    yield Row(
        f"{BATCHES} shuffled batches, prefetched",
        lambda number: np.concatenate(list(_last_batches(handle, number))),
        lambda number: np.concatenate(list(_last_batches(images, number))),
        BATCHES * BATCH * row_nbytes,
        warms=False,
    )
    yield Row(
        "epoch by shards",
        lambda number: _epoch_by_shards(handle, number),
        lambda _: images,
        images.nbytes,
        warms=False,
        targets=dict.fromkeys(_ENGINES, ("<=", 1 / 0.85)),
    )
    yield Row("bulk read", lambda _: store["images"], lambda _: images, images.nbytes, warms=False)
    yield Row(
        "bulk write",
        lambda _: store.__setitem__("copy", images),
        lambda _: None,
        images.nbytes,
        warms=False,
    )
    yield Row(
        "append of a row",
        lambda _: store.append("copy", images[:1]),
        lambda _: None,
        row_nbytes,
    )
    yield Row(
        "first read of a new process, after its import",
        lambda _: _first_read(bench, line, store.full_key("small/0")),
        lambda _: small,
        small.nbytes,
        # A connection, the login, and the array.
        round_trips=3,
        warms=False,
    )


def _numbers(number: int) -> npt.NDArray[np.float64]:
    return number + np.arange(10.0)


def _last_batches(source: Any, seed: int) -> Iterator[Any]:
    """Yield the last batches of an epoch: nothing is fetched ahead of a loop that is left early."""
    how: dict[str, Any] = {"batch_size": BATCH, "shuffle": True, "seed": seed, "drop_last": True}
    loop = tensorage.batches(source, **how)
    return iter(tensorage.batches(source, **how, start_at={**loop.state(), "batch": len(loop) - BATCHES}))


def _epoch_by_shards(handle: tensorage.Tensor, seed: int) -> _Probed:
    """Go through an epoch, and put its samples in order, which is not measured."""
    begin = time.perf_counter()
    numbers = np.arange(len(handle))
    batches = list(tensorage.batches(handle, numbers, batch_size=BATCH, shuffle="shards", seed=seed))
    took_s = time.perf_counter() - begin
    found = np.empty(handle.shape, handle.dtype)
    for samples, of_batch in batches:
        found[of_batch] = samples
    return _Probed(took_s, found)


def _first_read(bench: Bench, line: Apart, key: str) -> _Probed:
    settings = {
        "url": line.url,
        "key": bench.running.anon_key,
        "email": bench.running.email,
        "password": bench.running.password,
        "array": key,
    }
    return _Probed(**probes.run("first_read", settings))
