"""Arrays of several users, as they see them: own arrays, those that others share, and the ends of shares."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import numpy as np
import psycopg
import pytest
import workers
from project import Project, User, new_email

import tensorage
from tensorage import TensorStore
from tensorage.types import Engine

_ARRAY = np.arange(20).reshape(5, 4)


class People(NamedTuple):
    """Stores of three users, new for the tests of this file."""

    ann: TensorStore
    ben: TensorStore
    eve: TensorStore

    def with_engine(self, engine: Engine) -> People:
        return People(
            *(TensorStore(s.backend, quiet=True, engine=engine, allow_overwrite=True) for s in self)
        )


@pytest.fixture(scope="module")
def logins(project: Project) -> Iterator[People]:
    with contextlib.ExitStack() as stack:
        users = [project.register() for _ in range(3)]
        yield People(*(stack.enter_context(workers.store_of(project, user)) for user in users))


@pytest.fixture
def people(logins: People, engine: Engine) -> Iterator[People]:
    yield logins.with_engine(engine)
    for store in logins:
        store.clear()
        for share in store.shares():
            with contextlib.suppress(tensorage.InvalidInputError):
                store.unshare(share.key)


def address_of(store: TensorStore) -> str:
    assert store.backend.email is not None
    return store.backend.email


def seen_by(reader: TensorStore, owner: TensorStore) -> TensorStore:
    return reader.shared_by(address_of(owner))


class TestOwnArrays:
    def test_arrays_of_others_are_never_under_my_keys(self, people: People) -> None:
        ann, ben, eve = people
        for store, value in ((ann, 1), (ben, 2)):
            store["ckpt/last"] = np.full(3, value)
            store.share("ckpt/last")
        assert "ckpt/last" not in eve
        assert eve.get("ckpt/last", "none") == "none"
        assert eve.keys() == list(eve) == []
        assert len(eve) == 0
        with pytest.raises(tensorage.KeyNotFoundError, match="you have no array 'ckpt/last'"):
            eve["ckpt/last"]
        with pytest.raises(tensorage.KeyNotFoundError):
            del eve["ckpt/last"]
        with pytest.raises(KeyError):
            eve.pop("ckpt/last")
        eve.clear()
        # Each of the two is there by its owner's name, whatever the other one does.
        assert seen_by(eve, ann)["ckpt/last"].tolist() == [1, 1, 1]
        ann.unshare("ckpt/last")
        assert seen_by(eve, ben)["ckpt/last"].tolist() == [2, 2, 2]
        assert "ckpt/last" not in seen_by(eve, ann)

    def test_setdefault_stores_my_own(self, people: People) -> None:
        people.ann["x"] = _ARRAY
        people.ann.share("x")
        assert np.array_equal(people.eve.setdefault("x", np.zeros(2)), np.zeros(2))
        assert people.eve["x"].tolist() == [0, 0]

    def test_clear_deletes_all_of_mine_and_nothing_else(self, people: People) -> None:
        for key in ("a", "b/c", "z"):
            people.ann[key] = _ARRAY
            people.ben[key] = _ARRAY
            people.ben.share(key)
        people.ann.clear()
        assert people.ann.keys() == []
        assert people.ben.keys() == ["a", "b/c", "z"]

    def test_overwriting_keeps_the_share_and_deleting_ends_it(self, people: People) -> None:
        ann, ben, _ = people
        ann["x"] = _ARRAY
        ann.share("x", address_of(ben))
        ann["x"] = -_ARRAY
        assert np.array_equal(seen_by(ben, ann)["x"], -_ARRAY)
        del ann["x"]
        ann["x"] = _ARRAY
        assert "x" not in seen_by(ben, ann)
        assert ann.shares("x") == []


class TestArraysOfOthers:
    def test_a_store_of_theirs(self, people: People) -> None:
        ann, ben, _ = people
        ann["exp/x"], ann["exp/y"], ann["own"] = _ARRAY, _ARRAY + 1, _ARRAY
        ann.share("exp/", address_of(ben).upper())
        theirs = seen_by(ben, ann)
        assert theirs.keys() == ["exp/x", "exp/y"]
        assert theirs.keys("exp/y") == ["exp/y"]
        assert len(theirs) == 2
        assert np.array_equal(theirs["exp/x", 1:3, ::-1], _ARRAY[1:3, ::-1])
        assert "own" not in theirs
        handle = ben.open("exp/y", owner=address_of(ann))
        assert np.array_equal(handle[2], _ARRAY[2] + 1)
        assert handle.owner == address_of(ann)
        assert handle.is_shared
        (share,) = ben.shared_with_me()
        assert (share.key, share.owner, share.reader, share.write) == (
            "exp/", address_of(ann), address_of(ben), False,
        )  # fmt: skip
        assert np.array_equal(ben.shared_by(share.owner_id)["exp/x"], _ARRAY)

    @pytest.mark.parametrize(
        "use",
        [
            lambda store, key: store[key],
            lambda store, key: store[key, 1],
            lambda store, key: store.open(key),
            lambda store, key: store.append(key, _ARRAY),
            lambda store, key: store.append(key, ["text"]),
            lambda store, key: store.__setitem__((key, 0), 1),
            lambda store, key: store.read_many([key]),
            lambda store, key: store.copy(key, "mine"),
            lambda store, key: store.load(key),
            lambda store, key: store.open_dataset(key),
            lambda store, key: store.export(key, "x.npy"),
            lambda store, key: store.transaction().__enter__().__setitem__((key, 0), 1),
        ],
    )
    def test_missing_and_hidden_arrays_give_the_same_error(
        self, people: People, use: Callable[[TensorStore, str], object]
    ) -> None:
        ann, _, eve = people
        ann["hidden"] = _ARRAY
        messages = []
        for who, key in ((address_of(ann), "hidden"), (address_of(ann), "absent"), (new_email(), "hidden")):
            with pytest.raises(tensorage.KeyNotFoundError) as caught:
                use(eve.shared_by(who), key)
            messages.append(str(caught.value).replace(who, "WHO").replace(key, "KEY"))
        assert len(set(messages)) == 1
        assert "WHO" in messages[0]
        assert eve.shared_by(new_email()).keys() == eve.shared_by(address_of(ann)).keys() == []

    def test_a_copy_is_mine(self, people: People) -> None:
        ann, ben, _ = people
        ann.write("x", _ARRAY, attrs={"units": "K"})
        ann.share("x", address_of(ben))
        copy = seen_by(ben, ann).copy("x", "mine")
        assert copy.owner == address_of(ben)
        assert not copy.is_shared
        assert np.array_equal(ben["mine"], _ARRAY)
        assert ben.open("mine").attrs == {"units": "K"}

    @pytest.mark.parametrize(
        "do",
        [
            lambda store: store.__setitem__("new", 1),
            lambda store: store.__delitem__("x"),
            lambda store: store.clear(),
            lambda store: store.pop("x"),
            lambda store: store.rename("x", "y"),
            lambda store: store.rename_all("x", "y"),
            lambda store: store.remove_all("x"),
            lambda store: store.share("x"),
            lambda store: store.unshare("x"),
            lambda store: store.shares("x"),
            lambda store: store.open("x").share(),
            lambda store: store.compact("x"),
            lambda store: store.usage(),
            lambda store: store.audit(),
        ],
    )
    def test_only_the_owner_does_the_rest(self, people: People, do: Callable[[TensorStore], Any]) -> None:
        ann, ben, _ = people
        ann["x"] = _ARRAY
        ann.share("x", address_of(ben), write=True)
        with pytest.raises(tensorage.PermissionDeniedError, match=address_of(ann)):
            do(seen_by(ben, ann))
        assert np.array_equal(ann["x"], _ARRAY)
        assert ann.keys() == ["x"]
        assert ben.keys() == []


class TestWriting:
    def test_for_reading_only(self, people: People) -> None:
        ann, ben, _ = people
        ann["x"] = _ARRAY
        ann.share("x", address_of(ben))
        handle = seen_by(ben, ann).open("x")
        attempts: list[Callable[[], Any]] = [
            lambda: seen_by(ben, ann).append("x", _ARRAY),
            lambda: handle.append(_ARRAY),
            lambda: handle.__setitem__(0, 7),
            lambda: handle.attrs.update(units="K"),
        ]
        for attempt in attempts:
            with pytest.raises(tensorage.PermissionDeniedError, match="for reading only"):
                attempt()
        assert np.array_equal(ann["x"], _ARRAY)

    def test_appends_and_assignments(self, people: People) -> None:
        ann, ben, _ = people
        ann["x"] = _ARRAY
        ann.share("x", address_of(ben), write=True)
        theirs = seen_by(ben, ann)
        theirs.append("x", _ARRAY[:2])
        handle = theirs.open("x")
        handle.append(_ARRAY[:1])
        handle[0] = 7
        theirs["x", 1, 1:3] = 9
        handle.refresh()
        handle.attrs["units"] = "K"
        expected = np.concatenate([_ARRAY, _ARRAY[:2], _ARRAY[:1]])
        expected[0], expected[1, 1:3] = 7, 9
        assert np.array_equal(ann["x"], expected)
        assert ann.open("x").attrs == {"units": "K"}
        assert ann.open("x").owner == address_of(ann)

    def test_a_writer_leaves_nothing_behind(
        self, people: People, database: psycopg.Connection[Any], caplog: pytest.LogCaptureFixture
    ) -> None:
        ann, ben, _ = people
        ann["x"] = _ARRAY
        ann.share("x", address_of(ben), write=True)
        theirs = seen_by(ben, ann)
        for number in range(3):
            theirs["x", 0] = number
            theirs.append("x", _ARRAY[:1])
        assert not caplog.records
        query = "select count(*) from storage.objects where starts_with(name, %s)"
        (objects,) = database.execute(query, [f"{ann.backend.user_id}/"]).fetchone() or (None,)
        assert objects == (0 if ann.engine == "database" else 1)

    def test_large_ones_count_against_the_owner(self, people: People) -> None:
        ann, ben, _ = people
        # Random bytes, which Storage cannot compress. More than one request.
        large = np.random.default_rng(0).integers(0, 2**63, (300, 4096))
        ann["x"] = large[:1]
        ann.share("x", address_of(ben), write=True)
        before, bens = ann.usage(), ben.usage()
        handle = seen_by(ben, ann).open("x")
        handle.append(large[1:])
        handle[10:290] = large[20:300]
        expected = large.copy()
        expected[10:290] = large[20:300]
        assert np.array_equal(ann["x"], expected)
        assert ann.usage().bytes - before.bytes > large.nbytes * 0.9
        assert ben.usage().bytes - bens.bytes < 10_000
        assert ann.usage().arrays == before.arrays

    def test_the_owner_quota_bounds_what_a_sharee_writes(
        self, people: People, database: psycopg.Connection[Any]
    ) -> None:
        ann, ben, _ = people
        ann["x"] = _ARRAY
        ann.share("x", address_of(ben), write=True)
        set_quota(database, ann, ann.usage().bytes + 20_000)
        try:
            with pytest.raises(tensorage.QuotaExceededError, match="Ask the owner to make room"):
                seen_by(ben, ann).append("x", np.random.default_rng(0).integers(0, 2**63, (50_000, 4)))
            assert np.array_equal(ann["x"], _ARRAY)
        finally:
            set_quota(database, ann, None)

    def test_the_owner_quota_bounds_regions_that_a_sharee_fills(
        self, people: People, database: psycopg.Connection[Any]
    ) -> None:
        """Nobody knows how large they will be before they come: Storage itself refuses the objects."""
        ann, ben, _ = people
        ann.create("x", shape=(10**6, 500), dtype="f8")
        ann.share("x", address_of(ben), write=True)
        set_quota(database, ann, ann.usage().bytes + 20_000)
        try:
            with pytest.raises(tensorage.QuotaExceededError, match=r"quota of the owner\. Ask the owner"):
                seen_by(ben, ann)["x", :500] = np.random.default_rng(0).random((500, 500))
            assert not ann["x", :500].any()
        finally:
            set_quota(database, ann, None)


class TestEnds:
    def test_an_append_that_is_under_way_is_refused(self, people: People) -> None:
        ann, ben, _ = people
        ann.write_ragged("x", ["a"])
        ann.share("x", address_of(ben), write=True)

        def samples() -> Iterator[str]:
            for number in range(40):
                yield f"{number}" * 500_000
                if number == 30:
                    ann.unshare("x")

        errors = (tensorage.ChangedError, tensorage.KeyNotFoundError)
        # The second words are those of a request that was at work when the share ended.
        refused = r"is not shared (with you for writing )?any more|shares no array 'x' with you"
        with pytest.raises(errors, match=refused):
            seen_by(ben, ann).append("x", samples())
        assert ann["x"] == ["a"]

    def test_a_handle_that_is_open_is_refused_after_unshare(self, people: People, tmp_path: Any) -> None:
        ann, ben, _ = people
        ann["x"] = _ARRAY
        ann.share("x", address_of(ben), write=True)
        handle = seen_by(ben, ann).open("x")
        cached = handle.cached(tmp_path / "cache", check_every_s=0)
        assert np.array_equal(cached[:], _ARRAY)
        assert ann.unshare("x", address_of(ben)) == []
        for attempt in (
            lambda: handle[0],
            lambda: cached[0],
            lambda: handle.append(_ARRAY),
            lambda: handle.__setitem__(0, 1),
        ):
            with pytest.raises(tensorage.KeyNotFoundError):
                attempt()
        assert seen_by(ben, ann).keys() == []
        assert ben.shared_with_me() == []

    def test_a_share_expires(self, people: People, database: psycopg.Connection[Any]) -> None:
        ann, ben, _ = people
        ann["x"] = _ARRAY
        until = datetime.now(UTC) + timedelta(hours=1)
        (share,) = ann.share("x", address_of(ben), expires_at=until)
        assert share.expires_at == until
        handle = seen_by(ben, ann).open("x")
        assert handle[0].tolist() == _ARRAY[0].tolist()
        database.execute("update tensorage.shares set expires_at = now() - interval '1 second'")
        with pytest.raises(tensorage.KeyNotFoundError):
            handle[0]
        assert ann.shares("x") == []
        assert not ann.open("x").is_shared

    def test_renaming_takes_the_shares_along(self, people: People) -> None:
        ann, ben, _ = people
        ann["x"], ann["exp/y"] = _ARRAY, _ARRAY
        ann.share("x", address_of(ben))
        ann.share("exp/", address_of(ben))
        ann.rename("x", "z")
        assert ann.rename_all("exp/", "run/") == 1
        assert seen_by(ben, ann).keys() == ["run/y", "z"]
        ann["x"] = _ARRAY
        assert "x" not in seen_by(ben, ann)


class TestShares:
    def test_prefixes_cover_what_comes_later(self, people: People) -> None:
        ann, ben, eve = people
        ann["exp/1"] = _ARRAY
        ann.share("exp/", [address_of(ben), address_of(eve)])
        ann["exp/later/2"], ann["exposed"] = _ARRAY, _ARRAY
        assert seen_by(ben, ann).keys() == seen_by(eve, ann).keys() == ["exp/1", "exp/later/2"]
        assert {s.reader for s in ann.shares("exp/later/2")} == {address_of(ben), address_of(eve)}
        (left,) = ann.unshare("exp/", address_of(ben))
        assert left.reader == address_of(eve)
        assert seen_by(ben, ann).keys() == []
        assert seen_by(eve, ann).keys() == ["exp/1", "exp/later/2"]

    def test_everybody(self, people: People) -> None:
        ann, ben, eve = people
        ann.write("x", _ARRAY, is_shared=True)
        (share,) = ann.shares("x")
        assert share.reader is None
        for reader in (ben, eve):
            assert np.array_equal(seen_by(reader, ann)["x"], _ARRAY)
        assert ann.open("x").unshare() == []
        assert not ann.open("x").is_shared

    def test_an_address_counts_for_an_account_that_comes_later(
        self, people: People, project: Project, database: psycopg.Connection[Any]
    ) -> None:
        ann = people.ann
        ann["x"] = _ARRAY
        address = new_email()
        ann.share("x", address)
        user = project.register(address)
        with workers.store_of(project, user) as store:
            assert seen_by(store, ann).keys() == ["x"]
            # An address that the account has not confirmed counts for nobody.
            _confirm(database, user, "null")
            assert seen_by(store, ann).keys() == []
            assert store.shared_with_me() == []
            _confirm(database, user, "now()")

    def test_handles_share(self, people: People) -> None:
        ann, ben, _ = people
        ann["x"] = _ARRAY
        handle = ann.open("x")
        assert not handle.is_shared
        (share,) = handle.share(address_of(ben), write=True)
        assert handle.shares() == [share]
        assert share.write
        assert ann.open("x").is_shared

    @pytest.mark.parametrize(
        ("arguments", "error", "says"),
        [
            (("x", "nobody"), tensorage.InvalidInputError, "'nobody' is no e-mail address"),
            (("x", ["a@b.org", "two words@b.org"]), tensorage.InvalidInputError, "no e-mail address"),
            (("x", []), tensorage.InvalidInputError, "names nobody"),
            (("x", [3]), tensorage.InvalidInputError, "names nobody"),
            (("x", 3), tensorage.InvalidInputError, "3 names nobody"),
            (("x", "*@lab.org"), tensorage.InvalidInputError, "is a pattern"),
            ((3, "a@b.org"), tensorage.InvalidInputError, "a key is a string, not 3"),
            ((None, "a@b.org"), tensorage.InvalidInputError, "a key is a string, not None"),
            (("absent", "a@b.org"), tensorage.KeyNotFoundError, "you have no array 'absent'"),
            (("absent/", "a@b.org"), tensorage.KeyNotFoundError, "no array and no file below 'absent/'"),
        ],
    )
    def test_bad_shares(
        self, people: People, arguments: tuple[Any, ...], error: type[Exception], says: str
    ) -> None:
        people.ann["x"] = _ARRAY
        with pytest.raises(error, match=says):
            people.ann.share(*arguments)
        assert people.ann.shares() == []

    @pytest.mark.parametrize("write", ["no", "false", 1, None])
    def test_only_true_lets_others_write(self, people: People, write: Any) -> None:
        people.ann["x"] = _ARRAY
        with pytest.raises(tensorage.InvalidInputError, match="neither True nor False"):
            people.ann.share("x", address_of(people.ben), write=write)
        assert people.ann.shares() == []

    def test_sharing_again_says_it_anew(self, people: People) -> None:
        ann, ben, _ = people
        ann["x"] = _ARRAY
        ann.share("x", address_of(ben), write=True, expires_at=datetime.now(UTC) + timedelta(days=1))
        (share,) = ann.share("x", address_of(ben))
        assert (share.write, share.expires_at) == (False, None)

    @pytest.mark.parametrize("who", ["", "ben", "*", "@lab.org", "ben@", "two words@lab.org", 3, None])
    def test_an_owner_who_can_be_nobody(self, people: People, who: Any) -> None:
        """None once gave the store of one's own arrays, and a name without an address an empty one."""
        with pytest.raises(tensorage.InvalidInputError, match="names no owner"):
            people.ben.shared_by(who)
        if who is not None:
            with pytest.raises(tensorage.InvalidInputError, match="names no owner"):
                people.ben.open("x", owner=who)
            with (
                people.ben.backend.storage() as files,  # type: ignore[attr-defined]
                pytest.raises(tensorage.InvalidInputError, match="names no owner"),
            ):
                files.list_files(owner=who)

    def test_keys_of_wrong_types(self, people: People) -> None:
        for ask in (people.ann.unshare, people.ann.shares, people.ann.audit):
            with pytest.raises(tensorage.InvalidInputError, match="a key is a string, not 3"):
                ask(3)  # type: ignore[arg-type]

    def test_bad_times_and_oneself(self, people: People) -> None:
        ann, ben, _ = people
        ann["x"] = _ARRAY
        with pytest.raises(tensorage.InvalidInputError, match="has ended"):
            ann.share("x", address_of(ben), expires_at=datetime(2020, 1, 1, tzinfo=UTC))
        with pytest.raises(tensorage.InvalidInputError, match="tzinfo"):
            ann.share("x", address_of(ben), expires_at=datetime(2120, 1, 1))  # noqa: DTZ001 - the point
        with pytest.raises(tensorage.InvalidInputError, match="your own address"):
            ann.share("x", address_of(ann))
        assert ann.shares() == []

    def test_ending_a_share_that_is_not_there(self, people: People) -> None:
        ann, ben, eve = people
        ann["exp/x"] = _ARRAY
        ann.share("exp/", address_of(ben))
        with pytest.raises(tensorage.InvalidInputError, match="A share of 'exp/' lets them use it"):
            ann.unshare("exp/x", address_of(ben))
        with pytest.raises(tensorage.InvalidInputError, match=address_of(eve)):
            ann.unshare("exp/", [address_of(ben), address_of(eve)])
        with pytest.raises(tensorage.InvalidInputError, match="is not shared"):
            ann.unshare("exp/x")
        assert len(ann.shares()) == 1


def test_files_below_a_shared_prefix(logins: People) -> None:
    ann, ben, eve = logins
    with ann.backend.storage() as files:  # type: ignore[attr-defined]
        files.upload_file("docs/notes.txt", "hello")
        files.upload_file("private.txt", "mine")
    ann.share("docs/", address_of(ben))
    try:
        with ben.backend.storage() as files:  # type: ignore[attr-defined]
            assert files.download_file("docs/notes.txt", owner=address_of(ann)) == b"hello"
            assert files.list_files(owner=address_of(ann)) == ["docs/notes.txt"]
            with pytest.raises(tensorage.KeyNotFoundError):
                files.download_file("private.txt", owner=address_of(ann))
            with pytest.raises(tensorage.KeyNotFoundError):
                files.download_file("docs/notes.txt")
        with (
            eve.backend.storage() as files,  # type: ignore[attr-defined]
            pytest.raises(tensorage.KeyNotFoundError, match="shares nothing with you"),
        ):
            files.download_file("docs/notes.txt", owner=address_of(ann))
    finally:
        ann.unshare("docs/")
    with (
        ben.backend.storage() as files,  # type: ignore[attr-defined]
        pytest.raises(tensorage.KeyNotFoundError),
    ):
        files.download_file("docs/notes.txt", owner=address_of(ann))


def set_quota(database: psycopg.Connection[Any], store: TensorStore, max_bytes: int | None) -> None:
    database.execute(
        "insert into tensorage.quotas (user_id, max_bytes) values (%s, %s) on conflict (user_id) do update "
        "set max_bytes = excluded.max_bytes",
        [store.backend.user_id, max_bytes],
    )


def _confirm(database: psycopg.Connection[Any], user: User, when: str) -> None:
    database.execute(f"update auth.users set email_confirmed_at = {when} where id = %s", [user.id])  # type: ignore[arg-type]


def test_reprs_of_shares_and_records_are_read_at_a_glance() -> None:
    at = datetime(2030, 1, 2, 3, 4, 5, 678, tzinfo=UTC)
    share = tensorage.Share("exp/", "ann@lab.org", "id", "ben@lab.org")
    assert repr(share) == "<Share 'exp/' of ann@lab.org: ben@lab.org reads>"
    share = tensorage.Share("x", None, "id", None, write=True, expires_at=at)
    assert repr(share) == "<Share 'x' of id: everybody reads and writes until 2030-01-02 03:04:05+00:00>"
    for action, detail, words in (
        ("created", None, "ann@lab.org created 'x'"),
        ("shared", None, "ann@lab.org shared 'x', with everybody"),
        ("unshared", "ben@lab.org", "ann@lab.org unshared 'x', with ben@lab.org"),
        ("renamed", "y z", "ann@lab.org renamed 'x', formerly 'y z'"),
    ):
        record = tensorage.AuditRecord(at, action, "x", "ann@lab.org", "id", detail)  # type: ignore[arg-type]
        assert repr(record) == f"<AuditRecord 2030-01-02 03:04:05+00:00: {words}>"
    record = tensorage.AuditRecord(at, "changed", "x", None, "id", None)
    assert repr(record) == "<AuditRecord 2030-01-02 03:04:05+00:00: id changed 'x'>"


def test_reprs_name_the_owner_and_the_user(logins: People) -> None:
    ann, ben, _ = logins
    ann["x"] = _ARRAY
    ann.share("x", address_of(ben))
    assert f"'x' of {address_of(ann)}, shape" in repr(seen_by(ben, ann).open("x"))
    assert " of " not in repr(ann.open("x"))
    (entry,) = ann.catalogue("x")
    described = "shape (5, 4), int64, 160 bytes, database, committed, version 1, shared"
    assert repr(entry) == f"<Dataset 'x' of {address_of(ann)}, {described}>"
    with ben.backend.storage() as files:  # type: ignore[attr-defined]
        assert repr(files) == f"<StorageContext of {ben.backend!r}>"
    del ann["x"]
