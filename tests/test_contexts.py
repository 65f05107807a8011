"""The contexts of a session, used directly: declare, fill, read, remove."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import leftovers
import numpy as np
import psycopg
import pytest

import tensorage
from tensorage import BackendSession
from tensorage.backend.base import BaseContext
from tensorage.backend.database import DatabaseContext
from tensorage.backend.storage import StorageContext
from tensorage.types import Engine


@pytest.fixture
def session(new_session: BackendSession) -> BackendSession:
    """Log in as a user of each test's own: what is declared stays where nobody lists it."""
    return new_session


@pytest.fixture
def db(session: BackendSession) -> Iterator[DatabaseContext]:
    with session.database() as context:
        yield context


@pytest.fixture
def arrays(session: BackendSession, engine: Engine) -> Iterator[BaseContext]:
    """The context of either engine: what it does for arrays is the same."""
    with session.database() if engine == "database" else session.storage() as context:
        yield context


@pytest.fixture
def files(session: BackendSession) -> Iterator[StorageContext]:
    with session.storage() as context:
        yield context


def test_the_schema_is_installed(db: DatabaseContext, files: StorageContext) -> None:
    assert db.check_schema_installed() is True
    assert files.check_schema_installed() is True


def test_an_array_appears_when_its_last_rows_have_come(arrays: BaseContext) -> None:
    array = np.arange(24, dtype="i2").reshape(4, 2, 3)
    declared = arrays.insert_dataset("x", [4, 2, 3], 3, type="int16")
    assert (declared.key, declared.shape, declared.type, declared.state) == (
        "x",
        (4, 2, 3),
        "int16",
        "staged",
    )
    assert arrays.insert_tensor(declared.id, array[2:], offset=2) is True
    assert arrays.list_dataset_keys() == []
    with pytest.raises(tensorage.KeyNotFoundError):
        arrays.get_dataset("x")
    # Rows that are sent twice are stored once.
    assert arrays.insert_tensor(declared.id, array[2:], offset=2) is True
    assert arrays.insert_tensor(declared.id, array[:2]) is True
    assert arrays.get_dataset("x").state == "committed"
    np.testing.assert_array_equal(arrays.get_tensor("x"), array)
    assert arrays.get_tensor("x").dtype == np.int16


def test_bounds_of_a_box_are_half_open(arrays: BaseContext) -> None:
    array = np.arange(60, dtype="f4").reshape(5, 4, 3)
    declared = arrays.insert_dataset(key="x", shape=array.shape, dim=3)
    assert declared.dtype == np.float32
    arrays.insert_tensor(declared.id, array)
    np.testing.assert_array_equal(arrays.get_tensor("x", 1, 4, [0, 1], [2, 3]), array[1:4, 0:2, 1:3])
    np.testing.assert_array_equal(arrays.get_tensor("x", 2), array[2:])
    np.testing.assert_array_equal(arrays.get_tensor("x", 0, 99), array)
    assert arrays.get_tensor("x", 3, 3).shape == (0, 4, 3)


def test_any_context_of_the_user_can_fill_what_another_declared(
    session: BackendSession, arrays: BaseContext
) -> None:
    declared = arrays.insert_dataset("x", [2, 2], 2, type="f8", overwrite=True)
    with session.database() as other:
        other.insert_tensor(declared.id, np.ones((1, 2)), 1)
        other.insert_tensor(declared.id, [[1, 2]], 0)
    np.testing.assert_array_equal(arrays.get_tensor("x"), [[1, 2], [1, 1]])


@pytest.mark.parametrize("shape", [(), (0,), (3, 0)])
def test_scalars_and_empty_arrays(arrays: BaseContext, shape: tuple[int, ...]) -> None:
    declared = arrays.insert_dataset("x", shape, len(shape))
    assert arrays.insert_tensor(declared.id, np.zeros(shape, "f4")) is True
    assert arrays.get_tensor("x").shape == shape


def test_append_and_remove(arrays: BaseContext) -> None:
    declared = arrays.insert_dataset("x", [1, 2], 2)
    arrays.insert_tensor(declared.id, [[1, 2]])
    assert arrays.append_tensor("x", [[3, 4], [5, 6]]) is True
    np.testing.assert_array_equal(arrays.get_tensor("x"), [[1, 2], [3, 4], [5, 6]])
    assert arrays.remove_dataset("x") is True
    with pytest.raises(tensorage.KeyNotFoundError):
        arrays.remove_dataset("x")


def test_attributes_and_dims_are_kept(arrays: BaseContext) -> None:
    attrs = {"unit": "K", "levels": [1, 2.5], "nested": {"ü": None}}
    arrays.insert_dataset("x", [0, 2], 2, attrs=attrs, dims=["time", "level"])
    found = arrays.get_dataset("x")
    assert found.attrs == attrs
    assert found.dims == ("time", "level")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"shape": [1, 2], "dim": 3}, "dim=3 contradicts"),
        ({"shape": [1, -2], "dim": 2}, "negative"),
        ({"shape": [2**40, 2**40], "dim": 2}, "too many elements"),
        ({"shape": [2], "dim": 1, "dims": ["a", "b"]}, "2 dims name 1 axes"),
        ({"shape": [2], "dim": 1, "chunk_size": 0}, "chunk_size"),
        ({"shape": [2], "dim": 1, "key": ""}, "1 to 1024 bytes"),
    ],
)
def test_what_cannot_be_declared(arrays: BaseContext, arguments: dict[str, object], says: str) -> None:
    with pytest.raises(tensorage.InvalidInputError, match=says):
        arrays.insert_dataset(**{"key": "x", **arguments})  # type: ignore[arg-type]
    with pytest.raises(tensorage.DTypeError):
        arrays.insert_dataset("x", [2], 1, type="O")


def test_what_does_not_fit_what_was_declared(arrays: BaseContext) -> None:
    declared = arrays.insert_dataset("x", [4, 2], 2, type="i2")
    for data, offset, error in (
        (np.zeros((1, 3), "i2"), 0, tensorage.InvalidInputError),
        (np.zeros((2, 2), "i2"), 3, tensorage.InvalidInputError),
        (np.zeros((2, 2), "i2"), -1, tensorage.InvalidInputError),
        (np.zeros((2, 2), "i4"), 0, tensorage.DTypeError),
        ([[1.5, 2]], 0, tensorage.DTypeError),
        ([[70000, 2]], 0, tensorage.DTypeError),
    ):
        with pytest.raises(error):
            arrays.insert_tensor(declared.id, data, offset)
    with pytest.raises(tensorage.KeyNotFoundError):
        arrays.insert_tensor(declared.id + 10**6, [[1, 2]])


def test_files(files: StorageContext, tmp_path: Path) -> None:
    name = files.upload_file("test.txt", "Hello, wörld!")
    assert name.endswith("/test.txt")
    files.upload_file("dir/a.bin", b"\0\1")
    local = tmp_path / "local"
    local.write_bytes(b"x" * 3_000_000)
    files.upload_file("dir/b.bin", local)
    assert files.download_file("test.txt") == "Hello, wörld!".encode()
    assert files.download_file("dir/b.bin") == local.read_bytes()
    files.upload_file("test.txt", "again")
    assert files.download_file("test.txt") == b"again"
    assert files.list_files() == ["dir/a.bin", "dir/b.bin", "test.txt"]
    assert files.list_files("dir") == ["dir/a.bin", "dir/b.bin"]
    assert files.remove_file("dir/a.bin") is True
    for attempt in (lambda: files.download_file("dir/a.bin"), lambda: files.remove_file("dir/a.bin")):
        with pytest.raises(tensorage.KeyNotFoundError, match=r"dir/a\.bin"):
            attempt()
    for path in ("", "/a", "a//b", "../a", "a/.."):
        with pytest.raises(tensorage.InvalidInputError, match="path"):
            files.upload_file(path, b"")


def test_arrays_are_found_in_either_context(db: DatabaseContext, files: StorageContext) -> None:
    declared = db.insert_dataset("x", [2], 1)
    db.insert_tensor(declared.id, [1, 2])
    assert files.list_dataset_keys() == ["x"]
    assert files.get_dataset("x").shape == (2,)
    assert files.get_tensor("x", 1).tolist() == [2]
    declared = files.insert_dataset("y", [2], 1)
    files.insert_tensor(declared.id, [3, 4])
    assert db.get_dataset("y").engine == "storage"
    assert db.get_tensor("y", 1).tolist() == [4]
    assert files.remove_dataset("x") is True
    assert db.remove_dataset("y") is True


def test_what_an_aborted_writer_left_is_swept(
    arrays: BaseContext, session: BackendSession, database: psycopg.Connection[tuple[object, ...]]
) -> None:
    declared = arrays.insert_dataset("x", [4], 1)
    arrays.insert_tensor(declared.id, [1, 2], 0)
    database.execute("update public.datasets set expires_at = now() where id = %s", [declared.id])
    arrays.insert_dataset("y", [0], 1)
    session.transfer.finish(30)
    left = database.execute(
        "select key from public.datasets where user_id = %s", [session.user_id]
    ).fetchall()
    assert left == [("y",)]
    assert leftovers.objects_of(database, session.user_id) == []
