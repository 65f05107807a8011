"""Files and processes of another user of the machine, for tests that run as root."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from forks import fork

#: A user id that no account needs to have.
UID = 54321

needs_root = pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can make files of another user"
)


def give_away(path: Path) -> None:
    """Make a file, folder or link another user's."""
    os.chown(path, UID, UID, follow_symlinks=False)


def fork_as_other(work: Callable[[], str], uid: int = UID) -> Callable[[], str]:
    """Do something as another user, in a child process, and return a function that waits for what it gave."""

    def begin() -> str:
        os.setgroups([])
        os.setgid(uid)
        os.setuid(uid)
        return work()

    return fork(begin)
