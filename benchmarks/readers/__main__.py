"""``python -m benchmarks.readers LIBRARY``: answers questions from standard input, a line of JSON each."""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

_STATUS = Path("/proc/self/status")


class Answers:
    """Answers of one process. Its module is imported when this is made.

    A reader has `rows`, which gives samples by their numbers, or `epoch`, which gives the batches of a shuffled epoch
    and a function that tells the state to resume with.
    """

    def __init__(self, library: str) -> None:
        self._module = importlib.import_module(f"benchmarks.readers.{library}")
        self._imported = _status("VmRSS")
        self._reader: Any = None
        self._batches: Iterator[npt.NDArray[np.float32]] = iter(())
        self._state: Any = None
        self._begin = 0.0
        self._first: npt.NDArray[np.float32] | None = None

    def write(self, source: str, **settings: Any) -> None:
        """Store the images that a file has."""
        self._module.write(np.load(source), **settings)

    def open(self, **settings: Any) -> float:
        """Open the images, and return the seconds it took."""
        self._begin = time.perf_counter()
        self._reader = self._module.Reader(**settings)
        return self._elapsed()

    def rows(self, indices: list[int]) -> dict[str, Any]:
        """Read samples, and tell the seconds that they took and what they are."""
        begin = time.perf_counter()
        found = self._reader.rows(indices)
        took_s = time.perf_counter() - begin
        return {"took_s": took_s, "digest": hashlib.sha256(np.ascontiguousarray(found)).hexdigest()}

    def first(self, start: Any = None) -> float:
        """Begin an epoch, or go on with one, and return the seconds from opening to the first batch."""
        self._batches, self._state = self._reader.epoch(start)
        self._first = next(self._batches)
        return self._elapsed()

    def rest(self, middle: int) -> dict[str, Any]:
        """Go on to the end, and note the state once there were as many samples as `middle`."""
        assert self._first is not None
        samples, checksum = len(self._first), _checksum(self._first)
        found: dict[str, Any] = {}
        for batch in self._batches:
            samples, checksum = samples + len(batch), checksum + _checksum(batch)
            if samples == middle:
                found = {"state": self._state(), "checksum_then": checksum}
        return {"took_s": self._elapsed(), "samples": samples, "checksum": checksum, **found}

    def memory(self) -> dict[str, int]:
        """Tell the peak of the process's memory, and what it had after its imports."""
        return {"peak": _status("VmHWM"), "imported": self._imported}

    def _elapsed(self) -> float:
        return time.perf_counter() - self._begin


def _checksum(batch: npt.NDArray[np.float32]) -> int:
    """Return a number that the order of samples does not change, at a hundredth of the line's time."""
    return int(batch.view(np.uint32).sum(dtype=np.uint64))


def _status(name: str) -> int:
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1]) * 1024


def _plain(value: Any) -> Any:
    """Return a number of numpy's, which states have, as one of Python's."""
    return value.item()


def main() -> None:
    # Output of a library must not come between the answers.
    answers_to = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    answers = Answers(sys.argv[1])
    for line in sys.stdin:
        method, arguments = json.loads(line)
        print(json.dumps(getattr(answers, method)(**arguments), default=_plain), file=answers_to, flush=True)


if __name__ == "__main__":
    main()
