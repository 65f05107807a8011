"""The project itself: who is logged in, what is stored, and whether it is in order."""

from __future__ import annotations

import json
from typing import Any

import click

from tensorage.cli.administering import administrator_options, configuration_of
from tensorage.cli.commands import command, json_option, project_options
from tensorage.cli.connections import Choice, connect
from tensorage.cli.output import print_json, size_of

__all__ = ["COMMANDS"]


@command("whoami", "tensorage whoami", "tensorage whoami --local --json")
@json_option
@project_options
def whoami(*, as_json: bool, choice: Choice) -> None:
    """Tell the user and the project, once the login has worked."""
    with connect(choice) as connection:
        kept = connection.login.kept
        said = {
            "email": connection.login.ask_for_user().get("email") or None,
            "id": connection.user_id,
            "url": connection.backend_url,
            "kept_in": None if kept is None else kept.where,
        }
    if as_json:
        print_json(said)
    else:
        place = "" if said["kept_in"] is None else f", by the login that is kept in {said['kept_in']}"
        click.echo(f"{said['email'] or 'an anonymous account'} ({said['id']}) at {said['url']}{place}")


@command("usage", "tensorage usage", "tensorage usage --json")
@json_option
@project_options
def usage(*, as_json: bool, choice: Choice) -> None:
    """Tell what this user has stored, and may store.

    Bytes are those that count against the quota: elements with the overhead of their rows, objects, files, and entries
    of the catalogue.
    """
    with connect(choice) as connection:
        found = connection.call("tensorage_usage", {}, "asking for the usage")
    if as_json:
        print_json(found)
        return
    quota, most = found["quota_bytes"], found["quota_arrays"]
    click.echo(f"arrays: {found['arrays']}{', no quota' if most is None else f' of {most}'}")
    of_bytes = ", no quota" if quota is None else f" of {size_of(quota)}{_bar(found['bytes'], quota)}"
    click.echo(f"bytes:  {size_of(found['bytes'])}{of_bytes}")
    click.echo(f"files:  {size_of(found['file_bytes'])}, part of the bytes")


def _bar(used: int, most: int) -> str:
    """Draw how much of a quota is used."""
    part = min(used / most, 1.0) if most else 1.0
    return f"  [{'#' * round(20 * part):.<20}] {100 * part:.0f} %"


@command(
    "link",
    "tensorage link https://YOUR-PROJECT-REF.supabase.co sb_publishable_...",
    "tensorage link http://127.0.0.1:54321 sb_publishable_... --profile laptop",
)
@click.argument("url")
@click.argument("key")
@click.option(
    "--email", metavar="ADDRESS", help="Remember a user, too. The password is asked for, and saved."
)
@click.option("--profile", metavar="NAME", help="Name by which commands choose this project: --profile NAME.")
@json_option
def link(url: str, key: str, *, email: str | None, profile: str | None, as_json: bool) -> None:
    """Remember a project, so that later commands and sessions need neither its URL nor its key.

    It is saved in a file that only this user of the machine can read. With --email, a login is tried before anything is
    saved. Without it, the user comes from the environment or from a .env file.
    """
    from tensorage import config

    config.check_url(url)
    password = None
    if email is not None:
        password = click.prompt(f"Password of {email}", hide_input=True, err=True)
        # Before anything is saved: a wrong password would be taken by every later command.
        _try_login(Choice(url, key), email, password)
    path = config.save(config.Configuration(url, key, email, password), profile=profile)
    if as_json:
        print_json({"file": str(path), "url": url, "email": email, "profile": profile})
    else:
        click.echo(f"saved in {path}")


def _try_login(choice: Choice, email: str, password: str) -> None:
    from tensorage.cli.connections import Login
    from tensorage.config import Configuration

    login = Login(Configuration(choice.url, choice.key, email, password))
    try:
        login.headers()
    finally:
        login.end()


@command(
    "doctor",
    "tensorage doctor",
    "tensorage doctor --local",
    "tensorage doctor --url https://YOUR-PROJECT-REF.supabase.co --key sb_publishable_... --json",
)
@administrator_options
@json_option
def doctor(*, as_json: bool, **project: Any) -> None:
    """Look at a project, and tell what is wrong with it and what to do.

    Nothing is changed. A user logs in, if $USER_EMAIL and $USER_PASSWORD are set or `tensorage login` keeps a login, to
    see the project from within. The exit status is 1 if there is an error among the findings.
    """
    from tensorage.doctor.expected import load_expected
    from tensorage.doctor.findings import judge
    from tensorage.doctor.looking import look_at

    report = judge(look_at(configuration_of(**project)), load_expected())
    click.echo(json.dumps(report.as_json(), indent=2) if as_json else report.as_text())
    if not report.is_healthy:
        click.get_current_context().exit(1)


COMMANDS = {"whoami": whoami, "usage": usage, "link": link, "doctor": doctor}
