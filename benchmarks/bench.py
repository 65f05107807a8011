"""Things that cases share: a backend, a session, data, and peers, each made when first asked for."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

import tensorage
from benchmarks.straight import Straight
from tensorage.embedded.control import Running

if TYPE_CHECKING:
    from benchmarks.peers.hsds import Hsds
    from benchmarks.peers.json_floats import JsonFloats

#: 188 MB of float32: as many images as a well-known training set has.
SHAPE = (60000, 28, 28)

#: Images that the JSON peer stores: enough to see its rate.
JSON_IMAGES = 4000


@dataclass
class Bench:
    """Things that the cases of one run share.

    Parameters
    ----------
    stack
        Stops everything that was started.
    """

    running: Running
    session: tensorage.BackendSession
    stack: ExitStack = field(repr=False)

    @cached_property
    def store(self) -> tensorage.TensorStore:
        return tensorage.TensorStore(self.session, quiet=True, allow_overwrite=True)

    @cached_property
    def array(self) -> npt.NDArray[np.float32]:
        return np.random.default_rng(0).random(SHAPE, dtype=np.float32)

    @cached_property
    def straight(self) -> Straight:
        return self.stack.enter_context(Straight(self.running.superuser_url))

    @cached_property
    def hsds(self) -> Hsds:
        from benchmarks.peers import hsds

        return self.stack.enter_context(hsds.running())

    @cached_property
    def json_floats(self) -> JsonFloats:
        from benchmarks.peers.json_floats import JsonFloats

        return JsonFloats(self.session, self.straight)

    @cached_property
    def images(self) -> tensorage.Tensor:
        """The array, as stored by tensorage. All peers but the JSON one store it, too."""
        if not self.straight.fetch("select exists (select from straight)"):
            self.straight.write(self.array)
        if "bulk" not in self.store:
            self.store["bulk"] = self.array
        if not self.hsds.is_written:
            self.hsds.write_images(self.array)
        self.rest()
        return self.store.open("bulk")

    def rest(self) -> None:
        """Finish all work in the background, so that it does not disturb the next measurement.

        HSDS writes late, and PostgreSQL has checkpoints and autovacuum.
        """
        self.hsds.settle()
        self.straight.execute("vacuum analyze")
        self.straight.execute("checkpoint")

    def check(self, found: npt.NDArray[np.float32], expected: npt.NDArray[np.float32]) -> None:
        """Refuse to measure a peer that returns other elements than were stored."""
        if not np.array_equal(found, expected):
            raise AssertionError("what came back is not what was stored")
