"""Words, tables and JSON on stdout. Tables have colour in a terminal, if rich is installed."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import click

from tensorage.display.words import age, size, visible

if TYPE_CHECKING:
    from datetime import datetime

__all__ = ["age_of", "has_colour", "print_json", "print_lines", "print_table", "size_of", "visible"]


def print_json(value: Any) -> None:
    """Print a value as JSON for people and programs: indented, and with all letters as they are."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False, default=str))


def print_lines(lines: Iterable[str]) -> None:
    for line in lines:
        click.echo(line)


def size_of(nbytes: int | None) -> str:
    """Write a number of bytes for people.

    >>> size_of(999), size_of(3 * 2**20), size_of(None)
    ('999 B', '3 MiB', '-')
    """
    return "-" if nbytes is None else size(nbytes)


def age_of(moment: str, now: datetime | None = None) -> str:
    """Write the time since a moment for people.

    >>> from datetime import UTC, datetime
    >>> age_of("2026-01-01T00:00:00+00:00", datetime(2026, 1, 3, tzinfo=UTC))
    '2 d'
    """
    from datetime import datetime

    return age(datetime.fromisoformat(moment), now)


def has_colour() -> bool:
    """Tell whether stdout is a terminal that shows colours. ``NO_COLOR`` and ``FORCE_COLOR`` are obeyed."""
    if os.environ.get("NO_COLOR"):
        return False
    if os.environ.get("FORCE_COLOR"):
        return True
    return sys.stdout.isatty() and os.environ.get("TERM") != "dumb"


def print_table(heads: Sequence[str], rows: Sequence[Sequence[str]], right: Iterable[str] = ()) -> None:
    """Print columns under their heads.

    Parameters
    ----------
    right
        Heads of columns that are aligned at their right ends.
    """
    at_right = [head in set(right) for head in heads]
    if has_colour() and _has_rich():
        _print_rich(heads, rows, at_right)
        return
    widths = [max(len(line[n]) for line in [heads, *rows]) for n in range(len(heads))]
    for line in [heads, *rows]:
        cells = [
            cell.rjust(width) if is_right else cell.ljust(width)
            for cell, width, is_right in zip(line, widths, at_right, strict=True)
        ]
        click.echo("  ".join(cells).rstrip())


def _has_rich() -> bool:
    from importlib.util import find_spec

    return find_spec("rich") is not None


def _print_rich(heads: Sequence[str], rows: Sequence[Sequence[str]], at_right: Sequence[bool]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for head, is_right in zip(heads, at_right, strict=True):
        table.add_column(
            head, justify="right" if is_right else "left", overflow="fold", no_wrap=head != "key"
        )
    for row in rows:
        # Texts, and no markup: keys hold any characters, brackets as well.
        table.add_row(*(Text(cell, "cyan" if n == 0 else "") for n, cell in enumerate(row)))
    Console(highlight=False).print(table)
