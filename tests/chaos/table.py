"""The table: each operation in each engine, and a count of each end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from chaos.model import Verdict
from chaos.plan import SUBJECTS, Target
from chaos.rounds import Result

_VERDICTS = tuple(Verdict)


class Table:
    """Counts of what was met by kills."""

    def __init__(self) -> None:
        self.rounds = 0
        self.bad_rounds = 0
        self._counts: Counter[tuple[str, str, str]] = Counter()

    def add(self, result: Result) -> None:
        self.rounds += 1
        self.bad_rounds += bool(result.problems)
        for met in result.met:
            row = (met.kind, met.engine)
            self._counts[*row, "rounds"] += 1
            self._counts[*row, result.plan.kill.target.value] += 1
            self._counts[*row, met.verdict.value] += 1

    def total(self, column: str) -> int:
        return sum(count for (_, _, name), count in self._counts.items() if name == column)

    def __str__(self) -> str:
        columns = ["rounds", *(target.value for target in Target), *(verdict.value for verdict in _VERDICTS)]
        heads = ["operation", "engine", "rounds", *(f"killed {target.value}" for target in Target)]
        heads += [verdict.value for verdict in _VERDICTS]
        rows = [
            [kind, engine, *(self._counts[kind, engine, name] for name in columns)]
            for kind, engine in SUBJECTS
        ]
        rows.append(["all", "both", *(self.total(name) for name in columns)])
        return _as_text([heads, *([str(cell) for cell in row] for row in rows)])


def _as_text(rows: list[list[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [_line(row, widths) for row in rows]
    rule = "|".join("-" * (width + 2) for width in widths)
    return "\n".join([lines[0], f"|{rule}|", *lines[1:]])


def _line(cells: Iterable[str], widths: Iterable[int]) -> str:
    padded = (
        cell.ljust(width) if at < 2 else cell.rjust(width)
        for at, (cell, width) in enumerate(zip(cells, widths, strict=True))
    )
    return "| " + " | ".join(padded) + " |"
