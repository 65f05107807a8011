"""Engines of new arrays, and arrays that move from one engine to another."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import psycopg
import pytest

import tensorage
from tensorage import BackendSession, TensorStore
from tensorage.model.engine_choice import LARGE_BYTES, SAMPLE_BYTES, SMALL_BYTES, choose_engine

Name = Literal["database", "storage"]
ENGINES: tuple[Name, ...] = ("database", "storage")

ARRAY = np.random.default_rng(0).integers(-100, 100, (50, 7, 9)).astype("<i4")


@pytest.fixture
def store(session: BackendSession) -> TensorStore:
    """Return a store without an engine of its own: each test says which engine an array is for."""
    return session()


def written(store: TensorStore, key: str, array: np.ndarray[Any, Any], engine: Name) -> tensorage.Tensor:
    """Several shards or several blocks, where there are so many elements."""
    how: dict[str, Any] = {
        "attrs": {"units": "K", "big": 1e300},
        "dims": [f"d{i}" for i in range(array.ndim)],
    }
    if engine == "database":
        how["chunk_size"] = 100
    elif array.ndim == 3:
        how |= {"chunks": (4, 7, 4), "shards": (8, 7, 8)}
    return tensorage.Tensor(store.arrays, store.arrays.write(key, array, engine=engine, **how))


# Choosing --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "dtype", "engine"),
    [
        ((), "f8", "database"),
        ((SMALL_BYTES,), "u1", "database"),
        ((2, SMALL_BYTES), "u1", "storage"),
        # Samples, as long as the database can hold them.
        ((10**6, SAMPLE_BYTES - 1), "u1", "storage"),
        ((LARGE_BYTES // 1024, 1024), "u1", "database"),
        ((LARGE_BYTES // 1024 + 1, 1024), "u1", "storage"),
        ((10**4, SAMPLE_BYTES), "u1", "storage"),
        ((10**4, SAMPLE_BYTES - 1), "u1", "database"),
        ((100, 1024, 1024), "longdouble", "database"),
        ((0, 1024, 1024), "f4", "database"),
    ],
)
def test_auto_takes(shape: tuple[int, ...], dtype: str, engine: Name) -> None:
    assert choose_engine(shape, np.dtype(dtype)) == engine


def test_auto_of_a_store(session: BackendSession) -> None:
    store = TensorStore(session, quiet=True, engine="auto")
    large = np.zeros((40, 128, 1024), "f4")
    store["small"], store["large"] = large[:2], large
    assert [store.open(key).engine for key in ("small", "large")] == ["database", "storage"]
    blocks = store.write("blocks", (large[:4] for _ in range(10)), shape=large.shape, dtype="f4")
    assert blocks.engine == "storage"
    # Only objects have chunks of a shape.
    assert store.write("cut", ARRAY, chunks=(5, 7, 9)).engine == "storage"
    assert store.write("told", ARRAY, engine="storage").engine == "storage"
    np.testing.assert_array_equal(store["cut"], ARRAY)


def test_an_engine_that_there_is_not(session: BackendSession, store: TensorStore) -> None:
    with pytest.raises(tensorage.InvalidInputError, match=r"'tape'.*'database', 'storage', 'auto'"):
        TensorStore(session, engine="tape")  # type: ignore[arg-type]
    with pytest.raises(tensorage.InvalidInputError, match=r"'tape'.*'database', 'storage', 'auto'"):
        store.write("x", ARRAY, engine="tape")  # type: ignore[arg-type]
    assert len(store) == 0


def test_chunks_are_for_storage(store: TensorStore) -> None:
    for how in ({"chunks": (1, 1, 1)}, {"shards": False}, {"codecs": ["bytes"]}):
        with pytest.raises(tensorage.InvalidInputError, match="engine='storage'"):
            store.write("x", ARRAY, engine="database", **how)  # type: ignore[arg-type]
    assert "x" not in store


def test_a_dtype_that_zarr_lacks_is_for_the_database(store: TensorStore) -> None:
    with pytest.raises(tensorage.DTypeError, match=r"astype.*engine='database'"):
        store.write("x", np.zeros(3, "longdouble"), engine="storage")
    assert "x" not in store


# Copying ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("to", [*ENGINES, None])
@pytest.mark.parametrize("of", ENGINES)
@pytest.mark.parametrize(
    "array",
    [ARRAY, ARRAY[:0], ARRAY[0, 0, 0], ARRAY[:, :, 0], ARRAY.astype("f2"), ARRAY.astype("M8[s]"), ARRAY > 0],
    ids=lambda array: f"{array.dtype}{list(array.shape)}",
)
def test_a_copy_is_equal(store: TensorStore, array: np.ndarray[Any, Any], of: Name, to: Name | None) -> None:
    array = np.asarray(array)
    source = written(store, "x", array, of)
    copy = store.copy("x", "y", engine=to)
    assert copy.engine == (to or of)
    np.testing.assert_array_equal(copy[...], array, strict=True)
    assert (copy.attrs, copy.dims) == (source.attrs, source.dims)
    # The copy is on its own: nothing of the one is the other's.
    del store["x"]
    np.testing.assert_array_equal(store["y"], array, strict=True)


@pytest.mark.parametrize("of", ENGINES)
@pytest.mark.parametrize("to", ENGINES)
def test_a_copy_is_cut_as_it_is_told(store: TensorStore, of: Name, to: Name) -> None:
    written(store, "x", ARRAY, of)
    how: dict[str, Any] = {"chunks": (3, 2, 9), "shards": (6, 4, 9)} if to == "storage" else {}
    np.testing.assert_array_equal(store.copy("x", "y", engine=to, **how)[...], ARRAY, strict=True)


@pytest.mark.parametrize("to", ENGINES)
@pytest.mark.parametrize("of", ENGINES)
def test_rows_that_are_large_are_copied_in_parts(store: TensorStore, of: Name, to: Name) -> None:
    """A row of axis 0 is more than a request."""
    array = np.arange(3 * 2**22, dtype="<f4").reshape(1, 3, 2**22)
    store.write("x", array, engine=of)
    np.testing.assert_array_equal(store.copy("x", "y", engine=to)[...], array, strict=True)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_copy_does_not_replace(session: BackendSession, store: TensorStore, engine: Name) -> None:
    written(store, "x", ARRAY, engine)
    written(store, "y", -ARRAY, engine)
    with pytest.raises(tensorage.KeyExistsError):
        store.copy("x", "y")
    with pytest.raises(tensorage.KeyNotFoundError):
        store.copy("z", "w")
    np.testing.assert_array_equal(store["y"], -ARRAY)
    TensorStore(session, quiet=True, allow_overwrite=True).copy("x", "y")
    np.testing.assert_array_equal(store["y"], ARRAY)


@pytest.mark.parametrize("engine", ENGINES)
def test_an_array_can_be_copied_over_itself(
    session: BackendSession, store: TensorStore, engine: Name
) -> None:
    written(store, "x", ARRAY, engine)
    other = "storage" if engine == "database" else "database"
    careless = TensorStore(session, quiet=True, allow_overwrite=True)
    assert careless.copy("x", "x", engine=other).engine == other
    np.testing.assert_array_equal(store["x"], ARRAY, strict=True)


@pytest.mark.parametrize("to", ENGINES)
@pytest.mark.parametrize("of", ENGINES)
def test_what_somebody_shares_can_be_copied(project: Any, store: TensorStore, of: Name, to: Name) -> None:
    written(store, "x", ARRAY, of)
    store.append("x", ARRAY[:3])
    store.share("x")
    theirs = project.register()
    other = project.session(theirs)
    other.login_by_mail()
    copy = TensorStore(other, quiet=True).shared_by(store.backend.email).copy("x", "mine", engine=to)
    store.unshare("x")
    np.testing.assert_array_equal(copy[...], np.concatenate([ARRAY, ARRAY[:3]]), strict=True)
    assert not copy.dataset.is_shared
    other.logout()


def test_nothing_is_left_of_what_was_moved(
    session: BackendSession, store: TensorStore, database: psycopg.Connection[tuple[Any, ...]]
) -> None:
    """Neither engine keeps anything once the arrays are gone."""
    for of in ENGINES:
        written(store, "x", ARRAY, of)
        for to in ENGINES:
            store.copy("x", "y", engine=to)
            del store["y"]
        del store["x"]
    # The session sweeps behind the caller's back.
    session.transfer.finish(30)
    for table in ("datasets", "tensors", "shards"):
        query = f"select count(*) from public.{table} where user_id = %s"
        assert database.execute(query, [session.user_id]).fetchone() == (0,), table
    query = "select count(*) from storage.objects where name like %s"
    assert database.execute(query, [f"{session.user_id}/%"]).fetchone() == (0,)
