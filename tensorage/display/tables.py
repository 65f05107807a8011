"""Stores, trees, sessions, shares and usage as HTML."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any, Protocol

from tensorage.display.html import bar, details, facts, note, page, table, text
from tensorage.display.words import NOTHING, age, size

__all__ = ["Branch", "Entry", "Given", "Used", "session", "share", "store", "tree", "unseen", "usage"]

#: Arrays of a store that its table shows, and keys that a tree shows.
MOST_ROWS = 50
MOST_KEYS = 500

#: Levels of a tree that are drawn within each other. Deeper arrays have a line with the rest of their keys.
MOST_LEVELS = 12


class Given(Protocol):
    """A share, as far as it is shown."""

    @property
    def key(self) -> str: ...
    @property
    def owner(self) -> str | None: ...
    @property
    def owner_id(self) -> str: ...
    @property
    def reader(self) -> str | None: ...
    @property
    def write(self) -> bool: ...
    @property
    def expires_at(self) -> datetime | None: ...


class Used(Protocol):
    """Amounts that a user has stored, as far as they are shown."""

    @property
    def arrays(self) -> int: ...
    @property
    def bytes(self) -> int: ...
    @property
    def file_bytes(self) -> int: ...
    @property
    def quota_bytes(self) -> int | None: ...
    @property
    def quota_arrays(self) -> int | None: ...


class Entry(Protocol):
    """An entry of the catalogue, as far as a table shows it."""

    @property
    def key(self) -> str: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> Any: ...
    @property
    def ragged(self) -> Any: ...
    @property
    def nbytes(self) -> int: ...
    @property
    def stored_bytes(self) -> int | None: ...
    @property
    def engine(self) -> str: ...
    @property
    def updated_at(self) -> datetime | None: ...
    @property
    def shares(self) -> Sequence[Given] | None: ...


class Branch(Protocol):
    """A tree of keys: a note for an array, and what is below it."""

    @property
    def note(self) -> str | None: ...
    @property
    def branches(self) -> dict[str, Any]: ...
    def __len__(self) -> int: ...


def store(
    words: str,
    entries: Sequence[Entry],
    *,
    is_all: bool,
    used: Used | None = None,
    whole: Branch | None = None,
    now: datetime | None = None,
) -> str:
    """Return a store as a table of its first arrays, with all keys that are known as a tree.

    Parameters
    ----------
    words
        Name of the store: whose it is, and where.
    entries
        First arrays of the store.
    is_all
        False if the store has more arrays than `entries`.
    used
        Usage of the owner, with the quota, if it is known.
    whole
        Tree of `entries`. By default none is shown.
    """
    quota = "" if used is None else facts(_amounts(used))
    if not entries:
        return page(_head("TensorStore", text(words)), quota, note("no arrays"))
    shown = entries[:MOST_ROWS]
    heads = ("key", "shape", "dtype", "size", "stored", "engine", "age", "shared")
    rows = table(heads, (_row(entry, now) for entry in shown), right=("size", "stored", "age"))
    parts = [_head("TensorStore", f"{text(words)} · {_count(len(entries), is_all=is_all)}"), quota, rows]
    rest = len(entries) - len(shown)
    if rest or not is_all:
        more = f"{rest:,} more" if is_all else f"more than {rest:,} more"
        parts.append(note(f"… and {more}. <span class='tsg-mono'>store.keys()</span> lists all of them."))
    if whole is not None:
        parts.append(details("as a tree", _render_tree(whole)))
    return page(*parts)


def _count(number: int, *, is_all: bool) -> str:
    if not is_all:
        return f"more than {number:,} arrays"
    return "1 array" if number == 1 else f"{number:,} arrays"


def _head(kind: str, words: str) -> str:
    return f"<div class='tsg-head'><span class='tsg-kind'>{kind}</span> <b>{words}</b></div>"


def _row(entry: Entry, now: datetime | None) -> list[str]:
    return [
        # More than a key can have: all of it is shown.
        f"<span class='tsg-mono'>{text(entry.key, 1100)}</span>",
        text(_shape(entry.shape)),
        text(entry.ragged or entry.dtype, 60),
        size(entry.nbytes),
        size(entry.stored_bytes),
        text(entry.engine),
        age(entry.updated_at, now),
        _readers(entry.shares),
    ]


def _shape(shape: Sequence[int]) -> str:
    return f"({shape[0]},)" if len(shape) == 1 else f"({', '.join(map(str, shape))})"


def _readers(shares: Sequence[Given] | None) -> str:
    """Name the readers of an array in a word or two. Shares of somebody else's arrays are not told."""
    if shares is None:
        return "with you"
    if any(share.reader is None for share in shares):
        return "everybody"
    readers = sorted({share.reader or "" for share in shares})
    return (
        NOTHING if not readers else text(readers[0], 60) if len(readers) == 1 else f"{len(readers)} readers"
    )


def tree(whole: Branch) -> str:
    """Return a tree of keys, whose groups open and close."""
    return page(_head("Tree", _count(len(whole), is_all=True)), _render_tree(whole))


def _render_tree(whole: Branch) -> str:
    lines = _Lines(MOST_KEYS)
    drawn = "".join(_branches(whole, 0, lines))
    missing = len(whole) - lines.arrays
    return drawn + (note(f"… and {missing:,} more") if missing > 0 else "")


class _Lines:
    """Count of the lines that are left, and of the arrays that have one."""

    def __init__(self, most: int) -> None:
        self.left = most
        self.arrays = 0


def _branches(branch: Branch, level: int, lines: _Lines) -> Iterable[str]:
    inner: Iterable[tuple[str, Branch]] = branch.branches.items() if level < MOST_LEVELS else _leaves(branch)
    for first, next_below in inner:
        if lines.left <= 0:
            return
        lines.left -= 1
        names, below = _chain(first, next_below)
        lines.arrays += below.note is not None
        told = "" if below.note is None else f" <span class='tsg-dim'>{text(below.note, 120)}</span>"
        name = f"<span class='tsg-mono'>{text(names, 1100)}"
        if not below.branches or level >= MOST_LEVELS:
            yield f"<div>{name}</span>{told}</div>"
            continue
        count = f" <span class='tsg-dim'>· {_count(len(below), is_all=True)}</span>"
        # Drawn before the next group is looked at: `lines` is shared, and groups take what is left in their order.
        inside = "".join(_branches(below, level + 1, lines))
        yield details(f"{name}/</span>{told}{count}", inside, is_open=level == 0)


def _leaves(branch: Branch) -> Iterable[tuple[str, Branch]]:
    """Yield the arrays below a group by what is left of their keys: groups too deep to be drawn within each other."""
    # A stack in place of recursion: a key may have some five hundred levels.
    left = [(name, below) for name, below in reversed(branch.branches.items())]
    while left:
        name, here = left.pop()
        if here.note is not None:
            yield name, here
        left += [(f"{name}/{more}", below) for more, below in reversed(here.branches.items())]


def _chain(name: str, below: Branch) -> tuple[str, Branch]:
    """Join groups that have nothing in them but one group: that takes less room."""
    while below.note is None and len(below.branches) == 1 and not _is_leaf(below):
        more, below = next(iter(below.branches.items()))
        name = f"{name}/{more}"
    return name, below


def _is_leaf(branch: Branch) -> bool:
    """Tell whether the one thing in a group is an array without anything below it."""
    (only,) = branch.branches.values()
    return not only.branches


def usage(used: Used) -> str:
    """Return what a user has stored, with bars for the quotas."""
    return page(_head("Usage", _count(used.arrays, is_all=True)), facts(_amounts(used)))


def _amounts(used: Used) -> list[tuple[str, str]]:
    rows = [
        ("stored", _of(used.bytes, used.quota_bytes, size)),
        ("arrays", _of(used.arrays, used.quota_arrays, _number)),
    ]
    return [*rows, ("of these, files", size(used.file_bytes))] if used.file_bytes else rows


def _number(number: int) -> str:
    return f"{number:,}"


def _of(used: int, most: int | None, write: Any) -> str:
    if most is None:
        return f"{write(used)} <span class='tsg-dim'>without a limit</span>"
    part = 100 * used / most if most else 100.0
    return f"{bar(used, most)} {write(used)} of {write(most)} <span class='tsg-dim'>({part:.3g} %)</span>"


def session(
    url: str | None, email: str | None, *, is_logged_in: bool, used: Used | None, problem: str = ""
) -> str:
    """Return a session: its project, its user, and the user's quota if it is known.

    Parameters
    ----------
    url
        URL without secrets.
    problem
        Reason for which the quota is not known.
    """
    state = "logged in" if is_logged_in else "not logged in"
    rows = [("project", text(url or "none is configured")), ("user", f"{text(email or NOTHING)} · {state}")]
    if used is not None:
        rows += _amounts(used)
    parts = [_head("BackendSession", ""), facts(rows)]
    return page(*parts, *([note(text(problem))] if problem else []))


def share(given: Given, now: datetime | None = None) -> str:
    """Return a share in the words of a person."""
    rights = "reads, appends and assigns" if given.write else "reads"
    reader = "every signed-in user" if given.reader is None else given.reader
    ends = "never" if given.expires_at is None else given.expires_at.isoformat(" ", "seconds")
    if given.expires_at is not None and now is not None and given.expires_at <= now:
        ends += " (it has ended)"
    rows = [
        (
            "all below" if given.key.endswith("/") else "array",
            f"<span class='tsg-mono'>{text(given.key, 1100)}</span>",
        ),
        ("owner", text(given.owner or given.owner_id)),
        ("who", f"{text(reader)} {rights}"),
        ("ends", text(ends)),
    ]
    return page(_head("Share", ""), facts(rows))


def unseen(kind: str, words: str, problem: str) -> str:
    """Return an object that could not be looked at, with the reason."""
    return page(_head(kind, text(words)), note(text(problem, 1000)))
