"""Samples of several arrays that belong together: the first of one to the first of the others, and so on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from tensorage.errors import InvalidInputError
from tensorage.indexing.selection import Selection
from tensorage.tensor import Tensor

if TYPE_CHECKING:
    from tensorage.training.batches import Batches

__all__ = ["AlignedTensors", "SampleSource", "read_source", "same_length", "zip"]

#: What samples come from: a stored array, or one in memory.
SampleSource = Tensor | npt.NDArray[Any]


class AlignedTensors:
    """Samples of several arrays, fetched together: a map-style dataset of PyTorch, made by `tensorage.zip`.

    A sample is a tuple of one sample of each array. What of several arrays is read is fetched at the same time, by one
    request for each that is stored, where that has room for it.

    Parameters
    ----------
    sources
        Stored arrays as `TensorStore.open` gives them, or arrays in memory, of the same length along their first axis.

    Raises
    ------
    InvalidInputError
        If there are none, or they are of different lengths.
    """

    def __init__(self, *sources: SampleSource) -> None:
        self._sources = sources
        self._length = same_length(sources)

    @property
    def sources(self) -> tuple[SampleSource, ...]:
        """The arrays."""
        return self._sources

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, selection: Selection) -> tuple[Any, ...]:
        """``(x[selection], y[selection], ...)``."""
        return read_together(self._sources, selection)

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[Any, ...]]:
        """Samples, in one request for each array: PyTorch's way of asking for a batch."""
        arrays = read_together(self._sources, np.asarray(indices, dtype=np.int64))
        return [tuple(array[i] for array in arrays) for i in range(len(indices))]

    def batches(self, batch_size: int, **how: Any) -> Batches:
        """Batches for a loop: see `tensorage.batches`."""
        from tensorage.training.batches import batches

        return batches(self, batch_size=batch_size, **how)

    def __repr__(self) -> str:
        return (
            f"<AlignedTensors of {', '.join(_name(source) for source in self._sources)}, length {len(self)}>"
        )


def zip(*sources: SampleSource) -> AlignedTensors:  # noqa: A001 - written tensorage.zip
    """Samples of several arrays that belong together, fetched together.

    Parameters
    ----------
    sources
        Stored arrays as `TensorStore.open` gives them, or arrays in memory, of the same length along their first axis.

    Raises
    ------
    InvalidInputError
        If there are none, or they are of different lengths.

    Examples
    --------
    .. code-block:: python

        samples = tensorage.zip(store.open("images"), store.open("labels"))
        image, label = samples[7]
        loader = torch.utils.data.DataLoader(samples, batch_size=64, shuffle=True, num_workers=2)
    """
    return AlignedTensors(*sources)


def same_length(sources: Sequence[SampleSource]) -> int:
    """How many samples there are in each of several arrays.

    Raises
    ------
    InvalidInputError
        If there are no arrays, or what has no length, or different lengths.
    """
    if not sources:
        raise InvalidInputError("no arrays: give at least one, such as store.open('x')")
    for source in sources:
        if not isinstance(source, Tensor | np.ndarray):
            raise InvalidInputError(
                f"samples come from stored arrays, such as store.open('x'), and from numpy arrays, not from a "
                f"{type(source).__name__}"
            )
        if not source.ndim:
            raise InvalidInputError(f"{_name(source)} has no axes, and so no samples")
    if len({len(source) for source in sources}) > 1:
        said = ", ".join(f"{_name(source)} has {len(source)}" for source in sources)
        raise InvalidInputError(f"the arrays do not have the same number of samples: {said}")
    return len(sources[0])


def read_source(source: SampleSource, selection: Selection) -> Any:
    """``source[selection]``, in memory that is the caller's."""
    if isinstance(source, Tensor):
        return source.read(selection)
    # numpy says itself what it takes.
    taken: Any = source[selection]
    return taken.copy() if isinstance(taken, np.ndarray) else taken


def read_together(sources: Sequence[SampleSource], selection: Selection) -> tuple[Any, ...]:
    """``source[selection]`` of each, at the same time."""
    first, *others = sources
    if not others:
        return (read_source(first, selection),)
    with ThreadPoolExecutor(len(others), thread_name_prefix="tensorage zip") as pool:
        reading = [pool.submit(read_source, source, selection) for source in others]
        return (read_source(first, selection), *(each.result() for each in reading))


def _name(source: SampleSource) -> str:
    return repr(source.key) if isinstance(source, Tensor) else f"an array of shape {source.shape}"
