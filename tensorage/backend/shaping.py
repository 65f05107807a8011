"""Requests that make arrays without elements, and that change the number of rows of an array."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

import numpy.typing as npt

from tensorage.backend.staging import final_operation, finish_write, new_operation, with_room
from tensorage.backend.transfer import Transfer
from tensorage.types import Dataset

__all__ = ["create", "resize"]


def create(transfer: Transfer, meta: Mapping[str, Any], fill_value: npt.NDArray[Any]) -> Dataset:
    """Make an array without elements.

    Parameters
    ----------
    meta
        Entry for the catalogue.
    fill_value
        Element that the array reads as, an array without dimensions.
    """
    arguments = {**meta, "fill": _encode(fill_value), "operation": final_operation()}
    asked = f"creating {meta['key']!r}"
    return finish_write(
        transfer, with_room(transfer, lambda: transfer.call("tensorage_create", arguments, asked))
    )


def resize(
    transfer: Transfer,
    dataset: Dataset,
    rows: int,
    fill_value: npt.NDArray[Any],
    coords: Mapping[str, Any] | None,
) -> Dataset:
    """Give an array another number of rows.

    Parameters
    ----------
    fill_value
        Element that new rows read as, if the array has had all of its elements so far.
    coords
        Encoded coordinates of the array with its new shape. None leaves them as they are.

    Raises
    ------
    ChangedError
        If the array has another number of rows by now, or has been replaced or deleted.
    """
    arguments = {
        "data_id": dataset.id, "base_rows": dataset.shape[0], "rows": rows, "fill": _encode(fill_value),
        "coords": coords, "operation": new_operation(),
    }  # fmt: skip
    return finish_write(transfer, transfer.call("tensorage_resize", arguments, f"resizing {dataset.key!r}"))


def _encode(element: npt.NDArray[Any]) -> str:
    return base64.b64encode(element.tobytes()).decode()
