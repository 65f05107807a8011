"""Work of the processes of the local cache's tests. A process that is started anew imports this module by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import workers
from project import Project, User

from tensorage import Tensor

#: 600 rows of 3 kB.
SHAPE = (600, 28, 28)


def array(seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).random(SHAPE, dtype=np.float32)


def assert_same(tensor: Tensor, expected: np.ndarray[Any, Any], seed: int) -> None:
    """Shuffled batches of a whole epoch are what they should be."""
    order = np.random.default_rng(seed).permutation(len(expected))
    for batch in np.array_split(order, 20):
        np.testing.assert_array_equal(tensor[batch], expected[batch], strict=True)


def read_epoch(project: Project, user: User, key: str, folder: Path, seed: int) -> None:
    with workers.store_of(project, user) as store:
        assert_same(store.open(key).cached(folder), array(), seed)


def read_handle(tensor: Tensor, seed: int) -> None:
    """Read by a handle that came from another process."""
    assert_same(tensor, array(), seed)
