"""A handle on an array as HTML: its shape as a drawing, beside sizes, attributes, labels and sharing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tensorage.display.html import TIMES, details, facts, nested, page, text
from tensorage.display.shapes import draw_shape
from tensorage.display.words import NOTHING, size

__all__ = ["Labels", "Shown", "tensor"]


@dataclass(frozen=True)
class Labels:
    """A coordinate: labels along some axes, as text.

    Parameters
    ----------
    values
        First and last labels.
    is_index
        True if elements are looked up by these labels.
    """

    name: str
    dims: tuple[str, ...]
    dtype: str
    values: str
    attrs: Mapping[str, Any] = field(default_factory=dict)
    is_index: bool = False


@dataclass(frozen=True)
class Shown:
    """All that is shown of an array.

    Parameters
    ----------
    elements
        Words for the elements: their dtype, or what they are if they have any length.
    chunks, shards
        Shapes of the parts that the array is cut into. None where there are none.
    coords
        Coordinates. Text in their place says why they cannot be shown.
    """

    key: str
    kind: str
    elements: str
    shape: tuple[int, ...]
    size: int
    nbytes: int
    stored_bytes: int | None
    engine: str
    owner: str | None
    is_shared: bool
    chunks: tuple[int, ...] | None = None
    shards: tuple[int, ...] | None = None
    dims: Sequence[str] | None = None
    fill_value: Any = None
    attrs: Mapping[str, Any] = field(default_factory=dict)
    coords: Sequence[Labels] | str = ()
    more: Sequence[tuple[str, str]] = ()


def tensor(shown: Shown) -> str:
    """Return a handle as HTML."""
    head = (
        f"<div class='tsg-head'><span class='tsg-kind'>{text(shown.kind)}</span> "
        f"<b class='tsg-mono'>{text(shown.key, 1100)}</b></div>"
    )
    drawing = draw_shape(shown.shape, shown.chunks)
    flex = f"<div class='tsg-flex'><div>{facts(_facts(shown))}</div><div>{drawing}</div></div>"
    parts = [head, flex]
    if shown.coords:
        parts.append(_coords(shown.coords))
    if shown.attrs:
        parts.append(
            details(f"attrs <span class='tsg-dim'>({len(shown.attrs)})</span>", nested(_first(shown.attrs)))
        )
    return page(*parts)


def _facts(shown: Shown) -> list[tuple[str, str]]:
    stored = (
        ""
        if shown.stored_bytes is None
        else f" <span class='tsg-dim'>({size(shown.stored_bytes)} stored)</span>"
    )
    rows = [
        ("shape", _axes(shown)),
        ("dtype", text(shown.elements)),
        ("size", f"{size(shown.nbytes)}{stored} · {shown.size:,} element{'s' * (shown.size != 1)}"),
        ("engine", text(shown.engine)),
    ]
    if shown.chunks is not None:
        word = "chunks" if shown.engine == "storage" else "blocks"
        rows.append(
            (word, f"{_times(shown.chunks)} <span class='tsg-dim'>({_cut(shown.shape, shown.chunks)})</span>")
        )
    if shown.shards is not None and shown.shards != shown.chunks:
        rows.append(
            (
                "objects",
                f"{_times(shown.shards)} <span class='tsg-dim'>({_cut(shown.shape, shown.shards)})</span>",
            )
        )
    if shown.fill_value is not None:
        rows.append(("fill value", text(shown.fill_value, 60)))
    rows.append(("owner", text(shown.owner or NOTHING)))
    rows.append(("shared", "yes" if shown.is_shared else "no"))
    return [*rows, *((text(name), text(value)) for name, value in shown.more)]


def _axes(shown: Shown) -> str:
    if not shown.dims:
        return text(
            f"({shown.shape[0]},)" if len(shown.shape) == 1 else f"({', '.join(map(str, shown.shape))})"
        )
    pairs = zip(shown.dims, shown.shape, strict=True)
    return "(" + ", ".join(f"<b>{text(name, 60)}</b>: {extent}" for name, extent in pairs) + ")"


def _times(extents: Sequence[int]) -> str:
    return TIMES.join(f"{extent:,}" for extent in extents) or "1"


def _cut(shape: Sequence[int], chunks: Sequence[int]) -> str:
    count = 1
    for extent, chunk in zip(shape, chunks, strict=True):
        count *= -(-extent // max(chunk, 1))
    return f"{count:,} of them" if count != 1 else "one"


def _first(attrs: Mapping[str, Any], most: int = 100) -> dict[str, Any]:
    """Return the first attributes, with the count of the others."""
    first = dict(list(attrs.items())[:most])
    return first if len(first) == len(attrs) else {**first, "…": f"{len(attrs) - most:,} more"}


def _coords(coords: Sequence[Labels] | str) -> str:
    if isinstance(coords, str):
        return details("coords", text(coords))
    rows = []
    for each in coords:
        star = "* " if each.is_index else ""
        dims = ", ".join(text(name, 60) for name in each.dims)
        words = (
            f"{star}<b>{text(each.name, 120)}</b> <span class='tsg-dim'>({dims}) {text(each.dtype, 60)}</span> "
            f"<span class='tsg-mono'>{text(each.values)}</span>"
        )
        rows.append(details(words, nested(_first(each.attrs))) if each.attrs else f"<div>{words}</div>")
    return details(f"coords <span class='tsg-dim'>({len(coords)})</span>", "".join(rows), is_open=True)
