"""Types of elements that have any length, and the forms in which they are written down. No I/O.

An array of such elements is of text, or ragged: a list of samples. Its form in the catalogue is ``text`` for an array
of text, and JSON for ragged arrays:

* ``{"ragged":"text"}`` and ``{"ragged":"bytes"}``, whose samples are `str` and `bytes`;
* ``{"ragged":"<f4","shape":[4]}``, whose samples are arrays of shape ``(n, 4)`` and dtype float32, with any n.

An array of text has any number of axes, and comes back as an array of numpy. A ragged array has one, and its samples
come back in lists.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np

from tensorage.dtypes import dtype_of, form_of
from tensorage.errors import DTypeError

__all__ = ["RAGGED_BYTES", "RAGGED_TEXT", "TEXT", "TEXT_ARRAY", "Ragged", "dtype_and_ragged"]

#: Dtype of text of any length, in numpy.
TEXT: np.dtype[Any] = np.dtypes.StringDType()


@dataclass(frozen=True, slots=True)
class Ragged:
    """Type of elements that have any length.

    Parameters
    ----------
    kind
        Kind of a sample: a `str`, a `bytes`, or an array.
    dtype
        Dtype of the elements of a sample: `StringDType` for text, and bytes without a length for bytes.
    shape
        Shape of a sample behind its first axis, which has any length.
    is_list
        True if selections of several samples are lists. False for an array of text.
    """

    kind: Literal["text", "bytes", "arrays"]
    dtype: np.dtype[Any]
    shape: tuple[int, ...] = ()
    is_list: bool = True

    @property
    def form(self) -> str:
        """Text that the type is written down as."""
        if self.kind != "arrays":
            return json.dumps({"ragged": self.kind}, separators=(",", ":")) if self.is_list else self.kind
        described = {"ragged": form_of(self.dtype), "shape": list(self.shape)}
        return json.dumps(described, separators=(",", ":"), ensure_ascii=False)

    @property
    def unit(self) -> int:
        """Bytes of a sample of length 1. Texts and bytes are counted in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize if self.kind == "arrays" else 1

    def __str__(self) -> str:
        if not self.is_list:
            return "text of any length"
        if self.kind != "arrays":
            return f"ragged {self.kind}"
        return f"ragged {self.dtype} of shape ({', '.join(map(str, ('n', *self.shape)))}{'' if self.shape else ','})"


TEXT_ARRAY = Ragged("text", TEXT, is_list=False)
RAGGED_TEXT = Ragged("text", TEXT)
RAGGED_BYTES = Ragged("bytes", np.dtype("S"))

_WITHOUT_DTYPE = {known.form: known for known in (TEXT_ARRAY, RAGGED_TEXT, RAGGED_BYTES)}


def dtype_and_ragged(form: str) -> tuple[np.dtype[Any], Ragged | None]:
    """Return the dtype of a form, and the type of its elements if they have any length.

    >>> dtype_and_ragged('{"ragged":"<f4","shape":[4]}')[1].shape
    (4,)

    Raises
    ------
    DTypeError
        If the form is none that this version of tensorage knows, or needs a package that is not installed.
    """
    if form in _WITHOUT_DTYPE:
        return _WITHOUT_DTYPE[form].dtype, _WITHOUT_DTYPE[form]
    if not form.startswith("{"):
        return dtype_of(form), None
    ragged = _ragged_of(form)
    return ragged.dtype, ragged


# Each answer of the catalogue has a form, mostly one of a few.
@lru_cache(maxsize=256)
def _ragged_of(form: str) -> Ragged:
    try:
        described = json.loads(form)
        ragged = Ragged("arrays", dtype_of(described["ragged"]), tuple(described["shape"]))
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        if isinstance(error, DTypeError):
            raise
        raise DTypeError(f"the dtype {form[:80]!r} of a stored array is unknown: {error}") from error
    if ragged.form != form:
        raise DTypeError(f"the dtype {form[:80]!r} of a stored array is none that is written so")
    return ragged
