"""Medians of repeated measurements."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Result:
    """One line of the report.

    Parameters
    ----------
    value
        Median of the repetitions, in `unit`.
    spread
        The smallest and the largest of them.
    target
        What the value has to reach: ``(">=", 0.5)``, or None where it is there for comparison.
    """

    case: str
    value: float
    unit: str
    spread: tuple[float, float]
    target: tuple[str, float] | None = None

    @property
    def is_met(self) -> bool | None:
        if self.target is None:
            return None
        sign, bound = self.target
        return self.value >= bound if sign == ">=" else self.value <= bound


def seconds(action: Callable[[], object]) -> float:
    begin = time.perf_counter()
    action()
    return time.perf_counter() - begin


def of(case: str, values: Sequence[float], unit: str, target: tuple[str, float] | None = None) -> Result:
    return Result(case, statistics.median(values), unit, (min(values), max(values)), target)


def ratio(case: str, values: Sequence[float], limits: Sequence[float], target: float) -> Result:
    """Median of the ratios of neighbouring repetitions: what slows the machine for a while slows both."""
    ratios = [value / limit for value, limit in zip(values, limits, strict=True)]
    return of(case, ratios, "of the limit", (">=", target))
