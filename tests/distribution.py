"""Handing the tests to the processes of a run: by files, and by tests of files that take long.

The tests of a part share what its fixtures make: a login, a server, the cluster of a version of PostgreSQL.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import islice
from typing import Any

import pytest
from xdist.scheduler.loadscope import LoadScopeScheduling

#: Files that take long, in the order in which they are begun, before all others.
_LONG = (
    "tests/test_packaging.py",
    "tests/test_read_growth.py",
    "tests/sql/test_object_plans.py",
    "tests/engine/test_catalogue_at_scale.py",
    "tests/adapters/test_dask.py",
    "tests/embedded/test_deaths.py",
    "tests/chaos/test_chaos.py",
    "tests/test_indexing.py",
    "tests/test_chunks.py",
    "tests/engine/test_storage_crash.py",
    "tests/test_docs.py",
    "tests/test_notebooks.py",
    "tests/test_session.py",
    "tests/test_lending.py",
    "tests/embedded/test_lifecycle.py",
    "tests/embedded/test_lifetime.py",
    "tests/engine/test_many_processes.py",
    "tests/engine/test_assign.py",
    "tests/test_import_zarr.py",
    "tests/test_files.py",
    "tests/doctor/test_doctor.py",
    "tests/engine/test_write_blocks.py",
    "tests/test_engines.py",
    "tests/cache/test_tiles.py",
    "tests/interchange/test_files.py",
)

#: Files whose tests are of a major version of PostgreSQL, which is their first parameter: a part is a version.
_BY_VERSION = frozenset(
    {
        "tests/doctor/test_expected.py",
        "tests/embedded/test_deaths.py",
        "tests/test_migrations.py",
        "tests/test_read_growth.py",
    }
)

#: Long files whose fixtures take long, too: they are a part each.
_WHOLE = frozenset(
    {
        "tests/adapters/test_dask.py",
        "tests/doctor/test_doctor.py",
        "tests/engine/test_catalogue_at_scale.py",
        "tests/sql/test_object_plans.py",
        "tests/test_docs.py",
        "tests/test_notebooks.py",
        "tests/test_packaging.py",
    }
)


def part_of(nodeid: str) -> str:
    """Name the part that a test belongs to: of a long file, each test is one."""
    path, _, test = nodeid.partition("::")
    if path in _BY_VERSION:
        version = re.search(r"\[(1[5-8])\b", test)
        return f"{path} {version[1] if version else ''}"
    return nodeid if path in _LONG and path not in _WHOLE else path


def order(items: list[pytest.Item]) -> None:
    """Put the tests of long files first, and leave the others as they are."""
    places = {path: place for place, path in enumerate(_LONG)}
    items.sort(key=lambda item: places.get(item.nodeid.partition("::")[0], len(places)))


class _Collection(list[str]):
    """The tests that a process has collected: it knows the place of each without looking at all before it."""

    def __init__(self, tests: Sequence[str]) -> None:
        super().__init__(tests)
        self._places = {test: place for place, test in enumerate(tests)}

    def index(self, test: str, *_: Any) -> int:
        return self._places[test]


class Scheduling(LoadScopeScheduling):
    """Hands out parts. After each test it takes no longer than after the first."""

    def add_node_collection(self, node: Any, collection: Sequence[str]) -> None:
        super().add_node_collection(node, collection)
        if node in self.registered_collections:
            self.registered_collections[node] = _Collection(collection)

    def _split_scope(self, nodeid: str) -> str:
        return part_of(nodeid)

    def _pending_of(self, workload: dict[str, dict[str, bool]]) -> int:
        """Count the tests that are left, to no more than three: whether there are more is never asked."""
        left = (1 for part in reversed(workload.values()) for done in reversed(part.values()) if not done)
        return sum(islice(left, 3))
