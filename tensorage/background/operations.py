"""Operations that a background writer has taken and not done yet, and their failures. No I/O.

This module decides which operation may begin, and which operations an error drops.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from tensorage.backend.wire.http import PARALLEL

__all__ = ["Failure", "Operation", "Operations", "describe_operations", "error_to_raise"]

#: Most operations at once. More threads would only take time from the loop.
MAX_UNDER_WAY = PARALLEL


@dataclass(eq=False)
class Operation:
    """A change of one array.

    Parameters
    ----------
    verb
        Word before the key in messages, such as ``storing``.
    nbytes
        Bytes of memory that the operation holds until it is done.
    do
        Makes the change, and returns when the change is committed.
    """

    verb: str
    key: str
    nbytes: int
    do: Callable[[], object]
    #: Thread that gave the operation, and gets its error.
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
        Description of the operation. The array itself is not kept.
    dropped
        Description of later operations of the same key, which have not been done.
    giver
        Thread that gave the operation, and gets its error first.
    """

    operation: str
    error: BaseException
    dropped: str
    giver: threading.Thread
    #: True once the error has been raised, be it in another thread.
    is_told: bool = False

    @classmethod
    def of(cls, operation: Operation, error: BaseException, dropped: Iterable[Operation]) -> Failure:
        return cls(str(operation), error, describe_operations(dropped), operation.giver)

    def __str__(self) -> str:
        return f"{self.operation} failed" + (
            f"; dropped because of it: {self.dropped}" if self.dropped else ""
        )


@dataclass
class Operations:
    """Operations in the order in which they were given. The caller has to hold a lock.

    Operations of one key are done one after the other. Operations of different keys may be done at once.
    """

    max_in_flight: int
    max_bytes: int
    # A set in order. Everything else is derived from it, so that an interrupt at any point leaves no contradiction.
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
        """Tell whether an operation may be taken now. An operation larger than all of the room has to be alone."""
        if not self._given:
            return True
        return len(self) < self.max_in_flight and self.nbytes + operation.nbytes <= self.max_bytes

    def add(self, operation: Operation) -> None:
        self._given[operation] = None

    def next(self) -> Operation | None:
        """Return the operation that may begin now, if any."""
        if sum(operation.is_under_way for operation in self._given) >= MAX_UNDER_WAY:
            return None
        keys: set[str] = set()
        for operation in self._given:
            if operation.key not in keys and not operation.is_under_way:
                return operation
            keys.add(operation.key)
        return None

    def end(self, operation: Operation) -> None:
        """Remove an operation that is done or has failed."""
        del self._given[operation]

    def drop(self, key: str | None = None) -> list[Operation]:
        """Remove and return the operations that have not begun, of one key or of all."""
        dropped = [
            operation
            for operation in self._given
            if not operation.is_under_way and (key is None or operation.key == key)
        ]
        for operation in dropped:
            del self._given[operation]
        return dropped


def describe_operations(operations: Iterable[Operation]) -> str:
    """Describe operations, in order and each kind once, for messages."""
    counts = Counter(str(operation) for operation in operations)
    return ", ".join(what if count == 1 else f"{what} ({count} times)" for what, count in counts.items())


def error_to_raise(failures: Sequence[Failure], refused: Operation | None = None) -> BaseException:
    """Return the error of the first failure, with notes about all failures.

    Parameters
    ----------
    refused
        Operation that the raising call has not taken.
    """
    first, *others = failures
    notes = [f"background writer: {first}"]
    for other in others:
        notes.append(f"background writer: {other}, too: {type(other.error).__name__}: {other.error}")
    if refused is not None:
        notes.append(f"background writer: {refused} was not begun: if it is still wanted, give it again")
    # An error that has been raised in another thread already has some of the notes.
    for note in notes:
        if note not in getattr(first.error, "__notes__", ()):
            first.error.add_note(note)
    return first.error
