"""The folder of a local cache: the files that tests look for, and damage that nobody planned."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest


def cache_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.pieces"))


def taken(folder: Path) -> int:
    """Bytes of the disk that the cache files take."""
    return sum(path.stat().st_blocks * 512 for path in cache_files(folder))


@contextlib.contextmanager
def small_disk(at: Path, size: str) -> Iterator[None]:
    """A disk of its own at a folder."""
    at.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(at)]
    try:
        done = subprocess.run(mount, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no mount on this machine")
    if done.returncode:
        pytest.skip(f"this user may not mount a small disk: {done.stderr.strip()}")
    try:
        yield
    finally:
        # A lazy one works while maps of its files are open.
        subprocess.run(["umount", "--lazy", str(at)], check=True)


def make_read_only(at: Path) -> None:
    """Let nobody write to a small disk, root included."""
    subprocess.run(["mount", "-o", "remount,ro", str(at)], check=True)
