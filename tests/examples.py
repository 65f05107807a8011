"""Numbers of examples for the tests that draw them at random."""

from __future__ import annotations

import os

#: Share of the examples that `make quick` draws: one in so many. `make test` draws all.
_ONE_IN = int(os.environ.get("EXAMPLES_ONE_IN", "1"))


def examples(count: int) -> int:
    """Return the number of examples to draw where `make test` draws so many."""
    return max(count // _ONE_IN, 1)
