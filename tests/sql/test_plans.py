"""Plans of PostgreSQL with many datasets: it looks up those that are asked for, by an index."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import psycopg
import pytest
from sql.api import Caller, answer_of
from sql.conftest import Register

from tensorage.embedded import control

Connection = psycopg.Connection[tuple[Any, ...]]

_MANY = 20_000

_DATASETS = """
insert into public.datasets (user_id, owner, key, shape, dtype, block_size, state)
select %s, 'many@example.com', 'run ' || lpad((n / 100)::text, 4, '0') || '/' || lpad((n %% 100)::text, 2, '0'),
       '{}', '<i4', 1, 'committed'
  from generate_series(0, %s - 1) n
"""
#: Every array is shared by a share of its own, and two runs by a prefix.
_SHARES = """
insert into tensorage.shares (user_id, pattern, reader)
select d.user_id, d.key, '' from public.datasets d where d.user_id = %(user)s
union all select %(user)s, 'run 0100/', ''
"""


def explain(connection: Connection, caller: Caller) -> None:
    """Be a user for the rest of the transaction, and have all that is executed explained."""
    claims = json.dumps({"sub": caller.id, "email": caller.email})
    connection.execute("select set_config('request.jwt.claims', %s, true)", (claims,))
    connection.execute("load 'auto_explain'")
    for setting in (
        "log_min_duration = 0",
        "log_nested_statements = on",
        "log_analyze = on",
        "log_format = json",
    ):
        connection.execute(f"set local auto_explain.{setting}")
    connection.execute("set local client_min_messages = log")
    # The server would copy them all to its own log.
    connection.execute("set local log_min_messages = panic")


@pytest.fixture(scope="module")
def owner(new_user: Register) -> Caller:
    return new_user()


@pytest.fixture(scope="module")
def many(owner: Caller, new_user: Register, backend: control.Running) -> Iterator[Connection]:
    """A connection as a user of many arrays, in a project where others have and share as many."""
    with psycopg.connect(backend.superuser_url) as connection:
        # The rows are never committed: the other tests' lists stay short. No plan depends on totals.
        connection.execute("set local session_replication_role = replica")
        for caller, shared in ((owner, False), (new_user(), False), (new_user(), True)):
            connection.execute(_DATASETS, (caller.id, _MANY))
            if shared:
                connection.execute(_SHARES, {"user": caller.id})
        connection.execute("set local session_replication_role = origin")
        connection.execute("analyze public.datasets, tensorage.shares")
        explain(connection, owner)
        yield connection
        connection.rollback()


def plans(connection: Connection, statement: str) -> list[dict[str, Any]]:
    """The plans of a statement and of all within it, as a signed-in user has them."""
    notices: list[str] = []

    def note(diagnostic: psycopg.errors.Diagnostic) -> None:
        notices.append(diagnostic.message_primary or "")

    connection.add_notice_handler(note)
    try:
        with connection.transaction(force_rollback=True):
            connection.execute("set local role authenticated")
            connection.execute(statement)
    finally:
        connection.remove_notice_handler(note)
    told = [json.loads(notice[notice.index("{") :]) for notice in notices if "plan:" in notice]
    return [node for plan in told for node in _nodes(plan["Plan"])]


def _nodes(plan: dict[str, Any]) -> list[dict[str, Any]]:
    return [plan, *(node for child in plan.get("Plans", []) for node in _nodes(child))]


@pytest.mark.parametrize(
    "call",
    [
        "open('run 0100/07')",
        "list()",
        "list('run 0100/')",
        "list('run 0100/', 'run 0100/50')",
        "list('no such')",
        "remove('run 0100/07')",
        "rename('run 0100/07', 'run 0100/new')",
        "rename('run 0100/07', 'run 0100/08', true)",
        "compact('run 0100/07')",
        "share('run 0100/07')",
        "share('run 0100/', '{reader@lab.org}')",
        "rename_all('run 0100/', 'run new/')",
        "remove_all('run 0100/')",
        "catalogue('run 0100/')",
        "catalogue()",
        "begin('new', '{3}', '<i4', 3)",
        "sweep()",
    ],
)
def test_datasets_are_looked_up_by_an_index(call: str, many: Connection) -> None:
    scans = [
        node
        for node in plans(many, f"select public.tensorage_{call}")
        if node.get("Relation Name") == "datasets"
    ]
    assert scans
    for scan in scans:
        assert scan["Node Type"] != "Seq Scan", scan
        # The index is not read whole, either: a page, and the key that tells whether there is another one.
        assert scan["Actual Rows"] * scan["Actual Loops"] <= 1001, scan
        assert scan.get("Rows Removed by Filter", 0) <= 100, scan


@pytest.mark.parametrize("prefix", ["run 0100/", "run 0000/", "run 0199/", "run 0100/5"])
def test_page_of_a_prefix_reads_its_part_of_the_index(prefix: str, many: Connection) -> None:
    """A page that is not full ends with the part, which alone tells that there is no more."""
    scans = [
        node
        for node in plans(many, f"select public.tensorage_list('{prefix}')")
        if node.get("Relation Name") == "datasets"
    ]
    found = 100 if prefix.endswith("/") else 10
    assert [scan["Actual Rows"] for scan in scans] == [found]
    assert [scan.get("Rows Removed by Filter", 0) for scan in scans] == [0]


def test_attributes_of_arrays_that_are_not_shared_are_not_looked_at(
    new_user: Register, backend: control.Running
) -> None:
    """The time of a search would tell a stranger how many arrays have them: it took seconds for 20,000."""
    sharer, reader = new_user(), new_user()
    for key in ("private 1", "private 2", "private 3", "shared"):
        sharer.store(key, np.zeros(1, "<i4"), attrs={"units": "K"})
    answer_of(sharer.call("tensorage_share", key="shared", readers=[reader.email]))
    found = answer_of(reader.call("tensorage_catalogue", owner=sharer.email, attrs={"units": "K"}))
    assert [entry["key"] for entry in found["entries"]] == ["shared"]
    asked = f"""select public.tensorage_catalogue(attrs => '{{"units": "K"}}', owner => '{sharer.email}')"""
    with psycopg.connect(backend.superuser_url) as connection:
        explain(connection, reader)
        scans = [node for node in plans(connection, asked) if node.get("Relation Name") == "datasets"]
    looked_at = [
        scan["Actual Loops"] * (scan["Actual Rows"] + scan.get("Rows Removed by Filter", 0)) for scan in scans
    ]
    assert 1 <= max(looked_at) < 2, scans
