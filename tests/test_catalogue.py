"""The catalogue in one look, changes of many arrays at once, usage and quotas, and records of who did what."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import httpx
import numpy as np
import psycopg
import pytest
import workers
from project import Project, User
from proxy import Exchange

import tensorage
from tensorage import TensorStore


class TestCatalogue:
    def test_entries_say_all_that_is_known(self, store: TensorStore) -> None:
        array = np.zeros((20, 1000), "f4")
        store.write("exp/t", array, attrs={"units": "K"}, dims=("time", "x"))
        store["exp/u"] = np.arange(3)
        store.share("exp/t", "reader@lab.org", write=True)
        first, second = store.catalogue("exp/")
        assert (first.key, first.shape, first.dtype, first.engine) == (
            "exp/t",
            (20, 1000),
            "f4",
            store.engine,
        )
        assert (first.attrs, first.dims) == ({"units": "K"}, ("time", "x"))
        assert first.nbytes == array.nbytes
        assert first.owner == store.backend.email
        assert first.created_at is not None
        assert first.is_shared
        assert not second.is_shared
        assert first.shares is not None
        (share,) = first.shares
        assert (share.reader, share.write) == ("reader@lab.org", True)
        assert second.shares == ()
        # Zeros take no object, and Storage compresses what has one.
        assert first.stored_bytes == (array.nbytes if store.engine == "database" else 0)
        assert second.stored_bytes is not None
        assert second.stored_bytes > 0

    def test_stored_bytes_follow_appends_assignments_and_overwrites(
        self, session: tensorage.BackendSession, engine: Any
    ) -> None:
        store = TensorStore(session, quiet=True, engine=engine, allow_overwrite=True)
        random = np.random.default_rng(0)

        def stored() -> int:
            (entry,) = store.catalogue("x")
            assert entry.stored_bytes is not None
            return entry.stored_bytes

        store["x"] = random.integers(0, 2**63, (1000, 100))
        once = stored()
        assert abs(once - 800_000) < 100_000
        store.append("x", random.integers(0, 2**63, (1000, 100)))
        assert abs(stored() - 2 * once) < 100_000
        before = stored()
        store["x", :500] = random.integers(0, 2**63, (500, 100))
        assert abs(stored() - before) < 100_000
        store["x"] = random.integers(0, 2**63, (10, 100))
        assert stored() < 20_000

    @pytest.mark.parametrize(
        ("glob", "keys"),
        [
            ("*", ["a[1]", "b.c"]),
            ("**", ["a[1]", "b.c", "exp/1/x", "exp/2/x", "exp/2/yy"]),
            ("exp/*/x", ["exp/1/x", "exp/2/x"]),
            ("exp/**", ["exp/1/x", "exp/2/x", "exp/2/yy"]),
            ("exp/2/??", ["exp/2/yy"]),
            ("a[1]", ["a[1]"]),
            ("b?c", ["b.c"]),
            ("bxc", []),
            ("(", []),
        ],
    )
    def test_globs(self, session: tensorage.BackendSession, glob: str, keys: list[str]) -> None:
        store = session()
        for key in ("a[1]", "b.c", "exp/1/x", "exp/2/x", "exp/2/yy"):
            store[key] = 1
        assert [entry.key for entry in store.catalogue(glob=glob)] == keys

    def test_where(self, session: tensorage.BackendSession) -> None:
        store = session()
        for key, attrs in (
            ("a", {"units": "K", "run": 1, "tags": ["x", "y"]}),
            ("b", {"units": "K", "run": 2}),
            ("c", {"units": "m", "nested": {"deep": True}}),
            ("d", {}),
        ):
            store.write(key, [1, 2], attrs=attrs)

        def keys(**options: Any) -> list[str]:
            return [entry.key for entry in store.catalogue(**options)]

        assert keys(where={"units": "K"}) == ["a", "b"]
        assert keys(where={"units": "K", "run": 2}) == ["b"]
        assert keys(where={"tags": ["y"]}) == ["a"]
        assert keys(where={"nested": {"deep": True}}) == ["c"]
        assert keys(where={"units": "s"}) == []
        assert keys(where={}) == ["a", "b", "c", "d"]
        assert keys(where={"units": "K"}, prefix="b") == ["b"]
        assert keys(where={"units": "K"}, glob="a*") == ["a"]
        store.open("a").attrs["units"] = "m"
        assert keys(where={"units": "K"}) == ["b"]
        with pytest.raises(tensorage.InvalidInputError, match="name of an attribute"):
            store.catalogue(where={1: 2})  # type: ignore[dict-item]

    def test_a_thousand_arrays_are_one_request(
        self, watched: tuple[TensorStore, list[Exchange]], database: psycopg.Connection[Any]
    ) -> None:
        store, seen = watched
        store["k0000"] = np.arange(4.0)
        _multiply(database, store, "k0000", 2500)
        seen.clear()
        entries = store.catalogue("k0")
        assert len(entries) == 1000
        assert len(seen) == 1
        seen.clear()
        entries = store.catalogue()
        assert [entry.key for entry in entries] == [f"k{i:04}" for i in range(2501)]
        assert len(seen) == 3
        assert [e.key for e in store.catalogue(glob="k*5")] == [f"k{i:04}" for i in range(5, 2501, 10)]
        assert store.remove_all("k1") == 1000
        assert len(store) == 1501
        assert store.rename_all("k0", "m/") == 1000
        assert store.keys("m/")[:2] == ["m/000", "m/001"]

    def test_long_attributes_take_several_answers(self, session: tensorage.BackendSession) -> None:
        store = session()
        attrs = {"text": "x" * 900_000}
        for i in range(12):
            store.write(f"k{i:02}", [i], attrs=attrs)
        entries = store.catalogue()
        assert [entry.key for entry in entries] == [f"k{i:02}" for i in range(12)]
        assert all(entry.attrs == attrs for entry in entries)


class TestManyAtOnce:
    def test_remove_all(self, store: TensorStore) -> None:
        for key in ("exp/1", "exp/2", "expo"):
            store[key] = np.arange(3)
        assert store.remove_all("exp/") == 2
        assert store.keys() == ["expo"]
        assert store.remove_all("exp/") == 0
        # A variable that is empty by mistake would do.
        for some in (store, store.group("exp")):
            with pytest.raises(tensorage.InvalidInputError, match=r"clear\(\)"):
                some.remove_all("")
        assert store.keys() == ["expo"]

    def test_rename_all(self, store: TensorStore) -> None:
        for key in ("a", "aa", "aaa"):
            store[key] = len(key)
        # Each new key is an old key of another array.
        assert store.rename_all("a", "aa") == 3
        assert {key: int(store[key]) for key in store} == {"aa": 1, "aaa": 2, "aaaa": 3}
        assert store.rename_all("", "x/") == 3
        assert store.keys() == ["x/aa", "x/aaa", "x/aaaa"]

    @pytest.mark.parametrize("attrs", ["units", ["units"], [("units", "K")], 3])
    def test_attributes_that_are_no_mapping(self, store: TensorStore, attrs: Any) -> None:
        with pytest.raises(tensorage.InvalidInputError, match="attributes are a mapping of names to values"):
            store.catalogue(where=attrs)
        with pytest.raises(tensorage.InvalidInputError, match="attributes are a mapping of names to values"):
            store.write("x", np.arange(3), attrs=attrs)

    def test_attributes_without_room(self, store: TensorStore) -> None:
        store["x"] = np.arange(3)
        room = "é" * 524_200
        handle = store.open("x")
        for attrs, named in (
            ({"units": "K", "log": room + "é" * 100}, "log"),
            ({"n" * 10: room, "log": "a" * 200}, "n" * 10),
        ):
            with pytest.raises(tensorage.InvalidInputError, match=f"room for 1048576.*'{named}' takes 1048"):
                store.write("y", np.arange(3), attrs=attrs)
            with pytest.raises(tensorage.InvalidInputError, match=f"'{named}' takes 1048"):
                handle.attrs = attrs
        assert store.keys() == ["x"]
        assert store.open("x").attrs == {}
        handle.attrs = {"log": room}
        assert store.open("x").attrs == {"log": room}

    def test_lists_and_dicts_stand_for_those_that_contain_them(self, store: TensorStore) -> None:
        store.write("x", np.arange(3), attrs={"tags": ["raw", "daily"], "grid": {"lat": 1, "lon": 2}})
        for where in ({"tags": ["raw"]}, {"tags": []}, {"grid": {"lat": 1}}):
            assert [entry.key for entry in store.catalogue(where=where)] == ["x"]
        for where in ({"tags": ["hourly"]}, {"tags": "raw"}, {"grid": {"lat": 2}}):
            assert store.catalogue(where=where) == []

    @pytest.mark.parametrize("prefix", [3, None, b"3"])
    def test_prefixes_of_wrong_types_match_nothing(self, store: TensorStore, prefix: Any) -> None:
        """The database would make the text "3" of 3, and delete what begins with it."""
        store["3/x"] = 1
        for ask in (
            lambda: store.keys(prefix),
            lambda: store.catalogue(prefix),
            lambda: store.remove_all(prefix),
            lambda: store.rename_all(prefix, "y"),
            lambda: store.rename_all("3", prefix),
        ):
            with pytest.raises(tensorage.InvalidInputError, match="a prefix of keys is a string"):
                ask()
        with pytest.raises(tensorage.InvalidInputError, match="a pattern of keys is a string"):
            store.catalogue(glob=3)  # type: ignore[arg-type]
        assert store.keys() == ["3/x"]

    def test_rename_all_refuses_as_a_whole(self, store: TensorStore) -> None:
        store["a/1"], store["a/2"], store["b/2"] = 1, 2, 3
        for some in (store, TensorStore(store.backend, allow_overwrite=True)):
            with pytest.raises(tensorage.KeyExistsError, match="Choose another prefix"):
                some.rename_all("a/", "b/")
        with pytest.raises(tensorage.InvalidInputError, match="too long"):
            store.rename_all("a/", "b" * 1024)
        with pytest.raises(tensorage.KeyNotFoundError, match="no arrays whose keys begin with 'c/'"):
            store.rename_all("c/", "d/")
        assert {key: int(store[key]) for key in store} == {"a/1": 1, "a/2": 2, "b/2": 3}


class TestUsage:
    def test_usage_follows(self, store: TensorStore) -> None:
        before = store.usage()
        store["x"] = np.random.default_rng(0).integers(0, 2**63, 100_000)
        store["y"] = 1
        after = store.usage()
        assert after.arrays == before.arrays + 2
        assert 800_000 <= after.bytes - before.bytes < 900_000
        assert after.quota_bytes is after.quota_arrays is None
        store.clear()
        assert store.usage().arrays == before.arrays

    def test_files_are_told_apart(self, session: tensorage.BackendSession) -> None:
        store = session()
        before = store.usage()
        with session.storage() as files:
            files.upload_file("a.bin", b"x" * 5000)
            assert 5000 <= store.usage().file_bytes - before.file_bytes < 7000
            files.remove_file("a.bin")
        assert store.usage().file_bytes == before.file_bytes

    def test_a_quota_of_arrays(self, store: TensorStore, database: psycopg.Connection[Any]) -> None:
        overwriting = TensorStore(store.backend, quiet=True, engine=store.engine, allow_overwrite=True)
        user = store.backend.user_id
        store["a"] = 1
        database.execute(
            "insert into tensorage.quotas (user_id, max_arrays) values (%s, 2) "
            "on conflict (user_id) do update set max_arrays = 2",
            [user],
        )
        try:
            store["b"] = 2
            assert store.usage().quota_arrays == 2
            large = np.zeros((3, 1024, 1024))
            for value in (3, large):
                with pytest.raises(tensorage.QuotaExceededError, match="2 of 2 arrays"):
                    store["c"] = value
            overwriting["a"] = large
            overwriting["b"] = 5
            store.rename("b", "c")
            del store["c"]
            store["d"] = 4
        finally:
            database.execute("delete from tensorage.quotas where user_id = %s", [user])
        assert store.keys() == ["a", "d"]

    def test_counting_anew_gives_the_same(
        self, store: TensorStore, database: psycopg.Connection[Any]
    ) -> None:
        store["x"] = np.arange(100)
        store.share("x", "a@lab.org")
        with store.backend.storage() as files:  # type: ignore[attr-defined]
            files.upload_file("b.bin", b"y" * 500)
            before = store.usage()
            database.execute("select tensorage.recount(%s)", [store.backend.user_id])
            assert store.usage() == before
            files.remove_file("b.bin")

    def test_only_the_service_key_sets_quotas(
        self, project: Project, user: User, store: TensorStore, backend: Any
    ) -> None:
        def set_quota(key: str, token: str, who: str | None, max_arrays: int | None) -> httpx.Response:
            return httpx.post(
                f"{project.url}/rest/v1/rpc/tensorage_set_quota",
                json={"who": who, "max_bytes": None, "max_arrays": max_arrays},
                headers={"apikey": key, "Authorization": f"Bearer {token}"},
            )

        token = store.backend.token  # type: ignore[attr-defined]
        service = backend.service_role_key
        assert set_quota(project.key, token, user.email, 10**9).status_code == 403
        assert set_quota(service, service, user.email, 7).status_code == 200
        assert store.usage().quota_arrays == 7
        assert set_quota(service, service, user.email, None).status_code == 200
        assert set_quota(service, service, "nobody@nowhere.org", 7).status_code == 400
        assert set_quota(service, service, user.email, -1).status_code == 400
        assert store.usage().quota_arrays is None


class TestAudit:
    def test_records(self, session: tensorage.BackendSession) -> None:
        store = TensorStore(session, quiet=True, allow_overwrite=True)
        began = datetime.now(UTC)
        store["audited"] = np.arange(3)
        store["audited"] = np.arange(4)
        store.append("audited", [1, 2])
        store["audited", 0] = 5
        store.share("audited", "r@lab.org")
        store.unshare("audited")
        store.rename("audited", "audited too")
        del store["audited too"]
        records = [r for r in store.audit() if r.at >= began.replace(microsecond=0)]
        mine = [r for r in records if r.key.startswith("audited")]
        assert [(r.action, r.key, r.detail) for r in mine[::-1]] == [
            ("created", "audited", None),
            ("replaced", "audited", None),
            # Changes within a minute are one record.
            ("changed", "audited", None),
            ("shared", "audited", "r@lab.org"),
            ("unshared", "audited", "r@lab.org"),
            ("renamed", "audited too", "audited"),
            ("deleted", "audited too", None),
        ]
        assert {(r.actor, r.actor_id) for r in mine} == {(session.email, session.user_id)}
        assert [r.action for r in store.audit("audited too")] == ["deleted", "renamed"]

    def test_others_are_named_if_the_owner_knows_them(self, project: Project, session: Any) -> None:
        store = session()
        store["known"], store["open"] = np.arange(3), np.arange(3)
        friend, stranger = project.register(), project.register()
        store.share("known", friend.email, write=True)
        store.share("open", write=True)
        for user, key in ((friend, "known"), (stranger, "open")):
            with workers.store_of(project, user) as theirs:
                theirs.shared_by(session.email).append(key, [1])
                assert theirs.audit() == []
        (by_friend, *_), (by_stranger, *_) = store.audit("known"), store.audit("open")
        assert (by_friend.action, by_friend.actor, by_friend.actor_id) == ("changed", friend.email, friend.id)
        assert (by_stranger.action, by_stranger.actor, by_stranger.actor_id) == ("changed", None, stranger.id)

    def test_old_records_are_swept(self, project: Project, database: psycopg.Connection[Any]) -> None:
        user = project.register()
        with workers.store_of(project, user) as store:
            store["x"] = 1
            database.execute(
                "update tensorage.audit set at = now() - interval '100 days' where user_id = %s", [user.id]
            )
            assert store.audit("x")
            store["y"] = 1
            assert [record.key for record in store.audit()] == ["y"]

    @pytest.mark.parametrize("method", ["GET", "POST", "PATCH", "DELETE"])
    def test_nobody_reaches_the_table(self, project: Project, session: Any, method: str) -> None:
        headers = {"apikey": project.key, "Authorization": f"Bearer {session.token}"}
        for profile in ("tensorage", "public"):
            answer = httpx.request(
                method,
                f"{project.url}/rest/v1/audit?id=gt.0",
                headers={**headers, "Accept-Profile": profile, "Content-Profile": profile},
                json=None if method == "GET" else {"key": "x"},
            )
            assert answer.status_code >= 400


def _multiply(database: psycopg.Connection[Any], store: TensorStore, key: str, count: int) -> None:
    """Make arrays without elements of their own, by SQL: as many requests would take long."""
    database.execute(
        "insert into datasets (user_id, writer, key, shape, dtype, block_size, state, stored_bytes) "
        "select d.user_id, d.user_id, 'k' || lpad(i::text, 4, '0'), '{0}', d.dtype, d.block_size, 'committed', 0 "
        "from datasets d, generate_series(1, %s) i where d.user_id = %s and d.key = %s and d.state = 'committed'",
        [count, store.backend.user_id, key],
    )
