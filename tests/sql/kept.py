"""A user's arrays, and the names and marks by which others would get at them or give them away."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import unquote

import httpx
import numpy as np
from sql.api import Caller, answer_of, new_key, new_operation
from sql.objects import begin, begin_append, begin_assign, fill, name_of, put, store

ARRAY = np.arange(77_000_001, 77_000_013, dtype="<i4").reshape(4, 3)


@dataclass(frozen=True)
class Names:
    """Names by which calls get at what a user keeps."""

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
    #: Names of arrays of Storage, each with its objects; and of an append that is not committed.
    objects_key: str
    objects: int
    writing: int
    growing: int
    changing: int


@dataclass(frozen=True)
class Kept:
    """All that a user keeps: an array, a staged one, and an assignment that is not committed; in both engines."""

    owner: Caller
    names: Names

    @property
    def marks(self) -> list[str]:
        """Texts that no answer to somebody else may hold, however they are written."""
        elements = ARRAY.tobytes()
        return [
            self.owner.id,
            self.owner.email,
            "the owner's note",
            elements.decode("latin-1"),
            elements.hex(),
        ]


def keep(owner: Caller) -> Kept:
    """Store an array as the user, begin another, and begin to change the first; in both engines."""
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
        *_keep_objects(owner),
    )
    return Kept(owner, names)


def _keep_objects(owner: Caller) -> tuple[str, int, int, int, int]:
    """Store the same arrays in Storage, and return their names."""
    stored = store(owner, attrs={"note": "the owner's note"})
    writing = begin(owner, new_key(), attrs={"note": "the owner's note"})
    last = {"of_4": name_of(stored, 4)}
    growing, changing = begin_append(owner, stored, 1), begin_assign(owner, stored)
    for begun, numbers in ((writing, [0, 1]), (growing, [4]), (changing, [4])):
        answer_of(put(owner, begun, *fill(owner, begun, numbers, **last)))
    return stored["key"], stored["id"], writing["id"], growing["id"], changing["id"]


def assert_unmarked(answer: httpx.Response, kept: Kept) -> None:
    """Fail on an answer to somebody else that holds anything of what is kept."""
    said = answer.content.decode("latin-1")
    asked = unquote(str(answer.request.url)) + answer.request.content.decode("latin-1")
    for mark in kept.marks:
        # An error names the owner whom the caller asked for.
        assert mark not in said or mark in asked, answer.request
    # Keys were said by who asked; a list or a row would say them on its own.
    if "key" not in str(answer.request.url) and kept.names.key.encode() not in answer.request.content:
        assert kept.names.key not in said
