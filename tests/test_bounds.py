"""An array's owner does not decide how much memory its reader takes, whatever is declared or stored."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import bombs
import leftovers
import numpy as np
import psycopg
import pytest
import zarr
from project import Project, User
from proxy import Proxy

import tensorage
from tensorage import BackendSession, TensorStore
from tensorage.backend.wire.storage_requests import object_path
from tensorage.backend.zarr.layout import Layout
from tensorage.model.memory import new_array
from tensorage.types import Engine

Sql = psycopg.Connection[tuple[Any, ...]]

MIB = 1024 * 1024


@pytest.fixture
def store(session: BackendSession) -> TensorStore:
    """Return a store without an engine of its own: each test says which engine an array is for."""
    return session()


def test_nothing_is_inflated_beyond_its_chunk() -> None:
    # The process does nothing else, so that its peak of memory is that of the decoding.
    done = subprocess.run(
        [sys.executable, bombs.__file__], capture_output=True, text=True, check=False, timeout=240
    )
    assert done.returncode == 0, done.stderr
    reports = json.loads(done.stdout)
    assert reports.keys() == bombs.BOMBS.keys()
    for name, report in reports.items():
        assert report["object_bytes"] < MIB, name
        assert report["taken_bytes"] < 8 * MIB, (name, report)
        assert any(number in report["error"] for number in ("10", "128", str(report["object_bytes"]))), (
            name,
            report,
        )


# --- names of objects ---------------------------------------------------------------------------------


def rename_object(database: Sql, store: TensorStore, name: str) -> str:
    """Do what somebody could who writes to the catalogue with a client of their own."""
    (before,) = leftovers.shards_of(database, store.backend.user_id, "x")
    database.execute("update public.shards set name = %s where name = %s", [name, before])
    assert before is not None
    return before


@pytest.mark.parametrize(
    "tail",
    [
        "/7/../../{victim}/secret.txt",
        "/../{victim}/secret.txt",
        "/{dataset}/../c/0",
        "/{dataset}/c/./0",
        "/{dataset}/c//0",
        "/{dataset}/c/0/",
        "/{dataset}/c/1",
        "/{dataset}/c/0?download=../../x",
        "/{dataset}/c/0%2e%2e/x",
        "/{dataset}/c/0\\..\\..\\x",
        "/{dataset}/c/0\n",
        "/secret.txt",
    ],
)
def test_an_object_elsewhere_is_not_fetched(
    project: Project, user: User, store: TensorStore, database: Sql, tail: str
) -> None:
    victim = project.session(project.register())
    with victim.storage() as storage:
        storage.upload_file("secret.txt", "a secret that is longer than the array")
    store.arrays.write("x", np.arange(10, dtype="u1"), engine="storage", shards=False)
    handle = store.open("x")
    name = user.id + tail.format(victim=victim.user_id, dataset=handle.dataset.id)
    # Databases that the client is to be used with may know the rule, too.
    try:
        before = rename_object(database, store, name)
    except psycopg.errors.CheckViolation:
        pytest.skip("the database refuses the name itself")
    proxy = Proxy(project.url)
    reader = Project(proxy.url, project.key).session(user)
    try:
        with proxy.counted() as exchanges:
            for read in (lambda s: s["x"], lambda s: zarr.open_array(s.zarr_store("x"))[...]):
                with pytest.raises(tensorage.CorruptTensorError, match=r"'x'.*Nothing was fetched"):
                    read(TensorStore(reader, quiet=True))
            with pytest.raises(tensorage.CorruptTensorError, match=r"'x'.*Nothing was fetched"):
                TensorStore(reader, quiet=True).copy("x", "y")
        assert not [exchange for exchange in exchanges if exchange.target.startswith("/storage/")]
    finally:
        reader.logout()
        victim.logout()
        proxy.close()
        database.execute("update public.shards set name = %s where name = %s", [before, name])
    np.testing.assert_array_equal(store["x"], np.arange(10))


@pytest.mark.parametrize(
    "name", ["", "..", "a/../b", "./a", "a//b", "/a", "a/", "a\\b", "a\nb", "a\0b", "a/..", "."]
)
def test_no_path_is_made_of_a_bad_name(name: str) -> None:
    with pytest.raises(tensorage.InvalidInputError, match="is no name of an object"):
        object_path(name)


# --- arrays that are larger than memory ---------------------------------------------------------------

HUGE = 2**40


@pytest.mark.parametrize("engine", ["database", "storage"])
def test_an_absurd_size_is_told_before_anything_is_fetched(
    project: Project, user: User, store: TensorStore, database: Sql, engine: Engine
) -> None:
    array = np.arange(10, dtype="u1")
    store.arrays.write("x", array, engine=engine)
    database.execute(
        "update public.datasets set shape = %s where user_id = %s and key = 'x'", [[HUGE], user.id]
    )
    proxy = Proxy(project.url)
    reader = Project(proxy.url, project.key).session(user)
    handle = TensorStore(reader, quiet=True).open("x")
    said = r"reading 'x'.*\d{10,} bytes.*Nothing was fetched.*by a slice"
    try:
        with proxy.counted() as exchanges:
            for read in (
                lambda: handle[...],
                lambda: handle[:],
                lambda: handle[:-5],
                lambda: np.asarray(handle),
                lambda: handle.to_dask(chunks=-1).compute(),
                lambda: handle.to_xarray().values,
            ):
                with pytest.raises(tensorage.TooLargeError, match=said):
                    read()
            with pytest.raises(MemoryError):
                next(iter(handle.batches(2**39, prefetch=0)))
        assert [exchange.kind for exchange in exchanges if exchange.is_download] == []
        assert {exchange.function for exchange in exchanges} <= {"open", "version", "dataset"}
        np.testing.assert_array_equal(handle[:10], array)
    finally:
        reader.logout()
        proxy.close()


def test_a_process_that_may_have_less() -> None:
    limits = resource.getrlimit(resource.RLIMIT_AS)
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    said = r"reading 'w'.*\(1\.0 GiB\).*this process gets no memory"
    resource.setrlimit(resource.RLIMIT_AS, (taken + 512 * MIB, limits[1]))
    try:
        with pytest.raises(tensorage.TooLargeError, match=said):
            new_array((2**30,), np.dtype("u1"), "reading 'w'")
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)


def test_a_chunk_is_not_far_larger_than_its_array() -> None:
    with pytest.raises(tensorage.InvalidInputError, match="half full"):
        Layout.choose((10,), np.dtype("u1"), chunks=(2**30,))
    Layout.choose((2**29,), np.dtype("u1"), chunks=(2**30,))
    Layout.choose((10,), np.dtype("u1"), chunks=(2**28,))
