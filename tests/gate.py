"""A gate that holds back what a backend is asked, and a way to see that a thread waits: no test has to sleep."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable

PATIENCE_S = 60


class Gate:
    """Stands before the server: while it is closed, requests come and wait. Requests to sign in and out pass."""

    def __init__(self) -> None:
        self._open = threading.Event()
        self._open.set()
        self._came = threading.Semaphore(0)
        #: Hook that is called for each request, before it waits.
        self.watches: Callable[[], object] = lambda: None

    def __call__(self, head: bytes) -> bytes:
        if b"/auth/" not in head.partition(b"\r\n")[0]:
            self.watches()
            if not self._open.is_set():
                self._came.release()
                assert self._open.wait(PATIENCE_S)
        return head

    def close(self) -> None:
        self._open.clear()

    def open(self) -> None:
        self._open.set()

    def wait_for(self, requests: int) -> None:
        """Wait until so many more requests have come and wait."""
        for _ in range(requests):
            assert self._came.acquire(timeout=PATIENCE_S)


def wait_until_in(thread: threading.Thread, function: str) -> None:
    """Wait until a background writer makes a thread wait, in a call of that name."""
    until = time.monotonic() + PATIENCE_S
    assert thread.ident is not None
    while time.monotonic() < until:
        frame = sys._current_frames().get(thread.ident)
        names = []
        while frame is not None:
            names.append(frame.f_code.co_name)
            frame = frame.f_back
        if names[:1] == ["_await"] and function in names:
            return
        time.sleep(0.001)
    raise AssertionError(f"{thread.name} is not in {function}, but in {names}")
