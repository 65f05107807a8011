"""Seconds of the batches of an epoch in a new process, through a cache and of a memmap."""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import numpy as np

import tensorage
from benchmarks.bench import SHAPE
from benchmarks.cases.cache import batches, epoch_in_turns


def main() -> None:
    settings: dict[str, Any] = json.load(sys.stdin)
    session = tensorage.BackendSession(
        settings["email"], settings["password"], settings["url"], settings["key"]
    )
    store = session()
    begin = time.perf_counter()
    cached = store.open("cache").cached(settings["folder"])
    _ = cached[batches(0)[0]]
    began_s = time.perf_counter() - begin
    mapped = np.memmap(settings["file"], np.float32, "r", shape=SHAPE)
    took = epoch_in_turns(cached, mapped, settings["seed"])
    session.logout()
    print(json.dumps({"begin": began_s, **took}))


if __name__ == "__main__":
    main()
