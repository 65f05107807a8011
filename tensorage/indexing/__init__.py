"""Numpy selections as runs of elements: which elements of a stored array to ask for. No I/O.

The question answered here: given the shape of an array and an index expression, which runs of consecutive
elements have to travel, and what is left to do in memory?

1. `selection` brings the expression into a normal form: nested *dims* of offsets, outermost first.
2. `covering` decides from which dim on to *cover*: each run then goes from the first to the last element that the
   dims from there on select, and the dims before it are *walked*, each offset a run of its own.
3. The runs that travel are a `RunProduct` or a `RunList`, split so that each part fits a request. The elements of all
   runs, one after another, are the *buffer*.
4. `reading` puts it together; `buffer` takes the result out of the buffer, or puts assigned values into it.

Where an array is not stored flat but in chunks of an N-d grid, `chunks` takes the place of the steps 2 to 4: the
buffer has the axes of the array then, and what travels are the chunks that the selection touches.

Every index expression works that numpy accepts for reading, and gives what numpy gives; what numpy refuses is
refused with the same kind of error.

What travels in runs is bounded: never more than twice the bytes of the distinct elements selected plus 64 KiB for
each stored block that they touch, unless more saves a request. Within that, the cheapest way is taken: a run costs
the server about as much as some bytes do (`RUN_COST_BYTES`), and more if there are few in a block.
"""

from tensorage.indexing.chunks import ChunkPlan, ChunkProjection, plan_chunks
from tensorage.indexing.covering import MAX_GAP_BYTES
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
    "MAX_GAP_BYTES",
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
