"""The folder of a cache: whose it is, how much may be in it, and what goes first when that is reached.

The folder's file `MARKER` says that it is one, and is the lock under which entries are made and deleted and what is
used is counted: for as long as a few files are looked at and at most `tensorage.cache.cached.BATCH_BYTES` are
written, and never while somebody waits for a network. An entry that a process has open is locked by it, shared, and is
never deleted.

What is used is what the disk says, so nothing can be out of step with it after a crash.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import time
from bisect import bisect_right
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy.typing as npt

from tensorage.cache.cache_file import CacheFile, OpenFile
from tensorage.cache.file_format import ENTRY_NAME, FileFormat
from tensorage.errors import CacheError
from tensorage.indexing.selection import Positions
from tensorage.ownership import (
    Flaw,
    flaw_of_file,
    flaw_of_private_folder,
    flaw_on_way,
    make_private_folder,
)
from tensorage.types import Dataset

__all__ = ["Folder"]

MARKER = "tensorage-cache"
_MARK = b"This folder is a cache of tensorage. Delete it as a whole whenever nobody uses it.\n"

#: An entry that is being made. Found while the folder is locked, it is somebody's who died.
_UNFINISHED = ".unfinished"

#: Nobody holds the lock for so long: whoever does is stopped, and everybody else would wait for ever.
LOCK_TIMEOUT_S = 60.0
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.0005, 0.05

#: What a file system may need beside the blocks of a file, for knowing where they are.
_SLACK_BYTES = 64 * 1024

#: What `os.stat` counts in.
_BLOCK_BYTES = 512

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_FORBIDDEN = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})


@dataclass(frozen=True)
class Folder:
    """A folder of entries. It holds nothing open, and can be sent to other processes.

    Parameters
    ----------
    path
        Absolute.
    max_bytes
        What all entries together may take on the disk, by anybody who writes through this; None for whatever fits.
    """

    path: Path
    max_bytes: int | None

    def prepare(self) -> None:
        """Make the folder, unless it is there.

        Raises
        ------
        CacheError
            If that is not possible, if it holds something else than a cache, or if others can enter or replace it.
        """
        with _cache_errors(self.path):
            self._check_way()
            make_private_folder(self.path)
            names = os.listdir(self.path)  # noqa: PTH208 - names alone, without looking at each
            if names and MARKER not in names:
                raise CacheError(
                    f"the folder {self.path} holds other files, such as {min(names)!r}, and is no cache of tensorage, "
                    "which would be free to delete what is in it. Give a new folder, or an empty one."
                )
            if MARKER in names:
                # Not waited for, should others have put a pipe there.
                fd = os.open(self.path / MARKER, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW)
                with os.fdopen(fd, "rb") as file:
                    self._check_marker(file.read(len(_MARK) + 1) or b"")
            self._check_private()
            with self._locked() as marker:
                if flaw := flaw_of_file(self.path / MARKER, os.fstat(marker)):
                    raise self._unsafe(flaw)
                found = os.pread(marker, len(_MARK) + 1, 0)
                self._check_marker(found)
                if not found:
                    os.pwrite(marker, _MARK, 0)

    def open(self, layout: FileFormat, still_stands: Callable[[Dataset], bool]) -> CacheFile | None:
        """The entry of a version of an array, made if there is none. None if there is no room for one.

        Parameters
        ----------
        still_stands
            Whether an older version has the elements of the one that is there now, as after its attributes were
            changed: then its entry goes on being used.
        """
        with _cache_errors(self.path):
            # Also in a process that a handle was sent to, where another folder may be at this path.
            self._check_way()
            self._check_private()
        with _cache_errors(self.path), self._locked():
            file = self._opened(layout)
            older = [] if file is not None else self._older(layout)
        stale: list[CacheFile] = []
        # The network is waited for while the folder is not locked.
        for one in older:
            if still_stands(one.dataset):
                self.touch(one)
                return one
            stale.append(one)
        with _cache_errors(self.path):
            if file is None:
                with self._locked():
                    for one in stale:
                        if not one.file.is_used():
                            one.file.path.unlink(missing_ok=True)
                    # Others may have been faster.
                    file = self._opened(layout) or self._made(layout)
            return None if file is None else CacheFile(layout, file)

    def missing(self, entry: CacheFile, numbers: Positions) -> Positions:
        """Those of some pieces that are not there, or damaged."""
        with _cache_errors(self.path):
            return entry.missing(numbers)

    def touch(self, entry: CacheFile) -> None:
        """Note that an entry was used now."""
        with _cache_errors(self.path):
            entry.file.touch()

    def keep(self, entry: CacheFile, numbers: Positions, elements: npt.NDArray[Any]) -> int:
        """Keep as many of some pieces as there is room for, from the first one on: how many that are.

        Raises
        ------
        CacheError
            If the disk is full, or cannot be written to. What is in the cache stays as it is.
        """
        with _cache_errors(self.path), self._locked():
            count, growth = len(numbers), entry.layout.growth(numbers)
            room = self._room(entry.layout, growth)
            if room is not None and room < growth:
                fits = range(count + 1)
                # The first number of pieces that are too many, less one.
                count = bisect_right(fits, room, key=lambda some: entry.layout.growth(numbers[:some])) - 1
            size = int(entry.grid.lengths(numbers[:count]).sum())
            entry.write(numbers[:count], elements[:size])
            return count

    def has_room(self, entry: CacheFile, numbers: Positions) -> bool:
        """Whether there is room for all of some pieces. It is made if it can be."""
        growth = entry.layout.growth(numbers)
        with _cache_errors(self.path), self._locked():
            room = self._room(entry.layout, growth)
            return room is None or room >= growth

    def _check_marker(self, found: bytes) -> None:
        if not _MARK.startswith(found):
            raise CacheError(
                f"the file {self.path / MARKER} is not what makes a folder a cache of tensorage. Give another folder."
            )

    def _check_way(self) -> None:
        if flaw := flaw_on_way(self.path):
            raise self._unsafe(flaw)

    def _check_private(self) -> None:
        if flaw := flaw_of_private_folder(self.path):
            raise self._unsafe(flaw)

    def _unsafe(self, flaw: Flaw) -> CacheError:
        return CacheError(
            f"the cache in {self.path} is not used: {flaw}, so that others could read or change what is kept in it. "
            f"{flaw.advice('give another folder, such as a new one in a folder of your own')}"
        )

    @contextmanager
    def _locked(self) -> Iterator[int]:
        """Nobody else changes which entries there are, nor writes to one, until the block ends."""
        fd = os.open(self.path / MARKER, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            self._lock(fd)
            try:
                yield fd
            finally:
                # Closing does not do it if another thread forks meanwhile: the child has the open file, too.
                fcntl.flock(fd, fcntl.LOCK_UN)
        finally:
            os.close(fd)

    def _lock(self, fd: int) -> None:
        until, pause_s = time.monotonic() + LOCK_TIMEOUT_S, _FIRST_PAUSE_S
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                if time.monotonic() > until:
                    raise CacheError(
                        f"the cache in {self.path} is locked by a process that has not gone on for "
                        f"{LOCK_TIMEOUT_S:.0f} seconds. End that process, or use another folder."
                    ) from error
                time.sleep(pause_s)
                pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
            else:
                return

    # With the folder locked ---------------------------------------------------------------------------

    def _opened(self, layout: FileFormat) -> OpenFile | None:
        """The file of an entry that is there, in use. What is no such file, and has its name, is deleted."""
        path = self.path / layout.name
        try:
            file = OpenFile.open(path)
        except FileNotFoundError:
            return None
        if _is_sound(file, layout):
            file.use()
            os.utime(file.fd)
            return file
        file.close()
        path.unlink()
        return None

    def _older(self, layout: FileFormat) -> list[CacheFile]:
        """Entries of older versions of an array that may be what it is now, the latest first. Others are deleted."""
        found: list[CacheFile] = []
        for path in self._entries():
            if not path.name.startswith(f"{layout.array}-") or path.name == layout.name:
                continue
            file = OpenFile.open(path)
            identity = file.identity()
            if identity is None:
                path.unlink()
            elif identity["version"] < layout.dataset.version:
                version = replace(layout.dataset, version=identity["version"])
                older = replace(layout, dataset=version)
                if older.name == path.name and _is_sound(file, older):
                    file.use()
                    found.append(CacheFile(older, file))
                    continue
                if not file.is_used():
                    path.unlink()
            file.close()
        return sorted(found, key=lambda entry: entry.dataset.version, reverse=True)

    def _made(self, layout: FileFormat) -> OpenFile | None:
        """A new entry without pieces. None if there is no room for one."""
        path = self.path / layout.name
        unfinished = path.with_suffix(_UNFINISHED)
        header = layout.header
        room = self._room(layout, len(header))
        if room is not None and room < len(header):
            return None
        unfinished.unlink(missing_ok=True)
        file = OpenFile.open(unfinished, os.O_CREAT | os.O_EXCL)
        try:
            os.ftruncate(file.fd, layout.nbytes)
            if os.pwrite(file.fd, header, 0) != len(header):
                os.pwrite(file.fd, header, 0)
            file.use()
            unfinished.rename(path)
        except BaseException:
            file.close()
            unfinished.unlink(missing_ok=True)
            raise
        return file

    def _room(self, layout: FileFormat, wanted: int) -> int | None:
        """Bytes that may still be taken; None if as many as there are.

        Where they are fewer than wanted, entries that nobody uses are deleted: first older versions of the same array,
        then those that were used the longest time ago.
        """
        if self.max_bytes is None:
            return None
        sizes: dict[Path, os.stat_result] = {}
        for path in self._entries():
            sizes[path] = path.lstat()
        room = self.max_bytes - _SLACK_BYTES - sum(map(_taken, sizes.values()))
        if room < wanted:
            same = f"{layout.array}-"
            for path in sorted(
                sizes, key=lambda path: (not path.name.startswith(same), sizes[path].st_mtime_ns)
            ):
                if path.name != layout.name and self._deleted(path):
                    room += _taken(sizes[path])
                    if room >= wanted:
                        break
        return max(room, 0)

    def _deleted(self, path: Path) -> bool:
        """Whether an entry could be deleted, since nobody uses it."""
        file = OpenFile.open(path)
        try:
            if file.is_used():
                return False
            path.unlink()
            return True
        finally:
            file.close()

    def _entries(self) -> Iterator[Path]:
        """Files of entries. Those that were left unfinished are deleted."""
        with os.scandir(self.path) as found:
            for one in list(found):
                name = one.name
                is_unfinished = name.endswith(_UNFINISHED)
                known = name.removesuffix(_UNFINISHED) + ".pieces" if is_unfinished else name
                if not ENTRY_NAME.fullmatch(known) or not one.is_file(follow_symlinks=False):
                    continue
                if is_unfinished:
                    Path(one.path).unlink()
                else:
                    yield Path(one.path)


def _is_sound(file: OpenFile, layout: FileFormat) -> bool:
    """Whether it is the entry that its name says. A map that ends behind the file would end the process."""
    status = os.fstat(file.fd)
    is_file = stat.S_ISREG(status.st_mode) and status.st_size == layout.nbytes
    # Others may have put it there before the folder was private.
    is_own = flaw_of_file(file.path, status, is_private=True) is None
    return is_file and is_own and file.identity() == layout.identity


def _taken(status: os.stat_result) -> int:
    """Bytes of the disk: parts of a file that were never written take none."""
    return status.st_blocks * _BLOCK_BYTES


@contextmanager
def _cache_errors(folder: Path) -> Iterator[None]:
    """Errors of the operating system in the block are about the folder."""
    try:
        yield
    except CacheError:
        raise
    except OSError as error:
        named = CacheError(f"the cache in {folder} {_fault(error)}")
        named.errno = error.errno
        raise named from error


def _fault(error: OSError) -> str:
    reason = error.strerror or str(error)
    if error.errno in _FULL:
        return (
            f"has no room on its disk ({reason}). What is in it stays usable. Free some space, give a max_bytes "
            "that fits, or use a folder on another disk."
        )
    if error.errno in _FORBIDDEN:
        return f"cannot be written to ({reason}). Give a folder that this user may write to."
    return f"cannot be used ({reason}). Give a folder on a local disk that this user may write to."
