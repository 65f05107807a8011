"""HTML of which nothing is fetched and nothing is carried out: escaped text, tables, bars, and the one style of all."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape

from tensorage.display.words import visible

__all__ = [
    "TIMES",
    "bar",
    "details",
    "facts",
    "nested",
    "note",
    "page",
    "short",
    "table",
    "text",
]

#: Stands between the extents of a shape.
TIMES = " \N{MULTIPLICATION SIGN} "

#: Most characters of a value, of which the middle is left out.
MAX_TEXT = 300

#: Classes begin with a name of our own, so that the style touches nothing else of a notebook. Text has the page's own
#: colour, whatever the theme. Lines and accents have colours of Jupyter, or else those of the reader's system.
STYLE = """<style>
.tsg{--tsg-line:var(--jp-border-color1,#c9ced6);--tsg-soft:var(--jp-layout-color2,#eceff3);
--tsg-dim:var(--jp-ui-font-color2,#59636e);--tsg-accent:var(--jp-brand-color1,#1a73c7);
--tsg-warn:var(--jp-error-color1,#c9352b);
font-size:13px;line-height:1.45;max-width:100%;overflow-x:auto;overflow-wrap:anywhere}
@media (prefers-color-scheme:dark){.tsg{
--tsg-line:var(--jp-border-color1,#565f6b);--tsg-soft:var(--jp-layout-color2,#2b3139);
--tsg-dim:var(--jp-ui-font-color2,#a3adb9);--tsg-accent:var(--jp-brand-color1,#6cb2f5);
--tsg-warn:var(--jp-error-color1,#f2766d)}}
.tsg .tsg-head{margin:2px 0 6px;overflow-wrap:anywhere}
.tsg .tsg-kind,.tsg .tsg-dim{color:var(--tsg-dim)}
.tsg table{border-collapse:collapse;margin:0;border:0;font-size:13px;width:auto;display:table}
.tsg .tsg-rows th,.tsg .tsg-rows td{padding:2px 14px 2px 0;text-align:left;vertical-align:top;border:0;background:none;
max-width:30em;overflow-wrap:anywhere;white-space:normal}
.tsg .tsg-rows thead th{border-bottom:1px solid var(--tsg-line);font-weight:600;white-space:nowrap}
.tsg .tsg-rows tbody tr:hover td{background:var(--tsg-soft)}
.tsg .tsg-rows .tsg-right{text-align:right;white-space:nowrap}
.tsg .tsg-facts{margin-bottom:6px}
.tsg .tsg-facts th{padding:1px 14px 1px 0;text-align:left;vertical-align:top;font-weight:400;border:0;background:none;
color:var(--tsg-dim);white-space:nowrap}
.tsg .tsg-facts td{padding:1px 0;text-align:left;vertical-align:top;border:0;background:none;overflow-wrap:anywhere;
white-space:normal;max-width:44em}
.tsg .tsg-flex{display:flex;flex-wrap:wrap;gap:8px 28px;align-items:flex-start}
.tsg .tsg-mono{font-family:var(--jp-code-font-family,ui-monospace,Menlo,Consolas,monospace);font-size:12px}
.tsg details{margin:3px 0}
.tsg summary{cursor:pointer;overflow-wrap:anywhere}
.tsg .tsg-in{margin-left:16px}
.tsg .tsg-bar{display:inline-block;vertical-align:middle;width:180px;max-width:40vw;height:9px;border-radius:5px;
background:var(--tsg-soft);border:1px solid var(--tsg-line);overflow:hidden}
.tsg .tsg-bar>span{display:block;height:100%;background:var(--tsg-accent)}
.tsg .tsg-bar>span.tsg-full{background:var(--tsg-warn)}
.tsg svg{max-width:100%;height:auto;display:block}
.tsg img{image-rendering:pixelated;max-width:100%;display:block}
</style>"""


def short(value: object, most: int = MAX_TEXT) -> str:
    """Leave out the middle of a long text, and make all of it visible.

    >>> short("0123456789", 7)
    '012…789'
    """
    text = str(value)
    if len(text) > most:
        # Both ends stay: keys and paths often begin alike.
        half = max((most - 1) // 2, 1)
        text = f"{text[:half]}…{text[-half:]}"
    return visible(text)


def text(value: object, most: int = MAX_TEXT) -> str:
    """Return any value as HTML text, escaped, of bounded length.

    >>> text("<b>&'")
    '&lt;b&gt;&amp;&#x27;'
    """
    return escape(short(value, most))


def page(*parts: str) -> str:
    """Return one output: its parts, and the style of them."""
    # The style goes with each output: a notebook may show one without the others.
    return f"{STYLE}<div class='tsg'>{''.join(parts)}</div>"


def note(words: str) -> str:
    """Return a line of small print, from HTML."""
    return f"<div class='tsg-dim'>{words}</div>"


def facts(rows: Iterable[tuple[str, str]]) -> str:
    """Return names beside values, both HTML, one pair a line."""
    cells = "".join(f"<tr><th>{name}</th><td>{value}</td></tr>" for name, value in rows)
    return f"<table class='tsg-facts'><tbody>{cells}</tbody></table>"


def table(heads: Sequence[str], rows: Iterable[Sequence[str]], right: Iterable[str] = ()) -> str:
    """Return a table of HTML cells.

    Parameters
    ----------
    right
        Heads of columns that are aligned at their right ends.
    """
    at_right = set(right)
    marks = [" class='tsg-right'" if head in at_right else "" for head in heads]
    head = "".join(f"<th{mark}>{name}</th>" for name, mark in zip(heads, marks, strict=True))
    body = "".join(
        "<tr>" + "".join(f"<td{mark}>{cell}</td>" for cell, mark in zip(row, marks, strict=True)) + "</tr>"
        for row in rows
    )
    return f"<table class='tsg-rows'><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def details(summary: str, inside: str, *, is_open: bool = False) -> str:
    """Return a part that opens with a click on its summary; both are HTML."""
    mark = " open" if is_open else ""
    return f"<details{mark}><summary>{summary}</summary><div class='tsg-in'>{inside}</div></details>"


def bar(used: int, most: int) -> str:
    """Return a bar that is as full as a quota, red from 90 % on."""
    part = min(used / most, 1.0) if most > 0 else 1.0
    full = " class='tsg-full'" if part >= 0.9 else ""
    return f"<span class='tsg-bar'><span{full} style='width:{100 * part:.1f}%'></span></span>"


def nested(values: Mapping[str, object]) -> str:
    """Return attributes as names and values, escaped and bounded."""
    return facts(
        (f"<span class='tsg-mono'>{text(name, 120)}</span>", text(value)) for name, value in values.items()
    )
