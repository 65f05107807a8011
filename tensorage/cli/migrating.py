"""``tensorage migrations``: the SQL that a project needs, as files, as text, or applied."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import click

from tensorage.cli.commands import command, json_option
from tensorage.cli.failures import Failure
from tensorage.cli.output import print_json

__all__ = ["COMMANDS"]

_VARIABLE = "SUPABASE_DB_URL"


@command(
    "migrations",
    "tensorage migrations",
    "tensorage migrations apply --dry-run",
    'tensorage migrations --sql | psql "$DB_URL"',
)
@click.argument("action", required=False, type=click.Choice(["apply"]), metavar="[apply]")
@click.option("--sql", is_flag=True, help="Print the SQL itself, for a program that reads SQL.")
@click.option(
    "--db-url", metavar="URL",
    help="Database to apply the files to: postgresql://USER:PASSWORD@HOST:PORT/postgres. Other users of this machine "
    f"see what is on a command line: rather set ${_VARIABLE}, which is the default.",
)  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Apply the files, tell the outcome, and take all of it back.")
@json_option
def migrations(action: str | None, *, sql: bool, db_url: str | None, dry_run: bool, as_json: bool) -> None:
    """List the files of SQL that a Supabase project needs, or apply them to its database.

    `apply` makes one transaction: after an error nothing has changed. It may be applied again, and refuses a project
    with a later version's schema. Without a password in the URL, $PGPASSWORD is taken, or it is asked for.
    """
    from tensorage.migrations import migration_files

    try:
        files = migration_files()
    except FileNotFoundError as error:
        raise Failure(str(error)) from error
    if action is not None:
        if sql:
            raise click.UsageError("--sql prints, and `apply` applies: give one of them")
        _apply(db_url, files, dry_run=dry_run, as_json=as_json)
        return
    if db_url is not None or dry_run:
        raise click.UsageError("--db-url and --dry-run belong to `tensorage migrations apply`")
    _list(files, sql=sql, as_json=as_json)


def _list(files: Sequence[Path], *, sql: bool, as_json: bool) -> None:
    if as_json:
        print_json([str(file) for file in files])
        return
    if not sql:
        click.echo("\n".join(str(file) for file in files))
        return
    # One transaction: psql goes on after the statement that refuses a project, unless it is told not to.
    click.echo("begin;\n")
    for file in files:
        click.echo(f"-- {file.name}\n\n{file.read_text('utf-8')}")
    click.echo("commit;")


def _apply(db_url: str | None, files: Sequence[Path], *, dry_run: bool, as_json: bool) -> None:
    from tensorage.cli.applying import DatabaseUrl, apply

    given = db_url or os.environ.get(_VARIABLE)
    if not given:
        raise click.UsageError(f"no database is named: give --db-url, or set ${_VARIABLE}")
    url = DatabaseUrl.parse(given)
    done = apply(replace(url, asked=_password(url.password)), files, dry_run=dry_run)
    if as_json:
        applied = {"files": [file.name for file in files], "before": done.before, "version": done.after}
        print_json({**applied, "applied": not dry_run})
        return
    there = "had none" if done.before is None else f"had version {done.before}"
    if dry_run:
        click.echo(
            f"{len(files)} files can be applied to {url.shown}, for schema version {done.after}; it {there}."
        )
        click.echo("All of it was taken back: nothing has changed.")
    else:
        click.echo(
            f"applied {len(files)} files to {url.shown}: schema version {done.after}; it {there} before."
        )


def _password(given: str | None) -> str | None:
    """Ask for a password that is named nowhere, if somebody is there to be asked."""
    passfile = Path(os.environ.get("PGPASSFILE", Path.home() / ".pgpass"))
    if given is not None or "PGPASSWORD" in os.environ or passfile.exists() or not sys.stdin.isatty():
        return None
    answer: str = click.prompt("Password of the database", hide_input=True, err=True)
    return answer


COMMANDS = {"migrations": migrations}
