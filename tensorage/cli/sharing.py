"""``share``, ``unshare`` and ``shares``."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import click

from tensorage.cli.commands import command, json_option, project_options, quiet_option, yes_option
from tensorage.cli.completing import keys_below
from tensorage.cli.connections import Choice, connect
from tensorage.cli.output import print_json, print_table, visible

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tensorage.types import Share

__all__ = ["COMMANDS"]

_HOURS = {"h": 1, "d": 24, "w": 7 * 24}


@command(
    "share",
    "tensorage share era5/t2m reader@lab.org",
    "tensorage share exp/ reader@lab.org --write --until 7d",
    "tensorage share era5/t2m --everybody",
)
@click.argument("key", shell_complete=keys_below)
@click.argument("who", nargs=-1, metavar="[ADDRESS]...")
@click.option("--everybody", is_flag=True, help="Every signed-in user of the project.")
@click.option("--write", is_flag=True, help="Let them append and assign, too.")
@click.option(
    "--until", metavar="TIME", help="End: 12h, 7d, 2w, a date, or a time with its zone.  [default: never]"
)
@quiet_option
@json_option
@project_options
def share(
    key: str,
    who: tuple[str, ...],
    *,
    everybody: bool,
    write: bool,
    until: str | None,
    quiet: bool,
    as_json: bool,
    choice: Choice,
) -> None:
    """Let others use an array. With a `/` at the end of KEY, all below it, also what comes later."""
    if everybody == bool(who):
        raise click.UsageError("give addresses, or --everybody for every signed-in user of the project")
    with connect(choice) as connection:
        found = connection.store().share(key, list(who) or None, write=write, expires_at=_time(until))
    _print(found, quiet=quiet, as_json=as_json)


def _time(text: str | None) -> datetime | None:
    if text is None:
        return None
    span = re.fullmatch(r"(\d{1,5})([hdw])", text)
    if span is not None:
        return datetime.now(UTC) + timedelta(hours=int(span[1]) * _HOURS[span[2]])
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise click.UsageError(
            f"{text[:40]!r} is no time: give 12h, 7d, 2w, 2027-01-31, or 2027-01-31T12:00:00+01:00"
        ) from error
    # The zone of this machine, which the user means who names none.
    return moment.astimezone()


@command("unshare", "tensorage unshare era5/t2m reader@lab.org", "tensorage unshare exp/ --yes")
@click.argument("key", shell_complete=keys_below)
@click.argument("who", nargs=-1, metavar="[ADDRESS]...")
@yes_option
@quiet_option
@json_option
@project_options
def unshare(key: str, who: tuple[str, ...], *, yes: bool, quiet: bool, as_json: bool, choice: Choice) -> None:
    """End the shares of a key or prefix: with addresses those with these, and otherwise all, after a question.

    The shares that are left are printed, such as those of a prefix.
    """
    if not who and not yes:
        click.confirm(f"End all shares of {key!r}?", abort=True, err=True)
    with connect(choice) as connection:
        left = connection.store().unshare(key, list(who) or None)
    _print(left, quiet=quiet, as_json=as_json)
    if not left and not quiet and not as_json:
        click.echo(f"{visible(key)} is shared with nobody any more")


@command("shares", "tensorage shares", "tensorage shares era5/t2m --json", "tensorage shares --with-me")
@click.argument("key", required=False, shell_complete=keys_below)
@click.option("--with-me", is_flag=True, help="What others share with this user.")
@json_option
@project_options
def shares(key: str | None, *, with_me: bool, as_json: bool, choice: Choice) -> None:
    """List the shares that this user has given, or those of a key, or those that others have given."""
    if with_me and key is not None:
        raise click.UsageError("--with-me lists what others share: leave KEY out")
    with connect(choice) as connection:
        store = connection.store()
        found = store.shared_with_me() if with_me else store.shares(key)
    _print(found, quiet=False, as_json=as_json)


def _print(found: Sequence[Share], *, quiet: bool, as_json: bool) -> None:
    if as_json:
        print_json([_describe(share) for share in found])
    elif found and not quiet:
        heads = ("key", "owner", "reader", "may", "until")
        print_table(heads, [_columns(share) for share in found])


def _describe(share: Share) -> dict[str, Any]:
    end = share.expires_at
    return {
        "key": share.key, "owner": share.owner, "owner_id": share.owner_id, "reader": share.reader,
        "write": share.write, "expires_at": None if end is None else end.isoformat(),
    }  # fmt: skip


def _columns(share: Share) -> tuple[str, ...]:
    end = "-" if share.expires_at is None else share.expires_at.isoformat(" ", "minutes")
    return (
        visible(share.key), visible(share.owner or share.owner_id), visible(share.reader or "everybody"),
        "read, write" if share.write else "read", end,
    )  # fmt: skip


COMMANDS = {"share": share, "unshare": unshare, "shares": shares}
