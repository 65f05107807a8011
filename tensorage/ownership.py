"""Tell who else can change, replace or read a file: the owners and modes of it, and of all that leads to it.

A file is as safe as the folders and links on the way to it: whoever can write to one of these can put something of
their own in its place. Trusted are this user and root, who can do everything anyhow.

Systems without owners and modes of this kind, such as Windows, have no flaws here. Nor do access lists of macOS count,
which a mode does not show. (On Linux it does: the mode's middle bits are the most that any entry of a list allows.)
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

#: Links that are followed at the most, as Linux does.
_MAX_LINKS = 40

_HAS_OWNERS = hasattr(os, "geteuid")

_UID_MAP = Path("/proc/self/uid_map")
_OVERFLOW_UID = Path("/proc/sys/kernel/overflowuid")


@dataclass(frozen=True)
class Flaw:
    """Lets others do what only this user should.

    Parameters
    ----------
    path
        A file, a folder or a link.
    why
        A predicate: "belongs to eve (uid 1001)".
    remedy
        Mends it, in the imperative; None where this user cannot.
    is_foreign
        It belongs to somebody else. Otherwise only its mode is too wide.
    """

    path: Path
    why: str
    remedy: str | None
    is_foreign: bool

    def __str__(self) -> str:
        return f"{self.path} {self.why}"

    def advice(self, otherwise: str) -> str:
        """A sentence that names the remedy, if there is one, and another way out."""
        words = f"{self.remedy}, or {otherwise}" if self.remedy else otherwise
        return words[0].upper() + words[1:]


def flaw_on_way(path: Path) -> Flaw | None:
    """Find a folder or a link through which others could put something else at a path.

    The last component is looked at if it is a link, and else left to the other functions. The way ends at the first
    component that is not there.

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
        if status.st_uid not in _trusted_uids():
            return _foreign_flaw(below, status.st_uid)
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
    """Find out whether others can write to a file.

    Parameters
    ----------
    status
        Of the open file, rather than of whatever has its name by now.
    is_private
        Others must not read it either.
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
    """Find out whether a folder is not this user's own, or can be entered by others."""
    if not _HAS_OWNERS:
        return None
    status = path.stat()
    if status.st_uid != os.geteuid():
        return _foreign_flaw(path, status.st_uid)
    mode = stat.S_IMODE(status.st_mode)
    if mode & 0o077:
        why = f"can be entered or read by others (its mode is {mode:04o})"
        return Flaw(path, why, _chmod("700", path), False)
    return None


def make_private_folder(path: Path) -> None:
    """Make a folder that is not there, and those above it that are not, for this user alone.

    `Path.mkdir` makes the folders above with whatever mode the umask allows.
    """
    for folder in reversed([path, *path.parents]):
        if not folder.is_dir():
            folder.mkdir(mode=0o700, exist_ok=True)


def _flaw_of_way_folder(folder: Path) -> Flaw | None:
    status = folder.lstat()
    if status.st_uid not in _trusted_uids() | unmapped_root_uids():
        return _foreign_flaw(folder, status.st_uid)
    # In a sticky folder, such as /tmp, what others can rename and remove is theirs.
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
    return _has_access_list(path) or not _is_group_of_ours(status.st_gid)


def _is_group_of_ours(gid: int) -> bool:
    """Whether nobody but this user and root is in a group: many systems give each user one, and let it write."""
    import grp
    import pwd

    try:
        members = {pwd.getpwnam(name).pw_uid for name in grp.getgrgid(gid).gr_mem}
    except KeyError:
        return False
    members |= {user.pw_uid for user in pwd.getpwall() if user.pw_gid == gid}
    return bool(members) and members <= _trusted_uids()


def _has_access_list(path: Path) -> bool:
    """Whether the middle bits of a mode are about more than the file's group."""
    if not hasattr(os, "getxattr"):
        return False
    try:
        os.getxattr(path, "system.posix_acl_access")
    except OSError:
        # There is none, or there can be none on this file system.
        return False
    return True


def _trusted_uids() -> set[int]:
    return {0, os.geteuid()}


@cache
def unmapped_root_uids() -> frozenset[int]:
    """Owner that folders of the system's root show in a user namespace that does not know it, as in some sandboxes."""
    try:
        overflow = int(_OVERFLOW_UID.read_text())
        spans = [tuple(map(int, line.split())) for line in _UID_MAP.read_text().splitlines()]
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
