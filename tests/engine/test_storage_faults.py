"""Arrays of Storage that are damaged, and Storage that refuses: an error that says what of which array, never zeros.

On a backend of these tests' own, which they harm.
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import leftovers
import numpy as np
import psutil
import psycopg
import pytest
import servers
from damage import Damage
from project import Project, User
from proxy import Proxy

import tensorage
from tensorage import BackendSession, Tensor, TensorStore
from tensorage.backend import afterwards
from tensorage.backend.wire import patience
from tensorage.embedded import control
from tensorage.migrations import migration_files

Sql = psycopg.Connection[tuple[Any, ...]]
Array = np.ndarray[Any, Any]

#: Three shards of two chunks each.
CHUNK, SHARD = (5, 100), (10, 100)

ARRAY = np.random.default_rng(0).integers(1, 256, (30, 100), "u1")

MIB = 1 << 20


@pytest.fixture(scope="module")
def backend(tmp_path_factory: pytest.TempPathFactory) -> Iterator[control.Running]:
    data_dir = tmp_path_factory.mktemp("data")
    yield servers.start(data_dir)
    control.stop(data_dir)


@pytest.fixture(scope="module")
def project(backend: control.Running) -> Project:
    return Project(backend.api_url, backend.anon_key)


@pytest.fixture
def database(backend: control.Running) -> Iterator[Sql]:
    with psycopg.connect(backend.superuser_url, autocommit=True) as connection:
        yield connection


@pytest.fixture(autouse=True)
def _is_patient_for_less_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ask as often as ever for what fails for good, but sooner."""
    monkeypatch.setattr(patience, "FIRST_WAIT_S", 0.001)


@pytest.fixture
def store(session: BackendSession) -> TensorStore:
    return TensorStore(session, quiet=True, engine="storage", allow_overwrite=True)


def put(store: TensorStore, array: Array = ARRAY) -> Tensor:
    store.arrays.write("x", array, engine="storage", chunks=CHUNK, shards=SHARD, overwrite=True)
    return store.open("x")


@pytest.fixture
def handle(store: TensorStore) -> Tensor:
    return put(store)


@pytest.fixture
def damage(store: TensorStore, handle: Tensor, backend: control.Running, database: Sql) -> Damage:
    return Damage(backend, database, second_object(store, database))


def second_object(store: TensorStore, database: Sql) -> str:
    name = leftovers.shards_of(database, store.backend.user_id, "x")[1]
    assert name is not None
    return name


OF_OBJECT = r"'x'.*{name}|{name}.*'x'"
OF_ELEMENTS = r"'x'.*elements \[10:20, 0:100\]"

#: Damages, the error of each, and what it says besides the key.
DAMAGES: list[tuple[Callable[[Damage], None], type[Exception], str]] = [
    (Damage.shorten, tensorage.CorruptTensorError, OF_OBJECT),
    (Damage.cut_off, tensorage.CorruptTensorError, OF_OBJECT),
    (Damage.overwrite, tensorage.CorruptTensorError, OF_ELEMENTS),
    (Damage.flip_a_bit, tensorage.CorruptTensorError, OF_ELEMENTS),
    (Damage.truncate_the_file, tensorage.BackendUnavailableError, OF_OBJECT),
    (Damage.delete_the_file, tensorage.BackendUnavailableError, OF_OBJECT),
    (Damage.delete_the_entry, tensorage.IncompleteTensorError, OF_ELEMENTS),
    (Damage.delete_the_shard, tensorage.IncompleteTensorError, OF_ELEMENTS),
    (Damage.empty_the_index, tensorage.CorruptTensorError, OF_ELEMENTS),
    (Damage.halve_the_index, tensorage.CorruptTensorError, OF_ELEMENTS),
    (Damage.move_the_chunks, tensorage.CorruptTensorError, OF_ELEMENTS),
    (Damage.index_behind_the_end, tensorage.CorruptTensorError, OF_ELEMENTS),
    (Damage.half_of_an_empty_chunk, tensorage.CorruptTensorError, OF_ELEMENTS),
]


@pytest.mark.parametrize(("harm", "error", "says"), DAMAGES, ids=[row[0].__name__ for row in DAMAGES])
def test_damage_is_told_and_does_no_harm_elsewhere(
    store: TensorStore, handle: Tensor, damage: Damage, database: Sql,
    harm: Callable[[Damage], None], error: type[Exception], says: str,
) -> None:  # fmt: skip
    harm(damage)
    says = says.format(name=damage.name)
    out = np.empty_like(ARRAY)
    for read in (
        lambda: store["x"],
        lambda: handle.read(out=out),
        lambda: handle[15:20],
        lambda: handle[[2, 17, 28], 5],
        lambda: handle[::-1, ::3],
    ):
        with pytest.raises(error, match=says):
            read()
    for rows in (np.s_[:10], np.s_[20:], np.s_[[3, 25]]):
        np.testing.assert_array_equal(handle[rows], ARRAY[rows], strict=True)
    # An assignment that needs the elements which are lost, to write them beside its own, changes nothing.
    with pytest.raises(error, match=says):
        handle[8:15] = 1
    np.testing.assert_array_equal(handle[:10], ARRAY[:10])
    # A shard that the catalogue does not know cannot be replaced by itself.
    if harm is not Damage.delete_the_shard:
        # The session sweeps behind the caller's back.
        store.backend.transfer.finish(30)
        kept_objects = {
            name for name in leftovers.objects_of(database, store.backend.user_id) if name != damage.name
        }
        assert kept_objects == set(leftovers.shards_of(database, store.backend.user_id, "x")) - {damage.name}
        # Elements that are all stored anew are there again.
        handle[10:20] = 9
        expected = ARRAY.copy()
        expected[10:20] = 9
        np.testing.assert_array_equal(store["x"], expected)
    np.testing.assert_array_equal(put(store)[...], ARRAY)
    leftovers.assert_only_arrays_are_kept(database, store.backend.user_id)


@pytest.mark.parametrize("dtype", ["u1", "f4", "c16", "M8[s]"])
def test_no_byte_of_an_object_is_wrong_without_notice(
    store: TensorStore, backend: control.Running, database: Sql, dtype: str
) -> None:
    array = np.random.default_rng(1).integers(0, 50, (30, 100)).astype(dtype)
    handle = put(store, array)
    damage = Damage(backend, database, second_object(store, database))
    content = damage.file.read_bytes()
    chunk_bytes = sum(struct.unpack("<2H", damage.index()))
    for at in range(0, len(content), 31):
        damaged = bytearray(content)
        damaged[at] ^= 1 << at % 8
        damage.file.write_bytes(damaged)
        if at >= chunk_bytes:
            # The index at the end of an object is for others, who have no catalogue.
            np.testing.assert_array_equal(handle[10:20], array[10:20])
            continue
        with pytest.raises(tensorage.CorruptTensorError, match=OF_ELEMENTS):
            handle[10:20]
    damage.file.write_bytes(content)
    np.testing.assert_array_equal(handle[...], array)


def test_an_append_to_a_damaged_end_changes_nothing(
    store: TensorStore, backend: control.Running, database: Sql
) -> None:
    handle = put(store, ARRAY[:15])
    damage = Damage(backend, database, second_object(store, database))
    damage.flip_a_bit(at=250)
    with pytest.raises(tensorage.CorruptTensorError, match=r"'x'.*elements \[10:15, 0:100\]"):
        handle.append(ARRAY[15:])
    assert store.open("x").shape == (15, 100)
    np.testing.assert_array_equal(handle[:10], ARRAY[:10])
    leftovers.assert_only_arrays_are_kept(database, store.backend.user_id)


def test_a_part_of_a_declared_array_that_is_lost(
    store: TensorStore, backend: control.Running, database: Sql
) -> None:
    user_id = store.backend.user_id
    with store.backend.storage() as context:
        declared = context.insert_dataset("x", (30, 100), 2, type="u1", chunks=CHUNK, shards=SHARD)
        context.insert_tensor(declared.id, ARRAY[:3])
        (name,) = leftovers.objects_of(database, user_id)
        database.execute("delete from storage.objects where name = %s", [name])
        with pytest.raises(tensorage.IncompleteTensorError, match=r"'x'.*elements \[0:10, 0:100\]"):
            context.insert_tensor(declared.id, ARRAY[3:6], 3)
        # An assignment to all elements makes the array as good as new.
        context.insert_tensor(declared.id, ARRAY)
    np.testing.assert_array_equal(store["x"], ARRAY)


def test_content_that_is_lost_but_for_its_entry(
    user: User, store: TensorStore, handle: Tensor, damage: Damage, backend: control.Running
) -> None:
    """Storage has an entry of the object, and no bytes: it answers as if there was no object."""
    name, none = (
        b"GET /storage/v1/object/authenticated/tensors/" + end for end in (damage.name.encode(), b"none")
    )
    proxy = Proxy(backend.api_url, changes=lambda head: head.replace(name, none))
    session = Project(proxy.url, backend.anon_key).session(user)
    try:
        session.login_by_mail()
        other = TensorStore(session, quiet=True)
        with pytest.raises(tensorage.IncompleteTensorError, match=OF_ELEMENTS):
            other["x"]
        session.logout()
    finally:
        proxy.close()


# Refusals of Storage -----------------------------------------------------------------------------------------


def changes(store: TensorStore) -> list[Callable[[], Any]]:
    """Every way to change the array that needs room for an object."""
    handle = store.open("x")
    return [
        lambda: store.__setitem__("x", LARGE),
        lambda: store.write("x", iter([LARGE]), shape=LARGE.shape, dtype="u1"),
        lambda: store.append("x", LARGE),
        lambda: handle.append(LARGE),
        lambda: handle.__setitem__(np.s_[:20], LARGE[:20]),
        lambda: store.__setitem__("new", LARGE),
    ]


LARGE = np.random.default_rng(2).integers(0, 256, (40, 100), "u1")


def assert_nothing_changes(store: TensorStore, database: Sql, error: type[Exception], says: str) -> None:
    objects = leftovers.objects_of(database, store.backend.user_id)
    for change in changes(store):
        with pytest.raises(error, match=says):
            change()
    assert store.keys() == ["x"]
    leftovers.assert_only_arrays_are_kept(database, store.backend.user_id)
    assert leftovers.objects_of(database, store.backend.user_id) == objects


@contextlib.contextmanager
def size_limit(database: Sql, nbytes: int) -> Iterator[None]:
    limit = "update storage.buckets set file_size_limit = %s where id = 'tensors'"
    database.execute(limit, [nbytes])
    try:
        yield
    finally:
        database.execute(limit, [None])


def test_objects_over_the_limit_of_the_bucket(store: TensorStore, handle: Tensor, database: Sql) -> None:
    says = r"storing '[^']*/c/\d.*' of '(x|new)'.*smaller shards="
    with size_limit(database, 900):
        assert_nothing_changes(store, database, tensorage.QuotaExceededError, says)
        # The message advises this.
        store.arrays.write("new", LARGE, engine="storage", chunks=(5, 100), shards=(5, 100))
    np.testing.assert_array_equal(store["x"], ARRAY)
    np.testing.assert_array_equal(store["new"], LARGE)


def test_a_full_disk(store: TensorStore, handle: Tensor, database: Sql, backend: control.Running) -> None:
    def files() -> list[Path]:
        return sorted(path for path in (backend.data_dir / "storage").rglob("*") if path.is_file())

    files_before = files()
    server = psutil.Process(backend.pid)
    before = server.rlimit(psutil.RLIMIT_FSIZE)
    server.rlimit(psutil.RLIMIT_FSIZE, (800, before[1]))
    try:
        says = r"storing '[^']*/c/\d.*' of '(x|new)'.*disk is full"
        assert_nothing_changes(store, database, tensorage.QuotaExceededError, says)
    finally:
        server.rlimit(psutil.RLIMIT_FSIZE, before)
    np.testing.assert_array_equal(store["x"], ARRAY)
    assert files() == files_before


@contextlib.contextmanager
def failing(database: Sql, table: str) -> Iterator[None]:
    """Let nothing more go into a table, as if the disk were full."""
    database.execute(
        "create function public.fail() returns trigger language plpgsql as "
        "$$ begin raise exception using errcode = '53100', message = 'no space left on device'; end $$; "
        f"create trigger fail before insert on {table} for each row execute function public.fail()"
    )
    try:
        yield
    finally:
        database.execute(f"drop trigger fail on {table}; drop function public.fail")


@pytest.mark.parametrize(
    ("table", "error"),
    [("public.shards", tensorage.BackendUnavailableError), ("storage.objects", tensorage.QuotaExceededError)],
)
def test_a_database_without_room(
    store: TensorStore, handle: Tensor, database: Sql, table: str, error: type[Exception]
) -> None:
    with failing(database, table):
        assert_nothing_changes(store, database, error, r"'(x|new)'.*(no space left|disk is full)")
    np.testing.assert_array_equal(store["x"], ARRAY)


def test_an_array_over_the_quota(store: TensorStore, handle: Tensor, database: Sql) -> None:
    user_id = store.backend.user_id
    # Less than an entry of the catalogue, a reservation and an object take.
    database.execute(
        "insert into tensorage.quotas select user_id, bytes + 2000 from tensorage.usage where user_id = %s",
        [user_id],
    )
    try:
        assert_nothing_changes(store, database, tensorage.QuotaExceededError, "'(x|new)'.*do not fit")
        database.execute(
            "update tensorage.quotas set max_bytes = max_bytes + 10000 where user_id = %s", [user_id]
        )
        handle.append(ARRAY[:1])
    finally:
        database.execute("delete from tensorage.quotas where user_id = %s", [user_id])
    np.testing.assert_array_equal(store["x"], np.concatenate([ARRAY, ARRAY[:1]]))


@pytest.fixture
def repaired(database: Sql) -> Iterator[None]:
    """The bucket and its policies are made again afterwards, by the migrations that make them."""
    yield
    migrate(database)


def migrate(database: Sql) -> None:
    for file in migration_files():
        if file.name.endswith("_storage.sql"):
            database.execute(file.read_text())


@pytest.mark.usefixtures("repaired")
def test_no_bucket(store: TensorStore, handle: Tensor, database: Sql) -> None:
    database.execute("delete from storage.objects")
    database.execute("delete from storage.buckets where id = 'tensors'")
    for use in (*changes(store), lambda: store["x"], lambda: handle[12]):
        with pytest.raises(tensorage.SchemaError, match=r"'(x|new)'.*there is no bucket.*migrations"):
            use()
    assert store.keys() == ["x"]
    staged = "select count(*) from public.datasets where user_id = %s and state = 'staged'"
    assert database.execute(staged, [store.backend.user_id]).fetchone() == (0,)


def drop_policies(database: Sql, command: str) -> None:
    query = "select policyname from pg_policies where schemaname = 'storage' and tablename = 'objects' and cmd = %s"
    names = database.execute(query, [command]).fetchall()
    assert names
    for (name,) in names:
        database.execute(f'drop policy "{name}" on storage.objects')


@pytest.mark.usefixtures("repaired")
def test_no_policy_to_add_objects(store: TensorStore, handle: Tensor, database: Sql) -> None:
    drop_policies(database, "INSERT")
    says = r"storing '[^']*/c/\d.*' of '(x|new)'.*policies.*migrations"
    assert_nothing_changes(store, database, tensorage.PermissionDeniedError, says)
    np.testing.assert_array_equal(store["x"], ARRAY)


@pytest.mark.usefixtures("repaired")
def test_no_policy_to_read_objects(store: TensorStore, handle: Tensor, database: Sql) -> None:
    drop_policies(database, "SELECT")
    for use in (
        lambda: store["x"],
        lambda: handle[3:5],
        lambda: handle.__setitem__(3, 1),
    ):
        with pytest.raises(tensorage.PermissionDeniedError, match=r"'x'.*policies.*elements \[.*migrations"):
            use()


@pytest.mark.usefixtures("repaired")
def test_no_policy_to_delete_objects(
    store: TensorStore,
    handle: Tensor,
    database: Sql,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The new elements are written; the replaced objects wait for a write that may delete them."""
    user_id = store.backend.user_id
    replaced = leftovers.objects_of(database, user_id)
    drop_policies(database, "DELETE")
    store["x"] = LARGE
    store.backend.transfer.finish(30)
    # A short failure is nobody's concern, and one that lasts is told once.
    assert not caplog.records
    monkeypatch.setattr(afterwards, "LASTS_S", 0.0)
    for _ in range(2):
        store["x"] = LARGE
        store.backend.transfer.finish(30)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "cannot be deleted" in caplog.text
    np.testing.assert_array_equal(store["x"], LARGE)
    assert set(replaced) < set(leftovers.objects_of(database, user_id))
    migrate(database)
    store["later"] = 1
    leftovers.assert_only_arrays_are_kept(database, user_id)


# Arrays that are no longer being written --------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [slice(0, 10), slice(3, 6)], ids=["a shard", "a part"])
def test_rows_that_come_too_late(store: TensorStore, database: Sql, rows: slice) -> None:
    errors = (tensorage.ChangedError, tensorage.KeyNotFoundError)
    with store.backend.storage() as context, store.backend.storage() as other:
        declared = context.insert_dataset("x", (10, 100), 2, type="u1", chunks=CHUNK, shards=SHARD)
        context.insert_tensor(declared.id, ARRAY[:5])
        other.insert_tensor(declared.id, ARRAY[5:10], 5)
        with pytest.raises(errors, match=r"'x'|with id"):
            context.insert_tensor(declared.id, ARRAY[20:30][rows], rows.start)
        np.testing.assert_array_equal(store["x"], ARRAY[:10])
        expired = context.insert_dataset("late", (10, 100), 2, type="u1", chunks=CHUNK, shards=SHARD)
        database.execute("update public.datasets set expires_at = now() where id = %s", [expired.id])
        with pytest.raises(errors, match=r"'late'|with id"):
            context.insert_tensor(expired.id, ARRAY[rows], rows.start)
    store["later"] = 1
    leftovers.assert_only_arrays_are_kept(database, store.backend.user_id)
