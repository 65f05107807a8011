"""The mapping of keys to arrays."""

from __future__ import annotations

import keyword
import weakref
from collections.abc import Iterator, MutableMapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy.typing as npt

from tensorage.backend.database import DatabaseContext
from tensorage.errors import InvalidInputError, KeyNotFoundError, UnsupportedSelectionError
from tensorage.indexing import Selection
from tensorage.tensor import Tensor
from tensorage.types import Engine

if TYPE_CHECKING:
    from tensorage.session import BackendSession

__all__ = ["TensorStore"]


@dataclass(eq=False)
class TensorStore(MutableMapping[str, Any]):
    """The arrays of a user, by key. Keys that other users share are there for reading.

    Logs in when made, and holds the login for as long as it lives.

    Parameters
    ----------
    backend
        The session whose user it works as.
    quiet
        Never show a progress bar.
    engine
        Where new arrays are kept: ``"database"``.
    chunk_size
        Elements per stored block of new arrays; about 1 MiB of them by default.
    allow_overwrite
        Let ``store[key] = array`` replace an array that is there.

    Examples
    --------
    .. code-block:: python

        store = tensorage.login("me@example.org", "password")
        store["weather"] = array
        store["weather", 10:20, ..., 3]
        store.weather[10:20]
    """

    backend: BackendSession
    quiet: bool = False
    engine: Engine = "database"
    chunk_size: int | None = None
    allow_overwrite: bool = False
    context: DatabaseContext = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if self.engine != "database":
            raise InvalidInputError(
                f"engine={self.engine!r}: this version stores arrays with engine='database' only"
            )
        self.backend._hold()
        weakref.finalize(self, _release, self.backend).atexit = False
        self.context = DatabaseContext(self.backend)

    # The mapping --------------------------------------------------------------------------------------

    def __getitem__(self, key: str | tuple[Any, ...]) -> Any:
        """``store[key]``, a whole array, or ``store[key, i, j, ...]``, what numpy gives for ``array[i, j, ...]``.

        Raises
        ------
        KeyNotFoundError
            If there is no array under the key that this user may see.
        IndexError
            As numpy's.
        """
        name, selection = _key_and_selection(key)
        return self.open(name).read(... if selection is None else selection)

    def __setitem__(self, key: str | tuple[Any, ...], value: npt.ArrayLike) -> None:
        """Store an array: it is there as a whole, or not at all.

        Raises
        ------
        KeyExistsError
            If the key is taken and the store does not allow to overwrite.
        DTypeError, QuotaExceededError, InvalidInputError
            Nothing has changed.
        """
        name, selection = _key_and_selection(key)
        if selection is not None:
            raise UnsupportedSelectionError(
                f"assigning into a part of {name!r} is not supported yet: read it, change it, and store the whole"
            )
        self.context.write(
            name, value, chunk_size=self.chunk_size, overwrite=self.allow_overwrite, quiet=self.quiet
        )

    def __delitem__(self, key: str) -> None:
        """Delete an array of this user."""
        self.context.remove_dataset(key)

    def __contains__(self, key: object) -> bool:
        """True if this user can open the key: one request, however many keys there are."""
        if not isinstance(key, str):
            return False
        try:
            self.context.open(key)
        except KeyNotFoundError:
            return False
        return True

    def __iter__(self) -> Iterator[str]:
        return self.context.iterate_keys()

    def __len__(self) -> int:
        return self.context.count_keys()

    def keys(self) -> list[str]:  # type: ignore[override] # a list shows itself, and is what this API always gave
        """Every key that this user can open, sorted by code point."""
        return list(self)

    # More than a mapping --------------------------------------------------------------------------------

    def open(self, key: str, owner: str | None = None) -> Tensor:
        """A lazy handle on an array, of this user or else of one that shares it.

        Parameters
        ----------
        owner
            E-mail address of the user whose array is meant, where several share one under the key.
        """
        return Tensor(self, self.context.open(key, owner), owner)

    def append(self, key: str, data: npt.ArrayLike) -> None:
        """Add rows at the end of the first axis of an array: all at once, or not at all.

        Parameters
        ----------
        data
            Of the array's shape but for the first axis, and of a dtype that fits its own without loss.
        """
        self.context.append(key, data, quiet=self.quiet)

    def share(self, key: str) -> None:
        """Let every signed-in user of the project read an array of this user."""
        self.context.share(key, True)

    def unshare(self, key: str) -> None:
        """Let only this user read it again."""
        self.context.share(key, False)

    def __getattr__(self, name: str) -> Tensor:
        """``store.weather`` is ``store.open("weather")``."""
        # Python and notebooks look for methods of their own, which are no keys.
        if name.startswith("_") or name in self.__dataclass_fields__:
            raise AttributeError(name)
        try:
            return self.open(name)
        except KeyNotFoundError as error:
            raise AttributeError(f"the store has neither an attribute nor an array {name!r}") from error

    def __dir__(self) -> list[str]:
        names = {key for key in self if key.isidentifier() and not keyword.iskeyword(key)}
        return sorted(names.union(super().__dir__()))

    def __repr__(self) -> str:
        return f"<TensorStore of {self.backend.email} at {self.backend.backend_url}>"


def _key_and_selection(key: str | tuple[Any, ...]) -> tuple[str, Selection | None]:
    if isinstance(key, tuple):
        if not key:
            raise InvalidInputError("a key is a string: store['key'] or store['key', 10:20]")
        # store["k", a] is array[a], store["k", a, b] is array[a, b].
        name, *items = key
        return name, None if not items else items[0] if len(items) == 1 else tuple(items)
    return key, None


def _release(session: BackendSession) -> None:
    session._release()
