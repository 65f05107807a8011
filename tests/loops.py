"""Samples that tell their numbers, and the threads of loops over batches."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from tensorage.training.batches import Batches


def numbered(count: int) -> npt.NDArray[np.float32]:
    """Samples of shape (2, 3)."""
    return np.arange(count * 6, dtype="f4").reshape(count, 2, 3)


def numbers(batch: npt.NDArray[Any]) -> list[int]:
    """Numbers of the samples of `numbered` in a batch."""
    assert (batch == batch[:, :1, :1] + np.arange(6, dtype="f4").reshape(2, 3)).all()
    return [int(number) for number in batch[:, 0, 0] / 6]


def assert_goes_on(make: Callable[..., Batches], taken: int) -> None:
    """Two epochs in one go, and cut in two behind some batches, give the same batches.

    Parameters
    ----------
    make
        Makes a loop over numbers, with further arguments of `tensorage.batches`.
    """
    whole, loop = make(), make()
    wanted = [batch.tolist() for _ in range(2) for batch in whole]
    taken = min(taken, len(wanted))
    seen: list[list[int]] = []
    while len(seen) < taken:
        for batch in loop:
            seen.append(batch.tolist())
            if len(seen) == taken:
                break
    state = json.loads(json.dumps(loop.state()))
    rest = make(start_at=state)
    seen += [batch.tolist() for _ in range(2 - state["epoch"]) for batch in rest]
    assert seen == wanted


def prefetchers() -> list[threading.Thread]:
    """Threads that fetch for loops."""
    return [thread for thread in threading.enumerate() if "prefetch" in thread.name]
