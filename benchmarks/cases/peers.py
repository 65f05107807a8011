"""Choice of the configuration of HSDS."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from benchmarks.bench import SHAPE, Bench
from benchmarks.measure import REPETITIONS, Result, milliseconds, rates, seconds
from benchmarks.peers import hsds


def hsds_nodes(bench: Bench) -> Iterator[Result]:
    """HSDS with 1, 2 and 4 data nodes."""
    out = np.empty_like(bench.array)
    random = np.random.default_rng(4)
    for nodes in (1, 2, 4):
        write_s, read_s = [], []
        with hsds.running(nodes) as server:
            for _ in range(REPETITIONS):
                write_s.append(seconds(lambda server=server: server.write_images(bench.array)))
                server.settle()
                server.forget()
                read_s.append(seconds(lambda server=server: server.read_images(out)))
            bench.check(out, bench.array)
            batches = [random.integers(0, SHAPE[0], 64) for _ in range(30)]
            batch_s = [seconds(lambda server=server, batch=batch: server.batch(batch)) for batch in batches]
        yield rates(f"HSDS with {nodes} data nodes, write", bench.array.nbytes, write_s)
        yield rates(f"HSDS with {nodes} data nodes, read", bench.array.nbytes, read_s)
        yield milliseconds(f"HSDS with {nodes} data nodes, 64 random samples", batch_s)
