"""The rules of access, by kind of operation and kind of subject: all that the matrix expects follows from this page."""

from __future__ import annotations

from enum import Enum
from typing import Final


class Subject(Enum):
    """Kinds of callers, by the rights that they have on the owner's things."""

    OWNER = "owner"
    #: Signed in, and nothing is shared with them now: never was, not any more, or the time is over.
    STRANGER = "stranger"
    #: Somebody with whom a key or a prefix is shared.
    READER = "reader"
    WRITER = "writer"
    #: The project's public key without a login.
    ANON = "anon"
    #: A good token of a user who has been deleted.
    DELETED = "deleted"
    #: No key, or a token that has expired or was forged.
    BAD_TOKEN = "bad token"
    SERVICE = "service"


class Kind(Enum):
    """Kinds of operations, by the rights that they ask for."""

    #: Told to whoever has a key for it: the version of the schema.
    VERSION = "version"
    #: Told to who is signed in, and to the service key: the state of the project.
    PROJECT = "project"
    #: Told to everybody: the protocol of resumable uploads.
    PROTOCOL = "protocol"
    #: Works on the caller's own things, whatever others have. The owner's things stay as they are.
    OWN = "own"
    READ = "read"
    #: Uses something that the owner shares with everybody, for writing.
    OPEN = "open"
    #: Reads something of the owner's that is not shared.
    READ_PRIVATE = "read private"
    #: Appends, assigns, sets attributes.
    WRITE = "write"
    #: Renames, removes, shares, lists shares; stores and removes files; signs URLs.
    MANAGE = "manage"
    #: Goes on with something that the owner is writing.
    STAGED = "staged"
    #: Goes on with an upload in pieces, which belongs to the login that began it and to no role.
    UPLOAD = "upload"
    #: Quotas, and rows of the tables past the functions.
    ADMINISTER = "administer"
    #: Nobody may, not even the service key: say, to commit what somebody began whose share has ended.
    CLOSED = "closed"


_SIGNED_IN: Final = frozenset({Subject.OWNER, Subject.STRANGER, Subject.READER, Subject.WRITER})

#: Subjects that are let through. All others are refused, and learn nothing.
ALLOWED: Final = {
    Kind.VERSION: _SIGNED_IN | {Subject.DELETED, Subject.SERVICE},
    Kind.PROJECT: _SIGNED_IN | {Subject.SERVICE},
    Kind.PROTOCOL: frozenset(Subject),
    Kind.OWN: _SIGNED_IN,
    Kind.OPEN: _SIGNED_IN,
    Kind.READ: frozenset({Subject.OWNER, Subject.READER, Subject.WRITER}),
    Kind.READ_PRIVATE: frozenset({Subject.OWNER}),
    Kind.WRITE: frozenset({Subject.OWNER, Subject.WRITER}),
    Kind.MANAGE: frozenset({Subject.OWNER}),
    Kind.STAGED: frozenset({Subject.OWNER}),
    Kind.UPLOAD: frozenset({Subject.OWNER}),
    Kind.ADMINISTER: frozenset({Subject.SERVICE}),
    Kind.CLOSED: frozenset[Subject](),
}

#: Kinds of which the service key may all at tables and objects, past every policy. At functions it is nobody's login.
_SERVED: Final = frozenset({Kind.OWN, Kind.OPEN, Kind.READ, Kind.READ_PRIVATE, Kind.MANAGE, Kind.STAGED})


def is_allowed(kind: Kind, subject: Subject, *, is_function: bool) -> bool:
    """Tell whether a subject may do what an operation does."""
    if subject is Subject.SERVICE and kind in _SERVED:
        return not is_function
    return subject in ALLOWED[kind]
