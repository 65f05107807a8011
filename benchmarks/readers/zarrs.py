"""Zarr by plain HTTP: the package zarr over obstore, whose requests a library of Rust sends."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import zarr
import zarr.storage
from obstore.store import HTTPStore

#: Objects of about the size of tensorage's own: 2,672 images of 3 kB.
SHARD_ROWS = 16 * 167


class Reader:
    """The array of one folder."""

    def __init__(self, url: str) -> None:
        # 64 chunks of one row each are asked for at once.
        zarr.config.set({"async.concurrency": 64})
        store = HTTPStore.from_url(url, client_options={"allow_http": True})
        self._array = zarr.open_array(
            zarr.storage.ObjectStore(store, read_only=True), mode="r", zarr_format=3
        )

    def rows(self, indices: list[int]) -> npt.NDArray[np.float32]:
        return np.asarray(self._array.oindex[indices])


def write(images: npt.NDArray[np.float32], folder: str, chunk_rows: int) -> None:
    """Store the images in shards of 8.4 MB, compressed as zarr does by itself."""
    shape = images.shape[1:]
    shards = (SHARD_ROWS // chunk_rows * chunk_rows, *shape)
    zarr.create_array(folder, data=images, chunks=(chunk_rows, *shape), shards=shards)
