"""Changes as JSON beside arrays, so that another process makes them later. No I/O."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from tensorage.adapters.labelled import Labels
from tensorage.background.changes import Change, Settings
from tensorage.background.spool.values import decode, encode
from tensorage.errors import InvalidInputError
from tensorage.model.coords import coords_of, encode_coords
from tensorage.types import Dataset
from tensorage.wording import one_line, quote

__all__ = ["read_record", "record_of"]

Array = npt.NDArray[Any]


def record_of(change: Change) -> tuple[dict[str, Any], list[Array]]:
    """Return a change as JSON, and the arrays that it refers to.

    Raises
    ------
    InvalidInputError
        If an option cannot be written down.
    """
    arrays: list[Array] = []
    record = {
        "verb": change.verb,
        "key": change.key,
        "settings": dataclasses.asdict(change.settings),
        "value": encode(change.value, arrays),
        "selection": encode(change.selection, arrays),
        "options": {name: _as_json(name, option) for name, option in change.options.items()},
        "labels": None if change.labels is None else _record_of_labels(change.labels),
        "create": change.create,
    }
    return record, arrays


def read_record(record: Mapping[str, Any], arrays: Sequence[Array]) -> Change:
    """Return the change that `record_of` has written down."""
    labels = record["labels"]
    return Change(
        record["verb"],
        record["key"],
        Settings(**record["settings"]),
        decode(record["value"], arrays),
        decode(record["selection"], arrays),
        record["options"],
        None if labels is None else _read_labels(record["key"], labels),
        record["create"],
    )


def _as_json(name: str, option: Any) -> Any:
    if name == "codecs" and option is not None:
        # zarr's own objects write themselves down.
        option = [codec if isinstance(codec, Mapping) else codec.to_dict() for codec in option]
    try:
        return json.loads(json.dumps(option, default=_number))
    except (TypeError, ValueError, AttributeError) as error:
        raise InvalidInputError(
            f"{name}={quote(option)} cannot wait in a spool: {one_line(str(error))}"
        ) from error


def _number(value: Any) -> Any:
    """Return a number of NumPy as one of Python: shapes of chunks may have some."""
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"a {type(value).__name__} is none of the types of JSON")


def _record_of_labels(labels: Labels) -> dict[str, Any]:
    return {
        "name": labels.name,
        "dims": list(labels.dims),
        "shape": list(labels.shape),
        "coords": encode_coords(labels.coords),
    }


def _read_labels(key: str, labels: Mapping[str, Any]) -> Labels:
    # Coordinates are decoded as those of a stored array.
    shape, dims = tuple(labels["shape"]), tuple(labels["dims"])
    array = Dataset(0, key, shape, np.dtype("u1"), 1, dims=dims, coords=labels["coords"])
    return Labels(labels["name"], dims, shape, coords_of(array))
