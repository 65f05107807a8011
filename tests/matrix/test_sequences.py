"""Any series of shares and writes by several users leaves to each of them what a model in memory says."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import hypothesis.strategies as st
import numpy as np
import psycopg
import pytest
import workers
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from project import Project, User

import tensorage
from examples import examples
from tensorage import Tensor, TensorStore
from tensorage.types import Engine

Array = np.ndarray[Any, Any]
Sql = psycopg.Connection[tuple[Any, ...]]

USERS = range(3)
KEYS = ("a", "p/a")
PREFIX = "p/"
EVERYBODY = -1

any_user = st.sampled_from(USERS)
any_key = st.sampled_from(KEYS)
any_pattern = st.sampled_from([*KEYS, PREFIX])
any_reader = st.sampled_from([*USERS, EVERYBODY])
seeds = st.integers(0, 2**32 - 1)


@dataclass(frozen=True)
class Grant:
    """A share, which may have ended by itself."""

    write: bool
    is_over: bool = False


@dataclass(frozen=True)
class Handle:
    """A handle that somebody keeps, whatever becomes of the share that it was opened by."""

    viewer: int
    owner: int
    key: str
    tensor: Tensor


@dataclass(frozen=True)
class Member:
    """A user, and the user's store."""

    user: User
    store: TensorStore


@pytest.fixture(scope="module")
def members(project: Project) -> Iterator[list[Member]]:
    """Three users who are logged in."""
    with contextlib.ExitStack() as logins:
        users = [project.register() for _ in USERS]
        yield [Member(user, logins.enter_context(workers.store_of(project, user))) for user in users]


class Sequences(RuleBasedStateMachine):
    """Stores of several users beside their arrays and shares in memory."""

    def __init__(self, members: list[Member], database: Sql) -> None:
        super().__init__()
        self.members, self.database = members, database
        ids = [member.user.id for member in members]
        database.execute("delete from tensorage.shares where user_id = any (%s::uuid[])", [ids])
        for member in members:
            member.store.clear()
        self.arrays: list[dict[str, Array]] = [{} for _ in USERS]
        self.grants: list[dict[tuple[str, int], Grant]] = [{} for _ in USERS]
        self.handles: list[Handle] = []

    # The model ----------------------------------------------------------------------------------------

    def live(self, viewer: int, owner: int, key: str) -> list[Grant]:
        """Shares that let a user use a key of another."""
        patterns = (key, PREFIX) if key.startswith(PREFIX) else (key,)
        found = (self.grants[owner].get((p, reader)) for p in patterns for reader in (viewer, EVERYBODY))
        return [grant for grant in found if grant is not None and not grant.is_over]

    def may_read(self, viewer: int, owner: int, key: str) -> bool:
        return key in self.arrays[owner] and (viewer == owner or bool(self.live(viewer, owner, key)))

    def may_write(self, viewer: int, owner: int, key: str) -> bool:
        return viewer == owner or any(grant.write for grant in self.live(viewer, owner, key))

    def name_of(self, reader: int) -> str | None:
        return None if reader == EVERYBODY else self.members[reader].user.email

    def store_of(self, viewer: int, owner: int) -> TensorStore:
        """An owner's store, as a viewer gets at it."""
        store = self.members[viewer].store
        return store if viewer == owner else store.shared_by(self.members[owner].user.email)

    @contextlib.contextmanager
    def refused_unless_may_write(self, viewer: int, owner: int, key: str) -> Iterator[list[None]]:
        """Expect the error of those who may not; what is added to the list is done by those who may."""
        if not self.may_read(viewer, owner, key):
            with pytest.raises(tensorage.KeyNotFoundError):
                yield []
        elif not self.may_write(viewer, owner, key):
            with pytest.raises(tensorage.PermissionDeniedError):
                yield []
        else:
            done: list[None] = []
            yield done

    # Own arrays ---------------------------------------------------------------------------------------

    @rule(user=any_user, key=any_key, seed=seeds, engine=st.sampled_from(["database", "storage"]))
    def write(self, user: int, key: str, seed: int, engine: Engine) -> None:
        array = np.random.default_rng(seed).integers(0, 100, 4, dtype="i4")
        store = self.members[user].store
        store.engine, store.allow_overwrite = engine, True
        store[key] = array
        self.arrays[user][key] = array

    @rule(user=any_user, key=any_key)
    def remove(self, user: int, key: str) -> None:
        if key not in self.arrays[user]:
            with pytest.raises(tensorage.KeyNotFoundError):
                del self.members[user].store[key]
            return
        del self.members[user].store[key]
        del self.arrays[user][key]
        # A later array of the same key is another one.
        self.grants[user] = {at: grant for at, grant in self.grants[user].items() if at[0] != key}

    @rule(user=any_user, key=any_key, new_key=any_key)
    def rename(self, user: int, key: str, new_key: str) -> None:
        store = self.members[user].store
        if key not in self.arrays[user]:
            with pytest.raises(tensorage.KeyNotFoundError):
                store.rename(key, new_key, overwrite=True)
            return
        store.rename(key, new_key, overwrite=True)
        if key == new_key:
            return
        self.arrays[user][new_key] = self.arrays[user].pop(key)
        for (pattern, reader), grant in list(self.grants[user].items()):
            if pattern == key:
                del self.grants[user][pattern, reader]
                there = self.grants[user].get((new_key, reader))
                allows_less = there is None or there.is_over or there.write < grant.write
                if not grant.is_over and allows_less:
                    self.grants[user][new_key, reader] = grant

    # Sharing ------------------------------------------------------------------------------------------

    @rule(user=any_user, pattern=any_pattern, reader=any_reader, write=st.booleans())
    def share(self, user: int, pattern: str, reader: int, write: bool) -> None:
        store = self.members[user].store
        is_there = any(
            key == pattern or (pattern == PREFIX and key.startswith(PREFIX)) for key in self.arrays[user]
        )
        if reader == user:
            with pytest.raises(tensorage.InvalidInputError):
                store.share(pattern, self.name_of(reader), write=write)
        elif not is_there:
            with pytest.raises(tensorage.KeyNotFoundError):
                store.share(pattern, self.name_of(reader), write=write)
        else:
            store.share(pattern, self.name_of(reader), write=write)
            self.grants[user][pattern, reader] = Grant(write)

    @rule(user=any_user, pattern=any_pattern, reader=any_reader)
    def unshare(self, user: int, pattern: str, reader: int) -> None:
        """Unshare with one reader; by the name of everybody, with all of them."""
        store, mine = self.members[user].store, self.grants[user]
        ended = [at for at in mine if at[0] == pattern and reader in (at[1], EVERYBODY)]
        if all(mine[at].is_over for at in ended):
            with pytest.raises(tensorage.InvalidInputError):
                store.unshare(pattern, self.name_of(reader))
            return
        store.unshare(pattern, self.name_of(reader))
        for at in ended:
            del mine[at]

    @precondition(lambda self: any(self.grants))
    @rule(data=st.data())
    def expire(self, data: st.DataObject) -> None:
        user = data.draw(st.sampled_from([user for user in USERS if self.grants[user]]), label="user")
        at = data.draw(st.sampled_from(sorted(self.grants[user])), label="share")
        self.database.execute(
            "update tensorage.shares set expires_at = now() - interval '1 second' "
            "where user_id = %s and pattern = %s and reader = %s",
            [self.members[user].user.id, at[0], self.name_of(at[1]) or ""],
        )
        self.grants[user][at] = Grant(self.grants[user][at].write, is_over=True)

    # Arrays of others ---------------------------------------------------------------------------------

    @rule(viewer=any_user, owner=any_user, key=any_key, seed=seeds)
    def append(self, viewer: int, owner: int, key: str, seed: int) -> None:
        rows = np.random.default_rng(seed).integers(0, 100, 2, dtype="i4")
        with self.refused_unless_may_write(viewer, owner, key) as done:
            self.store_of(viewer, owner).append(key, rows)
            done.append(None)
        if done:
            self.arrays[owner][key] = np.concatenate([self.arrays[owner][key], rows])

    @rule(viewer=any_user, owner=any_user, key=any_key, value=st.integers(0, 99))
    def assign(self, viewer: int, owner: int, key: str, value: int) -> None:
        with self.refused_unless_may_write(viewer, owner, key) as done:
            self.store_of(viewer, owner)[key, 1:3] = value
            done.append(None)
        if done:
            changed = self.arrays[owner][key].copy()
            changed[1:3] = value
            self.arrays[owner][key] = changed

    @rule(viewer=any_user, owner=any_user, key=any_key)
    def take(self, viewer: int, owner: int, key: str) -> None:
        """Delete, rename, store and share what is somebody else's: nobody may."""
        if viewer == owner:
            return
        theirs = self.store_of(viewer, owner)
        with pytest.raises(tensorage.PermissionDeniedError):
            del theirs[key]
        with pytest.raises(tensorage.PermissionDeniedError):
            theirs.rename(key, "mine")
        with pytest.raises(tensorage.PermissionDeniedError):
            theirs[key] = np.zeros(1)
        with pytest.raises(tensorage.PermissionDeniedError):
            theirs.share(key)

    @precondition(lambda self: len(self.handles) < 4)
    @rule(viewer=any_user, owner=any_user, key=any_key)
    def open(self, viewer: int, owner: int, key: str) -> None:
        if self.may_read(viewer, owner, key):
            self.handles.append(Handle(viewer, owner, key, self.store_of(viewer, owner).open(key)))

    @precondition(lambda self: self.handles)
    @rule(data=st.data())
    def read_by_handle(self, data: st.DataObject) -> None:
        handle = data.draw(st.sampled_from(self.handles), label="handle")
        if not self.may_read(handle.viewer, handle.owner, handle.key):
            with pytest.raises(tensorage.KeyNotFoundError):
                handle.tensor[...]
            return
        seen = handle.tensor[...]
        # Rows that were appended since it was opened are not seen.
        np.testing.assert_array_equal(seen, self.arrays[handle.owner][handle.key][: len(seen)])

    # Views --------------------------------------------------------------------------------------------

    @invariant()
    def every_view_is_that_of_the_model(self) -> None:
        for viewer in USERS:
            for owner in USERS:
                store = self.store_of(viewer, owner)
                visible = [key for key in KEYS if self.may_read(viewer, owner, key)]
                assert store.keys() == visible
                for key in KEYS:
                    if key in visible:
                        np.testing.assert_array_equal(store[key], self.arrays[owner][key], strict=True)
                    else:
                        assert key not in store

    def teardown(self) -> None:
        """Compare lists of shares, at the end of each series alone: they are asked for by no view."""
        for viewer in USERS:
            wanted = {
                (self.members[owner].user.email, pattern, self.name_of(reader), grant.write)
                for owner in USERS
                for (pattern, reader), grant in self.grants[owner].items()
                if owner != viewer and reader in (viewer, EVERYBODY) and not grant.is_over
            }
            received = self.members[viewer].store.shared_with_me()
            assert {(share.owner, share.key, share.reader, share.write) for share in received} == wanted


def test_any_series_of_several_users(members: list[Member], database: Sql) -> None:
    run_state_machine_as_test(
        lambda: Sequences(members, database),
        settings=settings(
            max_examples=examples(8),
            stateful_step_count=12,
            deadline=None,
            derandomize=True,
            # A failing example is told as it is: to look for less would take longer than all tests.
            phases=[Phase.generate],
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
