"""Arrays that do not fit into memory, read from a disk whose pages the kernel has forgotten."""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import psutil

import tensorage
from benchmarks.bench import Bench
from benchmarks.measure import MB, Result, Timed, measure_in_turns, median_of, milliseconds, ratio
from tensorage.types import Engine

#: Elements of a row: an image of 3 kB.
ROW = 3072

#: Rows that are made at once, 50 MB.
SLAB = 16 * 1024

#: Bytes of the array that everything is compared with.
SMALL_BYTES = 2**30

#: Part of the machine's memory that the large array has, and part of the free disk that it may take.
OF_MEMORY, OF_DISK = 1.6, 0.6

#: Batches of 64 rows, reads of 1 GiB, and their targets next to the same from the small array.
BATCHES, READS, GROWTH = 15, 3, 1.5

_DROP_CACHES = Path("/proc/sys/vm/drop_caches")
_MIB = 1024 * 1024


def large(bench: Bench) -> Iterator[Result]:
    """64 random rows, 1 GiB in order and an epoch by shards, of 1 GiB and of 1.6 times the memory, from a cold disk."""
    if not os.access(_DROP_CACHES, os.W_OK):
        raise RuntimeError(
            f"the case `large` writes to {_DROP_CACHES}: run it as root on Linux, or choose other cases"
        )
    wanted = psutil.virtual_memory().total * OF_MEMORY
    room = shutil.disk_usage(bench.running.data_dir).free * OF_DISK
    nbytes = int(min(wanted, room))
    if nbytes < wanted:
        print(
            f"   the disk has room for {nbytes / 1e9:.0f} GB, and not for {wanted / 1e9:.0f} GB", flush=True
        )
    for engine in ("storage", "database"):
        yield from _measure(bench, engine, nbytes)


def _measure(bench: Bench, engine: Engine, nbytes: int) -> Iterator[Result]:
    sizes = {"small": SMALL_BYTES // ROW, "large": nbytes // ROW}
    case = f"{engine}, {nbytes / 1e9:.0f} GB"
    memory = _Memory(bench.running.pid)
    with memory.watched():
        for name, rows in sizes.items():
            begin = time.perf_counter()
            bench.store.write(f"large/{name}", _slabs(rows), shape=(rows, ROW), dtype="u1", engine=engine)
            took = time.perf_counter() - begin
            yield median_of(f"{case}: write of the {name} array", [rows * ROW / MB / took], "MB/s")
    yield from memory.results(f"{case}: write")
    handles = {name: bench.store.open(f"large/{name}") for name in sizes}
    bench.straight.execute("vacuum analyze")
    bench.straight.execute("checkpoint")
    yield from _samples(bench, handles, case)
    yield from _reads(bench, handles, case)
    _forget(bench)
    memory = _Memory(bench.running.pid)
    with memory.watched():
        yield from _epoch(handles["large"], case)
    yield from memory.results(f"{case}: epoch")
    bench.store.group("large").clear()


def _samples(bench: Bench, handles: dict[str, tensorage.Tensor], case: str) -> Iterator[Result]:
    random = np.random.default_rng(1)
    rows: dict[str, npt.NDArray[Any]] = {}

    def choose(name: str) -> Callable[[], None]:
        def before() -> None:
            rows[name] = random.integers(0, len(handles[name]), 64)
            _forget(bench)

        return before

    for handle in handles.values():
        chosen = random.integers(0, len(handle), 64)
        bench.check(handle[chosen], _rows(chosen))
    things = {
        name: Timed(lambda name=name: handles[name][rows[name]], choose(name))  # type: ignore[misc]
        for name in handles
    }
    took = measure_in_turns(things, BATCHES)
    yield milliseconds(f"{case}: 64 random rows, cold", took["large"])
    yield ratio(f"{case}: 64 random rows, cold / of 1 GiB", took["large"], took["small"], ("<=", GROWTH))


def _reads(bench: Bench, handles: dict[str, tensorage.Tensor], case: str) -> Iterator[Result]:
    count = SMALL_BYTES // ROW
    firsts = {name: (len(handle) - count) // 2 for name, handle in handles.items()}
    things = {
        name: Timed(
            lambda name=name: handles[name][firsts[name] : firsts[name] + count], lambda: _forget(bench)
        )  # type: ignore[misc]
        for name in handles
    }
    took = measure_in_turns(things, READS)
    yield median_of(
        f"{case}: 1 GiB in order, cold", [SMALL_BYTES / MB / each for each in took["large"]], "MB/s"
    )
    yield ratio(f"{case}: 1 GiB in order, cold / of 1 GiB", took["large"], took["small"], ("<=", GROWTH))


def _epoch(handle: tensorage.Tensor, case: str) -> Iterator[Result]:
    seen = np.zeros(len(handle), bool)
    begin = time.perf_counter()
    for batch in handle.batches(256, shuffle="shards", seed=0):
        numbers = _numbers(batch)
        if seen[numbers].any():
            raise AssertionError("an epoch gave a row twice")
        seen[numbers] = True
    took = time.perf_counter() - begin
    if not seen.all():
        raise AssertionError("an epoch left rows out")
    yield median_of(f'{case}: an epoch of shuffle="shards"', [handle.nbytes / MB / took], "MB/s")


def _forget(bench: Bench) -> None:
    """Have the kernel forget the pages of all files. PostgreSQL keeps 128 MiB of its own."""
    bench.straight.execute("checkpoint")
    os.sync()
    _DROP_CACHES.write_text("3")


# Rows that tell their numbers ------------------------------------------------------------------------


def _noise() -> npt.NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (SLAB, ROW), "u1")


def _slabs(rows: int) -> Iterator[npt.NDArray[np.uint8]]:
    """Yield rows of noise, each of which begins with its number."""
    noise = _noise()
    for first in range(0, rows, SLAB):
        noise[:, :8] = np.arange(first, first + SLAB, dtype="<u8").view("u1").reshape(-1, 8)
        yield noise[: rows - first]


def _rows(numbers: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
    found = _noise()[numbers % SLAB]
    found[:, :8] = numbers.astype("<u8").view("u1").reshape(-1, 8)
    return found


def _numbers(rows: npt.NDArray[Any]) -> npt.NDArray[np.uint64]:
    return np.ascontiguousarray(rows[:, :8]).view("<u8").reshape(-1)


# Memory ----------------------------------------------------------------------------------------------


class _Memory:
    """The most memory of their own that this process and the processes of a server have, looked at each second."""

    def __init__(self, server: int) -> None:
        self._server = psutil.Process(server)
        self._start = _own_bytes(psutil.Process())
        self._client = self._servers = 0

    @contextmanager
    def watched(self) -> Iterator[None]:
        done = threading.Event()
        watcher = threading.Thread(target=self._watch, args=(done,), daemon=True)
        watcher.start()
        try:
            yield
        finally:
            done.set()
            watcher.join()

    def results(self, case: str) -> Iterator[Result]:
        above = (self._client - self._start) / _MIB
        yield median_of(f"{case}, most memory of the client above the start", [above], "MiB", ("<=", 1024))
        yield median_of(f"{case}, most memory of the server", [self._servers / _MIB], "MiB", ("<=", 1024))

    def _watch(self, done: threading.Event) -> None:
        while not done.wait(1):
            self._client = max(self._client, _own_bytes(psutil.Process()))
            processes = [self._server, *self._server.children(recursive=True)]
            self._servers = max(self._servers, sum(map(_own_bytes, processes)))


def _own_bytes(process: psutil.Process) -> int:
    """Return the bytes that a process shares with no file and no other process; 0 if it has ended."""
    try:
        status = Path(f"/proc/{process.pid}/status").read_text()
    except FileNotFoundError:
        return 0
    return next(
        (int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("RssAnon")), 0
    )
