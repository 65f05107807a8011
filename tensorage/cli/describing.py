"""``info``: all that the catalogue knows of an array."""

from __future__ import annotations

import json
from typing import Any

import click

from tensorage.cli.commands import command, json_option, owner_option, project_options
from tensorage.cli.completing import keys_below
from tensorage.cli.connections import Choice, connect
from tensorage.cli.entries import COORDS, Entries, describe, dtype_of_form, shape_of
from tensorage.cli.output import age_of, print_json, size_of, visible

__all__ = ["COMMANDS"]


@command("info", "tensorage info exp/run1/loss", "tensorage info era5/t2m --json")
@click.argument("key", shell_complete=keys_below)
@owner_option
@json_option
@project_options
def info(key: str, *, owner: str | None, as_json: bool, choice: Choice) -> None:
    """Tell all that is known of an array: shape, dtype, sizes, attributes, dims, coordinates, shares."""
    with connect(choice) as connection:
        entry = Entries(connection, owner).open(key)
        is_own = entry["user_id"] == connection.user_id
        arguments = {"key": key, "after": 0, "max_rows": 1000}
        shares: list[Any] = []
        # Others are not told with whom an array is shared. An array that is shared with nobody takes no second request.
        if is_own and entry["is_shared"]:
            shares = connection.call("tensorage_shares", arguments, f"listing the shares of {key!r}")
    zarr = json.loads(entry["zarr"]) if entry["zarr"] else None
    coords = sorted(_names_of_coords(entry["attrs"].get(COORDS)))
    readers = [{name: share[name] for name in ("key", "reader", "write", "expires_at")} for share in shares]
    if as_json:
        print_json({**describe(entry), "coords": coords, "shares": readers, "zarr": zarr})
        return
    for name, value in _lines(entry, coords, readers):
        click.echo(f"{name + ':':<9} {visible(value)}")


def _names_of_coords(coords: Any) -> list[str]:
    return [str(name) for name in coords.get("coords", {})] if isinstance(coords, dict) else []


def _lines(entry: dict[str, Any], coords: list[str], shares: list[dict[str, Any]]) -> list[tuple[str, str]]:
    attrs = {name: value for name, value in entry["attrs"].items() if name != COORDS}
    lines = [
        ("key", entry["key"]),
        ("owner", entry["owner"] or entry["user_id"]),
        ("shape", shape_of(entry)),
        ("dtype", dtype_of_form(entry["dtype"])),
        ("stored", f"{size_of(entry['stored_bytes'])} by the engine {entry['engine']!r}"),
        (
            "version",
            f"{entry['version']}, changed {age_of(entry['updated_at'])} ago, made {entry['created_at'][:19]}",
        ),
    ]
    if entry["dims"]:
        lines.append(("dims", ", ".join(entry["dims"])))
    if coords:
        lines.append(("coords", ", ".join(coords)))
    lines += [("attr", f"{name} = {json.dumps(value, ensure_ascii=False)}") for name, value in attrs.items()]
    lines += [("shared", _share(share)) for share in shares]
    return lines


def _share(share: dict[str, Any]) -> str:
    end = f", until {share['expires_at']}" if share["expires_at"] else ""
    return f"{share['key']} with {share['reader'] or 'everybody'}, {'to write' if share['write'] else 'to read'}{end}"


COMMANDS = {"info": info}
