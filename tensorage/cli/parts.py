"""Arrays and parts of arrays on their way out, of one version, in blocks where the selection lets that be."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from tensorage.backend.arrays import Arrays
from tensorage.backend.wire.progress import progress
from tensorage.cli.failures import NOT_FOUND, Failure
from tensorage.errors import KeyNotFoundError
from tensorage.interchange.grouped import Outgoing
from tensorage.types import Dataset

__all__ = ["open_array", "opened_part", "read_thinned", "selection_errors"]

Items = tuple[Any, ...]
Read = Callable[[Any], npt.NDArray[Any]]


def open_array(arrays: Arrays, key: str) -> Dataset:
    """Find an array.

    Raises
    ------
    Failure
        If it is a group. The error says how groups are read.
    KeyNotFoundError
        If there is neither.
    """
    try:
        return arrays.open(key)
    except KeyNotFoundError:
        group = key.rstrip("/")
        # Asked only after the failure: the key of an array, which is the usual case, takes one request.
        if not group or next(iter(arrays.entries(f"{group}/")), None) is None:
            raise
    raise Failure(
        f"{key!r} is a group: `tensorage ls` lists its arrays, and `tensorage export` writes all of them to a file",
        NOT_FOUND,
    )


@contextmanager
def opened_part(
    arrays: Arrays, entry: Dataset, selection: Items | None, name: str, *, quiet: bool
) -> Iterator[Outgoing]:
    """Give a part of an array as something that can be written to a file, with a bar for its bytes.

    Parameters
    ----------
    selection
        Items between the brackets. None for the whole array.
    name
        Name in the file.

    Raises
    ------
    Failure
        If the selection does not fit the array.
    """
    with selection_errors(entry):
        item = _part(arrays.quietly(), entry, selection, name)
    # By numbers of Python, which do not overflow.
    nbytes = item.dtype.itemsize * int(np.prod(item.shape, dtype=object))
    with progress(nbytes, entry.key, quiet=quiet) as advance:

        def read(region: Any) -> npt.NDArray[Any]:
            found = item.read(region)
            advance(found.nbytes)
            return found

        yield replace(item, read=read)


@contextmanager
def selection_errors(entry: Dataset) -> Iterator[None]:
    """Tell in one line that a selection does not fit an array."""
    try:
        yield
    except IndexError as error:
        raise Failure(
            f"{entry.key!r} has shape {entry.shape}, which the selection does not fit: {error}"
        ) from error


def _part(arrays: Arrays, entry: Dataset, selection: Items | None, name: str) -> Outgoing:
    how: dict[str, Any] = {"attrs": dict(entry.attrs), "dims": entry.dims if selection is None else None}
    if entry.ragged is not None:
        return _as_outgoing(
            arrays.read(entry, ... if selection is None else _plain(selection)), entry, name, how
        )
    items = _expand(selection or (), entry.ndim)
    if items is None:
        return _as_outgoing(arrays.read(entry, _plain(selection or ())), entry, name, how)
    shape = _shape_of(entry, items)
    place = next((n for n, item in enumerate(items) if not isinstance(item, int)), None)
    if place is None or items[place] is None:
        return Outgoing(name, entry.key, shape, entry.dtype, _read_once(arrays, entry, items), **how)
    return Outgoing(name, entry.key, shape, entry.dtype, _read_rows(arrays, entry, items, place), **how)


def read_thinned(
    arrays: Arrays, entry: Dataset, selection: Items | None, most: int
) -> tuple[Any, tuple[int, ...]]:
    """Read a part of an array for a drawing: of an axis that is longer than `most`, every second, third, ... element.

    Returns
    -------
    tuple
        Elements, and the shape of the whole part.

    Raises
    ------
    Failure
        If the selection does not fit the array.
    """
    with selection_errors(entry):
        items = None if entry.ragged is not None else _expand(selection or (), entry.ndim)
        if items is None:
            found = arrays.read(entry, _plain(selection) if selection else ...)
            return found, np.shape(found)
        shape, axis, thin = _shape_of(entry, items), 0, []
        for item in items:
            is_slice = isinstance(item, slice)
            thin.append(_thinner(range(*item.indices(entry.shape[axis])), most) if is_slice else item)
            axis += item is not None
        return arrays.read(entry, tuple(thin)), shape


def _thinner(wanted: range, most: int) -> slice:
    thin = wanted[:: max(-(-len(wanted) // most), 1)]
    return slice(thin.start, thin.stop if thin.stop >= 0 else None, thin.step)


def _plain(selection: Items) -> Any:
    return selection[0] if len(selection) == 1 else selection


def _expand(selection: Items, ndim: int) -> Items | None:
    """Return one item for each axis, beside None for new ones. None if items are more than numbers and slices."""
    if any(isinstance(item, bool | list | str) for item in selection):
        return None
    places = [n for n, item in enumerate(selection) if item is ...]
    if len(places) > 1:
        raise IndexError("an index can only have a single ellipsis ('...')")
    missing = (slice(None),) * max(ndim - sum(item is not None and item is not ... for item in selection), 0)
    if not places:
        return (*selection, *missing)
    return (*selection[: places[0]], *missing, *selection[places[0] + 1 :])


def _shape_of(entry: Dataset, items: Items) -> tuple[int, ...]:
    # A view of a single element, which takes no room whatever the shape.
    return np.broadcast_to(np.empty((), "u1"), entry.shape)[items].shape


def _read_once(arrays: Arrays, entry: Dataset, items: Items) -> Read:
    """Read all at once, as the elements do not follow each other along the first axis."""

    def read(region: Any) -> npt.NDArray[Any]:
        return np.asarray(np.asarray(arrays.read(entry, items), entry.dtype)[region])

    return read


def _read_rows(arrays: Arrays, entry: Dataset, items: Items, place: int) -> Read:
    """Read rows of the result, which run along the axis of the first slice."""
    rows = range(*items[place].indices(entry.shape[place]))

    def read(region: Any) -> npt.NDArray[Any]:
        wanted = rows if region is ... else rows[region]
        stop = wanted.stop if wanted.stop >= 0 else None
        within = (*items[:place], slice(wanted.start, stop, wanted.step), *items[place + 1 :])
        return np.asarray(arrays.read(entry, within), entry.dtype)

    return read


def _as_outgoing(content: Any, entry: Dataset, name: str, how: dict[str, Any]) -> Outgoing:
    """Return what was read already."""
    if isinstance(content, list):
        made = np.empty(len(content), object)
        made[:] = content
        content = made
    elements = np.asarray(content)
    if elements.dtype.kind == "O" and elements.ndim == 0:
        elements = np.asarray([content], object)
    return Outgoing(name, entry.key, elements.shape, elements.dtype, lambda region: elements[region], **how)
