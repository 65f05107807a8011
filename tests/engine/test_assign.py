"""``store[key, index] = value`` does what numpy does: all of it, or nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import psycopg
import pytest
import workers
from project import Project, User
from proxy import Exchange, Proxy

import tensorage
from tensorage import BackendSession, TensorStore

Sql = psycopg.Connection[tuple[Any, ...]]
Array = np.ndarray[Any, Any]


def assert_same(result: Array, expected: Array) -> None:
    np.testing.assert_array_equal(result, expected, strict=True)


def blocks_of(database: Sql, user_id: str) -> list[int]:
    """Elements of each stored block, in order."""
    query = "select count from public.tensors where user_id = %s order by data_id, index"
    return [row[0] for row in database.execute(query, [user_id])]


MASK = np.arange(11 * 5).reshape(11, 5) % 3 == 0

ASSIGNMENTS = [
    (np.s_[3], 7), (np.s_[-1, 2, 1], 7), (np.s_[...], 7), (np.s_[()], 7), (np.s_[:], np.arange(3)),
    (np.s_[2:9:3], np.arange(5)[:, None]), (np.s_[::-2, 1], np.arange(18).reshape(6, 3)),
    (np.s_[4], np.ones((1, 1, 5, 3))), (np.s_[..., 0], np.arange(11)[:, None]), (np.s_[None, 1:3], 2.0),
    (np.s_[[3, 1, 3]], np.array([1, 2, 3])[:, None, None]), (np.s_[[3, 3, 3], [1, 1, 1]], np.arange(9).reshape(3, 3)),
    (np.s_[[[0, 1], [1, 0]], 2], np.arange(4).reshape(2, 2, 1)), (np.s_[:, [0, -1]], [[1], [2]]),
    (np.s_[MASK], 9), (np.s_[MASK], np.arange(MASK.sum() * 3).reshape(-1, 3)), (np.s_[MASK[:, 0]], 4),
    (np.s_[[], 2], 5), (np.s_[5:5], 5), (np.s_[[1, 2], :, [0, 1]], np.arange(10).reshape(2, 5)),
    (np.s_[True, 3], 6), (np.s_[False], 6), (np.s_[np.uint8(3)], np.array(8)), (np.s_[1:3], True),
    (np.s_[2], np.int8(-3)), (np.s_[2], [[1, 2, 3]]), (np.s_[1], np.arange(3, dtype=">i8")),
]  # fmt: skip


@pytest.mark.parametrize("chunk_size", [None, 4, 40])
def test_every_kind_of_index_is_assigned_to_as_numpy_does(store: TensorStore, chunk_size: int | None) -> None:
    store.chunk_size = chunk_size
    expected = np.arange(11 * 5 * 3, dtype="f8").reshape(11, 5, 3)
    store["x"] = expected
    handle = store.open("x")
    for number, (index, value) in enumerate(ASSIGNMENTS):
        expected[index] = value
        if number % 2:
            handle[index] = value
        elif isinstance(index, tuple) and index:
            store[("x", *index)] = value
        else:
            store["x", index] = value
        assert_same(store["x"], expected)
    assert_same(handle[...], expected)


def test_a_scalar_array_is_assigned_to(store: TensorStore) -> None:
    store["x"] = np.float32(1)
    store["x", ...] = 2.5
    assert_same(store["x"], np.array(2.5, "f4"))
    store.open("x")[()] = np.array(3)
    assert_same(store["x"], np.array(3, "f4"))


@pytest.mark.parametrize(
    ("dtype", "value", "stored"),
    [
        ("i4", 1.0, 1), ("u1", np.array([255, 0, 7]), [255, 0, 7]), ("f4", 0.1, np.float32(0.1)),
        ("f4", np.float64(1e300), np.inf), ("f8", 2**60, 2.0**60), ("i8", np.uint64(5), 5), ("?", True, True),
        ("F", 2, 2), ("D", 1j, 1j), ("i2", True, 1), ("f2", np.nan, np.nan), ("i4", np.array([1.0, 2, 3]), [1, 2, 3]),
        ("M8[s]", np.datetime64("2024-05-06"), np.datetime64("2024-05-06", "s")), ("m8[s]", np.timedelta64("NaT"),
         np.timedelta64("NaT")), ("u1", np.int64(255), 255), ("i1", -128, -128), ("i1", [-128, 5, 127], [-128, 5, 127]),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:overflow encountered in cast:RuntimeWarning")
def test_values_that_stay_what_they_are_or_are_rounded_within_a_kind(
    store: TensorStore, dtype: str, value: Any, stored: Any
) -> None:
    expected = np.zeros((2, 3), dtype)
    store["x"] = expected
    store["x", 1] = value
    expected[1] = stored
    assert_same(store["x"], expected)


@pytest.mark.parametrize(
    ("dtype", "value"),
    [
        ("i4", 1.5), ("i4", np.nan), ("i4", np.array([1.0, 2.5, 3])), ("u1", np.array([256, 0, 0])), ("u1", -1),
        ("u1", np.int64(-1)), ("f8", 1j), ("?", 2), ("i4", "a"), ("i4", None), ("i4", np.datetime64("2024-01-01")),
        ("i1", 300), ("i1", [1, 2, 300]), ("i4", 2**40), ("i8", 2**70), ("u8", -1), ("i1", -129),
    ],
)  # fmt: skip
def test_values_that_the_dtype_cannot_hold_are_refused(store: TensorStore, dtype: str, value: Any) -> None:
    array = np.ones((2, 3), dtype)
    store["x"] = array
    handle = store.open("x")
    for index in (np.s_[1], np.s_[[]], np.s_[...]):
        with pytest.raises(tensorage.DTypeError, match="'x' of dtype"):
            handle[index] = value
    assert_same(store["x"], array)


@pytest.mark.parametrize(
    ("index", "value", "error", "says"),
    [
        (np.s_[1], np.zeros(4), tensorage.InvalidInputError, r"\(4,\).*\(3,\)"),
        (np.s_[:, [0, 1]], np.zeros((2, 3)), tensorage.InvalidInputError, r"\(2, 3\).*\(5, 2\)"),
        (np.s_[:], np.zeros((2, 5, 3)), tensorage.InvalidInputError, r"\(2, 5, 3\).*\(5, 3\)"),
        (np.s_[5:], np.zeros(2), tensorage.InvalidInputError, r"\(2,\).*\(0, 3\)"),
        (np.s_[1, 2], [1, 2], tensorage.InvalidInputError, r"\(2,\).*\(\)"),
        (np.s_[5], 0, IndexError, "index 5 is out of bounds for axis 0 with size 5"),
        (np.s_[[0, -6]], 0, IndexError, "index -6 is out of bounds for axis 0 with size 5"),
        (np.s_[1, 1, 1], 0, IndexError, "too many indices"),
        (np.s_[0.5], 0, IndexError, "only integers"),
        (np.s_[np.ones(4, bool)], 0, IndexError, "boolean index did not match"),
        (np.s_[:], [[1], [2, 3]], tensorage.InvalidInputError, "no array"),
        (np.s_[:], np.ma.masked_array(1, True), tensorage.InvalidInputError, "masked"),
    ],
    ids=str,
)
def test_what_cannot_be_assigned_changes_nothing(
    store: TensorStore, index: Any, value: Any, error: type[Exception], says: str
) -> None:
    array = np.arange(15, dtype="f8").reshape(5, 3)
    store["x"] = array
    version = store.open("x").dataset.version
    with pytest.raises(error, match=says):
        store.open("x")[index] = value
    assert_same(store["x"], array)
    assert store.open("x").dataset.version == version


def test_an_unknown_key_is_not_assigned_to(store: TensorStore) -> None:
    with pytest.raises(tensorage.KeyNotFoundError, match="missing"):
        store["missing", 3] = 1
    assert len(store) == 0


def test_somebody_elses_array_is_not_assigned_to(project: Project, store: TensorStore) -> None:
    arrays = {"small": np.arange(5), "large": np.zeros((10, 1024, 1024), "u1")}
    with workers.sharing(store), workers.store_of(project, project.register()) as other:
        for key, array in arrays.items():
            store[key] = array
            store.share(key)
            theirs = other.shared_by(store.backend.email)
            handle = theirs.open(key)
            with pytest.raises(tensorage.PermissionDeniedError, match=key):
                handle[...] = 1
            with pytest.raises(tensorage.PermissionDeniedError, match=key):
                theirs[key, 2:] = 1
            assert_same(store[key], array)


LARGE = (10, 1024, 1024)


@pytest.mark.parametrize(
    ("index", "value"),
    [
        (np.s_[...], lambda n: np.uint8(7)),
        (np.s_[1:], lambda n: np.broadcast_to(np.arange(1024, dtype="u1"), (9, 1024, 1024))),
        (np.s_[::-1], lambda n: np.arange(n).reshape(LARGE)),
        (np.s_[:, ::-1, 1:], lambda n: np.arange(10).reshape(10, 1, 1)),
        (np.s_[:, [5, 900, 5]], lambda n: np.arange(30).reshape(10, 3, 1)),
        (np.s_[np.arange(10 * 1024).reshape(10, 1024) % 7 > 0], lambda n: 3),
        (np.s_[2:9], lambda n: np.asfortranarray(np.arange(7 * 1024 * 1024).reshape(7, 1024, 1024) % 251)),
    ],
    ids=["a scalar", "broadcast", "reversed", "strided", "columns", "mask", "Fortran"],
)
def test_assignments_of_several_requests(store: TensorStore, index: Any, value: Callable[[int], Any]) -> None:
    expected = np.random.default_rng(0).integers(0, 255, LARGE, "u1")
    store["x"] = expected
    assigned = np.asarray(value(expected.size)).astype("u1")
    expected[index] = assigned
    handle = store.open("x")
    handle[index] = assigned
    assert_same(handle[...], expected)


def test_an_assignment_that_touches_many_blocks(session: BackendSession, database: Sql) -> None:
    store = TensorStore(session, chunk_size=50)
    expected = np.arange(12345)
    store["x"] = expected
    blocks = blocks_of(database, session.user_id)
    assert len(blocks) == 247
    for index, value in [(np.s_[::49], 5), (np.s_[::-1], np.arange(12345)), (np.s_[100:12000], -1)]:
        store["x", index] = value
        expected[index] = value
        assert_same(store["x"], expected)
    session.transfer.finish(30)
    assert blocks_of(database, session.user_id) == blocks, "what was replaced is gone"


def test_an_assignment_is_one_request_by_a_handle(project: Project, user: User, proxy: Proxy) -> None:
    with workers.store_of(Project(proxy.url, project.key), user) as store:
        store["x"] = np.zeros((100, 1000))
        handle = store.open("x")
        for assign, functions in [
            (lambda: handle.__setitem__(5, 1), ["assign"]),
            (lambda: handle.__setitem__(np.s_[::7, 3], np.arange(15)), ["assign"]),
            (lambda: handle.__setitem__(np.s_[5:5], 1), []),
            (lambda: store.__setitem__(("x", 7), 1), ["assign"]),
        ]:
            with proxy.counted() as exchanges:
                assign()
            assert [exchange.function for exchange in exchanges] == functions
        with proxy.counted() as exchanges:
            handle[3, :10] = 1.0
        assert exchanges[0].sent_bytes < 80 + 1000, "only the elements travel"


def test_a_handle_that_others_overtook_assigns_to_what_is_there(store: TensorStore) -> None:
    store.allow_overwrite = True
    store["x"] = np.zeros(5)
    handle = store.open("x")
    store.append("x", np.zeros(2))
    handle[1:] = 1
    np.testing.assert_array_equal(store["x"], [0, 1, 1, 1, 1, 0, 0], "of the rows that the handle knew")
    np.testing.assert_array_equal(handle[...], store["x"])
    store["x", 0] = 5
    handle[-1] = 2
    np.testing.assert_array_equal(store["x"], [5, 1, 1, 1, 1, 0, 2])
    store["x"] = np.zeros((2, 2), "i2")
    handle[1] = 3
    assert_same(store["x"], np.array([[0, 0], [3, 3]], "i2"))
    store["x"] = np.zeros(1)
    with pytest.raises(IndexError):
        handle[1] = 3
    del store["x"]
    with pytest.raises(tensorage.KeyNotFoundError):
        handle[0] = 3


@pytest.mark.parametrize("change", ["append", "assign", "overwrite", "compact", "delete"])
def test_an_array_that_changes_amid_an_assignment(
    project: Project, user: User, session: BackendSession, database: Sql, change: str
) -> None:
    """Between two requests of it, somebody else changes the array: blocks that it has copied are merged, say."""
    small = TensorStore(session, chunk_size=100, allow_overwrite=True)
    small["x"] = np.zeros(12700)
    for count in (60, 40, 30):
        small.append("x", np.zeros(count))
    assert blocks_of(database, user.id)[-4:] == [100, 60, 40, 30], "a request ends between the last two"
    changes: dict[str, Callable[[], Any]] = {
        "append": lambda: small.append("x", np.full(30, 5.0)),
        "assign": lambda: small.__setitem__(("x", 7), 5),
        "overwrite": lambda: small.__setitem__("x", np.full(7, 5.0)),
        "compact": lambda: small.compact("x"),
        "delete": lambda: small.__delitem__("x"),
    }
    patches: list[Exchange] = []

    def notice(exchange: Exchange) -> bool:
        if exchange.function == "patch":
            patches.append(exchange)
            if len(patches) == 1:
                changes[change]()
        return False

    proxy = Proxy(project.url, notice)
    try:
        with workers.store_of(Project(proxy.url, project.key), user) as other:
            # No more at once than are needed to have a last one that is sent after the first has been answered.
            other.backend.transfer.parallel = 2
            handle = other.open("x")
            if change == "delete":
                with pytest.raises(tensorage.KeyNotFoundError):
                    handle[:] = 1
            else:
                handle[:] = 1
                # It is done on the array that is there now; appended rows are of no concern to others.
                result = small["x"]
                assert result.shape == {"append": (12860,), "overwrite": (7,)}.get(change, (12830,))
                assert (result[:12830] == 1).all()
                assert set(result[12830:]) <= {1, 5}
    finally:
        proxy.close()
    staged = "select count(*) from public.datasets where user_id = %s and state = 'staged'"
    assert database.execute(staged, [user.id]).fetchone() == (0,)


def test_an_assignment_that_fails_half_way_changes_nothing(rows: TensorStore, database: Sql) -> None:
    array = np.zeros(LARGE, "u1")
    rows["x"] = array
    name = f"fail_{rows.backend.user_id.replace('-', '')}"
    database.execute(
        f"create function {name}() returns trigger language plpgsql as "
        "$$ begin raise exception using errcode = '53100', message = 'no space left on device'; end $$; "
        f"create trigger {name} before insert on public.tensors for each row "
        f"when (new.user_id = '{rows.backend.user_id}' and new.index > 9000000) execute function {name}()"
    )
    try:
        with pytest.raises(tensorage.BackendUnavailableError, match="no space left"):
            rows["x", ...] = 1
    finally:
        database.execute(f"drop trigger {name} on public.tensors; drop function {name}")
    assert_same(rows["x"], array)
    # The session sweeps behind the caller's back.
    rows.backend.transfer.finish(30)
    assert len(blocks_of(database, rows.backend.user_id)) == 10


def test_an_assignment_over_the_quota_is_refused(store: TensorStore, database: Sql) -> None:
    array = np.zeros(LARGE, "u1")
    store["x"] = array
    user_id = store.backend.user_id
    # A staged one needs room for what it changes until it is done; one of a single request does not.
    database.execute(
        "insert into tensorage.quotas select user_id, bytes + 5000 from tensorage.usage where user_id = %s",
        [user_id],
    )
    try:
        with pytest.raises(tensorage.QuotaExceededError):
            store["x", ...] = 1
        assert_same(store["x"], array)
        if store.engine == "database":
            store["x", 3] = array[3] = 1
            assert_same(store["x"], array)
    finally:
        database.execute("delete from tensorage.quotas where user_id = %s", [user_id])


def test_attributes_and_the_key_survive_an_assignment(store: TensorStore) -> None:
    store.write("x", np.zeros((3, 4)), attrs={"units": "K"}, dims=("time", "x"))
    handle = store.open("x")
    handle[1] = 5
    for now in (handle, store.open("x")):
        assert (dict(now.attrs), now.dims) == ({"units": "K"}, ("time", "x"))
