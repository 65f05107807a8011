"""Position of a loop over batches, its stored form, and the checks when a loop resumes. No I/O."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from tensorage.errors import InvalidInputError
from tensorage.training.window import WindowCut
from tensorage.wording import quote

__all__ = ["EpochPlan", "Position", "read_state", "state_of"]

#: Version of the stored form.
_FORMAT = 1


@dataclass(frozen=True)
class EpochPlan:
    """Settings that decide which samples are in which batch of an epoch.

    Parameters
    ----------
    length
        Number of samples.
    shuffle
        True if samples are shuffled, or ``"shards"``.
    seed
        Seed of the order, if samples are shuffled.
    window
        Cut of the order, if it is that of a window.
    """

    length: int
    batch_size: int
    shuffle: bool | Literal["shards"]
    seed: int | None
    drop_last: bool
    window: WindowCut | None = None

    @property
    def batch_count(self) -> int:
        """Number of batches in an epoch."""
        whole, rest = divmod(self.length, self.batch_size)
        return whole + (rest > 0 and not self.drop_last)

    def places_from(self, position: Position) -> range:
        """Return the places in the order of the samples that an epoch visits from a position on."""
        after = min(self.batch_count * self.batch_size, self.length)
        return range(min(position.batch * self.batch_size, after), after)

    def as_json(self) -> dict[str, Any]:
        """Return the settings, of JSON's types. A window is named only where there is one."""
        settings = asdict(self)
        if self.window is None:
            del settings["window"]
        return settings


@dataclass(frozen=True)
class Position:
    """Position of the next batch: its epoch, and its number in the epoch."""

    epoch: int = 0
    batch: int = 0

    def after(self, batch_count: int) -> Position:
        """Return the position behind this batch."""
        if self.batch + 1 >= batch_count:
            return Position(self.epoch + 1, 0)
        return Position(self.epoch, self.batch + 1)


def state_of(plan: EpochPlan, position: Position) -> dict[str, Any]:
    """Return the stored form of a position, of JSON's types."""
    return {"format": _FORMAT, **asdict(position), **plan.as_json()}


def read_state(state: Mapping[str, Any], plan: EpochPlan) -> Position:
    """Read the position from its stored form, for the same plan.

    Raises
    ------
    InvalidInputError
        If the state is of another plan, or no such state.
    """
    # The state may come from a file of the user's, so it may be anything.
    if not (hasattr(state, "get") and state.get("format") == _FORMAT):
        raise InvalidInputError(f"start_at={quote(state)} is nothing that state() of batches gave")
    for name, value in plan.as_json().items():
        if state.get(name) != value:
            raise InvalidInputError(
                f"start_at is of batches with {name}={quote(state.get(name))}, and these have {name}={quote(value)}: "
                "going on would miss or repeat samples. Ask for the same batches, or begin anew without start_at"
            )
    epoch, batch = state.get("epoch"), state.get("batch")
    # An exact type, since True and False are integers too. An epoch without batches still has the position 0.
    if type(epoch) is int and type(batch) is int and epoch >= 0 and 0 <= batch < max(plan.batch_count, 1):
        return Position(epoch, batch)
    raise InvalidInputError(f"start_at names batch {quote(batch)} of epoch {quote(epoch)}: there is none")
