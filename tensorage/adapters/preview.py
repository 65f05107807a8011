"""A small picture of an array: its part is chosen from the shape, and fetched by one request of bounded size."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from tensorage.backend.arrays import Arrays, OpenArray
from tensorage.backend.ragged import refuse_ragged
from tensorage.display import html, pictures
from tensorage.display.pixels import Pixels, as_numbers, colours_of, colours_of_image, shrink
from tensorage.display.words import visible
from tensorage.errors import InvalidInputError
from tensorage.model.glimpse import (
    Item,
    choose_picture,
    cut_of,
    items_of,
    selection_of,
    shape_of,
    thin_out,
    within_chunks,
    words_of,
)
from tensorage.model.memory import describe_bytes
from tensorage.types import Dataset

__all__ = ["MAX_BYTES", "Preview", "preview"]

#: Most bytes that a preview fetches, and most of them that are elements. The rest is for what a chunk has beside them.
MAX_BYTES = 256 * 1000
_MAX_ELEMENT_BYTES = 240 * 1000

#: Most elements of an axis that are written as text, and most pixels of a side.
_MOST_WRITTEN = 8
_MOST_PIXELS = 360


@dataclass(frozen=True, eq=False, repr=False)
class Preview:
    """A small picture of a part of an array: a heat map, a line, an image, or text where there is nothing to draw.

    Parameters
    ----------
    key
        Key of the array.
    part
        Selection that was fetched, as it is written between brackets.
    elements
        Elements of the part.
    """

    key: str
    part: str
    elements: npt.NDArray[Any]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the part."""
        return self.elements.shape

    def __repr__(self) -> str:
        part = f"[{self.part}]" if self.part else ""
        told = ", ".join(self._describe_elements())
        said = f"<Preview of {self.key!r}{part}, shape {self.shape}, {self.elements.dtype}{told and ': ' + told}>"
        return said if self._numbers is not None and self.elements.ndim else f"{said}\n{self._render_text()}"

    def _repr_html_(self) -> str:
        part = f"[{self.part}]" if self.part else ""
        head = (
            f"<div class='tsg-head'><span class='tsg-kind'>Preview</span> "
            f"<b class='tsg-mono'>{html.text(self.key + part, 1200)}</b></div>"
        )
        told = [f"{self.shape} {self.elements.dtype}", *self._describe_elements()]
        return html.page(head, self._render_picture(), html.note(html.text(" · ".join(told))))

    def _repr_png_(self) -> bytes | None:
        pixels = self._pixels()
        return None if pixels is None else pictures.png(pixels)

    @cached_property
    def _numbers(self) -> npt.NDArray[np.float64] | None:
        return as_numbers(self.elements) if self.elements.size else None

    def _bounds(self, numbers: npt.NDArray[np.float64]) -> tuple[float, float]:
        finite = numbers[np.isfinite(numbers)]
        return (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)

    def _describe_elements(self) -> list[str]:
        """Return what the elements are, in a few words."""
        numbers = self._numbers
        if not self.elements.size:
            return ["no elements"]
        if numbers is None:
            return []
        finite = np.isfinite(numbers)
        told = []
        if finite.any():
            told.append(_range_words(self.elements, numbers, finite))
        if self.elements.dtype.kind == "c":
            told.append("absolute values")
        if missing := int(np.count_nonzero(~finite)):
            told.append(f"{missing:,} not finite")
        return told

    def _render_text(self) -> str:
        return np.array2string(self.elements, max_line_width=100, threshold=64, edgeitems=3)

    def _render_picture(self) -> str:
        numbers = self._numbers
        if numbers is None or not numbers.ndim:
            lines = (visible(line) for line in self._render_text().splitlines()[:40])
            return f"<pre class='tsg-mono'>{'<br>'.join(html.text(line, 400) for line in lines)}</pre>"
        low, high = self._bounds(numbers)
        bars = pictures.histogram(numbers, low, high) if numbers.ndim < 3 and high > low else ""
        if numbers.ndim == 1:
            drawing = pictures.line(numbers, low, high)
        else:
            pixels = self._pixels()
            assert pixels is not None
            drawing = pictures.image(pictures.png(pixels), *pixels.shape[:2])
        return f"<div class='tsg-flex'><div>{drawing}</div><div>{bars}</div></div>"

    def _pixels(self) -> Pixels | None:
        numbers = self._numbers
        if numbers is None or not numbers.ndim:
            return None
        low, high = self._bounds(numbers)
        if numbers.ndim == 1:
            return pictures.line_pixels(numbers, low, high)
        small = shrink(numbers, _MOST_PIXELS, _MOST_PIXELS)
        return (
            colours_of(small, low, high) if small.ndim == 2 else colours_of_image(small, self.elements.dtype)
        )


def _range_words(elements: Any, numbers: npt.NDArray[np.float64], finite: npt.NDArray[np.bool_]) -> str:
    kind = elements.dtype.kind
    if kind in "mM":
        return f"from {elements[finite].min()} to {elements[finite].max()}"
    if kind == "b":
        return f"{int(np.count_nonzero(elements)):,} of {elements.size:,} true"
    found = numbers[finite]
    with np.errstate(over="ignore"):
        mean = found.mean()
    return f"from {found.min():.6g} to {found.max():.6g}, mean {mean:.6g}"


def preview(array: OpenArray, selection: Any = None) -> Preview:
    """Fetch and return a small picture of an array: see `tensorage.Tensor.preview`."""
    return array.on_latest(lambda now: _preview(array.arrays, now, selection))


def _preview(arrays: Arrays, entry: Dataset, selection: Any) -> Preview:
    refuse_ragged("previewing", entry, "Read some of them, such as handle[:3]")
    items = items_of(selection, entry.shape, entry.key)
    if 0 in shape_of(items):
        return Preview(entry.key, words_of(items, entry.shape), np.empty(shape_of(items), entry.dtype))
    kind = entry.dtype.kind
    if as_numbers(np.zeros(1, entry.dtype)) is not None:
        items = choose_picture(items, kind)
    else:
        items = [
            item[:_MOST_WRITTEN] if isinstance(item, range) else item for item in choose_picture(items, kind)
        ]
    part = _in_bounds(arrays, entry, items)
    found = np.asarray(arrays.read_exactly(entry, selection_of(part)), entry.dtype)
    return Preview(entry.key, words_of(part, entry.shape), found)


def _in_bounds(arrays: Arrays, entry: Dataset, items: list[Item]) -> list[Item]:
    """Return the part of a selection whose bytes are few enough.

    Raises
    ------
    InvalidInputError
        If a single element, or a single chunk, has more.
    """
    itemsize = entry.dtype.itemsize
    chunks, shards = cut_of(entry)
    if entry.engine == "storage" and chunks is not None and shards is not None:
        chunk_bytes = math.prod(chunks) * itemsize
        items = within_chunks(items, chunks, shards, max(_MAX_ELEMENT_BYTES // max(chunk_bytes, 1), 1))
        if chunk_bytes > _MAX_ELEMENT_BYTES:
            _check_chunk(arrays, entry, items)
        return items
    part = thin_out(items, itemsize, _MAX_ELEMENT_BYTES)
    if math.prod(shape_of(part)) * itemsize > _MAX_ELEMENT_BYTES:
        raise InvalidInputError(
            f"previewing {entry.key!r}: an element has {describe_bytes(itemsize)}, and a preview fetches at most "
            f"{MAX_BYTES // 1000} kB. Read one, and look at its parts: handle[0]"
        )
    return part


def _check_chunk(arrays: Arrays, entry: Dataset, items: list[Item]) -> None:
    """Refuse a chunk that has too many bytes as it is encoded, which the catalogue knows."""
    grid = arrays.tiles(entry)
    place = tuple(
        (item if isinstance(item, int) else item[0]) // chunk
        for item, chunk in zip(items, grid.chunks, strict=True)
    )
    number = np.atleast_1d(np.ravel_multi_index(place, grid.grid_shape))
    moved = arrays.moved_bytes(entry, number)
    if moved > MAX_BYTES:
        raise InvalidInputError(
            f"previewing {entry.key!r}: a chunk is read as a whole, here {describe_bytes(moved)}, and a preview "
            f"fetches at most {MAX_BYTES // 1000} kB. Read a part and plot it, or copy the array with smaller chunks: "
            "store.copy(key, new_key, chunks=...)"
        )
