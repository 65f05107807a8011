"""NetCDF, through xarray: each group of a file is a Dataset, decoded by NetCDF's conventions."""

from __future__ import annotations

import importlib.util
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tensorage.errors import DTypeError, InvalidInputError, TensorageError, missing_package
from tensorage.interchange.attributes import Left, file_attrs, plain_attrs
from tensorage.interchange.datasets import entries_of_dataset
from tensorage.interchange.entries import Entry
from tensorage.wording import one_line, quote

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["entries_of_netcdf", "require_xarray", "write_netcdf"]

#: Packages by which xarray writes NetCDF 4. Its older format has no integers of 64 bits, and no groups.
_ENGINES = {"h5netcdf": "h5netcdf", "netCDF4": "netcdf4"}

#: Bytes that are written at once, where dask is installed.
_BLOCK_BYTES = 32 * 1024 * 1024


def entries_of_netcdf(
    path: Path, left: Left, skipped: Collection[str], *, has_root_mark: bool
) -> Iterator[Entry]:
    """Yield the variables of a file, and a mark for each group.

    Parameters
    ----------
    skipped
        Names of variables and groups to leave out.
    has_root_mark
        True if there is a place for the mark of the file itself.

    Raises
    ------
    InvalidInputError, DTypeError
        If something in the file has no place in a store.
    """
    groups = _open(path)
    try:
        for place, opened in groups.items():
            name = place.strip("/")
            if any(name == skip or name.startswith(f"{skip}/") for skip in skipped):
                continue
            prefix = f"{name}/" if name else ""
            dropped = [one for one in opened.variables if f"{prefix}{one}" in skipped]
            dataset = _plain(opened.drop_vars(dropped), place, left)
            _note_unlimited(dataset, left)
            has_mark = bool(name) or has_root_mark
            for entry in entries_of_dataset(dataset, name or path.stem, has_mark=has_mark):
                yield Entry(
                    (prefix + entry.name).rstrip("/"), entry.source, entry.attrs, entry.dims, entry.coords
                )
            if not has_mark:
                for attribute in dataset.attrs:
                    left.add(
                        f"attribute {attribute!r} of the file", "give prefix='name/', so that it has a key"
                    )
    finally:
        for opened in groups.values():
            opened.close()


def write_netcdf(path: Path, groups: Mapping[str, xr.Dataset], left: Left) -> None:
    """Write Datasets as the groups of a new file. The root's name is empty.

    Raises
    ------
    DTypeError
        If NetCDF has no place for a dtype.
    """
    engine = next((name for package, name in _ENGINES.items() if importlib.util.find_spec(package)), None)
    if engine is None:
        raise InvalidInputError(
            "writing NetCDF needs the package 'h5netcdf': pip install 'tensorage[netcdf]>=0.2'"
        )
    for number, (name, dataset) in enumerate(groups.items()):
        kept = _in_blocks(_file_dataset(dataset, name, left))
        try:
            # xarray writes one group a call: the first one makes the file.
            kept.to_netcdf(path, mode="a" if number else "w", group=name or None, engine=engine)  # type: ignore[call-overload] # one of both
        except TensorageError:
            raise
        except (TypeError, ValueError, NotImplementedError) as error:
            raise DTypeError(
                f"exporting the group {name!r}: NetCDF has no place for some of it ({one_line(str(error))}). "
                "Export to .h5"
            ) from error


def _open(path: Path) -> dict[str, xr.Dataset]:
    xr = require_xarray()
    # Numbers with units such as days stay numbers, unless xarray has written them from time spans.
    spans = xr.coders.CFTimedeltaCoder(decode_via_units=False)
    options: dict[str, Any] = {"cache": False, "decode_timedelta": spans}
    try:
        if _is_older(path):
            return {"/": xr.open_dataset(path, **options)}
        return dict(xr.open_groups(path, **options))
    except (ValueError, ImportError) as error:
        raise InvalidInputError(
            f"importing {quote(str(path))}: xarray cannot open it ({one_line(str(error))}). It is damaged or no file "
            "of NetCDF, or a package is missing: pip install 'tensorage[netcdf]>=0.2'"
        ) from error


def _is_older(path: Path) -> bool:
    """Tell whether a file is of the older format, which has no groups, and whose readers in xarray know of none."""
    with path.open("rb") as file:
        return file.read(3) == b"CDF"


def _plain(dataset: xr.Dataset, place: str, left: Left) -> xr.Dataset:
    """Replace attributes by those that a store has a place for."""
    made = dataset.copy()
    made.attrs = plain_attrs(f"the group {place!r}", dataset.attrs.items(), left)
    for name in made.variables:
        made[name].attrs = plain_attrs(repr(name), dataset[name].attrs.items(), left)
    return made


def _file_dataset(dataset: xr.Dataset, place: str, left: Left) -> xr.Dataset:
    made = dataset.copy()
    made.attrs = _file_attrs(f"the group {place!r}", dataset.attrs, left)
    for name in made.variables:
        made[name].attrs = _file_attrs(repr(name), dataset[name].attrs, left)
    return made


def _file_attrs(where: str, attrs: Mapping[Any, Any], left: Left) -> dict[str, Any]:
    kept = file_attrs(where, attrs, left)
    for name in [
        name
        for name, value in kept.items()
        if isinstance((value or [None])[0] if isinstance(value, list) else value, bool)
    ]:
        del kept[name]
        left.add(f"attribute {name!r} of {where}", "NetCDF has no truth values")
    return kept


def _in_blocks(dataset: xr.Dataset) -> xr.Dataset:
    """Cut large variables into blocks of rows. Without dask, xarray writes each as a whole."""
    if importlib.util.find_spec("dask") is None:
        return dataset
    made = dataset.copy()
    for name, array in dataset.data_vars.items():
        if array.ndim and array.nbytes > _BLOCK_BYTES:
            rows = max(_BLOCK_BYTES * array.shape[0] // array.nbytes, 1)
            made[name] = array.chunk({dim: rows if axis == 0 else -1 for axis, dim in enumerate(array.dims)})
    return made


def _note_unlimited(dataset: xr.Dataset, left: Left) -> None:
    # Every stored array grows along its first axis.
    for dim in dataset.encoding.get("unlimited_dims", ()):
        inner = [name for name, array in dataset.variables.items() if dim in array.dims[1:]]
        if inner:
            left.add(
                f"the unlimited size of {dim!r} of {inner}", "stored arrays grow along their first axis alone"
            )


def require_xarray() -> Any:
    """Return xarray, or raise an error that says what to install.

    Raises
    ------
    InvalidInputError
    """
    try:
        import xarray
    except ModuleNotFoundError as error:
        raise missing_package("files of NetCDF", error, "netcdf") from error
    return xarray
