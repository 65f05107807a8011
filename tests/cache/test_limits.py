"""Folders that have a limit, no room, or that cannot be one."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import cache_folder
import cache_workers
import numpy as np
import pytest

from tensorage import CacheError, Tensor, TensorStore

ARRAY = cache_workers.array()

#: Room for one of the arrays, and not for two of them.
FOR_ONE = ARRAY.nbytes + 300_000


def fill(store: TensorStore, *keys: str) -> None:
    for seed, key in enumerate(keys):
        store.write(key, ARRAY + seed, chunks=(40, 28, 28) if store.engine == "storage" else None)


def test_the_limit_is_kept_and_reading_goes_on(store: TensorStore, folder: Path) -> None:
    fill(store, "a")
    limit = ARRAY.nbytes // 2
    cached = store.open("a").cached(folder, max_bytes=limit)
    for seed in range(3):
        cache_workers.assert_same(cached, ARRAY, seed)
        assert cache_folder.taken(folder) <= limit
    assert cache_folder.taken(folder) > limit * 0.7
    # Single rows here and there take whole pages of the disk.
    assert 0 < cached.epoch_cost() < 0.85 * store.open("a").epoch_cost()


def test_nothing_fits(store: TensorStore, folder: Path) -> None:
    fill(store, "a")
    cached = store.open("a").cached(folder, max_bytes=1000)
    cache_workers.assert_same(cached, ARRAY, 0)
    assert cached.epoch_cost() == store.open("a").epoch_cost()
    assert not cache_folder.cache_files(folder)


def test_what_nobody_uses_makes_room_the_oldest_first(store: TensorStore, folder: Path) -> None:
    fill(store, "a", "b", "c")
    for number, key in enumerate("ab"):
        _ = store.open(key).cached(folder)[...]
        path = max(cache_folder.cache_files(folder), key=lambda path: path.stat().st_mtime_ns)
        os.utime(path, (1000 + number, 1000 + number))
    cached = store.open("c").cached(folder, max_bytes=2 * FOR_ONE)
    np.testing.assert_array_equal(cached[...], ARRAY + 2)
    assert cached.epoch_cost() == 0
    assert cache_folder.taken(folder) <= 2 * FOR_ONE
    assert store.open("b").cached(folder).epoch_cost() == 0
    assert store.open("a").cached(folder).epoch_cost() > 0


def test_versions_that_are_gone_make_room_first(store: TensorStore, folder: Path) -> None:
    fill(store, "a", "b")
    held = store.open("a").cached(folder)
    _ = held[...], store.open("b").cached(folder)[...]
    store.append("a", ARRAY[:1])
    stale = cache_folder.cache_files(folder)
    del held
    cached = store.open("a").cached(folder, max_bytes=2 * FOR_ONE)
    np.testing.assert_array_equal(cached[:-1], ARRAY)
    assert cached.epoch_cost() <= ARRAY[:40].nbytes
    assert store.open("b").cached(folder).epoch_cost() == 0
    assert len(set(stale) & set(cache_folder.cache_files(folder))) == 1


def test_arrays_in_use_do_not_drive_each_other_out(store: TensorStore, folder: Path) -> None:
    fill(store, "a", "b")
    a, b = (store.open(key).cached(folder, max_bytes=FOR_ONE) for key in "ab")
    np.testing.assert_array_equal(a[...], ARRAY)
    for seed in range(3):
        cache_workers.assert_same(b, ARRAY + 1, seed)
        cache_workers.assert_same(a, ARRAY, seed)
    assert a.epoch_cost() == 0
    assert b.epoch_cost() > 0
    assert cache_folder.taken(folder) <= FOR_ONE


def test_a_full_disk_is_an_error_at_once(store: TensorStore, tmp_path: Path) -> None:
    fill(store, "a")
    with cache_folder.small_disk(tmp_path / "disk", "1m"):
        cached = store.open("a").cached(tmp_path / "disk" / "cache")
        read = 0

        def epoch(tensor: Tensor) -> None:
            nonlocal read
            for number in range(600):
                np.testing.assert_array_equal(tensor[number], ARRAY[number])
                read += 1

        with pytest.raises(CacheError, match=r"cache in .*/disk/cache has no room on its disk") as caught:
            epoch(cached)
        assert read > 0
        assert caught.value.errno == errno.ENOSPC
        assert isinstance(caught.value.__cause__, OSError)
        # Tiles that are there stay usable.
        np.testing.assert_array_equal(cached[:read], ARRAY[:read])
        again = store.open("a").cached(tmp_path / "disk" / "cache")
        np.testing.assert_array_equal(again[:read], ARRAY[:read])
        del cached, again
        # With a limit, there is no error.
        limited = store.open("a").cached(tmp_path / "disk" / "cache", max_bytes=900_000)
        cache_workers.assert_same(limited, ARRAY, 0)
        del limited


def test_a_folder_without_room_for_the_index_is_an_error(rows: TensorStore, tmp_path: Path) -> None:
    fill(rows, "a")
    with cache_folder.small_disk(tmp_path / "disk", "8k"):
        (tmp_path / "disk" / "fill").mkdir()
        with pytest.raises(CacheError, match="no room"):
            _ = rows.open("a").cached(tmp_path / "disk" / "cache")[...]


def test_a_disk_that_becomes_read_only(store: TensorStore, tmp_path: Path) -> None:
    fill(store, "a")
    folder = tmp_path / "disk" / "cache"
    with cache_folder.small_disk(tmp_path / "disk", "8m"):
        warm = store.open("a").cached(folder)
        np.testing.assert_array_equal(warm[:40], ARRAY[:40])
        del warm
        cache_folder.make_read_only(tmp_path / "disk")
        with pytest.raises(CacheError, match="cannot be written to"):
            store.open("a").cached(folder)


def test_a_file_in_place_of_the_folder(rows: TensorStore, tmp_path: Path) -> None:
    fill(rows, "a")
    (tmp_path / "file").write_text("something")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(CacheError, match=r"the cache in .*/file.* cannot be used"):
            rows.open("a").cached(path)
    assert (tmp_path / "file").read_text() == "something"


def test_a_folder_of_somebody_else(rows: TensorStore, folder: Path) -> None:
    fill(rows, "a")
    folder.mkdir()
    (folder / "thesis.tex").write_text("all of it")
    with pytest.raises(CacheError, match=r"holds other files, such as 'thesis\.tex'"):
        rows.open("a").cached(folder)
    assert [path.name for path in folder.iterdir()] == ["thesis.tex"]
    (folder / "tensorage-cache").write_text("my own marker")
    with pytest.raises(CacheError, match="is not what makes a folder a cache"):
        rows.open("a").cached(folder)


def test_other_files_in_a_cache_are_left_alone(rows: TensorStore, folder: Path) -> None:
    fill(rows, "a", "b")
    _ = rows.open("a").cached(folder)[...]
    others = [folder / "notes.pieces", folder / f"{'0' * 20}-{'1' * 20}.pieces.txt", folder / "x.unfinished"]
    for path in others:
        path.write_text("mine")
    (folder / f"{'0' * 20}-{'1' * 20}.pieces").mkdir()
    _ = rows.open("b").cached(folder, max_bytes=FOR_ONE)[...]
    assert all(path.read_text() == "mine" for path in others)


def test_a_folder_that_is_deleted_meanwhile(rows: TensorStore, folder: Path) -> None:
    fill(rows, "a")
    cached = rows.open("a").cached(folder)
    np.testing.assert_array_equal(cached[:10], ARRAY[:10])
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    np.testing.assert_array_equal(cached[:10], ARRAY[:10])
    with pytest.raises(CacheError, match="cannot be used"):
        cached[20]


def test_nobody_else_can_read_it(store: TensorStore, folder: Path) -> None:
    fill(store, "a")
    _ = store.open("a").cached(folder / "deep")[:3]
    assert stat.S_IMODE((folder / "deep").stat().st_mode) == 0o700
    files = list((folder / "deep").iterdir())
    assert len(files) == 2
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}
    # The name of the array is not told, either.
    assert not [path for path in files if b'"a"' in path.read_bytes()]
