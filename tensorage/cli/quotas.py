"""``tensorage quota``: how much users may store, for the project's administrator."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from tensorage.cli.administering import administrator_options, configuration_of
from tensorage.cli.commands import command, json_option
from tensorage.cli.output import print_json

if TYPE_CHECKING:
    from tensorage.quotas import UserQuota

__all__ = ["COMMANDS"]


@click.group("quota")
def quota() -> None:
    """Set and show how much users may store. It takes the project's service key."""


@command(
    "set", "tensorage quota set --bytes 10GB --arrays 1000", "tensorage quota set reader@lab.org --bytes none"
)
@click.argument("who", required=False)
@click.option("--bytes", "max_bytes", metavar="SIZE", help="Most bytes: 500MB, 10GiB, a number, or none.")
@click.option("--arrays", "max_arrays", metavar="NUMBER", help="Most arrays: a number, or none.")
@json_option
@administrator_options
def set_quota(
    who: str | None, max_bytes: str | None, max_arrays: str | None, *, as_json: bool, **project: Any
) -> None:
    """Set the quota of WHO, or the default one of all users.

    WHO is the confirmed address of an account, or its id. A limit that is not given stays as it is. `none` takes a
    limit away: a user has the default one then.
    """
    from tensorage.quotas import KEEP, Quotas, parse_limit

    if max_bytes is None and max_arrays is None:
        raise click.UsageError("give --bytes, --arrays or both: nothing else is set")
    nbytes = KEEP if max_bytes is None else parse_limit(max_bytes, is_size=True)
    arrays = KEEP if max_arrays is None else parse_limit(max_arrays, is_size=False)
    with Quotas.open(configuration_of(**project)) as quotas:
        now = quotas.set(who, nbytes, arrays)
    if as_json:
        print_json({"who": who, "bytes": now.bytes, "arrays": now.arrays})
        return
    describe = _limit if who is None else _own_limit
    name = "default" if who is None else who
    click.echo(f"{name}: {describe(now.bytes, 'bytes')}, {describe(now.arrays, 'arrays')}")


@command("show", "tensorage quota show", "tensorage quota show reader@lab.org --json")
@click.argument("who", required=False)
@json_option
@administrator_options
def show_quota(who: str | None, as_json: bool, **project: Any) -> None:
    """Show the quota and the usage of WHO, or of all users."""
    from dataclasses import asdict

    from tensorage.quotas import Quotas

    with Quotas.open(configuration_of(**project)) as quotas:
        default = quotas.default()
        if as_json:
            users = [user.as_json() for user in quotas.users(who)]
            click.echo(json.dumps({"default": asdict(default), "users": users}, indent=2))
            return
        # Lines are printed as their pages come: a project may have a hundred thousand users.
        lines = (_quota_line(user, default.bytes, default.arrays) for user in quotas.users(who))
        first = next(lines, None)
        click.echo(f"default: {_limit(default.bytes, 'bytes')}, {_limit(default.arrays, 'arrays')}")
        click.echo(f"{'bytes':>10} {'of':>14} {'arrays':>8} {'of':>10}  user")
        for line in [] if first is None else [first]:
            click.echo(line)
        for line in lines:
            click.echo(line)


def _quota_line(user: UserQuota, default_bytes: int | None, default_arrays: int | None) -> str:
    """Describe one user. A star marks a limit of the user's own."""
    from tensorage.quotas import format_size

    nbytes = default_bytes if user.own.bytes is None else user.own.bytes
    arrays = default_arrays if user.own.arrays is None else user.own.arrays
    of_bytes = "-" if nbytes is None else format_size(nbytes) + ("" if user.own.bytes is None else "*")
    of_arrays = "-" if arrays is None else f"{arrays}" + ("" if user.own.arrays is None else "*")
    name = user.address or user.user_id
    return f"{format_size(user.bytes):>10} {of_bytes:>14} {user.arrays:>8} {of_arrays:>10}  {name}"


def _limit(limit: int | None, unit: str) -> str:
    return f"any number of {unit}" if limit is None else f"at most {limit} {unit}"


def _own_limit(limit: int | None, unit: str) -> str:
    """Describe a limit of one user. Without it, the default may still be a limit."""
    return f"the default number of {unit}" if limit is None else _limit(limit, unit)


quota.add_command(set_quota)
quota.add_command(show_quota)

COMMANDS = {"quota": quota}
