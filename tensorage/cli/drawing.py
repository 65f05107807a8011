"""Arrays as pictures: colours of a matrix, and the line of a row. No I/O."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

__all__ = ["Pixels", "as_numbers", "colours_of", "half_blocks", "line_of_dots", "shrink"]

#: Colours of a picture: height, width, and red, green and blue.
Pixels = npt.NDArray[np.uint8]

#: The colour map "viridis" at nine places. What lies between is interpolated.
_VIRIDIS = np.array(
    [
        (68, 1, 84), (71, 44, 122), (59, 81, 139), (44, 113, 142), (33, 144, 141), (39, 173, 129), (92, 200, 99),
        (170, 220, 50), (253, 231, 37),
    ],
    float,
)  # fmt: skip

#: Colour of what is no number.
_GREY = (128, 128, 128)

#: Dots of a braille character, by row and column.
_DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))


def as_numbers(elements: npt.NDArray[np.generic]) -> npt.NDArray[np.float64] | None:
    """Return elements as numbers that can be drawn: complex ones by their absolute value. None if they are none."""
    kind = elements.dtype.kind
    if kind == "c":
        return np.asarray(np.abs(elements), float)
    if kind in "mM":
        numbers = elements.astype("i8").astype(float)
        numbers[np.isnat(elements)] = np.nan
        return numbers
    if kind in "biuf" or (kind == "V" and elements.dtype.names is None and elements.dtype.itemsize <= 2):
        return elements.astype(float)
    return None


def shrink(numbers: npt.NDArray[np.float64], height: int, width: int) -> npt.NDArray[np.float64]:
    """Return a matrix, or a stack of channels, of at most this size: each element is the mean of those in its place."""
    for axis, most in ((0, height), (1, width)):
        length = numbers.shape[axis]
        if length > most:
            ends = np.linspace(0, length, most + 1).astype(int)
            sums = np.add.reduceat(numbers, ends[:-1], axis)
            counts = np.diff(ends).reshape([-1 if n == axis else 1 for n in range(numbers.ndim)])
            numbers = sums / counts
    return numbers


def colours_of(numbers: npt.NDArray[np.float64], low: float, high: float) -> Pixels:
    """Return the colours of a matrix of numbers between two bounds."""
    span = high - low
    with np.errstate(invalid="ignore", over="ignore"):
        part = np.clip((numbers - low) / span if span > 0 else np.zeros_like(numbers), 0, 1)
    places = np.linspace(0, 1, len(_VIRIDIS))
    found = np.isfinite(part)
    filled = np.where(found, part, 0)
    pixels = np.stack([np.interp(filled, places, _VIRIDIS[:, n]) for n in range(3)], axis=-1).astype(np.uint8)
    pixels[~found] = _GREY
    return pixels


def half_blocks(pixels: Pixels, *, is_true_colour: bool) -> Iterator[str]:
    """Yield lines in which each character shows two pixels, one above the other, by its two colours."""
    code = _true_colour if is_true_colour else _one_of_256
    for row in range(0, len(pixels), 2):
        upper = pixels[row]
        lower = pixels[row + 1] if row + 1 < len(pixels) else None
        cells = []
        for column in range(pixels.shape[1]):
            below = "" if lower is None else f"\x1b[48;{code(lower[column])}m"
            cells.append(f"\x1b[38;{code(upper[column])}m{below}▀")
        yield "".join(cells) + "\x1b[0m"


def _true_colour(pixel: npt.NDArray[np.uint8]) -> str:
    return f"2;{pixel[0]};{pixel[1]};{pixel[2]}"


def _one_of_256(pixel: npt.NDArray[np.uint8]) -> str:
    red, green, blue = (round(int(part) * 5 / 255) for part in pixel)
    return f"5;{16 + 36 * red + 6 * green + blue}"


def line_of_dots(
    numbers: npt.NDArray[np.float64], low: float, high: float, width: int, height: int
) -> list[str]:
    """Draw the line of a row of numbers by the dots of braille characters: two by four in each.

    Parameters
    ----------
    width, height
        Most characters of a line, and lines.
    """
    columns = min(2 * width, max(len(numbers), 1))
    rows = 4 * height
    ends = np.linspace(0, len(numbers), columns + 1).astype(int)
    cells = np.zeros((height, (columns + 1) // 2), int)
    before: int | None = None
    for column, (begin, end) in enumerate(itertools.pairwise(ends)):
        part = numbers[begin : max(end, begin + 1)]
        part = part[np.isfinite(part)]
        if not part.size:
            before = None
            continue
        top, bottom = (_row(value, low, high, rows) for value in (part.max(), part.min()))
        last = _row(part[-1], low, high, rows)
        if before is not None:
            # Joined to the column before, without a gap.
            top, bottom = min(top, max(before, top)), max(bottom, min(before, bottom))
            top, bottom = min(top, before + 1), max(bottom, before - 1)
        for row in range(max(top, 0), min(bottom, rows - 1) + 1):
            cells[row // 4, column // 2] |= _DOTS[row % 4][column % 2]
        before = last
    return ["".join(chr(0x2800 + int(cell)) for cell in line) for line in cells]


def _row(value: float, low: float, high: float, rows: int) -> int:
    part = (value - low) / (high - low) if high > low else 0.5
    return round((1 - part) * (rows - 1))
