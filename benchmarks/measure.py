"""Medians of repeated measurements, taken in turns, and counts of HTTP requests."""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

#: Fewest repetitions behind a figure.
REPETITIONS = 5
MB = 1e6

Target = tuple[str, float]


@dataclass(frozen=True)
class Result:
    """One line of the report.

    Parameters
    ----------
    value
        Median of the repetitions, in `unit`.
    spread
        Smallest and largest repetition.
    target
        Bound that the value has to reach, such as ``(">=", 0.5)``; None for a value that is only compared.
    beside
        Other values that belong to the line, by their units.
    """

    case: str
    value: float
    unit: str
    spread: tuple[float, float]
    target: Target | None = None
    beside: Mapping[str, float] = field(default_factory=dict)

    @property
    def is_met(self) -> bool | None:
        if self.target is None:
            return None
        sign, bound = self.target
        return {">=": self.value >= bound, ">": self.value > bound, "<=": self.value <= bound}[sign]


@dataclass(frozen=True)
class Timed:
    """An action to measure, and another one to do before each repetition, outside of the measurement."""

    action: Callable[[], object]
    before: Callable[[], object] | None = None


def seconds(action: Callable[[], object]) -> float:
    begin = time.perf_counter()
    action()
    return time.perf_counter() - begin


def measure_in_turns(things: Mapping[str, Timed], repetitions: int = REPETITIONS) -> dict[str, list[float]]:
    """Measure the seconds of several things in turns, so that a slow phase of the machine slows all of them."""
    took: dict[str, list[float]] = {name: [] for name in things}
    for _ in range(repetitions):
        for name, thing in things.items():
            if thing.before is not None:
                thing.before()
            took[name].append(seconds(thing.action))
    return took


def median_of(case: str, values: Sequence[float], unit: str, target: Target | None = None) -> Result:
    return Result(case, statistics.median(values), unit, (min(values), max(values)), target)


def milliseconds(case: str, took_s: Sequence[float], target: Target | None = None) -> Result:
    return median_of(case, [1e3 * each for each in took_s], "ms", target)


def rates(case: str, nbytes: int, took_s: Sequence[float], target: Target | None = None) -> Result:
    return median_of(case, [nbytes / MB / each for each in took_s], "MB/s", target)


def ratio(
    case: str, values: Sequence[float], others: Sequence[float], target: Target | None, unit: str = "x"
) -> Result:
    """Return the median of ratios of neighbouring repetitions, which a slow phase of the machine slows alike."""
    return median_of(case, [value / other for value, other in zip(values, others, strict=True)], unit, target)


class _Counter(logging.Handler):
    count = 0

    def emit(self, record: logging.LogRecord) -> None:
        # urllib3 logs new connections, too. Only the line of an answer has the version of the protocol.
        self.count += " HTTP/" in record.getMessage()


def count_requests(action: Callable[[], object]) -> int:
    """Count the HTTP requests of an action. h5pyd sends them by urllib3, and tensorage small ones past it."""
    loggers = [logging.getLogger(name) for name in ("urllib3.connectionpool", "tensorage.backend.wire.http")]
    counter, levels = _Counter(), [logger.level for logger in loggers]
    for logger in loggers:
        logger.addHandler(counter)
        logger.setLevel(logging.DEBUG)
        logger.propagate = False
    try:
        action()
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.removeHandler(counter)
            logger.setLevel(level)
            logger.propagate = True
    return counter.count
