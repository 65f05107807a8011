"""The embedded server by itself: small calls, large bodies, starts."""

from __future__ import annotations

import http.client
import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

import tensorage
from benchmarks.bench import Bench
from benchmarks.measure import REPETITIONS, Result, Timed, measure_in_turns, median_of, milliseconds, seconds
from tensorage.backend.transfer import MEDIA_TYPE
from tensorage.embedded import control

SMALL_CALLS = 2000
BODY_BYTES = 8 * 1024 * 1024


def small_calls(bench: Bench) -> Iterator[Result]:
    """The smallest function call there is, through a plain HTTP client on one connection."""
    connection = connect(bench.session)
    headers = {**headers_of(bench.session), "Content-Type": "application/json"}

    def call() -> None:
        connection.request("POST", "/rest/v1/rpc/tensorage_version", b"{}", headers)
        answer = connection.getresponse()
        if not isinstance(json.loads(answer.read()), int) or answer.status != 200:
            raise AssertionError(f"the call failed with HTTP {answer.status}")

    took = [seconds(call) for _ in range(SMALL_CALLS)]
    connection.close()
    yield milliseconds("small function call", took, ("<=", 1.5))


def bodies(bench: Bench) -> Iterator[Result]:
    """A body of 8 MiB through the server, each way, next to the same call straight to PostgreSQL."""
    body = np.random.default_rng(2).bytes(BODY_BYTES)
    headers = {
        **headers_of(bench.session),
        "Accept": "application/json",
        "Content-Type": "application/octet-stream",
    }
    connection = connect(bench.session)
    straight = bench.straight

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

    straight.execute(
        "create function public.bench_up(bytea) returns int language sql as 'select octet_length($1)'; "
        f'create function public.bench_down() returns public."{MEDIA_TYPE}" stable language sql as '
        f"$$ select repeat('x', {BODY_BYTES})::bytea $$; notify pgrst, 'reload schema'"
    )
    while b"PGRST202" in exchange("bench_up", b"", headers):
        time.sleep(0.01)
    took = measure_in_turns(
        {
            "in, straight": Timed(lambda: straight.fetch("select public.bench_up($1)", body)),
            "in, through the server": Timed(up),
            "out, straight": Timed(lambda: straight.fetch("select public.bench_down()::bytea")),
            "out, through the server": Timed(down),
        },
        30,
    )
    straight.execute("drop function public.bench_up, public.bench_down")
    connection.close()
    for name, took_s in took.items():
        yield milliseconds(f"8 MiB {name}", took_s)


def starts(_bench: Bench) -> Iterator[Result]:
    """From nothing, and from an existing data folder, to a backend that answers."""
    new, old = [], []
    for _ in range(REPETITIONS):
        with tempfile.TemporaryDirectory() as parent:
            folder = Path(parent) / "data"
            new.append(seconds(lambda folder=folder: control.start(folder)))
            control.stop(folder)
            old.append(seconds(lambda folder=folder: control.start(folder)))
            control.stop(folder)
    yield median_of("start on a new data folder", new, "s", ("<=", 3.0))
    yield median_of("start on an old data folder", old, "s", ("<=", 1.5))


def connect(session: tensorage.BackendSession) -> http.client.HTTPConnection:
    return http.client.HTTPConnection((session.backend_url or "").removeprefix("http://"))


def headers_of(session: tensorage.BackendSession) -> dict[str, str]:
    return {"apikey": session.backend_key or "", "Authorization": f"Bearer {session.token}"}
