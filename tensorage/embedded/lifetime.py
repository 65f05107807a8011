"""The end of a server together with another process.

The starter of a server names a process, and the server checks a few times a second whether that process still runs. A
pipe that the starter holds open would not do: children that the starter forks inherit the pipe, and keep it open after
the starter's death.
"""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass

import psutil

from tensorage.embedded.folder import EmbeddedError
from tensorage.embedded.postgres import has_ended

#: Environment variable with the default process with which a started server ends: its pid.
ENDS_WITH_VARIABLE = "TENSORAGE_ENDS_WITH"

_POLL_S = 0.2
#: Precision of the times at which processes began.
_SAME_TIME_S = 1.5


class LifetimeError(EmbeddedError):
    """The process with which a server should end does not run."""


@dataclass(frozen=True)
class Companion:
    """A process whose end is the end of a server.

    Parameters
    ----------
    pid
        Number of the process.
    create_time
        Time at which the process began (seconds since the epoch), which tells it from a later one of the same pid.
    """

    pid: int
    create_time: float

    @classmethod
    def of(cls, pid: int) -> Companion:
        """Return the companion of this pid.

        Raises
        ------
        LifetimeError
            No such process runs.
        """
        try:
            process = psutil.Process(pid)
            if not has_ended(process):
                return cls(pid, process.create_time())
        except (psutil.Error, ValueError, OverflowError) as error:
            raise _not_running(pid) from error
        raise _not_running(pid)

    def find_process(self) -> psutil.Process:
        """Find the companion's process.

        Raises
        ------
        LifetimeError
            The process has ended.
        """
        found = Companion.of(self.pid)
        if abs(found.create_time - self.create_time) > _SAME_TIME_S:
            raise _not_running(self.pid)
        # A `psutil.Process` remembers its time, and is not taken in by a later process of the same pid.
        return psutil.Process(self.pid)


def find_companion(pid: int | None) -> Companion | None:
    """Return the process with which a server should end: the given one, or the environment's, or None."""
    if pid is not None:
        return Companion.of(pid)
    said = os.environ.get(ENDS_WITH_VARIABLE)
    if not said:
        return None
    if not said.isdecimal():
        raise LifetimeError(f"{ENDS_WITH_VARIABLE} is {said!r}: it has to be the pid of a process, or empty")
    return Companion.of(int(said))


async def wait_for_end(process: psutil.Process) -> None:
    # Not every supported system reports the end of a process that is no child.
    while not has_ended(process):  # noqa: ASYNC110
        await asyncio.sleep(_POLL_S)


def _not_running(pid: int) -> LifetimeError:
    return LifetimeError(
        f"the server is to end with process {pid}, which does not run: name one that does (ends_with=, --ends-with or "
        f"{ENDS_WITH_VARIABLE}), or none, so that the server goes on until it is stopped"
    )
