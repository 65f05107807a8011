"""A change of one array, as a loop gives it to a background writer: what to change, and with which settings."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, cast

import numpy.typing as npt

from tensorage.adapters.labelled import Labels, append_labelled
from tensorage.backend.arrays import Arrays
from tensorage.errors import KeyExistsError, KeyNotFoundError
from tensorage.model.coords import encode_coords
from tensorage.types import Dataset, EngineChoice

__all__ = ["Change", "Settings", "Store", "Stores", "Verb"]

Verb = Literal["storing", "assigning to", "appending to", "deleting"]

#: Most times that rows are appended or stored as a new array, while others make and delete the array.
_MAX_TRIES = 100


class Store(Protocol):
    """The part of a store that a background writer needs."""

    chunk_size: int | None
    allow_overwrite: bool
    engine: EngineChoice
    owner: str | None

    @property
    def arrays(self) -> Arrays:
        """Arrays of the user."""
        ...

    def full_key(self, key: str) -> str:
        """Return the whole key of an array of the store."""
        ...

    def write_declared(self, key: str, value: npt.ArrayLike, **how: Any) -> Dataset:
        """Store an array with its options."""
        ...

    def append(self, key: str, data: npt.ArrayLike, *, create: bool = False) -> None:
        """Add rows at the end of the first axis of an array, which is made of them if it may be."""
        ...

    def __delitem__(self, key: str) -> None: ...


@dataclass(frozen=True)
class Settings:
    """Settings of the store that a change was given to."""

    engine: EngineChoice
    chunk_size: int | None = None
    allow_overwrite: bool = False
    owner: str | None = None

    @classmethod
    def of(cls, store: Store) -> Settings:
        """Return the settings of a store."""
        return cls(store.engine, store.chunk_size, store.allow_overwrite, store.owner)


class Stores:
    """Stores of one user by their settings. Their keys are whole ones, also if the first store is a group."""

    def __init__(self, store: Store) -> None:
        # Holds the login.
        self.first = store
        self._made: dict[Settings, Store] = {}

    def get(self, settings: Settings) -> Store:
        """Return the store with these settings."""
        if settings not in self._made:
            # A store is a dataclass, which this lower room does not know.
            made = dataclasses.replace(cast("Any", self.first), prefix="", **dataclasses.asdict(settings))
            self._made[settings] = made
        return self._made[settings]


@dataclass(frozen=True, eq=False)
class Change:
    """A change of one array.

    Parameters
    ----------
    verb
        Word before the key in messages, and the kind of the change.
    key
        Whole key of the array.
    value
        Elements, in the kind in which they were given: a list of tuples may become records.
    selection
        Elements that are assigned to.
    options
        Options of a new array.
    labels
        Labels of rows that are appended, if they were those of an array of xarray.
    create
        Make the array of the rows if there is none.
    """

    verb: Verb
    key: str
    settings: Settings
    value: Any = None
    selection: Any = None
    options: Mapping[str, Any] = field(default_factory=dict)
    labels: Labels | None = None
    create: bool = False

    def __str__(self) -> str:
        return f"{self.verb} {self.key!r}"

    def make(self, stores: Stores, *, is_begun: bool = False) -> None:
        """Make the change, and return when it is committed.

        Parameters
        ----------
        is_begun
            The change has been made under its id before, and all that follows it may be missing.
        """
        store = stores.get(self.settings)
        if self.verb == "storing":
            store.write_declared(self.key, self.value, **self.options)
        elif self.verb == "assigning to":
            store.arrays.assign_to_key(self.key, self.selection, self.value)
        elif self.verb == "deleting":
            del store[self.key]
        elif self.labels is None:
            store.append(self.key, self.value, create=self.create)
        else:
            self._append_labelled(store, self.labels, is_begun=is_begun)

    @property
    def has_steps(self) -> bool:
        """True if something follows the change itself: the labels of rows."""
        return self.labels is not None

    def _append_labelled(self, store: Store, labels: Labels, *, is_begun: bool) -> None:
        for _ in range(_MAX_TRIES):
            if self._is_appended(store, labels, is_begun=is_begun):
                return
            try:
                self._store_rows(store, labels)
            except KeyExistsError as error:
                # Somebody else has made the array meanwhile, or made it and deleted it again.
                taken = error
            else:
                return
        raise taken

    def _is_appended(self, store: Store, labels: Labels, *, is_begun: bool) -> bool:
        """Append rows with their labels. False if there is no array, and one may be made."""
        try:
            append_labelled(store.arrays, self.key, self.value, labels, is_begun=is_begun)
        except KeyNotFoundError:
            if self.create:
                return False
            raise
        return True

    def _store_rows(self, store: Store, labels: Labels) -> None:
        # A new array takes all of its labels, and not those of its rows alone.
        coords = encode_coords(labels.coords, name=labels.name)
        store.write_declared(
            self.key, self.value, dims=labels.dims, coords=coords, overwrite=False, **self.options
        )
