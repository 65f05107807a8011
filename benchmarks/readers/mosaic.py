"""mosaicml-streaming, which takes whole shards to the local disk, and reads its samples from there."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from typing import Any

# Comes first: it makes the others importable.
from benchmarks.readers import vision  # isort: skip  # noqa: F401

import boto3  # noqa: F401
import numpy as np
import numpy.typing as npt
from streaming import MDSWriter, StreamingDataLoader, StreamingDataset

BATCH = 64

#: The size of tensorage's own objects. Its default is 64 MiB, which is all of the images.
SHARD_BYTES = 8 * 1024 * 1024

#: Samples to fetch shards for ahead: all of them. An epoch takes four times as long by default, which is eight batches.
PREDOWNLOAD = 20_000


class Reader:
    """A loader without worker processes, whose folder on the disk is empty at first."""

    def __init__(self, remote: str) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="mosaic-bench-")
        dataset = StreamingDataset(
            remote=remote,
            local=self._folder.name,
            shuffle=True,
            shuffle_seed=5,
            batch_size=BATCH,
            predownload=PREDOWNLOAD,
        )
        self._loader = StreamingDataLoader(dataset, batch_size=BATCH)

    def epoch(self, start: Any) -> tuple[Iterator[npt.NDArray[np.float32]], Callable[[], Any]]:
        if start is not None:
            self._loader.load_state_dict(start)
        return (batch["image"].numpy() for batch in self._loader), self._loader.state_dict


def write(images: npt.NDArray[np.float32], folder: str) -> None:
    columns = {"image": "ndarray:float32:" + ",".join(map(str, images.shape[1:]))}
    with MDSWriter(out=folder, columns=columns, size_limit=SHARD_BYTES) as writer:
        for image in images:
            writer.write({"image": image})
