"""``import`` and ``export``: files with all that is kept in them, attributes, dims and coordinates."""

from __future__ import annotations

from pathlib import Path

import click

from tensorage.cli.commands import (
    command,
    force_option,
    json_option,
    owner_option,
    project_options,
    quiet_option,
)
from tensorage.cli.completing import keys_below
from tensorage.cli.connections import Choice, connect
from tensorage.cli.failures import NOT_FOUND, Failure
from tensorage.cli.output import print_json, visible
from tensorage.cli.putting import engine_option

__all__ = ["COMMANDS"]


@command(
    "import",
    "tensorage import run.h5 exp/run/",
    "tensorage import weights.npz ckpt/ --skip optimizer --engine storage --force",
)
@click.argument("file", metavar="FILE")
@click.argument("prefix", default="", shell_complete=keys_below)
@click.option(
    "--skip",
    multiple=True,
    metavar="NAME",
    help="Array or group of the file to leave out. Repeat it for more.",
)
@engine_option
@force_option
@quiet_option
@json_option
@project_options
def import_(
    file: str,
    prefix: str,
    *,
    skip: tuple[str, ...],
    engine: str | None,
    force: bool,
    quiet: bool,
    as_json: bool,
    choice: Choice,
) -> None:
    """Store all arrays of a .npy, .npz, .h5, .nc or .zarr, in one transaction: all of them, or none.

    Keys are PREFIX and then the names in the file. Attributes, dims and coordinates come with the arrays.
    """
    if not Path(file).exists():
        raise Failure(f"there is no file and no folder {file!r}", NOT_FOUND)
    with connect(choice) as connection:
        store = connection.store(quiet=quiet or as_json, engine=engine or "database", allow_overwrite=force)
        keys = store.import_file(file, prefix, skip=skip)
    if as_json:
        print_json(keys)
    elif not quiet:
        for key in keys:
            click.echo(f"stored {visible(key)}")


@command(
    "export",
    "tensorage export exp/run1 run1.h5",
    "tensorage export exp/run1/loss loss.npz --force",
    "tensorage export era5 era5.zarr",
)
@click.argument("key", shell_complete=keys_below)
@click.argument("file", metavar="FILE")
@owner_option
@force_option
@quiet_option
@json_option
@project_options
def export(
    key: str, file: str, *, owner: str | None, force: bool, quiet: bool, as_json: bool, choice: Choice
) -> None:
    """Write an array, or all arrays of a group, to a .npy, .npz, .h5, .nc or .zarr.

    Attributes, dims and coordinates go with the arrays, and a warning names what has no place in the format. With `/`
    at its end, KEY is a group. `/` alone stands for all arrays.
    """
    path = Path(file)
    if not force and (path.exists() or path.is_symlink()):
        raise Failure(f"{file} is there already, and is left as it was: --force replaces it")
    with connect(choice) as connection:
        connection.store(owner).export("" if key == "/" else key, path, overwrite=force)
    if as_json:
        print_json({"key": key, "file": file})
    elif not quiet:
        click.echo(f"wrote {file}")


COMMANDS = {"import": import_, "export": export}
