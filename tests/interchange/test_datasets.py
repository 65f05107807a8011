"""Datasets of xarray: each is stored as a group, as a whole or not at all, and comes back the same."""

from __future__ import annotations

from typing import Any

import dask.array
import numpy as np
import pytest
import xarray as xr

from tensorage import (
    ChangedError,
    DTypeError,
    IncompleteTensorError,
    InvalidInputError,
    KeyExistsError,
    KeyNotFoundError,
    QuotaExceededError,
    SchemaError,
    TensorStore,
)
from tensorage.errors import CorruptTensorError
from tensorage.interchange.marks import GROUP_ATTRIBUTE


def weather(first: int = 0) -> xr.Dataset:
    rng = np.random.default_rng(first)
    time = np.datetime64("2020-01-01", "ns") + np.arange(4) * np.timedelta64(1, "D")
    return xr.Dataset(
        {
            "t2m": (("time", "lat", "lon"), rng.random((4, 3, 5), "f4"), {"units": "K", "levels": [1, 2]}),
            "orography": (("lat", "lon"), rng.random((3, 5))),
            "count": ((), np.int16(3)),
            "label": ("lat", np.array(["a", "büc", ""])),
        },
        coords={
            "time": ("time", time, {"long_name": "the day"}),
            "lat": ("lat", [50.0, np.nan, 52.0], {"units": "degrees"}),
            "lon": np.arange(5),
            "area": (("lat", "lon"), np.ones((3, 5))),
            "height": 2.0,
            "unused": ("other", ["x", "yz"]),
        },
        attrs={"title": "weather", "history": ["made"], "nested": {"a": None}},
    )


def large_coords() -> xr.Dataset:
    """Coordinates that have no room in the catalogue: random ones, with and without an index, and bytes."""
    rng = np.random.default_rng(0)
    return xr.Dataset(
        {"x": (("n", "m"), np.zeros((20_000, 2), "u1"))},
        coords={
            "n": ("n", rng.random(20_000), {"units": "s"}),
            "other": ("n", rng.random(20_000)),
            "both": (("n", "m"), rng.random((20_000, 2))),
            "code": ("m", np.array([b"a", b"bc"])),
        },
    )


CASES = {
    "weather": weather(),
    "empty": xr.Dataset(),
    "only attributes": xr.Dataset(attrs={"a": 1}),
    "only coordinates": xr.Dataset(coords={"x": [1, 2]}),
    "no coordinates": xr.Dataset({"a": ("x", [1, 2])}),
    "no index": xr.Dataset({"a": ("x", [1, 2])}, {"x": [3, 4]}).drop_indexes("x"),
    "another index": xr.Dataset({"a": ("x", [1, 2])}, {"id": ("x", [3, 4])}).set_xindex("id"),
    "names": xr.Dataset({"a b": ("naïve dim", [1, 2]), "deep/er": ("naïve dim", [True, False])}),
    "no elements": xr.Dataset({"a": (("x", "y"), np.zeros((0, 2)))}, {"x": np.zeros(0)}),
    "large": large_coords(),
    "many": xr.Dataset(
        {"a": ("n", np.zeros(8000))},
        {f"c{i}": ("n", np.random.default_rng(i).random(8000)) for i in range(12)},
    ),
    "text of any length": xr.Dataset(coords={"x": np.array([f"station {i}" for i in range(10_000)], object)}),
}


@pytest.mark.parametrize("name", CASES)
def test_a_dataset_comes_back_identical(store: TensorStore, name: str) -> None:
    dataset = CASES[name]
    store["ds"] = dataset
    found = store.open_dataset("ds")
    xr.testing.assert_identical(found.load(), dataset)
    assert {one: v.dtype for one, v in found.variables.items()} == {
        one: v.dtype for one, v in dataset.variables.items()
    }
    assert set(found.xindexes) == set(dataset.xindexes)
    assert list(found.data_vars) == list(dataset.data_vars)


def test_variables_are_arrays(store: TensorStore) -> None:
    store.group("deep")["ds"] = weather()
    assert store.keys("deep/") == [
        "deep/ds", "deep/ds/count", "deep/ds/label", "deep/ds/orography", "deep/ds/t2m",
    ]  # fmt: skip
    found = store.open("deep/ds/t2m")
    assert (found.dims, found.attrs["units"], found.engine) == (("time", "lat", "lon"), "K", store.engine)
    xr.testing.assert_identical(found.to_xarray().load(), weather().t2m)
    opened = xr.open_dataset(store, engine="tensorage", prefix="deep/ds/")  # type: ignore[arg-type]
    assert opened.load().drop_attrs().equals(weather().drop_vars("unused").drop_attrs())
    assert store.group("deep").open_dataset("ds").identical(weather())


def test_elements_are_read_when_they_are_used(store: TensorStore) -> None:
    store["ds"] = weather()
    found = store.open_dataset("ds")
    before = store.arrays.changes
    assert found.t2m.sel(lat=52).isel(time=1).values.tolist() == weather().t2m[1, 2].values.tolist()
    store["ds/t2m", 0] = 1
    assert store.arrays.changes > before
    with pytest.raises(ChangedError):
        found.t2m.load()


def test_names_to_drop(store: TensorStore) -> None:
    store["ds"] = weather()
    found = store.open_dataset("ds", drop_variables=["t2m", "area"])
    xr.testing.assert_identical(found.load(), weather().drop_vars(["t2m", "area"]))
    assert "count" not in store.open_dataset("ds", drop_variables="count")


def test_in_place_of_another_one(store: TensorStore) -> None:
    store["ds"] = weather()
    store["ds/of/others"] = [1]
    with pytest.raises(KeyExistsError):
        store["ds"] = weather(1)
    assert store.open_dataset("ds").identical(weather())
    store.allow_overwrite = True
    store["ds"] = weather(1).drop_vars("orography")
    assert store.open_dataset("ds").identical(weather(1).drop_vars("orography"))
    # The array that is no part of the Dataset stays, and the variable that is none any more is gone.
    assert store.keys() == ["ds", "ds/count", "ds/label", "ds/of/others", "ds/t2m"]


def bad_variable(value: Any) -> xr.Dataset:
    return weather().assign(zzz=("n", value))


BAD = [
    (bad_variable(np.array([{}, None], object)), DTypeError, "object"),
    (weather().assign_attrs(a={1, 2}), InvalidInputError, "attributes cannot be written as JSON"),
    (
        weather().assign(zzz=("n", [1], {"a": np.nan})),
        InvalidInputError,
        "attributes cannot be written as JSON",
    ),
    (weather().rename(t2m=3), InvalidInputError, "a name is text"),
    (weather().stack(z=("lat", "lon")), InvalidInputError, "MultiIndex"),
    (weather().assign_coords(c=("time", np.array([{}] * 4, object))), DTypeError, "holds objects"),
]


@pytest.mark.parametrize(("dataset", "kind", "said"), BAD)
def test_datasets_that_cannot_be_stored(
    store: TensorStore, dataset: xr.Dataset, kind: type[Exception], said: str
) -> None:
    with pytest.raises(kind, match=said):
        store["ds"] = dataset
    assert list(store) == []


def test_options_are_for_single_arrays(store: TensorStore) -> None:
    with (
        store.background() as bg,
        pytest.raises(InvalidInputError, match=r"store\['ds'\] = dataset stores it"),
    ):
        bg["ds"] = weather()  # type: ignore[assignment]
    with pytest.raises(InvalidInputError, match=r"store\['ds'\] = dataset stores it as a group"):
        store.write("ds", weather(), attrs={"a": 1})  # type: ignore[arg-type]


def test_one_that_is_taken_leaves_all_as_it_was(store: TensorStore) -> None:
    store["ds/t2m"] = [1]
    with pytest.raises(KeyExistsError):
        store["ds"] = weather()
    assert list(store) == ["ds/t2m"]


def stored_in_a_transaction_that_fails(store: TensorStore) -> None:
    with store.transaction() as tx:
        tx["other"] = weather()  # type: ignore[assignment]
        raise ZeroDivisionError


def test_in_a_transaction(store: TensorStore) -> None:
    with store.transaction() as tx:
        tx["ds"] = weather()  # type: ignore[assignment]
        tx["n"] = [1]
    assert store.open_dataset("ds").identical(weather())
    with pytest.raises(ZeroDivisionError):
        stored_in_a_transaction_that_fails(store)
    assert store.keys("other") == []
    store.allow_overwrite = True
    with store.transaction() as tx:
        tx["ds"] = weather(1)[["count"]]  # type: ignore[assignment]
    assert store.open_dataset("ds").identical(weather(1)[["count"]])
    assert store.keys("ds") == ["ds", "ds/count"]
    store.update(third=weather())  # type: ignore[arg-type]
    assert store.open_dataset("third").identical(weather())


def test_with_dask_inside(store: TensorStore) -> None:
    lazy = weather().chunk({"time": 2})
    store["ds"] = lazy
    assert store.open_dataset("ds").load().identical(weather())
    with (
        pytest.raises(InvalidInputError, match="blocks of dask are stored by workers"),
        store.transaction() as tx,
    ):
        tx["other"] = lazy  # type: ignore[assignment]
    assert store.keys("other") == []


def test_dask_that_fails_leaves_nothing(store: TensorStore) -> None:
    def fail(block: Any) -> Any:
        raise ZeroDivisionError

    good = dask.array.zeros((4,), chunks=2)
    bad = good.map_blocks(fail, dtype="f8", meta=np.zeros(0))
    with pytest.raises(ZeroDivisionError):
        store["ds"] = xr.Dataset({"good": ("x", good), "bad": ("x", bad)})
    assert list(store) == []


def test_dask_that_fails_in_place_of_another_one(store: TensorStore) -> None:
    store.allow_overwrite = True
    store["ds"] = xr.Dataset({"a": ("x", [1, 2])})
    good = dask.array.zeros((4,), chunks=2)
    with pytest.raises(DTypeError):
        store["ds"] = xr.Dataset({"new": ("x", good), "b": ("x", np.array([{}] * 4, object))})
    assert store.keys() == ["ds", "ds/a"]


def test_groups_that_are_no_datasets(store: TensorStore) -> None:
    store.write("g/a", np.zeros((2, 3)), dims=("x", "y"))
    store.write("g/x", [5, 6], dims=("x",))
    store["g/sub/b"] = [1]
    found = store.open_dataset("g/")
    assert (set(found.data_vars), found.x.values.tolist(), found.attrs) == ({"a"}, [5, 6], {})
    store.write("g/c", np.zeros(3), dims=("x",))
    with pytest.raises(InvalidInputError, match="axis 'x' has"):
        store.open_dataset("g")
    with pytest.raises(KeyNotFoundError, match="no key begins with 'none/'"):
        store.open_dataset("none")


def test_parts_that_have_changed(store: TensorStore) -> None:
    store["ds"] = weather()
    store.append("ds/t2m", np.zeros((1, 3, 5), "f4"))
    with pytest.warns(UserWarning, match="'time' of 'ds' is left out") as caught:
        found = store.open_dataset("ds")
    assert [one.filename for one in caught] == [__file__]
    assert ("time" in found.coords, found.sizes["time"]) == (False, 5)
    del store["ds/t2m"]
    with pytest.raises(IncompleteTensorError, match=r"\['t2m'\] are missing"):
        store.open_dataset("ds")
    assert set(store.open_dataset("ds", drop_variables="t2m").data_vars) == {"orography", "count", "label"}


def test_marks_of_others(store: TensorStore) -> None:
    store["ds"] = xr.Dataset({"a": ("x", [1])})
    mark = store.open("ds")
    said = mark.attrs[GROUP_ATTRIBUTE]
    mark.attrs[GROUP_ATTRIBUTE] = {**said, "format": 2}
    with pytest.raises(SchemaError, match="upgrade tensorage"):
        store.open_dataset("ds")
    for damaged in ({**said, "dataset": {"variables": 3}}, {"format": 1}, "text", {**said, "attrs": 3}):
        mark.attrs[GROUP_ATTRIBUTE] = damaged
        with pytest.raises(CorruptTensorError, match="'ds' is damaged"):
            store.open_dataset("ds")
    assert store["ds/a"].tolist() == [1]


def test_too_little_room(project: Any, new_user: Any, new_session: Any, database: Any) -> None:
    store = TensorStore(new_session, quiet=True)
    store["first"] = [1]
    used = store.usage().bytes
    database.execute(
        "insert into tensorage.quotas (user_id, max_bytes) values (%s, %s)",
        [store.arrays.project.user_id, used + 3000],
    )
    with pytest.raises(QuotaExceededError):
        store["ds"] = weather()
    assert list(store) == ["first"]
