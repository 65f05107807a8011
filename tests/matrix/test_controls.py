"""Controls of the matrix: with any one policy, right or check taken out, it fails."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from matrix import checks, races
from matrix.checks import Check
from matrix.of_functions import FUNCTIONS
from matrix.of_storage import STORAGE
from matrix.of_tables import TABLES
from matrix.operations import Operation, violations
from matrix.rights import ON_TABLES, wrong_rights
from matrix.rules import Subject
from matrix.twins import entries_of_twins
from matrix.world import ROWS_KEY, World
from sql.api import transaction
from sql.conftest import wait_for_waiter


def _of_storage(*beginnings: str) -> list[Operation]:
    return [operation for operation in STORAGE if operation.covers.startswith(beginnings)]


_READS = _of_storage("GET", "POST /object/list")
_REMOVALS = _of_storage("DELETE /object")
#: First those that make objects, then those that change them.
_WRITES = [
    *_of_storage("POST /object/{bucket}", "POST /object/copy", "POST /upload"),
    *_of_storage("PUT", "POST /object/move"),
]

#: Operations that each policy on objects decides.
_OF_COMMANDS = {
    "select": [*_READS, *_REMOVALS],
    "insert": _WRITES,
    "update": _of_storage("PUT", "POST /object/move"),
    "delete": _REMOVALS,
}

#: Functions that policies call, with the operations that the policies are of.
_OF_POLICIES = {
    "tensorage.is_user": [*TABLES, *_READS],
    "tensorage.may_use": TABLES,
    "tensorage.may_read_rows_of": TABLES,
    "tensorage.may_write_object": _WRITES,
    "tensorage.may_delete_object": _REMOVALS,
    "tensorage.is_shared_object": _READS,
}


#: Operations that tell first that something is missing: a function, one of its checks, or a policy. Without its entry
#: the same is found, after many other operations. A function's own entry stands for its checks.
_LOOK_FIRST = {
    "tensorage.forget": "tensorage_sweep",
    "tensorage.forget_records": "tensorage_sweep",
    "tensorage.expired": "tensorage_sweep",
    "tensorage.sweep": "tensorage_sweep",
    "tensorage.answered": "tensorage_append again, after the share",
    "tensorage.assignable login 0": "tensorage_assign",
    "tensorage.begun": "tensorage_begin",
    "tensorage.begun going on 0": "tensorage_begin again, after the share",
    "tensorage.staged": "tensorage_put",
    "tensorage.staged going on 0": "tensorage_put after the share",
    "tensorage.stage": "tensorage_store",
    "tensorage.hide": "tensorage_rename",
    "tensorage.hide owner 0": "tensorage_store over the own one",
    "tensorage.check_may_go_on": "tensorage_patch after the share",
    "tensorage.may_go_on": "tensorage_patch after the share",
    "tensorage.is_writing": "tensorage_shards being written",
    "tensorage.is_writing rule 0": "tensorage_shards of what was being written, after the share",
    "tensorage.is_writing writer 0": "tensorage_shards of what was being written, after the share",
    "tensorage.is_shared_with_me": "tensorage_read shared",
    "tensorage.is_shared_with_me right 0": "tensorage_annotate rows",
    "tensorage.my_readers": "tensorage_read shared",
    "tensorage.readable": "tensorage_read shared",
    "tensorage.may_use": "tensorage_has_object shared",
    "tensorage.may_read_rows_of": "tensors select shared",
    "tensorage.raise_not_writable": "tensorage_annotate rows",
    "tensorage.find": "tensorage_open shared",
    "tensorage.find rule 1": "tensorage_begin append",
    "tensorage.lock_for_steps login 0": "tensorage_transact of nothing",
    "public.tensorage_transact login 0": "tensorage_transact of nothing",
    "public.tensorage_usage": "tensorage_usage",
    "public.tensorage_share owner 0": "tensorage_share lab/",
    "public.tensorage_share owner 1": "tensorage_share lab/rows",
    "public.tensorage_shares owner 1": "tensorage_share lab/",
    "public.tensorage_commit going on 0": "tensorage_commit after the share",
    "public.tensorage_shards rule 0": "tensorage_shards being written",
    "tensorage.may_write_object rule 0": "POST /object/{bucket}/{name:path} over an object of an array",
    "tensorage.is_shared_object": "GET /object/{bucket}/{name:path} object",
    "tensorage.is_shared_object rule 0": "GET /object/{bucket}/{name:path} file",
    "tensorage: see what is to be deleted, is dropped": "DELETE /object/{bucket} that own writing has left",
    "tensorage: read own folder, is dropped": "GET /object/{bucket}/{name:path} file",
    "tensorage: delete objects, says yes": "DELETE /object/{bucket}/{name:path} a shared file",
}


def in_order(operations: Iterable[Operation], *missing: str) -> list[Operation]:
    """Operations, first those that tell of something by the first name that is known."""
    first = next((_LOOK_FIRST[name] for name in missing if name in _LOOK_FIRST), None)
    return sorted(operations, key=lambda operation: first not in {operation.covers, operation.name})


def operations_of(function: str, check: Check | None = None) -> list[Operation]:
    """Operations that a function has a part in: its own ones first, or those that tell of a check first."""
    callers = checks.callers_of(function)
    own = [operation for operation in FUNCTIONS if f"public.{operation.covers}" in callers]
    for name, operations in _OF_POLICIES.items():
        own += [operation for operation in operations if name in callers and operation not in own]
    return in_order(own, str(check), function)


def first_violation(world: World, operations: Iterable[Operation]) -> str | None:
    """The first thing that the matrix finds, of the callers that SQL tells apart: bad tokens never get there."""
    people = [person for person in world.people.values() if person.subject is not Subject.BAD_TOKEN]
    people.sort(key=lambda person: person.subject is Subject.OWNER)
    for operation in operations:
        for found in violations(world, operation, people):
            return found
    return None


# Policies, row-level security, rights -------------------------------------------------------------------


@pytest.mark.parametrize("how", ["says yes", "is dropped"])
@pytest.mark.parametrize("policy", checks.policies(), ids=lambda policy: policy[0])
def test_policy(world: World, policy: tuple[str, str, str], how: str) -> None:
    name, table, command = policy
    if table == "storage.objects":
        operations = _OF_COMMANDS[command]
    else:
        operations = [o for o in TABLES if o.covers == f"{table.removeprefix('public.')} {command}"]
    with checks.policy_without(world.database, name, table, is_dropped=how == "is dropped"):
        assert first_violation(world, in_order(operations, f"{name}, {how}"))


def test_policies_of_the_migrations_are_all(world: World) -> None:
    query = "select policyname, schemaname || '.' || tablename, lower(cmd) from pg_policies where schemaname <> 'auth'"
    assert set(world.database.execute(query).fetchall()) == set(checks.policies())


@pytest.mark.parametrize("table", ["public.datasets", "public.tensors", "public.shards", "storage.objects"])
def test_row_level_security(world: World, table: str) -> None:
    operations = (
        STORAGE
        if table == "storage.objects"
        else [o for o in TABLES if f"public.{o.covers}".startswith(table)]
    )
    off, on = (f"alter table {table} {word} row level security" for word in ("disable", "enable"))
    with checks.statement(world.database, off, on):
        assert first_violation(world, operations)
        assert list(wrong_rights(world.database)) == [f"{table} has no row-level security"]


@pytest.mark.parametrize("table", sorted({table for _, table in ON_TABLES if table.startswith("tensorage.")}))
def test_row_level_security_of_inner_tables(world: World, table: str) -> None:
    off, on = (f"alter table {table} {word} row level security" for word in ("disable", "enable"))
    with checks.statement(world.database, off, on):
        assert list(wrong_rights(world.database)) == [f"{table} has no row-level security"]


def test_rights_are_those_that_are_written_down(world: World) -> None:
    assert list(wrong_rights(world.database)) == []


@pytest.mark.parametrize("role", ["anon", "authenticated"])
@pytest.mark.parametrize("right", ["select", "insert", "update", "delete"])
@pytest.mark.parametrize("table", sorted({table for _, table in ON_TABLES}))
def test_right_on_a_table(world: World, table: str, right: str, role: str) -> None:
    if ON_TABLES.get((role, table)) == right:
        pytest.skip("this right is given")
    grant, revoke = (
        f"{word} {right} on {table} {to} {role}" for word, to in (("grant", "to"), ("revoke", "from"))
    )
    with checks.statement(world.database, grant, revoke):
        assert list(wrong_rights(world.database)) == [f"{role} has {right} on {table}"]
        # Without a policy for it, row-level security alone refuses a new row. The public key finds no row to change.
        if table.startswith("public.") and (
            right == "select" or (right != "insert" and role == "authenticated")
        ):
            assert first_violation(world, [o for o in TABLES if f"public.{o.covers}" == f"{table} {right}"])


def test_rights_on_functions(world: World) -> None:
    functions = world.database.execute(
        "select p.oid::regprocedure::text, n.nspname || '.' || p.proname from pg_proc p "
        "join pg_namespace n on n.oid = p.pronamespace where n.nspname in ('public', 'tensorage') and p.prokind = 'f'"
    ).fetchall()
    for signature, name in functions:
        grant, revoke = (
            f"grant execute on function {signature} to anon",
            f"revoke execute on function {signature} from anon",
        )
        with checks.statement(world.database, grant, revoke):
            assert list(wrong_rights(world.database)) == [f"anon may execute {name}"]


@pytest.mark.parametrize(
    "function", ["tensorage_set_quota(text, bigint, bigint)", "tensorage_quotas(text, uuid, int)"]
)
def test_quotas_are_the_service_keys_alone(world: World, function: str) -> None:
    grant, revoke = (
        f"{word} execute on function public.{function} {to} authenticated"
        for word, to in (("grant", "to"), ("revoke", "from"))
    )
    with checks.statement(world.database, grant, revoke):
        assert first_violation(world, operations_of(f"public.{function.partition('(')[0]}"))


#: Conditions in functions that look like checks and decide no right.
NO_RIGHTS = {
    "tensorage.is_shared": "tells the owner, or who may read, whether others may",
    "tensorage.check_room_for_array": "counts the caller's own arrays",
    "tensorage.note": "chooses an address that the owner shares by",
    "tensorage.is_as_known": "tells whether an array is what a client remembers, and another check who reads it",
    "tensorage.movable_prefixes": "chooses among shares of the caller, which are moved by another check",
}

#: Checks behind which there is another one: they are taken out together.
TOGETHER = {
    Check("tensorage.forget", "owner", 0): [Check("tensorage.forget", "owner", 1)],
    Check("tensorage.forget", "owner", 1): [Check("tensorage.forget", "owner", 0)],
    Check("tensorage.end_shares", "owner", 0): [Check("tensorage.end_shares", "owner", 1)],
    Check("public.tensorage_share", "login", 0): [Check("public.tensorage_shares", "login", 0)],
    Check("tensorage.stage_append", "login", 0): [Check("tensorage.begun", "login", 0)],
    Check("public.tensorage_count", "login", 0): [Check("tensorage.whose", "login", 0)],
    Check("public.tensorage_catalogue", "login", 0): [Check("tensorage.whose", "login", 0)],
    Check("public.tensorage_commit", "going on", 0): [Check("tensorage.check_still_writable", "rule", 0)],
    Check("public.tensorage_annotate", "rule", 0): [Check("tensorage.check_still_writable", "rule", 0)],
    Check("public.tensorage_annotate", "owner", 0): [Check("tensorage.check_still_writable", "rule", 0)],
    Check("public.tensorage_catalogue", "owner", 0): [Check("public.tensorage_catalogue", "owner", 1)],
    Check("public.tensorage_rename", "login", 0): [Check("public.tensorage_rename", "login", 1)],
    Check("public.tensorage_rename", "login", 1): [Check("public.tensorage_rename", "login", 0)],
    Check("public.tensorage_transact", "login", 0): [Check("tensorage.lock_for_steps", "login", 0)],
    Check("tensorage.lock_for_steps", "login", 0): [Check("public.tensorage_transact", "login", 0)],
    Check("public.tensorage_read_many", "login", 0): [
        Check("tensorage.whose", "login", 0),
        Check("tensorage.find", "login", 0),
    ],
    Check("tensorage.stage", "login", 0): [Check("tensorage.find", "login", 0)],
    Check("tensorage.staged", "login", 0): [Check("tensorage.staged", "login", 1)],
    Check("tensorage.staged", "login", 1): [Check("tensorage.staged", "login", 0)],
    Check("tensorage.staged", "writer", 0): [Check("tensorage.staged", "writer", 1)],
    Check("tensorage.assignable", "rule", 0): [Check("tensorage.assignable", "rule", 1)],
    Check("tensorage.assignable", "owner", 0): [Check("tensorage.assignable", "rule", 1)],
}

#: Checks of rows that a policy for looking at them lets nobody find either: both are taken out.
BEHIND_POLICIES = {
    Check("tensorage.may_delete_object", "user", 0): "tensorage: read own folder",
    Check("tensorage.may_delete_object", "writer", 0): "tensorage: read own folder",
}

#: Checks that only a share that ends meanwhile can tell, with a request that waits for them.
IN_RACES = {
    Check("tensorage.assignable", "rule", 1): races.begin_assign,
    Check("tensorage.check_still_writable", "rule", 0): races.append,
}


def _transact(world: World, **locks: list[Any]) -> httpx.Response:
    return world["other"].call("tensorage_transact", transaction(**locks))


#: Checks that keep a stranger from holding somebody up, or being held up, with requests that would wait for a lock.
OF_LOCKS = {
    Check("tensorage.lock_for_steps", "rule", 0): lambda w: _transact(
        w, assigned=[{"data_id": w.things.rows["id"], "version": None}]
    ),
    Check("tensorage.lock_for_steps", "owner", 0): lambda w: _transact(w, keys=[ROWS_KEY]),
    Check("tensorage.lock_for_steps", "writer", 0): lambda w: _transact(w, staged=[w.things.rows["id"]]),
    Check("public.tensorage_rename", "owner", 0): lambda w: w["other"].call(
        "tensorage_rename", key=ROWS_KEY, new_key="other"
    ),
}

#: Tells only if two accounts have one address.
OF_TWINS = Check("public.tensorage_catalogue", "rule", 0)

#: The same as `NO_RIGHTS`, of single conditions.
DECIDE_NO_RIGHT = {
    Check("public.tensorage_doctor", "expiry", 0): "tells whether anybody shares",
    Check("public.tensorage_doctor", "expiry", 1): "tells whether anybody shares",
    Check("tensorage.move_shares", "expiry", 0): "a share that has ended lets nobody in, whatever its key",
    Check(
        "tensorage.move_all_shares", "expiry", 0
    ): "a share that has ended lets nobody in, whatever its key",
    Check("public.tensorage_shares", "expiry", 0): "tells owners of their own shares",
    Check("tensorage.shares_of", "expiry", 0): "tells owners of their own shares",
    Check("public.tensorage_end_ragged", "login", 0): "locks before another check looks",
    Check("public.tensorage_end_ragged", "writer", 0): "locks before another check looks",
    Check("tensorage.end_writes_of_others", "owner", 0): "ends writes that no share of their owner allows",
}

CHECKS = [
    check
    for check in checks.checks()
    if check.function not in NO_RIGHTS
    and check not in {*BEHIND_POLICIES, *IN_RACES, *OF_LOCKS, *DECIDE_NO_RIGHT, OF_TWINS}
]


# Checks in functions ------------------------------------------------------------------------------------


@pytest.mark.parametrize("function", checks.SAYING_YES)
def test_function_that_says_yes(world: World, function: str) -> None:
    with checks.saying_yes(world.database, function):
        assert first_violation(world, operations_of(function))


@pytest.mark.parametrize("check", CHECKS, ids=str)
def test_check(world: World, check: Check) -> None:
    with checks.without_checks(world.database, check, *TOGETHER.get(check, [])):
        assert first_violation(world, operations_of(check.function, check))


@pytest.mark.parametrize("check", BEHIND_POLICIES, ids=str)
def test_check_behind_a_policy(world: World, check: Check) -> None:
    with checks.policy_without(world.database, BEHIND_POLICIES[check], "storage.objects", is_dropped=False):
        assert not first_violation(world, operations_of(check.function, check))
        with checks.without_checks(world.database, check):
            assert first_violation(world, operations_of(check.function, check))


def test_check_of_accounts_with_one_address(world: World) -> None:
    with checks.without_checks(world.database, OF_TWINS):
        sharer, entries = entries_of_twins(world)
        assert [entry["user_id"] for entry in entries] != [sharer]


@pytest.mark.parametrize("check", IN_RACES, ids=str)
def test_check_in_a_race(world: World, check: Check) -> None:
    with checks.without_checks(world.database, check):
        assert races.race(world, IN_RACES[check], "rename").status_code == 200


@pytest.mark.parametrize("check", OF_LOCKS, ids=str)
def test_check_of_a_lock(world: World, check: Check) -> None:
    world.make("rows")
    with races.locked_rows(world) as holder, ThreadPoolExecutor(1) as pool:
        # Not held up, whatever the answer is.
        assert OF_LOCKS[check](world).status_code < 500
        with checks.without_checks(world.database, check):
            waiting = pool.submit(OF_LOCKS[check], world)
            wait_for_waiter(holder)
            holder.commit()
            waiting.result()


def test_every_check_is_found_in_the_database(world: World) -> None:
    """The text of the migrations and the functions of the database have the same checks."""
    for check in checks.checks():
        pattern, _ = checks.KINDS[check.kind]
        source = world.one("select prosrc from pg_proc where oid = %s::regproc", check.function)
        assert len(pattern.findall(source)) == len(pattern.findall(checks.bodies()[check.function]))
