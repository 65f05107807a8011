"""Every operation of the API as every kind of caller: let through, or refused without a trace and without a word."""

from __future__ import annotations

from pathlib import Path

import pytest
from matrix.of_functions import FUNCTIONS
from matrix.of_storage import STORAGE
from matrix.of_tables import TABLES
from matrix.operations import Operation, violations
from matrix.rules import Subject
from matrix.world import World

from tensorage.embedded.database import Database
from tensorage.embedded.storage.api import StorageApi
from tensorage.embedded.tokens import Tokens

OPERATIONS = [*FUNCTIONS, *TABLES, *STORAGE]


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.name)
def test_who_may(world: World, operation: Operation) -> None:
    found = list(violations(world, operation, world.people.values()))
    assert not found, "\n".join(found)


def test_every_kind_of_subject_is_there(world: World) -> None:
    assert {person.subject for person in world.people.values()} == set(Subject)
    assert len([name for name in world.people if name.startswith("forged")]) == 8


def test_names_of_operations_differ() -> None:
    names = [operation.name for operation in OPERATIONS]
    assert sorted(names) == sorted(set(names))


# The catalogue says what there is -----------------------------------------------------------------------


def test_every_function_has_a_row(world: World) -> None:
    query = (
        "select proname from pg_proc p where pronamespace = 'public'::regnamespace and not exists ("
        "select from pg_depend d where d.objid = p.oid and d.deptype = 'e')"
    )
    exposed = {name for (name,) in world.database.execute(query).fetchall()}
    assert exposed == {operation.covers for operation in FUNCTIONS}


def test_every_right_on_every_table_has_a_row(world: World) -> None:
    query = (
        "select relname from pg_class where relnamespace = 'public'::regnamespace "
        "and relkind in ('r', 'p', 'v', 'm', 'f')"
    )
    rights = {
        f"{name} {right}"
        for (name,) in world.database.execute(query).fetchall()
        for right in ("select", "insert", "update", "delete")
    }
    assert rights == {operation.covers for operation in TABLES}


def test_every_route_of_storage_has_a_row(tmp_path: Path) -> None:
    routes = StorageApi(Database("postgresql://"), Tokens("a secret of no use"), tmp_path).routes
    served = {
        f"{method} {route.path}"
        for route in routes
        # Starlette adds HEAD to each GET.
        for method in (route.methods or set()) - ({"HEAD"} if "GET" in (route.methods or set()) else set())
    }
    # SDKs send these two with a slash at the end, too: they lead to the same function.
    twins = {"GET /bucket/", "POST /bucket/", "POST /upload/resumable/"}
    assert served - twins == {operation.covers for operation in STORAGE}


def test_the_bucket_is_the_only_one_and_private(world: World) -> None:
    world.make("spare")
    buckets = world.database.execute("select id, public from storage.buckets where id <> 'spare'").fetchall()
    assert buckets == [("tensors", False)]


def test_the_inner_schema_is_not_reached(world: World) -> None:
    """Neither its tables nor its functions, by whatever header, not even with the service key."""
    kinds = "select relname from pg_class where relnamespace = 'tensorage'::regnamespace and relkind in ('r', 'v')"
    tables = [name for (name,) in world.database.execute(kinds).fetchall()]
    inner = "select distinct proname from pg_proc where pronamespace = 'tensorage'::regnamespace"
    functions = [name for (name,) in world.database.execute(inner).fetchall()]
    assert "shares" in tables
    assert "is_shared_with_me" in functions
    for person in (world.people["owner"], world.people["service key"]):
        for path in (*tables, *(f"rpc/{name}" for name in functions)):
            for headers in ({}, {"Accept-Profile": "tensorage", "Content-Profile": "tensorage"}):
                method = "POST" if path.startswith("rpc/") else "GET"
                answer = person.caller.request(
                    method, f"/{path}", headers=headers, **({"json": {}} if method == "POST" else {})
                )
                assert answer.status_code in (404, 406), (path, answer.text)
