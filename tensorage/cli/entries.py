"""Entries of the catalogue as the command line asks for them and shows them: as JSON, without numpy."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tensorage.cli.connections import Connection
from tensorage.cli.failures import NOT_FOUND, Failure
from tensorage.cli.output import age_of, print_table, size_of, visible

__all__ = [
    "Entries",
    "describe",
    "dtype_of_form",
    "is_glob",
    "kept_bytes",
    "print_entries",
    "shape_of",
    "wanted_attrs",
]

#: Most rows of one answer. Hosted Supabase returns no more.
PAGE = 1000

#: Behind every character that a key has.
LAST = "\U0010ffff"

#: Attribute that keeps coordinates: see `tensorage.types.COORDS_ATTRIBUTE`, whose module loads numpy.
COORDS = "tensorage.coords"

#: Names of dtypes by the kind in their form.
_KINDS = {"b": "bool", "i": "int", "u": "uint", "f": "float", "c": "complex"}


@dataclass(frozen=True)
class Entries:
    """Entries of one owner's arrays, by pages.

    Parameters
    ----------
    owner
        Somebody who shares arrays. None for the user.
    """

    connection: Connection
    owner: str | None = None

    def open(self, key: str) -> dict[str, Any]:
        """Return the entry of one array."""
        asked = f"opening {key!r}"
        entry: dict[str, Any] = self.connection.call("tensorage_open", {"key": key, **self._whose}, asked)
        return entry

    def below(self, prefix: str, glob: str | None = None, attrs: Any = None) -> Iterator[dict[str, Any]]:
        """Yield the entries of all arrays whose keys begin with a prefix, and fit."""
        after: str | None = ""
        while after is not None:
            page = self._page(prefix, after, glob, attrs)
            yield from page["entries"]
            after = page["after"]

    def level(self, prefix: str) -> Iterator[dict[str, Any] | str]:
        """Yield what is directly below a prefix: entries of arrays, and names of groups, which end with a ``/``.

        A page that ends within a group is followed by one that begins behind that group.
        """
        last, after = None, ""
        while True:
            page = self._page(prefix, after)
            for entry in page["entries"]:
                name = _group_of(entry["key"], prefix)
                if name is None:
                    yield entry
                elif name != last:
                    last = name
                    yield name
            if page["after"] is None:
                return
            name = _group_of(page["after"], prefix)
            after = page["after"] if name is None else name + LAST

    def keys_of_level(self, prefix: str) -> Iterator[str]:
        """Yield the keys of arrays and the names of groups that are directly below a prefix, without their entries."""
        last, after = None, ""
        while True:
            arguments = {"prefix": prefix, "after": after, "max_rows": PAGE, **self._whose}
            page: list[str] = self.connection.call("tensorage_list", arguments, self._asked)
            for key in page:
                name = _group_of(key, prefix)
                if name is None or name != last:
                    yield name or key
                last = name or last
            if len(page) < PAGE:
                return
            after = page[-1] if _group_of(page[-1], prefix) is None else f"{last}{LAST}"

    def keys(self, prefix: str) -> Iterator[str]:
        """Yield all keys that begin with a prefix."""
        after = ""
        while True:
            arguments = {"prefix": prefix, "after": after, "max_rows": PAGE, **self._whose}
            page: list[str] = self.connection.call("tensorage_list", arguments, self._asked)
            yield from page
            if len(page) < PAGE:
                return
            after = page[-1]

    def matching(self, glob: str) -> Iterator[dict[str, Any]]:
        """Yield the entries of arrays whose keys fit a pattern."""
        return self.below(re.split(r"[*?]", glob, maxsplit=1)[0], glob)

    def _page(self, prefix: str, after: str, glob: str | None = None, attrs: Any = None) -> dict[str, Any]:
        arguments = {"prefix": prefix, "after": after, "glob": glob, "attrs": attrs, **self._whose}
        page: dict[str, Any] = self.connection.call("tensorage_catalogue", arguments, self._asked)
        return page

    @property
    def _whose(self) -> dict[str, str]:
        return {} if self.owner is None else {"owner": self.owner}

    @property
    def _asked(self) -> str:
        return "looking at the catalogue" + ("" if self.owner is None else f" of {self.owner}")


def _group_of(key: str, prefix: str) -> str | None:
    """Return the name of the group that a key is in, directly below a prefix. None if it is in none."""
    rest = key[len(prefix) :]
    return None if "/" not in rest else prefix + rest[: rest.index("/") + 1]


def is_glob(text: str) -> bool:
    """Tell whether a text is a pattern of keys."""
    return "*" in text or "?" in text


def wanted_attrs(conditions: tuple[str, ...]) -> dict[str, Any] | None:
    """Read attributes as ``NAME=VALUE``. A value that is JSON counts as such, and any other one is text."""
    import json

    found = {}
    for condition in conditions:
        name, equals, value = condition.partition("=")
        if not equals or not name:
            raise Failure(f"{condition[:80]!r} is no NAME=VALUE, such as units=K", 2)
        try:
            found[name] = json.loads(value)
        except ValueError:
            found[name] = value
    return found or None


# Words ---------------------------------------------------------------------------------------------------


def dtype_of_form(form: str) -> str:
    """Return the name of a dtype by the form that the catalogue keeps.

    >>> dtype_of_form("<f4"), dtype_of_form("|b1"), dtype_of_form("<U5")
    ('float32', 'bool', '<U5')
    """
    number = re.fullmatch(r"[<>|=]([biufc])(\d+)", form)
    if number is not None:
        name, size = _KINDS[number[1]], int(number[2])
        return name if name == "bool" else f"{name}{8 * size}"
    if form.startswith("{") or form == "text":
        from tensorage.ragged import dtype_and_ragged

        return str(dtype_and_ragged(form)[1])
    return form if len(form) < 40 else f"{form[:36]}..."


def shape_of(entry: Mapping[str, Any]) -> str:
    """Write a shape without room, so that columns of a shell see one word."""
    extents = entry["shape"]
    return f"({extents[0]},)" if len(extents) == 1 else f"({','.join(map(str, extents))})"


def kept_bytes(entry: Mapping[str, Any]) -> int:
    return int(entry["stored_bytes"] or 0)


def describe(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Return an entry as the JSON of the command line, whose form the documentation has."""
    return {
        "kind": "array",
        "key": entry["key"],
        "shape": entry["shape"],
        "dtype": dtype_of_form(entry["dtype"]),
        "engine": entry["engine"],
        "stored_bytes": entry["stored_bytes"],
        "owner": entry["owner"],
        "is_shared": entry["is_shared"],
        "dims": entry["dims"],
        "attrs": {name: value for name, value in entry["attrs"].items() if name != COORDS},
        "version": entry["version"],
        "created_at": entry["created_at"],
        "updated_at": entry["updated_at"],
    }


def print_entries(entries: list[dict[str, Any] | str]) -> None:
    """Print arrays and groups in columns."""
    heads = ("key", "shape", "dtype", "stored", "engine", "owner", "age")
    rows = [(visible(e), *["-"] * 6) if isinstance(e, str) else _columns(e) for e in entries]
    if rows:
        print_table(heads, rows, right=("stored", "age"))


def _columns(entry: Mapping[str, Any]) -> tuple[str, ...]:
    shared = " (shared)" if entry["is_shared"] else ""
    return (
        visible(entry["key"]),
        shape_of(entry),
        visible(dtype_of_form(entry["dtype"])),
        size_of(entry["stored_bytes"]),
        entry["engine"],
        visible(f"{entry['owner'] or '-'}{shared}"),
        age_of(entry["updated_at"]),
    )


def nothing_there(what: str) -> Failure:
    """Return the failure of a name that stands for no array."""
    return Failure(
        f"there is no array and no group {what[:200]!r}: `tensorage ls` shows what there is", NOT_FOUND
    )
