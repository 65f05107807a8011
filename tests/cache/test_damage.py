"""Files of a cache that are not what was written: they are found out, and fetched anew."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cache_folder
import cache_workers
import numpy as np
import pytest
from proxy import Proxy

from tensorage import TensorStore
from tensorage.cache import cache_file
from tensorage.cache.file_format import PAGE_BYTES, RECORD

ARRAY = cache_workers.array()


@pytest.fixture
def filled(store: TensorStore, folder: Path) -> Path:
    """The file of an array that is on the disk, and that nobody uses."""
    store.write("x", ARRAY, chunks=(40, 28, 28) if store.engine == "storage" else None)
    np.testing.assert_array_equal(store.open("x").cached(folder)[...], ARRAY)
    gc.collect()
    (path,) = cache_folder.cache_files(folder)
    return path


@pytest.fixture
def restart(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[[], None]]:
    """Makes it another run of the kernel."""

    def begin() -> None:
        (tmp_path / "boot_id").write_text("another")
        monkeypatch.setattr(cache_file, "BOOT_ID", tmp_path / "boot_id")
        cache_file.this_run.cache_clear()

    yield begin
    cache_file.this_run.cache_clear()


@pytest.fixture
def _without_boot_id(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setattr(cache_file, "BOOT_ID", tmp_path / "none")
    cache_file.this_run.cache_clear()
    yield
    cache_file.this_run.cache_clear()


def change(path: Path, at: int, content: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        file.write(content)


def truncate(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)


def lengthen(path: Path) -> None:
    with path.open("ab") as file:
        file.write(bytes(5))


DAMAGES: dict[str, Callable[[Path], Any]] = {
    "truncated": truncate,
    "longer": lengthen,
    "empty": lambda path: path.write_bytes(b""),
    "garbage": lambda path: path.write_bytes(b"\xff" * path.stat().st_size),
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "half a header": lambda path: change(path, 100, bytes(PAGE_BYTES - 100)),
    "another header": lambda path: change(path, 40, b"?"),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_file_that_is_no_cache_file_is_made_anew(
    store: TensorStore, folder: Path, filled: Path, damage: Callable[[Path], Any]
) -> None:
    damage(filled)
    cached = store.open("x").cached(folder)
    assert cached.epoch_cost() == store.open("x").epoch_cost()
    cache_workers.assert_same(cached, ARRAY, 0)
    assert cached.epoch_cost() == 0


def test_a_file_of_another_version_in_place_of_one(store: TensorStore, folder: Path, filled: Path) -> None:
    content = filled.read_bytes()
    store["x", 0] = 1
    gc.collect()
    cached = store.open("x").cached(folder)
    _ = cached[...]
    (path,) = set(cache_folder.cache_files(folder)) - {filled}
    del cached
    gc.collect()
    path.write_bytes(content)
    assert store.open("x").cached(folder)[0, 0, 0] == 1


def test_tiles_that_a_crash_of_the_system_lost_are_fetched_again(
    store: TensorStore, folder: Path, filled: Path, restart: Callable[[], None]
) -> None:
    restart()
    # Pages of the elements and of the index, as if they had never come to the disk.
    size = filled.stat().st_size
    for at in range(size // 3 // PAGE_BYTES * PAGE_BYTES, size, 13 * PAGE_BYTES):
        change(filled, at, bytes(min(PAGE_BYTES, size - at)))
    change(filled, PAGE_BYTES + 5 * RECORD.itemsize, bytes(RECORD.itemsize))
    cached = store.open("x").cached(folder)
    cache_workers.assert_same(cached, ARRAY, 0)
    assert cached.epoch_cost() == 0
    # From then on, the file is believed.
    again = store.open("x").cached(folder)
    assert again.cache.held is not None
    assert again.cache.held[1] is not None
    assert again.cache.held[1].is_complete


def test_sound_tiles_are_not_fetched_again(
    watched: TensorStore, proxy: Proxy, folder: Path, restart: Callable[[], None]
) -> None:
    watched["x"] = ARRAY
    _ = watched.open("x").cached(folder)[...]
    restart()
    with proxy.counted() as exchanges:
        cache_workers.assert_same(watched.open("x").cached(folder), ARRAY, 0)
    assert {exchange.kind for exchange in exchanges} == {"open"}


@pytest.mark.usefixtures("_without_boot_id")
def test_where_runs_of_the_kernel_cannot_be_told_every_process_looks(
    store: TensorStore, folder: Path, filled: Path
) -> None:
    cache_workers.assert_same(store.open("x").cached(folder), ARRAY, 0)
    gc.collect()
    change(filled, filled.stat().st_size - 100, b"damage")
    cached = store.open("x").cached(folder)
    assert cached.epoch_cost() == 0
    np.testing.assert_array_equal(cached[...], ARRAY)


def test_what_was_left_unfinished_is_deleted(store: TensorStore, folder: Path, filled: Path) -> None:
    unfinished = filled.with_suffix(".unfinished")
    unfinished.write_bytes(bytes(1000))
    _ = store.open("x").cached(folder, max_bytes=10**8)[:3]
    store["x", 0] = 1
    _ = store.open("x").cached(folder, max_bytes=10**8)[:3]
    assert not unfinished.exists()
