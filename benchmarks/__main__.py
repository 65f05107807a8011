"""``python -m benchmarks``: measure, print a table, and write ``benchmarks/results/latest.json``."""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

import tensorage
from benchmarks.cases import CASES
from benchmarks.measure import Result
from tensorage.embedded import control

RESULTS = Path(__file__).parent / "results" / "latest.json"


def main() -> int:
    """Exit status 1 if a target is missed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "cases", nargs="*", help=f"of {', '.join(case.__name__ for case in CASES)}; default: all"
    )
    chosen = parser.parse_args().cases
    results: list[Result] = []
    with tempfile.TemporaryDirectory(prefix="tensorage-bench-") as parent:
        data_dir = Path(parent) / "data"
        running = control.start(data_dir)
        try:
            session = tensorage.local(data_dir)
            for case in CASES:
                if not chosen or case.__name__ in chosen:
                    for result in case(running, session):
                        print(_line(result), flush=True)
                        results.append(result)
            session.logout()
        finally:
            control.stop(data_dir)
    RESULTS.parent.mkdir(exist_ok=True)
    machine = {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "system": platform.system(),
    }
    report = {"machine": machine, "results": [{**asdict(r), "is_met": r.is_met} for r in results]}
    RESULTS.write_text(json.dumps(report, indent=2))
    missed = [result.case for result in results if result.is_met is False]
    if missed:
        print(f"missed: {', '.join(missed)}")
    return 1 if missed else 0


def _line(result: Result) -> str:
    low, high = result.spread
    verdict = ""
    if result.target is not None:
        sign, bound = result.target
        verdict = f"  {'met' if result.is_met else 'MISSED'}: {sign} {bound:g}"
    return f"{result.case:<50} {result.value:>9.3g} {result.unit:<12} ({low:.3g} to {high:.3g}){verdict}"


if __name__ == "__main__":
    sys.exit(main())
