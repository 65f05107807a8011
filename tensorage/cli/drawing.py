"""Pictures in a terminal: pixels as half blocks, and the line of a row as dots of braille characters. No I/O."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from tensorage.display.pixels import Pixels

__all__ = ["half_blocks", "line_of_dots"]

#: Dots of a braille character, by row and column.
_DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))


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
    # Halve first: `high - low` may overflow.
    part = (value / 2 - low / 2) / (high / 2 - low / 2) if high / 2 > low / 2 else 0.5
    return round((1 - part) * (rows - 1))
