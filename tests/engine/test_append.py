"""Appending: one request for a small row, exactly once, and a great many of them do not ruin reading."""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import psycopg
import pytest
import workers
from project import Project, User
from proxy import Exchange, Proxy

import tensorage
from tensorage import BackendSession, TensorStore
from tensorage.backend.wire.header import header
from tensorage.types import Engine

Sql = psycopg.Connection[tuple[Any, ...]]


def block_counts(database: Sql, user_id: str) -> list[int]:
    """Elements of each stored block, in order."""
    query = "select count from public.tensors where user_id = %s order by data_id, index"
    return [row[0] for row in database.execute(query, [user_id])]


@pytest.fixture
def counted(project: Project, user: User, proxy: Proxy) -> Iterator[TensorStore]:
    """A store whose requests pass the proxy."""
    with workers.store_of(Project(proxy.url, project.key), user) as store:
        # The project's version has been asked for.
        assert store.keys() is not None
        yield store


ROW = np.arange(3, dtype="f4")[None]


@pytest.mark.parametrize(
    ("rows", "most"),
    [
        (ROW, 1),
        (ROW.tolist(), 2),
        (ROW.astype("f2"), 2),
        (ROW.astype("i2"), 2),
        ([[1, 2, 3]], 2),
        (ROW[:0], 1),
    ],
    ids=["the array's dtype", "list", "float16", "int16", "list of integers", "no row"],
)
def test_requests_of_an_append(counted: TensorStore, proxy: Proxy, rows: Any, most: int) -> None:
    counted["x"] = np.zeros((2, 3), "f4")
    expected = np.concatenate([np.zeros((2, 3), "f4"), np.asarray(rows, "f4")])
    with proxy.counted() as exchanges:
        counted.append("x", rows)
    assert [exchange.function for exchange in exchanges] == ["append"] * most
    handle = counted.open("x")
    np.testing.assert_array_equal(handle[...], expected, strict=True)
    with proxy.counted() as exchanges:
        handle.append(rows)
    assert [exchange.function for exchange in exchanges] == ["append"]
    assert exchanges[0].sent_bytes < 300
    expected = np.concatenate([expected, np.asarray(rows, "f4")])
    np.testing.assert_array_equal(handle[...], expected, strict=True)


def test_requests_of_a_large_append(counted: TensorStore, proxy: Proxy) -> None:
    counted["x"] = np.zeros((0, 1024, 1024), "u1")
    with proxy.counted() as exchanges:
        counted.append("x", np.ones((10, 1024, 1024), "u1"))
    assert [exchange.function for exchange in exchanges] == ["open", "begin", "put", "put", "commit"]
    assert counted["x"].sum() == 10 * 1024 * 1024


@pytest.mark.parametrize("value", [300, -129, 2**70, np.int64(300), np.array(300)], ids=repr)
@pytest.mark.parametrize(
    "as_rows", [lambda value: [value], lambda value: np.array([value])], ids=["list", "array"]
)
def test_values_that_the_dtype_cannot_hold_are_not_appended(
    store: TensorStore, value: Any, as_rows: Callable[[Any], Any]
) -> None:
    store["x"] = np.zeros(2, "i1")
    for append in (lambda rows: store.append("x", rows), store.open("x").append):
        with pytest.raises(tensorage.DTypeError, match="x"):
            append(as_rows(value))
    np.testing.assert_array_equal(store["x"], np.zeros(2, "i1"), strict=True)


@pytest.mark.parametrize(
    "rows", [np.zeros((1, 4), "f4"), np.zeros(3, "f4"), [[1, 2]], np.float32(1), [1, 2, 3]]
)
def test_rows_of_another_shape_are_refused_with_both_shapes(store: TensorStore, rows: Any) -> None:
    store["x"] = np.ones((2, 3), "f4")
    store["scalar"] = np.float32(1)
    for append in (lambda: store.append("x", rows), lambda: store.open("x").append(rows)):
        with pytest.raises(tensorage.InvalidInputError, match=r"\(2, 3\)") as raised:
            append()
        assert str(np.shape(rows)) in str(raised.value)
    with pytest.raises(tensorage.InvalidInputError, match=r"\(\)"):
        store.append("scalar", rows)
    np.testing.assert_array_equal(store["x"], np.ones((2, 3), "f4"))
    large = np.zeros((3, 1024, 1024), "f4")
    with pytest.raises(tensorage.InvalidInputError, match=r"\(3, 1024, 1024\).*\(2, 3\)"):
        store.append("x", large)


def test_somebody_elses_array_is_not_appended_to(project: Project, store: TensorStore) -> None:
    store["x"] = np.zeros((2, 1024, 1024), "u1")
    with workers.sharing(store), workers.store_of(project, project.register()) as other:
        store.share("x")
        theirs = other.shared_by(store.backend.email)
        handle = theirs.open("x")
        for rows in (np.zeros((1, 1024, 1024), "u1"), np.zeros((10, 1024, 1024), "u1")):
            for append in (lambda rows: theirs.append("x", rows), handle.append):
                with pytest.raises(tensorage.PermissionDeniedError, match="x"):
                    append(rows)
    assert store.open("x").shape == (2, 1024, 1024)


def test_attributes_survive_appends(store: TensorStore) -> None:
    store.write("x", np.zeros((1, 2)), attrs={"units": "K"}, dims=("t", "x"))
    handle = store.open("x")
    store.append("x", np.ones((1, 2)))
    handle.append(np.ones((1, 2)))
    for now in (handle, store.open("x")):
        assert (dict(now.attrs), now.dims) == ({"units": "K"}, ("t", "x"))


def test_a_handle_reads_the_rows_that_it_knows(store: TensorStore) -> None:
    store["x"] = np.arange(3)
    old = store.open("x")
    store.append("x", np.arange(3, 5))
    np.testing.assert_array_equal(old[...], np.arange(3))
    with pytest.raises(IndexError):
        old[3]
    old.refresh()
    np.testing.assert_array_equal(old[...], np.arange(5))


#: Errors of an append that finds its array replaced or deleted. An append to Storage begins anew on what is there: it
#: does not fit that, or finds nothing.
OVERTAKEN: dict[Engine, dict[str, type[Exception]]] = {
    "database": {"overwrite": tensorage.ChangedError, "delete": tensorage.ChangedError},
    "storage": {"overwrite": tensorage.InvalidInputError, "delete": tensorage.KeyNotFoundError},
}


@pytest.mark.parametrize("change", ["append", "rename", "assign", "overwrite", "delete"])
def test_an_array_that_changes_amid_an_append(
    project: Project, user: User, store: TensorStore, database: Sql, change: str
) -> None:
    store.allow_overwrite = True
    store["x"] = np.zeros((1, 1024, 1024), "u1")
    changes: dict[str, Callable[[], Any]] = {
        "append": lambda: store.append("x", np.full((1, 1024, 1024), 2, "u1")),
        "rename": lambda: store.rename("x", "y"),
        "assign": lambda: store.__setitem__(("x", 0), 3),
        "overwrite": lambda: store.__setitem__("x", np.zeros(3)),
        "delete": lambda: store.__delitem__("x"),
    }
    puts: list[Exchange] = []

    def notice(exchange: Exchange) -> bool:
        if exchange.function == "put" or exchange.is_upload:
            puts.append(exchange)
            if len(puts) == 1:
                changes[change]()
        return False

    proxy = Proxy(project.url, notice)
    rows = np.ones((10, 1024, 1024), "u1")
    try:
        with workers.store_of(Project(proxy.url, project.key), user) as other:
            if change in OVERTAKEN[store.engine]:
                with pytest.raises(OVERTAKEN[store.engine][change], match="'x'"):
                    other.append("x", rows)
            else:
                other.append("x", rows)
    finally:
        proxy.close()
    firsts = {"append": {"x": [0, 2, *[1] * 10]}, "rename": {"y": [0, *[1] * 10]}, "assign": {"x": [3, *[1] * 10]},
              "overwrite": {"x": [0, 0, 0]}, "delete": {}}  # fmt: skip
    assert {key: store[key].reshape(len(store[key]), -1)[:, 0].tolist() for key in store} == firsts[change]
    query = "select count(*) from public.datasets where user_id = %s"
    assert database.execute(query, [user.id]).fetchone() == (len(firsts[change]),)


def test_an_append_is_not_split_by_a_bad_row(rows: TensorStore, database: Sql) -> None:
    array = np.zeros((1, 1024, 1024), "u1")
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
            rows.append("x", np.ones((12, 1024, 1024), "u1"))
    finally:
        database.execute(f"drop trigger {name} on public.tensors; drop function {name}")
    np.testing.assert_array_equal(rows["x"], array)
    # The session sweeps behind the caller's back.
    rows.backend.transfer.finish(30)
    assert block_counts(database, rows.backend.user_id) == [1024 * 1024]


def append_by_sql(database: Sql, user_id: str, key: str, count: int) -> None:
    """Append rows of one int64 each, `count` times: 0, 1, 2 and so on."""
    operation = str(uuid.UUID(int=0))
    meta = {"key": key, "shape": [1], "dtype": "<i8", "operation": operation}
    head = header(count=1, block_size=1, meta=meta)
    at = head.index(operation.encode())
    # The numbers in little-endian, and the operations' ids, are put into one request that is there.
    database.execute(
        f"""
        do $$
        declare
          request bytea := decode('{(head + bytes(8)).hex()}', 'hex');
          little bytea;
        begin
          perform set_config('request.jwt.claims', '{{"sub": "{user_id}", "role": "authenticated"}}', false);
          for i in 0..{count - 1} loop
            little := substr(int8send(i), 8, 1) || substr(int8send(i), 7, 1) || substr(int8send(i), 6, 1);
            request := overlay(request placing convert_to(gen_random_uuid()::text, 'UTF8') from {at + 1});
            perform public.tensorage_append(overlay(request placing little from {len(head) + 1}));
            if i % 50 = 0 then
              commit;
            end if;
          end loop;
        end
        $$
        """
    )


def test_many_appends_leave_few_blocks(
    session: BackendSession, counted: TensorStore, proxy: Proxy, database: Sql
) -> None:
    store, count = TensorStore(session, chunk_size=1000), 3_000
    store["log"] = np.empty(0, "i8")
    append_by_sql(database, session.user_id, "log", count)
    for number in range(count, count + 100):
        store.append("log", np.array([number]))
    blocks = block_counts(database, session.user_id)
    assert sum(blocks) == count + 100
    assert max(blocks) <= 1000
    # A thousand rows that are merged by twos come to ten small blocks beside those that are nearly full.
    assert len(blocks) < (count + 100) / 500 + 20
    with proxy.counted() as exchanges:
        np.testing.assert_array_equal(counted["log"], np.arange(count + 100))
        np.testing.assert_array_equal(counted["log", ::-7], np.arange(count + 100)[::-7])
    assert [exchange.function for exchange in exchanges] == ["read_many", "read"]


def test_answers_of_long_ago_are_forgotten_in_pieces(
    session: BackendSession, rows: TensorStore, database: Sql
) -> None:
    rows["log"] = np.empty(0, "i8")
    append_by_sql(database, session.user_id, "log", 1000)
    database.execute(
        "update tensorage.operations set finished_at = finished_at - interval '2 days' where user_id = %s",
        [session.user_id],
    )

    def remembered() -> int:
        query = "select count(*) from tensorage.operations where user_id = %s"
        row = database.execute(query, [session.user_id]).fetchone()
        assert row is not None
        return int(row[0])

    before = remembered()
    assert before >= 1000
    for number in range(2):
        rows[f"x{number}"] = number
        after = remembered()
        assert before - 600 < after < before, "some of them, not all at once"
        before = after
    np.testing.assert_array_equal(rows["log"], np.arange(1000))


def test_small_blocks_are_compacted(session: BackendSession, database: Sql) -> None:
    store = TensorStore(session, chunk_size=100)
    expected = np.arange(3000.0)
    store["x"] = expected[:30]
    # Each is too large to be merged with those before it, and none fills a block.
    counts = [60, 40, 30, 20, 12, 7, 3, 2, 1]
    at = 30
    while at < 3000:
        for count in counts:
            store.append("x", expected[at : at + count])
            at = min(at + count, 3000)
    handle = store.open("x")
    before = block_counts(database, session.user_id)
    merged = store.compact("x")
    after = block_counts(database, session.user_id)
    assert merged == len(before) - len(after) > 0
    assert max(after) <= 100
    assert all(left + right > 100 for left, right in itertools.pairwise(after))
    np.testing.assert_array_equal(handle[...], expected)
    np.testing.assert_array_equal(store["x", ::-13], expected[::-13])
    assert store.compact("x") == 0
    for refused in ("missing", ""):
        with pytest.raises(tensorage.KeyNotFoundError):
            store.compact(refused)


def test_readers_and_appenders_do_not_notice_that_an_array_is_compacted(session: BackendSession) -> None:
    store = TensorStore(session, chunk_size=100)
    store["x"] = np.arange(60)
    old = store.open("x")
    for count in (40, 30, 20):
        store.append("x", np.arange(count))
    handle = store.open("x")
    expected = handle[...]
    assert store.compact("x") > 0
    np.testing.assert_array_equal(old[...], np.arange(60))
    np.testing.assert_array_equal(handle[...], expected)
    handle[-1] = 7
    handle.append(np.arange(3))
    expected[-1] = 7
    np.testing.assert_array_equal(store["x"], np.concatenate([expected, np.arange(3)]))
