"""``show``: a part of an array as a picture, in the terminal or as a PNG."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tensorage.cli.commands import (
    command,
    force_option,
    json_option,
    owner_option,
    project_options,
    quiet_option,
)
from tensorage.cli.completing import keys_below
from tensorage.cli.connections import Choice, connect
from tensorage.cli.failures import Failure
from tensorage.cli.output import has_colour, print_json, visible
from tensorage.cli.selections import parse_target

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from tensorage.display.pixels import Pixels

__all__ = ["COMMANDS"]

#: Most elements of an axis that are fetched for a drawing.
MOST = 1024

#: Lines of the drawing of a line.
HEIGHT = 12


@dataclass(frozen=True)
class _Seen:
    """A part of an array that is drawn.

    Parameters
    ----------
    shape
        Shape of the part. `elements` may be fewer.
    numbers
        The elements as numbers. None if they are none.
    """

    key: str
    shape: tuple[int, ...]
    elements: Any
    numbers: npt.NDArray[np.float64] | None
    low: float
    high: float

    @property
    def caption(self) -> str:
        words = f"{visible(self.key)}  {tuple(self.shape)} {getattr(self.elements, 'dtype', 'of any length')}"
        # A NaN is not equal to itself. There is no smallest number then.
        if self.numbers is None or self.low != self.low:
            return words
        return f"{words}  from {self.low:.6g} to {self.high:.6g}"


@command(
    "show",
    "tensorage show 'era5/t2m[0]'",
    "tensorage show exp/run1/loss",
    "tensorage show 'era5/t2m[0]' -o t2m.png --force",
)
@click.argument("target", metavar="KEY[SELECTION]", shell_complete=keys_below)
@click.option(
    "-o", "--output", metavar="FILE", help="Write a PNG, a pixel an element, in place of a drawing."
)
@click.option(
    "--width", type=click.IntRange(1, 1000), help="Columns of the drawing.  [default: those of the terminal]"
)
@owner_option
@force_option
@quiet_option
@json_option
@project_options
def show(
    target: str,
    *,
    output: str | None,
    width: int | None,
    owner: str | None,
    force: bool,
    quiet: bool,
    as_json: bool,
    choice: Choice,
) -> None:
    """Draw a matrix in colours, an image of (rows, columns, 3 or 4) as it is, or a row as a line.

    A drawing fetches every second, third, ... element of a long axis. Without colours, the numbers are printed.
    """
    key, selection = parse_target(target)
    path = None if output is None else _png_path(output, force=force)
    with connect(choice) as connection:
        from tensorage.cli.parts import open_array, read_thinned

        store = connection.store(owner)
        entry = open_array(store.arrays, key)
        # A picture in a file has a pixel for each element, and leaves none out.
        most = MOST if path is None else 1 << 62
        elements, shape = read_thinned(store.arrays, entry, selection, most)
    seen = _look_at(key, elements, shape)
    if as_json:
        print_json(_describe(seen))
    elif path is not None:
        _write_png(seen, path)
        if not quiet:
            click.echo(f"{path}: {seen.caption}")
    else:
        _draw(seen, width or shutil.get_terminal_size().columns)


def _png_path(output: str, *, force: bool) -> Path:
    path = Path(output)
    if path.suffix.lower() != ".png":
        raise click.UsageError(f"the suffix {path.suffix!r} is not .png")
    if not path.parent.is_dir():
        raise Failure(f"there is no folder {str(path.parent)!r}", 3)
    if not force and (path.exists() or path.is_symlink()):
        raise Failure(f"{path} is there already, and is left as it was: --force replaces it")
    return path


def _look_at(key: str, elements: Any, shape: tuple[int, ...]) -> _Seen:
    import numpy as np

    from tensorage.display.pixels import as_numbers

    array = elements if isinstance(elements, list) else np.asarray(elements)
    numbers = None if isinstance(array, list) else as_numbers(array)
    low = high = 0.0
    if numbers is not None:
        finite = numbers[np.isfinite(numbers)]
        low, high = (float(finite.min()), float(finite.max())) if finite.size else (np.nan, np.nan)
    return _Seen(key, shape, array, numbers, low, high)


def _describe(seen: _Seen) -> dict[str, Any]:
    import math

    said: dict[str, Any] = {
        "key": seen.key, "shape": list(seen.shape), "dtype": str(getattr(seen.elements, "dtype", "of any length")),
    }  # fmt: skip
    if seen.numbers is not None and not math.isnan(seen.low):
        said.update(min=seen.low, max=seen.high)
    return said


def _draw(seen: _Seen, width: int) -> None:
    from tensorage.cli.drawing import half_blocks, line_of_dots
    from tensorage.display.pixels import shrink

    click.echo(seen.caption)
    if seen.numbers is None or seen.numbers.ndim == 0 or not seen.numbers.size or not has_colour():
        click.echo(_render_text(seen, width))
    elif seen.numbers.ndim == 1:
        for line in line_of_dots(seen.numbers, seen.low, seen.high, width, HEIGHT):
            click.echo(line)
    else:
        _check_picture(seen)
        # Two pixels a line. The caption and the next prompt have room on the same screen.
        height = max(2 * (shutil.get_terminal_size().lines - 3), 2)
        small = shrink(seen.numbers, *_fitting(seen.numbers.shape, height, width))
        is_true = os.environ.get("COLORTERM", "") in {"truecolor", "24bit"}
        for line in half_blocks(_pixels(seen, small), is_true_colour=is_true):
            click.echo(line, color=True)


def _fitting(shape: tuple[int, ...], height: int, width: int) -> tuple[int, int]:
    """Return the size of a drawing that keeps the proportions, unless one side would vanish."""
    factor = min(height / shape[0], width / shape[1], 1.0)
    return max(round(shape[0] * factor), min(shape[0], 2)), max(round(shape[1] * factor), min(shape[1], 2))


def _render_text(seen: _Seen, width: int) -> str:
    import numpy as np

    if isinstance(seen.elements, list):
        return "\n".join(visible(repr(sample)[: max(width, 20)]) for sample in seen.elements[:HEIGHT])
    return np.array2string(seen.elements, max_line_width=max(width, 20), threshold=100, edgeitems=4)


def _is_image(seen: _Seen) -> bool:
    shape = seen.shape
    return len(shape) == 3 and shape[2] in (3, 4) and seen.elements.dtype.kind in "uf"


def _check_picture(seen: _Seen) -> None:
    if seen.numbers is None:
        raise Failure(f"{seen.key!r} holds no numbers, and cannot be drawn: `tensorage cat` prints it")
    if not seen.shape or 0 in seen.shape:
        raise Failure(
            f"{seen.key!r} has shape {tuple(seen.shape)} here, and cannot be drawn: `tensorage cat` prints it"
        )
    if not (len(seen.shape) in (1, 2) or _is_image(seen)):
        raise Failure(
            f"{seen.key!r} has shape {tuple(seen.shape)} here, which is no picture: select a matrix or a row, as in "
            f"{seen.key}[0]"
        )


def _pixels(seen: _Seen, numbers: npt.NDArray[np.float64]) -> Pixels:
    from tensorage.display.pixels import colours_of, colours_of_image

    if numbers.ndim == 2:
        return colours_of(numbers, seen.low, seen.high)
    return colours_of_image(numbers, seen.elements.dtype)


def _write_png(seen: _Seen, path: Path) -> None:
    from tensorage.interchange.writing import in_place

    _check_picture(seen)
    assert seen.numbers is not None
    try:
        from PIL import Image
    except ModuleNotFoundError as error:
        raise Failure("writing a PNG needs the package 'pillow': pip install pillow") from error
    picture = _render_line(seen) if seen.numbers.ndim == 1 else _pixels(seen, seen.numbers)
    with in_place(path, lambda: None) as temporary:
        Image.fromarray(picture).save(temporary, "png")


def _render_line(seen: _Seen) -> Pixels:
    """Return the line of a row as a picture, dark on white."""
    import numpy as np

    from tensorage.cli.drawing import line_of_dots

    assert seen.numbers is not None
    lines = line_of_dots(seen.numbers, seen.low, seen.high, 400, 60)
    # A character of braille is its eight dots as bits, which are numbered column by column, with the lowest row last.
    codes = np.array([[ord(cell) - 0x2800 for cell in line] for line in lines])
    bits = np.array([[0x01, 0x08], [0x02, 0x10], [0x04, 0x20], [0x40, 0x80]])
    dots = (codes[:, None, :, None] & bits[None, :, None, :]) != 0
    is_dark = dots.reshape(4 * codes.shape[0], 2 * codes.shape[1])
    return np.where(is_dark[..., None], np.uint8(40), np.uint8(255)).repeat(3, axis=2)


COMMANDS = {"show": show}
