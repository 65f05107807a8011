"""Attributes of a stored array, as a dictionary that writes changes through."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from typing import Any, Protocol

from tensorage.tracebacks import end_tracebacks_here

__all__ = ["Annotate", "Attributes"]


class Annotate(Protocol):
    """Function that changes attributes in the backend.

    It removes `removed` and sets `attrs`. With `replace`, it removes all others.
    """

    def __call__(
        self, *, attrs: Mapping[str, Any] | None = None, removed: Iterable[str] = (), replace: bool = False
    ) -> None: ...


@end_tracebacks_here
class Attributes(MutableMapping[str, Any]):
    """Attributes by name. Every change is stored at once; `update` of many is one request.

    Values are of JSON's types: text, numbers, truth values, None, and lists and dictionaries of them. They are read as
    they were when the array was opened or last changed through this handle.

    Parameters
    ----------
    now
        Function that returns the attributes as they are known.
    annotate
        Function that changes the attributes in the backend.

    Examples
    --------
    .. code-block:: python

        weather = store.open("weather")
        weather.attrs["units"] = "K"
        weather.attrs.update(source="ERA5", version=3)
    """

    def __init__(self, now: Callable[[], Mapping[str, Any]], annotate: Annotate) -> None:
        self._now = now
        self._annotate = annotate

    def __getitem__(self, name: str) -> Any:
        return self._now()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._now())

    def __len__(self) -> int:
        return len(self._now())

    def __setitem__(self, name: str, value: Any) -> None:
        self._annotate(attrs={name: value})

    def __delitem__(self, name: str) -> None:
        # The backend removes an unknown name without an error, so a dictionary's error is raised here.
        if name not in self._now():
            raise KeyError(name)
        self._annotate(removed=[name])

    def update(self, *others: Any, **named: Any) -> None:
        """Set several attributes, in one request."""
        # The inherited `update` would store each attribute by a request of its own.
        self._annotate(attrs=dict(*others, **named))

    def clear(self) -> None:
        """Remove all attributes, in one request."""
        # The inherited `clear` would remove one attribute a request.
        self._annotate(replace=True)

    def __eq__(self, other: object) -> bool:
        return dict(self._now()) == other

    __hash__ = None  # type: ignore[assignment] # a mapping that changes has none

    def __repr__(self) -> str:
        return repr(dict(self._now()))
