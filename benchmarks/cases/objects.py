"""Arrays as objects of Storage, next to the same objects by plain HTTP, and to Zarr over the SDK."""

from __future__ import annotations

import json
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

import tensorage
from benchmarks.bench import SHAPE, Bench
from benchmarks.measure import (
    MB,
    Result,
    Timed,
    count_requests,
    measure_in_turns,
    median_of,
    milliseconds,
    rates,
    ratio,
)
from benchmarks.peers.naive_zarr import NaiveZarr
from benchmarks.peers.plain_objects import PlainObjects

#: Least part of the rate of plain uploads and downloads of the same objects, at the same parallelism.
OF_LIMIT = 0.7


def objects(bench: Bench) -> Iterator[Result]:
    """188 MB through the storage engine: numbers that nothing compresses, and a smooth field with some noise."""
    yield from _bulk(bench, "noise", bench.array)
    yield from _bulk(bench, "field", smooth_field())


def engines(bench: Bench) -> Iterator[Result]:
    """The same arrays by both engines, for the page about choosing an engine."""
    for name, array in (("small rows", bench.array), ("large rows", smooth_field().reshape(240, 400, 490))):
        yield from _compare_engines(bench, name, array)
    yield from _compare_engines(bench, "10 numbers", np.arange(10.0))


def smooth_field() -> npt.NDArray[np.float32]:
    """Return waves with some noise, like temperatures, of as many bytes as the images."""
    at = np.arange(np.prod(SHAPE), dtype=np.float64)
    noise = np.random.default_rng(1).normal(scale=0.01, size=at.size)
    return (280 + 20 * np.sin(at / 300) + 5 * np.cos(at / 7000) + noise).astype(np.float32).reshape(SHAPE)


def _bulk(bench: Bench, name: str, array: npt.NDArray[np.float32]) -> Iterator[Result]:
    store = _store(bench)
    store["objects"] = array
    dataset = store.open("objects").dataset
    plain = PlainObjects(bench.session, stored_blobs(bench, dataset))
    naive = NaiveZarr(bench.session, _document(dataset))
    out = np.full_like(array, -1)

    def check_and_spoil() -> None:
        bench.check(out, array)
        out[...] = -1

    took = measure_in_turns(
        {
            "plain write": Timed(plain.upload),
            "write": Timed(lambda: store.__setitem__("objects", array), lambda: _remove(store, "objects")),
            "naive write": Timed(lambda: naive.write(array)),
            "plain read": Timed(plain.download),
            "read": Timed(lambda: store.open("objects").read(..., out=out)),
            "naive read": Timed(naive.read, check_and_spoil),
        }
    )
    assert plain.download() == plain.blobs, "what came back is not what was stored"
    bench.check(naive.read(), array)
    yield median_of(f"{name}, objects / array", [plain.nbytes / array.nbytes], "x")
    for verb in ("write", "read"):
        ours, limit, theirs = took[verb], took[f"plain {verb}"], took[f"naive {verb}"]
        yield rates(f"{name}, {verb}, plain objects (the limit), of the array", array.nbytes, limit)
        yield rates(f"{name}, {verb}, Zarr over the SDK", array.nbytes, theirs)
        yield rates(f"{name}, {verb}", array.nbytes, ours)
        yield ratio(f"{name}, {verb} / the limit", limit, ours, (">=", OF_LIMIT))
        yield ratio(f"{name}, {verb} / Zarr over the SDK", theirs, ours, (">", 1))
    plain.remove()
    _remove(store, "objects")


def _compare_engines(bench: Bench, name: str, array: npt.NDArray[np.generic]) -> Iterator[Result]:
    indices = np.random.default_rng(2).choice(len(array), min(64, len(array)), replace=False)
    for engine in ("database", "storage"):
        store = _store(bench, engine)
        # Leftovers of the arrays before are swept behind their removal.
        store.backend.transfer.afterwards.wait(60)
        used = _disk_bytes(bench)
        store["compared"] = array
        grown = _disk_bytes(bench) - used
        handle = store.open("compared")
        took = measure_in_turns(
            {
                "write": Timed(lambda s=store: s.__setitem__("compared", array)),
                "read": Timed(lambda h=handle: h.refresh() or h[...]),
                "samples": Timed(lambda h=handle: h[indices]),
                "append": Timed(lambda s=store: s.append("compared", array[:1])),
            }
        )
        for verb in ("write", "read"):
            yield milliseconds(f"{name}, {engine}, {verb}", took[verb])
        yield milliseconds(f"{name}, {engine}, {len(indices)} random rows", took["samples"])
        yield median_of(
            f"{name}, {engine}, {len(indices)} random rows",
            [count_requests(lambda h=handle: h[indices])],
            "requests",
        )
        yield milliseconds(f"{name}, {engine}, append of a row", took["append"])
        yield median_of(f"{name}, {engine}, disk", [grown / MB], "MB")
        _remove(store, "compared")


def _store(bench: Bench, engine: tensorage.types.EngineChoice = "storage") -> tensorage.TensorStore:
    return tensorage.TensorStore(bench.session, quiet=True, engine=engine, allow_overwrite=True)


def _remove(store: tensorage.TensorStore, key: str) -> None:
    if key in store:
        del store[key]


def stored_blobs(bench: Bench, dataset: tensorage.Dataset) -> list[bytes]:
    """Return the objects that an array consists of."""
    query = "select name from public.shards where data_id = $1 order by number"
    names = [row["name"] for row in bench.straight.rows(query, dataset.id)]
    bucket = bench.session.client.storage.from_("tensors")
    return [bucket.download(name) for name in names]


def _document(dataset: tensorage.Dataset) -> dict[str, object]:
    assert dataset.zarr is not None
    return {"shape": list(dataset.shape), **json.loads(dataset.zarr), "attributes": {}}


def _disk_bytes(bench: Bench) -> int:
    """Return the bytes that all blocks and objects take on the disk, without the write-ahead log."""
    query = """
        select pg_total_relation_size('public.tensors') + pg_total_relation_size('public.shards')
          + coalesce((select sum((metadata ->> 'size')::bigint) from storage.objects), 0)::bigint"""
    bench.straight.execute("vacuum full public.tensors")
    used: int = bench.straight.fetch(query)
    return used
