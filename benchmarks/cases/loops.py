"""Training loops: the part of its time that a loop waits for batches, and rows that are asked for one by one."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np

import tensorage
from benchmarks.bench import Bench
from benchmarks.measure import REPETITIONS, Result, median_of, milliseconds, ratio, seconds
from tensorage.types import Engine

BATCH = 64

#: Batches of one measurement.
STEPS = 200

#: Largest part of its time, in per cent, that a loop may wait.
WAITING = ("<=", 10.0)

#: Rows of a loop that asks for one after another: 31 MB.
ROWS = 10_000

#: Most time that such a loop may take, in times of reading the array whole.
ONE_BY_ONE = ("<=", 2.0)

_ENGINES: tuple[Engine, ...] = ("database", "storage")


def waiting(bench: Bench) -> Iterator[Result]:
    """Shuffled batches of images and their labels, in a loop that computes for as long as it takes to fetch one."""
    labels = np.arange(len(bench.array))
    for engine in _ENGINES:
        key = f"loops/{engine}"
        bench.store.write(f"{key}/x", bench.array, engine=engine)
        bench.store.write(f"{key}/y", labels, engine=engine)
    bench.straight.execute("vacuum analyze")
    bench.straight.execute("checkpoint")
    for engine in _ENGINES:
        yield from _measure_engine(bench, engine)
    for engine in _ENGINES:
        for name in "xy":
            del bench.store[f"loops/{engine}/{name}"]


def one_by_one(bench: Bench) -> Iterator[Result]:
    """All rows in any order, each asked for by its number, as libraries do that know an array as a sequence."""
    array = bench.array[:ROWS]
    order = np.random.default_rng(0).permutation(ROWS).tolist()

    def loop(key: str) -> None:
        handle = bench.store.open(key)
        for i in order:
            handle[i]

    for engine in _ENGINES:
        key = f"loops/{engine}/rows"
        bench.store.write(key, array, engine=engine)
        bench.check(bench.store.open(key)[order[0]], array[order[0]])
        wholes, loops = [], []
        for _ in range(REPETITIONS):
            wholes.append(seconds(lambda key=key: bench.store.open(key)[...]))
            loops.append(seconds(lambda key=key: loop(key)))
        yield milliseconds(f"{ROWS:,} rows one by one, in any order, {engine}", loops)
        yield ratio(f"  / the array read whole, {engine}", loops, wholes, ONE_BY_ONE)
        del bench.store[key]


def _measure_engine(bench: Bench, engine: Engine) -> Iterator[Result]:
    x, y = (bench.store.open(f"loops/{engine}/{name}") for name in "xy")
    steps = STEPS if engine == "database" else STEPS // 5
    loop = partial(tensorage.batches, x, y, batch_size=BATCH, shuffle=True, seed=0)
    for xb, yb in loop():
        bench.check(xb, bench.array[yb])
        break
    fetches, shares = [], {"waits": [], "computes": []}
    for _ in range(REPETITIONS):
        ahead = iter(loop(prefetch=0))
        took = [seconds(lambda ahead=ahead: next(ahead)) for _ in range(steps)]
        fetches.append(float(np.median(took)))
        for kind, step in (("waits", time.sleep), ("computes", _compute)):
            shares[kind].append(_share_waiting(iter(loop()), partial(step, fetches[-1]), steps))
    yield milliseconds(f"{BATCH} images and labels, one batch after the other, {engine}", fetches)
    yield median_of(
        f"waiting beside an accelerator that computes for as long, {engine}", shares["waits"], "%", WAITING
    )
    yield median_of(
        f"waiting where this machine computes for as long, {engine}", shares["computes"], "%", WAITING
    )


def _share_waiting(batches: Iterator[object], step: Callable[[], object], steps: int) -> float:
    """Return the per cent of its time that a loop waits for batches, from the second one on."""
    next(batches)
    waited, begin = 0.0, time.perf_counter()
    for _ in range(steps):
        step()
        waited += seconds(lambda: next(batches))
    return 100 * waited / (time.perf_counter() - begin)


def _compute(duration_s: float) -> None:
    """Keep one core busy, as a model would: in numpy, outside of Python for the most part."""
    until = time.perf_counter() + duration_s
    numbers = np.ones(16384, np.float32)
    while time.perf_counter() < until:
        np.tanh(numbers, out=numbers)
