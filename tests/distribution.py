"""Handing the tests to the processes of a run: by files, and parts of files that would take long.

The tests of a part share what its fixtures make: a login, a server, the clusters of a version of PostgreSQL.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from xdist.scheduler.loadscope import LoadScopeScheduling

#: Files whose tests are of a major version of PostgreSQL, which is their first parameter.
_BY_VERSION = frozenset(
    {"tests/embedded/test_deaths.py", "tests/test_migrations.py", "tests/test_read_growth.py"}
)

#: Files whose tests share little: each function may go to another process.
_BY_FUNCTION: frozenset[str] = frozenset()

#: Files that take longest, which are begun first.
_FIRST: tuple[str, ...] = ()


def part_of(nodeid: str) -> str:
    """Name the part that a test belongs to."""
    path, _, test = nodeid.partition("::")
    function, _, parameters = test.partition("[")
    if path in _BY_VERSION and (version := re.match(r"1[5-8]\b", parameters)):
        return f"{path} {version[0]}"
    return f"{path} {function}" if path in _BY_FUNCTION else path


def order(items: list[pytest.Item]) -> None:
    """Put the tests of the longest files first, and leave the others as they are."""
    places = {path: place for place, path in enumerate(_FIRST)}
    items.sort(key=lambda item: places.get(Path(item.nodeid.partition("::")[0]).as_posix(), len(places)))


class Scheduling(LoadScopeScheduling):
    """Hands out parts."""

    def _split_scope(self, nodeid: str) -> str:
        return part_of(nodeid)
