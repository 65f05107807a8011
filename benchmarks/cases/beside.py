"""Libraries that read samples over a network, beside each other: the same images, on the same line, in one run."""

from __future__ import annotations

import hashlib
import statistics
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.bench import Bench
from benchmarks.cases.far import BATCH, DISTANCES, SHAPE
from benchmarks.measure import MB, REPETITIONS, Result
from benchmarks.network import Apart, Counts
from benchmarks.peers import files, hsds
from benchmarks.readers import OURS, PEERS, Reading
from tensorage.types import Engine

DISTANCE = DISTANCES[1]

#: Epochs of each library: a process that imports PyTorch takes seconds to begin.
EPOCHS = 3

#: Samples before the place where an epoch is gone on with: half of its batches.
MIDDLE = SHAPE[0] // BATCH // 2 * BATCH

#: Rows in a chunk of Zarr: 50 kB, and a megabyte. Chunks of a row each take a minute to write.
CHUNK_ROWS = (16, 334)

#: A quarter of the images: the usual window holds them all, and mixes them better than peers do.
SMALL_WINDOW_BYTES = 16 * 1024 * 1024

_ENGINES: tuple[Engine, ...] = ("database", "storage")


@dataclass(frozen=True)
class Candidate:
    """A library that reads the images.

    Parameters
    ----------
    line
        Line that its bytes come through; None if it reads from the disk.
    settings
        Arguments of its ``Reader``.
    env
        Its process's environment, beside the usual one.
    """

    name: str
    library: str
    python: Path
    line: Apart | None
    settings: Mapping[str, Any]
    env: Mapping[str, str] = field(default_factory=dict)

    def reading(self) -> Reading:
        return Reading(self.library, self.python, self.env)

    def counts(self) -> Counts:
        """Return what has passed since the last call."""
        return Counts() if self.line is None else self.line.counts()


def beside(bench: Bench) -> Iterator[Result]:
    """20,000 images of 3 kB through 30 ms and 200 Mbit/s: rows, shuffled epochs, and going on in the middle of one."""
    images = np.random.default_rng(0).random(SHAPE, dtype=np.float32)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="beside-bench-")))
        np.save(folder / "images.npy", images)
        _write(bench, images, folder)
        ours = _ours(bench, stack)
        web = _line(stack, stack.enter_context(files.served(folder)))
        yield from _rows([*ours, *_row_peers(stack, images, folder, web)], images)
        for candidate in (*ours, *map(_with_small_window, ours), *_loop_peers(web)):
            yield from _epochs(candidate, images)
    bench.store.group("beside").clear()


def _write(bench: Bench, images: npt.NDArray[np.float32], folder: Path) -> None:
    for engine in _ENGINES:
        bench.store.write(f"beside/{engine}", images, engine=engine)
    bench.straight.execute("vacuum analyze")
    bench.straight.execute("checkpoint")
    for library, name, more in (
        *(("zarrs", f"zarr{rows}", {"chunk_rows": rows}) for rows in CHUNK_ROWS),
        ("mosaic", "mosaic", {}),
        ("litdatas", "litdata", {}),
        ("lance", "lance", {}),
    ):
        with Reading(library, PEERS) as writing:
            writing.ask("write", source=str(folder / "images.npy"), folder=str(folder / name), **more)


def _line(stack: ExitStack, url: str) -> Apart:
    return stack.enter_context(Apart(url, DISTANCE.round_trip_s, DISTANCE.bytes_per_s))


def _ours(bench: Bench, stack: ExitStack) -> list[Candidate]:
    line = _line(stack, bench.running.api_url)
    user = {"email": bench.running.email, "password": bench.running.password}
    login = {"url": line.url, "key": bench.running.anon_key, **user}
    return [
        Candidate(f"tensorage, {engine}", "ours", OURS, line, {**login, "array": f"beside/{engine}"})
        for engine in _ENGINES
    ]


def _with_small_window(candidate: Candidate) -> Candidate:
    settings = {**candidate.settings, "window_bytes": SMALL_WINDOW_BYTES}
    return replace(candidate, name=f"{candidate.name}, window of 16 MiB", settings=settings)


def _row_peers(
    stack: ExitStack, images: npt.NDArray[np.float32], folder: Path, web: Apart
) -> Iterator[Candidate]:
    for rows in CHUNK_ROWS:
        name = f"zarr over obstore, {rows} rows a chunk"
        yield Candidate(name, "zarrs", PEERS, web, {"url": f"{web.url}/zarr{rows}"})
    server = stack.enter_context(hsds.running())
    server.write_images(images)
    server.settle()
    line = _line(stack, server.endpoint)
    settings = {**server.first_byte_settings(), "endpoint": line.url}
    yield Candidate("h5pyd on HSDS", "hdf5", OURS, line, settings)
    yield Candidate("LanceDB, a local folder", "lance", PEERS, None, {"folder": str(folder / "lance")})


def _loop_peers(web: Apart) -> Iterator[Candidate]:
    # Clients of S3 take the address for that of a server with buckets, and the folder for one.
    bucket = {"remote": "s3://mosaic"}
    yield Candidate("mosaicml-streaming", "mosaic", PEERS, web, bucket, {"S3_ENDPOINT_URL": web.url})
    yield Candidate("LitData", "litdatas", PEERS, web, {"remote": "s3://litdata", "endpoint": web.url})


def _rows(candidates: Sequence[Candidate], images: npt.NDArray[np.float32]) -> Iterator[Result]:
    """Measure random rows in turns, on connections that are open."""
    random = np.random.default_rng(3)
    indices = [random.choice(len(images), BATCH, replace=False) for _ in range(REPETITIONS + 1)]
    took: dict[str, list[float]] = {each.name: [] for each in candidates}
    passed: dict[str, list[Counts]] = {each.name: [] for each in candidates}
    with ExitStack() as stack:
        processes = {each.name: stack.enter_context(each.reading()) for each in candidates}
        for each in candidates:
            processes[each.name].ask("open", **each.settings)
        for number, of_batch in enumerate(indices):
            digest = hashlib.sha256(images[of_batch]).hexdigest()
            for each in candidates:
                each.counts()
                found = processes[each.name].ask("rows", indices=of_batch.tolist())
                if found["digest"] != digest:
                    raise AssertionError(f"{each.name}: what came back is not what was stored")
                # The first batch opens connections, and reads what is kept from there on.
                if number:
                    took[each.name].append(found["took_s"])
                    passed[each.name].append(each.counts())
        for each in candidates:
            memory = processes[each.name].ask("memory")
            yield _rows_result(each, took[each.name], passed[each.name], memory)


def _rows_result(
    candidate: Candidate, took: Sequence[float], passed: Sequence[Counts], memory: Mapping[str, int]
) -> Result:
    beside = {
        "samples a second": BATCH / statistics.median(took),
        "requests": statistics.median(each.requests for each in passed),
        "MB down": statistics.median(each.received_bytes for each in passed) / MB,
        **_memory(memory),
    }
    milliseconds = [1e3 * each for each in took]
    return _result(f"{candidate.name}: {BATCH} random samples", milliseconds, "ms", beside)


@dataclass(frozen=True)
class _Epoch:
    """One process's part of an epoch, or all of it."""

    first_s: float
    before_first: Counts
    after_first: Counts
    #: Answers of `readers.__main__.Answers`.
    rest: Mapping[str, Any]
    memory: Mapping[str, int]

    @property
    def moved(self) -> int:
        return self.before_first.received_bytes + self.after_first.received_bytes

    @property
    def requests(self) -> int:
        return self.before_first.requests + self.after_first.requests


def _epochs(candidate: Candidate, images: npt.NDArray[np.float32]) -> Iterator[Result]:
    """Measure epochs, and as many that go on where these were in the middle, each by a new process."""
    whole = int(images.view(np.uint32).sum(dtype=np.uint64))
    epochs, resumed = [], []
    for _ in range(EPOCHS):
        epoch = _epoch(candidate, None)
        later = _epoch(candidate, epoch.rest["state"])
        counted = epoch.rest["samples"], MIDDLE + later.rest["samples"]
        seen = epoch.rest["checksum"], epoch.rest["checksum_then"] + later.rest["checksum"]
        if counted != (len(images), len(images)) or seen != (whole, whole):
            raise AssertionError(f"{candidate.name}: an epoch has had other samples than were stored")
        epochs.append(epoch)
        resumed.append(later)
    rates = [len(images) / each.rest["took_s"] for each in epochs]
    yield _result(f"{candidate.name}: shuffled epoch", rates, "samples/s", _beside(epochs))
    firsts = [1e3 * each.first_s for each in resumed]
    yield _result(f"{candidate.name}: going on in the middle, first batch", firsts, "ms", _beside(resumed))


def _epoch(candidate: Candidate, start: Any) -> _Epoch:
    with candidate.reading() as process:
        # An answer says that imports are over.
        process.ask("memory")
        candidate.counts()
        process.ask("open", **candidate.settings)
        first_s = process.ask("first", start=start)
        before_first = candidate.counts()
        rest = process.ask("rest", middle=MIDDLE)
        return _Epoch(first_s, before_first, candidate.counts(), rest, process.ask("memory"))


def _beside(epochs: Sequence[_Epoch]) -> dict[str, float]:
    return {
        "ms to the first batch": 1e3 * statistics.median(each.first_s for each in epochs),
        "MB down before it": statistics.median(each.before_first.received_bytes for each in epochs) / MB,
        "requests before it": statistics.median(each.before_first.requests for each in epochs),
        "s in all": statistics.median(each.rest["took_s"] for each in epochs),
        "MB down in all": statistics.median(each.moved for each in epochs) / MB,
        "requests in all": statistics.median(each.requests for each in epochs),
        **_memory({name: max(each.memory[name] for each in epochs) for name in ("peak", "imported")}),
    }


def _memory(memory: Mapping[str, int]) -> dict[str, float]:
    return {"MB of memory": memory["peak"] / MB, "MB after imports": memory["imported"] / MB}


def _result(case: str, values: Sequence[float], unit: str, beside: Mapping[str, float]) -> Result:
    return Result(case, statistics.median(values), unit, (min(values), max(values)), None, beside)
