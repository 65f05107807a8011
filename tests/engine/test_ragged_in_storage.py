"""Elements of any length in Storage: their objects, other readers of these, damage, and writers that meet or die."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import leftovers
import numpy as np
import psycopg
import pytest
import zarr
from damage import Damage

from tensorage import TensorStore
from tensorage.backend.wire import patience
from tensorage.backend.zarr.ragged import RaggedObjects
from tensorage.backend.zarr.zarr_engine import codec_of
from tensorage.embedded import control
from tensorage.errors import CorruptTensorError, IncompleteTensorError, InvalidInputError, TooLargeError
from tensorage.model.declaration import declare_ragged
from tensorage.ragged import RAGGED_TEXT, TEXT_ARRAY

Sql = psycopg.Connection[tuple[Any, ...]]

TEXT = np.dtypes.StringDType()
TEXTS = [f"größe {number} " * (number % 90) for number in range(20_000)]


@pytest.fixture
def engine() -> str:
    return "storage"


@pytest.fixture
def small(store: TensorStore) -> TensorStore:
    """A store of chunks of 3 elements, and so of objects of many chunks."""
    return TensorStore(store.backend, engine="storage", chunk_size=3, allow_overwrite=True, quiet=True)


def zarr_array(store: TensorStore, key: str) -> zarr.Array[Any]:
    array = zarr.open_array(store.zarr_store(key), mode="r")
    assert isinstance(array, zarr.Array)
    return array


def objects(store: TensorStore, database: Sql, key: str) -> list[str | None]:
    return leftovers.shards_of(database, store.backend.user_id, key)


def test_chunks_follow_samples(store: TensorStore, database: Sql) -> None:
    handle = store.write_ragged("texts", TEXTS)
    layout = codec_of(handle.dataset).layout
    mean = sum(len(text.encode()) for text in TEXTS) / len(TEXTS)
    assert 0.8 <= layout.chunks[0] * mean / 2**20 <= 1.05
    assert 5 <= layout.shards[0] // layout.chunks[0] <= 8
    assert len(objects(store, database, "texts")) == -(-len(TEXTS) // layout.shards[0]) > 1
    few = store.write_ragged("few", iter([b"a", b"bc"]))
    assert codec_of(few.dataset).layout.chunks == (65536,)
    large = store.write_ragged("large", [bytes([n]) * 3_000_000 for n in range(3)])
    assert codec_of(large.dataset).layout.chunks == (1,)
    assert handle[:] == TEXTS


@pytest.mark.filterwarnings("ignore:The data type .VariableLengthBytes:Warning")
def test_zarr_reads_them(store: TensorStore) -> None:
    store.write_ragged("texts", TEXTS)
    array = zarr_array(store, "texts")
    assert array.dtype == TEXT
    assert array[:].tolist() == TEXTS
    assert array[19_999] == TEXTS[19_999]
    labels = np.array([["a", ""], ["nul \0", "größe"], ["", ""]], TEXT)
    store["labels"] = labels
    assert np.array_equal(zarr_array(store, "labels")[:], labels)
    store["text"] = np.array("größe", TEXT)
    assert zarr_array(store, "text")[()] == "größe"
    samples = [b"\0a\0", b"", bytes(300)]
    store.write_ragged("bytes", samples)
    assert zarr_array(store, "bytes")[:].tolist() == samples
    boxes = [np.arange(4 * n, dtype="f4").reshape(n, 4) for n in (2, 0, 1)]
    store.write_ragged("boxes", boxes, attrs={"unit": "px"})
    array = zarr_array(store, "boxes")
    assert array.attrs.asdict() == {"unit": "px", "ragged": {"dtype": "<f4", "shape": [4]}}
    assert array[:].tolist() == [box.tobytes() for box in boxes]


@pytest.mark.parametrize("shards", [False, (4, 6)])
def test_chunks_and_shards_of_text_may_be_given(store: TensorStore, database: Sql, shards: Any) -> None:
    labels = np.array([f"{number}" * (number % 5) for number in range(63)], TEXT).reshape(9, 7)
    store.write("labels", labels, chunks=(2, 3), shards=shards)
    handle = store.open("labels")
    assert len(objects(store, database, "labels")) == (15 if shards is False else 6)
    assert np.array_equal(handle[...], labels)
    assert np.array_equal(handle[1:8:3, ::-2], labels[1:8:3, ::-2])
    assert np.array_equal(zarr_array(store, "labels")[:], labels)
    handle.append(labels[:4])
    assert np.array_equal(handle[...], np.concatenate([labels, labels[:4]]))
    assert np.array_equal(handle.lengths(), [[len(text) for text in row] for row in handle[...].tolist()])


def test_the_choice_of_an_engine(store: TensorStore) -> None:
    automatic = TensorStore(store.backend, engine="auto", quiet=True)
    assert automatic.write_ragged("texts", ["a"]).dataset.engine == "database"
    labels = np.array(["a", "b"], TEXT)
    assert automatic.write("labels", labels).dataset.engine == "database"
    assert automatic.write("chunked", labels, chunks=(1,)).dataset.engine == "storage"


def test_options_that_have_no_place(store: TensorStore) -> None:
    labels = np.array(["a", "b"], TEXT)
    with pytest.raises(InvalidInputError, match="give no codecs"):
        store.write("x", labels, codecs=["bytes"])
    with pytest.raises(InvalidInputError, match="engine='database' has no chunks"):
        store.write("x", labels, chunks=(1,), engine="database")
    with pytest.raises(InvalidInputError, match="chunks="):
        store.write("x", labels, chunks=(0,))
    assert store.keys() == []


def test_chunks_that_become_too_large(
    store: TensorStore, monkeypatch: pytest.MonkeyPatch, database: Sql
) -> None:
    monkeypatch.setattr("tensorage.backend.zarr.ragged_codec.MAX_CHUNK_BYTES", 2**20)
    samples = [b"a"] * 65536 + [bytes(2**17)] * 30
    with pytest.raises(InvalidInputError, match="smaller chunk_size"):
        store.write_ragged("x", samples)
    assert store.keys() == []
    leftovers.assert_only_arrays_are_kept(database, store.backend.user_id)


def test_appends_write_the_last_object_alone(small: TensorStore, database: Sql) -> None:
    small.write("x", np.array(["a"] * 10, TEXT), chunks=(2,), shards=(4,))
    before = objects(small, database, "x")
    small.append("x", ["b", "c", "d"])
    after = objects(small, database, "x")
    assert after[:2] == before[:2]
    assert len(after) == 4
    assert not set(before[2:]) & set(after)
    assert small["x"].tolist() == ["a"] * 10 + ["b", "c", "d"]
    leftovers.assert_only_arrays_are_kept(database, small.backend.user_id)


def test_appends_that_meet(store: TensorStore) -> None:
    store.write_ragged("x", ["first"])
    barrier = threading.Barrier(4)

    def append(number: int) -> None:
        barrier.wait()
        store.append("x", [f"{number} {each}" for each in range(3)])

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(append, range(4)))
    texts = store["x"]
    assert texts[0] == "first"
    assert sorted(texts[1::3]) == [f"{number} 0" for number in range(4)]
    # Samples of one append stand together.
    for first in range(1, 13, 3):
        assert texts[first : first + 3] == [f"{texts[first][0]} {each}" for each in range(3)]


def test_samples_without_elements_take_no_object(small: TensorStore, database: Sql) -> None:
    handle = small.write_ragged("x", [b""] * 50)
    assert set(objects(small, database, "x")) == {None}
    assert handle[:] == [b""] * 50
    handle.append([b"x"])
    assert handle[-2:] == [b"", b"x"]


# Damage -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("harm", "error"),
    [
        (Damage.flip_a_bit, CorruptTensorError),
        (Damage.empty_the_index, CorruptTensorError),
        (Damage.halve_the_index, CorruptTensorError),
        (Damage.move_the_chunks, CorruptTensorError),
        (Damage.delete_the_entry, IncompleteTensorError),
        (Damage.delete_the_shard, IncompleteTensorError),
    ],
)
def test_damage_is_an_error(
    store: TensorStore,
    backend: control.Running,
    database: Sql,
    monkeypatch: pytest.MonkeyPatch,
    harm: Any,
    error: type[Exception],
) -> None:
    monkeypatch.setattr(patience, "FIRST_WAIT_S", 0.001)
    rng = np.random.default_rng(0)
    samples = [rng.bytes(int(length)) for length in rng.integers(0, 2000, 40)]
    store.arrays.write_ragged("x", samples, engine="storage", chunks=(5,), shards=(10,))
    name = objects(store, database, "x")[1]
    assert name is not None
    harm(Damage(backend, database, name))
    with pytest.raises(error, match=r"'x'.*\[10:20\]"):
        store["x"]
    assert store["x", :10] == samples[:10]
    with pytest.raises(error, match="'x'"):
        store.open("x").lengths()


@pytest.mark.parametrize("ragged", [RAGGED_TEXT, TEXT_ARRAY])
def test_text_that_is_none(store: TensorStore, ragged: Any) -> None:
    """The database does not look into objects: the reader does."""
    new = declare_ragged("x", (3,), ragged, False, {})
    elements = np.array([b"a", b"\xff\xfe", b"c"], object)
    RaggedObjects(store.backend.transfer, quiet=True).write_array(new, elements)
    with pytest.raises(CorruptTensorError, match=r"'x'.*stored text is none"):
        store["x"]
    assert store["x", 0] == "a"
    assert store.open("x").lengths().tolist() == [1, 2, 1]


def test_lengths_that_no_memory_holds(store: TensorStore, database: Sql) -> None:
    """Samples without elements take no object, so that another user may share any number of them."""
    handle = store.write_ragged("texts", ["a"])
    database.execute("update public.datasets set shape = %s where id = %s", ([2**60], handle.dataset.id))
    with pytest.raises(TooLargeError, match="reading the lengths of 'texts'"):
        store.open("texts").lengths()


def test_bytes_that_are_no_rows(store: TensorStore) -> None:
    store.write_ragged("x", [[1], [2]], dtype="i4")
    new = declare_ragged("y", (1,), store.open("x").dataset.ragged, False, {})  # type: ignore[arg-type]
    RaggedObjects(store.backend.transfer, quiet=True).write_array(new, np.array([b"abc"], object))
    with pytest.raises(CorruptTensorError, match=r"'y'.*3 bytes are no"):
        store["y"]


# Writers that fail ------------------------------------------------------------------------------------------


def test_a_generator_that_fails_leaves_no_objects(store: TensorStore, database: Sql) -> None:
    def samples() -> Iterator[bytes]:
        for number in range(40):
            yield np.random.default_rng(number).bytes(2**20)
        raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"):
        store.write_ragged("x", samples())
    store.backend.transfer.finish(30)
    assert leftovers.objects_of(database, store.backend.user_id) == []
    assert store.keys() == []


@pytest.mark.parametrize("function", ["tensorage_end_ragged", "tensorage_commit"])
def test_a_writer_that_dies_leaves_what_is_swept(
    store: TensorStore, database: Sql, monkeypatch: pytest.MonkeyPatch, function: str
) -> None:
    user_id, transfer = store.backend.user_id, store.backend.transfer

    class DiedError(BaseException):
        pass

    def call(asked_for: str, *arguments: Any, **more: Any) -> Any:
        if asked_for in (function, "tensorage_abort"):
            raise DiedError
        return type(transfer).call(transfer, asked_for, *arguments, **more)

    with monkeypatch.context() as patch:
        patch.setattr(store.backend.transfer, "call", call, raising=False)
        with pytest.raises(DiedError):
            store.write_ragged("x", TEXTS)
    assert store.keys() == []
    assert len(leftovers.objects_of(database, user_id)) > 1
    query = "update public.datasets set expires_at = now() - interval '1 s' where user_id = %s and state = 'staged'"
    database.execute(query, [user_id])
    store["later"] = 1
    assert store.keys() == ["later"]
    leftovers.assert_only_arrays_are_kept(database, user_id)
