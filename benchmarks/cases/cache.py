"""Epochs of shuffled batches through a local cache, next to `numpy.memmap` of the same array on the same disk."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

import tensorage
from benchmarks import probes
from benchmarks.bench import SHAPE, Bench
from benchmarks.measure import (
    REPETITIONS,
    Result,
    Timed,
    count_requests,
    measure_in_turns,
    median_of,
    milliseconds,
    ratio,
    seconds,
)

BATCH = 64

#: Largest ratio of a batch's time to that of a memmap.
OF_LIMIT = 2


def cache(bench: Bench) -> Iterator[Result]:
    """Batches of 64 of 60,000 images: the first epoch fetches and keeps, those after it read the disk."""
    with tempfile.TemporaryDirectory(prefix="tensorage-bench-") as folder:
        file = Path(folder) / "memmap"
        np.memmap(file, np.float32, "w+", shape=SHAPE)[...] = bench.array
        for engine in ("database", "storage"):
            store = tensorage.TensorStore(bench.session, quiet=True, engine=engine, allow_overwrite=True)
            store["cache"] = bench.array
            yield from _epochs(bench, store.open("cache"), Path(folder) / engine, file)
            del store["cache"]


def _epochs(bench: Bench, handle: tensorage.Tensor, folder: Path, file: Path) -> Iterator[Result]:
    what = handle.engine
    cached = handle.cached(folder)
    mapped = np.memmap(file, np.float32, "r", shape=SHAPE)
    yield median_of(f"{what}, bytes of the first epoch", [cached.epoch_cost() / 1e6], "MB")
    first = [seconds(lambda batch=batch: cached[batch]) for batch in batches(0)]
    assert cached.epoch_cost() == 0, "an epoch is all of it"
    bench.check(cached[...], bench.array)
    took = epoch_in_turns(cached, mapped, 1)
    requests = count_requests(lambda: [cached[batch] for batch in batches(2)])
    yield milliseconds(f"{what}, a batch of the first epoch", first)
    yield median_of(f"{what}, the first epoch", [sum(first)], "s")
    yield median_of(f"{what}, requests of the second epoch", [requests], "requests")
    yield milliseconds(f"{what}, a batch of a memmap", took["memmap"])
    yield milliseconds(f"{what}, a batch of the second epoch", took["cached"])
    yield ratio(f"{what}, second epoch / memmap", took["cached"], took["memmap"], ("<=", OF_LIMIT))
    settings = {
        "url": bench.running.api_url,
        "key": bench.running.anon_key,
        "email": bench.running.email,
        "password": bench.running.password,
        "folder": str(folder),
        "file": str(file),
    }
    found = [probes.run("cache", {**settings, "seed": seed}) for seed in range(3, 3 + REPETITIONS)]
    ours = [statistics.median(one["cached"]) for one in found]
    theirs = [statistics.median(one["memmap"]) for one in found]
    yield median_of(
        f"{what}, a new process, open and read a batch", [1e3 * one["begin"] for one in found], "ms"
    )
    yield milliseconds(f"{what}, a new process, a batch of a memmap", theirs)
    yield milliseconds(f"{what}, a new process, a batch", ours)
    yield ratio(f"{what}, a new process / memmap", ours, theirs, ("<=", OF_LIMIT))


def batches(seed: int) -> list[np.ndarray]:
    """Return the indices of batches that have every image once, in random order."""
    order = np.random.default_rng(seed).permutation(SHAPE[0])
    return [order[first : first + BATCH] for first in range(0, SHAPE[0], BATCH)]


def epoch_in_turns(cached: tensorage.Tensor, mapped: np.ndarray, seed: int) -> dict[str, list[float]]:
    """Measure the seconds of each batch of an epoch, half of them by each reader."""
    left = iter(batches(seed))
    batch = np.zeros(0, np.int64)

    def shuffle() -> None:
        nonlocal batch
        batch = next(left)

    # Each reader takes batches of its own. Otherwise one would find the other's images in the processor's cache.
    return measure_in_turns(
        {"memmap": Timed(lambda: mapped[batch], shuffle), "cached": Timed(lambda: cached[batch], shuffle)},
        SHAPE[0] // BATCH // 2,
    )
