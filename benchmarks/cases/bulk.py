"""Whole arrays, in and out."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from benchmarks.bench import JSON_IMAGES, Bench
from benchmarks.measure import Result, Timed, measure_in_turns, rates, ratio


def bulk(bench: Bench) -> Iterator[Result]:
    """188 MB at once, next to the limit and to HSDS."""
    array, store, straight, hsds = bench.array, bench.store, bench.straight, bench.hsds
    out = np.full_like(array, -1)

    def empty_straight() -> None:
        straight.clear()
        bench.rest()

    def empty_store() -> None:
        if "bulk" in store:
            del store["bulk"]
        bench.rest()

    def check_and_spoil() -> None:
        """Check the array that the last reader has filled, and make it wrong for the next one."""
        if out[0, 0, 0] != -1:
            bench.check(out, array)
        out[0, 0, 0] = -1

    def settle() -> None:
        bench.rest()
        hsds.forget()
        check_and_spoil()

    took = measure_in_turns(
        {
            "limit write": Timed(lambda: straight.write(array), empty_straight),
            "write": Timed(lambda: store.__setitem__("bulk", array), empty_store),
            "HSDS write": Timed(lambda: hsds.write_images(array), bench.rest),
            "limit read": Timed(lambda: straight.read(out), settle),
            "read": Timed(lambda: store.open("bulk").read(..., out=out), check_and_spoil),
            "HSDS read": Timed(lambda: hsds.read_images(out), check_and_spoil),
        }
    )
    check_and_spoil()
    for verb, of_limit in (("write", 0.7), ("read", 0.6)):
        ours, limit, theirs = took[verb], took[f"limit {verb}"], took[f"HSDS {verb}"]
        yield rates(f"bulk {verb}, straight to PostgreSQL (the limit)", array.nbytes, limit)
        yield rates(f"bulk {verb}, HSDS", array.nbytes, theirs)
        yield rates(f"bulk {verb}", array.nbytes, ours)
        yield ratio(f"bulk {verb} / the limit", limit, ours, (">=", of_limit))
        yield ratio(f"bulk {verb} / HSDS", theirs, ours, (">=", 1.5))
        yield ratio(f"bulk {verb}, the limit / HSDS", theirs, limit, None)
    yield from _overwrite(bench)


def _overwrite(bench: Bench) -> Iterator[Result]:
    """The same again under a key that is taken. The writer does not wait until the old array is swept."""
    array, store, straight = bench.array, bench.store, bench.straight

    def finish_sweeping() -> None:
        bench.session.transfer.finish(60)

    def overwrite() -> None:
        store["bulk"] = array

    def overwrite_and_sweep() -> None:
        overwrite()
        finish_sweeping()

    def prepare() -> None:
        finish_sweeping()
        straight.clear()
        bench.rest()

    took = measure_in_turns(
        {
            "limit": Timed(lambda: straight.write(array), prepare),
            "overwrite": Timed(overwrite, prepare),
            "overwrite and sweep": Timed(overwrite_and_sweep, prepare),
        }
    )
    yield rates("bulk overwrite", array.nbytes, took["overwrite"])
    for case, target in (("overwrite", (">=", 0.7)), ("overwrite and sweep", None)):
        yield ratio(f"bulk {case} / straight into a new table", took["limit"], took[case], target)


def json_rows(bench: Bench) -> Iterator[Result]:
    """Some of the images, next to rows of JSON float arrays through the SDK."""
    images, store, peer = bench.array[:JSON_IMAGES], bench.store, bench.json_floats
    out, json_out = np.empty_like(images), np.empty_like(images)
    indices = np.random.default_rng(3).choice(JSON_IMAGES, 64, replace=False)

    def remove() -> None:
        if "some" in store:
            del store["some"]

    took = measure_in_turns(
        {
            "JSON write": Timed(lambda: peer.write(images), peer.clear),
            "write": Timed(lambda: store.__setitem__("some", images), remove),
            "JSON read": Timed(lambda: peer.read(json_out)),
            "read": Timed(lambda: store.open("some").read(..., out=out)),
            "JSON samples": Timed(lambda: peer.batch(indices)),
            "samples": Timed(lambda: store.open("some")[indices]),
        }
    )
    bench.check(out, images)
    bench.check(json_out, images)
    bench.check(peer.batch(indices), images[indices])
    size = f"{JSON_IMAGES} images"
    for verb in ("write", "read"):
        ours, theirs = took[verb], took[f"JSON {verb}"]
        yield rates(f"{size}, {verb}, JSON rows through the SDK", images.nbytes, theirs)
        yield rates(f"{size}, {verb}", images.nbytes, ours)
        yield ratio(f"{size}, {verb} / JSON rows", theirs, ours, (">=", 30))
    yield ratio("64 random samples, as fast as JSON rows", took["JSON samples"], took["samples"], None)
    peer.clear()
    del store["some"]
