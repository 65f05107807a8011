"""A drawing of an array's shape with the lines of its blocks or chunks, as SVG.

1. The last three axes that are longer than one are drawn: as a bar, a rectangle, or a cuboid.
2. The longest of them has `LONGEST` pixels, and no side less than `SHORTEST`, however different they are.
3. Lines between blocks are drawn along each axis, at most `MOST_LINES` of them: where there are more, thinned out.
4. The axes before these are words: ``12 by 4 of``, with the sign of a product.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from tensorage.display.html import TIMES

__all__ = ["draw_shape"]

#: Pixels of the longest side, and of the shortest one.
LONGEST = 150
SHORTEST = 16

#: Most lines between blocks along one axis. Three faces of a cuboid, of two axes each, have at most 54 together.
MOST_LINES = 9

#: Slope of the sides that go to the back.
_BACK = (0.55, -0.45)


def draw_shape(shape: Sequence[int], chunks: Sequence[int] | None) -> str:
    """Draw a shape, and the cut into chunks.

    Parameters
    ----------
    chunks
        Extents of a chunk, one for each axis. None draws no lines.

    Returns
    -------
    str
        SVG, or nothing for an array without axes or elements.
    """
    if not shape or 0 in shape:
        return ""
    cut = [max(min(c, n), 1) for c, n in zip(chunks or shape, shape, strict=True)]
    axes = [axis for axis in range(len(shape)) if shape[axis] > 1][-3:] or [len(shape) - 1]
    before = [shape[axis] for axis in range(axes[0]) if shape[axis] > 1]
    sides = _sides([shape[axis] for axis in axes])
    lines = [_lines(shape[axis], cut[axis], side) for axis, side in zip(axes, sides, strict=True)]
    words = [f"{shape[axis]:,}" for axis in axes]
    return _SHAPES[len(axes)](sides, lines, words, TIMES.join(f"{n:,}" for n in before))


def _sides(extents: Sequence[int]) -> list[float]:
    """Return the pixels of each side: in proportion as far as the shortest one allows."""
    longest = max(extents)
    return [max(LONGEST * extent / longest, SHORTEST) for extent in extents]


def _lines(extent: int, chunk: int, side: float) -> list[float]:
    """Return the places of lines between chunks along a side."""
    count = -(-extent // chunk) - 1
    step = max(-(-count // MOST_LINES), 1)
    return [side * chunk * number / extent for number in range(step, count + 1, step)]


def _bar(sides: list[float], lines: list[list[float]], words: list[str], before: str) -> str:
    width, height = sides[0], 26.0
    body = _face([(0, 0), (width, 0), (width, height), (0, height)])
    body += "".join(_line(x, 0, x, height) for x in lines[0])
    return _svg(width, height, body, [(width / 2, height + 15, words[0], "middle")], before)


def _rectangle(sides: list[float], lines: list[list[float]], words: list[str], before: str) -> str:
    height, width = sides
    body = _face([(0, 0), (width, 0), (width, height), (0, height)])
    body += "".join(_line(x, 0, x, height) for x in lines[1]) + "".join(
        _line(0, y, width, y) for y in lines[0]
    )
    texts = [(width / 2, height + 15, words[1], "middle"), (width + 7, height / 2 + 4, words[0], "start")]
    return _svg(width, height, body, texts, before)


def _cuboid(sides: list[float], lines: list[list[float]], words: list[str], before: str) -> str:
    depth, height, width = sides
    across, up = _BACK[0] * depth, -_BACK[1] * depth
    # The front face begins below the edge that goes to the back.
    front = [(0.0, up), (width, up), (width, up + height), (0.0, up + height)]
    top = [(0.0, up), (across, 0.0), (width + across, 0.0), (width, up)]
    side = [(width, up), (width + across, 0.0), (width + across, height), (width, up + height)]
    body = _face(top, is_lighter=True) + _face(side, is_lighter=True) + _face(front)
    for x in lines[2]:
        body += _line(x, up, x, up + height) + _line(x, up, x + across, 0)
    for y in lines[1]:
        body += _line(0, up + y, width, up + y) + _line(width, up + y, width + across, y)
    for z in lines[0]:
        x, y = _BACK[0] * z, up + _BACK[1] * z
        body += _line(x, y, x + width, y) + _line(x + width, y, x + width, y + height)
    texts = [
        (width / 2, up + height + 15, words[2], "middle"),
        (width + across + 7, height / 2 + 4, words[1], "start"),
        (across / 2 - 5, max(up / 2, 10.0), words[0], "end"),
    ]
    return _svg(width + across, height + up, body, texts, before)


_SHAPES = {1: _bar, 2: _rectangle, 3: _cuboid}


def _face(corners: Sequence[tuple[float, float]], *, is_lighter: bool = False) -> str:
    points = " ".join(f"{x:.1f},{y:.1f}" for x, y in corners)
    # Whatever is behind it shines through, so that the one colour fits light and dark pages.
    opacity = "0.18" if is_lighter else "0.35"
    return f"<polygon points='{points}' fill='var(--tsg-accent,#1a73c7)' fill-opacity='{opacity}' {_STROKE}/>"


_STROKE = "stroke='var(--tsg-accent,#1a73c7)' stroke-width='1.3'"


def _line(x1: float, y1: float, x2: float, y2: float) -> str:
    return (
        f"<line x1='{x1:.1f}' y1='{y1:.1f}' x2='{x2:.1f}' y2='{y2:.1f}' "
        "stroke='var(--tsg-accent,#1a73c7)' stroke-width='0.8'/>"
    )


def _svg(
    width: float, height: float, body: str, texts: list[tuple[float, float, str, str]], before: str
) -> str:
    """Frame a drawing, with room for the numbers beside it."""
    begin = [len(words) * 7.0 - x for x, _, words, anchor in texts if anchor == "end"]
    end = [x + len(words) * 7.5 for x, _, words, anchor in texts if anchor == "start"]
    half = [len(words) * 3.7 for _, _, words, anchor in texts if anchor == "middle"]
    left = max([*begin, *(h - width / 2 for h in half), 0.0]) + 2
    right = max([*end, *(width / 2 + h for h in half), width]) + 2
    above = 18.0 if before else 2.0
    labels = "".join(_label(*each) for each in texts)
    if before:
        words = f"{before} of"
        labels += _label(0, -6, words, "start")
        right = max(right, len(words) * 7.5)
    box = f"{-left:.0f} {-above:.0f} {math.ceil(left + right)} {math.ceil(above + height + 20)}"
    return (
        f"<svg width='{math.ceil(left + right)}' height='{math.ceil(above + height + 20)}' viewBox='{box}' "
        f"role='img' aria-label='shape with its cut'>{body}{labels}</svg>"
    )


def _label(x: float, y: float, words: str, anchor: str) -> str:
    return f"<text x='{x:.1f}' y='{y:.1f}' text-anchor='{anchor}' font-size='12' fill='currentColor'>{words}</text>"
