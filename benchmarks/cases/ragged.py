"""Samples of any length: batches of texts next to batches of rows of as many bytes."""

from __future__ import annotations

import os
from collections.abc import Iterator

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

#: Texts of about this many bytes, and rows of as many.
BYTES = 1000

#: Number of texts: ``TENSORAGE_BENCH_TEXTS=20000`` for a quick look.
TEXTS = int(os.environ.get("TENSORAGE_BENCH_TEXTS", "1000000"))

#: Batches of each size.
BATCHES = {1: 200, 64: 100, 1024: 10}


def texts(bench: Bench) -> Iterator[Result]:
    """Shuffled batches of texts of about 1 kB, and of rows of 1 kB."""
    random = np.random.default_rng(3)
    lengths = random.integers(BYTES // 2, BYTES * 3 // 2, TEXTS)
    letters = "".join(map(chr, random.integers(97, 123, 2 * BYTES)))

    def text(number: int) -> str:
        return f"{number} {letters}"[: lengths[number]]

    def store_texts() -> None:
        bench.store.write_ragged("ragged/texts", (text(number) for number in range(TEXTS)))

    rows = random.integers(0, 255, (TEXTS, BYTES), np.uint8)
    took_texts = seconds(store_texts)
    took_rows = seconds(lambda: bench.store.write("ragged/rows", rows))
    yield median_of("writing texts, MB/s", [lengths.sum() / took_texts / 1e6], "MB/s")
    yield median_of("writing rows, MB/s", [rows.nbytes / took_rows / 1e6], "MB/s")
    bench.straight.execute("vacuum analyze")
    bench.straight.execute("checkpoint")
    handle, even = bench.store.open("ragged/texts"), bench.store.open("ragged/rows")
    for count, batches in BATCHES.items():
        indices = np.zeros(count, np.int64)

        def shuffle(indices: np.ndarray = indices, count: int = count) -> None:
            indices[:] = random.integers(0, TEXTS, count)

        shuffle()
        if handle[indices] != [text(number) for number in indices]:
            raise AssertionError("what came back is not what was stored")
        took = measure_in_turns(
            {
                "texts": Timed(lambda indices=indices: handle[indices], shuffle),
                "rows": Timed(lambda indices=indices: even[indices], shuffle),
            },
            batches,
        )
        requests = count_requests(lambda indices=indices: handle[indices])
        yield median_of(f"{count} random texts, requests", [requests], "requests", ("<=", 1))
        yield milliseconds(f"{count} random rows", took["rows"])
        yield milliseconds(f"{count} random texts", took["texts"])
        yield ratio(
            f"{count} random texts / rows", took["texts"], took["rows"], ("<=", 1.5) if count == 64 else None
        )
    del bench.store["ragged/texts"], bench.store["ragged/rows"]
