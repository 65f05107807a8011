"""The model: arrays that a store has to hold, and the verdict on those that it does hold.

Every writer has keys of its own, so that the state of these is known exactly after each of its operations. Arrays that
several writers append to are logs: each append is told from all others by its rows.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

#: Elements of a row.
ROW = 64

#: Rows of one append to a log are numbered, below this.
_LOG_ROWS = 1 << 20


@dataclass(frozen=True, eq=False)
class Stored:
    """An array with what belongs to it.

    Parameters
    ----------
    engine
        None where it does not matter.
    """

    array: Array
    attrs: Mapping[str, Any] = field(default_factory=dict)
    engine: str | None = None

    def __eq__(self, other: object) -> bool:
        """Compare to the bit: shape, dtype, elements, attributes, engine."""
        return (
            isinstance(other, Stored)
            and self.array.dtype == other.array.dtype
            and self.array.shape == other.array.shape
            and self.array.tobytes() == other.array.tobytes()
            and self.attrs == other.attrs
            and self.engine == other.engine
        )

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"{self.engine} {self.array.dtype}{list(self.array.shape)} {dict(self.attrs)}"


@dataclass(frozen=True)
class Unreadable:
    """An array that is there and cannot be read."""

    error: str


#: Arrays by key.
State = Mapping[str, Stored]

#: Arrays by key, as they were found.
Seen = Mapping[str, "Stored | Unreadable"]


class Outcome(enum.Enum):
    """End of an operation, as its writer sees it."""

    ACKNOWLEDGED = "acknowledged"
    #: An error that says why nothing has changed.
    REFUSED = "refused"
    #: The writer or the backend died.
    UNKNOWN = "unknown"


class Verdict(enum.Enum):
    """End of an operation, as the store shows it afterwards."""

    ACKNOWLEDGED = "acknowledged"
    #: Unacknowledged, and there as a whole.
    COMPLETED = "completed after"
    #: Unacknowledged, and nothing of it is there.
    NOT_THERE = "not there"
    #: Refused, and nothing of it is there.
    REFUSED = "refused"
    # Each of the rest is a fault.
    WRONG = "wrong"
    TORN = "torn"
    DOUBLED = "doubled"
    LOST = "lost"


FAULTS = (Verdict.WRONG, Verdict.TORN, Verdict.DOUBLED, Verdict.LOST)


class Change(Protocol):
    """The part of an operation that the model knows."""

    @property
    def keys(self) -> Sequence[str]:
        """Keys that it touches."""
        ...

    def then(self, state: State) -> State:
        """State after it."""
        ...


@dataclass(frozen=True)
class Difference:
    """A fault: the key, and both states in words."""

    key: str
    verdict: Verdict
    expected: str
    seen: str

    def __str__(self) -> str:
        return f"{self.verdict.value}: {self.key!r} should be {self.expected}, and is {self.seen}"


def judge(
    initial: State, changes: Sequence[Change], outcomes: Sequence[Outcome], seen: Seen
) -> tuple[list[Verdict], list[Difference]]:
    """Compare a writer's keys with what it was told.

    Parameters
    ----------
    changes
        In their order. The writer ended with the first one that was not acknowledged.
    outcomes
        Outcome of each change that was begun.

    Returns
    -------
    tuple
        A verdict for each outcome, and what is wrong.
    """
    states = [initial]
    for change in changes[: len(outcomes)]:
        states.append(change.then(states[-1]))
    is_sure = not outcomes or outcomes[-1] is Outcome.ACKNOWLEDGED
    verdicts = [Verdict.ACKNOWLEDGED] * len(outcomes)
    allowed = [states[-1]] if is_sure else [states[-2]]
    if not is_sure:
        verdicts[-1] = Verdict.REFUSED
        if outcomes[-1] is Outcome.UNKNOWN:
            allowed.append(states[-1])
            is_there = _equal(states[-1], seen)
            verdicts[-1] = Verdict.COMPLETED if is_there else Verdict.NOT_THERE
    if any(_equal(state, seen) for state in allowed):
        return verdicts, []
    differences = []
    for key in sorted({key for state in states for key in state} | set(seen)):
        if any(state.get(key) == seen.get(key) for state in allowed):
            continue
        at = _last_to_touch(key, changes[: len(outcomes)])
        after = states[-1] if at is None else states[at + 1]
        before = initial if at is None else states[at]
        verdict = _fault(before.get(key), after.get(key), seen.get(key), [state.get(key) for state in states])
        if verdict is Verdict.WRONG and _is_mix(
            seen.get(key), [stored for state in states for stored in state.values()]
        ):
            # Torn before it came to this key.
            verdict = Verdict.TORN
        if outcomes:
            # If none of them touches the key, the last one gets the verdict.
            verdicts[-1 if at is None else at] = verdict
        expected = " or ".join(dict.fromkeys(repr(state.get(key)) for state in allowed))
        differences.append(
            Difference(key, verdict, expected, _in_words(seen.get(key), before.get(key), after.get(key)))
        )
    if not differences:
        # Each key is as it may be, and not all of them together: one half of a renaming, say.
        verdicts[-1] = Verdict.TORN
        touched = ", ".join(changes[len(outcomes) - 1].keys)
        differences.append(Difference(touched, Verdict.TORN, "all or nothing", "half of it"))
    return verdicts, differences


def _equal(state: State, seen: Seen) -> bool:
    return state.keys() == seen.keys() and all(state[key] == seen[key] for key in state)


def _last_to_touch(key: str, changes: Sequence[Change]) -> int | None:
    return max((at for at, change in enumerate(changes) if key in change.keys), default=None)


def _fault(
    before: Stored | None,
    after: Stored | None,
    seen: Stored | Unreadable | None,
    earlier: Sequence[Stored | None],
) -> Verdict:
    if isinstance(seen, Unreadable):
        return Verdict.TORN
    if seen in earlier:
        # Also one that was refused and is there, or one that was undone.
        return Verdict.WRONG if seen == after else Verdict.LOST
    if seen is None or before is None or after is None:
        return Verdict.WRONG
    old, new, now = before.array, after.array, seen.array
    added = new[len(old) :]
    if len(added) and now.shape[1:] == new.shape[1:] and now.dtype == new.dtype:
        if len(now) == len(new) + len(added) and np.array_equal(now, np.concatenate([new, added])):
            return Verdict.DOUBLED
        if len(old) < len(now) < len(new) and np.array_equal(now, new[: len(now)]):
            return Verdict.TORN
    if now.shape == new.shape and now.dtype == new.dtype:
        is_of_either = now == new
        if old.shape == now.shape:
            is_of_either |= now == old
        if is_of_either.all() or (len(added) and is_of_either[: len(old)].all()):
            return Verdict.TORN
    return Verdict.WRONG


def _is_mix(seen: Stored | Unreadable | None, versions: Sequence[Stored]) -> bool:
    """True if each element is that of some version of the writer's arrays, though none of them as a whole."""
    if not isinstance(seen, Stored):
        return False
    arrays = [stored.array for stored in versions]
    same = [array for array in arrays if array.shape == seen.array.shape and array.dtype == seen.array.dtype]
    return (
        len(same) > 1
        and not any(np.array_equal(array, seen.array) for array in same)
        and bool(np.any([array == seen.array for array in same], axis=0).all())
    )


def _in_words(seen: Stored | Unreadable | None, before: Stored | None, after: Stored | None) -> str:
    if not isinstance(seen, Stored):
        return repr(seen)
    words = repr(seen)
    for name, other in (("before", before), ("after", after)):
        if other is not None and other.array.shape == seen.array.shape:
            rows = np.flatnonzero((other.array == seen.array).reshape(len(seen.array), -1).all(axis=1))
            words += f", {len(rows)} of {len(seen.array)} rows as {name}: {_ranges(rows)}"
    return words


def _ranges(rows: Array) -> str:
    runs = np.split(rows, np.flatnonzero(np.diff(rows) != 1) + 1)
    return ", ".join(f"{run[0]}..{run[-1]}" for run in runs if len(run)) or "none"


# Logs ---------------------------------------------------------------------------------------------------------


def log_rows(number: int, count: int) -> Array:
    """Rows of an append to a log that say which append they are of, and which of its rows."""
    rows = np.empty((count, ROW), "<i8")
    rows[...] = number * _LOG_ROWS + np.arange(count)[:, None]
    return rows


@dataclass(frozen=True)
class Entry:
    """An append to a log.

    Parameters
    ----------
    number
        No other entry of the log has the same one.
    writer
        Entries of one writer come in their order.
    """

    number: int
    count: int
    writer: int
    outcome: Outcome


def judge_log(
    key: str, entries: Sequence[Entry], seen: Stored | Unreadable | None
) -> tuple[list[Verdict], list[Difference]]:
    """Compare a log with the appends that several writers have made to it.

    Returns
    -------
    tuple
        A verdict for each entry, and what is wrong.
    """
    if not isinstance(seen, Stored) or seen.array.dtype != "<i8" or seen.array.shape[1:] != (ROW,):
        lost = Verdict.LOST if seen is None else Verdict.TORN
        return [lost] * len(entries), [Difference(key, lost, "a log", repr(seen))]
    if not (seen.array == seen.array[:, :1]).all():
        return [Verdict.TORN] * len(entries), [Difference(key, Verdict.TORN, "whole rows", "mixed rows")]
    found = [(int(value) // _LOG_ROWS, int(value) % _LOG_ROWS) for value in seen.array[:, 0]]
    verdicts = [_verdict_of_entry(entry, found) for entry in entries]
    differences = [
        Difference(key, verdict, f"with {entry}", f"of entries {_runs_of_entries(found)}")
        for entry, verdict in zip(entries, verdicts, strict=True)
        if verdict in FAULTS
    ]
    strangers = {number for number, _ in found} - {entry.number for entry in entries}
    if strangers:
        differences.append(
            Difference(key, Verdict.WRONG, "without strangers", f"with entries {sorted(strangers)}")
        )
    last: dict[int, int] = {}
    for entry in entries:
        if (entry.number, 0) in found:
            at = found.index((entry.number, 0))
            if at < last.get(entry.writer, -1):
                differences.append(
                    Difference(key, Verdict.WRONG, "in each writer's order", f"{entry} came too early")
                )
            last[entry.writer] = at
    return verdicts, differences


def _verdict_of_entry(entry: Entry, found: Sequence[tuple[int, int]]) -> Verdict:
    places = [at for at, (number, _) in enumerate(found) if number == entry.number]
    if not places:
        absent = {
            Outcome.ACKNOWLEDGED: Verdict.LOST,
            Outcome.REFUSED: Verdict.REFUSED,
            Outcome.UNKNOWN: Verdict.NOT_THERE,
        }
        return absent[entry.outcome]
    if len(places) > entry.count:
        return Verdict.DOUBLED
    whole = [(entry.number, row) for row in range(entry.count)]
    if list(found[places[0] : places[0] + entry.count]) != whole:
        return Verdict.TORN
    there = {
        Outcome.ACKNOWLEDGED: Verdict.ACKNOWLEDGED,
        Outcome.REFUSED: Verdict.WRONG,
        Outcome.UNKNOWN: Verdict.COMPLETED,
    }
    return there[entry.outcome]


def _runs_of_entries(found: Sequence[tuple[int, int]]) -> str:
    runs: list[list[int]] = []
    for number, row in found:
        if runs and runs[-1][0] == number and runs[-1][2] + 1 == row:
            runs[-1][2] = row
        else:
            runs.append([number, row, row])
    return ", ".join(f"{number}: rows {first}..{last}" for number, first, last in runs)
