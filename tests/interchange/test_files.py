"""Files of other libraries: their arrays come in with all that is kept with them, and go out the same."""

from __future__ import annotations

import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
import pytest
import xarray as xr
import zarr
from leftovers import Sql, assert_only_arrays_are_kept

from tensorage import (
    CorruptTensorError,
    DTypeError,
    IncompleteTensorError,
    InvalidInputError,
    KeyExistsError,
    KeyNotFoundError,
    TensorageError,
    TensorStore,
)
from tensorage.interchange import entries, grouped
from tensorage.interchange.marks import GROUP_ATTRIBUTE

Array = npt.NDArray[Any]

#: zarr says of some dtypes that other libraries might not know them.
UNSTABLE = pytest.mark.filterwarnings("ignore:The data type .* does not have a Zarr V3 specification")

GRID = np.arange(24, dtype="<f4").reshape(2, 3, 4)
LAT = np.array([50.0, 51.0, 52.0])


def write_npy(path: Path) -> dict[str, Array]:
    np.save(path, GRID)
    return {path.stem: GRID}


def write_npz(path: Path) -> dict[str, Array]:
    arrays = {
        "x": GRID,
        "group/y": np.array(3),
        "empty": np.zeros((0, 2), "i2"),
        "names": np.array(["a", "büc"]),
    }
    np.savez_compressed(path, **arrays)  # type: ignore[arg-type] # names of arrays, and no options
    return arrays


def write_h5(path: Path) -> dict[str, Array]:
    with h5py.File(path, "w") as file:
        file.create_dataset("grid", data=GRID, chunks=(1, 3, 4), compression="gzip")
        file["deep/er/y"] = np.int16(7)
        file["flags"] = np.array([True, False])
        file["records"] = np.array([(1, 2.5)], [("n", "<i4"), ("x", "<f8")])
    return {
        "grid": GRID,
        "deep/er/y": np.array(7, "i2"),
        "flags": np.array([True, False]),
        "records": np.array([(1, 2.5)], [("n", "<i4"), ("x", "<f8")]),
    }


def write_zarr(path: Path) -> dict[str, Array]:
    root = zarr.open_group(path, mode="w")
    for name, array in (("grid", GRID), ("deep/er/y", np.array([7], "i2"))):
        root.create_array(name, data=array)
    return {"grid": GRID, "deep/er/y": np.array([7], "i2")}


def write_nc(path: Path) -> dict[str, Array]:
    xr.Dataset({"grid": (("t", "lat", "lon"), GRID), "n": ("t", [1, 2])}).to_netcdf(path, engine="h5netcdf")
    return {"grid": GRID, "n": np.array([1, 2])}


WRITERS: dict[str, Callable[[Path], dict[str, Array]]] = {
    "a.npy": write_npy,
    "a.npz": write_npz,
    "a.h5": write_h5,
    "a.HDF5": write_h5,
    "a.zarr": write_zarr,
    "a.nc": write_nc,
}


def assert_same(found: Any, wanted: Array) -> None:
    found = np.asarray(found)
    assert (found.shape, found.dtype) == (wanted.shape, wanted.dtype)
    assert found.tobytes() == np.ascontiguousarray(wanted).tobytes()


def left_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# Taking in --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", WRITERS)
def test_the_arrays_of_a_file(store: TensorStore, tmp_path: Path, name: str) -> None:
    wanted = WRITERS[name](tmp_path / name)
    assert store.import_file(tmp_path / name) == sorted(wanted)
    assert sorted(store) == sorted(wanted)
    for key, array in wanted.items():
        assert_same(store[key], array)
        assert store.open(key).engine == store.engine


@pytest.mark.parametrize("name", WRITERS)
def test_large_arrays_come_in_blocks(
    store: TensorStore, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(entries, "BLOCK_BYTES", 50)
    wanted = WRITERS[name](tmp_path / name)
    assert store.import_file(str(tmp_path / name), "in/") == sorted(
        [f"in/{key}" for key in wanted] + (["in"] if name == "a.nc" else [])
    )
    for key, array in wanted.items():
        assert_same(store[f"in/{key}"], array)


def test_in_a_group_of_a_store(store: TensorStore, tmp_path: Path) -> None:
    write_npz(tmp_path / "a.npz")
    group = store.group("run")
    assert group.import_file(tmp_path / "a.npz", "in/") == ["in/empty", "in/group/y", "in/names", "in/x"]
    assert_same(store["run/in/x"], GRID)


def test_an_engine_for_the_file(store: TensorStore, tmp_path: Path) -> None:
    write_npy(tmp_path / "a.npy")
    store.import_file(tmp_path / "a.npy", engine="storage", is_shared=True)
    found = store.open("a")
    assert (found.engine, found.is_shared) == ("storage", True)


def test_arrays_without_names(store: TensorStore, tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", **{"": GRID, "x": GRID})  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match="an array without a name"):
        store.import_file(tmp_path / "a.npz", "in/")
    assert store.import_file(tmp_path / "a.npz", "in/", skip=[""]) == ["in/x"]


def test_text_of_hdf5(store: TensorStore, tmp_path: Path) -> None:
    """Text of one length is text of numpy, with the length that it had if tensorage has written it."""
    text = np.array(["a", "büc", ""])
    store["text"] = text
    store.export("text", tmp_path / "own.h5")
    with h5py.File(tmp_path / "own.h5") as file:
        assert [one.decode() for one in file["text"][...]] == text.tolist()
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file.create_dataset("utf", data=np.char.encode(text, "utf-8").astype(h5py.string_dtype("utf-8", 4)))
        file.create_dataset("ascii", data=np.array([b"a", b"bc"]))
    store.import_file(tmp_path / "own.h5", "own/")
    assert_same(store["own/text"], text)
    store.import_file(tmp_path / "other.h5", "other/")
    assert_same(store["other/utf"], text.astype("U4"))
    assert_same(store["other/ascii"], np.array([b"a", b"bc"]))
    with h5py.File(tmp_path / "own.h5", "r+") as file:
        file["text"].attrs["tensorage.dtype"] = "<U1"
    with pytest.raises(CorruptTensorError, match="longer than <U1"):
        store.import_file(tmp_path / "own.h5", "short/")
    assert store.keys("short") == []


LONG_TEXTS = np.array(
    [["a", "", "größer " * 5000], ["b\n", "\N{GRINNING FACE}", " c "]], np.dtypes.StringDType()
)


@pytest.mark.parametrize(
    "texts", [LONG_TEXTS, LONG_TEXTS[:0], LONG_TEXTS[0, 2:].reshape(())], ids=["2d", "0", "()"]
)
def test_text_of_any_length_of_hdf5(
    store: TensorStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, texts: Array
) -> None:
    """Text of any length is HDF5's text of variable length, both ways, with labels of that kind."""
    monkeypatch.setattr(grouped, "BLOCK_BYTES", 50)
    monkeypatch.setattr(entries, "BLOCK_BYTES", 50)
    store.write("texts", texts, attrs={"language": "de"}, dims=("row", "column")[: texts.ndim])
    store.export("texts", tmp_path / "own.h5")
    with h5py.File(tmp_path / "own.h5") as file:
        assert h5py.check_string_dtype(file["texts"].dtype) == ("utf-8", None)
        assert np.asarray(file["texts"].asstr()[()]).tolist() == texts.tolist()
    store.import_file(tmp_path / "own.h5", "own/")
    assert_same(store["own/texts"], texts)
    found = store.open("own/texts")
    assert found.dtype == texts.dtype
    assert dict(found.attrs) == {"language": "de"}
    assert (found.dims or ()) == ("row", "column")[: texts.ndim]


def test_labels_of_any_length_of_hdf5(store: TensorStore, tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["station"] = np.array(["Ärmel", "b"], object)
        file.create_dataset("called ascii", data=["ö".encode()], dtype=h5py.string_dtype("ascii"))
        file["x"] = GRID
        file["station"].make_scale("station")
        file["x"].dims[0].attach_scale(file["station"])
        store["alone"] = file["station"]
    assert store["alone"].tolist() == ["Ärmel", "b"]
    store.import_file(tmp_path / "a.h5", "in/")
    assert store["in/called ascii"].tolist() == ["ö"]
    assert store["in/station"].tolist() == store.open("in/x").coords["station"].tolist() == ["Ärmel", "b"]
    store.export("in", tmp_path / "b.h5")
    with h5py.File(tmp_path / "b.h5") as file:
        assert file["x"].dims[0]["station"].asstr()[...].tolist() == ["Ärmel", "b"]


def test_text_that_hdf5_has_no_place_for(store: TensorStore, tmp_path: Path) -> None:
    store["nul"] = np.array(["a\0b"], np.dtypes.StringDType())
    store.write_ragged("list", ["a"])
    for key, said in (("nul", "NUL character"), ("list", "ragged text")):
        with pytest.raises(InvalidInputError, match=said):
            store.export(key, tmp_path / "a.h5")
    with pytest.raises(InvalidInputError, match="text of any length"):
        store.export("nul", tmp_path / "a.npz")
    assert list(tmp_path.iterdir()) == []


def labelled_h5(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file.attrs["title"] = "weather"
        file["w/lat"] = LAT
        file["w/lat"].attrs["units"] = "degrees"
        file["w/lat"].make_scale("lat")
        file["w/t2m"] = GRID
        file["w/t2m"].attrs.update(
            {"units": "K", "levels": [1, 2], "names": ["a", "b"], "scale": np.float32(0.5)}
        )
        file["w/t2m"].dims[0].label = "time"
        file["w/t2m"].dims[1].attach_scale(file["w/lat"])
        file["w"].attrs["source"] = np.bytes_(b"station")
        file.create_group("nothing")


def test_attributes_dims_and_scales_of_hdf5(store: TensorStore, tmp_path: Path) -> None:
    labelled_h5(tmp_path / "w.h5")
    keys = store.import_file(tmp_path / "w.h5", "in/")
    assert keys == ["in", "in/nothing", "in/w", "in/w/lat", "in/w/t2m"]
    t2m = store.open("in/w/t2m")
    assert dict(t2m.attrs) == {"units": "K", "levels": [1, 2], "names": ["a", "b"], "scale": 0.5}
    assert t2m.dims == ("time", "lat", "dim_2")
    assert_same(t2m.coords["lat"], LAT)
    assert store.open("in/w/lat").dims == ("lat",)
    assert store.open("in").attrs[GROUP_ATTRIBUTE]["attrs"] == {"title": "weather"}
    found = store.open_dataset("in/w")
    assert (dict(found.attrs), set(found.data_vars)) == ({"source": "station"}, {"t2m"})
    assert float(found.t2m.sel(lat=51)[1, 0]) == 16
    assert found.lat.attrs == {"units": "degrees"}


def test_attributes_and_dims_of_zarr(store: TensorStore, tmp_path: Path) -> None:
    labelled_zarr(tmp_path / "w.zarr")
    assert store.import_file(tmp_path / "w.zarr", "in/") == ["in", "in/lat", "in/t2m"]
    t2m = store.open("in/t2m")
    assert (dict(t2m.attrs), t2m.dims) == ({"units": "K", "nested": {"a": [None]}}, ("time", "lat", "lon"))
    assert store.open_dataset("in").attrs == {"title": "weather"}
    assert_same(store.open("in/t2m").coords["lat"], LAT)
    assert float(store.open_dataset("in").t2m.sel(lat=51)[1, 0]) == 16


def labelled_zarr(path: Path) -> None:
    root = zarr.open_group(path, mode="w", attributes={"title": "weather"})
    array = root.create_array("t2m", data=GRID, dimension_names=("time", "lat", "lon"))
    array.attrs.update({"units": "K", "nested": {"a": [None]}})
    root.create_array("lat", data=LAT, dimension_names=("lat",))


def test_a_folder_of_one_array(store: TensorStore, tmp_path: Path) -> None:
    zarr.create_array(tmp_path / "one.zarr", data=GRID, zarr_format=2)
    assert store.import_file(tmp_path / "one.zarr") == ["one"]
    assert_same(store["one"], GRID)


def weather() -> xr.Dataset:
    """Data of the kinds that NetCDF keeps as they are."""
    time = np.array(["2020-01-01", "2020-01-02"], "M8[ns]")
    return xr.Dataset(
        {
            "t2m": (("time", "lat", "lon"), GRID, {"units": "K"}),
            "land": (("lat",), np.array([True, False, True])),
            "count": ((), np.int16(3)),
        },
        coords={
            "time": ("time", time, {"long_name": "day"}),
            "lat": LAT,
            "area": (("lat", "lon"), np.ones((3, 4))),
            "height": 2.0,
            "unused": ("other", [1, 2, 3, 4, 5]),
        },
        attrs={"title": "weather", "levels": [1, 2]},
    )


def test_netcdf_with_groups(store: TensorStore, tmp_path: Path) -> None:
    weather().to_netcdf(tmp_path / "w.nc", engine="h5netcdf")
    day = weather().isel(time=0).drop_vars("time")
    day.to_netcdf(tmp_path / "w.nc", engine="h5netcdf", mode="a", group="first/day")
    keys = store.import_file(tmp_path / "w.nc", "in/")
    assert {"in", "in/t2m", "in/first/day", "in/first/day/land"} <= set(keys)
    with xr.open_dataset(tmp_path / "w.nc") as wanted:
        xr.testing.assert_identical(store.open_dataset("in").load(), plain(wanted))
    with xr.open_dataset(tmp_path / "w.nc", group="first/day") as wanted:
        xr.testing.assert_identical(store.open_dataset("in/first/day").load(), plain(wanted))


def plain(dataset: xr.Dataset) -> xr.Dataset:
    """The Dataset with attributes of Python, in place of numpy's arrays."""
    made = dataset.load().copy()
    made.attrs = {name: np.asarray(value).tolist() for name, value in made.attrs.items()}
    return made


def test_netcdf_of_the_older_format(store: TensorStore, tmp_path: Path) -> None:
    xr.Dataset({"x": ("n", np.arange(3, dtype="i4"))}).to_netcdf(tmp_path / "w.nc", engine="scipy")
    assert store.import_file(tmp_path / "w.nc") == ["x"]
    assert_same(store["x"], np.arange(3, dtype="i4"))
    assert store.open("x").dims == ("n",)


def test_without_a_place_for_attributes_of_the_file(store: TensorStore, tmp_path: Path) -> None:
    weather().to_netcdf(tmp_path / "w.nc", engine="h5netcdf")
    with pytest.warns(UserWarning, match="attribute 'title' of the file") as caught:
        keys = store.import_file(tmp_path / "w.nc")
    assert [one.filename for one in caught] == [__file__]
    # Coordinates that no variable has are arrays of their own.
    assert keys == ["count", "land", "t2m", "unused"]
    assert_same(store.open("t2m").coords["time"], weather().time.values)
    labelled_h5(tmp_path / "w.h5")
    with pytest.warns(UserWarning, match=r"attributes of the file \(give a prefix that ends with '/'"):
        store.import_file(tmp_path / "w.h5", "in-")
    assert dict(store.open("in-w/t2m").attrs)["units"] == "K"


def strange_attributes(file: h5py.File) -> None:
    file["x"] = [1]
    file["x"].attrs["ok"] = 1
    file["x"].attrs["missing"] = np.nan
    file["x"].attrs["where"] = file.ref
    file["x"].attrs["none"] = h5py.Empty("f4")
    file["x"].attrs["pair"] = np.array([(1, 2)], [("a", "i4"), ("b", "i4")])
    file["x"].attrs["bytes"] = np.bytes_(b"\xff")


def test_attributes_without_a_place_are_named(store: TensorStore, tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        strange_attributes(file)
    with pytest.warns(UserWarning, match="left out") as caught:
        assert store.import_file(tmp_path / "a.h5") == ["x"]
    (text,) = [str(one.message) for one in caught]
    assert all(
        f"attribute {name!r} of '/x'" in text for name in ("missing", "where", "none", "pair", "bytes")
    )
    assert dict(store.open("x").attrs) == {"ok": 1}


def test_a_warning_that_is_an_error_stores_nothing(store: TensorStore, tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        strange_attributes(file)
    with pytest.raises(UserWarning, match="left out"):
        store.import_file(tmp_path / "a.h5")
    assert list(store) == []


def test_largest_lengths_are_named(store: TensorStore, tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("rows", data=GRID, maxshape=(None, 3, 4))
        file.create_dataset("more", data=GRID, maxshape=(2, None, 9))
    with pytest.warns(UserWarning, match="unlimited of axis 1 of '/more'.*length 9 of axis 2 of '/more'"):
        store.import_file(tmp_path / "a.h5")
    store.append("rows", GRID)
    assert store.open("rows").shape == (4, 3, 4)


def enum(file: h5py.File) -> None:
    file.create_dataset("bad", data=[0, 1], dtype=h5py.enum_dtype({"no": 0, "yes": 1}, "i4"))


def references(file: h5py.File) -> None:
    file.create_dataset("bad", data=np.array([file.ref], h5py.ref_dtype))


def in_a_record(file: h5py.File) -> None:
    dtype = np.dtype([("n", "i4"), ("note", h5py.string_dtype())])
    file.create_dataset("bad", data=np.array([(1, "a")], dtype))


def vlen_arrays(file: h5py.File) -> None:
    made = file.create_dataset("bad", (2,), h5py.vlen_dtype("i4"))
    made[0] = [1, 2]


def soft_link(file: h5py.File) -> None:
    file["bad"] = h5py.SoftLink("/good")


def outer_link(file: h5py.File) -> None:
    file["bad"] = h5py.ExternalLink("other.h5", "/x")


def second_name(file: h5py.File) -> None:
    file["bad"] = file["good"]


def circle(file: h5py.File) -> None:
    file["group/x"] = [1]
    file["group/bad"] = file["group"]


def named_dtype(file: h5py.File) -> None:
    file["bad"] = np.dtype("f8")


BAD_MEMBERS = [
    (
        lambda file: file.create_dataset("bad", data=b"\xff"),
        InvalidInputError,
        "'/bad' holds text that is no UTF-8",
    ),
    (vlen_arrays, DTypeError, "arrays of any length"),
    (references, DTypeError, "references"),
    (enum, DTypeError, "an enumeration"),
    (in_a_record, DTypeError, "text of any length"),
    (lambda file: file.create_dataset("bad", data=h5py.Empty("f4")), InvalidInputError, "without a shape"),
    (soft_link, InvalidInputError, "a link"),
    (outer_link, InvalidInputError, "a link"),
    (second_name, InvalidInputError, "second name"),
    (circle, InvalidInputError, "second name"),
    (named_dtype, InvalidInputError, "named datatype"),
]


@pytest.mark.parametrize(("make", "kind", "said"), BAD_MEMBERS)
def test_members_of_hdf5_without_a_place(
    store: TensorStore, tmp_path: Path, make: Callable[[h5py.File], Any], kind: type[Exception], said: str
) -> None:
    with h5py.File(tmp_path / "a.h5", "w", track_order=True) as file:
        file["good"] = GRID
        make(file)
    name = "group/bad" if make is circle else "bad"
    with pytest.raises(kind, match=rf"a.h5.*{name}.*{said}|a.h5.*{said}"):
        store.import_file(tmp_path / "a.h5")
    assert list(store) == []
    kept = store.import_file(tmp_path / "a.h5", skip=[name if make is not second_name else "good"])
    assert len(kept) == (2 if make is circle else 1)


def test_names_to_skip(store: TensorStore, tmp_path: Path) -> None:
    for name in ("a.npz", "a.h5", "a.zarr", "a.nc"):
        WRITERS[name](tmp_path / name)
    assert store.import_file(tmp_path / "a.npz", "1/", skip=["x", "names"]) == ["1/empty", "1/group/y"]
    assert store.import_file(tmp_path / "a.h5", "2/", skip=["deep", "flags"]) == ["2/grid", "2/records"]
    assert store.import_file(tmp_path / "a.zarr", "3/", skip=["deep/er/"]) == ["3/grid"]
    assert store.import_file(tmp_path / "a.nc", "4/", skip=["n"]) == ["4", "4/grid"]
    with pytest.raises(InvalidInputError, match="skip is a list of names"):
        store.import_file(tmp_path / "a.npz", skip="x")


def no_numbers(path: Path) -> None:
    path.write_bytes(b"no array at all, but some text that is longer than a header" * 4)


def cut(path: Path) -> None:
    WRITERS[path.name](path)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 2 // 3])


def objects_npy(path: Path) -> None:
    np.save(path, np.array([{}, None], object), allow_pickle=True)


def npz_as_npy(path: Path) -> None:
    with path.open("wb") as file:
        np.savez(file, x=GRID)


def write_npy_as_npz(path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, GRID)


def broken_member(path: Path) -> None:
    WRITERS[path.name](path)
    with zipfile.ZipFile(path) as archive:
        place = archive.getinfo("x.npy").header_offset + 40
    content = bytearray(path.read_bytes())
    content[place : place + 20] = bytes(20)
    path.write_bytes(content)


def missing_chunks(path: Path) -> None:
    WRITERS[path.name](path)
    for found in path.rglob("c/*"):
        for chunk in [found] if found.is_file() else [one for one in found.rglob("*") if one.is_file()]:
            chunk.write_bytes(b"\0")


BAD_FILES: list[tuple[str, Callable[[Path], object], type[TensorageError], str]] = [
    ("a.npy", lambda path: None, InvalidInputError, "no such file"),
    ("a.csv", no_numbers, InvalidInputError, r"suffix '\.csv' is none of \.npy, \.npz"),
    ("a", no_numbers, InvalidInputError, "suffix '' is none of"),
    ("a.npy", lambda path: path.mkdir(), InvalidInputError, "it is a folder, and .npy is a file"),
    ("a.zarr", no_numbers, InvalidInputError, "it is a file, and .zarr is a folder"),
    ("a.npy", no_numbers, CorruptTensorError, "cannot be read"),
    ("a.npy", cut, CorruptTensorError, "cannot be read"),
    ("a.npy", objects_npy, CorruptTensorError, "Object arrays cannot be loaded"),
    ("a.npy", npz_as_npy, InvalidInputError, "it is no .npy file"),
    ("a.npz", write_npy_as_npz, InvalidInputError, "it is no .npz file"),
    ("a.npz", no_numbers, CorruptTensorError, "cannot be read"),
    ("a.npz", cut, CorruptTensorError, "cannot be read"),
    ("a.npz", broken_member, CorruptTensorError, "cannot be read"),
    ("a.h5", no_numbers, CorruptTensorError, "cannot be read"),
    ("a.h5", cut, CorruptTensorError, "cannot be read"),
    ("a.nc", no_numbers, InvalidInputError, "xarray cannot open it|cannot be read"),
    ("a.nc", cut, InvalidInputError, "cannot be read|xarray cannot open it"),
    ("a.zarr", lambda path: path.mkdir(), CorruptTensorError, "cannot be read"),
    ("a.zarr", missing_chunks, CorruptTensorError, "damaged|cannot be read"),
]


@pytest.mark.parametrize(("name", "make", "kind", "said"), BAD_FILES)
def test_bad_files(
    store: TensorStore,
    tmp_path: Path,
    name: str,
    make: Callable[[Path], object],
    kind: type[Exception],
    said: str,
) -> None:
    make(tmp_path / name)
    with pytest.raises(kind, match=said):
        store.import_file(tmp_path / name)
    assert list(store) == []


def test_an_error_leaves_nothing_of_what_was_sent(
    store: TensorStore, tmp_path: Path, database: Sql, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(entries, "BLOCK_BYTES", 50)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["a"], file["b"], file["z"] = GRID, GRID, file.ref
    with pytest.raises(DTypeError, match="references"):
        store.import_file(tmp_path / "a.h5")
    assert list(store) == []
    assert_only_arrays_are_kept(database, store.arrays.project.user_id)


@pytest.mark.parametrize("name", WRITERS)
def test_a_key_that_is_taken(store: TensorStore, tmp_path: Path, name: str) -> None:
    wanted = WRITERS[name](tmp_path / name)
    taken = sorted(wanted)[-1]
    store[taken] = [1, 2]
    with pytest.raises(KeyExistsError, match=taken):
        store.import_file(tmp_path / name)
    assert sorted(store) == [taken]
    assert_same(store[taken], np.array([1, 2]))
    store.allow_overwrite = True
    assert store.import_file(tmp_path / name) == sorted(wanted)
    assert_same(store[taken], wanted[taken])


def test_a_prefix_is_text(store: TensorStore, tmp_path: Path) -> None:
    write_npy(tmp_path / "a.npy")
    with pytest.raises(InvalidInputError, match="a prefix of keys is a string"):
        store.import_file(tmp_path / "a.npy", 3)  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match="NUL"):
        store.import_file(tmp_path / "a.npy", "a\0")


# Giving out -------------------------------------------------------------------------------------------


@pytest.fixture
def filled(store: TensorStore) -> TensorStore:
    """A store with a group of labelled arrays."""
    store.write(
        "g/t2m", GRID, attrs={"units": "K", "levels": [1, 2], "on": True}, dims=("time", "lat", "lon")
    )
    store.open("g/t2m").coords = {
        "lat": ("lat", LAT, {"units": "degrees"}),
        "area": (("lat", "lon"), np.ones((3, 4))),
    }
    store["g/sub/n"] = np.arange(5, dtype="u2")
    return store


@UNSTABLE
@pytest.mark.parametrize("suffix", [".npz", ".h5", ".hdf5", ".zarr"])
def test_a_group_goes_out_and_comes_in(filled: TensorStore, tmp_path: Path, suffix: str) -> None:
    filled["g/text"] = np.array(["a", "büc"])
    filled["g/time"] = np.array(["2020", "NaT"], "M8[s]")
    filled["g/records"] = np.array([(1, 2.5)], [("n", "<i4"), ("x", "<f8")])
    filled["g/empty"] = np.zeros((0, 3))
    filled["g/scalar"] = np.complex64(1j)
    path = tmp_path / f"out{suffix}"
    if suffix == ".npz":
        with pytest.warns(UserWarning, match="attributes, dims, coordinates of 'g/t2m'"):
            filled.export("g", path)
    else:
        filled.export("g", path)
    assert left_in(tmp_path) == [path.name]
    keys = filled.import_file(path, "back/")
    wanted = {key.removeprefix("g/") for key in filled.keys("g/")} | (
        set() if suffix == ".npz" else {"lat", "area"}
    )
    assert {key.removeprefix("back/") for key in keys} == wanted
    for key in filled.keys("g/"):
        assert_same(filled[f"back/{key.removeprefix('g/')}"], filled[key])
    if suffix != ".npz":
        back = filled.open("back/t2m")
        assert back.dims == ("time", "lat", "lon")
        assert dict(back.attrs) == {"units": "K", "levels": [1, 2], "on": True, "coordinates": "area"}
        assert_same(back.coords["lat"], LAT)
        assert dict(filled.open("back/lat").attrs) == {"units": "degrees"}
        assert filled.open("back/area").dims == ("lat", "lon")


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".h5", ".nc", ".zarr"])
def test_one_array_goes_out(store: TensorStore, tmp_path: Path, suffix: str) -> None:
    store["deep/x"] = GRID
    path = tmp_path / f"x{suffix}"
    store.export("deep/x", path)
    assert store.import_file(path, "back-") == ["back-x"]
    assert_same(store["back-x"], GRID)


def test_other_libraries_read_what_goes_out(filled: TensorStore, tmp_path: Path) -> None:
    filled.export("g/t2m", tmp_path / "w.h5")
    with h5py.File(tmp_path / "w.h5") as file:
        assert_same(file["t2m"][...], GRID)
        assert [dim.label for dim in file["t2m"].dims] == ["time", "lat", "lon"]
        assert file["t2m"].dims[1][0].name == "/lat"
        assert file["t2m"].attrs["units"] == "K"
    filled.export("g/t2m", tmp_path / "w.zarr")
    found = xr.open_zarr(tmp_path / "w.zarr", consolidated=False)
    assert (found.t2m.dims, set(found.coords)) == (("time", "lat", "lon"), {"lat", "area"})
    with pytest.warns(UserWarning, match="'on' of 't2m'"):
        filled.export("g/t2m", tmp_path / "w.nc")
    with xr.open_dataset(tmp_path / "w.nc") as dataset:
        assert_same(dataset.t2m.values, GRID)
        assert set(dataset.coords) == {"lat", "area"}
    with pytest.warns(UserWarning, match="attributes, dims, coordinates"):
        filled.export("g/t2m", tmp_path / "w.npy")
    assert_same(np.load(tmp_path / "w.npy"), GRID)


@pytest.mark.parametrize("suffix", [".nc", ".zarr", ".h5"])
def test_a_dataset_goes_out(store: TensorStore, tmp_path: Path, suffix: str) -> None:
    store["ds"] = weather()
    store["ds/deep/n"] = np.arange(3)
    store.export("ds/", tmp_path / f"ds{suffix}")
    if suffix == ".nc":
        with xr.open_dataset(tmp_path / "ds.nc") as found:
            xr.testing.assert_identical(plain(found), weather())
        with xr.open_dataset(tmp_path / "ds.nc", group="deep") as found:
            assert found.n.values.tolist() == [0, 1, 2]
    store.import_file(tmp_path / f"ds{suffix}", "back/")
    back = store.open_dataset("back").load()
    assert back.attrs == weather().attrs
    for name, array in weather().variables.items():
        assert_same(back[name].values, array.values)
    assert set(back.indexes) == set(weather().indexes)


def test_large_arrays_go_out_in_blocks(
    store: TensorStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tensorage.interchange.grouped.BLOCK_BYTES", 50)
    store["x"] = GRID
    for suffix in (".npy", ".npz", ".h5", ".zarr"):
        store.export("x", tmp_path / f"x{suffix}")
        store.import_file(tmp_path / f"x{suffix}", f"{suffix}-")
        assert_same(store[f"{suffix}-x"], GRID)


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".h5", ".nc", ".zarr"])
def test_a_file_that_is_there(store: TensorStore, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"x{suffix}"
    store["x"] = GRID
    store["y"] = [1]
    store.export("x", path)
    with pytest.raises(InvalidInputError, match="overwrite=True replaces it"):
        store.export("y", path)
    store["old/x"] = [7]
    store.export("old/x", path, overwrite=True)
    assert left_in(tmp_path) == [path.name]
    store.import_file(path, "back/", skip=[])
    assert store["back/x"].tolist() == [7]


BAD_EXPORTS: list[tuple[str, str, type[TensorageError], str]] = [
    ("g", "x.csv", InvalidInputError, "suffix '.csv'"),
    ("none", "x.npz", KeyNotFoundError, "neither such an array nor one below 'none/'"),
    ("g", "x.npy", InvalidInputError, "a .npy file has one array"),
    ("g", "no/x.npz", InvalidInputError, "there is no folder"),
    ("both", "x.h5", InvalidInputError, "an array of this name, and 1 arrays below it"),
    ("", "x.h5", InvalidInputError, "'both' is an array, and there is 'both/x' below it"),
    ("", "x.zarr", InvalidInputError, "either an array or a group"),
    ("dots/", "x.h5", InvalidInputError, "parts that are empty or dots"),
    ("small", "x.npy", DTypeError, "no place for dtype bfloat16"),
    ("small", "x.npz", DTypeError, "no place for dtype bfloat16"),
    ("small", "x.h5", DTypeError, "no place for dtype bfloat16"),
    ("small", "x.zarr", DTypeError, "no place for dtype bfloat16"),
    ("deep", "x.npy", DTypeError, "no place for dtype"),
    ("deep", "x.h5", DTypeError, "no place for dtype"),
    ("times", "x.h5", DTypeError, "HDF5 has no place for dtype"),
    ("inner", "x.zarr", DTypeError, "zarr has no place for dtype"),
    ("slash", "x.nc", InvalidInputError, "no place for names with a slash"),
    ("times", "x.nc", DTypeError, "NetCDF has no place for"),
]


@pytest.mark.parametrize(("key", "name", "kind", "said"), BAD_EXPORTS)
def test_exports_that_are_refused(
    filled: TensorStore, tmp_path: Path, key: str, name: str, kind: type[Exception], said: str
) -> None:
    import ml_dtypes

    filled["both"], filled["both/x"], filled["dots/../x"] = [1], [2], [3]
    filled["small"] = np.zeros(3, ml_dtypes.bfloat16)
    filled["deep"] = np.zeros(1, [("a", [("b", ml_dtypes.bfloat16)])])
    filled["inner"] = np.zeros(1, [("xyz", "f4", (3,))])
    filled["slash"] = xr.Dataset({"a/b": ("x", [1])})
    filled["times"] = np.zeros(1, [("t", "M8[s]")])
    with pytest.raises(kind, match=said):
        filled.export(key, tmp_path / name)
    assert left_in(tmp_path) == []


def test_an_array_that_changes_meanwhile(
    rows: TensorStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tensorage import ChangedError
    from tensorage.interchange import grouped

    monkeypatch.setattr(grouped, "BLOCK_BYTES", 50)
    rows["x"] = GRID
    path = tmp_path / "x.npy"
    path.write_bytes(b"as it was")
    read = grouped.Outgoing.blocks

    def blocks(item: Any) -> Any:
        for first, block in read(item):
            yield first, block
            rows["x", 0] = 1

    monkeypatch.setattr(grouped.Outgoing, "blocks", blocks)
    with pytest.raises(ChangedError):
        rows.export("x", path, overwrite=True)
    assert (left_in(tmp_path), path.read_bytes()) == (["x.npy"], b"as it was")


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".h5", ".nc", ".zarr"])
def test_an_array_that_is_damaged(rows: TensorStore, tmp_path: Path, suffix: str, database: Sql) -> None:
    rows["x"] = GRID
    database.execute("delete from public.tensors where data_id = %s", [rows.open("x").dataset.id])
    with pytest.raises(IncompleteTensorError, match="'x'"):
        rows.export("x", tmp_path / f"x{suffix}")
    assert left_in(tmp_path) == []


def test_coordinates_that_differ(store: TensorStore, tmp_path: Path) -> None:
    for name, shift in (("a", 0), ("b", 1)):
        store.write(f"g/{name}", LAT, dims=("lat",)).coords = {"lat": LAT + shift}
    with pytest.raises(InvalidInputError, match="coordinate 'lat' is not that of 'g/a'"):
        store.export("g", tmp_path / "x.h5")
    with pytest.raises(InvalidInputError, match="'lat' of 'g/a' is not that"):
        store.export("g", tmp_path / "x.nc")
    assert left_in(tmp_path) == []


@pytest.mark.parametrize("suffix", [".nc", ".h5", ".zarr"])
def test_an_array_that_labels_itself(store: TensorStore, tmp_path: Path, suffix: str) -> None:
    store["lat"] = xr.DataArray(LAT, [("lat", LAT)], name="lat")
    store.export("lat", tmp_path / f"x{suffix}")
    assert store.import_file(tmp_path / f"x{suffix}", "back-") == ["back-lat"]
    assert_same(store["back-lat"], LAT)


def test_a_dataset_in_a_file_of_numpy(store: TensorStore, tmp_path: Path) -> None:
    store["ds"] = weather()[["count", "unused"]]
    with pytest.warns(UserWarning, match="attributes and coordinates of the group 'ds'"):
        store.export("ds", tmp_path / "x.npz")
    with np.load(tmp_path / "x.npz") as found:
        assert found.files == ["count"]


def test_attributes_that_files_have_no_place_for(store: TensorStore, tmp_path: Path) -> None:
    odd = {"none": None, "nested": {"a": 1}, "mixed": [1, "a"], "long": "x" * 70_000, "big": 2**70}
    store.write("x", [1], attrs={**odd, "ok": "yes"})
    with pytest.warns(UserWarning, match="left out") as caught:
        store.export("x", tmp_path / "x.h5")
    assert all(repr(name) in str(caught[0].message) for name in odd)
    with h5py.File(tmp_path / "x.h5") as file:
        assert dict(file["x"].attrs) == {"ok": "yes"}
    store.export("x", tmp_path / "x.zarr")
    assert zarr.open_group(tmp_path / "x.zarr")["x"].attrs.asdict() == {**odd, "ok": "yes"}


# Packages that are missing ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "package", "extra"),
    [("a.h5", "h5py", "hdf5"), ("a.zarr", "zarr", "storage"), ("a.nc", "xarray", "netcdf")],
)
def test_a_package_that_is_missing(
    rows: TensorStore, tmp_path: Path, name: str, package: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    WRITERS[name](tmp_path / name)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(InvalidInputError, match=rf"'{package}'.*pip install 'tensorage\[{extra}\]"):
        rows.import_file(tmp_path / name)
    assert list(rows) == []
    rows["x"] = GRID
    with pytest.raises(InvalidInputError, match=rf"'{package}'.*pip install 'tensorage\[{extra}\]"):
        rows.export("x", tmp_path / f"out{Path(name).suffix}")
    assert left_in(tmp_path) == [name]


def test_packages_that_write_netcdf_are_missing(
    rows: TensorStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows["x"] = GRID
    for package in ("h5netcdf", "netCDF4"):
        monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(InvalidInputError, match=r"'h5netcdf': pip install 'tensorage\[netcdf\]"):
        rows.export("x", tmp_path / "x.nc")
    assert left_in(tmp_path) == []
