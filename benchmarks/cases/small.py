"""Ten numbers at a time."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np

from benchmarks.bench import Bench
from benchmarks.measure import Result, Timed, count_requests, measure_in_turns, median_of, milliseconds, ratio

CALLS = 200


def small_arrays(bench: Bench) -> Iterator[Result]:
    """New arrays of ten numbers, and rows of ten numbers appended, one after the other, next to HSDS."""
    store, hsds = bench.store, bench.hsds
    numbers = np.arange(10.0)
    rows = numbers[np.newaxis]
    new, again = itertools.count(), itertools.count()
    store["growing"] = rows
    growing = hsds.growing(numbers)
    took = measure_in_turns(
        {
            "write": Timed(lambda: store.__setitem__(f"small/{next(new)}", numbers)),
            "HSDS write": Timed(lambda: hsds.write_small(numbers)),
            "append": Timed(lambda: store.append("growing", rows)),
            "HSDS append": Timed(lambda: hsds.append(growing, numbers)),
            "read": Timed(lambda: store[f"small/{next(again)}"]),
        },
        CALLS,
    )
    bench.check(store["growing"], np.repeat(rows, CALLS + 1, axis=0))
    bench.check(growing[...], np.repeat(rows, CALLS, axis=0))
    yield median_of(
        "append of a row, requests",
        [count_requests(lambda: store.append("growing", rows))],
        "requests",
        ("<=", 1),
    )
    for verb, what in (("write", "new arrays of 10 numbers"), ("append", "appended rows of 10 numbers")):
        yield median_of(f"{what}, HSDS", [1 / each for each in took[f"HSDS {verb}"]], "a second")
        yield median_of(what, [1 / each for each in took[verb]], "a second")
        yield ratio(f"{what} / HSDS", took[f"HSDS {verb}"], took[verb], None)
    yield milliseconds("read of 10 numbers", took["read"])
    for key in ("growing", *(f"small/{i}" for i in range(CALLS))):
        del store[key]
