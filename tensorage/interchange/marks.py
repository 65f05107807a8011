"""Marks of groups: attributes that belong to a group, and the parts of a Dataset of xarray.

A group is no more than a beginning of keys, and has no place for attributes. Its *mark* is an empty array under the
group's own name. The mark has one attribute, which holds those of the group::

    {"format": 1, "attrs": {"title": "..."},
     "dataset": {"variables": ["t2m"], "stored_coords": [["area", false]], "coords": {...}}}

The member ``dataset`` exists if the group is a Dataset. It names the variables and the coordinates that are arrays of
their own, with their indexes. ``coords`` has all other coordinates, as `tensorage.model.coords` encodes them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tensorage.errors import CorruptTensorError, SchemaError
from tensorage.interchange.entries import Entry
from tensorage.types import Dataset

__all__ = ["GROUP_ATTRIBUTE", "Mark", "Parts", "is_mark", "mark_of"]

#: Attribute of a mark that holds the group's own.
GROUP_ATTRIBUTE = "tensorage.group"

#: Version of the members. A reader refuses later versions.
FORMAT = 1


@dataclass(frozen=True)
class Parts:
    """Parts of a Dataset of xarray.

    Parameters
    ----------
    variables
        Names of the variables, in their order.
    stored_coords
        Names of the coordinates that are arrays of their own, and whether each is an index.
    coords
        All other coordinates, encoded.
    """

    variables: Sequence[str]
    stored_coords: Sequence[tuple[str, bool]]
    coords: Mapping[str, Any]


@dataclass(frozen=True)
class Mark:
    """Attributes of a group, and its parts if it is a Dataset of xarray."""

    attrs: Mapping[str, Any] = field(default_factory=dict)
    parts: Parts | None = None

    def entry(self, name: str) -> Entry:
        """Return the empty array that carries the mark of a group."""
        said: dict[str, Any] = {"format": FORMAT, "attrs": dict(self.attrs)}
        if self.parts is not None:
            said["dataset"] = {
                "variables": list(self.parts.variables),
                "stored_coords": [list(pair) for pair in self.parts.stored_coords],
                "coords": dict(self.parts.coords),
            }
        return Entry(name, np.zeros(0, np.uint8), {GROUP_ATTRIBUTE: said})


def is_mark(dataset: Dataset) -> bool:
    """Tell whether a stored array is the mark of a group."""
    # An array with elements is no mark, even if somebody has given it the attributes of one.
    return GROUP_ATTRIBUTE in dataset.attrs and dataset.shape == (0,)


def mark_of(dataset: Dataset) -> Mark:
    """Read the mark that a stored array carries.

    Raises
    ------
    CorruptTensorError
        If it is damaged.
    SchemaError
        If a later version of tensorage has written it in a format of its own.
    """
    said = dataset.attrs[GROUP_ATTRIBUTE]
    found = said.get("format") if isinstance(said, Mapping) else None
    if isinstance(found, int) and found > FORMAT:
        raise SchemaError(
            f"the mark of the group {dataset.key!r} is of format {found}, and this version knows {FORMAT}: upgrade "
            "tensorage. Its arrays are read as ever"
        )
    try:
        parts = said.get("dataset")
        return Mark(dict(said["attrs"]), None if parts is None else _parts_of(parts))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CorruptTensorError(
            f"the mark of the group {dataset.key!r} is damaged: its attribute {GROUP_ATTRIBUTE!r} is none of "
            "tensorage. The arrays of the group are read as ever"
        ) from error


def _parts_of(said: Mapping[str, Any]) -> Parts:
    stored = [(str(name), bool(is_index)) for name, is_index in said["stored_coords"]]
    return Parts([str(name) for name in said["variables"]], stored, dict(said["coords"]))
