"""Effect of other stored arrays."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np

import tensorage
from benchmarks.bench import SHAPE, Bench
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
from benchmarks.straight import Straight
from tensorage.embedded import control

DATASETS = 100_000
BATCHES = 100
CALLS = 60

#: Stores arrays in the form that tensorage gives them, of one block of 2.5 KB each. Such a block is large enough for
#: the TOAST table, where the blocks of large arrays are.
_FILL = f"""
    with made as (
      insert into public.datasets (user_id, owner, key, shape, dtype, block_size, state, expires_at)
        select $1, 'bench', 'filler/' || i, '{{2500}}', '|u1', 2500, 'committed', null
          from generate_series(1, {DATASETS}) i
      returning id, user_id)
    insert into public.tensors (data_id, user_id, index, count, tensor)
      select id, user_id, 0, 2500, decode(repeat(lpad(to_hex(id % 256), 2, '0'), 2500), 'hex') from made"""


def scale(bench: Bench) -> Iterator[Result]:
    """The same calls in turns on two backends: one with the images, one with 100,000 datasets more."""
    with _run_crowded(bench) as (crowded, more):
        few, many = bench.images, crowded.open("bulk")
        indices = np.zeros(64, np.int64)
        random = np.random.default_rng(6)

        def shuffle() -> None:
            indices[:] = random.integers(0, SHAPE[0], 64)

        took = measure_in_turns(
            {"few": Timed(lambda: few[indices], shuffle), "many": Timed(lambda: many[indices])}, BATCHES
        )
        bench.check(many[indices], bench.array[indices])
        what = f"64 random samples, {more} x the rows in tensors"
        yield milliseconds(what, took["many"])
        yield ratio(f"{what} / before", took["many"], took["few"], ("<=", 1.5))
        here, there = _calls(bench.store), _calls(crowded)
        for name in here:
            took = measure_in_turns({"few": Timed(here[name]), "many": Timed(there[name])}, CALLS)
            yield milliseconds(f"{name}, {DATASETS} datasets", took["many"])
            yield ratio(f"{name}, {DATASETS} datasets / few", took["many"], took["few"], None)
        for name, action in (("keys()", crowded.keys), ("len()", crowded.__len__)):
            yield median_of(f"{name}, {DATASETS} datasets", [seconds(action) for _ in range(5)], "s")
        requests = count_requests(lambda: crowded.open("bulk"))
        yield median_of(f"open, {DATASETS} datasets, requests", [requests], "requests", ("<=", 1))


@contextmanager
def _run_crowded(bench: Bench) -> Iterator[tuple[tensorage.TensorStore, int]]:
    """Run a second backend with the same array among many others. Yield its store, and the factor of its rows."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tensorage-bench-"))) / "data"
        running = control.start(folder)
        stack.callback(control.stop, folder)
        session = tensorage.local(folder)
        stack.callback(session.logout)
        store = tensorage.TensorStore(session, quiet=True)
        store["bulk"] = bench.array
        straight = stack.enter_context(Straight(running.superuser_url))
        rows = straight.fetch("select count(*) from public.tensors")
        straight.execute(_FILL, store.open("bulk").dataset.user_id)
        straight.execute("vacuum analyze")
        yield store, round(straight.fetch("select count(*) from public.tensors") / rows)


def _calls(store: tensorage.TensorStore) -> dict[str, Callable[[], object]]:
    """Return calls on single keys, in an order in which each finds what it needs."""
    numbers = np.arange(10.0)
    written, deleted = itertools.count(), itertools.count()
    return {
        "in": lambda: "bulk" in store,
        "open": lambda: store.open("bulk"),
        "write of 10 numbers": lambda: store.__setitem__(f"one/{next(written)}", numbers),
        "delete": lambda: store.__delitem__(f"one/{next(deleted)}"),
    }
