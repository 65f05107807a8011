"""Texts, sizes and ages as people read them, in a notebook and in a terminal. Loads nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datetime import datetime

__all__ = ["NOTHING", "age", "size", "visible"]

#: Stands for a value that there is none of.
NOTHING = "\N{EN DASH}"

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def visible(value: object) -> str:
    r"""Return a text without characters that steer how it is shown: those are written as Python writes them.

    >>> visible("a\u202eb\n"), visible("Größe 1")
    ('a\\u202eb\\n', 'Größe 1')
    """
    text = str(value)
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def size(nbytes: int | None) -> str:
    """Write a number of bytes for people.

    >>> size(999), size(3 * 2**20)
    ('999 B', '3 MiB')
    """
    if nbytes is None:
        return NOTHING
    number = float(nbytes)
    unit = next((unit for unit in _UNITS if number / 1024 ** _UNITS.index(unit) < 1000), _UNITS[-1])
    number /= 1024 ** _UNITS.index(unit)
    return f"{number:.0f} {unit}" if unit == "B" else f"{number:.3g} {unit}"


def age(moment: datetime | None, now: datetime | None = None) -> str:
    """Write the time since a moment for people.

    >>> from datetime import UTC, datetime
    >>> age(datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 1, 3, tzinfo=UTC))
    '2 d'
    """
    if moment is None:
        return NOTHING
    # The command line, which shows no ages in most commands, loads it no sooner.
    from datetime import UTC, datetime

    seconds = max(((now or datetime.now(UTC)) - moment).total_seconds(), 0)
    for unit, length in (("y", 365 * 86400), ("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds // length:.0f} {unit}"
    return f"{seconds:.0f} s"
