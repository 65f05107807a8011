"""Batches of samples of any length as one array, filled up behind the shorter ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from tensorage.backend.arrays import OpenArray
from tensorage.errors import InvalidInputError
from tensorage.training.samples import SampleSource
from tensorage.types import Dataset
from tensorage.wording import quote

__all__ = ["check_padding", "pad"]


def check_padding(sources: Sequence[SampleSource], pad_value: Any) -> None:
    """Refuse a value that no batch can be padded with.

    Raises
    ------
    InvalidInputError
        If no array is ragged, or one has samples that are no arrays, or the value does not fit its dtype.
    """
    if pad_value is None:
        return
    ragged = [source.dataset for source in sources if isinstance(source, OpenArray) and source.dataset.ragged]
    if not ragged:
        raise InvalidInputError(
            f"pad_value={quote(pad_value)} is for ragged arrays, and none of the arrays is one"
        )
    for dataset in ragged:
        if dataset.ragged is None or dataset.ragged.kind != "arrays":
            raise InvalidInputError(
                f"pad_value={quote(pad_value)}: {dataset.key!r} is {dataset.ragged}, and only arrays can be padded"
            )
        _value(dataset, pad_value)


def pad(samples: Sequence[npt.NDArray[Any]], dataset: Dataset, pad_value: Any) -> npt.NDArray[Any]:
    """Return samples as an array of shape ``(samples, longest, ...)``, with a value behind the shorter ones."""
    shape = () if dataset.ragged is None else dataset.ragged.shape
    longest = max(map(len, samples), default=0)
    padded = np.full((len(samples), longest, *shape), _value(dataset, pad_value), dataset.dtype)
    for row, sample in zip(padded, samples, strict=True):
        row[: len(sample)] = sample
    return padded


def _value(dataset: Dataset, pad_value: Any) -> npt.NDArray[Any]:
    given = np.asarray(pad_value)
    if not given.ndim and _fits(given, dataset.dtype):
        with np.errstate(all="ignore"):
            return given.astype(dataset.dtype)
    raise InvalidInputError(
        f"pad_value={quote(pad_value)} is no value of {dataset.key!r}, whose samples are {dataset.ragged}"
    )


def _fits(value: npt.NDArray[Any], dtype: np.dtype[Any]) -> bool:
    """Tell whether a dtype has a value, or one with fewer digits, as numpy assigns it to floats."""
    if dtype.kind in "fc":
        return np.can_cast(value.dtype, dtype, "same_kind")
    try:
        with np.errstate(all="ignore"):
            return bool(np.array_equal(value.astype(dtype), value))
    except (TypeError, ValueError, OverflowError):
        return False
