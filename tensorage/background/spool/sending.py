"""Sending of what waits in a spool, by threads of the process that writes to it or of one that comes later.

A thread goes through the entries in order, and gives them to workers, a few at a time. It holds the lock of sending
meanwhile, and ends when nothing is left: no process holds the lock and idles. A process that adds an entry then
tries to get the lock. One that gives it up looks once more, so that no entry is overlooked between the two.

Three kinds of errors end the sending of an entry:

* an error that will not pass by itself, such as a key that is taken, is noted beside the entry. The entry stays, and
  so do later ones of the same key. Other keys go on;
* a backend that is away, or refuses the login, ends the sending of all. It begins again with a later call;
* a damaged entry ends the sending of all that comes after it.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from tensorage.backend.staging import as_operation
from tensorage.backend.transfer import Transfer
from tensorage.backend.wire.patience import Hurry, end_waits_on
from tensorage.background.changes import Change, Stores
from tensorage.background.operations import Failure, Operation
from tensorage.background.spool.entry import DamagedFileError, EntryFile
from tensorage.background.spool.folder import SpoolFolder
from tensorage.background.workers import Workers
from tensorage.errors import (
    AuthenticationError,
    BackendUnavailableError,
    SchemaError,
    SpoolError,
    SpoolFullError,
    TensorageError,
)

__all__ = ["Sender", "count_entries"]

logger = logging.getLogger("tensorage.background")

#: Errors that say nothing of one entry: all wait.
_HALTING = (BackendUnavailableError, AuthenticationError, SchemaError, SpoolError)

#: Entries that are given to the workers ahead. Their elements stay on the disk.
WINDOW = 16

#: Operations that are done before the database is told that it may forget them, in one request.
ACKNOWLEDGE_AFTER = 64

#: Most operations that the database names, and is told of, in one request.
_PAGE = 10000

#: Seconds after an outage before a call tries again: first, and at most.
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 60.0

#: Seconds after which a wait for another process is logged.
TELL_AFTER_S = 10.0

#: Seconds between two looks at what another process is sending.
POLL_S = 0.1


@dataclass(frozen=True)
class _Given:
    """An entry that was given in this process."""

    what: str
    giver: threading.Thread = field(default_factory=threading.current_thread)


class Sender:
    """Sends the entries of a spool in order, one after the other for each key.

    Parameters
    ----------
    stores
        Stores of the user whose spool it is.
    workers
        Keeps failures for the threads that gave the entries.
    on_done
        Called for each entry that is done.
    """

    def __init__(
        self,
        folder: SpoolFolder,
        stores: Stores,
        workers: Workers,
        on_done: Callable[[EntryFile], object] = lambda _entry: None,
    ) -> None:
        self.folder = folder
        self._stores: Stores | None = stores
        self._workers = workers
        self._on_done = on_done
        self._window = Workers(WINDOW, 1)
        self._hurry = Hurry()
        #: Entries given here that are neither done nor refused, and those of them that have not been sent yet.
        self._given: dict[int, _Given] = {}
        self._fresh: set[int] = set()
        #: Entries that have a number, and no file yet.
        self._adding: set[int] = set()
        self._failed_here = 0
        #: True once a closed writer has said what is left.
        self.is_told = False
        #: Entries that wait behind a refused one of the same key, with its number.
        self._behind: dict[int, int] = {}
        self._refused: dict[str, int] = {}
        self._thread: threading.Thread | None = None
        self._is_kicked = self._is_elsewhere = self.is_stopped = False
        #: Error for which all wait, number of such errors so far, and the time at which a call tries again.
        self._halt: TensorageError | None = None
        self._halts = self._failed_tries = 0
        self._again_at = 0.0
        #: Operations that were done before this process knew of them; None until the database has been asked.
        self._done_before: set[str] | None = None
        self._has_asked = False
        self._to_acknowledge: list[str] = []
        self._acknowledging = threading.Lock()

    # Calls of the loop ----------------------------------------------------------------------------------

    def give(self, change: Change) -> None:
        """Add a change to the spool, and have it sent.

        Raises
        ------
        SpoolError
            If it cannot be added.
        """
        given = _Given(str(change))
        # A list that `register` fills: the number is known before `add` returns, and also if it raises.
        number: list[int] = []

        def register(this: int) -> None:
            number.append(this)
            with self._workers.lock:
                self._given[this] = given
                self._fresh.add(this)
                self._adding.add(this)

        try:
            self.folder.add(change, register)
        except BaseException:
            with self._workers.lock:
                for this in number:
                    # The error may have come after the file got its name. Such an entry is sent, and waited for.
                    if not self.folder.has(this):
                        self._given.pop(this, None)
            raise
        finally:
            with self._workers.lock:
                self._adding.difference_update(number)
        self.kick()

    def kick(self, *, at_once: bool = False) -> None:
        """See that a thread sends what is there, unless all have to wait.

        Parameters
        ----------
        at_once
            Try again now, even if the backend was away a moment ago.
        """
        with self._workers.lock:
            if self.is_stopped or (not at_once and time.monotonic() < self._again_at):
                return
            self._is_kicked = True
            if self._thread is not None and self._thread.is_alive():
                return
            # Python waits for it at its end: what was given is sent then, as without a spool.
            self._thread = threading.Thread(target=self._run, name="tensorage-spool", daemon=False)
            try:
                self._thread.start()
            except RuntimeError:
                # The interpreter is ending, or the system has no more threads. The entries stay.
                self._thread = None

    def flush(self) -> None:
        """Wait until all that was given here is committed, or cannot be for now.

        Raises
        ------
        BaseException
            If an entry was refused, or the backend is away for longer than requests wait for it.
        """
        with self._workers.lock:
            # Counted now: an outage before this call is tried again, and only one after it is raised.
            numbers, halts = set(self._given), self._halts
        self._wait_for(numbers, halts)
        self._workers.raise_failures(of_all=True)
        self._raise_behind(numbers)

    def send_all(self) -> None:
        """Send all entries that are there, whoever gave them.

        Raises
        ------
        TensorageError
            If the backend is away or refuses the login, or an entry is damaged.
        """
        self.kick(at_once=True)
        self._join_thread()
        if self._halt is not None:
            raise self._halt
        self._acknowledge()

    def stop(self, *, in_a_hurry: bool = False) -> None:
        """Send no further entries. They stay in the folder.

        Parameters
        ----------
        in_a_hurry
            End the waits for a backend that is away.
        """
        with self._workers.lock:
            self.is_stopped = True
        if in_a_hurry:
            self._hurry.begin()

    def join(self) -> None:
        """Wait for the end of what is under way, tell the database what it may forget, and give up the login."""
        self._join_thread()
        self._acknowledge()
        self._stores = None

    def _join_thread(self) -> None:
        with self._workers.lock:
            thread = self._thread
        while thread is not None and thread.is_alive():
            thread.join(1.0)

    @property
    def left(self) -> int:
        """Entries given here that are still in the folder."""
        with self._workers.lock:
            return len(self._given) + self._failed_here

    def describe_left(self) -> str:
        """Describe the entries given here that are left, for messages; an empty text if there are none."""
        count = self.left
        return f"{count_entries(count)} left in the spool {self.folder.path}" if count else ""

    # Waiting --------------------------------------------------------------------------------------------

    def _wait_for(self, numbers: set[int], halts: int) -> None:
        self.kick(at_once=True)
        tell_at = time.monotonic() + TELL_AFTER_S
        while True:
            with self._workers.lock:
                rest = {number for number in numbers if number in self._given and number not in self._behind}
                is_running = self._thread is not None and self._thread.is_alive()
                if not rest or (self.is_stopped and not is_running):
                    return
                if self._halts > halts and self._halt is not None:
                    raise self._with_notes(self._halt)
                is_elsewhere = self._is_elsewhere
                change = self._workers.next_change()
            if is_elsewhere:
                # The other process tells nobody what it has sent: the folder has to be looked at.
                self._look_for_given()
                if time.monotonic() > tell_at:
                    tell_at = float("inf")
                    sender = self.folder.sender()
                    logger.warning("waiting for %s, which sends the spool in %s", sender, self.folder.path)
            if not is_running:
                self.kick(at_once=True)
            change.acquire(timeout=POLL_S if is_elsewhere else 1.0)

    def _look_for_given(self) -> None:
        """Look at what another process has done with the entries that were given here."""
        with self._workers.lock:
            # Before the folder is listed: an entry that comes later is in neither.
            given = set(self._given) - self._adding
        if not given:
            return
        failed, there = self.folder.failed_numbers(), set(self.folder.numbers())
        for number in given - there:
            self._forget(number)
        for number in given & there & failed:
            if (said := self.folder.failure(number)) is not None:
                self._note_failure(number, _error_like(said.error, said.message), is_here=False)

    def _raise_behind(self, numbers: set[int]) -> None:
        with self._workers.lock:
            kept = {number: self._behind[number] for number in numbers if number in self._behind}
        for number, refused in kept.items():
            failed = self.folder.failure(refused)
            raise SpoolError(
                f"entry {number} of the spool in {self.folder.path} waits behind entry {refused} of the same key, "
                f"which failed ({failed}). {self._advice(refused)}"
            )

    def _with_notes(self, error: TensorageError) -> TensorageError:
        note = f"background writer: {self.describe_left()}: `tensorage sync {self.folder.path}` sends what is there"
        if note not in getattr(error, "__notes__", ()):
            error.add_note(note)
        return error

    def _advice(self, number: int) -> str:
        command = f"tensorage sync {self.folder.path}"
        return f"`{command} --retry` sends it again, `{command} --drop {number}` deletes it"

    # Sending --------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            with self._workers.lock:
                if self.is_stopped or not self._is_kicked:
                    self._thread = None
                    self._workers.notify()
                    break
                self._is_kicked = False
            try:
                # Requests that wait for the backend give up when the writer is closed in a hurry.
                with end_waits_on(self._hurry):
                    self._send_what_is_there()
            except TensorageError as error:
                self._halt_with(error)
            except Exception as error:  # A thread has nobody to raise it to.
                logger.exception("background writer: the spool in %s is not sent", self.folder.path)
                self._halt_with(SpoolError(f"the spool in {self.folder.path} is not sent: {error!r}"))
        if self.is_stopped:
            self._acknowledge()
            # The login is not needed any more.
            self._stores = None
        elif not threading.main_thread().is_alive():
            self._acknowledge()

    def _send_what_is_there(self) -> None:
        with self.folder.sending() as is_held:
            self._is_elsewhere = not is_held
            if not is_held:
                return
            with self._workers.lock:
                self._halt = None
                self._behind.clear()
            self._refused.clear()
            if not self._has_asked:
                self._ask_what_was_done()
            try:
                last = self._go_through()
            finally:
                self._window.flush()
                # Not kept: without the lock, another process may send, and this knowledge is an old one.
                self._done_before = None
        if len(self._to_acknowledge) >= ACKNOWLEDGE_AFTER:
            self._acknowledge()
        self._look_for_given()
        # Somebody may have added an entry, and found the lock held.
        if not self._is_waiting and any(number > last for number in self.folder.numbers()):
            self._is_kicked = True

    def _go_through(self) -> int:
        """Give all entries to the workers, in order, and return the number of the last one."""
        last = 0
        while not self._is_waiting and (rest := [n for n in self.folder.numbers() if n > last]):
            failed = self.folder.failed_numbers()
            for number in rest:
                if self._is_waiting:
                    return last
                self._pass_to_workers(number, is_failed=number in failed)
                last = number
        if not self._is_waiting:
            self._window.flush()
        with self._workers.lock:
            # Workers have left entries if all wait by now: the database has to remember what was done of these.
            if not self._is_waiting:
                # Operations without an entry: their process ended before it could tell the database.
                self._to_acknowledge += self._done_before or ()
        return last

    @property
    def _is_waiting(self) -> bool:
        return self._halt is not None or self.is_stopped

    def _pass_to_workers(self, number: int, *, is_failed: bool) -> None:
        entry = self.folder.read(number)
        if entry is None:
            return
        lane = _lane_of(entry)
        with self._workers.lock:
            refused = self._refused.get(lane)
            if is_failed:
                self._refused.setdefault(lane, number)
            if is_failed or refused is not None:
                if refused is not None:
                    self._behind[number] = refused
                # It may be begun: the database has to remember it.
                if self._done_before is not None:
                    self._done_before.discard(entry.operation)
                return
            is_fresh = number in self._fresh
            self._fresh.discard(number)
        if not is_fresh and self._done_before is None:
            self._ask_what_was_done()
        self._window.take(Operation(entry.verb, lane, 0, partial(self._send, entry, lane)))

    def _send(self, entry: EntryFile, lane: str) -> None:
        """Make the change of an entry, and delete the entry; or note why not."""
        with self._workers.lock:
            refused = self._refused.get(lane)
            if refused is not None:
                self._behind[entry.number] = refused
            if self._is_waiting or refused is not None or self._stores is None:
                return
            stores = self._stores
        try:
            with end_waits_on(self._hurry):
                self._make(entry, stores)
                self._finish(entry)
        except _HALTING as error:
            self._halt_with(error)
        except BaseException as error:  # noqa: BLE001 - noted beside the entry, and raised to the giver
            self._refuse(entry, lane, error)
        else:
            # Called outside of `try`: an error in the callback is no failure of the entry, which is already deleted.
            self._on_done(entry)

    def _make(self, entry: EntryFile, stores: Stores) -> None:
        is_done = self._is_done_before(entry)
        try:
            change = entry.change()
        except DamagedFileError as error:
            raise self.folder.damaged_error(entry.number, error) from error
        if is_done and not change.has_steps:
            return
        with as_operation(entry.operation):
            try:
                change.make(stores, is_begun=is_done)
            except Exception as error:
                # An answer that was lost leaves a change that is done, and the array may be another one by now. Another
                # process may have ended in the middle.
                if is_done or isinstance(error, _HALTING) or not self._was_done(entry):
                    raise
                if change.has_steps:
                    change.make(stores, is_begun=True)

    def _finish(self, entry: EntryFile) -> None:
        self.folder.remove(entry.number)
        with self._workers.lock:
            # Only now that the entry is deleted: if the database forgot the operation first, an entry that is still
            # there would make the change once more.
            self._to_acknowledge.append(entry.operation)
            self._again_at, self._failed_tries = 0.0, 0
        self._forget(entry.number)

    def _forget(self, number: int) -> None:
        with self._workers.lock:
            self._given.pop(number, None)
            self._workers.notify()

    def _refuse(self, entry: EntryFile, lane: str, error: BaseException) -> None:
        """Note the error of an entry, behind which others of the same key wait."""
        with self._workers.lock:
            # Before the note is written: workers that have later entries of the key look here.
            self._refused[lane] = entry.number
        try:
            self.folder.fail(entry.number, error)
        except SpoolFullError as unwritten:
            # Entries of other keys make room when they are sent. This one is refused again until its error finds some.
            logger.warning("background writer: an error is not noted for now: %s", unwritten)
        except SpoolError as unwritten:
            self._halt_with(unwritten)
            return
        self._note_failure(entry.number, error, is_here=True, what=str(entry))

    def _note_failure(self, number: int, error: BaseException, *, is_here: bool, what: str = "") -> None:
        with self._workers.lock:
            given = self._given.pop(number, None)
            where = f"entry {number} of the spool {self.folder.path}"
            if given is not None:
                self._failed_here += 1
                error.add_note(f"background writer: kept as {where}. {self._advice(number)}")
                self._workers.add_failure(Failure(given.what, error, "", given.giver))
            elif is_here:
                logger.error(
                    "background writer: %s (%s) failed: %s: %s", where, what, type(error).__name__, error
                )
            self._workers.notify()

    def _halt_with(self, error: TensorageError) -> None:
        with self._workers.lock:
            if self._halt is None and not self.is_stopped:
                logger.warning("background writer: the spool in %s waits: %s", self.folder.path, error)
            self._halt = error
            self._halts += 1
            pause_s = min(FIRST_PAUSE_S * 2.0 ** min(self._failed_tries, 10), LONGEST_PAUSE_S)
            self._failed_tries += 1
            self._again_at = time.monotonic() + pause_s
            # Requests that were under way may have done their work.
            self._has_asked = False
            self._workers.notify()
            if not self.is_stopped and isinstance(error, BackendUnavailableError):
                self._kick_after(pause_s)

    def _kick_after(self, pause_s: float) -> None:
        """Try again after a pause, also if no call comes. A daemon does it, which keeps no program alive."""
        timer = threading.Timer(pause_s, self.kick)
        timer.daemon = True
        # The interpreter may be ending, or the system have no more threads. A later call tries again then.
        with contextlib.suppress(RuntimeError):
            timer.start()

    # The database's memory ------------------------------------------------------------------------------

    def _is_done_before(self, entry: EntryFile) -> bool:
        with self._workers.lock:
            if self._done_before is None or entry.operation not in self._done_before:
                return False
            self._done_before.discard(entry.operation)
            return True

    def _ask_what_was_done(self) -> None:
        """Ask the database which operations of this spool it has done and remembers."""
        first, last = self.folder.operations()
        done: set[str] = set()
        while True:
            page = self._ask_answered(first, last)
            done.update(page)
            if len(page) < _PAGE:
                break
            # The last one comes once more, which a set does not mind.
            first = page[-1]
        with self._workers.lock:
            self._done_before = done
            self._has_asked = True

    def _was_done(self, entry: EntryFile) -> bool:
        return bool(self._ask_answered(entry.operation, entry.operation))

    def _ask_answered(self, first: str, last: str) -> list[str]:
        transfer = self._transfer()
        if transfer is None:
            return []
        ids: list[str] = transfer.call("tensorage_answered", {"first": first, "last": last}, self._asked)
        return ids

    def _acknowledge(self) -> None:
        """Tell the database which operations will not be sent again. After a failure, a later process does."""
        # The thread that closes the writer waits here for the one that has taken the operations.
        with self._acknowledging:
            self._acknowledge_taken()

    def _acknowledge_taken(self) -> None:
        with self._workers.lock:
            transfer = self._transfer()
            done, self._to_acknowledge = self._to_acknowledge, []
        if not done or transfer is None or self._halt is not None:
            return
        try:
            # An entry must not come back after a crash of the machine once its operation may be forgotten.
            self.folder.settle()
            for first in range(0, len(done), _PAGE):
                some = done[first : first + _PAGE]
                transfer.call("tensorage_acknowledge", {"operations": some}, self._asked)
        except TensorageError as error:
            logger.info(
                "the database keeps the answers of %s for longer: %s", count_entries(len(done)), error
            )
            self._has_asked = False

    def _transfer(self) -> Transfer | None:
        return None if self._stores is None else self._stores.first.arrays.project.transfer

    @property
    def _asked(self) -> str:
        return f"sending the spool in {self.folder.path}"


def count_entries(count: int) -> str:
    """Return a number of entries in words."""
    return f"{count} {'entry' if count == 1 else 'entries'}"


def _lane_of(entry: EntryFile) -> str:
    """Name the array whose changes are made in order: a key of an owner."""
    owner = entry.header["change"]["settings"]["owner"]
    return f"{owner or ''}\0{entry.key}"


def _error_like(name: str, message: str) -> BaseException:
    """Return an error that another process got, of its own class if that is one of ours."""
    from tensorage import errors

    kind = getattr(errors, name, None)
    is_ours = isinstance(kind, type) and issubclass(kind, TensorageError)
    return kind(message) if is_ours and kind is not None else SpoolError(f"{name}: {message}")
