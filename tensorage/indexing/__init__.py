"""Numpy selections as runs of elements: the elements of a stored array that a selection asks for. No I/O.

The question answered here: given the shape of an array and a selection, which runs of consecutive elements have to
travel, and what is left to do in memory?

1. `selection` brings the selection into a normal form, the indexer: nested *dims* of offsets, outermost first.
2. `covering` chooses the first dim to *cover*. Each run goes from the first to the last element that the dims from
   that one on select. The dims before it are *walked*: each offset is a run of its own.
3. The runs that travel are a `RunProduct` or a `RunList`, split into requests. The elements of all runs, one after
   another, are the *buffer*.
4. `reading` joins these steps. `buffer` takes the result out of the buffer, or puts assigned values into it.

Steps 2 to 4 are for arrays that are stored flat. For arrays in chunks of an N-d grid, `chunks` takes their place: the
buffer then has the axes of the array, and the chunks that the selection touches travel.

Every selection works that numpy accepts for reading, and gives the result that numpy gives. A selection that numpy
refuses is refused with the same kind of error.

Over-read is bounded: the bytes that travel are at most twice those of the distinct elements selected, plus 64 KiB for
each stored block that they touch, unless more saves a request. Within that bound the cheapest way is taken: a run
costs the server about as much as some bytes do (`RUN_COST_BYTES`), and more if there are few runs in a block.

Chunks travel whole, as they are encoded. Bytes that lie between two of them in an object travel, too, where that takes
less time than a request: at most 24 KiB for each chunk that is touched (`tensorage.backend.zarr.ranges`).
"""

from tensorage.indexing.chunks import ChunkPlan, ChunkProjection, plan_chunks
from tensorage.indexing.covering import MAX_OVER_READ_BYTES
from tensorage.indexing.reading import RunPlan, plan_runs
from tensorage.indexing.runs import (
    MAX_POSITIONS,
    MAX_REQUEST_BYTES,
    MAX_RUNS,
    RequestRuns,
    RunList,
    RunProduct,
    Runs,
    halve,
    max_elements,
    split,
    split_by_request,
)
from tensorage.indexing.selection import Selection

__all__ = [
    "MAX_OVER_READ_BYTES",
    "MAX_POSITIONS",
    "MAX_REQUEST_BYTES",
    "MAX_RUNS",
    "ChunkPlan",
    "ChunkProjection",
    "RequestRuns",
    "RunList",
    "RunPlan",
    "RunProduct",
    "Runs",
    "Selection",
    "halve",
    "max_elements",
    "plan_chunks",
    "plan_runs",
    "split",
    "split_by_request",
]
