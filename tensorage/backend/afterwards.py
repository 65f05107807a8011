"""Work that a session does after its caller has gone on, such as sweeping what a large array has replaced."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from tensorage.errors import TensorageError

__all__ = ["Afterwards", "Leftovers"]

logger = logging.getLogger(__name__)

#: Seconds for which sweeping has to fail before users are told. The next write sweeps what a short failure has left.
LASTS_S = 30.0


class Leftovers:
    """Leftovers that a session knows of; and failures to sweep, told once in a session and only if they last.

    Safe to use from many threads, but for `named`, which belongs to the thread that sweeps.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._rows = self._objects = False
        #: Names of the objects that were deleted last.
        self.named: list[str] = []
        #: Time of the first of the failures in a row, by the monotonic clock.
        self._since: float | None = None
        self._is_told = False

    def note_left(self, *, rows: bool = False, objects: bool = False) -> bool:
        """Note that there are rows or objects to delete, beside those noted before. Tell whether there are any."""
        with self._lock:
            self._rows, self._objects = self._rows or rows, self._objects or objects
            return self._rows or self._objects

    @property
    def is_any(self) -> bool:
        """True if anything is noted as left."""
        return self.note_left()

    def take_rows(self) -> bool:
        """Tell whether there are rows to delete, and note none: whoever asks deletes some, and notes what stays."""
        with self._lock:
            taken, self._rows = self._rows, False
            return taken

    def take_objects(self) -> bool:
        """Tell whether there are objects to delete, and note none, as `take_rows` does."""
        with self._lock:
            taken, self._objects = self._objects, False
            return taken

    def note_swept(self) -> None:
        """Note that nothing is left."""
        with self._lock:
            self._since = None

    def note_failure(self, why: str) -> None:
        """Note that a write could not sweep."""
        with self._lock:
            now = time.monotonic()
            lasted_s = 0.0 if self._since is None else now - self._since
            is_to_be_told = self._since is not None and lasted_s >= LASTS_S and not self._is_told
            # The time of the first failure in a row, whichever one this is.
            self._since = now - lasted_s
            self._is_told = self._is_told or is_to_be_told
        if is_to_be_told:
            logger.warning(
                "objects that are not needed any more have stayed for %.0f s, and count against the quota: %s. Each "
                "write tries again, and this is not told again",
                lasted_s, why,
            )  # fmt: skip
        else:
            logger.info("objects that are not needed any more stay until the next write: %s", why)


class Afterwards:
    """One job in a thread of its own, in steps. It may be ended between two of them, and nothing is wrong then.

    Safe to use from many threads.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        #: Step of the job to do next, and the thread that does it.
        self._step: Callable[[], bool] | None = None
        self._thread: threading.Thread | None = None

    def begin(self, step: Callable[[], bool]) -> None:
        """Take steps until one returns False or fails. A job that is under way takes the new steps in place of its own.

        Parameters
        ----------
        step
            Takes a step, and tells whether another one is left. An error is logged, and ends the job.
        """
        with self._changed:
            self._step = step
            if self._thread is not None:
                return
            # The interpreter does not wait for it: a step that is under way is done by the backend anyhow.
            thread = threading.Thread(target=self._work, name="tensorage-afterwards", daemon=True)
            try:
                thread.start()
            except RuntimeError as error:
                # At its end, the interpreter starts no threads.
                logger.debug("left for the next write: %s", error)
                self._step = None
                return
            self._thread = thread

    def wait(self, within_s: float) -> None:
        """Wait some seconds for the end of the job, which goes on if they are not enough."""
        if threading.current_thread() is not self._thread:
            with self._changed:
                self._changed.wait_for(lambda: self._thread is None, within_s)

    def end(self, within_s: float) -> None:
        """Wait for the end of the job. After some seconds, take no further step, and wait for the one under way."""
        if threading.current_thread() is self._thread:
            return
        until = time.monotonic() + within_s
        with self._changed:
            self._changed.wait_for(lambda: self._thread is None, within_s)
            self._step = None
            # The same time again: a backend that is away is not waited for.
            self._changed.wait_for(lambda: self._thread is None, max(until + within_s - time.monotonic(), 0))

    def _work(self) -> None:
        while True:
            with self._changed:
                step = self._step
                if step is None:
                    self._thread = None
                    self._changed.notify_all()
                    return
            try:
                is_more = self._take(step)
            except BaseException:
                # Python tells of an error that nobody expects. The next job begins another thread.
                with self._changed:
                    self._step = self._thread = None
                    self._changed.notify_all()
                raise
            with self._changed:
                # Another write may have given new steps meanwhile, which are not done.
                if not is_more and self._step is step:
                    self._step = None

    @staticmethod
    def _take(step: Callable[[], bool]) -> bool:
        try:
            return step()
        except TensorageError as error:
            logger.info("left for the next write: %s", error)
            return False
