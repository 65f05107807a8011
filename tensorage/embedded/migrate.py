"""SQL of a cluster: the roles and schemas of a hosted Supabase project, then the project's migrations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import asyncpg

from tensorage.embedded.database import is_outage
from tensorage.embedded.folder import EmbeddedError

_BOOTSTRAP_FILES = Path(__file__).parent / "sql"
_SERVER_FILES = _BOOTSTRAP_FILES / "server"

#: The table in which the Supabase CLI, too, records the migrations that it applied.
_HISTORY = """
create schema if not exists supabase_migrations;
create table if not exists supabase_migrations.schema_migrations (
    version text primary key,
    statements text[],
    name text
);
"""


_REMEMBER = """
insert into supabase_migrations.schema_migrations (version, name, statements) values ($1, $2, $3)
"""


class MigrationError(EmbeddedError):
    """A file of SQL that PostgreSQL refused, or a database that other files have made."""


async def bootstrap(superuser_dsn: str, passwords: Mapping[str, str]) -> bool:
    """Make the roles and schemas of hosted Supabase in a new cluster, all or none.

    The server's own functions are made anew in every cluster.

    Parameters
    ----------
    superuser_dsn
        URL of the cluster for its superuser.
    passwords
        Passwords of the roles that log in, by role.

    Returns
    -------
    bool
        False if the cluster had them already.
    """
    connection = await asyncpg.connect(superuser_dsn)
    try:
        # The first file makes this role, in the same transaction as all others.
        is_new = not await connection.fetchval(
            "select exists (select from pg_roles where rolname = 'authenticator')"
        )
        async with connection.transaction():
            folders = (_BOOTSTRAP_FILES, _SERVER_FILES) if is_new else (_SERVER_FILES,)
            files = [file for folder in folders for file in sorted(folder.glob("*.sql"))]
            for file, sql in _read_files(files):
                await _execute(connection, file, sql)
            if not is_new:
                return False
            for role, password in passwords.items():
                # ALTER ROLE takes no parameters: PostgreSQL's own format() quotes the values.
                alter = "select format('alter role %I password %L', $1::text, $2::text)"
                await connection.execute(await connection.fetchval(alter, role, password))
    finally:
        await connection.close()
    return True


async def migrate(dsn: str, files: Sequence[Path]) -> list[str]:
    """Apply the migrations that the database lacks, each in its own transaction.

    Parameters
    ----------
    dsn
        URL of the database for the owner of the project's tables.
    files
        Migrations, named ``<version>_<name>.sql``, in order.

    Returns
    -------
    list of str
        Names of the files applied.

    Raises
    ------
    MigrationError
        If the database has had other migrations, or PostgreSQL refuses a file.
    """
    connection = await asyncpg.connect(dsn)
    try:
        done = await _fetch_recorded(connection)
        _check_all_known(done, _read_files(files))
        await connection.execute(_HISTORY)
        new = [file for file in files if _split_name(file)[0] not in done]
        for file, sql in _read_files(new):
            async with connection.transaction():
                await _execute(connection, file, sql)
                # Committed with the migration itself: neither is ever there without the other.
                await connection.execute(_REMEMBER, *_split_name(file), [sql])
    finally:
        await connection.close()
    return [file.name for file in new]


class _Recorded(NamedTuple):
    """A migration that the database has had."""

    version: str
    name: str
    #: One text if a server of ours applied it. The Supabase CLI records statements one by one.
    statements: Sequence[str]


async def _fetch_recorded(connection: asyncpg.Connection[asyncpg.Record]) -> dict[str, _Recorded]:
    """Migrations that the database has had, by their versions."""
    if await connection.fetchval("select to_regclass('supabase_migrations.schema_migrations') is null"):
        return {}
    rows = await connection.fetch(
        "select version, name, statements from supabase_migrations.schema_migrations order by 1"
    )
    done = [_Recorded(row["version"], row["name"] or "", row["statements"] or []) for row in rows]
    return {each.version: each for each in done}


def _check_all_known(done: Mapping[str, _Recorded], files: Sequence[tuple[Path, str]]) -> None:
    """Raise if the database has had other migrations, or others of these names: a mixture of schemas would result."""
    known = {_split_name(file)[0]: sql for file, sql in files}
    others = [
        f"{each.version}_{each.name}"
        for each in done.values()
        if each.version not in known
        or (len(each.statements) == 1 and each.statements[0] != known[each.version])
    ]
    if others:
        raise MigrationError(
            f"this data folder has had migrations that this version of tensorage does not know "
            f"({', '.join(others)}): another version made it, perhaps one that was never released. Nothing has been "
            "changed. Read it with the version or checkout of tensorage that made it, and store in a new folder what "
            "you need; or remove all that is in it with `tensorage local reset`"
        )


def _read_files(files: Sequence[Path]) -> list[tuple[Path, str]]:
    return [(file, file.read_text("utf-8")) for file in files]


async def _execute(connection: asyncpg.Connection[asyncpg.Record], file: Path, sql: str) -> None:
    try:
        await connection.execute(sql)
    except asyncpg.PostgresError as error:
        # A lost PostgreSQL says nothing about the file: the caller tries again.
        if is_outage(error):
            raise
        raise MigrationError(f"{file} cannot be applied: {_explain(error)}") from error


def _explain(error: asyncpg.PostgresError) -> str:
    """Return PostgreSQL's message with its detail, hint and context."""
    extras = {"detail": error.detail, "hint": error.hint, "where": error.context}
    said = "".join(f"\n{label.upper()}: {text}" for label, text in extras.items() if text)
    return f"{error.sqlstate}: {error.message}{said}"


def _split_name(file: Path) -> tuple[str, str]:
    version, _, name = file.stem.partition("_")
    return version, name
