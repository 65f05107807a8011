"""Work in a child process that is forked from the test's."""

from __future__ import annotations

import os
from collections.abc import Callable


def fork(work: Callable[[], str]) -> Callable[[], str]:
    """Do something in a child process, and return a function that waits for what it gave."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.write(writer, work().encode())
            status = 0
        except BaseException as error:  # noqa: BLE001 - told to the parent
            os.write(writer, repr(error).encode())
        finally:
            # Leave the clean-up to pytest and the parent.
            os._exit(status)
    os.close(writer)

    def wait() -> str:
        with os.fdopen(reader) as pipe:
            said = pipe.read()
        _, status = os.waitpid(pid, 0)
        assert status == 0, said
        return said

    return wait
