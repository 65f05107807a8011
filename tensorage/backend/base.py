"""The interface of contexts, which is the same for both engines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Unpack

import numpy as np
import numpy.typing as npt

from tensorage.backend.arrays import Arrays
from tensorage.backend.transfer import Project
from tensorage.backend.wire.faults import check_version, missing_schema
from tensorage.errors import IncompleteTensorError, InvalidInputError, SchemaError
from tensorage.model.casting import cast_to
from tensorage.model.declaration import ArrayOptions, declare
from tensorage.tracebacks import end_tracebacks_here
from tensorage.types import Dataset, Engine

__all__ = ["BaseContext"]


@end_tracebacks_here
class BaseContext:
    """Arrays as the user of one session.

    `BackendSession.database` and `BackendSession.storage` make contexts, and log in before and out after. The two kinds
    of context differ in the engine of new arrays. Each of them finds and reads arrays of both engines.

    Parameters
    ----------
    backend
        Session of the user.

    Attributes
    ----------
    arrays
        Arrays of the user, as stores and handles work with them.
    """

    #: Engine of new arrays.
    engine: ClassVar[Engine]

    def __init__(self, backend: Project) -> None:
        self.backend = backend
        self.arrays = Arrays(backend)
        self._declared: dict[int, Dataset] = {}

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self.backend!r}>"

    @property
    def user_id(self) -> str:
        """Id of the logged-in user: ``auth.uid()`` in SQL."""
        return self.backend.user_id

    def check_schema_installed(self) -> bool:
        """Return True if the project has the migrations of this version.

        Raises
        ------
        SchemaError
            If the migrations are missing, or of another version. The message says how to migrate.
        """
        try:
            version = self.backend.transfer.schema_version()
        except SchemaError as error:
            raise missing_schema("there is no function tensorage_version") from error
        check_version(version)
        return True

    def insert_dataset(
        self,
        key: str,
        shape: Sequence[int],
        dim: int,
        type: npt.DTypeLike = "float32",  # noqa: A002 - the name is part of the API
        is_shared: bool = False,
        **options: Unpack[ArrayOptions],
    ) -> Dataset:
        """Declare an array, to be filled by `insert_tensor`.

        The array becomes visible under its key when every element is stored.

        Parameters
        ----------
        key
            1 to 1024 bytes of UTF-8.
        shape
            Lengths of the axes, in elements.
        dim
            Number of axes: ``len(shape)``.
        type
            Dtype of the elements.
        is_shared
            Let every signed-in user of the project read the array.
        options
            Options of `tensorage.model.declaration.ArrayOptions`.

        Raises
        ------
        KeyExistsError, InvalidInputError, DTypeError, QuotaExceededError
            Nothing was declared.
        """
        # Checked before anything is sent, so that a wrong `dim` leaves no declared array behind.
        new = declare(key, shape, type, is_shared, options)
        if dim != len(new.shape):
            raise InvalidInputError(
                f"dim={dim} contradicts the shape {new.shape}, which has {len(new.shape)} axes"
            )
        dataset = self.arrays.begin(new, self.engine)
        self._declared[dataset.id] = dataset
        return dataset

    def insert_tensor(self, data_id: int, data: npt.ArrayLike, offset: int = 0) -> bool:
        """Store rows of a declared array. The last missing rows make the array visible.

        Parameters
        ----------
        data_id
            `Dataset.id` of the entry that `insert_dataset` returned.
        data
            Consecutive rows, of a shape that differs from the declared one in axis 0 only.
        offset
            Index of the first row along axis 0.

        Returns
        -------
        bool
            True: the rows are stored.
        """
        # Rows may come in any order and from any process. Declared arrays are remembered to save a request.
        dataset = self._declared.get(data_id) or self.arrays.open_by_id(data_id)
        self._declared[data_id] = dataset
        rows, region = _rows_to_write(dataset, data, offset)
        if rows.size:
            self.arrays.write_region(dataset, region, rows)
            try:
                self._declared[data_id] = self.arrays.commit(dataset)
            except IncompleteTensorError:
                # Other rows are still missing. The array stays invisible until they are stored.
                self._declared[data_id] = dataset
        return True

    def append_tensor(self, key: str, data: npt.ArrayLike) -> bool:
        """Add rows at the end of axis 0 of a stored array, all at once. Return True once they are stored."""
        self.arrays.append(key, data)
        return True

    def get_dataset(self, key: str) -> Dataset:
        """Return the catalogue's entry of an array.

        Raises
        ------
        KeyNotFoundError
            If there is no complete array under the key that this user may see.
        """
        return self.arrays.open(key)

    def get_tensor(
        self,
        key: str,
        index_low: int | None = None,
        index_up: int | None = None,
        slice_low: Sequence[int] | None = None,
        slice_up: Sequence[int] | None = None,
    ) -> npt.NDArray[Any]:
        """Read a region of a stored array. Like those of numpy, bounds are 0-based and half-open.

        Parameters
        ----------
        index_low, index_up
            Bounds along axis 0.
        slice_low, slice_up
            Bounds along each further axis.
        """
        dataset = self.arrays.open(key)
        selection = _region_of_bounds(dataset.ndim, index_low, index_up, slice_low, slice_up)
        return np.asarray(self.arrays.read(dataset, selection))

    def remove_dataset(self, key: str) -> bool:
        """Delete an array of this user. Return True once it is gone.

        Raises
        ------
        KeyNotFoundError, PermissionDeniedError
        """
        self.arrays.remove(key)
        return True

    def list_dataset_keys(self) -> list[str]:
        """Return every key that this user can open, sorted by code point."""
        return list(self.arrays.iterate_keys())


def _rows_to_write(
    dataset: Dataset, data: npt.ArrayLike, offset: int
) -> tuple[npt.NDArray[Any], tuple[slice, ...]]:
    """Check rows of a declared array, and return them with the region that they fill."""
    rows = cast_to(data, dataset)
    if dataset.ndim == 0:
        return rows.reshape(()), ()
    if rows.shape[1:] != dataset.shape[1:] or rows.ndim != dataset.ndim:
        raise InvalidInputError(f"rows of shape {rows.shape} do not fit the declared shape {dataset.shape}")
    if not 0 <= offset <= dataset.shape[0] - rows.shape[0]:
        raise InvalidInputError(
            f"rows {offset} to {offset + rows.shape[0]} lie outside of the declared shape {dataset.shape}"
        )
    others = map(slice, [0] * dataset.ndim, dataset.shape[1:])
    return rows, (slice(offset, offset + rows.shape[0]), *others)


def _region_of_bounds(
    ndim: int,
    index_low: int | None,
    index_up: int | None,
    slice_low: Sequence[int] | None,
    slice_up: Sequence[int] | None,
) -> tuple[slice, ...]:
    """Return the bounds of `BaseContext.get_tensor` as one slice an axis."""
    if ndim == 0:
        return ()
    lows = [index_low, *(slice_low if slice_low is not None else [None] * (ndim - 1))]
    ups = [index_up, *(slice_up if slice_up is not None else [None] * (ndim - 1))]
    return tuple(np.s_[low:up] for low, up in zip(lows, ups, strict=True))
