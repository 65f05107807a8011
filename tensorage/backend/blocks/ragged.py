"""Arrays whose elements have any length, as rows of PostgreSQL: reading, writing and appending."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt

from tensorage.backend.restarts import gone_is_changed
from tensorage.backend.staging import (
    begin,
    begin_anew_after_failures,
    finish_write,
    stage,
    with_room,
)
from tensorage.backend.transfer import Transfer, Work
from tensorage.backend.wire.faults import error_of
from tensorage.backend.wire.header import header
from tensorage.backend.wire.http import TooMuchError
from tensorage.backend.wire.progress import Advance
from tensorage.errors import CorruptTensorError
from tensorage.indexing.reading import RunPlan, plan_runs
from tensorage.indexing.runs import (
    MAX_REQUEST_BYTES,
    MAX_RUNS,
    RequestRuns,
    RunList,
    Runs,
    as_list,
    halve,
    split,
)
from tensorage.indexing.selection import Selection
from tensorage.model.arranging import arrange, refuse_out
from tensorage.model.declaration import BLOCK_BYTES
from tensorage.model.memory import check_fits
from tensorage.model.ragged import Block, decode, decode_lengths, decode_one
from tensorage.ragged import Ragged
from tensorage.types import Dataset

__all__ = ["RaggedWriter", "fetch_lengths", "read_samples"]

logger = logging.getLogger(__name__)

#: With at least this many runs, also plan with fewer: each takes the server about 30 us to find.
_MANY_RUNS = 1024

#: Divide the mean bytes of an element by this when planning again: cheaper over-read makes fewer, longer runs.
_CHEAPER = 32

#: Cost of an element to the client beyond its bytes, in bytes: each is an object of Python.
_ELEMENT_COST_BYTES = 64

#: Most elements of one request that writes. The server looks at the end of each, 2 us apiece, and has 8 s on hosted
#: Supabase.
_MAX_SENT = 262_144

#: Bytes of a part of a sample that is too long for one request.
PART_BYTES = MAX_REQUEST_BYTES - 64 * 1024

#: Most parts of a sample: the server takes no smaller ones, since each rewrites those before it.
_MAX_PARTS = 256

#: Most elements whose lengths one request asks for: 4 MiB.
_MAX_LENGTHS = 1024 * 1024


@dataclass(frozen=True, slots=True)
class _Run:
    """Blocks of one request, of which the first sample has the number `index`."""

    index: int
    blocks: tuple[Block, ...]

    @property
    def count(self) -> int:
        return sum(block.count for block in self.blocks)

    @property
    def nbytes(self) -> int:
        return sum(block.nbytes for block in self.blocks)

    @property
    def is_long(self) -> bool:
        """True if a single sample takes several requests."""
        return self.count == 1 and self.nbytes > MAX_REQUEST_BYTES

    def parts(self) -> list[bytes | memoryview]:
        return list(chain.from_iterable(block.parts() for block in self.blocks))

    def halve(self) -> tuple[_Run, _Run] | None:
        half = len(self.blocks) // 2
        if half:
            first = _Run(self.index, self.blocks[:half])
            return first, _Run(self.index + first.count, self.blocks[half:])
        halves = self.blocks[0].halve()
        if halves is None:
            return None
        return _Run(self.index, halves[:1]), _Run(self.index + halves[0].count, halves[1:])


def _runs_of(blocks: Iterator[Block]) -> Iterator[_Run]:
    """Join blocks into runs of at most a request: of a single block, if that is larger."""
    index, taken, nbytes, count = 0, list[Block](), 0, 0
    for block in blocks:
        is_full = nbytes + block.nbytes > MAX_REQUEST_BYTES or count + block.count > _MAX_SENT
        if taken and is_full:
            yield _Run(index, tuple(taken))
            index, taken, nbytes, count = index + count, [], 0, 0
        taken.append(block)
        nbytes, count = nbytes + block.nbytes, count + block.count
    if taken:
        yield _Run(index, tuple(taken))


@dataclass(frozen=True)
class RaggedWriter:
    """Writes arrays whose elements have any length: in one request if they fit, and staged otherwise.

    Parameters
    ----------
    owner
        Owner of arrays that are appended to. None for this user's own arrays.
    """

    transfer: Transfer
    quiet: bool
    owner: str | None = None

    def store(
        self,
        blocks_of: Callable[[], Iterator[Block]],
        meta: dict[str, Any],
        *,
        is_repeatable: bool,
        is_append: bool,
    ) -> Dataset:
        """Store the elements of a new array, or of rows that are appended to one.

        Parameters
        ----------
        blocks_of
            Returns the blocks of the elements.
        meta
            Declaration, as ``tensorage_store`` or ``tensorage_append`` takes it. If it is of a list of samples, its
            first extent is not known yet.
        is_repeatable
            True if `blocks_of` returns the same blocks once more. Then, a write that a failure of the database undoes
            is begun anew.
        """
        asked = f"{'appending to' if is_append else 'storing'} {meta['key']!r}"
        runs = _runs_of(blocks_of())
        ahead = [run for run in (next(runs, None), next(runs, None)) if run is not None]
        if len(ahead) < 2 and not any(run.is_long for run in ahead):
            try:
                return self._store_at_once(ahead, meta, asked, is_append=is_append)
            except TooMuchError:
                logger.debug("%s in several requests: one was too much", asked)
        later: list[Iterator[_Run]] = [chain(ahead, runs)]

        def write() -> Dataset:
            # The first try goes on with the runs that were taken to see whether there are several.
            these = later.pop() if later else _runs_of(blocks_of())
            return self._store_staged(these, meta, is_append=is_append)

        if not is_append:
            return begin_anew_after_failures(write) if is_repeatable else write()
        with gone_is_changed(
            f"{asked}: it was replaced or deleted meanwhile, or is not shared any more. Nothing was appended."
        ):
            return begin_anew_after_failures(write) if is_repeatable else write()

    def _store_at_once(
        self, runs: Sequence[_Run], meta: dict[str, Any], asked: str, *, is_append: bool
    ) -> Dataset:
        count = sum(run.count for run in runs)
        head = header(count=count, block_size=1, meta={**meta, "shape": _shape_of(meta, count)})
        parts = [head, *chain.from_iterable(run.parts() for run in runs)]
        function = "tensorage_append" if is_append else "tensorage_store"
        transfer = self.transfer
        return finish_write(transfer, with_room(transfer, lambda: transfer.send(function, parts, asked)))

    def _store_staged(self, runs: Iterator[_Run], meta: dict[str, Any], *, is_append: bool) -> Dataset:
        work = Work.storing(
            self.transfer,
            begin(self.transfer, {**meta, "append": is_append} if is_append else meta),
            quiet=self.quiet,
        )
        counted = 0

        def put(run: _Run, advance: Advance) -> None:
            if run.is_long:
                _put_parts(work, run)
                advance(run.nbytes)
                return
            head = header(count=run.count, block_size=1, data_id=work.dataset.id, index=run.index)
            work.send("tensorage_put", [head, *run.parts()])
            advance(run.nbytes)

        def jobs(advance: Advance) -> Iterator[Callable[[], None]]:
            nonlocal counted
            for run in runs:
                counted += run.count
                yield partial(work.in_halves, partial(put, advance=advance), run, _Run.halve)

        def send(advance: Advance) -> None:
            work.run(jobs(advance))
            shape = _shape_of(meta, counted)
            if shape != tuple(work.dataset.shape):
                work.call("tensorage_end_ragged", {"data_id": work.dataset.id, "shape": shape})

        return stage(work, send, 0)


def _put_parts(work: Work, run: _Run) -> None:
    """Send a sample that is too long for one request, part by part."""
    head, _, elements = run.parts()
    at, most, least = 0, PART_BYTES, -(-len(elements) // _MAX_PARTS)
    while at < len(elements):
        part = memoryview(elements)[at : at + most]
        start = header(count=1, block_size=1, data_id=work.dataset.id, index=run.index, meta={"part": at})
        try:
            work.send("tensorage_put", [start, head, part])
        except TooMuchError as error:
            if most == least:
                raise error_of(error.fault, work.asked) from error
            most = max(most // 2, least)
        else:
            at += len(part)


def _shape_of(meta: dict[str, Any], count: int) -> tuple[int, ...]:
    """Return the shape of an array now that its elements are counted."""
    shape: tuple[int, ...] = tuple(meta["shape"])
    return (count,) if shape == (0,) else shape


# Reading ----------------------------------------------------------------------------------------------------


def read_samples(work: Work, ragged: Ragged, selection: Selection, out: npt.NDArray[Any] | None) -> Any:
    """Return ``array[selection]``: a sample, a list of them, or an array of text.

    Raises
    ------
    ChangedError
        If the array has changed since it was opened.
    """
    dataset = work.dataset
    refuse_out(ragged, out, work.asked)
    plan = _plan(dataset, selection)
    check_fits((plan.size, dataset.mean_bytes), np.dtype("u1"), work.asked)
    samples: list[Any] = [None] * plan.size
    if plan.size:
        with work.bar(plan.size * dataset.mean_bytes) as advance:
            _fetch(work, ragged, plan.runs, samples, advance)
    return arrange(samples, plan, ragged, out)


def _plan(dataset: Dataset, selection: Selection) -> RunPlan:
    """Plan which runs to fetch, taking all elements to have the mean length."""
    mean = dataset.mean_bytes + _ELEMENT_COST_BYTES
    block_size = max(min(dataset.block_size, BLOCK_BYTES // mean), 1)
    plan = plan_runs(dataset.shape, selection, mean, block_size)
    runs = (
        len(plan.runs.starts) if isinstance(plan.runs, RunList) else len(plan.runs.rows) * len(plan.runs.runs)
    )
    if runs < _MANY_RUNS:
        return plan
    fewer = plan_runs(dataset.shape, selection, max(mean // _CHEAPER, 1), block_size)
    return fewer if fewer.size <= 2 * plan.size else plan


def _fetch(work: Work, ragged: Ragged, runs: Runs, samples: list[Any], advance: Advance) -> None:
    def fetch(request: RequestRuns) -> None:
        try:
            answer = work.read("tensorage_read_ragged", _arguments(work, request))
        except TooMuchError:
            if request.size > 1:
                raise
            decoded = [decode_one(_read_long(work, request), ragged, work.asked)]
        else:
            decoded = decode(answer, ragged, request.size, work.asked)
        samples[request.out_first : request.out_first + request.size] = decoded
        advance(request.size * work.dataset.mean_bytes)

    most = max(MAX_REQUEST_BYTES // work.dataset.mean_bytes, 1)
    _in_requests(work, runs, most, fetch)


def _read_long(work: Work, request: RequestRuns) -> bytearray:
    """Read a sample that is too long for one answer, part by part."""
    arguments = _arguments(work, request)
    (length,) = decode_lengths(work.read("tensorage_ragged_lengths", arguments), 1, work.asked).tolist()
    sample = bytearray()
    while len(sample) < length:
        part = work.read("tensorage_read_ragged", {**arguments, "part": len(sample), "most": PART_BYTES})
        if not part:
            raise CorruptTensorError(f"{work.asked}: a sample of {length} bytes ends after {len(sample)}")
        sample += part
    return sample


def fetch_lengths(work: Work, count: int) -> npt.NDArray[np.int64]:
    """Return the number of bytes of each of the first `count` elements of an array, in one dimension.

    Raises
    ------
    ChangedError
        If the array has changed since it was opened.
    """
    lengths = np.zeros(count, np.int64)

    def fetch(request: RequestRuns) -> None:
        answer = work.read("tensorage_ragged_lengths", _arguments(work, request))
        lengths[request.out_first : request.out_first + request.size] = decode_lengths(
            answer, request.size, work.asked
        )

    if lengths.size:
        everything = RunList(np.zeros(1, np.int64), np.full(1, lengths.size, np.int64))
        _in_requests(work, everything, _MAX_LENGTHS, fetch)
    return lengths


def _arguments(work: Work, request: RequestRuns) -> dict[str, Any]:
    runs = as_list(request.runs)
    return {
        **work.identity, "starts": runs.starts.tolist(), "lengths": runs.lengths.tolist(),
    }  # fmt: skip


def _in_requests(work: Work, runs: Runs, most: int, fetch: Callable[[RequestRuns], None]) -> None:
    """Fetch runs, of at most `most` elements in a request, or of fewer if the backend finds these too much."""
    requests = split(as_list(runs), most, MAX_RUNS)
    work.run(partial(work.in_halves, fetch, request, _halve) for request in requests)


def _halve(request: RequestRuns) -> tuple[RequestRuns, RequestRuns] | None:
    return halve(request) if request.size > 1 else None
