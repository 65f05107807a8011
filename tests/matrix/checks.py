"""The checks of the schema, found in the text of the migrations, and ways to take each of them out for a while."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import psycopg

Sql = psycopg.Connection[tuple[Any, ...]]

MIGRATIONS = Path(__file__).parents[2] / "supabase" / "migrations"

_FUNCTION = re.compile(
    r"create or replace function ((?:public|tensorage)\.\w+)\(.*?\$\$(.*?)\$\$;", re.DOTALL
)
_POLICY = re.compile(r'create policy "([^"]+)" on (\S+) for (\w+)')
_ARGUMENTS = r"\((?:[^()]|\((?:[^()]|\((?:[^()]|\([^()]*\))*\))*\))*\)"
_ME = r"(?:me|auth\.uid\(\)|tensorage\.me\(\))"

#: Checks by kind: the text of one, and what stands in its place when it is taken out.
KINDS = {
    "login": (re.compile(r"tensorage\.me\(\)"), "auth.uid()"),
    "user": (re.compile(r"tensorage\.is_user\(\)"), "true"),
    "rule": (
        re.compile(
            rf"tensorage\.(?:is_shared_with_me|may_use|may_read_rows_of|may_go_on|is_writing){_ARGUMENTS}"
        ),
        "true",
    ),
    "going on": (re.compile(r"perform tensorage\.check_may_go_on\(\w+\)"), "perform 1"),
    "owner": (re.compile(rf"\b(?:\w+\.)?user_id = {_ME}(?!\w)"), "true"),
    "writer": (re.compile(rf"\b(?:\w+\.)?writer = {_ME}(?!\w)"), "true"),
    "folder": (
        re.compile(r"tensorage\.owner_of_object\(object_name\) is distinct from auth\.uid\(\)"),
        "false",
    ),
    "reader": (re.compile(r"s\.reader = any \(tensorage\.my_readers\(\)\)"), "true"),
    "expiry": (re.compile(r"\(s\.expires_at is null or s\.expires_at > now\(\)\)"), "true"),
    "right": (re.compile(r"\(s\.can_write or not to_write\)"), "true"),
    "pattern": (re.compile(r"s\.pattern = any \(array\(select tensorage\.patterns_of\([\w.]+\)\)\)"), "true"),
}

#: Functions that say yes or no, or raise, and a body that lets everybody through.
SAYING_YES = {
    "tensorage.is_user": "begin return true; end",
    "tensorage.is_shared_with_me": "begin return true; end",
    "tensorage.may_use": "begin return true; end",
    "tensorage.may_read_rows_of": "begin return true; end",
    "tensorage.may_go_on": "begin return true; end",
    "tensorage.is_writing": "begin return true; end",
    "tensorage.check_may_go_on": "begin end",
    "tensorage.may_write_object": "begin return true; end",
    "tensorage.may_delete_object": "begin return true; end",
    "tensorage.is_shared_object": "begin return true; end",
    "tensorage.me": "begin return auth.uid(); end",
    "tensorage.my_readers": "begin return array(select u.email::text from auth.users u) || array['']; end",
}


@cache
def bodies() -> dict[str, str]:
    """Bodies of all functions, by name."""
    text = "\n".join(path.read_text() for path in sorted(MIGRATIONS.glob("*.sql")))
    return dict(_FUNCTION.findall(text))


@cache
def policies() -> list[tuple[str, str, str]]:
    """Name, table and command of each policy."""
    return [found for path in sorted(MIGRATIONS.glob("*.sql")) for found in _POLICY.findall(path.read_text())]


@dataclass(frozen=True)
class Check:
    """A check in the body of a function: its kind, and the number among those of its kind there."""

    function: str
    kind: str
    number: int

    def __str__(self) -> str:
        return f"{self.function} {self.kind} {self.number}"

    def without(self, definition: str) -> str:
        """The definition of the function without the check."""
        pattern, instead = KINDS[self.kind]
        # The head names the function itself.
        head, dollars, body, end = _parts(definition)
        found = list(pattern.finditer(body))[self.number]
        return f"{head}{dollars}{body[: found.start()]}{instead}{body[found.end() :]}{end}"


@cache
def checks() -> list[Check]:
    return [
        Check(function, kind, number)
        for function, body in bodies().items()
        for kind, (pattern, _) in KINDS.items()
        for number in range(len(pattern.findall(body)))
    ]


@cache
def callers_of(function: str) -> frozenset[str]:
    """The function, and all functions that call it, by themselves or through others."""
    called = {function}
    while more := {
        name
        for name, body in bodies().items()
        if name not in called and any(re.search(rf"\b{re.escape(other)}\(", body) for other in called)
    }:
        called |= more
    return frozenset(called)


@contextmanager
def without_checks(database: Sql, *taken: Check) -> Iterator[None]:
    """Take checks out of the bodies of their functions."""
    definitions = {check.function: _definition(database, check.function) for check in taken}
    changed = dict(definitions)
    # The last one of a function first: the numbers of those before it stay.
    for check in sorted(taken, key=lambda check: -check.number):
        changed[check.function] = check.without(changed[check.function])
    with _changed(database, list(changed.values()), list(definitions.values())):
        yield


@contextmanager
def saying_yes(database: Sql, function: str) -> Iterator[None]:
    definition = _definition(database, function)
    head, dollars, _, _ = _parts(definition)
    with _changed(database, [f"{head}{dollars}{SAYING_YES[function]}{dollars}"], [definition]):
        yield


@contextmanager
def policy_without(database: Sql, name: str, table: str, *, is_dropped: bool) -> Iterator[None]:
    """Let a policy say yes to all rows, or drop it."""
    row = database.execute(
        "select cmd, qual, with_check from pg_policies where policyname = %s and schemaname || '.' || tablename = %s",
        [name, table],
    ).fetchone()
    assert row is not None
    command, using, check = row
    clauses = [f"using ({using})"] * (using is not None) + [f"with check ({check})"] * (check is not None)
    drop = f'drop policy "{name}" on {table}'
    yes = [f"{clause.partition('(')[0]}(true)" for clause in clauses]
    create = f'create policy "{name}" on {table} for {command} to authenticated '
    change = [drop] if is_dropped else [drop, create + " ".join(yes)]
    restore = [create + " ".join(clauses)] if is_dropped else [drop, create + " ".join(clauses)]
    with _changed(database, change, restore):
        yield


@contextmanager
def statement(database: Sql, change: str, restore: str) -> Iterator[None]:
    with _changed(database, [change], [restore]):
        yield


@contextmanager
def _changed(database: Sql, change: list[str], restore: list[str]) -> Iterator[None]:
    try:
        with database.transaction():
            for text in change:
                database.execute(text)
        yield
    finally:
        with database.transaction():
            for text in restore:
                database.execute(text)


def _parts(definition: str) -> tuple[str, str, str, str]:
    """Head of a definition, its quotes, the body, and the closing quotes."""
    head, dollars, rest = re.split(r"(\$\w*\$)", definition, maxsplit=1)
    body, _, end = rest.rpartition(dollars)
    return head, dollars, body, dollars + end


def _definition(database: Sql, function: str) -> str:
    row = database.execute(
        "select pg_get_functiondef(%s::regproc)",
        [function],
    ).fetchone()
    assert row is not None
    return str(row[0])
