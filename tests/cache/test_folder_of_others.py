"""Folders of a cache that others own, can enter, or can put another one in the place of."""

from __future__ import annotations

import gc
import os
import pickle
import stat
from pathlib import Path

import cache_folder
import numpy as np
import others
import pytest

from tensorage import CacheError, TensorStore

ARRAY = np.arange(10_000).reshape(100, 100)


def refused(store: TensorStore, folder: Path, match: str) -> str:
    before = {path: path.read_bytes() for path in folder.glob("*")}
    with pytest.raises(CacheError, match=match) as caught:
        store.open("x").cached(folder)
    assert {path: path.read_bytes() for path in folder.glob("*")} == before
    return str(caught.value)


@pytest.mark.parametrize("mode", [0o777, 0o755, 0o710])
def test_others_can_enter(rows: TensorStore, folder: Path, mode: int) -> None:
    rows["x"] = ARRAY
    folder.mkdir()
    folder.chmod(mode)
    said = refused(rows, folder, "is not used: .* can be entered or read by others")
    assert f"Run `chmod 700 {folder}`, or give another folder" in said
    folder.chmod(0o700)
    np.testing.assert_array_equal(rows.open("x").cached(folder)[...], ARRAY)
    folder.chmod(mode)
    refused(rows, folder, "can be entered or read by others")


def test_others_can_replace_it(rows: TensorStore, folder: Path) -> None:
    rows["x"] = ARRAY
    folder = folder / "below"
    np.testing.assert_array_equal(rows.open("x").cached(folder)[...], ARRAY)
    folder.parent.chmod(0o777)
    refused(rows, folder, f"{folder.parent} can be written by others")
    refused(rows, folder.parent / "new", f"{folder.parent} can be written by others")
    assert not (folder.parent / "new").exists()
    folder.parent.chmod(0o1777)
    np.testing.assert_array_equal(rows.open("x").cached(folder)[...], ARRAY)


def test_a_handle_that_is_sent_looks_again(rows: TensorStore, folder: Path) -> None:
    rows["x"] = ARRAY
    sent = pickle.dumps(rows.open("x").cached(folder))
    folder.chmod(0o777)
    with pytest.raises(CacheError, match="can be entered"):
        _ = pickle.loads(sent)[3]


@others.needs_root
def test_another_users_folder(rows: TensorStore, folder: Path) -> None:
    rows["x"] = ARRAY
    _ = rows.open("x").cached(folder)[...]
    others.give_away(folder)
    for mode in (0o777, 0o700):
        folder.chmod(mode)
        refused(rows, folder, rf"{folder} belongs to uid {others.UID}")


@others.needs_root
def test_another_users_link(rows: TensorStore, folder: Path, tmp_path: Path) -> None:
    rows["x"] = ARRAY
    (tmp_path / "link").symlink_to(folder)
    folder.mkdir(mode=0o700)
    np.testing.assert_array_equal(rows.open("x").cached(tmp_path / "link")[...], ARRAY)
    others.give_away(tmp_path / "link")
    refused(rows, tmp_path / "link", "link belongs to")


@others.needs_root
def test_files_that_another_user_left(rows: TensorStore, folder: Path) -> None:
    """The folder was open once: what others put into it then is not believed later."""
    rows["x"] = ARRAY
    _ = rows.open("x").cached(folder)[...]
    gc.collect()
    (path,) = cache_folder.cache_files(folder)
    others.give_away(path)
    cached = rows.open("x").cached(folder)
    assert cached.epoch_cost() == rows.open("x").epoch_cost()
    np.testing.assert_array_equal(cached[...], ARRAY)
    (path,) = cache_folder.cache_files(folder)
    assert path.stat().st_uid == os.geteuid()
    del cached
    gc.collect()
    path.chmod(0o644)
    assert rows.open("x").cached(folder).epoch_cost() > 0
    (path,) = cache_folder.cache_files(folder)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    others.give_away(folder / "tensorage-cache")
    refused(rows, folder, "tensorage-cache belongs to")
