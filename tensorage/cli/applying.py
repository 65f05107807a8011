"""The migrations applied to a database, in one transaction. The password of its URL gets into no message."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import SplitResult, parse_qs, unquote, urlsplit

import click

from tensorage.backend.wire.header import SCHEMA_VERSION
from tensorage.cli.failures import NOT_ALLOWED, UNREACHABLE, Failure
from tensorage.wording import one_line, quote, sentences

if TYPE_CHECKING:
    import asyncpg

__all__ = ["Applied", "DatabaseUrl", "apply"]

_CONNECT_TIMEOUT_S = 30.0

#: Two that apply at the same time would make the same objects. The second one waits, and holds no table meanwhile.
_ONE_AT_A_TIME = """
set local lock_timeout = '30s';
select pg_advisory_xact_lock(hashtextextended('tensorage migrations', 0));
"""

#: Somebody else's transaction may hold a table for hours, and whoever waits for it keeps all readers waiting behind,
#: whose own statements end after 8 s on hosted Supabase.
LOCK_TIMEOUT = "set local lock_timeout = '3s'"

_NOTHING_CHANGED = "Nothing has been changed."

#: Parts of a Supabase project that the migrations build on.
_PARTS = """
select coalesce(string_agg(what, ', ' order by what), '') from (
  select 'the role ' || name as what from unnest(array['anon', 'authenticated', 'service_role']) name
   where not exists (select from pg_roles where rolname = name)
  union all
  select 'the schema ' || name from unnest(array['auth', 'storage']) name where to_regnamespace(name) is null
) missing
"""

_HAS_VERSION = "select to_regprocedure('public.tensorage_version()') is not null"
_HAS_OTHER_TABLES = (
    "select to_regclass('public.datasets') is not null or to_regclass('public.tensors') is not null"
)


@dataclass(frozen=True)
class DatabaseUrl:
    """Address of a database: for the connection with its password, and for messages without.

    Parameters
    ----------
    asked
        Password that is not in the URL, but was asked for.

    Raises
    ------
    click.UsageError
        If it is no URL of a PostgreSQL. The message quotes nothing of it but its scheme, since a password with an
        unescaped character may be anywhere.
    """

    url: str = field(repr=False)
    parts: SplitResult = field(repr=False)
    asked: str | None = field(default=None, repr=False)

    @classmethod
    def parse(cls, url: str) -> DatabaseUrl:
        try:
            parts = urlsplit(url.strip())
        except ValueError:
            # No cause: the error quotes user and password, which may have a letter that no host has.
            raise _not_whole() from None
        if parts.scheme not in {"postgresql", "postgres"}:
            scheme = (
                f"begins with {quote(parts.scheme[:20])}" if re.match(r"https?:", url) else "is another one"
            )
            raise click.UsageError(
                f"the URL of a database begins with postgresql://, and this one {scheme}: the dashboard shows it under "
                "`Connect`. The project's own URL (https://...) does not lead to PostgreSQL"
            )
        try:
            is_whole = bool(parts.hostname and parts.username) and (parts.port or 1) > 0
        except ValueError:
            is_whole = False
        if not is_whole or "@" in f"{parts.path}{parts.query}{parts.fragment}":
            raise _not_whole()
        return cls(url.strip(), parts)

    @property
    def shown(self) -> str:
        """The database in words, without user and password."""
        return f"{self.parts.hostname}:{self.parts.port or 5432}"

    @property
    def is_here(self) -> bool:
        return self.parts.hostname in {"127.0.0.1", "::1", "localhost"}

    @property
    def says_sslmode(self) -> bool:
        return "sslmode" in parse_qs(self.parts.query) or "PGSSLMODE" in os.environ

    @property
    def password(self) -> str | None:
        """The password as it is written in the URL, at either of the two places for it; None if there is none."""
        return self.parts.password or next(iter(parse_qs(self.parts.query).get("password", [])), None)

    def without_password(self, text: str) -> str:
        """Return a server's or a library's words without the password, in case they quote it."""
        for password in filter(None, (self.password, self.asked, os.environ.get("PGPASSWORD"))):
            for written in {password, unquote(password)}:
                if len(written) > 2:
                    text = text.replace(written, "***")
        return text


def _not_whole() -> click.UsageError:
    return click.UsageError(
        "the URL of the database is not postgresql://USER:PASSWORD@HOST:PORT/postgres. Characters such as / ? # @ [ ] "
        "in a password have to be written as %2F %3F %23 %40 %5B %5D, or leave the password away and set $PGPASSWORD"
    )


@dataclass(frozen=True)
class Applied:
    """Versions of the schema: the one that was there, if any, and the one that is."""

    before: int | None
    after: int


def apply(url: DatabaseUrl, files: Sequence[Path], *, dry_run: bool) -> Applied:
    """Apply files of SQL in one transaction. A dry run takes all of it back.

    Raises
    ------
    Failure
        If the database cannot be reached, is no Supabase project, has a schema that these files do not lead from, or
        refuses. Nothing has been changed then.
    """
    try:
        return asyncio.run(_apply(url, files, dry_run))
    except ModuleNotFoundError as error:
        raise Failure(
            f"this needs {error.name!r}, which is not installed: pip install 'tensorage[local]>=0.2'"
        ) from error


async def _apply(url: DatabaseUrl, files: Sequence[Path], dry_run: bool) -> Applied:
    import asyncpg

    try:
        connection = await asyncpg.connect(
            url.url,
            password=url.asked,
            # The password, and the SQL, pass through whatever network there is.
            ssl=None if url.is_here or url.says_sslmode else "require",
            timeout=_CONNECT_TIMEOUT_S,
            # A pooler between transactions knows no prepared statements.
            statement_cache_size=0,
        )
    except Exception as error:  # noqa: BLE001 - what is no PostgreSQL makes asyncpg fail in whatever reads the answer
        raise _not_connected(url, error) from None
    try:
        return await _in_one_transaction(connection, files, dry_run)
    except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError) as error:
        raise _not_applied(url, error) from None
    finally:
        await connection.close(timeout=_CONNECT_TIMEOUT_S)


async def _in_one_transaction(
    connection: asyncpg.Connection[asyncpg.Record], files: Sequence[Path], dry_run: bool
) -> Applied:
    transaction = connection.transaction()
    await transaction.start()
    try:
        await connection.execute(_ONE_AT_A_TIME)
        # A short limit only from here on: the wait for another one that applies holds up nobody.
        await connection.execute(LOCK_TIMEOUT)
        before = await _version_to_start_from(connection)
        for file in files:
            await connection.execute(file.read_text("utf-8"))
        after = await connection.fetchval("select public.tensorage_version()")
    except BaseException:
        # A connection that was lost has nothing left to take back.
        if not connection.is_closed():
            await transaction.rollback()
        raise
    await (transaction.rollback() if dry_run else transaction.commit())
    return Applied(before, after)


async def _version_to_start_from(connection: asyncpg.Connection[asyncpg.Record]) -> int | None:
    """Return the version of the schema that is there. The files themselves refuse those that were never released."""
    missing = await connection.fetchval(_PARTS)
    if missing:
        raise Failure(
            f"this database is no Supabase project: {missing} are not there. {_NOTHING_CHANGED} Take the URL from "
            "`Connect` in the project's dashboard"
        )
    if not await connection.fetchval(_HAS_VERSION):
        if await connection.fetchval(_HAS_OTHER_TABLES):
            raise Failure(
                "this project has a table datasets or tensors that is not of this version: of tensorage 0.1.7, or of "
                f"another program. {_NOTHING_CHANGED} Take a project without these tables"
            )
        return None
    version: int = await connection.fetchval("select public.tensorage_version()")
    if version > SCHEMA_VERSION:
        raise Failure(
            f"the project's schema has version {version}, newer than the {SCHEMA_VERSION} of this release: a later "
            f"release made it. {_NOTHING_CHANGED} Upgrade: pip install -U 'tensorage>=0.2'"
        )
    return version


def _not_connected(url: DatabaseUrl, error: Exception) -> Failure:
    import asyncpg

    said = url.without_password(one_line(str(error) or type(error).__name__))
    refused = (asyncpg.InvalidAuthorizationSpecificationError, asyncpg.InvalidPasswordError)
    if isinstance(error, refused):
        advice = "The user and the password are those of the database, not those of an account of the project"
        return Failure(
            sentences(f"the database at {url.shown} refuses the login: {said}", advice), NOT_ALLOWED
        )
    advice = (
        "Look at host and port. A hosted project's direct address (db.REF.supabase.co) is reached over IPv6 alone: "
        "elsewhere take the session pooler's. A server without TLS needs ?sslmode=disable at the end of the URL"
    )
    return Failure(sentences(f"the database at {url.shown} cannot be reached: {said}", advice), UNREACHABLE)


def _not_applied(url: DatabaseUrl, error: Exception) -> Failure:
    import asyncpg

    lost = (asyncpg.PostgresConnectionError, asyncpg.AdminShutdownError, asyncpg.CrashShutdownError)
    # The end of the transaction may have been under way: nobody here knows the outcome.
    if not isinstance(error, asyncpg.PostgresError) or isinstance(error, lost):
        said = url.without_password(one_line(str(error) or type(error).__name__))
        return Failure(
            f"the connection to the database at {url.shown} was lost ({said}): either all of the migrations were "
            "applied, or none. Run this again",
            UNREACHABLE,
        )
    said = url.without_password(one_line(f"{error.sqlstate}: {error}"))
    hint = one_line(getattr(error, "hint", None) or "")
    if isinstance(error, asyncpg.InsufficientPrivilegeError):
        advice = f"{_NOTHING_CHANGED} The role `postgres` of the project may do it"
        return Failure(sentences(f"the user of the URL may not do this: {said}", advice), NOT_ALLOWED)
    if isinstance(error, asyncpg.LockNotAvailableError):
        hint = "Somebody else's transaction holds what they change: try again when it has ended"
    return Failure(sentences(f"the migrations cannot be applied: {said}", _NOTHING_CHANGED, hint))
