"""Reads and assignments by a key whose entry is remembered: in one request, and never of what was there before."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import psycopg
import pytest
from project import Project, User
from proxy import Proxy

from tensorage import IncompleteTensorError, InvalidInputError, KeyNotFoundError, TensorStore
from tensorage.backend.entries import EntryMemory, RecordMemory
from tensorage.types import Engine

Array = npt.NDArray[Any]
Sql = psycopg.Connection[tuple[Any, ...]]

ROWS = np.arange(60.0).reshape(20, 3)


@pytest.fixture
def away(
    proxy: Proxy, project: Project, user: User, store: TensorStore, engine: Engine
) -> Iterator[TensorStore]:
    """A store whose requests pass the proxy, of the user whose `store` changes the arrays meanwhile."""
    store.allow_overwrite = True
    session = Project(proxy.url, project.key).session(user)
    yield TensorStore(session, quiet=True, engine=engine)
    session.logout()


def append(store: TensorStore) -> Array:
    store.append("x", ROWS[:5])
    return np.concatenate([ROWS, ROWS[:5]])


def overwrite_longer(store: TensorStore) -> Array:
    store["x"] = array = np.arange(90.0).reshape(30, 3) + 1
    return array


def overwrite_shorter(store: TensorStore) -> Array:
    store["x"] = array = ROWS[:12] + 1
    return array


def overwrite_with_other_dtype(store: TensorStore) -> Array:
    store["x"] = array = ROWS.astype("i2") + 3
    return array


def overwrite_with_other_axes(store: TensorStore) -> Array:
    store["x"] = array = np.arange(60.0).reshape(20, 1, 3) + 2
    return array


def overwrite_in_other_engine(store: TensorStore) -> Array:
    store.write("x", array := ROWS + 5, engine="storage" if store.engine == "database" else "database")
    return array


def assign(store: TensorStore) -> Array:
    store["x", 4:13] = 7
    array = ROWS.copy()
    array[4:13] = 7
    return array


def rename_another_to_it(store: TensorStore) -> Array:
    store["other"] = array = ROWS * 3
    store.rename("other", "x", overwrite=True)
    return array


def rename_it_and_store_another(store: TensorStore) -> Array:
    """The array that is remembered is still there, under another key."""
    store.rename("x", "formerly")
    store["x"] = array = ROWS + 11
    return array


def resize_longer(store: TensorStore) -> Array:
    store.open("x").resize(25)
    return np.concatenate([ROWS, np.zeros((5, 3))])


def resize_shorter(store: TensorStore) -> Array:
    store.open("x").resize(11)
    return ROWS[:11]


def annotate(store: TensorStore) -> Array:
    store.open("x").attrs["units"] = "K"
    return ROWS


def change_nothing(_: TensorStore) -> Array:
    return ROWS


CHANGES: list[Callable[[TensorStore], Array]] = [
    append, overwrite_longer, overwrite_shorter, overwrite_with_other_dtype, overwrite_with_other_axes,
    overwrite_in_other_engine, assign, rename_another_to_it, rename_it_and_store_another, resize_longer,
    resize_shorter, annotate, change_nothing,
]  # fmt: skip

#: Selections that mean other elements in another shape, or none, or are wrong there.
SELECTIONS: list[Any] = [
    -1, 11, 19, 22, slice(5, 100), slice(20, None), slice(40, 50), slice(None, None, -3), [3, 12, 19], (3, 2), (..., 0),
    (slice(2, 4), 0), (3, 0, 0), None, ROWS[:, 0] > 20, (slice(0, 0), 1), [],
]  # fmt: skip


def outcome(read: Callable[[], Any]) -> tuple[Any, ...]:
    """The result of a read, or the kind of its error."""
    try:
        found = read()
    except (IndexError, InvalidInputError) as error:
        return (IndexError if isinstance(error, IndexError) else type(error),)
    return np.shape(found), np.asarray(found).dtype, np.asarray(found).tolist()


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_change_by_others_is_seen(
    away: TensorStore, store: TensorStore, change: Callable[[TensorStore], Array]
) -> None:
    store["x"] = ROWS
    away["x", 0], away["x"]
    expected = change(store)
    known = away.arrays.project.transfer.entries
    for selection in SELECTIONS:
        # Each selection meets the entry from before the change, and not the one that another read has brought.
        before = known.find(None, "x")
        assert before is not None
        assert outcome(lambda selection=selection: away["x", selection]) == outcome(
            lambda selection=selection: expected[selection]
        ), selection
        known.remember(None, before.entry, before.records)
    np.testing.assert_array_equal(away["x"], expected)
    np.testing.assert_array_equal(away["x"], expected)


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_an_assignment_meets_what_is_there_now(
    project: Project, user: User, change: Callable[[TensorStore], Array]
) -> None:
    # Arrays of Storage are always looked at before they are assigned to.
    away, store = (TensorStore(project.session(user), quiet=True, allow_overwrite=True) for _ in range(2))
    for selection in (-1, slice(8, None), slice(20, None)):
        store.clear()
        store["x"] = ROWS
        away["x", 0]
        expected = change(store).copy()
        away["x", selection] = 9
        expected[selection] = 9
        np.testing.assert_array_equal(store["x"], expected)
        if change is rename_it_and_store_another:
            np.testing.assert_array_equal(store["formerly"], ROWS)
    for wrong in (0.5, 100, (3, 8, 8, 8)):
        away["x", 0]
        with pytest.raises(IndexError):
            away["x", wrong] = 8
    np.testing.assert_array_equal(away["x"], expected)


def test_an_assignment_is_cast_to_what_is_there_now(away: TensorStore, store: TensorStore) -> None:
    store["x"] = np.arange(5)
    away["x", 0]
    store["x"] = np.zeros(5)
    away["x", 2] = 0.5
    np.testing.assert_array_equal(store["x"], [0, 0, 0.5, 0, 0])


def test_an_array_that_is_gone_is_missed(away: TensorStore, store: TensorStore) -> None:
    for gone in (lambda: store.__delitem__("x"), lambda: store.rename("x", "y", overwrite=True)):
        store["x"] = ROWS
        away["x", 0]
        gone()
        for _ in range(2):
            with pytest.raises(KeyNotFoundError):
                away["x", 0]
            with pytest.raises(KeyNotFoundError):
                away["x"]
            with pytest.raises(KeyNotFoundError):
                away["x", 0] = 1
        store["x"] = ROWS + 1
        np.testing.assert_array_equal(away["x", 3], ROWS[3] + 1)


def test_fields_and_text_are_those_of_now(away: TensorStore, store: TensorStore) -> None:
    records = np.array([(1, 2.0), (3, 4.0)], [("a", "i4"), ("b", "f8")])
    store["x"] = records
    assert away["x", "a"].tolist() == [1, 3]
    store["x"] = records[["b"]].astype([("b", "f8")])
    assert away["x", "b", 1] == 4
    with pytest.raises((IndexError, InvalidInputError)):
        away["x", "a"]
    store["x"] = np.array(["cat", "a longer one"], object)
    for _ in range(2):
        assert away["x", 1] == "a longer one"
    store.append("x", np.array(["dog"], object))
    assert away["x", -1] == "dog"
    store.write_ragged("x", [[1, 2], [3]], "i8")
    for _ in range(2):
        assert [sample.tolist() for sample in away["x", :]] == [[1, 2], [3]]
    assert away["x", 5:] == []
    store["x"] = np.float64(3)
    assert away["x", ()] == 3
    assert away["x"].shape == ()


def test_requests(away: TensorStore, store: TensorStore, proxy: Proxy) -> None:
    """A part takes one request of the catalogue or for the elements, once the store has met the array."""
    store["x"] = ROWS
    store["large"] = large = np.random.default_rng(0).random((300, 5000))
    store.keys()
    away.keys()
    elements = 0 if store.engine == "database" else 1

    def requests(use: Callable[[], Any]) -> int:
        with proxy.counted() as asked:
            use()
        return len(asked)

    assert requests(lambda: away["x"]) == 1 + elements
    assert requests(lambda: away["x", 3]) == 1 + elements
    assert requests(lambda: away["x", 3:, 1]) == 1 + elements
    assert requests(lambda: away["x"]) == 1 + elements
    if elements:
        # The check of the entry goes beside the download, not before it.
        with proxy.counted() as asked:
            away["x", :]
        assert sorted(exchange.kind for exchange in asked) == ["download", "shards"]
        assert [exchange.received_bytes for exchange in asked if exchange.kind == "shards"] == [0]
    # A part of an array that the store has not met, and the same again.
    assert requests(lambda: away["large", 3]) == 2 + elements
    assert requests(lambda: away["large", 3:5]) == 1 + elements
    np.testing.assert_array_equal(away["large", ::50], large[::50])
    # The array as it was stored by the same session.
    away["mine"] = ROWS
    assert requests(lambda: away["mine", -1]) == 1 + elements
    away.append("mine", ROWS)
    # A few rows that were appended to Storage are in the catalogue.
    assert requests(lambda: away["mine", -1]) == 1
    assert away["mine", 39].tolist() == ROWS[-1].tolist()


def test_an_assignment_of_elements_takes_one_request(
    project: Project, proxy: Proxy, user: User, store: TensorStore
) -> None:
    away = TensorStore(Project(proxy.url, project.key).session(user), quiet=True)
    away["x"] = ROWS
    with proxy.counted() as asked:
        away["x", 3] = 1
        away["x", 4:6] = [[1, 2, 3], [4, 5, 6]]
    assert len(asked) == 2
    assert store["x", 3:6].tolist() == [[1, 1, 1], [1, 2, 3], [4, 5, 6]]


def test_a_damaged_array_is_asked_for_once(project: Project, proxy: Proxy, user: User, database: Sql) -> None:
    """The array is what is remembered: another look would say nothing else."""
    away = TensorStore(Project(proxy.url, project.key).session(user), quiet=True)
    away["x"] = ROWS
    database.execute("delete from public.tensors where user_id = %s", [user.id])
    for use in (lambda: away["x", 3], lambda: away.__setitem__(("x", 3), 1)):
        with proxy.counted() as asked, pytest.raises(IncompleteTensorError):
            use()
        assert len(asked) == 1
    del away["x"]


def test_an_owner_s_arrays_are_remembered_apart(
    project: Project, store: TensorStore, engine: Engine, user: User
) -> None:
    other = TensorStore(project.session(reader := project.register()), quiet=True, engine=engine)
    store["x"], other["x"] = ROWS, ROWS * 2
    store.share("x", reader.email)
    theirs = other.shared_by(user.email)
    for _ in range(2):
        assert theirs["x", 1].tolist() == ROWS[1].tolist()
        assert other["x", 1].tolist() == (2 * ROWS[1]).tolist()
    store["x", 1] = 5
    assert theirs["x", 1].tolist() == [5, 5, 5]
    store.unshare("x", reader.email)
    with pytest.raises(KeyNotFoundError):
        theirs["x", 1]
    assert other["x", 1].tolist() == (2 * ROWS[1]).tolist()


def test_most_entries() -> None:
    from tensorage.types import Dataset

    memory = EntryMemory(most=3)
    for number in range(5):
        memory.remember(None, Dataset(number, f"k{number}", (1,), np.dtype("f4"), 1, attrs={"a": 1}))
        memory.find(None, "k0")
    assert [memory.find(None, f"k{n}") is not None for n in range(5)] == [True, False, False, True, True]
    entry = memory.find(None, "k0")
    assert entry is not None
    assert entry.entry.attrs == {}
    memory.forget(None, "k0")
    memory.forget(None, "k0")
    assert memory.find(None, "k0") is None
    memory.remember(None, Dataset(7, "staged", (1,), np.dtype("f4"), 1, state="staged"))
    assert memory.find(None, "staged") is None


def test_most_records() -> None:
    from tensorage.backend.zarr.shard_records import ShardRecord
    from tensorage.types import Dataset

    def entry(version: int, state: Literal["staged", "committed"] = "committed") -> Dataset:
        return Dataset(1, "k", (1,), np.dtype("f4"), 1, version=version, state=state)

    def record(number: int, nbytes: int = 300) -> ShardRecord:
        return ShardRecord(number, f"name/{number}", 1, b"x" * nbytes)

    memory: RecordMemory[ShardRecord] = RecordMemory(most_bytes=1600)
    memory.remember(entry(1), map(record, range(3)))
    assert memory.find(entry(1), [0, 2, 3]) == {0: record(0), 2: record(2)}
    # Another version may have other elements.
    assert memory.find(entry(2), [0]) == {}
    memory.remember(entry(2), [record(0)])
    # The one that was not used for longest makes room, and records that are told again take none.
    memory.remember(entry(2), [record(0)] * 5)
    assert memory.find(entry(1), range(3)) == {0: record(0), 2: record(2)}
    memory.remember(entry(1), [record(7, 2000)])
    assert memory.find(entry(1), range(9)) == memory.find(entry(2), range(9)) == {}
    memory.remember(entry(1), map(record, range(3)))
    assert len(memory.find(entry(1), range(3))) == 3
    memory.remember(entry(3, "staged"), [record(0)])
    assert memory.find(entry(3), [0]) == {}
