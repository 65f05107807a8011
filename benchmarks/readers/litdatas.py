"""LitData, which takes whole chunks to the local disk, and reads its samples from there."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

# Comes first: it makes the others importable.
from benchmarks.readers import vision  # isort: skip  # noqa: F401

import litdata
import numpy as np
import numpy.typing as npt
from litdata.streaming import downloader

BATCH = 64

# It has no public option for an address without TLS.
downloader._OBSTORE_CLIENT_OPTIONS["allow_http"] = "true"

#: The size of tensorage's own objects.
CHUNK_BYTES = 8 * 1024 * 1024


class Reader:
    """A loader without worker processes, whose folder on the disk is empty at first."""

    def __init__(self, remote: str, endpoint: str) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="litdata-bench-")
        dataset = litdata.StreamingDataset(
            remote,
            cache_dir=self._folder.name,
            shuffle=True,
            seed=5,
            storage_options={"endpoint_url": endpoint},
            # A state names the folder of the process that it is from.
            force_override_state_dict=True,
        )
        self._loader = litdata.StreamingDataLoader(dataset, batch_size=BATCH)

    def epoch(self, start: Any) -> tuple[Iterator[npt.NDArray[np.float32]], Callable[[], Any]]:
        if start is not None:
            self._loader.load_state_dict(start)
        return (batch["image"].numpy() for batch in self._loader), self._loader.state_dict


def write(images: npt.NDArray[np.float32], folder: str) -> None:
    litdata.optimize(
        fn=partial(_sample, images),
        inputs=list(range(len(images))),
        output_dir=folder,
        chunk_bytes=CHUNK_BYTES,
        num_workers=1,
        start_method="fork",
        verbose=False,
    )


def _sample(images: npt.NDArray[np.float32], number: int) -> dict[str, Any]:
    return {"image": images[number]}
