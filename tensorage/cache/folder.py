"""The folder of a cache: its owner, its limit, and the files that go first when the limit is reached.

The file `MARKER` says that a folder is a cache. It is also the lock under which cache files are made and deleted, and
their room is counted. The lock is held while a few files are looked at and at most
`tensorage.cache.cached.BATCH_BYTES` are written, and never while a process waits for a network. A process locks each
cache file that it has open, shared, and a file that is locked is never deleted.

The room in use is counted anew from the disk each time, so no count can be wrong after a crash.
"""

from __future__ import annotations

import errno
import os
import stat
from bisect import bisect_right
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy.typing as npt

from tensorage.cache.cache_file import CacheFile, OpenFile
from tensorage.cache.file_format import FILE_NAME, FileFormat
from tensorage.errors import CacheError
from tensorage.file_locks import hold_lock
from tensorage.indexing.selection import Positions
from tensorage.private_files import (
    Flaw,
    flaw_of_file,
    flaw_of_private_folder,
    flaw_on_way,
    make_private_folder,
)
from tensorage.types import Dataset

__all__ = ["Folder"]

#: Name and content of the file that says that a folder is a cache.
MARKER = "tensorage-cache"
_MARK = b"This folder is a cache of tensorage. Delete it as a whole whenever nobody uses it.\n"

#: Suffix of a file that is being made. If one is found while the folder is locked, the process that made it has died.
_UNFINISHED = ".unfinished"

#: Longest wait for the lock. A process that holds it for longer is stopped, and others would wait for ever.
LOCK_TIMEOUT_S = 60.0

#: Bytes that a file system may need beside the blocks of a file, to know where they are.
_SLACK_BYTES = 64 * 1024

#: Unit of `os.stat_result.st_blocks`.
_BLOCK_BYTES = 512

#: Numbers of errors that mean a full disk, and that mean a folder without permission to write.
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_FORBIDDEN = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})


@dataclass(frozen=True)
class Folder:
    """A folder of cache files. It holds no file open, and can be sent to other processes.

    Parameters
    ----------
    path
        Absolute path.
    max_bytes
        Most bytes of disk for all cache files together, when written through this folder; None for as many as fit.
    """

    path: Path
    max_bytes: int | None

    def prepare(self) -> None:
        """Make the folder, unless it exists.

        Raises
        ------
        CacheError
            If the folder cannot be made, holds something else than a cache, or can be entered or replaced by others.
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
                # Without O_NONBLOCK, a pipe that others have put there would block for ever.
                fd = os.open(self.path / MARKER, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW)
                with os.fdopen(fd, "rb") as file:
                    self._check_marker(file.read(len(_MARK) + 1) or b"")
            self._check_private()
            # Two processes may make the folder at once, so the marker is written under its own lock.
            with self.hold_lock() as marker:
                if flaw := flaw_of_file(self.path / MARKER, os.fstat(marker)):
                    raise self._unsafe(flaw)
                found = os.pread(marker, len(_MARK) + 1, 0)
                self._check_marker(found)
                if not found:
                    os.pwrite(marker, _MARK, 0)

    def open(self, file_format: FileFormat, still_stands: Callable[[Dataset], bool]) -> CacheFile | None:
        """Open the cache file of a version of an array, or make it. None if there is no room for one.

        Parameters
        ----------
        still_stands
            Function that tells whether an older version has the elements of the present one, as after a change of
            attributes. The file of the older version stays in use then.
        """
        with _cache_errors(self.path):
            # A handle may have been sent to this process from a place with another folder at this path.
            self._check_way()
            self._check_private()
        with _cache_errors(self.path), self.hold_lock():
            file = self._open_file(file_format)
            older = [] if file is not None else self._find_older(file_format)
        stale: list[CacheFile] = []
        # `still_stands` waits for the network, so the folder must not be locked here.
        for one in older:
            if still_stands(one.dataset):
                self.touch(one)
                return one
            stale.append(one)
        with _cache_errors(self.path):
            if file is None:
                with self.hold_lock():
                    for one in stale:
                        if not one.file.is_used():
                            one.file.path.unlink(missing_ok=True)
                    # Another process may have made the file meanwhile.
                    file = self._open_file(file_format) or self._make_file(file_format)
            return None if file is None else CacheFile(file_format, file)

    def find_missing(self, cache_file: CacheFile, numbers: Positions) -> Positions:
        """Return the tiles, of some, that are missing or damaged."""
        with _cache_errors(self.path):
            return cache_file.find_missing(numbers)

    def touch(self, cache_file: CacheFile) -> None:
        """Note that a cache file was used now."""
        with _cache_errors(self.path):
            cache_file.file.touch()

    def keep(self, cache_file: CacheFile, numbers: Positions, elements: npt.NDArray[Any]) -> int:
        """Write as many tiles as there is room for, from the first one on, and return how many were written.

        Raises
        ------
        CacheError
            If the disk is full, or cannot be written to. The cache stays as it is.
        """
        with _cache_errors(self.path), self.hold_lock():
            count, growth = len(numbers), cache_file.format.max_growth(numbers)
            room = self._make_room(cache_file.format, growth)
            if room is not None and room < growth:
                fits = range(count + 1)
                # `bisect_right` finds the first number of tiles that are too many.
                count = (
                    bisect_right(fits, room, key=lambda some: cache_file.format.max_growth(numbers[:some]))
                    - 1
                )
            size = int(cache_file.grid.lengths(numbers[:count]).sum())
            cache_file.write(numbers[:count], elements[:size])
            return count

    def has_room(self, cache_file: CacheFile, numbers: Positions) -> bool:
        """Tell whether there is room for some tiles, after making as much as possible."""
        growth = cache_file.format.max_growth(numbers)
        with _cache_errors(self.path), self.hold_lock():
            room = self._make_room(cache_file.format, growth)
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
    def hold_lock(self) -> Iterator[int]:
        """Lock the folder for a block: no other process makes, deletes or writes a cache file meanwhile."""
        with hold_lock(self.path / MARKER, LOCK_TIMEOUT_S, self._stuck_error) as fd:
            yield fd

    def _stuck_error(self) -> CacheError:
        return CacheError(
            f"the cache in {self.path} is locked by a process that has not gone on for {LOCK_TIMEOUT_S:.0f} seconds. "
            "End that process, or use another folder."
        )

    # With the folder locked ---------------------------------------------------------------------------

    def _open_file(self, file_format: FileFormat) -> OpenFile | None:
        """Open a cache file if it exists, and mark it as used. Delete a file that has its name and is none."""
        path = self.path / file_format.name
        try:
            file = OpenFile.open(path)
        except FileNotFoundError:
            return None
        if _is_sound(file, file_format):
            file.use()
            os.utime(file.fd)
            return file
        file.close()
        path.unlink()
        return None

    def _find_older(self, file_format: FileFormat) -> list[CacheFile]:
        """Open files of older versions, the latest first, whose elements may be the present ones. Delete all others."""
        found: list[CacheFile] = []
        for path in self._list_files():
            if not path.name.startswith(f"{file_format.array}-") or path.name == file_format.name:
                continue
            file = OpenFile.open(path)
            identity = file.identity()
            if identity is None:
                path.unlink()
            elif identity["version"] < file_format.dataset.version:
                version = replace(file_format.dataset, version=identity["version"])
                older = replace(file_format, dataset=version)
                if older.name == path.name and _is_sound(file, older):
                    file.use()
                    found.append(CacheFile(older, file))
                    continue
                if not file.is_used():
                    path.unlink()
            file.close()
        return sorted(found, key=lambda cache_file: cache_file.dataset.version, reverse=True)

    def _make_file(self, file_format: FileFormat) -> OpenFile | None:
        """Make a cache file without tiles. None if there is no room for one."""
        path = self.path / file_format.name
        unfinished = path.with_suffix(_UNFINISHED)
        header = file_format.header
        room = self._make_room(file_format, len(header))
        if room is not None and room < len(header):
            return None
        unfinished.unlink(missing_ok=True)
        file = OpenFile.open(unfinished, os.O_CREAT | os.O_EXCL)
        try:
            # A hole to the full length, so that the file can be mapped before anything is in it.
            os.ftruncate(file.fd, file_format.nbytes)
            if os.pwrite(file.fd, header, 0) != len(header):
                os.pwrite(file.fd, header, 0)
            file.use()
            unfinished.rename(path)
        except BaseException:
            file.close()
            unfinished.unlink(missing_ok=True)
            raise
        return file

    def _make_room(self, file_format: FileFormat, wanted: int) -> int | None:
        """Return the bytes that may still be written, or None without a limit.

        If they are fewer than wanted, files that nobody uses are deleted: first older versions of the same array, then
        the files that were used the longest time ago.
        """
        if self.max_bytes is None:
            return None
        # The disk is asked anew each time: other processes write to the folder too.
        sizes: dict[Path, os.stat_result] = {}
        for path in self._list_files():
            sizes[path] = path.lstat()
        room = self.max_bytes - _SLACK_BYTES - sum(map(_disk_bytes, sizes.values()))
        if room < wanted:
            same = f"{file_format.array}-"
            for path in sorted(
                sizes, key=lambda path: (not path.name.startswith(same), sizes[path].st_mtime_ns)
            ):
                if path.name != file_format.name and self._delete_unused(path):
                    room += _disk_bytes(sizes[path])
                    if room >= wanted:
                        break
        return max(room, 0)

    def _delete_unused(self, path: Path) -> bool:
        """Delete a cache file unless somebody uses it. True if it was deleted."""
        file = OpenFile.open(path)
        try:
            if file.is_used():
                return False
            path.unlink()
            return True
        finally:
            file.close()

    def _list_files(self) -> Iterator[Path]:
        """Yield the paths of all cache files. Delete the unfinished ones on the way."""
        with os.scandir(self.path) as found:
            for one in list(found):
                name = one.name
                is_unfinished = name.endswith(_UNFINISHED)
                known = name.removesuffix(_UNFINISHED) + ".pieces" if is_unfinished else name
                if not FILE_NAME.fullmatch(known) or not one.is_file(follow_symlinks=False):
                    continue
                if is_unfinished:
                    Path(one.path).unlink()
                else:
                    yield Path(one.path)


def _is_sound(file: OpenFile, file_format: FileFormat) -> bool:
    """Tell whether a file is the cache file that its name says, and as long as a map of it would need.

    Reading a map behind the end of its file ends the process.
    """
    status = os.fstat(file.fd)
    is_file = stat.S_ISREG(status.st_mode) and status.st_size == file_format.nbytes
    # Others may have put the file there before the folder was private.
    is_own = flaw_of_file(file.path, status, is_private=True) is None
    return is_file and is_own and file.identity() == file_format.identity


def _disk_bytes(status: os.stat_result) -> int:
    """Return the bytes of disk that a file takes: parts that were never written take none."""
    return status.st_blocks * _BLOCK_BYTES


@contextmanager
def _cache_errors(folder: Path) -> Iterator[None]:
    """Raise errors of the operating system in the block as errors of the folder."""
    try:
        yield
    except CacheError:
        raise
    except OSError as error:
        named = CacheError(f"the cache in {folder} {_describe(error)}")
        named.errno = error.errno
        raise named from error


def _describe(error: OSError) -> str:
    reason = error.strerror or str(error)
    if error.errno in _FULL:
        return (
            f"has no room on its disk ({reason}). What is in it stays usable. Free some space, give a max_bytes "
            "that fits, or use a folder on another disk."
        )
    if error.errno in _FORBIDDEN:
        return f"cannot be written to ({reason}). Give a folder that this user may write to."
    return f"cannot be used ({reason}). Give a folder on a local disk that this user may write to."
