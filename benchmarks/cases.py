"""The cases. Each takes a running backend and gives its results."""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Iterator

import numpy as np

import tensorage
from benchmarks.measure import Result, of, ratio, seconds
from benchmarks.straight import Straight
from tensorage.backend.transfer import MEDIA_TYPE
from tensorage.embedded.control import Running

REPETITIONS = 5
SMALL_CALLS = 2000
BODY_BYTES = 8 * 1024 * 1024
#: 188 MB of float32: as many images as a well-known training set has.
SHAPE = (60000, 28, 28)
MB = 1e6


def bulk(running: Running, session: tensorage.BackendSession) -> Iterator[Result]:
    """A whole array in and out, next to the limit."""
    array = np.random.default_rng(0).random(SHAPE, dtype=np.float32)
    store = tensorage.TensorStore(session, quiet=True, allow_overwrite=True)
    out = np.empty_like(array)
    rates: dict[str, list[float]] = {"write": [], "read": [], "limit write": [], "limit read": []}

    def rate(name: str, took_s: float) -> None:
        rates[name].append(array.nbytes / MB / took_s)

    with Straight(running.superuser_url) as straight:
        for _ in range(REPETITIONS):
            straight.clear()
            rate("limit write", seconds(lambda: straight.write(array)))
            rate("limit read", seconds(lambda: straight.read(out)))
            if "bulk" in store:
                del store["bulk"]
            rate("write", seconds(lambda: store.__setitem__("bulk", array)))
            rate("read", seconds(lambda: store.open("bulk").read(..., out=out)))
    if not np.array_equal(out, array):
        raise AssertionError("the array that came back is not the one that was stored")
    yield of("bulk write, straight to PostgreSQL (the limit)", rates["limit write"], "MB/s")
    yield of("bulk write", rates["write"], "MB/s")
    yield ratio("bulk write / limit", rates["write"], rates["limit write"], 0.5)
    yield of("bulk read, straight from PostgreSQL (the limit)", rates["limit read"], "MB/s")
    yield of("bulk read", rates["read"], "MB/s")
    yield ratio("bulk read / limit", rates["read"], rates["limit read"], 0.5)


def samples(_running: Running, session: tensorage.BackendSession) -> Iterator[Result]:
    """Shuffled batches out of the array that `bulk` stored: one request each."""
    images = tensorage.TensorStore(session, quiet=True).open("bulk")
    random = np.random.default_rng(1)
    for count in (1, 64, 256, 1024):
        batches = [random.integers(0, SHAPE[0], count) for _ in range(50)]
        took = [1e3 * seconds(lambda batch=batch: images[batch]) for batch in batches]
        yield of(f"{count} random samples of {SHAPE}", took, "ms")


def small_calls(_running: Running, session: tensorage.BackendSession) -> Iterator[Result]:
    """The smallest function call there is, through a plain HTTP client on one connection."""
    headers = {
        "apikey": session.backend_key or "",
        "Authorization": f"Bearer {session.token}",
        "Content-Type": "application/json",
    }
    connection = http.client.HTTPConnection((session.backend_url or "").removeprefix("http://"))

    def call() -> None:
        connection.request("POST", "/rest/v1/rpc/tensorage_version", b"{}", headers)
        answer = connection.getresponse()
        if json.loads(answer.read()) != 1 or answer.status != 200:
            raise AssertionError(f"the call failed with HTTP {answer.status}")

    took = [1e3 * seconds(call) for _ in range(SMALL_CALLS)]
    connection.close()
    yield of("small function call", took, "ms", ("<=", 1.5))


def bodies(running: Running, session: tensorage.BackendSession) -> Iterator[Result]:
    """A body of 8 MiB through the server, each way, next to the same call straight to PostgreSQL."""
    body = np.random.default_rng(2).bytes(BODY_BYTES)
    headers = {
        "apikey": session.backend_key or "",
        "Authorization": f"Bearer {session.token}",
        "Accept": "application/json",
        "Content-Type": "application/octet-stream",
    }
    connection = http.client.HTTPConnection((session.backend_url or "").removeprefix("http://"))

    def exchange(path: str, content: bytes, headers: dict[str, str]) -> bytes:
        connection.request("POST", f"/rest/v1/rpc/{path}", content, headers)
        return connection.getresponse().read()

    def up() -> None:
        if exchange("bench_up", body, headers) != b"%d" % BODY_BYTES:
            raise AssertionError("the body did not arrive whole")

    def down() -> None:
        wanted = {**headers, "Accept": MEDIA_TYPE, "Content-Type": "application/json"}
        if len(exchange("bench_down", b"{}", wanted)) != BODY_BYTES:
            raise AssertionError("the answer did not arrive whole")

    with Straight(running.superuser_url) as straight:
        straight.execute(
            "create function public.bench_up(bytea) returns int language sql as 'select octet_length($1)'; "
            f'create function public.bench_down() returns public."{MEDIA_TYPE}" stable language sql as '
            f"$$ select repeat('x', {BODY_BYTES})::bytea $$; notify pgrst, 'reload schema'"
        )
        while b"PGRST202" in exchange("bench_up", b"", headers):
            time.sleep(0.01)
        for name, ours, query, arguments in (
            ("in", up, "select public.bench_up($1)", [body]),
            ("out", down, "select public.bench_down()::bytea", []),
        ):
            took, limit = [], []
            for _ in range(30):
                limit.append(1e3 * seconds(lambda q=query, a=arguments: straight.fetch(q, *a)))
                took.append(1e3 * seconds(ours))
            yield of(f"8 MiB {name}, straight", limit, "ms")
            yield of(f"8 MiB {name}, through the server", took, "ms")
        straight.execute("drop function public.bench_up, public.bench_down")
    connection.close()


def small_arrays(_running: Running, session: tensorage.BackendSession) -> Iterator[Result]:
    """Ten numbers at a time."""
    store = tensorage.TensorStore(session, quiet=True)
    numbers = np.arange(10.0)
    keys = [f"small/{i}" for i in range(200)]
    yield of(
        "write of 10 numbers", [1e3 * seconds(lambda k=k: store.__setitem__(k, numbers)) for k in keys], "ms"
    )
    yield of("read of 10 numbers", [1e3 * seconds(lambda k=k: store[k]) for k in keys], "ms")
    appends = [1e3 * seconds(lambda: store.append("small/0", numbers[:1])) for _ in keys]
    yield of("append of 1 number", appends, "ms")
    for key in keys:
        del store[key]


def starts(_running: Running, _session: tensorage.BackendSession) -> Iterator[Result]:
    """From nothing, and from an existing data folder, to a backend that answers."""
    import tempfile
    from pathlib import Path

    from tensorage.embedded import control

    new, old = [], []
    for _ in range(REPETITIONS):
        with tempfile.TemporaryDirectory() as parent:
            folder = Path(parent) / "data"
            new.append(seconds(lambda folder=folder: control.start(folder)))
            control.stop(folder)
            old.append(seconds(lambda folder=folder: control.start(folder)))
            control.stop(folder)
    yield of("start on a new data folder", new, "s", ("<=", 3.0))
    yield of("start on an old data folder", old, "s", ("<=", 1.5))


CASES = (small_calls, bodies, bulk, samples, small_arrays, starts)
