"""The login that lasts: kept for this user of the machine, and ended."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from tensorage.cli.commands import command, json_option, project_options
from tensorage.cli.connections import Choice
from tensorage.cli.output import print_json

if TYPE_CHECKING:
    from tensorage.config import Configuration
    from tensorage.signin.auth_requests import AuthServer, SignedIn
    from tensorage.signin.kept_tokens import Place

__all__ = ["COMMANDS"]

_OF_LOCAL = "--local has a user of its own, whom every command logs in by itself: no login is kept for it"


@command(
    "login",
    "tensorage login me@lab.org",
    "printenv LAB_PASSWORD | tensorage login me@lab.org --password-stdin --keep-in file",
)
@click.argument("email", required=False)
@click.option(
    "--password-stdin", "reads_stdin", is_flag=True, help="Read the password from stdin, its first line."
)
@click.option("--anonymous", is_flag=True, help="Make a new account without an address, and log in as it.")
@click.option(
    "--keep-in",
    type=click.Choice(["keyring", "file"]),
    help="Place of the tokens.  [default: the system's keyring if there is one, else a file of yours]",
)
@json_option
@project_options
def login(
    email: str | None,
    *,
    reads_stdin: bool,
    anonymous: bool,
    keep_in: Place | None,
    as_json: bool,
    choice: Choice,
) -> None:
    """Log in once, for all later commands and sessions of this user of the machine.

    The password is asked for, and kept nowhere. The tokens that the project gives for it are kept, in the system's
    keyring or in a file that only this user can read, until `tensorage logout`. EMAIL is by default the configured
    address. If none is configured, commands and sessions work as the account that has logged in last.
    """
    from tensorage.config import note_user
    from tensorage.signin.kept import check_can_keep, keep_login

    if choice.is_local:
        raise click.UsageError(_OF_LOCAL)
    if anonymous and (email is not None or reads_stdin):
        raise click.UsageError("--anonymous has neither an address nor a password")
    project = choice.project()
    url, key = _project_of(project)
    # Before the password is asked for, and sent.
    check_can_keep(url)
    answer = _sign_in(url, key, None if anonymous else email or project.email, anonymous, reads_stdin)
    kept = keep_login(url, answer, key, keep_in)
    if choice.profile is not None and kept.email is not None:
        note_user(choice.profile, kept.email)
    if as_json:
        print_json({"email": kept.email, "id": kept.user_id, "url": url, "kept_in": kept.where})
    else:
        click.echo(f"logged in as {kept.name} at {url}, kept in {kept.where}")
    _warn_of_others(choice.project(), kept.email)


@command("logout", "tensorage logout", "tensorage logout me@lab.org")
@click.argument("email", required=False)
@click.option("--here-only", is_flag=True, help="Forget the login without asking the project to end it.")
@json_option
@project_options
def logout(email: str | None, *, here_only: bool, as_json: bool, choice: Choice) -> None:
    """End the kept login at the project, and forget it here. No other login of the account ends.

    EMAIL is by default the configured address, or else the account that has logged in last.
    """
    from tensorage.signin.kept import find_login

    if choice.is_local:
        raise click.UsageError(_OF_LOCAL)
    project = choice.project()
    url, key = _project_of(project)
    kept = find_login(url, email or project.email)
    if kept is not None:
        if here_only:
            kept.forget()
        else:
            kept.end(key)
    if as_json:
        print_json({"url": url, "email": None if kept is None else kept.email, "was_kept": kept is not None})
    elif kept is None:
        who = f" of {email or project.email}" if email or project.email else ""
        click.echo(f"no login{who} is kept for {url}")
    else:
        where = "here; it goes on at the project until it expires" if here_only else f"at {url}"
        click.echo(f"logged out {kept.name} {where}")
        if (other := find_login(url, project.email)) is not None:
            click.echo(f"{other.name} is logged in, too: commands work as this account now")


def _warn_of_others(project: Configuration, email: str | None) -> None:
    """Say if the configuration names a user, so that the kept login is not the one that is used."""
    if project.password is not None:
        what, why = "a password", "USER_PASSWORD, a .env file or `tensorage link --email`"
    elif project.email is not None and project.email.lower() != email:
        what, why = "another address", "USER_EMAIL or a .env file"
    else:
        return
    click.echo(f"Note: {what} is configured, too ({why}), and comes before the kept login.", err=True)


def _project_of(project: Configuration) -> tuple[str, str]:
    from tensorage.config import check_key, check_url

    assert project.backend_url is not None
    assert project.backend_key is not None
    return check_url(project.backend_url).rstrip("/"), check_key(project.backend_key)


def _sign_in(url: str, key: str, email: str | None, anonymous: bool, reads_stdin: bool) -> SignedIn:
    from tensorage.signin.auth_requests import AuthServer

    server = AuthServer(url, key)
    try:
        return server.make_anonymous() if anonymous else _sign_in_by_mail(server, email, reads_stdin)
    finally:
        server.close()


def _sign_in_by_mail(server: AuthServer, email: str | None, reads_stdin: bool) -> SignedIn:
    if email is None:
        if reads_stdin:
            raise click.UsageError("--password-stdin needs an EMAIL")
        email = click.prompt("E-mail address", err=True)
    if reads_stdin:
        # The end of the line alone: a password may begin or end with blanks.
        password = sys.stdin.readline().rstrip("\r\n")
        if not password:
            raise click.UsageError("there is no password on stdin")
    else:
        password = click.prompt(f"Password of {email}", hide_input=True, err=True)
    return server.log_in(email, password)


COMMANDS = {"login": login, "logout": logout}
