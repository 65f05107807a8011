"""A line in a process of its own, which takes no time from the interpreter that is measured."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any

from benchmarks.network.line import Counts

#: The folder that `benchmarks` is in: the process finds it there, whatever folder this one works in.
_ROOT = Path(__file__).parents[2]


class Apart:
    """A `Line` in another process, for the time of a block: its parameters are those of `Line`."""

    def __init__(
        self,
        url: str,
        round_trip_s: float = 0.0,
        bytes_per_s: float = math.inf,
        connection_round_trips: int = 1,
    ) -> None:
        settings = {
            "url": url,
            "round_trip_s": round_trip_s,
            "bytes_per_s": bytes_per_s,
            "connection_round_trips": connection_round_trips,
        }
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.network"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=_ROOT,
        )
        self.url: str = self._ask(settings)

    def counts(self) -> Counts:
        """Return what has passed since the last call."""
        return Counts(**self._ask("counts"))

    def drop(self) -> int:
        """Break all connections, and return how many there were."""
        dropped: int = self._ask("drop")
        return dropped

    def close(self) -> None:
        """End the process, which ends by itself if this one does."""
        self._process.communicate()

    def __enter__(self) -> Apart:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _ask(self, question: object) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps(question), file=self._process.stdin, flush=True)
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(f"the line's process ended with {self._process.wait()}")
        return json.loads(answer)
