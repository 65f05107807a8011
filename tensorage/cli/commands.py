"""Commands whose help has examples, and the options that many of them have."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click

from tensorage.cli.connections import Choice

__all__ = [
    "Command",
    "command",
    "data_dir_option",
    "force_option",
    "json_option",
    "owner_option",
    "project_options",
    "quiet_option",
    "yes_option",
]

_Function = TypeVar("_Function", bound=Callable[..., Any])

#: Heading of the options that name a project.
PROJECT = "Project"


class Command(click.Command):
    """A command with examples in its help.

    Parameters
    ----------
    examples
        Lines of a shell, each an example of its own.
    """

    def __init__(self, *args: Any, examples: Sequence[str] = (), **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.examples = tuple(examples)

    def format_help_text(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        super().format_help_text(ctx, formatter)
        if not self.examples:
            return
        # Written as they are, and never wrapped: they are there to be copied.
        with formatter.section("Example" if len(self.examples) == 1 else "Examples"):
            for example in self.examples:
                formatter.write(f"{'':{formatter.current_indent}}{example}\n")

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        own: list[tuple[str, str]] = []
        of_project: list[tuple[str, str]] = []
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            # Arguments are in the line of the usage, and newer versions of click list them here as well.
            if record is not None and isinstance(parameter, click.Option):
                (of_project if isinstance(parameter, _ProjectOption) else own).append(record)
        for heading, records in (("Options", own), (PROJECT, of_project)):
            if records:
                with formatter.section(heading):
                    formatter.write_dl(records)


def command(name: str, *examples: str) -> Callable[[Callable[..., Any]], Command]:
    """Make a command with examples in its help."""
    return click.command(name, cls=Command, examples=examples)


class _ProjectOption(click.Option):
    """An option that names a project, which the help lists apart."""


def project_options(function: _Function) -> _Function:
    """Add the options that name a project. The function gets them as `choice`."""

    @functools.wraps(function)
    def wrapper(
        *args: Any,
        url: str | None,
        key_: str | None,
        is_local: bool,
        data_dir: str | None,
        profile: str | None,
        **rest: Any,
    ) -> Any:
        choice = Choice(url, key_, is_local, data_dir, profile)
        choice.check()
        return function(*args, choice=choice, **rest)

    options = [
        click.option("--url", cls=_ProjectOption, metavar="URL", help="URL of the project.  [default: as configured]"),
        click.option(
            "--key", "key_", cls=_ProjectOption, metavar="KEY",
            help="Publishable key of the project.  [default: as configured]",
        ),
        click.option(
            "--profile", cls=_ProjectOption, metavar="NAME", envvar="TENSORAGE_PROFILE",
            help="Project that `tensorage link --profile NAME` remembers.  [default: $TENSORAGE_PROFILE]",
        ),
        click.option(
            "--local", "is_local", cls=_ProjectOption, is_flag=True,
            help="Take the embedded backend of this machine, and its own user.",
        ),
        data_dir_option_of(_ProjectOption),
    ]  # fmt: skip
    made: Any = wrapper
    for option in reversed(options):
        made = option(made)
    return made  # type: ignore[no-any-return] # the decorators of click return what they are given


def data_dir_option_of(kind: type[click.Option]) -> Callable[[_Function], _Function]:
    return click.option(
        "--data-dir",
        cls=kind,
        type=click.Path(file_okay=False),
        help="Folder of the embedded backend.  [default: $TENSORAGE_DATA_DIR, or a folder of the user's own]",
    )


data_dir_option = data_dir_option_of(click.Option)

json_option = click.option(
    "--json", "as_json", is_flag=True, help='Print JSON: see the page "The command line".'
)
quiet_option = click.option("-q", "--quiet", is_flag=True, help="Print neither a bar nor what was done.")
yes_option = click.option("-y", "--yes", is_flag=True, help="Do not ask.")
force_option = click.option("-f", "--force", is_flag=True, help="Replace what is there.")
owner_option = click.option(
    "--owner", metavar="WHO", help="Arrays that somebody else shares: an address, or the id of an account."
)
