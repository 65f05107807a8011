"""A line in a process of its own: JSON by JSON, a line each, it takes what it is asked, and prints its answer.

The first one is the line's parameters. ``"counts"`` and ``"drop"`` may follow. The end of the input ends the line.
"""

from __future__ import annotations

import json
import sys

from benchmarks.network.line import Counts, Line


def main() -> None:
    questions = map(json.loads, sys.stdin)
    line = Line(**next(questions))
    before = Counts()
    _answer(line.url)
    for question in questions:
        if question == "drop":
            _answer(line.drop())
        else:
            now = line.counts()
            _answer(vars(now.since(before)))
            before = now
    line.close()


def _answer(value: object) -> None:
    print(json.dumps(value), flush=True)


if __name__ == "__main__":
    main()
