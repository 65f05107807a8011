"""Stores and handles in a notebook: one short look at the catalogue, or none, and HTML of what it told."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from difflib import get_close_matches
from typing import Any

import numpy as np

from tensorage.backend.arrays import Arrays, OpenArray
from tensorage.backend.glances import glance, problem_of
from tensorage.display import tables, tensors
from tensorage.display.html import short
from tensorage.errors import TensorageError
from tensorage.model.coords import Coords
from tensorage.model.glimpse import cut_of
from tensorage.model.tree import Tree
from tensorage.types import Dataset, Usage

__all__ = ["html_of_session", "html_of_store", "html_of_tensor", "suggestion"]

#: Most arrays of a store that its HTML has as a tree, too.
MOST_IN_TREE = 200

#: Most keys that a suggestion names.
MOST_SUGGESTED = 3

_LOGGED_OUT = "the session has logged out, and is not logged in for being shown"


def html_of_store(arrays: Arrays, prefix: str, words: str, *, is_logged_in: bool) -> str:
    """Return the HTML of a store, by one request for its first 1,000 arrays. Never raises.

    Parameters
    ----------
    prefix
        Beginning of the keys of a group.
    words
        Name of the store.
    """
    if not is_logged_in:
        return tables.unseen("TensorStore", words, _LOGGED_OUT)
    try:
        page = glance(lambda: arrays.first_page(prefix), "looking at the catalogue")
    except Exception as error:  # noqa: BLE001 - shown in place of the arrays
        return tables.unseen("TensorStore", words, problem_of(error))
    entries = [replace(entry, key=entry.key[len(prefix) :]) for entry in page.entries]
    first = entries[:MOST_IN_TREE]
    has_groups = any("/" in entry.key for entry in first)
    whole = Tree.of((each.key, describe(each)) for each in first) if has_groups else None
    return tables.store(words, entries, is_all=page.is_all, used=page.usage, whole=whole)


def describe(entry: Dataset) -> str:
    """Return shape and dtype of an array, as a tree shows them."""
    return f"{entry.shape} {entry.ragged or entry.dtype}"


def html_of_session(
    url: str | None, email: str | None, ask_usage: Callable[[], Usage], *, is_logged_in: bool
) -> str:
    """Return the HTML of a session, with the quota by one request if it is logged in. Never raises."""
    used, problem = None, ""
    if is_logged_in:
        try:
            used = glance(ask_usage, "asking for the usage")
        except Exception as error:  # noqa: BLE001 - shown in place of the quota
            problem = problem_of(error)
    return tables.session(url, email, is_logged_in=is_logged_in, used=used, problem=problem)


def html_of_tensor(array: OpenArray, attrs: dict[str, Any]) -> str:
    """Return the HTML of a handle, from nothing but its entry."""
    entry = array.dataset
    chunks, shards = cut_of(entry)
    directory = getattr(array.reader, "directory", None)
    return tensors.tensor(
        tensors.Shown(
            key=entry.key, kind="Tensor" if directory is None else "CachedTensor",
            elements=str(entry.ragged or entry.dtype), shape=entry.shape, size=entry.size, nbytes=entry.nbytes,
            stored_bytes=entry.stored_bytes, engine=entry.engine, owner=entry.owner, is_shared=entry.is_shared,
            chunks=chunks, shards=shards, dims=entry.dims, fill_value=entry.fill_value, attrs=attrs,
            coords=_labels(entry), more=[] if directory is None else [("kept in", str(directory))],
        )
    )  # fmt: skip


def _labels(entry: Dataset) -> Sequence[tensors.Labels] | str:
    if entry.coords is None:
        return ()
    try:
        coords = Coords(entry).decode_all()
    # Coordinates may be damaged, or of a later version.
    except TensorageError as error:
        return str(error)
    return [
        tensors.Labels(
            each.name, each.dims, str(each.values.dtype), _ends(each.values), each.attrs, each.is_index
        )
        for each in coords
    ]


def _ends(labels: Any) -> str:
    """Return the first and the last labels as text."""
    flat = np.asarray(labels).ravel()
    if flat.size <= 6:
        return " ".join(_word(label) for label in flat)
    return f"{' '.join(_word(x) for x in flat[:3])} … {' '.join(_word(x) for x in flat[-2:])}"


def _word(label: Any) -> str:
    if isinstance(label, np.datetime64) and np.datetime_data(label)[0] not in {"Y", "M", "W", "D"}:
        # No finer than it is: midnights are days.
        return str(np.datetime_as_string(label, unit="auto"))
    return f"{label:.6g}" if isinstance(label, float | np.floating) else short(label, 40)


def suggestion(key: Any, keys: Sequence[str]) -> str:
    """Return a sentence that names keys like a wrong one, or nothing if there are none.

    >>> suggestion("wether", ["weather", "exp/loss"])
    "Did you mean 'weather'?"
    """
    if not isinstance(key, str):
        return ""
    # A group that was left out, and upper and lower case, are what is mistaken most.
    near = [known for known in keys if known.endswith(f"/{key}")]
    if not near:
        folded = {known.casefold(): known for known in reversed(keys)}
        near = [folded[each] for each in get_close_matches(key.casefold(), folded, MOST_SUGGESTED, 0.75)]
    named = [repr(short(each, 120)) for each in near[:MOST_SUGGESTED]]
    return f"Did you mean {' or '.join(named)}?" if named else ""
