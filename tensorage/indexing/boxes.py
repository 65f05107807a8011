"""An array as boxes of consecutive elements, one after the other. No I/O."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import product

__all__ = ["consecutive_boxes"]


def consecutive_boxes(shape: Sequence[int], max_elements: int) -> Iterator[tuple[slice, ...]]:
    """Cut an array into boxes whose elements follow each other in C order, from each box to the next one as well.

    Parameters
    ----------
    max_elements
        Of a box, at least 1.

    Yields
    ------
    tuple of slice
        One for each axis: none has an open end.

    Examples
    --------
    >>> for box in consecutive_boxes((2, 3), 2):
    ...     print(box)
    (slice(0, 1, None), slice(0, 2, None))
    (slice(0, 1, None), slice(2, 3, None))
    (slice(1, 2, None), slice(0, 2, None))
    (slice(1, 2, None), slice(2, 3, None))
    >>> list(consecutive_boxes((5,), 3))
    [(slice(0, 3, None),), (slice(3, 5, None),)]
    """
    if 0 in shape:
        return
    if not shape:
        yield ()
        return
    cut = next(axis for axis in range(len(shape)) if math.prod(shape[axis + 1 :]) <= max_elements)
    step = max_elements // math.prod(shape[cut + 1 :])
    whole = tuple(slice(0, extent) for extent in shape[cut + 1 :])
    for outer in product(*map(range, shape[:cut])):
        before = tuple(slice(index, index + 1) for index in outer)
        for first in range(0, shape[cut], step):
            yield (*before, slice(first, min(first + step, shape[cut])), *whole)
