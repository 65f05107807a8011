"""How far a loop over batches has come: what is stored, and checked when a loop goes on from there. No I/O."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from tensorage.errors import InvalidInputError

__all__ = ["EpochPlan", "Position", "read_state", "state_of"]

#: Version of what `state_of` gives.
_FORMAT = 1


@dataclass(frozen=True)
class EpochPlan:
    """What an epoch is: which samples are in which batch follows from it.

    Parameters
    ----------
    length
        Samples.
    seed
        Of the order, if they are shuffled.
    """

    length: int
    batch_size: int
    shuffle: bool
    seed: int | None
    drop_last: bool

    @property
    def batch_count(self) -> int:
        """Batches of an epoch."""
        whole, rest = divmod(self.length, self.batch_size)
        return whole + (rest > 0 and not self.drop_last)


@dataclass(frozen=True)
class Position:
    """The next batch: its epoch, and its number in that."""

    epoch: int = 0
    batch: int = 0

    def after(self, batch_count: int) -> Position:
        """The position behind this batch."""
        if self.batch + 1 >= batch_count:
            return Position(self.epoch + 1, 0)
        return Position(self.epoch, self.batch + 1)


def state_of(plan: EpochPlan, position: Position) -> dict[str, Any]:
    """What has to be kept to go on from a position, as JSON can hold it."""
    return {"format": _FORMAT, **asdict(position), **asdict(plan)}


def read_state(state: Mapping[str, Any], plan: EpochPlan) -> Position:
    """The position that `state_of` gave, for the same plan.

    Raises
    ------
    InvalidInputError
        If it is of another plan, or no such state.
    """
    if not (hasattr(state, "get") and state.get("format") == _FORMAT):
        raise InvalidInputError(f"start_at={state!r} is nothing that state() of batches gave")
    for name, value in asdict(plan).items():
        if state.get(name) != value:
            raise InvalidInputError(
                f"start_at is of batches with {name}={state.get(name)!r}, and these have {name}={value!r}: "
                "going on would miss or repeat samples. Ask for the same batches, or begin anew without start_at"
            )
    epoch, batch = state.get("epoch"), state.get("batch")
    if type(epoch) is int and type(batch) is int and epoch >= 0 and 0 <= batch < max(plan.batch_count, 1):
        return Position(epoch, batch)
    raise InvalidInputError(f"start_at names batch {batch!r} of epoch {epoch!r}: there is none")
