"""``get`` and ``cat``: elements as files, and as text."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tensorage.cli.commands import (
    command,
    force_option,
    json_option,
    owner_option,
    project_options,
    quiet_option,
)
from tensorage.cli.completing import keys_below
from tensorage.cli.connections import Choice, connect
from tensorage.cli.failures import Failure
from tensorage.cli.output import print_json
from tensorage.cli.selections import parse_target

if TYPE_CHECKING:
    from tensorage.interchange.grouped import Outgoing
    from tensorage.store import TensorStore
    from tensorage.types import Dataset

__all__ = ["COMMANDS"]

_SUFFIXES = (".npy", ".npz", ".zarr", ".h5", ".hdf5", ".nc", ".csv")


@command(
    "get",
    "tensorage get exp/run1/loss -o run1.npy",
    "tensorage get 'era5/t2m[10:20, :, 3]' -o part.h5 --force",
    "tensorage get exp/run1/loss -o - | wc -c",
    "tensorage get 'era5/t2m[0]' -o t2m.csv",
)
@click.argument("target", metavar="KEY[SELECTION]", shell_complete=keys_below)
@click.option(
    "-o", "--output", required=True, metavar="FILE",
    help="File: .npy, .npz, .zarr, .h5, .csv, or .nc for a whole array. A folder gets a .npy. `-` is stdout.",
)  # fmt: skip
@click.option(
    "--format",
    "form",
    type=click.Choice(["npy", "csv"]),
    default="npy",
    show_default=True,
    help="Form of stdout.",
)
@owner_option
@force_option
@quiet_option
@json_option
@project_options
def get(
    target: str,
    *,
    output: str,
    form: str,
    owner: str | None,
    force: bool,
    quiet: bool,
    as_json: bool,
    choice: Choice,
) -> None:
    """Write an array, or a part of one, to a file or to stdout.

    The selection is one of numpy: numbers, slices, `...`, `None`, lists, names of fields. Elements travel and are
    written in blocks, so that the array may be larger than memory, where the selection begins with numbers and a slice.
    The file is written under another name, and gets its own at the end: after an error, nothing is left of it.

    `tensorage export` writes groups, and what is kept with arrays.
    """
    key, selection = parse_target(target)
    path = None if output == "-" else _path(output, key, force=force)
    if path is None and form == "npy" and sys.stdout.isatty():
        raise click.UsageError(
            "the bytes of a .npy are nothing for a terminal: use a pipe, -o FILE, or --format csv"
        )
    with connect(choice) as connection:
        store = connection.store(owner)
        entry, written = _get(store, (key, selection), path, form, force=force, quiet=quiet or as_json)
    if as_json and path is not None:
        print_json({"key": key, "file": str(path), "shape": list(written.shape), "dtype": str(written.dtype)})
    elif path is not None and not quiet:
        click.echo(f"{path}: {tuple(written.shape)} {written.dtype} of {entry.key}")


def _path(output: str, key: str, *, force: bool) -> Path:
    path = Path(output)
    if path.suffix.lower() != ".zarr" and path.is_dir():
        path /= f"{key.rstrip('/').rpartition('/')[2]}.npy"
    if path.suffix.lower() not in _SUFFIXES:
        raise click.UsageError(f"the suffix {path.suffix!r} is none of {', '.join(_SUFFIXES)}; `-` is stdout")
    if not path.parent.is_dir():
        raise Failure(f"there is no folder {str(path.parent)!r}", 3)
    if not force and (path.exists() or path.is_symlink()):
        raise Failure(f"{path} is there already, and is left as it was: --force replaces it")
    return path


def _get(
    store: TensorStore,
    target: tuple[str, tuple[Any, ...] | None],
    path: Path | None,
    form: str,
    *,
    force: bool,
    quiet: bool,
) -> tuple[Dataset, Outgoing]:
    from tensorage.cli.parts import open_array, opened_part, selection_errors

    key, selection = target
    entry = open_array(store.arrays, key)
    name = key.rpartition("/")[2] or key
    with opened_part(store.arrays, entry, selection, name, quiet=quiet) as item, selection_errors(entry):
        if path is None:
            _write_stdout(item, form)
        elif path.suffix.lower() == ".csv":
            _write_csv_file(item, path)
        elif path.suffix.lower() == ".nc" and selection is None:
            store.export(key, path, overwrite=force)
        else:
            _write_file(item, path, force=force)
    return entry, item


def _write_stdout(item: Outgoing, form: str) -> None:
    from tensorage.cli.texts import write_csv
    from tensorage.interchange.numpy_files import write_npy_to

    if form == "csv":
        write_csv(sys.stdout, item)
        return
    _refuse_objects(item)
    stdout = sys.stdout.buffer
    write_npy_to(stdout, item)
    stdout.flush()


def _write_csv_file(item: Outgoing, path: Path) -> None:
    from tensorage.cli.texts import write_csv
    from tensorage.interchange.writing import in_place

    with in_place(path, lambda: None) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        write_csv(file, item)


def _write_file(item: Outgoing, path: Path, *, force: bool) -> None:
    from dataclasses import replace

    from tensorage.interchange.writing import export_part

    _refuse_objects(item)
    if path.suffix.lower() in {".npy", ".npz"}:
        # numpy's files have the elements alone, as is well known.
        item = replace(item, attrs={}, dims=None)
    export_part(item, path, overwrite=force)


def _refuse_objects(item: Outgoing) -> None:
    if item.dtype.kind in "OT":
        raise Failure(
            f"{item.key!r} has elements of any length, for which this format has no place: take .csv, "
            "`tensorage cat`, or `tensorage export` to .h5"
        )


@command(
    "cat",
    "tensorage cat exp/run1/loss",
    "tensorage cat 'era5/t2m[0, :3, :4]'",
    "tensorage cat labels --json | head",
)
@click.argument("target", metavar="KEY[SELECTION]", shell_complete=keys_below)
@owner_option
@json_option
@project_options
def cat(target: str, *, owner: str | None, as_json: bool, choice: Choice) -> None:
    """Print the elements of an array, or of a part of one, as text.

    A line is a row of the last axis, with tabs between its elements, and matrices have an empty line between them. With
    --json, the elements are nested lists, and what JSON has no form for is text.
    """
    key, selection = parse_target(target)
    with connect(choice) as connection:
        from tensorage.cli.parts import open_array, opened_part, selection_errors
        from tensorage.cli.texts import lines_of

        store: TensorStore = connection.store(owner)
        entry = open_array(store.arrays, key)
        with opened_part(store.arrays, entry, selection, key, quiet=True) as item, selection_errors(entry):
            if as_json:
                click.echo(_as_json(_as_lists(item)))
                return
            for line in lines_of(item):
                click.echo(line)


def _as_lists(item: Outgoing) -> Any:
    elements = item.read(... if item.shape else ())
    return elements.astype(str).tolist() if elements.dtype.kind in "mMc" else elements.tolist()


def _as_json(listed: Any) -> str:
    try:
        return json.dumps(listed, default=_as_text, ensure_ascii=False, allow_nan=False)
    except ValueError:
        return json.dumps(_without_nan(listed), default=_as_text, ensure_ascii=False, allow_nan=False)


def _without_nan(value: Any) -> Any:
    """Replace numbers that JSON has no form for by their text: a NaN, and those without bounds."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, (list, tuple)):
        return [_without_nan(each) for each in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _as_text(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    return value.tolist() if hasattr(value, "tolist") else str(value)


COMMANDS = {"get": get, "cat": cat}
