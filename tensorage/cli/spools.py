"""``tensorage sync``: what a background writer has left in its spool."""

from __future__ import annotations

import contextlib
import json
from typing import TYPE_CHECKING, Any

import click

from tensorage.cli.commands import command, json_option, project_options, quiet_option
from tensorage.cli.connections import Choice

if TYPE_CHECKING:
    from tensorage.background.spool.sync import Left
    from tensorage.session import BackendSession

__all__ = ["COMMANDS"]


@command(
    "sync",
    "tensorage sync run/spool --dry-run",
    "tensorage sync run/spool",
    "tensorage sync run/spool --drop 17 --retry",
)
@click.argument("folder", type=click.Path(file_okay=False))
@click.option("--dry-run", is_flag=True, help="List what is left. Nothing is sent, and no login is needed.")
@json_option
@quiet_option
@click.option("--retry", is_flag=True, help="Send entries again that the project has refused.")
@click.option(
    "--drop", type=click.IntRange(1), multiple=True, metavar="NUMBER", help="Delete an entry first, unsent."
)
@click.option("--skip-damaged", is_flag=True, help="Move damaged entries to FOLDER/damaged first.")
@click.option("--moved", is_flag=True, help="The project of the spool has another URL than before.")
@project_options
def sync(
    folder: str,
    *,
    dry_run: bool,
    as_json: bool,
    quiet: bool,
    retry: bool,
    drop: tuple[int, ...],
    skip_damaged: bool,
    moved: bool,
    choice: Choice,
) -> None:
    """Send what a background writer has left in its spool FOLDER, in order, each entry once.

    The exit status is 1 if entries are left that could not be sent.
    """
    from tensorage.background.spool.sync import list_left

    if dry_run:
        if retry or drop or skip_damaged or moved:
            raise click.UsageError(
                "--dry-run only lists: leave --retry, --drop, --skip-damaged and --moved out"
            )
        _print_spool(folder, None, list_left(folder), as_json=as_json)
        return
    told = _Told(is_quiet=as_json or quiet)
    left = _sync(folder, told, choice, retry=retry, drop=drop, skip_damaged=skip_damaged, is_moved=moved)
    if as_json or left or not quiet:
        _print_spool(folder, told.count, left, as_json=as_json)
    if left:
        click.get_current_context().exit(1)


class _Told:
    """Counts the entries that were sent, and tells of each on stderr."""

    def __init__(self, *, is_quiet: bool) -> None:
        self.count = 0
        self._is_quiet = is_quiet

    def __call__(self, entry: object) -> None:
        self.count += 1
        # Keep sending even if stderr is closed.
        with contextlib.suppress(OSError):
            if not self._is_quiet:
                click.echo(f"sent {entry}", err=True)


def _sync(folder: str, told: _Told, choice: Choice, **how: Any) -> list[Left]:
    from tensorage.background.spool.folder import SpoolFolder
    from tensorage.background.spool.sync import sync as send

    # A folder that is no spool is told before anybody logs in.
    SpoolFolder.join(folder)
    session = _session(choice)
    try:
        return send(folder, session(), on_done=told, **how)
    finally:
        session.logout()


def _session(choice: Choice) -> BackendSession:
    """Return a session of the configured user, or of the embedded backend's own."""
    from tensorage.auth import local
    from tensorage.session import BackendSession

    if choice.is_local:
        return local(choice.data_dir)
    login = choice.login()
    found = choice.project()
    # A session and no `Connection`: sending may take hours, for which a session renews its login.
    session = BackendSession(found.email, found.password, found.backend_url, found.backend_key)
    if login.kept is not None:
        session.login.borrow(login.kept)
    else:
        session.login_by_mail()
    return session


def _print_spool(folder: str, sent: int | None, left: list[Left], *, as_json: bool) -> None:
    if as_json:
        said = {"folder": folder, "sent": sent, "left": [one.as_json() for one in left]}
        click.echo(json.dumps(said, indent=2))
        return
    for one in left:
        reason = "" if one.reason is None else f": {one.reason}"
        click.echo(f"{one.number:>8} {one.state:<8} {one.nbytes:>12} bytes  {one.what or '?'}{reason}")
    counted = "" if sent is None else f"{sent} sent, "
    click.echo(f"{counted}{len(left)} left")


COMMANDS = {"sync": sync}
