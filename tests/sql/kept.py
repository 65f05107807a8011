"""A user's arrays, and the names and marks by which others would get at them or give them away."""

from __future__ import annotations

from dataclasses import dataclass

import httpx
import numpy as np
from sql.api import Caller, new_key, new_operation

ARRAY = np.arange(77_000_001, 77_000_013, dtype="<i4").reshape(4, 3)


@dataclass(frozen=True)
class Names:
    """All by which calls name what a user keeps."""

    key: str
    id: int
    version: int
    staged_key: str
    staged: int
    assigning: int
    owner: str
    stored_by: str
    begun_by: str
    appended_by: str


@dataclass(frozen=True)
class Kept:
    """What a user keeps: a committed array, a staged one, and an assignment that is not committed."""

    owner: Caller
    names: Names

    @property
    def marks(self) -> list[str]:
        """What no answer to somebody else may hold, however it is written."""
        elements = ARRAY.tobytes()
        return [
            self.owner.id,
            self.owner.email,
            "the owner's note",
            elements.decode("latin-1"),
            elements.hex(),
        ]


def keep(owner: Caller) -> Kept:
    """Store an array as the user, begin another, and begin to assign to the first."""
    key, staged_key = new_key(), new_key()
    stored_by, begun_by, appended_by = new_operation(), new_operation(), new_operation()
    owner.store(key, ARRAY, operation=stored_by, attrs={"note": "the owner's note"})
    assert owner.append(key, ARRAY[:1], operation=appended_by).status_code == 200
    staged = owner.begin(staged_key, [4, 3], operation=begun_by, attrs={"note": "the owner's note"})["id"]
    assert owner.put(staged, ARRAY).status_code == 200
    opened = owner.open(key)
    assigning = owner.begin_assign(opened)["id"]
    assert owner.patch(assigning, ARRAY[:1], [0], [3]).status_code == 200
    names = Names(
        key,
        opened["id"],
        opened["version"],
        staged_key,
        staged,
        assigning,
        owner.email,
        stored_by,
        begun_by,
        appended_by,
    )
    return Kept(owner, names)


def assert_unmarked(answer: httpx.Response, kept: Kept) -> None:
    """Fail on an answer to somebody else that holds anything of what is kept."""
    said = answer.content.decode("latin-1")
    for mark in kept.marks:
        assert mark not in said, answer.request
    # Keys were said by who asked; a list or a row would say them on its own.
    if "key" not in str(answer.request.url) and kept.names.key.encode() not in answer.request.content:
        assert kept.names.key not in said
