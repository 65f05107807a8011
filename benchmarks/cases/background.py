"""A loop that stores an array at every step, waiting for each write or not."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import numpy.typing as npt

import tensorage
from benchmarks.bench import Bench
from benchmarks.measure import Result, median_of, milliseconds, ratio, seconds

STEPS = 16

#: Loops of each kind, taken in turns.
LOOPS = 7

#: 4 MB of float32: the weights of a small network.
SHAPE = (1000, 1000)


def background(bench: Bench) -> Iterator[Result]:
    """A loop that works for as long as one write takes, storing 4 MB at every step: waiting, and in the background."""
    for engine in ("database", "storage"):
        store = tensorage.TensorStore(bench.session, quiet=True, engine=engine, allow_overwrite=True)
        yield from _loops(engine, store)
        for key in store.keys("steps/"):
            del store[key]


def _loops(engine: str, store: tensorage.TensorStore) -> Iterator[Result]:
    weights = np.random.default_rng(0).random(SHAPE, dtype=np.float32)
    write_s = float(np.median([seconds(lambda: store.__setitem__("steps/0", weights)) for _ in range(9)]))
    # The work is in C and without the lock of the interpreter, as that of a training step mostly is.
    rounds = max(round(write_s / float(np.median([seconds(partial(_work, 10)) for _ in range(9)])) * 10), 1)
    work_s, waiting_s, behind_s, waited = [], [], [], []
    for _ in range(LOOPS):
        work_s.append(_loop(rounds, weights, lambda *_: None)[0])
        waiting_s.append(_loop(rounds, weights, store.__setitem__)[0])
        begin = time.perf_counter()
        with store.background() as bg:
            _, in_calls_s = _loop(rounds, weights, bg.__setitem__)
            in_calls_s += seconds(bg.flush)
        behind_s.append(time.perf_counter() - begin)
        waited.append(100 * in_calls_s / behind_s[-1])
    assert np.array_equal(store[f"steps/{STEPS - 1}"], weights), "what came back is not what was stored"
    yield milliseconds(f"{engine}, the work of a loop of {STEPS} steps", work_s)
    yield milliseconds(f"{engine}, the loop with store[...] = array", waiting_s)
    yield milliseconds(f"{engine}, the loop in the background, with its flush", behind_s)
    yield ratio(f"{engine}, the loop, waiting / in the background", waiting_s, behind_s, (">", 1))
    yield ratio(f"{engine}, the loop in the background / its work alone", behind_s, work_s, None)
    yield median_of(f"{engine}, of the loop in the background, waited", waited, "%", ("<=", 25))


def _loop(
    rounds: int, weights: npt.NDArray[np.float32], store: Callable[[str, npt.NDArray[np.float32]], None]
) -> tuple[float, float]:
    """Return the seconds of the loop, and the seconds within calls that store."""
    stored_s, begin = 0.0, time.perf_counter()
    for step in range(STEPS):
        _work(rounds)
        # Each step stores another array.
        weights[0, 0] = step
        stored_s += seconds(partial(store, f"steps/{step}", weights))
    return time.perf_counter() - begin, stored_s


def _work(rounds: int) -> None:
    values = np.linspace(0, 1, 20_000)
    for _ in range(rounds):
        np.sin(values, out=values)
