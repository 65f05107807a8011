"""The way from a buffer, which holds a selection's elements as they travel, to the selection's result. No I/O."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from tensorage.indexing.selection import Indexer, Positions

__all__ = ["BufferPlan", "BufferView", "empty_view", "view_of_result"]


class BufferView(NamedTuple):
    """A buffer as an array of strides, counted in elements."""

    first: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    #: Index array for the axis `gather_axis`, or None if the view is the result as it is.
    gather: Positions | None = None
    gather_axis: int = 0

    def apply(self, buffer: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return the view of a buffer, before the gather. Numpy checks that it stays within the buffer."""
        # Reshaping another buffer would copy it, and assigned values would go to the copy.
        if not buffer.flags.c_contiguous:
            raise ValueError(f"a buffer has to be C-contiguous, and this one has strides {buffer.strides}")
        return np.ndarray(
            self.shape,
            buffer.dtype,
            # Numpy lends no buffer of its date and time types, so view the buffer as bytes.
            buffer=buffer.reshape(-1).view(np.uint8),
            offset=self.first * buffer.itemsize,
            strides=[stride * buffer.itemsize for stride in self.strides],
        )

    @property
    def gather_index(self) -> tuple[Any, ...]:
        """Index that gathers the result from the view."""
        return (*[slice(None)] * self.gather_axis, self.gather)

    def is_contiguous(self, size: int) -> bool:
        """Tell whether the view is all of a buffer of `size` elements, in order."""
        expected = 1
        for extent, stride in zip(reversed(self.shape), reversed(self.strides), strict=True):
            if extent > 1 and stride != expected:
                return False
            expected *= extent
        return self.gather is None and self.first == 0 and expected == size


def view_of_result(
    indexer: Indexer, lengths: Sequence[int], strides: Sequence[int], gather: Positions | None
) -> BufferView:
    """Describe the result of a selection as a view of its buffer.

    Parameters
    ----------
    lengths, strides
        Length and stride of each dim of the indexer in the buffer, in elements.
    gather
        Index array that brings the points into the order of the selection.
    """
    first = 0
    axes = []
    for axis in indexer.axes:
        if axis.dim is None:
            axes.append((axis.extent, 0))
            continue
        extent, stride = lengths[axis.dim], strides[axis.dim]
        if axis.is_reversed:
            first += (extent - 1) * stride
        # A negative stride reverses the axis without a copy.
        axes.append((extent, -stride if axis.is_reversed else stride))
    return BufferView(
        first,
        tuple(extent for extent, _ in axes),
        tuple(stride for _, stride in axes),
        gather,
        indexer.points.axis if indexer.points is not None else 0,
    )


def empty_view(indexer: Indexer) -> BufferView:
    """Describe the result of a selection that takes no element."""
    return BufferView(0, indexer.shape, (0,) * len(indexer.shape))


@dataclass(frozen=True, slots=True)
class BufferPlan(ABC):
    """The way from a buffer to the result of a selection.

    Parameters
    ----------
    shape
        Shape of the result.
    view
        The result as a view of the buffer.
    is_scalar
        True if numpy gives a scalar rather than an array.
    """

    shape: tuple[int, ...]
    view: BufferView
    is_scalar: bool

    @property
    @abstractmethod
    def size(self) -> int:
        """Elements of the buffer."""

    @property
    def is_whole_buffer(self) -> bool:
        """True if the buffer is the result, element by element in C order."""
        return not self.size or self.view.is_contiguous(self.size)

    def pick(self, buffer: npt.NDArray[Any]) -> Any:
        """Take the result out of a buffer.

        Parameters
        ----------
        buffer
            The elements that travelled: C-contiguous, of any dtype.

        Returns
        -------
        numpy.ndarray or numpy.generic
            The result that numpy gives for ``array[selection]``; an array may be a view of the buffer.
        """
        view = self.view.apply(buffer)
        if self.view.gather is not None:
            return view[self.view.gather_index]
        return view[()] if self.is_scalar else view.reshape(self.shape)

    def place(self, value: npt.NDArray[Any], buffer: npt.NDArray[Any]) -> None:
        """Put the values into a buffer that ``array[selection] = value`` would put into the array.

        If an element is selected more than once, the last of its values (in C order) stays.

        Parameters
        ----------
        value
            Values to assign. They are broadcast as numpy broadcasts them in an assignment.
        buffer
            Buffer to fill: C-contiguous, of any dtype. Every element of the buffer is written if it holds no
            others than the elements selected.

        Raises
        ------
        ValueError
            If the value does not broadcast to the selection's shape. Nothing is written then.
        """
        value = self._broadcast(np.asarray(value))
        view = self.view.apply(buffer)
        if self.view.gather is not None:
            view[self.view.gather_index] = value
        else:
            # The reshape at most splits an axis, so it never copies.
            view.reshape(self.shape)[...] = value

    def _broadcast(self, value: npt.NDArray[Any]) -> npt.NDArray[Any]:
        # Numpy drops leading axes of length 1 from an assigned value, which `broadcast_to` does not.
        shape = value.shape
        while len(shape) > len(self.shape) and shape[0] == 1 and not self.is_scalar:
            shape = shape[1:]
        try:
            return np.broadcast_to(value.reshape(shape), self.shape)
        except ValueError:
            raise ValueError(
                f"could not broadcast input array from shape {value.shape} into shape {self.shape}"
            ) from None
