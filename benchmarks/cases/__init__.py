"""The cases. Each is a function that takes the `Bench` and yields results."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from benchmarks.bench import Bench
from benchmarks.cases.background import background
from benchmarks.cases.beside import beside
from benchmarks.cases.bulk import bulk, json_rows
from benchmarks.cases.cache import cache
from benchmarks.cases.cpu import cpu
from benchmarks.cases.epochs import epochs
from benchmarks.cases.far import far
from benchmarks.cases.first_byte import first_byte
from benchmarks.cases.large import large
from benchmarks.cases.loops import one_by_one, waiting
from benchmarks.cases.memory import memory
from benchmarks.cases.objects import engines, objects
from benchmarks.cases.peers import hsds_nodes
from benchmarks.cases.postgres import postgres
from benchmarks.cases.ragged import texts
from benchmarks.cases.scale import scale
from benchmarks.cases.selections import last_axis, samples
from benchmarks.cases.server import bodies, small_calls, starts
from benchmarks.cases.sharing import sharing
from benchmarks.cases.small import small_arrays
from benchmarks.cases.together import together
from benchmarks.measure import Result

__all__ = ["CASES", "ONLY_WHEN_NAMED", "Case"]

Case = Callable[[Bench], Iterator[Result]]

CASES: tuple[Case, ...] = (
    small_calls,
    bodies,
    bulk,
    samples,
    last_axis,
    texts,
    small_arrays,
    together,
    background,
    json_rows,
    objects,
    engines,
    waiting,
    one_by_one,
    cache,
    first_byte,
    scale,
    memory,
    starts,
)

#: Cases that run only when they are named: the choice of HSDS's configuration, and some that take minutes.
ONLY_WHEN_NAMED: tuple[Case, ...] = (cpu, hsds_nodes, postgres, sharing, far, epochs, large, beside)
