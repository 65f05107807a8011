"""Mistakes that are easy to make, and would look as if they had worked."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import dask.array
import numpy as np
import pytest
import workers
import xarray
from project import Project, User
from proxy import Exchange, Proxy

import tensorage
from tensorage import BackendSession, InvalidInputError, KeyExistsError, KeyNotFoundError, TensorStore

# --- attributes ---------------------------------------------------------------------------------------


def test_arrays_are_not_stored_as_attributes(store: TensorStore) -> None:
    for name in ("weather", "x", "keys", "_private"):
        with pytest.raises(AttributeError, match=rf"nothing was stored: store\['{name}'\] = array"):
            setattr(store, name, np.zeros(3))
    assert len(store) == 0
    assert not hasattr(store, "weather")


def test_fields_of_a_store_are_set(store: TensorStore) -> None:
    store.chunk_size, store.quiet, store.allow_overwrite = 5, False, True
    store["x"] = np.arange(20)
    assert store.open("x").dataset.block_size <= 20
    store.quiet = True
    store["x"] = 1
    store.engine = "storage"
    store["y"] = 1
    assert store.open("y").engine == "storage"


# --- appending to what is not there -------------------------------------------------------------------


def test_an_append_to_nothing_says_how(store: TensorStore) -> None:
    with pytest.raises(KeyNotFoundError, match=r"'x'.*store\.append\('x', rows, create=True\)"):
        store.append("x", np.arange(3))
    with pytest.raises(KeyNotFoundError, match="create=True"), store.background() as bg:
        bg.append("x", np.arange(3))
    assert len(store) == 0


def test_an_append_makes_an_array(store: TensorStore) -> None:
    store.append("x", np.arange(6, dtype="i2").reshape(2, 3), create=True)
    store.append("x", np.arange(3, dtype="i2").reshape(1, 3), create=True)
    handle = store.open("x")
    assert (handle.engine, handle.dtype) == (store.engine, np.int16)
    np.testing.assert_array_equal(handle[...], [[0, 1, 2], [3, 4, 5], [0, 1, 2]])
    store.append("list", ["a", "bc"], create=True)
    store.append("list", ["d"], create=True)
    assert store["list"].tolist() == ["a", "bc", "d"]
    with store.background() as bg:
        bg.append("later", [1.0], create=True)
        bg.append("later", [2.0], create=True)
    np.testing.assert_array_equal(store["later"], [1, 2])


def test_an_array_that_is_there_is_not_replaced(store: TensorStore) -> None:
    store.allow_overwrite = True
    store["x"] = np.arange(3)
    store.append("x", [3], create=True)
    np.testing.assert_array_equal(store["x"], np.arange(4))
    with pytest.raises(tensorage.DTypeError):
        store.append("x", ["text"], create=True)
    with pytest.raises(InvalidInputError):
        store.append("x", [[1, 2]], create=True)
    np.testing.assert_array_equal(store["x"], np.arange(4))


def test_labels_and_blocks_make_arrays(store: TensorStore) -> None:
    days = xarray.DataArray(np.arange(3.0), dims=["day"], coords={"day": [1, 2, 3]}, attrs={"units": "K"})
    store.append("x", days, create=True)
    store.append("x", days.assign_coords(day=[4, 5, 6]), create=True)
    handle = store.open("x")
    assert (handle.dims, handle.attrs, handle.coords["day"].tolist()) == (
        ("day",),
        {"units": "K"},
        [1, 2, 3, 4, 5, 6],
    )
    with store.background() as bg:
        bg.append("y", days, create=True)
    assert store.open("y").coords["day"].tolist() == [1, 2, 3]
    store.append("z", dask.array.arange(4, chunks=2), create=True)
    np.testing.assert_array_equal(store["z"], np.arange(4))


def test_what_makes_no_array(store: TensorStore) -> None:
    with pytest.raises(InvalidInputError, match=r"no rows; append \[value\]"):
        store.append("x", 5, create=True)
    with pytest.raises(tensorage.DTypeError):
        store.append("x", np.array([object()]), create=True)
    with pytest.raises(InvalidInputError):
        store.append("", [1], create=True)
    assert len(store) == 0


def test_nobody_makes_arrays_for_others(store: TensorStore, new_session: BackendSession, user: User) -> None:
    store["x"] = [1]
    store.share("x", write=True)
    theirs = new_session().shared_by(user.email)
    for key in ("x", "y"):
        with pytest.raises(tensorage.PermissionDeniedError, match="create=True"):
            theirs.append(key, [1], create=True)
    theirs.append("x", [2])
    np.testing.assert_array_equal(store["x"], [1, 2])


def test_of_many_creators_all_land(store: TensorStore, project: Project, user: User) -> None:
    stores = [project.session(user)() for _ in range(8)]
    for other in stores:
        other.engine, other.quiet = store.engine, True
    for round_ in range(3):
        key = f"x{round_}"

        def write(number: int, key: str = key) -> None:
            stores[number].append(key, np.full((2, 3), number), create=True)

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(write, range(8)))
        found = store[key]
        assert found.shape == (16, 3)
        np.testing.assert_array_equal(np.sort(found[:, 0]), np.repeat(np.arange(8), 2))


def test_a_key_that_is_taken_meanwhile(store: TensorStore, project: Project, user: User) -> None:
    """Another creator comes between the append that finds nothing and the array that is to be made."""
    made: list[str] = []

    def between(exchange: Exchange) -> bool:
        if not made and exchange.function in ("append", "open"):
            made.append("x")
            store["x"] = [1]
        return False

    proxy = Proxy(project.url, between)
    through = Project(proxy.url, project.key)
    try:
        with workers.store_of(through, user, engine=store.engine) as late:
            late.append("x", [2], create=True)
    finally:
        proxy.close()
    assert made
    np.testing.assert_array_equal(store["x"], [1, 2])


# --- renaming -----------------------------------------------------------------------------------------


def test_a_rename_replaces_only_if_asked(store: TensorStore) -> None:
    store["x"], store["y"] = 1, 2
    for store.allow_overwrite in (False, True):
        with pytest.raises(KeyExistsError, match=r"rename\('x', 'y', overwrite=True\)"):
            store.rename("x", "y")
        assert (int(store["x"]), int(store["y"])) == (1, 2)
    store.rename("x", "y", overwrite=True)
    assert (store.keys(), int(store["y"])) == (["y"], 1)
    store.rename("y", "z", overwrite=True)
    assert store.keys() == ["z"]
