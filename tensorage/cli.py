"""The ``tensorage`` command."""

from __future__ import annotations

import contextlib
import json
import shlex
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

# Each command loads the modules that it needs, so that all of them start quickly.
if TYPE_CHECKING:
    from tensorage.background.spool.sync import Left
    from tensorage.config import Configuration
    from tensorage.embedded.control import Running
    from tensorage.quotas import UserQuota
    from tensorage.session import BackendSession

_Command = TypeVar("_Command", bound=Callable[..., Any])


class _EmbeddedGroup(click.Group):
    """Commands that show the message of an error in place of its traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except ModuleNotFoundError as error:
            raise _missing_extra(error) from error
        except RuntimeError as error:
            from tensorage.embedded.folder import EmbeddedError

            # Any other RuntimeError is a bug, whose traceback is needed.
            if isinstance(error, EmbeddedError):
                raise click.ClickException(str(error)) from error
            raise


def _missing_extra(error: ModuleNotFoundError) -> click.ClickException:
    return click.ClickException(
        f"the embedded backend needs {error.name!r}, which is not installed: pip install 'tensorage[local]>=0.2'"
    )


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="tensorage")
def main() -> None:
    """Keep numpy arrays of any size in a Supabase project, and get them back by numpy slicing."""


@main.group(cls=_EmbeddedGroup)
def local() -> None:
    """Run a Supabase-compatible backend on this machine.

    It keeps its data between runs, and serves every program that names the same data folder.
    """


def _data_dir_option(command: _Command) -> _Command:
    return click.option(
        "--data-dir",
        type=click.Path(file_okay=False),
        help="Where the data is.  [default: $TENSORAGE_DATA_DIR, or a folder of the user's own]",
    )(command)


@local.command()
@_data_dir_option
@click.option(
    "--port", type=click.IntRange(0, 65535), help="Port of the API.  [default: the last one, or any]"
)
@click.option("--foreground", is_flag=True, help="Stay here, logging to the terminal, until Ctrl-C.")
@click.option(
    "--ends-with", type=click.IntRange(1), metavar="PID",
    help="Process with which the backend ends.  [default: $TENSORAGE_ENDS_WITH, or none]",
)  # fmt: skip
def start(data_dir: str | None, port: int | None, foreground: bool, ends_with: int | None) -> None:
    """Start the backend, or find that it runs.

    \b
    Examples:
      tensorage local start --data-dir ./data --port 54321
      tensorage local start --ends-with $$
    """
    from tensorage.embedded import control

    if foreground:
        _serve_here(data_dir, port, ends_with)
    else:
        click.echo(_as_text(control.start(data_dir, port=port, ends_with=ends_with), data_dir))


@local.command()
@_data_dir_option
def stop(data_dir: str | None) -> None:
    """Stop the backend. The data stays.

    \b
    Example:
      tensorage local stop --data-dir ./data
    """
    from tensorage.embedded import control

    # Stopping twice is no error, so that scripts can clean up without looking first.
    click.echo("stopped" if control.stop(data_dir) else "it was not running")


@local.command()
@_data_dir_option
@click.option(
    "-o", "--output", type=click.Choice(["text", "json", "env"]), default="text", show_default=True,
    help="json and env include the keys and passwords.",
)  # fmt: skip
def status(data_dir: str | None, output: str) -> None:
    """Tell where the backend is, and its keys.

    \b
    Examples:
      tensorage local status
      eval "$(tensorage local status -o env)"; curl "$API_URL/health"
    """
    running = _running(data_dir)
    click.echo(_as_text(running, data_dir) if output == "text" else _FORMATS[output](running))


@local.command()
@_data_dir_option
@click.option("--yes", is_flag=True, help="Do not ask.")
def reset(data_dir: str | None, yes: bool) -> None:
    """Stop the backend and remove all its data.

    \b
    Example:
      tensorage local reset --data-dir ./data --yes
    """
    from tensorage.embedded import control
    from tensorage.embedded.folder import DataFolder, resolve_data_dir

    path = resolve_data_dir(data_dir)
    if DataFolder.find(data_dir) is None:
        click.echo(f"there is no data in {path}")
        return
    if not yes:
        click.confirm(f"Remove {path} and every array and user in it?", abort=True)
    control.reset(data_dir)
    click.echo(f"removed {path}")


@main.command()
@click.option("--sql", is_flag=True, help="Print the SQL itself, to be pasted into Supabase's SQL editor.")
def migrations(sql: bool) -> None:
    """List the files of SQL that a Supabase project needs.

    \b
    Examples:
      tensorage migrations
      tensorage migrations --sql | psql "$DB_URL"
    """
    from tensorage.migrations import migration_files

    try:
        files = migration_files()
    except FileNotFoundError as error:
        raise click.ClickException(str(error)) from error
    if not sql:
        click.echo("\n".join(str(file) for file in files))
        return
    # One transaction: psql goes on after the statement that refuses a project, unless it is told not to.
    click.echo("begin;\n")
    for file in files:
        click.echo(f"-- {file.name}\n\n{file.read_text('utf-8')}")
    click.echo("commit;")


def _project_options(command: _Command) -> _Command:
    """Add the options that name a project and the service key."""
    options = [
        click.option("--url", metavar="URL", help="URL of the project.  [default: as configured]"),
        click.option(
            "--key", metavar="KEY", help="Publishable key of the project.  [default: as configured]"
        ),
        click.option(
            "--service-key", metavar="KEY",
            help="Secret key of the project. Other users of this machine see what is on a command line: rather set "
            "$SUPABASE_SERVICE_ROLE_KEY, which is the default.",
        ),
        click.option("--local", "is_local", is_flag=True, help="Take the embedded backend, and its keys."),
        _data_dir_option,
    ]  # fmt: skip
    for option in reversed(options):
        command = option(command)
    return command


class _ProjectCommand(click.Command):
    """A command that shows a named error in one line, in place of its traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        from tensorage.errors import TensorageError

        try:
            return super().invoke(ctx)
        except TensorageError as error:
            raise click.ClickException(f"{type(error).__name__}: {' '.join(str(error).split())}") from error


@main.command(cls=_ProjectCommand)
@_project_options
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def doctor(as_json: bool, **project: Any) -> None:
    """Look at a project, and tell what is wrong with it and what to do.

    Nothing is changed. A user logs in, if $USER_EMAIL and $USER_PASSWORD are set, to see the project from within. The
    exit status is 1 if there is an error among the findings.

    \b
    Examples:
      tensorage doctor
      tensorage doctor --local
      tensorage doctor --url https://YOUR-PROJECT-REF.supabase.co --key sb_publishable_... --json
    """
    from tensorage.doctor.expected import load_expected
    from tensorage.doctor.findings import judge
    from tensorage.doctor.looking import look_at

    report = judge(look_at(_configuration(**project)), load_expected())
    click.echo(json.dumps(report.as_json(), indent=2) if as_json else report.as_text())
    if not report.is_healthy:
        click.get_current_context().exit(1)


@main.command(cls=_ProjectCommand)
@click.argument("folder", type=click.Path(file_okay=False))
@click.option("--dry-run", is_flag=True, help="List what is left. Nothing is sent, and no login is needed.")
@click.option(
    "--json", "as_json", is_flag=True, help="Print JSON: the folder, what was sent, and what is left."
)
@click.option("--retry", is_flag=True, help="Send entries again that the project has refused.")
@click.option(
    "--drop", type=click.IntRange(1), multiple=True, metavar="NUMBER", help="Delete an entry first, unsent."
)
@click.option("--skip-damaged", is_flag=True, help="Move damaged entries to FOLDER/damaged first.")
@click.option("--moved", is_flag=True, help="The project of the spool has another URL than before.")
@click.option("--url", metavar="URL", help="URL of the project.  [default: as configured]")
@click.option("--key", metavar="KEY", help="Publishable key of the project.  [default: as configured]")
@click.option("--local", "is_local", is_flag=True, help="Take the embedded backend, and its own user.")
@_data_dir_option
def sync(
    folder: str,
    *,
    dry_run: bool,
    as_json: bool,
    retry: bool,
    drop: tuple[int, ...],
    skip_damaged: bool,
    moved: bool,
    **project: Any,
) -> None:
    """Send what a background writer has left in its spool FOLDER, in order, each entry once.

    The user is the one of $USER_EMAIL and $USER_PASSWORD, as configured. The exit status is 1 if entries are left that
    could not be sent.

    \b
    Examples:
      tensorage sync run/spool --dry-run
      tensorage sync run/spool
      tensorage sync run/spool --drop 17 --retry
    """
    from tensorage.background.spool.sync import list_left

    if dry_run:
        if retry or drop or skip_damaged or moved:
            raise click.UsageError(
                "--dry-run only lists: leave --retry, --drop, --skip-damaged and --moved out"
            )
        _print_spool(folder, None, list_left(folder), as_json=as_json)
        return
    told = _Told(is_quiet=as_json)
    left = _sync(folder, told, project, retry=retry, drop=drop, skip_damaged=skip_damaged, is_moved=moved)
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
        # Entries are sent, be it that nobody listens any more.
        with contextlib.suppress(OSError):
            if not self._is_quiet:
                click.echo(f"sent {entry}", err=True)


def _sync(folder: str, told: _Told, project: dict[str, Any], **how: Any) -> list[Left]:
    from tensorage.background.spool.sync import sync as send

    # A folder that is no spool is told before anybody logs in.
    _check_spool(folder)
    session = _session(**project)
    try:
        return send(folder, session(), on_done=told, **how)
    finally:
        session.logout()


def _check_spool(folder: str) -> None:
    from tensorage.background.spool.folder import SpoolFolder

    SpoolFolder.join(folder)


def _session(url: str | None, key: str | None, is_local: bool, data_dir: str | None) -> BackendSession:
    """Return a session of the configured user, or of the embedded backend's own."""
    from tensorage.auth import local
    from tensorage.session import BackendSession

    if not is_local:
        if data_dir is not None:
            raise click.UsageError("--data-dir is of the embedded backend: give --local, too")
        session = BackendSession(backend_url=url, backend_key=key)
        session.login_by_mail()
        return session
    if url is not None or key is not None:
        raise click.UsageError("--local has the URL and the key of its own: leave --url and --key out")
    return local(data_dir)


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


@main.group()
def quota() -> None:
    """Set and show how much users may store. It takes the project's service key."""


@quota.command("set", cls=_ProjectCommand)
@click.argument("who", required=False)
@click.option("--bytes", "max_bytes", metavar="SIZE", help="Most bytes: 500MB, 10GiB, a number, or none.")
@click.option("--arrays", "max_arrays", metavar="NUMBER", help="Most arrays: a number, or none.")
@_project_options
def set_quota(who: str | None, max_bytes: str | None, max_arrays: str | None, **project: Any) -> None:
    """Set the quota of WHO, or the default one of all users.

    WHO is the confirmed address of an account, or its id. A limit that is not given stays as it is. `none` takes a
    limit away: a user has the default one then.

    \b
    Examples:
      tensorage quota set --bytes 10GB --arrays 1000
      tensorage quota set reader@lab.org --bytes none
    """
    from tensorage.quotas import KEEP, Quotas, parse_limit

    if max_bytes is None and max_arrays is None:
        raise click.UsageError("give --bytes, --arrays or both: nothing else is set")
    nbytes = KEEP if max_bytes is None else parse_limit(max_bytes, is_size=True)
    arrays = KEEP if max_arrays is None else parse_limit(max_arrays, is_size=False)
    with Quotas.open(_configuration(**project)) as quotas:
        now = quotas.set(who, nbytes, arrays)
    describe = _limit if who is None else _own_limit
    name = "default" if who is None else who
    click.echo(f"{name}: {describe(now.bytes, 'bytes')}, {describe(now.arrays, 'arrays')}")


@quota.command("show", cls=_ProjectCommand)
@click.argument("who", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print JSON: the default, and a list of users.")
@_project_options
def show_quota(who: str | None, as_json: bool, **project: Any) -> None:
    """Show the quota and the usage of WHO, or of all users.

    \b
    Examples:
      tensorage quota show
      tensorage quota show reader@lab.org --json
    """
    from dataclasses import asdict

    from tensorage.quotas import Quotas

    with Quotas.open(_configuration(**project)) as quotas:
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


def _configuration(
    url: str | None, key: str | None, service_key: str | None, is_local: bool, data_dir: str | None
) -> Configuration:
    """Return the project that the options and the configuration name, with the service key if there is one."""
    from tensorage.config import ENVIRONMENT, Configuration, configure
    from tensorage.errors import ConfigurationError

    if not is_local:
        if data_dir is not None:
            raise click.UsageError("--data-dir is of the embedded backend: give --local, too")
        project = configure(backend_url=url, backend_key=key, service_key=service_key, for_administrator=True)
        if project.backend_url is None:
            raise ConfigurationError(
                "no backend_url is configured: give --url and --key, or --local for the embedded backend, or set "
                f"{ENVIRONMENT['backend_url']} and {ENVIRONMENT['backend_key']} in the environment or in a .env file"
            )
        return project
    if url is not None or key is not None or service_key is not None:
        raise click.UsageError(
            "--local has the URL and the keys of its own: leave --url, --key and --service-key out"
        )
    running = _running(data_dir)
    # Without a login: the folder's own user is there only once somebody has logged in as this user.
    return Configuration(running.api_url, running.anon_key, service_key=running.service_role_key)


def _running(data_dir: str | None) -> Running:
    """Return the embedded backend of a data folder, which has to run."""
    try:
        from tensorage.embedded import control
    except ModuleNotFoundError as error:
        raise _missing_extra(error) from error

    running = control.status(data_dir)
    if running is None:
        raise click.ClickException(
            f"the backend is not running: start it with `tensorage local start{_same_folder(data_dir)}`"
        )
    return running


def _serve_here(data_dir: str | None, port: int | None, ends_with: int | None) -> None:
    from tensorage.embedded import control, lifetime, server

    companion = lifetime.find_companion(ends_with)
    running = control.status(data_dir)
    if running is not None:
        raise click.ClickException(f"it already runs, as process {running.pid}: {running.api_url}")
    server.run(server.Options(data_dir, port, foreground=True, ends_with=companion))


def _same_folder(data_dir: str | None) -> str:
    """Return the option that makes a suggested command act on the data folder of this command."""
    return "" if data_dir is None else f" --data-dir {shlex.quote(data_dir)}"


def _as_text(running: Running, data_dir: str | None) -> str:
    """Describe a running backend, without keys and passwords: a terminal may be watched or logged."""
    return (
        f"API URL: {running.api_url}\n"
        f"Data folder: {running.data_dir}\n"
        f"Process: {running.pid}\n"
        f"Keys and passwords: tensorage local status -o env{_same_folder(data_dir)}"
    )


def _as_json(running: Running) -> str:
    return json.dumps(running.as_dict(), indent=2)


def _as_env(running: Running) -> str:
    return "\n".join(f"{name}={shlex.quote(value)}" for name, value in running.as_dict().items())


_FORMATS = {"json": _as_json, "env": _as_env}


if __name__ == "__main__":
    main()
