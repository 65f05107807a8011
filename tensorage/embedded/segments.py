"""Shared memory of a PostgreSQL that was killed.

PostgreSQL has shared memory outside of its data folder: a small System V segment, named in ``postmaster.pid``, and
POSIX segments. The next start of a cluster removes those of the last one. This module removes them for clusters that
are not started again, such as those of a folder that is reset.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import struct
from pathlib import Path

log = logging.getLogger(__name__)

#: Begin of the System V segment (`PGShmemHeader`): magic number, pid of the postmaster, handle of the control segment.
_HEADER = struct.Struct("=ii16xI")
_HEADER_MAGIC = 679834894

#: Begin of the control segment (`dsm_control_header`), and one of its items: handle, count of references.
_CONTROL = struct.Struct("=II8x")
_CONTROL_MAGIC = 0x9A503D32
_ITEM = struct.Struct("=II32x")

#: Folder in which Linux shows POSIX segments as files. On other systems they stay.
_POSIX_SEGMENTS = Path("/dev/shm")  # noqa: S108  (the system's folder, not one for a file of ours)

_SHM_RDONLY = 0o10000
_IPC_RMID = 0
_FAILED = ctypes.c_void_p(-1).value


def remove_segments(pid_file: Path) -> None:
    """Remove the shared memory of a cluster that has no running process.

    Parameters
    ----------
    pid_file
        The cluster's ``postmaster.pid``. Without it no segment is found.
    """
    # Best effort: a segment that stays costs memory until the next reboot, and is no reason to fail.
    with contextlib.suppress(OSError, ValueError, IndexError):
        lines = pid_file.read_text().splitlines()
        postmaster, segment = int(lines[0]), int(lines[6].split()[1])
        _remove_segments(postmaster, segment)


def _remove_segments(postmaster: int, segment: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.shmat.restype = ctypes.c_void_p
    libc.shmat.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_int)
    libc.shmdt.argtypes = (ctypes.c_void_p,)
    libc.shmctl.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_void_p)
    address = libc.shmat(segment, None, _SHM_RDONLY)
    if address is None or address == _FAILED:
        return
    magic, creator, control = _HEADER.unpack(ctypes.string_at(address, _HEADER.size))
    libc.shmdt(address)
    # Numbers of segments are used again, also by other programs: make sure that this one is the postmaster's.
    if (magic, creator) != (_HEADER_MAGIC, postmaster):
        return
    log.info("removing the shared memory of PostgreSQL %s, which was killed", postmaster)
    if control:
        _remove_posix_segments(control)
    libc.shmctl(segment, _IPC_RMID, None)


def _remove_posix_segments(control: int) -> None:
    path = _find_posix_segment(control)
    if not path.exists():
        return
    content = path.read_bytes()
    magic, count = _CONTROL.unpack_from(content)
    if magic != _CONTROL_MAGIC:
        return
    for handle, references in _ITEM.iter_unpack(content[_CONTROL.size :][: count * _ITEM.size]):
        # Odd handles are parts of the main segment, which went with its processes.
        if references and handle % 2 == 0:
            _find_posix_segment(handle).unlink(missing_ok=True)
    path.unlink(missing_ok=True)


def _find_posix_segment(handle: int) -> Path:
    return _POSIX_SEGMENTS / f"PostgreSQL.{handle}"
