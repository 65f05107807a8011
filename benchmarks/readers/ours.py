"""tensorage, by either engine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr  # noqa: F401

import supabase  # noqa: F401
import tensorage

BATCH = 64


class Reader:
    """A handle of the images, in a session of its own.

    Parameters
    ----------
    how
        Arguments of `batches`.
    """

    def __init__(self, url: str, key: str, email: str, password: str, array: str, **how: Any) -> None:
        self._session = tensorage.BackendSession(email, password, url, key)
        self._handle = tensorage.TensorStore(self._session, quiet=True).open(array)
        self._how = how

    def rows(self, indices: list[int]) -> npt.NDArray[np.float32]:
        return self._handle[indices]

    def epoch(self, start: Any) -> tuple[Iterator[npt.NDArray[np.float32]], Callable[[], Any]]:
        loop = self._handle.batches(BATCH, shuffle="shards", seed=5, start_at=start, **self._how)
        return iter(loop), loop.state
