"""``tensorage local``: the embedded backend of this machine."""

from __future__ import annotations

import json
import shlex
from typing import TYPE_CHECKING, Any

import click

from tensorage.cli.commands import command, data_dir_option, yes_option
from tensorage.cli.failures import Failure

if TYPE_CHECKING:
    from tensorage.embedded.control import Running

__all__ = ["COMMANDS", "running_backend"]


class _EmbeddedGroup(click.Group):
    """Commands that say which extra is missing."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except ModuleNotFoundError as error:
            raise _missing_extra(error) from error


def _missing_extra(error: ModuleNotFoundError) -> Failure:
    return Failure(
        f"the embedded backend needs {error.name!r}, which is not installed: pip install 'tensorage[local]>=0.2'"
    )


@click.group("local", cls=_EmbeddedGroup)
def local() -> None:
    """Run a Supabase-compatible backend on this machine.

    It keeps its data between runs, and serves every program that names the same data folder.
    """


@command(
    "start",
    "tensorage local start",
    "tensorage local start --data-dir ./data --port 54321",
    "tensorage local start --ends-with $$",
)
@data_dir_option
@click.option(
    "--port", type=click.IntRange(0, 65535), help="Port of the API.  [default: the last one, or any]"
)
@click.option("--foreground", is_flag=True, help="Stay here, logging to the terminal, until Ctrl-C.")
@click.option(
    "--ends-with", type=click.IntRange(1), metavar="PID",
    help="Process with which the backend ends.  [default: $TENSORAGE_ENDS_WITH, or none]",
)  # fmt: skip
def start(data_dir: str | None, port: int | None, foreground: bool, ends_with: int | None) -> None:
    """Start the backend, or find that it runs."""
    from tensorage.embedded import control

    if foreground:
        _serve_here(data_dir, port, ends_with)
    else:
        click.echo(_as_text(control.start(data_dir, port=port, ends_with=ends_with), data_dir))


@command("stop", "tensorage local stop", "tensorage local stop --data-dir ./data")
@data_dir_option
def stop(data_dir: str | None) -> None:
    """Stop the backend. The data stays."""
    from tensorage.embedded import control

    # Stopping twice is no error, so that scripts can clean up without looking first.
    click.echo("stopped" if control.stop(data_dir) else "it was not running")


@command(
    "status", "tensorage local status", 'eval "$(tensorage local status -o env)"; curl "$API_URL/health"'
)
@data_dir_option
@click.option(
    "-o", "--output", type=click.Choice(["text", "json", "env"]), default="text", show_default=True,
    help="json and env include the keys and passwords.",
)  # fmt: skip
def status(data_dir: str | None, output: str) -> None:
    """Tell where the backend is, and its keys."""
    running = running_backend(data_dir)
    click.echo(_as_text(running, data_dir) if output == "text" else _FORMATS[output](running))


@command("reset", "tensorage local reset --data-dir ./data --yes")
@data_dir_option
@click.option("--dry-run", is_flag=True, help="Tell what would be removed, and remove nothing.")
@yes_option
def reset(data_dir: str | None, *, dry_run: bool, yes: bool) -> None:
    """Stop the backend and remove all its data."""
    from tensorage.embedded import control
    from tensorage.embedded.folder import DataFolder, resolve_data_dir

    path = resolve_data_dir(data_dir)
    if DataFolder.find(data_dir) is None:
        click.echo(f"there is no data in {path}")
        return
    if dry_run:
        click.echo(f"would remove {path} and every array and user in it")
        return
    if not yes:
        click.confirm(f"Remove {path} and every array and user in it?", abort=True)
    control.reset(data_dir)
    click.echo(f"removed {path}")


for _command in (start, stop, status, reset):
    local.add_command(_command)


def running_backend(data_dir: str | None) -> Running:
    """Return the embedded backend of a data folder, which has to run."""
    try:
        from tensorage.embedded import control
    except ModuleNotFoundError as error:
        raise _missing_extra(error) from error

    running = control.status(data_dir)
    if running is None:
        raise Failure(
            f"the backend is not running: start it with `tensorage local start{_same_folder(data_dir)}`"
        )
    return running


def _serve_here(data_dir: str | None, port: int | None, ends_with: int | None) -> None:
    from tensorage.embedded import control, lifetime, server

    # Found before the backend begins: a process that is gone already would never end it.
    companion = lifetime.find_companion(ends_with)
    running = control.status(data_dir)
    if running is not None:
        raise Failure(f"it already runs, as process {running.pid}: {running.api_url}")
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

COMMANDS = {"local": local}
