"""The life of a server, bound to that of another process.

Whoever starts a server names a process, and the server looks for its end a few times a second. A pipe that the starter
holds open would not do: children that it forks inherit its end, and keep it open after the starter's death.
"""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass

import psutil

from tensorage.embedded.folder import EmbeddedError
from tensorage.embedded.postgres import has_ended

#: Pid of the process with which servers end that are started without saying.
ENDS_WITH_VARIABLE = "TENSORAGE_ENDS_WITH"

_POLL_S = 0.2
#: Begins of processes are told with less precision than this.
_SAME_TIME_S = 1.5


class LifetimeError(EmbeddedError):
    """The process with which a server is to end is not there."""


@dataclass(frozen=True)
class Companion:
    """Process with whose end a server ends.

    Parameters
    ----------
    pid
        Its pid.
    create_time
        Time of its begin (seconds since the epoch), which tells it from a later process of the same pid.
    """

    pid: int
    create_time: float

    @classmethod
    def of(cls, pid: int) -> Companion:
        """Take note of a process that runs.

        Raises
        ------
        LifetimeError
            It does not.
        """
        try:
            process = psutil.Process(pid)
            if not has_ended(process):
                return cls(pid, process.create_time())
        except (psutil.Error, ValueError, OverflowError) as error:
            raise _not_there(pid) from error
        raise _not_there(pid)

    def process(self) -> psutil.Process:
        """Find the process again.

        Raises
        ------
        LifetimeError
            It has ended.
        """
        found = Companion.of(self.pid)
        if abs(found.create_time - self.create_time) > _SAME_TIME_S:
            raise _not_there(self.pid)
        # From here on psutil itself tells it from a later one.
        return psutil.Process(self.pid)


def companion(pid: int | None) -> Companion | None:
    """Process with which a server is to end: as told, or as the environment says. None if by itself."""
    if pid is not None:
        return Companion.of(pid)
    said = os.environ.get(ENDS_WITH_VARIABLE)
    if not said:
        return None
    if not said.isdecimal():
        raise LifetimeError(f"{ENDS_WITH_VARIABLE} is {said!r}: it has to be the pid of a process, or empty")
    return Companion.of(int(said))


async def wait_for_end(process: psutil.Process) -> None:
    # Other processes' ends come as no event on every system that the server runs on.
    while not has_ended(process):  # noqa: ASYNC110
        await asyncio.sleep(_POLL_S)


def _not_there(pid: int) -> LifetimeError:
    return LifetimeError(
        f"the server is to end with process {pid}, which does not run: name one that does (ends_with=, --ends-with or "
        f"{ENDS_WITH_VARIABLE}), or none, so that the server goes on until it is stopped"
    )
