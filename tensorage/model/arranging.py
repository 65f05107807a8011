"""Samples and texts that were read, in the form that a selection asks for: one, lists, or an array. No I/O."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from tensorage.errors import InvalidInputError
from tensorage.model.results import Plan
from tensorage.ragged import TEXT, Ragged

__all__ = ["arrange", "refuse_out"]


def refuse_out(ragged: Ragged, out: npt.NDArray[Any] | None, asked: str) -> None:
    """Refuse an array for samples, which come in lists.

    Raises
    ------
    InvalidInputError
    """
    if ragged.is_list and out is not None:
        raise InvalidInputError(
            f"{asked}: samples of any length come in a list, which out= cannot hold. Leave it out"
        )


def arrange(samples: Sequence[Any], plan: Plan, ragged: Ragged, out: npt.NDArray[Any] | None) -> Any:
    """Return the result of a selection: a sample, a list of them, or of an array of text, text or an array of it.

    Parameters
    ----------
    samples
        Elements of the plan's buffer, in order.
    """
    # The plan says where numbers go; here, these are the places of samples.
    places = plan.pick(np.arange(plan.size))
    if not isinstance(places, np.ndarray):
        return samples[places]
    return _as_list(samples, places) if ragged.is_list else _as_text(samples, places, out)


def _as_text(
    samples: Sequence[str], places: npt.NDArray[Any], out: npt.NDArray[Any] | None
) -> npt.NDArray[Any]:
    if out is None:
        out = np.empty(places.shape, TEXT)
    elif out.shape != places.shape or out.dtype.kind != "T":
        raise InvalidInputError(
            f"out has shape {out.shape} and dtype {out.dtype}, the selection has shape {places.shape} and text of any "
            "length"
        )
    out[...] = np.array(samples, object)[places] if places.size else ""
    return out


def _as_list(samples: Sequence[Any], places: npt.NDArray[Any]) -> Any:
    """Return samples in a list. One that is selected twice is two, as rows of an array are."""
    if places.ndim != 1:
        # A selection such as [..., None] nests lists; one of no axes is a sample.
        return [_as_list(samples, row) for row in places] if places.ndim else samples[int(places)]
    chosen: list[Any] = []
    seen = set[int]()
    for place in places.tolist():
        sample = samples[place]
        chosen.append(sample.copy() if place in seen and isinstance(sample, np.ndarray) else sample)
        seen.add(place)
    return chosen
