"""Parts of an array: shuffled batches, and slices across all of it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from benchmarks.bench import SHAPE, Bench
from benchmarks.measure import Result, Timed, count_requests, measure_in_turns, median_of, milliseconds, ratio

#: Number of batches of each size. Small batches are quick, so there are more of them.
BATCHES = {1: 100, 64: 60, 256: 30, 1024: 15}


def samples(bench: Bench) -> Iterator[Result]:
    """Shuffled batches, with repeats, of warm connections: the array's handle is open, as in a training loop."""
    images, straight, hsds = bench.images, bench.straight, bench.hsds
    random = np.random.default_rng(1)
    for count, batches in BATCHES.items():
        indices = np.zeros(count, np.int64)
        for peer in (images.__getitem__, straight.batch, hsds.batch):
            indices[:] = random.integers(0, SHAPE[0], count)
            bench.check(peer(indices), bench.array[indices])

        def shuffle(indices: np.ndarray = indices, count: int = count) -> None:
            indices[:] = random.integers(0, SHAPE[0], count)

        took = measure_in_turns(
            {
                "straight": Timed(lambda indices=indices: straight.batch(indices), shuffle),
                "ours": Timed(lambda indices=indices: images[indices], shuffle),
                "HSDS": Timed(lambda indices=indices: hsds.batch(indices), shuffle),
            },
            batches,
        )
        what = f"{count} random samples"
        requests = count_requests(lambda indices=indices: images[indices])
        yield median_of(f"{what}, requests", [requests], "requests", ("<=", 1))
        yield milliseconds(f"{what}, the same gather straight on PostgreSQL", took["straight"])
        yield milliseconds(f"{what}, HSDS", took["HSDS"])
        yield milliseconds(what, took["ours"])
        is_named = count == 64
        yield ratio(f"{what} / straight", took["ours"], took["straight"], ("<=", 4) if is_named else None)
        yield ratio(f"{what}, as fast as HSDS", took["HSDS"], took["ours"], (">=", 10) if is_named else None)


def last_axis(bench: Bench) -> Iterator[Result]:
    """One column of every image, and every fourth: runs of one element each, 1.7 and 11.8 million of them."""
    images, straight, hsds, array = bench.images, bench.straight, bench.hsds, bench.array
    whole = np.empty_like(array)
    for what, selection, first, step in (
        ("[:, :, 14]", np.s_[:, :, 14], 14, 28),
        ("[..., ::4]", np.s_[..., ::4], 0, 4),
    ):
        expected = array[selection]
        out = np.empty_like(expected, order="C")
        bench.check(images[selection], expected)
        bench.check(hsds.images[selection], expected)

        def read_and_pick(selection: object = selection) -> np.ndarray:
            straight.read(whole)
            return whole[selection].copy()

        bench.check(read_and_pick(), expected)
        took = measure_in_turns(
            {
                "ours": Timed(lambda selection=selection: images[selection]),
                "HSDS": Timed(lambda selection=selection: hsds.images[selection]),
                "read": Timed(read_and_pick),
                "pick": Timed(lambda f=first, s=step, out=out: straight.every(f, s, out)),
            }
        )
        bench.check(out, expected)
        yield milliseconds(f"{what}, straight, picked by PostgreSQL", took["pick"])
        yield milliseconds(f"{what}, straight, all of it read and picked here", took["read"])
        yield milliseconds(f"{what}, HSDS", took["HSDS"])
        yield milliseconds(what, took["ours"])
        yield ratio(f"{what} / straight, picked by PostgreSQL", took["ours"], took["pick"], None)
        yield ratio(f"{what}, as fast as HSDS", took["HSDS"], took["ours"], None)
