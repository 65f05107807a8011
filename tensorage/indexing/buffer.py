"""The buffer of a selection's elements, as they travelled, and the selection's result in it. No I/O."""

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
    #: Indexes the axis `gather_axis`.
    gather: Positions | None = None
    gather_axis: int = 0

    def of(self, buffer: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The view, before the gather. Numpy checks that it stays within the buffer."""
        if not buffer.flags.c_contiguous:
            raise ValueError(f"a buffer has to be C-contiguous, and this one has strides {buffer.strides}")
        return np.ndarray(
            self.shape,
            buffer.dtype,
            # As bytes, because numpy lends no buffer of its date and time types.
            buffer=buffer.reshape(-1).view(np.uint8),
            offset=self.first * buffer.itemsize,
            strides=[stride * buffer.itemsize for stride in self.strides],
        )

    @property
    def gathering(self) -> tuple[Any, ...]:
        """Makes the gather of the view."""
        return (*[slice(None)] * self.gather_axis, self.gather)

    def is_contiguous(self, size: int) -> bool:
        """Whether it is all of a buffer of `size` elements, in order."""
        expected = 1
        for extent, stride in zip(reversed(self.shape), reversed(self.strides), strict=True):
            if extent > 1 and stride != expected:
                return False
            expected *= extent
        return self.gather is None and self.first == 0 and expected == size


def view_of_result(
    indexer: Indexer, extents: Sequence[int], strides: Sequence[int], gather: Positions | None
) -> BufferView:
    """Where the result of a selection is in its buffer.

    Parameters
    ----------
    extents, strides
        Of each dim of the indexer, in the buffer.
    gather
        Brings the points into the order that was asked for.
    """
    first = 0
    axes = []
    for axis in indexer.axes:
        if axis.dim is None:
            axes.append((axis.extent, 0))
            continue
        extent, stride = extents[axis.dim], strides[axis.dim]
        if axis.is_reversed:
            first += (extent - 1) * stride
        axes.append((extent, -stride if axis.is_reversed else stride))
    return BufferView(
        first,
        tuple(extent for extent, _ in axes),
        tuple(stride for _, stride in axes),
        gather,
        indexer.points.axis if indexer.points is not None else 0,
    )


def empty_view(indexer: Indexer) -> BufferView:
    """The result of a selection that takes no element."""
    return BufferView(0, indexer.shape, (0,) * len(indexer.shape))


@dataclass(frozen=True, slots=True)
class BufferPlan(ABC):
    """How to make the result of a selection of a buffer of elements.

    Parameters
    ----------
    shape
        Of the result.
    view
        The result in the buffer.
    is_scalar
        True where numpy gives a scalar rather than an array.
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
            What numpy gives for ``array[selection]``; an array may be a view of the buffer.
        """
        view = self.view.of(buffer)
        if self.view.gather is not None:
            return view[self.view.gathering]
        return view[()] if self.is_scalar else view.reshape(self.shape)

    def place(self, value: npt.NDArray[Any], buffer: npt.NDArray[Any]) -> None:
        """Put into a buffer what ``array[selection] = value`` would put into the array.

        Where an element is selected more than once, the last of its values (in C order) stays.

        Parameters
        ----------
        value
            Broadcast as numpy broadcasts it in an assignment.
        buffer
            To fill: C-contiguous, of any dtype. Where nothing travels beyond the elements selected, every
            element of it is written.

        Raises
        ------
        ValueError
            If the value does not broadcast to the selection's shape. Nothing is written then.
        """
        value = self._broadcast(np.asarray(value))
        view = self.view.of(buffer)
        if self.view.gather is not None:
            view[self.view.gathering] = value
        else:
            # Splits an axis at most, so that it is a view of the buffer.
            view.reshape(self.shape)[...] = value

    def _broadcast(self, value: npt.NDArray[Any]) -> npt.NDArray[Any]:
        shape = value.shape
        while len(shape) > len(self.shape) and shape[0] == 1 and not self.is_scalar:
            shape = shape[1:]
        try:
            return np.broadcast_to(value.reshape(shape), self.shape)
        except ValueError:
            raise ValueError(
                f"could not broadcast input array from shape {value.shape} into shape {self.shape}"
            ) from None
