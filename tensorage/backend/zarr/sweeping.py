"""Deleting the objects that removed, replaced and given up arrays have left."""

from __future__ import annotations

import logging

from tensorage.backend.transfer import Transfer
from tensorage.backend.zarr.bucket import Bucket

__all__ = ["sweep_objects"]

logger = logging.getLogger(__name__)


def sweep_objects(transfer: Transfer) -> None:
    """Delete what this user's arrays have left in the bucket. What fails is tried again after the next write."""
    asked = "deleting what was replaced"
    before: list[str] = []
    try:
        while names := transfer.call("tensorage_sweep_objects", {}, asked):
            if names == before:
                logger.warning("%s objects that are not needed any more cannot be deleted", len(names))
                return
            Bucket(transfer).remove(names, asked)
            before = names
    except (OSError, RuntimeError, LookupError, ValueError) as error:
        # What was to be written is written: that is what the caller has to be told.
        logger.warning("objects that are not needed any more stay until the next write: %s", error)
