"""Results of reads, in the memory that the caller asked for. No I/O."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from tensorage.errors import InvalidInputError
from tensorage.model.memory import check_fits, new_array

__all__ = ["Plan", "Result", "check_out"]


class Plan(Protocol):
    """Plan of a selection: the size of its buffer, and the way from the buffer to the result."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def size(self) -> int:
        """Elements of the buffer."""
        ...

    @property
    def is_whole_buffer(self) -> bool:
        """True if the buffer is the result, element by element in C order."""
        ...

    def pick(self, buffer: npt.NDArray[Any]) -> Any:
        """Take the result out of a buffer of one axis."""
        ...


def check_out(shape: tuple[int, ...], dtype: np.dtype[Any], out: npt.NDArray[Any]) -> None:
    """Refuse an array that has not the shape and dtype of the result."""
    if out.shape != shape or out.dtype != dtype:
        raise InvalidInputError(
            f"out has shape {out.shape} and dtype {out.dtype}, the selection has shape {shape} and dtype {dtype}"
        )


class Result:
    """Result of a read. Fill its `buffer`, then `take` it.

    Parameters
    ----------
    out
        Array for the result, or None for a new one.
    key
        Key of the array, for messages.

    Raises
    ------
    InvalidInputError
        If `out` has not the shape and dtype of the result.
    TooLargeError
        If there is no memory for the result.
    """

    def __init__(self, plan: Plan, dtype: np.dtype[Any], out: npt.NDArray[Any] | None, key: str) -> None:
        if out is not None:
            check_out(plan.shape, dtype, out)
        else:
            check_fits(plan.shape, dtype, f"reading {key!r}")
        self._plan = plan
        self._out = out
        # Elements that arrive in order can go straight to `out`, which saves a copy and its memory.
        self._is_direct = out is not None and bool(
            plan.is_whole_buffer and out.flags.c_contiguous and out.flags.writeable
        )
        #: Memory for the elements that travel: contiguous, of one axis.
        self.buffer = (
            out.reshape(-1)
            if out is not None and self._is_direct
            else new_array((plan.size,), dtype, f"reading {key!r}")
        )

    def take(self) -> Any:
        """Return the result that numpy gives for the selection, in `out` if there is one."""
        if self._is_direct:
            return self._out
        result = self._plan.pick(self.buffer)
        if self._out is None:
            # A view of a much larger buffer would keep the whole buffer in memory.
            small = isinstance(result, np.ndarray) and 2 * result.size < self.buffer.size
            return result.copy() if small else result
        self._out[...] = result
        return self._out
