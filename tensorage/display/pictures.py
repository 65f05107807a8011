"""Pictures of numbers: PNG from pixels, and lines and histograms as SVG. No I/O.

A PNG is written by `zlib` alone, so that a picture needs no further package.
"""

from __future__ import annotations

import base64
import struct
import zlib

import numpy as np
import numpy.typing as npt

from tensorage.display.pixels import Pixels

__all__ = ["histogram", "image", "line", "line_pixels", "png"]

#: Pixels of a drawing.
WIDTH, HEIGHT = 360, 140

#: Least pixels of a side.
LEAST = 60

#: Bars of a histogram.
BARS = 40

#: Colours of a line in a PNG, on white.
_INK = (26, 115, 199)

Numbers = npt.NDArray[np.float64]


def png(pixels: Pixels) -> bytes:
    """Return pixels of red, green and blue as a PNG.

    >>> png(np.zeros((1, 1, 3), "u1"))[1:4]
    b'PNG'
    """
    height, width, _ = pixels.shape
    # Each line begins with the number of its filter: none.
    lines = np.zeros((height, 1 + 3 * width), np.uint8)
    lines[:, 1:] = pixels.reshape(height, -1)
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = ((b"IHDR", head), (b"IDAT", zlib.compress(lines.tobytes())), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in parts
    )


def image(data: bytes, height: int, width: int) -> str:
    """Return an element of HTML that holds a PNG, enlarged to be seen. Nothing is fetched for it."""
    factor = min(max(WIDTH / width, 1.0), max(2 * HEIGHT / height, 1.0), 24.0)
    # A few rows of many columns are stretched, so that they can be told apart.
    sides = (min(round(side * factor), 3 * WIDTH) for side in (width, height))
    across, down = (max(side, min(LEAST, 24 * n)) for side, n in zip(sides, (width, height), strict=True))
    encoded = base64.b64encode(data).decode()
    return f"<img alt='heat map' width='{across}' height='{down}' src='data:image/png;base64,{encoded}'>"


def line(numbers: Numbers, low: float, high: float) -> str:
    """Draw a row of numbers as a line with gaps where they are not finite.

    Parameters
    ----------
    low, high
        Bounds of the finite numbers.
    """
    steps = []
    pen = "M"
    places = _places(len(numbers))
    for x, number in zip(places, numbers, strict=True):
        if not np.isfinite(number):
            pen = "M"
            continue
        steps.append(f"{pen}{x:.1f} {_height(number, low, high):.1f}")
        # A number between two gaps is a dot.
        pen = "L"
    path = "".join(f"{step}l0 .01" if step[0] == "M" else step for step in steps)
    drawn = (
        f"<path d='{path}' fill='none' stroke='var(--tsg-accent,#1a73c7)' stroke-width='1.5' "
        "stroke-linejoin='round' stroke-linecap='round'/>"
    )
    return _frame(drawn, low, high)


def _places(count: int) -> Numbers:
    return np.linspace(2, WIDTH - 2, count) if count > 1 else np.full(count, WIDTH / 2)


def _height(number: float, low: float, high: float) -> float:
    # Halve first: `high - low` may overflow.
    part = (number / 2 - low / 2) / (high / 2 - low / 2) if high / 2 > low / 2 else 0.5
    return float(HEIGHT - 4 - part * (HEIGHT - 8))


def _frame(drawn: str, low: float, high: float) -> str:
    labels = (
        f"<text x='{WIDTH + 6}' y='12' font-size='11' fill='currentColor'>{high:.4g}</text>"
        f"<text x='{WIDTH + 6}' y='{HEIGHT - 2}' font-size='11' fill='currentColor'>{low:.4g}</text>"
    )
    border = (
        f"<rect x='.5' y='.5' width='{WIDTH - 1}' height='{HEIGHT - 1}' fill='none' "
        "stroke='var(--tsg-line,#c9ced6)'/>"
    )
    return _svg(border + drawn + labels, WIDTH + 80, HEIGHT)


def _svg(body: str, width: int, height: int) -> str:
    return f"<svg width='{width}' height='{height}' viewBox='0 0 {width} {height}' role='img'>{body}</svg>"


def histogram(numbers: Numbers, low: float, high: float) -> str:
    """Draw how many of the finite numbers lie in equal parts between two bounds."""
    finite = numbers[np.isfinite(numbers)]
    scaled = finite / 2 - low / 2
    span = high / 2 - low / 2
    part = np.clip(scaled / span, 0, 1) if span > 0 else np.full(finite.shape, 0.5)
    counts = np.bincount(np.minimum((part * BARS).astype(int), BARS - 1), minlength=BARS)
    height, width = 60, WIDTH // 2
    step = width / BARS
    tallest = max(int(counts.max()), 1)
    bars = "".join(
        f"<rect x='{n * step:.1f}' y='{height - height * count / tallest:.1f}' width='{step - 0.6:.1f}' "
        f"height='{height * count / tallest:.1f}' fill='var(--tsg-accent,#1a73c7)'/>"
        for n, count in enumerate(counts)
        if count
    )
    labels = (
        f"<text x='0' y='{height + 14}' font-size='11' fill='currentColor'>{low:.4g}</text>"
        f"<text x='{width}' y='{height + 14}' font-size='11' text-anchor='end' fill='currentColor'>{high:.4g}</text>"
    )
    return _svg(bars + labels, width, height + 18)


def line_pixels(numbers: Numbers, low: float, high: float) -> Pixels:
    """Draw a row of numbers as pixels: in each column all from the least to the largest number there."""
    pixels = np.full((HEIGHT, WIDTH, 3), 255, np.uint8)
    ends = np.linspace(0, len(numbers), WIDTH + 1).astype(int)
    before: float | None = None
    for column in range(WIDTH):
        here = numbers[ends[column] : max(ends[column + 1], ends[column] + 1)]
        here = here[np.isfinite(here)]
        if not here.size:
            before = None
            continue
        levels = [*here, before] if before is not None else list(here)
        top, bottom = (round(_height(level, low, high)) for level in (max(levels), min(levels)))
        pixels[top : bottom + 1, column] = _INK
        before = float(here[-1])
    return pixels
