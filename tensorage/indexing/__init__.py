"""Numpy selections as runs of elements: which elements of a stored array to ask for. No I/O.

The question answered here: given the shape of an array and an index expression, which runs of consecutive
elements have to travel, and what is left to do in memory?

1. `selection` brings the expression into a normal form: nested *dims* of offsets, outermost first.
2. `layout` decides from which dim on to *cover*: each run then goes from the first to the last element that the
   dims from there on select, and the dims before it are *walked*, each offset a run of its own.
3. What travels is a `Grid` or `Spans` of `runs`, in parts that each fit a request; the elements of all runs, one
   after another, are the *box*.
4. `reading` puts it together; `box` takes the result out of the box, or puts assigned values into it.

Where an array is not stored flat but in chunks of an N-d grid, `chunks` takes the place of the steps 2 to 4: the
box has the axes of the array then, and what travels are the chunks that the selection touches.

Every index expression works that numpy accepts for reading, and gives what numpy gives; what numpy refuses is
refused with the same kind of error.

What travels in runs is bounded: never more than twice the bytes of the distinct elements selected plus 64 KiB for
each stored block that they touch, unless more saves a request. Within that, the cheapest way is taken: a run costs
the server about as much as some bytes do (`RUN_COST_BYTES`), and more if there are few in a block.
"""

from tensorage.indexing.chunks import ChunkPart, ChunkReading, plan_chunks
from tensorage.indexing.layout import MAX_GAP_BYTES
from tensorage.indexing.reading import Reading, plan
from tensorage.indexing.runs import (
    MAX_POSITIONS,
    MAX_REQUEST_BYTES,
    MAX_RUNS,
    Grid,
    Part,
    Source,
    Spans,
    halves,
    max_elements,
    requests,
    split,
)
from tensorage.indexing.selection import Selection

__all__ = [
    "MAX_GAP_BYTES",
    "MAX_POSITIONS",
    "MAX_REQUEST_BYTES",
    "MAX_RUNS",
    "ChunkPart",
    "ChunkReading",
    "Grid",
    "Part",
    "Reading",
    "Selection",
    "Source",
    "Spans",
    "halves",
    "max_elements",
    "plan",
    "plan_chunks",
    "requests",
    "split",
]
