"""Arrays that change and are read together: transactions of many arrays, of many writers, and saved state."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np

from benchmarks.bench import Bench
from benchmarks.measure import (
    Result,
    Timed,
    count_requests,
    measure_in_turns,
    median_of,
    milliseconds,
    ratio,
    seconds,
)
from tensorage import TensorStore

#: Arrays of one transaction, each of 10 kB.
ARRAYS = 175

#: Writers at once, each with a transaction of two new arrays and an append to one that all append to.
WRITERS = 100

#: Arrays of a saved state.
STATE = 50


def together(bench: Bench) -> Iterator[Result]:
    """Transactions of 175 arrays, 100 writers at once, and a state of 50 arrays."""
    store, random = bench.store, np.random.default_rng(0)
    store.group("together").clear()
    arrays = {f"together/many/{n}": random.random(1250) for n in range(ARRAYS)}
    new = itertools.count()

    in_storage = TensorStore(bench.session, quiet=True, engine="storage")

    def update(to: TensorStore = store) -> None:
        number = next(new)
        to.update({f"{key}/{number}": array for key, array in arrays.items()})

    def store_each() -> None:
        number = next(new)
        for key, array in arrays.items():
            store[f"{key}/{number}"] = array

    update()
    update(in_storage)
    took = measure_in_turns(
        {
            "together": Timed(update),
            "in storage": Timed(lambda: update(in_storage)),
            "each": Timed(store_each),
        },
        7,
    )
    what = f"{ARRAYS} new arrays of 10 kB"
    yield milliseconds(f"{what}, in one transaction", took["together"], ("<=", 250))
    yield ratio(f"{what}, in one transaction / one by one", took["together"], took["each"], None)
    yield median_of(f"{what}, in one transaction", [count_requests(update)], "requests", ("<=", 5))
    what = f"{what} of Storage"
    yield milliseconds(f"{what}, in one transaction", took["in storage"], ("<=", 250))
    count = count_requests(lambda: update(in_storage))
    yield median_of(f"{what}, in one transaction", [count], "requests", ("<=", 5))
    yield from _writers(bench, store, f"{WRITERS} writers at once")
    yield from _writers(bench, in_storage, f"{WRITERS} writers at once to Storage")
    state = {f"layer {n}": random.random((10, 10)) for n in range(STATE)}
    store.save("together/state", state)
    keys = [f"together/state/layer {n}" for n in range(STATE)]
    took = measure_in_turns(
        {
            "load": Timed(lambda: store.load("together/state")),
            "each": Timed(lambda: [store[key] for key in keys]),
        },
        15,
    )
    yield milliseconds(f"state of {STATE} small arrays, loaded", took["load"])
    yield ratio(f"state of {STATE} small arrays, loaded / read one by one", took["load"], took["each"], None)
    yield median_of(
        f"state of {STATE} small arrays, loaded",
        [count_requests(lambda: store.load("together/state"))],
        "requests",
        ("<=", 1),
    )
    store.group("together").clear()


def _writers(bench: Bench, store: TensorStore, what: str) -> Iterator[Result]:
    store.group("together/log").clear()
    store["together/log/rows"] = np.zeros(0, "i8")

    def write(number: int) -> None:
        with store.transaction() as tx:
            tx[f"together/log/a/{number}"] = np.full(100, number)
            tx.append("together/log/rows", [number])
            tx[f"together/log/b/{number}"] = np.full(100, number)

    with ThreadPoolExecutor(WRITERS) as pool:
        took = list(pool.map(lambda number: seconds(partial(write, number)), range(WRITERS)))
    bench.check(np.sort(store["together/log/rows"]), np.arange(WRITERS))
    p99 = statistics.quantiles(took, n=100)[-1]
    yield median_of(f"{what}, the slowest hundredth", [p99], "s", ("<=", 2))
