"""Threads of a background writer, which do operations in order and keep errors for the threads that gave them.

A thread lives for as long as there are operations, and Python waits for it at its end. Taken operations are therefore
done even if nobody closes the writer, and an idle writer keeps nothing alive.
"""

from __future__ import annotations

import logging
import os
import threading
import warnings

from tensorage.backend.wire.patience import Hurry, end_waits_on
from tensorage.background.operations import (
    MAX_UNDER_WAY,
    Failure,
    Operation,
    Operations,
    describe_operations,
    error_to_raise,
)
from tensorage.errors import ClosedError
from tensorage.model.memory import describe_bytes

__all__ = ["Workers"]

#: Seconds of one wait. On Windows, Ctrl-C is noticed only between two waits.
WAIT_S = 1.0

logger = logging.getLogger("tensorage.background")


class Workers:
    """Does operations in threads of its own.

    Parameters
    ----------
    max_in_flight, max_bytes
        Most operations, and most bytes of their arrays, that are waiting or under way.
    """

    def __init__(self, max_in_flight: int, max_bytes: int) -> None:
        self._process = os.getpid()
        self.operations = Operations(max_in_flight, max_bytes)
        self._threads: set[threading.Thread] = set()
        self.failures: list[Failure] = []
        self._is_closed = False
        # True when nobody is left to raise errors to.
        self._is_left = False
        # Guards all of the above. A `threading.Condition` is written in Python, and Ctrl-C at the wrong moment would
        # leave its lock held. Both locks are reentrant, since a signal handler may write, too.
        self.lock = threading.RLock()
        # Begins when closing is interrupted. Operations under way wait for no backend any more then.
        self._hurry = Hurry()
        # One lock for each waiting thread, held until there is a change.
        self._waiters: list[threading.Lock] = []
        # Held by a thread that waits for room, so that small operations cannot take the room from a large one forever.
        self.entrance = threading.RLock()

    def check_open(self) -> None:
        """Refuse to work if the writer is closed or belongs to another process.

        Raises
        ------
        ClosedError
            If the writer has been closed, or belongs to another process.
        """
        if not self.is_here:
            # Locks are not touched here, since they may have been held when the process was forked.
            raise ClosedError(
                f"this background writer belongs to process {self._process}, whose threads are not in this one: "
                "make one here, with store.background(); nothing was written"
            )
        if self._is_closed:
            raise ClosedError(
                "the background writer is closed: make another one, with store.background(); nothing was written"
            )

    @property
    def is_here(self) -> bool:
        """False in a process that was forked off the process of this writer."""
        return os.getpid() == self._process

    def take(self, operation: Operation) -> None:
        """Take an operation, which is done later. Waits for room only.

        Raises
        ------
        ClosedError
            If the writer has been closed, perhaps while this call waited.
        BaseException
            If an earlier operation of this thread has failed. The new one is not taken then.
        """
        is_taken = False
        try:
            with self.entrance:
                while True:
                    with self.lock:
                        self.check_open()
                        self.raise_failures(refused=operation)
                        if self.operations.have_room_for(operation):
                            self.operations.add(operation)
                            is_taken = True
                            break
                        change = self.next_change()
                    _await(change)
            if not self._start_thread():
                self._work()
        except KeyboardInterrupt as interrupt:
            interrupt.add_note(f"background writer: {operation} {'was' if is_taken else 'was not'} taken")
            raise

    def flush(self) -> None:
        """Wait until all that was taken is committed.

        Raises
        ------
        BaseException
            If an operation has failed, of this thread, or of another one that has not got the error yet.
        """
        self.check_open()
        with self.lock:
            given = set(self.operations)
        try:
            self._wait_for(given)
        except KeyboardInterrupt as interrupt:
            with self.lock:
                unfinished = describe_operations(
                    operation for operation in self.operations if operation in given
                )
            interrupt.add_note(
                f"background writer: not waited for, and still going on: {unfinished or 'nothing'}"
            )
            raise
        self.raise_failures(of_all=True)

    def close(self) -> None:
        """Take no more operations, and wait until all are committed. In a forked process, do nothing.

        Raises
        ------
        BaseException
            If an operation has failed.
        """
        if not self.is_here:
            return
        self._is_closed = True
        with self.lock:
            self.notify()
            given = set(self.operations)
        try:
            self._wait_for(given)
        except KeyboardInterrupt as interrupt:
            self._give_up(interrupt)
            raise
        self.raise_failures(of_all=True)

    def leave(self) -> None:
        """Log the errors of a writer that is gone without having been closed.

        The interpreter calls this at its end, too: after its threads, unless waiting for them was interrupted.
        """
        if not self.is_here:
            return
        with self.lock:
            is_closed, self._is_closed, self._is_left = self._is_closed, True, True
            failures = [failure for failure in self.failures if not failure.is_told]
            unfinished = describe_operations(self.operations)
        for failure in failures:
            _log(failure)
        if unfinished and not threading.main_thread().is_alive():
            logger.error(
                "background writer: the interpreter ends before these are known to be done: %s", unfinished
            )
        if not is_closed:
            # Python warns of unclosed files in the same way. Taken operations are done all the same.
            warnings.warn("a background writer was not closed", ResourceWarning, stacklevel=2)

    def __str__(self) -> str:
        if not self.is_here:
            return f"of process {self._process}"
        with self.lock:
            count, nbytes = len(self.operations), self.operations.nbytes
        closed = "closed, " if self._is_closed else ""
        return f"{closed}{count} operation{'' if count == 1 else 's'} and {describe_bytes(nbytes)} in flight"

    # Errors -------------------------------------------------------------------------------------------

    def raise_failures(self, *, of_all: bool = False, refused: Operation | None = None) -> None:
        """Raise the failures of this thread's operations, and with `of_all` those that no thread has got yet.

        A thread gets the failures of its own operations even if another thread has got them before. Otherwise its flush
        would succeed although something is not written.
        """
        here = threading.current_thread()
        with self.lock:
            due = [one for one in self.failures if one.giver is here or (of_all and not one.is_told)]
            for failure in due:
                failure.is_told = True
            self.failures = [
                one
                for one in self.failures
                if one.giver is not here and (not one.is_told or one.giver.is_alive())
            ]
        if due:
            raise error_to_raise(due, refused)

    def _give_up(self, interrupt: KeyboardInterrupt) -> None:
        """Drop operations that have not begun, after an interrupt of `close`, and add notes to the interrupt."""
        with self.lock:
            dropped = describe_operations(self.operations.drop())
            unfinished = describe_operations(self.operations)
            failures = [failure for failure in self.failures if not failure.is_told]
            for failure in failures:
                failure.is_told = True
            self._is_left = True
        self._hurry.begin()
        if dropped:
            interrupt.add_note(f"background writer: not written: {dropped}")
        if unfinished:
            interrupt.add_note(f"background writer: not waited for, and under way: {unfinished}")
        for failure in failures:
            interrupt.add_note(
                f"background writer: {failure}: {type(failure.error).__name__}: {failure.error}"
            )

    # Threads ------------------------------------------------------------------------------------------

    def _wait_for(self, operations: set[Operation]) -> None:
        """Wait until all of these operations have ended."""
        while True:
            # A thread mostly runs already, but an interrupt may have come before it was started.
            if not self._start_thread():
                self._work()
            with self.lock:
                if not any(operation in self.operations for operation in operations):
                    return
                change = self.next_change()
            _await(change)

    def next_change(self) -> threading.Lock:
        """Return a lock that can be acquired once an operation has ended or the writer has been closed."""
        change = threading.Lock()
        change.acquire()
        self._waiters.append(change)
        return change

    def notify(self) -> None:
        """Wake all threads that wait for a change. The caller holds the lock."""
        waiters, self._waiters = self._waiters, []
        for change in waiters:
            change.release()

    def _start_thread(self) -> bool:
        """Start a thread, if there is work for one more. Return False if there is work, and no thread for it."""
        with self.lock:
            self._threads = {thread for thread in self._threads if thread.is_alive()}
            if self.operations.next() is None or len(self._threads) >= MAX_UNDER_WAY:
                return True
            # Python waits for threads at its end, but not for daemons.
            thread = threading.Thread(target=self._work, name="tensorage-background", daemon=False)
            self._threads.add(thread)
            try:
                thread.start()
            except RuntimeError:
                # The interpreter is ending, or the system has no more threads.
                self._threads.discard(thread)
            return bool(self._threads)

    def _work(self) -> None:
        """Do operations, until none may begin."""
        while True:
            with self.lock:
                operation = self.operations.next()
                if operation is None:
                    self._threads.discard(threading.current_thread())
                    return
                operation.is_under_way = True
            # The end of the last operation may have made room for several.
            self._start_thread()
            with end_waits_on(self._hurry):
                error = _do(operation)
            with self.lock:
                self.operations.end(operation)
                if error is not None:
                    self.add_failure(Failure.of(operation, error, self.operations.drop(operation.key)))
                self.notify()
            # Otherwise the array, and all that the traceback refers to, would stay in memory until the next operation.
            del operation, error

    def add_failure(self, failure: Failure) -> None:
        """Keep a failure for the thread that gave the operation, or log it if that cannot get it any more."""
        if self._is_left:
            _log(failure)
        else:
            self.failures.append(failure)


def _await(change: threading.Lock) -> None:
    change.acquire(timeout=WAIT_S)


def _do(operation: Operation) -> BaseException | None:
    """Do an operation, and return its error, if any."""
    try:
        operation.do()
    except BaseException as error:  # noqa: BLE001 - raised in the thread that gave the operation
        return error
    return None


def _log(failure: Failure) -> None:
    error = failure.error
    logger.error("background writer: %s: %s: %s", failure, type(error).__name__, error, exc_info=error)
