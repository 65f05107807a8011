"""CPU that one call costs the client, the embedded server and PostgreSQL. Other programs hardly change it."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil

import tensorage
from benchmarks.bench import Bench
from benchmarks.cases.server import connect, headers_of
from benchmarks.measure import REPETITIONS, Result
from tensorage.embedded import control

ROWS, ROW = 20_000, (28, 28)
SMALL_ARRAYS = 100


@dataclass(frozen=True)
class Call:
    """A call to repeat, by the number of its repetition, and how often a repetition of the measurement does so."""

    name: str
    action: Callable[[int], object]
    times: int


def cpu(bench: Bench) -> Iterator[Result]:
    """Milliseconds of CPU a call: of the server and PostgreSQL together, and of each, and of the client."""
    for call in _calls(bench):
        for number in range(call.times):
            call.action(number)
        spent = [_measure(bench.running, call) for _ in range(REPETITIONS)]
        client, server, database = (statistics.median(each) for each in zip(*spent, strict=True))
        both = [server_ms + database_ms for _, server_ms, database_ms in spent]
        beside = {"ms client": client, "ms server": server, "ms PostgreSQL": database}
        yield Result(call.name, statistics.median(both), "ms", (min(both), max(both)), beside=beside)


def _calls(bench: Bench) -> Iterator[Call]:
    store, draw = bench.store.group("cpu"), np.random.default_rng(0)
    rows = draw.random((ROWS, *ROW), dtype=np.float32)
    far = _stored(store, "far", rows, "storage")
    near = _stored(store, "near", rows[:8000], "database")
    batches = [draw.permutation(8000)[:64] for _ in range(64)]
    for number in range(SMALL_ARRAYS):
        store[f"small/{number}"] = np.arange(10.0)
    yield Call("a range of an object", _range_reader(bench), 500)
    yield Call("64 rows from Storage", lambda n: far[batches[n % 64]], 20)
    yield Call("64 rows from the database", lambda n: near[batches[n % 64]], 100)
    yield Call(
        "a small array in", lambda n: store.__setitem__(f"small/{n % SMALL_ARRAYS}", np.arange(10.0)), 100
    )
    yield Call("a small array out", lambda n: store[f"small/{n % SMALL_ARRAYS}"], 200)
    yield Call("a small array opened", lambda n: store.open(f"small/{n % SMALL_ARRAYS}"), 200)
    yield Call("a row appended", lambda n: store.append("near", rows[n : n + 1]), 100)
    yield Call("a row assigned", lambda n: near.__setitem__(n, rows[n]), 50)
    yield Call(
        "an array in and deleted",
        lambda _: (store.__setitem__("gone", rows[0]), store.__delitem__("gone")),
        50,
    )
    store.clear()


def _stored(
    store: tensorage.TensorStore, key: str, rows: np.ndarray, engine: tensorage.types.Engine
) -> tensorage.Tensor:
    store.write(key, rows, engine=engine)
    return store.open(key)


def _range_reader(bench: Bench) -> Callable[[int], object]:
    """Return a function that reads a row of a file by a plain HTTP client, on one connection."""
    row_nbytes = np.zeros(ROW, np.float32).nbytes
    with bench.session.storage() as storage:
        storage.upload_file("cpu/rows", bytes(100 * row_nbytes))
        user_id = str(bench.session.client.auth.get_user().user.id)
    connection = connect(bench.session)
    bench.stack.callback(connection.close)

    def read(number: int) -> None:
        at = number % 100 * row_nbytes
        wanted = {**headers_of(bench.session), "Range": f"bytes={at}-{at + row_nbytes - 1}"}
        connection.request("GET", f"/storage/v1/object/tensors/{user_id}/cpu/rows", headers=wanted)
        answer = connection.getresponse()
        if answer.status != 206 or len(answer.read()) != row_nbytes:
            raise AssertionError(f"the range did not come: HTTP {answer.status}")

    return read


def _measure(running: control.Running, call: Call) -> tuple[float, float, float]:
    before = _spent_ms(running)
    for number in range(call.times):
        call.action(number)
    after = _spent_ms(running)
    client, server, database = ((b - a) / call.times for a, b in zip(before, after, strict=True))
    return client, server, database


def _spent_ms(running: control.Running) -> tuple[float, float, float]:
    server = psutil.Process(running.pid)
    database = sum(_spent_by(process.pid) for process in server.children(recursive=True))
    return time.process_time() * 1e3, _spent_by(server.pid) / 1e6, database / 1e6


def _spent_by(pid: int) -> int:
    """Return the nanoseconds that the threads of a process have run."""
    # Linux counts hundredths of a second everywhere else.
    threads = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(thread.read_text().split()[0]) for thread in threads)
