"""Time until a new program has its first number."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from benchmarks import probes
from benchmarks.bench import Bench
from benchmarks.measure import REPETITIONS, Result, median_of, ratio


def first_byte(bench: Bench) -> Iterator[Result]:
    """From the first line of a fresh interpreter: import, log in, open the array, read one element of it."""
    _ = bench.images
    bench.json_floats.write(bench.array[:1])
    login = {
        "url": bench.running.api_url,
        "key": bench.running.anon_key,
        "email": bench.running.email,
        "password": bench.running.password,
    }
    peers: dict[str, Mapping[str, str]] = {
        "straight": {"url": bench.running.superuser_url},
        "hsds": bench.hsds.first_byte_settings(),
        "json_floats": {**login, "table": "json_floats"},
        "tensorage": login,
    }
    took: dict[str, list[float]] = {peer: [] for peer in peers}
    for _ in range(REPETITIONS):
        for peer, settings in peers.items():
            found = probes.run("first_byte", {"peer": peer, **settings})
            if abs(found["element"] - float(bench.array[0, 0, 0])) > 1e-6:
                raise AssertionError(f"{peer} read {found['element']}")
            took[peer].append(found["took_s"])
    bench.json_floats.clear()
    yield median_of("first byte, straight to PostgreSQL", took["straight"], "s")
    yield median_of("first byte, HSDS (h5pyd)", took["hsds"], "s")
    yield median_of("first byte, JSON row through the SDK", took["json_floats"], "s")
    yield median_of("first byte", took["tensorage"], "s")
    yield ratio("first byte / HSDS", took["tensorage"], took["hsds"], None)
