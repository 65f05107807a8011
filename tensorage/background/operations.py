"""What a background writer has taken and not done yet: what may begin, and what an error puts an end to. No I/O."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from tensorage.backend.wire.http import PARALLEL

__all__ = ["Failure", "Operation", "Operations", "error_to_raise", "listed"]

#: Operations at once: more threads would only take turns with the loop that the writing is to stay out of the way of.
MAX_UNDER_WAY = PARALLEL


@dataclass(eq=False)
class Operation:
    """A change of one array.

    Parameters
    ----------
    verb
        Before the key, for messages: ``storing``.
    nbytes
        Of memory that it holds until it is done.
    do
        Makes the change, and returns when it is committed.
    """

    verb: str
    key: str
    nbytes: int
    do: Callable[[], object]
    #: Whose it is: where its error belongs.
    giver: threading.Thread = field(default_factory=threading.current_thread)
    is_under_way: bool = False

    def __str__(self) -> str:
        return f"{self.verb} {self.key!r}"


@dataclass(eq=False)
class Failure:
    """An operation that failed.

    Parameters
    ----------
    operation
        What it was, in words: the array itself is not kept.
    dropped
        Operations of the same key that came behind it, and have not been done.
    giver
        The thread that is to hear of it first.
    """

    operation: str
    error: BaseException
    dropped: str
    giver: threading.Thread
    #: Whether it has been raised, if only in another thread.
    is_told: bool = False

    @classmethod
    def of(cls, operation: Operation, error: BaseException, dropped: Iterable[Operation]) -> Failure:
        return cls(str(operation), error, listed(dropped), operation.giver)

    def __str__(self) -> str:
        return f"{self.operation} failed" + (
            f"; dropped because of it: {self.dropped}" if self.dropped else ""
        )


@dataclass
class Operations:
    """Operations in the order in which they were given. Not safe for threads: whoever has it holds a lock.

    Those of one key are done one after the other. Those of different keys may be done at once.
    """

    max_in_flight: int
    max_bytes: int
    # A set that knows the order. All else is found out from it: nothing contradicts it, wherever an interrupt comes.
    _given: dict[Operation, None] = field(default_factory=dict)

    def __iter__(self) -> Iterator[Operation]:
        return iter(self._given)

    def __len__(self) -> int:
        return len(self._given)

    def __contains__(self, operation: Operation) -> bool:
        return operation in self._given

    @property
    def nbytes(self) -> int:
        return sum(operation.nbytes for operation in self._given)

    def have_room_for(self, operation: Operation) -> bool:
        """What is larger than all of the room is taken when there is nothing else."""
        if not self._given:
            return True
        return len(self) < self.max_in_flight and self.nbytes + operation.nbytes <= self.max_bytes

    def add(self, operation: Operation) -> None:
        self._given[operation] = None

    def next(self) -> Operation | None:
        """What may begin now."""
        if sum(operation.is_under_way for operation in self._given) >= MAX_UNDER_WAY:
            return None
        keys: set[str] = set()
        for operation in self._given:
            if operation.key not in keys and not operation.is_under_way:
                return operation
            keys.add(operation.key)
        return None

    def end(self, operation: Operation) -> None:
        """It is done, or has failed."""
        del self._given[operation]

    def drop(self, key: str | None = None) -> list[Operation]:
        """Take out what has not begun, of one key or of all."""
        dropped = [
            operation
            for operation in self._given
            if not operation.is_under_way and (key is None or operation.key == key)
        ]
        for operation in dropped:
            del self._given[operation]
        return dropped


def listed(operations: Iterable[Operation]) -> str:
    """Operations in words, in order, each kind once."""
    counts = Counter(str(operation) for operation in operations)
    return ", ".join(what if count == 1 else f"{what} ({count} times)" for what, count in counts.items())


def error_to_raise(failures: Sequence[Failure], refused: Operation | None = None) -> BaseException:
    """The first failure's error, with notes that say all of what failed.

    Parameters
    ----------
    refused
        What the call that raises it has not taken.
    """
    first, *others = failures
    notes = [f"background writer: {first}"]
    for other in others:
        notes.append(f"background writer: {other}, too: {type(other.error).__name__}: {other.error}")
    if refused is not None:
        notes.append(f"background writer: {refused} was not begun: if it is still wanted, give it again")
    # Raised in a second thread, it has some of them.
    for note in notes:
        if note not in getattr(first.error, "__notes__", ()):
            first.error.add_note(note)
    return first.error
