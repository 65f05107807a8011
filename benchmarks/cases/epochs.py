"""Epochs by shards: each stored byte once, next to plain downloads of the same objects and to a bulk read."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial

import numpy as np

import tensorage
from benchmarks.bench import Bench
from benchmarks.cases.far import DISTANCES, SHAPE, Distance
from benchmarks.cases.objects import stored_blobs
from benchmarks.measure import MB, Result, Timed, measure_in_turns, median_of, milliseconds, ratio
from benchmarks.network import Apart
from benchmarks.peers.plain_objects import PlainObjects
from tensorage.types import Engine

BATCH = 64

#: A window that holds all of the images, and one that holds a quarter of them.
WINDOWS = {"256 MiB": 256 * 1024 * 1024, "16 MiB": 16 * 1024 * 1024}

#: Part of the rate of plain downloads, and of a bulk read, that an epoch has to reach.
OF_DOWNLOADS, OF_BULK = 0.85, 0.8

_ENGINES: tuple[Engine, ...] = ("database", "storage")


def epochs(bench: Bench) -> Iterator[Result]:
    """20,000 images of 3 kB here and at 30 ms and 200 Mbit/s, and 60,000 here, by both engines."""
    arrays = {"far": bench.array[: SHAPE[0]], "large": bench.array}
    for name, array in arrays.items():
        for engine in _ENGINES:
            bench.store.write(f"epochs/{name}/{engine}", array, engine=engine)
    bench.straight.execute("vacuum analyze")
    bench.straight.execute("checkpoint")
    for distance in DISTANCES[:2]:
        yield from _measure(bench, distance, "far")
    yield from _measure(bench, DISTANCES[0], "large")
    bench.store.group("epochs").clear()


def _measure(bench: Bench, distance: Distance, name: str) -> Iterator[Result]:
    with ExitStack() as stack:
        line = stack.enter_context(Apart(bench.running.api_url, distance.round_trip_s, distance.bytes_per_s))
        user = (bench.running.email, bench.running.password)
        session = tensorage.BackendSession(*user, line.url, bench.running.anon_key)
        stack.callback(session.logout)
        store = tensorage.TensorStore(session, quiet=True)
        for engine in _ENGINES:
            handle = store.open(f"epochs/{name}/{engine}")
            case = f"{len(handle)} images, {distance}, {engine}"
            yield from _measure_handle(bench, line, session, handle, case, is_far=distance.round_trip_s > 0)


def _measure_handle(
    bench: Bench,
    line: Apart,
    session: tensorage.BackendSession,
    handle: tensorage.Tensor,
    case: str,
    *,
    is_far: bool,
) -> Iterator[Result]:
    plain = PlainObjects(session, stored_blobs(bench, handle.dataset) or _equal_parts(bench, handle))
    plain.upload()
    seeds = iter(range(10**6))
    firsts: dict[str, list[float]] = {window: [] for window in WINDOWS}
    epochs_of: dict[str, Callable[[], object]] = {
        window: partial(_epoch, handle, nbytes, seeds, firsts[window]) for window, nbytes in WINDOWS.items()
    }
    things = {"plain": Timed(plain.download), "bulk": Timed(lambda: handle[...])}
    took = measure_in_turns(things | {name: Timed(epoch) for name, epoch in epochs_of.items()})
    plain.remove()
    for window in WINDOWS:
        yield milliseconds(f"{case}, epoch in a window of {window}", took[window])
        yield milliseconds(f"{case}, {window}, its first batch", firsts[window])
        yield ratio(
            f"{case}, {window}, rate / plain downloads",
            took["plain"],
            took[window],
            (">=", OF_DOWNLOADS) if is_far else None,
        )
        yield ratio(
            f"{case}, {window}, rate / bulk read",
            took["bulk"],
            took[window],
            None if is_far else (">=", OF_BULK),
        )
        line.counts()
        epochs_of[window]()
        passed = line.counts()
        yield median_of(f"{case}, {window}, requests", [passed.requests], "requests")
        moved = [passed.received_bytes / handle.epoch_cost()]
        yield median_of(f"{case}, {window}, moved / stored", moved, "x", ("<=", 1.05))


def _epoch(handle: tensorage.Tensor, window_bytes: int, seeds: Iterator[int], firsts: list[float]) -> None:
    """Go through an epoch, and note the time to its first batch."""
    begin, count = time.perf_counter(), 0
    for batch in handle.batches(BATCH, shuffle="shards", seed=next(seeds), window_bytes=window_bytes):
        if not count:
            firsts.append(time.perf_counter() - begin)
        count += len(batch)
    if count != len(handle):
        raise AssertionError(f"an epoch had {count} samples of {len(handle)}")


def _equal_parts(bench: Bench, handle: tensorage.Tensor) -> Sequence[bytes]:
    """Return the bytes of an array of the database as objects of about the size of a request."""
    array = bench.array[: len(handle)]
    return [part.tobytes() for part in np.array_split(array, max(round(array.nbytes / (8 * MB)), 1))]
