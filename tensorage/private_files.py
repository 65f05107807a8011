"""Checks of the owners and modes of files, and of the way to them: who else can change, replace or read a file.

A file is as safe as the folders and links on the way to it: a user who can write to one of these can put another file
in its place. This user is trusted, and so is root, who can do everything anyhow.

Systems without owners and modes of this kind, such as Windows, have no flaws here. Access lists of macOS do not count
either, since a mode does not show them. On Linux a mode does: its middle bits are the most that any entry of a list
allows.
"""

from __future__ import annotations

import errno
import os
import shlex
import stat
from dataclasses import dataclass
from functools import cache
from pathlib import Path

__all__ = [
    "Flaw",
    "flaw_of_file",
    "flaw_of_private_folder",
    "flaw_on_way",
    "make_private_folder",
    "unmapped_root_uids",
]

#: Most links that are followed, as on Linux.
_MAX_LINKS = 40

#: False on Windows, whose files have neither owners nor modes of this kind.
_HAS_OWNERS = hasattr(os, "geteuid")

#: Users that this user namespace knows, and the number that stands for all others.
UID_MAP = Path("/proc/self/uid_map")
OVERFLOW_UID = Path("/proc/sys/kernel/overflowuid")


@dataclass(frozen=True)
class Flaw:
    """A reason why others can do what only this user should.

    Parameters
    ----------
    path
        The file, folder or link that has the flaw.
    why
        The flaw as a predicate: "belongs to eve (uid 1001)".
    remedy
        The remedy in the imperative; None if this user has none.
    is_foreign
        True if `path` belongs to somebody else. Otherwise only its mode is too wide.
    """

    path: Path
    why: str
    remedy: str | None
    is_foreign: bool

    def __str__(self) -> str:
        return f"{self.path} {self.why}"

    def advice(self, otherwise: str) -> str:
        """Return a sentence that names the remedy, if there is one, and another way out."""
        words = f"{self.remedy}, or {otherwise}" if self.remedy else otherwise
        return words[0].upper() + words[1:]


def flaw_on_way(path: Path) -> Flaw | None:
    """Find a folder or a link through which others could replace the file at a path.

    The last component is checked only if it is a link. The other functions check files and folders. The way ends at the
    first component that does not exist.

    Raises
    ------
    OSError
        If a folder on the way cannot be entered.
    """
    if not _HAS_OWNERS:
        return None
    path = path.absolute()
    here = Path(path.anchor)
    ahead = list(reversed(path.parts[1:]))
    links = 0
    while ahead:
        if flaw := _flaw_of_way_folder(here):
            return flaw
        name = ahead.pop()
        if name == "..":
            here = here.parent
            continue
        below = here / name
        try:
            status = below.lstat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        if not stat.S_ISLNK(status.st_mode):
            here = below
            continue
        # The owner of a link can point it elsewhere, whatever its mode says.
        if status.st_uid not in _trusted_uids():
            return _foreign_flaw(below, status.st_uid)
        # Links may go in a circle.
        links += 1
        if links > _MAX_LINKS:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
        target = below.readlink()
        if target.is_absolute():
            here = Path(target.anchor)
            ahead += reversed(target.parts[1:])
        else:
            ahead += reversed(target.parts)
    return None


def flaw_of_file(path: Path, status: os.stat_result, *, is_private: bool = False) -> Flaw | None:
    """Find the flaw through which others can write to a file.

    Parameters
    ----------
    status
        Status of the open file: another file may have its name by now.
    is_private
        True if others must not read the file either.
    """
    if not _HAS_OWNERS:
        return None
    if status.st_uid not in _trusted_uids():
        return _foreign_flaw(path, status.st_uid)
    mode = stat.S_IMODE(status.st_mode)
    if is_private and mode & 0o077:
        return Flaw(path, f"can be read by others (its mode is {mode:04o})", _chmod("600", path), False)
    if _others_write(path, status):
        return Flaw(path, f"can be written by others (its mode is {mode:04o})", _chmod("go-w", path), False)
    return None


def flaw_of_private_folder(path: Path) -> Flaw | None:
    """Find the flaw of a folder that is not this user's own, or that others can enter."""
    if not _HAS_OWNERS:
        return None
    status = path.stat()
    # Root's own folder would not do: this user could not write to it.
    if status.st_uid != os.geteuid():
        return _foreign_flaw(path, status.st_uid)
    mode = stat.S_IMODE(status.st_mode)
    if mode & 0o077:
        why = f"can be entered or read by others (its mode is {mode:04o})"
        return Flaw(path, why, _chmod("700", path), False)
    return None


def make_private_folder(path: Path) -> None:
    """Make a folder and its missing parents for this user alone.

    `Path.mkdir` would make the parents with any mode that the umask allows.
    """
    for folder in reversed([path, *path.parents]):
        if not folder.is_dir():
            folder.mkdir(mode=0o700, exist_ok=True)


def _flaw_of_way_folder(folder: Path) -> Flaw | None:
    status = folder.lstat()
    if status.st_uid not in _trusted_uids() | unmapped_root_uids():
        return _foreign_flaw(folder, status.st_uid)
    # In a sticky folder, such as /tmp, others can only rename and remove files of their own.
    if status.st_mode & stat.S_ISVTX or not _others_write(folder, status):
        return None
    mode = stat.S_IMODE(status.st_mode)
    remedy = _chmod("go-w", folder) if status.st_uid == os.geteuid() else None
    return Flaw(folder, f"can be written by others (its mode is {mode:04o})", remedy, False)


def _others_write(path: Path, status: os.stat_result) -> bool:
    if status.st_mode & stat.S_IWOTH:
        return True
    if not status.st_mode & stat.S_IWGRP:
        return False
    # With an access list, the group bits stand for every user and group that the list names.
    return _has_access_list(path) or not _is_group_of_ours(status.st_gid)


def _is_group_of_ours(gid: int) -> bool:
    """Tell whether only this user and root are in a group. Many systems give each user a group that may write."""
    import grp
    import pwd

    try:
        members = {pwd.getpwnam(name).pw_uid for name in grp.getgrgid(gid).gr_mem}
    except KeyError:
        return False
    # The group database does not list a user whose primary group this is.
    members |= {user.pw_uid for user in pwd.getpwall() if user.pw_gid == gid}
    return bool(members) and members <= _trusted_uids()


def _has_access_list(path: Path) -> bool:
    """Tell whether a file has an access list, so that the middle bits of its mode are about more than its group."""
    if not hasattr(os, "getxattr"):
        return False
    try:
        os.getxattr(path, "system.posix_acl_access")
    except OSError:
        # The file has no access list, or its file system has none.
        return False
    return True


def _trusted_uids() -> set[int]:
    return {0, os.geteuid()}


@cache
def unmapped_root_uids() -> frozenset[int]:
    """Return the owner that root's folders show in a user namespace that does not map root, as in some sandboxes."""
    try:
        overflow = int(OVERFLOW_UID.read_text())
        spans = [tuple(map(int, line.split())) for line in UID_MAP.read_text().splitlines()]
    except FileNotFoundError:
        return frozenset()
    if any(first <= overflow < first + count for first, _, count in spans):
        return frozenset()
    return frozenset({overflow})


def _foreign_flaw(path: Path, uid: int) -> Flaw:
    import pwd

    try:
        owner = f"{pwd.getpwuid(uid).pw_name} (uid {uid})"
    except KeyError:
        owner = f"uid {uid}"
    remedy = f"work as {owner}" if os.geteuid() == 0 else None
    return Flaw(path, f"belongs to {owner}", remedy, True)


def _chmod(mode: str, path: Path) -> str:
    return f"run `chmod {mode} {shlex.quote(str(path))}`"
