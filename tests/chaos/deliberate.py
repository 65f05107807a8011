"""Mistakes that a writer makes on purpose, to see that they are found."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from dataclasses import replace

from tensorage.backend.wire.faults import Fault
from tensorage.backend.wire.http import Answer, Http, Request

__all__ = ["FAULTS", "commit"]


def _resends_under_another_id() -> None:
    """Name each attempt of an append anew, so that one whose answer was lost is done again."""
    attempt = Http.attempt

    def attempt_anew(self: Http, request: Request, headers: Mapping[str, str], asked: str) -> Answer | Fault:
        if request.path.endswith("tensorage_append"):
            head, *elements = request.body
            meta = json.loads(bytes(head[40:]))
            # Ids have one length: the header still says how long the rest is.
            meta["operation"] = str(uuid.uuid4())
            anew = json.dumps(meta, separators=(",", ":")).encode()
            assert len(anew) == len(head) - 40
            request = replace(request, body=[bytes(head[:40]) + anew, *elements])
        return attempt(self, request, headers, asked)

    Http.attempt = attempt_anew  # type: ignore[method-assign]


def _answers_before_the_commit() -> None:
    """Take an array for stored whose commit has not been asked for."""
    from tensorage.backend.blocks import writing

    def stage(work, send, nbytes, *, shards=None):  # type: ignore[no-untyped-def]
        send(lambda _bytes: None)
        return work.dataset

    writing.stage = stage


FAULTS = {
    "resends under another id": _resends_under_another_id,
    "answers before the commit": _answers_before_the_commit,
}


def commit(fault: str | None) -> None:
    """Make the mistake, in this process and from now on."""
    if fault is not None:
        FAULTS[fault]()
