"""The ``tensorage`` command."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

# Each command loads the modules that it needs, so that all of them start quickly.
if TYPE_CHECKING:
    from tensorage.embedded.control import Running

_Command = TypeVar("_Command", bound=Callable[..., Any])


class _EmbeddedGroup(click.Group):
    """Commands that show the message of an error in place of its traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except ModuleNotFoundError as error:
            raise click.ClickException(
                f"the embedded backend needs {error.name!r}, which is not installed: "
                "pip install 'tensorage[local]>=0.2'"
            ) from error
        except RuntimeError as error:
            from tensorage.embedded.folder import EmbeddedError

            # Any other RuntimeError is a bug, whose traceback is needed.
            if isinstance(error, EmbeddedError):
                raise click.ClickException(str(error)) from error
            raise


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
    r"""Start the backend, or find that it runs.

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
    r"""Stop the backend. The data stays.

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
    r"""Tell where the backend is, and its keys.

    \b
    Examples:
      tensorage local status
      eval "$(tensorage local status -o env)"; curl "$API_URL/health"
    """
    from tensorage.embedded import control

    running = control.status(data_dir)
    if running is None:
        raise click.ClickException(
            f"the backend is not running: start it with `tensorage local start{_same_folder(data_dir)}`"
        )
    click.echo(_as_text(running, data_dir) if output == "text" else _FORMATS[output](running))


@local.command()
@_data_dir_option
@click.option("--yes", is_flag=True, help="Do not ask.")
def reset(data_dir: str | None, yes: bool) -> None:
    r"""Stop the backend and remove all its data.

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
    r"""List the files of SQL that a Supabase project needs.

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
