"""Processes that read images by one library each, so that memory and first batches are a library's own.

A module of this package belongs to each library. Its class ``Reader`` opens the images, and its function ``write``, if
it has one, stores them. It imports everything that reading needs, so that imports are no part of a figure.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

_ROOT = Path(__file__).parents[2]

#: Libraries with dependencies that need not fit ours are in an environment of their own, which ``make bench`` makes.
PEERS = _ROOT / ".venv-peers" / "bin" / "python"
OURS = Path(sys.executable)

#: Any will do for the server of files, which does not look at signatures.
_KEYS = {"AWS_ACCESS_KEY_ID": "bench", "AWS_SECRET_ACCESS_KEY": "bench", "AWS_REGION": "us-east-1"}


class Reading:
    """A process for one library, for the time of a block. Questions are methods of `readers.__main__.Answers`."""

    def __init__(self, library: str, python: Path, env: Mapping[str, str] | None = None) -> None:
        if not python.exists():
            raise FileNotFoundError(f"{python} is missing: `make bench` makes its environment")
        self._process = subprocess.Popen(
            [python, "-m", "benchmarks.readers", library],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=_ROOT,
            env={**os.environ, **_KEYS, **(env or {})},
        )
        self._library = library

    def ask(self, method: str, **arguments: Any) -> Any:
        """Return the answer to a question."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps([method, arguments]), file=self._process.stdin, flush=True)
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(f"the process of {self._library} ended with {self._process.wait()}")
        return json.loads(answer)

    def __enter__(self) -> Reading:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.communicate()
