"""Samples that tell their numbers, and the threads of loops over batches."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import numpy.typing as npt


def numbered(count: int) -> npt.NDArray[np.float32]:
    """Samples of shape (2, 3)."""
    return np.arange(count * 6, dtype="f4").reshape(count, 2, 3)


def numbers(batch: npt.NDArray[Any]) -> list[int]:
    """Numbers of the samples of `numbered` in a batch."""
    assert (batch == batch[:, :1, :1] + np.arange(6, dtype="f4").reshape(2, 3)).all()
    return [int(number) for number in batch[:, 0, 0] / 6]


def prefetchers() -> list[threading.Thread]:
    """Threads that fetch for loops."""
    return [thread for thread in threading.enumerate() if "prefetch" in thread.name]
