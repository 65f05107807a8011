"""Peak memory of moving an array that is larger than the memory that may be used for it.

A program holds anonymous memory. Pages of a mapped file belong to the kernel, which drops them at will. Both are
measured.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import tensorage

_SAMPLE_S = 0.002
_STATUS = Path("/proc/self/status")

#: Rows of one block of the iterable: 8 MiB of them.
_BLOCK_ROWS = 8 * 1024 * 1024 // (1024 * 4)


class Sampler:
    """Highest anonymous memory within the block, in bytes: sampled, since the kernel records no peak of it."""

    def __init__(self) -> None:
        self.peak = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> Sampler:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _sample(self) -> None:
        while not self._stop.is_set():
            self.peak = max(self.peak, anonymous_bytes())
            time.sleep(_SAMPLE_S)


def anonymous_bytes() -> int:
    return _status("RssAnon")


def _status(name: str) -> int:
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1]) * 1024


def write(store: tensorage.TensorStore, array: npt.NDArray[np.float32]) -> None:
    store["big"] = array


def read(store: tensorage.TensorStore, array: npt.NDArray[np.float32]) -> None:
    store.open("big").read(..., out=array)


def iterate(store: tensorage.TensorStore, array: npt.NDArray[np.float32]) -> None:
    """Write an array from blocks that never exist together."""

    def blocks() -> Iterator[npt.NDArray[np.float32]]:
        for first in range(0, len(array), _BLOCK_ROWS):
            yield np.full((min(_BLOCK_ROWS, len(array) - first), *array.shape[1:]), first, array.dtype)

    store.write("big", blocks(), shape=array.shape, dtype=array.dtype)


ACTIONS: dict[str, Callable[[tensorage.TensorStore, npt.NDArray[np.float32]], None]] = {
    "write": write,
    "read": read,
    "iterate": iterate,
}


def main() -> None:
    settings: dict[str, Any] = json.load(sys.stdin)
    session = tensorage.BackendSession(
        settings["email"], settings["password"], settings["url"], settings["key"]
    )
    store = tensorage.TensorStore(session, quiet=True, engine=settings["engine"], allow_overwrite=True)
    array = np.memmap(settings["file"], np.float32, "r+", shape=tuple(settings["shape"]))
    # Memory that any use of the store needs is taken before the measurement.
    store["warm"] = np.arange(10.0)
    _ = store["warm"]
    start, total = anonymous_bytes(), _status("VmRSS")
    with Sampler() as sampler:
        begin = time.perf_counter()
        ACTIONS[settings["action"]](store, array)
        took_s = time.perf_counter() - begin
    report = {
        "anonymous": sampler.peak - start,
        # `ru_maxrss` will not do: it begins with the peak of the parent process.
        "total": _status("VmHWM") - total,
        "took_s": took_s,
    }
    session.logout()
    print(json.dumps(report))


if __name__ == "__main__":
    main()
