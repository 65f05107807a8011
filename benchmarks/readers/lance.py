"""LanceDB, from a local folder: no line is between."""

from __future__ import annotations

import lancedb
import numpy as np
import numpy.typing as npt
import pyarrow as pa


class Reader:
    """The table of the images."""

    def __init__(self, folder: str) -> None:
        self._table = lancedb.connect(folder).open_table("images")

    def rows(self, indices: list[int]) -> npt.NDArray[np.float32]:
        """Return rows in any order. The table gives them by their offsets' order, so they are put back here."""
        rows, back = np.unique(indices, return_inverse=True)
        column = self._table.take_offsets(rows.tolist()).select(["image"]).to_arrow()["image"]
        images = column.combine_chunks().flatten().to_numpy()
        return images.reshape(len(rows), 28, 28)[back]


def write(images: npt.NDArray[np.float32], folder: str) -> None:
    numbers = pa.array(images.reshape(-1))
    column = pa.FixedSizeListArray.from_arrays(numbers, images[0].size)
    lancedb.connect(folder).create_table("images", pa.table({"image": column}))
