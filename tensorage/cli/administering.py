"""The project and the service key of commands for its administrator."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from tensorage.cli.commands import data_dir_option
from tensorage.cli.connections import NO_PROJECT
from tensorage.config import Configuration, configure
from tensorage.errors import ConfigurationError

__all__ = ["administrator_options", "configuration_of"]

_Function = TypeVar("_Function", bound=Callable[..., Any])


def administrator_options(function: _Function) -> _Function:
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
        data_dir_option,
    ]  # fmt: skip
    # A decorator that is applied last is listed first in the help.
    for option in reversed(options):
        function = option(function)
    return function


def configuration_of(
    url: str | None, key: str | None, service_key: str | None, is_local: bool, data_dir: str | None
) -> Configuration:
    """Return the project that the options and the configuration name, with the service key if there is one."""
    if not is_local:
        if data_dir is not None:
            raise click.UsageError("--data-dir is of the embedded backend: give --local, too")
        project = configure(backend_url=url, backend_key=key, service_key=service_key, for_administrator=True)
        if project.backend_url is None:
            raise ConfigurationError(NO_PROJECT)
        return project
    if url is not None or key is not None or service_key is not None:
        raise click.UsageError(
            "--local has the URL and the keys of its own: leave --url, --key and --service-key out"
        )
    from tensorage.cli.local import running_backend

    running = running_backend(data_dir)
    # Without a login: the folder's own user is there only once somebody has logged in as this user.
    return Configuration(running.api_url, running.anon_key, service_key=running.service_role_key)
