"""``python -m benchmarks``: measure, print a table, and write ``benchmarks/results/latest.json``."""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

import tensorage
from benchmarks.bench import Bench
from benchmarks.cases import CASES, ONLY_WHEN_NAMED, Case
from benchmarks.measure import Result
from tensorage.embedded import control
from tensorage.embedded.lifetime import ENDS_WITH_VARIABLE

RESULTS = Path(__file__).parent / "results" / "latest.json"


def main() -> int:
    """Measure, and return the exit status: 1 if a target is missed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    cases = {case.__name__: case for case in (*CASES, *ONLY_WHEN_NAMED)}
    usual = ", ".join(case.__name__ for case in CASES)
    named = ", ".join(case.__name__ for case in ONLY_WHEN_NAMED)
    parser.add_argument("cases", nargs="*", help=f"of {usual} (default: all of these), {named}")
    asked = parser.parse_args().cases
    if unknown := sorted(set(asked) - set(cases)):
        parser.error(f"there is no case {', '.join(unknown)}: choose of {', '.join(cases)}")
    # After SIGTERM, the run still stops its backends. After SIGKILL, its backends end by themselves.
    os.environ[ENDS_WITH_VARIABLE] = str(os.getpid())
    signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))
    begin = time.perf_counter()
    results = _measure([cases[name] for name in asked] or CASES)
    _save(results, time.perf_counter() - begin)
    missed = [result.case for result in results if result.is_met is False]
    if missed:
        print(f"missed: {', '.join(missed)}")
    return 1 if missed else 0


def _measure(cases: Sequence[Case]) -> list[Result]:
    results: list[Result] = []
    with ExitStack() as stack:
        data_dir = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tensorage-bench-"))) / "data"
        running = control.start(data_dir)
        stack.callback(control.stop, data_dir)
        session = tensorage.local(data_dir)
        stack.callback(session.logout)
        bench = Bench(running, session, stack)
        for case in cases:
            print(f"-- {case.__name__}: {(case.__doc__ or '').splitlines()[0]}", flush=True)
            for result in case(bench):
                print(_line(result), flush=True)
                results.append(result)
    return results


def _line(result: Result) -> str:
    low, high = result.spread
    verdict = ""
    if result.target is not None:
        sign, bound = result.target
        verdict = f"  {'met' if result.is_met else 'MISSED'}: {sign} {bound:g}"
    beside = "".join(f"; {_digits(value)} {unit}" for unit, value in result.beside.items())
    value, spread = _digits(result.value), f"({_digits(low)} to {_digits(high)})"
    return f"{result.case:<64} {value:>9} {result.unit:<9} {spread}{beside}{verdict}"


def _digits(value: float) -> str:
    """Return three digits, or more if there are more before the point.

    >>> _digits(0.12345), _digits(62720.4)
    ('0.123', '62,720')
    """
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _save(results: Sequence[Result], took_s: float) -> None:
    RESULTS.parent.mkdir(exist_ok=True)
    machine = {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "system": platform.system(),
        "cores": os.cpu_count(),
    }
    lines = [{**asdict(result), "is_met": result.is_met} for result in results]
    report = {"machine": machine, "took_s": round(took_s), "results": lines}
    RESULTS.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    sys.exit(main())
