"""The request headers Prefer, Range and Accept, parsed. Pure functions, no I/O."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from functools import lru_cache, wraps
from typing import Concatenate, Final, ParamSpec, TypeVar

from tensorage.embedded.rest.errors import ApiError, not_implemented

JSON: Final = "application/json"
CSV: Final = "text/csv"
_ARRAY = frozenset({"application/vnd.pgrst.array+json", "application/vnd.pgrst.array"})
_OBJECT = frozenset({"application/vnd.pgrst.object+json", "application/vnd.pgrst.object"})
_NULLS_STRIPPED = ";nulls=stripped"

#: Most headers of a kind whose parsed form is remembered, and length of the longest.
_REMEMBERED: Final = 256
MAX_REMEMBERED_LENGTH: Final = 256

_P = ParamSpec("_P")
_T = TypeVar("_T")

#: Eighteen digits are the most that always fit a bigint of PostgreSQL.
_RANGE = re.compile(r"^(\d{1,18})-(\d{1,18})?$", re.ASCII)

#: Known preferences with their values (None: any number), in the order of ``Preference-Applied``. ``tx`` and
#: ``timezone`` are missing: as on hosted Supabase, a request cannot choose how its transaction ends. Under
#: ``handling=strict`` a request for them is refused.
_PREFERENCES: Final[dict[str, tuple[str, ...] | None]] = {
    "resolution": ("merge-duplicates", "ignore-duplicates"),
    "missing": ("default", "null"),
    "return": ("representation", "minimal", "headers-only"),
    "count": ("exact", "planned", "estimated"),
    "handling": ("strict", "lenient"),
    "max-affected": None,
}


@dataclass(frozen=True, slots=True)
class Preferences:
    """Preferences of a request. A missing one is None."""

    resolution: str | None = None
    missing: str | None = None
    returning: str | None = None
    count: str | None = None
    handling: str | None = None
    max_affected: int | None = None

    @property
    def strict_max_affected(self) -> int | None:
        """Limit of ``max-affected``, which counts only under strict handling."""
        return self.max_affected if self.handling == "strict" else None

    def list_applied(self, names: Collection[str]) -> str | None:
        """Return the value of ``Preference-Applied`` for an action that follows the preferences in `names`."""
        values = {
            "resolution": self.resolution,
            "missing": self.missing,
            "return": self.returning,
            "count": self.count,
            "handling": self.handling,
            "max-affected": self.strict_max_affected,
        }
        said = [f"{k}={v}" for k, v in values.items() if v is not None and k in names]
        return ", ".join(said) or None


def _remember(parse: Callable[Concatenate[str, _P], _T]) -> Callable[Concatenate[str, _P], _T]:
    """Cache a parser of headers. Long headers are parsed each time: anybody could fill the memory with them."""
    remembering: Callable[..., _T] = lru_cache(maxsize=_REMEMBERED)(parse)

    @wraps(parse)
    def parse_or_remember(text: str, /, *args: _P.args, **kwargs: _P.kwargs) -> _T:
        known = len(text) <= MAX_REMEMBERED_LENGTH
        return remembering(text, *args, **kwargs) if known else parse(text, *args, **kwargs)

    return parse_or_remember


@_remember
def parse_prefer(text: str) -> Preferences:
    """Parse the header ``Prefer``. The first of several values counts.

    Raises
    ------
    ApiError
        ``PGRST122`` for an unknown preference, under strict handling only.
    """
    found: dict[str, str] = {}
    unknown = []
    for preference in filter(None, (part.strip() for part in text.split(","))):
        name, _, value = (part.strip() for part in preference.partition("="))
        known = _PREFERENCES.get(name, ())
        good = re.fullmatch(r"\d{1,18}", value, re.ASCII) if known is None else value in known
        if not good:
            unknown.append(preference)
        else:
            found.setdefault(name, value)
    if unknown and found.get("handling") == "strict":
        message = "Invalid preferences given with handling=strict"
        raise ApiError(400, "PGRST122", message, details=f"Invalid preferences: {', '.join(unknown)}")
    # Such counts would need the estimates of PostgreSQL's planner.
    if found.get("count") in ("planned", "estimated"):
        raise not_implemented(f"count={found['count']} is not supported; ask for count=exact")
    return Preferences(
        resolution=found.get("resolution"),
        missing=found.get("missing"),
        returning=found.get("return"),
        count=found.get("count"),
        handling=found.get("handling"),
        max_affected=int(found["max-affected"]) if "max-affected" in found else None,
    )


@dataclass(frozen=True, slots=True)
class RowRange:
    """Requested rows: `limit` of them (None: all), beginning with number `offset` (from 0)."""

    offset: int = 0
    limit: int | None = None

    def narrow(self, offset: int | None, limit: int | None) -> RowRange:
        """Return the part of this range that is also in the range of a query string."""
        first = max(self.offset, offset or 0)
        ends = [start + n for start, n in ((self.offset, self.limit), (offset or 0, limit)) if n is not None]
        return RowRange(first, max(0, min(ends) - first) if ends else None)

    def cap(self, max_rows: int) -> RowRange:
        return RowRange(self.offset, max_rows if self.limit is None else min(self.limit, max_rows))


def parse_range(text: str) -> RowRange:
    """Parse ``Range: 0-9``. HTTP demands that a header of any other form is ignored."""
    found = _RANGE.match(text)
    if not found:
        return RowRange()
    first = int(found[1])
    if found[2] is None:
        return RowRange(first)
    if int(found[2]) < first:
        details = "The lower boundary must be lower than or equal to the upper boundary in the Range header."
        raise ApiError(416, "PGRST103", "Requested range not satisfiable", details=details)
    return RowRange(first, int(found[2]) - first + 1)


@dataclass(frozen=True, slots=True)
class Format:
    """Format of a result in an answer.

    Parameters
    ----------
    media_type
        Media type of the answer, without a charset.
    singular
        True if the answer is one object rather than an array. Any other number of rows is an error.
    nulls_stripped
        True if JSON objects lack their null fields.
    raw
        True if the answer is the bytes of a function's result, whose domain has the name `media_type`.
    """

    media_type: str
    singular: bool = False
    nulls_stripped: bool = False
    raw: bool = False

    @property
    def content_type(self) -> str:
        return self.media_type if self.raw else f"{self.media_type}; charset=utf-8"


@_remember
def negotiate(accept: str, *, own: str | None = None, rows: bool = True) -> Format:
    """Choose the format of an answer.

    Parameters
    ----------
    accept
        The header ``Accept``; empty for anything.
    own
        Media type of a function's result, if its domain gives one.
    rows
        True if the result is rows, which can be CSV.

    Raises
    ------
    ApiError
        ``PGRST107`` if no accepted format is available.
    """
    accepted = list(_sort_media_types(accept)) if accept.strip() else ["*/*"]
    for media_type in accepted:
        plain = media_type.removesuffix(_NULLS_STRIPPED)
        stripped = plain != media_type
        if plain == own and not stripped:
            return Format(own, raw=True)
        if plain in _OBJECT:
            name = "application/vnd.pgrst.object+json"
            return Format(name + _NULLS_STRIPPED * stripped, singular=True, nulls_stripped=stripped)
        if plain in _ARRAY and stripped:
            return Format("application/vnd.pgrst.array+json" + _NULLS_STRIPPED, nulls_stripped=True)
        if media_type in ("*/*", JSON) or plain in _ARRAY:
            return Format(JSON)
        if media_type == CSV and rows:
            return Format(CSV)
    raise ApiError(
        406, "PGRST107", f"None of these media types are available: {', '.join(accepted) or accept}"
    )


def _sort_media_types(accept: str) -> Iterable[str]:
    """Return the accepted media types, best first. Only PostgREST's own parameter is kept."""
    weighed = []
    for part in filter(None, (part.strip() for part in accept.split(","))):
        name, *parameters = (piece.strip().lower() for piece in part.split(";"))
        quality = next((_parse_quality(p) for p in parameters if p.startswith("q=")), 1.0)
        suffix = _NULLS_STRIPPED if "nulls=stripped" in parameters else ""
        if quality > 0:
            weighed.append((quality, name + suffix))
    # The sort is stable: types of equal quality stay in the order of the header.
    return [name for _, name in sorted(weighed, key=lambda pair: -pair[0])]


def _parse_quality(parameter: str) -> float:
    found = re.fullmatch(r"q=([01](?:\.\d{0,3})?)", parameter, re.ASCII)
    return float(found[1]) if found else 0.0


def parse_content_type(text: str) -> str:
    """Return the media type in a ``Content-Type``; JSON if it is empty."""
    return text.partition(";")[0].strip().lower() or JSON
