"""``put``, ``append`` and ``create``: files, folders and pipes as arrays."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import warnings
from collections.abc import Generator, Iterator
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
from tensorage.cli.entries import wanted_attrs
from tensorage.cli.failures import NOT_FOUND, Failure
from tensorage.cli.output import print_json, visible

if TYPE_CHECKING:
    from tensorage.cli.streams import Incoming
    from tensorage.interchange.entries import Entry
    from tensorage.store import TensorStore
    from tensorage.types import Dataset

__all__ = ["COMMANDS", "engine_option"]

engine_option = click.option(
    "--engine", type=click.Choice(["database", "storage", "auto"]),
    help="Engine of new arrays: rows of PostgreSQL, or objects of Storage.  [default: database]",
)  # fmt: skip
_format_option = click.option(
    "--format",
    "form",
    type=click.Choice(["npy", "csv"]),
    default="npy",
    show_default=True,
    help="Form of stdin.",
)
_attrs_option = click.option(
    "--attr", "attrs", multiple=True, metavar="NAME=VALUE", help="An attribute. Repeat it for more."
)
_dims_option = click.option("--dims", metavar="NAMES", help="Names of the axes, with commas between them.")
_dtype_option = click.option("--dtype", help="Dtype of the numbers of a CSV.  [default: float64]")

#: Most arrays that are told of one by one.
TOLD = 20

#: Suffixes of files in a folder that are stored.
_IN_FOLDERS = {".npy", ".npz", ".h5", ".hdf5", ".nc", ".zarr"}


@command(
    "put",
    "tensorage put loss.npy exp/run2/loss",
    "tensorage put loss.npy exp/run2/",
    "tensorage get exp/run1/loss -o - | tensorage put - exp/copy",
    "tensorage put results exp/results --engine storage",
    "tensorage put table.csv table --dtype int32 --attr units=K --force",
)
@click.argument("source", metavar="FILE|FOLDER|-")
@click.argument("key", shell_complete=keys_below)
@_format_option
@_dtype_option
@_attrs_option
@_dims_option
@engine_option
@force_option
@quiet_option
@json_option
@project_options
def put(
    source: str,
    key: str,
    *,
    form: str,
    dtype: str | None,
    attrs: tuple[str, ...],
    dims: str | None,
    engine: str | None,
    force: bool,
    quiet: bool,
    as_json: bool,
    choice: Choice,
) -> None:
    """Store a file, a folder or stdin under KEY: all of it, or nothing.

    A file has one array: .npy, .csv, or .npz, .h5, .nc and .zarr with a single one. Behind a KEY that ends with `/`,
    the name of the file follows, and a file may have several arrays. All such files below a folder are stored in
    one transaction, by their paths. Large arrays are read and sent in blocks.
    """
    described = {"attrs": wanted_attrs(attrs), "dims": None if dims is None else dims.split(",")}
    path = None if source == "-" else _existing(source)
    with connect(choice) as connection:
        store = connection.store(quiet=quiet or as_json, engine=engine or "database", allow_overwrite=force)
        if path is not None and path.is_dir() and path.suffix.lower() != ".zarr":
            _refuse_description(described)
            keys = _put_folder(store, path, key)
        elif path is not None and path.suffix.lower() != ".csv":
            keys = _put_file(store, path, key, described)
        else:
            name = f"{key}{path.stem}" if path is not None and key.endswith("/") else key
            keys = [_put_incoming(store, _incoming(path, form, dtype), name, described)]
        _tell(store, keys, "stored", quiet=quiet, as_json=as_json)


def _existing(source: str) -> Path:
    path = Path(source)
    if not path.exists():
        raise Failure(f"there is no file and no folder {source!r}", NOT_FOUND)
    return path


def _tell(store: TensorStore, keys: list[str], what: str, *, quiet: bool, as_json: bool) -> None:
    if quiet and not as_json:
        return
    found = _entries(store, keys)
    if as_json:
        print_json([_describe(entry) for entry in found])
        return
    for entry in found[:TOLD]:
        click.echo(f"{what} {visible(entry.key)}  {entry.shape} {entry.ragged or entry.dtype}")
    if len(found) > TOLD:
        click.echo(f"and {len(found) - TOLD} more")


def _entries(store: TensorStore, keys: list[str]) -> list[Dataset]:
    """Return the entries of arrays that were stored, by one request for each 1,000 of them."""
    if len(keys) == 1:
        return [store.arrays.open(keys[0])]
    wanted, prefix = set(keys), os.path.commonprefix(keys)  # noqa: RUF071 - of letters: keys are no paths
    return [entry for entry in store.arrays.entries(prefix) if entry.key in wanted]


def _describe(entry: Dataset) -> dict[str, Any]:
    return {
        "kind": "array", "key": entry.key, "shape": list(entry.shape), "dtype": str(entry.ragged or entry.dtype),
        "engine": entry.engine, "version": entry.version,
    }  # fmt: skip


def _refuse_description(described: dict[str, Any]) -> None:
    if any(described.values()):
        raise click.UsageError("--attr and --dims are for a single array: give its whole KEY")


def _put_folder(store: TensorStore, folder: Path, key: str) -> list[str]:
    """Store all files of a folder. Nothing else in it counts."""
    files = sorted(_files(folder))
    if not files:
        raise Failure(f"{folder} has no file of {', '.join(sorted(_IN_FOLDERS))}", NOT_FOUND)
    from tensorage.interchange.storing import Storing

    keys: list[str] = []
    how = {"chunk_size": None, "overwrite": store.allow_overwrite, "engine": store.engine}
    with store.transaction() as tx:
        # One transaction for all files. `present`, which these arrays are not, is for Datasets of xarray alone.
        storing = Storing(tx.arrays, how, tx.arrays, None)
        for file in files:
            above = file.relative_to(folder).parent.parts
            is_single = file.suffix.lower() == ".npy"
            parts = [*filter(None, [key.rstrip("/")]), *above, *([] if is_single else [file.stem])]
            keys += storing.import_file(file, "".join(f"{part}/" for part in parts), ())
    return keys


def _files(folder: Path) -> Iterator[Path]:
    for path in folder.iterdir():
        if path.suffix.lower() in _IN_FOLDERS:
            yield path
        # A link may lead back to a folder above.
        elif path.is_dir() and not path.is_symlink():
            yield from _files(path)


def _put_file(store: TensorStore, path: Path, key: str, described: dict[str, Any]) -> list[str]:
    if key.endswith("/"):
        _refuse_description(described)
        return store.import_file(path, key)
    with _only_array(path, key) as entry:
        from dataclasses import replace

        from tensorage.interchange.entries import take_in

        attrs = {**entry.attrs, **(described["attrs"] or {})}
        made = replace(entry, attrs=attrs, dims=described["dims"] or entry.dims)
        take_in(
            store.arrays, made, key, engine=store.engine, overwrite=store.allow_overwrite, chunk_size=None
        )
    return [key]


@contextlib.contextmanager
def _only_array(path: Path, key: str) -> Iterator[Entry]:
    """Give the only array of a file, for as long as the file is open."""
    from tensorage.interchange.attributes import Left
    from tensorage.interchange.reading import entries_of_file

    left = Left(f"importing {str(path)!r}")

    def read() -> Generator[Entry, None, None]:
        return entries_of_file(path, left, frozenset(), has_root_mark=False)

    # Entries without a name are attributes of the file. One is to be used before the next one is asked for:
    # they are counted beforehand.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        count = 1 if path.suffix.lower() == ".npy" else sum(bool(entry.name) for entry in read())
    if count != 1:
        raise Failure(
            f"{path} has {count} arrays: `tensorage put {path} {key}/` stores them below {key}/"
            if count
            else f"{path} has no array"
        )
    with contextlib.closing(read()) as entries:
        yield next(entry for entry in entries if entry.name)


def _incoming(path: Path | None, form: str, dtype: str | None) -> Incoming:
    from tensorage.cli.streams import read_csv, read_npy

    if path is not None:
        with path.open(encoding="utf-8") as file:
            return read_csv(file, dtype, str(path))
    if form == "csv":
        return read_csv(sys.stdin, dtype, "stdin")
    return read_npy(sys.stdin.buffer)


def _put_incoming(store: TensorStore, incoming: Incoming, key: str, described: dict[str, Any]) -> str:
    if not key or key.endswith("/"):
        raise click.UsageError("an array of stdin has no name: give its whole KEY")
    # Arrays without axes, or without rows, do not come in blocks.
    if incoming.shape and incoming.shape[0]:
        store.write(key, incoming.blocks, shape=incoming.shape, dtype=incoming.dtype, **described)
    else:
        store.write(key, incoming.whole(), **described)
    return key


@command(
    "append",
    "tensorage append more.npy exp/run1/loss",
    "tensorage get 'exp/run1/loss[:3]' -o - | tensorage append - exp/log --create",
)
@click.argument("source", metavar="FILE|-")
@click.argument("key", shell_complete=keys_below)
@click.option("--create", is_flag=True, help="Store the rows as a new array, if there is none under KEY.")
@_format_option
@_dtype_option
@engine_option
@owner_option
@quiet_option
@json_option
@project_options
def append(
    source: str,
    key: str,
    *,
    create: bool,
    form: str,
    dtype: str | None,
    engine: str | None,
    owner: str | None,
    quiet: bool,
    as_json: bool,
    choice: Choice,
) -> None:
    """Add the rows of a .npy, a .csv or stdin at the end of an array: all at once, and exactly once."""
    path = None if source == "-" else _existing(source)
    if path is not None and path.suffix.lower() not in {".npy", ".csv"}:
        raise click.UsageError(f"{source!r} is neither a .npy nor a .csv")
    with connect(choice) as connection:
        store = connection.store(owner, quiet=quiet or as_json, engine=engine or "database")
        if path is not None and path.suffix.lower() == ".npy":
            with _only_array(path, key) as entry:
                rows = entry.source
                store.append(key, rows, create=create)
        else:
            store.append(key, _incoming(path, form, dtype).whole(), create=create)
        _tell(store, [key], "appended to", quiet=quiet, as_json=as_json)


@command(
    "create",
    "tensorage create sim --shape 1000000,512 --dtype float32",
    "tensorage create mask --shape 100 --dtype bool --fill-value true",
)
@click.argument("key", shell_complete=keys_below)
@click.option(
    "--shape", required=True, metavar="LENGTHS", help="Lengths of the axes, with commas between them."
)
@click.option("--dtype", default="float64", show_default=True, help="Dtype, by numpy's names.")
@click.option(
    "--fill-value", default="0", show_default=True, help="Element that stands for those never written."
)
@_attrs_option
@_dims_option
@engine_option
@force_option
@quiet_option
@json_option
@project_options
def create(
    key: str,
    *,
    shape: str,
    dtype: str,
    fill_value: str,
    attrs: tuple[str, ...],
    dims: str | None,
    engine: str | None,
    force: bool,
    quiet: bool,
    as_json: bool,
    choice: Choice,
) -> None:
    """Make an array that is there at once, takes no room, and reads as its fill value until it is assigned to."""
    lengths = _lengths(shape)
    found = wanted_attrs(attrs)
    with connect(choice) as connection:
        store = connection.store(quiet=True, engine=engine or "database", allow_overwrite=force)
        store.create(
            key,
            lengths,
            dtype,
            fill_value=_value(fill_value),
            attrs=found,
            dims=None if dims is None else dims.split(","),
        )
        _tell(store, [key], "created", quiet=quiet, as_json=as_json)


def _lengths(shape: str) -> tuple[int, ...]:
    parts = [part.strip() for part in shape.strip("()").split(",") if part.strip()]
    # The largest length has 19 digits.
    if not all(part.isdecimal() and len(part) < 20 for part in parts):
        raise click.UsageError(f"{shape[:80]!r} is no shape: give lengths, as in 1000,512")
    return tuple(map(int, parts))


def _value(text: str) -> Any:
    """Read a value as JSON, and any other one as text."""
    try:
        return json.loads(text)
    except ValueError:
        return text


COMMANDS = {"put": put, "append": append, "create": create}
