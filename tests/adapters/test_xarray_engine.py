"""``xarray.open_dataset(store, engine="tensorage")``: arrays below a prefix as one Dataset."""

from __future__ import annotations

import pickle
from importlib.metadata import entry_points

import dask
import numpy as np
import pytest
import xarray as xr
from proxy import Proxy

from tensorage import ChangedError, InvalidInputError, KeyNotFoundError, TensorStore
from tensorage.xarray_engine import TensorageEntrypoint


@pytest.fixture
def era5(store: TensorStore) -> xr.Dataset:
    """A Dataset whose variables are stored below ``era5/``."""
    rng = np.random.default_rng(0)
    time = np.datetime64("2020-01-01", "ns") + np.arange(6) * np.timedelta64(1, "D")
    made = xr.Dataset(
        {
            "t2m": (("time", "lat", "lon"), rng.random((6, 3, 4)), {"units": "K"}),
            "orography": (("lat", "lon"), rng.random((3, 4), dtype="f4")),
            "count": ((), np.int16(3)),
        },
        coords={
            "time": time,
            "lat": ("lat", [50.0, np.nan, 52.0], {"units": "degrees"}),
            "lon": np.arange(4),
            "area": (("lat", "lon"), np.ones((3, 4))),
            "height": 2.0,
        },
    )
    for name, array in made.data_vars.items():
        store[f"era5/{name}"] = array
    store["other"] = [1]
    return made


def opened(given: object, **options: object) -> xr.Dataset:
    return xr.open_dataset(given, engine="tensorage", **options)  # type: ignore[arg-type]


def test_the_engine_is_registered() -> None:
    (found,) = entry_points(group="xarray.backends", name="tensorage")
    assert found.load() is TensorageEntrypoint
    assert isinstance(xr.backends.list_engines()["tensorage"], TensorageEntrypoint)


def test_arrays_below_a_prefix_are_one_dataset(store: TensorStore, era5: xr.Dataset) -> None:
    xr.testing.assert_identical(opened(store, prefix="era5/").load(), era5)
    # The engine needs no name: nothing else opens a store.
    xr.testing.assert_identical(xr.open_dataset(store, prefix="era5/").load(), era5)  # type: ignore[arg-type]


def test_arrays_of_a_group_are_found_by_their_whole_keys(store: TensorStore, era5: xr.Dataset) -> None:
    xr.testing.assert_identical(opened(store.group("era5")).load(), era5)
    store.group("a")["era5/x"] = [1]
    assert list(opened(store.group("a"), prefix="era5/")) == ["x"]


def test_no_elements_are_asked_for_at_opening(store: TensorStore, era5: xr.Dataset, proxy: Proxy) -> None:
    with proxy.counted() as exchanges:
        found = opened(store, prefix="era5/")
        _ = repr(found), found.sizes, found.t2m.isel(time=0)
    assert {exchange.function for exchange in exchanges} == {"list", "open"}
    with proxy.counted() as exchanges:
        assert found.t2m[0].load().identical(era5.t2m[0])
    assert exchanges


def test_one_array(store: TensorStore, era5: xr.Dataset) -> None:
    tensor = store.open("era5/t2m")
    xr.testing.assert_identical(opened(tensor).load(), era5[["t2m"]])
    tensor = store.write("plain", [1, 2], dims=("x",))
    xr.testing.assert_identical(opened(tensor).load(), xr.Dataset({"plain": ("x", [1, 2])}))


def test_in_chunks_that_are_cheap_to_read(store: TensorStore) -> None:
    array = np.zeros((40, 2**20), "u1") + np.arange(40, dtype="u1")[:, None]
    tensor = store.write("k", array, dims=("n", "x"))
    rows, columns = store.arrays.shape_to_read(tensor.dataset)
    assert (rows < 40, columns) == (True, 2**20)
    found = opened(store, chunks={})
    # The axis that is not cut may have any chunks.
    assert found.k.encoding["preferred_chunks"] == {"n": rows}
    assert found.k.data.chunksize == (rows, columns)
    with pytest.warns(UserWarning, match="separate the stored chunks"):
        assert opened(store, chunks={"n": rows - 1}).chunks["n"][0] == rows - 1
    assert opened(store, chunks={"n": rows, "x": 2**19}).chunks["x"] == (2**19, 2**19)
    assert np.array_equal(found.k.max("x").compute(), np.arange(40))


def test_a_small_array_is_one_chunk(store: TensorStore) -> None:
    store.write("k", np.arange(48.0).reshape(12, 4), dims=("n", "x"))
    assert opened(store, chunks={}).k.data.chunksize == (12, 4)
    assert opened(store, chunks={"n": 3}).chunks["n"] == (3, 3, 3, 3)


def test_a_dataset_stays_on_one_version(store: TensorStore, era5: xr.Dataset) -> None:
    whole = opened(store, prefix="era5/", cache=False)
    chunked, in_memory = (opened(store, prefix="era5/", chunks={}) for _ in range(2))
    in_memory = in_memory.load()
    store["era5/t2m", 0] = 0
    later = opened(store, prefix="era5/", chunks={})
    assert later.t2m.data.name != chunked.t2m.data.name
    for stale in (whole, chunked):
        with pytest.raises(ChangedError):
            stale.t2m.load()
    # Both graphs in one: no task of the one stands for one of the other.
    with pytest.raises(ChangedError):
        dask.compute(chunked.t2m, later.t2m)
    assert np.array_equal(later.t2m, store["era5/t2m"])
    xr.testing.assert_identical(in_memory, era5)


def test_chunks_of_a_handle_tell_versions_apart(store: TensorStore) -> None:
    store["k"] = np.arange(4)
    tensor = store.open("k")
    first, again = (opened(tensor, chunks={}).k.data.name for _ in range(2))
    tensor[0] = 5
    assert first == again != opened(tensor, chunks={}).k.data.name


def test_a_dataset_is_pickled(store: TensorStore, era5: xr.Dataset) -> None:
    found = pickle.loads(pickle.dumps(opened(store, prefix="era5/")))
    xr.testing.assert_identical(found.load(), era5)


def test_axes_without_names_are_each_its_own(store: TensorStore) -> None:
    store["a/x"], store["a/y"] = np.zeros((2, 3)), np.zeros(4)
    assert dict(opened(store, prefix="a/").sizes) == {"x_dim_0": 2, "x_dim_1": 3, "y_dim_0": 4}


def test_a_stored_array_with_the_name_of_its_axis_is_a_coordinate(store: TensorStore) -> None:
    store.write("a/x", [10, 20], dims=("x",))
    store.write("a/y", [1.0, 2.0], dims=("x",))
    wanted = xr.Dataset({"y": ("x", [1.0, 2.0])}, {"x": [10, 20]})
    xr.testing.assert_identical(opened(store, prefix="a/").load(), wanted)


def test_names_can_be_left_out(store: TensorStore, era5: xr.Dataset) -> None:
    names = ["count", "area", "time"]
    found = opened(store, prefix="era5/", drop_variables=names)
    assert set(found.variables) == set(era5.variables) - set(names)
    assert found.sizes == era5.sizes
    assert "area" not in opened(store.open("era5/t2m"), drop_variables="area").coords


def test_coordinates_that_contradict_each_other_are_refused(store: TensorStore) -> None:
    array = xr.DataArray([1, 2], dims="x", coords={"x": [1, 2], "height": 2.0})
    for key, other, name in [
        ("a/value", array.assign_coords(height=10.0), "height"),
        ("a/dtype", array.assign_coords(x=[1.0, 2.0]), "x"),
        ("a/attrs", array.assign_coords(x=("x", [1, 2], {"units": "m"})), "x"),
        ("a/dims", array.assign_coords(height=("x", [2.0, 2.0])), "height"),
    ]:
        store["a/array"], store[key] = array, other
        with pytest.raises(InvalidInputError, match=f"'{name}' of 'a/array' is not that of '{key}'"):
            opened(store, prefix="a/")
        assert len(opened(store, prefix="a/", drop_variables=name).data_vars) == 2
        del store["a/array"], store[key]


def test_axes_that_contradict_each_other_are_refused(store: TensorStore) -> None:
    store.write("a/one", [1, 2], dims=("x",))
    store.write("a/two", [1, 2, 3], dims=("x",))
    with pytest.raises(InvalidInputError, match="'x' has 2 elements in 'a/one' and 3 in 'a/two'"):
        opened(store, prefix="a/")
    assert set(opened(store, prefix="a/", drop_variables=["one"]).data_vars) == {"two"}


def test_names_that_mean_two_things_are_refused(store: TensorStore) -> None:
    store["a/t"] = xr.DataArray([1, 2], dims="x", coords={"x": [1, 2], "h": 1})
    store.write("a/x", [1, 2], dims=("x",))
    with pytest.raises(InvalidInputError, match="'a/x' would have the name of the coordinate 'x'"):
        opened(store, prefix="a/")
    store.rename("a/x", "a/h")
    with pytest.raises(InvalidInputError, match="'a/h' would have the name of the coordinate 'h'"):
        opened(store, prefix="a/")
    store.rename("a/h", "b/x")
    store.write("b/u", [[1], [2]], dims=("x", "y"))
    store.write("b/y", [1, 2], dims=("x",))
    with pytest.raises(InvalidInputError, match="'b/y' would have the name of an axis of 'b/u', 'y'"):
        opened(store, prefix="b/")
    store["c/s"] = xr.DataArray([1, 2], dims="z", coords={"x": 1})
    store.write("c/x_along", [1, 2], dims=("x",))
    with pytest.raises(InvalidInputError, match="has the name of an axis of 'c/x_along', 'x'"):
        opened(store, prefix="c/")
    store["d"] = xr.DataArray([1, 2], dims="x", coords={"x": [1, 2]}, name="x")
    with pytest.raises(InvalidInputError, match=r"on its own, by \.to_xarray"):
        opened(store.open("d"))


def test_coordinates_that_are_too_short_are_left_out(store: TensorStore) -> None:
    store["k"] = xr.DataArray([1, 2], dims="x", coords={"x": [1, 2]})
    store.append("k", [3])
    with pytest.warns(UserWarning, match="'x' of 'k' is left out") as caught:
        found = opened(store)
    assert "x" not in found.coords
    assert [w.filename for w in caught] == [__file__]


def test_what_is_not_there_or_no_store_is_refused(store: TensorStore) -> None:
    with pytest.raises(KeyNotFoundError, match=r"no key of .* begins with 'nothing/'"):
        opened(store, prefix="nothing/")
    with pytest.raises(InvalidInputError, match="opens a TensorStore or a Tensor"):
        opened({"no": "store"})
