"""The part of an array that a preview fetches, by one request of bounded size, and the chunks that it shows. No I/O.

1. The selection is a number or a range for each axis.
2. `choose_picture` leaves a matrix of the last two axes, or a row of the last one. The axes before are cut in the
   middle.
3. `thin_out` is for arrays that are stored flat: every second, third, ... element of long axes is taken.
4. `within_chunks` is for arrays in chunks, which travel whole: the part of the selection that lies in some chunks
   around its middle.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

from tensorage.errors import InvalidInputError
from tensorage.model import zarr_metadata
from tensorage.types import Dataset
from tensorage.wording import quote

__all__ = [
    "Item",
    "choose_picture",
    "cut_of",
    "items_of",
    "selection_of",
    "shape_of",
    "thin_out",
    "within_chunks",
    "words_of",
]

#: A number or a range of one axis.
Item = int | range

#: Most elements of a side of a matrix, and of a row, if they are taken one by one: each costs the server a little.
MOST_OF_SIDE = 128
MOST_OF_ROW = 2048


def items_of(selection: Any, shape: Sequence[int], key: str) -> list[Item]:
    """Return the item of each axis that a selection of numbers, slices and ``...`` stands for.

    >>> items_of((..., -1), (4, 5), "x")
    [range(0, 4), 4]

    Raises
    ------
    InvalidInputError
        If there is anything else in the selection.
    IndexError
        If it does not fit the shape.
    """
    given = [...] if selection is None else list(selection) if isinstance(selection, tuple) else [selection]
    places = [n for n, item in enumerate(given) if item is ...]
    if len(places) > 1:
        raise IndexError("an index can only have a single ellipsis ('...')")
    missing = len(shape) - (len(given) - len(places))
    if missing < 0:
        raise IndexError(
            f"too many indices for {key!r}: it has {len(shape)} axes, and {len(given)} were indexed"
        )
    at = places[0] if places else len(given)
    full: list[Any] = [*given[:at], *[slice(None)] * missing, *given[at + len(places) :]]
    return [
        _item(item, extent, axis, key) for axis, (item, extent) in enumerate(zip(full, shape, strict=True))
    ]


def _item(item: Any, extent: int, axis: int, key: str) -> Item:
    if isinstance(item, slice):
        return range(extent)[item]
    if isinstance(item, bool) or not hasattr(item, "__index__"):
        raise InvalidInputError(
            f"previewing {key!r}: the selection has {quote(item)}, and a preview takes numbers, slices and ... alone. "
            "Read what is wanted, and plot it"
        )
    number: int = item.__index__()
    if not -extent <= number < extent:
        raise IndexError(f"index {number} is out of bounds for axis {axis} with size {extent}")
    return number % extent


def shape_of(items: Sequence[Item]) -> tuple[int, ...]:
    """Return the shape of a part."""
    return tuple(len(item) for item in items if isinstance(item, range))


def _middle(item: Item) -> Item:
    return item[len(item) // 2] if isinstance(item, range) else item


def is_image(shape: Sequence[int], kind: str) -> bool:
    """Tell whether the last axis may be colours: red, green and blue, perhaps with a fourth for opacity."""
    return len(shape) >= 3 and shape[-1] in (3, 4) and kind in "uf" and shape[-2] > 4 and shape[-3] > 4


def cut_of(entry: Dataset) -> tuple[tuple[int, ...] | None, tuple[int, ...] | None]:
    """Return the shapes of the chunks and of the objects of an array.

    Blocks of the database stand for chunks. They are whole rows of axis 0, or parts of a row: of as many elements as
    the largest block has. None if there is no such cut.

    >>> cut_of(Dataset(1, "x", (60000, 28, 28), np.dtype("f4"), block_size=784 * 334))
    ((334, 28, 28), None)
    """
    if not entry.shape or not entry.size:
        return None, None
    if entry.engine == "storage":
        return zarr_metadata.cut_of(json.loads(entry.zarr)) if entry.zarr is not None else (None, None)
    if entry.ragged is not None or not entry.block_size:
        return None, None
    chunks = list(entry.shape)
    for axis, extent in enumerate(entry.shape):
        inner = math.prod(entry.shape[axis + 1 :])
        chunks[axis] = max(min(entry.block_size // inner, extent), 1)
        if chunks[axis] > 1 or entry.block_size >= inner:
            break
    return tuple(chunks), None


def choose_picture(items: Sequence[Item], kind: str) -> list[Item]:
    """Return the part that one picture shows: at most two axes, or an image's three. Others are cut in the middle."""
    ranges = [axis for axis, item in enumerate(items) if isinstance(item, range)]
    shape = [len(items[axis]) for axis in ranges]  # type: ignore[arg-type] # these are ranges
    if is_image(shape, kind):
        kept = ranges[-3:]
    else:
        # Axes of a single element are no sides of a picture.
        long = [axis for axis, extent in zip(ranges, shape, strict=True) if extent > 1]
        kept = long[-2:] or ranges[-1:]
    return [item if axis in kept else _middle(item) for axis, item in enumerate(items)]


def thin_out(items: Sequence[Item], itemsize: int, max_bytes: int) -> list[Item]:
    """Take every second, third, ... element of long axes, so that a part has at most so many bytes.

    >>> thin_out([range(10_000), range(1_000)], 4, 200_000)
    [range(0, 10000, 79), range(0, 1000, 8)]
    >>> thin_out([range(200), range(200)], 4, 200_000)
    [range(0, 200), range(0, 200)]
    """
    shape = shape_of(items)
    if math.prod(shape) * itemsize <= max_bytes:
        return list(items)
    most = MOST_OF_ROW if len(shape) == 1 else MOST_OF_SIDE
    while True:
        taken: list[Item] = [
            item[:: max(-(-len(item) // most), 1)]
            if isinstance(item, range) and not _is_colours(item, items)
            else item
            for item in items
        ]
        if most == 1 or math.prod(shape_of(taken)) * itemsize <= max_bytes:
            return taken
        most = max(most * 3 // 4, 1)


def _is_colours(item: range, items: Sequence[Item]) -> bool:
    return item is items[-1] and len(shape_of(items)) == 3


def within_chunks(
    items: Sequence[Item], chunks: Sequence[int], shards: Sequence[int], room: int
) -> list[Item]:
    """Return the part of a selection that lies in at most so many chunks, side by side in one object.

    Parameters
    ----------
    room
        Most chunks.

    Examples
    --------
    >>> within_chunks([range(100), range(100)], (10, 20), (50, 100), 3)
    [range(50, 60), range(0, 60)]
    """
    lengths = list(chunks)
    for axis in range(len(chunks) - 1, -1, -1):
        fitting = min(room, shards[axis] // chunks[axis])
        lengths[axis] *= max(fitting, 1)
        room //= max(fitting, 1)
        if lengths[axis] < shards[axis]:
            break
    part: list[Item] = []
    for item, length, shard in zip(items, lengths, shards, strict=True):
        middle = _middle(item)
        assert isinstance(middle, int)
        first = middle // shard * shard + middle % shard // length * length
        part.append(_between(item, first, min(first + length, (middle // shard + 1) * shard)))
    return part


def _between(item: Item, first: int, stop: int) -> Item:
    """Return the members of a range from `first` up to `stop`."""
    if not isinstance(item, range):
        return item
    rising = item if item.step > 0 else item[::-1]
    begin = max(-(-(first - rising.start) // rising.step), 0)
    end = max(-(-(stop - rising.start) // rising.step), 0)
    part = rising[begin:end]
    return part if item.step > 0 else part[::-1]


def words_of(items: Sequence[Item], shape: Sequence[int]) -> str:
    """Return a part as it is written between brackets.

    >>> words_of([3, range(0, 100), range(0, 100, 7)], (10, 100, 100))
    '3, :, ::7'
    """
    return ", ".join(
        str(item) if isinstance(item, int) else _slice_words(item, extent)
        for item, extent in zip(items, shape, strict=True)
    )


def _slice_words(item: range, extent: int) -> str:
    step = "" if item.step == 1 else f":{item.step}"
    start = "" if item.start == (0 if item.step > 0 else extent - 1) else str(item.start)
    # A stop that no further member fits before is left out.
    is_end = item.stop >= extent if item.step > 0 else item.stop < 0
    return f"{start}:{'' if is_end else item.stop}{step}"


def selection_of(items: Sequence[Item]) -> tuple[int | slice, ...]:
    """Return a part as numpy takes it."""
    return tuple(
        item if isinstance(item, int) else slice(item.start, item.stop if item.stop >= 0 else None, item.step)
        for item in items
    )
