"""What every engine can do."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from tensorage.types import Dataset

if TYPE_CHECKING:
    from tensorage.session import BackendSession

__all__ = ["BaseContext"]


class BaseContext(ABC):
    """An engine, used as the user of one session.

    Contexts are handed out by `BackendSession.database` and `BackendSession.storage`, which log in before
    and out after.

    Parameters
    ----------
    backend
        The session whose user everything is done as.
    """

    def __init__(self, backend: BackendSession) -> None:
        self.backend = backend

    @property
    def user_id(self) -> str:
        """Id of the logged-in user, as ``auth.uid()`` gives it in SQL."""
        return self.backend.user_id

    @abstractmethod
    def check_schema_installed(self) -> bool:
        """True if the project has the migrations of this version.

        Raises
        ------
        SchemaError
            If it has none, or those of another version: the message says how to migrate.
        """

    @abstractmethod
    def insert_dataset(
        self,
        key: str,
        shape: Sequence[int],
        dim: int,
        type: npt.DTypeLike = "float32",  # noqa: A002 - the name is part of the API
        is_shared: bool = False,
        *,
        chunk_size: int | None = None,
        attrs: Mapping[str, Any] | None = None,
        dims: Sequence[str] | None = None,
        overwrite: bool = False,
    ) -> Dataset:
        """Declare an array, to be filled by `insert_tensor`.

        It is not visible under its key until every element is there.

        Parameters
        ----------
        key
            1 to 1024 bytes of UTF-8.
        shape
            Extents in elements.
        dim
            Number of axes: ``len(shape)``.
        type
            dtype of the elements.
        is_shared
            Let every signed-in user of the project read it.
        chunk_size
            Elements per stored block; about 1 MiB of them by default.
        overwrite
            Let it replace the array that is under the key when it is complete.

        Raises
        ------
        KeyExistsError, InvalidInputError, DTypeError, QuotaExceededError
            Nothing was declared.
        """

    @abstractmethod
    def insert_tensor(self, data_id: int, data: npt.ArrayLike, offset: int = 0) -> bool:
        """Store rows of a declared array; the last missing ones make it visible.

        Parameters
        ----------
        data_id
            `Dataset.id` of what `insert_dataset` answered.
        data
            Consecutive rows, of the declared shape but for axis 0.
        offset
            Index along axis 0 of the first of them.

        Returns
        -------
        bool
            True: the rows are stored.
        """

    @abstractmethod
    def append_tensor(self, key: str, data: npt.ArrayLike) -> bool:
        """Add rows at the end of axis 0 of a stored array, all at once. True: they are stored."""

    @abstractmethod
    def get_dataset(self, key: str) -> Dataset:
        """The catalogue's entry of an array.

        Raises
        ------
        KeyNotFoundError
            If there is no (complete) array under the key that this user may see.
        """

    @abstractmethod
    def get_tensor(
        self,
        key: str,
        index_low: int | None = None,
        index_up: int | None = None,
        slice_low: Sequence[int] | None = None,
        slice_up: Sequence[int] | None = None,
    ) -> npt.NDArray[Any]:
        """A box out of a stored array. Bounds are 0-based and half-open, as numpy's.

        Parameters
        ----------
        index_low, index_up
            Along axis 0.
        slice_low, slice_up
            Along each further axis.
        """

    @abstractmethod
    def remove_dataset(self, key: str) -> bool:
        """Delete an array of this user. True: it is gone.

        Raises
        ------
        KeyNotFoundError, PermissionDeniedError
        """

    @abstractmethod
    def list_dataset_keys(self) -> list[str]:
        """Every key that this user can open, sorted by code point."""


def box_selection(
    ndim: int,
    index_low: int | None,
    index_up: int | None,
    slice_low: Sequence[int] | None,
    slice_up: Sequence[int] | None,
) -> tuple[slice, ...]:
    """The bounds of `BaseContext.get_tensor` as one slice an axis."""
    if ndim == 0:
        return ()
    lows = [index_low, *(slice_low if slice_low is not None else [None] * (ndim - 1))]
    ups = [index_up, *(slice_up if slice_up is not None else [None] * (ndim - 1))]
    return tuple(np.s_[low:up] for low, up in zip(lows, ups, strict=True))
