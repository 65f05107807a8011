"""The program: its commands by name, and the list of them in the help."""

from __future__ import annotations

import importlib
from typing import Any

import click

from tensorage.cli.failures import STATUSES, one_line_errors

__all__ = ["main"]

#: Commands by subject, in the order of the help: the name of each, its module, and what it does in a few words. Written
#: here, so that neither the help of the program nor a call of one command loads the modules of all others.
SUBJECTS: dict[str, dict[str, tuple[str, str]]] = {
    "Look": {
        "ls": ("listing", "List arrays and groups."),
        "tree": ("listing", "Draw the keys as a tree."),
        "find": ("listing", "Find arrays by a pattern of keys, or by attributes."),
        "du": ("listing", "Add up what arrays take, group by group."),
        "info": ("describing", "Tell all that is known of an array."),
        "show": ("showing", "Draw a part of an array in the terminal, or as a PNG."),
    },
    "Read and write": {
        "get": ("getting", "Write an array, or a part of one, to a file or to stdout."),
        "cat": ("getting", "Print the elements of an array as text."),
        "put": ("putting", "Store a file, a folder or stdin."),
        "append": ("putting", "Add the rows of a file or of stdin to an array."),
        "create": ("putting", "Make an array that is filled later."),
        "cp": ("changing", "Copy an array or a group."),
        "mv": ("changing", "Rename an array or a group."),
        "rm": ("changing", "Delete arrays."),
        "import": ("files", "Store all arrays of a file, with what is kept with them."),
        "export": ("files", "Write an array or a group to a file, with what is kept with them."),
        "sync": ("spools", "Send what a background writer has left in its spool."),
    },
    "Share": {
        "share": ("sharing", "Let others use an array, or all below a prefix."),
        "unshare": ("sharing", "End shares."),
        "shares": ("sharing", "List shares."),
    },
    "Projects": {
        "login": ("logins", "Log in once, for later commands and sessions."),
        "logout": ("logins", "End the login that is kept."),
        "whoami": ("projects", "Tell the user and the project."),
        "link": ("projects", "Remember a project for this user of the machine."),
        "usage": ("projects", "Tell what this user has stored, and may store."),
        "quota": ("quotas", "Set and show how much users may store."),
        "migrations": ("migrating", "List the files of SQL that a project needs, or apply them."),
        "doctor": ("projects", "Look at a project, and tell what is wrong with it."),
        "local": ("local", "Run a Supabase-compatible backend on this machine."),
        "completion": ("completing", "Print what makes a shell complete commands and keys."),
    },
}

_COMMANDS = {name: module for commands in SUBJECTS.values() for name, (module, _) in commands.items()}


class Program(click.Group):
    """The group of all commands, which loads the module of a command when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        del ctx
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        del ctx
        if cmd_name not in _COMMANDS:
            return None
        module = importlib.import_module(f"tensorage.cli.{_COMMANDS[cmd_name]}")
        command: click.Command = module.COMMANDS[cmd_name]
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            import difflib

            # click has no suggestions of its own in its older versions, and repeats what was typed, however long.
            near = difflib.get_close_matches(args[0], _COMMANDS, 1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise click.UsageError(f"there is no command {args[0][:40]!r}.{hint}", ctx) from error

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        del ctx
        for subject, commands in SUBJECTS.items():
            with formatter.section(subject):
                formatter.write_dl([(name, words) for name, (_, words) in commands.items()])

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        del ctx
        with formatter.section("Exit status"):
            formatter.write_dl([(str(status), words) for status, words in STATUSES.items()])

    def invoke(self, ctx: click.Context) -> Any:
        with one_line_errors():
            return super().invoke(ctx)


@click.group(cls=Program, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="tensorage", prog_name="tensorage")
def main() -> None:
    """Keep numpy arrays of any size in a Supabase project, and get them back by numpy slicing.

    The project and the user come from the environment (SUPABASE_URL, SUPABASE_KEY, USER_EMAIL, USER_PASSWORD), from a
    .env file, or from `tensorage link`. Without a password there, `tensorage login` says who the user is. With --local,
    both are those of the embedded backend of this machine.
    """
