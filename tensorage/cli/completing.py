"""Completion of keys in the shell, and the command that tells how to switch completion on."""

from __future__ import annotations

import click
from click.shell_completion import CompletionItem

from tensorage.cli.commands import command
from tensorage.cli.connections import Choice, connect

__all__ = ["COMMANDS", "keys_below"]

#: Most keys that are looked at: those of one answer.
MOST = 1000


def keys_below(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete a key by one request. Nothing is completed where that fails."""
    del param
    try:
        known = ctx.params
        choice = Choice(
            known.get("url"), known.get("key_"), bool(known.get("is_local")), known.get("data_dir"),
            known.get("profile"),
        )  # fmt: skip
        arguments = {"prefix": incomplete, "after": "", "max_rows": MOST}
        if known.get("owner"):
            arguments["owner"] = known["owner"]
        with connect(choice) as connection:
            keys: list[str] = connection.call("tensorage_list", arguments, "completing keys")
    except Exception:  # noqa: BLE001 - a shell that completes has no place for messages
        return []
    return [CompletionItem(end) for end in ends_of(keys, incomplete)]


def ends_of(keys: list[str], begin: str) -> list[str]:
    """Return what a begun key may go on with, up to the next ``/``, and further where there is one way to go on.

    Shells set a blank behind a word that is the only one, which would end the key at a group.

    >>> ends_of(["exp/run1/a", "exp/run2/b"], "e")
    ['exp/run1/', 'exp/run2/']
    """
    ends = {_up_to_slash(key, len(begin)) for key in keys}
    while len(ends) == 1 and (only := next(iter(ends))).endswith("/") and only not in keys:
        ends = {_up_to_slash(key, len(only)) for key in keys}
    return sorted(ends)


def _up_to_slash(key: str, begin: int) -> str:
    at = key.find("/", begin)
    return key if at < 0 else key[: at + 1]


#: Lines that switch completion on, and the file where they belong.
_LINES = {
    "bash": ('eval "$(_TENSORAGE_COMPLETE=bash_source tensorage)"', "~/.bashrc"),
    "zsh": ('eval "$(_TENSORAGE_COMPLETE=zsh_source tensorage)"', "~/.zshrc, behind compinit"),
    "fish": (
        "_TENSORAGE_COMPLETE=fish_source tensorage | source",
        "~/.config/fish/completions/tensorage.fish",
    ),
}


@command("completion", "tensorage completion bash >> ~/.bashrc", "tensorage completion fish")
@click.argument("shell", type=click.Choice(sorted(_LINES)))
def completion(shell: str) -> None:
    """Print the line that makes a shell complete commands, options and keys, and where the line belongs.

    Completing a key logs in, and asks the project once.
    """
    line, place = _LINES[shell]
    click.echo(f"# Completion of tensorage, for {place}\n{line}")


COMMANDS = {"completion": completion}
