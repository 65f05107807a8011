"""``ls``, ``tree``, ``find`` and ``du``: the catalogue, in one request for each 1,000 arrays that it takes."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import click

from tensorage.cli.commands import command, json_option, owner_option, project_options
from tensorage.cli.completing import keys_below
from tensorage.cli.connections import Choice, connect
from tensorage.cli.entries import (
    Entries,
    describe,
    dtype_of_form,
    is_glob,
    kept_bytes,
    nothing_there,
    print_entries,
    shape_of,
    wanted_attrs,
)
from tensorage.cli.output import has_colour, print_json, print_lines, print_table, size_of, visible

__all__ = ["COMMANDS"]


@command(
    "ls",
    "tensorage ls",
    "tensorage ls -l exp/run1",
    "tensorage ls 'exp/*/loss'",
    "tensorage ls --owner reader@lab.org --json",
)
@click.argument("names", nargs=-1, metavar="[KEY|GROUP|GLOB]...", shell_complete=keys_below)
@click.option(
    "-l", "--long", "is_long", is_flag=True, help="Shape, dtype, stored size, engine, owner and age, too."
)
@click.option("-r", "-R", "--recursive", "is_deep", is_flag=True, help="All arrays below, and no groups.")
@owner_option
@json_option
@project_options
def ls(
    names: tuple[str, ...], *, is_long: bool, is_deep: bool, owner: str | None, as_json: bool, choice: Choice
) -> None:
    """List arrays and groups: all at the top, or those of a group, or those that fit a glob.

    In a glob, `*` stands for any characters but `/`, `**` for any characters, and `?` for one character. Quote it, so
    that the shell leaves it alone.
    """
    with connect(choice) as connection:
        entries = Entries(connection, owner)
        if as_json or is_long:
            # All at once, since columns are as wide as their widest word. Plain keys are printed page by page.
            found = [e for name in names or [""] for e in _entries(entries, name, is_deep=is_deep)]
            _print(found, as_json=as_json)
            return
        for name in names or [""]:
            print_lines(map(visible, _keys(entries, name, is_deep=is_deep)))


def _print(found: list[dict[str, Any] | str], *, as_json: bool) -> None:
    if as_json:
        print_json([{"kind": "group", "key": e} if isinstance(e, str) else describe(e) for e in found])
    else:
        print_entries(found)


def _keys(entries: Entries, name: str, *, is_deep: bool) -> Iterator[str]:
    if is_glob(name):
        return _some((entry["key"] for entry in entries.matching(name)), name)
    prefix = _prefix(name)
    below = entries.keys(prefix) if is_deep else entries.keys_of_level(prefix)
    return _or_array(below, entries, name, lambda entry: str(entry["key"]))


def _entries(entries: Entries, name: str, *, is_deep: bool) -> Iterator[Any]:
    if is_glob(name):
        return _some(entries.matching(name), name)
    prefix = _prefix(name)
    below: Iterator[Any] = entries.below(prefix) if is_deep else entries.level(prefix)
    return _or_array(below, entries, name, lambda entry: entry)


def _prefix(name: str) -> str:
    return name if not name or name.endswith("/") else f"{name}/"


def _some(found: Iterator[Any], name: str) -> Iterator[Any]:
    first = next(found, None)
    if first is None:
        raise nothing_there(name)
    return itertools.chain([first], found)


def _or_array(below: Iterator[Any], entries: Entries, name: str, show: Any) -> Iterator[Any]:
    """Return what is below a name, or else the array of that very name. Nothing at the top is no error."""
    first = next(below, None)
    if first is not None:
        return itertools.chain([first], below)
    if not name:
        return iter(())
    if name.endswith("/"):
        raise nothing_there(name)
    return iter([show(entries.open(name))])


@command("tree", "tensorage tree", "tensorage tree exp")
@click.argument("group", default="", shell_complete=keys_below)
@owner_option
@json_option
@project_options
def tree(group: str, *, owner: str | None, as_json: bool, choice: Choice) -> None:
    """Draw the keys below a group, or all of them, as a tree."""
    prefix = _prefix(group)
    with connect(choice) as connection:
        found = list(Entries(connection, owner).below(prefix))
    if not found and group:
        raise nothing_there(group)
    if as_json:
        print_json(_nest(found, prefix))
        return
    from tensorage.model.tree import Tree

    notes = (
        (entry["key"][len(prefix) :], f"{shape_of(entry)} {dtype_of_form(entry['dtype'])}") for entry in found
    )
    # Made visible before it is drawn: a control character in a key could otherwise move the lines of the tree.
    drawn = Tree.of((visible(key), visible(note)) for key, note in notes)
    click.echo(visible(group) or ".")
    for line in str(drawn).splitlines():
        click.echo(_add_colour(line))


def _add_colour(line: str) -> str:
    """Set the note of an array apart from its name, in a terminal."""
    name, gap, note = line.partition("  (")
    if not gap or not has_colour():
        return line
    return click.style(name, fg="cyan") + click.style(f"{gap}{note}", dim=True)


def _nest(found: list[dict[str, Any]], prefix: str) -> dict[str, Any]:
    """Return groups as objects, and an array as its entry under the name ``""`` of the object of its key."""
    root: dict[str, Any] = {}
    for entry in found:
        here = root
        for part in entry["key"][len(prefix) :].split("/"):
            # With a slash also at the last part: a key may be an array's and a group's at once.
            here = here.setdefault(f"{part}/", {})
        here[""] = describe(entry)
    return root


@command(
    "find",
    "tensorage find '**/loss'",
    "tensorage find --where units=K --where level=500",
    "tensorage find 'exp/*' --where 'tags=[\"raw\"]' -l",
)
@click.argument("glob", required=False)
@click.option(
    "--where",
    multiple=True,
    metavar="NAME=VALUE",
    help="An attribute that the arrays have. Repeat it for more.",
)
@click.option(
    "-l", "--long", "is_long", is_flag=True, help="Shape, dtype, stored size, engine, owner and age, too."
)
@owner_option
@json_option
@project_options
def find(
    glob: str | None,
    *,
    where: tuple[str, ...],
    is_long: bool,
    owner: str | None,
    as_json: bool,
    choice: Choice,
) -> None:
    """Find arrays whose keys fit GLOB, and that have all of the attributes.

    A value is JSON, such as 500, true or ["raw"], or else text. A list or an object stands for those that contain it.
    Finding nothing is no error.
    """
    attrs = wanted_attrs(where)
    if glob is None and attrs is None:
        raise click.UsageError("give a GLOB, or --where NAME=VALUE, or both")
    # The index of keys finds what begins so; the rest of the pattern is compared with each of these.
    prefix = "" if glob is None else glob.split("*")[0].split("?")[0]
    with connect(choice) as connection:
        found = Entries(connection, owner).below(prefix, glob, attrs)
        if as_json or is_long:
            _print(list(found), as_json=as_json)
        else:
            print_lines(visible(entry["key"]) for entry in found)


@command("du", "tensorage du", "tensorage du exp --json")
@click.argument("group", default="", shell_complete=keys_below)
@owner_option
@json_option
@project_options
def du(group: str, *, owner: str | None, as_json: bool, choice: Choice) -> None:
    """Add up the stored bytes of arrays, for each array and group directly below GROUP, or at the top.

    Bytes are those of elements as they are stored. `tensorage usage` tells what counts against the quota.
    """
    prefix = _prefix(group)
    sums: dict[str, list[int]] = {}
    with connect(choice) as connection:
        for entry in Entries(connection, owner).below(prefix):
            rest = entry["key"][len(prefix) :]
            name = prefix + (rest[: rest.index("/") + 1] if "/" in rest else rest)
            so_far = sums.setdefault(name, [0, 0])
            so_far[0] += kept_bytes(entry)
            so_far[1] += 1
    if not sums and group:
        raise nothing_there(group)
    if as_json:
        print_json(
            [{"key": name, "stored_bytes": size, "arrays": count} for name, (size, count) in sums.items()]
        )
        return
    rows = [(size_of(size), str(count), visible(name)) for name, (size, count) in sums.items()]
    total = [sum(size for size, _ in sums.values()), sum(count for _, count in sums.values())]
    print_table(
        ("stored", "arrays", "key"),
        [*rows, (size_of(total[0]), str(total[1]), "total")],
        ("stored", "arrays"),
    )


COMMANDS = {"ls": ls, "tree": tree, "find": find, "du": du}
