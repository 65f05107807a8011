"""Datasets of h5py and arrays of zarr that are assigned to a store keep what is kept with them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import zarr

from tensorage import DTypeError, TensorStore
from tensorage.interchange import entries

GRID = np.arange(24, dtype="<f4").reshape(2, 3, 4)


@pytest.fixture
def file(tmp_path: Path) -> Iterator[h5py.File]:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["lat"] = [50.0, 51.0, 52.0]
        file["lat"].make_scale()
        file["x"] = GRID
        file["x"].attrs.update({"units": "K", "levels": [1, 2]})
        for axis, name in enumerate(("time", "lat", "lon")):
            file["x"].dims[axis].label = name
        file["x"].dims[1].attach_scale(file["lat"])
        yield file


def zarr_array() -> Any:
    return zarr.create_array(
        {}, data=GRID, chunks=(1, 2, 2), attributes={"units": "K", "levels": [1, 2]},
        dimension_names=("time", "lat", "lon"),
    )  # fmt: skip


@pytest.mark.parametrize("block_bytes", [entries.BLOCK_BYTES, 50])
@pytest.mark.parametrize("kind", ["h5py", "zarr"])
def test_attributes_and_dims_are_kept(
    store: TensorStore, file: h5py.File, kind: str, block_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(entries, "BLOCK_BYTES", block_bytes)
    source = file["x"] if kind == "h5py" else zarr_array()
    store["x"] = source
    tensor = store.open("x")
    assert (dict(tensor.attrs), tensor.dims) == ({"units": "K", "levels": [1, 2]}, ("time", "lat", "lon"))
    assert (store["x"].tobytes(), tensor.engine) == (GRID.tobytes(), store.engine)
    assert (tensor.coords["lat"].tolist() if kind == "h5py" else [50, 51, 52]) == [50, 51, 52]
    with store.transaction() as tx:
        tx["y"] = source
    store.update(z=source)
    with store.background() as bg:
        bg["b"] = source
    for key in "yzb":
        assert (dict(store.open(key).attrs), store.open(key).dims) == (dict(tensor.attrs), tensor.dims)
        assert store[key].tobytes() == GRID.tobytes()


def test_others_in_their_place(store: TensorStore, file: h5py.File) -> None:
    tensor = store.write(
        "x", file["x"], attrs={"a": 1}, dims=("t", "y", "x"), engine="storage", chunks=(1, 3, 4)
    )
    assert (dict(tensor.attrs), tensor.dims, tensor.engine) == ({"a": 1}, ("t", "y", "x"), "storage")
    assert tensor.coords["y"].tolist() == [50, 51, 52]
    tensor = store.write("y", [file["x"][:1], file["x"][1:]], shape=GRID.shape, dtype="f4", attrs={"b": 2})
    assert dict(tensor.attrs) == {"b": 2}


def test_parts_are_assigned_and_appended_as_values(store: TensorStore, file: h5py.File) -> None:
    store["x"] = np.zeros((2, 3, 4), "f4")
    store["x", :] = file["x"]
    store.append("x", file["x"])
    assert store["x"].tobytes() == 2 * GRID.tobytes()
    assert dict(store.open("x").attrs) == {}
    store.append("new", file["x"], create=True)
    assert store["new"].tobytes() == GRID.tobytes()
    assert store.open("new").attrs["units"] == "K"


def test_attributes_without_a_place_are_named(store: TensorStore, file: h5py.File) -> None:
    file["x"].attrs["where"] = file.ref
    with pytest.warns(UserWarning, match="storing 'x': left out.*attribute 'where' of '/x'") as caught:
        store["x"] = file["x"]
    assert [one.filename for one in caught] == [__file__]
    assert "x" in store


def test_datasets_without_a_place(store: TensorStore, file: h5py.File) -> None:
    file["note"] = file.ref
    with pytest.raises(DTypeError, match="storing 'note': the dataset '/note' holds references"):
        store["note"] = file["note"]
    assert list(store) == []
