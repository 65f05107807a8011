"""Arrays larger than the memory that may be used for them."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import probes
from benchmarks.bench import Bench
from benchmarks.measure import MB, Result, median_of

#: 2 GiB of float32.
SHAPE = (512 * 1024, 1024)
MIB = 1024 * 1024


def memory(bench: Bench) -> Iterator[Result]:
    """2 GiB from a file mapped into memory, back into one, and from blocks that never exist whole, by both engines.

    Each is done once, in a process of its own, since a peak needs no median. The kernel may drop pages of the file.
    """
    if not Path("/proc/self/status").exists():
        raise RuntimeError("the case `memory` reads /proc, which only Linux has: choose other cases")
    with tempfile.TemporaryDirectory(prefix="tensorage-bench-") as folder:
        file = Path(folder) / "big"
        _fill(file)
        settings = {
            "url": bench.running.api_url,
            "key": bench.running.anon_key,
            "email": bench.running.email,
            "password": bench.running.password,
            "shape": SHAPE,
        }
        for engine in ("database", "storage"):
            yield from _move({**settings, "engine": engine}, file, Path(folder) / "copy")
            del bench.store["big"]
            del bench.store["warm"]


def _move(settings: dict[str, Any], file: Path, copy: Path) -> Iterator[Result]:
    for action, verb in (
        ("write", "write of a 2 GiB memmap"),
        ("read", "read into a 2 GiB memmap"),
        ("iterate", "write of 2 GiB of blocks"),
    ):
        what = f"{settings['engine']}, {verb}"
        if action == "read":
            np.memmap(copy, np.float32, "w+", shape=SHAPE).flush()
        used = copy if action == "read" else file
        found = probes.run("memory", {**settings, "action": action, "file": str(used)})
        yield median_of(
            f"{what}, anonymous memory above the start", [found["anonymous"] / MIB], "MiB", ("<=", 128)
        )
        yield median_of(f"{what}, with the pages of the file", [found["total"] / MIB], "MiB")
        yield median_of(what, [np.prod(SHAPE) * 4 / MB / found["took_s"]], "MB/s")
        if action == "read":
            _compare(file, copy)


def _fill(file: Path) -> None:
    rows = np.random.default_rng(5).random((4096, SHAPE[1]), dtype=np.float32)
    array = np.memmap(file, np.float32, "w+", shape=SHAPE)
    for first in range(0, SHAPE[0], len(rows)):
        array[first : first + len(rows)] = rows + first
    array.flush()


def _compare(one: Path, other: Path) -> None:
    with one.open("rb") as a, other.open("rb") as b:
        while piece := a.read(64 * MIB):
            if piece != b.read(64 * MIB):
                raise AssertionError("the array that came back is not the one that was stored")
