"""Processes that share a cache: what one has read, none reads again, also if it was killed meanwhile."""

from __future__ import annotations

import gc
import multiprocessing
import os
import pickle
import threading
import time
from pathlib import Path

import cache_folder
import cache_workers
import numpy as np
import pytest
from processes import PROCESSES
from project import Project, User
from proxy import Proxy

import tensorage
from tensorage import Tensor, TensorStore

_FORK = multiprocessing.get_context("fork")


def test_a_second_process_moves_nothing(
    watched: TensorStore, folder: Path, project: Project, user: User, proxy: Proxy
) -> None:
    array = cache_workers.array()
    watched["x"] = array
    cache_workers.assert_same(watched.open("x").cached(folder), array, 0)
    through = Project(proxy.url, project.key)
    with proxy.counted() as exchanges:
        process = PROCESSES.Process(target=cache_workers.read_epoch, args=(through, user, "x", folder, 1))
        process.start()
        process.join()
    assert process.exitcode == 0
    assert exchanges
    assert {exchange.kind for exchange in exchanges} <= {"version", "open"}


@pytest.mark.parametrize("kind", ["forkserver", "fork"])
def test_a_handle_works_in_other_processes(store: TensorStore, folder: Path, kind: str) -> None:
    array = cache_workers.array()
    store["x"] = array
    cached = store.open("x").cached(folder)
    # Some is mapped before, and some is read by one process while another one does.
    np.testing.assert_array_equal(cached[:100], array[:100])
    context = PROCESSES if kind == "forkserver" else _FORK
    processes = [context.Process(target=cache_workers.read_handle, args=(cached, seed)) for seed in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert cached.epoch_cost() == 0
    np.testing.assert_array_equal(cached[...], array)


def test_a_pickle_has_no_elements(rows: TensorStore, folder: Path) -> None:
    array = cache_workers.array()
    rows["x"] = array
    cached = rows.open("x").cached(folder, max_bytes=10**9)
    _ = cached[...]
    pickled = pickle.dumps(cached)
    assert len(pickled) < 20_000
    again = pickle.loads(pickled)
    assert (again.cache.directory, again.cache.max_bytes) == (folder, 10**9)
    np.testing.assert_array_equal(again[...], array)


def test_many_threads(store: TensorStore, folder: Path) -> None:
    array = cache_workers.array()
    store["x"] = array
    cached = store.open("x").cached(folder, check_every_s=0.01)
    errors: list[BaseException] = []

    def read(seed: int) -> None:
        try:
            cache_workers.assert_same(cached, array, seed)
        except BaseException as error:  # noqa: BLE001 - the test's thread raises it
            errors.append(error)

    threads = [threading.Thread(target=read, args=[seed]) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert cached.epoch_cost() == 0


def test_a_killed_process_leaves_nothing_wrong(
    store: TensorStore, folder: Path, project: Project, user: User
) -> None:
    array = cache_workers.array()
    store["x"] = array
    handle = store.open("x")
    # The folder first, so that its size tells when another process has begun.
    cached = handle.cached(folder)
    before = handle.epoch_cost()
    for seed in range(4):
        process = _FORK.Process(target=cache_workers.read_epoch, args=(project, user, "x", folder, seed))
        process.start()
        while cached.epoch_cost() == before and process.is_alive():
            time.sleep(0.001)
        time.sleep(0.003 * seed)
        process.kill()
        process.join()
        before = cached.epoch_cost()
    # A process of its own reads it, and believes what is there.
    process = _FORK.Process(target=cache_workers.read_epoch, args=(project, user, "x", folder, 9))
    process.start()
    process.join()
    assert process.exitcode == 0
    np.testing.assert_array_equal(cached[...], array)


def test_a_forked_child_keeps_an_entry_in_use(rows: TensorStore, folder: Path) -> None:
    array = cache_workers.array()
    rows["x"], rows["y"] = array, array
    cached = rows.open("x").cached(folder)
    _ = cached[...]
    begins, ends = _FORK.Event(), _FORK.Event()

    def wait(inherited: Tensor) -> None:
        begins.set()
        ends.wait(60)
        os._exit(0 if np.array_equal(inherited[...], array) else 1)

    child = _FORK.Process(target=wait, args=[cached])
    child.start()
    begins.wait(60)
    del cached
    gc.collect()
    other = rows.open("y").cached(folder, max_bytes=2_500_000)
    _ = other[...]
    assert len(cache_folder.cache_files(folder)) == 2
    assert other.epoch_cost() > 0
    ends.set()
    child.join()
    assert child.exitcode == 0
    # Now that nobody uses it, it makes room.
    _ = other[...]
    assert len(cache_folder.cache_files(folder)) == 1
    assert other.epoch_cost() == 0


def test_a_fork_while_the_folder_is_locked_stops_nobody(rows: TensorStore, folder: Path) -> None:
    from tensorage.cache.folder import Folder

    rows["x"] = np.arange(10)
    cached = rows.open("x").cached(folder)
    ends = _FORK.Event()
    with Folder(folder, None).hold_lock():
        child = _FORK.Process(target=ends.wait, args=[60])
        child.start()
    np.testing.assert_array_equal(cached[...], np.arange(10))
    ends.set()
    child.join()


def test_a_folder_that_somebody_stopped_holds_up_nobody_for_ever(
    rows: TensorStore, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tensorage.cache import folder as module

    monkeypatch.setattr(module, "LOCK_TIMEOUT_S", 0.2)
    rows["x"] = np.arange(10)
    cached = rows.open("x").cached(folder)
    with (
        module.Folder(folder, None).hold_lock(),
        pytest.raises(tensorage.CacheError, match="locked by a process"),
    ):
        cached[...]
    np.testing.assert_array_equal(cached[...], np.arange(10))
