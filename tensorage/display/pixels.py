"""Elements as numbers that can be drawn, and a matrix of numbers as colours. No I/O."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["Pixels", "as_numbers", "colours_of", "colours_of_image", "shrink"]

#: Colours of a picture: height, width, and red, green and blue.
Pixels = npt.NDArray[np.uint8]

#: The colour map "viridis" at nine places. Colours between them are interpolated.
_VIRIDIS = np.array(
    [
        (68, 1, 84), (71, 44, 122), (59, 81, 139), (44, 113, 142), (33, 144, 141), (39, 173, 129), (92, 200, 99),
        (170, 220, 50), (253, 231, 37),
    ],
    float,
)  # fmt: skip

#: Colour of what is no number.
_GREY = (128, 128, 128)


def as_numbers(elements: npt.NDArray[np.generic]) -> npt.NDArray[np.float64] | None:
    """Return elements as numbers that can be drawn: complex ones by their absolute value. None if they are none."""
    kind = elements.dtype.kind
    if kind == "c":
        return np.asarray(np.abs(elements), float)
    if kind in "mM":
        # By way of integers, of which NaT is the least one: it is no number to draw.
        numbers = elements.astype("i8").astype(float)
        numbers[np.isnat(elements)] = np.nan
        return numbers
    # Small floats, such as bfloat16, are of kind V.
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
    # Halve first: `high - low` may overflow.
    span = high / 2 - low / 2
    with np.errstate(invalid="ignore", over="ignore"):
        part = np.clip((numbers / 2 - low / 2) / span if span > 0 else numbers - numbers, 0, 1)
    places = np.linspace(0, 1, len(_VIRIDIS))
    found = np.isfinite(part)
    filled = np.where(found, part, 0)
    pixels = np.stack([np.interp(filled, places, _VIRIDIS[:, n]) for n in range(3)], axis=-1).astype(np.uint8)
    pixels[~found] = _GREY
    return pixels


def colours_of_image(numbers: npt.NDArray[np.float64], dtype: np.dtype[np.generic]) -> Pixels:
    """Return the pixels of an image of red, green and blue, of which the elements had this dtype."""
    # Colours from 0 to 1, or whole numbers of as many bits as the dtype has.
    top = 1.0 if dtype.kind == "f" else float(np.iinfo(dtype).max)  # type: ignore[type-var] # a kind of whole numbers
    return (np.clip(np.nan_to_num(numbers[..., :3]) / top, 0, 1) * 255).astype(np.uint8)
