"""Arrays of xarray: what is stored with its labels comes back the same, read when it is needed, of one version."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from typing import Any

import dask.array
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from project import Project
from proxy import Proxy
from xarray.indexes import PandasIndex

from tensorage import ChangedError, DTypeError, InvalidInputError, TensorStore
from tensorage.backend.arrays import Arrays
from tensorage.types import COORDS_ATTRIBUTE, Engine


def weather(first: int = 0, days: int = 4, dtype: str = "f8") -> xr.DataArray:
    """Days of a grid, with coordinates of every kind."""
    rng = np.random.default_rng(first)
    time = np.datetime64("2020-01-01", "ns") + np.arange(first, first + days) * np.timedelta64(1, "D")
    return xr.DataArray(
        rng.random((days, 3, 5)).astype(dtype),
        dims=("time", "lat", "lon"),
        name="t2m",
        attrs={"units": "K", "levels": [1, 2], "scale": 0.5},
        coords={
            "time": ("time", time, {"long_name": "the day"}),
            "lat": [50.0, np.nan, 52.0],
            "lon": np.linspace(0, 4, 5, dtype="f4"),
            "season": ("time", np.array(["winter"] * days)),
            "area": (("lat", "lon"), np.arange(15).reshape(3, 5), {"units": "km2"}),
            "sea": (("lon", "lat"), np.arange(15).reshape(5, 3) % 2 == 0),
            "height": 2.0,
            "lead": np.timedelta64(6, "h").astype("m8[ns]"),
            "station": np.str_("Berlin"),
        },
    )


def assert_same(got: xr.DataArray, wanted: xr.DataArray) -> None:
    xr.testing.assert_identical(got.load(), wanted)
    assert got.dtype == wanted.dtype
    assert {name: c.dtype for name, c in got.coords.items()} == {
        name: c.dtype for name, c in wanted.coords.items()
    }
    assert set(got.xindexes) == set(wanted.xindexes)


# There and back ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "array",
    [
        weather(),
        weather(dtype="f4").rename(None),
        xr.DataArray(np.arange(3)),
        xr.DataArray(1.5, name="scalar", coords={"when": np.datetime64("2020", "ns")}),
        xr.DataArray(np.zeros((0, 2)), dims=("x", "y"), coords={"x": np.zeros(0), "y": ["a", "b"]}),
        xr.DataArray([1, 2], dims="x", coords={"x": np.array(["a", "long"], object)}),
        xr.DataArray([1, 2], dims="x", coords={"x": [3, 4]}).drop_indexes("x"),
        xr.DataArray([1, 2], dims="x", coords={"id": ("x", [3, 4])}).set_xindex("id"),
        xr.DataArray(np.array(["2020", "NaT"], "M8[ns]"), dims="x", coords={"x": [1j, 2]}),
        xr.DataArray([[True]], dims=("naïve dim", "y"), coords={"naïve dim": ["ü\n"]}, name="ñ"),
        weather().transpose("lon", "time", "lat")[::-1, ::2],
    ],
    ids=lambda array: f"{array.name}-{array.dims}",
)
def test_an_array_comes_back_identical(store: TensorStore, array: xr.DataArray) -> None:
    store["k"] = array
    assert_same(store.open("k").to_xarray(), array)
    assert np.array_equal(store["k"], array.values, equal_nan=array.dtype.kind in "fcmM")


def test_text_of_any_length_stays_such(store: TensorStore) -> None:
    """Handles keep it without xarray, whose copying ends a process with numpy 2.0."""
    text = np.array(["a", "long"], np.dtypes.StringDType())
    tensor = store.write("k", [1, 2], dims=("x",))
    tensor.coords = {"c": ("x", text)}
    found = store.open("k").coords["c"]
    assert found.dtype == text.dtype
    assert found.tolist() == ["a", "long"]


def test_written_with_options(store: TensorStore) -> None:
    array = weather()
    tensor = store.write("k", array, attrs={"source": "me"}, dims=("t", "lat", "x"))
    wanted = array.rename(time="t", lon="x").assign_attrs({"source": "me"})
    wanted.attrs = {"source": "me"}
    assert_same(tensor.to_xarray(), wanted)
    assert dict(store.write("bare", array, attrs={}).attrs) == {}


def test_written_as_blocks_of_another_dtype(store: TensorStore) -> None:
    array = weather(dtype="f4")
    made = store.write("k", array, shape=array.shape, dtype="f8")
    assert_same(made.to_xarray(), array.astype("f8"))


def test_an_array_of_dask_is_stored_by_its_blocks(store: TensorStore) -> None:
    lazy = weather().chunk(time=2)
    store["k"] = lazy
    assert isinstance(lazy.data, dask.array.Array)
    assert_same(store.open("k").to_xarray(), weather())
    again = store.open("k").to_xarray(chunks={0: 1})
    assert again.chunks == ((1, 1, 1, 1), (3,), (5,))
    assert store.open("k").to_xarray(chunks="auto").chunks == ((4,), (3,), (5,))
    assert_same(again.compute(), weather())


def test_a_background_writer_keeps_labels_as_they_were(store: TensorStore) -> None:
    array, more = weather(), weather(4, 2)
    with store.background() as bg:
        bg["k"] = array
        bg.append("k", more)
        bg.write("named", array, attrs={"a": 1}, dims=("t", "lat", "lon"))
        for given in (array, more):
            given[:] = 0
            given.coords["area"][:] = 0
            given.coords["season"][:] = "x"
            given.attrs["units"] = "?"
    fresh = xr.concat([weather(), weather(4, 2)], "time", coords="minimal", compat="equals", join="exact")
    assert_same(store.open("k").to_xarray(), fresh)
    named = weather().rename(time="t")
    named.attrs = {"a": 1}
    assert_same(store.open("named").to_xarray(), named)


def test_other_arrays_have_xarrays_own_labels(store: TensorStore) -> None:
    store["plain"] = np.arange(6).reshape(2, 3)
    assert_same(store.open("plain").to_xarray(), xr.DataArray(np.arange(6).reshape(2, 3), name="plain"))
    tensor = store.write("named", np.arange(3.0), dims=("x",), attrs={"a": 1})
    assert_same(tensor.to_xarray(), xr.DataArray(np.arange(3.0), dims="x", name="named", attrs={"a": 1}))
    two = store.write("two", np.zeros((2, 2)), dims=("x", "x"))
    with pytest.raises(InvalidInputError, match="a name of its own for each axis"):
        two.to_xarray()


# Objects of xarray that cannot be stored ----------------------------------------------------------------


def with_coord(values: Any) -> xr.DataArray:
    return xr.DataArray([1, 2], dims="x", coords={"c": ("x", values)})


@pytest.mark.parametrize(
    ("array", "error", "message"),
    [
        (
            xr.DataArray(np.zeros((2, 2)), coords={"a": [1, 2], "b": [1, 2]}, dims=("a", "b")).stack(
                z=("a", "b")
            ),
            InvalidInputError,
            r"MultiIndex.*reset_index\('z'\)",
        ),
        (
            with_coord(np.array([{}, None], object)),
            DTypeError,
            r"'c' holds objects \(dict\).*drop_vars\('c'\)",
        ),
        (with_coord(pd.interval_range(0, 2)), DTypeError, "which is one of pandas|holds objects"),
        (with_coord(pd.period_range("2020", periods=2, freq="M")), DTypeError, "one of pandas|holds objects"),
        (with_coord([b"a", b"b"]), DTypeError, r"'c' of dtype \|S1"),
        (xr.DataArray([1, 2], attrs={"f": object()}), InvalidInputError, "cannot be written as JSON"),
        (
            xr.DataArray([1, 2], coords={"c": ("x", [1, 2], {"f": {1, 2}})}, dims="x"),
            InvalidInputError,
            "as JSON",
        ),
        (xr.DataArray([1, 2], name=3), InvalidInputError, "a name is text"),
        (xr.DataArray([1, 2], dims=[3]), InvalidInputError, "dims are the names"),
        (with_coord([1, 2]).rename(c=7), InvalidInputError, "a name is text"),
        (xr.DataArray(np.array(["a", None], object)), DTypeError, "cannot be stored"),
        (
            xr.DataArray(np.zeros(150_000), dims="x", coords={"x": np.random.default_rng(0).random(150_000)}),
            InvalidInputError,
            "'x' of shape .* under a key of its own",
        ),
    ],
    ids=lambda case: None if isinstance(case, type) else str(case)[:40],
)
def test_what_cannot_be_stored_says_so(
    store: TensorStore, array: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        store["k"] = array
    with store.background() as bg, pytest.raises(error, match=message):
        bg["k"] = array
    assert "k" not in store


class OwnIndex(PandasIndex):
    """Index that may look elements up in another way."""


def test_an_index_of_another_type_is_refused(store: TensorStore) -> None:
    array = xr.DataArray([1, 2], dims="x", coords={"x": [1, 2]}).drop_indexes("x").set_xindex("x", OwnIndex)
    with pytest.raises(InvalidInputError, match=r"OwnIndex.*drop_indexes\('x'\)"):
        store["k"] = array


def test_names_that_coords_cannot_follow_are_refused(store: TensorStore) -> None:
    with pytest.raises(InvalidInputError, match="'height' is the name of a coordinate"):
        store.write("k", weather(), dims=("height", "lat", "lon"))
    with pytest.raises(InvalidInputError, match="2 dims name 3 axes"):
        store.write("k", weather(), dims=("lat", "lon"))
    assert "k" not in store


# Parts ------------------------------------------------------------------------------------------------


def test_a_part_is_assigned_by_its_values(store: TensorStore) -> None:
    array = weather()
    store["k"] = array
    store["k", 1:3] = weather(7, 2)
    store["k", 0] = xr.DataArray(7)
    wanted = array.copy()
    wanted[1:3] = weather(7, 2).values
    wanted[0] = 7
    assert_same(store.open("k").to_xarray(), wanted)


@pytest.mark.parametrize("by_tensor", [False, True])
def test_appended_labels_extend_the_coordinates(store: TensorStore, by_tensor: bool) -> None:
    array = weather(0, 6)
    store["k"] = array[:2]
    tensor = store.open("k")
    for rows in (array[2:3], array[3:3], array[3:]):
        if by_tensor:
            tensor.append(rows)
        else:
            store.append("k", rows)
    tensor.refresh()
    assert_same(tensor.to_xarray(), array)


def test_longer_text_is_kept_whole(store: TensorStore) -> None:
    store["k"] = xr.DataArray([1], dims="x", coords={"x": ["a"]})
    store.append("k", xr.DataArray([2], dims="x", coords={"x": ["much longer"]}))
    assert store.open("k").coords["x"].tolist() == ["a", "much longer"]


def test_rows_without_a_coordinate_along_them_need_no_labels(store: TensorStore) -> None:
    array = xr.DataArray(np.arange(6).reshape(2, 3), dims=("n", "x"), coords={"x": list("abc")})
    store["k"] = array
    store.append("k", array)
    assert_same(store.open("k").to_xarray(), xr.concat([array, array], "n"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a.rename(lat="y"), "its dims are"),
        (lambda a: a.transpose("time", "lon", "lat"), "its dims are"),
        (lambda a: a.drop_vars("season"), "its coordinates are"),
        (lambda a: a.assign_coords(more=1), "its coordinates are"),
        (lambda a: a.assign_coords(time=[1, 2]), "labels of dtype int64 do not fit the coordinate 'time'"),
        (lambda a: a.assign_coords(season=("time", [1, 2])), "do not fit the coordinate 'season'"),
        (lambda a: a[:, ::-1], "'lat' of the DataArray is not the stored one"),
        (lambda a: a.assign_coords(height=3.0), "'height' of the DataArray is not the stored one"),
        (lambda a: a.assign_coords(season="x"), "'season' runs along"),
    ],
)
def test_labels_that_do_not_fit_append_nothing(store: TensorStore, change: Any, message: str) -> None:
    store["k"] = weather()
    with pytest.raises(InvalidInputError, match=message):
        store.append("k", change(weather(4, 2)))
    assert_same(store.open("k").to_xarray(), weather())


def test_labels_need_those_before_them(store: TensorStore) -> None:
    store["k"] = weather()
    store.append("k", weather(4, 1).values)
    with pytest.raises(InvalidInputError, match="has 4 labels for 5 rows"):
        store.append("k", weather(5, 1))
    assert store.open("k").shape == (5, 3, 5)


def test_rows_that_others_append_meanwhile_are_never_labelled_wrongly(
    store: TensorStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store["k"] = weather()
    append = Arrays.append

    def append_later(arrays: Arrays, key: str, rows: Any, **how: Any) -> Any:
        append(arrays, key, np.zeros((1, 3, 5)))
        return append(arrays, key, rows, **how)

    with monkeypatch.context() as patched:
        patched.setattr(Arrays, "append", append_later)
        with pytest.raises(ChangedError, match="rows 5 to 6 were appended, but not their labels"):
            store.append("k", weather(4, 1))
    tensor = store.open("k")
    assert tensor.shape == (6, 3, 5)
    assert len(tensor.coords["time"]) == 4


def test_a_coordinate_that_is_too_short_is_left_out_with_a_warning(store: TensorStore) -> None:
    array = weather()
    store["k"] = array
    tensor = store.open("k")
    tensor.append(np.zeros((1, 3, 5)))
    with pytest.warns(UserWarning, match="is left out: it has labels") as caught:
        got = tensor.to_xarray()
    assert [str(w.message).split(" is left out")[0] for w in caught] == [
        "the coordinate 'time' of 'k'", "the coordinate 'season' of 'k'",
    ]  # fmt: skip
    assert all(w.filename == __file__ for w in caught)
    assert set(got.coords) == set(array.coords) - {"time", "season"}
    tensor.coords = {"time": weather(0, 5).time}
    assert tensor.to_xarray().time.identical(weather(0, 5).time.reset_coords(drop=True))


# Coordinates of a handle ------------------------------------------------------------------------------


def test_coords_of_a_handle(store: TensorStore) -> None:
    array = weather()
    store["k"] = array
    tensor = store.open("k")
    assert set(tensor.coords) == set(array.coords)
    for name, coord in array.coords.items():
        assert np.array_equal(tensor.coords[name], coord.values, equal_nan=coord.dtype.kind in "fmM")
    assert "season" in tensor._repr_html_()
    tensor.coords = {"lat": [1, 2, 3], "area": (("lat", "lon"), np.ones((3, 5)), {"units": "m2"})}
    wanted = array.drop_vars(set(array.coords)).assign_coords(lat=[1, 2, 3])
    wanted = wanted.assign_coords(area=(("lat", "lon"), np.ones((3, 5)), {"units": "m2"}))
    assert_same(store.open("k").to_xarray(), wanted)
    other = store.write("other", np.zeros((4, 3, 5)), dims=("time", "lat", "lon"))
    other.coords = tensor.coords
    xr.testing.assert_identical(other.to_xarray().coords.to_dataset(), wanted.coords.to_dataset())
    other.coords = {**other.coords, "height": ((), 2.0)}
    found = other.to_xarray().drop_vars("height").coords.to_dataset()
    xr.testing.assert_identical(found, wanted.coords.to_dataset())
    assert other.coords["height"] == 2
    with pytest.raises(InvalidInputError, match="the array"):
        tensor.coords = {"lat": [1, 2]}
    tensor.coords = {}
    assert_same(store.open("k").to_xarray(), array.drop_vars(set(array.coords)))
    assert "coords" not in tensor._repr_html_()
    other.coords = {}
    assert store.open("other").dataset.coords is None


def test_attributes_and_coordinates_do_not_meet(store: TensorStore) -> None:
    array = weather()
    store["k"] = array
    tensor = store.open("k")
    assert dict(tensor.attrs) == array.attrs
    with pytest.raises(InvalidInputError, match="is reserved"):
        tensor.attrs[COORDS_ATTRIBUTE] = 1
    with pytest.raises(InvalidInputError, match="is reserved"):
        store.write("other", [1], attrs={COORDS_ATTRIBUTE: {}})
    tensor.attrs = {"new": 1}
    wanted = array.copy()
    wanted.attrs = {"new": 1}
    assert_same(store.open("k").to_xarray(), wanted)
    tensor.attrs.clear()
    wanted.attrs = {}
    assert_same(store.open("k").to_xarray(), wanted)


def test_coords_go_with_the_array(store: TensorStore, engine: Engine, project: Project) -> None:
    array = weather()
    store["k"] = array
    store.copy("k", "same")
    store.copy("k", "other", engine="database" if engine == "storage" else "storage")
    store.rename("k", "renamed")
    for key in ("same", "other", "renamed"):
        assert_same(store.open(key).to_xarray(), array)
    store.open("renamed").dims = ("time", "y", "x")
    assert_same(store.open("renamed").to_xarray(), array.rename(lat="y", lon="x"))
    store.share("same")
    someone = project.session(project.register())
    theirs = someone().open("same", owner=store.backend.email)
    assert_same(theirs.to_xarray(), array)
    someone.logout()


def test_a_zarr_store_shows_no_coordinates_as_attributes(store: TensorStore) -> None:
    store.write("k", weather(), engine="storage")
    opened = xr.open_zarr(store.zarr_store("k", as_group="t2m"))["t2m"]
    assert opened.attrs == weather().attrs
    assert opened.dims == ("time", "lat", "lon")


# Reading ----------------------------------------------------------------------------------------------


SELECTIONS: list[Any] = [
    lambda a: a,
    lambda a: a[1],
    lambda a: a[-1, ::-2, 3],
    lambda a: a[1, 2, 3],
    lambda a: a[[2, 0]],
    lambda a: a[[2, 0], :, [4, 4, 1]],
    lambda a: a[:, [2, 0], [4, 4, 1]],
    lambda a: a[2, :, [1, 0]],
    lambda a: a[[1, 0], 2],
    lambda a: a[[-1, 0], -1, [0]],
    lambda a: a[[3, 1], [0, 2], [1, 1]],
    lambda a: a[:0],
    lambda a: a[[]],
    lambda a: a[:, np.array([True, False, True])],
    lambda a: a[1:][::2][:, [1, 0]][..., -1],
    lambda a: a.transpose("lon", "time", "lat")[1:3, [1, 0]],
    lambda a: a.isel(time=xr.DataArray([0, 2], dims="p"), lon=xr.DataArray([1, 4], dims="p")),
    lambda a: a.isel(time=xr.DataArray([0, 2], dims="p"), lat=xr.DataArray([1, 2], dims="p")),
    lambda a: a.isel(lat=xr.DataArray([0, 2], dims="p"), lon=xr.DataArray([1, 4], dims="p")),
    lambda a: a.isel(lat=xr.DataArray([[0, 2], [1, 1]], dims=("p", "q")), lon=2),
    lambda a: a.isel(lat=xr.DataArray([[0], [1]], dims=("p", "q")), lon=xr.DataArray([1, 4], dims="p")),
    lambda a: a.isel(time=xr.DataArray([3, 0], dims="p"), lon=xr.DataArray([1, 4], dims="p"))[0, :2],
    lambda a: a.sel(time="2020-01-02", lon=slice(1, 3)),
    lambda a: a.sel(lon=[1.1, 3.9], method="nearest"),
    lambda a: a.mean("time"),
    lambda a: a.groupby("season").max(),
    lambda a: a + a.isel(time=0),
    lambda a: a.where(a > 0.5, drop=True),
]


def test_indexing_is_xarrays(store: TensorStore) -> None:
    array = weather()
    store["k"] = array
    lazy = store.open("k").to_xarray()
    for select in SELECTIONS:
        xr.testing.assert_identical(select(lazy).load(), select(array))


def test_only_what_is_needed_is_read(store: TensorStore, proxy: Proxy) -> None:
    store["k"] = xr.DataArray(np.zeros((100, 1000)), dims=("n", "x"))
    tensor = store.open("k")
    before = len(proxy.exchanges)
    lazy = tensor.to_xarray()
    part = lazy.isel(n=[3, 50])[:, :10]
    _ = repr(lazy), lazy._repr_html_(), part.sizes, part.T
    assert len(proxy.exchanges) == before
    assert part.load().shape == (2, 10)
    if store.engine == "database":
        assert sum(exchange.received_bytes for exchange in proxy.exchanges[before:]) < 40_000


def test_an_index_out_of_range_raises(store: TensorStore) -> None:
    store["k"] = weather()
    with pytest.raises(IndexError):
        store.open("k").to_xarray().isel(time=4).load()


def test_reading_stays_on_one_version(store: TensorStore) -> None:
    store["k"] = weather()
    tensor = store.open("k")
    lazy = tensor.to_xarray()
    tensor.attrs["more"] = 1
    tensor.append(np.zeros((1, 3, 5)))
    assert_same(lazy[:], weather())
    store["k", 0] = 0
    with pytest.raises(ChangedError):
        lazy.load()
    del store["k"]
    with pytest.raises(ChangedError):
        lazy[1].load()


def test_assigning_changes_a_copy(store: TensorStore) -> None:
    store["k"] = weather()
    lazy = store.open("k").to_xarray()
    lazy[0] = 0
    wanted = weather()
    wanted[0] = 0
    assert_same(lazy, wanted)
    assert np.array_equal(store["k"], weather().values)


def test_lazy_arrays_are_copied_and_pickled(store: TensorStore) -> None:
    store["k"] = weather()
    lazy = store.open("k").to_xarray()[1:]
    for made in (lazy.copy(), copy.deepcopy(lazy), pickle.loads(pickle.dumps(lazy))):
        assert_same(made, weather()[1:])


def test_names_of_dask_tell_versions_apart(store: TensorStore) -> None:
    store["k"] = weather()
    first, again = (store.open("k").to_xarray().chunk(time=2) for _ in range(2))
    store["k", 0] = 0
    later = store.open("k").to_xarray().chunk(time=2)
    assert first.data.name == again.data.name != later.data.name
    assert_same(later.compute(), store.open("k").to_xarray())
    with pytest.raises(ChangedError):
        first.compute()


# Without xarray ---------------------------------------------------------------------------------------

WITHOUT = """
import sys
for name in ("xarray", "pandas"):
    sys.modules[name] = None
import numpy as np, tensorage
from tensorage.types import Dataset
tensor = tensorage.Tensor(None, Dataset(1, "k", (3,), np.dtype("f4"), 3))
try:
    tensor.to_xarray()
except tensorage.InvalidInputError as error:
    print(error)
assert len(tensor.coords) == 0
"""


def test_without_xarray_an_error_says_what_to_install() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", WITHOUT], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "pip install 'tensorage[xarray]>=0.2'" in done.stdout
