"""``KEY[10:20, :, 3]``: a key and a selection, read from a text. Nothing of the text is ever carried out."""

from __future__ import annotations

import re
from typing import Any

import click

__all__ = ["parse_target"]

#: Most digits of a number. No axis is longer.
_DIGITS = 19

_NUMBER = re.compile(rf"[+-]?[0-9]{{1,{_DIGITS}}}")

_WORDS = {
    "...": ...,
    "Ellipsis": ...,
    "None": None,
    "newaxis": None,
    "np.newaxis": None,
    "True": True,
    "False": False,
}


def parse_target(text: str) -> tuple[str, tuple[Any, ...] | None]:
    """Return a key and its selection, None if there is no selection.

    >>> parse_target("exp/loss[10:20, :, -1]")
    ('exp/loss', (slice(10, 20, None), slice(None, None, None), -1))
    >>> parse_target("x[[3, 1], ..., None]")
    ('x', ([3, 1], Ellipsis, None))
    >>> parse_target("exp/loss")
    ('exp/loss', None)

    A key may hold brackets itself. The last pair is the selection: ``KEY[...]`` takes all of such an array.

    Raises
    ------
    click.UsageError
        If the selection is none.
    """
    if not text.endswith("]"):
        return text, None
    begin = _opening(text)
    key, inside = text[:begin], text[begin + 1 : -1]
    if not key:
        raise click.UsageError(f"{_short(text)} has no key before the selection")
    items = _split(inside, text)
    if items and not items[-1].strip():
        # A comma at the end, as in x[3,].
        items.pop()
    if not items:
        raise click.UsageError(f"{_short(text)} selects nothing: KEY[...] takes all")
    return key, tuple(_item(item.strip(), text) for item in items)


def _opening(text: str) -> int:
    """Return the place of the bracket that the last one closes."""
    depth = 0
    for place in range(len(text) - 1, -1, -1):
        depth += {"]": 1, "[": -1}.get(text[place], 0)
        if depth == 0:
            return place
    raise click.UsageError(f"{_short(text)} has a bracket that is not opened")


def _split(inside: str, text: str) -> list[str]:
    """Split at the commas outside of lists."""
    parts, depth, begin = [], 0, 0
    for place, letter in enumerate(inside):
        depth += {"[": 1, "]": -1}.get(letter, 0)
        if depth < 0:
            raise click.UsageError(f"{_short(text)} has brackets that do not fit")
        if letter == "," and depth == 0:
            parts.append(inside[begin:place])
            begin = place + 1
    parts.append(inside[begin:])
    return parts


def _item(item: str, text: str) -> Any:
    if item in _WORDS:
        return _WORDS[item]
    if item.startswith("[") and item.endswith("]"):
        return _list(item, text)
    if ":" in item:
        return _slice(item, text)
    if _NUMBER.fullmatch(item):
        return int(item)
    field = re.fullmatch(r"""(['"])(.+)\1|([^\W\d]\w*)""", item)
    if field is not None:
        return field[2] or field[3]
    raise _wrong(item, text)


def _slice(item: str, text: str) -> slice:
    parts = [part.strip() for part in item.split(":")]
    if len(parts) > 3 or any(part and not _NUMBER.fullmatch(part) for part in parts):
        raise _wrong(item, text)
    bounds = [int(part) if part else None for part in parts]
    if len(bounds) == 3 and bounds[2] == 0:
        raise click.UsageError(f"{_short(text)}: a step of 0 leads nowhere")
    return slice(*bounds)


def _list(item: str, text: str) -> list[Any]:
    parts = [part.strip() for part in item[1:-1].split(",")]
    if parts and not parts[-1]:
        parts.pop()
    values = [_item(part, text) if "[" not in part else None for part in parts]
    kinds = {type(value) for value in values}
    if len(kinds) > 1 or not kinds <= {int, bool, str}:
        raise _wrong(item, text)
    return values


def _wrong(item: str, text: str) -> click.UsageError:
    return click.UsageError(
        f"{_short(text)}: {_short(item)} is no part of a selection. Numbers, slices as in 1:10:2, ..., None, lists as "
        "in [3,1] and names of fields are. Quote the whole for the shell"
    )


def _short(text: str) -> str:
    return repr(text if len(text) <= 80 else f"{text[:60]}...{text[-17:]}")
