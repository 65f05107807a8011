"""The rooms of the package: imports point one way, and no module reaches into another one."""

from __future__ import annotations

import doctest
import functools
import re
from pathlib import Path

import pytest
import rooms

ROOT = Path(__file__).parent.parent
MODULES = rooms.modules_below(ROOT / "tensorage")

#: The rooms from the top to the bottom. A room may import rooms below it, and its own modules.
FLOORS: tuple[tuple[str, ...], ...] = (
    ("", "__init__"),
    ("__main__",),
    ("cli", "xarray_engine"),
    ("doctor", "quotas"),
    ("auth",),
    ("session",),
    ("store",),
    ("tensor",),
    ("background", "transactions"),
    ("interchange",),
    ("adapters", "cache", "training"),
    ("backend.database", "backend.storage"),
    ("backend.base",),
    ("signin", "backend.arrays", "backend.files"),
    ("backend.ragged",),
    ("backend.blocks", "backend.zarr"),
    ("backend.catalogue", "backend.engine", "backend.sharing"),
    ("backend.shaping",),
    ("backend.restarts", "backend.staging"),
    ("backend.transfer",),
    ("backend.afterwards", "backend.entries", "backend.glances"),
    ("backend.wire",),
    ("model",),
    ("indexing",),
    ("types", "config"),
    ("ragged", "display"),
    ("dtypes", "dotenv"),
    ("file_locks", "private_files", "migrations", "tracebacks", "warnings"),
    ("errors",),
    ("wording",),
    ("backend",),
)

#: The server stands apart: these modules start it, and it imports nothing of the client but these.
STARTS_THE_SERVER = {"tensorage.auth", "tensorage.cli.connections", "tensorage.cli.local"}
USED_BY_THE_SERVER = {"tensorage.errors", "tensorage.migrations", "tensorage.private_files"}


@functools.cache
def graph() -> dict[str, set[str]]:
    """The modules that each module imports: each process collects these tests, and one runs them."""
    return rooms.imports_of(MODULES)


def room_of(module: str) -> tuple[int, str]:
    """Return the floor and the name of a client module's room."""
    name = module.removeprefix("tensorage").lstrip(".")
    fitting = [
        (len(room), floor, room)
        for floor, rooms_of_floor in enumerate(FLOORS)
        for room in rooms_of_floor
        if name == room or (room and name.startswith(f"{room}."))
    ]
    assert fitting, f"{module} belongs to no room: say in FLOORS where it stands"
    _, floor, room = max(fitting)
    return floor, room


def is_of_server(module: str) -> bool:
    return module == "tensorage.embedded" or module.startswith("tensorage.embedded.")


def test_no_modules_import_each_other() -> None:
    assert rooms.circles_in(graph()) == []


def test_no_import_climbs() -> None:
    climbing = []
    for module, targets in graph().items():
        for target in targets:
            if is_of_server(module) or is_of_server(target):
                continue
            (floor, room), (other_floor, other_room) = room_of(module), room_of(target)
            if room != other_room and other_floor <= floor and other_room:
                climbing.append(f"{module} -> {target}")
    assert not climbing, "\n".join(sorted(climbing))


def test_the_diagram_of_the_docs_shows_these_floors() -> None:
    page = (ROOT / "docs" / "development.md").read_text()
    diagram = re.search(r"^```text\n(\{cli.*?)^```", page, re.MULTILINE | re.DOTALL)
    assert diagram
    drawn = [set(re.findall(r"[\w.]+", floor)) for floor in diagram[1].split("->")]
    # The package itself and `backend/__init__.py` hold names or a docstring, and no code.
    assert drawn == [
        set(floor) for floor in FLOORS if floor not in {("", "__init__"), ("__main__",), ("backend",)}
    ]


def test_the_server_stands_apart() -> None:
    crossing = {
        (module, target)
        for module, targets in graph().items()
        for target in targets
        if is_of_server(module) != is_of_server(target)
    }
    outwards = {target for module, target in crossing if is_of_server(module)}
    inwards = {module for module, target in crossing if is_of_server(target)}
    assert outwards <= USED_BY_THE_SERVER
    assert inwards <= STARTS_THE_SERVER


@pytest.mark.parametrize("room", sorted({module.split(".")[1] for module in MODULES if "." in module}))
def test_no_private_name_of_another_module_is_used(room: str) -> None:
    uses = [
        use
        for module, path in MODULES.items()
        if module.split(".")[1:2] == [room]
        for use in rooms.private_uses(path)
    ]
    assert not uses, "\n".join(uses)


def test_what_the_tests_use_is_public() -> None:
    uses = [use for path in sorted((ROOT / "tests").rglob("*.py")) for use in rooms.private_uses(path)]
    assert not uses, "\n".join(uses)


def test_examples() -> None:
    assert doctest.testmod(rooms).failed == 0
