"""Reading of the samples of one array of a loop, which refuses an array that was replaced meanwhile."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tensorage.backend.arrays import OpenArray
from tensorage.errors import ChangedError
from tensorage.indexing.selection import Selection
from tensorage.model.ragged import as_objects
from tensorage.training.padding import pad
from tensorage.training.samples import SampleSource, name_of, read_source

__all__ = ["SourceReader"]


@dataclass(frozen=True)
class SourceReader:
    """Reads samples of one array of a loop.

    Parameters
    ----------
    source
        Array that the samples come from.
    data_id
        Id of the stored array that the loop was made for. It tells an array from one that replaces it under the same
        key. None for an array in memory.
    pad_value
        Value behind the elements of shorter samples of a ragged array: see `tensorage.batches`.
    """

    source: SampleSource
    data_id: int | None
    pad_value: Any = None

    @classmethod
    def of(cls, source: SampleSource, pad_value: Any = None) -> SourceReader:
        """Return the reader of an array as it is now."""
        data_id = source.dataset.id if isinstance(source, OpenArray) else None
        return cls(source, data_id, pad_value)

    def read(self, selection: Selection) -> Any:
        """Return a batch of samples.

        Raises
        ------
        ChangedError
            If another array is under the key now.
        """
        return self.finish(self._read(selection))

    def room_for(self, count: int) -> npt.NDArray[Any] | None:
        """Return memory that `read_rows` may read so many samples into. None if it makes its own in any case."""
        source = self.source
        if not isinstance(source, OpenArray) or source.dataset.ragged is not None:
            return None
        return np.empty((count, *source.shape[1:]), source.dtype)

    def read_rows(self, rows: slice, room: npt.NDArray[Any] | None = None) -> npt.NDArray[Any]:
        """Return consecutive samples as an array, which is one of objects if the samples come as a list.

        Samples of an array in memory are not copied.

        Parameters
        ----------
        room
            Memory for the samples, or for more, that `room_for` has returned.

        Raises
        ------
        ChangedError
            If another array is under the key now, or the array has become shorter.
        """
        try:
            taken = self._take_rows(rows, room)
        except ValueError as error:
            # The room is for samples that are not there any more.
            if len(self.source) >= rows.stop:
                raise
            raise self._shorter_error(rows) from error
        if len(taken) != rows.stop - rows.start:
            raise self._shorter_error(rows)
        samples: npt.NDArray[Any] = as_objects(taken, (len(taken),)) if isinstance(taken, list) else taken
        return samples

    def finish_rows(self, samples: npt.NDArray[Any]) -> Any:
        """Return a batch that was put together of samples of `read_rows`, as `read` returns it."""
        ragged = self.source.dataset.ragged if isinstance(self.source, OpenArray) else None
        return self.finish(list(samples) if ragged is not None and ragged.is_list else samples)

    def finish(self, samples: Any) -> Any:
        """Return a batch as the loop gets it: padded, if it is a list that is to be."""
        if self.pad_value is None or not isinstance(samples, list) or not isinstance(self.source, OpenArray):
            return samples
        return pad(samples, self.source.dataset, self.pad_value)

    def _take_rows(self, rows: slice, room: npt.NDArray[Any] | None) -> Any:
        if isinstance(self.source, np.ndarray):
            return self.source[rows]
        return self._read(rows, None if room is None else room[: rows.stop - rows.start])

    def _read(self, selection: Selection, out: npt.NDArray[Any] | None = None) -> Any:
        source = self.source
        if not isinstance(source, OpenArray):
            return read_source(source, selection)
        # Other threads may open the source anew. This handle tells the array that was read here.
        before = source.dataset
        read = OpenArray(source.arrays, before, reader=source.reader)
        try:
            samples = read.read(selection, out)
        except (IndexError, ValueError):
            # The selection, or `out`, may not fit another array that has replaced this one.
            self._check_same(read)
            raise
        finally:
            if read.dataset is not before:
                source.dataset = read.dataset
        self._check_same(read)
        return samples

    def _check_same(self, source: OpenArray) -> None:
        """Refuse another array under the same key."""
        if source.dataset.id != self.data_id:
            raise ChangedError(
                f"{source.key!r} was replaced by another array while a loop went over it: an epoch would have samples "
                "of both. Open it again and begin anew"
            )

    def _shorter_error(self, rows: slice) -> ChangedError:
        return ChangedError(
            f"{name_of(self.source)} has become shorter while a loop went over it: it lacks some of the samples "
            f"{rows.start} to {rows.stop}. Open it again and begin anew"
        )
