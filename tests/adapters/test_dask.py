"""Arrays of dask from stored ones, and stored ones from arrays of dask: next to numpy, by every kind of worker."""

from __future__ import annotations

import os
import pickle
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from typing import Any

import dask
import dask.array as da
import distributed
import numpy as np
import psycopg
import pytest
import servers
from leftovers import assert_only_arrays_are_kept
from processes import PROCESSES, preloading
from project import Project, User
from proxy import Proxy

import tensorage
from tensorage import (
    BackendSession,
    ChangedError,
    DTypeError,
    InvalidInputError,
    KeyExistsError,
    QuotaExceededError,
    TensorStore,
)
from tensorage.adapters.dask import is_dask
from tensorage.embedded import control
from tensorage.model.declaration import ArrayOptions
from tensorage.types import Dataset, Engine

ARRAY = np.arange(50 * 30 * 20, dtype="f8").reshape(50, 30, 20)

#: Bytes that a worker of the cluster may have in memory: about half of that is taken by what it imports.
MEMORY_LIMIT = 400 * 1024 * 1024


SHAPES = [
    np.float32(3.5),
    np.arange(0),
    np.empty((3, 0, 2), "i2"),
    np.array([True]),
    np.arange(5).astype("M8[D]"),
]

#: Arrays in another order of bytes, and of axes in memory.
LAYOUTS = [np.arange(6, dtype=">i4").reshape(2, 3), np.asfortranarray(np.arange(12.0).reshape(3, 4))]


@pytest.fixture(scope="module", autouse=True)
def _fork_server() -> Iterator[None]:
    """A fork server that has loaded dask, too."""
    # dask would have the processes of all other tests load what those of its own need.
    with pytest.MonkeyPatch.context() as patch, preloading("dask.array", "distributed", "distributed.nanny"):
        patch.setattr(distributed.utils, "_forkserver_preload_set", True)
        yield


@pytest.fixture(scope="module")
def cluster() -> Iterator[distributed.Client]:
    """Two workers in processes of their own."""
    settings = {
        "distributed.worker.daemon": False,
        "distributed.worker.multiprocessing-method": "forkserver",
        "distributed.admin.log-format": "%(message)s",
    }
    with (
        dask.config.set(settings),
        distributed.LocalCluster(
            n_workers=2,
            threads_per_worker=1,
            processes=True,
            memory_limit=MEMORY_LIMIT,
            host="127.0.0.1",
            # Any free port: other clusters of this machine may have the usual one.
            dashboard_address="127.0.0.1:0",
            silence_logs=40,
        ) as cluster,
        distributed.Client(cluster, set_as_default=False) as client,
    ):
        yield client


@pytest.fixture(scope="module")
def pools() -> Iterator[dict[str, Executor | None]]:
    """Each scheduler of dask with its pool: by itself, the one of processes would start them anew each time."""
    with ProcessPoolExecutor(2, PROCESSES) as processes:
        yield {"synchronous": None, "threads": None, "processes": processes}


class TestReading:
    @pytest.mark.parametrize("scheduler", ["synchronous", "threads", "processes"])
    def test_as_numpy_does(
        self, store: TensorStore, scheduler: str, pools: dict[str, Executor | None]
    ) -> None:
        store["x"] = ARRAY
        lazy = store.open("x").to_dask(chunks=(20, 15, 20))
        assert is_dask(lazy)
        assert (lazy.shape, lazy.dtype) == (ARRAY.shape, ARRAY.dtype)
        with dask.config.set(scheduler=scheduler, pool=pools[scheduler]):
            assert np.array_equal(lazy.compute(), ARRAY)
            assert np.array_equal(lazy[3:40:7, ::-1, 5].compute(), ARRAY[3:40:7, ::-1, 5])
            assert np.array_equal(lazy[[7, 2, 2]].compute(), ARRAY[[7, 2, 2]])
            assert lazy.mean().compute() == ARRAY.mean()
            assert np.array_equal((lazy + lazy[:1]).sum(axis=0).compute(), (ARRAY + ARRAY[:1]).sum(axis=0))

    @pytest.mark.parametrize("array", SHAPES)
    def test_of_any_shape(self, store: TensorStore, array: Any) -> None:
        store["x"] = array
        lazy = store.open("x").to_dask()
        assert lazy.dtype == array.dtype
        assert np.array_equal(lazy.compute(), array)

    def test_nothing_is_asked_before_it_is_computed(self, store: TensorStore, proxy: Proxy) -> None:
        store["x"] = ARRAY
        tensor = store.open("x")
        with proxy.counted() as exchanges:
            lazy = tensor.to_dask()
            (lazy.astype("f4") * 2)[::2].sum(axis=1)
        assert exchanges == []

    def test_by_default_in_blocks_that_are_cheap_to_read(self, store: TensorStore, engine: Engine) -> None:
        store.write(
            "x",
            np.zeros((40, 512, 1024), "f4"),
            **({} if engine == "database" else {"chunks": (1, 256, 1024)}),
        )
        lazy = store.open("x").to_dask()
        sizes = [np.prod(block) * 4 for block in np.broadcast(*np.ix_(*lazy.chunks))]
        assert max(sizes) <= 32 * 2**20
        if engine == "database":
            # Blocks are of whole rows, and all but the last have about as many as fit.
            assert lazy.chunks[1:] == ((512,), (1024,))
            assert len(lazy.chunks[0]) <= 4
        else:
            shards = store.zarr_store("x").codec.layout.shards  # type: ignore[attr-defined]
            for extents, shard in zip(lazy.chunks, shards, strict=True):
                assert all(extent % shard == 0 for extent in extents[:-1])

    def test_chunks_of_ones_own(self, store: TensorStore) -> None:
        store["x"] = ARRAY
        tensor = store.open("x")
        assert tensor.to_dask(chunks={0: 25, -1: 10}).chunks[::2] == ((25, 25), (10, 10))
        tensor.dims = ("t", "y", "x")
        assert tensor.to_dask(chunks={"y": 15}).chunks[1] == (15, 15)
        assert tensor.to_dask(chunks=10).chunks == ((10,) * 5, (10,) * 3, (10, 10))
        assert tensor.to_dask("auto").chunks == tensor.to_dask().chunks
        for chunks in [(50, 30), (50, 30, 20, 1), "nonsense", (60, 31, (20, 20)), {"z": 3}, {3: 1}]:
            with pytest.raises(InvalidInputError, match="chunks="):
                tensor.to_dask(chunks)

    def test_the_same_array_has_the_same_name(self, store: TensorStore) -> None:
        store["x"] = ARRAY
        tensor = store.open("x")
        name = tensor.to_dask().name
        assert store.open("x").to_dask().name == name
        assert tensor.to_dask(chunks=10).name != name
        tensor[0] = 1
        assert tensor.to_dask().name != name

    def test_never_of_two_versions(self, store: TensorStore) -> None:
        store["x"] = ARRAY
        tensor = store.open("x")
        lazy = tensor.to_dask(chunks=10)
        tensor[0] = 1
        with pytest.raises(ChangedError):
            lazy.compute()
        tensor.refresh()
        assert (tensor.to_dask()[0] == 1).all().compute()

    def test_rows_that_are_appended_are_none_of_it(self, store: TensorStore) -> None:
        store["x"] = ARRAY
        lazy = store.open("x").to_dask(chunks=10)
        store.append("x", ARRAY[:3])
        assert np.array_equal(lazy.compute(), ARRAY)

    def test_it_is_small_when_it_travels(self, store: TensorStore) -> None:
        store.write("x", ARRAY, attrs={"much": "x" * 100_000})
        assert len(pickle.dumps(store.open("x").to_dask())) < 10_000

    def test_it_keeps_the_login(self, store: TensorStore, project: Project, user: User) -> None:
        store["x"] = ARRAY
        session = project.session(user)
        lazy = session().open("x").to_dask()
        session.password = None
        assert np.array_equal(lazy.compute(), ARRAY)
        session.logout()


class TestStoring:
    @pytest.mark.parametrize("chunks", [(7, 30, 20), (50, 4, 20), (13, 11, 3), (1, 1, 20), (50, 30, 20)])
    def test_as_numpy_does(self, store: TensorStore, chunks: tuple[int, ...]) -> None:
        store["x"] = da.from_array(ARRAY, chunks=chunks) + 1
        assert store.open("x").engine == store.engine
        assert np.array_equal(store["x"], ARRAY + 1)

    @pytest.mark.parametrize("chunks", [(5, 5, 20), (20, 30, 2)])
    def test_in_pieces_of_ones_own(self, store: TensorStore, engine: Engine, chunks: tuple[int, ...]) -> None:
        lazy = da.from_array(ARRAY, chunks=chunks)
        if engine == "database":
            small = TensorStore(store.backend, quiet=True, chunk_size=70)
            small["x"] = lazy
        else:
            store.write("x", lazy, chunks=(4, 5, 10), shards=(12, 10, 20))
        assert np.array_equal(store["x"], ARRAY)

    @pytest.mark.parametrize("array", [*SHAPES, *LAYOUTS])
    def test_of_any_shape(self, store: TensorStore, array: Any) -> None:
        store["x"] = da.from_array(array)
        found = store["x"]
        assert found.dtype == array.dtype.newbyteorder("<")
        assert np.array_equal(found, array)

    def test_with_all_that_belongs_to_it(self, store: TensorStore) -> None:
        lazy = da.from_array(ARRAY, chunks=10)
        tensor = store.write("x", lazy, attrs={"units": "K"}, dims=("t", "y", "x"), is_shared=True)
        assert (tensor.attrs, tensor.dims, tensor.dataset.is_shared) == (
            {"units": "K"},
            ("t", "y", "x"),
            True,
        )
        store.write("y", lazy, engine="storage" if store.engine == "database" else "database")
        assert np.array_equal(store["y"], ARRAY)
        store.unshare("x")

    def test_what_was_read_may_be_written(self, store: TensorStore) -> None:
        store["x"] = ARRAY
        store["mean"] = store.open("x").to_dask(chunks=10).mean(axis=0)
        assert np.allclose(store["mean"], ARRAY.mean(axis=0))
        store["x", 3:5] = da.zeros((2, 30, 20))
        store.append("x", da.ones((1, 30, 20)))
        assert (store["x", 3:5] == 0).all()
        assert (store["x", 50] == 1).all()

    def test_committed_once(self, store: TensorStore, proxy: Proxy, engine: Engine) -> None:
        # The session may still be sweeping for the test before.
        store.backend.transfer.finish(30)
        with proxy.counted() as exchanges:
            store["x"] = da.from_array(np.zeros((64, 256, 256)) + 1, chunks=(8, 256, 256))
        kinds = Counter(exchange.kind for exchange in exchanges)
        assert kinds.pop("begin") == kinds.pop("commit") == 1
        if engine == "database":
            # 32 MiB in requests of 8.
            assert kinds == {"put": 4}
        else:
            assert kinds["upload"] == kinds["put_shards"] >= 4
        assert exchanges[-1].kind in ("commit", "open")

    def test_not_there_before_all_of_it_is(self, store: TensorStore) -> None:
        seen = []

        def look(block: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
            seen.append("x" in store)
            return block

        store["x"] = da.from_array(ARRAY, chunks=10).map_blocks(look, dtype=ARRAY.dtype, meta=ARRAY[:0])
        assert len(seen) >= 5
        assert not any(seen)
        assert "x" in store

    def test_a_block_that_fails(
        self, store: TensorStore, database: psycopg.Connection[Any], user: User
    ) -> None:
        store["x"] = np.arange(3)
        store.allow_overwrite = True

        def fail(block: np.ndarray[Any, Any], block_info: Any = None) -> np.ndarray[Any, Any]:
            if block_info and block_info[0]["chunk-location"] == (3, 1, 0):
                raise ZeroDivisionError("in a block")
            return block

        lazy = da.from_array(ARRAY, chunks=(10, 15, 20)).map_blocks(fail, dtype=ARRAY.dtype, meta=ARRAY[:0])
        with pytest.raises(ZeroDivisionError, match="in a block"):
            store["x"] = lazy
        assert store["x"].tolist() == [0, 1, 2]
        assert_only_arrays_are_kept(database, user.id)

    def test_keys_that_are_taken(self, store: TensorStore) -> None:
        store["x"] = np.arange(3)
        computed = threading.Event()

        def compute(block: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
            computed.set()
            return block

        lazy = da.from_array(ARRAY, chunks=10).map_blocks(compute, dtype=ARRAY.dtype, meta=ARRAY[:0])
        with pytest.raises(KeyExistsError):
            store["x"] = lazy
        # The error comes before anything is computed.
        assert not computed.is_set()
        store.allow_overwrite = True
        store["x"] = lazy
        assert np.array_equal(store["x"], ARRAY)

    def test_a_quota_that_is_too_small(
        self, store: TensorStore, database: psycopg.Connection[Any], user: User
    ) -> None:
        """This error comes before anything is computed, too."""

        def never(block: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
            raise AssertionError("computed")

        database.execute("insert into tensorage.quotas values (%s, 1000)", [user.id])
        try:
            with pytest.raises(QuotaExceededError):
                store["x"] = da.zeros((64, 64)).map_blocks(never, dtype="f8", meta=np.empty((0, 0)))
        finally:
            database.execute("delete from tensorage.quotas where user_id = %s", [user.id])

    def test_a_block_that_is_stored_twice_is_there_once(self, store: TensorStore, engine: Engine) -> None:
        """A worker is taken for dead, and another one stores its block again."""

        def fill_twice(dataset: Dataset) -> None:
            for turn in range(2):
                for first in (0, 1024):
                    region = (slice(first, first + 1024), slice(0, 1024))
                    store.arrays.write_region(
                        dataset, region, np.full((1024, 1024), turn * (first > 0), "f8")
                    )

        options: ArrayOptions = {"chunks": (1024, 1024), "shards": False} if engine == "storage" else {}
        store.arrays.write_with("x", fill_twice, (2048, 1024), "f8", engine=engine, **options)
        assert (store["x", :1024] == 0).all()
        assert (store["x", 1024:] == 1).all()

    def test_a_box_that_cuts_objects(self, session: BackendSession) -> None:
        store = TensorStore(session, quiet=True, engine="storage")

        def cut(dataset: Dataset) -> None:
            store.arrays.write_region(dataset, (slice(0, 4), slice(0, 3)), np.ones((4, 3)))

        with pytest.raises(InvalidInputError, match="only rows can be cut"):
            store.arrays.write_with("x", cut, (4, 8), "f8", engine="storage", chunks=(4, 4), shards=False)

    def test_bad_input(self, store: TensorStore) -> None:
        with pytest.raises(InvalidInputError, match="masked"):
            store["x"] = da.ma.masked_equal(da.arange(3), 1)
        with pytest.raises(InvalidInputError, match="compute_chunk_sizes"):
            store["x"] = da.from_array(np.arange(10), chunks=5)[da.from_array(np.arange(10) > 3, chunks=5)]
        with pytest.raises(DTypeError, match="object"):
            store["x"] = da.from_array(np.array([{}, {}]), chunks=1)
        with pytest.raises(InvalidInputError, match="of its own"):
            store.write("x", da.zeros(3), shape=(3,), dtype="f4")
        lying = da.zeros((4, 3), chunks=2).map_blocks(
            lambda block: block[:1], dtype="f8", meta=np.empty((0, 0))
        )
        with pytest.raises(InvalidInputError, match=r"has shape \(\d, \d\) where the array said"):
            store["x"] = lying
        other = da.zeros((4, 3), chunks=2).map_blocks(
            lambda block: block + 1j, dtype="f8", meta=np.empty((0, 0))
        )
        with pytest.raises(DTypeError, match="without loss"):
            store["x"] = other
        assert "x" not in store


class TestOnACluster:
    """Workers in processes of their own, which work with the token of this one."""

    def test_reads_and_writes(
        self, store: TensorStore, cluster: distributed.Client, proxy: Proxy, engine: Engine
    ) -> None:
        with cluster.as_current():
            store["x"] = da.from_array(ARRAY, chunks=(5, 30, 20)) * 2
            lazy = store.open("x").to_dask(chunks=(10, 30, 20))
            with proxy.counted() as exchanges:
                store["y"] = lazy.sum(axis=0)
        assert np.array_equal(store["x"], ARRAY * 2)
        assert np.array_equal(store["y"], (ARRAY * 2).sum(axis=0))
        kinds = Counter(exchange.kind for exchange in exchanges)
        assert kinds["commit"] == 1
        # Each block once, and no worker looks at the project again for each task.
        assert kinds["version"] <= 2
        if engine == "database":
            assert kinds["read"] == 5

    def test_the_work_is_done_there(self, store: TensorStore, cluster: distributed.Client) -> None:
        def where(block: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
            return np.full_like(block, os.getpid())

        with cluster.as_current():
            store["x"] = da.zeros((8, 64, 64), dtype="i8", chunks=(1, 64, 64)).map_blocks(where, dtype="i8")
        pids = {int(pid) for pid in np.unique(store["x"])}
        assert os.getpid() not in pids
        assert pids <= set(cluster.run(os.getpid).values())

    def test_an_array_that_no_worker_has_room_for(
        self, store: TensorStore, cluster: distributed.Client
    ) -> None:
        shape = (224, 1024, 1024)
        nbytes = 4 * int(np.prod(shape))
        assert nbytes > 2 * MEMORY_LIMIT

        def fill(block: np.ndarray[Any, Any], block_info: Any = None) -> np.ndarray[Any, Any]:
            # Numbers that say where they are, and can be compressed.
            first = block_info[None]["array-location"][0][0]
            rows = np.arange(first, first + len(block), dtype="f4")[:, None, None]
            return np.broadcast_to(rows, block.shape).copy()

        rows = da.zeros(shape, dtype="f4", chunks=(4, 1024, 1024)).map_blocks(fill, dtype="f4")
        before = set(cluster.run(os.getpid).values())
        with cluster.as_current():
            store["large"] = rows
            tensor = store.open("large")
            assert tensor.nbytes == nbytes
            sums = tensor.to_dask().sum(axis=(1, 2), dtype="f8").compute()
        assert np.array_equal(sums, np.arange(shape[0]) * float(1024 * 1024))
        # None has died of it, and been replaced.
        assert set(cluster.run(os.getpid).values()) == before

    def test_a_block_that_fails_there(
        self, store: TensorStore, cluster: distributed.Client, database: psycopg.Connection[Any], user: User
    ) -> None:
        def fail(block: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
            raise ZeroDivisionError("in a block")

        lazy = da.zeros((8, 64, 64), chunks=(1, 64, 64))
        with cluster.as_current(), pytest.raises(ZeroDivisionError, match="in a block"):
            store["x"] = da.concatenate([lazy, lazy.map_blocks(fail, dtype="f8", meta=np.empty((0, 0, 0)))])
        assert "x" not in store
        cluster.run(_wait_for_tasks)
        store["y"] = np.arange(3)  # what came in late is swept by the next one who writes
        assert_only_arrays_are_kept(database, user.id)

    def test_an_array_that_changed(self, store: TensorStore, cluster: distributed.Client) -> None:
        store["x"] = ARRAY
        lazy = store.open("x").to_dask(chunks=10)
        store["x", 3] = 0
        with cluster.as_current(), pytest.raises(ChangedError):
            lazy.sum().compute()


def test_a_graph_that_takes_longer_than_a_token_lives(
    cluster: distributed.Client, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Its workers have the next token from the process that made the graph, and the login is that of before."""
    data_dir = tmp_path_factory.mktemp("short")
    backend = servers.start(data_dir, jwt_lifetime_s=2)
    project = Project(backend.api_url, backend.anon_key)
    session = project.session(project.register())
    store = session()
    try:
        store["x"] = ARRAY
        before = session.token

        def slowly(block: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
            time.sleep(0.5)
            return block

        lazy = store.open("x").to_dask(chunks=(5, 30, 20))
        with cluster.as_current():
            store["y"] = lazy.map_blocks(slowly, dtype="f8", meta=ARRAY[:0]) + lazy[::-1]
        assert np.array_equal(store["y"], ARRAY + ARRAY[::-1])
        assert session.token != before
        with psycopg.connect(backend.superuser_url, autocommit=True) as database:
            assert database.execute("select count(*) from auth.sessions").fetchone() == (1,)
    finally:
        session.logout()
        control.stop(data_dir)


def _wait_for_tasks(dask_worker: Any) -> None:
    """Wait until a worker does nothing any more."""
    while any(state.state == "executing" for state in dask_worker.state.tasks.values()):
        time.sleep(0.05)


def test_without_dask_nothing_is_one(monkeypatch: pytest.MonkeyPatch, session: BackendSession) -> None:
    with monkeypatch.context() as patched:
        patched.delitem(sys.modules, "dask.array")
        assert not is_dask(da.zeros(3))
    with monkeypatch.context() as patched:
        patched.setitem(sys.modules, "dask.array", None)
        tensorage.TensorStore(session, quiet=True)["x"] = np.arange(3)
        with pytest.raises(InvalidInputError, match=r"pip install 'tensorage\[dask\]>=0.2'"):
            tensorage.TensorStore(session, quiet=True).open("x").to_dask()
    del tensorage.TensorStore(session, quiet=True)["x"]
