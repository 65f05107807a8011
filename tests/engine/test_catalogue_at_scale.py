"""A great many keys: what costs one request among a few costs one among them, and the list comes in pages."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import psycopg
import pytest
import workers
from project import Project, User
from proxy import Proxy

import tensorage
from tensorage import TensorStore

Sql = psycopg.Connection[tuple[Any, ...]]

COUNT = 100_000


@pytest.fixture(scope="module")
def crowded(request: pytest.FixtureRequest, project: Project, proxy: Proxy) -> Iterator[TensorStore]:
    """A store of a user of very many arrays, by way of the proxy. They have no elements."""
    user: User = project.register()
    url = request.getfixturevalue("backend").superuser_url
    with psycopg.connect(url, autocommit=True) as connection:
        # Past the triggers and foreign keys, which take most of the time. Nobody asks for the usage of this user.
        connection.execute("set session_replication_role = replica")
        connection.execute(
            "insert into public.datasets (user_id, key, shape, dtype, block_size, state) "
            "select %s, format('run %%s/%%s', i %% 100, i), '{0}', '<f4', 1, 'committed' "
            "from generate_series(0, %s) i",
            [user.id, COUNT - 1],
        )
        connection.execute("analyze public.datasets")
        with workers.store_of(Project(proxy.url, project.key), user) as store:
            assert "none" not in store
            yield store
        connection.execute(
            "delete from public.datasets where user_id = %s and starts_with(key, 'run ')", [user.id]
        )
        # Arrays that tests have made have rows elsewhere, too.
        connection.execute("reset session_replication_role")
        connection.execute("delete from public.datasets where user_id = %s", [user.id])


def test_all_keys_come_in_pages(crowded: TensorStore, proxy: Proxy) -> None:
    with proxy.counted() as exchanges:
        keys = crowded.keys()
    assert keys == sorted(f"run {i % 100}/{i}" for i in range(COUNT))
    assert [exchange.function for exchange in exchanges] == ["list"] * (COUNT // 1000 + 1)
    with proxy.counted() as exchanges:
        assert len(crowded) == COUNT
    assert [exchange.function for exchange in exchanges] == ["count"]


@pytest.mark.parametrize(
    ("prefix", "count"), [("run 7/", 1000), ("run 7", 11000), ("run 42/4", 112), ("run 99/99999", 1), ("r", COUNT),
                          ("x", 0), ("run 7/%", 0), ("Run", 0)],
)  # fmt: skip
def test_keys_of_a_prefix(crowded: TensorStore, proxy: Proxy, prefix: str, count: int) -> None:
    with proxy.counted() as exchanges:
        keys = crowded.keys(prefix)
    assert len(keys) == count
    assert keys == sorted(keys)
    assert all(key.startswith(prefix) for key in keys)
    assert len(exchanges) == count // 1000 + 1
    assert sum(exchange.received_bytes for exchange in exchanges) < 100 + 20 * count


def test_iteration_asks_for_no_more_pages_than_it_needs(crowded: TensorStore, proxy: Proxy) -> None:
    with proxy.counted() as exchanges:
        keys = iter(crowded)
        first = [next(keys) for _ in range(1000)]
    assert len(exchanges) == 1
    with proxy.counted() as exchanges:
        assert next(keys) > first[-1]
    assert len(exchanges) == 1


def test_one_array_among_many_is_one_request(crowded: TensorStore, proxy: Proxy) -> None:
    key = "run 50/12350"
    for operation, function in [
        (lambda: key in crowded, "open"),
        (lambda: "none" in crowded, "open"),
        (lambda: crowded.open(key), "open"),
        (lambda: crowded.__setitem__("new", np.arange(5)), "store"),
        (lambda: crowded.append("new", np.arange(5)), "append"),
        (lambda: crowded.rename("new", "newer"), "rename"),
        (lambda: crowded.__delitem__("newer"), "remove"),
    ]:
        with proxy.counted() as exchanges:
            operation()
        assert [exchange.function for exchange in exchanges] == [function]
    assert len(crowded) == COUNT


KEYS = ["a", "a/b", "a0", "ab", "a%", "a_", "A", "ä", "b", "z", "日本", "😀", "a\\", "a'"]


def test_prefixes_are_not_patterns(store: TensorStore) -> None:
    for key in KEYS:
        store[key] = 1
    for prefix in ("", *KEYS, "a\\%", "日", "\U0010ffff", "c", "-"):
        assert store.keys(prefix=prefix) == sorted(key for key in KEYS if key.startswith(prefix))


def test_shared_keys_are_listed_once_and_by_prefix(project: Project, store: TensorStore, user: User) -> None:
    mine, theirs = f"{user.id}/mine", f"{user.id}/theirs"
    store[mine] = 1
    with workers.store_of(project, project.register()) as other, workers.sharing(other):
        for key in (mine, theirs, f"{user.id}/hidden"):
            other[key] = 2
        other.share(mine)
        other.share(theirs)
        assert store.keys(user.id) == [mine]
        shared = store.shared_by(other.backend.email)
        assert shared.keys(user.id) == [mine, theirs]
        assert int(store[mine]) == 1
        assert int(shared[mine]) == int(shared[theirs]) == 2
        for attempt in (lambda: shared.rename(theirs, "x"), lambda: shared.open(theirs).attrs.update(a=1)):
            with pytest.raises(tensorage.PermissionDeniedError):
                attempt()
        assert int(other[theirs]) == 2


class TestRename:
    def test_an_array_has_another_key(self, store: TensorStore) -> None:
        store.write("x", np.arange(5), attrs={"units": "K"}, dims=("t",))
        old = store.open("x")
        store.rename("x", "dir/ü")
        assert store.keys() == ["dir/ü"]
        handle = store.open("dir/ü")
        assert (dict(handle.attrs), handle.dims) == ({"units": "K"}, ("t",))
        for now in (handle, old):
            np.testing.assert_array_equal(now[...], np.arange(5))
        with pytest.raises(tensorage.KeyNotFoundError, match="'x'"):
            store["x"]

    def test_a_taken_key(self, store: TensorStore, database: Sql) -> None:
        store["x"], store["y"] = np.arange(3), np.zeros((10, 1024, 1024), "u1")
        replaced = store.open("y")
        for store.allow_overwrite in (False, True):
            with pytest.raises(tensorage.KeyExistsError, match=r"'y'.*rename\('x', 'y', overwrite=True\)"):
                store.rename("x", "y")
            assert store.keys() == ["x", "y"]
        store.allow_overwrite = False
        store.rename("x", "y", overwrite=True)
        assert store.keys() == ["y"]
        for now in (store.open("y"), replaced):
            np.testing.assert_array_equal(now[...], np.arange(3))
        for table in ("datasets", "tensors" if store.engine == "database" else "shards"):
            query = f"select count(*) from public.{table} where user_id = %s"
            assert database.execute(query, [store.backend.user_id]).fetchone() == (1,), (
                "what was replaced is gone"
            )

    def test_to_itself(self, store: TensorStore) -> None:
        store["x"] = 1
        store.rename("x", "x")
        assert int(store["x"]) == 1

    @pytest.mark.parametrize("new_key", ["", "k" * 1025, "a\0b", 5])
    def test_to_what_is_no_key(self, store: TensorStore, new_key: Any) -> None:
        store["x"] = 1
        with pytest.raises(tensorage.InvalidInputError, match="key"):
            store.rename("x", new_key)
        assert store.keys() == ["x"]

    def test_an_unknown_key(self, store: TensorStore) -> None:
        with pytest.raises(tensorage.KeyNotFoundError, match="missing"):
            store.rename("missing", "x")


class TestAttributes:
    def test_they_are_a_dictionary_that_is_stored(self, store: TensorStore) -> None:
        store["x"] = np.zeros(3)
        attrs = store.open("x").attrs
        expected: dict[str, Any] = {}

        def same() -> None:
            for now in (attrs, store.open("x").attrs):
                assert now == expected
                assert dict(now) == expected
                assert len(now) == len(expected)
                assert repr(now) == repr(dict(now))

        attrs["units"] = expected["units"] = "K"
        same()
        attrs.update(source="ERA5", nested={"a": [1, 2.5, None, True, "ü", r"\u0000"]})
        expected.update(source="ERA5", nested={"a": [1, 2.5, None, True, "ü", r"\u0000"]})
        same()
        attrs.update({"source": "other", "": 0}, big=2**53 + 1)
        expected.update({"source": "other", "": 0, "big": 2**53 + 1})
        same()
        del attrs["units"], expected["units"]
        same()
        assert attrs.pop("big") == expected.pop("big")
        assert attrs.setdefault("new", 1) == expected.setdefault("new", 1)
        assert attrs.get("none", 5) == 5
        same()
        handle = store.open("x")
        handle.attrs = {"only": "this"}
        assert (handle.attrs, store.open("x").attrs) == ({"only": "this"}, {"only": "this"})
        handle.attrs.clear()
        assert (handle.attrs, store.open("x").attrs) == ({}, {})
        for missing in (lambda: attrs["units"], lambda: attrs.__delitem__("units")):
            with pytest.raises(KeyError):
                missing()

    def test_a_change_is_one_request(self, project: Project, user: User, proxy: Proxy) -> None:
        with workers.store_of(Project(proxy.url, project.key), user) as store:
            store["x"] = np.zeros(3)
            handle = store.open("x")
            for change in (
                lambda: handle.attrs.update(a=1, b=2, c=3),
                lambda: handle.attrs.__setitem__("a", 2),
                lambda: handle.attrs.__delitem__("a"),
                handle.attrs.clear,
                lambda: setattr(handle, "attrs", {"d": 1, "e": 2}),
                lambda: setattr(handle, "dims", ("t",)),
            ):
                with proxy.counted() as exchanges:
                    change()
                assert [exchange.function for exchange in exchanges] == ["annotate"]
            with proxy.counted() as exchanges:
                assert (dict(handle.attrs), handle.dims, len(handle.attrs)) == ({"d": 1, "e": 2}, ("t",), 2)
            assert not exchanges

    def test_numpys_values_are_plain_ones(self, store: TensorStore) -> None:
        values = {
            "i": np.int64(3),
            "f": np.float32(0.5),
            "b": np.bool_(True),
            "a": np.arange(3),
            "n": [np.int8(1)],
        }
        handle = store.write("x", 1, attrs=values)
        expected = {"i": 3, "f": 0.5, "b": True, "a": [0, 1, 2], "n": [1]}
        assert (handle.attrs, store.open("x").attrs) == (expected, expected)
        handle.attrs = {}
        handle.attrs.update(values)
        assert (handle.attrs, store.open("x").attrs) == (expected, expected)

    @pytest.mark.parametrize(
        "value",
        [
            object(), {1, 2}, b"bytes", float("nan"), float("inf"), 1j, "a\0b", "\\\0", np.float64("nan"), "\ud800",
            {"a": [{2}]}, np.datetime64("2024-01-01"),
        ],
        # Names without addresses: each process of a run has to find the same ones.
        ids=lambda value: repr(value).partition(" at 0x")[0],
    )  # fmt: skip
    def test_what_json_cannot_hold_is_refused(self, store: TensorStore, value: Any) -> None:
        handle = store.write("x", np.arange(3), attrs={"old": 1})
        for attempt in (
            lambda: handle.attrs.__setitem__("a", value),
            lambda: handle.attrs.update(old=2, a=value),
            lambda: setattr(handle, "attrs", {"a": value}),
            lambda: store.write("y", 1, attrs={"a": value}),
        ):
            with pytest.raises(tensorage.InvalidInputError):
                attempt()
        assert (handle.attrs, store.open("x").attrs) == ({"old": 1}, {"old": 1})
        assert store.keys() == ["x"]

    def test_numbers_come_back_as_they_were(self, store: TensorStore) -> None:
        numbers = {
            "_FillValue": 9.969209968386869e36, "large": [1e16, -1.5e300, 2**70, 10**16], "small": 5e-324, "whole": 3.0,
            "integer": 3, "text": "1e+16", "quoted": '"1e+16', np.str_("numpy"): np.float32(1e20),
        }  # fmt: skip
        store.write("x", 1, attrs=numbers)
        expected = {**numbers, "numpy": float(np.float32(1e20))}
        found = dict(store.open("x").attrs)
        assert found == expected
        assert [type(number) for number in found["large"]] == [float, float, int, int]
        assert {name: type(value) for name, value in found.items()} == {
            name: type(value) for name, value in expected.items()
        }
        handle = store.open("x")
        handle.attrs["more"] = 1e17
        assert (store.open("x").attrs["more"], type(handle.attrs["more"])) == (1e17, float)

    def test_names_are_strings(self, store: TensorStore) -> None:
        handle = store.write("x", 1)
        for name in (5, None, ("a",)):
            with pytest.raises(tensorage.InvalidInputError, match="string"):
                handle.attrs.update({name: 1})
        assert store.open("x").attrs == {}

    def test_they_belong_to_the_array_not_to_its_key(self, store: TensorStore) -> None:
        store.write("x", np.arange(3), attrs={"a": 1}, dims=("t",))
        old = store.open("x")
        store.append("x", np.arange(2))
        store["x", 0] = 5
        store.rename("x", "y")
        handle = store.open("y")
        assert (dict(handle.attrs), handle.dims) == ({"a": 1}, ("t",))
        store.allow_overwrite = True
        store["y"] = np.arange(3)
        assert (dict(store.open("y").attrs), store.open("y").dims) == ({}, None)
        for replaced in (old, handle):
            with pytest.raises(tensorage.ChangedError):
                replaced.attrs["b"] = 2
        assert store.open("y").attrs == {}

    def test_two_handles_change_different_ones(self, store: TensorStore) -> None:
        store["x"] = np.arange(3)
        one, other = store.open("x"), store.open("x")
        one.attrs["a"] = 1
        other.attrs["b"] = 2
        assert other.attrs == {"a": 1, "b": 2}
        assert one.attrs == {"a": 1}, "as of its last change"
        one.refresh()
        assert one.attrs == {"a": 1, "b": 2}
        np.testing.assert_array_equal(one[...], np.arange(3))


class TestDims:
    def test_they_name_the_axes(self, store: TensorStore) -> None:
        store["x"] = np.zeros((2, 3))
        handle = store.open("x")
        for dims in (("t", "x"), None, ["a", "b"], ("", "ü")):
            handle.dims = dims
            expected = None if dims is None else tuple(dims)
            assert (handle.dims, store.open("x").dims) == (expected, expected)
        store.write("scalar", 1, dims=())
        assert store.open("scalar").dims == ()

    @pytest.mark.parametrize("dims", [("a",), ("a", "b", "c"), (), "ab", ("a", 1), (None, None)])
    def test_one_for_each(self, store: TensorStore, dims: Any) -> None:
        handle = store.write("x", np.zeros((2, 3)), dims=("t", "x"))
        with pytest.raises(tensorage.InvalidInputError, match="axes"):
            handle.dims = dims
        with pytest.raises(tensorage.InvalidInputError, match="axes"):
            store.write("y", np.zeros((2, 3)), dims=dims)
        assert (handle.dims, store.open("x").dims, store.keys()) == (("t", "x"), ("t", "x"), ["x"])
