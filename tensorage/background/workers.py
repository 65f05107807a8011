"""The threads of a background writer: they take operations, do them in order, and keep their errors for who gave them.

A thread is there for as long as there is something to do, and Python waits for it at its end. So what was taken is
done even if nobody closes the writer, and a writer with nothing to do keeps nothing alive.
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
    error_to_raise,
    listed,
)
from tensorage.errors import ClosedError
from tensorage.model.memory import describe_bytes

__all__ = ["Workers"]

#: Seconds of one wait. On Windows, Ctrl-C is heard only between two of them.
WAIT_S = 1.0

logger = logging.getLogger("tensorage.background")


class Workers:
    """Does operations in threads of its own.

    Parameters
    ----------
    max_in_flight, max_bytes
        Of the operations that are waiting or under way.
    """

    def __init__(self, max_in_flight: int, max_bytes: int) -> None:
        self._process = os.getpid()
        self.operations = Operations(max_in_flight, max_bytes)
        self._threads: set[threading.Thread] = set()
        self.failures: list[Failure] = []
        self._is_closed = False
        # Whether nobody is there any more to raise errors to.
        self._is_left = False
        # Guards all of the above. No `threading.Condition`: that is written in Python, and Ctrl-C at the wrong moment
        # leaves its lock held. Reentrant, as is the other one: a signal handler may write, too.
        self.lock = threading.RLock()
        # Begins when closing was interrupted: what is under way waits for no backend any more.
        self._hurry = Hurry()
        # Of those who wait for a change: each is held until there is one.
        self._waiters: list[threading.Lock] = []
        # Held by the one who waits for room: what is small must not take it from what is large again and again.
        self.entrance = threading.RLock()

    def check_open(self) -> None:
        """Refuse a writer that takes nothing.

        Raises
        ------
        ClosedError
            If it has been closed, or is another process's.
        """
        if not self.is_here:
            # No lock is touched: it may have been held when the process was forked.
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
        """False in a process that was forked off the one whose it is."""
        return os.getpid() == self._process

    def take(self, operation: Operation) -> None:
        """Do an operation later on. Waits for room, and no longer.

        Raises
        ------
        ClosedError
            If the writer has been closed, also while this waited.
        BaseException
            Of an earlier operation of this thread. Then this one is not taken.
        """
        is_taken = False
        try:
            with self.entrance:
                while True:
                    with self.lock:
                        self.check_open()
                        self._raise_failures(refused=operation)
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
            Of an operation: this thread's, or another's if it has not been raised there.
        """
        self.check_open()
        with self.lock:
            given = set(self.operations)
        try:
            self._wait_for(given)
        except KeyboardInterrupt as interrupt:
            with self.lock:
                unfinished = listed(operation for operation in self.operations if operation in given)
            interrupt.add_note(
                f"background writer: not waited for, and still going on: {unfinished or 'nothing'}"
            )
            raise
        self._raise_failures(of_all=True)

    def close(self) -> None:
        """Take nothing any more, and wait until all is committed. In another process, do nothing.

        Raises
        ------
        BaseException
            Of an operation.
        """
        if not self.is_here:
            return
        self._is_closed = True
        with self.lock:
            self._notify()
            given = set(self.operations)
        try:
            self._wait_for(given)
        except KeyboardInterrupt as interrupt:
            self._give_up(interrupt)
            raise
        self._raise_failures(of_all=True)

    def leave(self) -> None:
        """The writer is gone without having been closed: there is nobody any more to raise an error to.

        Also called when the interpreter ends: after its threads, unless waiting for those was interrupted.
        """
        if not self.is_here:
            return
        with self.lock:
            is_closed, self._is_closed, self._is_left = self._is_closed, True, True
            failures = [failure for failure in self.failures if not failure.is_told]
            unfinished = listed(self.operations)
        for failure in failures:
            _log(failure)
        if unfinished and not threading.main_thread().is_alive():
            logger.error(
                "background writer: the interpreter ends before these are known to be done: %s", unfinished
            )
        if not is_closed:
            # As for a file. What was taken is done all the same.
            warnings.warn("a background writer was not closed", ResourceWarning, stacklevel=2)

    def __str__(self) -> str:
        if not self.is_here:
            return f"of process {self._process}"
        with self.lock:
            count, nbytes = len(self.operations), self.operations.nbytes
        closed = "closed, " if self._is_closed else ""
        return f"{closed}{count} operation{'' if count == 1 else 's'} and {describe_bytes(nbytes)} in flight"

    # Errors -------------------------------------------------------------------------------------------

    def _raise_failures(self, *, of_all: bool = False, refused: Operation | None = None) -> None:
        """Raise what failed of this thread's operations; also of others', if they have not heard of it yet.

        The thread that gave an operation hears of its failure even if another one has. Otherwise it could flush,
        and believe that all is written.
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
        """Closing was interrupted: begin nothing any more, and say what that means."""
        with self.lock:
            dropped = listed(self.operations.drop())
            unfinished = listed(self.operations)
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
        """Wait until none of these is there any more."""
        while True:
            # Mostly there is one; but an interrupt may have come before it was started.
            if not self._start_thread():
                self._work()
            with self.lock:
                if not any(operation in self.operations for operation in operations):
                    return
                change = self.next_change()
            _await(change)

    def next_change(self) -> threading.Lock:
        """What can be acquired when an operation has ended, or the writer has been closed."""
        change = threading.Lock()
        change.acquire()
        self._waiters.append(change)
        return change

    def _notify(self) -> None:
        waiters, self._waiters = self._waiters, []
        for change in waiters:
            change.release()

    def _start_thread(self) -> bool:
        """Start a thread, if there is something for one more to do. False if nobody will do it."""
        with self.lock:
            self._threads = {thread for thread in self._threads if thread.is_alive()}
            if self.operations.next() is None or len(self._threads) >= MAX_UNDER_WAY:
                return True
            # No daemon, also if the thread that writes is one: Python waits for it at its end.
            thread = threading.Thread(target=self._work, name="tensorage-background", daemon=False)
            self._threads.add(thread)
            try:
                thread.start()
            except RuntimeError:
                # The interpreter is ending, or the system has no more of them.
                self._threads.discard(thread)
            return bool(self._threads)

    def _work(self) -> None:
        """Do what may begin, until there is nothing."""
        while True:
            with self.lock:
                operation = self.operations.next()
                if operation is None:
                    self._threads.discard(threading.current_thread())
                    return
                operation.is_under_way = True
            # The end of the one before may have made room for several.
            self._start_thread()
            with end_waits_on(self._hurry):
                error = _outcome(operation)
            with self.lock:
                self.operations.end(operation)
                if error is not None:
                    self._add_failure(Failure.of(operation, error, self.operations.drop(operation.key)))
                self._notify()
            # Neither the array nor, by its traceback, what the writing used is kept until the next one has come.
            del operation, error

    def _add_failure(self, failure: Failure) -> None:
        if self._is_left:
            _log(failure)
        else:
            self.failures.append(failure)


def _await(change: threading.Lock) -> None:
    change.acquire(timeout=WAIT_S)


def _outcome(operation: Operation) -> BaseException | None:
    try:
        operation.do()
    except BaseException as error:  # noqa: BLE001 - raised in the thread that gave the operation
        return error
    return None


def _log(failure: Failure) -> None:
    error = failure.error
    logger.error("background writer: %s: %s: %s", failure, type(error).__name__, error, exc_info=error)
