"""``cp``, ``mv`` and ``rm``."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import click

from tensorage.cli.commands import (
    command,
    force_option,
    json_option,
    owner_option,
    project_options,
    quiet_option,
    yes_option,
)
from tensorage.cli.completing import keys_below
from tensorage.cli.connections import Choice, connect
from tensorage.cli.entries import Entries, is_glob, nothing_there
from tensorage.cli.failures import WRONG_USAGE, Failure
from tensorage.cli.output import print_json, visible
from tensorage.cli.putting import engine_option
from tensorage.errors import KeyNotFoundError

if TYPE_CHECKING:
    from tensorage.store import TensorStore

__all__ = ["COMMANDS"]

#: Most keys that a question names.
NAMED = 10

_dry_run_option = click.option(
    "-n", "--dry-run", is_flag=True, help="Tell what would be done, and do nothing."
)


@command(
    "cp",
    "tensorage cp exp/run1/loss exp/best",
    "tensorage cp exp/run1/ exp/copy/ --engine storage",
    "tensorage cp era5 mine/era5 --owner reader@lab.org",
)
@click.argument("source", shell_complete=keys_below)
@click.argument("target", shell_complete=keys_below)
@engine_option
@owner_option
@force_option
@_dry_run_option
@quiet_option
@json_option
@project_options
def cp(
    source: str,
    target: str,
    *,
    engine: str | None,
    owner: str | None,
    force: bool,
    dry_run: bool,
    quiet: bool,
    as_json: bool,
    choice: Choice,
) -> None:
    """Copy an array, or all arrays of a group: give both names with a `/` at their ends.

    The elements are never in memory as a whole. The copy belongs to this user, and is not shared. The arrays of a group
    are copied one by one.
    """
    with connect(choice) as connection:
        pairs = _pairs(Entries(connection, owner), source, target)
        if not dry_run:
            store = connection.store(owner, quiet=quiet or as_json, allow_overwrite=force)
            for old, new in pairs:
                store.copy(old, new, engine=_engine(engine))
    _tell(pairs, "would copy" if dry_run else "copied", quiet=quiet, as_json=as_json)


def _engine(name: str | None) -> Any:
    return name


def _pairs(entries: Entries, source: str, target: str) -> list[tuple[str, str]]:
    """Return the keys that are copied or renamed, with their new ones."""
    if source.endswith("/") != target.endswith("/"):
        if source.endswith("/"):
            raise click.UsageError("a group is copied or renamed to a group: give TARGET with a / at its end")
        # Into the group, under the same name, like files in a shell.
        target += source.rpartition("/")[2]
    if not source.endswith("/"):
        entries.open(source)
        # Also for a dry run: an array that is not there is an error, as it would be later.
        return [(source, target)]
    pairs = [(key, target + key[len(source) :]) for key in entries.keys(source)]
    if not pairs:
        raise nothing_there(source)
    return pairs


def _tell(pairs: list[tuple[str, str]], what: str, *, quiet: bool, as_json: bool) -> None:
    if as_json:
        print_json([{"from": old, "to": new} for old, new in pairs])
    elif not quiet:
        for old, new in pairs:
            click.echo(f"{what} {visible(old)} to {visible(new)}")


@command("mv", "tensorage mv exp/run1/loss exp/run1/losses", "tensorage mv exp/run2/ exp/old/ --dry-run")
@click.argument("source", shell_complete=keys_below)
@click.argument("target", shell_complete=keys_below)
@force_option
@_dry_run_option
@quiet_option
@json_option
@project_options
def mv(
    source: str, target: str, *, force: bool, dry_run: bool, quiet: bool, as_json: bool, choice: Choice
) -> None:
    """Rename an array, or all arrays of a group in one step: give both names with a `/` at their ends.

    Shares of the arrays go with them. --force replaces an array that has the new name. A group replaces nothing.
    """
    with connect(choice) as connection:
        pairs = _pairs(Entries(connection), source, target)
        if force and source.endswith("/"):
            raise click.UsageError("a group replaces nothing: delete the arrays that are in its way first")
        if not dry_run:
            store = connection.store()
            if source.endswith("/"):
                store.rename_all(source, target)
            else:
                store.rename(*pairs[0], overwrite=force)
    _tell(pairs, "would rename" if dry_run else "renamed", quiet=quiet, as_json=as_json)


@command(
    "rm",
    "tensorage rm exp/run1/loss --yes",
    "tensorage rm 'exp/*/scratch' --dry-run",
    "tensorage rm -r exp/run2 --yes",
)
@click.argument("names", nargs=-1, required=True, metavar="KEY|GROUP|GLOB...", shell_complete=keys_below)
@click.option("-r", "-R", "--recursive", "is_deep", is_flag=True, help="All arrays below a name, too.")
@_dry_run_option
@yes_option
@quiet_option
@json_option
@project_options
def rm(
    names: tuple[str, ...],
    *,
    is_deep: bool,
    dry_run: bool,
    yes: bool,
    quiet: bool,
    as_json: bool,
    choice: Choice,
) -> None:
    """Delete arrays, all in one step, after a question. Nothing brings them back."""
    with connect(choice) as connection:
        keys = _keys(Entries(connection), names, is_deep=is_deep)
        if not dry_run:
            if not yes:
                _ask(keys)
            _remove(connection.store(), keys, names)
    if as_json:
        print_json({"deleted": [] if dry_run else keys, "would_delete": keys if dry_run else []})
    elif not quiet:
        for key in keys:
            click.echo(f"{'would delete' if dry_run else 'deleted'} {visible(key)}")


def _keys(entries: Entries, names: tuple[str, ...], *, is_deep: bool) -> list[str]:
    """Return the keys that are to be deleted, each once."""
    found: dict[str, None] = {}
    for name in names:
        if is_glob(name):
            keys = [entry["key"] for entry in entries.matching(name)]
        elif is_deep or name.endswith("/"):
            keys = _below(entries, name, is_deep=is_deep)
        else:
            keys = [_array(entries, name)]
        if not keys:
            raise nothing_there(name)
        found.update(dict.fromkeys(keys))
    return list(found)


def _array(entries: Entries, name: str) -> str:
    try:
        return str(entries.open(name)["key"])
    except KeyNotFoundError:
        if next(entries.keys_of_level(f"{name}/"), None) is not None:
            raise _is_group(name) from None
        raise


def _is_group(name: str) -> Failure:
    return Failure(f"{name[:200]!r} is a group: -r deletes all arrays below it", WRONG_USAGE)


def _below(entries: Entries, name: str, *, is_deep: bool) -> list[str]:
    if not is_deep:
        raise _is_group(name)
    group = name.rstrip("/")
    if not group:
        # A variable of a shell that is not set is such a name.
        raise click.UsageError(f"{name!r} would be all arrays: '**' says so")
    # An array of the very name sorts before all others that begin so.
    own = (
        []
        if name.endswith("/")
        else [key for key in itertools.islice(entries.keys(group), 1) if key == group]
    )
    return [*own, *entries.keys(f"{group}/")]


def _ask(keys: list[str]) -> None:
    for key in keys[:NAMED]:
        click.echo(visible(key), err=True)
    if len(keys) > NAMED:
        click.echo(f"and {len(keys) - NAMED} more", err=True)
    what = "this array" if len(keys) == 1 else f"these {len(keys)} arrays"
    click.confirm(f"Delete {what}?", abort=True, err=True)


def _remove(store: TensorStore, keys: list[str], names: tuple[str, ...]) -> None:
    if len(keys) == 1:
        del store[keys[0]]
        return
    # One request deletes all below a prefix, however many they are. A transaction names each.
    if len(names) == 1 and names[0].endswith("/") and not is_glob(names[0]):
        store.remove_all(names[0])
        return
    with store.transaction() as tx:
        for key in keys:
            del tx[key]


COMMANDS = {"cp": cp, "mv": mv, "rm": rm}
